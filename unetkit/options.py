"""The options of a factory, read from its signature and docstring, and option values as text.

The positional parameters of a factory are supplied by the builder; its keyword-only parameters are the user's options.
For a factory that is registered as "module:attr", both are read from source text, so that listing and completing parts
and rejecting wrong options need not import torch. Values are written as `kernel=4`, `widths=[64,128]`, `init=bilinear`
and read by the annotation of the parameter; brackets and double quotes protect the characters that separate parts,
options and levels.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import linecache
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from unetkit.errors import OptionError, PluginError
from unetkit.utils.isolation import wrap_errors

#: The types that an annotation in a factory's signature may contain, besides Literal and None.
_ANNOTATION_NAMES = {"tuple": tuple, "int": int, "float": float, "str": str, "bool": bool}

#: Base classes without options, so that a subclass that defines no __init__ has none either.
_BASES_WITHOUT_OPTIONS = {"nn.Module", "torch.nn.Module"}
_NO_ARGUMENTS = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter of a factory."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Signature:
    """The description of a factory: its summary, its docstring, its options and its source location.

    `positional` contains the names of its positional parameters, which the builder supplies.
    """

    summary: str
    doc: str
    options: tuple[Option, ...]
    file: str
    line: int
    positional: tuple[str, ...] = ()
    #: The name of the `**options` parameter, through which a library's factory accepts the options of each name.
    var_keyword: str = ""


def read_signature(factory: Callable[..., Any] | str) -> Signature:
    """Read the signature of a callable or of a "module:attr", imported only if its source is not sufficient."""
    if isinstance(factory, str):
        return _signature_from_source(factory) or _signature_from_object(load_target(factory))
    return _signature_from_object(factory)


def load_target(target: str) -> Callable[..., Any]:
    """Import "module:attr". Raises PluginError if it does not exist."""
    module, _, attr = target.partition(":")
    with wrap_errors(f"{target} cannot be loaded"):
        try:
            return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), attr))
        except ModuleNotFoundError as error:
            raise PluginError(f"{target} cannot be loaded: {_explain_missing_module(module, attr, error)}") from error
        except AttributeError as error:
            if not hasattr(sys.modules.get(module), attr):
                raise PluginError(f"{target} cannot be loaded: module {module} has no {attr!r}") from error
            raise


def _explain_missing_module(module: str, attr: str, error: ModuleNotFoundError) -> str:
    if not attr:
        return "it must contain a colon, as in 'module:attr'"
    if f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name!r}; write the full name of the module"
    return f"it needs the package {error.name!r}, which is not installed; install it"


def _signature_from_object(factory: Callable[..., Any]) -> Signature:
    doc = inspect.cleandoc(factory.__doc__ or "")
    docs = [doc, *(inspect.cleandoc(vars(base).get("__doc__") or "") for base in getattr(factory, "__mro__", ())[1:])]
    options = tuple(
        Option(p.name, _option_type(p.annotation, p.default), p.default, _find_help(docs, p.name))
        for p in _parameters(factory)
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    )
    file, line = _find_source(factory)
    wiring = tuple(p.name for p in _parameters(factory) if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # The constructor of nn.Module accepts any keyword argument, only to raise an error.
    init = getattr(factory, "__init__", None) if isinstance(factory, type) else None
    inherits = str(getattr(init, "__module__", "")).startswith("torch.")
    keywords = [p.name for p in _parameters(factory) if p.kind is inspect.Parameter.VAR_KEYWORD and not inherits]
    return Signature(_first_paragraph(doc), doc, options, file, line, wiring, "".join(keywords))


def _find_source(factory: Callable[..., Any]) -> tuple[str, int]:
    """Return the file and the first line of a class or function; "" and 0 if it has no file.

    Python 3.11 and 3.12 would parse the whole file for the line of a class, which takes longer than building a small
    network, and which fails at times if several threads do it (CPython issue 106905).
    """
    try:
        file = inspect.getsourcefile(factory) or ""
        if not isinstance(factory, type):
            return file, inspect.getsourcelines(factory)[1]
    except (OSError, TypeError):
        return "", 0
    start = re.compile(rf"\s*class\s+{re.escape(factory.__name__)}\b")
    lines = [number for number, text in enumerate(linecache.getlines(file), 1) if start.match(text)]
    return (file, lines[0]) if lines else ("", 0)


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory, eval_str=True).parameters.values())
    except (NameError, AttributeError, TypeError, SyntaxError, ValueError):
        pass  # one annotation that means nothing at run time leaves all of them text
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        raise OptionError(f"{factory!r} has no readable signature; wrap it in a function") from None


def _option_type(annotation: Any, default: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return _type_of_default(default)
    try:
        return _parse_annotation(ast.parse(annotation, mode="eval").body) if isinstance(annotation, str) else annotation
    except (ValueError, TypeError, SyntaxError):
        return _type_of_default(default)


def _type_of_default(default: Any) -> type:
    """Return the type of an option without a readable annotation: that of its default, or text."""
    return type(default) if type(default) in (bool, int, float) else str


@cache
def _signature_from_source(target: str) -> Signature | None:
    module, _, attr = target.partition(":")
    try:
        spec = find_spec(module)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    except (ImportError, OSError, ValueError, SyntaxError):
        return None  # importing it says what is wrong
    nodes = {n.name: n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    node = nodes.get(attr)
    if node is None or node.decorator_list:  # a decorator may change the signature
        return None
    args = _init_arguments(node, nodes) if isinstance(node, ast.ClassDef) else node.args
    if args is None:
        return None
    docs = [ast.get_docstring(ancestor) or "" for ancestor in _ancestors(node, nodes)]
    doc = docs[0]
    try:
        options = tuple(
            Option(
                arg.arg,
                _static_type(arg.annotation, _parse_default(default)),
                _parse_default(default),
                _find_help(docs, arg.arg),
            )
            for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        )
    except (ValueError, NameError, TypeError):
        return None
    wiring = tuple(arg.arg for arg in args.args if arg.arg != "self")
    rest = args.kwarg.arg if args.kwarg else ""
    return Signature(_first_paragraph(doc), doc, options, spec.origin, node.lineno, wiring, rest)


def _ancestors(node: ast.stmt, nodes: dict[str, Any]) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Yield a class or function, and the classes of the same file that it inherits from, each from the one before."""
    while isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node
        bases = node.bases if isinstance(node, ast.ClassDef) else []
        node = nodes.get(ast.unparse(bases[0]), ast.Pass()) if bases else ast.Pass()


