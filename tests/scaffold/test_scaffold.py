"""`unetkit plugins new`: whatever name it takes makes a plugin that installs, works, and passes its own tests."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unetkit.scaffold
from tests.saying import says
from unetkit.errors import FileError, OptionError
from unetkit.plan import PartSpec
from unetkit.registry import KINDS, Registry
from unetkit.scaffold import TITLES, new_plugin, plugin_files

ROOT = Path(__file__).parents[2]
#: Has every separator, a capital and a digit, and is so long that lines have to be broken.
AWKWARD = "unetkit-My.own_{}-2"


def read(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}


def test_there_is_one_for_each_kind_of_part() -> None:
    assert (*(kind.title for kind in KINDS), "wrap", "command") == TITLES


@pytest.mark.parametrize("kind", TITLES)
def test_the_files(kind: str, tmp_path: Path) -> None:
    folder = new_plugin("my-own", kind, tmp_path)
    assert folder == tmp_path / "my-own"
    assert list(tmp_path.iterdir()) == [folder]
    assert set(read(folder)) == {
        ".gitignore",
        "CHANGELOG.md",
        "README.md",
        "my_own/__init__.py",
        f"my_own/{kind}.py",
        "my_own/py.typed",
        "pyproject.toml",
        "tests/test_my_own.py",
    }
    assert read(folder) == plugin_files("my-own", kind)
    assert all(text.endswith("\n") for path, text in read(folder).items() if path != "my_own/py.typed")


def test_words_of_the_line_and_plurals_name_a_kind() -> None:
    for kind in KINDS:
        files = plugin_files("my-own", kind.title)
        assert plugin_files("my-own", kind.field) == plugin_files("my-own", kind.attribute) == files
    for title in ("wrap", "command"):
        assert plugin_files("my-own", f"{title}s") == plugin_files("my-own", title)


def test_names() -> None:
    files = plugin_files("unetkit-Gate.2_b", "fusion")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "unetkit-Gate.2_b"
    assert project["entry-points"] == {"unetkit": {"gate.2_b": "unetkit_gate_2_b"}}
    assert 'parts.fusions.add("gate.2_b", "unetkit_gate_2_b.fusion:Gate2B")' in files["unetkit_gate_2_b/__init__.py"]
    assert "class Gate2B(nn.Module):" in files["unetkit_gate_2_b/fusion.py"]
    assert "--fuse gate.2_b\n" in files["README.md"]
    assert '"gate" = "unetkit_gate"' in plugin_files("UNetKit_gate", "fusion")["pyproject.toml"]
    hook = plugin_files("my-net", "recipe")["my_net/__init__.py"]
    assert 'parts.recipes.add("my-net", "my_net.recipe:my_net")' in hook


def test_it_asks_for_this_version_of_unetkit_and_python_and_names_no_licence() -> None:
    project = tomllib.loads(plugin_files("my-own", "block")["pyproject.toml"])["project"]
    minor = ".".join(version("unetkit").split(".")[:2])
    assert project["dependencies"] == ["torch", f"unetkit>={minor}"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["requires-python"] == ours["project"]["requires-python"]
    assert not {"license", "license-files"} & set(project)


_FREE = "choose another name, such as "
REFUSED = [
    ("", "fusion", "'' is not a valid name"),
    ("my gate", "fusion", "'my gate' is not a valid name"),
    ("-gate", "fusion", "'-gate' is not a valid name"),
    ("gate-", "fusion", "'gate-' is not a valid name"),
    ("gate\n", "fusion", r"'gate\n' is not a valid name"),
    ("a/b", "fusion", "'a/b' is not a valid name"),
    ("..", "fusion", "'..' is not a valid name"),
    ("tür", "fusion", "'tür' is not a valid name"),
    ("unetkit-", "fusion", "'unetkit-' is not a valid name"),
    ("2d", "fusion", f"would define '2d', … valid name in Python; {_FREE}my-2d"),
    ("unetkit-2d", "fusion", f"'unetkit-2d' would define '2d', …{_FREE}my-2d"),
    ("class", "fusion", f"'class' would define 'class', …{_FREE}my-class"),
    ("none", "fusion", "'none' would define 'None'"),
    ("unetkit-none", "head", "'unetkit-none' would define 'None'"),
    ("unetkit-lambda", "recipe", "would define 'lambda'"),
    ("sum", "fusion", f"'sum' would define 'sum', … builtin…{_FREE}my-sum"),
    ("unetkit-Exception", "block", f"would define 'Exception', …{_FREE}my-exception"),
    ("unetkit-max", "recipe", "would define 'max', … builtin"),
    ("json", "fusion", f"the package 'json', … exists; {_FREE}my-json"),
    ("Torch", "fusion", "'Torch' would define the package 'torch'"),
    ("winreg", "fusion", "the package 'winreg'"),
    ("unetkit", "fusion", f"the package 'unetkit', …{_FREE}my-unetkit"),
    ("tests", "fusion", "the package 'tests'"),
    ("dist", "fusion", "the package 'dist'"),
    ("add", "fusion", f"the fusion 'add', which unetkit… {_FREE}my-add"),
    ("unetkit-concat", "fuse", "the fusion 'concat', which unetkit"),
    ("unetkit-fpn", "model", f"the model 'fpn', which smp …{_FREE}my-fpn"),
    ("unetkit-conv", "wrap", "the head 'conv', which unetkit"),
    ("resnet18", "encoder", f"the encoder 'resnet18', which timm …{_FREE}my-resnet18"),
    ("resnet18.mine", "encoder", "the encoder 'resnet18.mine', which timm"),
    ("tensor", "fusion", f"would define 'Tensor', … imports …{_FREE}my-tensor"),
    ("f", "upsampler", "'f' would define 'F', … imports"),
    ("unetkit-annotations", "recipe", "would define 'annotations', … imports"),
    ("plugins", "command", f"the command 'plugins', … exists; {_FREE}my-plugins"),
    ("unetkit-list", "command", f"the command 'list', …{_FREE}my-list"),
    ("latency", "metric", f"the metric 'latency', …{_FREE}my-latency"),
    (
        "unetkit-size",
        "metric",
        "'unetkit-size' is not possible: … grid option",
    ),
    ("unetkit-max", "metric", "would define 'max', … builtin"),
    (
        "my-own",
        "lossy",
        "'lossy' (did you mean loss?); the kinds are encoder, upsampler, fusion, ",
    ),
    (
        "my-own",
        "blok",
        "(did you mean block",
    ),
]


@pytest.mark.parametrize(("name", "kind", "message"), REFUSED, ids=[f"{name} {kind}" for name, kind, _ in REFUSED])
def test_refused(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as error:
        new_plugin(name, kind, tmp_path)
    assert says(str(error.value), f"…{message}")
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("add", "block"),
        ("resnet18", "head"),
        ("unetkit-sum", "fusion"),
        ("unetkit-2d", "command"),
        ("plugins", "head"),
        ("latency", "head"),
    ],
)
def test_a_name_taken_elsewhere_is_free_here(name: str, kind: str, tmp_path: Path) -> None:
    assert new_plugin(name, kind, tmp_path).is_dir()


def test_a_module_that_python_cannot_look_up_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_own", ModuleType("my_own"))
    with pytest.raises(OptionError, match="package 'my_own', which already exists"):
        plugin_files("my-own", "fusion")


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    new_plugin("my-own", "fusion", tmp_path)
    before = read(tmp_path)
    with pytest.raises(OptionError, match=r"my-own already exists and was not changed"):
        new_plugin("my-own", "block", tmp_path)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OptionError, match=f"{name} already exists"):
            new_plugin(name, "block", tmp_path)
    assert read(tmp_path) == {**before, "file": "mine"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "my-own").mkdir()
    assert "pyproject.toml" in read(new_plugin("my-own", "fusion", tmp_path))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no folder .*/gone; create it first"):
        new_plugin("my-own", "fusion", tmp_path / "gone")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_for_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written: File name too long"):
        new_plugin("a" * 300, "fusion", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", new_plugin("my-own", "head", tmp_path)
    other.mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_all_files_or_none(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text
    written: list[Path] = []

    def fail(path: Path, text: str, **options: str) -> int:
        if len(written) == 3:
            raise error
        written.append(path)
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt):
        new_plugin("my-own", "fusion", tmp_path)
    assert (len(written), list(tmp_path.iterdir())) == (3, [])


def test_what_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = unetkit.scaffold._write

    def slowly(texts: dict[str, str], folder: Path) -> None:
        write(texts, folder)
        (tmp_path / "my-own").mkdir()
        (tmp_path / "my-own" / "mine").touch()

    monkeypatch.setattr(unetkit.scaffold, "_write", slowly)
    with pytest.raises(FileError, match="my-own cannot be written: "):
        new_plugin("my-own", "fusion", tmp_path)
    assert read(tmp_path) == {"my-own/mine": ""}


NAMES = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"(unetkit[-_.])?[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True),
)


@pytest.mark.slow
@given(name=NAMES, kind=st.sampled_from(TITLES))
def test_whatever_name_is_taken_makes_a_whole_plugin(name: str, kind: str) -> None:
    with contextlib.suppress(OptionError):
        check(name, kind, plugin_files(name, kind))


def check(name: str, kind: str, files: dict[str, str]) -> None:
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == name
    ((part, package),) = project["project"]["entry-points"]["unetkit"].items()
    assert str(PartSpec.parse(f"{part}:a=1")) == f"{part}:a=1"
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [package]
    trees = {path: ast.parse(text) for path, text in files.items() if path.endswith(".py")}
    assert {path.split("/")[0] for path in trees} == {package, "tests"}
    registered = re.findall(r'"(\w+)\.(\w+):(\w+)"', files[f"{package}/__init__.py"])
    number = {"command": 0, "metric": 3}.get(kind, 1)
    assert [(home, module) for home, module, _ in registered] == [(package, kind)] * number
    for _, module, attr in registered:
        body = trees[f"{package}/{module}.py"].body
        assert [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)].count(attr) == 1
        Registry(KINDS[0]).add(part, f"{package}.{module}:{attr}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin of each kind."""
    folder = tmp_path_factory.mktemp("made")
    for kind in TITLES:
        new_plugin(AWKWARD.format(kind), kind, folder)
    return folder


