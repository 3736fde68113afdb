"""Plans without prepared data: what is assumed of which folder, what is said of it, and who else refuses."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seal_ray import cli
from seal_ray.data.assumed import assumed_labels, assumption, open_or_assume
from seal_ray.data.sources import open_source
from seal_ray.errors import DataError
from seal_ray.sweeps.file import load_sweep

JOBS = Path(__file__).parents[3] / "jobs"
RUNS = sorted((JOBS / "runs").glob("*/*.yaml"))
SWEEPS = sorted((JOBS / "sweeps").glob("*.yaml"))
STUDIES = sorted((JOBS / "studies").glob("*.yaml"))
PAPER = JOBS / "sweeps/paper-tiny-imagenet.yaml"
SEAL = JOBS / "runs/tiny-imagenet/seal.yaml"
RUN_ID = r"-s\d+-[0-9a-f]{10}"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `seal-ray ARGUMENTS` in a folder without data; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seal-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.parametrize(
    ("name", "classes", "images"),
    [
        ("tiny-imagenet", 200, 100_000),
        ("tiny-imagenet-200", 200, 100_000),
        ("tiny-imagenet-20", 20, 10_000),
        ("cifar10", 10, 50_000),
        ("cifar100", 100, 50_000),
        ("digits", 10, 1_438),
        ("letters", 26, 1_664),
    ],
)
def test_the_name_of_a_folder_tells_its_size(tmp_path: Path, name: str, classes: int, images: int) -> None:
    dataset = open_or_assume(str(tmp_path / name))
    sizes = np.bincount(assumed_labels(dataset))
    assert (len(dataset.classes), len(sizes), sizes.sum()) == (classes, classes, images)
    assert sizes.max() - sizes.min() <= 1
    start = f"{tmp_path / name} is not prepared: assumed {images:,} training images in {classes} classes, as "
    assert assumption(dataset).startswith(start)


@pytest.mark.parametrize("name", ["digits", "letters"])
def test_sources_that_are_here_have_what_is_assumed_of_them(tmp_path: Path, name: str) -> None:
    source, assumed = open_source(name), open_or_assume(str(tmp_path / name))
    assert len(source.train) == len(assumed_labels(assumed))
    assert len(source.classes) == len(assumed.classes)


@pytest.mark.parametrize(
    "name",
    [
        "mine",
        "folder",
        "folder-3",
        "tiny-imagenet-201",
        "tiny-imagenet-0",
        "tiny-imagenet-b",
        "eurosat",
        "20",
    ],
)
def test_other_names_tell_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} holds no data set .*seal-ray data prepare"):
        open_or_assume(str(tmp_path / name))


def test_what_is_prepared_is_not_assumed(digits: Path, tmp_path: Path) -> None:
    dataset = open_or_assume(str(digits))  # a folder called digits, of 4 classes and 96 images
    assert (len(dataset.classes), dataset.splits["train"].count, assumption(dataset)) == (4, 96, "")
    damaged = tmp_path / "digits"
    damaged.mkdir()
    (damaged / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        open_or_assume(str(damaged))


def first_lines(file: Path) -> str:
    """The comment on top of a file, as one line."""
    return re.sub(r"\n# *", " ", file.read_text().split("\nname:")[0])


def planned(run: Command, file: Path, *options: str) -> str:
    """The plan of a file, without its data; what the file says of images is what the plan says."""
    code, out, err = run("plan", file, *options)
    assert (code, err) == (0, "")
    assert re.search(r"^data      \S+ is not prepared: assumed [\d,]+ training images in", out, re.MULTILINE)
    assert not re.search(RUN_ID, out)
    assert not list(Path.cwd().iterdir())
    for said, unit in re.findall(r"([\d.]+) (million|billion) images(?! pass)", first_lines(file)):
        found = re.search(r"^images +([\d,]+)$|, ([\d,]+) images$", out, re.MULTILINE)
        assert found is not None
        count = int((found[1] or found[2]).replace(",", "")) / {"million": 1e6, "billion": 1e9}[unit]
        assert f"{count:.{len(said.partition('.')[2])}f}" == said
    return out


@pytest.mark.parametrize("file", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_run_can_be_planned_without_its_data(run: Command, file: Path) -> None:
    assert "warning" not in planned(run, file)


@pytest.mark.parametrize("file", [*SWEEPS, *STUDIES], ids=lambda path: path.stem)
def test_every_shipped_sweep_can_be_planned_without_its_data_and_says_what_its_plan_says(
    run: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs, epochs, and at the speed that it names the time on two cores. A study need not estimate."""
    head = first_lines(file)
    monkeypatch.setattr("seal_ray.sweeps.plan.usable_cores", lambda: 2)
    speed = re.search(r"Estimate: (?:at most )?(\d+) (minutes|hours)\b[^.]*? at ([\d,]+) images/s", head)
    out = planned(run, file, *(["--images-per-second", speed[3].replace(",", "")] if speed else []))
    epochs = re.search(r"^epochs +([\d,]+) asked for, ([\d,]+) after sharing$", out, re.MULTILINE)
    assert epochs is not None
    said = re.findall(r"(\d+) runs\b", head), re.findall(r"([\d,]+) of ([\d,]+) epochs", head)
    assert set(said[0]) <= {str(len(load_sweep(file).runs))}
    assert set(said[1]) <= {(epochs[2], epochs[1])}
    if file in SWEEPS or "Estimate" in head:
        assert "Estimate" in head
        assert all(said)
        assert "warning" not in out or file.stem == "ascent-tuning"  # which draws weak ascents, too
    if speed:
        time = re.search(r"^time +(?:(\d+):)?(\d+):(\d+)$", out, re.MULTILINE)
        assert time is not None
        hours = int(time[1] or 0) + int(time[2]) / 60 + int(time[3]) / 3600
        assert round(hours * {"minutes": 60, "hours": 1}[speed[2]]) == int(speed[1])


