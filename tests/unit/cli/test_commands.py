"""The command line as a user meets it: output, exit codes, errors without tracebacks. No Ray is started."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import seal_ray.cli.doctor
from seal_ray import cli
from seal_ray.analysis.evaluations import FewShot, FineTune, Transfer
from seal_ray.cli.doctor import Check
from seal_ray.data.images import Images
from seal_ray.distributed.launch import prepare_job
from seal_ray.recipe import load_job
from seal_ray.runs.folder import Store
from seal_ray.training.loop import fit
from tests.runs import keeping
from tests.sweeps import small_sweep
from tests.unit.runs.test_summary import make_run

ROOT = Path(__file__).parents[3]
SEAL = ROOT / "tests" / "data" / "seal.yaml"
COMMANDS = ["train", "validate", "plan", "runs", "doctor", "data prepare"]


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `seal-ray ARGUMENTS` in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["seal-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        assert "Traceback" not in found.out + found.err
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), found.out, found.err)

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared by the command line."""
    to = tmp_path_factory.mktemp("data") / "digits"
    command = [sys.executable, "-m", "seal_ray", "data", "prepare", "digits", "--to", str(to)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.search(r"digits, 10 classes, 1\d{3} train, \d{3} val images of \d+ px", found.stdout)
    assert "sha256:" in found.stdout
    return to


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Any, command: str) -> None:
    ended = run(*command.split(), "--help")
    assert ended.code == 0
    assert "Usage:" in ended.out
    assert ended.err == ""


def test_help_names_the_commands_in_the_order_of_work(run: Any) -> None:
    ended = run("--help")
    assert ended.code == 0
    work = [
        "doctor",
        "data",
        "validate",
        "plan",
        "train",
        "sweep",
        "runs",
        "analyze",
        "transfer",
        "fewshot",
        "report",
    ]
    named = re.findall(r"^│ ([a-z]+) ", ended.out, re.MULTILINE)
    assert named[: len(work)] == work
    assert named[-2:] == ["submit", "jobs"]
    assert len(named) == len(set(named)) > len(work) + 2


def test_it_says_which_version_it_is(run: Any) -> None:
    ended = run("--version")
    assert (ended.code, ended.out) == (0, f"seal-ray {version('seal-ray')}\n")


def test_a_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setenv("_SEAL_RAY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "seal-ray tra")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out.split() == ["train", "transfer"]


@pytest.mark.parametrize(
    ("command", "models"), [("transfer", [Transfer, FineTune]), ("fewshot", [FewShot])], ids=str
)
def test_every_setting_of_an_evaluation_is_an_option(
    run: Any, command: str, models: list[type[BaseModel]]
) -> None:
    help_ = run(command, "--help").out
    named = {option.replace("-", "_") for option in re.findall(r"--([a-z-]+)", help_)}
    settings = {name for model in models for name in model.model_fields}
    assert settings - named == {"kind", "targets"} | (settings & {"augment"})  # which are given otherwise
    assert re.search(r"--holdout.*Probe: ", help_) or command == "fewshot"
    assert "[default: (5,20,50)]" in help_ or command == "transfer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["validate"], "Missing argument 'file'"),
        (["plan", SEAL, "--epochs", "5"], "No such option: --epochs"),
        (["data", "prepare", "digits"], "digits needs --to"),
        (["data", "prepare", "digits", "--to", "x", "--size", "big"], "Invalid value for '--size'"),
    ],
)
def test_a_command_that_does_not_exist_so_is_refused(run: Any, arguments: list[Any], message: str) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert message in re.sub(r"[│\s]+", " ", ended.err)


@pytest.mark.parametrize("path", sorted(ROOT.glob("jobs/runs/*/*.yaml")), ids=str)
def test_shipped_jobs_are_valid(run: Any, path: Path) -> None:
    ended = run("validate", path)
    assert ended.code == 0
    assert re.search(rf"{path.name}: valid \(\w+, \d+ epochs\)", ended.out)
    assert ended.err == ""


