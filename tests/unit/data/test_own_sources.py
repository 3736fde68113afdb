"""Data sources from plugin files: prepared and trained on as our own are, checked, listed, or refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import seal_ray
from seal_ray.config.plugin_files import given_files
from seal_ray.data.beton import BetonFile
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import load_dataset
from seal_ray.data.sources import SOURCES, open_source
from seal_ray.errors import ConfigError, DataError
from seal_ray.plugins import using
from seal_ray.testing import CheckFailed, check_source, tiny_recipe
from tests.plugins import of_docs
from tests.unit.cli.test_commands import Ended
from tests.unit.cli.test_commands import run as run
from tests.unit.test_plugins import forget_files as forget_files

FROM_A_FILE = '''
import numpy as np
from pathlib import Path
import seal_ray

@seal_ray.source("mine", licence_note="ours", needs=("images.npz",))
class Mine:
    """A class in place of a function."""

    def __init__(self, path: Path, size: int = 8) -> None:
        with np.load(path / "images.npz") as held:
            found = seal_ray.Source.from_arrays(
                ["a", "b", "c"],
                (held["train"][:, :size, :size], [0, 1, 2, 0, 1, 2]),
                (held["val"][:, :size, :size], [2, 0, 1]),
            )
        self.classes, self.train, self.val, self.size = found.classes, found.train, found.val, found.size
        self.mean, self.std, self.name, self.licence_note = None, None, "", ""
'''


def pixels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for name, n in {"train": 6, "val": 3}.items()}


def plugin(folder: Path, code: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(code)
    return folder / name


@pytest.mark.filterwarnings("default:shapes.*val images are in train")  # of so few places for a shape
def test_the_source_of_the_readme_is_checked_prepared_and_trained_on(run: object, tmp_path: Path) -> None:
    file, to = plugin(tmp_path, of_docs("source"), "shapes.py"), tmp_path / "shapes"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    checked: Ended = run("check", file)  # type: ignore[operator]
    assert checked.code == 0, checked.out + checked.err
    assert [line.split(": ")[0] for line in checked.out.splitlines()] == ["ok      shapes"] * 3
    assert checked.err == f"code: {file} sha256 {digest}\n"

    prepared: Ended = run("data", "prepare", "shapes", "--plugin", file, "--to", to)  # type: ignore[operator]
    assert prepared.code == 0, prepared.err
    assert "shapes, 2 classes, 200 train, 50 val images of 32 px" in prepared.out
    dataset = load_dataset(to)
    assert (dataset.name, dataset.licence_note) == ("shapes", "Drawn by this file.")
    stored = BetonFile.open(to / "train.beton")
    for image, label in zip(stored.pixels(range(200))[..., 0], stored.labels, strict=True):
        rows, columns = np.nonzero(image)
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (len(rows) == box) == (label == 1)  # a square fills its box, a disc does not
    recipe = tiny_recipe(
        data={"path": str(to)}, budget={"epochs": 1, "generation_length": 1}, optimizer={"warmup_share": 0.0}
    )
    (epoch,) = seal_ray.fit(recipe)
    assert 0 < epoch.row["train_loss"] < 2
    top1 = epoch.row["val_top1"]
    assert top1 == pytest.approx(2 * round(top1 / 2))  # per cent of 50 images


def test_its_identity_is_of_pixels_and_labels_wherever_they_lie(tmp_path: Path) -> None:
    file, held = plugin(tmp_path, FROM_A_FILE), pixels()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "images.npz", **held)
    with using(given_files([file])):
        one, two = (open_source("mine", source=tmp_path / place) for place in ("one", "two"))
    first, second = prepare(one, tmp_path / "a"), prepare(two, tmp_path / "elsewhere" / "b")
    covered = b""
    for split, labels in (("train", [0, 1, 2, 0, 1, 2]), ("val", [2, 0, 1])):
        covered += f"{split} {len(labels)} 8 8 3\n".encode() + np.array(labels, "<i8").tobytes()
        covered += held[split].tobytes()
    assert first.identity == second.identity == f"sha256:{hashlib.sha256(covered).hexdigest()}"
    assert first.training_identity == second.training_identity
    files = [tmp_path / "a", tmp_path / "elsewhere" / "b"]
    assert len({(folder / "dataset.json").read_bytes() for folder in files}) == 1


def test_what_is_prepared_needs_the_file_no_more_and_stands_in_the_list(run: object, tmp_path: Path) -> None:
    file = plugin(tmp_path, FROM_A_FILE)
    np.savez(tmp_path / "images.npz", **pixels())
    to = tmp_path / "data" / "mine-4"
    options = ["--source", tmp_path, "--size", "4", "--to", to]
    assert run("data", "prepare", "mine", "--plugin", file, *options).code == 0  # type: ignore[operator]
    listed: Ended = run(  # type: ignore[operator]
        "data", "list", "--plugin", file, "--folder", to.parent, "--json"
    )
    (mine,) = [one for one in json.loads(listed.out) if one["name"] == "mine"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert (mine["code"], mine["prepared"]) == (f"{file} (sha256 {digest})", [str(to)])
    assert [one["name"] for one in json.loads(listed.out) if one["code"]] == ["mine"]
    table: Ended = run("data", "list", "--plugin", file)  # type: ignore[operator]
    assert f"    needs  images.npz\n    terms  ours\n    code   {file} (sha256 {digest})\n" in table.out
    without: Ended = run("data", "list", "--json")  # type: ignore[operator]
    assert "mine" not in [one["name"] for one in json.loads(without.out)]
    unknown: Ended = run("data", "prepare", "mine", *options)  # type: ignore[operator]
    assert (unknown.code, "unknown data source 'mine'" in unknown.err) == (2, True)
    file.unlink()
    assert load_dataset(to).size == 4


def source(body: str, parameters: str = "", name: str = "mine") -> str:
    """A plugin file with a source of 2 classes and 4 + 2 images, of which `body` may change something."""
    return f"""
