"""The options of a factory, read from its signature and docstring, and option values as text.

The positional parameters of a factory are supplied by the builder; its keyword-only parameters are the user's options.
For a factory that is registered as "module:attr", both are read from source text, so that listing and completing parts
and rejecting wrong options need not import torch. Values are written as `kernel=4`, `widths=[64,128]`, `init=bilinear`
and read by the annotation of the parameter; brackets and double quotes protect the characters that separate parts,
options and levels. A value that is given in Python and has no such text is passed on as the object that it is.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import linecache
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, reduce
from importlib.util import find_spec
from numbers import Integral, Real
from operator import or_
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from unetkit.errors import OptionError, PluginError
from unetkit.utils.isolation import wrap_errors

_NoneType = type(None)
#: The types without members that an annotation may contain, besides Enums.
_PLAIN_TYPES = (int, float, str, bool, Path, None, _NoneType)
#: The names that an annotation in source text may contain, besides Literal and None.
_ANNOTATION_NAMES: dict[str, Any] = {
    "tuple": tuple,
    "list": list,
    "Sequence": Sequence,
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "Path": Path,
}
#: What to write in place of an annotation that cannot be read, for messages.
READABLE_TYPES = (
    "int, float, str, bool, None, Path, Literal, an Enum, list[T], tuple[T, ...], Sequence[T], or a union of these"
)

#: Base classes without options, so that a subclass that defines no __init__ has none either.
_BASES_WITHOUT_OPTIONS = {"nn.Module", "torch.nn.Module"}
_NO_ARGUMENTS = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter of a factory.

    Attributes:
        name: the name of the parameter.
        type: its annotation, or Any if that cannot be read.
        default: its default, or `inspect.Parameter.empty`.
        help: its description in the docstring.
        unreadable: why its values cannot be read from text, as in "has no annotation"; "" if they can.
    """

    name: str
    type: Any
    default: Any
    help: str
    unreadable: str = ""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def is_default(self, value: Any) -> bool:
        """Return whether a value equals the default; a list equals a tuple of the same items."""
        return _are_equal(value, self.default)


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

    def find_unreadable(self) -> str:
        """Say which option has values that cannot be read from text, and what to write; "" if there is none."""
        for option in self.options:
            if option.unreadable:
                return (
                    f"option {option.name!r} {option.unreadable}, so its values cannot be read from text; "
                    f"annotate it as {READABLE_TYPES}"
                )
        return ""


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
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise PluginError(f"{target} cannot be loaded: {_explain_missing_module(module, attr, error)}") from error
        if not hasattr(found, attr):
            raise PluginError(f"{target} cannot be loaded: module {module} has no {attr!r}")
        return typing.cast(Callable[..., Any], getattr(found, attr))


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
        _make_option(p.name, p.annotation, p.default, _find_help(docs, p.name))
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


def _make_option(name: str, annotation: Any, default: Any, help_text: str) -> Option:
    if annotation is inspect.Parameter.empty:
        return Option(name, Any, default, help_text, "has no annotation")
    try:
        kind = _parse_annotation(ast.parse(annotation, mode="eval").body) if isinstance(annotation, str) else annotation
        return Option(name, _normalize_type(kind), default, help_text)
    except (ValueError, TypeError, SyntaxError):
        is_class = isinstance(annotation, type) and get_origin(annotation) is None
        shown = annotation.__qualname__ if is_class else str(annotation)
        return Option(name, Any, default, help_text, f"is annotated {shown}")


