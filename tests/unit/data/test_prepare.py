"""Prepared data sets: what is in them, what names them, and that a failure leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seal_ray.data.beton import BetonFile
from seal_ray.data.dataset import Sample, Source
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import Dataset, Subset, load_dataset
from seal_ray.data.sources import open_source
from seal_ray.errors import ConfigError, DataError
from tests.unit.conftest import make_source, zip_folder


def written(dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    file = BetonFile.open(dataset.folder / dataset.splits[split].file)
    return file.labels, file.pixels(np.arange(len(file.labels)))


def origins(source: Source, dataset: Dataset, split: str) -> list[tuple[str, int]]:
    """Origin and new label of each prepared image, found by its pixels."""
    samples = source.train if split == "train" else source.val
    known = {sample.read().tobytes(): sample.origin for sample in samples}
    labels, pixels = written(dataset, split)
    return [(known[p.tobytes()], int(label)) for p, label in zip(pixels, labels, strict=True)]


def test_a_raw_data_set_holds_the_images_and_labels_of_its_source(
    source: Source, prepared: Callable[[str], Dataset], pixels: dict[str, np.ndarray]
):
    dataset = prepared("raw")
    for split, samples in (("train", source.train), ("val", source.val)):
        labels, found = written(dataset, split)
        assert (found == pixels[split]).all()
        assert labels.tolist() == [sample.label for sample in samples]
        assert labels.dtype == np.int64


def test_a_jpeg_data_set_is_close_to_its_source_and_keeps_its_identity(
    prepared: Callable[[str], Dataset], pixels: dict[str, np.ndarray]
):
    dataset = prepared("jpeg")
    _, found = written(dataset, "train")
    assert 0 < np.abs(found.astype(int) - pixels["train"]).mean() < 2
    assert dataset.identity == prepared("raw").identity
    assert dataset.encoding == "jpeg"


def test_the_identity_is_the_documented_hash(
    source: Source, prepared: Callable[[str], Dataset], pixels: dict[str, np.ndarray]
):
    content = b""
    for split, samples in (("train", source.train), ("val", source.val)):
        content += f"{split} {len(samples)} 16 16 3\n".encode()
        content += b"".join(sample.label.to_bytes(8, "little") for sample in samples)
        content += pixels[split].tobytes()
    assert prepared("raw").identity == "sha256:" + hashlib.sha256(content).hexdigest()


def test_mean_and_std_are_those_of_the_training_pixels_unless_the_source_gives_them(
    prepared: Callable[[str], Dataset], pixels: dict[str, np.ndarray], source: Source, tmp_path: Path
):
    flat = pixels["train"].reshape(-1, 3) / 255
    np.testing.assert_allclose(prepared("raw").mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(prepared("raw").std, flat.std(axis=0), rtol=1e-12)
    fixed = replace(source, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    dataset = prepare(fixed, tmp_path / "fixed")
    assert (dataset.mean, dataset.std) == (fixed.mean, fixed.std)


def test_dataset_json_describes_the_data_set(prepared: Callable[[str], Dataset]):
    dataset = prepared("raw")
    assert load_dataset(dataset.folder) == dataset
    text = (dataset.folder / "dataset.json").read_text()
    facts = json.loads(text)
    assert text == json.dumps(facts, indent=2, sort_keys=True) + "\n"
    for split, count in (("train", 23), ("val", 7)):
        content = (dataset.folder / f"{split}.beton").read_bytes()
        assert facts["splits"][split] == {
            "file": f"{split}.beton",
            "count": count,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    assert facts["classes"][2] == {"id": "c2", "words": "class 2"}
    assert (facts["channels"], facts["size"], facts["encoding"]) == (3, 16, "raw")


def test_a_zip_archive_and_its_folder_give_the_same_data_set(tiny_imagenet_folder: Path, tmp_path: Path):
    archive = zip_folder(tiny_imagenet_folder, tmp_path / "a.zip", "")
    one = prepare(open_source("tiny-imagenet", source=tiny_imagenet_folder), tmp_path / "one")
    two = prepare(open_source("tiny-imagenet", source=archive), tmp_path / "two")
    assert replace(one, folder=two.folder) == two
    assert (one.splits["train"].count, one.splits["val"].count) == (33, 6)


def test_preparing_again_changes_nothing(source: Source, tmp_path: Path):
    first = prepare(source, tmp_path / "set")
    times = {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    assert prepare(make_source(), tmp_path / "set") == first
    assert {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()} == times


def test_a_folder_that_holds_something_else_is_refused(source: Source, tmp_path: Path):
    to = tmp_path / "set"
    prepare(source, to)
    before = {file.name: file.read_bytes() for file in to.iterdir()}
    others: list[tuple[Source, bool, str]] = [
        (make_source(seed=1), False, "images or labels, mean and std differ"),
        (source, True, "its encoding differ"),
        (replace(source, classes=source.classes[::-1]), False, "its classes differ"),
        (replace(source, mean=(0.5,) * 3, std=(0.5,) * 3), False, "its mean and std differ"),
    ]
    for other, jpeg, message in others:
        with pytest.raises(DataError, match=f"{message}; choose another folder or remove it"):
            prepare(other, to, jpeg=jpeg)
    assert {file.name: file.read_bytes() for file in to.iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    for occupied in (tmp_path / "notes", tmp_path / "notes" / "todo.txt"):
        with pytest.raises(DataError, match="holds no usable data set"):
            prepare(source, occupied)


def test_a_damaged_data_set_is_not_taken_for_prepared(source: Source, tmp_path: Path):
    dataset = prepare(source, tmp_path / "set")
    with (dataset.folder / "train.beton").open("r+b") as file:
        file.seek(3_000_000)
        file.write(b"\xff")
    with pytest.raises(DataError, match=r"train.beton was altered"):
        prepare(source, tmp_path / "set")


def test_an_empty_folder_is_taken(source: Source, tmp_path: Path):
    (tmp_path / "set").mkdir()
    assert prepare(source, tmp_path / "set").splits["val"].count == 7


def with_sample(source: Source, sample: Sample) -> Source:
    return replace(source, train=[*source.train[:20], sample, *source.train[21:]])


def refuse() -> np.ndarray:
    raise DataError("train/20 is not a readable image")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (refuse, "train/20 is not a readable image"),
        (lambda: np.zeros((16, 15, 3), np.uint8), r"train/20 of memory is uint8 \(16, 15, 3\)"),
        (lambda: np.zeros((16, 16, 3), np.float32), r"train/20 of memory is float32"),
    ],
)
def test_an_unreadable_image_is_named_and_nothing_is_left(
    source: Source, tmp_path: Path, read: Callable[[], np.ndarray], message: str
):
    with pytest.raises(DataError, match=message):
        prepare(with_sample(source, Sample(read, 0, "train/20")), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_preparation_leaves_nothing(source: Source, tmp_path: Path):
    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(with_sample(source, Sample(interrupt, 0, "train/20")), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_reported(source: Source, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set cannot be written: Not a directory"):
        prepare(source, tmp_path / "file" / "set")


def test_classes_are_drawn_by_seed_and_relabelled_in_the_order_of_the_source(tmp_path: Path):
    source = make_source(train=40, val=20, classes=10)
    sets = {n: prepare(source, tmp_path / str(n), classes=n, seed=3) for n in (2, 5)}
    for n, dataset in sets.items():
        kept = [int(name.id.removeprefix("c")) for name in dataset.classes]
        assert kept == sorted(kept)
        assert len(kept) == n
        for split, total in (("train", 40), ("val", 20)):
            expected = [(f"{split}/{i}", kept.index(i % 10)) for i in range(total) if i % 10 in kept]
            assert origins(source, dataset, split) == expected
        assert dataset.subset == Subset(n, None, 3)
    assert set(sets[2].classes) < set(sets[5].classes)
    assert prepare(source, tmp_path / "2", classes=2, seed=3) == sets[2]
    with pytest.raises(DataError, match="holds another data set"):
        prepare(source, tmp_path / "2", classes=2, seed=4)


def test_per_class_draws_a_balanced_part_of_train_and_leaves_val_whole(tmp_path: Path):
    source = make_source(train=60, val=9, classes=3)
    drawn = {}
    for n, seed in ((4, 0), (9, 0), (4, 1)):
        dataset = prepare(source, tmp_path / f"{n}-{seed}", per_class=n, seed=seed)
        train = origins(source, dataset, "train")
        assert np.bincount([label for _, label in train]).tolist() == [n] * 3
        assert [int(origin.split("/")[1]) % 3 for origin, _ in train] == [label for _, label in train]
        numbers = [int(origin.split("/")[1]) for origin, _ in train]
        assert numbers == sorted(numbers)
        assert len(origins(source, dataset, "val")) == 9
        drawn[n, seed] = set(numbers)
    assert drawn[4, 0] < drawn[9, 0]
    assert drawn[4, 0] != drawn[4, 1]


def test_the_draw_within_a_class_does_not_depend_on_the_other_classes(tmp_path: Path):
    source = make_source(train=60, val=9, classes=3)
    whole = prepare(source, tmp_path / "whole", per_class=5)
    part = prepare(source, tmp_path / "part", per_class=5, classes=2)
    assert {o for o, _ in origins(source, part, "train")} < {o for o, _ in origins(source, whole, "train")}


def test_a_selection_the_source_cannot_give_is_refused(source: Source, tmp_path: Path):
    for classes in (0, 4):
        with pytest.raises(ConfigError, match=rf"--classes {classes} is outside 1..3, the classes of memory"):
            prepare(source, tmp_path / "set", classes=classes)
    for per_class in (0, 8):
        with pytest.raises(ConfigError, match=rf"--per-class {per_class} is outside 1..\d, the images of c"):
            prepare(source, tmp_path / "set", per_class=per_class)
    with pytest.raises(DataError, match="no val images"):
        prepare(replace(source, val=[]), tmp_path / "set")


def test_images_that_are_all_alike_are_refused(source: Source, tmp_path: Path):
    blank = [
        Sample(lambda: np.full((16, 16, 3), 7, np.uint8), label, "blank") for label in (0, 0, 1, 1, 2, 2)
    ]
    with pytest.raises(DataError, match="the same value in all training pixels"):
        prepare(replace(source, train=blank), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_both_splits(tmp_path: Path):
    calls: list[tuple[str, int, int]] = []
    prepare(make_source(train=230, val=7), tmp_path / "set", progress=lambda *call: calls.append(call))
    assert calls == [("train", 100, 230), ("train", 200, 230), ("train", 230, 230), ("val", 7, 7)]