def run(*command: str, cwd: Path, site: Path | None = None) -> str:
    """What a command of Python's prints; it must succeed. `site` is a folder more where Python looks for modules."""
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])] if site else []
    environment = {"PYTHONPATH": os.pathsep.join(path)} if site else {}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_linters_and_formatters_leave_the_code_as_it_is(made: Path) -> None:
    ours = ["--config", str(ROOT / "pyproject.toml")]
    as_tests = ["--config", "lint.per-file-ignores = {'**/tests/*' = ['D', 'S']}"]
    for settings in (["--isolated"], [*ours, *as_tests]):
        run("-m", "ruff", "check", "--no-cache", *settings, ".", cwd=made)
    for settings in (["--isolated"], ours):
        run("-m", "ruff", "format", "--no-cache", "--diff", *settings, ".", cwd=made)


#: Parts that do not fit the interface of their kind, each with the positional arguments of its factory.
MISTYPED = """
from collections.abc import Callable
from torch import Tensor, nn
from unetkit.protocols import Align, Block, Encoder, Fusion, Head, Upsampler

class Part(nn.Module):
    out_channels = 4
    channels, strides = (4, 8), (1, 2)

    def __init__(self, one: int, other: int) -> None:
        super().__init__()

    def target_size(self, scaled: tuple[int, int], skip: tuple[int, int]) -> tuple[int, int]:
        return skip

class One(Part):
    def forward(self, x: Tensor) -> Tensor:
        return x

class Two(Part):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return x

class Sized(Part):
    def __init__(self, channels: int, scale: float, *, kernel: int = 3) -> None:
        super().__init__(channels, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x

right: tuple[Callable[[int, int], Block], Callable[[int, int], Head], Callable[[int, int], Fusion]] = One, One, Two
right_up: Callable[[int, float], Upsampler] = Sized
up: Callable[[int, int], Upsampler] = One  # ignores the size
fusion: Callable[[int, int], Fusion] = One  # ignores the skip
align: Callable[[], Align] = One  # ignores the skip
block: Callable[[int, int], Block] = Two  # wants a skip
encoder: Callable[[int], Encoder] = Sized  # wants a scale
head: Callable[[int, int, int], Head] = One  # takes one argument too few
bare: Callable[[int, int], Fusion] = nn.Bilinear  # declares nothing
"""