def test_an_override_is_validated_too(run: Any) -> None:
    good = run("validate", SEAL, "--set", "recipe.method=llf", "--set", "recipe.budget.epochs=32")
    assert (good.code, good.err) == (0, "")
    assert "valid (llf, 32 epochs)" in good.out
    bad = run("validate", SEAL, "--set", "recipe.budget.epochs=33")
    assert bad.code == 2
    assert bad.err.startswith("error: ")
    assert "multiple of generation_length" in bad.err
    assert bad.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: {data: {path: x}, metod: seal}\n", "bad.yaml:1: recipe.metod"),
        ("recipe: {\n", "bad.yaml"),
        ("", "bad.yaml"),
        ("\x00", "bad.yaml"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(run: Any, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    for command in ("validate", "plan", "train"):
        ended = run(command, tmp_path / "bad.yaml")
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert message in ended.err
        assert ended.out == ""


def test_a_file_that_is_not_there_is_refused(run: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        for command in ("validate", "plan", "train"):
            ended = run(command, path)
            assert ended.code == 2
            assert str(path) in ended.err


def test_data_that_is_not_prepared_says_how_to_prepare_it(run: Any, tmp_path: Path) -> None:
    missing = f"recipe.data.path={tmp_path / 'nowhere'}"
    for command in ("plan", "train"):
        ended = run(command, SEAL, "--set", missing)
        assert ended.code == 2
        assert "seal-ray data prepare" in ended.err
    assert run("validate", SEAL, "--set", missing).code == 0  # needs no data


def test_a_plan_of_prepared_digits(run: Any, digits: Path, tmp_path: Path) -> None:
    where = ["--set", f"recipe.data.path={digits}", "--storage", tmp_path / "my runs"]
    ended = run("plan", SEAL, *where, "--set", "recipe.method.ascent_rate={rise: 0.5}")
    assert (ended.code, ended.err) == (0, "")
    for text in ("ascend", "relearn", "measured: +0.5 nats", "24 epochs", "2 for 2 shards", "new"):
        assert text in ended.out
    images = json.loads((digits / "dataset.json").read_text())["splits"]["train"]["count"]
    steps = images // 64 * 24
    assert f"{steps:,} steps, {64 * steps:,} images" in ended.out
    assert f"left out  {images % 64} of {images:,} images in each epoch, others each time" in ended.out
    assert str(tmp_path / "my runs" / "seal-s0-") in ended.out
    assert list(tmp_path.iterdir()) == []  # planning writes nothing

    other = run("plan", SEAL, *where, "--workers", "1", "--set", "recipe.method=llf")
    share = run("plan", SEAL, *where, "--workers", "1", "--set", "placement.gpus_per_worker=0.25")
    assert "gpu       0.25 of one; about " in share.out
    assert "gpu " not in other.out
    assert "1 for 2 shards" in other.out
    assert "Reinit" in other.out
    assert run("plan", SEAL, *where, "--workers", "3").code == 2
    elastic = run("plan", SEAL, *where, "--set", "placement.workers={min: 1, max: 2}")
    assert "1 to 2 for 2 shards; 1 to 2 of this machine's" in elastic.out


def test_preparing_again_changes_nothing_and_other_options_are_refused(run: Any, digits: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in digits.iterdir()}
    again = run("data", "prepare", "digits", "--to", digits)
    assert (again.code, again.err) == (0, "")
    assert {path.name: path.stat().st_mtime_ns for path in digits.iterdir()} == before
    for options, message in (
        (["--classes", "5"], "holds another data set"),
        (["--classes", "50"], "--classes 50 is outside 1..10"),
        (["--size", "32"], "--size does not apply to digits"),
    ):
        ended = run("data", "prepare", "digits", "--to", digits, *options)
        assert ended.code == 2
        assert message in ended.err
    assert run("data", "prepare", "imagenet", "--to", digits).code == 2


def test_runs_of_an_empty_and_of_a_missing_folder(run: Any, tmp_path: Path) -> None:
    ended = run("runs", "--storage", tmp_path, "--json")
    assert (ended.code, json.loads(ended.out), ended.err) == (0, [], "")
    ended = run("runs", "--storage", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "no runs" in ended.out
    for options in ([], ["--json"]):
        ended = run("runs", "--storage", tmp_path / "nowhere", *options)
        assert ended.code == 2
        assert "nowhere: no such folder" in ended.err
        assert ended.out == ""


def test_runs_as_a_table_and_as_json(run: Any, tmp_path: Path) -> None:
    done = make_run(tmp_path, {"name": "seal", "ascent_rate": 0.5})
    begun = make_run(tmp_path, "llf", epochs=1, seed=5)
    broken = make_run(tmp_path, "ke", epochs=0)
    (broken.folder / "job.yaml").write_text("{")
    ended = run("runs", "--storage", tmp_path, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = {row["id"]: row for row in json.loads(ended.out)}
    assert {name: row["status"] for name, row in found.items()} == {
        done.run_id: "finished",
        begun.run_id: "interrupted",
        broken.run_id: "damaged",
    }
    wanted = ["id", "method", "seed", "generation", "epoch", "status", "top1", "best_top1", "weights_sha256"]
    assert all(set(wanted) <= row.keys() for row in found.values())
    table = run("runs", "--storage", tmp_path).out
    for name, row in found.items():
        (line,) = (line for line in table.splitlines() if name in line)
        assert row["status"] in line
    (line,) = (line for line in table.splitlines() if done.run_id in line)
    (ascent,) = found[done.run_id]["ascents"]
    assert f"{ascent['loss_before']:.2f} -> {ascent['loss_after']:.2f}" in line
    assert f"{found[done.run_id]['top1']:.1f}" in line


def test_runs_are_chosen_and_sorted_and_watched(run: Any, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/data/release-0.1.0", tmp_path / "runs", dirs_exist_ok=True)
    storage = tmp_path / "runs"
    seal, normal = (next(storage.glob(f"{method}-*")) for method in ("seal", "normal"))
    begun = make_run(storage, "llf", epochs=0)

    def listed(*options: str) -> list[str]:
        ended = run("runs", "--storage", storage, "--json", *options)
        assert (ended.code, ended.err) == (0, "")
        return [row["id"] for row in json.loads(ended.out)]

    assert listed() == [begun.run_id, normal.name, seal.name]
    assert listed("--sort", "top1") == [normal.name, seal.name, begun.run_id]  # 15.9, 11.7, none
    assert listed("--sort", "epochs")[-1] == begun.run_id
    assert listed("--sort", "status")[-1] == begun.run_id  # finished, new
    assert listed("--status", "finished,failed", "--method", "llf,seal") == [seal.name]
    assert listed("--status", "running") == []
    for option, message in (("--status", "choose from .*running"), ("--method", "choose from llf")):
        ended = run("runs", "--storage", storage, option, "fine")
        assert ended.code == 2
        assert re.search(f"{option} fine: .*{message}", ended.err)

    command = [sys.executable, "-m", "seal_ray", "runs", "--watch", "--storage", str(storage)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = iter(watching.stdout.readline, "")
        assert next(line for line in lines if seal.name in line).split()[1:3] == ["4/4", "finished"]
        Store(seal, seal.name).set_status("pruned")
        assert next(line for line in lines if seal.name in line).split()[1:3] == ["4/4", "pruned"]
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 0


def test_a_plan_says_when_an_ascent_is_too_weak_to_forget(run: Any, tmp_path: Path) -> None:
    weak = ["--set", "recipe.method.ascent_rate=0.0001", "--storage", tmp_path]
    laptop = ROOT / "jobs/runs/laptop/seal.yaml"  # one epoch of ascent: 78 steps at 0.1, the first rate
    said = f"its ascent's rates add up to {78 * 0.1 * 0.0001:.1g}, in the paper to 94"
    assert said in run("plan", laptop, *weak).out
    assert "in the paper" not in run("plan", laptop, "--storage", tmp_path).out
    adam = ["--set", "recipe.optimizer={name: adamw}"]  # whose steps do not get smaller with the gradient
    assert "in the paper" not in run("plan", laptop, *weak, *adam).out
    assert "in the paper" not in run("plan", ROOT / "jobs/runs/laptop/llf.yaml", "--storage", tmp_path).out
    sweep = tmp_path / "sweep.yaml"
    axes = "method: {llf: llf, weak: {name: seal, ascent_rate: 0.0001}, seal: {name: seal, ascent_rate: 0.3}}"
    sweep.write_text(f"base: {laptop}\naxes: {{{axes}}}\n")
    assert f"weak: {said}" in (planned := run("plan", sweep, "--storage", tmp_path).out)
    assert planned.count("in the paper") == 1


def test_training_says_when_nothing_or_little_is_forgotten(run: Any, digits: Path, tmp_path: Path) -> None:
    seal = {rate: {"name": "seal", "ascent_rate": rate} for rate in (0.0001, 10.0)}
    method = {"normal": "normal", "llf": "llf", "weak": seal[0.0001], "seal": seal[10.0]}
    axes = {"method": method, "budget.epochs": [2, 4]}
    alike = [{"method": "weak", "budget.epochs": 2}]
    few = {"data": {"path": str(digits), "per_class": 5}}  # a step an epoch
    small_sweep(digits, tmp_path / "runs", seeds=2, axes=axes, exclude=alike, recipe=few)
    ended = run("sweep", tmp_path / "small.yaml", "--in-process")
    said = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert len(said) == 3
    forgets = " forgets at the start of each generation but the first, and there is one; lower budget."
    assert "llf-s0-" in said[0]
    assert f": llf{forgets}" in said[0]
    assert f": its ascent's rates add up to {0.1 * 0.0001:.1g}," in said[1]
    assert f": seal{forgets}" in said[2]


def test_square_brackets_in_names_are_printed_as_they_are(run: Any, digits: Path, tmp_path: Path) -> None:
    storage = tmp_path / "[bold]a[/b]"
    make_run(storage, epochs=1)
    ended = run("runs", "--storage", storage)
    assert (ended.code, ended.err) == (0, "")
    assert "[bold]a[/b]" in ended.out
    ended = run("plan", SEAL, "--set", f"recipe.data.path={digits}", "--storage", storage)
    assert ended.code == 0
    assert "[bold]a[/b]" in ended.out


def test_a_storage_that_is_a_file_is_refused(run: Any, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in ("plan", "train"):
        ended = run(command, SEAL, "--set", f"recipe.data.path={digits}", "--storage", tmp_path / "file")
        assert ended.code == 2
        assert "storage" in ended.err
    assert run("runs", "--storage", tmp_path / "file").code == 2


def test_a_storage_that_is_no_folder_is_refused_and_not_made_up(
    run: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("plan", SEAL, "--set", f"recipe.data.path={digits}", "--storage", "ftp://bucket/runs")
    assert ended.code == 2
    assert "placement.storage: ftp://" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_that_a_run_would_go_on(run: Any, digits: Path, tmp_path: Path) -> None:
    options = [f"recipe.data.path={digits}", "recipe.model.width=4", "recipe.batch_size=1000"]
    planned = prepare_job(load_job(SEAL, [*options, f"placement.storage={tmp_path}"]))
    images = Images.from_dataset(planned.dataset, loader="torch")
    next(iter(fit(planned.job.recipe, images, store=planned.store, placement=keeping(()))))
    sets = [text for option in options for text in ("--set", option)]
    ended = run("plan", SEAL, *sets, "--storage", tmp_path)
    assert ended.code == 0
    assert "1 of 24 epochs done; would go on with epoch 2" in ended.out


@pytest.mark.parametrize("right", [True, False])
def test_doctor_ends_with_whether_all_is_right(
    run: Any, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    checks = [
        Check("python", True, "3.11.7", "unused"),
        Check("ffcv", right, "[Errno 2] no libopencv", "apt-get install libopencv-dev"),
    ]
    monkeypatch.setattr(seal_ray.cli.doctor, "examine", lambda: checks)
    ended = run("doctor")
    assert ended.code == (0 if right else 1)
    assert "[Errno 2] no libopencv" in ended.out
    assert ("MISSING" in ended.out) == (not right)
    assert ("apt-get install libopencv-dev" in ended.out) == (not right)
    assert "unused" not in ended.out


def test_a_warning_is_one_line_without_a_place_in_our_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(
        "seal_ray.cli.app", lambda **_: warnings.warn("checkpoint skipped: [x]", stacklevel=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main()
    assert capsys.readouterr().err == "warning: checkpoint skipped: [x]\n"


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "seal_ray", "validate", str(SEAL), "--set", "recipe.seed=-1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert "recipe.seed" in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        (
            "train",
            "sweeps/laptop.yaml",
            r"\.yaml:\d+: has axes, so .* a sweep, .*`seal-ray sweep jobs/sweeps/lap",
        ),
        ("train", "evaluations/letters-fewshot.yaml", r"fewshot\.yaml:\d+: has kind, .* an evaluation"),
        ("sweep", "runs/laptop/llf.yaml", r"has no axes but recipe, .* a run, .*`seal-ray train jobs/runs"),
        ("sweep", "evaluations/letters-fewshot.yaml", r"no axes but kind, .* SWEEP\.yaml --evaluation jobs"),
        ("transfer runs --evaluation", "runs/laptop/llf.yaml", r"has no kind but recipe, .*`seal-ray train"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: str, file: str, said: str
) -> None:
    monkeypatch.chdir(ROOT)
    ended = run(*command.split(), f"jobs/{file}")
    assert ended.code == 2
    assert re.search(said, " ".join(ended.err.split()))
    assert ended.err.count("\n") <= 3
