"""`check_method` passes what keeps its promises, and says of what does not which one is broken and how."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from seal_ray import LEARN, Budget, EditContext, Method, Phase, learn
from seal_ray.errors import SealRayError
from seal_ray.methods import METHODS
from seal_ray.phases.schedule import Group
from seal_ray.testing import check_augmentation, check_loss, check_method, method_checks
from tests.runs import open_store, same_tensors, tiny_recipe, train_run

CALLS = itertools.count()


@dataclass(frozen=True)
class Plain(Method):
    """Trains, and forgets nothing."""

    name: ClassVar[str] = "plain"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return learn(budget)


@dataclass(frozen=True)
class Short(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length - (generation == 2), LEARN),)


@dataclass(frozen=True)
class ByList(Plain):
    def phases(self, generation: int, budget: Budget) -> Any:
        return list(learn(budget))


@dataclass(frozen=True)
class Middle(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length, (Group("middle"),)),)


@dataclass(frozen=True)
class Divides(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length // generation, LEARN),)


@dataclass(frozen=True)
class Counts(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase(f"learn{next(CALLS)}", budget.length, LEARN),)


class Loose:
    """An edit that is no frozen dataclass, so that no two are equal."""

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        pass


@dataclass(frozen=True)
class Edits(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length, LEARN, edit=Loose()),)


@dataclass(frozen=True)
class Drifts:
    """An edit that draws from torch's own generator, which no checkpoint keeps."""

    @torch.no_grad()
    def __call__(self, network: nn.Module, context: EditContext) -> None:
        for weight in network.parameters():
            weight.add_(0.01 * torch.randn(weight.shape))


@dataclass(frozen=True)
class Draws(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length, LEARN, edit=Drifts()),)


@dataclass(frozen=True)
class Remembers:
    """An edit that keeps weights."""

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        context.carried["before"] = {name: tensor.clone() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Unnamed(Plain):
    """Lists nothing in `carry`."""

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length, LEARN, edit=Remembers()),)


@dataclass(frozen=True)
class Named(Unnamed):
    carry: ClassVar[tuple[str, ...]] = ("before",)


@dataclass(frozen=True)
class Returns:
    """An edit that goes back to the weights that the run began with."""

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        network.load_state_dict(context.fresh(context.fixed_rng("init")))


@dataclass(frozen=True)
class Rewinds(Plain):
    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("learn", budget.length, LEARN, edit=Returns() if generation else None),)


@dataclass(frozen=True)
class Tall(Plain):
    split_at: str = "layer9"


FILLED, PURE = "phases fill every generation", "phases are a pure function of generation and budget"
RESUMED = "a run resumed at each epoch boundary is bit for bit the undisturbed one"
BROKEN: list[tuple[Method, str, str]] = [
    (Short(), FILLED, "generation 2 of 4 epochs: the phases have [3] epochs"),
    (ByList(), FILLED, "generation 0 of 4 epochs: is no tuple of Phase but [Phase("),
    (Middle(), FILLED, "part 'middle' is not one of all, early, late, head, conv1,"),
    (Divides(), FILLED, "ZeroDivisionError: "),
    (Tall(), FILLED, "method.split_at: 'layer9' does not divide the network"),
    (Counts(), PURE, "generation 0 of 4 epochs: asked twice, the phases differ"),
    (Edits(), PURE, "generation 0 of 4 epochs: asked twice, the phases differ"),
    (Draws(), RESUMED, "generation 0, epoch 0 is "),
    (Unnamed(), RESUMED, "an edit sets carried['before']; name it in the class's own `carry: "),
]


def test_what_an_edit_keeps_is_carried_where_the_method_names_it() -> None:
    check_method(Named(), ranks=False)


