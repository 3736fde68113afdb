"""Checks of other people's code, and the tiny recipes and images that these and our own tests train on."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from seal_ray.analysis import Analysis
from seal_ray.analysis.compute import computed_elsewhere
from seal_ray.analysis.inputs import InputCache, Inputs
from seal_ray.analysis.moments import AnalysedRun, Moment, find_runs
from seal_ray.analysis.tasks import plain, task_of
from seal_ray.augmentations import Augmentation, Mixing
from seal_ray.data.images import Images
from seal_ray.data.prepare import check_labels, prepare, source_identity
from seal_ray.data.prepared import load_dataset
from seal_ray.data.sources import open_source
from seal_ray.errors import ConfigError, SealRayError
from seal_ray.methods import Method
from seal_ray.metrics import Metric
from seal_ray.networks import Parts, build, stage_parameters
from seal_ray.networks.resnet import MIDDLE, STAGES
from seal_ray.phases.losses import RecipeLoss, takes_partners
from seal_ray.phases.schedule import Budget, Phase
from seal_ray.plugins import PluginFile, files_of, using
from seal_ray.recipe import Job, Keep, Placement, Recipe, chosen, dump_job
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.folder import Store, open_store
from seal_ray.runs.lineage import generation_keys
from seal_ray.storage.files import write_durably
from seal_ray.streams import stream
from seal_ray.training.loop import fit
from seal_ray.training.world import World

BUDGETS = (Budget(12, 4), Budget(30, 10), Budget(40, 8), Budget(120, 40), Budget(6, 6))
"""What phases are asked for."""
SPEEDS = ("images_per_second", "seconds_data", "seconds_compute", "seconds_eval", "workers")
"""Fields of a metric row that equal runs need not share."""
TINY: dict[str, Any] = {
    "data": {"path": "unused"},
    "model": {"arch": "resnet18", "width": 4},
    "method": "normal",
    "budget": {"epochs": 12, "generation_length": 4},
    "augment": {"crop_padding": 2},
    "batch_size": 12,
    "shards": 2,
}
"""Fields of a recipe: a ResNet-18 of width 4 on 3 generations of 4 epochs."""
IMPORTED_ONCE = [__name__, "torch._dynamo", "torchvision.models.resnet"]
"""By the process that ranks are forked from: each would take seconds for it."""
RANK_TIMEOUT = 240.0
"""Seconds that ranks get for a tiny run."""


class CheckFailed(SealRayError):  # noqa: N818 - what happened, as `Diverged`
    """Something that breaks a promise; says which and how."""


@dataclass(frozen=True)
class CheckResult:
    """A promise that was checked; problem: how it is broken, empty where it is kept."""

    promise: str
    problem: str = ""


def check_method(method: Method, *, ranks: bool = False) -> None:
    """Check what training relies on. CheckFailed lists every promise that the method breaks.

    Phases fill every generation and are a pure function of it; a run that is resumed at each epoch boundary
    is bit for bit the undisturbed one. ranks: also that one process accumulating two shards is two processes,
    for a method that Ray's workers find: built in, installed, or of a plugin file. Takes some ten seconds.
    """
    _require(f"the method {type(method).__name__}", method_checks(method, ranks=ranks))


def method_checks(method: Method, *, ranks: bool = False) -> Iterator[CheckResult]:
    """The same, each promise when it was checked; nothing is checked after one that is broken."""
    return _results(
        ("phases fill every generation", lambda: _filled(method)),
        ("phases are a pure function of generation and budget", lambda: _pure(method)),
        *_training(lambda: tiny_recipe(method), 16, ranks),
    )


def check_augmentation(augmentation: Augmentation, *, ranks: bool = False) -> None:
    """Check what training relies on. CheckFailed lists every promise that the augmentation breaks.

    What is drawn depends on the generator alone, what is done to images on the draws alone, and a run that is
    resumed at each epoch boundary is bit for bit the undisturbed one. ranks: as of check_method.
    """
    what = f"the augmentation {type(augmentation).__name__}"
    _require(what, augmentation_checks(augmentation, ranks=ranks))


def augmentation_checks(augmentation: Augmentation, *, ranks: bool = False) -> Iterator[CheckResult]:
    """The same, each promise when it was checked; nothing is checked after one that is broken."""
    augment = {"crop_padding": 2, "then": [augmentation]}
    return _results(
        ("draws are a pure function of the generator", lambda: _drawn(augmentation)),
        ("images are a pure function of the draws", lambda: _applied(augmentation)),
        *_training(lambda: tiny_recipe(augment=augment), 16, ranks),
    )


def check_loss(loss: RecipeLoss, *, ranks: bool = False) -> None:
    """Check what training relies on. CheckFailed lists every promise that the loss breaks.

    It is the mean over images, of classes as of shares of classes, and a run on mixed images that is resumed
    at each epoch boundary is bit for bit the undisturbed one. One that takes partners is never given mixed
    images. ranks: as of check_method.
    """
    _require(f"the loss {type(loss).__name__}", loss_checks(loss, ranks=ranks))


def loss_checks(loss: RecipeLoss, *, ranks: bool = False) -> Iterator[CheckResult]:
    """The same, each promise when it was checked; nothing is checked after one that is broken."""
    augment = {"crop_padding": 2, "then": [] if takes_partners(loss) else ["mixup"]}
    return _results(
        ("is a mean over images, of classes and of shares of classes", lambda: _averaged(loss)),
        *_training(lambda: tiny_recipe(loss=loss, augment=augment), 16, ranks),
    )


def check_metric(metric: Metric) -> None:
    """Check what training relies on. CheckFailed lists every promise that the metric breaks.

    It is a finite float, a pure function of logits and labels, which it leaves as they are.
    """
    _require(f"the metric {type(metric).__name__}", metric_checks(metric))


def metric_checks(metric: Metric) -> Iterator[CheckResult]:
    """The same, each promise when it was checked; nothing is checked after one that is broken."""
    return _results(("is a finite float, a pure function of logits and labels", lambda: _measured(metric)))


def check_network(arch: str, *, size: int = 32, ranks: bool = False, **fields: Any) -> None:
    """Check what training relies on, with images of size x size. CheckFailed lists each broken promise.

    Initial weights depend on the seed alone, each parameter is in one stage and gets a gradient, and a run of
    SEAL that is resumed at each epoch boundary is bit for bit the undisturbed one. fields: of the network.
    ranks: as of check_method.
    """
    _require(f"the network {arch}", network_checks(arch, size=size, ranks=ranks, **fields))


def network_checks(arch: str, *, size: int = 32, ranks: bool = False, **fields: Any) -> Iterator[CheckResult]:
    """The same, each promise when it was checked; nothing is checked after one that is broken."""
    method = {"name": "seal", "ascent_rate": 0.1, "forget": "llf"}
    model = {"arch": arch, **fields}
    return _results(
        ("initial weights are a pure function of the seed", lambda: _weights_drawn(arch, fields)),
        ("each parameter lies in one stage and is trained", lambda: _trained(arch, fields, size)),
        *_training(lambda: tiny_recipe(method, model=model), size, ranks),
    )


Promise = tuple[str, Callable[[], str]]
"""A promise, and what says how it is broken: nothing where it is kept."""


def _training(recipe: Callable[[], Recipe], size: int, ranks: bool) -> list[Promise]:
    resumed = "a run resumed at each epoch boundary is bit for bit the undisturbed one"
    spread = "two shards in one process are two processes"
    on_two: list[Promise] = [(spread, lambda: _spread(recipe(), size))]
    return [(resumed, lambda: _resumed(recipe(), size)), *(on_two if ranks else [])]


def check_source(name: str, **options: Any) -> None:
    """Check what `prepare` relies on, of a source as `open_source(name, **options)` opens it.

    CheckFailed lists the promise that it breaks. Opens the source three times, and reads each image twice.
    """
    _require(f"the source {name}", source_checks(name, **options))


def source_checks(name: str, **options: Any) -> Iterator[CheckResult]:
    """The same, each promise when it was checked; nothing is checked after one that is broken."""
    identities: list[str] = []

    def labelled() -> str:
        source = open_source(name, **options)
        check_labels(source)
        trained = {sample.label for sample in source.train}
        lacking = [one.id for label, one in enumerate(source.classes) if label not in trained]
        return f"the class {lacking[0]} has no training images" if lacking else ""

    def readable() -> str:
        identities.append(source_identity(open_source(name, **options)))
        return ""

    def repeatable() -> str:
        readable()
        return "" if len(set(identities)) == 1 else "they differ; sort what is listed, and draw from a stream"

    return _results(
        ("labels are places in its classes, each of which is trained on", labelled),
        ("every image can be read, as uint8 RGB of one size", readable),
        ("opened twice, images and labels are the same in the same order", repeatable),
    )


def _require(what: str, results: Iterator[CheckResult]) -> None:
    broken = [f"  {result.promise}: {result.problem}" for result in results if result.problem]
    if broken:
        raise CheckFailed(f"{what} breaks its promises:\n" + "\n".join(broken))


def _results(*promises: Promise) -> Iterator[CheckResult]:
    for promise, check in promises:
        try:
            problem = check()
        except SealRayError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        yield CheckResult(promise, problem)
        if problem:
            return


def check_analysis(kind: type[Analysis]) -> None:
    """Check an analysis on the moments of a tiny run. CheckFailed for the first promise that it breaks.

    Its numbers are JSON and a pure function of weights, images and settings, its scalars are numbers. Takes
    some seconds.
    """
    for result in analysis_checks(kind):
        if result.problem:
            raise CheckFailed(f"the analysis {kind.__name__}: {result.promise}: {result.problem}")


def analysis_checks(kind: type[Analysis]) -> Iterator[CheckResult]:
    """The same, for each moment when it was checked; nothing is checked after one that breaks a promise."""
    with tempfile.TemporaryDirectory() as folder:
        run = _tiny_run(Path(folder))

        def repeatable(moment: Moment) -> str:
            found = [_computed(kind, moment, run) for _ in range(2)]
            return "" if found[0] == found[1] else "computed twice, the results differ"

        promise = "the result is JSON, scalars are numbers, and again it is the same"
        yield from _results(
            *((f"{one.label}: {promise}", functools.partial(repeatable, one)) for one in run.moments())
        )


def _computed(kind: type[Analysis], moment: Moment, run: AnalysedRun) -> tuple[object, ...]:
    """The key and all of the result of an analysis, with its default settings."""
    settings = kind.Settings()
    task = task_of(kind, moment, run, run.dataset(), settings)
    cache = InputCache(torch.device("cpu"))
    weights = cache.in_order(moment.run, moment.weights())
    inputs = Inputs(moment, weights, task.epochs, task.others, cache)
    result, scalars = computed_elsewhere(kind, inputs, settings)
    arrays = {name: array.tobytes() for name, array in result.arrays.items()}
    return task.key, plain(result.numbers), scalars, arrays


def _tiny_run(folder: Path) -> AnalysedRun:
    """A tiny run on a few digits, trained."""
    prepare(open_source("digits", source=None), folder / "digits", classes=3, per_class=12)
    images = Images.from_dataset(load_dataset(folder / "digits"), loader="torch")
    recipe = tiny_recipe("seal", data={"path": str(folder / "digits")})
    store = open_store(folder / "runs", recipe, images)
    placement = Placement(keep=Keep(moments=("init", "ascended", "relearned")))
    list(fit(recipe, images, store=store, placement=placement))
    write_durably(store.folder / "job.yaml", dump_job(Job(name="tiny", recipe=recipe)).encode())
    return find_runs(store.folder).runs[0]


def tiny_recipe(method: Method | dict[str, Any] | str = "normal", **changes: Any) -> Recipe:
    """The recipe of `TINY` with another method; `changes` are top-level fields."""
    return Recipe.model_validate({**TINY, "method": method, **changes})


def tiny_images(train: int = 30, val: int = 17, size: int = 16, classes: int = 3) -> Images:
    """Coloured noise around a colour of its class: learnable, and the same in every process."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % classes
        colours = np.array([[160, 90, 90], [90, 160, 90], [90, 90, 160], [130, 130, 60]])[labels]
        noise = rng.integers(-60, 60, (count, size, size, 3))
        return (colours[:, None, None, :] + noise).astype(np.uint8), labels.astype(np.int64)

    return Images.from_arrays(
        split(train), split(val), identity=f"tiny-{train}-{val}-{size}", classes=classes
    )


