"""Other people's analyses: where their code is found, what it leaves behind, how its mistakes are said."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from typer.testing import CliRunner

from seal_ray.analysis.inputs import InputCache
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.run import analyse_after
from seal_ray.analysis.tasks import AnalysisSettings, analyses_of, plan_analyses, read_result
from seal_ray.analysis.track import track
from seal_ray.cli import app
from seal_ray.config.plugin_files import given_files
from seal_ray.errors import CheckpointError, ConfigError, SealRayWarning
from seal_ray.plugins import using
from seal_ray.recipe import ANALYSES, load_job
from seal_ray.runs.folder import Store
from tests.pages import page_of
from tests.plugins import of_docs
from tests.sweeps import screen
from tests.unit.analysis.conftest import run_of
from tests.unit.test_plugins import forget_files as forget_files


@pytest.fixture
def rank(tmp_path: Path) -> Path:
    """The documentation's plugin file."""
    (tmp_path / "rank.py").write_text(of_docs("analysis"))
    return tmp_path / "rank.py"


def carrying(run: Path, code: str, **more: Any) -> None:
    """Let a run have brought a plugin file along."""
    (run / "plugins").mkdir()
    (run / "plugins/rank.py").write_text(code)
    job = yaml.safe_load((run / "job.yaml").read_text())
    (run / "job.yaml").write_text(yaml.safe_dump({**job, "plugins": ["plugins/rank.py"], **more}))


