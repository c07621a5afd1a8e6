from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image
from torch import Tensor, nn

import unetkit
from unetkit.summary.picture import write_picture
from unetkit.summary.report import Trace, TraceRow
from unetkit.summary.svg import Drawing, Label, draw, drawn_rows, layout

SVG = "{http://www.w3.org/2000/svg}"
NETS: dict[str, int | tuple[int, int]] = {
    "unet-2015": 572,
    "--encoder resnet18 --fuse add": (224, 224),
    "--encoder resnet18 --decode-to 4": (480, 640),
    "--encoder plain:widths=[16,32,64] --align pad": (37, 50),
    "--encoder plain:widths=[4,8,16,32,64,64,64] --up transposed:kernel=4,init=bilinear": 2048,
    "--encoder plain:widths=[4,8],padding=0 --block double:padding=0 --align crop --logits bilinear": 64,
    "--encoder test_vit": 224,
    "--model smp/unet --encoder resnet18": 64,
    "--model smp/fpn --encoder resnet18": 64,
}


class Patches(nn.Conv2d):
    """An encoder of one map, at stride 4."""

    channels = (8,)
    strides = (4,)

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 8, 4, stride=4)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [super().forward(x)]


@cache
def traced(line: str) -> Trace:
    if line == "patches":
        return unetkit.trace(unetkit.build(Patches, device="meta"), 32)
    plan = unetkit.Plan.parse(line) if line.startswith("--") else unetkit.Plan.parse(f"--recipe {line}")
    return unetkit.trace(unetkit.build(plan, device="meta"), NETS[line])


@pytest.fixture(params=[*NETS, "patches"])
def trace(request: pytest.FixtureRequest) -> Trace:
    return traced(request.param)


def parse(trace: Trace) -> ET.Element:
    return ET.fromstring(draw(trace))


def levels(trace: Trace) -> dict[str, TraceRow]:
    return {row.level: row for row in trace.rows if row.level != "other"} if trace.skips else drawn_rows(trace)


def maps(root: ET.Element) -> dict[str, ET.Element]:
    return {group.attrib["data-level"]: group for group in root.iter(SVG + "g") if "data-level" in group.attrib}


def words(element: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in element.iter(SVG + "text")]


def sides(group: ET.Element) -> tuple[float, float, float, float]:
    box = next(group.iter(SVG + "rect")).attrib
    return float(box["x"]), float(box["y"]), float(box["width"]), float(box["height"])


def centre(group: ET.Element) -> tuple[float, float]:
    x, y, width, height = sides(group)
    return x + width / 2, y + height / 2


def every_text(figure: Drawing) -> list[Label]:
    boxes = [text for box in figure.boxes for text in box.texts]
    return [*figure.texts, *boxes, *(text for arrow in figure.arrows for text in arrow.texts)]


def test_every_map_is_drawn_with_its_channels_and_size(trace: Trace) -> None:
    drawn = maps(parse(trace))
    assert list(drawn) == list(levels(trace))
    for level, row in levels(trace).items():
        assert f"{row.channels}\N{EN SPACE}{row.height}\N{MULTIPLICATION SIGN}{row.width}" in words(drawn[level])


def test_input_and_output_are_marked(trace: Trace) -> None:
    drawn = maps(parse(trace))
    marked = {level: word for level, group in drawn.items() for word in words(group) if word.isalpha()}
    assert marked == {"input": "input", list(drawn)[-1]: "output"}


def test_boxes_grow_with_channels_and_height(trace: Trace) -> None:
    drawn = maps(parse(trace))
    rows = levels(trace).values()
    for side, of in ((2, "channels"), (3, "height")):
        sizes = sorted((getattr(row, of), sides(drawn[row.level])[side]) for row in rows)
        for (small, narrow), (large, wide) in pairwise(sizes):
            assert narrow == wide if small == large else narrow < wide


def test_maps_of_one_stride_stand_on_one_line_and_deeper_ones_below(trace: Trace) -> None:
    drawn = maps(parse(trace))
    lines: dict[float, set[float]] = {}
    for level, row in levels(trace).items():
        lines.setdefault(row.stride, set()).add(round(centre(drawn[level])[1], 1))
    assert all(max(ys) - min(ys) < 0.2 for ys in lines.values())
    shallow_to_deep = [min(lines[stride]) for stride in sorted(lines)]
    assert shallow_to_deep == sorted(shallow_to_deep)


