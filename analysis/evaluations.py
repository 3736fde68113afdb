"""What is asked of weights on other data sets: probes, fine-tuning, episodes; their YAML; which sets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import AfterValidator, BaseModel, Field, Strict

from seal_ray.config.document import Document, check_kind, put, read
from seal_ray.config.messages import PATH, STRICT, parse
from seal_ray.data.prepared import Dataset, find_prepared, load_dataset, open_dataset
from seal_ray.data.sources import OPTIONS, SOURCES, required
from seal_ray.errors import ConfigError, DataError
from seal_ray.recipe import Augment
from seal_ray.storage.paths import storage_path

EvaluationKind = Literal["transfer", "finetune", "fewshot"]
Command = Literal["transfer", "fewshot"]

WHICH_DATA = "data sets: folders that were prepared, or names of `seal-ray data list`"
COMMANDS: Mapping[EvaluationKind, Command] = {
    "transfer": "transfer",
    "finetune": "transfer",
    "fewshot": "fewshot",
}
"""The command that carries an evaluation out."""
TARGET_OPTIONS: Mapping[EvaluationKind, str] = {"transfer": "--to", "finetune": "--to", "fewshot": "--on"}
"""The option that names the targets."""

Targets = Annotated[
    tuple[Annotated[str, Field(min_length=1), PATH], ...],
    Strict(False),
    Field(min_length=1, description=WHICH_DATA),
]
Layer = Annotated[str, Field(min_length=1, description="penultimate, or a stage or module of the network")]
Shots = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1, description="share of the train images of each class")]
MaxFeatures = Annotated[int, Field(ge=1, description="numbers that the features are pooled to at most")]


class Transfer(BaseModel):
    """A linear probe on frozen features: see `seal_ray.analysis.probe.probe`."""

    model_config = STRICT

    kind: Literal["transfer"]
    targets: Targets
    layer: Layer = "penultimate"
    max_features: MaxFeatures = 2048
    fraction: Fraction = 1.0
    holdout: float = Field(default=0.2, gt=0, lt=1, description="share that chooses the weight decay")
    seed: int = Field(default=0, ge=0, description="which images are drawn for both shares")


class FineTune(BaseModel):
    """All weights trained on, with a new classifier: see `seal_ray.analysis.finetune.finetune`."""

    model_config = STRICT

    kind: Literal["finetune"]
    targets: Targets
    fraction: Fraction = 1.0
    epochs: int = Field(default=20, ge=1, description="epochs, over which the learning rate falls")
    batch_size: int = Field(default=32, ge=1, description="images of one optimizer step")
    lr: float = Field(default=0.01, gt=0, description="learning rate of the first epoch")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay of every parameter")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="weight of the uniform target")
    augment: Augment = Field(
        default=Augment(crop_padding=0, flip=False), description="augmentation of training images"
    )
    seed: int = Field(default=0, ge=0, description="of the classifier, the order, augmentation and the share")


class FewShot(BaseModel):
    """Few-shot episodes on frozen features: see `seal_ray.analysis.fewshot`."""

    model_config = STRICT

    kind: Literal["fewshot"]
    targets: Targets
    layer: Layer = "penultimate"
    max_features: MaxFeatures = 2048
    shots: Annotated[
        tuple[Shots, ...], Strict(False), AfterValidator(lambda shots: tuple(sorted(set(shots))))
    ] = Field(default=(5, 20, 50), min_length=1, description="support images of a class, each in turn")
    episodes: int = Field(default=600, ge=2, description="episodes for each number of shots")
    ways: int = Field(default=5, ge=2, description="classes of an episode")
    queries: int = Field(default=15, ge=1, description="images of a class that are to be recognised")
    head: Literal["logistic", "prototype"] = Field(default="logistic", description="what is fitted to them")
    seed: int = Field(default=0, ge=0, description="which episodes are drawn")


Evaluation = Union[Transfer, FineTune, FewShot]  # noqa: UP007 - a value too
EVALUATIONS: Mapping[str, type[Transfer] | type[FineTune] | type[FewShot]] = {
    "transfer": Transfer,
    "finetune": FineTune,
    "fewshot": FewShot,
}


def is_evaluation(path: str | Path) -> bool:
    """Whether a YAML file is an evaluation: it has a kind. ConfigError when it cannot be read."""
    return "kind" in read(path).value


def load_evaluation(path: str | Path) -> Evaluation:
    """The evaluation in a YAML file. ConfigError lists every problem with its file:line."""
    document = read(path)
    check_kind(document, path, "evaluation")
    return _parse(document)


def transfer_kind(mode: str | None, file: Path | None) -> EvaluationKind:
    """What `seal-ray transfer` is to do: what `--mode`, probe or finetune, says, else the file, else a probe.

    ConfigError when the file cannot be read.
    """
    tuned = read(file).value.get("kind") == "finetune" if mode is None and file else mode == "finetune"
    return "finetune" if tuned else "transfer"


def make_evaluation(kind: EvaluationKind, file: Path | None = None, **given: Any) -> Evaluation:
    """The evaluation that options ask for: fields that are not None, over those of `file` if there is one.

    ConfigError as load_evaluation, for a file of another kind, and when there are no targets.
    """
    option = TARGET_OPTIONS[kind]
    if file is None and given.get("targets") is None:
        raise ConfigError(f"{option}: name data sets, such as {option} flowers102, or give --evaluation FILE")
    document = Document({"kind": kind}, {(): "the options"}) if file is None else read(file)
    check_kind(document, file or option, "evaluation")
    found = document.value.get("kind")
    if found in EVALUATIONS and found != kind:
        mode = " --mode finetune" if found == "finetune" else " --mode probe" if kind == "finetune" else ""
        raise ConfigError(
            f"{file}: is an evaluation of kind {found}; give it to `seal-ray {COMMANDS[found]}{mode}`"
        )
    for field, value in given.items():
        if value is not None:
            place = option if field == "targets" else f"--{field.replace('_', '-')}"
            document = put(document, (field,), Document(value, {(): place}), ())
    return _parse(document)


def _parse(document: Document) -> Evaluation:
    kind = document.value.get("kind")
    if kind not in EVALUATIONS:
        place = document.places[document.given(("kind",))]
        raise ConfigError(
            f"{place}: kind: must be one of {', '.join(get_args(EvaluationKind))}, not {kind!r}"
        )
    return parse(document, EVALUATIONS[kind])


@dataclass(frozen=True)
class Destination:
    """A data set that a network was not trained on. label: what results and tables call it."""

    label: str
    dataset: Dataset

    def facts(self) -> dict[str, object]:
        """What a result says of it."""
        dataset = self.dataset
        return {
            "label": self.label,
            "name": dataset.name,
            "identity": dataset.identity,
            "encoding": dataset.encoding,
            "size": dataset.size,
            "classes": len(dataset.classes),
            "images": {split: file.count for split, file in dataset.splits.items()},
        }


def find_destination(wanted: str, data: Path) -> Destination:
    """The data set at the path `wanted`, or of that name in the folder `data`.

    A path has a slash in it, or is a folder that holds a dataset.json. A name is a folder's in `data`, or its
    source's if only one was prepared from that. DataError for what is not prepared or is damaged; ConfigError
    for a name that is none, or stands for several.
    """
    path = Path(wanted)
    if "/" in wanted or (path / "dataset.json").is_file():
        return Destination(storage_path(wanted).resolve().name, open_dataset(wanted))
    if (data / wanted / "dataset.json").is_file():
        return Destination(wanted, load_dataset(data / wanted))
    prepared = find_prepared(data).get(wanted, ())
    if len(prepared) > 1:
        paths = ", ".join(map(str, prepared))
        raise ConfigError(f"{wanted}: is prepared {len(prepared)} times, in {paths}; name one of these")
    if prepared:
        return Destination(wanted, load_dataset(prepared[0]))
    if wanted not in SOURCES:
        near = difflib.get_close_matches(wanted, [*SOURCES, *(path.name for path in data.glob("*"))], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `seal-ray data list`"
        raise ConfigError(f"{wanted}: is no prepared folder, none in {data}, and no known data set; {hint}")
    given = "".join(f" {OPTIONS[option]} PATH" for option in required(wanted) if option != "size")
    command = f"seal-ray data prepare {wanted} --to {data / wanted}{given}"
    raise DataError(f"{wanted}: is not prepared in {data}; run `{command}`")