import itertools
import numpy as np
import seal_ray
from seal_ray import Sample, Source
from seal_ray.errors import DataError

calls = itertools.count()

@seal_ray.source("{name}")
def read({parameters}):
    train, val = (np.full((n, 4, 4, 3), 7, np.uint8) for n in (4, 2))
    found = Source.from_arrays(["a", "b"], (train, [0, 1, 0, 1]), (val, [0, 1]))
    {body}
    return found
"""


def changed(read: str, label: int = 0) -> str:
    return f"found.train[2:3] = [Sample({read}, {label}, 'train/2')]"


BROKEN = {
    "a label that is no class": (
        changed("found.train[0].read", 2),
        "labels",
        "train/2 of mine has the label 2, and there are 2 classes, from 0",
    ),
    "a class that is not trained on": (
        "found.train[:] = found.train[::2]",
        "labels",
        "the class b has no training images",
    ),
    "an image of another size": (
        changed("lambda: np.zeros((5, 4, 3), np.uint8)"),
        "every image",
        "train/2 of mine is uint8 (5, 4, 3), not uint8 (4, 4, 3); replace it",
    ),
    "numbers that are no bytes": (
        changed("lambda: np.zeros((4, 4, 3))"),
        "every image",
        "train/2 of mine is float64 (4, 4, 3), not uint8 (4, 4, 3)",
    ),
    "an image that cannot be read": (
        changed("lambda: open('/nowhere/at/all')"),
        "every image",
        "FileNotFoundError",
    ),
    "other pixels each time": (
        changed("lambda: np.full((4, 4, 3), next(calls), np.uint8)"),
        "opened twice",
        "they differ",
    ),
    "another order each time": (
        "found.train.reverse() if next(calls) % 2 else None",
        "opened twice",
        "they differ",
    ),
    "no source": ("return [1, 2]", "labels", "the source 'mine' gives no Source"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_a_source_breaks_is_said(run: object, tmp_path: Path, fault: str) -> None:
    body, promise, problem = BROKEN[fault]
    file = plugin(tmp_path, source(body))
    ended: Ended = run("check", file)  # type: ignore[operator]
    assert ended.code == 1
    last = ended.out.splitlines()[-1]
    assert last.startswith(f"BROKEN  mine: {promise}")
    assert problem in last
    with using(given_files([file])), pytest.raises(CheckFailed, match="the source mine breaks its promise"):
        check_source("mine")


def test_a_label_that_is_no_class_is_not_prepared(tmp_path: Path) -> None:
    file = plugin(tmp_path, source(changed("found.train[0].read", -1)))
    with using(given_files([file])), pytest.raises(DataError, match="train/2 of mine has the label -1"):
        prepare(open_source("mine"), tmp_path / "to")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (source("", name="Mine"), "the source 'Mine': give it a name of small letters, digits, - and _"),
        (
            source("", "folder"),
            "the source 'mine': its parameter folder is none of path, train, val, val_share",
        ),
        (source("", name="digits"), "two classes register the source 'digits'"),
    ],
)
def test_what_cannot_be_a_source_is_refused_with_file_and_line(
    tmp_path: Path, code: str, problem: str
) -> None:
    file = plugin(tmp_path, code)
    with pytest.raises(ConfigError) as caught, using(given_files([file])):
        pass
    line = next(i for i, text in enumerate(code.splitlines(), 1) if text.startswith("@seal_ray.source"))
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert problem in str(caught.value)


def test_options_follow_from_its_parameters(tmp_path: Path) -> None:
    file = plugin(tmp_path, source("", "path, val, size=4"))
    with using(given_files([file])):
        with pytest.raises(ConfigError, match="mine needs --source and --val"):
            open_source("mine", size=4)
        with pytest.raises(ConfigError, match="--train does not apply to mine"):
            open_source("mine", source=tmp_path, val=tmp_path, train=tmp_path)
        assert open_source("mine", source=tmp_path, val=tmp_path).name == "mine"
        assert "mine" in SOURCES
    assert "mine" not in SOURCES
    shutil.copy(file, tmp_path / "other.py")
    with using(given_files([tmp_path / "other.py"])):  # the same code under another name is the same source
        assert "mine" in SOURCES
