"""What unit tests share: small sources of images, a W&B server, the command line."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seal_ray import cli
from seal_ray.data.dataset import ClassName, Sample, Source
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import Dataset
from seal_ray.tracking import wandb as tracking
from tests.wandb_server import KEY, Server, wandb_server

Command = Callable[..., tuple[int, str, str]]


def smooth_images(count: int, size: int, seed: int) -> np.ndarray:
    """Random images without sharp edges or colours, as photographs are: JPEG keeps them well."""
    rng = np.random.default_rng(seed)
    light = rng.integers(60, 196, (count, 3, 3, 1))
    coarse = (light + rng.integers(-20, 20, (count, 3, 3, 3))).astype(np.uint8)
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in coarse]
    return np.stack([np.asarray(image) for image in resized])


def make_source(train: int = 23, val: int = 7, classes: int = 3, size: int = 16, seed: int = 0) -> Source:
    """Images in memory; sample i has the label i modulo the number of classes."""

    def samples(split: str, count: int, seed: int) -> list[Sample]:
        images = smooth_images(count, size, seed)
        return [Sample(partial(image.copy), i % classes, f"{split}/{i}") for i, image in enumerate(images)]

    return Source(
        name="memory",
        classes=tuple(ClassName(f"c{i}", f"class {i}") for i in range(classes)),
        train=samples("train", train, 2 * seed),
        val=samples("val", val, 2 * seed + 1),
        size=size,
        mean=None,
        std=None,
        licence_note="made by a test",
    )


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tiny_imagenet(root: Path) -> Path:
    """A small archive in the official layout, extracted: 3 classes not in order, 11 + 2 images each.

    Image 1 of the first class is grayscale. The annotations of val are not in the order of its images.
    """
    wnids = ["n03", "n01", "n02"]
    pixels = iter(smooth_images(39, 64, seed=5))
    for wnid in wnids:
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(11):
            image = next(pixels)
            gray = wnid == "n03" and i == 1
            (images / f"{wnid}_{i}.JPEG").write_bytes(jpeg(image[..., 0] if gray else image))
    (root / "val" / "images").mkdir(parents=True)
    annotations = []
    for i in range(6):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(next(pixels)))
        annotations.insert(0, f"val_{i}.JPEG\t{sorted(wnids)[i % 3]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\ttoad\nn03\tnewt\nn99\tnot here\n")
    return root


def zip_folder(folder: Path, archive: Path, top: str) -> Path:
    """Pack a folder under the top folder `top` ("" for none), in no particular order."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(files, key=lambda file: file.name[::-1]):
            packed.write(file, Path(top) / file.relative_to(folder))
    return archive


@pytest.fixture
def tiny_imagenet_folder(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path / "tiny-imagenet-200")


@pytest.fixture(scope="session")
def source() -> Source:
    return make_source()


@pytest.fixture(scope="session")
def prepared(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    """The source prepared once for all tests, as "raw" or "jpeg"; tests must not change it."""
    folder = tmp_path_factory.mktemp("prepared")
    sets = {
        encoding: prepare(source, folder / encoding, jpeg=encoding == "jpeg") for encoding in ("raw", "jpeg")
    }
    return sets.__getitem__


@pytest.fixture(scope="session")
def pixels(source: Source) -> dict[str, np.ndarray]:
    """The source's images by split, (N, 16, 16, 3)."""
    return {
        "train": np.stack([sample.read() for sample in source.train]),
        "val": np.stack([sample.read() for sample in source.val]),
    }


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home folder without a key of W&B, and no settings from outside."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name == "NETRC" or (name.startswith("WANDB_") and name != "WANDB_SERVICE"):  # W&B's own process
            monkeypatch.delenv(name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A W&B server, and a key for it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracking.end_service()  # W&B keeps the address that an earlier test of this process used
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        tracking.end_service()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `seal-ray ARGUMENTS` in this process; returns its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["seal-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run
