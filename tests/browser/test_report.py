"""The report page in a real browser: what a reader sees, and what happens when things are touched."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import Open

pytestmark = pytest.mark.browser

WIDE = ".wide svg.lines >> nth=0"
"""The chart of accuracy over training."""


def shown(page: Any, family: int) -> int:
    """How many elements of a method are to be seen."""
    marks = page.locator(f'[data-family="{family}"]')
    return sum(marks.nth(i).is_visible() for i in range(marks.count()))


def test_the_numbers_are_those_of_results_json(visit: Open, report: Path, sweep: Path) -> None:
    page = visit(report).page
    rows = page.locator("#leaderboard table").first.locator("tbody tr")
    lines = json.loads((sweep / "results.json").read_text())["lines"]
    assert rows.count() == len(lines) == 3
    for i, line in enumerate(lines):
        cells = [cell.replace("−", "-") for cell in rows.nth(i).locator("th, td").all_inner_texts()]
        assert cells[0] == line["setting"]["method"]
        assert cells[2] == f"{line['top1']['mean']:.2f}"
        wanted = "baseline" if line["is_baseline"] else f"{line['difference']['mean']:+z.2f}"
        assert cells[4] == wanted


def test_toggling_a_method_changes_charts_and_tables(visit: Open, report: Path) -> None:
    page = visit(report).page
    chart = page.locator(WIDE)

    def picture() -> Any:
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)  # what lies below the pointer says its values
        return np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("RGB"), dtype=int)

    before = picture()
    curve = chart.locator('.plot [data-family="2"]')
    row = page.locator('#leaderboard tr[data-family="2"]').first
    assert curve.is_visible()
    assert row.is_visible()
    others = shown(page, 1)
    page.get_by_role("checkbox", name="seal").uncheck()
    assert shown(page, 2) == 0
    assert shown(page, 1) == others
    assert not row.is_visible()
    assert abs(picture() - before).max() > 50
    page.get_by_role("checkbox", name="seal").check()
    assert curve.is_visible()
    assert abs(picture() - before).max() < 5  # edges of scaled lines are not the same every time


def test_hovering_says_the_values(visit: Open, report: Path, sweep: Path) -> None:
    page = visit(report).page
    tops: dict[str, list[float]] = {}
    for run in json.loads((sweep / "results.json").read_text())["runs"]:
        lines = (sweep.parent.parent / run["run_id"] / "metrics.jsonl").read_text().splitlines()
        tops.setdefault(run["setting"]["method"], []).append(json.loads(lines[2])["val_top1"])
    chart = page.locator(WIDE)
    chart.scroll_into_view_if_needed()
    left, _, width, _ = json.loads(chart.get_attribute("data-chart"))["box"]
    box = chart.bounding_box()
    scale = box["width"] / chart.evaluate("svg => svg.viewBox.baseVal.width")
    page.mouse.move(box["x"] + (left + width * 3 / 6) * scale, box["y"] + 100)
    said = page.locator(".tip").inner_text()
    assert "epochs trained 3" in said
    for method, values in tops.items():
        mean = sum(values) / len(values)
        assert f"{method} {mean:.2f}".rstrip("0").rstrip(".") in said
    page.get_by_role("checkbox", name="seal").uncheck()
    chart.scroll_into_view_if_needed()  # the box may have scrolled the page
    box = chart.bounding_box()
    page.mouse.move(box["x"] + (left + width * 3 / 6) * scale + 1, box["y"] + 100)
    assert "seal" not in page.locator(".tip").inner_text()


def test_a_bar_says_its_value(visit: Open, report: Path) -> None:
    page = visit(report).page
    page.locator("#depth .bar").first.hover()
    assert page.locator(".tip").inner_text().startswith("train, depth 0 (input): ")


def test_a_chart_is_zoomed_by_dragging_and_by_keys(visit: Open, report: Path) -> None:
    page = visit(report).page
    chart = page.locator(WIDE)
    plot = chart.locator(".plot")
    whole = plot.get_attribute("viewBox")
    ticks = chart.locator(".tick.x").all_text_contents()
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 152)
    page.mouse.up()
    assert plot.get_attribute("viewBox") != whole
    assert chart.locator(".tick.x").all_text_contents() != ticks
    page.get_by_role("button", name="Whole chart").click()
    assert plot.get_attribute("viewBox") == whole
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert "epochs trained 1" in page.locator(".tip").inner_text()
    page.keyboard.press("+")
    assert plot.get_attribute("viewBox") != whole
    page.keyboard.press("0")
    assert plot.get_attribute("viewBox") == whole


def test_without_scripts_everything_can_be_read(visit: Open, report: Path) -> None:
    page = visit(report, scripts=False).page
    assert page.locator(WIDE).is_visible()
    assert page.locator(".plot .curve").count() > 10
    assert not page.locator(".methods input").first.is_visible()
    assert not page.locator(".theme").is_visible()
    assert page.locator(".grid img").first.is_visible()


def test_light_and_dark(visit: Open, report: Path) -> None:
    def ground(page: Any) -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light, dark = visit(report, scheme="light").page, visit(report, scheme="dark").page
    assert ground(light) == "rgb(253, 252, 249)"
    assert ground(dark) == "rgb(21, 23, 26)"
    light.get_by_role("button", name="Light or dark").click()
    assert ground(light) == ground(dark)


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_is_wider_than_the_window(visit: Open, report: Path, width: int) -> None:
    page = visit(report, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    narrow = page.locator("#accuracy .narrow > svg")
    assert narrow.is_visible() == (width == 390)
    if width == 390:  # letters keep their size
        assert narrow.bounding_box()["width"] >= 0.95 * 358
    images = page.locator("img")
    assert images.count() > 10
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize(("width", "height", "last"), [(1280, 800, "#accuracy tr"), (390, 844, ".answer li")])
def test_the_answer_is_on_the_first_screen(
    visit: Open, noisy: Path, width: int, height: int, last: str
) -> None:
    page = visit(noisy, width=width).page
    box = page.locator(last).last.bounding_box()
    assert box["y"] + box["height"] <= height
    chart = page.locator(f"#accuracy .{'wide' if width > 800 else 'narrow'} > svg")
    assert chart.bounding_box()["y"] < height


def test_what_stops_early_is_led_to_its_name(visit: Open, noisy: Path) -> None:
    chart = visit(noisy).page.locator(WIDE)
    (leader,) = chart.locator(".leader").all()
    width = json.loads(chart.get_attribute("data-chart"))["box"][2]
    assert leader.get_attribute("d").startswith(f"M{width * 12 / 48:.0f}")
    page = visit(noisy).page
    page.get_by_role("checkbox", name="normal").uncheck()
    assert not page.locator(WIDE).locator(".leader").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_accessible(visit: Open, report: Path, noisy: Path, scheme: str, width: int) -> None:
    assert _violations(visit(report, width=width, scheme=scheme).page) == []
    assert _violations(visit(noisy, width=width, scheme=scheme).page) == []


def test_odd_pages_are_whole_and_accessible(visit: Open, odd_report: Path) -> None:
    page = visit(odd_report, width=390).page
    shown = page.locator("main section, #accuracy")
    ids = [shown.nth(i).get_attribute("id") for i in range(shown.count())]
    assert {"accuracy", "leaderboard", "recipes", "runs", "absent"} <= set(ids)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("img[onerror]").count() == 0
    assert _violations(page) == []


def _violations(page: Any) -> list[str]:
    """What axe-core finds against WCAG 2.2 A, AA and its own best practices."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
