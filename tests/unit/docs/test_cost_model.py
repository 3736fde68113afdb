"""The table of docs/performance.md on several GPUs follows from its formula and what it assumes."""

from __future__ import annotations

import re

import pytest
from torchvision.models import resnet50

from tests.documents import DOCS

SECTION = (DOCS / "performance.md").read_text().split("## Several GPUs")[1]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if "|" in line]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))]


ASSUMED = {row[0]: numbers(row[2]) for row in ROWS if len(row) == 3 and re.fullmatch("[a-zA-Z]", row[0])}
TABLE = [row for row in ROWS if len(row) == 6 and row[0][0].isdigit()]


def milliseconds(gpus: int, images: float, pixels: float) -> float:
    far = gpus > 8
    (host,), (kernels,), each = ASSUMED["h"], ASSUMED["f"], ASSUMED["k"][pixels == 224]
    compute = kernels + each * images
    if gpus == 1:
        return compute
    exchanged = 2 * (gpus - 1) / gpus * ASSUMED["G"][0] * 1e6 / (ASSUMED["B"][far] * 1e9) * 1e3
    return max(host, compute + exchanged + 2 * (gpus - 1) * ASSUMED["a"][far])


def test_gradients_are_as_large_as_a_resnet_50() -> None:
    assert 4e-6 * sum(p.numel() for p in resnet50(num_classes=200).parameters()) == pytest.approx(
        ASSUMED["G"][0], abs=0.005
    )


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[1]} x {row[0]}")
def test_a_row_follows(row: list[str]) -> None:
    images, pixels = numbers(row[0])
    gpus = int(row[1])
    step, one = milliseconds(gpus, images, pixels), milliseconds(1, images, pixels)
    found = [
        f"{step:.2f}",
        f"{1000 * gpus * images / step:,.0f}",
        f"{100 * one / step:.0f} %",
        f"{1000 * gpus * images / one:,.0f}",
    ]
    assert found == row[2:]


def test_it_has_the_sizes() -> None:
    assert [int(row[1]) for row in TABLE] == [1, 8, 64, 256] * 2