def test_the_encoder_goes_down_on_the_left_and_the_stages_up_on_the_right(trace: Trace) -> None:
    drawn = maps(parse(trace))
    *left, bottom = [centre(group) for level, group in drawn.items() if level.startswith("encoder.")]
    right = [centre(group) for level, group in drawn.items() if level.startswith("stages.")]
    assert all(x < bottom[0] for x, _ in left)
    assert all(x > bottom[0] for x, _ in right)
    assert [y for _, y in left] == sorted(y for _, y in left)
    assert [y for _, y in right] == sorted((y for _, y in right), reverse=True)


def test_a_skip_has_an_arrow_between_its_maps_and_a_stage_without_one_has_none(trace: Trace) -> None:
    root = parse(trace)
    drawn = maps(root)
    arrows = [line for group in root.iter(SVG + "g") if group.get("class") == "skip" for line in group]
    ends = []
    for line in arrows:
        if line.tag == SVG + "polyline":
            (x0, y0), (x1, y1) = ([float(n) for n in point.split(",")] for point in line.attrib["points"].split())
            assert y0 == y1
            ends.append((x0, x1, y0))
    expected = [(f"stages.{i}", skip) for i, skip in enumerate(trace.skips) if skip]
    if not trace.skips:  # a whole model, whose steps take maps of their own stride
        steps = [
            level for level in drawn if level.startswith("decoder") and levels(trace)[level].stride in (2, 4, 8, 16)
        ]
        maps_of = {row.stride: level for level, row in levels(trace).items() if level.startswith("encoder")}
        expected = [(level, maps_of[levels(trace)[level].stride]) for level in steps]
        assert len(expected) == (4 if "smp/unet" in trace.line else 3)
    assert len(ends) == len(expected)
    for (x0, x1, y), (stage, skip) in zip(ends, expected, strict=True):
        (left, _, width, _), (right, *_) = sides(drawn[skip]), sides(drawn[stage])
        assert left + width < x0 < x1 < right
        assert y == pytest.approx(centre(drawn[stage])[1], abs=0.1)


@pytest.mark.parametrize(
    ("line", "labels"),
    [
        ("unet-2015", ["crop · concat"] * 4),
        ("--encoder resnet18 --fuse add", ["add"] * 4),
        ("--encoder plain:widths=[16,32,64] --align pad", ["pad · concat", "pad · concat"]),
        ("--encoder resnet18 --decode-to 4", ["concat"] * 3),
        ("patches", []),
    ],
)
def test_a_skip_says_how_it_is_joined(line: str, labels: list[str]) -> None:
    root = parse(traced(line))
    assert [words(group)[0] for group in root.iter(SVG + "g") if group.get("class") == "skip"] == labels


def test_a_pyramid_of_one_map_parts_from_one_point() -> None:
    figure = layout(traced("--encoder test_vit"))
    boxes = {box.row.level: box for box in figure.boxes}
    trunk = [arrow for arrow in figure.arrows if arrow.points[0][0] < boxes["encoder.0"].left]
    assert len(trunk) == 5  # from the input to the one map, and from there to each of the pyramid
    first, *others = trunk
    assert first.texts[0].text == "timm blocks.5 ÷16"
    assert len({arrow.points[0] for arrow in others}) == 1
    assert [text.text for arrow in others for text in arrow.texts] == [
        "2 transposed convs \N{MULTIPLICATION SIGN}4",
        "transposed conv \N{MULTIPLICATION SIGN}2",
        "max pool ÷2",
    ]


def test_stages_name_their_blocks() -> None:
    drawn = words(parse(traced("--encoder resnet18 --fuse add")))
    assert drawn.count("block double") == 5


def test_a_skip_says_what_it_gives_and_that_channels_were_projected() -> None:
    below = {words(group)[1] for group in parse(traced("unet-2015")).iter(SVG + "g") if group.get("class") == "skip"}
    assert below == {"1024 channels", "512 channels", "256 channels", "128 channels"}
    root = parse(traced("--encoder resnet18 --fuse add"))
    assert "projected to 256 channels" in [words(g)[1] for g in root.iter(SVG + "g") if g.get("class") == "skip"]


def test_arrows_say_what_leads_from_map_to_map() -> None:
    drawn = words(parse(traced("--encoder resnet18 --decode-to 4")))
    assert drawn.count("bilinear ×2") == 3  # noqa: RUF001
    assert {"conv", "bilinear 120×160 to", "480×640"} <= set(drawn)  # noqa: RUF001
    assert any(word.endswith("÷2") for word in drawn)
    options = words(parse(traced("--encoder plain:widths=[4,8,16,32,64,64,64] --up transposed:kernel=4,init=bilinear")))
    assert options.count("init=bilinear, kernel=4") == 6


