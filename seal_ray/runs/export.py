"""Take a moment's weights out of a run for other people's code, and read weights that others trained.

Weights are read and written as tensors alone; nothing is ever unpickled.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from seal_ray.data.prepared import Dataset, describe_dataset
from seal_ray.errors import CheckpointError, ConfigError, DataError, StorageError
from seal_ray.networks import RESNETS, build, classifier, outline
from seal_ray.networks.timm import PREFIX
from seal_ray.plugins import files_of
from seal_ray.recipe import Job, load_job
from seal_ray.runs.checkpoint import Snapshot, State, weights_sha256
from seal_ray.runs.folder import MOMENT, Store
from seal_ray.runs.lineage import run_id
from seal_ray.runs.weights import misfits, read_weights
from seal_ray.storage.files import write_durably
from seal_ray.storage.paths import AnyPath

Format = Literal["safetensors", "torch", "onnx"]
FAMILIES = ("resnet*", "resnext*", "wide_resnet*")
ONNX_TOLERANCE = 1e-4  # of the largest logit, or of 1 if that is larger
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
DEFAULT_SIZE = 64  # pixels, where the data set that would say it is gone


@dataclass(frozen=True)
class Exported:
    """What was written. top1: of the validation images, in per cent; None where the run did not measure it.

    onnx_difference: the largest difference between torch's and ONNX Runtime's logits.
    """

    path: Path
    card: Path
    run_id: str
    moment: str
    weights_sha256: str
    top1: float | None
    onnx_difference: float | None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network with weights from a file, in eval mode, float32, on the CPU."""

    network: nn.Module
    arch: str
    classes: int
    weights_sha256: str


def export(
    run: AnyPath,
    output: Path,
    *,
    moment: str | None = None,
    file_format: Format = "safetensors",
    force: bool = False,
) -> Exported:
    """Write the weights of a run's moment to `output`, and a card about them to `<output>.md`.

    moment: such as "g002-relearned"; by default the last relearned one. `safetensors` and `torch` hold a
    state dict that torchvision's or timm's network of the same name loads strictly, if a ResNet's stem and
    width are theirs; `onnx` holds the network, with any number of images, checked against torch.

    Raises ConfigError for a moment the run does not keep, a file that exists (without `force`) and ONNX
    packages that are missing; CheckpointError for a folder that is no run, or a damaged one.
    """
    card = output.with_name(f"{output.name}.md")
    for path in (output, card):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists; give another -o, or --force to write over it")
    if not (run / "job.yaml").is_file():
        raise CheckpointError(f"{run}: is no run's folder, it has no job.yaml; see `seal-ray runs`")
    folder = run.resolve()
    label, snapshot = _read_moment(folder, moment)
    job, weights = load_job(folder / "job.yaml"), snapshot.weights
    dataset = _dataset(folder, job)
    difference = None
    if file_format == "onnx":
        data, difference = _to_onnx(_network(job, weights), dataset.size if dataset else DEFAULT_SIZE)
    else:
        data = save(weights, {"format": "pt"}) if file_format == "safetensors" else _to_torch(weights)
    exported = Exported(
        path=output,
        card=card,
        run_id=folder.name,
        moment=label,
        weights_sha256=weights_sha256(weights),
        top1=_top1(snapshot),
        onnx_difference=difference,
    )
    text = _card(exported, job, snapshot, dataset, file_format)
    try:
        write_durably(output, data)
        write_durably(card, text.encode())
    except OSError as error:
        raise ConfigError(
            f"{output}: cannot be written ({error.strerror or error}); give another -o"
        ) from error
    return exported


def load_weights(path: Path, arch: str) -> Loaded:
    """Read a state dict, as `seal_ray.runs.weights.read_weights` does, into the network `arch`.

    arch: one of torchvision's ResNets, by its name there, or a network that recipes name. The number of
    classes is read off the tensors, and so are stem and width of a ResNet that seal-ray trains; other fields
    are at their defaults. Raises ConfigError for another network or kind of file; CheckpointError for one
    that holds anything but the tensors of `arch`.
    """
    state = read_weights(str(path))
    network = _empty(path, arch, state)
    if wrong := misfits(network, state):
        raise CheckpointError(f"{path}: is not a state dict of {arch}: it {wrong}")
    network.load_state_dict(state, assign=True)
    classes = len(classifier(network)[1].weight)
    return Loaded(network.eval(), arch, classes, weights_sha256(network.state_dict()))