def _init_arguments(node: ast.ClassDef, nodes: dict[str, Any]) -> ast.arguments | None:
    """Return the parameters of a class's own or inherited __init__; None if this file alone does not determine them."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return statement.args
    if node.decorator_list or node.keywords or len(node.bases) > 1:
        return None
    if not node.bases:
        return _NO_ARGUMENTS
    base = ast.unparse(node.bases[0])
    parent = nodes.get(base)
    if isinstance(parent, ast.ClassDef):
        return _init_arguments(parent, nodes)
    return _NO_ARGUMENTS if base in _BASES_WITHOUT_OPTIONS else None


def _static_type(node: ast.expr | None, default: Any) -> Any:
    return _type_of_default(default) if node is None else _parse_annotation(node)


def _parse_annotation(node: ast.expr) -> Any:
    """Return the type of an annotation made of _VOCABULARY, without executing the file. Raises ValueError."""
    match node:
        case ast.Constant(value=value) if value is None or value is Ellipsis:
            return value
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return typing.Literal[ast.literal_eval(inner)]
        case ast.Name(id=name) if name in _ANNOTATION_NAMES:
            return _ANNOTATION_NAMES[name]
        case ast.Tuple(elts=items):
            return tuple(_parse_annotation(item) for item in items)
        case ast.Subscript(value=outer, slice=inner):
            return _parse_annotation(outer)[_parse_annotation(inner)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _parse_annotation(left) | _parse_annotation(right)
    raise ValueError(ast.unparse(node))


def _parse_default(node: ast.expr | None) -> Any:
    return inspect.Parameter.empty if node is None else ast.literal_eval(node)


def _first_paragraph(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split()).rstrip(".")


def _find_help(docs: Iterable[str], name: str) -> str:
    """Return the help of an option from the first docstring that has it: an inherited option may be described there."""
    return next((text for doc in docs if (text := help_of(doc, name))), "")


def help_of(doc: str, name: str) -> str:
    """Return the text for `name` in the "Args:" section of a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not section:
        return ""
    found = re.search(rf"^([ \t]+){name}:((?:.*)(?:\n\1[ \t]+.*)*)", section.group(1), re.MULTILINE)
    return " ".join(found.group(2).split()) if found else ""


