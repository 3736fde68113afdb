"""SVG and HTML as text, every attribute and every text escaped, and the scales that charts are drawn to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Attribute = str | float | None


def element(name: str, *inside: str, **attributes: Attribute) -> Markup:
    """`<name attribute="...">inside</name>`; text that is not Markup is escaped.

    `class_` is class, `stroke_width` is stroke-width; None leaves an attribute out.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _text(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, Markup("").join(inside))


def svg(class_: str, width: float, height: float, parts: Iterable[str], **attributes: Attribute) -> Markup:
    """A drawing of its natural size in CSS pixels, which the page may shrink."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *parts, class_=class_, viewBox=box, width=width, height=height, **attributes)


def text(x: float, y: float, said: str, **attributes: Attribute) -> Markup:
    """A line of text."""
    return element("text", said, x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: Attribute) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def rect(x: float, y: float, width: float, height: float, *inside: str, **attributes: Attribute) -> Markup:
    """A rectangle; a negative width or height counts as 0."""
    return element("rect", *inside, x=x, y=y, width=max(0.0, width), height=max(0.0, height), **attributes)


def path(
    points: Sequence[tuple[float, float]], *inside: str, closed: bool = False, **attributes: Attribute
) -> Markup:
    """A line through points; closed: an area within them."""
    along = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return element("path", *inside, d=f"M{along}{'Z' if closed else ''}", **attributes)


def _text(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Two digits after the point, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if "." in f"{value:.2f}" else f"{value:.2f}"


@dataclass(frozen=True)
class Scale:
    """Maps low..high of the data to start..end of a drawing, linearly, or by logarithm where low > 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; values outside of low..high lie outside of the drawing."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5, *, whole: bool = False) -> list[float]:
        """Round numbers within low..high, at most `about` + 1 of them; whole: whole numbers only.

        Multiples of the smallest 1, 2, 2.5 or 5 x 10^k that is far enough apart, or powers of ten.
        """
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first) / about))
            return [10.0**power for power in range(first, last + 1) if power % every == 0]
        rough = max((self.high - self.low) / about, float(whole))
        power = 10.0 ** math.floor(math.log10(rough))
        nice = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
        step = next(power * one for one in nice if power * one >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        digits = max(0, 1 - math.floor(math.log10(step)))
        return [round(i * step, digits) for i in range(first, last + 1)]


def around(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of values, widened by a share of itself on either side; of one value by 1."""
    some = list(values)
    low, high = min(some), max(some)
    room = (high - low) * margin or 1.0
    return low - room, high + room


def brief(value: float) -> str:
    """A number of a tick: 0.5, 12, 1,200, 1e-6."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    text = f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels near those wanted, at least `gap` apart, within low..high where they fit.

    In the order of `wanted`.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = [0.0] * len(wanted)
    before = low - gap
    for i in order:
        placed[i] = before = max(wanted[i], before + gap)
    after = high + gap
    for i in reversed(order):
        placed[i] = after = min(placed[i], after - gap)
    return placed
