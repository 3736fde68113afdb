"""SVG and HTML as text: every attribute and every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