def analyze(*words: object) -> str:
    """What `seal-ray analyze` prints, without Ray."""
    ended = CliRunner().invoke(app, ["analyze", *map(str, words), "--in-process"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def rank_of(moment: Any, power: float) -> float:
    weight = Store(moment.run, moment.run.name).moment(moment.name, moment.generation).weights["fc.weight"]
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** power
    shares = values / values.sum()
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("power", [1, 2])
def test_the_readmes_analysis_is_computed_and_kept_with_its_scalars(
    storage: Path, rank: Path, power: int
) -> None:
    said = ["--what", "effective_rank", "--plugin", rank, "--set", f"effective_rank.power={power}"]
    assert "12 computed, 4 copied" in analyze(storage, *said)
    assert "16 known" in analyze(storage, *said)
    for run in find_runs(storage).runs:
        for moment in run.moments():
            held = read_result(moment, "effective_rank")
            assert held is not None
            assert held["result"]["rank"] == pytest.approx(rank_of(moment, power))
            assert held["settings"] == {"power": float(power)}
            assert held["scalars"] == {
                "effective_rank/rank": held["result"]["rank"],
                "effective_rank/largest": held["result"]["largest"],
            }
    assert "effective_rank" not in ANALYSES


ORDER = """
import seal_ray
from seal_ray.analysis import Analysis, Result


@seal_ray.analysis
class Order(Analysis):
    \"\"\"The names of the weights.\"\"\"

    name = "order"
    version = 1

    def compute(self, inputs, settings):
        return Result({"names": list(inputs.weights)})

    @staticmethod
    def scalars(result):
        return {"order/count": len(result["names"])}
"""


def test_an_analysis_finds_weights_in_the_order_of_the_network(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "order.py").write_text(ORDER)
    analyze(storage, "--what", "order", "--plugin", tmp_path / "order.py")
    [run, *_] = find_runs(storage).runs
    for moment in run.moments():
        held = read_result(moment, "order")
        assert held is not None
        assert held["result"]["names"] == [*torchvision.models.resnet18().state_dict()]


def test_weights_of_another_network_are_refused(trained: Path) -> None:
    [run, *_] = find_runs(trained).runs
    weights = run.moments()[0].weights()
    del weights["fc.bias"]
    with pytest.raises(CheckpointError, match=r"its weights are not of its network, see fc\.bias"):
        InputCache(torch.device("cpu")).in_order(run.folder, weights)


def test_a_runs_own_file_is_found_and_one_that_is_given_takes_its_place(storage: Path, rank: Path) -> None:
    seal, llf = run_of(storage, "seal"), run_of(storage, "llf")
    carrying(seal, rank.read_text(), analyses=["effective_rank"])
    planned = plan_analyses(find_runs(storage), ["effective_rank"], ["relearned"], AnalysisSettings())
    assert {task.moment.run for task in planned.todo} == {seal}
    reasons = {one.run_id: one.reason for one in planned.failed}
    assert (
        reasons[llf.name] == "effective_rank: is in no plugin file of this run; name its file with --plugin"
    )
    console, printed = screen()
    asked = find_runs(seal).runs[0].job.analyses
    analyse_after(lambda: find_runs(seal), asked, console, in_process=True)
    assert "analyses: 6 computed" in printed.getvalue()

    rank.write_text(rank.read_text().replace('{"rank":', '{"halved": 0.5, "rank":'))
    assert "6 computed" in analyze(seal, "--what", "effective_rank", "--plugin", rank)
    held = read_result(find_runs(seal).runs[0].moments()[0], "effective_rank")
    assert held is not None
    assert held["result"]["halved"] == 0.5


def test_a_line_of_its_file_makes_other_work_and_none_of_built_in_analyses(trained: Path, rank: Path) -> None:
    def keys(what: str) -> list[str]:
        target = find_runs(trained)
        return [
            p.key for p in plan_analyses(target, [what], None, AnalysisSettings(), given_files([rank])).todo
        ]

    before = {what: keys(what) for what in ("effective_rank", "depth")}
    rank.write_text(rank.read_text() + "\n# a word\n")
    assert not {*before["effective_rank"]} & {*keys("effective_rank")}
    assert before["depth"] == keys("depth")


def test_its_scalars_reach_wandb_and_the_page_without_its_code(storage: Path, rank: Path) -> None:
    analyze(storage, "--what", "effective_rank", "--plugin", rank)
    rank.unlink()
    page = page_of(storage, storage)
    assert "Further analyses" in page
    assert page.count("effective_rank/rank at the end of each generation") >= 2  # wide, and for a phone
    for method in ("normal", "seal"):
        last = find_runs(run_of(storage, method)).runs[0].moments()[-1]
        assert f"{rank_of(last, 1):.4g}" in page
    shutil.rmtree(storage / "analysis", ignore_errors=True)
    (run,) = find_runs(run_of(storage, "seal")).runs
    placement = run.job.placement
    tracking = placement.tracking.model_copy(update={"wandb": "offline"})
    job = run.job.model_copy(update={"placement": placement.model_copy(update={"tracking": tracking})})
    run = replace(run, job=job)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SealRayWarning)
        track([(run, [(moment, "effective_rank") for moment in run.moments()])], [])
    (log,) = (run.folder / "analysis/wandb").glob("offline-run-*/*.wandb")
    assert b"ascended/effective_rank/rank" in log.read_bytes()


def test_pages_of_built_in_analyses_have_no_such_section(storage: Path) -> None:
    assert "Further analyses" not in page_of(storage, storage)


WRONG = {
    "raises": ("return 1 / 0", r"effective_rank: .*rank\.py:\d+: ZeroDivisionError: division by zero"),
    "no JSON": (
        "return Result({'x': inputs.weights})",
        r"effective_rank: .*TypeError: .*not JSON serializable",
    ),
    "no result": ("return 3", r"effective_rank: .*AttributeError: 'int' object has no attribute 'numbers'"),
}


@pytest.mark.parametrize(("body", "said"), WRONG.values(), ids=WRONG)
def test_what_it_does_wrong_fails_alone_with_its_line(
    storage: Path, rank: Path, body: str, said: str
) -> None:
    code = rank.read_text()
    head = code.index("        classifier")
    rank.write_text(f"{code[:head]}        {body}\n")
    run = run_of(storage, "llf")
    words = ["analyze", str(run), "--what", "calibration,effective_rank", "--plugin", str(rank)]
    ended = CliRunner().invoke(app, [*words, "--moments", "g002-relearned", "--in-process"])
    assert ended.exit_code == 1
    assert re.search(said, ended.output)
    assert "1 computed, 1 failed" in ended.output


REFUSED = {
    "no analysis": ("(Analysis)", "", "the analysis EffectiveRank does not extend seal_ray.Analysis"),
    "no name": ('name = "effective_rank"', "", "is called None; give it a name of small letters"),
    "a dash": ("effective_rank", "effective-rank", "is called 'effective-rank'; give it a name of"),
    "nothing computed": (
        "def compute",
        "def find",
        "computes nothing; write compute(self, inputs, settings)",
    ),
    "a field without default": (": float = Field(default=1.0, gt=0", ": float = Field(gt=0", "a default for"),
    "a name of ours": ('"effective_rank"', '"depth"', "two classes register the analysis 'depth'"),
}


@pytest.mark.parametrize(("old", "new", "said"), REFUSED.values(), ids=REFUSED)
def test_a_class_that_is_none_is_an_error_with_its_file_and_line(
    rank: Path, old: str, new: str, said: str
) -> None:
    rank.write_text(rank.read_text().replace(old, new))
    with pytest.raises(ConfigError) as error, using(given_files([rank])):
        pass
    assert re.match(rf"{rank}:\d+: ", str(error.value))
    assert said in str(error.value)


def test_names_and_settings_that_there_are_not(trained: Path, rank: Path) -> None:
    target, files = find_runs(trained), given_files([rank])
    with pytest.raises(ConfigError, match=r"--what effective_rank: is not one of depth, .*calibration"):
        plan_analyses(target, ["effective_rank"], None, AnalysisSettings())
    for override, said in {
        "effective_rank.power=0": r"effective_rank\.power: must be greater than 0",
        "effective_rank.powr=1": r"effective_rank\.powr: unknown field; did you mean 'power'",
        "effectiv_rank.power=1": r"effectiv_rank: unknown field; did you mean 'effective_rank'",
    }.items():
        with pytest.raises(ConfigError, match=said):
            plan_analyses(target, ["depth"], None, AnalysisSettings("quick", (override,)), files)


def test_a_job_may_ask_for_it_where_it_names_the_file(storage: Path, rank: Path) -> None:
    run = run_of(storage, "seal")
    carrying(run, rank.read_text(), analyses=["effective_rank", "depth"])
    job = load_job(run / "job.yaml")
    assert job.analyses.what == ("effective_rank", "depth")
    assert "effective_rank" in analyses_of(job)
    other = run_of(storage, "llf") / "job.yaml"
    held = yaml.safe_load(other.read_text())
    other.write_text(yaml.safe_dump({**held, "analyses": ["effective_rank"]}))
    with pytest.raises(
        ConfigError, match=r"job\.yaml:\d+: analyses\.0: must be 'depth', 'curvature', 'similarity' or"
    ):
        load_job(other)


def test_the_command_lists_analyses_with_settings_ranges_and_source(rank: Path) -> None:
    listed = CliRunner().invoke(app, ["analyses"]).output
    assert [line for line in listed.splitlines() if line and line[0] != " "] == [
        "depth",
        "curvature",
        "similarity",
        "calibration",
    ]
    for paper in ("2106.09647", "1901.10159", "Kornblith", "1706.04599"):
        assert paper in listed
    assert "    points = 500  (whole number or null >= 1)" in listed
    shown = CliRunner().invoke(app, ["analyses", "effective_rank", "--plugin", str(rank)]).output
    assert (
        shown.splitlines()[1].strip() == "Effective rank of the classifier (Roy and Vetterli, EUSIPCO 2007)."
    )
    assert "    power = 1  (number > 0)" in shown
    assert hashlib.sha256(rank.read_bytes()).hexdigest()[:12] in shown


def test_the_decorator_is_the_package() -> None:
    import seal_ray
    import seal_ray.analysis.depth

    assert seal_ray.analysis.depth.Depth is ANALYSES["depth"]
    assert seal_ray.analysis(ANALYSES["depth"]) is ANALYSES["depth"]  # type: ignore[operator]
    assert json.dumps(list(ANALYSES))[:8] == '["depth"'


def test_check_finds_what_an_analysis_keeps_and_what_it_breaks(rank: Path) -> None:
    whole = CliRunner().invoke(app, ["check", str(rank)])
    assert whole.exit_code == 0, whole.output
    assert [line.split(":")[0] for line in whole.stdout.splitlines()] == ["ok      effective_rank"] * 6
    again = "computed twice, the results differ"
    for body, said in (WRONG["no JSON"], ("return Result({'x': torch.rand(()).item()})", again)):
        code = of_docs("analysis")
        rank.write_text(f"{code[: code.index('        classifier')]}        {body}\n")
        broken = CliRunner().invoke(app, ["check", str(rank)])
        assert broken.exit_code == 1
        [line] = broken.stdout.splitlines()
        assert line.startswith("BROKEN  effective_rank: g000-init: ")
        assert re.search(said, line)
