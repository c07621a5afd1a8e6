"""Who imports whom; what works without torch; and timm's names without timm."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import timm

import unetkit
from unetkit.parts.encoders import timm_names

ROOT = Path(unetkit.__file__).parent

#: A room imports only rooms above it (and itself, where it is a folder).
ROOMS = (
    "errors",
    "foreign",
    "atomic",
    "values",
    "signature",
    "registry",
    "plan",
    "hookspecs",
    "finding",
    "plugins",
    "commands",
    "listing",
    "protocols",
    "sizes",
    "meta",
    "meter",
    "lazyinit",
    "resolve",
    "chosen",
    "network",
    "unet",
    "whole",
    "parts",
    "inspect",
    "maker",
    "builder",
    "jobs",
    "data",
    "deploy",
    "train",
    "predict",
    "bench",
    "sweep",
    "testing",
    "scaffold",
    "cli",
    "__main__",
)
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
#: What takes seconds to import, and is not needed to list parts or to read a line.
HEAVY = ("torch", "timm", "torchvision", "rich", "segmentation_models_pytorch")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that runs: those under `if TYPE_CHECKING` do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (found for other in child.orelse for found in statements(ast.Module([other], [])))
        else:
            yield from statements(child)


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, those of its own package made absolute."""
    for found in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
            continue
        package = ["unetkit", *path.relative_to(ROOT).parent.parts]
        base = package[: len(package) - found.level + 1] if found.level else []
        module = ".".join([*base, *([found.module] if found.module else [])])
        yield from (f"{module}.{alias.name}" for alias in found.names)


def rooms_imported(path: Path) -> set[str]:
    # `import unetkit` reaches every room, so it counts as a room that is above none.
    return {f"{name}.unetkit".split(".")[1] for name in imported(path) if f"{name}.".startswith("unetkit.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS
    allowed = {*ROOMS[: ROOMS.index(room)], *([room] if (ROOT / room).is_dir() else [])}
    assert rooms_imported(path) <= allowed


def test_every_room_that_stands_is_in_the_list() -> None:
    assert {room_of(path) for path in MODULES} <= set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_networks_and_parts_know_neither_plugins_nor_the_builder(path: Path) -> None:
    if room_of(path) in ("protocols", "unet", "parts"):
        assert not rooms_imported(path) & {"plugins", "builder"}


def test_the_reader_of_imports_sees_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "inspect").mkdir()
    path = tmp_path / "inspect" / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport unetkit.plan, os\nfrom unetkit import values\nfrom . import b\n"
        "from ..registry import Parts\nif TYPE_CHECKING:\n    import unetkit.cli\nelse:\n    import unetkit.meta\n"
        "import unetkitten\nimport unetkit\n"
        "def late():\n    try:\n        from unetkit.builder import build\n    except ImportError: ...\n"
    )
    assert rooms_imported(path) == {"plan", "values", "inspect", "registry", "meta", "builder", "unetkit"}


LIGHT = """
import sys
import unetkit
from unetkit import errors, hookspecs, listing, parts, plan, plugins, registry, resolve, signature, values
from unetkit.parts import recipes
made = unetkit.load_parts()
assert len(unetkit.list_parts("encoders")) > 1000
for found in made:
    names = found.names()
    assert names == [entry.said for entry in found.find()]
    assert found.find(names[0][:2] + "*")
    for entry in (*found.entries.values(), found.get(names[-1])):
        assert entry.signature.summary
resolve.resolve(unetkit.Plan.parse("--recipe resnet101-unet --fuse concat --up transposed:kernel=4"), made)
try:
    resolve.resolve(unetkit.Plan.parse("--encoder resnet19"), made)
except unetkit.UnetkitError as error:
    print(error)
print(*[name for name in sys.argv[1:] if name in sys.modules])
"""


def test_parts_are_listed_and_lines_read_without_torch(tmp_path: Path) -> None:
    environment = {"PATH": "", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):  # without timm's names in the cache, and with them
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", LIGHT, *HEAVY],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        message, heavy = done.stdout.splitlines()
        assert message.startswith("--encoder resnet19: no encoder is called 'resnet19'; did you mean resnet18 or")
        assert heavy == ""
    assert (tmp_path / "unetkit" / f"timm-{version('timm')}.json").is_file()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache folder, and nothing remembered in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    timm_names.timm_model_names.cache_clear()
    yield tmp_path / "cache" / "unetkit"
    timm_names.timm_model_names.cache_clear()


def test_the_names_are_timms() -> None:
    assert timm_names.scan_timm_source() == timm.list_models()


def test_timm_is_asked_where_its_source_cannot_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Moved:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(timm_names, "find_spec", lambda name: Moved)
    assert timm_names.scan_timm_source() == timm.list_models()


def test_the_names_are_kept_per_version_of_timm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = timm_names.timm_model_names()
    (file,) = cache.iterdir()
    assert file.name == f"timm-{version('timm')}.json"
    assert json.loads(file.read_text()) == names == timm_names.scan_timm_source()
    timm_names.timm_model_names.cache_clear()
    file.write_text('["only"]')
    assert timm_names.timm_model_names() == ["only"]
    timm_names.timm_model_names.cache_clear()
    monkeypatch.setattr(timm_names, "version", lambda name: "0.0.1")
    assert timm_names.timm_model_names() == names
    assert {file.name for file in cache.iterdir()} == {f"timm-{version('timm')}.json", "timm-0.0.1.json"}


@pytest.mark.parametrize(
    "content", [b"", b"[", b"\xff\xfe", b"{}", b"[]", b"null", b"3", b'"resnet18"', b"[1]", b'["a", 1]']
)
def test_a_corrupt_cache_is_written_anew(cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    file = cache / f"timm-{version('timm')}.json"
    file.write_bytes(content)
    assert timm_names.timm_model_names() == timm_names.scan_timm_source()
    assert json.loads(file.read_text()) == timm_names.scan_timm_source()
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_does_no_harm(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be: this holds for the superuser too")
    assert timm_names.timm_model_names() == timm_names.scan_timm_source()


def test_a_folder_in_the_caches_place_does_no_harm(cache: Path) -> None:
    file = cache / f"timm-{version('timm')}.json"
    file.mkdir(parents=True)
    assert timm_names.timm_model_names() == timm_names.scan_timm_source()
    assert list(cache.iterdir()) == [file]