@pytest.mark.parametrize(("name", "steps"), [("gpu-hour", "6,248"), ("cifar100", "3,120")])
def test_the_studies_of_an_hour_ascend_as_far_as_the_paper(run: Command, name: str, steps: str) -> None:
    _, out, _ = run("plan", JOBS / f"studies/{name}.yaml")
    assert re.search(rf"1-2 +ascend +0-7 .* {steps} +94\.[0-9]\b", out)


def test_the_papers_sweep_shows_phases_cost_and_tree(run: Command) -> None:
    code, out, _ = run("plan", PAPER, "--images-per-second", "1000")
    assert code == 0
    # Of three methods and seeds generation 0, 160 of 1,600 epochs, is trained once: 12 * 1600 - 3 * 2 * 160.
    assert "epochs    19,200 asked for, 18,240 after sharing\n" in out
    assert "images    1,824,000,000\n" in out  # 3,125 batches of 32 are all 100,000 images
    # 1,824,000 s; 15 s for each of 12 starts, side by side on this machine's cores
    cores = re.search(r"(\d+) runs? at once", out)
    shown = re.search(r"time +(\d+):(\d\d):(\d\d)$", out, re.MULTILINE)
    assert cores is not None
    assert shown is not None
    hours, minutes, seconds = map(int, shown.groups())
    assert abs(hours * 3600 + minutes * 60 + seconds - 1_824_000 - 15 * 12 / int(cores[1])) <= 1
    assert "g0 normal, llf, seal  (trained once for 3)  [seeds 0, 1, 2]\n├─ g1-g9 normal" in out
    # The rates of the ascent add up to 94 a generation: 40 epochs of 3,125 steps.
    assert re.search(r"1-9 +ascend +0-39 .* 125,000 +94\.4", out)
    assert re.search(r"1-9 +relearn +0-159 +Reinit ", out)
    assumed = "data/tiny-imagenet-200 is not prepared: assumed 100,000 training images in 200 classes, as "
    assert f"data      {assumed}tiny-imagenet has\n" in out
    assert "runs      what they are called, and what of them is trained already, is unknown" in out


def test_a_run_is_planned_by_what_is_assumed(run: Command, tmp_path: Path) -> None:
    code, out, _ = run("plan", SEAL, "--storage", tmp_path / "there")
    assert code == 0
    assert out.startswith("tiny-imagenet-seal (assumed data)\n")
    assert "1,600 epochs, 5,000,000 steps, 160,000,000 images" in out
    assert f"in {tmp_path / 'there'}\n" in out
    assert "state" not in out
    _, laptop, _ = run("plan", JOBS / "runs/laptop/seal.yaml")
    assert "936 steps, 119,808 images" in laptop  # 78 batches of 128 of 10,000 images, 12 epochs
    assert "in 20 classes, as 20 classes of tiny-imagenet have" in laptop


@pytest.mark.parametrize(
    ("command", "options"), [("train", [SEAL]), ("sweep", [PAPER, "--in-process"]), ("report", [PAPER])]
)
def test_nothing_else_does_without_data(run: Command, command: str, options: list[object]) -> None:
    code, _, err = run(command, *options)
    assert (code, "tiny-imagenet-200 holds no data set" in err) == (2, True)


def test_there_is_nothing_to_measure_without_data(run: Command) -> None:
    code, _, err = run("plan", PAPER, "--measure")
    assert code == 2
    assert err.startswith("error: --measure: data/tiny-imagenet-200 is not prepared")
    assert err.endswith("prepare it, or give --images-per-second\n")
