"""Every kind of network keeps what is said of ResNets: resume, ranks, stages, analyses, export."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seal_ray.analysis.curvature import measure_curvature
from seal_ray.analysis.depth import Examples, measure_depth
from seal_ray.analysis.similarity import movement
from seal_ray.data.images import Images
from seal_ray.errors import ConfigError
from seal_ray.networks import Parts, loose_parameters, outline, residual_blocks, stage_parameters, stages
from seal_ray.phases.edits import EditContext, Reinit
from seal_ray.phases.schedule import Position, Row
from seal_ray.plugins import PluginFile, using
from seal_ray.recipe import Job, Placement, Recipe, check_images, dump_job
from seal_ray.runs.export import export
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import run_id
from seal_ray.streams import stream
from seal_ray.testing import CheckFailed, check_network, network_checks, on_ranks
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.plugins import of_docs
from tests.runs import open_store, same_state, tiny_images, tiny_recipe, train_run

CODE = '''
from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import nn

import seal_ray


@seal_ray.network("mine")
class Mine(nn.Module):
    """Two convolutions, the second residual, and a scale."""

    def __init__(self, classes: int, width: Annotated[int, Ge(1)] = 4, drop: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + torch.rand(1))
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.more = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)
        self.drop = drop

    def forward(self, images):
        x = self.norm(self.conv(images * self.scale)).relu()
        x = (x + self.more(x).relu()).mean(dim=(2, 3))
        return self.head(nn.functional.dropout(x, self.drop, self.training))
'''
SIZE = 32
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"arch": "resnet18", "width": 4},
    "preact": {"arch": "preact18", "width": 4},
    "convnext": {
        "arch": "timm/convnext_atto",
        "depths": [1, 1, 2, 1],
        "dims": [8, 8, 16, 16],
        "drop_path_rate": 0.3,
    },
    "vit": {
        "arch": "timm/vit_tiny_patch16_224",
        "img_size": SIZE,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 2,
        "drop_path_rate": 0.3,
        "attn_drop_rate": 0.1,
    },
    "mobilenet": {"arch": "timm/mobilenetv3_small_050", "dropout": 0.2},
    "mine": {"arch": "mine", "drop": 0.2},
}
STAGES = {
    "resnet": ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"),
    "preact": ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "linear"),
    "convnext": ("stem", "stages.0", "stages.1", "stages.2", "stages.3", "head.norm", "head.fc"),
    "vit": ("patch_embed", "blocks.0", "blocks.1", "blocks.2", "head"),
    "mobilenet": ("conv_stem", *(f"blocks.{i}" for i in range(6)), "conv_head", "classifier"),
    "mine": ("conv", "norm", "more", "head"),
}
MIDDLES = {
    "resnet": "layer3",
    "preact": "layer3",
    "convnext": "stages.2",
    "vit": "blocks.1",
    "mobilenet": "blocks.3",
    "mine": "more",
}
METHODS: dict[str, dict[str, Any]] = {
    "seal": {"name": "seal", "ascent_rate": 0.1, "ascent_share": 0.5},
    "llf": {"name": "llf"},
}
every_network = pytest.mark.parametrize("kind", MODELS)


def recipe_of(kind: str, method: Any = "normal", **changes: Any) -> Recipe:
    """Two generations of two epochs of two steps."""
    budget = {"epochs": 4, "generation_length": 2}
    with using([PluginFile("mine.py", CODE)]):
        return tiny_recipe(method, model={**MODELS[kind], **changes}, budget=budget)


def images_of(train: int = 30) -> Images:
    return tiny_images(train, size=SIZE)


def network_of(kind: str, seed: int = 0) -> nn.Module:
    return recipe_of(kind).model.build(3, stream(seed, "init"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Store]:
    """The run of a network with a method, trained when it is first asked for; tests must not change it."""

    @functools.cache
    def trained(kind: str, method: str) -> Store:
        recipe, images = recipe_of(kind, METHODS[method]), images_of()
        folder = tmp_path_factory.mktemp(kind) / run_id(recipe, images.identity)
        train_run(recipe, folder, images=images)
        return open_store(recipe, folder, images=images)

    return trained


@pytest.mark.parametrize("method", METHODS)
@every_network
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    kind: str, method: str, undisturbed: Callable[[str, str], Store], tmp_path: Path
) -> None:
    recipe, images = recipe_of(kind, METHODS[method]), images_of()
    for _ in range(4):
        train_run(recipe, tmp_path, epochs=1, images=images)
    interrupted = open_store(recipe, tmp_path, images=images)
    for at in (Position(generation, epoch) for generation in range(2) for epoch in range(2)):
        same_state(undisturbed(kind, method).at(at), interrupted.at(at))


def digest(row: Row) -> tuple[str, str]:
    return row["weights_sha256"], repr(row["train_loss"])


def digests() -> list[tuple[str, str]]:
    return [
        digest(result.row)
        for kind in MODELS
        for method in METHODS.values()
        for result in train_run(recipe_of(kind, method), None, images=images_of())
    ]


def test_two_shards_in_one_process_give_the_bits_of_two_ranks(
    undisturbed: Callable[[str, str], Store],
) -> None:
    one = [digest(r) for kind in MODELS for method in METHODS for r in undisturbed(kind, method).rows()]
    assert len(set(one)) == len(one) - 2 * len(MODELS)  # both methods begin with the same generation of two
    for rank in on_ranks(2, digests):
        assert rank == one


@every_network
def test_every_parameter_is_in_exactly_one_stage_and_depth_comes_first(kind: str) -> None:
    network = network_of(kind)
    held = stage_parameters(network)
    assert tuple(held) == STAGES[kind]
    assert sorted(n for names in held.values() for n in names) == sorted(dict(network.named_parameters()))
    parts = Parts.of(network, None)
    assert recipe_of(kind).method.split_at == parts.split_at == MIDDLES[kind]
    early, late, every = ({*parts.parameters(network, part)} for part in ("early", "late", "all"))
    assert not early & late
    assert early | late == every == set(network.parameters())
    before = STAGES[kind][: STAGES[kind].index(MIDDLES[kind])]
    assert early == {network.get_parameter(name) for stage in before for name in held[stage]}
    head = {*parts.parameters(network, "head")}
    assert head == {*network.get_submodule(STAGES[kind][-1]).parameters()}
    assert isinstance(network.get_submodule(STAGES[kind][-1]), nn.Linear)


@pytest.mark.parametrize(
    ("kind", "block", "divided"),
    [
        ("resnet", "layer3.1", "layer3"),
        ("preact", "layer3.0.conv1", "layer3"),
        ("convnext", "stages.2.blocks.1", "stages.2"),
        ("vit", "blocks.1.mlp", "blocks.1"),
        ("mobilenet", "blocks.3.1", "blocks.3"),
    ],
)
def test_a_network_may_be_divided_at_a_block(kind: str, block: str, divided: str) -> None:
    network = network_of(kind)
    parts = Parts.of(network, block)
    names = [name for stage in stage_parameters(network).values() for name in stage]
    first = next(i for i, name in enumerate(names) if name.startswith(f"{block}."))
    assert {*parts.parameters(network, "early")} == {network.get_parameter(name) for name in names[:first]}
    assert {*parts.parameters(network, "late")} == {network.get_parameter(name) for name in names[first:]}
    assert parts.stages_of(divided) == (divided, block)
    assert {*parts.parameters(network, divided)} == {
        network.get_parameter(name) for name in stage_parameters(network)[divided]
    }
    assert recipe_of(kind, {"name": "seal", "split_at": block, "ascent_share": 0.5}).method.split_at == block


@every_network
def test_initial_weights_are_the_networks_own_and_a_function_of_the_seed(kind: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = network_of(kind).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = network_of(kind).state_dict(), network_of(kind, seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert all(tensor.isfinite().all() for tensor in one.values())
    drawn = {name for name, tensor in one.items() if tensor.dim() > 1}
    assert drawn
    assert all(not torch.equal(one[name], other[name]) for name in drawn - {"cls_token", "pos_embed"})


@every_network
def test_reinit_draws_the_part_and_keeps_norms_biases_and_the_rest(kind: str) -> None:
    recipe = recipe_of(kind)
    network = network_of(kind)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    parts = Parts.of(network, None)
    context = EditContext(
        parts,
        lambda purpose: stream(0, purpose),
        lambda purpose: stream(0, purpose),
        lambda generator: recipe.model.build(3, generator).state_dict(),
        {},
        lambda batches: iter(()),
    )
    Reinit("early")(network, context)
    changed = {n for n, parameter in network.named_parameters() if not torch.equal(parameter, before[n])}
    layers = {n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    expected = {f"{name}.weight" for name in layers} | {*loose_parameters(network)}
    assert changed == {name for name in expected if parts.holds("early", name)}
    if kind == "vit":
        assert {"cls_token", "pos_embed"} <= changed


FORGETTING = [{"name": name} for name in ("shrink_perturb", "layerwise", "dnr", "swr", "dash", "cold")]


@pytest.mark.parametrize(
    "method", [*FORGETTING, {"name": "redo", "threshold": 0.9}], ids=lambda method: method["name"]
)
@every_network
def test_every_way_to_forget_works_for_it(kind: str, method: dict[str, Any]) -> None:
    recipe = recipe_of(kind, method)
    run = Run(recipe, images_of(), None, World(), Placement())
    run.first, run.next = 0, Position(1, 0)
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    run.edit(recipe.method.phases(1, recipe.budget)[0], 1)
    after = run.network.state_dict()
    layers = {f"{n}.weight" for n, m in run.network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert layers & {name for name in before if not torch.equal(before[name], after[name])}
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_what_a_network_draws_depends_on_seed_and_position_alone() -> None:
    recipe = recipe_of("mine", drop=0.5)
    run = Run(recipe, images_of(), None, World(), Placement())

    def drawn(step: int, shard: int) -> torch.Tensor:
        run.step = step
        with run.drawing(shard, None):
            return torch.rand(4)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(drawn(1, 0), drawn(1, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(drawn(step, shard).tolist()) for step in range(3) for shard in range(2)}) == 6
    assert [row.row["weights_sha256"] for row in train_run(recipe, None, 1, images=images_of())] != [
        row.row["weights_sha256"] for row in train_run(recipe_of("mine"), None, 1, images=images_of())
    ]


@every_network
def test_an_export_gives_the_logits_of_the_run(
    kind: str, undisturbed: Callable[[str, str], Store], tmp_path: Path
) -> None:
    recipe, store = recipe_of(kind, METHODS["llf"]), undisturbed(kind, "llf")
    folder = tmp_path / store.run_id
    shutil.copytree(store.folder, folder)
    job = Job(name="trial", recipe=recipe, plugins={"mine.py": CODE})
    (folder / "plugins").mkdir()
    (folder / "plugins" / "mine.py").write_text(CODE)
    (folder / "job.yaml").write_text(dump_job(job))
    exported = export(folder, tmp_path / "w.safetensors")
    trained, again = recipe.model.build(3, stream(1, "init")), recipe.model.build(3, stream(2, "init"))
    trained.load_state_dict(store.moment("relearned", 1).weights)
    again.load_state_dict(load_file(exported.path))
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(trained.eval()(x), again.eval()(x))
    assert MODELS[kind]["arch"].removeprefix("timm/") in exported.card.read_text()


def noise(count: int, seed: int) -> Examples:
    pixels = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return Examples.from_tensors(pixels, torch.arange(count) % 3)


@every_network
def test_depth_is_measured_at_each_block(kind: str) -> None:
    network = network_of(kind).eval()
    found = measure_depth(network, noise(30, 0), noise(12, 1), k=3, support_size=30, points=12)
    inner = residual_blocks(network) or stages(network)[:-1]
    assert found.probes == ("input", *(["stem"] if residual_blocks(network) else []), *inner, "softmax")
    assert found.val.depths.min() >= 0
    assert found.val.depths.max() <= len(found.probes)


@every_network
def test_the_hessian_is_that_of_finite_differences(kind: str) -> None:
    """The quadratic form of the trace's mean sign vector: v'Hv against the gradient along v, in float64."""
    network = network_of(kind).eval().double()
    x = torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(6) % 3
    found = measure_curvature(
        network, x, y, parts=Parts.of(network, None), part="late", label_smoothing=0.0, steps=4, top=1
    )
    vector = found.top_vectors[0]
    held = [network.get_parameter(name) for name in found.names]

    def gradient(step: float) -> torch.Tensor:
        pieces = vector.split([p.numel() for p in held])
        with torch.no_grad():
            for p, v in zip(held, pieces, strict=True):
                p.add_(step * v.view(p.shape))
        loss = nn.functional.cross_entropy(network(x), y)
        grads = torch.autograd.grad(loss, held)
        with torch.no_grad():
            for p, v in zip(held, pieces, strict=True):
                p.sub_(step * v.view(p.shape))
        return torch.cat([g.reshape(-1) for g in grads])

    step = 1e-5
    curved = float(vector @ (gradient(step) - gradient(-step))) / (2 * step)
    assert curved == pytest.approx(found.largest[0].value, rel=1e-3)


@every_network
def test_movement_is_of_each_stage(kind: str) -> None:
    network, other = network_of(kind), network_of(kind, seed=1)
    moved = movement(network, network.state_dict(), other.state_dict())
    assert tuple(moved) == STAGES[kind]
    whole = np.sqrt(sum(one.distance**2 for one in moved.values()))
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    assert whole == pytest.approx(
        float(sum((a - b).detach().double().square().sum() for a, b in pairs)) ** 0.5
    )


def test_an_outline_has_the_shapes_and_no_weights() -> None:
    model = recipe_of("vit").model
    shapes = {name: p.shape for name, p in model.outline(3).named_parameters()}
    assert shapes == {name: p.shape for name, p in network_of("vit").named_parameters()}
    assert all(p.is_meta for p in outline("resnet50", classes=7).parameters())


def test_forgetting_from_a_block_on_leaves_what_comes_before_it(tmp_path: Path) -> None:
    """LLF divided inside a stage: of the weights of generation 0 those before the block survive the edit."""
    recipe = tiny_recipe(
        {"name": "llf", "split_at": "layer3.1"}, budget={"epochs": 4, "generation_length": 2}
    )
    train_run(recipe, tmp_path)
    store = open_store(recipe, tmp_path)
    learned, forgotten = store.moment("relearned", 0).weights, store.moment("forgotten", 1).weights
    changed = {name for name, tensor in learned.items() if not torch.equal(tensor, forgotten[name])}
    late = ("layer3.1.", "layer4.", "fc.")
    assert changed == {name for name, t in learned.items() if name.startswith(late) and t.dim() > 1}


def test_a_networks_code_is_part_of_the_run_id() -> None:
    ids = set()
    for code in (CODE, CODE + "# another\n"):
        with using([PluginFile("mine.py", code)]):
            ids.add(run_id(tiny_recipe(model={"arch": "mine"}), "data"))
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("size", "said"), [(64, "cannot read images of 64 x 64 pixels: Input height"), (SIZE, None)]
)
def test_a_network_that_cannot_read_the_images_is_refused_before_anything_starts(
    size: int, said: str | None
) -> None:
    model = recipe_of("vit").model
    if said is None:
        check_images(model, size)
    else:
        with pytest.raises(ConfigError, match=said):
            check_images(model, size)


def broken(name: str, body: str) -> str:
    """A plugin file with a network that does in `forward` or while it is made what it must not."""
    return f"""
