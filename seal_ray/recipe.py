"""Recipes, which say what a run computes, and placements, which say where: models and YAML in and out."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    Json,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from seal_ray.augmentations import AUGMENTATIONS, Augmentation, Mixing
from seal_ray.config.document import dump
from seal_ray.config.messages import AS_JSON, CONFIG_ERROR, PATH, STRICT, Choice, name_in, parse, refuse
from seal_ray.config.plugin_files import FOLDER, by_name, from_names, given_files
from seal_ray.config.run_file import read_run_file
from seal_ray.errors import ConfigError
from seal_ray.methods import METHODS, Method
from seal_ray.metrics import METRICS, Metric
from seal_ray.networks import (
    COMMON,
    NETWORKS,
    Factory,
    Parts,
    build,
    factory_of,
    network_fields,
    outline,
    resnet,
    stages,
)
from seal_ray.networks.timm import PREFIX as TIMM
from seal_ray.phases.averaging import AVERAGINGS, Averaging
from seal_ray.phases.losses import LOSSES, RecipeLoss, SmoothedCrossEntropy, takes_partners
from seal_ray.phases.optimizers import OPTIMIZERS, REFUSED, Optimizer, Sgd, torch_optimizer
from seal_ray.phases.schedule import Budget, Phase, Position, learning_rate, moments_of, owner
from seal_ray.plugins import Registry, files_of, using
from seal_ray.storage.paths import AnyPath, storage_path

if TYPE_CHECKING:
    import torch
    from torch import nn

    from seal_ray.analysis.base import Analysis

MAX_EPOCHS = 100_000
MAX_SEED = 2**63 - 1

MomentName = Literal["init", "forgotten", "ascended", "relearned", "averaged"]
"""A named checkpoint that is kept for analysis."""

BUILT_IN_ANALYSES = ("depth", "curvature", "similarity", "calibration")
"""Those of the package, each a module of `seal_ray.analysis`, in the order in which they are made."""
ANALYSES: Registry[Analysis] = Registry(
    "analysis", {name: f"seal_ray.analysis.{name}" for name in BUILT_IN_ANALYSES}
)
"""What can be computed from a moment."""


class DataSettings(BaseModel):
    """The training and validation images."""

    model_config = STRICT

    path: Annotated[str, PATH] = Field(
        min_length=1, description="folder of the prepared data set, or s3://bucket/path (gs, az) of a copy"
    )
    per_class: int | None = Field(default=None, ge=1, description="training images a class; null: all")
    label_noise: float = Field(
        default=0.0, ge=0, lt=1, description="share of all training labels replaced at random"
    )
    holdout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of each class's training images to evaluate on; val images are then a test, once",
    )


class Model(BaseModel):
    """The network: the fields that each has; those of its own come with the class that `MODELS` has for it.

    Of `init_from` the digest makes the run, which is noted as `init_sha256`, and never the path. What a
    method forgets later is drawn anew from the seed all the same.
    """

    model_config = STRICT
    factory: ClassVar[Factory]
    """What makes the network."""

    arch: str = Field(default="resnet50", description="one of `seal-ray networks`, or timm/NAME")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the pooled features dropped while training"
    )
    init_from: Annotated[str, PATH] | None = Field(
        default=None,
        min_length=1,
        description="weights to begin with, a moment's folder or a state dict; null: drawn from the seed",
    )
    init_sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="which weights those are; null: whichever are there",
    )
    new_head: bool = Field(
        default=False, description="with init_from: a new classifier, even if the classes are as many"
    )

    def build(self, classes: int, generator: torch.Generator) -> nn.Module:
        """The network with initial weights, see `seal_ray.networks.build`."""
        return build(type(self).factory, classes=classes, generator=generator, **self.arguments)

    def outline(self, classes: int) -> nn.Module:
        """The network without weights, see `seal_ray.networks.outline`."""
        return outline(type(self).factory, classes=classes, **self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The network's own fields."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in COMMON}

    def __hash__(self) -> int:
        """As text, since a network's own fields may be lists."""
        return hash(self.model_dump_json())

    def __str__(self) -> str:
        """As in `resnet18 with stem imagenet, width 64`."""
        given = (f"{name} {value}" for name, value in self.arguments.items() if value is not None)
        return " with ".join(filter(None, [self.arch, ", ".join(given)]))

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[dict[str, Any]]]:
        """The class is derived from the network, so that no other process could import it."""
        return _model, (self.model_dump(),)

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Own fields before the others, but for those left to the network."""
        held, own = handler(self), {"arch", *self.arguments}
        fields = sorted(type(self).model_fields.items(), key=lambda field: field[0] not in own)
        return {
            name: held[name]
            for name, field in fields
            if name in held and not (held[name] is None and field.default is None and name in self.arguments)
        }


@functools.cache
def _model_of(factory: Factory) -> type[Model]:
    fields: dict[str, Any] = {
        name: (kind, Field(default=default, description="a field of this network; see `seal-ray networks`"))
        for name, (kind, default) in network_fields(factory).items()
    }
    model = create_model("Model", __base__=Model, __doc__=Model.__doc__, **fields)
    model.factory = staticmethod(factory)
    return model


class Models(Mapping[str, type[Model]]):
    """The class of `model:` by `arch`. ConfigError for a name that is no network's."""

    def __getitem__(self, arch: str) -> type[Model]:
        return _model_of(factory_of(arch))

    def __iter__(self) -> Iterator[str]:
        return iter(NETWORKS)

    def __len__(self) -> int:
        return len(NETWORKS)