def read_network(run: AnyPath, moment: str | None = None) -> nn.Module:
    """The network of a run's moment, in eval mode, float32, on the CPU. moment, errors: as of `export`."""
    _, snapshot = _read_moment(run, moment)
    return _network(load_job(run / "job.yaml"), snapshot.weights)


def _read_moment(folder: AnyPath, label: str | None) -> tuple[str, Snapshot]:
    store = Store(folder, folder.name)
    named = [MOMENT.fullmatch(path.parent.name) for path in (folder / "moments").glob("*/manifest.json")]
    kept = {match[0]: (match[2], int(match[1])) for match in named if match}
    if label is None:
        relearned = [(generation, label) for label, (name, generation) in kept.items() if name == "relearned"]
        label = max(relearned)[1] if relearned else "relearned"
    if label not in kept:
        choices = (
            f"it keeps {', '.join(sorted(kept))}" if kept else "it keeps none; see placement.keep.moments"
        )
        raise ConfigError(f"{folder.name}: has no moment {label}; {choices}")
    return label, store.moment(*kept[label])


def _dataset(folder: AnyPath, job: Job) -> Dataset | None:
    """The data set that the run was trained on; None when it is gone or another one lies in its place."""
    try:
        dataset = describe_dataset(job.recipe.data.path)
    except (DataError, StorageError):
        return None
    return dataset if run_id(job.recipe, dataset.training_identity) == folder.name else None


def _top1(snapshot: Snapshot) -> float | None:
    """The accuracy measured with these very weights: an edit may have changed them since."""
    last: Mapping[str, Any] = snapshot.rows[-1] if snapshot.rows else {}
    if snapshot.moment == "averaged":
        return float(last.get("test_averaged_top1", last["val_averaged_top1"]))
    same = last.get("weights_sha256") == weights_sha256(snapshot.weights)
    return last.get("test_top1", last["val_top1"]) if same else None


def _network(job: Job, weights: State) -> nn.Module:
    model = job.recipe.model
    head, _ = classifier(model.outline(classes=2))
    network = model.build(len(weights[f"{head}.weight"]), torch.Generator())
    network.load_state_dict(weights)
    return network.float().eval()


def _to_torch(weights: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    return buffer.getvalue()


def _to_onnx(network: nn.Module, size: int) -> tuple[bytes, float]:
    """The network as ONNX, for any number of images of `size` pixels, and how far its logits are astray."""
    if missing := [package for package in ONNX_PACKAGES if find_spec(package) is None]:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}; pip install seal-ray[onnx]")
    onnxruntime = import_module("onnxruntime")
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network,
        (images[:2],),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        ours = network(images).numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference <= ONNX_TOLERANCE * max(1.0, float(np.abs(ours).max())):
        raise ConfigError(
            f"ONNX Runtime's logits differ from torch's by {difference:.2g}; nothing was written. Try "
            "other versions of onnx, onnxscript and onnxruntime"
        )
    return data, difference