import itertools
import numpy
import torch
from torch import nn
import seal_ray

CALLS = itertools.count()


@seal_ray.network("{name}")
class Broken(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, classes)
        self.more()

    def more(self):
        pass

    def forward(self, x):
        return self.head(self.conv(x).relu().mean(dim=(2, 3)))

{body}
"""


BROKEN = {
    "counts": (
        "    def more(self):\n        nn.init.constant_(self.conv.weight, next(CALLS))\n",
        "initial weights are a pure function of the seed: conv.weight differs between two draws from one",
    ),
    "constant": (
        "    def more(self):\n        [nn.init.zeros_(p) for p in self.parameters()]\n",
        "initial weights are a pure function of the seed: two seeds draw the same weights",
    ),
    "unused": (
        "    def more(self):\n        self.other = nn.Conv2d(4, 4, 1)\n",
        "each parameter lies in one stage and is trained: ['other.weight', 'other.bias'] get no gradient",
    ),
    "tokens": (
        "    def forward(self, x):\n        return self.head(self.conv(x).flatten(2).transpose(1, 2))\n",
        "each parameter lies in one stage and is trained: 4 images and 3 classes give (4, 900, 3)",
    ),
    "drifts": (
        "    def forward(self, x):\n        noise = 1 + 0.1 * next(CALLS)\n"
        "        return self.head(self.conv(x * noise).relu().mean(dim=(2, 3)))\n",
        "a run resumed at each epoch boundary is bit for bit the undisturbed one: ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_network_names_the_promise_that_is_broken(name: str) -> None:
    body, said = BROKEN[name]
    with using([PluginFile(f"{name}.py", broken(name, body))]), pytest.raises(CheckFailed) as error:
        check_network(name)
    assert str(error.value).startswith(f"the network {name} breaks its promises:\n  {said}")


def test_check_network_passes_what_keeps_them() -> None:
    with using([PluginFile("mine.py", CODE)]):
        assert [result.problem for result in network_checks("mine", ranks=True, drop=0.3)] == [""] * 4
    check_network("timm/test_convnext", drop_path_rate=0.2)


def test_the_network_of_the_readme_keeps_its_promises() -> None:
    with using([PluginFile("two.py", of_docs("network"))]):
        check_network("two_layers")
