"""How image files become 8-bit RGB: what is scaled, laid on a background, refused, and what is said."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seal_ray.data.image_files import Decoder, shorter_side
from seal_ray.errors import ConfigError, DataError

EVERY = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
SCALED = np.array([round(value / 257) for value in range(65_536)], dtype=np.uint8).reshape(256, 256)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write: (height, width, channels) uint16."""
    height, width = values.shape[:2]

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_alpha(mode: str, alpha: np.ndarray) -> Image.Image:
    image = Image.fromarray(COLOURS).convert("RGB" if mode == "RGBA" else "L")
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    return image


def said(data: bytes, background: str = "white") -> tuple[np.ndarray, list[str]]:
    decoder = Decoder(background)
    rgb = np.asarray(decoder(data, "a/b.png"))
    assert all(images == {"a/b.png"} for images in decoder.converted.values())
    return rgb, list(decoder.converted)


GREY16 = {
    "PNG": lambda: png(EVERY[..., None], 0),
    "PNG of Pillow": lambda: encoded(Image.fromarray(EVERY), "PNG"),
    "TIFF": lambda: encoded(Image.fromarray(EVERY), "TIFF"),
    "big-endian TIFF": lambda: encoded(Image.fromarray(EVERY.astype(">u2")), "TIFF"),
    "PGM": lambda: b"P5 256 256 65535\n" + EVERY.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", GREY16)
def test_every_value_of_16_bits_is_divided_by_257_and_rounded(kind: str) -> None:
    rgb, changes = said(GREY16[kind]())
    assert (rgb == SCALED[..., None]).all()
    assert changes == ["grey of 16 bits, divided by 257 and rounded"]


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_of_colours_of_16_bits_the_upper_byte_is_taken_and_said(colour_type: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65_536, (7, 9, channels), dtype=np.uint16)
    values[..., 3:] = 65_535
    rgb, changes = said(png(values, colour_type))
    assert (rgb == values[..., :3] >> 8).all()
    assert changes == ["colours of 16 bits, of which the upper byte is taken"]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
def test_alpha_is_laid_on_the_background(mode: str, background: str, value: int) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (6, 5), dtype=np.uint8)
    image = with_alpha(mode, alpha)
    rgb, changes = said(encoded(image, "PNG"), background)
    share = alpha[..., None] / 255
    colours = np.asarray(image.convert("RGB"), dtype=float)
    assert np.abs(rgb - (colours * share + value * (1 - share))).max() <= 1
    assert changes == [f"transparent, laid on {background}"]


def palette(transparent: bytes | int) -> bytes:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 10, 10, 0, 0, 250])
    return encoded(image, "PNG", transparency=transparent)


def keyed(image: Image.Image, colour: Any) -> bytes:
    return encoded(image, "PNG", transparency=colour)


