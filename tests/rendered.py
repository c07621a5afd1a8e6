"""What the pages say that the code knows better: tables of words, parts and recipes, and the pictures.

A page holds each between `<!-- rendered: NAME -->` and `<!-- end -->`; `UPDATE_DOCS=1 pytest tests/test_docs.py`
writes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

import unetkit
from tests.sweep.page import render_tables
from unetkit.network import Network
from unetkit.options import Option, describe_type, format_value
from unetkit.plan import PLAN_FIELDS
from unetkit.registry import Entry, Registry
from unetkit.resolve import DEFAULTS
from unetkit.summary.forward_hooks import ModuleCall, make_meta_input, record_forward
from unetkit.summary.report import Trace
from unetkit.summary.svg import draw
from unetkit.testing.catalog import ALL_KINDS, CHECKS, MODULE_KINDS
from unetkit.utils.formatting import format_count

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = ("unet-2015", "vgg16-unet", "resnet101-unet")
#: What each recipe is shown with, beside itself.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "unet-2015": ({"in_channels": 3},),
    "unet-same": ({"size": 572}, {"in_channels": 3}),
    "unet-bilinear": ({"classes": 1}, {"size": "571x433"}, {"up": "transposed:channels=keep"}),
    "unet-relu-bn": ({"in_channels": 3},),
    "vgg16-unet": ({"fuse": "add"},),
    "resnet34-unet": ({"fuse": "add"},),
    "resnet101-unet": ({"fuse": "concat"},),
}
#: Without what is installed here beside unetkit.
OURS = unetkit.load_parts(isolated=True)
_DERIVED = {
    "widths": "the channels of the skip, at most 512; half the previous width without a skip",
    "logits": "`bilinear`; `none` with valid convolutions",
}
_BLOCK = re.compile(r"(<!-- rendered: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: str) -> str:
    """A page's text with every rendered block as it should be."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{_rendered(found[2])}\n\n{found[3]}", page)


def picture(recipe: str) -> str:
    """The SVG text of a recipe's picture."""
    return draw(_traced(recipe))


def _metrics() -> str:
    lines = ["| metric | measures | unit | better | what it is |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{m.name}` | {m.measures} | {m.unit} | {m.better} | {m.info.summary} |" for m in OURS.metrics]
    return "\n".join(lines)


def _rendered(name: str) -> str:
    makers: dict[str, Callable[[], str]] = {
        "first command": _first_command,
        "words": _words,
        "recipes": _recipes,
        "sizes of unet-2015": _sizes,
        "checks": _checks,
        "metrics": _metrics,
        "models": _models,
        "sweep": lambda: render_tables([DOCS / "sweep.jsonl", DOCS / "sweep-smp.jsonl"]),
    }
    kind, _, recipe = name.partition(" ")
    if name in makers:
        return makers[name]()
    if kind == "options":  # of a plugin's part, on its own page
        registry, _, part = recipe.partition(" ")
        return _options(unetkit.load_parts()[registry].get(part))
    return _recipe(recipe) if kind == "recipe" else _parts(OURS[name])


def _table(*rows: Iterable[str]) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))


def _first_command() -> str:
    """What the README's first command prints, all but the levels between the deepest and the shallowest."""
    trace = str(unetkit.trace(unetkit.build(encoder="resnet101", fuse="add", device="meta")))
    lines = "\n".join(line.rstrip() for line in trace.splitlines() if line.strip())
    lines = re.sub(r"[^\n]*stages\.1 .*\n(?=[^\n]*stages\.4 )", "...\n", lines, flags=re.DOTALL)
    return f"```console\n$ unetkit build --encoder resnet101 --fuse add\n{lines}\n```"


def _words() -> str:
    return _table(
        ("option", "value", "description", "default"),
        *((f"`{word.flag}`", f"`{word.metavar}`", word.help, _unsaid(word.name)) for word in PLAN_FIELDS),
    )


def _unsaid(name: str) -> str:
    value = getattr(DEFAULTS, name)
    if value is None:
        return _DERIVED.get(name, "")
    return f"`{value[0] if isinstance(value, tuple) else value}`"


def _parts(registry: Registry) -> str:
    own = [_part(entry, entry.name) for entry in registry.entries.values()]
    theirs = [
        _part(registry.get(f"{name}/{source.list_names()[0]}"), f"any of {name}'s")
        for name, source in registry.libraries.items()
    ]
    return "\n\n".join([*own, *theirs])


def _part(entry: Entry, name: str) -> str:
    title = f"### `{name}`" if name == entry.name else f"### {name}"
    told = [re.sub(r"\s+", " ", part) for part in entry.signature.doc.split("\n\n") if not part.startswith("Args:")]
    return "\n\n".join([title, *told, _options(entry)])


