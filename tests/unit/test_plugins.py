"""Other people's methods: how their code is found, what is refused, and that it goes where a run goes."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from pydantic import ValidationError

import seal_ray
from seal_ray.config.plugin_files import given_files, trust
from seal_ray.data.images import Images
from seal_ray.data.prepared import load_dataset
from seal_ray.distributed.launch import begin, prepare_job
from seal_ray.errors import ConfigError, SealRayWarning
from seal_ray.jobs import analysis_spec, sent_files, training_spec
from seal_ray.methods import METHODS, Method
from seal_ray.phases.schedule import Budget, Phase
from seal_ray.plugins import (
    MODULE,
    PluginFile,
    files_of,
    installed_packages,
    loaded_files,
    source_digest,
    using,
)
from seal_ray.recipe import Job, Recipe, check_sendable, dump_job, load_job, received_job
from seal_ray.runs.export import export
from seal_ray.runs.lineage import generation_keys
from seal_ray.runs.summary import summarise
from seal_ray.storage.paths import ObjectPath
from seal_ray.sweeps.file import load_sweep
from seal_ray.testing import tiny_images, tiny_recipe
from seal_ray.training.loop import fit
from tests.plugins import FOCAL, method_of_docs, of_docs, plain_method, write_job
from tests.runs import keeping


@pytest.fixture(autouse=True)
def forget_files() -> Iterator[None]:
    """What one test loads is not loaded in the next."""
    yield
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A plugin file, beside the job files of a test."""
    (tmp_path / "mine.py").write_text(plain_method())
    return tmp_path / "mine.py"