MODELS = Models()


def _model(fields: dict[str, Any]) -> Model:
    return MODELS[fields["arch"]].model_validate(fields)


if TYPE_CHECKING:
    DefaultModel = Model
else:
    DefaultModel = MODELS[Model().arch]


class Augment(BaseModel):
    """What is done to training images."""

    model_config = STRICT

    crop_padding: int = Field(
        default=4, ge=0, description="pixels of zero padding before a random crop; 0: none"
    )
    flip: bool = Field(default=True, description="flip half of the images left to right")
    then: Annotated[tuple[Annotated[Augmentation, Choice(AUGMENTATIONS)], ...], Strict(False)] = Field(
        default=(), exclude_if=lambda then: not then, description="further augmentations, in this order"
    )


def _not_fp16(value: object) -> object:
    if value == "fp16":
        raise ConfigError(
            "precision: fp16 needs a loss scale, a state that changes whenever a gradient overflows; use "
            "bf16, which has the range of fp32 and needs none"
        )
    return value


class Recipe(BaseModel):
    """All that determines what a run computes.

    From Python a section may be an instance or a plain mapping. What cannot be used raises pydantic's
    ValidationError, in `Recipe.load` and `load_job` a ConfigError.
    """

    model_config = STRICT

    data: DataSettings = Field(description="the images")
    model: Annotated[DefaultModel, Choice(MODELS, "arch", Model().arch)] = Field(
        default=DefaultModel(), description="the network"
    )
    method: Annotated[Method, Choice(METHODS)] = Field(description="the training method")
    budget: Annotated[Json[Budget], AS_JSON, CONFIG_ERROR] = Field(description="how long to train")
    optimizer: Annotated[Optimizer, Choice(OPTIMIZERS, default=Sgd.name, refused=REFUSED)] = Field(
        default=Sgd(), description="the optimizer and its schedule"
    )
    loss: Annotated[RecipeLoss, Choice(LOSSES, default=SmoothedCrossEntropy.name)] = Field(
        default=SmoothedCrossEntropy(), description="the loss"
    )
    averaging: Annotated[Averaging, Choice(AVERAGINGS, default=Averaging.name)] = Field(
        default=Averaging(), description="an average of the weights, kept and evaluated beside them"
    )
    augment: Augment = Field(default=Augment(), description="augmentation of training images")
    batch_size: int = Field(default=32, ge=1, description="images of one optimizer step, over all shards")
    shards: int = Field(
        default=1, ge=1, description="equal pieces of a batch, each with its own batch statistics"
    )
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp64"], BeforeValidator(_not_fp16), CONFIG_ERROR
    ] = Field(
        default="fp32",
        description="of matrix products; bf16 on a CPU needs images of 32 px or more; fp64: of everything, "
        "for checks against a reference, slow",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="from which every random draw comes")

    def __hash__(self) -> int:
        """As text, since fields of networks and plugins may be lists and mappings."""
        return hash(self.model_dump_json())

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe of a job file; see load_job."""
        return load_job(path, overrides).recipe

    def moments(self, generation: int) -> tuple[str, ...]:
        """The named moments of a generation, in the order in which they come."""
        named = moments_of(self.method.phases(generation, self.budget), generation)
        return named if self.averaging == Averaging() else (*named[:-1], "averaged", named[-1])

    def to_yaml(self) -> str:
        """The recipe as YAML, every field written out, in YAML 1.2."""
        return dump(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse("Recipe", list(_conflicts(self)))
        split_at = parts_of(self.model, self.method.split_at).split_at
        object.__setattr__(self, "method", replace(self.method, split_at=split_at))  # recipes are frozen
        return self


class Keep(BaseModel):
    """What stays on storage."""

    model_config = STRICT

    moments: Annotated[tuple[MomentName, ...], Strict(False)] = Field(
        default=("ascended", "relearned"), description="moments to keep of each generation"
    )
    checkpoints: int = Field(default=2, ge=1, description="newest checkpoints to keep")


class Tracking(BaseModel):
    """Where metrics go beside the run folder."""

    model_config = STRICT

    wandb: Annotated[
        Literal["auto", "online", "offline", "off"], BeforeValidator(lambda v: "off" if v is False else v)
    ] = Field(default="auto", description="W&B; auto: what WANDB_MODE says, or online with a key")
    project: str | None = Field(
        default=None, min_length=1, description="Weights & Biases project; null: WANDB_PROJECT or seal-ray"
    )
    entity: str | None = Field(
        default=None, min_length=1, description="Weights & Biases team; null: WANDB_ENTITY or your own"
    )
    group: str | None = Field(
        default=None, min_length=1, description="what runs share; null: WANDB_RUN_GROUP or the file's name"
    )
    tags: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="beside method, network and data set; none: those of WANDB_TAGS"
    )
    setting: str | None = Field(
        default=None,
        min_length=1,
        description="what a line of a view is; null: the labels in a sweep, or the method",
    )
    system_metrics: bool = Field(default=True, description="let W&B note the load of CPU, GPU and memory")
    tensorboard: bool = Field(default=False, description="write event files for TensorBoard too")


class Workers(BaseModel):
    """Elastic workers: as many as there is room for, between two numbers."""

    model_config = STRICT

    min: int = Field(ge=1, description="fewest processes that train; a divisor of shards")
    max: int = Field(ge=1, description="most processes that train; a divisor of shards")

    def __str__(self) -> str:
        """As in `1 to 2`."""
        return f"{self.min} to {self.max}"


class CheckpointEvery(BaseModel):
    """How often epochs are committed. Ends of generations and ascents, and a stop, always are.

    A run that diverges keeps the epochs up to the last commit.
    """

    model_config = STRICT

    epochs: int | None = Field(default=None, ge=1, description="after so many epochs of a generation")
    seconds: float | None = Field(default=None, gt=0, description="at the end of an epoch, after so long")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        none, both = (self.epochs is self.seconds is None), None not in (self.epochs, self.seconds)
        refuse("CheckpointEvery", ["seconds: give one of epochs, seconds"] if none or both else [])
        return self


class Placement(BaseModel):
    """Where and how a run is executed. Never changes what it computes."""

    model_config = STRICT

    workers: Annotated[int, Field(ge=1)] | Workers = Field(
        default=1, description="processes that train, a divisor of shards; or {min: 1, max: 4}"
    )
    use_gpu: bool | Literal["auto"] = Field(
        default="auto", description="auto: if the cluster has one a worker"
    )
    gpus_per_worker: float = Field(
        default=1.0, gt=0, le=1, description="share of a GPU that a worker has, where runs have one worker"
    )
    storage: Annotated[str, PATH] = Field(
        default="runs", min_length=1, description="folder of the run folders, or s3://bucket/path (gs, az)"
    )
    loader: Literal["ffcv", "torch"] = Field(default="ffcv", description="what reads the images")
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="threads of an operation on a CPU, which decide last bits; auto: one"
    )
    channels_last: bool = Field(default=True, description="memory format of convolutions")
    compile: bool = Field(default=False, description="compile the network; no gain on a CPU")
    deterministic: bool = Field(default=True, description="only kernels that give the same bits each time")
    resident: Literal["auto", "off"] = Field(
        default="auto", description="auto: a GPU holds the images that take a quarter of its memory at most"
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        default="auto", description="auto: a GPU replays steps, where docs/performance.md says so"
    )
    keep: Keep = Field(default=Keep(), description="what stays on storage")
    checkpoint_every: CheckpointEvery = Field(
        default=CheckpointEvery(epochs=1),
        description="{epochs: N} or {seconds: S} between commits; a resume computes the epochs since again",
    )
    eval_every: int = Field(default=1, ge=1, description="epochs between evaluations")
    track_examples: bool = Field(
        default=False, description="keep which validation images each evaluation had right"
    )
    metrics: Annotated[tuple[Annotated[Metric, Choice(METRICS)], ...], Strict(False)] = Field(
        default=(), description="what else to compute at each evaluation; a row holds it as val_NAME"
    )
    retries: int = Field(default=3, ge=0, description="restarts of failed workers")
    timeout_s: int = Field(
        default=1800, ge=1, description="seconds that workers wait for one another until they count as failed"
    )
    tracking: Tracking = Field(default=Tracking(), description="where metrics go")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [metric.name for metric in self.metrics]
        twice = [f"metrics.{i}: {name} is there twice" for i, name in enumerate(names) if name in names[:i]]
        refuse("Placement", [f"{problem}, and a row has one val_NAME of it; remove one" for problem in twice])
        if self.gpus_per_worker < 1 and self.max_workers > 1:
            refuse("Placement", ["gpus_per_worker: NCCL wants a GPU for each worker; set workers to 1"])
        if isinstance(self.workers, Workers) and self.checkpoint_every != CheckpointEvery(epochs=1):
            refuse("Placement", ["checkpoint_every: elastic workers change after any epoch; leave it out"])
        return self

    @property
    def cpu_threads(self) -> int:
        """`threads` as a number: of an operation on a CPU."""
        return 1 if self.threads == "auto" else self.threads

    @property
    def min_workers(self) -> int:
        """The fewest workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The most workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


