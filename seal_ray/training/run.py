"""A run in progress: what `fit` holds between epochs, how it is resumed and how it is committed."""

from __future__ import annotations

import contextlib
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from seal_ray.augmentations import Mixing
from seal_ray.data.augment import Normaliser
from seal_ray.data.images import (
    Batch,
    Images,
    Shard,
    TrainingImages,
    augmentation_draws,
    dropout_masks,
    epoch_order,
    with_partners,
)
from seal_ray.data.loaders import ResidentLoader, Selected
from seal_ray.data.subset import Indices, noisy_labels, steps_per_epoch, training_split
from seal_ray.device import check_precision, dtype_of
from seal_ray.errors import ConfigError, SealRayWarning
from seal_ray.networks import FeatureMask, Parts
from seal_ray.networks.resnet_module import DRAWING_NOTHING
from seal_ray.phases.averaging import Averaging
from seal_ray.phases.edits import EditContext
from seal_ray.phases.losses import takes_partners
from seal_ray.phases.optimizers import Sgd
from seal_ray.phases.schedule import Phase, Position, Row, first_epochs, first_missed_rise
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.lineage import run_id
from seal_ray.runs.weights import begin_with
from seal_ray.streams import stream
from seal_ray.training.averaging import AVERAGED, restore_average
from seal_ray.training.batch_losses import batch_losses
from seal_ray.training.memory import resident_bytes
from seal_ray.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state
from seal_ray.training.world import World
from seal_ray.training.writer import Writer, copied

if TYPE_CHECKING:
    from seal_ray.data.loaders import Loader
    from seal_ray.recipe import Placement, Recipe
    from seal_ray.runs.folder import Store

EVALUATION_BATCH = 256
"""Images in an evaluation batch: the same for any number of workers, since it may decide last bits."""


@dataclass(frozen=True)
class Evaluated:
    """Images to evaluate on, and their labels (N,) on the device."""

    loader: Loader
    truth: Tensor

    @classmethod
    def of(cls, loader: Loader, labels: Indices, device: torch.device) -> Evaluated:
        """Those of a loader."""
        return cls(loader, torch.from_numpy(labels).to(device))


