"""The drawing of a network as a U: an SVG figure of a trace, for a paper or a README.

`layout` places every box, arrow and text in pixels, with y downwards, and `draw` writes them as SVG.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from xml.etree import ElementTree as ET

from unetkit.summary.report import Trace, TraceRow
from unetkit.utils.formatting import format_count

#: Width and height of the largest box; all boxes scale with the square root of channels and height, so that both 3 and
#: 2048 are legible.
WIDEST, TALLEST = 132.0, 116.0
CAPTION, GAP, ARM, MARGIN, CLOSEST, NARROWEST = 21.0, 48.0, 44.0, 36.0, 340.0, 560.0
TITLE, TEXT, SMALL = 14.0, 13.0, 11.5
#: Width of a character relative to the font size, with a margin, since the font of the reader is unknown.
SANS_SHARE, MONO_SHARE = 0.58, 0.61
SANS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "Menlo, Consolas, 'DejaVu Sans Mono', monospace"
#: Fill and line colour of each kind of box.
COLOURS = {
    "input": ("#e6e9ee", "#5d6878"),
    "encoder": ("#cfe1f7", "#2f68ad"),
    "bottom": ("#ddd5f3", "#6a4bb0"),
    "stages": ("#cdebdd", "#1f7a56"),
    "head": ("#fbe3c5", "#a35e0a"),
    "logits": ("#fbe3c5", "#a35e0a"),
}
#: Fill and line colour of the background.
BACKGROUND = ("#fcfcfd", "#d9dee6")
TIMES, DIVIDED = "\N{MULTIPLICATION SIGN}", "\N{DIVISION SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"
INK, MUTED, FLOW, SKIP = "#1f2733", "#667080", "#4a5566", "#929cad"
LEGEND = (
    f"Boxes are \N{SQUARE ROOT}channels wide and \N{SQUARE ROOT}height high; above: channels, height {TIMES} width."
)


def draw(trace: Trace) -> str:
    """Draw a network as a U.

    The encoder's maps go down on the left and the stages go up on the right, with maps of one stride on one line. The
    width of a box is proportional to the square root of the channels, its height to the square root of the map's
    height; above it are the channels and height x width. Arrows show the skips and how they are fused.

    Args:
        trace: the trace of the network.

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
    _draw_rect(root, "background", corner, BACKGROUND, 12)
    for arrow in figure.arrows:
        _draw_arrow(root, arrow)
    for box in figure.boxes:
        _draw_box(root, box)
    for text in figure.texts:
        _draw_text(root, text)
    for element in root:
        element.tail = "\n"
    return ET.tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True)
class Label:
    """One line of text, with a bold and coloured lead before it if it has one; y is that of the baseline."""

    text: str
    x: float
    y: float
    anchor: str = "middle"
    size: float = SMALL
    fill: str = MUTED
    font: str = SANS
    lead: str = ""
    lead_fill: str = INK

    @property
    def ends(self) -> tuple[float, float]:
        """The left and right ends, for the widest font."""
        width = _width(self.lead + self.text, self.size, MONO_SHARE if self.font == MONO else SANS_SHARE)
        left = self.x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]
        return left, left + width


@dataclass(frozen=True)
class Box:
    """The box of a feature map; x and y are those of its center."""

    row: TraceRow
    kind: str
    x: float
    y: float
    width: float
    height: float
    tag: str = ""

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    @property
    def roof(self) -> float:
        """The y above the caption."""
        return self.top - CAPTION * (2 if self.tag else 1)

    @property
    def texts(self) -> tuple[Label, ...]:
        """The caption above the box, and the tag above the caption if there is one."""
        channels, size = _caption(self.row)
        colour = COLOURS[self.kind][1]
        caption = Label(size, self.x, self.top - 7, size=TEXT, lead=channels, lead_fill=colour)
        tag = Label("", self.x, self.top - 7 - CAPTION, size=TEXT, lead=self.tag, lead_fill=colour)
        return (caption, tag) if self.tag else (caption,)


@dataclass(frozen=True)
class Arrow:
    """A line through points that ends in an arrowhead; its kind is "flow" or "skip"."""

    kind: str
    points: tuple[tuple[float, float], ...]
    texts: tuple[Label, ...]