def _normalize_type(kind: Any) -> Any:
    """Return a type by which values can be read: list[int] for typing.List[int]. Raises ValueError for others."""
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return reduce(or_, map(_normalize_type, members))
    if origin is Literal and all(isinstance(member, str | int | None) for member in members):
        return kind
    if origin in (list, Sequence):
        return types.GenericAlias(origin, _normalize_type(members[0]))
    if origin is tuple:
        kinds = tuple(member if member is Ellipsis else _normalize_type(member) for member in members)
        return types.GenericAlias(tuple, kinds)
    if any(kind is plain for plain in _PLAIN_TYPES) or (isinstance(kind, type) and issubclass(kind, Enum)):
        return kind
    raise ValueError(kind)


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
            _make_option(
                arg.arg,
                inspect.Parameter.empty if arg.annotation is None else _parse_annotation(arg.annotation),
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


def _parse_annotation(node: ast.expr) -> Any:
    """Return the type of an annotation made of known names, without executing the file. Raises ValueError."""
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


def has_text(value: Any) -> bool:
    """Return whether a value can be written as text from which it can be read."""
    if isinstance(value, tuple | list):
        return all(map(has_text, value))
    return value is None or isinstance(value, Real | str | Path | Enum)


def format_value(value: Any, kind: Any = None) -> str:
    """Format a value as text from which `parse_value` with the right type restores it.

    If the type is a choice of words, no word needs quotes to differ from none or true. An object that has no text is
    written as its name in angle brackets, which cannot be read.
    """
    if isinstance(value, Enum):
        return _quote_word(_enum_word(value))
    if isinstance(value, str) and get_origin(kind) is Literal:
        return _quote_word(value)
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
    if isinstance(value, str | Path):
        text = str(value)
        return json.dumps(text) if text.lower() in _RESERVED_WORDS else _quote_word(text)
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"


def _quote_word(text: str) -> str:
    return text if _UNQUOTED.fullmatch(text) else json.dumps(text)


def _enum_word(member: Enum) -> str:
    """Return the word for a member of an Enum: its value if all values are text, or else its name."""
    is_text = all(isinstance(other.value, str) for other in type(member))
    return member.value if is_text else member.name


@dataclass(frozen=True, eq=False)
class PythonValue:
    """The value of an option that was given in Python and is passed on as the object that it is."""

    value: Any

    def __str__(self) -> str:
        return format_value(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PythonValue) and _are_equal(self.value, other.value)

    def __hash__(self) -> int:
        return hash(PythonValue)  # the value may be a list or a tensor


def _are_equal(one: Any, other: Any) -> bool:
    """Compare two values of any type; tensors and arrays are equal only to themselves."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    try:
        return one is other or bool(one == other)
    except Exception:
        return False


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
    if get_origin(kind) in (list, Sequence):
        items = _parse_tuple(text, (*get_args(kind), Ellipsis))
        return list(items) if get_origin(kind) is list else items
    if isinstance(kind, type) and issubclass(kind, Enum):
        words = {_enum_word(member): member for member in kind}
        return _parse_choice(text, words | {_quote_word(word): member for word, member in words.items()})
    if kind is Path:
        return Path(parse_value(text, str))
    if kind is None or kind is type(None):
        return _parse_choice(text, {"none": None})
    if kind is bool:
        return _parse_choice(text.lower(), {"true": True, "false": False})
    if kind in (int, float):
        return kind(text)
    return json.loads(text) if text.startswith('"') else text


def _parse_priority(kind: Any) -> int:
    """Order the types of a union for parsing: a choice accepts unquoted words, and str accepts anything."""
    if kind in (str, Path):
        return 2
    return int(get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, Enum)))


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


#: How a type is called, how several of it are, and an example of two values.
_TYPE_WORDS: dict[Any, tuple[str, str, tuple[str, str]]] = {
    int: ("an integer", "integers", ("1", "2")),
    float: ("a number", "numbers", ("0.5", "2")),
    bool: ("true or false", "true or false", ("true", "false")),
    str: ("text", "texts", ("a", "b")),
    Path: ("a path", "paths", ("a", "b")),
    _NoneType: ("none", "none", ("none", "none")),
}


def describe_type(kind: Any, *, example: bool = True) -> str:
    """Describe a type in words for messages and lists: "an integer or none", "one of half, keep".

    Args:
        kind: a type that an option may have.
        example: whether to add an example of a list.
    """
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(member, example=example) for member in members))
    if choices := _list_choices(kind):
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if get_origin(kind) in (list, Sequence, tuple):
        return _describe_list(members) + (f", like {_make_example(kind)}" if example else "")
    return _TYPE_WORDS.get(_NoneType if kind is None else kind, ("text",))[0]


def _list_choices(kind: Any) -> list[str]:
    """Return the words of a Literal or an Enum."""
    is_enum = isinstance(kind, type) and issubclass(kind, Enum)
    choices = list(kind) if is_enum else get_args(kind) if get_origin(kind) is Literal else ()
    return [format_value(choice, kind) for choice in choices]


def _describe_list(members: tuple[Any, ...]) -> str:
    if not members:
        return "an empty list"
    kinds = [member for member in members if member is not Ellipsis]
    if any(kind != kinds[0] for kind in kinds):
        return f"a list of {', '.join(describe_type(kind, example=False) for kind in kinds)}"
    is_known = kinds[0] in _TYPE_WORDS
    items = _TYPE_WORDS[kinds[0]][1] if is_known else f"items, each {describe_type(kinds[0], example=False)}"
    return f"a list of {f'{len(kinds)} ' if len(kinds) > 1 else ''}{items}"


def _make_example(kind: Any, index: int = 0) -> str:
    """Return the text of a value of a type; `index` selects one of several."""
    if get_origin(kind) in (Union, types.UnionType):
        return _make_example(get_args(kind)[0], index)
    if choices := _list_choices(kind):
        return choices[index % len(choices)]
    if get_origin(kind) in (list, Sequence, tuple):
        members = get_args(kind)
        has_any_length = get_origin(kind) is not tuple or members[-1:] == (...,)
        items = members[:1] * 2 if has_any_length else members
        return f"[{','.join(map(_make_example, items, range(len(items))))}]"
    if kind is int:
        return str(index + 1)
    return _TYPE_WORDS.get(_NoneType if kind is None else kind, _TYPE_WORDS[str])[2][index % 2]


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


def has_unquoted(text: str, char: str) -> bool:
    """Return whether a text contains a character outside of double quotes."""
    return any(found == char for _, found in _outside_quotes(text))


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
