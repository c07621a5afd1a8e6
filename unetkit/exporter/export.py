"""Export a network to a file, check the file by its own engine, and verify such a file later and elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from unetkit.errors import ExportError, FileError, OptionError, UnetkitError
from unetkit.exporter.capture import CapturedNetwork, capture
from unetkit.exporter.check import (
    CHECK_KEY,
    Comparison,
    StoredCheck,
    compare_outputs,
    compare_stored,
    make_stored_check,
    to_dict,
)
from unetkit.exporter.formats import ExportFormat, Onnx
from unetkit.exporter.metadata import describe_network, make_metadata
from unetkit.exporter.quality import PrecisionCost, measure_cost, open_engines
from unetkit.exporter.quantize import quantize, read_calibration_tiles
from unetkit.plan import PartSpec, Plan
from unetkit.plugins import default_parts, load_parts
from unetkit.predict.model_info import PREFIX, ModelInfo
from unetkit.predict.torch_engine import bytes_per_pixel, describe_run
from unetkit.registry import BUILTIN, Parts
from unetkit.resolve import create
from unetkit.serialization import load
from unetkit.summary.forward_hooks import find_network
from unetkit.train.checkpoint import HEADER, TrainRun, read_run
from unetkit.utils.file_digest import DIGEST_KEY, PLACEHOLDER, insert_digest, is_intact
from unetkit.utils.files import check_requested_path, describe_write_errors
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.isolation import wrap_errors

#: The largest difference that is allowed, as a fraction of the range of the outputs, in float32 and with `half`.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
#: The same of an int8 file from its own outputs when it was exported, for `verify`: other kernels round otherwise.
INT8_TOLERANCE = 5e-2


@dataclass(frozen=True)
class ExportReport:
    """A file that was exported and checked.

    Attributes:
        path: the file.
        bytes: its size, with that of files beside it.
        format: the name of the format.
        output: "logits" or "probabilities".
        comparisons: the comparison of each batch.
        tolerance: the largest difference that was allowed; None for any.
        sizes: which sizes the file takes, in words.
        is_sealed: whether the file contains a digest of its bytes.
        precision: "float32", "float16" or "int8".
        calibration: which images an int8 file was calibrated on; "" otherwise.
        cost: what lower precision costs and gains, if that was measured.
    """

    path: Path
    bytes: int
    format: str
    output: str
    comparisons: tuple[Comparison, ...]
    tolerance: float | None
    sizes: str
    is_sealed: bool
    precision: str = "float32"
    calibration: str = ""
    cost: PrecisionCost | None = None

    @property
    def difference(self) -> float:
        """The largest difference of all batches, as a fraction of the range of the outputs."""
        return max(one.difference for one in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        values = vars(self) | {"path": str(self.path), "comparisons": [*map(to_dict, self.comparisons)]}
        return values | {"difference": self.difference, "cost": self.cost and self.cost.to_dict()}


@dataclass(frozen=True)
class VerifyReport:
    """The verification of a file.

    Attributes:
        path: the file.
        plan: the line of its network.
        is_intact: whether its bytes are those that were written; None if it has no digest.
        difference: how much its outputs differ here, as a fraction of their range.
        tolerance: the largest difference that is allowed.
    """

    path: Path
    plan: str
    is_intact: bool | None
    difference: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return vars(self) | {"path": str(self.path)}


def export(
    model: nn.Module | TrainRun | str | Path,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    probabilities: bool = False,
    half: bool = False,
    int8: bool = False,
    calibrate: str | Path | None = None,
    fixed_size: int | Size | None = None,
    tolerance: float | None = None,
    weights: str = "best",
    parts: Parts | None = None,
    on_notice: Callable[[str], object] = lambda line: None,
) -> ExportReport:
    """Export a network to a file of another program, and check the file by its own engine.

    The file takes float32 images (B, C, H, W), normalized as in training, in batches of any number and of any size that
    the network takes, and returns logits (B, K, H, W). It is kept only if its outputs agree with the network's.

    Args:
        model: a network, a training run, the folder of a run, or a file that `unetkit.save` wrote.
        path: the file; its folder is created if necessary.
        format: the format with its options, such as "onnx:opset=18"; None for the one that the file's ending means.
        probabilities: whether the file returns probabilities instead of logits.
        half: whether weights and computation are float16; images and outputs remain float32.
        int8: whether weights and computation are of 8 bits, for ONNX only.
        calibrate: a folder of images, a data folder or the name of a data set, on which ranges for `int8` are found;
            None for the training images of the run.
        fixed_size: the only height and width of images that the file takes; None for all that the network takes.
        tolerance: the largest difference as a fraction of the range of the outputs; None for 1e-4, 2e-2 with
            `half`, and any with `int8`.
        weights: of a run, "best", or "last" for those of the last epoch.
        parts: the registered parts; None for all that are installed.
        on_notice: called with each line that a user should see.

    With `int8`, and with `half` for a run, the report says what that costs: the mean IoU on the validation images, the
    size, and the time of a pass, beside those in float32.

    Raises:
        ExportError: The network cannot be exported, or what was written does not compute the same.
        FileError: The run or the file cannot be read, or the file cannot be written.
        OptionError: An option has a wrong value.
    """
    path = Path(path)
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise OptionError(f"--tolerance {tolerance:g}: must be above 0")
    precision = check_precision(half, int8, calibrate)
    if not int8:
        tolerance = tolerance or (HALF_TOLERANCE if half else TOLERANCE)
    run = _open_run(model)
    if parts is None:
        parts = load_parts(run.plugins) if run and run.plugins else default_parts()
    name, writer = find_format(parts, path, format)
    if int8 and not isinstance(writer, Onnx):
        raise OptionError(f"--int8: writes ONNX only, which OpenVINO runs, too; give {path.with_suffix('.onnx')}")
    check_requested_path(path, "--out")
    if run is not None:
        network = run.network("cpu", parts, weights)
        info = describe_run(run, network)
    else:
        network = cast(Any, model) if isinstance(model, nn.Module) else load(cast(Path, model), parts=parts)
        info = describe_network(network, str(model) if isinstance(model, str | Path) else "the model")
    activation = (
        info.target.activation(int(find_network(network).resolved_plan.classes)) if probabilities else "identity"
    )
    size_only = Plan.of(size=fixed_size).size
    captured = capture(network, activation=activation, half=half, size=size_only)
    bytes_each = bytes_per_pixel(network, captured.size)
    info = replace(info, tiles=captured.tiles, output=captured.output, bytes_per_pixel=bytes_each)
    metadata = make_metadata(info, captured, find_network(network), run, weights, precision)
    stored = None if int8 else make_stored_check(captured, cast(float, tolerance))
    write: Callable[[Path, Mapping[str, str]], object] = partial(_write, name, writer, captured)
    calibration, cost = "", None
    with _write_folder(path) as temporary, tempfile.TemporaryDirectory() as scratch:
        if int8 or (half and run is not None):
            float32, lower = Path(scratch, f"float32{writer.suffix}"), Path(scratch, f"lower{writer.suffix}")
            if int8:
                calibration, tiles = read_calibration_tiles(calibrate, run, info, parts)
                on_notice(f"calibrating on {calibration}")
                write(float32, metadata)
                quantization = quantize(float32, lower, tiles, metadata)
                metadata |= {f"{PREFIX}quantization": json.dumps({**quantization, "calibrated_on": calibration})}
                stored = make_stored_check(captured, INT8_TOLERANCE, writer.open(lower))
                write = partial(_store, name, lower)
            else:
                _write(name, writer, capture(network, activation=activation, size=size_only), float32, metadata)
                write(lower, metadata)
                if type(writer) is Onnx:  # a subclass may write in its own way
                    write = partial(_store, name, lower)
            cost = measure_cost(
                cast(Any, find_network(network)),
                info,
                open_engines(float32, name, writer, info),
                open_engines(lower, name, writer, info),
                (_count_bytes(writer, lower), _count_bytes(writer, float32)),
                run,
                parts,
                captured.size,
                on_notice,
            )
            metadata |= {f"{PREFIX}cost": json.dumps(cost.to_dict())}
        metadata |= {CHECK_KEY: cast(StoredCheck, stored).to_text(), DIGEST_KEY: PLACEHOLDER}
        write(temporary, metadata)
        is_sealed = insert_digest(_files(writer, temporary))
        found = _compare(name, writer, captured, temporary)
        worst = max(found, key=lambda one: one.difference)
        if tolerance is not None and not worst.difference <= tolerance:
            raise ExportError(
                f"{path} was not kept: for {worst.what}, {'x'.join(map(str, worst.shape))}, its outputs differ by "
                f"{worst.difference:.1e} of their range from the network's, and at most {tolerance:g} is allowed "
                f"(--tolerance); pixels decided otherwise: {worst.changed:,.0f} per million"
            )
        size = _count_bytes(writer, temporary)
    return ExportReport(
        path,
        size,
        name,
        captured.output,
        tuple(found),
        tolerance,
        _describe_sizes(captured),
        is_sealed,
        precision,
        calibration,
        cost,
    )


def check_precision(half: bool, int8: bool, calibrate: object) -> str:
    """Return the precision that options ask for. Raises OptionError if they contradict each other."""
    if half and int8:
        raise OptionError("--half and --int8 exclude each other; give one of them")
    if calibrate is not None and not int8:
        raise OptionError("--calibrate: applies only to --int8; add it, or leave --calibrate out")
    return "int8" if int8 else "float16" if half else "float32"


def _write(name: str, writer: ExportFormat, captured: CapturedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    with wrap_errors(f"format {name} cannot write {path.name}"):
        writer.write(captured, path, metadata)


def _compare(name: str, writer: ExportFormat, captured: CapturedNetwork, path: Path) -> list[Comparison]:
    """Run a file by its own engine, and compare it with the network."""
    try:
        with wrap_errors(f"format {name} cannot open what it wrote"):
            runner = writer.open(path)
        return compare_outputs(captured, runner)
    except UnetkitError as error:
        if not captured.is_dynamic:
            raise
        raise type(error)(f"{error}; --fixed-size 256 exports for one size, which may work") from error


def _store(name: str, source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Copy an ONNX file with other metadata."""
    import onnx

    with wrap_errors(f"format {name} cannot write {path.name}"):
        model = onnx.load(source)
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.save(model, path)