BLACK, RED, BLUE, WHITE = (0, 0, 0), (200, 10, 10), (0, 0, 250), (255, 255, 255)
TRANSPARENT: dict[str, tuple[Callable[[], bytes], list[list[tuple[int, int, int]]]]] = {
    "an index of a palette": (lambda: palette(0), [[WHITE, RED, BLUE], [BLUE, RED, WHITE]]),
    "alpha in a palette": (lambda: palette(b"\xff\x00\xff"), [[BLACK, WHITE, BLUE], [BLUE, WHITE, BLACK]]),
    "a grey": (lambda: keyed(Image.fromarray(np.uint8([[0, 9]])), 0), [[WHITE, (9, 9, 9)]]),
    "a colour": (lambda: keyed(Image.fromarray(np.uint8([[BLACK, RED]])), RED), [[BLACK, WHITE]]),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_a_palette_or_a_colour_makes_transparent_is_laid_on_white(kind: str) -> None:
    data, expected = TRANSPARENT[kind]
    rgb, changes = said(data())
    assert rgb.tolist() == [[list(colour) for colour in row] for row in expected]
    assert changes == ["transparent, laid on white"]


def test_a_grey_of_16_bits_that_is_transparent_is_laid_on_white() -> None:
    data = png(np.uint16([[[300], [25_700]]]), 0)
    at = data.index(b"IDAT") - 4
    body = b"tRNS" + struct.pack(">H", 300)
    key = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    rgb, changes = said(data[:at] + key + data[at:])
    assert rgb.tolist() == [[[255] * 3, [100] * 3]]
    assert len(changes) == 2


PLAIN = {
    "RGB": lambda: encoded(Image.fromarray(COLOURS), "PNG"),
    "opaque RGBA": lambda: encoded(with_alpha("RGBA", np.full((6, 5), 255, np.uint8)), "PNG"),
    "palette": lambda: encoded(Image.fromarray(COLOURS).quantize(256), "PNG"),
    "one frame of GIF": lambda: encoded(Image.fromarray(COLOURS).quantize(256), "GIF"),
    "TIFF": lambda: encoded(Image.fromarray(COLOURS), "TIFF"),
    "BMP": lambda: encoded(Image.fromarray(COLOURS), "BMP"),
    "lossless WebP": lambda: encoded(Image.fromarray(COLOURS), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_what_loses_nothing_needs_no_word(kind: str) -> None:
    rgb, changes = said(PLAIN[kind]())
    assert (rgb == COLOURS).all()
    assert changes == []


def test_grey_and_black_and_white_become_three_equal_channels() -> None:
    grey = COLOURS[..., 0]
    for values, image in ((grey, Image.fromarray(grey)), (255 * (grey > 99), Image.fromarray(grey > 99))):
        rgb, changes = said(encoded(image, "PNG"))
        assert (rgb == values[..., None]).all()
        assert changes == []


@pytest.mark.parametrize(
    ("kind", "suffix"), [("GIF", ".gif"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")]
)
def test_of_several_frames_the_first_is_taken_and_said(kind: str, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, RED)]
    options = {"lossless": True} if kind == "WEBP" else {}
    rgb, changes = said(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (rgb == RED).all()
    assert changes == ["with several frames, of which the first is taken"]


def test_cmyk_is_converted_and_said() -> None:
    ink = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    rgb, changes = said(encoded(Image.fromarray(ink, "CMYK"), "TIFF"))
    share = 1 - ink.astype(float) / 255
    assert np.abs(rgb - 255 * share[..., :3] * share[..., 3:]).max() <= 1
    assert changes == ["CMYK, converted without a colour profile"]


def test_what_exif_says_of_turning_is_said_and_not_done() -> None:
    image, exif = Image.fromarray(COLOURS), Image.Exif()
    exif[0x0112] = 6
    rgb, changes = said(encoded(image, "PNG", exif=exif))
    assert (rgb == COLOURS).all()
    assert changes == ["turned by EXIF, taken as they are stored"]
    exif[0x0112] = 1
    assert said(encoded(image, "PNG", exif=exif))[1] == []


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (np.float32([[0, 0.5], [1, 2]]), "F"),
        (np.int32([[0, 70_000], [1, 2]]), "I"),
        (np.int32([[0, 1]]), "I"),
    ],
)
def test_values_without_a_scale_are_refused_with_file_and_mode(
    tmp_path: Path, values: np.ndarray, mode: str
) -> None:
    file = tmp_path / "deep.tif"
    Image.fromarray(values).save(file)
    said = rf"{file} is of mode {mode}, whose values have no scale to 0..255; save it with"
    with pytest.raises(DataError, match=said):
        Decoder()(file.read_bytes(), str(file))
    with pytest.raises(DataError, match=said):
        shorter_side(file)


def test_another_background_is_refused() -> None:
    with pytest.raises(ConfigError, match="--background red: must be white or black"):
        Decoder("red")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", b"P5 a b c\n"]
)
def test_what_is_no_picture_is_none_unless_it_is_called_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    assert shorter_side(tmp_path / "notes.txt") is None
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a.png is not a readable image .*; replace or remove it"):
        shorter_side(tmp_path / "a.png")
