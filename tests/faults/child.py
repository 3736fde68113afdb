"""Training in a process of its own that is killed: from outside, or by itself at a delicate point.

The kills of `die_at` are put around the pieces of the loop from here; nothing in seal_ray knows of them.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import seal_ray.runs.checkpoint
import seal_ray.runs.folder
import seal_ray.training.loop
import seal_ray.training.run
import seal_ray.training.step
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Recipe
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import run_id
from tests.runs import EVERYTHING, keeping, same_state, tiny_images, without_speeds

IMAGES = 120
"""Training images: ten steps an epoch, so that a kill within one has somewhere to fall."""

UNCOMMITTED = ("edit", "step", "evaluate", "moments", "manifest")
"""Before a phase's first step (its edit is done), after a step, before the evaluation, before the checkpoint
(its moments are kept), before its manifest."""
COMMITTED = ("line", "committed")
"""Before the line of metrics of an epoch whose checkpoint is there, after all of it."""


def train(recipe: Recipe, folder: str, position: Position | None = None, point: str = "") -> None:
    """Go on with the run in `folder` to its end, or to `point` of the epoch at `position`."""
    if position is not None:
        die_at(position, point)
    store, placement = store_of(recipe, Path(folder)), keeping(EVERYTHING)
    for _ in seal_ray.training.loop.fit(recipe, tiny_images(train=IMAGES), store=store, placement=placement):
        pass


def start(recipe: Recipe, folder: Path, *where: Any) -> mp.process.BaseProcess:
    """Start `train` in a new process, forked from one that has imported everything."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.child", "torchvision.models.resnet"])
    process = context.Process(target=train, args=(recipe, str(folder), *where))
    process.start()
    return process


def store_of(recipe: Recipe, folder: Path) -> Store:
    """The store of a run on IMAGES images."""
    identity = run_id(recipe, tiny_images(train=IMAGES).identity)
    return Store(folder, identity, checkpoints=2)


def same_run(recipe: Recipe, whole: Path, disturbed: Path) -> None:
    """Assert that a finished run equals the undisturbed one: state, metrics as text, each epoch, moments."""
    ours, theirs = store_of(recipe, whole), store_of(recipe, disturbed)
    end = Position(recipe.budget.generations - 1, recipe.budget.length - 1)
    same_state(ours.at(end), theirs.at(end))
    lines = [json.loads(line) for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_epoch"] for line in lines] == list(range(recipe.budget.epochs))
    assert without_speeds(lines) == without_speeds(ours.rows())
    assert theirs.status()["status"] == "finished"
    moments = [
        {p.name: (p / "weights.safetensors").read_bytes() for p in (folder / "moments").iterdir()}
        for folder in (whole, disturbed)
    ]
    assert moments[0] == moments[1]


def die_at(position: Position, point: str) -> None:
    """Let this process kill itself at a point of the epoch at `position`."""

    def at_run(owner: Any, name: str) -> None:
        before(owner, name, lambda run, *_: die_if(run.next == position))

    if point == "edit":
        at_run(seal_ray.training.run.Run, "optimizer_for")
    elif point == "step":
        updates = seal_ray.training.step._updates

        def dying_updates(run: Any, *more: Any) -> Callable[[Any], None]:
            update = updates(run, *more)

            def step(norms: Any) -> None:
                update(norms)
                die_if(run.next == position)

            return step

        seal_ray.training.step._updates = dying_updates
    elif point == "evaluate":
        at_run(seal_ray.training.loop, "evaluate")
    elif point == "moments":
        before(Store, "commit", lambda _, snapshot: die_if(snapshot.position == position))
    elif point == "manifest":
        before(
            seal_ray.runs.checkpoint, "write_durably", lambda path, _: die_if(_is_manifest(path, position))
        )
    elif point == "line":
        before(seal_ray.runs.folder, "append_durably", lambda _, line: die_if(_is_line(line, position)))
    else:
        commit = Store.commit

        def dying_commit(store: Store, snapshot: Snapshot) -> None:
            commit(store, snapshot)
            die_if(snapshot.position == position)

        Store.commit = dying_commit  # type: ignore[method-assign]


def before(owner: Any, name: str, check: Callable[..., None]) -> None:
    """Have `check` called with the arguments of a function before it runs."""
    real = getattr(owner, name)

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return real(*arguments)

    setattr(owner, name, checked)


def die_if(reached: bool) -> None:
    """Kill this process if it got there."""
    if reached:
        die()


def die() -> None:
    """As from outside: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def _is_manifest(path: Path, position: Position) -> bool:
    folder = f"g{position.generation:03d}-e{position.epoch:03d}"
    return path.name == "manifest.json" and path.parent.name == folder


def _is_line(line: bytes, position: Position) -> bool:
    row = json.loads(line)
    return (row["generation"], row["epoch"]) == (position.generation, position.epoch)
