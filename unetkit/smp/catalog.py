"""Names and options of the architectures and encoders of smp, read from its source without importing it."""

from __future__ import annotations

import ast
import re
from functools import cache, reduce
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import Any, Literal

from unetkit.options import Option, help_of

#: Arguments of an architecture's constructor that other options of the command line set.
_PLAN_ARGUMENTS = {"encoder_name", "encoder_weights", "in_channels", "classes"}
#: An activation would turn logits, which losses expect, into probabilities; a second head would add a second output.
_UNSUPPORTED = {"activation", "aux_params"}
_UNDOCUMENTED = "not described in smp's documentation."


def smp_architecture_names() -> list[str]:
    """Return the name of every architecture in lower case: unet, unetplusplus, manet, ..."""
    return [*_read_classes()]


def smp_class_name(name: str) -> str:
    """Return smp's name of an architecture's class: UnetPlusPlus for unetplusplus."""
    return str(_read_classes()[name].name)


def smp_architecture_options(name: str) -> list[Option]:
    """Return the options of an architecture's constructor, with smp's types, defaults and descriptions.

    Arguments that `--encoder`, `--pretrained`, `--in-channels` and `--classes` set are left out; an option `encoder`
    stands for the first.
    """
    doc = ast.get_docstring(_read_classes()[name]) or ""
    arguments = _read_arguments(name)
    encoder = Option("encoder", str, _timm_name(arguments["encoder_name"][1]), "encoder; the same as `--encoder`.")
    own = [
        Option(argument, _parse_type(annotation), default, _first_sentence(help_of(doc, argument)) or _UNDOCUMENTED)
        for argument, (annotation, default) in arguments.items()
        if argument not in _PLAN_ARGUMENTS | _UNSUPPORTED
    ]
    return [encoder, *own]


def _read_arguments(name: str) -> dict[str, tuple[ast.expr, Any]]:
    """Return the annotation and default of each argument of a constructor; all of them have a default."""
    init = next(f for f in _read_classes()[name].body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    pairs = zip(init.args.args[1:], init.args.defaults, strict=True)
    return {arg.arg: (arg.annotation or ast.Name("str"), ast.literal_eval(default)) for arg, default in pairs}


def _parse_type(annotation: ast.expr) -> Any:
    """Return the type of an annotation, without members of a union that a line cannot express, such as a dict."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _parse_type(inner) | None
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return reduce(or_, [kind for kind in map(_parse_type, members) if kind is not None])
        case ast.Subscript(value=ast.Name(id="Sequence" | "Iterable" | "list"), slice=ast.Name(id="int")):
            return tuple[int, ...]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return Literal[ast.literal_eval(inner)]
        case ast.Name(id=name):
            return {"bool": bool, "int": int, "float": float, "str": str}.get(name)
    return None


def _first_sentence(text: str) -> str:
    """Return the first sentence without markup, its first letter in lower case as in unetkit's own descriptions."""
    plain = re.sub(r"(?<=\w)_(?!\w)", "", text.replace("**", "").replace("``", "`"))  # "FPN_" is a link
    sentence = re.split(r"(?<!e\.g)(?<!i\.e)\. ", plain)[0].rstrip(".:")
    return f"{sentence[0].lower()}{sentence[1:]}." if sentence else ""


def _timm_name(encoder: str) -> str:
    """Return unetkit's name of a default encoder: smp's own resnet34 is timm's by another name."""
    return f"timm/{encoder.removeprefix('tu-')}"


@cache
def _read_classes() -> dict[str, Any]:
    """Return the syntax tree of each architecture's class, in the order in which smp lists them."""
    spec = find_spec("segmentation_models_pytorch")
    if spec is None or spec.origin is None:
        return {}
    package = ast.parse(_read_text(Path(spec.origin)))
    order = next(
        [item.id for item in statement.value.elts if isinstance(item, ast.Name)]
        for statement in package.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.List)
        and ast.unparse(statement.targets[0]) == "_MODEL_ARCHITECTURES"
    )
    files = (Path(spec.origin).parent / "decoders").glob("*/model.py")
    nodes = {
        node.name: node for file in files for node in ast.parse(_read_text(file)).body if isinstance(node, ast.ClassDef)
    }
    return {name.lower(): nodes[name] for name in order}


#: A line of encoders/__init__.py that imports the encoders of a file.
_IMPORT_LINE = re.compile(r"^from \.(\w+) import \w+_encoders$", re.MULTILINE)
#: The name of an encoder in such a file.
_NAME_LINE = re.compile(r'^    "([^"]+)": \{\n +"encoder":', re.MULTILINE)


@cache
def smp_encoder_names() -> list[str]:
    """Return every name of `segmentation_models_pytorch.encoders.get_encoder_names()`, in its order.

    smp itself is imported only where its files do not look as expected.
    """
    package = find_spec("segmentation_models_pytorch")
    if package is None or package.origin is None:
        return []
    folder = Path(package.origin).parent / "encoders"
    try:
        files = [folder / f"{file}.py" for file in _IMPORT_LINE.findall(_read_text(folder / "__init__.py"))]
        names = [name for file in files for name in _NAME_LINE.findall(_read_text(file))]
    except OSError:
        names = []
    return names if "resnet18" in names else _import_encoder_names()


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _import_encoder_names() -> list[str]:
    from segmentation_models_pytorch import encoders

    return list(encoders.get_encoder_names())