def _listed(value: object) -> object:
    """One name is short for a list of it."""
    return [value] if isinstance(value, str) else value


LISTED = BeforeValidator(_listed)


class Analyses(BaseModel):
    """What to compute from a run's moments, as `seal-ray analyze` is told by its options.

    settings: fields of each analysis by its name, over those of the preset.
    """

    model_config = STRICT

    what: Annotated[tuple[Annotated[str, name_in(ANALYSES)], ...], Strict(False), LISTED] = Field(
        default=(), description="names of `seal-ray analyses`, or of the run's plugin files"
    )
    moments: Annotated[tuple[str, ...] | None, Strict(False), LISTED] = Field(
        default=None, description="such as relearned, g002-ascended, or last; null: all that are kept"
    )
    preset: Literal["quick", "paper"] = Field(default="quick", description="for a look, or for a publication")
    settings: dict[str, dict[str, Any]] = Field(
        default={}, description="settings of an analysis by its name, such as curvature: {steps: 10}"
    )

    @model_validator(mode="after")
    def _are_known(self) -> Self:
        refuse("Analyses", list(_unusable(self)))
        return self


def _unusable(analyses: Analyses) -> Iterator[str]:
    """What no field can tell alone, as `field.path: what is wrong`."""
    names = get_args(MomentName)
    for i, moment in enumerate(analyses.moments or ()):
        if moment != "last" and re.sub(r"^g\d{3,}-", "", moment) not in names:
            there = ", ".join(names)
            yield f"moments.{i}: {moment!r} is not one of {there}, last, or such as g002-relearned"
    for name, given in analyses.settings.items():
        if name not in analyses.what:
            yield f"settings.{name}: is not among `what`; add it there, or remove it here"
            continue
        kind = ANALYSES[name]
        known = kind.Settings.model_fields
        for field in given.keys() - known.keys():
            has = ", ".join(known) or "none"
            yield f"settings.{name}.{field}: {name} has no such setting (settings: {has})"
        preset = (analyses.preset == "paper" and kind.paper) or kind.Settings()
        usable = {field: value for field, value in given.items() if field in known}
        try:
            kind.Settings.model_validate({**preset.model_dump(), **usable})
        except ValidationError as error:
            for found in error.errors():
                path = ".".join(map(str, ("settings", name, *found["loc"])))
                yield f"{path}: {found['msg'][0].lower()}{found['msg'][1:]}"


