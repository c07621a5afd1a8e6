"""The conformance kit: wrong parts fail the check meant and no other, right ones that look unusual pass."""

from __future__ import annotations

import re
import subprocess
import sys
from bdb import BdbQuit
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import unetkit.testing
from tests.testing.wrong_parts import RIGHT, WRONG, Gate, Patches, Pyramid, TwoOutputs
from tests.testing.wrong_run_parts import RIGHT_NAMES
from unetkit.errors import BuildError, OptionError, UnknownNameError
from unetkit.plan import PartSpec
from unetkit.plugins import load_parts
from unetkit.registry import KINDS
from unetkit.testing import (
    CHECKS,
    CheckResult,
    assert_conforms,
    check_part,
    check_plugin,
    collect_part_checks,
    collect_plugin_checks,
)
from unetkit.testing.checks import new_process
from unetkit.utils.formatting import Size


def failures(results: list[CheckResult]) -> dict[str, str]:
    assert all("\n" not in r.message for r in results)
    return {r.check: r.message for r in results if r.outcome == "failed"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "check", "message", "part"), WRONG, ids=[f"{kind} {part.__name__}" for kind, _, _, part in WRONG]
)
def test_a_wrong_part_fails_the_check_meant(kind: str, check: str, message: str, part: Any) -> None:
    found = failures(check_part(kind, part))
    assert list(found) == [check]
    assert re.search(message, found[check]), found[check]


def test_every_check_of_a_part_has_a_wrong_part() -> None:
    assert {check for _, check, _, _ in WRONG} == {check.name for check in CHECKS if check.kinds != ("plugin",)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RIGHT)
def test_what_the_wrong_parts_are_made_from_is_right(kind: str) -> None:
    found = check_part(kind, RIGHT[kind])
    assert failures(found) == {}
    assert [r.check for r in found if r.outcome == "skipped"] == ["options"]


@pytest.mark.slow
def test_a_head_of_two_outputs_is_right() -> None:
    found = {r.check: r.outcome for r in check_part("head", TwoOutputs)}
    assert {check for check, outcome in found.items() if outcome != "passed"} == {"options"}
    assert found["outputs"] == "passed"


@pytest.mark.parametrize("kind", RIGHT_NAMES)
def test_what_runs_are_made_of_is_right(kind: str) -> None:
    found = check_part(kind, RIGHT_NAMES[kind])
    assert {r.outcome for r in found} == {"passed"}
    assert len(found) == 5


def test_a_dataset_that_needs_a_folder_is_not_checked_without_one() -> None:
    (skipped,) = (r for r in check_part("dataset", "voc") if r.outcome != "passed")
    assert (skipped.check, skipped.outcome) == ("samples", "skipped")
    assert skipped.message.startswith("option 'root' has no default")


class Norms(nn.Sequential):
    """Batch norm and dropout, which act otherwise in training."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True), nn.Dropout2d())


class Alone(nn.Module):
    """Re-weights channels, and so keeps them; it has instance norm, which takes no single pixel.

    Args:
        mode: of the pool, of which one choice is refused.
    """

    def __init__(self, in_channels: int, out_channels: int, *, mode: Literal["mean", "max"] = "mean") -> None:
        super().__init__()
        if in_channels != out_channels:
            raise BuildError(f"cannot join {in_channels} to {out_channels} channels")
        if mode == "max":
            raise OptionError("mode=max: is not there yet")
        self.norm = nn.InstanceNorm2d(in_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x) * x.mean((2, 3), keepdim=True).sigmoid()
        return out


class Valid(nn.Conv2d):
    """An unpadded convolution."""

    valid = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)


class Whole(nn.ConvTranspose2d):
    """Goes by its stride, whatever is asked for; refuses what is no whole number."""

    def __init__(self, channels: int, scale: float) -> None:
        if scale != int(scale):
            raise BuildError(f"cannot upsample by {scale:g}")
        super().__init__(channels, channels, int(scale), stride=int(scale))

    def forward(self, x: Tensor, size: Size) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Stem(Pyramid):
    """Frozen at the start, and takes multiples of 8 from 16 up alone."""

    min_size, multiple = 16, 8

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.levels[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        assert x.shape[-1] % 8 == x.shape[-2] % 8 == 0
        assert min(x.shape[-2:]) >= 16
        return tuple(super().forward(x))


class Fixed(Pyramid):
    """Takes one size alone."""

    size = 24, 32

    def forward(self, x: Tensor) -> Any:
        assert tuple(x.shape[-2:]) == self.size
        return super().forward(x)


class Ignores(Gate):
    """A fusion without the skip, as an ablation has it."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__(x_channels, skip_channels)
        del self.skip

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.x(x)
        return out


