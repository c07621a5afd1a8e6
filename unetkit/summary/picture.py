"""The picture of a network as a file: SVG, PNG or PDF, all with the same layout."""

from __future__ import annotations

from pathlib import Path

from unetkit.summary.report import Trace
from unetkit.summary.svg import (
    BACKGROUND,
    COLOURS,
    FLOW,
    MONO,
    SKIP,
    Arrow,
    Label,
    arrowhead,
    draw,
    layout,
)
from unetkit.utils.files import write_requested_file

#: Pixels of a PNG file for each pixel of the layout.
_PNG_SCALE = 2
#: Pixels of the layout in an inch, as in SVG; a font size in pixels is that many points times 72.
_PIXELS_PER_INCH = 96
_ALIGNMENTS = {"start": "left", "middle": "center", "end": "right"}


def write_picture(trace: Trace, path: Path) -> None:
    """Draw a network to a file in the format of its ending. PNG files have two pixels for each pixel of the layout.

    Args:
        trace: the trace of the network.
        path: the file, which ends in .svg, .png or .pdf.

    Raises:
        FileError: The file cannot be written.
    """
    with write_requested_file(path, "--picture") as temporary:
        if path.suffix.lower() == ".svg":
            temporary.write_text(draw(trace), encoding="utf-8")
        else:
            _save_figure(trace, temporary, path.suffix.lower()[1:])


def _save_figure(trace: Trace, path: Path, file_format: str) -> None:
    """Draw the layout with matplotlib. Its own fonts are used, and the file says nothing about this machine or time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Polygon  # here, since it takes long to import

    drawing = layout(trace)
    with rc_context({"font.family": "DejaVu Sans", "pdf.fonttype": 42, "text.parse_math": False}):
        figure = Figure((drawing.width / _PIXELS_PER_INCH, drawing.height / _PIXELS_PER_INCH))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(drawing.left, drawing.left + drawing.width)
        axes.set_ylim(drawing.top + drawing.height, drawing.top)
        axes.axis("off")
        figure.patch.set_facecolor(BACKGROUND[0])

        def draw_arrow(arrow: Arrow) -> None:
            colour = SKIP if arrow.kind == "skip" else FLOW
            shaft, wings = arrowhead(arrow)
            axes.plot(
                [x for x, _ in shaft], [y for _, y in shaft], color=colour, linewidth=1.2, solid_joinstyle="round"
            )
            axes.add_patch(Polygon(wings, facecolor=colour, edgecolor="none"))

        def draw_text(label: Label) -> None:
            size = label.size * 72 / _PIXELS_PER_INCH
            family = "DejaVu Sans Mono" if label.font == MONO else "DejaVu Sans"
            align = _ALIGNMENTS[label.anchor]
            if not label.lead:
                axes.text(label.x, label.y, label.text, color=label.fill, size=size, ha=align, family=family)
                return
            # The bold lead and the rest are two texts that meet where the lead ends.
            left, right = label.ends
            meets = left + (right - left) * len(label.lead) / max(1, len(label.lead + label.text))
            aligned = ("right", meets) if label.text else ("center", label.x)
            axes.text(aligned[1], label.y, label.lead, color=label.lead_fill, size=size, ha=aligned[0], weight="bold")
            if label.text:
                axes.text(meets, label.y, label.text, color=label.fill, size=size, ha="left")

        for arrow in drawing.arrows:
            draw_arrow(arrow)
        for box in drawing.boxes:
            fill, line = COLOURS[box.kind]
            corner = min(3.0, box.width / 3, box.height / 3)
            shape = f"round,pad=0,rounding_size={corner:g}"
            place, size = (box.left, box.top), (box.width, box.height)
            axes.add_patch(FancyBboxPatch(place, *size, boxstyle=shape, facecolor=fill, edgecolor=line, linewidth=0.8))
        texts = [
            *drawing.texts,
            *(text for box in drawing.boxes for text in box.texts),
            *(text for arrow in drawing.arrows for text in arrow.texts),
        ]
        for label in texts:
            draw_text(label)
        metadata = {"CreationDate": None} if file_format == "pdf" else None
        figure.savefig(path, format=file_format, dpi=_PIXELS_PER_INCH * _PNG_SCALE, metadata=metadata)
