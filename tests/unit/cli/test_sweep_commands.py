"""`seal-ray sweep`, `plan` and `validate` on sweeps, as a user meets them. No Ray is started."""

from __future__ import annotations

import csv
import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from seal_ray.data.images import Images
from seal_ray.sweeps.progress import SweepProgress, clock
from seal_ray.sweeps.tune import train_sweep
from seal_ray.training.loop import fit
from tests.sweeps import METHODS, leaderboard_of, small_sweep
from tests.unit.conftest import Command

TREE = Path(__file__).parents[2] / "data" / "tree.yaml"


def test_the_plan_of_the_tree_says_what_is_shared(run: Command, digits: Path, tmp_path: Path) -> None:
    options = ("--set", f"recipe.data.path={digits}", "--storage", tmp_path / "runs")
    code, out, _ = run("plan", TREE, *options)
    assert code == 0
    assert "864 asked for, 648 after sharing, 648 left to train" in out
    assert out.count("(trained once for 4)  [seeds 0, 1, 2]") == 3
    assert "├─ g1-g5 llf 4" in out
    assert "time      unknown: give --measure" in out
    assert not (tmp_path / "runs").exists()

    code, out, _ = run("plan", TREE, *options, "--images-per-second", "1000")
    # 96 images, 3 steps of 32 an epoch; 36 starts of 15 s, side by side on this machine's cores
    images = 648 * 96 / 1000
    shown = re.search(r"time +(\d+):(\d\d)$", out, re.MULTILINE)
    cores = re.search(r"(\d+) runs? at once", out)
    assert shown is not None
    assert cores is not None
    seconds = images + 15 * 36 / int(cores[1])
    assert abs(int(shown[1]) * 60 + int(shown[2]) - seconds) <= 1


def test_a_plan_can_be_measured(run: Command, digits: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "plan", TREE, "--set", f"recipe.data.path={digits}", "--storage", tmp_path, "--measure"
    )
    assert code == 0
    assert re.search(r"time +\d+:\d\d", out)


def test_an_axis_can_be_added_to_a_sweep(run: Command, digits: Path, tmp_path: Path) -> None:
    small_sweep(digits, tmp_path / "runs", tmp_path / "small.yaml", axes={"method": ["seal"]})
    axes = (
        "--axis",
        "method.ascent_rate=0.1,0.3",
        "--axis",
        "recipe.augment.then={none: [], cutout: [cutout]}",
    )
    code, out, err = run("plan", tmp_path / "small.yaml", *axes)
    assert code == 0, err
    for setting in ("0.1 none", "0.1 cutout", "0.3 none", "0.3 cutout"):
        assert setting in out
    code, _, err = run("sweep", tmp_path / "small.yaml", "--axis", "method.ascent_rate=0.1,'a lot'")
    assert code == 2
    assert err.startswith(
        "error: --set axes.method.ascent_rate=[0.1,'a lot']: recipe.method.ascent_rate: must be a number"
    )
    code, _, err = run("sweep", tmp_path / "small.yaml", "--axis", "seed")
    assert err == "error: --axis seed: is not FIELD=VALUES, such as method.ascent_rate=0.1,0.3\n"


def test_options_that_would_do_nothing_are_refused(run: Command, digits: Path, tmp_path: Path) -> None:
    code, _, err = run("plan", "jobs/runs/quickstart/seal.yaml", "--measure")
    assert (code, err.startswith("error: --axis, --measure and --images-per-second: are for")) == (2, True)
    code, _, err = run("plan", "jobs/runs/quickstart/seal.yaml", "--axis", "seed=0,1")
    assert (code, err.startswith("error: --axis, --measure and --images-per-second: are for")) == (2, True)
    small_sweep(digits, tmp_path / "runs", tmp_path / "small.yaml")
    for option in (("--concurrent", "2"), ("--address", "auto")):
        code, _, err = run("sweep", tmp_path / "small.yaml", "--in-process", *option)
        assert (code, "leave out --address, --concurrent" in err) == (2, True)
    stopping = ("--set", "early_stopping={after_epochs: 2}")
    code, _, err = run("sweep", tmp_path / "small.yaml", "--in-process", *stopping)
    assert (code, "early_stopping" in err) == (2, True)


def test_a_sweep_is_valid_or_says_where_it_is_not(run: Command, tmp_path: Path) -> None:
    assert run("validate", TREE)[1] == f"{TREE}: valid (36 runs, 864 epochs)\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text(TREE.read_text().replace("ke: ke", "ke: kee"))
    code, _, err = run("validate", bad)
    assert code == 2
    assert re.search(r"bad\.yaml:14: recipe\.method: must be .*did you mean 'ke'\?", err)


