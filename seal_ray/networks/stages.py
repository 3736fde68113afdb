"""The stages of a network in depth order, and which parameters the parts of a method hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from seal_ray.errors import ConfigError
from seal_ray.networks import timm

if TYPE_CHECKING:
    from torch import nn


def weighted_layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Name and module of each convolution and linear layer: the layers that edits re-draw or prune."""
    from torch import nn

    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield name, module


def loose_parameters(network: nn.Module) -> list[str]:
    """Names of the parameters that belong to no convolution, linear or norm layer, such as a class token, a
    position embedding, a layer's scale.
    """
    from torch import nn

    return [
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if not isinstance(module, (nn.Conv2d, nn.Linear)) and "Norm" not in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    ]


def classifier(network: nn.Module) -> tuple[str, nn.Conv2d | nn.Linear]:
    """Name and module of the layer that gives the logits; its weight is (classes, features, ...).

    The last linear layer of what `get_classifier()` gives, which may be a convolution of pooled maps itself,
    else the network's last one. ConfigError when there is none.
    """
    from torch import nn

    method: Any = getattr(network, "get_classifier", None)
    given = method() if method else network
    within = {*given.modules()} if isinstance(given, nn.Module) else set()
    layers = [(name, layer) for name, layer in weighted_layers(network) if layer in within and name]
    linear = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear) or given is layer]
    if not linear:
        raise ConfigError(f"{type(network).__name__}: has no linear layer that gives its logits")
    return linear[-1]


def residual_blocks(network: nn.Module) -> tuple[str, ...]:
    """Names of the residual blocks, in the order in which the network holds them; none if it has none.

    They are the members of the innermost Sequentials and ModuleLists that hold nothing but modules with
    children of their own: so in torchvision's and timm's ResNets, ConvNeXts, ViTs and EfficientNets.
    """
    members = [
        f"{name}.{member}" if name else member
        for name, module in network.named_modules()
        if _holds_blocks(module)
        for member, _ in module.named_children()
    ]
    return tuple(name for name in members if not any(other.startswith(f"{name}.") for other in members))


def _holds_blocks(module: nn.Module) -> bool:
    from torch import nn

    containers, members = (nn.Sequential, nn.ModuleList), list(module.children())
    inside = all(any(member.children()) and not isinstance(member, containers) for member in members)
    return isinstance(module, containers) and bool(members) and inside


def stage_parameters(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of the parameters of each stage, in depth order; each parameter is in exactly one.

    Stages are the groups of timm's `group_matcher` where the network has one, else its children in order,
    the first of which has the network's own parameters, too. The last stage is the classifier alone. A stage
    is named by the outermost module, of that which holds its first parameters, that is all its own.
    """
    last, _ = classifier(network)
    names = [name for name, _ in network.named_parameters()]
    if not (groups := timm.groups(network)):
        own = [name for name in names if "." not in name]
        children: dict[str, list[str]] = {}
        for name in names[len(own) :]:
            children.setdefault(name.partition(".")[0], []).append(name)
        groups = [own, *children.values()]
        groups[:2] = [own + groups[1]]
    head = [name for name in names if name.startswith(f"{last}.")]
    groups = [[name for name in group if name not in head] for group in groups]
    return {_named(group, names): tuple(group) for group in [*filter(None, groups), head]}


def _named(group: list[str], names: list[str]) -> str:
    """The outermost module around the group's first parameter, not its own, that holds no other group's."""
    path = next((name for name in group if "." in name), group[0]).split(".")
    prefixes = (".".join(path[:depth]) for depth in range(1, len(path)))
    held = set(group)
    whole = (p for p in prefixes if all(name in held for name in names if name.startswith(f"{p}.")))
    return next(whole, group[0])


def stages(network: nn.Module) -> tuple[str, ...]:
    """Names of the stages in depth order; the last one is the classifier."""
    return tuple(stage_parameters(network))


def middle(network: nn.Module) -> str:
    """Where a network is divided unless a method says so: the stage that holds block n // 2 (0-based) of n
    residual blocks, which is layer3 in ResNets; without blocks, stage n // 2 of n stages.
    """
    held, blocks = stage_parameters(network), residual_blocks(network)
    names = list(held)
    if blocks:
        inside = f"{blocks[len(blocks) // 2]}."
        at = next(i for i, group in enumerate(held.values()) if any(n.startswith(inside) for n in group))
        return names[max(at, 1)]
    return names[len(names) // 2]


@dataclass(frozen=True)
class Parts:
    """Which stages the words `early`, `late`, `head` and `all` mean; stage names mean themselves.

    split_at: the first stage of the late part. Where that is a block inside a stage, the stage `divided` ends
    before it, and what follows is a stage of the block's name. owners: the stage of each parameter and
    module; what is not listed, such as a buffer, lies where the module does that holds it.
    """

    stages: tuple[str, ...]
    split_at: str
    owners: Mapping[str, str] = field(default_factory=dict)
    divided: str = ""

    def __post_init__(self) -> None:
        if self.split_at not in self.stages[1:]:
            raise ConfigError(
                f"method.split_at: {self.split_at!r} does not divide the network; choose one of "
                f"{', '.join(self.stages[1:])}, or a block inside one"
            )

    @classmethod
    def of(cls, network: nn.Module, split_at: str | None) -> Self:
        """The parts of a network, divided at a stage or block, by its module's name; None: at `middle`.

        Depth order inside a stage is the order of its parameters. ConfigError for what does not divide it.
        """
        held = stage_parameters(network)
        order = [(name, stage) for stage, names in held.items() for name in names]
        names, split_at, divided = list(held), split_at or middle(network), ""
        first = next((i for i, (name, _) in enumerate(order) if name.startswith(f"{split_at}.")), 0)
        stage = order[first][1]
        if split_at not in held and first:
            if order[first - 1][1] != stage:
                split_at = stage
            else:
                divided = stage
                names.insert(names.index(stage) + 1, split_at)
                order = [
                    (name, split_at if i >= first and owner == stage else owner)
                    for i, (name, owner) in enumerate(order)
                ]
        owners = dict(order)
        for name, owner in order:
            while name := name.rpartition(".")[0]:
                owners.setdefault(name, owner)
        return cls(tuple(names), split_at, owners, divided)

    def stage_of(self, name: str) -> str:
        """The stage of the parameter, buffer or module `name`; of a module, that of its first parameter."""
        while name and name not in self.owners and name not in self.stages:
            name = name.rpartition(".")[0]
        return self.owners.get(name, name or self.stages[0])

    def stages_of(self, part: str) -> tuple[str, ...]:
        """The stages of a part, in depth order."""
        split = self.stages.index(self.split_at)
        known = {
            "all": self.stages,
            "early": self.stages[:split],
            "late": self.stages[split:],
            "head": self.stages[-1:],
        }
        if part in known:
            return known[part]
        if part in self.stages:
            return (part, self.split_at) if part == self.divided else (part,)
        raise ConfigError(f"part {part!r} is not one of {', '.join((*known, *self.stages))}")

    def holds(self, part: str, name: str) -> bool:
        """Whether the parameter, buffer or module `name` (dotted) lies in `part`."""
        return self.stage_of(name) in self.stages_of(part)

    def parameters(self, network: nn.Module, part: str) -> list[nn.Parameter]:
        """The parameters of a part, in the network's order."""
        return [p for name, p in network.named_parameters() if self.holds(part, name)]