def _planned(method: Method) -> Iterator[tuple[str, Budget, tuple[Phase, ...]]]:
    """The phases of each generation that can be planned, with its place in words and its budget."""
    for budget in BUDGETS:
        for generation in range(budget.generations):
            with contextlib.suppress(ConfigError):  # a share that leaves nothing of so short a generation
                phases = method.phases(generation, budget)
                yield f"generation {generation} of {budget.length} epochs", budget, phases


def _filled(method: Method) -> str:
    parts, planned = Parts(STAGES, method.split_at or MIDDLE), False
    for where, budget, phases in _planned(method):
        planned = True
        if not isinstance(phases, tuple) or not all(isinstance(phase, Phase) for phase in phases):
            return f"{where}: is no tuple of Phase but {phases!r}"
        epochs = [phase.epochs for phase in phases]
        if sum(epochs) != budget.length or not all(isinstance(n, int) and n > 0 for n in epochs):
            return f"{where}: the phases have {epochs} epochs"
        for part in (group.part for phase in phases for group in phase.groups):
            parts.stages_of(part)
    return "" if planned else "phases() raises a ConfigError for every budget that was tried"


def _pure(method: Method) -> str:
    before = repr(method)
    asked = zip(_planned(method), _planned(method), _planned(replace(method)), strict=True)
    for once, again, other in asked:
        if not once == again == other:
            return (
                f"{once[0]}: asked twice, the phases differ; edits, losses and steps must be frozen "
                "dataclasses, and nothing may be drawn or kept"
            )
    hash(method)
    if repr(method) != before:
        return "asking for phases changes the method's fields"
    recipe = tiny_recipe(method)
    keys = [generation_keys(recipe, "images") for _ in range(2)]
    return "" if keys[0] == keys[1] else "asked twice, the keys of its generations differ"


