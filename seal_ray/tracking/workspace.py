"""Views of `seal_ray.tracking.panels` as W&B's saved views: the one module that knows wandb-workspaces.

W&B finds a saved view by its internal name, `nw-<11 characters>-v`, which ours take from the view's own name;
saved with the id that was found, it is overwritten, so that saving twice leaves one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from seal_ray.errors import ConfigError, SealRayError
from seal_ray.tracking.panels import Panel, Section, View, pattern
from seal_ray.tracking.wandb import wandb_mode

OFFLINE = "`--json FILE` writes the view without W&B"
MOST_RUNS = 100
"""Runs, or groups of them, that a panel draws at most."""


@dataclass(frozen=True)
class Saved:
    """Where a view is, and whether it was there before."""

    url: str
    existed: bool


def save_view(view: View, project: str, entity: str | None) -> Saved:
    """Create the view in a project of W&B, or put what is there in its place up to date.

    entity: None: the key's own. What somebody changed in a view of this name is overwritten. ConfigError
    without an API key or the package, SealRayError when W&B cannot be reached or refuses.
    """
    if wandb_mode("auto") != "online":
        raise ConfigError(f"W&B has no API key here; run `wandb login`, or set WANDB_API_KEY; or {OFFLINE}")
    package = _wandb_workspaces()
    import wandb

    with _speaking_to_wandb():
        owner = entity or wandb.Api().default_entity
        there = _find(package, view, project, owner)
        workspace = _workspace(package, view, project, owner)
        workspace._internal_id = there
        package.internal.upsert_view2(workspace._to_model())
        return Saved(workspace.url, existed=bool(there))


def to_json(view: View, project: str, entity: str | None) -> str:
    """The view as W&B stores it: equal views give equal text. ConfigError without the package."""
    model = _workspace(_wandb_workspaces(), view, project, entity or "")._to_model()
    held = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(held, indent=1) + "\n"


def _wandb_workspaces() -> Any:
    """What is used of the package, which is an optional one."""
    try:
        import wandb_workspaces.reports.v2 as panels
        from wandb_workspaces import expr, workspaces
        from wandb_workspaces.workspaces import internal
    except ImportError as error:
        raise ConfigError(
            f"`seal-ray dashboard` needs wandb-workspaces ({error}); pip install 'seal-ray[dashboard]'"
        ) from None
    return SimpleNamespace(panels=panels, expr=expr, workspaces=workspaces, internal=internal)


@contextmanager
def _speaking_to_wandb() -> Iterator[None]:
    """What W&B and its packages raise becomes a SealRayError."""
    try:
        yield
    except Exception as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SealRayError(
            f"W&B cannot be reached or refuses ({what}); the same command again saves the view, and {OFFLINE}"
        ) from error


def _find(package: Any, view: View, project: str, entity: str) -> str:
    """W&B's id of the view; empty when there is none. Raises when there is no such project."""
    try:
        return str(package.internal.get_view_dict(entity, project, view.key)["id"])
    except ValueError as error:
        if str(error).startswith("Workspace "):
            return ""
        raise


def _workspace(package: Any, view: View, project: str, entity: str) -> Any:
    settings = package.workspaces.WorkspaceSettings(x_axis="global_epoch", max_runs=MOST_RUNS)
    made = package.workspaces.Workspace(
        entity=entity,
        project=project,
        name=view.name,
        sections=[_section(package, section, view) for section in view.sections],
        settings=settings,
        runset_settings=package.workspaces.RunsetSettings(
            filters=package.expr.And(package.expr.Metric("Group") == view.group) if view.group else "",
            groupby=[_grouping(package, name) for name in view.grouped_by],
        ),
    )
    made._internal_name = f"nw-{view.key}-v"
    made._internal_runset_id = view.key
    return made


def _grouping(package: Any, name: str) -> Any:
    """A key of W&B's runs table. It keeps a field of the recipe under `<section>.value.<field>`."""
    if name == "group":
        return package.expr.Metric("Group")
    section, _, field = name.partition(".")
    return package.expr.Config(f"{section}.value.{field}")


def _section(package: Any, section: Section, view: View) -> Any:
    panels = []
    for panel in section.panels:
        made = _panel(package.panels, panel)
        made._id = hashlib.sha256(f"{view.key} {section.name} {panel.title}".encode()).hexdigest()[:12]
        panels.append(made)
    return package.workspaces.Section(name=section.name, panels=panels, is_open=section.is_open)


def _panel(panels: Any, panel: Panel) -> Any:
    """W&B's panel. Over the runs of a group lines are means with their range."""
    over_runs = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if panel.kind == "table":
        (table,) = panel.metrics
        return panels.WeavePanelSummaryTable(table_name=table)
    if panel.kind == "pictures":
        return panels.MediaBrowser(title=panel.title, media_keys=list(panel.metrics))
    if panel.kind == "bars":
        bars = [f"{metric}.{panel.summary}" for metric in panel.metrics]
        return panels.BarPlot(title=panel.title, metrics=bars, title_x=panel.unit or None, **over_runs)
    lines: dict[str, Any] = {"y": list(panel.metrics)}
    if any("<" in metric for metric in panel.metrics):
        lines = {"metric_regex": "|".join(f"^{pattern(metric)}$" for metric in panel.metrics)}
    return panels.LinePlot(
        title=panel.title,
        x=panel.axis,
        title_y=panel.unit or None,
        plot_type="stacked-area" if panel.kind == "area" else None,
        **lines,
        **over_runs,
    )
