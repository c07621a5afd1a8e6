"""A factory's options: read from the source text as from the imported object, and without importing where it can be."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from torch import nn

import unetkit
from unetkit import options as signature
from unetkit.errors import OptionError, PluginError
from unetkit.options import Option, Signature
from unetkit.plugins import load_parts
from unetkit.registry import Entry


def builtins() -> list[Entry]:
    """Every built-in part, and one of each source."""
    parts = load_parts(isolated=True)
    return [e for r in parts for e in (*r.entries.values(), *(r.get(s.list_names()[0]) for s in r.libraries.values()))]


BUILTIN = builtins()


@pytest.mark.parametrize("entry", BUILTIN, ids=lambda e: f"{e.kind.field}-{e.name}")
def test_a_builtin_reads_the_same_from_source_and_imported(entry: Entry) -> None:
    assert isinstance(entry.factory, str)
    from_source = signature._signature_from_source(entry.factory)
    assert from_source == signature.read_signature(signature.load_target(entry.factory))


@pytest.mark.parametrize("entry", BUILTIN, ids=lambda e: f"{e.kind.field}-{e.name}")
def test_a_builtin_describes_itself_and_its_options(entry: Entry) -> None:
    known = entry.signature
    assert 0 < len(known.summary) <= (105 if entry.kind.title != "metric" else 200)
    assert len(known.summary.splitlines()) == 1
    assert not known.summary.endswith(".")
    assert Path(known.file).is_file()
    lines = Path(known.file).read_text(encoding="utf-8").splitlines()
    assert lines[known.line - 1].startswith(("class ", "def "))
    for option in known.options:
        assert option.help, option.name
        assert not option.required or entry.kind.title == "dataset", option.name


Writer = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Write a module of its own name on sys.path, and give that name; importing it is not yet done."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(source: str) -> str:
        name = re.sub(r"\W", "_", f"parts_of_{tmp_path.name}")  # a folder is of one test alone
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return name

    return module


def both(target: str) -> Signature:
    """The signature read from source, once it is seen that nothing was imported and that importing gives the same."""
    module = target.partition(":")[0]
    known = signature.read_signature(target)
    assert module not in sys.modules
    assert signature.read_signature(signature.load_target(target)) == known
    return known


def fallen_back(target: str) -> Signature:
    """The signature of a factory that the source text cannot tell."""
    assert signature._signature_from_source(target) is None
    return signature.read_signature(target)


GATE = '''
from __future__ import annotations
from typing import Literal
from torch import nn

class Gate(nn.Module):
    """A gate
    over two lines.

    More of it.

    Args:
        width: of the gate, in channels, told
            over two lines.
        kind: which one.
    """

    def __init__(
        self, x: int, s: int, *, width: int | None = None, kind: Literal["a", "b", -1] = "a",
        sizes: tuple[int, ...] = (1, 2),
        text="plain", flag: bool | str = False, scale: float = -0.5,
    ) -> None:
        super().__init__()
'''


def test_a_class_with_its_own_init(write: Writer) -> None:
    known = both(f"{write(GATE)}:Gate")
    assert known.summary == "A gate over two lines"
    assert known.line == 6
    assert known.options == (
        Option("width", int | None, None, "of the gate, in channels, told over two lines."),
        Option("kind", Literal["a", "b", -1], "a", "which one."),
        Option("sizes", tuple[int, ...], (1, 2), ""),
        Option("text", Any, "plain", "", "has no annotation"),
        Option("flag", bool | str, False, ""),
        Option("scale", float, -0.5, ""),
    )


def test_an_inherited_init(write: Writer) -> None:
    name = write(GATE + '\nclass Middle(Gate):\n    """Middle."""\n\nclass Last(Middle):\n    pass\n')
    known = both(f"{name}:Last")
    assert [option.name for option in known.options] == ["width", "kind", "sizes", "text", "flag", "scale"]
    assert known.summary == ""
    assert [option.help for option in known.options[:3]] == [
        "of the gate, in channels, told over two lines.",  # where the option is described, as is its default
        "which one.",
        "",
    ]


def test_a_module_without_an_init_has_no_options(write: Writer) -> None:
    name = write("from torch import nn\n\nclass Free(nn.Module):\n    pass\n")
    known = both(f"{name}:Free")
    assert (known.options, known.summary) == ((), "")


def test_an_init_of_another_file_is_imported(write: Writer) -> None:
    name = write(
        "from unetkit.parts.fusions import Add\nfrom unetkit.parts.heads import ConvHead\n\nclass Mine(ConvHead): ...\n"
    )
    assert fallen_back(f"{name}:Add").summary.startswith("Sum of map and skip")
    assert [option.name for option in fallen_back(f"{name}:Mine").options] == ["kernel"]


def test_of_several_bases_the_imported_class_tells(write: Writer) -> None:
    name = write(
        "from unetkit.parts.heads import ConvHead\n\nclass Mixed:\n    def __init__(self, *, mixed: int = 1): ...\n\n"
        "class Both(ConvHead, Mixed): ...\n"
    )
    assert [option.name for option in fallen_back(f"{name}:Both").options] == ["kernel"]


def test_a_function(write: Writer) -> None:
    name = write("def make(a, *, k: int, j: bool = True) -> object:\n    'Makes.'\n")
    known = both(f"{name}:make")
    assert known.summary == "Makes"
    assert [(o.name, o.type, o.required) for o in known.options] == [("k", int, True), ("j", bool, False)]


@pytest.mark.parametrize("annotation", ["Order", "'int | None'", "typing.Literal['a']", "Optional[int]"])
def test_an_unreadable_annotation_is_imported(write: Writer, annotation: str) -> None:
    name = write(
        "import typing\nfrom typing import Literal, Optional\n\nOrder = Literal['a', 'b']\n\n"
        f"def make(*, order: {annotation} = None): ...\n"
    )
    expected = {"Order": Literal["a", "b"], "typing.Literal['a']": Literal["a"]}.get(annotation, int | None)
    assert fallen_back(f"{name}:make").options == (Option("order", expected, None, ""),)


@pytest.mark.parametrize("default", ["WIDE", "2 * 3", "list((1, 2))"])
def test_an_unreadable_default_is_imported(write: Writer, default: str) -> None:
    name = write(f"WIDE = 6\n\ndef make(*, width: int = {default}): ...\n")
    assert fallen_back(f"{name}:make").options[0].default in (6, [1, 2])


def test_what_is_assigned_or_decorated_is_imported(write: Writer) -> None:
    name = write(
        "from dataclasses import dataclass\nfrom functools import partial\n\n"
        "def make(*, a: int = 1, b: float = 2): ...\n\nlater = partial(make, a=3)\n\n"
        "@dataclass(kw_only=True)\nclass Data:\n    width: int = 4\n\n"
        "class Called:\n    def __call__(self, x, *, depth: int = 5): ...\n\ncalled = Called()\n"
    )
    assert [(o.name, o.type, o.default) for o in fallen_back(f"{name}:later").options] == [
        ("a", int, 3),
        ("b", float, 2),
    ]
    assert [(o.name, o.type, o.default) for o in fallen_back(f"{name}:Data").options] == [("width", int, 4)]
    assert [(o.name, o.type, o.default) for o in fallen_back(f"{name}:called").options] == [("depth", int, 5)]


def test_an_annotation_that_means_nothing_at_run_time_spoils_no_other(write: Writer) -> None:
    name = write(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from nowhere import Thing\n\ndef make(x: Thing, *, k: int | None = 3, thing: Thing = None): ...\n"
    )
    options = signature.read_signature(signature.load_target(f"{name}:make")).options
    assert [(o.name, o.type, o.unreadable) for o in options] == [
        ("k", int | None, ""),
        ("thing", Any, "is annotated Thing"),
    ]


READABLE = """
from __future__ import annotations
from collections.abc import Sequence
from pathlib import Path

