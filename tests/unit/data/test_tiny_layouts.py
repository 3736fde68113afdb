"""Tiny ImageNet as people have it: the layouts that scripts and programs leave are one data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seal_ray.data.prepare import source_identity
from seal_ray.data.sources import open_source
from seal_ray.errors import DataError
from tests.unit.conftest import zip_folder

WNIDS = ("n03", "n01", "n02")


def sort_val(root: Path, below: str = "", copy: bool = False) -> None:
    """What the usual script does: a folder a class in val, in it the images, or images/ with them."""
    for line in (root / "val/val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        to = root / "val" / wnid / below
        to.mkdir(parents=True, exist_ok=True)
        (shutil.copy if copy else shutil.move)(root / "val/images" / name, to / name)
    if not copy:
        (root / "val/images").rmdir()


def sorted_without_annotations(root: Path) -> None:
    sort_val(root)
    (root / "val/val_annotations.txt").unlink()


def flat_train(root: Path) -> None:
    for images in sorted((root / "train").glob("*/images")):
        for file in images.iterdir():
            file.rename(images.parent / file.name)
        images.rmdir()


def rewritten(change: Callable[[str], str], *names: str) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        for name in names:
            (root / name).write_bytes(change((root / name).read_bytes().decode()).encode())

    return rewrite


LISTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")


def deeper(root: Path) -> None:
    held = root.parent / "held"
    root.rename(held)
    (root / "download/data").mkdir(parents=True)
    held.rename(root / "download/data/tiny-imagenet-200")


def packed_in_a_folder(root: Path) -> None:
    archive = zip_folder(root, root.parent / "a.zip", "tiny-imagenet-200")
    shutil.rmtree(root)
    (root / "download").mkdir(parents=True)
    archive.rename(root / "download/tiny-imagenet-200.zip")


def littered(root: Path) -> None:
    for name in (
        "train/.ipynb_checkpoints/images/n01_0.JPEG",
        "train/n01/images/._n01_0.JPEG",
        "__MACOSX/wnids.txt",
        "val/.hidden/val_0.JPEG",
        "val/images/Thumbs.db",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"left behind")


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "val sorted": sort_val,
    "val sorted, with images/": lambda root: sort_val(root, "images"),
    "val copied into class folders": lambda root: sort_val(root, copy=True),
    "val sorted, no annotations": sorted_without_annotations,
    "val sorted, an empty images/ left": lambda root: (sort_val(root), (root / "val/images").mkdir()),
    "train without images/": flat_train,
    "a byte order mark": rewritten(lambda text: "\ufeff" + text, *LISTS),
    "lines that end as on Windows": rewritten(lambda text: text.replace("\n", "\r\n"), *LISTS),
    "spaces in place of tabs": rewritten(lambda text: text.replace("\t", "  "), *LISTS),
    "commas in place of tabs": rewritten(lambda text: text.replace("\t", ","), *LISTS),
    "classes in one line": rewritten(lambda text: ", ".join(text.split()) + "\n", "wnids.txt"),
    "no words.txt": lambda root: (root / "words.txt").unlink(),
    "nested in folders": deeper,
    "an archive in folders": packed_in_a_folder,
    "littered": littered,
    "suffixes in small letters": lambda root: [
        file.rename(file.with_suffix(".jpeg")) for file in [*root.rglob("train/*/images/*.JPEG")]
    ],
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_data_set(
    tiny_imagenet_folder: Path, tmp_path: Path, layout: str, packed: bool
) -> None:
    official = open_source("tiny-imagenet", source=tiny_imagenet_folder)
    identity = source_identity(official)
    LAYOUTS[layout](tiny_imagenet_folder)
    if packed and layout != "an archive in folders":
        path = zip_folder(tiny_imagenet_folder, tmp_path / "a.zip", "some/folders")
    else:
        path = tiny_imagenet_folder
    source = open_source("tiny-imagenet", source=path)
    assert source_identity(source) == identity
    assert tuple(name.id for name in source.classes) == WNIDS
    if layout == "no words.txt":
        assert tuple(name.words for name in source.classes) == WNIDS
        assert "has no words.txt: classes are called by their ids" in source.notes[0]
    else:
        assert source.classes == official.classes
        assert not source.notes


def test_of_several_archives_one_must_be_given(tiny_imagenet_folder: Path) -> None:
    packed_in_a_folder(tiny_imagenet_folder)
    archive = tiny_imagenet_folder / "download/tiny-imagenet-200.zip"
    shutil.copy(archive, tiny_imagenet_folder / "tiny-imagenet-20.zip")
    with pytest.raises(DataError, match=r"holds several archives, .*200.zip and .*20.zip; give one of them"):
        open_source("tiny-imagenet", source=tiny_imagenet_folder)


def test_val_without_labels_is_refused(tiny_imagenet_folder: Path) -> None:
    sorted_without_annotations(tiny_imagenet_folder)
    images = tiny_imagenet_folder / "val/images"
    images.mkdir()
    (tiny_imagenet_folder / "val/n01/val_0.JPEG").rename(images / "val_0.JPEG")
    with pytest.raises(DataError, match=r"has no val/val_annotations.txt"):
        open_source("tiny-imagenet", source=tiny_imagenet_folder)
