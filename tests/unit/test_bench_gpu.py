"""`make bench-gpu` as far as a machine without a GPU goes: every part has its line, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.measure import Skipped


def test_it_prints_one_table_and_says_what_it_skipped(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--device", "cpu", "--tiny", "--data", str(digits)]) == 0
    printed = capsys.readouterr().out
    skipped = dict(re.findall(r"^  (.+): skipped: (.+)$", printed, re.MULTILINE))
    assert skipped["a replay's bits"] == "a replay needs a GPU"
    assert skipped["kernels and memory"] == "the time of kernels needs a GPU"
    assert "FAILED" not in printed
    for what in ("fp32: as shipped", "published code's style", "no step", "runs at once", "SEAL on digits"):
        assert re.search(rf"{what}.*: [\d.]+ ", printed), what
    assert "no GPU, torch" in printed


def test_a_part_that_fails_is_told_from_one_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("nothing was measured: it did not happen")

    monkeypatch.setattr(gpu, "PARTS", {"first": fails, "late": fails})
    lines: list[gpu.Line] = []
    assert not gpu.measure(None, lines.append, limit=1e9)  # type: ignore[arg-type]
    assert lines[0] == Skipped("first", "FAILED: RuntimeError: nothing was measured: it did not happen")
    lines.clear()
    assert gpu.measure(None, lines.append, limit=-1)  # type: ignore[arg-type]
    assert [line.shown for line in lines] == ["skipped: -1 s are over"] * 2
