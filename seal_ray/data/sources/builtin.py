"""Digits, letters, and CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seal_ray.data.dataset import ClassName, Labels, Pixels, Sample, Source, fifth_of_each_class
from seal_ray.data.sources.archives import AGAIN, Tree, find, lines_of, open_files
from seal_ray.data.sources.registry import A_FIFTH, SOURCES, source
from seal_ray.errors import DataError

CIFAR = "https://www.cs.toronto.edu/~kriz/cifar"
SIZE = 32
"""Pixels a side."""
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
        size=SIZE,
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
    return _rgb(np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BOX)))


@source(
    "cifar10",
    needs=("cifar-10-binary.tar.gz",),
    address=f"{CIFAR}.html",
    licence_note="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    classes=10,
    images=60_000,
    train=50_000,
)
def cifar10(path: Path, download: bool = False, allow_subset: bool = False) -> Source:
    """CIFAR-10; see _cifar."""
    tree = _cifar_files(path, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", download)
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar(tree, "cifar10", "batches.meta.txt", train, "test_batch.bin", 1, allow_subset)


@source(
    "cifar100",
    needs=("cifar-100-binary.tar.gz",),
    address=f"{CIFAR}.html",
    licence_note="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    classes=100,
    images=60_000,
    train=50_000,
)
def cifar100(path: Path, download: bool = False, allow_subset: bool = False) -> Source:
    """CIFAR-100 with its fine classes; see _cifar."""
    tree = _cifar_files(path, "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", download)
    return _cifar(tree, "cifar100", "fine_label_names.txt", ["train.bin"], "test.bin", 2, allow_subset)


def _cifar_files(path: Path, archive: str, md5: str, download: bool) -> Tree:
    """The files of the archive at `path` or in that folder, packed or extracted; `download` fetches it."""
    if download:
        from torchvision.datasets.utils import download_url  # seconds, and only a download needs it

        try:
            download_url(f"{CIFAR.rpartition('/')[0]}/{archive}", path, archive, md5)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"the download to {path} failed: {error}; try again, or fetch it by hand"
            ) from error
    return open_files(path, [archive])


def _cifar(
    tree: Tree, name: str, words: str, train: Sequence[str], val: str, labels: int, allow_subset: bool
) -> Source:
    """Read CIFAR's binary version, which holds no pickles.

    Of each image there are its labels, a byte each, of which the last counts, and its red, green and blue
    plane of 32 x 32 bytes. words: the file that names the classes. DataError for what is missing or damaged,
    and for fewer images than were published unless `allow_subset`.
    """
    classes, info = lines_of(tree, find(tree, words)), SOURCES[name].info

    def split(files: Sequence[str], published: int | None) -> tuple[Pixels, Labels]:
        assert published is not None
        rows = np.concatenate([_cifar_rows(tree, file, labels, len(classes)) for file in files])
        if len(rows) > published or (len(rows) < published and not allow_subset):
            raise DataError(
                f"{files[0]} in {tree.where}: {len(rows):,} images where {name} has {published:,}; get the "
                "official archive, or add --allow-subset"
            )
        planes = rows[:, labels:].reshape(-1, 3, SIZE, SIZE)
        return planes.transpose(0, 2, 3, 1), rows[:, labels - 1].astype(np.int64)

    return Source.from_arrays(classes, split(train, info.train), split([val], info.val))


def _cifar_rows(tree: Tree, file: str, labels: int, classes: int) -> Pixels:
    """The labels and pixels of each image of a file, (N, labels + 3072)."""
    path, size = find(tree, file), labels + 3 * SIZE**2
    content = np.frombuffer(tree.read(path), np.uint8)
    if len(content) % size or not len(content):
        raise DataError(f"{path} in {tree.where} is cut short, or not of the binary version; {AGAIN}")
    rows = content.reshape(-1, size)
    if (label := rows[:, labels - 1].max()) >= classes:
        raise DataError(f"{path} in {tree.where} has the label {label}, of {classes} classes; {AGAIN}")
    return rows