def test_an_edit_finds_the_weights_that_the_run_began_with(tmp_path: Path) -> None:
    recipe = tiny_recipe().model_copy(update={"method": Rewinds(split_at="layer3")})
    train_run(recipe, tmp_path)
    store = open_store(recipe, tmp_path)
    for generation in (1, 2):
        same_tensors(
            store.moment("init", 0).weights, store.moment("forgotten", generation).weights, "weights"
        )
    assert len({row["weights_sha256"] for row in store.rows()}) > 1


@dataclass(frozen=True)
class Brighter:
    """An augmentation, as it should be."""

    name: ClassVar[str] = "brighter"

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Any:
        return (torch.rand(count, 1, 1, 1, generator=generator),)

    def apply(self, images: Tensor, drawn: Any) -> Tensor:
        return (images + 0.1 * drawn[0]).clamp(0, 1)


@dataclass(frozen=True)
class DrawsElsewhere(Brighter):
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Any:
        return (torch.rand(count, 1, 1, 1),)


@dataclass(frozen=True)
class DrawsLate(Brighter):
    def apply(self, images: Tensor, drawn: Any) -> Tensor:
        return images + torch.rand(())


@dataclass(frozen=True)
class InPlace(Brighter):
    def apply(self, images: Tensor, drawn: Any) -> Tensor:
        return images.mul_(drawn[0])


@dataclass(frozen=True)
class Smaller(Brighter):
    def apply(self, images: Tensor, drawn: Any) -> Tensor:
        return images[..., 1:]


@dataclass(frozen=True)
class Loses(Brighter):
    def mix(self, targets: Tensor, drawn: Any) -> Tensor:
        return 0.5 * targets


@dataclass(frozen=True)
class Summed:
    name: ClassVar[str] = "summed"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")


@dataclass(frozen=True)
class OfClasses(Summed):
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.nll_loss(logits.log_softmax(dim=1), labels)


DRAWN, APPLIED = "draws are a pure function of the generator", "images are a pure function of the draws"
AVERAGED = "is a mean over images, of classes and of shares of classes"


@pytest.mark.parametrize(
    ("check", "one", "promise", "problem"),
    [
        (check_augmentation, DrawsElsewhere(), DRAWN, "drawn twice from one generator, they differ"),
        (check_augmentation, DrawsLate(), APPLIED, "applied twice, the images differ"),
        (check_augmentation, InPlace(), APPLIED, "apply changes the images that it is given"),
        (check_augmentation, Smaller(), APPLIED, "(6, 3, 16, 16) torch.float32 become (6, 3, 16, 15)"),
        (check_augmentation, Loses(), APPLIED, "mix gives no rows of shares that add up to 1"),
        (check_loss, Summed(), AVERAGED, "of each image twice is another than of each once"),
        (check_loss, OfClasses(), AVERAGED, "RuntimeError: "),
    ],
)
def test_a_broken_promise_of_an_augmentation_or_a_loss_is_named(
    check: Any, one: Any, promise: str, problem: str
) -> None:
    with pytest.raises(SealRayError) as error:
        check(one)
    assert f"{type(one).__name__} breaks its promises:\n  {promise}: " in str(error.value)
    assert problem in str(error.value)


def test_an_augmentation_that_keeps_them_passes() -> None:
    check_augmentation(Brighter())


@pytest.fixture(autouse=True)
def same_draws() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize(("method", "promise", "problem"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_promise_is_named(method: Method, promise: str, problem: str) -> None:
    with pytest.raises(SealRayError) as error:
        check_method(method)
    name = type(method).__name__
    first, second = str(error.value).split("\n", 1)
    assert first == f"the method {name} breaks its promises:"
    assert second.startswith(f"  {promise}: ")
    assert problem in second


def test_a_method_that_keeps_them_passes() -> None:
    check_method(METHODS["ban"](), ranks=True)


def test_two_processes_need_a_class_that_they_can_find() -> None:
    *kept, ranks = method_checks(Plain(), ranks=True)
    assert [result.problem for result in kept] == [""] * 3
    assert "where Ray's workers do not find it" in ranks.problem