@dataclass(frozen=True)
class Drawing:
    """Everything that is drawn, and the rectangle that it fills."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    texts: tuple[Label, ...]
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class _Scale:
    """The scale from channels and heights to pixels, by which the largest map has the largest box."""

    channels: int
    height: int

    def box(self, row: TraceRow) -> tuple[float, float]:
        """Return the width and height of a map's box."""
        return WIDEST * (row.channels / self.channels) ** 0.5, TALLEST * (row.height / self.height) ** 0.5

    def half_width(self, row: TraceRow) -> float:
        """Return the distance from the center of a map to the end of its box or caption, whichever is wider."""
        return max(self.box(row)[0], _width("".join(_caption(row)), TEXT)) / 2

    def distance(self, a: TraceRow, b: TraceRow, labels: Iterable[str] = ()) -> float:
        """Return the distance between the centers of two maps on one line, with room for an arrow and its labels."""
        return self.half_width(a) + max([ARM, *(_width(label) + 24 for label in labels)]) + self.half_width(b)

    def lines(self, rows: Iterable[TraceRow]) -> dict[float, float]:
        """Return for each stride the y of the centers of its maps."""
        tallest: dict[float, float] = {}
        for row in sorted(rows, key=lambda row: row.stride):
            tallest[row.stride] = max(tallest.get(row.stride, 0.0), self.box(row)[1])
        lines, y = {}, 0.0
        for stride, height in tallest.items():
            lines[stride] = y + CAPTION + height / 2
            y += CAPTION + height + GAP
        return lines


def layout(trace: Trace) -> Drawing:
    """Place everything that the drawing of a trace shows."""
    boxes = _boxes(trace)
    arrows = tuple(_arrows(trace, boxes))
    labels = [text for box in boxes.values() for text in box.texts] + [text for arrow in arrows for text in arrow.texts]
    ends = [label.ends for label in labels] + [(box.left, box.right) for box in boxes.values()]
    left, right = min(start for start, _ in ends), max(end for _, end in ends)
    middle, width = (left + right) / 2, max(right - left, NARROWEST)
    heading = _heading(trace, middle, min(box.roof for box in boxes.values()) - 26, width)
    floor = max(box.bottom for box in boxes.values()) + 44
    top = heading[0].y - TITLE - 20
    texts = (*heading, Label(LEGEND, middle, floor))
    edge = middle - width / 2 - MARGIN
    return Drawing(tuple(boxes.values()), arrows, texts, edge, top, width + 2 * MARGIN, floor + 22 - top)


def drawn_rows(trace: Trace) -> dict[str, TraceRow]:
    """Return the row of every map that is drawn, by its level.

    The steps of a whole model that are not its encoder's become levels of their own, one for each stride: the last step
    with that stride, which takes what all of them take.

    Args:
        trace: the trace of the network.
    """
    rows = [row for row in trace.rows if row.level not in ("output", "other")]
    if trace.skips or all(row.side == "down" for row in rows):
        return {row.level: row for row in rows}
    drawn = {row.level: row for row in rows if row.side == "down"}
    last = next(row.level for row in reversed(rows))
    by_stride: dict[float, list[TraceRow]] = {}
    for row in rows:
        if row.side == "up" and row.level != last:
            by_stride.setdefault(row.stride, []).append(row)
    for stride in sorted(by_stride, reverse=True):
        *_, row = steps = by_stride[stride]
        taken = dict.fromkeys(level for step in steps for level in step.takes)
        level = f"{row.level}.{row.step}".removesuffix(".")
        drawn[level] = replace(row, level=level, takes=tuple(taken))
    head = [row for row in rows if row.level == last]
    return drawn | {last: replace(head[-1], step="", takes=())}


def _boxes(trace: Trace) -> dict[str, Box]:
    """Return the box of every map by its level, along the U; the map of a stage is that of its block, the last step."""
    rows = drawn_rows(trace)
    scale = _Scale(max(row.channels for row in rows.values()), max(row.height for row in rows.values()))
    lines, columns = scale.lines(rows.values()), _columns(trace, rows, scale)
    maps, ups = _split_levels(rows)
    kinds = dict.fromkeys(maps, "encoder") | {level: _kind(level, ups) for level in ups}
    kinds |= {"input": "input", maps[-1]: "bottom"}
    cropped = [row for row in trace.rows if row.level == "output"]
    output = f"output, cropped to {cropped[0].height}{TIMES}{cropped[0].width}" if cropped else "output"
    tags = {"input": "input", [*rows][-1]: output}
    return {
        level: Box(row, kinds[level], columns[level], lines[row.stride], *scale.box(row), tags.get(level, ""))
        for level, row in rows.items()
    }