def test_a_sweep_ends_with_its_leaderboard_and_again_trains_nothing(
    run: Command, digits: Path, tmp_path: Path
) -> None:
    runs = small_sweep(digits, tmp_path / "runs", tmp_path / "small.yaml", seeds=2)
    code, out, _ = run("sweep", tmp_path / "small.yaml", "--in-process")
    assert code == 0
    assert out.count("generation 3 of 3  top1") == 6
    assert out.count("generation 0 taken over from") == 4
    assert re.findall(r"sweep: (\d+) epochs left", out) == [str(left) for left in range(26, -1, -2)]
    assert "36 epochs asked for, 28 trained, 8 shared; " in out
    assert "p cannot fall below 0.5 with 2 seeds" in out

    found = leaderboard_of(runs)
    assert [line["setting"]["method"] for line in found["lines"]] == list(METHODS)
    assert {one["status"] for one in found["runs"]} == {"finished"}
    for line in found["lines"]:
        scores = [one["top1"] for one in found["runs"] if one["setting"] == line["setting"]]
        assert line["top1"]["mean"] == pytest.approx(sum(scores) / 2)
        last = [one.store.rows()[-1]["val_top1"] for one in runs.planned if one.run_id in str(found)]
        assert set(scores) <= set(last)
    table = list(csv.DictReader(io.StringIO((runs.folder / "results.csv").read_text())))
    assert [row["method"] for row in table] == list(METHODS)
    assert (runs.folder / "results.md").read_text().startswith("| method")

    code, again, _ = run("sweep", tmp_path / "small.yaml", "--in-process")
    assert code == 0
    read, ended, *shown = again.splitlines()
    assert read == f"{tmp_path / 'small.yaml'}: 6 runs, 36 epochs"
    assert ended == "small: every run has ended already, nothing to train"
    assert shown == out.splitlines()[-len(shown) :]
    assert leaderboard_of(runs) == found


def test_a_sweep_with_a_diverging_run_says_so_and_ends_with_1(
    run: Command, digits: Path, tmp_path: Path
) -> None:
    methods = {"normal": "normal", "broken": {"name": "seal", "ascent_rate": 1e30}}
    small_sweep(digits, tmp_path / "runs", tmp_path / "small.yaml", axes={"method": methods})
    code, out, _ = run("sweep", tmp_path / "small.yaml", "--in-process")
    assert code == 1
    assert re.search(r"seal-s0-\w+: diverged: .*is not finite in generation 1", out)


@pytest.mark.parametrize(
    ("share", "searching", "left"),
    [  # the first generation of all three is one
        (True, False, "14 epochs left"),
        (False, False, "18 epochs left"),
        (True, True, "14 epochs of suggested runs left"),
    ],
)
def test_a_terminal_sees_a_live_table(
    digits: Path, tmp_path: Path, share: bool, searching: bool, left: str
) -> None:
    runs = small_sweep(digits, tmp_path / "runs")
    printed = io.StringIO()
    console = Console(file=printed, width=120, height=30, force_terminal=True, color_system=None)
    screen = SweepProgress(runs.planned, runs.names, console, share=share, searching=searching)
    screen.refresh()
    screen.note("[bold] is printed as it is")
    screen.close()
    assert f"sweep: {left}; 0 runs ended, 3 not begun" in printed.getvalue()
    assert "[bold] is printed as it is" in printed.getvalue()


def shown_by(screen: SweepProgress, printed: io.StringIO) -> str:
    """The last line that it shows."""
    screen.refresh()
    return re.findall(r"sweep: .* not begun", printed.getvalue())[-1]


def test_what_is_left_and_how_long_it_may_take_is_counted_of_epochs_that_are_trained(
    digits: Path, tmp_path: Path
) -> None:
    runs = small_sweep(digits, tmp_path / "runs")
    printed = io.StringIO()
    console = Console(file=printed, width=120, height=30, force_terminal=True, color_system=None)
    screen = SweepProgress(runs.planned, runs.names, console, share=True, searching=False)
    normal = runs.planned[0]
    images = Images.from_dataset(normal.dataset, loader="torch")
    for _ in fit(normal.job.recipe, images, store=normal.store):
        break
    assert shown_by(screen, printed).startswith("sweep: 13 epochs left, about ")
    normal.store.set_status("failed", reason="for this test")
    left = shown_by(screen, printed)  # by the others, whole: nobody goes on with half a generation
    assert left.startswith("sweep: 10 epochs left, about ")

    some = small_sweep(digits, tmp_path / "runs", axes={"method": {"normal": "normal", "llf": "llf"}})
    train_sweep(some, Console(file=io.StringIO()), share=True, concurrent=None, in_process=True)
    screen._started = time.monotonic() - 100  # 10 epochs were trained, 2 taken over, 4 are left
    assert shown_by(screen, printed) == "sweep: 4 epochs left, about 0:40; 2 runs ended, 1 not begun"
    screen.close()


def test_seconds_are_told_as_on_a_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3599, 3600, 36061)] == [
        *("0:00", "1:00", "1:01", "59:59"),
        *("1:00:00", "10:01:01"),
    ]
