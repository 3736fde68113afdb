"""The runs of a page as a table, a row for each, for statistics elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from seal_ray.analysis.track import scalars_in
from seal_ray.errors import ConfigError
from seal_ray.reports.study import RunFacts, Study
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath

SINGLE = ("top1", "best_top1", "held_top1", "averaged_top1")
COUNTS = ("epochs", "epochs_trained", "images", "passes", "seconds")
METRICS = ("train_", "val_", "test_")
"""How the names of the metrics of an epoch begin; docs/guide.md has their units."""
MADE_WITH = ("device", "torch")


def write_rows(study: Study, file: AnyPath) -> None:
    """Write `to_csv`; ConfigError for a folder."""
    if file.is_dir():
        raise ConfigError(f"--csv: {file} is a folder; name a file in it, such as {file / 'runs.csv'}")
    with saving(file.parent):
        write_durably(file, to_csv(study).encode())


def to_csv(study: Study) -> str:
    """One row a run, setting by setting; numbers unrounded, empty where there is none.

    Columns: run, an axis each, seed, status; top1 after the last epoch (% of the validation images), of
    the best epoch, held out, averaged, the best average after any epoch; `after_<g>`: at the end of g
    generations; what it cost, as the leaderboard has it; metrics of the last epoch, those of
    `placement.metrics` among them; `<moment>:<scalar>` of depth, curvature, calibration and plugins'
    analyses at the last moment of that name, the scalar as W&B has it; weights_sha256: digest of the last
    weights; data_identity: of the data set; device, torch.
    """
    rows = [_row(run) for run in study.runs]
    ends = max((len(run.result.generation_top1) for run in study.runs), default=0)
    axes = dict.fromkeys(axis for run in study.runs for axis in run.result.setting)
    metrics = dict.fromkeys(name for row in rows for name in row if name.startswith(METRICS))
    found = dict.fromkeys(name for row in rows for name in row if ":" in name)
    columns = (
        *("run", *axes, "seed", "status", *SINGLE, "best_averaged_top1"),
        *(f"after_{g + 1}" for g in range(ends)),
        *(*COUNTS, *metrics, *found, "weights_sha256", "data_identity", *MADE_WITH),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(run: RunFacts) -> Mapping[str, object]:
    result, last = run.result, run.rows[-1] if run.rows else {}
    averages = [row["val_averaged_top1"] for row in run.rows if row.get("val_averaged_top1") is not None]
    found = {
        f"{moment.moment.name}:{name}": value
        for moment in run.moments
        for what, held in moment.results.items()
        for name, value in scalars_in(what, held).items()
    }
    return {
        "run": run.id,
        **result.setting,
        **{name: getattr(result, name) for name in ("seed", "status", *SINGLE, *COUNTS)},
        "best_averaged_top1": max(averages, default=None),
        **{f"after_{g}": top1 for g, top1 in enumerate(result.generation_top1, start=1)},
        **{name: value for name, value in last.items() if name.startswith((*METRICS, "weights_sha256"))},
        **found,
        "data_identity": run.data,
        **({name: run.moments[-1].fingerprint[name] for name in MADE_WITH} if run.moments else {}),
    }
