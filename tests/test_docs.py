"""Each page says what is so: words, options and parts are all there, and every example runs and gives what it shows."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import unetkit
from tests.rendered import OURS, PICTURES, blocks, picture, refreshed
from unetkit import hookspecs
from unetkit.cli import cli, main
from unetkit.plan import PLAN_FIELDS
from unetkit.registry import PART_KINDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
PAGES += sorted((ROOT / "plugins").glob("*/*.md"))
EXAMPLES = [page for page in PAGES if any(blocks(page.read_text(encoding="utf-8"), "console", "sh", "python"))]
SET_UP = ("pip install uv && uv run unetkit build --encoder resnet101 --fuse add", "pip install uv && uv run pytest")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(group: click.Group, ctx: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that call it."""
    yield path, group
    for name in group.list_commands(ctx):
        command, below = group.get_command(ctx, name), f"{path} {name}"
        assert command is not None
        yield from commands(command, ctx, below) if isinstance(command, click.Group) else [(below, command)]


def test_every_command_and_option_is_documented() -> None:
    page = (DOCS / "grammar.md").read_text(encoding="utf-8")
    with click.Context(cli, info_name="unetkit") as ctx:
        for path, command in commands(cli, ctx, "unetkit"):
            assert command is cli or f"`{path}" in page
            options = [option for param in command.get_params(ctx) for option in param.opts if option.startswith("-")]
            assert not [option for option in options if not re.search(rf"`{option}\b", page)], path


HOOKS = [hook for name, hook in vars(hookspecs).items() if name.startswith("unetkit_")]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_hook_is_documented_with_its_signature(hook: Callable[..., object]) -> None:
    told = f"{hook.__name__}{inspect.signature(hook)}".replace("'", "")
    assert f"\n### `{told}`\n" in (DOCS / "plugins.md").read_text(encoding="utf-8")
    assert hook.__doc__


def test_the_page_has_no_hook_that_there_is_not() -> None:
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    assert set(re.findall(r"unetkit_(?:register|wrap)\w*", page)) == {hook.__name__ for hook in HOOKS}


def test_every_word_has_a_row() -> None:
    page = (DOCS / "grammar.md").read_text(encoding="utf-8")
    assert not [word.flag for word in PLAN_FIELDS if f"\n| `{word.flag}` |" not in page]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_the_code_knows_better_is_as_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fresh = refreshed(text)
    if os.environ.get("UPDATE_DOCS") == "1":
        page.write_text(fresh, encoding="utf-8")
    else:
        assert text == fresh, "UPDATE_DOCS=1 pytest tests/test_docs.py writes it anew"