def _columns(trace: Trace, rows: dict[str, TraceRow], scale: _Scale) -> dict[str, float]:
    """Return the x of every map: the encoder's at 0, the stages' in a column on the right, the deepest in between."""
    maps, ups = _split_levels(rows)
    stages = [level for level in ups if _kind(level, ups) == "stages"]
    skips = [
        scale.distance(rows[skip], rows[stage], _skip_labels(trace, rows, stage, skip))
        for stage, skip in _skips(trace, rows)
    ]
    bottom, first = rows[maps[-1]], rows[stages[0]]
    beside = [2 * scale.distance(bottom, first, _flow_label(bottom, first, trace))] * (bottom.stride == first.stride)
    right = max([CLOSEST, 2 * scale.half_width(bottom) + 2 * ARM, *skips, *beside])
    columns = dict.fromkeys(maps, 0.0) | {maps[-1]: right / 2} | dict.fromkeys(stages, right)
    columns["input"], column = 0.0, right
    if fan := _find_fan(rows):
        columns["input"] = _fan_start(rows, fan, scale) - ARM - scale.half_width(rows["input"])
    elif rows["input"].stride == rows[maps[0]].stride:
        columns["input"] = -scale.distance(rows["input"], rows[maps[0]])
    for a, b in pairwise([stages[-1], *[*rows][[*rows].index(stages[-1]) + 1 :]]):
        if rows[a].stride == rows[b].stride:
            column += scale.distance(rows[a], rows[b], _flow_label(rows[a], rows[b], trace))
        columns[b] = column
    return columns


def _arrows(trace: Trace, boxes: dict[str, Box]) -> Iterator[Arrow]:
    """Yield the arrows along the U from input to output, then those of the skips across it."""
    rows = {level: box.row for level, box in boxes.items()}
    fan = _find_fan(rows)
    if fan is not None:
        yield from _fan_arrows(boxes, fan)
    for a, b in pairwise(boxes.values()):
        if fan is None or b.row.side == "up":
            yield _flow_arrow(a, b, _flow_label(a.row, b.row, trace))
    for stage, skip in _skips(trace, rows):
        a, b = boxes[skip], boxes[stage]
        (fusion, channels), middle = _skip_labels(trace, rows, stage, skip), (a.right + b.left) / 2
        texts = Label(fusion, middle, a.y - 7, fill=INK), Label(channels, middle, a.y + 16)
        yield Arrow("skip", ((a.right + 5, a.y), (b.left - 5, b.y)), texts)


@dataclass(frozen=True)
class _Fan:
    """The maps of a pyramid that are all made of one map, as those of a plain vision transformer.

    Attributes:
        source: description of the one map.
        level: the level at the stride of the one map, or nearest to it.
        labels: how each level is made of it, with the change of the stride.
    """

    source: str
    level: str
    labels: dict[str, str]


def _find_fan(rows: dict[str, TraceRow]) -> _Fan | None:
    """Return the fan of an encoder whose maps have one source; None if they have several."""
    maps, _ = _split_levels(rows)
    split = {level: rows[level].what.partition("; ") for level in maps}
    sources = {source for source, _, _ in split.values()}
    if len(maps) < 2 or len(sources) > 1 or not all(sources):
        return None
    [source] = sources
    stride = float(found[1]) if (found := re.search(r", reduction (\d+)", source)) else rows[maps[0]].stride
    level = min(maps, key=lambda one: abs(rows[one].stride - stride))
    labels = {one: f"{how} {_format_change(stride, rows[one].stride)}".strip() for one, (_, _, how) in split.items()}
    what = f"{re.sub(r', reduction .*', '', source)} {_format_change(1, stride)}"
    return _Fan(what, level, labels)


def _format_change(before: float, after: float) -> str:
    """Format a change of the stride as a division of the map's size, or as a multiplication if the map grows."""
    if before == after:
        return ""
    return f"{DIVIDED}{after / before:g}" if after > before else f"{TIMES}{before / after:g}"


def _fan_start(rows: dict[str, TraceRow], fan: _Fan, scale: _Scale) -> float:
    """Return the x at which the arrows to the maps part, with room for their labels."""
    maps = [*fan.labels][:-1]
    return -max(scale.half_width(rows[level]) for level in maps) - max(map(_width, fan.labels.values())) - 24


def _fan_arrows(boxes: dict[str, Box], fan: _Fan) -> Iterator[Arrow]:
    """Yield the arrow from the input to the map at the stride of the one map, and those that part from it."""
    start, hub = boxes["input"], boxes[fan.level]
    column = [boxes[level] for level in fan.labels][:-1]
    left = min(min(box.left, *(text.ends[0] for text in box.texts)) for box in column)
    x = left - max(map(_width, fan.labels.values())) - 24
    points = ((start.x, start.bottom + 5), (start.x, hub.y), (hub.left - 5, hub.y))
    yield Arrow("flow", points, _stack(_wrap(fan.source), start.x - 10, (start.bottom + hub.y) / 2, "end"))
    for level, label in fan.labels.items():
        box = boxes[level]
        texts = (Label(label, left - 12, box.y - 7, "end"),) if label else ()
        corner = (x, hub.y) if level == fan.level else (x, box.y)
        yield Arrow("flow", ((x, hub.y), corner, (box.left - 5, box.y)), texts)


