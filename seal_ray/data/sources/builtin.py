"""Digits, letters, and CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seal_ray.data.dataset import ClassName, Pixels, Sample, Source, fifth_of_each_class
from seal_ray.data.sources.registry import A_FIFTH, source
from seal_ray.errors import DataError

SIZE = 32
"""Pixels a side of digits and letters."""
DRAWS = 4
"""Images of each letter in each font."""
FINER = 4
"""How many times finer letters are drawn, before they are averaged."""
CAPITAL = 0.7
"""The height of a capital, about, as a share of a font's size."""
WIDEST = 0.75
"""The width of a letter at most, as a share of the image's."""
VAL_FONTS = ("DejaVuSans-Oblique", "DejaVuSerif-Bold", "STIXGeneralItalic", "cmss10")
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmtt10"),
)


@source(
    "digits",
    address="https://archive.ics.uci.edu/dataset/80",
    licence_note="Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI), CC BY 4.0.",
    classes=10,
    images=1_797,
    split=A_FIFTH,
)
def digits() -> Source:
    """Read the 1,797 handwritten digits that scikit-learn brings: no download, trained on within seconds.

    The 8 x 8 images of values 0..16 become 32 x 32 RGB: each pixel four times in both directions, values
    scaled to 0..255 and rounded. Of each class a fifth, rounded and drawn by seed 0, is val.
    """
    from sklearn.datasets import load_digits  # takes a second, and only digits needs it

    bunch = load_digits()
    values = bunch.images.astype(np.uint16)
    images = np.repeat(np.repeat((values * 255 + 8) // 16, 4, axis=1), 4, axis=2).astype(np.uint8)
    held_out = fifth_of_each_class("digits", bunch.target)
    samples = [
        Sample(partial(_rgb, image), int(label), f"digits/{index}")
        for index, (image, label) in enumerate(zip(images, bunch.target, strict=True))
    ]
    return Source(
        classes=tuple(ClassName(str(digit), str(digit)) for digit in range(10)),
        train=[sample for sample, val in zip(samples, held_out, strict=True) if not val],
        val=[sample for sample, val in zip(samples, held_out, strict=True) if val],
        size=32,
    )


def _rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


@source(
    "letters",
    address="https://matplotlib.org",
    licence_note=(
        "A to Z drawn with the fonts that matplotlib brings: DejaVu (Bitstream Vera and Arev licences), STIX "
        "(SIL Open Font Licence 1.1) and the BaKoMa fonts of TeX (their own licence, free of charge)."
    ),
    classes=26,
    images=2_080,
    train=1_664,
    split="by font: four of the twenty are held out",
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
        classes=tuple(ClassName(letter, letter) for letter in ascii_uppercase),
        train=_letters_of(fonts, TRAIN_FONTS),
        val=_letters_of(fonts, VAL_FONTS),
        size=SIZE,
    )


def _letters_of(fonts: Path, names: tuple[str, ...]) -> list[Sample]:
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
    import torch

    from seal_ray.streams import stream

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


@source(
    "cifar10",
    needs=("cifar-10-batches-py/",),
    address="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence_note="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    classes=10,
    images=60_000,
    train=50_000,
)
def cifar10(path: Path, download: bool = False) -> Source:
    """CIFAR-10; see _cifar."""
    return _cifar("CIFAR10", path, download)


@source(
    "cifar100",
    needs=("cifar-100-python/",),
    address="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence_note="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    classes=100,
    images=60_000,
    train=50_000,
)
def cifar100(path: Path, download: bool = False) -> Source:
    """CIFAR-100 with its fine classes; see _cifar."""
    return _cifar("CIFAR100", path, download)


def _cifar(name: str, path: Path, download: bool) -> Source:
    """Read CIFAR from the extracted python archive in the folder `path`.

    The archive's files are pickles, so they are opened only when their checksums are the official ones.
    `download` fetches the archive from its official address first. Raises DataError.
    """
    from torchvision import datasets  # seconds, and only CIFAR needs it

    kind = getattr(datasets, name)
    if download:
        _download(kind, path)
    _refuse_altered(kind, path)
    train, val = (kind(str(path), train=split, download=False) for split in (True, False))
    return Source.from_arrays(train.classes, (train.data, train.targets), (val.data, val.targets))


def _download(kind: Callable[..., Any], path: Path) -> None:
    try:
        kind(str(path), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the download to {path} failed: {error}; try again, or fetch it by hand") from error


def _refuse_altered(kind: Any, path: Path) -> None:
    from torchvision.datasets.utils import check_integrity

    meta = (kind.meta["filename"], kind.meta["md5"])
    for file, md5 in (*kind.train_list, *kind.test_list, meta):
        if not check_integrity(path / kind.base_folder / file, md5):
            raise DataError(
                f"{path / kind.base_folder / file} is missing or not the official file; "
                "use --download, or extract the official python archive there"
            )
