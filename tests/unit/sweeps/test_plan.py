"""Plans against arithmetic by hand and against what runs really leave on disk."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from seal_ray.data.dataset import ClassName
from seal_ray.data.prepared import Dataset
from seal_ray.distributed.launch import Planned, prepare_job
from seal_ray.errors import CheckpointError, ConfigError, DataError
from seal_ray.methods import METHODS
from seal_ray.recipe import Job, Placement, load_job
from seal_ray.runs.folder import Store
from seal_ray.sweeps.plan import PlannedPhase, RunPlan, make_plan
from seal_ray.sweeps.results import passes_of
from seal_ray.training.loop import fit
from tests.runs import EVERYTHING, keeping, tiny_images, tiny_recipe, train_run

ROOT = Path(__file__).parents[3]


class Counted(Planned):
    """A planned job of a data set that only says how many images it has."""

    def train_labels(self) -> np.ndarray:
        return np.arange(self.dataset.splits["train"].count) % len(self.dataset.classes)


def planned(dataset: Dataset, job: Job, storage: Path, *, images: int = 30, classes: int = 3) -> Planned:
    """The job on `images` training images, whatever the data set really holds."""
    recipe = job.recipe.model_copy(
        update={"data": job.recipe.data.model_copy(update={"path": str(dataset.folder)})}
    )
    placement = job.placement.model_copy(update={"storage": str(storage)})
    counted = replace(
        dataset,
        classes=tuple(ClassName(str(i), str(i)) for i in range(classes)),
        splits={**dataset.splits, "train": replace(dataset.splits["train"], count=images)},
    )
    job = job.model_copy(update={"recipe": recipe, "placement": placement})
    plain = prepare_job(job, open_data=lambda _: counted)
    return Counted(plain.job, counted, plain.store, plain.keys)


def tiny_plan(dataset: Dataset, storage: Path, method: Any, **changes: Any) -> RunPlan:
    placement = Placement.model_validate(changes.pop("placement", {}))
    job = Job(name="tiny", recipe=tiny_recipe(method, **changes), placement=placement)
    return make_plan(planned(dataset, job, storage))


def paper(name: str, dataset: Dataset, storage: Path) -> RunPlan:
    job = load_job(ROOT / "jobs" / "runs" / "tiny-imagenet" / f"{name}.yaml")
    return make_plan(planned(dataset, job, storage, images=100_000, classes=200))


def test_the_papers_seal_ascends_by_94_a_generation(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    plan = paper("seal", prepared("raw"), tmp_path)
    rates = [0.1 * (e + 1) / 20 for e in range(20)]
    rates += [0.05 * (1 + math.cos(math.pi * (e - 20) / 140)) for e in range(20, 160)]
    by_hand = 0.01 * 3125 * sum(rates[:40])
    assert by_hand == pytest.approx(94, abs=0.5)
    ascents = [phase for phase in plan.phases if phase.ascent]
    assert [phase.generation for phase in ascents] == list(range(1, 10))
    for phase in ascents:
        assert phase.ascent == pytest.approx((by_hand, by_hand))
        assert (phase.phase, phase.first_epoch, phase.epochs, phase.steps) == ("ascend", 0, 40, 125_000)
        assert phase.lr_early == pytest.approx((-0.01 * rates[0], -0.01 * rates[39]))
        assert phase.lr_late == pytest.approx((rates[0], rates[39]))
    assert len(plan.phases) == 1 + 9 * 2
    assert (plan.epochs, plan.steps, plan.images) == (1600, 5_000_000, 160_000_000)
    assert plan.parameters == 23_508_032 + 2048 * 200 + 200
    assert plan.early.stages == ("conv1", "bn1", "layer1", "layer2")
    assert plan.late.stages == ("layer3", "layer4", "fc")
    assert plan.early.parameters == 9_408 + 128 + 215_808 + 1_219_584  # conv1, bn1, layer1, layer2
    assert plan.early.parameters + plan.late.parameters == plan.parameters
    assert plan.status == "new"
    assert plan.done == 0


def test_the_sum_of_ascent_rates_follows_the_cooling(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    plan = paper("seal-cooled", prepared("raw"), tmp_path)
    rates = [0.1 * (e + 1) / 20 for e in range(20)]
    rates += [0.05 * (1 + math.cos(math.pi * (e - 20) / 140)) for e in range(20, 160)]
    epochs = [40, 36, 32, 29, 26, 24, 21, 19, 17]  # 40 x 0.9^g
    by_hand = [0.02 * 0.8**g * 3125 * sum(rates[:n]) for g, n in enumerate(epochs)]
    ascents = [phase for phase in plan.phases if phase.ascent]
    assert [phase.epochs for phase in ascents] == epochs
    assert [phase.ascent[0] for phase in ascents if phase.ascent] == pytest.approx(by_hand)
    assert sum(phase.epochs for phase in plan.phases) == 1600


def test_the_papers_methods_take_the_same_steps(prepared: Callable[[str], Dataset], tmp_path: Path) -> None:
    plans = [paper(name, prepared("raw"), tmp_path) for name in ("normal", "long", "llf", "seal")]
    assert {(plan.epochs, plan.steps, plan.images) for plan in plans} == {(1600, 5_000_000, 160_000_000)}
    assert len({plan.run_id for plan in plans}) == 4
    assert [{phase.edit for phase in plan.phases} for plan in plans] == [{""}, {""}, {"", "Reinit"}, {""}]


def test_steps_and_images_leave_out_the_incomplete_batch(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    plan = tiny_plan(prepared("raw"), tmp_path, "normal")  # 30 images in batches of 12, 12 epochs
    assert (plan.steps, plan.images) == (24, 288)
    assert [phase.steps for phase in plan.phases] == [8, 8, 8]
    fewer = tiny_plan(prepared("raw"), tmp_path, "normal", data={"path": "x", "per_class": 4})
    assert (fewer.steps, fewer.images) == (12, 144)


def phases(dataset: Dataset, storage: Path, **fields: Any) -> list[PlannedPhase]:
    """The first two phases of generation 1 of SEAL, 8 epochs of which 2 ascend, warm-up of 1, lr 0.1."""
    plan = tiny_plan(
        dataset,
        storage,
        {"name": "seal", "ascent_rate": 0.5, **fields},
        budget={"epochs": 16, "generation_length": 8},
        optimizer={"schedule": "constant", "warmup_share": 0.125},
    )
    return [phase for phase in plan.phases if phase.generation == 1]


@pytest.mark.parametrize(
    ("fields", "early", "late"),
    [
        ({}, (-0.05, -0.05), (0.1, 0.1)),
        ({"others": "freeze"}, (-0.05, -0.05), "frozen"),
        ({"ascend": "late"}, (0.1, 0.1), (-0.05, -0.05)),
        ({"ascend": "all"}, (-0.05, -0.05), (-0.05, -0.05)),
        ({"ascent_loss": "confident_error"}, (0.05, 0.05), (0.1, 0.1)),
        ({"ascent_rate": {"rise": 0.5}}, "-measured: +0.5 nats", (0.1, 0.1)),
        (
            {"ascent_rate": {"rise": 0.5}, "ascent_loss": "confident_error"},
            "measured: +0.5 nats",
            (0.1, 0.1),
        ),
    ],
)
def test_rates_of_an_ascent_by_hand(
    prepared: Callable[[str], Dataset], tmp_path: Path, fields: dict[str, Any], early: Any, late: Any
) -> None:
    ascend, relearn = phases(prepared("raw"), tmp_path, **fields)
    assert (ascend.phase, ascend.first_epoch, ascend.epochs) == ("ascend", 0, 2)
    assert (relearn.phase, relearn.first_epoch, relearn.epochs) == ("relearn", 2, 6)
    assert ascend.lr_early == (early if isinstance(early, str) else pytest.approx(early))
    assert ascend.lr_late == (late if isinstance(late, str) else pytest.approx(late))
    assert relearn.lr_early == relearn.lr_late == pytest.approx((0.1, 0.1))
    assert relearn.ascent is None


def test_the_sum_of_a_measured_ascent_is_a_range(prepared: Callable[[str], Dataset], tmp_path: Path) -> None:
    def ascent(**rise: float) -> Any:
        return phases(prepared("raw"), tmp_path, ascent_rate={"rise": 0.5, **rise})[0].ascent

    # Two epochs of two steps at 0.1: start, then half or twice of it.
    assert ascent(start=0.2) == pytest.approx((0.2 * 0.2 * 1.5, 0.2 * 0.2 * 3))
    assert ascent(start=0.8) == pytest.approx((0.2 * 0.8 * 1.5, 0.2 * (0.8 + 1)))
    assert ascent(start=0.8, cap=0.5) == pytest.approx((0.2 * 0.5 * 1.5, 0.2 * 0.5 * 2))
    fixed = phases(prepared("raw"), tmp_path)[0].ascent
    assert fixed == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize(
    ("rise", "length", "said"),
    [
        # Of 8 epochs 2 ascend, two steps each at 0.1: 0.2 * (start + 2 * start).
        (
            {},
            8,
            r"add up to 0.006, .*; raise start \(0.01\) of method.ascent_rate, or .* 2 epochs of",
        ),
        ({"cap": 0.01}, 8, r"add up to 0.004, .*; raise cap \(0.01\) of method"),  # no room to begin higher
        ({"cap": 0.012}, 8, r"add up to 0.004, .*; raise start \(0.01\) and cap \(0.012\) of method"),
        (
            {"cap": 0.0001, "factor": 1e30},
            400,
            r"; raise cap \(0.0001\) of method.*, for more than 100 epochs",
        ),
    ],
)
def test_a_measured_ascent_that_is_too_weak_says_what_binds_it(
    prepared: Callable[[str], Dataset], tmp_path: Path, rise: dict[str, float], length: int, said: str
) -> None:
    plan = tiny_plan(
        prepared("raw"),
        tmp_path,
        {"name": "seal", "ascent_rate": {"rise": 0.5, **rise}},
        budget={"epochs": 2 * length, "generation_length": length},
        optimizer={"schedule": "constant", "warmup_share": 0.125},
    )
    assert re.search(said, plan.caution)
    assert "write {rise" not in plan.caution


def test_a_long_measured_ascent_can_be_planned(prepared: Callable[[str], Dataset], tmp_path: Path) -> None:
    plan = tiny_plan(
        prepared("raw"),
        tmp_path,
        {"name": "seal", "ascent_rate": {"rise": 0.5, "start": 0.1, "factor": 10}, "ascent_share": 0.5},
        budget={"epochs": 2000, "generation_length": 1000},
        optimizer={"schedule": "constant", "warmup_share": 0.0},
    )
    (ascend,) = (phase for phase in plan.phases if phase.ascent)
    assert ascend.ascent == pytest.approx((0.2 * 0.1 / 0.9, 0.2 * (0.1 + 499)))


def test_edits_are_named(prepared: Callable[[str], Dataset], tmp_path: Path) -> None:
    edits = {
        name: [phase.edit for phase in tiny_plan(prepared("raw"), tmp_path, name).phases][1:]
        for name in ("normal", "llf", "ke", "ban", "dsd", "zap")
    }
    assert edits == {
        "normal": ["", ""],
        "llf": ["Reinit"] * 2,
        "ke": ["MaskedReinit"] * 2,
        "ban": ["Succeed"] * 2,
        "dsd": ["", "Prune", ""] * 2,
        "zap": ["Renew"] * 4,
    }


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in the .safetensors files below a folder."""
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return total