def _count_bytes(writer: ExportFormat, path: Path) -> int:
    return sum(file.stat().st_size for file in _files(writer, path))


def verify(path: str | Path, *, format: str | None = None, parts: Parts | None = None) -> VerifyReport:  # noqa: A002
    """Verify that a file that `export` wrote is intact, and that its engine computes here what the network did.

    Args:
        path: the file.
        format: the format; None for the one that the file's ending means.
        parts: the registered parts; None for all that are installed.

    Raises:
        ExportError: The file was changed, or its outputs differ.
        FileError: The file cannot be read, or was not exported by unetkit.
    """
    path = Path(path)
    name, reader = find_format(parts or default_parts(), path, format, "--verify")
    if not path.is_file():
        raise FileError(f"--verify {path}: there is no such file; give a file that `unetkit export` wrote")
    if absent := [file for file in _files(reader, path) if not file.is_file()]:
        raise FileError(f"{path} needs {absent[0].name} beside it, which is not there; copy both")
    if not path.stat().st_size:
        raise FileError(f"--verify {path}: the file is empty; copy it again, or export the network again")
    changed = f"{path} was changed after it was exported; copy it again, or export the network again"
    intact = is_intact(_files(reader, path))
    if intact is False:  # nothing of it is opened, since a program may run code
        raise ExportError(changed)
    with wrap_errors(f"format {name} cannot read {path}"):
        metadata = reader.read_metadata(path)
    if CHECK_KEY not in metadata:
        raise FileError(
            f"{path} was not exported by unetkit: its metadata do not have {CHECK_KEY}, so there is nothing to compare "
            "with; export the network with `unetkit export`"
        )
    if intact is None and metadata.get(DIGEST_KEY) != PLACEHOLDER:  # which only formats without a digest leave
        raise ExportError(changed)
    try:
        stored = StoredCheck.from_text(metadata[CHECK_KEY])
    except (ValueError, TypeError, KeyError) as error:
        raise FileError(f"{path}: {CHECK_KEY} in its metadata is damaged ({error}); export it again") from error
    info = ModelInfo.from_metadata(metadata, str(path))
    with wrap_errors(f"format {name} cannot open {path}"):
        runner = reader.open(path)
    difference, mistake = compare_stored(stored, runner)
    if mistake:
        raise ExportError(f"{path}: {mistake}")
    return VerifyReport(path, info.plan, intact, difference, stored.tolerance)


