"""Plugins: how they are found, and that one that fails costs one line and nothing else."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from unetkit.builder import build
from unetkit.errors import BuildError, OptionError, PluginError, UnknownNameError
from unetkit.hookspecs import hookimpl
from unetkit.plan import Plan
from unetkit.plugin_files import module_name
from unetkit.plugins import PluginManager, load_manager, load_parts
from unetkit.registry import KINDS, Plugin
from unetkit.serialization import load, save

OURS = version("unetkit")
HEAD = "import unetkit\nfrom unetkit.hookspecs import hookimpl\n\n"
GOOD = (
    HEAD
    + '''
class Gate:
    """A gate."""
    def __init__(self, x_channels, skip_channels, *, width: int = 1):
        self.out_channels = x_channels

@hookimpl
def unetkit_register(parts):
    parts.fusions.add("{part}", Gate)
'''
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.delenv("UNETKIT_PLUGINS", raising=False)
    monkeypatch.delenv("UNETKIT_STRICT", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return path

    return file


@pytest.fixture
def install(tmp_path: Path, write: Write) -> Callable[..., None]:
    """A distribution, as an installer leaves it: a module, and its metadata with entry points."""

    def distribution(name: str, source: str, entry_points: str | None = None, folder: str = "") -> None:
        write(f"{folder}{name}_module.py", source)
        info = f"{folder}{name}-2.5.dist-info"
        write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
        write(f"{info}/entry_points.txt", entry_points or f"[unetkit]\n{name} = {name}_module\n")

    return distribution


def fusions(host: PluginManager) -> list[str]:
    """The names of all fusions but those of what is really installed here."""
    return [entry.name for entry in host.parts.fusions.find() if entry.owner not in INSTALLED]


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was told on stderr; nothing may be on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


BUILTIN = ["concat", "add", "mean", "max"]
INSTALLED = {plugin.name for plugin in load_manager().plugins} - {"unetkit"}


def test_an_installed_plugin_is_found_by_its_entry_point(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("gated", GOOD.format(part="gate"))
    host = load_manager()
    assert fusions(host) == [*BUILTIN, "gate"]
    assert host.parts.fusions.get("gate").owner == "gated"
    found = {p.name: p for p in host.plugins}["gated"]
    assert found == Plugin("gated", "2.5", "gated", "gated_module", loaded=True)
    assert lines(capsys) == []


def test_a_distribution_that_is_listed_twice_counts_once(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("gated", GOOD.format(part="gate"))
    install("gated", GOOD.format(part="other"), folder="again/")
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "again")])
    assert fusions(load_manager()) == [*BUILTIN, "gate"]
    assert lines(capsys) == []


def test_plugins_of_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("one.py", GOOD.format(part="first"))
    two = write("folder with space/two.py", GOOD.format(part="second"))
    monkeypatch.setenv("UNETKIT_PLUGINS", f" one ,{two},")
    assert fusions(load_manager()) == [*BUILTIN, "first", "second"]
    assert lines(capsys) == []


def test_plugins_given_as_path_name_or_module(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file, text = write("sub/a.py", GOOD.format(part="first")), write("sub/b.py", GOOD.format(part="second"))
    write("c.py", GOOD.format(part="third"))
    made = ModuleType("made")
    exec(GOOD.format(part="fourth"), vars(made))
    parts = load_parts(plugins=[file, str(text), "c", made])
    assert [(e.name, e.owner) for e in parts.fusions.find() if e.owner not in {*INSTALLED, "unetkit"}] == [
        ("first", "a"),
        ("second", "b"),
        ("third", "c"),
        ("fourth", "made"),
    ]
    assert lines(capsys) == []


def test_classes_of_a_file_know_their_module(write: Write) -> None:
    path = write(
        "data.py", GOOD.format(part="gate") + "\nfrom dataclasses import dataclass\n@dataclass\nclass D:\n    a: int\n"
    )
    factory: Any = load_parts(plugins=[path]).fusions.get("gate").load()
    assert sys.modules[factory.__module__].Gate is factory
    assert load_parts(plugins=[path]).fusions.get("gate").load() is factory, "an unchanged file runs once"
    path.write_text(path.read_text() + "\nCHANGED = True\n")
    changed: Any = load_parts(plugins=[path]).fusions.get("gate").load()
    assert sys.modules[factory.__module__].CHANGED
    assert changed is not factory


NEW_PROCESS = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
print(model.stages[0].fusion.times)
"""
PICKLED = (
    HEAD
    + '''
from torch import nn

class Twice(nn.Module):
    """Twice the map."""
    def __init__(self, x_channels, skip_channels):
        super().__init__()
        self.out_channels, self.times = x_channels, 2

    def forward(self, x, skip):
        return x * self.times

@hookimpl
def unetkit_register(parts):
    parts.fusions.add("twice", Twice)
'''
)