KINDS = [{"name": name} for name in METHODS] + [{"name": "seal", "forget": "llf", "ascent_share": 0.5}]


@pytest.mark.parametrize(
    ("method", "momentum"), [*((m, 0.9) for m in KINDS), ({"name": "ban"}, 0.0)], ids=str
)
def test_what_a_run_keeps_is_what_was_planned(
    prepared: Callable[[str], Dataset], tmp_path: Path, method: dict[str, Any], momentum: float
) -> None:
    keep = {"moments": EVERYTHING, "checkpoints": 2}
    changes = {"optimizer": {"momentum": momentum}, "budget": {"epochs": 6, "generation_length": 3}}
    plan = tiny_plan(prepared("raw"), tmp_path, method, placement={"keep": keep}, **changes)
    recipe = tiny_recipe(method, **changes)
    train_run(recipe, tmp_path / "run", checkpoints=2, placement=keeping(EVERYTHING))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [tensor_bytes(path) for path in checkpoints] == [plan.checkpoint_bytes] * 2
    # A born-again run has no teacher yet in generation 0: its two moments there are smaller.
    weights = plan.checkpoint_bytes - 4 * plan.parameters * (momentum > 0)
    missing = weights if method["name"] == "ban" else 0
    assert tensor_bytes(tmp_path / "run") == plan.kept_bytes - missing