def find_format(parts: Parts, path: Path, text: str | None, option: str = "--out") -> tuple[str, ExportFormat]:
    """Return the name of a format, and the format, by its name with options, or by the ending of a file.

    Raises:
        OptionError: No format has this ending, or an option does not exist.
        UnknownNameError: No format has this name.
    """
    if path.is_dir():
        raise OptionError(f"{option} {path}: is a folder; give a file, such as {path / 'model.onnx'}")
    if text is not None:
        spec = PartSpec.parse(text)
        writer = cast(ExportFormat, create("format", spec, parts))
        if path.suffix.lower() != writer.suffix:
            rule = f"the format {spec.name} writes files that end in {writer.suffix}"
            raise OptionError(f"{option} {path}: {rule}; give {path.with_suffix(writer.suffix)}")
        return spec.name, writer
    endings: dict[str, tuple[str, ExportFormat]] = {}
    for entry in parts.formats.find():
        try:
            writer = cast(ExportFormat, create("format", entry.qualified_name, parts))
        except UnetkitError:
            if entry.owner == BUILTIN:
                raise
            continue
        endings.setdefault(writer.suffix, (entry.qualified_name, writer))
    if path.suffix.lower() not in endings:
        known = ", ".join(f"{suffix} ({name})" for suffix, (name, _) in endings.items())
        raise OptionError(f"{option} {path}: no format has this ending; give one of {known}")
    return endings[path.suffix.lower()]


