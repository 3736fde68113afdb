"""Folders of one's own images: which files are taken, held out and refused, and what is said of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seal_ray.data.beton import BetonFile
from seal_ray.data.dataset import Source
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import find_prepared, load_dataset
from seal_ray.data.sources import open_source
from seal_ray.errors import ConfigError, DataError, SealRayWarning
from seal_ray.recipe import Job
from seal_ray.runs.export import export
from seal_ray.tracking.wandb import data_name, tags_of
from tests.runs import tiny_recipe
from tests.unit.conftest import Command, zip_folder
from tests.unit.runs.test_export import make_run

CLASSES = ("cat", "ant", "bee")


def noise(seed: Sequence[int], side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3), dtype=np.uint8))


def write_classes(root: Path, count: int = 10, seed: int = 0, suffix: str = ".png") -> Path:
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise((seed, label, i)).save(root / name / f"{i}{suffix}")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pets")


def names(source: Source, split: str) -> list[str]:
    return [str(Path(*Path(sample.origin).parts[-2:])) for sample in getattr(source, split)]


def one(images: Path, share: float = 0.2, **options: object) -> Source:
    return open_source("folder", source=images, val_share=share, size=8, **options)


CLUTTER = (
    ".ipynb_checkpoints/0-checkpoint.png",
    "cat/.ipynb_checkpoints/0-checkpoint.png",
    "cat/deep/.hidden/1.png",
    "cat/._0.png",
    "cat/.DS_Store",
    "bee/Thumbs.db",
    "bee/desktop.ini",
    "ant/@eaDir/0.png",
    "__MACOSX/cat/0.png",
    "ant/deep/__MACOSX/0.png",
)


def litter(root: Path) -> None:
    """What notebooks, macOS, Windows and file servers leave behind, images of another class among it."""
    for name in CLUTTER:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise((9, 9)).save(root / name, "PNG")


def test_what_is_hidden_or_left_behind_is_skipped_at_every_depth_and_counted(images: Path) -> None:
    clean = one(images)
    litter(images)
    (images / "cat/labels.csv").write_text("0.png,cat\n")
    (images / "cat/notes.txt").write_text("P5, a text that begins as an image\n")
    noise((1,)).save(images / "loose.png")
    (images / "bee/linked").symlink_to(images / "ant", target_is_directory=True)
    found = one(images)
    for split in ("train", "val"):
        assert names(found, split) == names(clean, split)
    assert found.classes == clean.classes
    assert not clean.notes
    (note,) = found.notes
    assert note.startswith(f"skipped 14 files in {images}: ")
    for count, why in (
        (10, "hidden, or left by other programs (.ipynb_checkpoints/0-checkpoint.png)"),
        (2, "no images (cat/labels.csv)"),
        (1, "in no class's folder (loose.png)"),
        (1, "links to folders (bee/linked)"),
    ):
        assert f"{count} {why}" in note


def test_the_same_is_skipped_in_archives(tmp_path: Path) -> None:
    rivers = tmp_path / "2750"
    for label, name in enumerate(("River", "Forest")):
        (rivers / name).mkdir(parents=True)
        for i in range(1, 11):
            noise((label, i)).save(rivers / name / f"{name}_{i}.jpg")
    clean = zip_folder(rivers, tmp_path / "EuroSAT.zip", "2750")
    (tmp_path / "littered").mkdir()
    shutil.copy(clean, tmp_path / "littered")
    with zipfile.ZipFile(tmp_path / "littered/EuroSAT.zip", "a") as archive:
        for name in ("__MACOSX/2750/River/River_1.jpg", "2750/.ipynb_checkpoints/River/River_3.jpg"):
            archive.write(rivers / "Forest/Forest_1.jpg", name)
    one, two = (
        open_source("eurosat", source=path, allow_subset=True, size=8)
        for path in (clean, tmp_path / "littered/EuroSAT.zip")
    )
    for split in ("train", "val"):
        assert [s.origin for s in getattr(one, split)] == [s.origin for s in getattr(two, split)]


def test_the_content_decides_what_an_image_is_not_its_name(tmp_path: Path) -> None:
    plain, renamed = write_classes(tmp_path / "plain"), tmp_path / "renamed"
    shutil.copytree(plain, renamed)
    for file in renamed.rglob("*.png"):
        file.rename(file.with_suffix((".gif", "", ".dat")[int(file.stem) % 3]))  # and PNG all the same
    both = [
        open_source("folder", train=root, val=write_classes(tmp_path / f"v{i}", 2, 5), size=8)
        for i, root in enumerate((plain, renamed))
    ]
    assert len(both[0].train) == len(both[1].train) == 30
    assert sorted(s.read().tobytes() for s in both[0].train) == sorted(
        s.read().tobytes() for s in both[1].train
    )
    assert [s.label for s in both[0].train] == [s.label for s in both[1].train]


def test_a_class_in_which_nothing_is_left_is_refused_with_what_it_holds(images: Path) -> None:
    for file in (images / "bee").iterdir():
        file.rename(file.with_name(f".{file.name}"))
    with pytest.raises(DataError, match=r"bee holds no images; skipped 10 files .* hidden"):
        one(images)


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    for split in ("train", "Val"):
        write_classes(tmp_path / "pets" / split)
    with pytest.raises(
        DataError, match=r"pets holds Val and train, which are no classes; give each by itself"
    ):
        one(tmp_path / "pets")


def test_all_folders_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/a is not a folder, .*/b is not a folder; it should hold"):
        open_source("folder", train=tmp_path / "a", val=tmp_path / "b")


def test_a_class_whose_name_is_not_utf8_is_refused_before_any_image_is_read(images: Path) -> None:
    (images / "bee").rename(Path(os.fsdecode(os.fsencode(images) + b"/caf\xe9")))
    (images / "cat/0.png").write_bytes(b"no image, which would be said were it read")
    with pytest.raises(DataError, match=r"'caf\\xe9', a folder in .*pets, is not a name in UTF-8; rename it"):
        one(images)


def test_a_file_whose_name_is_not_utf8_is_an_image_as_others_are(images: Path, tmp_path: Path) -> None:
    (images / "bee/3.png").rename(Path(os.fsdecode(os.fsencode(images) + b"/bee/caf\xe9.png")))
    source = one(images)
    assert [s.origin for s in (*source.train, *source.val) if "caf" in s.origin] == [
        rf"{images}/bee/caf\xe9.png"
    ]
    assert prepare(source, tmp_path / "out").splits["train"].count == 24


def test_a_share_is_held_out_of_each_class_by_the_names_of_its_files(images: Path, tmp_path: Path) -> None:
    source = one(images, seed=3)
    for split, count in (("train", 8), ("val", 2)):
        assert np.bincount([s.label for s in getattr(source, split)]).tolist() == [count] * 3
    assert not set(names(source, "train")) & set(names(source, "val"))
    for name in CLASSES:
        ranked = sorted(
            (f"{name}/{i}.png" for i in range(10)), key=lambda n: sha256(f"3/{n}".encode()).digest()
        )
        assert set(ranked[:2]) == {n for n in names(source, "val") if n.startswith(name)}
    other = write_classes(tmp_path / "elsewhere" / "x", seed=7)  # other pixels under the same names
    assert names(one(other, seed=3), "val") == names(source, "val")
    assert names(one(images, seed=4), "val") != names(source, "val")
    assert [len(one(images, share).val) for share in (0.001, 0.25, 0.999)] == [3, 6, 27]


def test_the_size_is_the_median_of_the_shorter_sides_and_said(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name, sides in {"ant": (10, 30, 90), "bee": (20, 40, 400)}.items():
        (root / name).mkdir(parents=True)
        for side in sides:
            noise((side,), side).save(root / name / f"{side}.png")
    source = open_source("folder", source=root, val_share=0.3)
    assert (source.size, source.train[0].read().shape) == (30, (30, 30, 3))
    assert source.notes[0].startswith("size 30: the median of the shorter sides, 10 to 400 pixels")
    assert not open_source("folder", source=root, val_share=0.3, size=8).notes


def test_all_that_is_missing_is_said_at_once_and_before_pytorch_is_imported(images: Path) -> None:
    code = (
        "import sys; from seal_ray.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    for options, expected in (
        ((), "folder needs --train (or --source), --val (or --val-share) and --to"),
        (("--train", images, "--to", "x"), "folder needs --val (or --val-share)"),
        (("--source", images, "--val-share", "2", "--to", "x"), "--val-share 2.0 is not between 0 and 1"),
        (("--source", images, "--val-share", "0.2", "--to", "x" * 65), "--name"),
        (("--train", images, "--val", images, "--to", "x"), "so nothing is held out"),
    ):
        command = [sys.executable, "-c", code, "data", "prepare", "folder", *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n", done.stderr
        assert expected in done.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"source": "a", "train": "a", "val_share": 0.1}, "--source and --train both name"),
        ({"train": "a", "val": "b", "val_share": 0.1}, "--val and --val-share both say"),
        ({"source": "a", "val_share": 0.1, "background": "red"}, "must be white or black"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_source(
            "folder", **{k: Path(v) if isinstance(v, str) and len(v) == 1 else v for k, v in options.items()}
        )


def test_the_summary_says_what_was_converted_skipped_and_how_large_classes_are(
    run: Command, images: Path, tmp_path: Path
) -> None:
    litter(images)
    grey = np.random.default_rng(0).integers(0, 65_536, (8, 8), dtype=np.uint16)
    for i, values in enumerate((grey, grey[::-1])):
        Image.fromarray(values).save(images / f"bee/{i}.png")
    glyph = np.zeros((8, 8, 4), dtype=np.uint8)
    glyph[2:5, 3] = (9, 9, 9, 255)
    Image.fromarray(glyph).save(images / "cat/4.png")
    to = tmp_path / "data" / "my pets"
    arguments = ("data", "prepare", "folder", "--source", images, "--val-share", "0.2", "--to", to)
    code, out, err = run(*arguments, "--background", "black")
    assert (code, err) == (0, "")
    dataset = load_dataset(to)
    assert out.splitlines() == [
        f"{to}: my pets, 3 classes, 24 train, 6 val images of 8 px",
        f"  {dataset.identity}",
        "  train + val: ant 8 + 2, bee 8 + 2, cat 8 + 2",
        f"  skipped 10 files in {images}: 10 hidden, or left by other programs "
        "(.ipynb_checkpoints/0-checkpoint.png)",
        "  size 8: the median of the shorter sides, 8 to 8 pixels, 5.8e-06 GB raw; --size sets another",
        f"  2 images grey of 16 bits, divided by 257 and rounded ({images}/bee/0.png)",
        f"  1 image transparent, laid on black ({images}/cat/4.png)",
    ]
    stored = np.concatenate(
        [BetonFile.open(to / f"{s}.beton").pixels(range(dataset.splits[s].count)) for s in ("train", "val")]
    )
    expected = np.rint(grey / 257).astype(np.uint8)
    assert any((image == expected[..., None]).all() for image in stored)
    assert run(*arguments, "--background", "black")[1] == out
    assert run(*arguments)[0] == 2  # white is another data set


def test_the_name_is_the_folders_or_the_given_one_in_dataset_json_tags_and_cards(
    run: Command, images: Path, tmp_path: Path
) -> None:
    options = ("--source", images, "--val-share", "0.2", "--size", "8")
    plain, named = tmp_path / "data" / "pets", tmp_path / "data" / "other"
    assert run("data", "prepare", "folder", *options, "--to", plain)[0] == 0
    assert run("data", "prepare", "folder", *options, "--to", named, "--name", "my-pets")[0] == 0
    assert find_prepared(tmp_path / "data") == {"folder": (named, plain)}
    one, other = load_dataset(plain), load_dataset(named)
    assert (one.name, other.name) == ("pets", "my-pets")
    assert one.training_identity == other.training_identity
    held = json.loads((named / "dataset.json").read_bytes())
    assert (held["name"], held["source"]) == ("my-pets", "folder")
    job = Job(name="x", recipe=tiny_recipe(data={"path": str(named)}))
    assert tags_of(job.recipe, data_name(job))[-1] == "my-pets"
    exported = export(make_run(tmp_path / "runs", other, width=4), tmp_path / "weights")
    assert "| data | my-pets, `sha256:" in exported.card.read_text()
    assert run("data", "prepare", "folder", *options, "--to", named)[0] == 0  # asks for no other name
    code, _, err = run("data", "prepare", "folder", *options, "--to", named, "--name", "theirs")
    assert (code, "its name differ" in err) == (2, True)


def test_images_in_train_and_val_are_counted_in_a_warning_and_refused_when_all_are(tmp_path: Path) -> None:
    train, val = write_classes(tmp_path / "train"), write_classes(tmp_path / "val", 4, seed=1)
    Image.open(train / "ant/5.png").save(val / "bee/2.bmp")  # as another file, of another class
    shutil.copy(train / "cat/0.png", val / "cat/copy.png")
    with pytest.warns(SealRayWarning) as caught:
        prepare(open_source("folder", train=train, val=val, size=8), tmp_path / "some")
    (warning,) = caught
    assert str(warning.message) == (
        f"folder: 2 of 14 val images are in train, such as {val}/bee/2.bmp is {train}/ant/5.png"
    )
    with warnings.catch_warnings(record=True) as none:
        prepare(one(train), tmp_path / "none")
    assert none == []
    shutil.copytree(train, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/ant")
    shutil.copytree(train / "bee", tmp_path / "copy/ant")
    with pytest.raises(
        DataError, match=r"all 30 val images are in train, such as .*copy/ant/0.png is .*bee/0.png"
    ):
        prepare(open_source("folder", train=train, val=tmp_path / "copy", size=8), tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_the_same_folder_twice_is_refused_at_once(images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(DataError, match=r"pets is --train and --val, so nothing is held out"):
        open_source("folder", train=images, val=tmp_path / "link", size=8)


def test_classes_that_differ_much_in_size_or_are_one_image_are_warned_of(
    images: Path, tmp_path: Path
) -> None:
    for file in sorted((images / "cat").iterdir())[1:]:
        file.unlink()
    for i in range(10, 20):
        noise((5, i)).save(images / f"ant/{i}.png")
    with pytest.warns(SealRayWarning) as caught:
        prepare(one(images), tmp_path / "to")
    assert [str(warning.message) for warning in caught] == [
        "folder: classes differ much in size: ant 16 and cat 1 training images",
        "folder: the class cat has no more than one training image",
        "folder: the class cat has no val image",
    ]


def test_many_classes_are_summed_up(run: Command, tmp_path: Path) -> None:
    for label in range(21):
        (tmp_path / "x" / str(label)).mkdir(parents=True)
        for i in range(4 + label % 2):
            noise((label, i)).save(tmp_path / "x" / str(label) / f"{i}.png")
    code, out, _ = run(
        "data", "prepare", "folder", "--source", tmp_path / "x", "--val-share", ".25", "--to", tmp_path / "y"
    )
    assert code == 0
    assert re.search(r"^  a class: 3 to 4 \+ 1 images, train \+ val$", out, re.MULTILINE)