def test_the_heading_is_the_line_and_the_totals() -> None:
    drawn = words(parse(traced("unet-2015")))
    assert "--recipe unet-2015" in drawn
    assert any(word.startswith("31,030,658 parameters") and word.endswith("G MACs") for word in drawn)


def test_text_is_escaped() -> None:
    line = """--encoder 'plain:act="<&>"' ]]>"""
    root = parse(replace(traced("unet-2015"), line=line))
    assert line in words(root)
    assert root.findtext(SVG + "title") == f"U-Net: {line}"


@pytest.mark.parametrize("line", ["--block residual:order=norm-act-conv " * 20, "x" * 400, "--fuse " + "concat/" * 99])
def test_a_long_line_is_wrapped_and_cut(line: str) -> None:
    net = traced("--encoder plain:widths=[16,32,64] --align pad")
    short, long = layout(net), layout(replace(net, line=line))
    assert long.width == short.width
    assert len(long.texts) == len(short.texts) + 2
    assert long.texts[2].text.endswith("…")


def test_everything_lies_inside_the_figure(trace: Trace) -> None:
    trace = replace(trace, line=" ".join(["--up transposed"] * 40))
    root = parse(trace)
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    xs, ys = [], []
    for element in root.iter():
        if element.tag == SVG + "rect":
            x, y, w, h = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
            xs += [x, x + w]
            ys += [y, y + h]
        for point in element.get("points", "").split():
            xs.append(float(point.split(",")[0]))
            ys.append(float(point.split(",")[1]))
    figure = layout(trace)
    texts = every_text(figure)
    assert len(texts) == len(words(root))
    xs += [x for text in texts for x in text.ends]
    ys += [y for text in texts for y in (text.y - text.size, text.y + text.size / 3)]
    assert left <= min(xs) <= max(xs) <= left + width
    assert top <= min(ys) <= max(ys) <= top + height


def test_no_text_lies_on_another_or_on_a_box(trace: Trace) -> None:
    figure = layout(trace)
    texts = every_text(figure)
    areas = [(*text.ends, text.y - 0.75 * text.size, text.y + 0.2 * text.size) for text in texts]
    areas += [(box.left, box.right, box.top, box.bottom) for box in figure.boxes]
    for index, (left, right, top, bottom) in enumerate(areas):
        for other in areas[index + 1 :]:
            assert other[0] >= right or other[1] <= left or other[2] >= bottom or other[3] <= top


def test_it_is_self_contained_and_described(trace: Trace) -> None:
    text = draw(trace)
    root = ET.fromstring(text)
    assert root.attrib["role"] == "img"
    assert [child.tag for child in root][:2] == [SVG + "title", SVG + "desc"]
    assert all(level in (root.findtext(SVG + "desc") or "") for level in levels(trace))
    assert "href" not in text
    assert "url(" not in text
    background = next(child for child in root if child.tag == SVG + "rect")
    assert float(background.attrib["width"]) == pytest.approx(float(root.attrib["width"]), abs=1)


def test_what_belongs_to_no_level_is_not_drawn_but_counted() -> None:
    net = traced("unet-2015")
    root = parse(replace(net, rows=(*net.rows, replace(net.rows[-1], level="other", height=1, parameters=342))))
    assert list(maps(root)) == list(levels(net))
    assert any(word.startswith("31,031,000 parameters") for word in words(root))


@pytest.mark.slow
def test_a_picture_has_the_format_of_its_ending(tmp_path: Path) -> None:
    net, begins = traced("--encoder resnet18 --fuse add"), {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}
    for ending, begin in begins.items():
        write_picture(net, tmp_path / f"net.{ending}")
        assert (tmp_path / f"net.{ending}").read_bytes().startswith(begin)
    figure = layout(net)
    with Image.open(tmp_path / "net.png") as picture:
        assert picture.size == pytest.approx((2 * figure.width, 2 * figure.height), abs=2)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20) or []}
    assert {(0xCF, 0xE1, 0xF7), (0xCD, 0xEB, 0xDD)} <= colours  # encoder and stages
    write_picture(net, tmp_path / "again.pdf")
    assert (tmp_path / "again.pdf").read_bytes() == (tmp_path / "net.pdf").read_bytes()