@contextlib.contextmanager
def _disturbed(seed: int) -> Iterator[None]:
    """Global generators in a state that nothing may depend on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        yield


def _drawn(augmentation: Augmentation) -> str:
    found = []
    for seed in (0, 1):
        with _disturbed(seed):
            found.append(augmentation.draw(6, (16, 16), stream(0, "check")))
    one, other = found
    if not isinstance(one, tuple) or not all(isinstance(t, Tensor) and t.device.type == "cpu" for t in one):
        return f"draw gives {one!r} and no tuple of tensors on the CPU"
    same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return (
        "" if same else "drawn twice from one generator, they differ; draw from the generator that is given"
    )


def _applied(augmentation: Augmentation) -> str:
    images = torch.rand(6, 3, 16, 16, generator=stream(0, "images"))
    before, found = images.clone(), []
    drawn = augmentation.draw(6, (16, 16), stream(0, "check"))
    for seed in (0, 1):
        with _disturbed(seed):
            found.append(augmentation.apply(images, drawn))
        if not torch.equal(images, before):
            return "apply changes the images that it is given; return new ones"
    one, other = found
    if (one.shape, one.dtype) != (images.shape, images.dtype):
        return f"{tuple(images.shape)} {images.dtype} become {tuple(one.shape)} {one.dtype}"
    if not torch.equal(one, other):
        return "applied twice, the images differ; whatever is random belongs into draw"
    if isinstance(augmentation, Mixing):
        targets = augmentation.mix(torch.eye(6), drawn)
        if targets.shape != (6, 6) or not torch.allclose(targets.sum(dim=1), torch.ones(6)):
            return "mix gives no rows of shares that add up to 1"
    return ""


def _averaged(loss: RecipeLoss) -> str:
    logits = torch.randn(4, 3, generator=stream(0, "logits")).requires_grad_()
    labels = torch.tensor([2, 0, 1, 1])
    pairs = takes_partners(loss)

    def of(logits: Tensor, labels: Tensor) -> Tensor:
        beside: Any = {"partner_logits": logits.detach().flip(1)} if pairs else {}
        return loss(logits, labels, **beside)

    value = of(logits, labels)
    if value.shape != () or not value.isfinite():
        return f"is {value!r} and no finite number"
    if not torch.autograd.grad(value, logits)[0].any():
        return "has no gradient"
    if not torch.isclose(value, of(torch.cat([logits, logits]), torch.cat([labels, labels])), rtol=1e-4):
        return "of each image twice is another than of each once"
    shared = value if pairs else loss(logits, torch.eye(3)[labels])
    if not torch.isclose(value, shared, rtol=1e-4):
        return f"of classes is {value:g}, of the same as shares (N, K) of classes {shared:g}"
    return ""


def _measured(metric: Metric) -> str:
    logits, labels = torch.randn(60, 3, generator=stream(0, "logits")), torch.arange(60) % 3
    given, found = (logits.clone(), labels.clone()), []
    for seed in (0, 1):
        with _disturbed(seed):
            found.append(metric(*given))
    one, other = found
    if not isinstance(one, float) or not math.isfinite(one):
        return f"is {one!r} and no finite float"
    if not (torch.equal(given[0], logits) and torch.equal(given[1], labels)):
        return "changes the logits or labels that it is given"
    return "" if one == other else f"of the same logits is {one:g}, then {other:g}; nothing may be drawn"


def _weights_drawn(arch: str, fields: dict[str, Any]) -> str:
    networks = []
    for disturbed, seed in ((0, 1), (1, 1), (1, 2)):
        with _disturbed(disturbed):
            networks.append(build(arch, classes=3, generator=stream(seed, "init"), **fields))
    one, again, other = ({**dict(n.named_parameters()), **dict(n.named_buffers())} for n in networks)
    for name, tensor in one.items():
        if not torch.equal(tensor, again[name]):
            return f"{name} differs between two draws from one seed; draw from torch's own generator"
    same = all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    return "two seeds draw the same weights" if same else ""


def _trained(arch: str, fields: dict[str, Any], size: int) -> str:
    network = build(arch, classes=3, generator=stream(0, "init"), **fields)
    names = sorted(name for name, _ in network.named_parameters())
    held = sorted(name for stage in stage_parameters(network).values() for name in stage)
    if names != held:
        return f"{sorted({*names} ^ {*held})[:3]} lie in no stage or in several"
    logits = network(torch.randn(4, 3, size, size, generator=stream(0, "images")))
    if logits.shape != (4, 3):
        return f"4 images and 3 classes give {tuple(logits.shape)} and not logits (4, 3)"
    logits.square().sum().backward()
    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    return f"{still[:3]} get no gradient; leave out what the logits do not depend on" if still else ""


def _resumed(recipe: Recipe, size: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = _train(recipe, Path(folder, "undisturbed"), size)
        for _ in range(recipe.budget.epochs):
            interrupted = _train(recipe, Path(folder, "interrupted"), size, epochs=1)
        return _difference(undisturbed, interrupted)


def _spread(recipe: Recipe, size: int) -> str:
    recipe = recipe.model_copy(update={"budget": Budget(8, 4)})
    with tempfile.TemporaryDirectory() as folder:
        data = recipe.model_dump(mode="json")
        files = {file for *_, found in chosen(recipe) for file in files_of(found)}
        on_ranks(2, _train_rank, data, files, Path(folder, "two"), size)
        one = _train(recipe, Path(folder, "one"), size)
        return _difference(one, _last(open_store(Path(folder, "two"), recipe, tiny_images(size=size))))


def _train(
    recipe: Recipe, folder: Path, size: int, epochs: int | None = None, world: World | None = None
) -> Snapshot:
    """Train from where a run in `folder` stands, for at most so many epochs; returns where it stands then."""
    images = tiny_images(size=size)
    store = replace(open_store(folder, recipe, images), checkpoints=recipe.budget.epochs)
    placement = Placement(keep=Keep(moments=("init", "forgotten", "ascended", "relearned")))
    for done, _ in enumerate(fit(recipe, images, store=store, world=world, placement=placement), 1):
        if done == epochs:
            break
    return _last(store)


def _train_rank(data: dict[str, Any], files: Collection[PluginFile], folder: Path, size: int) -> None:
    """Train on a rank, which gets the recipe and its code as plain data."""
    with using(files):
        recipe = Recipe.model_validate(data)
    _train(recipe, folder, size, world=World.current())


def _last(store: Store) -> Snapshot:
    snapshot = store.latest()
    if snapshot is None:
        raise CheckFailed("the run has committed no epoch")
    return snapshot


def _difference(one: Snapshot, other: Snapshot) -> str:
    """The first thing in which two states, with the metrics that led to them, differ."""
    for mine, theirs in zip(one.rows, other.rows, strict=True):
        for key in mine.keys() - set(SPEEDS):
            if str(mine[key]) != str(theirs[key]):
                where = f"generation {mine['generation']}, epoch {mine['epoch']}"
                return f"{key} of {where} is {theirs[key]} and not {mine[key]}"
    states = {"weights": (one.weights, other.weights), "optimizer state": (one.optimizer, other.optimizer)}
    if one.carried.keys() != other.carried.keys():
        return f"what is carried is called {sorted(other.carried)} and not {sorted(one.carried)}"
    states |= {f"carried {name}": (one.carried[name], other.carried[name]) for name in one.carried}
    for what, (mine, theirs) in states.items():
        if mine.keys() != theirs.keys():
            return f"the {what} has other tensors: {sorted(mine.keys() ^ theirs.keys())[:3]}"
        for name, tensor in mine.items():
            if not torch.equal(tensor, theirs[name]):
                return f"the {what} differs in {name}"
    return ""


def on_ranks(workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` on each of `workers` gloo ranks, processes of one thread; the results in rank order.

    What is given and returned is pickled. They have oneDNN where the caller has it (torch.backends.mkldnn),
    since it decides last bits. CheckFailed, tracebacks in its note, where one fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    pipes, onednn = [context.Pipe(duplex=False) for _ in range(workers)], torch.backends.mkldnn.enabled
    with tempfile.TemporaryDirectory() as meeting:
        ranks = [
            context.Process(target=_rank, args=(rank, workers, meeting, writer, onednn, function, args))
            for rank, (_, writer) in enumerate(pipes)
        ]
        for process, (_, writer) in zip(ranks, pipes, strict=True):
            process.start()
            writer.close()  # so that reading ends where the process does
        answers = []
        try:
            for reader, _ in pipes:
                if not reader.poll(RANK_TIMEOUT):
                    raise CheckFailed(f"{workers} processes do not end")
                answers.append(reader.recv())
        except EOFError:
            raise CheckFailed(f"a process of {workers} has died") from None
        finally:
            for process in ranks:
                process.join(1.0)
                process.kill()
    if any(trace for *_, trace in answers):  # that of one rank may follow from another's
        failed = CheckFailed("; ".join(problem for _, problem, _ in answers if problem))
        failed.add_note("\n".join(trace for *_, trace in answers))
        raise failed
    return [value for value, _, _ in answers]


def _rank(
    rank: int,
    workers: int,
    meeting: str,
    writer: Any,
    onednn: bool,
    function: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = onednn  # type: ignore[assignment]
    value, problem, trace = None, "", ""
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}/rendezvous", rank=rank, world_size=workers
        )
        value = function(*args)
        dist.destroy_process_group()
    except BaseException as error:
        problem = f"rank {rank} of {workers}: {type(error).__name__}: {error}"
        trace = traceback.format_exc()
    writer.send((value, problem, trace))
