"""The W&B workspace: what is shown is data, a view is saved once however often, and errors say what to do."""

from __future__ import annotations

import functools
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from typer.testing import CliRunner

from seal_ray.cli import app
from seal_ray.data.assumed import open_or_assume
from seal_ray.errors import ConfigError, SealRayError
from seal_ray.recipe import ANALYSES
from seal_ray.sweeps.file import load_sweep
from seal_ray.sweeps.results import prepare_sweep
from seal_ray.tracking.wandb import config_of
from seal_ray.tracking.workspace import FURTHER, TRAINING, pattern, save_view, view_json
from seal_ray.tracking.workspace import project_view as view_of_project
from seal_ray.tracking.workspace import sweep_view as view_of_sweep
from tests.wandb_server import Server

JOBS = Path(__file__).parents[3] / "jobs"
SWEEPS = sorted([*(JOBS / "sweeps").glob("*.yaml"), *(JOBS / "studies").glob("*.yaml")])
ANALYSED = [kind.section for kind in ANALYSES.values() if kind.section]
SECTIONS = (*TRAINING, *ANALYSED, *FURTHER)
project_view = functools.partial(view_of_project, ANALYSED)
sweep_view = functools.partial(view_of_sweep, analyses=ANALYSED)


def section_of(text: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(text)["spec"]["section"]
    return held


def shown(text: str) -> set[str]:
    """Every text that occurs in the panels of a view."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from texts(one)
        elif isinstance(value, str):
            yield value

    return set(texts(section_of(text)["panelBankConfig"]["sections"]))


def test_every_section_panel_and_metric_is_in_the_view() -> None:
    text = view_json(project_view(), "trial", None)
    sections = section_of(text)["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in SECTIONS]
    for section, made in zip(SECTIONS, sections, strict=True):
        assert len(made["panels"]) == len(section.panels), section.name
    found = shown(text)
    for panel in (panel for section in SECTIONS for panel in section.panels):
        for metric in panel.metrics:
            name = f"{metric}.{panel.summary}" if panel.summary else metric
            assert name in found or any(pattern(metric) in one for one in found), metric
    by_title = {p["config"].get("chartTitle"): p["config"] for s in sections for p in s["panels"]}
    assert by_title["Last top-1 of each generation"]["xAxis"] == "generation"
    assert by_title["Seconds of an epoch"]["plotType"] == "stacked-area"
    assert by_title["Top-1 of the best epoch"]["metrics"] == ["val_top1.max"]


def test_a_view_of_a_sweep_has_its_runs_alone_and_a_line_for_each_setting() -> None:
    (runs,) = section_of(view_json(sweep_view("frequency"), "trial", "team"))["runSets"]
    (rule,) = runs["filters"]["filters"]
    assert (rule["key"], rule["op"], rule["value"]) == ({"section": "run", "name": "group"}, "=", "frequency")
    assert runs["grouping"] == [{"section": "config", "name": "setting.value"}]
    (everything,) = section_of(view_json(project_view(), "trial", "team"))["runSets"]
    assert everything["filters"]["filters"] == []
    assert [key["name"] for key in everything["grouping"]] == ["group", "setting.value"]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_line_is_a_setting_of_the_sweep_whatever_its_axes_are(file: Path) -> None:
    """The mean of a line is over the seeds of one line of the leaderboard, and over all of them."""
    runs = prepare_sweep(load_sweep(file), open_or_assume)
    lines: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for one, run in zip(runs.planned, runs.sweep.runs, strict=True):
        lines.setdefault(config_of(one.job)["setting"], set()).add(frozenset(run.setting.items()))
    assert all(len(settings) == 1 for settings in lines.values()), lines
    assert len(lines) == len({frozenset(run.setting.items()) for run in runs.sweep.runs})


def test_equal_views_are_equal_texts_and_others_are_found_elsewhere() -> None:
    texts = [view_json(view, "trial", None) for view in (project_view(), project_view(), sweep_view("a"))]
    assert texts[0] == texts[1]
    names = {json.loads(text)["name"] for text in (*texts, view_json(sweep_view("b"), "trial", None))}
    assert len(names) == 3
    ids = [
        panel["__id__"] for s in section_of(texts[0])["panelBankConfig"]["sections"] for panel in s["panels"]
    ]
    assert len(set(ids)) == len(ids)


def test_saving_twice_leaves_one_view(server: Server) -> None:
    first = save_view(project_view(), "trial", "team")
    again = save_view(project_view(), "trial", "team")
    assert (first.existed, again.existed) == (False, True)
    assert first.url == again.url
    assert f"/team/trial?nw={project_view().key}" in first.url
    other = save_view(sweep_view("frequency"), "trial", None)
    assert not other.existed
    assert "/someone/trial?" in other.url  # whose the key is
    assert [view["displayName"] for view in server.views] == ["seal-ray", "seal-ray: frequency"]
    held = json.loads(view_json(project_view(), "trial", "team"))
    assert json.loads(server.views[0]["spec"]) == held["spec"]
    assert server.views[0]["name"] == held["name"]


def test_what_somebody_changed_in_a_view_of_ours_is_put_right(server: Server) -> None:
    save_view(project_view(), "trial", None)
    (view,) = server.views
    spec = json.loads(view["spec"])
    spec["section"]["panelBankConfig"]["sections"].clear()
    changed, view["spec"] = view["spec"], json.dumps(spec)
    assert save_view(project_view(), "trial", None).existed
    assert [view["spec"] for view in server.views] == [changed]


def test_the_command_says_where_the_view_is(server: Server) -> None:
    said = [
        CliRunner().invoke(app, ["dashboard", "--project", "trial", "--sweep", "frequency"]) for _ in range(2)
    ]
    assert [one.exit_code for one in said] == [0, 0], said[0].output
    key = sweep_view("frequency").key
    lines = [one.stdout.splitlines()[-1] for one in said]
    assert [line.split(", ")[0] for line in lines] == [
        "seal-ray: frequency: created",
        "seal-ray: frequency: updated",
    ]
    assert all(line.endswith(f"/someone/trial?nw={key}") for line in lines)


def test_a_project_that_there_is_not_is_an_error(server: Server) -> None:
    with pytest.raises(SealRayError, match=r"Project `team/elsewhere` not found.*--json FILE"):
        save_view(project_view(), "elsewhere", "team")
    assert server.views == []


@pytest.mark.usefixtures("no_key")
def test_json_needs_neither_key_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    written = tmp_path / "view.json"
    done = CliRunner().invoke(app, ["dashboard", "--project", "trial", "--json", str(written)])
    assert done.exit_code == 0, done.output
    printed = CliRunner().invoke(app, ["dashboard", "--project", "trial", "--json", "-"])
    assert written.read_text() == printed.stdout == view_json(project_view(), "trial", None)
    nowhere = CliRunner().invoke(
        app, ["dashboard", "--project", "trial", "--json", str(tmp_path / "no/where.json")]
    )
    assert isinstance(nowhere.exception, ConfigError)
    assert "cannot be written (No such file or directory)" in str(nowhere.exception)


def test_what_cannot_be_a_sweep_is_refused() -> None:
    asked = ["dashboard", "--project", "trial", "--json", "-", "--sweep", "jobs/sweeps/laptop.yaml"]
    refused = CliRunner().invoke(app, asked).exception
    assert isinstance(refused, ConfigError)
    assert "jobs/sweeps/laptop.yaml: cannot be a sweep's name" in str(refused)


@pytest.mark.usefixtures("no_key")
def test_without_a_key_the_remedy_is_said() -> None:
    with pytest.raises(ConfigError, match="run `wandb login`, or set WANDB_API_KEY; or `--json FILE`"):
        save_view(project_view(), "trial", None)


def test_without_the_package_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"needs wandb-workspaces .*pip install 'seal-ray\[dashboard\]'"):
        view_json(project_view(), "trial", None)


def test_a_server_that_cannot_be_reached_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 2)
        with pytest.raises(SealRayError, match=r"W&B cannot be reached or refuses .*`--json FILE`"):
            save_view(project_view(), "trial", None)


def test_a_pattern_is_what_a_name_with_placeholders_stands_for() -> None:
    fits = re.compile(pattern("curvature[/<part>]/top")).fullmatch
    assert fits("curvature/top")
    assert fits("curvature/layer1/top")
    assert not fits("curvature/layer1/x/top")
    assert not fits("curvature/topmost")
    assert re.fullmatch(pattern("a.b"), "a.b")
    assert not re.fullmatch(pattern("a.b"), "axb")
