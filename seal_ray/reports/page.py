"""The page as one HTML text: the template filled, with style and script allowed by their hashes alone."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jinja2

import seal_ray
from seal_ray.errors import ConfigError
from seal_ray.reports import accuracy, reasons, record
from seal_ray.reports.blocks import Calls, Missing, Section
from seal_ray.reports.charts import line_style
from seal_ray.reports.curves import drawn
from seal_ray.reports.study import Study, find_source, read_study
from seal_ray.reports.svg import element, path, svg
from seal_ray.reports.words import answer, footnote, methods, question, unbroken, warnings
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath

MARK = b"<!doctype html>\n<!-- seal-ray report -->"
"""How a page begins: a file that begins otherwise is not replaced."""
STICKY = 8
"""With more methods than this their names do not stay in view: there would be no room for anything else."""
CONTENTS = (
    accuracy.memorisation_section,
    accuracy.leaderboard_section,
    accuracy.compute_section,
    accuracy.generations_section,
    accuracy.frequency_section,
    accuracy.tree_section,
    reasons.depth_section,
    reasons.curvature_section,
    reasons.further_section,
    reasons.evaluated_section,
    reasons.examples_section,
    accuracy.speed_section,
    record.warnings_section,
    record.recipes_section,
    record.runs_section,
)


def write_report(
    path: Path, output: AnyPath | None = None, storage: str | None = None
) -> tuple[AnyPath, Study]:
    """Write the page of what `path` stands for (see `find_source`); returns where it is and what it says.

    output: by default report.html in the folder of the run, sweep or storage. The file is there as a whole
    or not at all. Errors as find_source; ConfigError for an output that is something else than a page.
    """
    study = read_study(find_source(path, storage))
    page = output or study.folder / "report.html"
    if page.is_dir():
        raise ConfigError(f"--output: {page} is a folder; name a file in it, such as {page / 'report.html'}")
    if page.exists() and not page.read_bytes().startswith(MARK):
        raise ConfigError(f"--output: {page} is there and is no report; name another file, or remove it")
    html = render(study, Calls(path, storage))
    with saving(page.parent):
        write_durably(page, html.encode())
    return page, study


def render(study: Study, target: Calls) -> str:
    """The whole page. Equal studies give equal text."""
    made = [one for make in CONTENTS if (one := make(study, target)).blocks or one.items]
    sections = [one for one in made if one.items or not all(isinstance(b, Missing) for b in one.blocks)]
    if empty := [one for one in made if one not in sections]:
        absent = [
            replace(block, reason=f"{one.title}: {block.reason}")
            for one in empty
            for block in one.blocks
            if isinstance(block, Missing)
        ]
        named = ", ".join(one.title.lower() for one in empty)
        folded = f"Nothing to show of {named}: why, and what would change it"
        sections.append(Section("absent", "Not on this page", tuple(absent), folded=folded))
    # A method's swatch looks like the first of its curves.
    shade = {one.family: one.shade for one in reversed((*drawn(study), *study.settings))}
    line = path([(1, 6), (27, 6)], class_="curve")
    swatches = [
        svg("swatch", 28, 12, [element("g", line, class_=line_style(i, shade[i]))], aria_hidden="true")
        for i in range(len(study.families))
    ]
    epochs = sum(run.result.epochs_trained for run in study.runs)
    counts = ((len(study.runs), "run"), (len(study.settings), "setting"), (epochs, "epoch"))
    facts = " · ".join(f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts)
    assets = files("seal_ray.reports")
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("seal_ray.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        study=study,
        question=unbroken(question(study)),
        footnote=unbroken(footnote(study)),
        claims=[(unbroken(claim.head), unbroken(claim.rest)) for claim in answer(study)],
        methods_said=methods(study),
        first=accuracy.first_section(study, target),
        facts=f"{study.kind} · {facts} trained",
        warned=len(warnings(study)),
        sections=sections,
        methods=list(zip(range(len(swatches)), study.families, swatches, strict=True)),
        sticky=len(study.families) <= STICKY,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=seal_ray.__version__,
    )
    assert page.encode().startswith(MARK)
    return page


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls a text that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