_UNQUOTED = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
#: Text that would be parsed as another type than str.
_RESERVED_WORDS = {"none", "true", "false", "inf", "infinity", "nan"}


def format_value(value: Any, kind: Any = None) -> str:
    """Format a value as text from which `parse_value` with the right type restores it.

    If the type is a choice of words, no word needs quotes to differ from none or true.
    """
    if isinstance(value, str) and get_origin(kind) is Literal:
        return value if _UNQUOTED.fullmatch(value) else json.dumps(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):  # numpy's too, whose repr is none of the grammar's
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value)).replace("e+", "e")  # a plus would start the next part
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(format_value, value)) + "]"
    text = str(value)
    return text if _UNQUOTED.fullmatch(text) and text.lower() not in _RESERVED_WORDS else json.dumps(text)


def parse_value(text: str, kind: Any) -> Any:
    """Parse a value by its annotation. Raises ValueError if the text does not have that type."""
    if get_origin(kind) in (Union, types.UnionType):
        for choice in sorted(get_args(kind), key=_parse_priority):
            try:
                return parse_value(text, choice)
            except ValueError:
                continue
        raise ValueError(text)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return _parse_choice(text, {str(c): c for c in choices} | {format_value(c): c for c in choices})
    if get_origin(kind) is tuple:
        return _parse_tuple(text, get_args(kind))
    if kind is None or kind is type(None):
        return _parse_choice(text, {"none": None})
    if kind is bool:
        return _parse_choice(text.lower(), {"true": True, "false": False})
    if kind in (int, float):
        return kind(text)
    return json.loads(text) if text.startswith('"') else text


def _parse_priority(kind: Any) -> int:
    """Order the types of a union for parsing: a Literal accepts unquoted choices, and str accepts anything."""
    return 2 if kind is str else int(get_origin(kind) is Literal)


def _parse_choice(text: str, table: dict[str, Any]) -> Any:
    if text not in table:
        raise ValueError(text)
    return table[text]


def _parse_tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    items = split_unquoted(text[1:-1], ",") if text[1:-1] else []
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise ValueError(text)
    return tuple(map(parse_value, items, kinds))


def guess_value(text: str) -> Any:
    """Parse a value of unknown type: none, true, a number, a list of these, or else text."""
    try:
        return parse_value(text, bool | int | float | None)
    except ValueError:
        pass
    if text.startswith("[") and text.endswith("]"):
        return tuple(map(guess_value, split_unquoted(text[1:-1], ","))) if text[1:-1] else ()
    return parse_value(text, str)


def describe_type(kind: Any) -> str:
    """Describe a type in words for messages and lists: "an integer or none", "one of half, keep"."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(choice) for choice in get_args(kind)))
    if get_origin(kind) is Literal:
        choices = [format_value(choice, kind) for choice in get_args(kind)]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if get_origin(kind) is tuple:
        return f"a list like [{','.join(['1', '2', '3'][: max(2, len(get_args(kind)))])}]"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none", None: "none"}
    return names.get(kind, "text")


def split_unquoted(text: str, separator: str) -> list[str]:
    """Split text at a separator outside of brackets and double quotes.

    Raises ValueError if a bracket or a quote is not closed.
    """
    parts, depth, start = [], 0, 0
    for index, char in _outside_quotes(text):
        depth += (char == "[") - (char == "]")
        if depth < 0:
            break
        if char == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if depth:
        raise ValueError(f"a bracket is not closed in {text!r}")
    return [*parts, text[start:]]


def split_items(text: str) -> list[str]:
    """Split names with options at commas: `elastic:grid=3,std=10,light` has two items, since `std=10` is an option.

    Raises ValueError if a bracket or a quote is not closed.
    """
    found: list[str] = []
    for piece in split_unquoted(text, ","):
        if found and re.match(r"\w+=", piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece.strip())
    return found


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    quoted = escaped = False
    for index, char in enumerate(text):
        if quoted:
            quoted, escaped = escaped or char != '"', not escaped and char == "\\"
        elif char == '"':
            quoted = True
        else:
            yield index, char
    if quoted:
        raise ValueError(f"a double quote is not closed in {text!r}")