def made_by_a_function(x_channels: int, skip_channels: int) -> nn.Module:
    """A factory need not be a class."""
    return Gate(x_channels, skip_channels)


class Starts(nn.Module):
    """Begins at nothing: its scale is zero, and so are all gradients but its own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * self.scale
        return out


class Frozen(Patches):
    """Does not train its contracting path, and so sends no gradient to its input."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.down.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            y = self.down(x)
        return self.up(y)


class Quiet(Patches):
    """Has a norm that undoes large inputs, and small weights, as transformers do; its first logits are all below 1."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.norm = nn.GroupNorm(1, 8)
        nn.init.trunc_normal_(self.up.weight, std=0.02)

    def forward(self, x: Tensor) -> Any:
        return self.up(self.norm(self.down(x)))


class Pools(Patches):
    """Batch norm after a pool of the whole map, which takes no image alone in training; as in DeepLab."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Any:
        y = self.down(x)
        return self.up(y + self.pooled(y))


class OneSize(Patches):
    """Takes one size alone."""

    size = 24, 32

    def forward(self, x: Tensor) -> Any:
        assert tuple(x.shape[-2:]) == self.size
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("block", Norms),
        ("block", Alone),
        ("block", Valid),
        ("block", Starts),
        ("up", Whole),
        ("encoders", Stem),
        ("encoder", Fixed),
        ("fuse", Ignores),
        ("fusion", made_by_a_function),
        ("model", Frozen),
        ("model", Quiet),
        ("models", Pools),
        ("model", OneSize),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_right_part_that_looks_unusual_passes(kind: str, part: Any) -> None:
    results = check_part(kind, part)
    assert failures(results) == {}
    assert {r.check for r in results if r.outcome == "skipped"} <= {"options", "export"}


def test_skipped_says_why() -> None:
    found = {r.check: r for r in check_part("encoder", Fixed)}
    assert found["export"] == CheckResult("encoder Fixed", "export", "skipped", "it accepts only 24x32")
    assert found["options"].message == "it has no option with a fixed set of values"
    after = {r.check: r for r in check_part("block", WRONG[2][3])}
    assert after["construction"] == CheckResult(
        "block Positional", "construction", "skipped", "it depends on signature, which did not pass"
    )
    assert str(after["documentation"]) == "block Positional: documentation passed"


@pytest.mark.slow
def test_a_part_with_options_is_checked_as_its_line_says() -> None:
    found = check_part("block", "double:norm=group,padding=0")
    assert failures(found) == {}
    assert {r.part for r in found} == {"block double:norm=group,padding=0"}
    assert failures(check_part("block", PartSpec.of(WRONG[4][3], {"rate": 0.5}))) == {}


def test_names_that_are_not_there() -> None:
    with pytest.raises(UnknownNameError, match=r"no fusion is called 'addd' .did you mean add"):
        check_part("fusion", "addd")
    with pytest.raises(OptionError, match="no kind is called 'lossy'"):
        check_part("lossy", "add")
    with pytest.raises(OptionError, match=r"double\+double: "):
        check_part("block", "double+double")
    with pytest.raises(OptionError, match=r"--fuse add:wide=1: .*'wide'"):
        check_part("fusion", "add:wide=1")


class Raises(Norms):
    """Has a mistake in a function that it calls."""

    def forward(self, x: Tensor) -> Tensor:
        return divide(x)