@pytest.mark.parametrize("recipe", PICTURES)
def test_the_pictures_are_what_is_drawn(recipe: str) -> None:
    path, fresh = DOCS / "images" / f"{recipe}.svg", picture(recipe)
    if os.environ.get("UPDATE_DOCS") == "1":
        path.write_text(fresh, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == fresh, "UPDATE_DOCS=1 pytest tests/test_docs.py draws it anew"


def test_every_kind_and_recipe_has_its_place() -> None:
    kinds = set(re.findall(r"<!-- rendered: (\w+) -->", (DOCS / "parts.md").read_text()))
    assert kinds == {kind.attribute for kind in PART_KINDS} - {"recipes", "models"}
    recipes = re.findall(r"<!-- rendered: recipe (\S+) -->", (DOCS / "recipes.md").read_text())
    assert recipes == [entry.name for entry in OURS.recipes.find()]


#: From the table of reference figures, computed by independent implementations.
KNOWN = {
    "unet-2015": {"31,030,658"},
    "unet-same": {"31,042,434", "31,043,586"},
    "unet-bilinear": {"13,395,329", "13,395,394", "14,788,994"},
    "unet-relu-bn": {"34,524,038"},
}


@pytest.mark.parametrize("recipe", KNOWN)
def test_the_reference_counts_stand_on_the_page(recipe: str) -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    section = page.split(f"<!-- rendered: recipe {recipe} -->")[1].split("<!-- end -->")[0]
    assert set(re.findall(r"\d+,\d{3},\d{3}", section)) >= KNOWN[recipe]


def run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """What a command line gives: its exit code, and its output, what was told beside it included; or its message."""
    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    code = int(ended.value.code or 0)
    return code, shown.err if code else shown.err + shown.out


def show(block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a console block's commands; each line under one is a line of its output, and "Error: ..." a refusal."""
    lines = re.split(r"^(?:\$ )?(?=unetkit )", block, flags=re.MULTILINE)[1:]
    for line, *expected in (text.splitlines() for text in lines):
        code, output = run(line, capsys, monkeypatch)
        assert code == (2 if any(text.startswith("Error: ") for text in expected) else 0), output
        given = [text.split() for text in output.splitlines()]
        assert not [text for text in expected if text.strip() not in ("", "...") and text.split() not in given], output


def execute(block: str, namespace: dict[str, object]) -> None:
    """Run a Python block; what a line prints is what the comment behind it says."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "<page>", "exec"), namespace)
    lines = iter(printed.getvalue().splitlines())
    for expected in re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE):
        assert expected in lines, printed.getvalue()


#: Pages whose examples build, train or measure networks.
SLOW = {
    "ablations.md",
    "bench.md",
    "eject.md",
    "encoders.md",
    "export.md",
    "fast.md",
    "grammar.md",
    "models.md",
    "moving.md",
    "outputs.md",
    "plugins.md",
    "predict.md",
    "python.md",
    "training.md",
}


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow if p.name in SLOW else ()) for p in EXAMPLES], ids=name_of
)
def test_every_example_runs(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "UNETKIT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    namespace: dict[str, object] = {"__name__": "page"}
    for language, block in blocks(page.read_text(encoding="utf-8"), "console", "sh", "python"):
        if language == "python":
            execute(block, namespace)
        else:
            show(block, capsys, monkeypatch)


def test_the_set_up_commands_are_those_that_people_copy() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [line for line in SET_UP if f"\n{line}\n" not in page]
    assert SET_UP[1].split(" && ")[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "completion.md").read_text(encoding="utf-8")
    assert f"_UNETKIT_COMPLETE={shell}_source unetkit" in page
    monkeypatch.setenv("_UNETKIT_COMPLETE", f"{shell}_source")
    code, script = run("unetkit", capsys, monkeypatch)
    assert (code, f"_UNETKIT_COMPLETE={shell}_complete" in script) == (0, True)
    monkeypatch.setenv("_UNETKIT_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "unetkit build --fuse co")
    monkeypatch.setenv("COMP_CWORD", "co" if shell == "fish" else "3")
    code, found = run("unetkit", capsys, monkeypatch)
    assert (code, "concat" in found) == (0, True)


def test_the_architecture_names_every_module_of_the_package() -> None:
    table = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## Layers")[1].split("##")[0]
    named = re.findall(r"^\|[^|]*\| `(\w+)`\*? \|", table, re.MULTILINE)
    modules = {
        path.stem for path in (ROOT / "unetkit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(modules - {"__init__"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (page.parent / path).exists(), target
        assert not anchor or anchor in anchors(page if not path else page.parent / path), target


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_project_is_at_home_anywhere() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.split()
    assert "uv.lock" not in files
    places = "|".join(map(re.escape, {f"{ROOT}/", f"{Path.home()}/"} - {"//"}))
    foreign = re.compile(
        rf"{places}|(?<![\w.])/(?:home|Users)/[a-z]|(?:[i]ndex[-_ ]url|[U]V_INDEX|[P]IP_INDEX)\S* *[:=]? *\S*://",
        re.IGNORECASE,
    )
    for file in files:
        text = (ROOT / file).read_text(encoding="utf-8", errors="ignore") if (ROOT / file).is_file() else ""
        assert not foreign.search(text), file


#: The rows of the tables of what a plugin costs: a line, parameters, MACs in millions, activations in MiB.
_COST = re.compile(r"^\| `(--.+?)`.*? \| ([\d,]+) \| ([\d,]+) M \| ([\d.]+) MiB \|$", re.MULTILINE)
COSTS = {
    plugin: _COST.findall((ROOT / "plugins" / plugin / "README.md").read_text(encoding="utf-8"))
    for plugin in ("attention-gate", "block-attention", "content-upsampling")
}


@pytest.mark.slow
@pytest.mark.parametrize("plugin", COSTS)
def test_a_plugins_page_says_what_it_costs(plugin: str) -> None:
    assert len(COSTS[plugin]) >= 3
    for line, parameters, macs, mebibytes in COSTS[plugin]:
        trace = unetkit.trace(unetkit.build(unetkit.Plan.parse(line), device="meta"), 256)
        found = f"{trace.parameters:,}", f"{trace.macs / 1e6:,.0f}", f"{trace.activation_bytes / 2**20:.1f}"
        assert found == (parameters, macs, mebibytes), line