@pytest.mark.slow
def test_another_process_unpickles_the_parts_of_a_file(write: Write, tmp_path: Path) -> None:
    file = write("a folder/my_parts é.2.py", PICKLED)
    model = build("plain:widths=[4,8]", fuse="twice", parts=load_parts(plugins=[file]))
    torch.save(model, tmp_path / "model.pt")
    command = [sys.executable, "-P", "-c", NEW_PROCESS, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout == "2\n"
    file.rename(file.with_name("moved.py"))
    name = type(model.stages[0].fusion).__module__
    del sys.modules[name]
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"{file} does not exist")):
        importlib.import_module(name)


#: What a plugin may do wrong, and what its one line says of it.
PARTLY = HEAD + "@hookimpl\ndef unetkit_register(parts):\n    parts.fusions.add('partly', max)\n    "
FAILING = {
    "import": ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    "syntax": ("def broken(:\n", "SyntaxError: invalid syntax (bad.py, line 1)"),
    "raises": ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
    "silent": ("raise ValueError\n", "ValueError: no message"),
    "exits": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "panics": ("class Panic(BaseException): ...\nraise Panic('as pyo3 does')\n", "Panic: as pyo3 does"),
    "register": (PARTLY + "1 / 0\n", "ZeroDivisionError: division by zero"),
    "exits-late": (PARTLY + "raise SystemExit\n", "SystemExit: no message"),
    "misspelled": (
        PARTLY + "pass\n\n@hookimpl\ndef unetkit_wrap_modle(plan): ...\n",
        "unetkit_wrap_modle (did you mean unetkit_wrap_model",
    ),
    "signature": (
        HEAD + "@hookimpl\ndef unetkit_register(parts, extra): ...\n",
        "unetkit_register takes parts, but not 'extra'",
    ),
    "taken": (
        PARTLY + "parts.fusions.add('add', max)\n",
        "fusion 'add' of bad is already registered by unetkit; ",
    ),
    "name": (PARTLY + "parts.fusions.add('a b', max)\n", "'a b' is not a name for the fusion"),
    "unmarked": (
        "def unetkit_register(parts): ...\n",
        "unetkit_register is not marked; ",
    ),
    "hookless": ("x = 1\n", "it has no hooks, "),
    "attribute": (
        PARTLY + "parts.fusion.add('a', max)\n",
        "AttributeError: parts have no 'fusion' (did you mean fusions",
    ),
    "kind": (PARTLY + "parts['lossy'].add('a', max)\n", "no kind is called 'lossy'"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_plugin_costs_one_line(write: Write, capsys: pytest.CaptureFixture[str], case: str) -> None:
    source, reason = FAILING[case]
    bad, good = write("bad.py", source), write("good.py", GOOD.format(part="gate"))
    host = load_manager([bad, good])
    (line,) = lines(capsys)
    assert line.startswith(f"unetkit: plugin bad failed in unetkit {OURS}: ")
    assert reason in line
    assert fusions(host) == [*BUILTIN, "gate"]
    assert not host.pluggy_manager.has_plugin("bad")
    plugin = {p.name: p for p in host.plugins}["bad"]
    assert (plugin.loaded, plugin.error in line, "Traceback" in plugin.traceback) == (False, True, True)


@pytest.mark.parametrize("case", FAILING)
def test_strict_raises(write: Write, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setenv("UNETKIT_STRICT", "1")
    source, reason = FAILING[case]
    with pytest.raises(PluginError, match=re.escape(reason)) as error:
        load_manager([write("bad.py", source)])
    assert str(error.value).startswith(f"plugin bad failed in unetkit {OURS}: ")
    assert error.value.__cause__ is not None


def test_an_installed_plugin_that_fails_is_named_with_its_version(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("gated", "1 / 0\n")
    install("hollow", "", "[unetkit]\nhollow = hollow_module:missing\n")
    assert fusions(load_manager()) == BUILTIN
    gated, hollow = sorted(lines(capsys))
    assert gated == f"unetkit: plugin gated 2.5 failed in unetkit {OURS}: ZeroDivisionError: division by zero"
    assert "plugin hollow 2.5 " in hollow
    assert "'missing'" in hollow


def test_metadata_that_cannot_be_read_costs_one_line(
    install: Callable[..., None], write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install("mangled", "", "[unetkit]\nno equals sign\n")
    install("blank", "1 / 0\n")
    (tmp_path / "blank-2.5.dist-info" / "METADATA").unlink()
    assert fusions(load_manager()) == BUILTIN
    blank, mangled = sorted(lines(capsys))
    assert blank == f"unetkit: plugin blank failed in unetkit {OURS}: ZeroDivisionError: division by zero"
    assert "plugin mangled 2.5 " in mangled
    assert "entry points" in mangled


def test_the_keyboard_passes_through(write: Write, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_manager([write("bad.py", "raise KeyboardInterrupt\n")])
    assert module_name(tmp_path / "bad.py") not in sys.modules


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere/gone.py", "the file nowhere/gone.py does not exist"),
        ("no_such_module_at_all", "called no_such_module_at_all"),
        ("attention-gat", "did you mean attention-gate"),
        (".relative", "called .relative, "),
        ("./gate.txt", "a file ends in .py"),
    ],
)
def test_a_plugin_that_is_not_there(target: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fusions(load_manager([target])) == BUILTIN
    (line,) = lines(capsys)
    assert reason in line


def test_a_plugin_that_is_a_folder_is_installed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-gate").mkdir()
    (tmp_path / "my-gate" / "pyproject.toml").touch()
    load_manager(["my-gate"])
    (line,) = lines(capsys)
    assert line.endswith("install it first: pip install -e my-gate")


def test_a_file_named_as_a_module(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("sub/only_here.py", GOOD.format(part="gate"))  # a name that no other test gives a file, which stays imported
    monkeypatch.chdir(tmp_path / "sub")
    assert fusions(load_manager(["only_here"])) == BUILTIN
    (line,) = lines(capsys)
    assert line.endswith("only_here; write ./only_here.py for the file")


def test_two_plugins_of_one_name_for_a_part(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write("one.py", PICKLED), write("two.py", PICKLED), write("three.py", PICKLED)]
    parts = load_parts(files)
    with pytest.raises(UnknownNameError, match=r"one/twice or two/twice or three/twice, .*UNETKIT_DISABLE=three"):
        parts.fusions.get("twice")
    words: dict[str, Any] = {"encoder": "plain:widths=[4,8,16]", "block": "double", "parts": parts, "device": "meta"}
    model = build(**words, fuse="two/twice")
    assert model.plugins == tuple(plugin for plugin in parts.plugins if plugin.name == "two")
    assert "--fuse two/twice" in str(model.plan)
    assert build(Plan.parse(str(model.plan)), parts=parts, device="meta").plan == model.plan
    with pytest.raises(UnknownNameError, match=r"plugin one .*'twic' .did you mean twice"):
        build(**words, fuse="one/twic")
    mixed = build(**words, fuse="add/one/twice")
    assert [type(stage.fusion).__module__ for stage in mixed.stages[1:]] == [module_name(files[0])]
    alone = load_parts(files[:1])
    assert alone.fusions.get("one/twice").qualified_name == "twice"
    save(build(**{**words, "parts": alone, "device": None}, fuse="twice"), path := files[0].with_name("m.safetensors"))
    loaded = load(path, parts=parts)  # the plugin that the file records has the name
    assert "--fuse one/twice" in str(loaded.plan)
    assert [plugin.name for plugin in loaded.plugins] == ["one"]
    recipe = """
    from unetkit import Plan
    parts.recipes.add("own", lambda: Plan.of(encoder="plain:widths=[4,8]", fuse="twice"))
"""
    parts = load_parts([*files, write("own.py", PICKLED + recipe)])
    assert "--fuse own/twice" in str(build(recipe="own", parts=parts).resolved_plan)  # the recipe's own plugin's
    assert lines(capsys) == []


def test_a_plugin_is_left_out(
    install: Callable[..., None], write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("first_gate", PICKLED)
    monkeypatch.setenv("UNETKIT_PLUGINS", str(write("two.py", PICKLED)))
    monkeypatch.setenv("UNETKIT_DISABLE", "two, First.Gate")  # by its name, or as its distribution may be spelled
    host = load_manager()
    states = {plugin.name: (plugin.loaded, plugin.disabled) for plugin in host.plugins}
    assert (states["first_gate"], states["two"]) == ((False, True), (False, True))
    with pytest.raises(UnknownNameError, match=r"UNETKIT_DISABLE .*: first_gate, two"):
        host.parts.fusions.get("twice")
    assert load_manager(["first_gate"], isolated=True).parts.fusions.get("twice").owner == "first_gate"
    assert lines(capsys) == []


def test_a_part_may_be_replaced_on_purpose(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOOD.format(part="add").replace("Gate)", "Gate, replaces='unetkit')")
    host = load_manager([write("one.py", source)])
    assert (host.parts.fusions.get("add").owner, fusions(host)) == ("one", BUILTIN)
    assert lines(capsys) == []


WRAP = (
    HEAD
    + """
from torch import nn

class Wrapped(nn.Sequential):
    pass

@hookimpl
def unetkit_wrap_model(plan):
    {body}
"""
)


def test_a_plugin_listed_twice_works_once(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("one.py", GOOD.format(part="gate") + WRAP.format(body="return Wrapped"))
    host = load_manager([path, path])
    assert fusions(host) == [*BUILTIN, "gate"]
    assert host.pluggy_manager.has_plugin("one")
    assert lines(capsys) == []
    model: Any = build("plain:widths=[2,4]", parts=host.parts, device="meta")
    assert type(model).__name__ == "Wrapped"
    assert type(model[0]).__name__ == "UNet"


def test_a_module_under_two_names_works_once(write: Write, install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write("one.py", GOOD.format(part="gate"))
    install("two", GOOD.format(part="two"), "[unetkit]\nfirst = two_module\nsecond = two_module\n")
    host = load_manager(["one", importlib.import_module("one"), "two_module"])
    assert fusions(host) == [*BUILTIN, "two", "gate"]
    (line,) = lines(capsys)
    assert line.startswith("unetkit: plugin second 2.5 ")
    assert "already loaded, as plugin first" in line


def test_files_of_one_name_keep_apart(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("Gate)", "f'{{__name__}}:Gate')")
    one = load_parts([write("a/gate.py", text.format(part="gate"))])
    two = load_parts([write("b/gate.py", text.replace("width", "height").format(part="gate"))])
    load_parts([write("c/gate.py", "1 / 0\n")])
    assert len(lines(capsys)) == 1
    options = [parts.fusions.get("gate").signature.options[0].name for parts in (one, two)]
    assert options == ["width", "height"]
    first, second = (parts.fusions.get("gate").load() for parts in (one, two))
    assert first is not second
    assert first.__module__ != second.__module__


def test_the_order_does_not_depend_on_the_folders(install: Any, write: Write, monkeypatch: Any, tmp_path: Path) -> None:
    install("base", GOOD.format(part="gate"), folder="b/")
    install("above", GOOD.format(part="gate").replace("Gate)", "Gate, replaces='base')"), folder="a/")
    for order in (["a", "b"], ["b", "a"]):
        with monkeypatch.context() as patch:
            patch.setattr("sys.path", [*(str(tmp_path / name) for name in order), *sys.path])
            host = load_manager()
        assert host.parts.fusions.get("gate").owner == "above"
        assert [p.name for p in host.plugins if p.name in ("base", "above")] == ["above", "base"]
        assert all(p.loaded for p in host.plugins)


def test_a_lookup_that_misses_names_the_failed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    parts = load_parts(
        [write("bad.py", "1 / 0\n"), write("worse.py", "1 / 0\n"), write("good.py", GOOD.format(part="g"))]
    )
    assert len(lines(capsys)) == 2
    with pytest.raises(UnknownNameError, match=r"failed .*: bad, worse;"):
        parts.fusions.get("gate")
    with pytest.raises(UnknownNameError, match=r"failed .*: bad, worse;"):
        parts.encoders.get("gate")


def test_models_are_wrapped_in_order_of_the_plugins_names(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    body = "return lambda model: model.order.append('{name}') or model if hasattr(model, 'order') else start(model)"
    start = "\ndef start(model):\n    model.order = ['{name}']\n    return model\n"
    files = [write(f"{n}.py", WRAP.format(body=body.format(name=n)) + start.format(name=n)) for n in ("c", "a", "b")]
    files.append(write("d.py", WRAP.format(body="return None")))
    model: Any = build("plain:widths=[2,4]", parts=load_parts(files), device="meta")
    assert model.order == ["a", "b", "c"]
    assert str(model.plan) == "--encoder 'plain:widths=[2,4]'"
    assert lines(capsys) == []


def test_a_wrapper_is_told_the_whole_plan() -> None:
    seen: list[Plan] = []

    class Spy:
        @hookimpl
        def unetkit_wrap_model(self, plan: Plan) -> None:
            seen.append(plan)

    host = load_manager()
    host.pluggy_manager.register(Spy(), "unetkit spy")
    host.plugins.append(type(host.plugins[0])("unetkit spy", "", "", loaded=True))
    model = build("plain:widths=[2,4]", fuse="add", classes=2, parts=host.parts, device="meta")
    assert seen == [model.resolved_plan]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("return lambda model: 1 / 0", "ZeroDivisionError: division by zero"),
        ("return 3", "TypeError: 'int' object is not callable"),
        (
            "return lambda model: None",
            "made NoneType of a model; ",
        ),
        ("import sys; sys.exit(1)", "SystemExit: 1"),
    ],
)
def test_a_failing_wrapper_leaves_the_model(
    write: Write, capsys: pytest.CaptureFixture[str], body: str, reason: str
) -> None:
    good = WRAP.format(body="return lambda model: Wrapped(model)")
    host = load_manager([write("bad.py", WRAP.format(body=body)), write("good.py", good)])
    for _ in range(2):  # it is tried, and told, for each model
        model: nn.Module = build("plain:widths=[2,4]", parts=host.parts, device="meta")
        assert type(model).__name__ == "Wrapped"
        (line,) = lines(capsys)
        assert line.startswith(f"unetkit: plugin bad failed in unetkit {OURS}: ")
        assert reason in line


def test_a_file_in_the_current_folder_is_not_run_unasked(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unetkit_plugin.py", "plugin.py", "unetkit_mine.py", "plugins/mine.py", "conftest.py"):
        write(name, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    load_manager()
    assert not (tmp_path / "ran").exists()


def test_two_versions_of_one(
    install: Callable[..., None], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    install("gated", GOOD.format(part="gate"))
    install("gated", GOOD.format(part="other"), folder="older/")
    write("older/gated-2.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: Gated\nVersion: 2.4\n")
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "older")])
    host = load_manager()
    assert fusions(host) == [*BUILTIN, "gate"]
    (line,) = lines(capsys)
    assert line.startswith("unetkit: plugin gated 2.4 ")
    assert "version 2.5 " in line
    with pytest.raises(UnknownNameError, match=r"'other'; the fusions are concat, .*`unetkit list fusions`$"):
        host.parts.fusions.get("other")


def test_two_distributions_of_one_plugins_name(install: Callable[..., None], capsys: Any) -> None:
    install("gated", GOOD.format(part="gate"))
    install("other", GOOD.format(part="other"), "[unetkit]\ngated = other_module\n")
    found = fusions(load_manager())
    assert len(found) == len(BUILTIN) + 1
    (line,) = lines(capsys)
    assert "failed in unetkit" in line
    assert "already loaded, from " in line
    assert line.endswith("; rename or remove one")


def test_what_is_installed_can_be_left_out(
    install: Callable[..., None], write: Write, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    install("gated", GOOD.format(part="gate"))
    install("broken", "1 / 0\n")
    monkeypatch.setenv("UNETKIT_PLUGINS", str(write("env.py", GOOD.format(part="env"))))
    assert {e.owner for registry in load_parts(isolated=True) for e in registry.entries.values()} == {"unetkit"}
    assert fusions(load_manager(["gated"], isolated=True)) == [*BUILTIN, "gate"]
    assert lines(capsys) == []


def test_an_installed_plugin_is_named_by_its_distribution_too(install: Callable[..., None], capsys: Any) -> None:
    install("unetkit-gate", "", "[unetkit]\ngate = gate_module\n")
    install("gate", GOOD.format(part="gate"), "")
    host = load_manager(["unetkit-gate"], isolated=True)
    assert [(p.name, p.distribution) for p in host.plugins[1:]] == [("gate", "unetkit-gate")]
    assert lines(capsys) == []


def test_naming_what_is_installed_again_changes_nothing(install: Callable[..., None], capsys: Any) -> None:
    install("gated", GOOD.format(part="gate"))
    host = load_manager(["gated", "gated_module"])
    assert fusions(host) == [*BUILTIN, "gate"]
    assert [p.loaded for p in host.plugins if p.name == "gated"] == [True]
    assert lines(capsys) == []


def test_a_distribution_with_two_plugins_is_asked_for_as_one(install: Callable[..., None], capsys: Any) -> None:
    install("My.Two", GOOD.format(part="b"), "[unetkit]\ntwo-a = a_module\ntwo-b = My.Two_module\n")
    install("a", GOOD.format(part="a"), "")
    (Path(sys.path[0]) / "My").mkdir()
    (Path(sys.path[0]) / "My" / "Two_module.py").write_text(GOOD.format(part="b"))
    for name in ("My.Two", "my-two", "my_two"):
        assert [p.name for p in load_manager([name], isolated=True).plugins] == ["unetkit", "two-a", "two-b"]
    assert lines(capsys) == []


def test_what_a_plugin_prints_goes_to_stderr(write: Write, capsys: Any) -> None:
    noisy = "print('at import')\n" + GOOD.format(part="gate").replace("parts.fusions", "print('late'); parts.fusions")
    assert fusions(load_manager([write("noisy.py", noisy)])) == [*BUILTIN, "gate"]
    assert lines(capsys) == ["at import", "late"]


WRONG = (
    HEAD
    + '''
import torch
from torch import nn

class Gate(nn.Module):
    """Gives other channels than it declares."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = skip_channels

    def forward(self, x, skip):
        return torch.cat([x, skip], dim=1)

@hookimpl
def unetkit_register(parts):
    parts.fusions.add("gate", Gate)
'''
)


def test_a_part_that_gives_the_wrong_channels_is_refused_where_it_is_used(write: Write, capsys: Any) -> None:
    parts = load_parts([write("wrong.py", WRONG)])
    with pytest.raises(BuildError, match=r"^stages\.0\.fusion \(--fuse gate\) .*out_channels=4.* 12$"):
        build("plain:widths=[4,8]", fuse="gate", parts=parts)
    build("plain:widths=[4,8]", parts=parts)
    assert lines(capsys) == []


HEAVY = """
import sys
from unetkit.plugins import load_manager
print([(p.name, p.heavy_imports) for p in load_manager(sys.argv[1:], isolated=True).plugins], "torch" in sys.modules)
"""


@pytest.mark.slow
def test_who_imports_torch_to_register_is_known(write: Write) -> None:
    light = write("light.py", GOOD.format(part="light"))
    heavy = write("heavy.py", "import torch\n" + GOOD.format(part="heavy"))
    command = [sys.executable, "-c", HEAVY, str(light), str(heavy)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[('unetkit', ()), ('light', ()), ('heavy', ('torch', 'numpy'))] True"


def test_every_kind_may_be_added_and_is_listed_under_its_owner(write: Write, capsys: Any) -> None:
    adds = "\n".join(f"    parts.{kind.attribute}.add('mine', 'nowhere:Mine')" for kind in KINDS)
    host = load_manager([write("all.py", HEAD + "@hookimpl\ndef unetkit_register(parts):\n" + adds)], isolated=True)
    assert [(e.kind, e.name) for e in host.parts.entries_of("all")] == [(kind, "mine") for kind in KINDS]
    assert not host.implements("unetkit_wrap_model", host.plugins[1])
    assert lines(capsys) == []


LIBRARY = (
    HEAD
    + """
def names():
    {body}

def make(in_channels, name):
    ...

@hookimpl
def unetkit_register(parts):
    parts.encoders.add_library("zoo", f"{{__name__}}:names", make)
"""
)


@pytest.mark.parametrize("body", ["return 1 / 0", "import sys; sys.exit(0)", "print('hello'); return None"])
def test_a_library_that_cannot_be_listed_costs_one_line(write: Write, tmp_path: Path, capsys: Any, body: str) -> None:
    parts = load_parts([write("zoo.py", LIBRARY.format(body=body))])
    assert "resnet18" in parts.encoders.names()
    assert parts.encoders.get("resnet18").library == "timm"
    with pytest.raises(UnknownNameError, match="no encoder is called 'bogus'"):
        parts.encoders.get("bogus")
    told = [line for line in lines(capsys) if line != "hello"]
    assert len(told) == 1
    assert told[0].startswith(f"unetkit: plugin zoo failed in unetkit {OURS}: {module_name(tmp_path / 'zoo.py')}")


LATE = GOOD.replace("Gate)", "'late_module:Gate')")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys\nsys.exit(0)\n", "late_module:Gate cannot be loaded: SystemExit: 0"),
        ("import no_such\n", "it needs the package 'no_such', "),
        ("1 / 0\n", "late_module:Gate cannot be loaded: ZeroDivisionError: division by zero"),
    ],
)
def test_a_parts_module_is_held_in_as_the_plugin_is(write: Write, source: str, reason: str) -> None:
    write("late_module.py", source)
    parts = load_parts([write("late.py", LATE.format(part="late"))])
    with pytest.raises(PluginError, match=re.escape(reason)):
        build("plain:widths=[2,4]", fuse="late", parts=parts)


def test_what_a_part_prints_goes_to_stderr(write: Write, capsys: Any) -> None:
    body = "        print('made')\n        super().__init__()\n"
    source = f"print('imported')\n{WRONG}".replace("        super().__init__()\n", body)
    source = source.replace("skip_channels\n\n    def", "x_channels + skip_channels\n\n    def")
    write("loud_module.py", source)
    parts = load_parts([write("loud.py", LATE.replace("late_module", "loud_module").format(part="loud"))])
    build("plain:widths=[2,4]", fuse="loud", parts=parts)
    assert lines(capsys) == ["imported", "made"]


def test_a_wrapper_that_changes_the_model_and_fails_is_an_error(write: Write) -> None:
    body = "def wrap(model):\n        model.head = nn.Conv2d(2, 7, 1)\n        1 / 0\n    return wrap"
    parts = load_parts([write("bad.py", WRAP.format(body=body))])
    with pytest.raises(PluginError, match=r"^plugin bad modified .*: ZeroDivisionError"):
        build("plain:widths=[2,4]", parts=parts)


def test_stdout_is_itself_again_after_threads_have_built(write: Write) -> None:
    parts = load_parts([write("slow.py", WRAP.format(body="import time; time.sleep(0.001); return None"))])
    before = sys.stdout

    def several(_: int) -> None:
        for _ in range(5):
            build("plain:widths=[2,4]", parts=parts, device="meta")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(several, range(4)))
    assert sys.stdout is before


def test_building_leaves_other_threads_alone(write: Write) -> None:
    source = WRONG.replace("self.out_channels = skip_channels", "self.out_channels = x_channels + skip_channels")
    parts = load_parts([write("right.py", source)])

    def one(index: int) -> Any:
        return build(f"plain:widths=[{index + 2},{2 * index + 4}]", fuse="gate", parts=parts)(torch.randn(1, 3, 8, 8))

    with ThreadPoolExecutor(6) as pool:
        assert [tuple(out.shape) for out in pool.map(one, range(24))] == [(1, 2, 8, 8)] * 24


def test_what_lies_beside_a_file_can_be_imported(write: Write, tmp_path: Path, capsys: Any) -> None:
    write("sub/beside_module.py", GOOD)
    file = write("sub/plugin.py", "import beside_module\n" + LATE.replace("late_module", "beside_module"))
    file.write_text(file.read_text().format(part="beside"))
    assert fusions(load_manager([file])) == [*BUILTIN, "beside"]
    assert load_parts([file]).fusions.get("beside").load().__module__ == "beside_module"
    assert sys.path[-1] == str(tmp_path / "sub")
    assert lines(capsys) == []


def test_an_installed_plugin_whose_files_are_gone(install: Any, tmp_path: Path, capsys: Any) -> None:
    install("gated", GOOD.format(part="gate"))
    (tmp_path / "gated_module.py").unlink()
    assert fusions(load_manager()) == BUILTIN
    (line,) = lines(capsys)
    assert "gated_module does not exist; install gated" in line


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_mod:Gate", "there is no module 'no_such_mod'"),
        ("json.Nope", "it must contain a colon, as in 'module:attr'"),
        ("json:Nope", "module json has no 'Nope'"),
    ],
)
def test_a_part_that_is_not_where_it_was_registered(write: Write, target: str, reason: str) -> None:
    parts = load_parts([write("late.py", LATE.replace("late_module:Gate", target).format(part="late"))])
    with pytest.raises(PluginError, match=re.escape(f"--fuse late (of late): {target} cannot be loaded: {reason}")):
        build("plain:widths=[2,4]", fuse="late", parts=parts)


def test_a_positional_option_is_told_from_none(write: Write) -> None:
    source = GOOD.replace("skip_channels, *, width", "skip_channels, width")
    parts = load_parts([write("bare.py", source.format(part="bare"))])
    with pytest.raises(OptionError, match=r"--fuse bare:width=2: 'width' is positional in bare"):
        build("plain:widths=[2,4]", fuse="bare:width=2", parts=parts)
    with pytest.raises(OptionError, match="'channels' is positional in bilinear"):
        build("plain:widths=[2,4]", up="bilinear:channels=2", parts=parts)


STREAMS = """
import io, sys
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "utf-8", write_through=True)
sys.stderr = io.TextIOWrapper(sys.stderr.buffer, "utf-8", write_through=True)
"""


def test_a_plugin_that_wraps_the_streams_leaves_the_output_where_it_was(write: Write) -> None:
    file = write("streams.py", STREAMS + GOOD.format(part="gate"))
    command = [sys.executable, "-m", "unetkit", "--plugin", str(file), "list", "fuse", "add"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("add: Sum of map and skip")
    assert done.stderr == ""


RIGHT_HOOKS = {
    "answers everything": ("from unittest.mock import call\n", "unetkit_register(parts)"),
    "a default": ("", "unetkit_register(parts, verbose=False)"),
    "another name": ("hookimpl = hookimpl(specname='unetkit_register')\n", "mine(parts)"),
}


@pytest.mark.parametrize("case", RIGHT_HOOKS)
def test_hooks_as_pluggy_takes_them(write: Write, case: str, capsys: Any) -> None:
    before, signature = RIGHT_HOOKS[case]
    source = GOOD.format(part="gate").replace("class Gate", before + "\nclass Gate", 1)
    host = load_manager([write("right.py", source.replace("unetkit_register(parts)", signature))])
    assert (fusions(host), lines(capsys)) == ([*BUILTIN, "gate"], [])


def test_a_hook_that_is_no_function_is_told(write: Write, capsys: Any) -> None:
    source = "class Call:\n    def __call__(self, parts): ...\n\nunetkit_register = hookimpl(Call())\n"
    load_manager([write("made.py", HEAD + source)])
    (line,) = lines(capsys)
    assert "unetkit_register is a Call" in line


def test_a_file_is_one_however_its_path_is_written(write: Write, tmp_path: Path, capsys: Any) -> None:
    write("sub/one.py", GOOD.format(part="gate"))
    paths = [tmp_path / "sub" / "one.py", tmp_path / "sub" / ".." / "sub" / "one.py"]
    assert fusions(load_manager(paths)) == [*BUILTIN, "gate"]
    assert lines(capsys) == []
    assert fusions(load_manager(["~nobody_of_this_name/x.py"])) == BUILTIN
    (line,) = lines(capsys)
    assert "~nobody_of_this_name/x.py does not exist" in line
