"""The architectures of segmentation-models-pytorch and their options, read from its source; nothing is imported."""

from __future__ import annotations

import ast
import re
from functools import cache, reduce
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import Any, Literal

from unetkit.options import Option, help_of

#: Said by words of the line.
_ELSEWHERE = {"encoder_name", "encoder_weights", "in_channels", "classes"}
_UNTOLD = "smp's documentation does not say"
#: An activation makes probabilities of logits, which losses take for logits; a second head gives a second output.
_NOT_HERE = {"activation", "aux_params"}


def smp_architecture_names() -> list[str]:
    """Every architecture, in lower case: unet, unetplusplus, manet, ..."""
    return [*_classes()]


def smp_class_name(name: str) -> str:
    """What smp calls it: UnetPlusPlus for unetplusplus."""
    return str(_classes()[name].name)


def smp_architecture_options(name: str) -> list[Option]:
    """Those of an architecture's constructor that no word says, with smp's types, defaults and help."""
    doc = ast.get_docstring(_classes()[name]) or ""
    given = _arguments(name)
    encoder = Option("encoder", str, _ours(given["encoder_name"][1]), "the contracting path; `--encoder` says the same")
    own = [
        Option(argument, _type(annotation), default, _first_sentence(help_of(doc, argument)) or _UNTOLD)
        for argument, (annotation, default) in given.items()
        if argument not in _ELSEWHERE | _NOT_HERE
    ]
    return [encoder, *own]


def _arguments(name: str) -> dict[str, tuple[ast.expr, Any]]:
    """The annotation and default of each argument of a constructor, all of which have both."""
    init = next(f for f in _classes()[name].body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    pairs = zip(init.args.args[1:], init.args.defaults, strict=True)
    return {argument.arg: (_said(argument.annotation), ast.literal_eval(default)) for argument, default in pairs}


def _said(annotation: ast.expr | None) -> ast.expr:
    return annotation or ast.Name("str")


def _type(annotation: ast.expr) -> Any:
    """A type of typing's as the grammar has it; what it has not (a dict, a callable) is left out of a union."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _type(inner) | None
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return reduce(or_, [found for found in map(_type, members) if found is not None])
        case ast.Subscript(value=ast.Name(id="Sequence" | "Iterable" | "list"), slice=ast.Name(id="int")):
            return tuple[int, ...]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return Literal[ast.literal_eval(inner)]
        case ast.Name(id=name):
            return {"bool": bool, "int": int, "float": float, "str": str}.get(name)
    return None


def _first_sentence(text: str) -> str:
    plain = text.replace("**", "").replace("``", "`")
    return plain.partition(". ")[0].rstrip(".:")


def _ours(encoder: str) -> str:
    """The default encoder in our words: smp's own resnet34 is timm's by another name."""
    return f"timm/{encoder.removeprefix('tu-')}"


@cache
def _classes() -> dict[str, Any]:
    """The class of each architecture, as its file has it, in the order in which smp lists them."""
    spec = find_spec("segmentation_models_pytorch")
    if spec is None or spec.origin is None:
        return {}
    listed = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    order = next(
        [item.id for item in statement.value.elts if isinstance(item, ast.Name)]
        for statement in listed.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.List)
        and ast.unparse(statement.targets[0]) == "_MODEL_ARCHITECTURES"
    )
    files = (Path(spec.origin).parent / "decoders").glob("*/model.py")
    nodes = {
        node.name: node
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    return {name.lower(): nodes[name] for name in order}


#: In encoders/__init__.py, which file's encoders come when; and in each file, its names.
_LISTED = re.compile(r"^from \.(\w+) import \w+_encoders$", re.MULTILINE)
_NAMED = re.compile(r'^    "([^"]+)": \{\n +"encoder":', re.MULTILINE)


@cache
def smp_encoder_names() -> list[str]:
    """Every name of `segmentation_models_pytorch.encoders.get_encoder_names()`, in its order.

    smp itself is asked where its files do not look as expected.
    """
    package = find_spec("segmentation_models_pytorch")
    if package is None or package.origin is None:
        return []
    folder = Path(package.origin).parent / "encoders"
    try:
        files = [folder / f"{file}.py" for file in _LISTED.findall(_text(folder / "__init__.py"))]
        found = [name for file in files for name in _NAMED.findall(_text(file))]
    except OSError:
        found = []
    return found if "resnet18" in found else _asked()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _asked() -> list[str]:
    from segmentation_models_pytorch import encoders

    return list(encoders.get_encoder_names())