def _flow_arrow(a: Box, b: Box, label: list[str]) -> Arrow:
    """Return the arrow from a map to the next: straight, or around the corner to and from the deepest map."""
    if a.y == b.y:
        return Arrow("flow", ((a.right + 5, a.y), (b.left - 5, b.y)), _level_texts(a, b, label))
    if a.y < b.y:
        turn = (a.x, b.roof - 1) if a.x == b.x else (a.x, b.y)
        texts = _stack(label, a.x - 10, (a.bottom + b.roof) / 2, "end")
        points = [(a.x, a.bottom + 5), turn, (b.left - 5, b.y)]
    else:
        turn = (b.x, a.roof) if a.x == b.x else (b.x, a.y)
        texts = _stack(label, b.x + 10, (b.bottom + a.roof) / 2, "start")
        points = [(b.x, b.bottom + 5), turn, (a.right + 5, a.y)][::-1]
    if a.x == b.x:
        points.remove(points[2] if a.y < b.y else points[0])
    return Arrow("flow", tuple(points), texts)


def _level_texts(a: Box, b: Box, label: list[str]) -> tuple[Label, ...]:
    """Return the label above a horizontal arrow; the one to the first map has none, since that names a level."""
    if b.kind == "encoder":
        return ()
    return _stack(label, (a.right + b.left) / 2, a.y - 11 - (len(label) - 1) * 7.5, "middle")


def _stack(lines: list[str], x: float, middle: float, anchor: str) -> tuple[Label, ...]:
    """Return lines of text below each other, centered at a y."""
    start = middle + 4 - (len(lines) - 1) * 7.5
    return tuple(Label(line, x, start + 15 * index, anchor) for index, line in enumerate(lines))


def _heading(trace: Trace, x: float, bottom: float, width: float) -> list[Label]:
    """Return the line that builds the network, on at most three lines, and the totals below it."""
    room = int(width / (TITLE * MONO_SHARE))
    # A value stays on the line of its flag if both fit on one.
    words = [word.replace(" ", NO_BREAK) if len(word) <= room else word for word in re.split(r" (?=--)", trace.line)]
    title = textwrap.wrap(" ".join(words), room, max_lines=3, placeholder=" …", break_on_hyphens=False) or ["U-Net"]
    parameters, macs = trace.parameters, trace.macs
    totals = [f"{parameters:,} parameters"] * bool(parameters) + [f"{format_count(macs)} MACs"] * bool(macs)
    top = bottom - 24 - 20 * (len(title) - 1)
    lines = [
        Label(line.replace(NO_BREAK, " "), x, top + 20 * i, size=TITLE, fill=INK, font=MONO)
        for i, line in enumerate(title)
    ]
    return [*lines, Label("  ·  ".join(totals), x, bottom, size=TEXT)]


def description(trace: Trace) -> str:
    """Describe the drawing in words, for readers who cannot see it."""
    rows = drawn_rows(trace)
    maps = "; ".join(f"{level} {row.channels} x {row.height} x {row.width}" for level, row in rows.items())
    joins = "; ".join(
        f"{stage} joins {skip} by {_skip_labels(trace, rows, stage, skip)[0]}" for stage, skip in _skips(trace, rows)
    )
    return f"Channels x height x width along the U: {maps}. Skips: {joins or 'none'}."


def _split_levels(rows: dict[str, TraceRow]) -> tuple[list[str], list[str]]:
    """Return the levels of the contracting path without the input, and the levels after it."""
    down = [level for level, row in rows.items() if row.side == "down" and level != "input"]
    return down, [level for level, row in rows.items() if row.side == "up"]


def _kind(level: str, ups: list[str]) -> str:
    """Return the kind of a level after the contracting path; the last one of a whole model is its head."""
    kind = level.split(".")[0]
    return kind if kind in COLOURS else "head" if level == ups[-1] and len(ups) > 1 else "stages"


