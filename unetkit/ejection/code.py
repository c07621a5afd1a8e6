"""Source text under construction: expressions, classes that several modules share, and their layout.

A class is written once for all modules of the same structure. The arguments of its constructor are the numbers in which
these differ: a number that is the same everywhere in the file becomes a constant in the body of the class.

Text may contain `$name` for an argument of the class that it stands in. Lines are at most `WIDTH` long, and every list
that is broken into lines ends with a comma, so that `ruff format` changes nothing, even if it is set to a larger width.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from string import Template
from typing import Union

WIDTH = 88
_INDENT = "    "

#: Python text, the call of a function or of a class in the file, or a list.
Expression = Union[str, "Call", "Use", "Items"]


@dataclass(frozen=True)
class Call:
    """A call with positional arguments (named "") and keyword arguments."""

    function: str
    arguments: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True)
class Items:
    """A list, with a comment for each item where there is one."""

    items: tuple[Expression, ...]
    comments: tuple[str, ...] = ()


@dataclass(eq=False)
class Use:
    """A call of a class in the file, with all arguments that the class may have.

    Attributes:
        definition: the class.
        arguments: its arguments by name.
        owner: the class in which the call stands; None until that class is added to the file.
    """

    definition: Definition
    arguments: dict[str, Expression]
    owner: Definition | None = None


def call(function: str, *positional: Expression, **keywords: Expression) -> Call:
    """Make a call."""
    return Call(function, (*(("", value) for value in positional), *keywords.items()))


@dataclass(frozen=True)
class Assign:
    """A statement `target = value`, or the value alone where the target is "", which may have a condition."""

    target: str
    value: Expression
    condition: str = ""


@dataclass(eq=False)
class Definition:
    """A class in the file.

    Attributes:
        name: its name.
        base: its base class.
        doc: the lines of its docstring.
        parameters: annotations of the constructor's arguments by name.
        foldable: arguments that become constants where all calls agree.
        derived: text for an argument that follows from others where calls do not agree.
        init: the statements of the constructor after the call of the base's.
        base_arguments: the arguments of the base's constructor.
        methods: the lines of the methods.
        uses: the calls of the class.
    """

    name: str
    base: str = "nn.Module"
    doc: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    foldable: frozenset[str] = frozenset()
    derived: Mapping[str, str] = field(default_factory=dict)
    init: tuple[Assign, ...] = ()
    base_arguments: tuple[Expression, ...] = ()
    methods: tuple[str, ...] = ()
    uses: list[Use] = field(default_factory=list)

    def key(self) -> tuple[object, ...]:
        """Return what is equal for classes that can be one."""
        init = tuple((one.target, _key(one.value), one.condition) for one in self.init)
        base_arguments = tuple(map(_key, self.base_arguments))
        return self.base, self.doc, tuple(self.parameters), init, base_arguments, self.methods

    def expressions(self) -> Iterator[Expression]:
        """Yield the expressions of the constructor."""
        yield from self.base_arguments
        yield from (one.value for one in self.init)


@dataclass(eq=False)
class Verbatim:
    """Source that is carried over as it is, under the name of the class or function that it defines."""

    name: str
    lines: tuple[str, ...]


def _key(expression: Expression) -> object:
    match expression:
        case Call(function, arguments):
            return function, tuple((name, _key(value)) for name, value in arguments)
        case Items(items, comments):
            return tuple(map(_key, items)), comments
        case Use(definition, arguments_by_name):
            return id(definition), tuple((name, _key(value)) for name, value in arguments_by_name.items())
    return expression


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def _find_uses(expression: Expression) -> Iterator[Use]:
    match expression:
        case Call(_, arguments):
            for _, value in arguments:
                yield from _find_uses(value)
        case Items(items, _):
            for value in items:
                yield from _find_uses(value)
        case Use(_, arguments_by_name):
            yield expression
            for value in arguments_by_name.values():
                yield from _find_uses(value)


class SourceFile:
    """The definitions of a file, in order; each stands before those that use it."""

    def __init__(self) -> None:
        self.members: list[Definition | Verbatim] = []
        self._constants: dict[int, dict[str, str]] = {}

    @property
    def definitions(self) -> list[Definition]:
        return [member for member in self.members if isinstance(member, Definition)]

    def define(self, definition: Definition, *other_names: str) -> Definition:
        """Add a class, or return the equal one that the file has. A name that is taken gets another one, or a number.

        Args:
            definition: the class.
            other_names: names to try if another class has its name.
        """
        found = next((one for one in self.definitions if one.key() == definition.key()), definition)
        if found is definition:
            taken = {member.name for member in self.members}
            numbered = (f"{definition.name}{number}" for number in range(2, len(taken) + 3))
            names = (definition.name, *other_names, *numbered)
            definition.name = next(name for name in names if name not in taken)
            self.members.append(definition)
        for expression in definition.expressions():
            for use in _find_uses(expression):
                use.owner = found
        return found

    def use(self, definition: Definition, **arguments: Expression) -> Use:
        """Make a call of a class, with its arguments by name."""
        use = Use(definition, arguments)
        definition.uses.append(use)
        return use

    def carry(self, name: str, lines: Iterable[str]) -> None:
        """Add source as it is, unless the file has it."""
        added = Verbatim(name, tuple(lines))
        if not any(isinstance(one, Verbatim) and one.name == name for one in self.members):
            self.members.append(added)

    def render(self) -> list[str]:
        """Return the lines of all definitions."""
        # Those that use a class come after it, and what is constant in them may make its arguments constant.
        for definition in reversed(self.definitions):
            self._constants[id(definition)] = self._find_constants(definition)
        lines: list[str] = []
        for member in self.members:
            body = list(member.lines) if isinstance(member, Verbatim) else self._render_class(member)
            lines += ["", "", *body]
        return lines

    def _scope(self, definition: Definition) -> dict[str, str]:
        names = {name: name for name in definition.parameters}
        return {**names, **self._constants.get(id(definition), {})}

    def _find_constants(self, definition: Definition) -> dict[str, str]:
        constants: dict[str, str] = {}
        for name in definition.parameters:
            if name not in definition.foldable:
                continue
            texts = set()
            for use in definition.uses:
                scope = self._scope(use.owner) if use.owner else {}
                texts.add(self._flat(use.arguments[name], scope))
            if len(texts) == 1 and _is_literal(next(iter(texts))):
                constants[name] = texts.pop()
            elif name in definition.derived:
                constants[name] = definition.derived[name]
        return constants

    def parameters(self, definition: Definition) -> dict[str, str]:
        """Return the arguments of a class that are not constant, with their annotations."""
        constants = self._constants[id(definition)]
        return {name: kind for name, kind in definition.parameters.items() if name not in constants}

    def _render_class(self, definition: Definition) -> list[str]:
        scope = self._scope(definition)
        lines = [f"class {definition.name}({definition.base}):"]
        lines += indent(docstring([Template(line).safe_substitute(scope) for line in definition.doc]))
        parameters = self.parameters(definition)
        if definition.init or definition.base_arguments:
            arguments = ["self", *(f"{name}: {kind}" for name, kind in parameters.items())]
            lines += ["", *indent(def_line("__init__", arguments, "None"))]
            base = Call("super().__init__", tuple(("", value) for value in definition.base_arguments))
            lines += self._layout(base, scope, 2)
            for one in definition.init:
                if one.condition:
                    lines.append(f"{_INDENT * 2}if {one.condition}:")
                prefix = f"{one.target} = " if one.target else ""
                lines += self._layout(one.value, scope, 3 if one.condition else 2, prefix)
        if definition.methods:
            lines += ["", *indent([Template(line).safe_substitute(scope) for line in definition.methods])]
        return lines

    def _arguments(self, expression: Call | Use, scope: Mapping[str, str]) -> list[tuple[str, Expression]]:
        if isinstance(expression, Call):
            return list(expression.arguments)
        kept = self.parameters(expression.definition)
        # Sizes of channels are clear by their order, other arguments are not.
        return [("" if "channels" in name else name, expression.arguments[name]) for name in kept]

    def _flat(self, expression: Expression, scope: Mapping[str, str]) -> str:
        match expression:
            case Items(items, _):
                return f"[{', '.join(self._flat(item, scope) for item in items)}]"
            case Call() | Use():
                function = expression.function if isinstance(expression, Call) else expression.definition.name
                arguments = self._arguments(expression, scope)
                texts = [f"{name}={self._flat(v, scope)}" if name else self._flat(v, scope) for name, v in arguments]
                return f"{function}({', '.join(texts)})"
        return Template(str(expression)).safe_substitute(scope)

    def _layout(
        self,
        expression: Expression,
        scope: Mapping[str, str],
        depth: int,
        prefix: str = "",
        suffix: str = "",
        is_broken: bool = False,
    ) -> list[str]:
        start = _INDENT * depth + prefix
        line = f"{start}{self._flat(expression, scope)}{suffix}"
        has_comments = isinstance(expression, Items) and any(expression.comments)
        nested = isinstance(expression, Call) and any(
            isinstance(value, Items) and any(value.comments) for _, value in expression.arguments
        )
        if isinstance(expression, str) or (len(line) <= WIDTH and not (has_comments or nested or is_broken)):
            return [line]
        if isinstance(expression, Items):
            lines = [f"{start}["]
            comments = expression.comments or ("",) * len(expression.items)
            for item, comment in zip(expression.items, comments, strict=True):
                inner = self._layout(item, scope, depth + 1, suffix=",")
                if comment and len(inner) == 1 and len(f"{inner[0]}  # {comment}") <= WIDTH:
                    inner = [f"{inner[0]}  # {comment}"]
                elif comment:
                    inner = [f"{_INDENT * (depth + 1)}# {comment}", *inner]
                lines += inner
            return [*lines, f"{_INDENT * depth}]{suffix}"]
        function = expression.function if isinstance(expression, Call) else expression.definition.name
        arguments = self._arguments(expression, scope)
        lines = [f"{start}{function}("]
        is_sole = len(arguments) == 1 and not arguments[0][0] and not isinstance(arguments[0][1], str)
        for name, value in arguments:
            # What stands alone has no comma after it, so it must be broken itself.
            lines += self._layout(value, scope, depth + 1, f"{name}=" if name else "", "" if is_sole else ",", is_sole)
        return [*lines, f"{_INDENT * depth}){suffix}"]


def indent(lines: Iterable[str]) -> list[str]:
    """Indent lines by one step."""
    return [f"{_INDENT}{line}" if line else "" for line in lines]


def def_line(name: str, arguments: list[str], returns: str) -> list[str]:
    """Return the first line or lines of a method or function."""
    line = f"def {name}({', '.join(arguments)}) -> {returns}:"
    if len(_INDENT + line) <= WIDTH:
        return [line]
    return [f"def {name}(", *(f"{_INDENT}{argument}," for argument in arguments), f") -> {returns}:"]


def docstring(paragraphs: Iterable[str], width: int = WIDTH - 4) -> list[str]:
    """Return a docstring of lines; those that do not begin with a space are filled to the width."""
    lines: list[str] = []
    for text in paragraphs:
        text = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        lines += [text] if not text or text.startswith(" ") else textwrap.wrap(text, width if lines else width - 3)
    if not lines:
        return []
    if len(lines) == 1 and len(lines[0]) + 6 <= width:
        return [f'"""{lines[0]}"""']
    if len(lines) == 1:  # in two lines, since a formatter with a larger width would join it with its end
        lines = textwrap.wrap(lines[0], width - 12)
    return [f'"""{lines[0]}', *lines[1:], '"""']


def quote(value: object) -> str:
    """Return a Python literal, with double quotes."""
    if isinstance(value, str):
        text = repr(value)
        return text if '"' in text else f'"{text[1:-1]}"'
    if isinstance(value, list):
        return f"[{', '.join(map(quote, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(quote, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quote(key)}: {quote(one)}' for key, one in value.items())}}}"
    return repr(value)
