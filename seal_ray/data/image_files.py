"""Image files: which files are images, and how they become 8-bit RGB of one size."""

from __future__ import annotations

import functools
import io
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from seal_ray.data.dataset import Pixels
from seal_ray.errors import ConfigError, DataError

LARGEST = 4096
"""Pixels a side that images are resized to at most."""
BACKGROUNDS = ("white", "black")
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, as far as Pillow was built with it; its other readers take text and programs for images."""
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""Files of these names are meant as images: one that cannot be read is an error."""
PIXEL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes whose values have a meaning in 8-bit RGB; grey of 16 bits has, too."""
LEFT_BEHIND = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)
"""Files and folders that other programs leave among images, in small letters."""


def is_clutter(path: str) -> bool:
    """Whether a path below a root is hidden, or left there by another program, at any depth."""
    return any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in PurePosixPath(path).parts)


def shown(path: Path) -> str:
    r"""A path as it can be printed: bytes of its name that are not UTF-8 as \xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


def check_size(size: int) -> None:
    """ConfigError for a size that images are not resized to."""
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"--size {size} is outside 1..{LARGEST}")


def shorter_side(file: Path) -> int | None:
    """The shorter side of an image in pixels, of which the header alone is read; None for other files.

    The content decides, whatever the file is called. DataError for what cannot be read though it has a suffix
    of images, and for values without a meaning in 8-bit RGB.
    """
    where = shown(file)
    try:
        with file.open("rb") as content:
            try:
                with _open(content) as image:
                    _check_mode(image, where)
                    return min(image.size)
            except DataError:
                raise
            except Exception as error:  # Pillow's parsers raise nearly anything
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    raise _unreadable(where, error) from error
                return None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Decoder:
    """Decodes images to 8-bit RGB.

    Grey and palettes become RGB as they are. 16-bit grey is divided by 257 and rounded, so that 65,535 is
    255; transparency is laid on `background`; of several frames the first is taken; CMYK is converted without
    a colour profile. Of 16-bit colours Pillow gives the upper byte. What EXIF says of turning an image is not
    applied, as torchvision does not.

    converted: what was done beyond a change of layout, each with the images that it was done to so far.
    """

    background: str = "white"
    converted: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ConfigError(f"--background {self.background}: must be {' or '.join(BACKGROUNDS)}")

    def __call__(self, data: bytes, where: str) -> Image.Image:
        """An image of mode RGB. DataError that begins with `where`, also for 32-bit and floating values."""
        try:
            with _open(io.BytesIO(data)) as image:
                _check_mode(image, where)
                rgb, changes = _to_rgb(image, self.background)
        except DataError:
            raise
        except Exception as error:  # Pillow's parsers raise nearly anything on a damaged file
            raise _unreadable(where, error) from error
        for change in changes:
            self.converted.setdefault(change, set()).add(where)
        return rgb


def centre_square(image: Image.Image, size: int) -> Pixels:
    """Resize the shorter side to `size` pixels (bilinear, antialiased) and cut out the centre.

    (height, width) -> (size, size, 3), the same pixels as torchvision's Resize and CenterCrop.
    """
    short = min(image.size)
    width, height = (side * size // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _open(content: IO[bytes]) -> Image.Image:
    return Image.open(content, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(one for one in FORMATS if one in Image.OPEN)


def _unreadable(where: str, error: Exception) -> DataError:
    reason = "not one of " + ", ".join(_formats()) if "cannot identify" in str(error) else error
    return DataError(f"{where} is not a readable image ({reason}); replace or remove it")


def _is_grey16(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _check_mode(image: Image.Image, where: str) -> None:
    if image.mode not in PIXEL_MODES and not _is_grey16(image):
        raise DataError(
            f"{where} is of mode {image.mode}, whose values have no scale to 0..255; save it with 8 bits a "
            "channel, or as grey of 16 bits"
        )


def _to_rgb(image: Image.Image, background: str) -> tuple[Image.Image, list[str]]:
    """The image as RGB, and what was done to it."""
    changes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # whose other frames are previews
        changes.append("with several frames, of which the first is taken")
    if "exif" in image.info and image.format != "TIFF":
        with suppress(Exception):  # damaged EXIF, of an image that is not
            if image.getexif().get(ExifTags.Base.Orientation, 1) > 1:
                changes.append("turned by EXIF, taken as they are stored")
    if _is_grey16(image):
        changes.append("grey of 16 bits, divided by 257 and rounded")
        image = _grey8(image)
    elif any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        changes.append("colours of 16 bits, of which the upper byte is taken")
    if image.mode == "CMYK":
        changes.append("CMYK, converted without a colour profile")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            changes.append(f"transparent, laid on {background}")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
    return image.convert("RGB"), changes


def _grey8(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, the value that is transparent as an alpha channel."""
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
