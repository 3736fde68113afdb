"""RESULTS.md follows from the committed rows, and its numbers from scipy's statistics of them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from jobs.studies import results

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "jobs" / "studies"


def rows(name: str) -> list[dict[str, str]]:
    with (STUDIES / "rows" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def top1(study: str, noise: str, method: str, column: str = "top1") -> list[float]:
    """By seed."""
    found = [r for r in rows(study) if r["data.label_noise"] == noise and r["method"] == method]
    return [float(row[column]) for row in sorted(found, key=lambda row: int(row["seed"]))]


def test_the_page_and_the_readme_are_what_the_rows_give(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    results.main(tmp_path)
    for name in ("RESULTS.md", "README.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name}: run results.py"
    drawn = sorted(path.name for path in (tmp_path / "docs" / "studies").iterdir())
    assert drawn == sorted(path.name for path in (ROOT / "docs" / "studies").iterdir())


@pytest.mark.parametrize("study", sorted(path.stem for path in (STUDIES / "rows").glob("*.csv")))
def test_every_run_of_a_study_has_finished_and_names_its_data(study: str) -> None:
    found = rows(study)
    assert {row["status"] for row in found} == {"finished"}
    assert len({row["data_identity"] for row in found}) == 1
    assert len({row["run"] for row in found}) == len(found)


@pytest.mark.parametrize(
    ("study", "noise", "method", "seeds"),
    [
        *(
            ("digits-noise", noise, method, 12)
            for noise in ("0", "0.4")
            for method in ("llf", "seal 2", "ban")
        ),
        *(("tiny-imagenet-20", "0", method, 11) for method in ("long", "llf", "seal 0.1")),
    ],
)
def test_a_difference_is_scipys(study: str, noise: str, method: str, seeds: int) -> None:
    ours = np.array(top1(study, noise, method))
    theirs = np.array(top1(study, noise, "normal", "best_top1"))
    of = results.compare_noise(results.Study.read(study))[noise, method, "best"].difference
    assert of.n == len(ours) == seeds
    assert of.mean == pytest.approx((ours - theirs).mean())
    interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (of.low, of.high) == pytest.approx((interval.low, interval.high))
    flips = scipy.stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert of.p == pytest.approx(flips.pvalue, abs=1e-9)


@pytest.mark.parametrize(
    ("study", "methods", "noises", "randoms"), [("digits-noise", 7, 3, 1), ("tiny-imagenet-20", 4, 1, 1)]
)
def test_a_verdict_is_of_the_p_that_is_corrected_for_all_comparisons(
    study: str, methods: int, noises: int, randoms: int
) -> None:
    """Each method with 4 controls, and SEAL with its random direction, at each noise."""
    found = results.compare_noise(results.Study.read(study))
    assert len(found) == noises * (methods * 4 + randoms)
    least = min(found.values(), key=lambda one: one.difference.p)
    assert least.p == pytest.approx(min(1, len(found) * least.difference.p))
    for one in found.values():
        assert one.p >= one.difference.p
        assert (one.way == 0) == (one.p >= 0.05)


def test_a_look_shows_how_far_ends_are_from_plain_trainings_best_epoch() -> None:
    shown = results.looks("tiny-imagenet-20-looks", {"data.label_noise": "noise", "augment": "augmentation"})
    found = {
        row["method"]: row
        for row in rows("tiny-imagenet-20-looks")
        if (row["data.label_noise"], row["augment"]) == ("0.4", "crop and flip")
    }
    [line] = [line for line in shown.splitlines() if line.startswith("| 0.4, crop and flip |")]
    last, best, llf, *_ = line.split(" | ")[1:]
    plain = found["normal"]
    assert [last, best] == [f"{float(plain[column]):.1f}" for column in ("top1", "best_top1")]
    assert llf == f"{float(found['llf']['top1']) - float(plain['best_top1']):+.1f}"