def refused(load: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        load()
    return str(error.value)


def test_a_job_finds_the_methods_of_the_files_that_it_names_and_no_other_job_does(
    mine: Path, tmp_path: Path
) -> None:
    job = load_job(write_job(tmp_path / "run.yaml", {"name": "mine", "strength": 2.0}))
    method: Any = job.recipe.method
    assert (type(method).__name__, method.name, method.strength) == ("Mine", "mine", 2.0)
    assert job.plugins == {"mine.py": mine.read_text()}
    assert "mine" not in METHODS
    without = write_job(tmp_path / "without.yaml", plugins=None)
    assert re.fullmatch(
        r".*without\.yaml:7: recipe\.method: must be 'normal', .*'ke', .*, not 'mine'",
        refused(lambda: load_job(without)),
    )


def test_its_fields_are_checked_as_those_of_built_in_methods(mine: Path, tmp_path: Path) -> None:
    for value, said in {
        "-1.0": "recipe.method.strength: must be greater than 0, not -1.0",
        "weak": "recipe.method.strength: must be a number, not 'weak'",
    }.items():
        job = write_job(tmp_path / "run.yaml", {"name": "mine", "strength": yaml.safe_load(value)})
        assert refused(lambda job=job: load_job(job)) == f"{job}:11: {said}"
    job = write_job(tmp_path / "run.yaml", {"name": "mine", "strenght": 1.0})
    assert refused(lambda: load_job(job)).endswith(
        "recipe.method.strenght: unknown field; did you mean 'strength'? (fields: name, split_at, strength)"
    )
    job = write_job(tmp_path / "run.yaml", "mien")
    assert refused(lambda: load_job(job)).endswith(" or 'mine', not 'mien'; did you mean 'mine'?")


def test_a_line_of_a_plugin_file_is_no_part_of_what_a_built_in_run_computes(
    mine: Path, tmp_path: Path
) -> None:
    plain = load_job(write_job(tmp_path / "plain.yaml", "llf", plugins=None))
    with_file = load_job(write_job(tmp_path / "with.yaml", "llf"))
    assert with_file.recipe == plain.recipe


OUTSIDE: dict[str, tuple[Any, str]] = {
    "above": (["../mine.py"], r"plugins\.0: \.\./mine\.py: leads out of the YAML's folder, .*sub"),
    "round about": (["deeper/../../mine.py"], r"plugins\.0: .*leads out of the YAML's folder"),
    "absolute": (["/etc/mine.py"], r"plugins\.0: /etc/mine\.py: must be relative to the YAML's folder"),
    "object store": (["s3://bucket/mine.py"], r"plugins\.0: s3://bucket/mine\.py: must be relative"),
    "missing": (["./none.py"], r"plugins\.0: .*sub/none\.py: no such file"),
    "a folder": (["./folder.py"], r"plugins\.0: .*folder\.py: cannot be read: Is a directory"),
    "no Python": (["./notes.txt"], r"plugins\.0: .*notes\.txt: is no Python file; its name must end in \.py"),
    "no text": (["./binary.py"], r"plugins\.0: .*binary\.py: is not UTF-8 text"),
    "a link that leaves": (["./link.py"], r"plugins\.0: \./link\.py: leads out of the YAML's folder"),
    "through a linked folder": (["linked/mine.py"], r"plugins\.0: linked/mine\.py: leads out"),
    "a number": ([3], r"plugins\.0: must be a file, such as \./mine\.py, not 3"),
    "no list": ("./fine.py", r"plugins: must be a list of files, such as \[\./mine\.py\], not '\./fine\.py'"),
    "code itself": ({"mine.py": "import os"}, r"plugins: must be a list of files"),
}


@pytest.mark.parametrize(("plugins", "said"), OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("load", [load_job, load_sweep], ids=["job", "sweep"])
def test_only_files_of_the_yamls_own_folder_tree_are_run(
    load: Callable[[Path], object], plugins: Any, said: str, mine: Path, tmp_path: Path
) -> None:
    sub = tmp_path / "sub"
    (sub / "deeper").mkdir(parents=True)
    (sub / "folder.py").mkdir()
    (sub / "notes.txt").write_text("x = 1")
    (sub / "binary.py").write_bytes(b"\xff\xfe")
    (sub / "link.py").symlink_to(mine)
    (sub / "linked").symlink_to(tmp_path)
    path = write_job(
        sub / "run.yaml", plugins=plugins, **({"axes": {"seed": [1, 2]}} if load is load_sweep else {})
    )
    line = 2 if isinstance(plugins, list) else 1
    assert re.search(rf"run\.yaml:{line}: {said}", refused(lambda: load(path)))
    assert not [name for name in sys.modules if name.startswith(MODULE)]


def test_a_link_to_a_file_of_the_same_tree_is_followed(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(mine)
    assert load_job(write_job(tmp_path / "run.yaml", plugins=["link.py"])).recipe.method.name == "mine"


def test_a_file_on_the_command_line_may_lie_anywhere(mine: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path / "elsewhere" / "run.yaml", plugins=None)
    assert load_job(job, plugins=[mine]).recipe.method.name == "mine"
    assert refused(lambda: given_files([tmp_path / "none.py"])).endswith("none.py: no such file")


BROKEN = {
    "raises": ("x = 1\ndef go():\n    return 1 / 0\n\ngo()\n", r"mine\.py:3: fails: ZeroDivisionError: .+"),
    "syntax": ("x = 1\nif x\n", r"mine\.py:2: fails: SyntaxError: .+"),
    "exits": ("import sys\nsys.exit(3)\n", r"mine\.py:2: fails: SystemExit: 3"),
    "imports nothing": ("import no_such_package_here\n", r"mine\.py:1: fails: ModuleNotFoundError: .+"),
    "no dataclass": (
        "import seal_ray\n\n@seal_ray.method\nclass Mine(seal_ray.Method):\n    name = 'mine'\n",
        r"mine\.py:\d: the method Mine is no frozen dataclass; write @dataclass\(frozen=True\) under .+",
    ),
    "no method": (
        "import seal_ray\n\n@seal_ray.method\nclass Mine:\n    name = 'mine'\n",
        r"mine\.py:\d: the method Mine does not extend seal_ray\.Method",
    ),
    "a name that is no folder's": (
        plain_method("Mine/2"),
        r"mine\.py:\d+: the method Mine is called 'Mine/2'; .+",
    ),
    "a name that is a field": (
        plain_method().replace("name: ClassVar[str]", "name: str"),
        r"mine\.py:\d+: the method Mine has its name as a field; write name: ClassVar\[str\]",
    ),
    "no phases": (
        plain_method().replace("def phases", "def stages"),
        r"mine\.py:\d+: the method Mine says no phases",
    ),
    "a built-in name": (
        plain_method("seal"),
        r"mine\.py:\d+: two classes register the method 'seal': Seal of .*methods/seal\.py and Mine of "
        r".*mine\.py \(sha256 [0-9a-f]{12}\); rename one",
    ),
    "the same name twice": (
        plain_method() + plain_method(cls="Other"),
        r"mine\.py:\d+: two classes register the method 'mine': Mine of .*mine\.py .* and Other of "
        r".*; rename one",
    ),
}


@pytest.mark.parametrize(("code", "said"), BROKEN.values(), ids=BROKEN)
def test_code_that_fails_is_an_error_with_its_file_and_line(
    code: str, said: str, mine: Path, tmp_path: Path
) -> None:
    mine.write_text(code)
    job = write_job(tmp_path / "run.yaml")
    for _ in range(2):
        assert re.search(rf"^{re.escape(str(tmp_path))}/{said}$", refused(lambda: load_job(job)))


def test_files_are_loaded_before_the_rest_is_checked(mine: Path, tmp_path: Path) -> None:
    mine.write_text("raise ValueError('first')")
    job = write_job(tmp_path / "run.yaml", nonsense=1)
    assert refused(lambda: load_job(job)) == f"{tmp_path}/mine.py:1: fails: ValueError: first"


def test_two_files_of_one_method_are_refused_and_the_same_one_twice_is_not(
    mine: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(plain_method(cls="Other"))
    (tmp_path / "again.py").write_text(plain_method())
    job = write_job(tmp_path / "run.yaml", plugins=["mine.py", "other.py"])
    said = refused(lambda: load_job(job))
    assert re.search(
        r"two classes register the method 'mine': Mine of .*mine\.py .*Other of .*other\.py", said
    )
    assert load_job(write_job(tmp_path / "run.yaml", plugins=["mine.py", "again.py"])).recipe.method
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text(plain_method("third"))
    job = write_job(tmp_path / "run.yaml", plugins=["mine.py", "sub/mine.py"])
    assert re.search(r"mine\.py and .*sub/mine\.py differ and have one name", refused(lambda: load_job(job)))


def test_runs_whose_files_define_one_name_in_two_ways_are_read_side_by_side(tmp_path: Path) -> None:
    jobs = []
    for folder, strength in (("old", 0.5), ("new", 0.7)):
        path = write_job(tmp_path / folder / "run.yaml")
        (path.parent / "mine.py").write_text(plain_method().replace("0.5", str(strength)))
        jobs.append(load_job(path))
    assert [job.recipe.method.strength for job in jobs] == [0.5, 0.7]  # type: ignore[attr-defined]


def test_a_sweep_uses_its_own_files_and_those_of_its_base(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "other.py").write_text(plain_method("other"))
    write_job(tmp_path / "run.yaml")
    fields = {"base": "../run.yaml", "plugins": ["other.py"], "axes": {"method": ["mine", "other", "llf"]}}
    path = tmp_path / "sweeps" / "sweep.yaml"
    path.write_text(yaml.safe_dump(fields))
    runs = load_sweep(path).runs
    assert [run.job.recipe.method.name for run in runs] == ["mine", "other", "llf"]
    assert all(set(run.job.plugins) == {"mine.py", "other.py"} for run in runs)
    assert [received_job(run.job.model_dump(mode="json")) for run in runs] == [run.job for run in runs]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return ()", r"method: the phases \(\) do not fill the 4 epochs of generation 0"),
        (
            "return (Phase('learn', 3, LEARN),)",
            r"method: the phases \(learn 3\) do not fill the 4 epochs of ",
        ),
        (
            "return (Phase('a', 5, LEARN), Phase('b', -1, LEARN))",
            r"method: the phases \(a 5, b -1\) do not fill the 4 epochs",
        ),
    ],
)
def test_phases_that_do_not_fill_a_generation_are_refused(
    body: str, said: str, mine: Path, tmp_path: Path
) -> None:
    mine.write_text(plain_method(body=body))
    job = write_job(tmp_path / "run.yaml")
    assert re.search(rf"run\.yaml:\d+: recipe\.{said}", refused(lambda: load_job(job)))


# Augmentations and losses


def own_choices(folder: Path, strength: float = 0.3) -> Path:
    """A job of a loss and an augmentation of plugin files."""
    path = write_job(folder / "run.yaml", "llf", ["noise.py", "focal.py"])
    (folder / "noise.py").write_text(of_docs("augmentation"))
    (folder / "focal.py").write_text(FOCAL)
    fields = yaml.safe_load(path.read_text())
    fields["recipe"] |= {"loss": {"name": "focal", "gamma": 1.0}}
    fields["recipe"]["augment"]["then"] = ["mixup", {"name": "noise", "strength": strength}]
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def test_augmentations_and_losses_of_files_go_where_a_run_goes(tmp_path: Path) -> None:
    job = load_job(own_choices(tmp_path))
    noise, focal = job.recipe.augment.then[1], job.recipe.loss
    assert (noise.strength, focal.gamma) == (0.3, 1.0)  # type: ignore[attr-defined]
    check_sendable(job)
    assert received_job(job.model_dump(mode="json")) == job
    for name, field in {"noise.py": "augment.then.1: Noise", "focal.py": "loss: Focal"}.items():
        kept = {key: code for key, code in job.plugins.items() if key != name}
        said = refused(lambda kept=kept: check_sendable(job.model_copy(update={"plugins": kept})))
        assert said.startswith(f"recipe.{field} is not among what the job's workers load; decorate it with @")
    assert all(math.isfinite(epoch.row["train_loss"]) for epoch in fit(job.recipe, tiny_images()))
    said = refused(lambda: load_job(own_choices(tmp_path, -1.0)))
    assert said.endswith("recipe.augment.then.1.strength: must be greater than 0, not -1.0")


def test_what_an_augmentation_or_a_loss_of_a_file_does_is_part_of_the_key(tmp_path: Path) -> None:
    keys = [generation_keys(load_job(own_choices(tmp_path)).recipe, "images")[0]]
    keys.append(generation_keys(load_job(own_choices(tmp_path, 0.2)).recipe, "images")[0])
    for name in ("noise.py", "focal.py"):
        job = own_choices(tmp_path)
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# changed\n")
        keys.append(generation_keys(load_job(job).recipe, "images")[0])
    assert len(set(keys)) == 4
    assert generation_keys(load_job(own_choices(tmp_path / "copy")).recipe, "images")[0] == keys[0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            of_docs("augmentation").replace("def draw", "def drew"),
            "the augmentation Noise needs the functions draw",
        ),
        (
            of_docs("augmentation").replace('"noise"', '"cutout"'),
            "two classes register the augmentation 'cutout'",
        ),
        (FOCAL.replace("(frozen=True)", ""), "the loss Focal is no frozen dataclass; write @dataclass"),
    ],
)
def test_what_is_no_augmentation_or_loss_is_refused(code: str, said: str, mine: Path, tmp_path: Path) -> None:
    mine.write_text(code)
    assert said in refused(lambda: load_job(write_job(tmp_path / "run.yaml", "llf")))


