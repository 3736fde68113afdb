"""The sections for whoever wants to check or repeat: warnings, recipes, runs, hardware, commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from seal_ray.reports.blocks import Block, Calls, Missing, Section, Table, TableRow, Text, number, short_path
from seal_ray.reports.study import RunFacts, SettingFacts, Study, flat_fields
from seal_ray.reports.words import warnings

FOLDED = 12
"""Tables of more rows than this are shown on demand."""
WARNINGS = 60
"""Warnings that are listed at most."""

Runs = Sequence[tuple[SettingFacts, RunFacts]]


def warnings_section(study: Study, target: Calls) -> Section:
    """What must be known before the rest is believed, if anything."""
    said = warnings(study)
    more = [f"and {len(said) - WARNINGS} more"] if len(said) > WARNINGS else []
    return Section("warnings", "Warnings", (), items=(*said[:WARNINGS], *more))


def recipes_section(study: Study, target: Calls) -> Section:
    """What recipes differ in, and each in full."""
    known = [(setting, dict(flat_fields(setting.job.recipe))) for setting in study.settings if setting.job]
    if not known:
        return Section("recipes", "Recipes", (Missing("No run has a job.yaml that can be read."),))
    fields = list(dict.fromkeys(key for _, held in known for key in held if key != "seed"))
    differing = [key for key in fields if len({held.get(key) for _, held in known}) > 1]
    blocks: list[Block] = []
    if differing:
        blocks.append(_differences(known, differing))
    elif len(known) == 1:
        blocks.append(Missing("One setting: there is no other recipe to compare it with."))
    for setting, _ in known:
        assert setting.job is not None
        text = setting.job.recipe.to_yaml()
        blocks.append(Text(f"The whole recipe of {setting.name}", text, setting.family))
    return Section("recipes", "Recipes", tuple(blocks))


def _differences(known: list[tuple[SettingFacts, dict[str, str]]], differing: list[str]) -> Table:
    rows = [
        TableRow((setting.name, *(held.get(key, "–") for key in differing)), setting.family)
        for setting, held in known
    ]
    caption = (
        "The fields in which recipes differ, beside the seed; all others are the same. –: the method has no "
        "such field."
    )
    headings = ("setting", *differing)
    return Table(caption, headings, tuple(rows), text=len(headings), folded=len(rows) > FOLDED)


def runs_section(study: Study, target: Calls) -> Section:
    """Every run: how it stands, what it was trained on, its digest, and how to train it again."""
    runs = [(setting, run) for setting in study.settings for run in setting.runs]
    rows = []
    for setting, run in runs:
        speeds = [row["images_per_second"] for row in run.own_rows]
        cells = (
            *(run.id, setting.name, str(run.result.seed), run.result.status),
            f"{len(run.rows):,} of {run.result.epochs:,}",
            *(number(run.result.top1), number(run.result.best_top1)),
            f"{sum(speeds) / len(speeds):,.0f}" if speeds else "–",
        )
        rows.append(TableRow(cells, setting.family))
    headings = ("run", "setting", "seed", "status", "epochs", "top-1 %", "best", "images/s")
    many = len(rows) > FOLDED
    caption = "Every run. Top-1 is after the last epoch; best is the highest, chosen on the images it is of."
    standing = Table(caption, headings, tuple(rows), text=2, code=(0,), folded=many)
    commands = _commands(study, target, runs, many)
    return Section("runs", "Runs", (standing, *_hardware(study, runs, many), *commands))


PRINTED = ("device", "torch", "workers", "threads", "loader", "deterministic", "compile", "channels_last")


def _hardware(study: Study, runs: Runs, many: bool) -> list[Block]:
    rows = []
    for setting, run in runs:
        if run.moments:
            printed = (str(run.moments[-1].fingerprint.get(key, "–")) for key in PRINTED)
            rows.append(TableRow((run.id, *printed, run.data[:16] or "–"), setting.family))
    caption = (
        "What each run's last kept moment was trained with; bits are claimed to be equal between equal rows "
        "only. Data: the first digits of the identity of the data set at the run's path."
    )
    headings: tuple[str, ...] = ("run", *PRINTED, "data")
    blocks: list[Block] = []
    if rows:
        blocks.append(Table(caption, headings, tuple(rows), text=len(headings), code=(0, 9), folded=many))
    if made := _versions(study):
        made_with = tuple(TableRow((what, *versions.values())) for what, versions in made)
        headings = ("analysis", *made[0][1])
        blocks.append(Table("What analyses were computed with.", headings, made_with, text=5))
    return blocks


def _versions(study: Study) -> list[tuple[str, Mapping[str, str]]]:
    """The versions and devices that results of each analysis were made with, each once."""
    found: dict[tuple[str, ...], tuple[str, Mapping[str, str]]] = {}
    for run in study.runs:
        for moment in run.moments:
            for what, held in moment.results.items():
                made = {**held["versions"], "device": held["device"]["name"]}
                found.setdefault((what, *map(str, made.values())), (what, made))
    return list(found.values())


def _commands(study: Study, target: Calls, runs: Runs, many: bool) -> list[Block]:
    """How to repeat the whole, and each run by itself, beside the digest that it must end with."""
    rows = []
    for setting, run in runs:
        if run.job is not None:
            words = ["train", short_path(run.folder / "job.yaml"), "--storage", "reproduced"]
            digest = str(run.rows[-1]["weights_sha256"]) if run.rows else "–"
            rows.append(TableRow((shlex.join(["seal-ray", *words]), digest), setting.family))
    caption = (
        "How to train each run again, into another storage folder. On equal hardware and versions it ends "
        "with the same weights: SHA-256 of parameters and buffers after the last epoch so far."
    )
    blocks: list[Block] = []
    if study.kind == "sweep" and target.path.is_file():
        said = shlex.join(["seal-ray", "sweep", str(target.path), "--storage", "reproduced"])
        blocks.append(Missing("All of it again, into another storage folder:", said))
    if rows:
        blocks.append(Table(caption, ("command", "weights"), tuple(rows), text=2, code=(0, 1), folded=many))
    return blocks
