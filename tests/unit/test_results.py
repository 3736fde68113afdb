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


def top1(noise: str, method: str, column: str = "top1") -> list[float]:
    """By seed, of the study of digits."""
    found = [r for r in rows("digits-noise") if r["data.label_noise"] == noise and r["method"] == method]
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


@pytest.mark.parametrize("noise", ["0", "0.2", "0.4"])
@pytest.mark.parametrize("method", ["llf", "seal 2", "ban"])
def test_a_difference_is_scipys(method: str, noise: str) -> None:
    ours, theirs = np.array(top1(noise, method)), np.array(top1(noise, "normal", "best_top1"))
    of = results.compare_noise(results.Study.read("digits-noise"))[noise, method, "best"].difference
    assert of.n == len(ours) == 12
    assert of.mean == pytest.approx((ours - theirs).mean())
    interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (of.low, of.high) == pytest.approx((interval.low, interval.high))
    flips = scipy.stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert of.p == pytest.approx(flips.pvalue, abs=1e-9)


def test_a_verdict_is_of_the_p_that_is_corrected_for_all_comparisons() -> None:
    """7 methods with 4 controls, and SEAL with its random direction, at 3 noises: the smallest p times 87."""
    found = results.compare_noise(results.Study.read("digits-noise"))
    assert len(found) == 3 * (7 * 4 + 1)
    least = min(found.values(), key=lambda one: one.difference.p)
    assert least.p == pytest.approx(min(1, len(found) * least.difference.p))
    for one in found.values():
        assert one.p >= one.difference.p
        assert (one.way == 0) == (one.p >= 0.05)