#: Three quarters of what mypy reads on a first run are modules whose types no plugin and no signature of ours mentions.
MYPY = """
[mypy]
strict = true
namespace_packages = false

[mypy-huggingface_hub.*,onnx.*,onnx_ir.*,onnxscript.*,rich.*,sympy.*,timm.*,torch._dynamo.*,torch._export.*,\
torch._functorch.*,torch._higher_order_ops.*,torch._inductor.*,torch._native.*,torch.ao.*,torch.distributed.*,\
torch.distributions.*,torch.fx.*,torch.onnx.*,torch.utils._sympy.*]
follow_imports = skip
ignore_missing_imports = true
""".replace("\\\n", "")


@pytest.fixture(scope="module")
def type_errors(made: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says about the code of every kind, its tests, and the mistyped parts, in one run."""
    folder = tmp_path_factory.mktemp("typed")
    config, mistyped = folder / "mypy.ini", folder / "mistyped.py"
    config.write_text(MYPY)
    mistyped.write_text(MISTYPED)
    packages = sorted(str(path) for pattern in ("*/unetkit_*", "*/tests") for path in made.glob(pattern))
    assert len(packages) == 2 * len(TITLES)
    options = ["--config-file", str(config), "--cache-dir", str(ROOT / ".mypy_cache/strict"), "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, *packages, str(mistyped)]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
    assert not done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.slow
def test_mypy_reads_all_that_the_code_imports(made: Path) -> None:
    skipped = tuple(re.findall(r"([\w.]+\.)\*", MYPY))
    assert "torch.fx." in skipped
    texts = [path.read_text(encoding="utf-8") for path in made.glob("*/*/*.py")]
    for node in (node for text in [*texts, MISTYPED] for node in ast.walk(ast.parse(text))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        assert not [name for name in names if f"{home}{name}.".startswith(skipped)], ast.unparse(node)


@pytest.mark.slow
def test_the_code_and_its_tests_are_typed(type_errors: list[str]) -> None:
    assert [line for line in type_errors if "mistyped.py:" not in line] == []


@pytest.mark.slow
def test_parts_that_do_not_fit_their_interface_are_refused_by_mypy(type_errors: list[str]) -> None:
    refused = {int(number) for number in re.findall(r"mistyped\.py:(\d+): ", "\n".join(type_errors))}
    wrong = {number for number, line in enumerate(MISTYPED.splitlines(), 1) if ": Callable" in line and "#" in line}
    assert refused == wrong, type_errors


@pytest.fixture(scope="module")
def site(made: Path) -> Path:
    """The plugins installed: their wheels, built and unpacked where Python looks."""
    folder = made / "site"
    for project in sorted(made.glob("unetkit-*")):
        run("-m", "hatchling", "build", "-t", "wheel", cwd=project)
        (wheel,) = project.glob("dist/*.whl")
        with zipfile.ZipFile(wheel) as archive:
            assert len({name.split("/")[0] for name in archive.namelist()}) == 2  # the package and its metadata
            archive.extractall(folder)
    return folder


SHOW = """
import sys
from unetkit.cli import cli
from unetkit.registry import KINDS
for kind in KINDS:
    cli.main(["list", kind.field, "my.*"], standalone_mode=False)
cli.main(["plugins"], standalone_mode=False)
cli.main(["--help"], standalone_mode=False)
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_installed_they_are_shown_without_torch(made: Path, site: Path) -> None:
    rows = [line.split() for line in run("-Werror", "-c", SHOW, cwd=made, site=site).splitlines()]
    for kind in (*(kind.title for kind in KINDS), "wrap"):
        name = f"my.own_{kind}-2"
        assert [row for row in rows if row and row[0] == row[-1] == name], rows  # in the list, with its owner
        assert [row[-1] for row in rows if row[:2] == [name, "0.1.0"]] == ["loaded"], rows
    assert [row for row in rows if row[:3] == ["my.own_command-2", "Count", "the"]], rows
    for name in ("my.own_metric-2", "my.own_metric-2-time", "my.own_metric-2-worst"):
        assert [row for row in rows if ["metric", name] in (row[:2], row[-3:-1])], rows


@pytest.mark.slow
def test_installed_they_pass_their_own_tests(made: Path, site: Path) -> None:
    tests = sorted(str(path) for path in made.glob("*/tests"))
    assert len(tests) == len(TITLES)
    options = ("-p", "no:cacheprovider", "--rootdir", str(made), "--strict-markers", "-v")
    shown = run("-Werror", "-m", "pytest", *options, *tests, cwd=made, site=site)
    assert not re.search(r"\bwarnings?\b", shown), shown
    for kind in TITLES:
        file = f"test_unetkit_my_own_{kind}_2.py"
        assert len(re.findall(rf"{file}::test_\w+ PASSED", shown)) == (2 if kind in ("wrap", "metric") else 1), shown
        assert re.search(rf"{file}::test_conforms\[.* PASSED", shown), shown