def test_what_an_average_keeps_is_what_was_planned(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    moments = (*EVERYTHING, "averaged")
    changes = {"averaging": "ema", "budget": {"epochs": 6, "generation_length": 3}}
    placement = {"keep": {"moments": moments, "checkpoints": 2}}
    plan = tiny_plan(prepared("raw"), tmp_path, "seal", placement=placement, **changes)
    recipe = tiny_recipe("seal", **changes)
    train_run(recipe, tmp_path / "run", checkpoints=2, placement=keeping(moments))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    average = 4 * plan.parameters  # which ends with a generation, and so with the run
    assert [tensor_bytes(path) for path in checkpoints] == [
        plan.checkpoint_bytes,
        plan.checkpoint_bytes - average,
    ]
    assert tensor_bytes(tmp_path / "run") == plan.kept_bytes - average


def test_moments_that_are_not_kept_are_not_counted(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    sizes = [
        tiny_plan(
            prepared("raw"), tmp_path, "seal", placement={"keep": {"moments": moments, "checkpoints": count}}
        )
        for moments, count in (((), 1), ((), 3), (("ascended",), 1), (("ascended", "relearned"), 1))
    ]
    one, three, ascended, usual = (plan.kept_bytes for plan in sizes)
    weights = sizes[0].checkpoint_bytes - 4 * sizes[0].parameters
    assert (one, three) == (sizes[0].checkpoint_bytes, 3 * sizes[0].checkpoint_bytes)
    assert (ascended - one, usual - one) == (2 * weights, 5 * weights)


def test_a_plan_says_how_far_the_run_is(prepared: Callable[[str], Dataset], tmp_path: Path) -> None:
    job = Job(name="tiny", recipe=tiny_recipe())
    here = planned(prepared("raw"), job, tmp_path)
    images = replace(tiny_images(), identity=here.dataset.training_identity)
    assert make_plan(here).done == 0
    for count, _ in enumerate(fit(here.job.recipe, images, store=here.store), start=1):
        if count == 5:
            break
    plan = make_plan(here)
    assert (plan.done, plan.status, plan.run_id) == (5, "running", here.run_id)
    (here.store.folder / "metrics.jsonl").write_text("{\n")
    with pytest.raises(CheckpointError, match="damaged"):
        make_plan(here)


def test_planning_writes_nothing(prepared: Callable[[str], Dataset], tmp_path: Path) -> None:
    tiny_plan(prepared("raw"), tmp_path / "storage", "seal")
    assert list(tmp_path.iterdir()) == []


def test_paths_of_a_planned_job_are_absolute(
    prepared: Callable[[str], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared("raw").folder
    monkeypatch.chdir(folder.parent)
    recipe = tiny_recipe(data={"path": folder.name})
    job = prepare_job(Job(name="x", recipe=recipe, placement=Placement(storage="some/where")))
    assert job.job.recipe.data.path == str(folder)
    assert job.store == Store(folder.parent / "some" / "where" / job.run_id, job.run_id, 2)


def test_a_job_without_its_data_cannot_be_planned(tmp_path: Path) -> None:
    job = Job(name="x", recipe=tiny_recipe(data={"path": str(tmp_path / "nowhere")}))
    with pytest.raises(DataError, match=r"nowhere.*seal-ray data prepare"):
        prepare_job(job)


def test_a_batch_larger_than_the_training_set_cannot_be_planned(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.batch_size: 32 images, but the training set has only 30"):
        tiny_plan(prepared("raw"), tmp_path, "normal", batch_size=32)


@pytest.mark.parametrize(("method", "passes"), [("normal", 7), ("sam", 14), ("dsd", 7)])
def test_passes_over_an_image_add_up_over_epochs(method: str, passes: int) -> None:
    recipe = tiny_recipe({"name": method}, budget={"epochs": 12, "generation_length": 6})
    assert passes_of(recipe, 7) == passes
