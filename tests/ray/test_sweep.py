"""A sweep under a real Ray: shared generations once, early stopping, failures, and no way to deadlock."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

import seal_ray
import seal_ray.analysis.run
from seal_ray.data.images import Images
from seal_ray.errors import ClusterError
from seal_ray.runs.folder import Store, open_store
from seal_ray.runs.summary import summarise
from seal_ray.sweeps.results import SweepRuns, results, write_results
from seal_ray.sweeps.tune import run_sweep, train_sweep
from seal_ray.training.loop import fit
from tests.sweeps import METHODS, metrics_of, screen, small_sweep, trained_where

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def train(
    runs: SweepRuns, *, share: bool = True, concurrent: int | None = None, in_process: bool = False
) -> str:
    console, printed = screen()
    train_sweep(runs, console, share=share, concurrent=concurrent, in_process=in_process)
    write_results(runs)
    return printed.getvalue()


def test_runs_side_by_side_share_generations_and_equal_those_trained_one_by_one(
    digits: Path, tmp_path: Path
) -> None:
    """One of which diverges: it is a row with its reason, and the others go on."""
    axes = {"method": {**METHODS, "broken": {"name": "seal", "ascent_rate": 1e30}}}
    runs = small_sweep(digits, tmp_path / "ray", seeds=2, axes=axes)
    printed = train(runs, concurrent=2)
    found = results(runs)
    good = [run for run in found if run.setting["method"] != "broken"]
    broken = [run for run in found if run not in good]
    assert [(run.status, run.epochs) for run in good] == [("finished", 6)] * 6
    assert sum(run.epochs_trained for run in found) == 36 - 2 * 2 * 2
    assert printed.count("generation 0 taken over from") == 6
    assert [(run.status, run.epochs_shared) for run in broken] == [("diverged", 2)] * 2
    assert all("in generation 1, epoch 0, phase ascend" in run.reason for run in broken)
    assert printed.count("diverged: ") >= 2
    made = trained_where(runs)
    for run in good:
        assert len(made[run.run_id]) == 6
        assert run.run_id in made[run.run_id][2:]

    alone = small_sweep(digits, tmp_path / "alone", seeds=2, axes=axes)
    train(alone, share=False, in_process=True)
    assert metrics_of(runs) == metrics_of(alone)
    assert all(set(makers) == {run} for run, makers in trained_where(alone).items())
    lines = [
        (runs.folder.parent.parent.parent / name / "sweeps/small/results.md") for name in ("ray", "alone")
    ]
    assert [line.split("|")[2:5] for line in lines[0].read_text().splitlines()] == [
        line.split("|")[2:5] for line in lines[1].read_text().splitlines()
    ]
    assert not list(runs.folder.glob("ray-*"))
    assert not list((tmp_path / "ray").glob("*/lease.json"))


def test_a_run_of_all_cpus_does_not_wait_for_its_own_trial_and_computes_what_one_process_does(
    digits: Path, tmp_path: Path
) -> None:
    def swept(storage: Path, **options: bool) -> SweepRuns:
        runs = small_sweep(
            digits,
            storage,
            recipe={"shards": 2 * workers},
            placement={"workers": {"min": 1, "max": workers}},
            axes={"method": {"sam": "sam", "seal": {"name": "seal", "ascent_loss": "confident_error"}}},
        )
        train(runs, **options)
        assert [run.status for run in results(runs)] == ["finished"] * 2
        return runs

    workers = int(ray.cluster_resources()["CPU"])
    on_ray = swept(tmp_path / "ray")
    assert {row["workers"] for one in on_ray.planned for row in one.store.rows()} == {workers}
    assert metrics_of(swept(tmp_path / "here", in_process=True)) == metrics_of(on_ray)
    for one in on_ray.planned:  # and from Python, whatever threads the process has
        images = Images.from_dataset(one.dataset, loader="torch")
        store = open_store(tmp_path / "python", one.job.recipe, images)
        assert [row.row["weights_sha256"] for row in fit(one.job.recipe, images, store=store)] == [
            row["weights_sha256"] for row in one.store.rows()
        ]


def test_more_runs_at_once_than_fit_are_an_error_before_anything_starts(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(digits, tmp_path / "runs")
    with pytest.raises(ClusterError, match=r"--concurrent 99: .* give at most \d+"):
        train(runs, concurrent=99)
    shards = {"shards": 32, "batch_size": 64}
    large = small_sweep(digits, tmp_path / "runs", recipe=shards, placement={"workers": 32})
    with pytest.raises(ClusterError, match="32 workers need a CPU each"):
        train(large)
    assert not (tmp_path / "runs").exists()


def test_early_stopping_gives_up_on_bad_runs_and_a_sweep_without_it_finishes_them(
    digits: Path, tmp_path: Path
) -> None:
    changes = {
        "axes": {"optimizer.lr": {"good": 0.1, "useless": 1e-7, "hopeless": 1e-8}},
        "recipe": {"budget": {"epochs": 8, "generation_length": 2}},
    }
    stopping = {"early_stopping": {"after_epochs": 2, "reduction_factor": 2.0}}
    runs = small_sweep(digits, tmp_path / "runs", **changes, **stopping)
    train(runs, concurrent=1)
    found = {run.setting["optimizer.lr"]: run for run in results(runs)}
    assert found["good"].status == "finished"
    assert found["hopeless"].status == "pruned"
    assert found["hopeless"].reason == "by early stopping"
    assert 2 <= found["hopeless"].epochs_trained < 8
    assert found["hopeless"].top1 is None

    console, printed = screen()
    run_sweep(runs, console, share=True, address=None, concurrent=None, in_process=False)
    assert printed.getvalue() == "small: every run has ended already, nothing to train\n"
    patient = small_sweep(digits, tmp_path / "runs", **changes)
    train(patient, in_process=True)
    assert [run.status for run in results(patient)] == ["finished"] * 3


def test_a_search_suggests_on_ray_what_it_suggests_in_one_process(digits: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "axes": {"method": ["normal", "llf"], "optimizer.weight_decay": {"uniform": [0.0, 0.01]}},
        "search": {"algorithm": "optuna", "samples": 5, "at_once": 2},
    }
    found = []
    for name, options in (("ray", {"concurrent": 2}), ("here", {"in_process": True})):
        runs = small_sweep(digits, tmp_path / name, **changes)
        train(runs, **options)  # type: ignore[arg-type]
        assert {run.status for run in results(runs.latest())} == {"finished"}
        found.append(metrics_of(runs.latest()))
    assert found[0] == found[1]
    assert len(found[0]) > 2  # more than were suggested without results


@pytest.mark.parametrize("stop", ["asha", "median"])
def test_a_search_gives_up_on_bad_runs_which_can_go_on(digits: Path, tmp_path: Path, stop: str) -> None:
    runs = small_sweep(
        digits,
        tmp_path / "runs",
        axes={"optimizer.lr": {"good": 0.1, "better": 0.2, "best": 0.15, "hopeless": 1e-8}},
        recipe={"budget": {"epochs": 8, "generation_length": 2}},
        search={"algorithm": "grid", "stop": stop, "after_epochs": 2},
    )
    train(runs, concurrent=1)
    found = {run.setting["optimizer.lr"]: run for run in results(runs)}
    assert found["good"].status == "finished"
    bad = found["hopeless"]
    assert (bad.status, bad.reason) == ("pruned", f"by the search ({stop}); `train` goes on")
    assert 2 <= bad.epochs_trained < 8
    assert not list((tmp_path / "runs").glob("*/lease.json"))
    assert runs.latest().search is not None
    best = runs.latest().search.best()  # type: ignore[union-attr]
    tops = [run.top1 for run in found.values() if run.top1 is not None]
    assert best is not None
    assert best[1] == max(tops)
    console, printed = screen()
    run_sweep(runs, console, share=True, address=None, concurrent=None, in_process=False)
    assert printed.getvalue() == "small: every run has ended already, nothing to train\n"
    (pruned,) = (one for one in runs.planned if one.run_id == bad.run_id)
    for _ in seal_ray.fit(pruned.job.recipe, storage=tmp_path / "runs"):
        pass
    assert pruned.store.status()["status"] == "finished"


def test_a_run_whose_files_break_fails_and_one_that_waited_trains_the_generation(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = small_sweep(digits, tmp_path / "runs")
    leader = runs.planned[0].store
    leader.folder.mkdir(parents=True)
    (leader.folder / "checkpoints").write_text("in the way")
    train(runs, concurrent=1)
    found = {run.setting["method"]: run for run in results(runs)}
    assert found["normal"].status == "failed"
    assert "cannot save" in found["normal"].reason
    assert [found[name].status for name in ("llf", "seal")] == ["finished"] * 2
    assert sum(run.epochs_trained for run in found.values()) == 6 + 4
    (leader.folder / "checkpoints").unlink()
    train(runs, concurrent=1)  # the same command again
    assert [run.status for run in results(runs)] == ["finished"] * 3
    assert Store(leader.folder, leader.run_id).rows()[0]["trained_by"] != leader.run_id


def test_moments_are_analysed_beside_training_where_there_is_a_cpu_left(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_ray.analysis.run, "PAUSE", 0.1)
    runs = small_sweep(
        digits,
        tmp_path / "runs",
        axes={"method": {"normal": "normal"}},
        recipe={"budget": {"epochs": 40, "generation_length": 2}},
        analyses=["calibration"],
    )
    console, printed = screen()
    with seal_ray.analysis.run.analysing_sweep(runs, console, concurrent=1, in_process=False):
        train(runs, concurrent=1)
    (run,) = runs.planned
    assert len(list((run.store.folder / "analysis").glob("*.json"))) == 20
    assert re.search(r"analyses: .*\d+ known", printed.getvalue())  # those that were made beside


def test_a_run_that_has_no_workers_while_another_trains_is_queued(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seal_ray.distributed.launch.QUEUE_INTERVAL", 0.1)
    cores = int(ray.cluster_resources()["CPU"])
    hog = ray.remote(num_cpus=1)(Busy).remote()
    ray.get(hog.here.remote())
    runs = small_sweep(digits, tmp_path / "runs", seeds=cores, axes={"method": {"normal": "normal"}})
    seen = []

    class EndsWhatIsInTheWay(Console):
        def print(self, *said: Any, **how: Any) -> None:
            super().print(*said, **how)
            if ": queued: " in str(said[0]):
                folder = runs.folder.parent.parent / said[0].partition(":")[0]
                seen.append((said[0], summarise(folder)["status"]))
                if said[0].endswith(f" 0 of the cluster's {cores} free"):
                    ray.kill(hog)

    train_sweep(runs, EndsWhatIsInTheWay(file=io.StringIO()), share=True, concurrent=None, in_process=False)
    assert {run.status for run in results(runs)} == {"finished"}
    assert f"queued: waits for 1 CPU; 0 of the cluster's {cores} free" in seen[-1][0]
    assert seen[-1][1] == "queued"


class Busy:
    """An actor that occupies what it asks for."""

    def here(self) -> None:
        """Answers once it has it."""
