"""What every registered method promises, on real runs: edits, frozen parts, moments, momentum; a run that
is resumed, and one of two processes, is the same.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import seal_ray.methods
from seal_ray.methods import METHODS, Method
from seal_ray.networks import build
from seal_ray.phases.schedule import Position, first_epochs
from seal_ray.recipe import Recipe
from seal_ray.runs.checkpoint import Snapshot, read_snapshot, write_snapshot
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import generation_keys
from seal_ray.streams import stream
from tests.runs import (
    AS_LLF,
    CASES,
    VARIANTS,
    case_id,
    on_ranks,
    open_store,
    same_state,
    same_tensors,
    tiny_recipe,
    train_run,
    without_speeds,
)

pytestmark = pytest.mark.usefixtures("onednn")
State = dict[str, Tensor]
EPOCHS = 3  # in a generation
BUDGET = {"epochs": 3 * EPOCHS, "generation_length": EPOCHS}
TWO = 2 * EPOCHS
"""Epochs of two generations: what is trained anew where the third is as the second."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def recipe_of(method: dict[str, Any], **changes: Any) -> Recipe:
    return tiny_recipe(method, **{"budget": BUDGET, **changes})


class Trained:
    """A whole run of three generations of three epochs with every moment and checkpoint kept."""

    def __init__(self, method: dict[str, Any], folder: Path, **changes: Any) -> None:
        self.recipe = recipe_of(method, **changes)
        self.store: Store = open_store(self.recipe, folder)
        train_run(self.recipe, folder)

    def checkpoint(self, generation: int, epoch: int) -> Snapshot:
        name = f"g{generation:03d}-e{epoch:03d}"
        return read_snapshot(self.store.folder / "checkpoints" / name, self.store.run_id)

    def moment(self, generation: int, name: str) -> Snapshot:
        return read_snapshot(self.store.folder / "moments" / f"g{generation:03d}-{name}", self.store.run_id)

    def moments(self) -> set[str]:
        return {path.name for path in (self.store.folder / "moments").iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Trained]:
    """The run of a method, trained once for all tests; tests must not change it."""
    runs: dict[str, Trained] = {}

    def get(method: dict[str, Any]) -> Trained:
        key = repr(method)
        if key not in runs:
            runs[key] = Trained(method, tmp_path_factory.mktemp("run"))
        return runs[key]

    return get


def weights_in(state: State, *stages: str) -> set[str]:
    """Conv and linear weights of stages, told apart from norms by having more than one dimension."""
    return {name for name, tensor in state.items() if name.split(".")[0] in stages and tensor.dim() > 1}


def changed(before: State, after: State) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}


def parameters(state: State) -> set[str]:
    return {name for name in state if not name.endswith(STATISTICS)}


STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")


def redrawn(method: dict[str, Any]) -> tuple[str, ...]:
    split = STAGES.index(method.get("split_at", "layer3"))
    return STAGES[:split] if method.get("part") == "early" else STAGES[split:]


def drawn(purpose: str, *position: int) -> State:
    """A draw of the tiny network's own initialisation."""
    rng = stream(0, purpose, *position)
    return build("resnet18", classes=3, stem="imagenet", width=4, generator=rng).state_dict()


def method_files() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(seal_ray.methods.__path__)]
    return sorted(set(names) - {"base"})


