"""The official Tiny-ImageNet archive (or a subset in its layout) through the whole path.

Run by `make test-data TINY_IMAGENET=PATH`; needs real images, so plain `make test` leaves it out.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seal_ray.data.beton import BetonFile
from seal_ray.data.loaders import open_loader
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import Dataset
from seal_ray.data.sources import open_source
from seal_ray.runs.summary import list_runs

pytestmark = pytest.mark.data


@pytest.fixture(scope="session")
def archive() -> Path:
    """What TINY_IMAGENET names: a zip, or a folder."""
    given = os.environ.get("TINY_IMAGENET")
    assert given, "set TINY_IMAGENET to the official archive: make test-data TINY_IMAGENET=PATH"
    return Path(given)


@pytest.fixture(scope="session")
def prepared(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twenty classes of it, raw."""
    folder = tmp_path_factory.mktemp("prepared") / "tiny-imagenet"
    return prepare(open_source("tiny-imagenet", source=archive), folder, classes=20)


@pytest.fixture(scope="session")
def extracted(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as a folder."""
    if archive.is_dir():
        return archive
    folder = tmp_path_factory.mktemp("extracted")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


def root_of(extracted: Path) -> Path:
    return next(extracted.rglob("wnids.txt")).parent


def read(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def test_counts_are_the_official_ones(prepared: Dataset) -> None:
    assert prepared.splits["train"].count == 20 * 500
    assert prepared.splits["val"].count == 20 * 50
    for split, each in (("train", 500), ("val", 50)):
        labels = BetonFile.open(prepared.folder / prepared.splits[split].file).labels
        assert np.bincount(labels).tolist() == [each] * 20


def test_labels_and_pixels_are_those_of_the_files(prepared: Dataset, extracted: Path) -> None:
    root = root_of(extracted)
    wnids = (root / "wnids.txt").read_text().split()
    ids = [name.id for name in prepared.classes]
    assert ids == [wnid for wnid in wnids if wnid in ids]
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    assert all(name.words == words[name.id] for name in prepared.classes)

    annotated = dict(
        line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines()
    )
    val = BetonFile.open(prepared.folder / "val.beton")
    by_pixels = {
        np.asarray(read(root / "val" / "images" / name).convert("RGB")).tobytes(): wnid
        for name, wnid in annotated.items()
    }
    pixels = val.pixels(np.arange(len(val.labels)))
    assert [by_pixels[image.tobytes()] for image in pixels] == [ids[label] for label in val.labels]


def test_zip_and_folder_are_the_same_data(prepared: Dataset, extracted: Path, tmp_path: Path) -> None:
    again = prepare(open_source("tiny-imagenet", source=extracted), tmp_path / "again", classes=20)
    assert again.identity == prepared.identity
    assert again.classes == prepared.classes


def test_as_people_have_it_it_is_the_same_data(
    prepared: Dataset, extracted: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("sorted") / "data" / "tiny-imagenet-200"
    shutil.copytree(root_of(extracted), root)
    annotations = root / "val" / "val_annotations.txt"
    for line in annotations.read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (root / "val" / wnid).mkdir(exist_ok=True)
        (root / "val" / "images" / name).rename(root / "val" / wnid / name)
    (root / "val" / "images").rmdir()
    annotations.unlink()
    for images in (root / "train").glob("*/images"):
        for file in images.iterdir():
            file.rename(images.parent / file.name)
    (root / "words.txt").unlink()
    (root / "wnids.txt").write_bytes(b"\xef\xbb\xbf" + (root / "wnids.txt").read_bytes())
    again = prepare(open_source("tiny-imagenet", source=root.parents[1]), root.parents[1] / "to", classes=20)
    assert again.identity == prepared.identity
    assert [name.id for name in again.classes] == [name.id for name in prepared.classes]
    assert again.training_identity == prepared.training_identity


def test_gray_images_are_read_as_rgb(archive: Path, extracted: Path, prepared: Dataset) -> None:
    folders = [root_of(extracted) / "train" / name.id / "images" for name in prepared.classes]
    grays = [path for folder in folders for path in sorted(folder.iterdir()) if read(path).mode == "L"]
    if not grays:
        pytest.skip("this subset holds no grayscale JPEG")
    train = BetonFile.open(prepared.folder / "train.beton")
    known = {image.tobytes() for image in train.pixels(np.arange(len(train.labels)))}
    for path in grays:
        gray = np.asarray(read(path))
        assert np.repeat(gray[..., None], 3, axis=2).tobytes() in known


def test_both_loaders_give_the_same_batches(prepared: Dataset) -> None:
    order = np.random.default_rng(0).permutation(prepared.splits["train"].count)[:1000]
    batches = [
        list(open_loader(prepared, "train", kind=kind, batch_size=128).batches(order))
        for kind in ("ffcv", "torch")
    ]
    assert [len(batch) for batch in batches[0]] == [128] * 7 + [104]
    for ffcv, plain in zip(*batches, strict=True):
        assert ffcv.equal(plain)


def test_seal_trains_on_real_images_under_ray(prepared: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seal_ray", "train", "jobs/runs/laptop/seal.yaml"]
    settings = [f"recipe.data.path={prepared.folder}", "recipe.data.per_class=250", "recipe.budget.epochs=8"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [*command, *options, "--storage", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path)
    assert run["status"] == "finished"
    assert run["epochs_done"] == 8
    assert run["top1"] > 3 * 100 / 20  # three times chance
    (ascent,) = run["ascents"]
    assert ascent["loss_after"] > ascent["loss_before"]
