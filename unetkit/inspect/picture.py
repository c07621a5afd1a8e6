"""The U as a picture: an SVG figure of a trace, for a paper or a README."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from unetkit.inspect.layout import COLOURS, FLOW, SANS, SKIP, Arrow, Box, Text, description, layout
from unetkit.inspect.trace import Trace


def draw(trace: Trace) -> str:
    """The network as a U.

    The encoder's maps go down on the left and the stages up on the right, maps of one stride on one line. A box is
    as wide as the square root of its channels and as high as that of its height; above it stand its channels and
    its height x width. Skips are arrows that say how they are joined.

    Returns:
        The text of a self-contained SVG file with its own background.
    """
    figure = layout(trace)
    view = " ".join(_number(value) for value in (figure.left, figure.top, figure.width, figure.height))
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": view, "role": "img"})
    root.attrib |= {"width": _number(figure.width), "height": _number(figure.height), "font-family": SANS}
    ET.SubElement(root, "title").text = f"U-Net: {trace.line}"
    ET.SubElement(root, "desc").text = description(trace)
    corner = figure.left + 0.5, figure.top + 0.5, figure.width - 1, figure.height - 1
    _draw_rect(root, "background", corner, ("#fcfcfd", "#d9dee6"), 12)
    for arrow in figure.arrows:
        _draw_arrow(root, arrow)
    for box in figure.boxes:
        _draw_box(root, box)
    for text in figure.texts:
        _draw_text(root, text)
    for element in root:
        element.tail = "\n"
    return ET.tostring(root, encoding="unicode") + "\n"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _draw_rect(
    parent: ET.Element, name: str, place: tuple[float, ...], colours: tuple[str, str], corner: float
) -> None:
    sides = dict(zip(("x", "y", "width", "height"), map(_number, place), strict=True))
    fill, line = colours
    ET.SubElement(parent, "rect", {"class": name, **sides, "rx": _number(corner), "fill": fill, "stroke": line})


def _draw_box(parent: ET.Element, box: Box) -> None:
    group = ET.SubElement(parent, "g", {"class": f"map {box.kind}", "data-level": box.row.level})
    ET.SubElement(group, "title").text = f"{box.row.level}: {box.row.what}, stride {box.row.stride:g}"
    place = box.left, box.top, box.width, box.height
    _draw_rect(group, "box", place, COLOURS[box.kind], min(3.0, box.width / 3, box.height / 3))
    for text in box.texts:
        _draw_text(group, text)


def _draw_arrow(parent: ET.Element, arrow: Arrow) -> None:
    group = ET.SubElement(parent, "g", {"class": arrow.kind})
    colour = SKIP if arrow.kind == "skip" else FLOW
    *_, (x0, y0), (x, y) = arrow.points
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    shaft = [*arrow.points[:-1], (x - 7 * dx, y - 7 * dy)]
    wings = [(x, y), *((x - 9 * dx + s * dy, y - 9 * dy + s * dx) for s in (4, -4))]
    style = {"fill": "none", "stroke": colour, "stroke-width": "1.6", "stroke-linejoin": "round"}
    ET.SubElement(group, "polyline", {"points": _points(shaft), **style})
    ET.SubElement(group, "polygon", {"points": _points(wings), "fill": colour})
    for text in arrow.texts:
        _draw_text(group, text)


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _draw_text(parent: ET.Element, text: Text) -> None:
    style = {"text-anchor": text.anchor, "font-size": _number(text.size), "fill": text.fill, "font-family": text.font}
    element = ET.SubElement(parent, "text", {"x": _number(text.x), "y": _number(text.y), **style})
    if not text.lead:
        element.text = text.text
        return
    lead = ET.SubElement(element, "tspan", {"font-weight": "bold", "fill": text.lead_fill})
    lead.text, lead.tail = text.lead, text.text
