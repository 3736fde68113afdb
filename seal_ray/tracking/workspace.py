"""What W&B's workspace shows: views of sections of panels of metrics, named as in this folder's README.md.

Views are data, so that what is shown can be checked against what is logged; this is the one module that
knows wandb-workspaces. W&B finds a saved view by its internal name, `nw-<11 characters>-v`, which ours take
from the view's own name; saved with the id that was found it is overwritten, so saving twice leaves one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from seal_ray.errors import ConfigError
from seal_ray.tracking.environment import has_key
from seal_ray.tracking.wandb import speaking_to_wandb

PanelKind = Literal["lines", "area", "bars", "table", "pictures"]
"""Lines and stacked areas over an axis; bars of a last or best value; a logged table; logged images."""
OFFLINE = "`--json FILE` writes the view without W&B"
MOST_RUNS = 100
"""Runs, or groups of them, that a panel draws at most."""


@dataclass(frozen=True)
class Panel:
    """Some metrics in one frame.

    metrics: names; one with a <placeholder> stands for every name that fits. unit: of the values.
    summary: which value of a run bars show, of a metric that has several: "last" or "max".
    """

    title: str
    metrics: tuple[str, ...]
    kind: PanelKind = "lines"
    unit: str = ""
    axis: str = "global_epoch"
    summary: str = ""


@dataclass(frozen=True)
class PanelSection:
    """Panels under a heading."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = False


@dataclass(frozen=True)
class View:
    """A saved view of a project.

    group: the W&B group whose runs it shows, a line for each setting; None: all, a line for each group and
    setting. The lines of a panel are means over the seeds of a setting.
    """

    name: str
    sections: tuple[PanelSection, ...]
    group: str | None = None

    @property
    def key(self) -> str:
        """What the view is found by when it is saved again: the same for the same name, 11 digits."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:11]


def project_view(analyses: Sequence[PanelSection]) -> View:
    """All runs of a project; a line for each sweep and setting."""
    return View("seal-ray", (*TRAINING, *analyses, *FURTHER))


def sweep_view(name: str, analyses: Sequence[PanelSection]) -> View:
    """The runs of one sweep and their analyses; a line for each setting."""
    return View(f"seal-ray: {name}", (*TRAINING, *analyses, *FURTHER), group=name)


def pattern(metric: str) -> str:
    """The regular expression of a metric's name: <any> is a piece without a slash, [part] may be left out."""
    pieces = re.split(r"(<[^>]*>|\[|\])", metric)
    meaning = {"[": "(?:", "]": ")?"}
    return "".join("[^/]+" if piece[:1] == "<" else meaning.get(piece, re.escape(piece)) for piece in pieces)


TRAINING = (
    PanelSection(
        "Leaderboard and accuracy",
        (
            Panel("Leaderboard of each sweep", ("leaderboard",), "table"),
            Panel("Top-1 after the last epoch", ("val_top1",), "bars", "%", summary="last"),
            Panel("Top-1 of the best epoch", ("val_top1",), "bars", "%", summary="max"),
            Panel(
                "Top-1, of averaged weights too, and at each generation's end",
                ("val_top1", "val_averaged_top1", "generation_top1"),
                unit="%",
            ),
            Panel("Validation loss", ("val_loss",), unit="nats"),
            Panel("Generation: its steps are the borders", ("generation",)),
        ),
        is_open=True,
    ),
    PanelSection(
        "Phases and learning rates",
        (
            Panel("Learning rate, early part: below 0 it climbs the loss", ("lr_early",)),
            Panel("Learning rate, late part: below 0 it climbs the loss", ("lr_late",)),
            Panel("Loss, as trained and of validation", ("train_loss", "val_loss"), unit="nats"),
            Panel("Top-1, as trained and of validation", ("train_top1", "val_top1"), unit="%"),
            Panel("Gradient norm of each part", ("grad_norm_early", "grad_norm_late")),
            Panel("Weight norm of each part", ("weight_norm_early", "weight_norm_late")),
        ),
        is_open=True,
    ),
    PanelSection(
        "Generations",
        (Panel("Last top-1 of each generation", ("generation_top1",), unit="%", axis="generation"),),
        is_open=True,
    ),
)
FURTHER = (
    PanelSection(
        "Transfer and few-shot",
        (
            Panel("Linear probes and fine-tuning", ("transfer/<target>", "finetune/<target>"), unit="%"),
            Panel("Few-shot episodes", ("fewshot/<target>/<n>_shots",), unit="%"),
            Panel("Linear probes: settings compared", ("transfer_leaderboard",), "table"),
            Panel("Fine-tuning: settings compared", ("finetune_leaderboard",), "table"),
            Panel("Few-shot: settings compared", ("fewshot_leaderboard",), "table"),
        ),
    ),
    PanelSection(
        "Throughput and time",
        (
            Panel("Training images a second", ("images_per_second",)),
            Panel("Seconds of an epoch", ("seconds_data", "seconds_compute", "seconds_eval"), "area", "s"),
            Panel("Workers", ("workers",)),
        ),
    ),
)
"""The sections of every view, from top to bottom: TRAINING, those of analyses, FURTHER."""


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
    if not has_key():
        raise ConfigError(f"W&B has no API key here; run `wandb login`, or set WANDB_API_KEY; or {OFFLINE}")
    package = _wandb_workspaces()
    import wandb

    with speaking_to_wandb("", f"the same command again saves the view, and {OFFLINE}"):
        owner = entity or wandb.Api().default_entity
        there = _find(package, view, project, owner)
        workspace = _workspace(package, view, project, owner)
        workspace._internal_id = there
        package.internal.upsert_view2(workspace._to_model())
        return Saved(workspace.url, existed=bool(there))


def view_json(view: View, project: str, entity: str | None) -> str:
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


def _find(package: Any, view: View, project: str, entity: str) -> str:
    """W&B's id of the view; empty when there is none. Raises when there is no such project."""
    try:
        return str(package.internal.get_view_dict(entity, project, view.key)["id"])
    except ValueError as error:
        if str(error).startswith("Workspace "):
            return ""
        raise


def _workspace(package: Any, view: View, project: str, entity: str) -> Any:
    expr, workspaces = package.expr, package.workspaces
    sections = []
    for section in view.sections:
        panels = [_panel(package.panels, panel) for panel in section.panels]
        for panel, made in zip(section.panels, panels, strict=True):
            named = f"{view.key} {section.name} {panel.title}"
            made._id = hashlib.sha256(named.encode()).hexdigest()[:12]
        sections.append(workspaces.Section(name=section.name, panels=panels, is_open=section.is_open))
    group, setting = expr.Metric("Group"), expr.Config("setting")
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=view.name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="global_epoch", max_runs=MOST_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=expr.And(group == view.group) if view.group else "",
            groupby=[setting] if view.group else [group, setting],
        ),
    )
    workspace._internal_name = f"nw-{view.key}-v"
    workspace._internal_runset_id = view.key
    return workspace


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
