"""Metrics that plugins add: one that is wrong costs one line, and the others work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.bench.conftest import run_cli
from tests.bench.example_runs import made_run
from unetkit.bench.builtin_metrics import BenchModel, memory, training, training_memory
from unetkit.bench.grid import Mode
from unetkit.bench.metrics import collect_metrics, describe_failure, to_number
from unetkit.bench.results import ResultsWriter, read_results
from unetkit.cli.bench import inherit_settings
from unetkit.errors import InputSizeError, PluginError, UnknownNameError
from unetkit.plan import Plan
from unetkit.plugins import PluginManager, default_parts, load_manager, load_parts

PLUGIN = '''
import unetkit

def layers(subject):
    """Layers of the network."""
    return len([*subject.model.modules()])

@unetkit.hookimpl
def unetkit_register(parts):
    parts.metrics.add("{name}", layers)
    {body}
'''
OURS = [metric.name for metric in load_parts(isolated=True).metrics if not metric.trained]


def manager_of(folder: Path, **bodies: str) -> PluginManager:
    """Plugins that add a metric of their own name each, and then what their body says."""
    files = [folder / f"{name}.py" for name in bodies]
    for path in files:
        path.write_text(PLUGIN.format(name=path.stem, body=bodies[path.stem]))
    return load_manager(files, isolated=True)


def test_a_plugins_metrics_stand_behind_ours(tmp_path: Path) -> None:
    host = manager_of(tmp_path, a="parts.metrics.add('pass', layers, timed=True, unit='B')", b="pass")
    metrics = collect_metrics(host)
    assert [metric.name for metric in metrics] == [*OURS, "a", "pass", "b"]
    assert [metric.owner for metric in metrics][-3:] == ["a", "a", "b"]
    infos = [metric.info for metric in metrics][-3:]
    assert [(info.unit, info.timed, info.better) for info in infos] == [
        ("", False, "less"),
        ("s", True, "less"),
        ("", False, "less"),
    ]
    assert {info.summary for info in infos} == {"Layers of the network"}
    assert [metric.name for metric in collect_metrics(host, ["b", "latency"])] == ["latency", "b"]
    with pytest.raises(UnknownNameError, match=r"^--metrics: .*'pas' .did you mean pass or "):
        collect_metrics(host, ["pas"])
    with pytest.raises(UnknownNameError, match=r"called 'pas' .* called 'layer'"):
        collect_metrics(host, ["pas", "a", "layer"])


def test_every_metric_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    host = manager_of(tmp_path, bad="parts.metrics.add('x', 'nowhere:x'); parts.metrics.add('y', 'elsewhere:y')")
    with pytest.raises(PluginError, match=r"'nowhere'.*'elsewhere'"):
        collect_metrics(host, ["x", "latency", "y"])


#: What the hook of a plugin called bad may do wrong, and what its one line says of it.
FAILING = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "ours": (
        "parts.metrics.add('latency', layers)",
        "metric 'latency' of bad is already registered by unetkit",
    ),
    "another's": (
        "parts.metrics.add('also', layers)",
        "metric 'also' of bad is already registered by also",
    ),
    "of-the-grid": (
        "parts.metrics.add('encoder', layers)",
        "'encoder' of bad has the name of a grid option",
    ),
    "no-name": (
        "parts.metrics.add('a b', layers)",
        "'a b' is not a name for the metric",
    ),
    "no-function": ("parts.metrics.add('three', 3)", "metric 'three' of bad is not a class or function"),
    "not-there": ("parts.metrics.add('x', 'nowhere:x')", "nowhere:x cannot be loaded: there is no module 'nowhere'"),
    "by-hand": ("parts.metrics.entries['x'] = layers", "register it with parts.metrics.add(name, factory)"),
    "keyword": ("parts.metrics.add('x', layers, units='J')", "unexpected keyword argument 'units'"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_plugin_whose_metrics_fail_costs_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body, reason = FAILING[case]
    host = manager_of(tmp_path, also="pass", bad=body, good="pass")
    lazily = case == "not-there"  # registered by name, so that only this metric is left out
    assert [metric.name for metric in collect_metrics(host)] == [*OURS, "also", *["bad"] * lazily, "good"]
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("unetkit: plugin bad failed in unetkit ")
    assert reason in err
    plugin = next(plugin for plugin in host.plugins if plugin.name == "bad")
    assert (plugin.loaded, "Traceback" in plugin.traceback) == (lazily, True)


def test_strict_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNETKIT_STRICT", "1")
    with pytest.raises(PluginError, match=r"^plugin bad failed .*: ZeroDivisionError"):
        manager_of(tmp_path, bad="1 / 0")


def test_a_metric_that_is_gone_does_not_lock_a_folder(tmp_path: Path) -> None:
    made = made_run(tmp_path)
    writer = ResultsWriter(tmp_path)
    writer.start(made.header, "", [])
    writer.append(made.rows[0])
    host = load_manager(isolated=True)
    values, _, absent = inherit_settings(tmp_path, {}, {}, host)
    assert [(metric.name, metric.owner) for metric in absent] == [("energy", "unetkit-energy")]
    assert values["metrics"] == tuple(metric.name for metric in made.header.metrics if metric.name != "energy")
    assert inherit_settings(tmp_path, {"metrics": ("energy",)}, {}, host)[2] == ()  # who asks for it is told
    found = collect_metrics(host, values["metrics"])
    header = replace(made.header, metrics=(*(metric.info for metric in found), *absent))
    writer.start(header, "again", [])
    writer.close()
    assert [one.command for one in read_results(tmp_path).commands] == ["", "again"]
    assert len({metric.name for metric in header.metrics}) == len(made.header.metrics)


def test_an_unknown_name_says_which_plugin_file_a_folder_used(tmp_path: Path) -> None:
    made = made_run(tmp_path)
    writer = ResultsWriter(tmp_path)
    writer.start(made.header, "", [])
    writer.append(replace(made.rows[0], command="unetkit --plugin /a/energies.py bench --encoder resnet18"))
    writer.close()
    result = run_cli("--encoder", "resnet18", "--metrics", "energy", "--out", str(tmp_path))
    assert "; this benchmark used the plugin energies; give it again by --plugin" in str(result.exception)


def test_an_error_of_a_plugins_metric_says_where_it_is(tmp_path: Path) -> None:
    [metric] = collect_metrics(manager_of(tmp_path, mine="pass"), ["mine"])
    for number, message, line in (
        (None, "AttributeError: ", 6),
        (torch.zeros(2), "it returns a Tensor; expected a", 4),
    ):
        with pytest.raises((AttributeError, PluginError)) as refused:
            to_number(number if line == 4 else metric.load()(number))
        said = describe_failure(metric, refused.value)
        assert said.startswith(message)
        assert said.endswith(f"({tmp_path}/mine.py:{line})")


def test_a_training_step_that_a_norm_cannot_take_is_refused_in_plain_words() -> None:
    plan = Plan.parse("--encoder resnet18 --size 32 --in-channels 1")
    step = (
        load_parts(isolated=True)
        .metrics.get("training")
        .load()(BenchModel(plan, 1, Mode(), torch.device("cpu"), load_parts(isolated=True)))
    )
    with pytest.raises(InputSizeError, match=r"batch norm .* --batch-size or --size$"):
        step()


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["onnxruntime", "openvino"])
def test_an_exported_network_computes_the_same_and_is_only_run(execution: str) -> None:
    plan, parts, cpu = Plan.parse("--encoder plain:widths=[4,8] --size 32"), default_parts(), torch.device("cpu")
    exported = BenchModel(plan, 2, Mode(execution), cpu, parts)
    logits = BenchModel(plan, 2, Mode(), cpu, parts).forward()
    assert torch.allclose(exported.forward(), logits, atol=1e-5)
    for measure in (training, memory, training_memory):
        with pytest.raises(InputSizeError, match="exported"):
            measure(exported)
    with pytest.raises(InputSizeError, match="--device cpu"):
        _ = BenchModel(plan, 1, Mode(execution), torch.device("meta"), parts).runnable