def _skips(trace: Trace, rows: dict[str, TraceRow]) -> list[tuple[str, str]]:
    """Return the level of each stage with a skip, and the level of the map that it fuses.

    Of a whole model, these are the maps of its encoder that a step of the same stride takes, except the deepest.
    """
    if not trace.skips:
        down, _ = _split_levels(rows)
        return [
            (level, taken)
            for level, row in rows.items()
            for taken in row.takes
            if taken in down[:-1] and rows[taken].stride == row.stride
        ]
    return [(f"stages.{index}", skip) for index, skip in enumerate(trace.skips) if skip is not None]


def _step(trace: Trace, level: str, step: str) -> TraceRow:
    return next(row for row in trace.rows if (row.level, row.step) == (level, step))


def _skip_labels(trace: Trace, rows: dict[str, TraceRow], stage: str, skip: str) -> tuple[str, str]:
    """Return the labels of a skip: its fusion, after the align if sizes differed, and the channels of the result.

    How a whole model fuses is not known, so its skips have the channels of the encoder's map.
    """
    if not trace.skips:
        return "skip", f"{rows[skip].channels} channels"
    up, fusion = _step(trace, stage, "up"), _step(trace, stage, "fusion")
    skip_map = next(row for row in trace.rows if row.level == skip)
    label = fusion.what.partition(" skip ")[0]
    if (up.height, up.width) != (skip_map.height, skip_map.width):
        label = _step(trace, stage, "align").what.partition(": ")[0] + " · " + label
    return _shorten(label, 40), f"{'projected to ' * ('project' in fusion.what)}{fusion.channels} channels"


def _caption(row: TraceRow) -> tuple[str, str]:
    return str(row.channels), f"\N{EN SPACE}{row.height}{TIMES}{row.width}"


def _shorten(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def _wrap(text: str) -> list[str]:
    """Wrap a description to at most three short lines; the options of a part go below its name and scale."""
    head, _, scale = text.partition(" ")
    name, _, options = head.partition(":")
    lines = [f"{name} {scale}", options.replace(",", ", ")]
    with_signs = [re.sub(r"(?<![^\W\d])x(?=\d)", TIMES, line.strip()) for line in lines]
    return [short for line in with_signs for short in textwrap.wrap(line, 26, max_lines=2, placeholder=" …")][:3]


def _flow_label(a: TraceRow, b: TraceRow, trace: Trace) -> list[str]:
    """Return the lines beside the arrow from a map to the next; that to a stage also names its block."""
    lines = _wrap(_transition(a, b, trace))
    if trace.skips and b.step == "block":
        lines = [*lines[:2], _shorten(f"block {b.what.partition(':')[0]}", 26)]
    return lines


def _transition(a: TraceRow, b: TraceRow, trace: Trace) -> str:
    """Describe the step from a map to the next."""
    if b.side == "up" and not trace.skips:
        return b.what if b.step else b.level
    if b.side == "up":
        return _step(trace, b.level, "up").what if b.step else b.what
    what = re.sub(r", reduction \d+", "", b.what)  # the sizes beside it show the reduction
    return f"{what} {DIVIDED}{b.stride / a.stride:g}".strip() if b.stride > a.stride else what


def _width(text: str, size: float = SMALL, share: float = SANS_SHARE) -> float:
    return len(text) * size * share


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


def arrowhead(arrow: Arrow) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return the points of the line of an arrow, and the corners of its head.

    Args:
        arrow: an arrow whose last segment is horizontal or vertical.
    """
    *_, (x0, y0), (x, y) = arrow.points
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    shaft = [*arrow.points[:-1], (x - 7 * dx, y - 7 * dy)]
    return shaft, [(x, y), *((x - 9 * dx + s * dy, y - 9 * dy + s * dx) for s in (4, -4))]


def _draw_arrow(parent: ET.Element, arrow: Arrow) -> None:
    group = ET.SubElement(parent, "g", {"class": arrow.kind})
    colour = SKIP if arrow.kind == "skip" else FLOW
    shaft, wings = arrowhead(arrow)
    style = {"fill": "none", "stroke": colour, "stroke-width": "1.6", "stroke-linejoin": "round"}
    ET.SubElement(group, "polyline", {"points": _points(shaft), **style})
    ET.SubElement(group, "polygon", {"points": _points(wings), "fill": colour})
    for text in arrow.texts:
        _draw_text(group, text)


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _draw_text(parent: ET.Element, text: Label) -> None:
    style = {"text-anchor": text.anchor, "font-size": _number(text.size), "fill": text.fill, "font-family": text.font}
    element = ET.SubElement(parent, "text", {"x": _number(text.x), "y": _number(text.y), **style})
    if not text.lead:
        element.text = text.text
        return
    lead = ET.SubElement(element, "tspan", {"font-weight": "bold", "fill": text.lead_fill})
    lead.text, lead.tail = text.lead, text.text
