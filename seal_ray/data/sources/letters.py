"""Capital letters drawn with the fonts that matplotlib brings: a small target that needs no download."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from seal_ray.data.dataset import ClassName, Pixels, Sample, Source
from seal_ray.data.sources import CATALOGUE
from seal_ray.errors import DataError
from seal_ray.streams import stream

SIZE = 32
"""Pixels a side, as of the digits."""
DRAWS = 4
"""Images of each letter in each font."""
FINER = 4
"""How many times finer letters are drawn, before they are averaged."""
CAPITAL = 0.7
"""The height of a capital, about, as a share of a font's size."""
WIDEST = 0.75
"""The width of a letter at most, as a share of the image's."""
VAL = ("DejaVuSans-Oblique", "DejaVuSerif-Bold", "STIXGeneralItalic", "cmss10")
TRAIN = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmtt10"),
)


def letters() -> Source:
    """A to Z in 20 fonts, 4 images each, white on black; val is of 4 fonts that train has none of.

    Each image has a size, a rotation and a shift of its own, drawn from a stream. The pixels depend on the
    versions of matplotlib, whose fonts they are, and of Pillow, which draws them. DataError where matplotlib
    lacks a font.
    """
    from matplotlib import get_data_path  # a tenth of a second, and only letters need it

    fonts = Path(get_data_path()) / "fonts" / "ttf"
    return Source(
        name="letters",
        classes=tuple(ClassName(letter, letter) for letter in ascii_uppercase),
        train=_samples(fonts, TRAIN),
        val=_samples(fonts, VAL),
        size=SIZE,
        mean=None,
        std=None,
        licence_note=CATALOGUE["letters"].licence_note,
    )


def _samples(fonts: Path, names: tuple[str, ...]) -> list[Sample]:
    files = {name: fonts / f"{name}.ttf" for name in names}
    if lacking := [file for file in files.values() if not file.is_file()]:
        raise DataError(f"{lacking[0]} is not there, a font that matplotlib brings; install matplotlib again")
    return [
        Sample(partial(_drawn, file, letter, turn), label, f"{name}/{letter}/{turn}")
        for name, file in files.items()
        for label, letter in enumerate(ascii_uppercase)
        for turn in range(DRAWS)
    ]


def _drawn(file: Path, letter: str, turn: int) -> Pixels:
    """(SIZE, SIZE, 3), three equal channels: the letter 55 to 75 % high, within 12 degrees and 6 % of it."""
    draws = torch.rand(4, generator=stream(0, f"letters {file.stem} {letter}", turn)).tolist()
    side = SIZE * FINER
    height = side * (0.55 + 0.2 * draws[0])
    angle = 24 * draws[1] - 12
    x, y = (side * (0.44 + 0.12 * draw) for draw in draws[2:])
    # Basic layout, because the other one depends on what libraries are installed.
    font = ImageFont.truetype(str(file), height / CAPITAL, layout_engine=ImageFont.Layout.BASIC)
    if (width := font.getlength(letter)) > WIDEST * side:
        font = font.font_variant(size=font.size * WIDEST * side / width)
    left, top, right, bottom = font.getbbox(letter)
    canvas = Image.new("L", (side, side))
    at = (x - (left + right) / 2, y - (top + bottom) / 2)
    ImageDraw.Draw(canvas).text(at, letter, fill=255, font=font)
    turned = canvas.rotate(angle, Image.Resampling.BILINEAR, center=(x, y))
    gray = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BOX))
    return np.repeat(gray[..., None], 3, axis=2)