# Installed packages


def install(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point, as pip leaves it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[seal_ray.plugins]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def fresh_packages() -> Iterator[None]:
    """The installed packages are looked for anew, and those of a test forgotten after it."""
    installed_packages.cache_clear()
    yield
    installed_packages.cache_clear()
    for module in [module for module in METHODS._classes if module.startswith("sr_test_")]:
        del METHODS._classes[module]


@pytest.mark.usefixtures("fresh_packages")
def test_an_installed_package_offers_its_methods_to_every_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "sr_test_good", plain_method("packaged"), monkeypatch)
    job = load_job(write_job(tmp_path / "run.yaml", "packaged", plugins=None))
    assert type(job.recipe.method).__module__ == "sr_test_good"
    check_sendable(job)
    assert tiny_recipe("packaged").method.name == "packaged"


@pytest.mark.usefixtures("fresh_packages")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import none_such", "ModuleNotFoundError: "),
        (plain_method("llf"), "two classes register the method 'llf'"),
    ],
)
def test_an_installed_package_that_fails_is_left_out_with_a_warning(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "sr_test_bad", code, monkeypatch)
    with pytest.warns(SealRayWarning, match=rf"installed package sr_test_bad is left out: .*{said}"):
        job = load_job(write_job(tmp_path / "run.yaml", "llf", plugins=None))
    assert type(job.recipe.method) is METHODS["llf"]