def _open_run(model: nn.Module | TrainRun | str | Path) -> TrainRun | None:
    """Return the training run that a network is from; None for a network, or a file of `unetkit.save`."""
    if isinstance(model, nn.Module):
        return None
    if isinstance(model, TrainRun):
        return model
    path = Path(model)
    if path.is_dir() and ((path / HEADER).is_file() or not (path / "config.json").is_file()):
        return read_run(path)
    if not path.exists():
        raise FileError(
            f"{path} does not exist; give the folder of a run, a .safetensors file of `unetkit build --save`, or the "
            "parts of a model, such as --encoder resnet34"
        )
    return None


def _describe_sizes(captured: CapturedNetwork) -> str:
    if not captured.is_dynamic:
        return f"images of {format_size(captured.size)} only, in any number, since {captured.tiles.explanation}"
    if captured.any_size:
        return "images of any size, in any number"
    least, period = captured.tiles.least, captured.tiles.period
    return f"images of {format_size(least)}, and of multiples of {period} more, in any number"


def _files(form: ExportFormat, path: Path) -> list[Path]:
    """Return all files of a model: the one that it is named by, and those beside it."""
    return [path, *(path.with_suffix(suffix) for suffix in getattr(form, "companions", ()))]


@contextmanager
def _write_folder(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `path`; all files in that folder replace those beside `path`.

    Nothing is left behind if an exception is raised.
    """
    with describe_write_errors(path, "--out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        with describe_write_errors(path, "--out"):
            yield folder / path.name
            # The file that is opened comes last, so that it is never there without those that it needs.
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
                with file.open("r+b") as written:  # Windows flushes only what may be written
                    os.fsync(written.fileno())
                file.replace(path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
