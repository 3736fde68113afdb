"""Charts: where things are drawn, by hand arithmetic; names stay text."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_ray.reports.charts import Axes, Curve, Mark, Ribbon, Stretch, line_chart, shortened
from seal_ray.reports.small_charts import Named, histogram, interval_bar, share_bar, tree_chart
from seal_ray.reports.svg import Scale, around, brief, element, path, spread
from seal_ray.runs.sharing import Branching
from tests.pages import HTML

Element = ElementTree.Element


def parsed(svg: str) -> Element:
    return ElementTree.fromstring(str(svg))


def by_class(root: Element, name: str) -> list[Element]:
    return [one for one in root.iter() if name in one.get("class", "").split()]


def points(one: Element) -> list[tuple[float, float]]:
    pairs = one.attrib["d"].removeprefix("M").removesuffix("Z").split("L")
    return [(float(pair.split()[0]), float(pair.split()[1])) for pair in pairs]


def a_curve(name: str = "seal", family: int = 1, n: int = 1) -> Curve:
    spread_ = 5.0 if n > 1 else 0.0
    y = (20.0, 60.0, 100.0)
    low, high = tuple(v - spread_ for v in y), tuple(v + spread_ for v in y)
    return Curve(name, family, 0, (0.0, 5.0, 10.0), y, low, high, n)


def test_a_linear_and_a_logarithmic_scale() -> None:
    assert [Scale(10, 20, 0, 100)(v) for v in (10, 15, 20)] == [0, 50, 100]
    assert [Scale(0, 1, 100, 0)(v) for v in (0, 0.25)] == [100, 75]
    log = Scale(0.01, 100, 200, 0, log=True)
    assert [log(v) for v in (0.01, 1, 100)] == pytest.approx([200, 100, 0])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.5, 99.4, [20, 40, 60, 80]),
        (-2, 105, [0, 25, 50, 75, 100]),
        (98.2, 99.3, [98.25, 98.5, 98.75, 99, 99.25]),
        (-1.9, 1.9, [-1, 0, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, 0, 1).ticks() == ticks


def test_ticks_of_a_logarithmic_scale_are_powers_of_ten() -> None:
    assert Scale(5e-7, 30, 0, 1, log=True).ticks(4) == pytest.approx([1e-6, 1e-4, 1e-2, 1])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_lie_within_and_are_few(low: float, width: float, about: int) -> None:
    ticks = Scale(low, low + width, 0, 1).ticks(about)
    assert len(ticks) <= about + 1
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in ticks)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_are_apart_and_in_order(wanted: list[float]) -> None:
    placed = spread(wanted, 14, 0, 300)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(gap >= 14 - 1e-9 for gap in gaps)
    assert all(-1e-9 <= one <= 300 + 1e-9 for one in placed)


def test_labels_that_do_not_collide_stay() -> None:
    assert spread([10, 100, 50], 14, 0, 120) == [10, 100, 50]


def test_numbers_of_ticks() -> None:
    numbers = (0, 0.25, 12.0, -3, 1200, 1e-6, 25_000_000)
    assert [brief(v) for v in numbers] == ["0", "0.25", "12", "−3", "1,200", "1e−6", "2e7"]


def test_a_range_has_room_and_one_value_has_a_range() -> None:
    assert around([0, 10], 0.1) == (-1, 11)
    assert around([5]) == (4, 6)


def test_attributes_and_text_are_escaped() -> None:
    made = element("text", HTML, aria_label=HTML, class_="a", stroke_width=1.0, x=None)
    assert "<img" not in made
    root = parsed(made)
    assert root.text == HTML
    assert root.attrib == {"aria-label": HTML, "class": "a", "stroke-width": "1"}
    assert path([(1.005, 2), (3.1, 4)], closed=True) == '<path d="M1 2L3.1 4Z"></path>'


def test_points_of_a_curve_lie_where_its_axes_say() -> None:
    axes = Axes("epochs", "", x_range=(0, 10), y_range=(0, 100))
    root = parsed(line_chart([a_curve()], axes, "chart", width=500, height=254, named=False))
    (plot,) = by_class(root, "plot")
    width, height = float(plot.attrib["width"]), float(plot.attrib["height"])
    assert (width, height) == (500 - 46 - 10, 254 - 10 - 44)
    (curve,) = by_class(root, "curve")
    assert points(curve) == [(0, 160), (222, 80), (444, 0)]
    assert by_class(root, "band") == []


def test_a_band_goes_along_the_highest_and_back_along_the_lowest() -> None:
    axes = Axes("epochs", "", x_range=(0, 10), y_range=(0, 200))
    root = parsed(line_chart([a_curve(n=3)], axes, "chart", width=500, height=254, named=False))
    (band,) = by_class(root, "band")
    assert points(band) == [(0, 175), (222, 135), (444, 95), (444, 105), (222, 145), (0, 185)]


def test_a_chart_on_a_logarithmic_axis() -> None:
    curve = Curve("a", 0, 0, (0.0, 1.0), (1.0, 100.0), (1.0, 100.0), (1.0, 100.0), 1)
    axes = Axes("x", "", log=True, y_range=(0.01, 100))
    root = parsed(
        line_chart([curve], axes, "c", width=500, height=254, named=False, marks=[Mark(1.0, 1.0, ">", "top")])
    )
    assert points(by_class(root, "curve")[0]) == [(0, 100), (444, 0)]
    (mark,) = by_class(root, "mark")
    assert points(mark)[-1] == (46 + 444, 10 + 100)  # its tip, in the pixels of the whole chart
    title = next(iter(mark))
    assert title.text == "top"


def test_ascents_are_shaded_and_common_borders_drawn() -> None:
    seal = Ribbon(
        "seal",
        1,
        (
            Stretch(0, 4, 0, "learn", ascends=False, edits=False),
            Stretch(4, 5, 1, "ascend", ascends=True, edits=False),
            Stretch(5, 8, 1, "relearn", ascends=False, edits=False),
        ),
    )
    llf = Ribbon(
        "llf",
        2,
        (
            Stretch(0, 4, 0, "learn", ascends=False, edits=False),
            Stretch(4, 8, 1, "relearn", ascends=False, edits=True),
        ),
    )
    axes = Axes("epochs", "", x_range=(0, 10), y_range=(0, 100))
    root = parsed(line_chart([a_curve()], axes, "c", width=512, height=254, named=False, ribbons=[seal, llf]))
    (ascent,) = by_class(root, "ascent")
    scale = 432 / 10
    assert float(ascent.attrib["x"]) == pytest.approx(4 * scale, abs=0.01)
    assert float(ascent.attrib["width"]) == pytest.approx(scale, abs=0.01)
    (border,) = by_class(root, "border")
    assert float(border.attrib["x1"]) == pytest.approx(4 * scale, abs=0.01)
    kinds = [one.attrib["class"] for one in by_class(root, "phase")]
    assert kinds == ["phase even", "phase up", "phase odd", "phase even", "phase odd"]
    (edit,) = by_class(root, "edit")
    assert points(edit)[0][0] == pytest.approx(4 * scale, abs=0.01)


def test_a_chart_holds_the_numbers_that_are_read_off_it() -> None:
    axes = Axes("epochs", "top-1 %", x_range=(0, 10), y_range=(0, 100))
    root = parsed(line_chart([a_curve(HTML, n=2)], axes, HTML))
    held = json.loads(root.attrib["data-chart"])
    (curve,) = held["curves"]
    assert (curve["x"], curve["y"]) == ([0, 5, 10], [20, 60, 100])
    assert (curve["low"], curve["high"]) == ([15, 55, 95], [25, 65, 105])
    assert curve["name"] == HTML
    assert root.attrib["aria-label"] == HTML


def test_long_names_keep_what_tells_them_apart() -> None:
    assert shortened("seal", 9) == "seal"
    assert shortened("seal(ascent_rate=0.17)", 12) == "seal…e=0.17)"
    assert len(shortened("x" * 50, 9)) == 9


def test_ranges_are_left_out_where_curves_are_many() -> None:
    few, many = ([a_curve(str(i), i, n=3) for i in range(count)] for count in (6, 7))
    axes = Axes("epochs", "top-1 %")
    assert len(by_class(parsed(line_chart(few, axes, "c")), "band")) == 6
    assert by_class(parsed(line_chart(many, axes, "c")), "band") == []


def test_names_beside_the_ends_carry_their_family() -> None:
    curves = [a_curve("seal", 1), a_curve("llf", 2)]
    root = parsed(line_chart(curves, Axes("epochs", "top-1 %"), "chart"))
    named = {one.text: one.get("data-family") for one in by_class(root, "name")}
    assert named == {"seal": "1", "llf": "2"}
    assert sorted(
        one.attrib["data-family"] for one in root.iter() if one.tag == "g" and one.get("data-family")
    ) == ["1", "2"]


@pytest.mark.parametrize("log", [False, True])
def test_bars_of_a_histogram_are_as_high_as_their_shares(log: bool) -> None:
    shares = {"train": [50.0, 10.0, 40.0], "val": [10.0, 0.0, 90.0]}
    root = parsed(histogram(shares, {"train": 0.9, "val": 1.8}, ["a", "b", "never"], "h", log=log))
    heights = {
        split: [float(one.attrib["height"]) for one in by_class(root, split) if "bar" in one.attrib["class"]]
        for split in shares
    }
    inner = 214 - 14 - 62
    if log:  # three decades
        assert heights["val"] == pytest.approx([inner * 2 / 3, inner * (2 + 0.9542425) / 3], abs=0.02)
    else:
        unit = inner / (90 * 1.06)
        assert heights["train"] == pytest.approx([50 * unit, 10 * unit, 40 * unit], abs=0.02)
        assert heights["val"] == pytest.approx([10 * unit, 90 * unit], abs=0.02)
    said = [one.text for one in root.iter() if one.tag == "title"]
    assert "train, depth 0 (a): 50.0 %" in said
    assert "val: mean depth 1.80" in said


def test_an_interval_on_its_scale() -> None:
    root = parsed(interval_bar(1.0, 0.0, 2.0, (-2, 2), 3))
    (whisker,) = by_class(root, "whisker")
    assert (float(whisker.attrib["x1"]), float(whisker.attrib["x2"])) == (75, 146)
    assert points(by_class(root, "dot")[0])[0] == (110.5, 9)
    assert by_class(parsed(interval_bar(1.0, None, None, (-2, 2), 3)), "whisker") == []


def test_shares_of_a_bar_add_up() -> None:
    bars = by_class(parsed(share_bar({"data": 1.0, "compute": 3.0})), "share")
    assert [(float(b.attrib["x"]), float(b.attrib["width"])) for b in bars] == [(0, 37.5), (37.5, 112.5)]


def test_a_tree_has_a_thick_line_where_runs_are_one() -> None:
    ends = tuple(Branching(1, 2, (run,), ()) for run in ("a", "b"))
    tree = Branching(0, 0, ("a", "b"), ends)
    named = Named({"a": "normal", "b": HTML}, {"a": 0, "b": 1}, {"a": 4, "b": 4})
    root = parsed(tree_chart([(tree, "seed 0")], named, "tree", width=920))
    limbs = [one for one in by_class(root, "limb") if "C" not in one.attrib["d"]]
    (shared, *own) = limbs
    assert shared.attrib["class"] == "limb shared"
    right = 16 + 6.6 * 17  # the second name is long
    end = 12 + (920 - right - 12) * 4 / 12
    assert points(shared) == [(12, 38), pytest.approx((end, 38), abs=0.02)]
    assert [points(one)[0][1] for one in own] == [38, 62]
    assert next(iter(shared)).text == f"generation 0: trained once for normal, {HTML}"
    assert [one.get("data-family") for one in limbs] == [None, "0", "1"]
    assert len(by_class(root, "knot")) == 5