# From Python


@dataclass(frozen=True)
class Unregistered(Method):
    """As somebody tries one out in a notebook."""

    name: ClassVar[str] = "unregistered"
    share: float = 0.5

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        return seal_ray.learn(budget)


def test_an_instance_of_a_class_of_ones_own_trains_in_this_process() -> None:
    recipe = tiny_recipe(Unregistered(share=0.25))
    assert recipe.method == Unregistered(split_at="layer3", share=0.25)
    rows = [epoch.row for epoch in fit(recipe, tiny_images())]
    assert len(rows) == 12
    assert rows[0]["run_id"].startswith("unregistered-s0-")
    with pytest.raises(ValidationError, match="valid number"):
        tiny_recipe(Unregistered(share="half"))  # type: ignore[arg-type]


def test_handed_to_ray_it_is_refused_with_the_words_how_to_make_it_a_file(mine: Path, tmp_path: Path) -> None:
    job = Job(name="x", recipe=tiny_recipe(Unregistered()))
    said = refused(lambda: check_sendable(job))
    assert "Unregistered" in said
    assert "plugins: [./mine.py]" in said
    loaded = load_job(write_job(tmp_path / "run.yaml"))
    check_sendable(loaded)
    assert "plugins: [./mine.py]" in refused(
        lambda: check_sendable(loaded.model_copy(update={"plugins": {}}))
    )
    assert "plugins: [./mine.py]" in refused(lambda: files_of(Unregistered))
    check_sendable(Job(name="x", recipe=tiny_recipe("llf")))


