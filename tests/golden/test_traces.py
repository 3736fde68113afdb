"""Phase, learning rate and weight decay of each part over 10 x 160 epochs, derived from the papers here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from seal_ray.networks import Parts, build
from seal_ray.phases.data_edits import RecycleDormant, RedrawLeast, ShrinkByDirection
from seal_ray.phases.edits import Edit, MaskedReinit, Renew, RenewAbove, ShrinkAndPerturb
from seal_ray.phases.schedule import Position, first_epochs, learning_rate
from seal_ray.recipe import Recipe
from seal_ray.streams import stream
from seal_ray.training.optimizer import build_optimizer, set_learning_rate, signed_rate

JOBS = Path(__file__).parents[2] / "jobs/runs"
STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
COOLED = (40, 36, 32, 29, 26, 24, 21, 19, 17)
"""Epochs of ascent of generations 1 to 9: a quarter, then nine tenths of the one before, unrounded."""
Trace = list[tuple[str, float, float, float, float]]  # phase, lr early, lr late, decay early, decay late


def published(epoch: int, length: int, warmup: int) -> float:
    """SEAL's published rule: lr 0.1, linear warm-up, half a cosine."""
    if epoch < warmup:
        return 0.1 * (epoch + 1) / warmup
    return 0.1 / 2 * (1 + math.cos(math.pi * (epoch - warmup) / (length - warmup)))


def expected(method: str) -> Trace:
    trace: Trace = []
    for generation in range(10):
        for epoch in range(160):
            lr = published(epoch, 160, 20)
            if method == "seal" and generation > 0 and epoch < 40:
                trace.append(("ascend", -0.01 * lr, lr, 0.0, 5e-4))
            elif method == "seal-cooled" and generation > 0 and epoch < COOLED[generation - 1]:
                trace.append(("ascend", -0.02 * 0.8 ** (generation - 1) * lr, lr, 0.0, 5e-4))
            elif method in ("seal", "seal-cooled", "llf") and generation > 0:
                trace.append(("relearn", lr, lr, 5e-4, 5e-4))
            elif method == "long":
                lr = published(160 * generation + epoch, 1600, 20)
                trace.append(("learn", lr, lr, 5e-4, 5e-4))
            else:
                trace.append(("learn", lr, lr, 5e-4, 5e-4))
    return trace


def traced(recipe: Recipe) -> Trace:
    """What a recipe does, epoch by epoch."""
    network = build("resnet18", classes=2, stem="imagenet", width=1, generator=stream(0, "init"))
    parts, budget, settings = Parts(STAGES, recipe.method.split_at), recipe.budget, recipe.optimizer
    trace: Trace = []
    for generation in range(budget.generations):
        phases = recipe.method.phases(generation, budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True):
            optimizer = build_optimizer(network, parts, phase, settings)
            decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
            for epoch in range(phase.epochs):
                position = Position(generation, first + epoch)
                lr = learning_rate(settings.rates, phase, position, budget)
                set_learning_rate(optimizer, phase, lr, [], epoch)
                early, late = (signed_rate(optimizer, phase, parts, s) for s in ("conv1", "layer3"))
                decays = [decay[next(getattr(network, s).parameters())] for s in ("conv1", "layer3")]
                trace.append((phase.name, early, late, decays[0], decays[1]))
    return trace


@pytest.mark.parametrize("job", ["normal", "long", "llf", "seal", "seal-cooled"])
def test_a_shipped_job_moves_its_parts_as_published(job: str) -> None:
    ours, theirs = traced(Recipe.load(JOBS / f"tiny-imagenet/{job}.yaml")), expected(job)
    assert len(ours) == len(theirs) == 1600
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    for column in range(1, 5):
        assert [r[column] for r in ours] == pytest.approx([r[column] for r in theirs], rel=1e-12, abs=0)


def test_only_generations_after_the_first_forget() -> None:
    names = [row[0] for row in traced(Recipe.load(JOBS / "tiny-imagenet/seal.yaml"))]
    assert names.count("ascend") == 9 * 40
    assert "ascend" not in names[:160]


HEAD, ALL = Renew("head"), Renew("all")
EDITS: dict[str, dict[tuple[int, int], Edit]] = {
    "rifle": {(1, 0): HEAD, (2, 0): HEAD},
    "zap": {(generation, epoch): Renew("head", epoch) for generation in (1, 2) for epoch in range(6)},
    "shrink_perturb": {(1, 0): ShrinkAndPerturb(0.4, 0.1), (2, 0): ShrinkAndPerturb(0.4, 0.1)},
    "layerwise": {(1, 0): RenewAbove(1, 3), (2, 0): RenewAbove(2, 3)},
    "dnr": {(g, 0): RedrawLeast(0.2, "network", 8) for g in (1, 2)},
    "swr": {(g, 0): RedrawLeast(0.2, "layer", 8) for g in (1, 2)},
    "redo": {(g, 0): RecycleDormant(0.1, 8) for g in (1, 2)},
    "dash": {(g, 0): ShrinkByDirection(0.3, 8) for g in (1, 2)},
    "cold": {(1, 0): ALL, (2, 0): ALL},
    "ke-early": {(g, 0): MaskedReinit(0.8, "kels", "early") for g in (1, 2)},
}
"""By job of jobs/runs/methods, of 3 generations of 12 epochs: what is edited before which of their epochs."""


def test_each_of_the_jobs_of_the_family_is_traced() -> None:
    assert {path.stem for path in (JOBS / "methods").iterdir()} == EDITS.keys()


@pytest.mark.parametrize("job", EDITS)
def test_a_job_of_the_family_forgets_when_it_is_due_and_descends_throughout(job: str) -> None:
    recipe = Recipe.load(JOBS / f"methods/{job}.yaml")
    assert recipe.method.name == job.partition("-")[0]
    at = {}
    for generation in range(3):
        phases = recipe.method.phases(generation, recipe.budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True):
            if phase.edit is not None:
                at[generation, first] = phase.edit
            assert phase.fresh == (first == 0)
    assert at == EDITS[job]
    trace = traced(recipe)
    assert [row[0] for row in trace] == ["learn"] * 12 + ["relearn"] * 24
    rates = [published(epoch, 12, 2) for _ in range(3) for epoch in range(12)]
    assert [row[1] for row in trace] == [row[2] for row in trace] == pytest.approx(rates, rel=1e-12, abs=0)
    assert {row[3:] for row in trace} == {(5e-4, 5e-4)}