@pytest.mark.parametrize("file", method_files())
def test_every_method_file_holds_one_method_that_is_registered(file: str) -> None:
    module = importlib.import_module(f"seal_ray.methods.{file}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    assert len(own) == 1
    (method,) = own
    assert METHODS[method.name] is method
    assert method.name == file


def test_every_method_is_trained_in_the_contract_tests() -> None:
    assert len(METHODS) == len(method_files())
    assert set(VARIANTS) == set(METHODS)
    assert all(VARIANTS.values())


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_values_that_can_be_made_without_arguments(name: str) -> None:
    method = METHODS[name]()
    assert method == METHODS[name]()
    assert hash(method) == hash(METHODS[name]())
    assert METHODS[name].__doc__
    for field in fields(method):
        with pytest.raises(AttributeError):
            setattr(method, field.name, getattr(method, field.name))


SHARED = ("normal", "llf", "seal", "ke", "dsd", *AS_LLF)


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_the_first_generation_is_shared_by_those_that_begin_plainly(method: dict[str, Any]) -> None:
    split = {"split_at": method["split_at"]} if "split_at" in method else {}
    plain = generation_keys(recipe_of({"name": "normal", **split}), "images")[0]
    ours = generation_keys(recipe_of(method), "images")[0]
    assert (ours == plain) == (method["name"] in SHARED and method.get("schedule") != "long")


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_runs_with_the_key_of_a_generation_have_its_bits(
    trained: Callable[[dict[str, Any]], Trained], method: dict[str, Any]
) -> None:
    one, plain = trained(method), trained({"name": "normal"})
    alike = generation_keys(one.recipe, "images")[0] == generation_keys(plain.recipe, "images")[0]
    bits = changed(one.moment(0, "relearned").weights, plain.moment(0, "relearned").weights)
    if alike:
        assert bits == set()
    elif method["name"] != "ban" and "split_at" not in method:  # keys may differ where bits do not
        assert bits


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_moments_are_the_states_they_are_called_after(
    trained: Callable[[dict[str, Any]], Trained], method: dict[str, Any]
) -> None:
    run = trained(method)
    expected = {"g000-init"}
    for generation in range(3):
        phases = run.recipe.method.phases(generation, run.recipe.budget)
        expected.add(f"g{generation:03d}-relearned")
        moments = [("relearned", EPOCHS - 1)]
        if phases[0].edit is not None:
            expected.add(f"g{generation:03d}-forgotten")
        for phase, first in zip(phases, first_epochs(phases), strict=True):
            if phase.name == "ascend":
                expected.add(f"g{generation:03d}-ascended")
                moments.append(("ascended", first + phase.epochs - 1))
        for name, epoch in moments:
            moment, checkpoint = run.moment(generation, name), run.checkpoint(generation, epoch)
            same_tensors(moment.weights, checkpoint.weights, name)
            assert (moment.position, moment.rows) == (checkpoint.position, checkpoint.rows)
            assert moment.carried.keys() == checkpoint.carried.keys()
            assert moment.optimizer == {}
    assert run.moments() == expected
    init = run.moment(0, "init")
    same_tensors(init.weights, drawn("init"), "init")
    assert (init.position, init.rows) == (None, ())


def test_the_end_of_the_ascent_is_not_an_epoch_of_descent_later(
    trained: Callable[[dict[str, Any]], Trained],
) -> None:
    run = trained({"name": "seal", "forget": "llf", "ascent_share": 0.5, "ascent_weight_decay": "decay"})
    ascended = run.moment(1, "ascended").weights
    assert [row["phase"] for row in run.store.rows()[3:6]] == ["ascend", "ascend", "relearn"]
    assert changed(ascended, run.checkpoint(1, 1).weights) == set()
    assert changed(ascended, run.checkpoint(1, 2).weights)


def forgets_nothing(run: Trained, method: dict[str, Any], generation: int) -> None:
    assert f"g{generation:03d}-forgotten" not in run.moments()


def redraws_the_part(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after = run.moment(generation, "forgotten").weights
    assert changed(before, after) == weights_in(before, *redrawn(method))
    for name in weights_in(before, *redrawn(method)):
        assert (before[name] == after[name]).sum() <= 1, name  # of ten thousand draws one may hit what was
        fan_in = after[name][0].numel()
        if method.get("init") == "model":
            assert after[name].std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.6)
        else:
            assert after[name].abs().max() <= 1 / math.sqrt(fan_in)


def ascends_without_an_edit(run: Trained, method: dict[str, Any], generation: int) -> None:
    if method.get("forget") == "llf":
        redraws_the_part(run, method, generation)
    else:
        forgets_nothing(run, method, generation)


def keeps_a_fixed_mask(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after = run.moment(generation, "forgotten").weights
    keep = method.get("keep", 0.8)
    layers = weights_in(before, *STAGES)
    assert changed(before, after) <= layers
    fresh = drawn("edit", generation)
    for name in layers:
        kept = before[name] == after[name]
        assert torch.equal(after[name][~kept], fresh[name][~kept]), name
        if method.get("mask") == "wels":
            assert int(kept.sum()) == round(keep * kept.numel()), name
            first = run.moment(0, "relearned").weights[name] == run.moment(1, "forgotten").weights[name]
            assert torch.equal(kept, first), name  # the same in every generation
        else:
            outputs = kept.shape[0] if name == "fc.weight" else math.ceil(keep * kept.shape[0])
            inside = torch.zeros_like(kept)
            inside[:outputs, : math.ceil(keep * kept.shape[1])] = True
            assert torch.equal(kept, inside), name


def starts_over_and_carries_the_teacher(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned")
    after = run.moment(generation, "forgotten")
    same_tensors(after.weights, drawn("edit", generation), "successor")
    for snapshot in (after, *(run.checkpoint(generation, epoch) for epoch in range(EPOCHS))):
        same_tensors(snapshot.carried["teacher"], before.weights, "teacher")


def renews(run: Trained, generation: int, *stages: str) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after, fresh = run.moment(generation, "forgotten").weights, drawn("edit", generation)
    new = {name for name in before if name.split(".")[0] in stages}
    assert changed(before, after) == new
    same_tensors({name: after[name] for name in new}, {name: fresh[name] for name in new}, "renewed")


def renews_the_classifier(run: Trained, method: dict[str, Any], generation: int) -> None:
    renews(run, generation, "fc")


def renews_everything(run: Trained, method: dict[str, Any], generation: int) -> None:
    renews(run, generation, *STAGES)


def shrinks_and_perturbs(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after, fresh = run.moment(generation, "forgotten").weights, drawn("edit", generation)
    assert changed(before, after) == parameters(before)
    for name in parameters(before):
        assert torch.allclose(after[name], 0.4 * before[name] + 0.1 * fresh[name], atol=1e-6), name


def keeps_a_third_more(run: Trained, method: dict[str, Any], generation: int) -> None:
    """The lowest 3, then 6, of 8 blocks and the classifier: two a stage, below them the stem."""
    before = run.moment(generation - 1, "relearned").weights
    after = run.moment(generation, "forgotten").weights
    fresh, initial = drawn("edit", generation), drawn("init")
    kept = ("conv1", "bn1", "layer1", "layer2.0", *(() if generation == 1 else ("layer2.1", "layer3")))
    for name, tensor in after.items():
        if not name.startswith(kept):
            assert torch.equal(tensor, fresh[name]), name
        elif name in parameters(before):
            ratio = initial[name].norm() / before[name].norm()
            assert torch.allclose(tensor, ratio * before[name], atol=1e-6), name
        else:
            assert torch.equal(tensor, before[name]), name


def redraws_a_fifth(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after, fresh = run.moment(generation, "forgotten").weights, drawn("edit", generation)
    layers = weights_in(before, *STAGES)
    assert changed(before, after) <= layers
    new = {name: before[name] != after[name] for name in layers}
    assert all(torch.equal(after[name][new[name]], fresh[name][new[name]]) for name in layers)
    counts = {name: (int(new[name].sum()), new[name].numel()) for name in layers}
    if method["name"] == "swr":
        assert all(count == total // 5 for count, total in counts.values())
    else:
        assert sum(count for count, _ in counts.values()) == sum(total for _, total in counts.values()) // 5


def recycles_units(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after, fresh = run.moment(generation, "forgotten").weights, drawn("edit", generation)
    recycled = 0
    for block in (f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)):
        silent = (after[f"{block}.conv2.weight"] == 0).flatten(2).all(dim=2).all(dim=0)
        recycled += int(silent.sum())
        for name in (f"{block}.conv1.weight", f"{block}.bn1.weight", f"{block}.bn1.running_var"):
            assert torch.equal(after[name][silent], fresh[name][silent]), name
            assert torch.equal(after[name][~silent], before[name][~silent]), name
    assert recycled


def shrinks_by_direction(run: Trained, method: dict[str, Any], generation: int) -> None:
    before = run.moment(generation - 1, "relearned").weights
    after = run.moment(generation, "forgotten").weights
    layers = weights_in(before, *STAGES)
    assert layers - {"fc.weight"} <= changed(before, after) <= layers | {"fc.bias"}
    for name in layers:
        ratio = after[name].norm() / before[name].norm()
        assert 0.3 - 1e-5 < float(ratio) <= 1, name


def prunes_and_releases(run: Trained, method: dict[str, Any], generation: int) -> None:
    forgets_nothing(run, method, generation)
    phases = run.recipe.method.phases(generation, run.recipe.budget)
    lasts = [first + p.epochs - 1 for first, p in zip(first_epochs(phases), phases, strict=True)]
    dense, sparse, redense = lasts
    before = run.checkpoint(generation, dense).weights
    for name in weights_in(before, *STAGES):
        count = int(0.3 * before[name].numel())
        smallest = before[name].abs().flatten().argsort(stable=True)[:count]
        for epoch in range(dense + 1, sparse + 1):
            pruned = run.checkpoint(generation, epoch).weights[name].flatten() == 0
            assert pruned.nonzero().flatten().tolist() == sorted(smallest.tolist()), name
        last = run.checkpoint(generation, redense).weights[name].flatten()
        assert (last[smallest] != 0).any(), name
    assert changed(before, run.checkpoint(generation, dense + 1).weights) >= weights_in(before, "layer4")


PROMISES: dict[str, Callable[[Trained, dict[str, Any], int], None]] = {
    "normal": forgets_nothing,
    "seal": ascends_without_an_edit,
    "llf": redraws_the_part,
    "sam": forgets_nothing,
    "asam": forgets_nothing,
    "gsam": forgets_nothing,
    "ban": starts_over_and_carries_the_teacher,
    "dsd": prunes_and_releases,
    "ke": keeps_a_fixed_mask,
    "rifle": renews_the_classifier,
    "zap": renews_the_classifier,
    "shrink_perturb": shrinks_and_perturbs,
    "layerwise": keeps_a_third_more,
    "dnr": redraws_a_fifth,
    "swr": redraws_a_fifth,
    "redo": recycles_units,
    "dash": shrinks_by_direction,
    "cold": renews_everything,
}


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_an_edit_changes_exactly_what_it_promises(
    trained: Callable[[dict[str, Any]], Trained], method: dict[str, Any], generation: int
) -> None:
    PROMISES[method["name"]](trained(method), method, generation)


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_the_first_generation_forgets_nothing(
    trained: Callable[[dict[str, Any]], Trained], method: dict[str, Any]
) -> None:
    run = trained(method)
    assert not {"g000-forgotten", "g000-ascended"} & run.moments()
    assert {row["phase"] for row in run.store.rows()[:EPOCHS]} == {"learn"}
    assert all(run.checkpoint(0, epoch).carried == {} for epoch in range(EPOCHS))


def test_each_generation_and_seed_draws_new_weights(
    trained: Callable[[dict[str, Any]], Trained], tmp_path: Path
) -> None:
    run, other = trained({"name": "llf"}), Trained({"name": "llf"}, tmp_path, seed=1)
    one, two = (run.moment(generation, "forgotten").weights["fc.weight"] for generation in (1, 2))
    assert not (one == two).any()
    assert not (one == other.moment(1, "forgotten").weights["fc.weight"]).any()


def climbing(ascend: str, head_ascends: bool) -> tuple[str, ...]:
    """The stages that climb, from SEAL's documentation."""
    body = {"early": STAGES[:4], "late": STAGES[4:6], "all": STAGES[:6]}[ascend]
    return (*body, "fc") if head_ascends else body


@pytest.mark.parametrize("head_ascends", [False, True])
@pytest.mark.parametrize("ascend", ["early", "late", "all"])
def test_frozen_parts_keep_their_parameters_through_an_ascent(
    tmp_path: Path, ascend: str, head_ascends: bool
) -> None:
    method = {
        "name": "seal",
        "ascend": ascend,
        "head_ascends": head_ascends,
        "others": "freeze",
        "ascent_share": 0.5,
        "ascent_rate": 0.1,
    }
    run = Trained(method, tmp_path, budget={"epochs": TWO, "generation_length": EPOCHS})
    states = [run.checkpoint(0, 2), *(run.checkpoint(1, epoch) for epoch in range(3))]
    stages = climbing(ascend, head_ascends)
    for before, after in pairwise(states[:3]):  # the two epochs of ascent
        moved = changed(before.weights, after.weights)
        expected = {name for name in parameters(before.weights) if name.split(".")[0] in stages}
        assert moved & parameters(before.weights) == expected
        assert moved - parameters(before.weights) == set(before.weights) - parameters(before.weights)
        counted = {name for name in before.weights if name.endswith("num_batches_tracked")}
        assert all(int(after.weights[n] - before.weights[n]) == 2 for n in counted)  # steps in an epoch
        assert {name.split(":")[0] for name in after.optimizer} == expected
    relearned = changed(states[2].weights, states[3].weights)
    assert relearned == set(states[2].weights)  # then everything descends


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_everything_moves_in_each_epoch_in_which_nothing_is_frozen(
    trained: Callable[[dict[str, Any]], Trained], method: dict[str, Any]
) -> None:
    run = trained(method)
    for generation in range(3):
        for epoch in range(1, EPOCHS):
            before, after = (run.checkpoint(generation, e).weights for e in (epoch - 1, epoch))
            row = run.store.rows()[EPOCHS * generation + epoch]
            if row["lr_early"] and row["lr_late"]:
                assert changed(before, after) == set(before), (generation, epoch)


def test_the_rows_say_who_climbs(trained: Callable[[dict[str, Any]], Trained]) -> None:
    signs = {
        name: [(math.copysign(1, row["lr_early"]), math.copysign(1, row["lr_late"])) for row in rows]
        for name, rows in (
            ("early", trained(CASES[2]).store.rows()),
            ("all", trained(CASES[4]).store.rows()),
        )
    }
    assert CASES[2] == {"name": "seal", "ascent_rate": 0.3}
    assert CASES[4]["ascend"] == "all"
    plain = [(1.0, 1.0)]
    assert signs["early"] == plain * 3 + [(-1.0, 1.0), *plain * 2] * 2
    assert signs["all"] == plain * 3 + [(-1.0, -1.0), *plain * 2] * 2


def boundaries(method: dict[str, Any]) -> Iterator[tuple[int, int, bool]]:
    """Generation and epoch of the last epoch before each phase, and whether the phase starts afresh."""
    recipe = recipe_of(method)
    for generation in range(3):
        phases = recipe.method.phases(generation, recipe.budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True):
            if (generation, first) != (0, 0):
                at = (generation, first - 1) if first else (generation - 1, EPOCHS - 1)
                yield (*at, phase.fresh)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "seal", "ascent_rate": 0.3},
        {"name": "normal"},
        {"name": "normal", "schedule": "long"},
        {"name": "dsd"},
    ],
    ids=case_id,
)
def test_momentum_is_fresh_with_each_phase_that_says_so(
    trained: Callable[[dict[str, Any]], Trained], tmp_path: Path, method: dict[str, Any]
) -> None:
    run = trained(method)
    for generation, epoch, fresh in boundaries(method):
        # The same run without the momentum at the boundary goes on as before exactly when it is not read.
        folder = tmp_path / f"{generation}-{epoch}"
        snapshot = run.checkpoint(generation, epoch)
        without = Snapshot(**{**vars(snapshot), "optimizer": {}})
        write_snapshot(folder / "checkpoints" / f"g{generation:03d}-e{epoch:03d}", without)
        row = train_run(run.recipe, folder, epochs=1)[0].row
        same = row["weights_sha256"] == run.store.rows()[EPOCHS * generation + epoch + 1]["weights_sha256"]
        assert same == fresh, (generation, epoch)


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    trained: Callable[[dict[str, Any]], Trained], tmp_path: Path, method: dict[str, Any]
) -> None:
    run = trained(method)
    epochs = TWO if method["name"] in AS_LLF else run.recipe.budget.epochs
    for _ in range(epochs):  # builds everything anew, from the checkpoint
        train_run(run.recipe, tmp_path, epochs=1)
    resumed = open_store(run.recipe, tmp_path)
    for at in (Position(*divmod(epoch, EPOCHS)) for epoch in range(epochs)):
        same_state(run.store.at(at), resumed.at(at))
    assert without_speeds(resumed.rows()) == without_speeds(run.store.rows()[:epochs])
    assert [row["global_epoch"] for row in resumed.rows()] == list(range(epochs))
    labels = resumed.completed_moments()
    assert labels == {label for label in run.moments() if int(label[1:4]) < epochs // EPOCHS}
    for label in labels:
        moments = (store.folder / "moments" / label for store in (run.store, resumed))
        assert len({(moment / "weights.safetensors").read_bytes() for moment in moments}) == 1


def two_generations(folder: str) -> None:
    for method in CASES:
        train_run(recipe_of(method), f"{folder}/{case_id(method)}", epochs=TWO)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two generations of every setting of every method on two ranks."""
    folder = tmp_path_factory.mktemp("two")
    on_ranks(2, two_generations, str(folder))
    return folder


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_two_shards_in_one_process_give_the_bits_of_two_ranks(
    trained: Callable[[dict[str, Any]], Trained], on_two: Path, method: dict[str, Any]
) -> None:
    one = trained(method)
    two = open_store(one.recipe, on_two / case_id(method))
    for at in (Position(*divmod(epoch, EPOCHS)) for epoch in range(TWO)):
        same_state(one.store.at(at), two.at(at), "workers")