def _options(entry: Entry) -> str:
    table = _table(("option", "takes", "default", "what it does"), *map(_option, entry.signature.options))
    return table if entry.signature.options else "No options."


def _option(option: Option) -> tuple[str, ...]:
    default = "must be given" if option.required else f"`{format_value(option.default, option.type)}`"
    return f"`{option.name}`", describe_type(option.type), default, option.help


def _models() -> str:
    rows = []
    for entry in OURS.models.find():
        traced = unetkit.trace(unetkit.build(model=entry.qualified_name, device="meta", parts=OURS))
        own = [option.name for option in entry.signature.options if option.name not in ("encoder", "pretrained")]
        encoder = next(option.default for option in entry.signature.options if option.name == "encoder")
        size = f"{traced.rows[0].height}x{traced.rows[0].width}"
        figures = f"{traced.parameters:,}", format_count(traced.macs), size
        rows.append((f"`{entry.qualified_name}`", f"`{encoder.removeprefix('timm/')}`", *figures, ", ".join(own)))
    return _table(("model", "encoder by default", "parameters", "MACs", "at", "options"), *rows)


def _checks() -> str:
    rows = ((f"`{check.name}`", check.title, _asked_of(check.kinds)) for check in CHECKS)
    return _table(("check", "promise", "of"), *rows)


def _asked_of(kinds: tuple[str, ...]) -> str:
    return {MODULE_KINDS: "every part of a network but recipes", ALL_KINDS: "everything"}.get(kinds) or ", ".join(kinds)


def _recipes() -> str:
    rows = ((f"`{e.name}`", e.signature.summary, _count(e.name)) for e in OURS.recipes.find())
    return _table(("recipe", "what it is", "parameters"), *rows)


def _count(recipe: str) -> str:
    return f"{_traced(recipe).parameters:,}"


def _recipe(name: str) -> str:
    line = replace(_built(name).resolved_plan, recipe=None)
    figures = [_figures(_traced(name, **words)) for words in ({}, *VARIANTS[name])]
    head = ("line", "input", "output", "parameters", "MACs", "receptive field", "smallest input")
    return f"```text\n{line}\n```\n\n{_table(head, *figures)}"


def _figures(trace: Trace) -> tuple[str, ...]:
    first, last = (f"{row.channels}x{row.height}x{row.width}" for row in (trace.rows[0], trace.rows[-1]))
    least = f"{trace.minimum}x{trace.minimum}"
    return (
        f"`{trace.line}`",
        first,
        last,
        f"{trace.parameters:,}",
        format_count(trace.macs),
        str(trace.receptive_field),
        least,
    )


def _built(recipe: str, **words: Any) -> Network:
    return unetkit.build(recipe=recipe, device="meta", **words)


@cache
def _traced(recipe: str, **words: Any) -> Trace:
    return unetkit.trace(_built(recipe, **words))


def _sizes() -> str:
    """Every height of unet-2015, a row a level: 572 -> 570 -> 568."""
    model = _built("unet-2015")
    levels: dict[str, list[str]] = {"encoder.levels.0": [str(_side(make_meta_input(model, (572, 572))))]}
    for call in record_forward(model, make_meta_input(model, (572, 572))).calls:
        if call.name == "encoder.pool":
            levels[f"encoder.levels.{len(levels)}"] = [f"pool {_side(call.outputs[0])}"]
        elif step := _step(call):
            level = ".".join(call.name.split(".")[: 3 if call.name.startswith("encoder") else 2])
            levels.setdefault(level, []).append(step)
    names = (re.sub(r"[.](levels|conv)", "", level) for level in levels)
    rows = ((f"`{name}`", " -> ".join(steps)) for name, steps in zip(names, levels.values(), strict=True))
    return _table(("level", "height and width"), *rows)


def _step(call: ModuleCall) -> str:
    gave = call.outputs[0] if call.outputs else None
    if isinstance(call.module, nn.ConvTranspose2d):
        return f"up {_side(gave)}"
    if isinstance(call.module, nn.Conv2d):
        return str(_side(gave))
    if call.name.endswith(".align"):
        return f"skip {_side(call.inputs[1])} cropped to {_side(call.outputs[1])}"
    return f"concat {call.outputs[0].shape[1]} channels" if call.name.endswith(".fusion") else ""


def _side(x: Any) -> int:
    return int(x.shape[-1])


def blocks(page: str, *languages: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page in these languages, in order, as language and text."""
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if found[1] in languages:
            yield found[1], found[2]