def make(*, a: list[int], b: Sequence[float] | None = None, c: tuple[tuple[str, ...], ...] = (), d: Path | None = None):
    'Make.'
"""


def test_readable_types_are_read_from_source(write: Writer) -> None:
    known = both(f"{write(READABLE)}:make")
    assert [option.type for option in known.options] == [
        list[int],
        Sequence[float] | None,
        tuple[tuple[str, ...], ...],
        Path | None,
    ]
    assert not known.find_unreadable()


def test_an_enum_and_older_spellings_are_read_from_the_imported_factory(write: Writer) -> None:
    name = write(
        "import enum, pathlib, typing\n\nclass Mode(enum.Enum):\n    FAST = 'fast'\n\n"
        "def make(*, m: Mode = Mode.FAST, a: typing.List[int] = (), b: typing.Optional[pathlib.Path] = None,"
        " c: typing.Sequence[Mode] = ()): ..."
    )
    known = fallen_back(f"{name}:make")
    mode = known.options[0].type
    assert [option.type for option in known.options[1:3]] == [list[int], Path | None]
    assert (get_origin(known.options[3].type), get_args(known.options[3].type)) == (Sequence, (mode,))
    assert not known.find_unreadable()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("a", "has no annotation"),
        ("a=3", "has no annotation"),
        ("a: tuple = ()", "is annotated tuple"),
        ("a: list = ()", "is annotated list"),
        ("a: Sequence = ()", "is annotated Sequence"),
        ("a: dict[str, int] | None = None", "is annotated dict[str, int] | None"),
        ("a: Any = None", "is annotated Any"),
        ("a: nn.Module = nn.ReLU()", "is annotated Module"),
        ("a: list[nn.Module] = ()", "is annotated list[torch.nn.modules.module.Module]"),
        ("a: Callable[..., nn.Module] = nn.ReLU", "is annotated collections.abc.Callable[..., torch"),
        ("a: Literal[b'x'] = b'x'", "is annotated typing.Literal[b'x']"),
        ("a: 'Missing' = None", "is annotated Missing"),
    ],
)
def test_other_types_are_refused_where_they_are_declared(write: Writer, option: str, reason: str) -> None:
    name = write(
        "from collections.abc import Callable, Sequence\nfrom typing import Any, Literal\nfrom torch import nn\n\n"
        f"def make(x_channels, skip_channels, *, k: int = 1, {option}):\n    'Make.'\n"
    )
    parts = load_parts(isolated=True)
    parts.fusions.add("mine", f"{name}:make")
    with pytest.raises(PluginError) as refused:
        unetkit.build("plain", fuse="mine:k=2", parts=parts, device="meta")
    message = str(refused.value)
    assert message.startswith(f"--fuse mine:k=2 (of unetkit): option 'a' {reason}")
    assert "annotate it as int, " in message
    assert message.endswith(f"{name}.py:5)")


@pytest.mark.parametrize(
    ("doc", "help_text"),
    [
        ("One line.", ""),
        ("", ""),
        ("Told.\n\n    Args:\n        other: no.\n        k: yes: it is.", "yes: it is."),
        ("Args of another kind.\n\n    k: no.", ""),
        ("Told.\n\n    Args:\n        kk: no.\n\n        k: yes.\n\n    Returns:\n        k: no.", "yes."),
    ],
)
def test_help_comes_from_args(write: Writer, doc: str, help_text: str) -> None:
    name = write(f'def make(*, k: int = 1, kk: int = 2):\n    """{doc}"""\n')
    known = both(f"{name}:make")
    assert known.options[0].help == help_text


BROKEN = {
    "syntax": ("def make(:", "make", "SyntaxError"),
    "import": (
        "import no_such_module_at_all\n\nmake = 1\n",
        "make",
        "it needs the package 'no_such_module_at_all', which is not installed; install it",
    ),
    "raises": ("raise RuntimeError('two\\nlines')\n", "make", "RuntimeError: two lines"),
    "missing": ("x = 1\n", "make", "has no 'make'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_loaded(write: Writer, case: str) -> None:
    source, attr, reason = BROKEN[case]
    target = f"{write(source)}:{attr}"
    with pytest.raises(PluginError) as refused:
        signature.read_signature(target)
    assert str(refused.value).startswith(f"{target} cannot be loaded: ")
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("target", ["no_such_package.part:Gate", "no_such_package:Gate", "unetkit.errors", ":Gate", ""])
def test_a_target_that_is_none(target: str) -> None:
    with pytest.raises(PluginError, match="cannot be loaded"):
        signature.read_signature(target)


def test_a_file_in_another_encoding_is_imported(write: Writer, tmp_path: Path) -> None:
    name = write("")
    (tmp_path / f"{name}.py").write_bytes("# coding: latin-1\ndef make(*, k: str = 'é'): ...\n".encode("latin-1"))
    assert fallen_back(f"{name}:make").options[0].default == "é"


def test_objects() -> None:
    assert signature.read_signature(nn.Conv2d).options == ()
    assert signature.read_signature(partial(nn.Conv2d, bias=False)).options[0].name == "bias"
    assert signature.read_signature(lambda x, *, k=3: x).options == (Option("k", Any, 3, "", "has no annotation"),)
    with pytest.raises(OptionError, match=r"^<class 'dict'> has no readable signature"):
        signature.read_signature(dict)


def test_a_docstring_is_the_factorys_own() -> None:
    class Mine(nn.Module):
        pass

    known: Any = signature.read_signature(Mine)
    assert (known.summary, known.doc, known.file) == ("", "", inspect.getsourcefile(Mine))