def test_the_code_shows_in_tracebacks_and_to_inspect_without_its_file(tmp_path: Path) -> None:
    code = plain_method()
    file = PluginFile("s3://bucket/run/plugins/mine.py", code)
    with using([file]):
        cls = METHODS["mine"]
    assert inspect.getsource(sys.modules[cls.__module__]) == code
    assert source_digest(cls) == file.digest == hashlib.sha256(code.encode()).hexdigest()
    assert loaded_files() == files_of(cls) == (file,)
    assert source_digest(METHODS["llf"]) is None
    assert source_digest(Unregistered) == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


# Runs


@pytest.fixture
def noisy(tmp_path: Path, digits: Path) -> Path:
    """The documentation's method in a job file that trains on digits."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "weight_noise.py").write_text(method_of_docs())
    path = write_job(
        tmp_path / "jobs" / "run.yaml",
        "weight_noise",
        ("./weight_noise.py",),
        placement={"storage": str(tmp_path / "runs"), "tracking": {"wandb": "off"}},
    )
    text = path.read_text().replace("path: unused", f"path: {digits}")
    path.write_text(text)
    return path


def test_a_run_keeps_a_copy_from_which_it_is_read_and_exported_without_the_file(
    noisy: Path, tmp_path: Path
) -> None:
    planned = prepare_job(load_job(noisy))
    begin(planned, lambda text: None)
    images = Images.from_dataset(load_dataset(Path(planned.job.recipe.data.path)), loader="torch")
    list(fit(planned.job.recipe, images, store=planned.store))
    code = noisy.with_name("weight_noise.py")
    folder = planned.store.folder
    assert isinstance(folder, Path)
    assert (folder / "plugins" / "weight_noise.py").read_bytes() == code.read_bytes()
    assert yaml.safe_load((folder / "job.yaml").read_text())["plugins"] == ["plugins/weight_noise.py"]

    code.unlink()
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
    again = prepare_job(load_job(folder / "job.yaml"))
    assert again.run_id == planned.run_id
    assert summarise(folder)["status"] == "finished"
    exported = export(folder, tmp_path / "weights.safetensors")
    assert exported.moment == "g002-relearned"
    assert "| method | weight_noise |" in exported.card.read_text()


def test_what_workers_are_given_needs_no_file(noisy: Path) -> None:
    job = load_job(noisy)
    data, keys = job.model_dump(mode="json"), generation_keys(job.recipe, "images")
    noisy.with_name("weight_noise.py").unlink()
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
    received = received_job(data)
    assert generation_keys(received.recipe, "images") == keys
    assert dataclasses.asdict(received.recipe.method) == dataclasses.asdict(job.recipe.method)
    assert dump_job(received) == dump_job(job)


def test_weights_are_changed_as_the_formula_says(noisy: Path) -> None:
    recipe = load_job(noisy).recipe
    images = tiny_images()
    recipe = Recipe.model_validate({**dict(recipe), "data": {"path": "unused"}})
    store = seal_ray.open_store(noisy.parent / "runs", recipe, images)
    from seal_ray.networks import build
    from seal_ray.streams import stream

    names = [name for name, _ in build("resnet18", classes=3, generator=stream(0, "")).named_parameters()]
    list(fit(recipe, images, store=store, placement=keeping(("forgotten", "relearned"))))
    for generation in (1, 2):
        before = store.moment("relearned", generation - 1).weights
        after = store.moment("forgotten", generation).weights
        rng = stream(recipe.seed, "edit", generation)
        for name in names:
            factor = 1 + 0.5 * torch.randn(before[name].shape, generator=rng)
            assert (after[name] - factor * before[name]).abs().max() < 1e-6, name
        assert all(bool((after[name] == before[name]).all()) for name in before.keys() - {*names})


def test_a_job_sends_the_files_that_it_names(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.py").write_text(plain_method("more"))
    places = {"placement": {"storage": "/mnt/runs"}}
    path = write_job(tmp_path / "run.yaml", **places)
    path.write_text(path.read_text().replace("path: unused", "path: /data/x"))
    spec = training_spec("train", Path("run.yaml"), plugins=[Path("more.py")])
    assert {Path("run.yaml"), Path("mine.py"), Path("more.py")} <= set(sent_files(spec))
    assert spec.arguments[:3] == ("run.yaml", "--plugin", "more.py")
    before = training_spec("train", Path("run.yaml")).name
    mine.write_text(plain_method() + "\n# another version\n")
    assert training_spec("train", Path("run.yaml")).name != before
    trusting = analysis_spec("analyze", Path("/mnt/runs"), {"--trust-plugins": [], "--what": ["depth"]})
    assert trusting.arguments == ("/mnt/runs", "--trust-plugins", "--what", "depth", "--address", "auto")


# Object stores


def test_a_runs_copies_in_an_object_store_run_only_if_trusted_or_known(
    mine: Path, bucket: ObjectPath
) -> None:
    job = load_job(write_job(mine.with_name("run.yaml")))
    for name, code in {"job.yaml": dump_job(job), "plugins/mine.py": job.plugins["mine.py"]}.items():
        (bucket / "runs" / "mine-s0-0123456789" / name).write_bytes(code.encode())
    place = bucket / "runs" / "mine-s0-0123456789"
    assert load_job(place / "job.yaml").recipe == job.recipe  # the same code was loaded from a file
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
    said = refused(lambda: load_job(place / "job.yaml"))
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()[:12]
    assert re.search(
        rf"plugins/mine\.py \(sha256 {digest}\) is code from an object store.*--trust-plugins", said
    )
    for target in (place, bucket / "runs"):
        trust(target)
        assert load_job(place / "job.yaml").recipe.method.name == "mine"
        for name in [name for name in sys.modules if name.startswith(MODULE)]:
            del sys.modules[name]
    (place / "job.yaml").write_bytes(dump_job(job).replace("plugins/mine.py", "../mine.py").encode())
    assert "leads out of the YAML's folder" in refused(lambda: load_job(place / "job.yaml"))
    assert "is for runs in an object store" in refused(lambda: trust(mine.parent))
