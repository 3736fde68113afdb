"""Weights that a run begins with: those of a moment or of a state dict, known by their digest.

`recipe.model.init_from` says where they lie and `init_sha256` which they are; run ids and generation keys
are made of the digest, never of the path. Tensors are read and nothing else; nothing is ever unpickled:
pickle is imported for its errors.
"""

from __future__ import annotations

import io
import pickle  # nosec B403
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.networks import classifier
from seal_ray.runs.checkpoint import State, read_manifest, read_snapshot, weights_sha256
from seal_ray.storage.paths import AnyPath, storage_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seal_ray.recipe import Model, Recipe

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def pinned(recipe: Recipe, digest: Callable[[str], str] | None = None) -> Recipe:
    """The recipe with the digest of the weights that it begins with, as run ids and keys need it.

    Their path becomes absolute. digest: `weights_digest`, unless it is remembered; it is not asked where
    the recipe has the digest already. Raises as weights_digest.
    """
    model = recipe.model
    if model.init_from is None:
        return recipe
    path = str(storage_path(model.init_from).resolve())
    named = {"init_from": path, "init_sha256": model.init_sha256 or (digest or weights_digest)(path)}
    return recipe.model_copy(update={"model": model.model_copy(update=named)})


def weights_digest(path: str) -> str:
    """The `weights_sha256` of what lies at `path`, of a moment by its manifest. Raises as read_weights."""
    place = storage_path(path)
    if place.is_dir():
        return str(read_manifest(place)["weights_sha256"])
    return weights_sha256(read_weights(path))


def read_weights(path: str) -> State:
    """Parameters and buffers by name on the CPU, floating-point ones of a file as float32.

    path: the folder of a moment or a checkpoint, every checksum verified, or a .safetensors, .pth, .pt or
    .bin file. In a file the state dict may lie under "state_dict" or "model", as trainers save it; its names
    may hold the "_orig_mod" of torch.compile anywhere, and begin with the "module." of data parallelism, once
    or more. Raises ConfigError for another kind of file, CheckpointError for one that holds anything but
    tensors, is damaged or is not there, and for values that are not finite.
    """
    import torch

    place = storage_path(path)
    if place.is_dir():
        state = read_snapshot(place, read_manifest(place)["run_id"]).weights
    else:
        held = _unwrapped(place, _read_file(place))
        state = {name: t.float() if t.is_floating_point() else t for name, t in held.items()}
    for name, tensor in state.items():
        if wrong := tensor.numel() - int(torch.isfinite(tensor).sum()):
            values = f"{wrong:,} of the {tensor.numel():,} values of {name}"
            raise CheckpointError(f"{path}: {values} are NaN or infinite; take weights from before they were")
    return state


def _unwrapped(path: AnyPath, held: Mapping[str, Tensor]) -> State:
    """Tensors by the names that they have in the plain network."""
    names = {name: ".".join(part for part in str(name).split(".") if part != "_orig_mod") for name in held}
    while held and all(name.startswith("module.") for name in names.values()):
        names = {given: name.removeprefix("module.") for given, name in names.items()}
    state = {names[given]: tensor for given, tensor in held.items()}
    if len(state) < len(held):
        twice = next(name for name in state if list(names.values()).count(name) > 1)
        raise CheckpointError(f"{path}: holds {twice} twice, with and without a wrapper's prefix; keep one")
    return state


def misfits(network: nn.Module, state: State) -> str:
    """What of a state dict does not fit the network, in words that follow "it"; empty when all of it does.

    Counters of batch norms, which old state dicts lack, may be missing.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    counters = {name for name in expected if name.endswith(".num_batches_tracked")}
    lacking = [f"lacks {name}" for name in expected if name not in found and name not in counters]
    surplus = [f"has {name}" for name in found if name not in expected]
    other = [
        f"has {name} of shape {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    wrong = lacking + surplus + other
    return ", ".join(wrong[:3]) + (f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else "")


def begin_with(network: nn.Module, model: Model) -> None:
    """Put the weights that `model` names in the place of those that a network was drawn with.

    The classifier stays as it was drawn where theirs is of another number of classes, and where `new_head`
    says so. CheckpointError when they are not those of `init_sha256`, or do not fit.
    """
    state = _fitting(network, model)[0]
    network.load_state_dict(state, strict=False)  # what may be missing was checked


def beginning(model: Model, classes: int) -> str:
    """With which weights a network of `model` begins, in words; empty where they are drawn.

    Raises as begin_with.
    """
    if model.init_from is None:
        return ""
    _, others = _fitting(model.outline(classes), model)
    assert model.init_sha256 is not None
    head = "" if others is None else f"; a new classifier of {classes} classes in place of theirs of {others}"
    return f"the weights of {model.init_from} ({model.init_sha256[:10]}){head}"


def _fitting(network: nn.Module, model: Model) -> tuple[State, int | None]:
    """The weights for a network; of how many classes their classifier is, if the network's own stays."""
    assert model.init_from is not None
    state = read_weights(model.init_from)
    if (found := weights_sha256(state)) != model.init_sha256:
        raise CheckpointError(
            f"{model.init_from}: holds the weights {found[:10]}..., but model.init_sha256 is "
            f"{str(model.init_sha256)[:10]}...; put those back, or leave init_sha256 out to begin with these"
        )
    head, layer = classifier(network)
    weight = state.get(f"{head}.weight")
    others = None
    ours = len(layer.weight)
    theirs = len(weight) if weight is not None and weight.dim() == layer.weight.dim() else ours
    if model.new_head or theirs != ours:
        others = theirs
        drawn = {name: t for name, t in network.state_dict().items() if name.startswith(f"{head}.")}
        state = {name: t for name, t in state.items() if not name.startswith(f"{head}.")} | drawn
    if wrong := misfits(network, state):
        raise CheckpointError(f"model.init_from: {model.init_from} does not fit {model}: it {wrong}")
    return state, others


def _read_file(path: AnyPath) -> Mapping[str, Tensor]:
    import torch
    from safetensors.torch import load

    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path}: weights are read from {', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]} files, and from "
            "folders of moments"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    held: Any
    try:
        if path.suffix == ".safetensors":
            return load(data)
        held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; a pickled module is never loaded. Save its "
            "state_dict() instead"
        ) from None
    except Exception as error:  # readers raise nearly anything on a damaged file
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}); get it again") from error
    for key in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(t, torch.Tensor) for t in held.values()):
        raise CheckpointError(f"{path}: is no state dict, names with a tensor each; save state_dict() alone")
    return held