def divide(x: Tensor) -> Tensor:
    return x / (1 // 0)


def test_a_failure_has_a_place_in_the_part_and_its_own_frames() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    found = {r.check: r for r in check_part("block", Raises) if r.outcome == "failed"}
    assert list(found) == ["forward"]
    line = lines.index("    return x / (1 // 0)") + 1
    assert found["forward"].place.endswith(f"test_checks.py:{line}")
    assert "ZeroDivisionError: " in str(found["forward"])
    assert str(found["forward"]).endswith(f" ({found['forward'].place})")
    frames = re.findall(r'File "(.*)", line \d+, in (\w+)', found["forward"].traceback)
    assert frames == [(__file__, "forward"), (__file__, "divide")]
    assert found["forward"].traceback.splitlines()[-1].startswith("ZeroDivisionError: ")
    no_exception = {r.check: r for r in check_part("fusion", WRONG[0][3]) if r.outcome == "failed"}
    (failed,) = no_exception.values()
    assert re.search(r"wrong_parts\.py:\d+$", failed.place)
    assert failed.traceback == ""


class Quits(Norms):
    """Is left in the debugger."""

    def forward(self, x: Tensor) -> Tensor:
        raise BdbQuit


@pytest.mark.parametrize("kind", ["block", "head"])
def test_leaving_the_debugger_ends_the_check(kind: str) -> None:
    with pytest.raises(BdbQuit):
        check_part(kind, Quits)
    with pytest.raises(BdbQuit):
        unetkit.build("plain:widths=[4,8]", block=Quits, size=32)


@pytest.mark.slow
def test_assert_conforms() -> None:
    assert_conforms("fusion", Gate)
    parts = {part.__name__: part for _, _, _, part in WRONG}
    with pytest.raises(AssertionError, match=r"^fusion Silent: documentation: "):
        assert_conforms("fusion", parts["Silent"])


def test_the_kit_leaves_the_random_state_as_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check_part("block", Norms)
    assert torch.equal(torch.rand(3), expected)


def test_checks_have_names_and_titles_of_their_own() -> None:
    assert len({check.name for check in CHECKS}) == len({check.title for check in CHECKS}) == len(CHECKS)
    order = [check.name for check in CHECKS]
    for check in CHECKS:
        assert all(order.index(need) < order.index(check.name) for need in check.needs)
    for kind in KINDS:
        right = {**RIGHT, **RIGHT_NAMES, "recipe": "unet-2015"}[kind.title]
        job = collect_part_checks(kind.field, right)[0]
        assert (job.check, job.title) == (CHECKS[0].name, CHECKS[0].title)


# Plugins.

HEAD = "import unetkit\nfrom unetkit import hookimpl\n\n"
PARTS = '''
import torch
from torch import nn

class Sum(nn.Module):
    """The sum of two maps of as many channels."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = skip_channels
        self.x = nn.Conv2d(x_channels, skip_channels, 1)

    def forward(self, x, skip):
        return self.x(x) + skip
'''
REGISTER = "@hookimpl\ndef unetkit_register(parts):\n    parts.fusions.add('sum', '{0}')\n"
WRAP = """
@hookimpl
def unetkit_wrap_model(plan):
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            out = self.model(x)
            return {0}

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("model"), name)

    return Wrapped
"""
COMMAND = "\n@hookimpl\ndef unetkit_register_commands(cli):\n    {0}\n"
METRIC = "\n@hookimpl\ndef unetkit_register(parts):\n    {0}\n\ndef measured(subject):\n    {1}\n"
METRICS = """
    'Measures.'
    return subject.forward

def layers(subject):
    'Layers.'
    return len([*subject.model.modules()])
"""
BOTH_METRICS = "parts.metrics.add('pass', measured, timed=True); parts.metrics.add('layers', layers)"
GOOD_COMMAND = "@cli.command()\n    def greet():\n        'Greets.'"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delenv("UNETKIT_STRICT", raising=False)

    def file(name: str, source: str) -> Path:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return path

    return file


def of_plugin(target: str | Path) -> dict[str, CheckResult]:
    return {r.check: r for r in check_plugin(target) if r.part == "plugin"}


def in_new_process(target: str | Path) -> CheckResult:
    """The result of this check alone."""
    (pending,) = (pending for pending in collect_plugin_checks(target) if pending.check == "new process")
    return pending.run()


@pytest.mark.slow
def test_a_right_plugin_passes(write: Write) -> None:
    write("right_parts.py", PARTS)
    both = WRAP.format("(out, out) if self.training else out") + COMMAND.format(GOOD_COMMAND)
    register = f"parts.fusions.add('sum', 'right_parts:Sum'); {BOTH_METRICS}"
    path = write("right_plugin.py", HEAD + METRIC.format(register, METRICS) + both)
    results = check_plugin(path)
    assert failures(results) == {}
    assert {r.part for r in results} == {"plugin", "fusion sum", "metric pass", "metric layers"}
    assert [r.check for r in results if r.outcome == "skipped"] == ["options"]
    assert failures(check_plugin("right_plugin")) == {}, "by the name of its module"


CONSTANTS = (
    HEAD
    + '''
from functools import cache

import torch
from torch import nn

TWO = torch.tensor([1.0, 1.0])

@cache
def three():
    return torch.tensor([1.0, 1.0, 1.0])

class Scaled(nn.Module):
    """The map, six times."""
    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = x_channels
        self.weight = nn.Parameter(torch.ones(x_channels, 1, 1))
        three()

    def forward(self, x, skip):
        return x * self.weight * TWO.to(x).sum() * three().to(x).sum()

class Unpicklable(Scaled):
    """One that no other process can have."""
    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__(x_channels, skip_channels)
        self.same = lambda x: x

@hookimpl
def unetkit_register(parts):
    parts.fusions.add("{0}", {0})
'''
)


@pytest.mark.slow
def test_constants_outlive_a_build_on_meta_and_parts_are_pickled(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("constants.py", CONSTANTS.replace("{0}", "Scaled"))
    parts = load_parts([path])
    fuse: dict[str, Any] = {"fuse": "Scaled", "parts": parts}
    unetkit.trace(unetkit.build("plain:widths=[4,8]", **fuse, device="meta"), (16, 16))
    assert unetkit.build("plain:widths=[4,8]", **fuse).eval()(torch.ones(1, 3, 16, 16)).isfinite().all()
    assert in_new_process(path).outcome == "passed"
    with monkeypatch.context() as limited:
        limited.setattr(new_process, "_TIMEOUT", 0.001)
        assert "longer than 0.001 s" in in_new_process(path).message
    found = in_new_process(write("unpicklable.py", CONSTANTS.replace("{0}", "Unpicklable")))
    assert found.outcome == "failed"
    assert "fusion Unpicklable: it cannot be pickled" in found.message


MODELS = '''
from torch import nn

class Patches(nn.Sequential):
    """Patches of four pixels, and back."""

    multiple = 4

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(nn.Conv2d(in_channels, 8, 4, stride=4), nn.ConvTranspose2d(8, classes, 4, stride=4))

def of_a_library(in_channels: int, classes: int, name: str, **options: object) -> nn.Module:
    """A model of another library."""
    if wrong := options.keys() - {"bias"}:
        raise TypeError(f"{name} has no {min(wrong)}")
    return nn.Conv2d(in_channels, classes, 1, **options)

def swallows(in_channels: int, classes: int, name: str, **options: object) -> nn.Module:
    """A model of another library, whose options are taken in silence."""
    return nn.Conv2d(in_channels, classes, 1)

def names() -> list[str]:
    return ["flat"]
'''
REGISTER_MODELS = """@hookimpl
def unetkit_register(parts):
    parts.models.add('patches', 'model_parts:Patches')
    parts.models.add_library('zoo', 'model_parts:names', 'model_parts:of_a_library')
    parts.models.add_library('old', 'model_parts:names', 'model_parts:swallows')
"""


@pytest.mark.slow
def test_a_plugin_with_whole_models(write: Write) -> None:
    write("model_parts.py", MODELS)
    path = write("model_plugin.py", HEAD + REGISTER_MODELS + WRAP.format("out"))
    results = check_plugin(path)
    assert failures(results) == {}
    assert {r.part for r in results} == {"plugin", "model patches"}
    assert {r.check for r in results if r.part == "plugin"} >= {"libraries", "wrapping"}
    parts = load_parts([path], isolated=True)
    assert failures(check_part("model", "zoo/flat:bias=false", parts=parts)) == {}
    found = failures(check_part("model", "old/flat", parts=parts))
    assert list(found) == ["unknown option"]
    assert "no_such_option=1" in found["unknown option"]


def test_files_of_the_current_folder_do_not_disturb_the_check_of_imports(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("fine.py", HEAD + COMMAND.format(GOOD_COMMAND))
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("enum", "random", "logging", "json", "re"):
        (folder / f"{name}.py").write_text("raise ImportError(__file__)\n")
    monkeypatch.chdir(folder)
    assert of_plugin(path)["imports"].outcome == "passed"


def measuring(body: str, more: str = "") -> str:
    """A plugin with one metric, whose function has this body."""
    return HEAD + METRIC.format(f"parts.metrics.add('mine', measured{more})", body)


#: What a plugin may do wrong, the check that fails, and what it says.
BAD_PLUGINS = {
    "broken": ("1 / 0\n", "loading", "ZeroDivisionError: division by zero"),
    "empty": (HEAD + "def unetkit_register(parts): ...\n", "loading", "unetkit_register is not marked"),
    "nothing": (
        HEAD + "@hookimpl\ndef unetkit_register(parts): ...\n",
        "loading",
        "it adds nothing; register a part, ",
    ),
    "heavy": (HEAD + "import torch\n" + COMMAND.format(GOOD_COMMAND), "imports", "imports torch.* when it registers"),
    "mute": (
        HEAD + COMMAND.format("@cli.command()\n    def greet(): ..."),
        "commands",
        "command 'greet' has no help",
    ),
    "bare-option": (
        HEAD
        + "import click\n"
        + COMMAND.format("@cli.command()\n    @click.option('--loud')\n    def greet(loud):\n        'Greets.'"),
        "commands",
        "command 'greet': --loud has no help",
    ),
    "taken": (
        HEAD + COMMAND.format("@cli.command('build')\n    def greet():\n        'Greets.'"),
        "commands",
        "command 'build' is a command of unetkit",
    ),
    "idle": (HEAD + COMMAND.format("pass"), "commands", "adds no command"),
    "fails": (HEAD + COMMAND.format("1 / 0"), "commands", "unetkit_register_commands fails with ZeroDivisionError"),
    "pair": (
        HEAD + WRAP.format("out, out"),
        "wrapping",
        r"`--encoder 'plain:widths=\[4,8,16\]'`: .* tuple",
    ),
    "cuts": (
        HEAD + WRAP.format("out[..., 1:]"),
        "wrapping",
        "2x3x21x27 gives 2x2x21x26; ",
    ),
    "stops": (
        HEAD + WRAP.format("out.detach()"),
        "wrapping",
        "2 of 21x27 in training fails with RuntimeError",
    ),
    "hides": (
        HEAD + WRAP.format("out").replace("__getattr__", "get"),
        "wrapping",
        "lacks encoder, stages, head, resolved_plan, plugins; ",
    ),
    "wraps-not": (
        HEAD + "@hookimpl\ndef unetkit_wrap_model(plan):\n    return lambda model: None\n",
        "wrapping",
        "unetkit_wrap_model fails: .* NoneType of a model",
    ),
    "source": (
        HEAD
        + "@hookimpl\ndef unetkit_register(parts):\n    parts.encoders.add_library('zoo', 'builtins:list', 'zoo:m')\n",
        "libraries",
        r"library zoo: builtins:list lists \[\]",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_PLUGINS)
def test_a_wrong_plugin_fails_the_check_meant(write: Write, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, check, message = BAD_PLUGINS[case]
    name = f"bad_{case.replace('-', '_')}.py"
    path = write(name, source)
    found = of_plugin(path.stem if check == "imports" else path)  # a file only slows who names it
    assert [r.check for r in found.values() if r.outcome == "failed"] == [check]
    assert re.search(message, found[check].message), found[check].message
    capsys.readouterr()


#: What a metric of a plugin may do wrong, with how it is registered, the check that fails, and what it says.
BAD_METRICS = {
    "undescribed": ("return 1", "", "documentation", "has no docstring"),
    "not-finite": ("'Measures.'; return float('inf')", "", "measurement", "it returns inf"),
    "not-timed": (
        "'Measures.'; return subject.forward()",
        ", timed=True",
        "measurement",
        "it returns a Tensor; ",
    ),
    "once": (
        "'Measures.'; return iter([1]).__next__",
        ", timed=True",
        "measurement",
        "it fails with StopIteration: no message",
    ),
}


@pytest.mark.parametrize("case", BAD_METRICS)
def test_a_wrong_metric_of_a_plugin_fails_the_check_meant(write: Write, case: str) -> None:
    body, more, check, message = BAD_METRICS[case]
    results = check_plugin(write(f"bad_{case.replace('-', '_')}.py", measuring(body, more)))
    ((failed, said),) = failures(results).items()
    assert failed == check
    assert message in said


def test_a_metric_of_trained_networks_is_checked_with_scores(write: Write) -> None:
    body = "'Correct share of pixels.'; return subject.evaluation.micro().accuracy"
    assert failures(check_plugin(write("accurate.py", measuring(body, ", trained=True, better='more'")))) == {}
    wrong = write("inaccurate.py", measuring("'Measures.'; return [1]", ", trained=True"))
    assert [*failures(check_plugin(wrong))] == ["measurement"]


def test_a_metric_that_refuses_a_small_network_is_not_checked(write: Write) -> None:
    path = write("gpu_plugin.py", measuring("'Measures.'; raise unetkit.UnetkitError('it needs a GPU')"))
    (found,) = (r for r in check_plugin(path) if r.outcome != "passed")
    assert (found.check, found.outcome) == ("measurement", "skipped")
    assert found.message.endswith(": it needs a GPU")


def test_source_text_and_import_that_differ_are_told(write: Write) -> None:
    other = '\nclass Other(Sum):\n    """Something else."""\n\nSum = Other\n'
    write("moved_parts.py", PARTS + other)
    path = write("moved_plugin.py", HEAD + REGISTER.format("moved_parts:Sum"))
    found = failures(check_part("fusion", "sum", parts=load_parts([path], isolated=True)))
    assert list(found) == ["option types"]
    assert "the source code declares the options (), " in str(found)


def test_a_part_that_cannot_be_imported_is_told_once(write: Write) -> None:
    path = write("gone_plugin.py", HEAD + REGISTER.format("no_such_parts:Sum"))
    found = [r for r in check_plugin(path) if r.outcome == "failed" and r.part != "plugin"]
    assert {r.check for r in found} <= {"signature", "option types", "documentation"}
    assert found[0].message.startswith("no_such_parts:Sum cannot be loaded: ")


def test_the_package_is_light() -> None:
    code = (
        "import sys, unetkit.testing, unetkit.testing.catalog, unetkit.testing.catalog, unetkit.testing.runner\n"
        "assert unetkit.testing.check_part and set(unetkit.testing.__all__) <= set(dir(unetkit.testing))\n"
        "print([m for m in ('torch', 'pytest', 'timm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = unetkit.testing.nothing


SUITE = """
import pytest

@pytest.mark.unetkit("mine.py")
def test_conforms(unetkit_check):
    unetkit_check()

def test_unmarked(unetkit_check): ...
"""


def test_the_pytest_plugin(write: Write, tmp_path: Path) -> None:
    write("mine_parts.py", PARTS.replace("self.x(x) + skip", "self.x(x) + skip.relu_()"))
    write("mine.py", HEAD + REGISTER.format("mine_parts:Sum"))
    suite = write("test_mine.py", SUITE)
    written = StringIO()
    # Plugins that would act on this process, or on its output, are those of the run around this one.
    others = [f"-pno:{name}" for name in ("cacheprovider", "faulthandler", "hypothesispytest", "logging", "xdist")]
    with redirect_stdout(written):
        code = pytest.main(["-rA", "-q", "--capture=no", "--strict-markers", *others, str(suite)])
    out = written.getvalue()
    assert code == 1, out
    assert re.search(r"PASSED \S*test_mine\.py::test_conforms\[plugin: imports\]", out), out
    assert re.search(r"PASSED \S*test_mine\.py::test_conforms\[fusion sum: gradients\]", out), out
    assert re.search(r"changes the skip in place, .*\(expected: ", out), out
    assert re.search(r"FAILED \S+test_conforms\[fusion sum: inputs\]", out)
    assert "mark the test with @pytest.mark.unetkit(target)" in out
    assert "1 failed" in out
    assert "1 error" in out
    assert "Traceback" not in out


def test_the_callers_own_mode_does_not_matter() -> None:
    with torch.no_grad():
        assert_conforms("fusion", "add")
    with torch.inference_mode():
        assert_conforms("head", "conv")