def _by_option(value: object) -> object:
    """Names are short for `what`."""
    return {"what": value} if isinstance(value, str | list | tuple) else value


class Job(BaseModel):
    """A recipe, where to run it, and what to call it: the contents of a job file.

    plugins: the code of each plugin file by the file's name; a job file has a list of paths instead.
    """

    model_config = STRICT

    name: str = Field(min_length=1, description="what people call the run; default: the file's name")
    plugins: dict[str, str] = Field(
        default={}, description="files of code that the run needs, in the folder of this file or below"
    )
    recipe: Recipe = Field(description="what to compute")
    placement: Placement = Field(default=Placement(), description="where to compute it")
    analyses: Annotated[Analyses, BeforeValidator(_by_option)] = Field(
        default=Analyses(),
        description="what to compute from its moments, beside training where there is room: names, or what, "
        "moments, preset and settings",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse("Job", list(_unshared(self.recipe.shards, self.placement.workers)))
        return self


def load_job(path: str | AnyPath, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()) -> Job:
    """The job in a YAML file, after overrides `path.to.field=VALUE` (VALUE is YAML).

    `recipe.method=llf` replaces the whole method, `recipe.method.ascent_rate=0.1` one field of it. The
    name defaults to the file's. Its fields go over those of the file that it names as `base`. The plugin
    files of both, and those in `plugins`, are loaded before anything else is checked. ConfigError lists every
    problem with its file:line or override.
    """
    document, files = read_run_file(path, overrides)
    files += given_files(plugins)
    value = {"name": storage_path(path).stem, **document.value, "plugins": by_name(files)}
    with using(files):
        return parse(replace(document, value=value), Job)


def received_job(data: Mapping[str, Any]) -> Job:
    """The job that `model_dump` has made plain data of, in a process that has its code from there alone."""
    with using(from_names(data["plugins"])):
        return Job.model_validate(data)


def check_sendable(job: Job) -> None:
    """ConfigError when `received_job` would not find what the recipe or the placement names."""
    files = from_names(job.plugins)
    digests = {file.digest for file in files}
    metrics = [
        (f"placement.metrics.{i}", METRICS, metric.name, type(metric))
        for i, metric in enumerate(job.placement.metrics)
    ]
    for field, registry, name, found in [*chosen(job.recipe), *metrics]:
        with using(files):
            known = registry.get(name) is found
        if not known or not {file.digest for file in files_of(found)} <= digests:
            raise ConfigError(
                f"{field}: {found.__qualname__} is not among what the job's workers load; decorate it "
                f"with @seal_ray.{registry.kind} and name its file in the job's YAML: `plugins: [./mine.py]`"
            )


def chosen(recipe: Recipe) -> Iterator[tuple[str, Registry[Any], str, Any]]:
    """What a recipe chooses by name of what plugin files may add: field, registry, name, and what it is."""
    yield "recipe.method", METHODS, recipe.method.name, type(recipe.method)
    if not recipe.model.arch.startswith(TIMM):
        yield "recipe.model", NETWORKS, recipe.model.arch, type(recipe.model).factory
    yield "recipe.loss", LOSSES, recipe.loss.name, type(recipe.loss)
    for i, change in enumerate(recipe.augment.then):
        yield f"recipe.augment.then.{i}", AUGMENTATIONS, change.name, type(change)


def dump_job(job: Job) -> str:
    """The job as YAML, every field written out; `load_job` reads it back where the plugin files lie in
    `plugins/` beside it.
    """
    held = job.model_dump(mode="json", exclude={"plugins"})
    named = {"plugins": [f"{FOLDER}/{name}" for name in job.plugins]} if job.plugins else {}
    return dump({"name": held.pop("name"), **named, **held})


def parts_of(model: Model, split_at: str | None) -> Parts:
    """The stages of a network and their parts, read off one without weights, but for those of ResNets, which
    are known. ConfigError where they cannot be.
    """
    if model.arch in resnet.RESNETS and (split_at is None or split_at in resnet.STAGES[1:]):
        return Parts(resnet.STAGES, split_at or resnet.MIDDLE)
    return _parts(type(model).factory, json.dumps(model.arguments), split_at)


@functools.lru_cache(maxsize=256)
def _parts(factory: Factory, arguments: str, split_at: str | None) -> Parts:
    return Parts.of(_outline(factory, arguments), split_at)


@functools.lru_cache(maxsize=16)
def _outline(factory: Factory, arguments: str) -> nn.Module:
    network = outline(factory, classes=2, **json.loads(arguments))
    if len(stages(network)) < 2:
        raise ConfigError("the network has nothing but its classifier, so that no method can divide it")
    return network


def check_images(model: Model, size: int) -> None:
    """ConfigError when a network cannot read images of `size` x `size` pixels; ResNets read any."""
    if model.arch not in resnet.RESNETS:
        _reads(type(model).factory, json.dumps(model.arguments), size, train=False)


def check_shards(recipe: Recipe, size: int) -> None:
    """ConfigError when shards have one image of `size` x `size` pixels, and the network cannot be trained on
    one alone: a batch norm needs two values of a channel.
    """
    if recipe.batch_size == recipe.shards:
        _reads(type(recipe.model).factory, json.dumps(recipe.model.arguments), size, train=True)


@functools.lru_cache(maxsize=16)
def _reads(factory: Factory, arguments: str, size: int, *, train: bool) -> None:
    """One image, on a network without weights, if its passes need none, else on one with weights."""
    import torch

    made: list[Callable[[], nn.Module]] = [
        lambda: _outline(factory, arguments),
        lambda: build(factory, classes=2, generator=torch.Generator(), **json.loads(arguments)),
    ]
    for make in made:
        network = make().train(train)
        device = next(network.parameters()).device
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                network(torch.zeros(1, 3, size, size, device=device))
            return
        except Exception as error:
            said = error
    if train:
        raise ConfigError(
            f"recipe.shards: shards of one image cannot train this network at {size} x {size} pixels "
            f"({said}); use fewer shards, or a larger batch_size"
        )
    raise ConfigError(f"recipe.model: the network cannot read images of {size} x {size} pixels: {said}")


def _unshared(shards: int, workers: int | Workers) -> Iterator[str]:
    """Numbers of workers that cannot be used, as `field.path: what is wrong`."""
    ends = {"": workers} if isinstance(workers, int) else {".min": workers.min, ".max": workers.max}
    for end, count in ends.items():
        if shards % count:
            yield (
                f"placement.workers{end}: {count} workers cannot share {shards} shards; use a divisor of "
                "recipe.shards"
            )
    if isinstance(workers, Workers) and workers.min > workers.max:
        yield f"placement.workers.max: {workers.max} is less than min, {workers.min}"


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """`field.path: what is wrong` for whatever no field can tell alone."""
    if recipe.batch_size % recipe.shards:
        yield (
            f"shards: a batch of {recipe.batch_size} cannot be cut into {recipe.shards} equal shards; "
            "use a divisor of batch_size"
        )
    for name in ("init_sha256", "new_head"):
        if getattr(recipe.model, name) and recipe.model.init_from is None:
            yield f"model.{name}: is about the weights that model.init_from names; give that, or leave it out"
    if not recipe.optimizer.is_checked:
        import torch

        try:
            torch_optimizer(recipe.optimizer, [torch.nn.Parameter(torch.zeros(1))])
        except ValueError as error:
            yield f"optimizer: {recipe.optimizer.name}: {error}"
    for i, change in enumerate(recipe.augment.then):
        if isinstance(change, Mixing) and recipe.batch_size == recipe.shards:
            yield f"augment.then.{i}: {change.name} mixes images of a shard, which has one; use fewer shards"
        if isinstance(change, Mixing) and takes_partners(recipe.loss):
            yield (
                f"augment.then.{i}: {change.name} mixes images of several classes, and the loss "
                f"{recipe.loss.name} pairs those of one; remove one of the two"
            )
    try:
        parts = parts_of(recipe.model, None)  # which names there are does not depend on the split
    except ConfigError as error:
        yield f"model: {error}"
        return
    yield from _error(parts_of, recipe.model, recipe.method.split_at)
    if (part := getattr(recipe.method, "part", None)) is not None:
        yield from (f"method.part: {text}" for text in _error(parts.stages_of, part))
    if recipe.budget.epochs > MAX_EPOCHS:
        yield f"budget.epochs: {recipe.budget.epochs} is more than {MAX_EPOCHS}; lower it"
    else:
        yield from dict.fromkeys(_unplannable(recipe))


def _unplannable(recipe: Recipe) -> Iterator[str]:
    """What keeps the phases or the learning rates of each generation from being computed."""
    for generation in range(recipe.budget.generations):
        try:
            phases = recipe.method.phases(generation, recipe.budget)
        except ConfigError as error:
            yield str(error)
            continue
        epochs, length = sum(phase.epochs for phase in phases), recipe.budget.length
        if epochs != length or not all(phase.epochs > 0 for phase in phases):
            lengths = ", ".join(f"{phase.name} {phase.epochs}" for phase in phases)
            yield f"method: the phases ({lengths}) do not fill the {length} epochs of generation {generation}"
            continue
        position = Position(generation, 0)
        for phase in phases:
            yield from _error(learning_rate, recipe.optimizer.rates, phase, position, recipe.budget)
            yield from _idle(phase, recipe)


def _idle(phase: Phase, recipe: Recipe) -> Iterator[str]:
    """An ascent of which other groups leave nothing."""
    try:
        parts = parts_of(recipe.model, recipe.method.split_at)
    except ConfigError:
        return  # said elsewhere
    moving = {owner(phase.groups, parts, stage) for stage in parts.stages}
    forgetting = {i for i, group in enumerate(phase.groups) if group.forgets}
    if forgetting and not forgetting & moving:
        yield (
            f"method.split_at: {parts.split_at} leaves nothing to ascend; split earlier, or set "
            "head_ascends to true"
        )


def _error(function: Callable[..., object], *arguments: object) -> Iterator[str]:
    """The text of the ConfigError that a call raises, if it does."""
    try:
        function(*arguments)
    except ConfigError as error:
        yield str(error)