class Run:
    """The state of a run on one worker, from its last checkpoint or from its initial weights."""

    def __init__(
        self, recipe: Recipe, images: Images, store: Store | None, world: World, placement: Placement
    ) -> None:
        self.recipe, self.images, self.store = recipe, images, store
        self.world, self.placement = world, placement
        self.id = run_id(recipe, images.identity)
        self.accumulation = _accumulation(recipe.shards, world.workers)
        check_precision(recipe.precision, world.device)
        self.memory_format = torch.channels_last if placement.channels_last else torch.contiguous_format

        shard = recipe.batch_size // recipe.shards
        self.pairs = takes_partners(recipe.loss)
        loaded = 2 * self.accumulation if self.pairs else self.accumulation
        train, val = world.together(lambda: self._loaders(shard * loaded))
        self.indices, held = training_split(train.labels, recipe.data.per_class, recipe.data.holdout)
        self.labels = noisy_labels(train.labels, images.classes, recipe.data.label_noise)
        self.validation = Evaluated.of(val, val.labels, world.device)
        self.test: Evaluated | None = None
        """The val images, where it is evaluated on images that are held out of the training images."""
        if recipe.data.holdout:
            again = world.together(lambda: self._again(train))
            # Their labels are as wrong as those of the others: nobody has better ones to choose by.
            labels, self.test = self.labels[held], self.validation
            self.validation = Evaluated.of(Selected(again, held), labels, world.device)
        mixed = any(isinstance(one, Mixing) for one in recipe.augment.then)
        self.mislabelled = self.labels != train.labels if recipe.data.label_noise and not mixed else None
        self.normaliser = Normaliser.of(
            images.mean,
            images.std,
            width=images.size[1],
            memory_format=self.memory_format,
            dtype=self.dtype,
            device=world.device,
        )
        self.train = TrainingImages.of(
            images,
            train,
            self.labels,
            recipe.augment,
            self.normaliser,
            shards=loaded,
            device=world.device,
        )
        steps_per_epoch(len(self.indices), recipe.batch_size)  # at least one

        self.network = self._on_device(self._build(stream(recipe.seed, "init")))
        self.mask = FeatureMask(self.network) if recipe.model.dropout else None
        compiled = torch.compile(self.network) if placement.compile else self.network
        self.forward = cast("nn.Module", compiled)
        self.parts = Parts.of(self.network, recipe.method.split_at)
        self.carried: dict[str, dict[str, Tensor]] = {}
        self.optimizer: Mapping[str, Tensor] = {}
        self.rows: list[Row] = []
        self.right: Tensor | None = None
        """Bool (N,): which images the last evaluation had right; None: it was skipped."""
        self.averaged: dict[str, Tensor] = {}
        """The averaged network, as it was last evaluated."""
        self.next = Position(0, 0)
        self.step = 0
        """The optimizer step at hand, 0-based in its epoch."""
        self.stopped = False
        self.writer = Writer()
        self._examples: list[tuple[Position, npt.NDArray[np.bool_]]] = []
        """What the evaluations since the last commit had right."""
        self._committed, self._begun = 0, time.monotonic()
        """How many epochs are committed or being written, and when that began."""
        self._resume()

    def phases(self) -> Iterator[tuple[int, Phase]]:
        """The phases still to be trained, the one that holds the next epoch first."""
        for generation in range(self.next.generation, self.recipe.budget.generations):
            phases = self.recipe.method.phases(generation, self.recipe.budget)
            for phase, first in zip(phases, first_epochs(phases), strict=True):
                if Position(generation, first + phase.epochs) > self.next:
                    self.first = first
                    yield generation, phase

    @property
    def enters_phase(self) -> bool:
        """Whether the next epoch is the first one of the phase at hand."""
        return self.next.epoch == self.first

    def epochs(self, phase: Phase) -> Iterator[Position]:
        """The epochs of the phase at hand that are still to be trained, in order."""
        for epoch in range(self.next.epoch, self.first + phase.epochs):
            yield Position(self.next.generation, epoch)

    def edit(self, phase: Phase, generation: int) -> None:
        """Carry out the phase's edit, if it has one; every worker makes the same draws."""
        if phase.edit is None:
            return
        seed = self.recipe.seed
        context = EditContext(
            parts=self.parts,
            rng=lambda purpose: stream(seed, purpose, generation),
            fixed_rng=lambda purpose: stream(seed, purpose),
            fresh=lambda generator: self._build(generator).state_dict(),
            carried=self.carried,
            losses=lambda batches: batch_losses(self, batches),
        )
        known = {*self.carried, *self.recipe.method.carry}
        phase.edit(self.network, context)
        if unnamed := sorted(self.carried.keys() - known):
            raise ConfigError(
                f"method {self.recipe.method.name}: an edit sets carried[{unnamed[0]!r}]; name it in the "
                f'class\'s own `carry: ClassVar[tuple[str, ...]] = ("{unnamed[0]}",)`'
            )
        # What looks at data is not the same on every worker where a GPU's kernels may add in any order.
        self.world.from_leader(self.network.state_dict().values())
        if self.first == 0:
            self.world.lead(lambda: self._keep("forgotten", generation))

    def optimizer_for(self, phase: Phase) -> torch.optim.Optimizer:
        """The phase's optimizer: its state fresh, or as it was after the last epoch."""
        settings = self.recipe.optimizer
        fused = self.world.device.type == "cuda" and isinstance(settings, Sgd) and self.dtype == torch.float32
        optimizer = build_optimizer(self.network, self.parts, phase, settings, fused=fused)
        if not (phase.fresh and self.enters_phase):
            load_optimizer_state(optimizer, self.network, self.optimizer)
        return optimizer

    def epoch_order(self, position: Position) -> Indices:
        """The training images of an epoch, of all workers: (steps, shards, shard size) indices."""
        batch_size, shards = self.recipe.batch_size, self.recipe.shards
        at = asdict(position)
        return epoch_order(self.indices, batch_size=batch_size, shards=shards, seed=self.recipe.seed, **at)

    def batches(self, position: Position, of_all: int | None = None) -> Iterator[Batch]:
        """This worker's batches of an epoch, before they are augmented.

        of_all: the shards of all workers instead, of so many batches at most, in order and as many at a time.
        """
        recipe, at = self.recipe, asdict(position)
        order, held = self.epoch_order(position)[:of_all], self.train.shards
        if self.pairs:
            order = with_partners(order, self.indices, self.labels, seed=recipe.seed, **at)
        mine = slice(self.world.rank * held, (self.world.rank + 1) * held) if of_all is None else slice(None)
        masks = drawn = None
        if self.mask is not None:
            whole = dropout_masks(recipe.model.dropout, order, self.mask.features, seed=recipe.seed, **at)
            masks = (part for mask in whole for part in mask[mine].split(held))
        if then := recipe.augment.then:
            steps = augmentation_draws(then, order, mine, self.images.size, seed=recipe.seed, **at)
            drawn = (step[i : i + held] for step in steps for i in range(0, len(step), held))
        generator = stream(recipe.seed, "augment", position.generation, position.epoch)
        own = order[:, mine].reshape(-1, held, order.shape[2])
        return self.train.epoch(own, generator, masks, drawn)

    def training_epoch(self, position: Position) -> Iterator[list[Shard]]:
        """The same, augmented."""
        return map(self.train.augmented, self.batches(position))

    @contextlib.contextmanager
    def drawing(self, shard: int, keep: Tensor | None) -> Iterator[None]:
        """Around a training pass over a shard (0-based in its batch): what in it is random depends on the
        shard's position alone. keep: its mask of dropout.

        A network may draw from torch's generators (drop path, its own dropout), which are seeded here but for
        ResNets, which do not.
        """
        if self.mask is not None:
            self.mask.keep = keep
        if isinstance(self.network, DRAWING_NOTHING):
            yield
        else:
            at = (self.next.generation, self.next.epoch, self.step, shard)
            device = self.world.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(stream(self.recipe.seed, "forward", *at).initial_seed())
                yield
        if self.mask is not None:
            self.mask.keep = None

    def teacher(self) -> nn.Module:
        """The carried network, in eval mode."""
        network = self._on_device(self._build(torch.Generator()))
        network.load_state_dict(self.carried["teacher"])
        return network.eval().requires_grad_(False)

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept."""
        return self.recipe.averaging != Averaging()

    @property
    def dtype(self) -> torch.dtype:
        """What weights, images and losses are kept in."""
        return dtype_of(self.recipe.precision)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The recipe's precision for a forward pass."""
        if self.recipe.precision == "bf16":
            return torch.autocast(self.world.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def evaluates(self, phase: Phase, position: Position) -> bool:
        """Whether this epoch is followed by an evaluation: every so many, and at the end of a phase."""
        done = position.epoch + 1
        return done % self.placement.eval_every == 0 or done == self.first + phase.epochs

    def hash_weights(self) -> None:
        """Copy the weights as the epoch at hand leaves them; `weights_sha256` is of those."""
        self._weights, self._digest = self.writer.hash(self.network.state_dict())

    def weights_sha256(self) -> str:
        """Waits for the thread that hashes."""
        return self._digest.result()

    def commit(self, row: Row, optimizer: torch.optim.Optimizer, phase: Phase, position: Position) -> str:
        """Make the epoch at `position` part of the run; returns how the run now stands.

        It is being written when this returns, or was at the end of a generation or ascent and at a stop. What
        goes wrong with it is raised by the next commit, or when the run is left.
        """
        self.rows.append(row)
        self.optimizer = optimizer_state(optimizer, self.network)
        self.next = position.next(self.recipe.budget)
        ends_phase = position.epoch + 1 == self.first + phase.epochs
        moments = []
        if phase.ascends and ends_phase:
            moments.append("ascended")
        if self.next.epoch == 0:
            # `relearned` comes last: it tells other runs that they may go on from here.
            moments += [AVERAGED, "relearned"] if self.averages else ["relearned"]
            self.carried.pop(AVERAGED, None)  # the next generation starts another
        stop = self.world.lead(lambda: self._write(moments, position.generation))
        finished = self.next.generation == self.recipe.budget.generations
        self.stopped = stop and not finished
        status = "finished" if finished else "stopped" if stop else "running"
        if finished:
            self.set_status(status)
        elif self.stopped:
            self.world.lead(self._note_stop)
        return status

    def _note_stop(self) -> None:
        """The leader's part of a stop."""
        if self.store is not None:
            self.store.set_status("stopped", reason=f"{self.store.stop_reason()}; the same command goes on")

    def _write(self, moments: list[str], generation: int) -> bool:
        """The leader's part of a commit; returns whether a stop was asked for."""
        if self.store is None:
            return False
        if self.placement.track_examples and self.right is not None:
            self._examples.append((self._position(), self.right.cpu().numpy()))
        self.right = None
        if "ascended" in moments:
            self._warn_of_missed_rise(self.store)
        self.writer.wait()
        stop = self.store.stop_requested()
        if stop or moments or self._is_due():
            self._commit(self.store, moments, generation)
            # Elastic workers may be started anew after each epoch.
            if stop or moments or not isinstance(self.placement.workers, int):
                self.writer.wait()
        return stop

    def _warn_of_missed_rise(self, store: Store) -> None:
        """Once a run: at the end of the first ascent that was to raise the loss and did not."""
        budget = self.recipe.budget
        phases = (self.recipe.method.phases(generation, budget) for generation in range(budget.generations))
        missed = first_missed_rise(phases, self.rows)
        if missed is not None and missed.epochs == len(self.rows):
            store.warn(
                f"the ascent of generation {missed.generation} was to raise the training loss by "
                f"{missed.target:g} nats; at most it was {missed.reached:+.2f}: raise start or cap of its "
                "rate, or let it have more epochs"
            )

    def _is_due(self) -> bool:
        """Whether the last epoch is to be committed, wherever it is."""
        every = self.placement.checkpoint_every
        if every.seconds is not None:
            return time.monotonic() - self._begun >= every.seconds
        assert every.epochs is not None  # one of the two is given
        return bool((self.rows[-1]["epoch"] + 1) % every.epochs == 0)

    def _commit(self, store: Store, moments: list[str], generation: int) -> None:
        """Let the last epoch be written.

        Moments go first: an epoch that is committed has its moments, whenever the process dies.
        """
        weights, optimizer = self._weights, copied(self.optimizer)
        carried = {name: copied(state) for name, state in self.carried.items()}
        averaged = copied(self.averaged if AVERAGED in moments else {})
        epochs, digest = len(self.rows) - self._committed, self.weights_sha256()
        snapshot = replace(self._snapshot({}), epochs=epochs, weights_sha256=digest)
        examples, self._examples = self._examples, []
        self._committed, self._begun = len(self.rows), time.monotonic()

        def write() -> None:
            state = {name: fetch() for name, fetch in carried.items()}
            whole = replace(snapshot, weights=weights(), optimizer=optimizer(), carried=state)
            moment = replace(whole, carried={key: held for key, held in state.items() if key != AVERAGED})
            mean = replace(moment, weights=averaged(), weights_sha256=None)
            for name in moments:
                if name in self.placement.keep.moments:
                    store.keep_moment(name, generation, mean if name == AVERAGED else moment)
            for position, right in examples:
                store.keep_examples(position, right)
            store.commit(whole)

        self.writer.write(write)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Around the epochs of a run: whoever leaves them before the end leaves nothing uncommitted."""
        try:
            yield
        except GeneratorExit:
            if self.store is not None and self.world.leads:
                if len(self.rows) > self._committed:
                    self._commit(self.store, [], self.next.generation)
                self.writer.wait()
            raise
        finally:
            self.writer.close()

    def set_status(self, status: str, **details: Any) -> None:
        """Record how the run stands, once what it has committed is written."""
        store = self.store

        def record() -> None:
            self.writer.wait()
            if store is not None:
                store.set_status(status, **details)

        self.world.lead(record)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the last bits: bit-identical is claimed between equal fingerprints only."""
        placement = self.placement
        cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        cuda = self.world.device.type == "cuda"
        return {
            "workers": self.world.workers,
            "device": torch.cuda.get_device_name(self.world.device) if cuda else cpu,
            "torch": torch.__version__,
            "threads": placement.cpu_threads,
            "loader": self.images.loader,
            "deterministic": placement.deterministic,
            "compile": placement.compile,
            "channels_last": placement.channels_last,
        }

    def _loaders(self, batch_size: int) -> tuple[Loader, Loader]:
        """Of the training images and of the validation images."""
        images, device = self.images, self.world.device
        train, val = images.open("train", batch_size), images.open("val", EVALUATION_BATCH)
        if self.placement.resident == "off" or device.type != "cuda":
            return train, val
        memory = torch.cuda.get_device_properties(device).total_memory * self.placement.gpus_per_worker
        if not resident_bytes(len(train.labels) + len(val.labels), images.size, memory):
            return train, val
        return (
            ResidentLoader.filled(train, images.size, batch_size, device),
            ResidentLoader.filled(val, images.size, EVALUATION_BATCH, device),
        )

    def _again(self, train: Loader) -> Loader:
        """Of the training images, in batches of an evaluation."""
        if isinstance(train, ResidentLoader):
            return replace(train, batch_size=EVALUATION_BATCH)
        return self.images.open("train", EVALUATION_BATCH)

    def _build(self, generator: torch.Generator) -> nn.Module:
        return self.recipe.model.build(self.images.classes, generator)

    def _on_device(self, network: nn.Module) -> nn.Module:
        return network.to(self.world.device, self.dtype).to(memory_format=self.memory_format)

    def _resume(self) -> None:
        """Take up the newest checkpoint, if there is one; the leader says which. Else begin."""
        snapshot = self._newest_snapshot()
        if snapshot is not None:
            assert snapshot.position is not None
            self._compare(snapshot.fingerprint)
            self.network.load_state_dict(snapshot.weights)
            self.carried = {
                name: {key: tensor.to(self.world.device) for key, tensor in state.items()}
                for name, state in snapshot.carried.items()
            }
            restore_average(self)
            self.optimizer = snapshot.optimizer
            self.rows = list(snapshot.rows)
            self._committed = len(self.rows)
            self.next = snapshot.position.next(self.recipe.budget)
        elif self.recipe.model.init_from is not None:
            self.world.together(lambda: begin_with(self.network, self.recipe.model))
        self.world.lead(lambda: self._open(snapshot))
        finished = self.next.generation == self.recipe.budget.generations
        self.set_status("finished" if finished else "running")

    def _compare(self, before: Mapping[str, Any]) -> None:
        """Warn where the last bits may differ from here on; the number of workers does not matter."""
        now = self.fingerprint()
        changed = [
            f"{key} {before.get(key)} -> {value}"
            for key, value in now.items()
            if key != "workers" and before.get(key) != value
        ]
        if changed and self.world.leads:
            text = (
                f"going on under another fingerprint ({', '.join(changed)}): last bits may differ from here"
            )
            warnings.warn(text, SealRayWarning, stacklevel=2)

    def _open(self, snapshot: Snapshot | None) -> None:
        """The leader's part of a start."""
        if self.store is None:
            return
        self.store.open(snapshot)
        if snapshot is None:
            self._keep("init", 0)

    def _newest_snapshot(self) -> Snapshot | None:
        """The leader's choice, read by every worker from the shared storage."""
        if self.store is None:
            return None
        store = self.store
        found: list[Snapshot | None] = []

        def choose() -> Position | None:
            found.append(store.latest())
            return found[0].position if found[0] else None

        position = self.world.lead(choose)
        if position is None:
            return None
        return self.world.together(lambda: found[0] if found else store.at(position))

    def _position(self) -> Position:
        """Of the last epoch."""
        return Position(self.rows[-1]["generation"], self.rows[-1]["epoch"])

    def _snapshot(self, weights: Mapping[str, Tensor]) -> Snapshot:
        return Snapshot(
            run_id=self.id,
            position=self._position() if self.rows else None,
            weights=dict(weights),
            carried=self.carried,
            rows=tuple(self.rows),
            fingerprint=self.fingerprint(),
        )

    def _keep(self, moment: str, generation: int) -> None:
        if self.store and moment in self.placement.keep.moments:
            self.store.keep_moment(moment, generation, self._snapshot(self.network.state_dict()))


def _accumulation(shards: int, workers: int) -> int:
    """Shards that each worker computes one after the other."""
    if shards % workers:
        raise ConfigError(
            f"placement.workers: {workers} workers cannot share {shards} shards evenly; choose a divisor "
            f"of recipe.shards, or change recipe.shards (which changes what is computed)"
        )
    return shards // workers