def _empty(path: Path, arch: str, state: State) -> nn.Module:
    """A network, its weights yet to come, whose shapes are those of a state dict, as far as can be told."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models, include=FAMILIES)
    if arch not in known:
        try:
            head = classifier(outline(arch, classes=2))[0]
        except ConfigError as error:
            raise ConfigError(
                f"{arch!r} is no network whose weights can be read; use one of {', '.join(known)}, or one "
                f"that recipes may name ({error})"
            ) from None
        if f"{head}.weight" not in state:
            raise CheckpointError(f"{path}: is not a state dict of {arch}: it lacks {head}.weight")
        return build(arch, classes=len(state[f"{head}.weight"]), generator=torch.Generator())
    shapes = [tuple(state[name].shape) for name in ("conv1.weight", "fc.weight") if name in state]
    if [len(shape) for shape in shapes] != [4, 2]:
        raise CheckpointError(f"{path}: is not a state dict of {arch}: it lacks conv1.weight or fc.weight")
    (width, _, kernel, _), (classes, _) = shapes
    if arch in RESNETS:
        return outline(arch, classes=classes, stem="cifar" if kernel == 3 else "imagenet", width=width)
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    return network


def _card(
    exported: Exported, job: Job, snapshot: Snapshot, dataset: Dataset | None, file_format: Format
) -> str:
    """The card: what the weights are, how to load them, what they were trained with and on."""
    model, recipe = job.recipe.model, job.recipe
    network = _network(job, snapshot.weights)
    classes = len(classifier(network)[1].weight)
    parameters = sum(p.numel() for p in network.parameters())
    top1 = "not measured" if exported.top1 is None else f"{exported.top1:.2f} %"
    facts = {
        "run": f"{exported.run_id} ({job.name})",
        "method": recipe.method.name,
        "moment": f"{exported.moment}, after {len(snapshot.rows)} epochs",
        "network": f"{model}, {classes} classes",
        "parameters": f"{parameters:,}",
        "validation top1": top1,
        "weights_sha256": f"`{exported.weights_sha256}`",
        **_data_facts(recipe.data.path, dataset),
    }
    if exported.onnx_difference is not None:
        facts["ONNX against torch"] = f"logits differ by at most {exported.onnx_difference:.1g}"
    licence = dataset.licence_note if dataset else "Not known any more: the data set is gone."
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"# {exported.path.name}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Load it\n\n{_how_to_load(exported.path.name, job, classes, file_format)}\n\n"
        f"## Licence of the data\n\n{licence}\n\n"
        f"## Recipe\n\n```yaml\n{recipe.to_yaml()}```\n"
    )


def _data_facts(path: str, dataset: Dataset | None) -> dict[str, str]:
    if dataset is None:
        return {"data": f"what the run found at {path}, which is not there any more"}
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (dataset.mean, dataset.std))
    return {
        "data": f"{dataset.name}, `{dataset.identity}`",
        "input": f"(N, 3, {dataset.size}, {dataset.size}), RGB in 0..1, minus ({mean}), over ({std})",
        "classes": ", ".join(name.words for name in dataset.classes),
    }


def _how_to_load(name: str, job: Job, classes: int, file_format: Format) -> str:
    model = job.recipe.model
    if file_format == "onnx":
        code = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}")\n'
        return f'```python\n{code}(logits,) = session.run(None, {{"images": images}})\n```'
    if model.arch in RESNETS and model.arguments != {"stem": "imagenet", "width": 64}:
        code = (
            "from pathlib import Path\n\nfrom seal_ray.runs.export import load_weights\n\n"
            f'network = load_weights(Path("{name}"), "{model.arch}").network\n'
        )
        why = "torchvision and timm have no ResNet of this stem and width, so seal-ray builds it"
        return f"```python\n{code}```\n\nThe names of the tensors are torchvision's; {why}."
    given = "".join(f", {field}={value!r}" for field, value in model.arguments.items() if value is not None)
    reader = ("safetensors.torch", "load_file") if file_format == "safetensors" else ("torch", "load")
    if model.arch in RESNETS:
        of, made = "torchvision", f"torchvision.models.{model.arch}(num_classes={classes})"
    elif model.arch.startswith(PREFIX):
        of = "timm"
        made = f'timm.create_model("{model.arch.removeprefix(PREFIX)}", num_classes={classes}{given})'
    else:
        factory = type(model).factory
        file = next(iter(files_of(factory)), None)
        of = file.name.removesuffix(".py") if file else factory.__module__
        made = f"{of}.{factory.__qualname__}(classes={classes}{given})"
    code = (
        f"import {of}\nfrom {reader[0]} import {reader[1]}\n\n"
        f'network = {made}\nnetwork.load_state_dict({reader[1]}("{name}"))\n'
    )
    if model.arch not in RESNETS:
        return f"```python\n{code}```"
    timm = f'`timm.create_model("{model.arch}", num_classes={classes})`'
    return f"```python\n{code}```\n\n{timm} loads the same file, as strictly."
