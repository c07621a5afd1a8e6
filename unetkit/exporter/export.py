"""Export a network to a file, check the file by its own engine, and verify such a file later and elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from unetkit.exporter.digest import DIGEST_KEY, PLACEHOLDER, insert_digest, is_intact
from unetkit.exporter.formats import ExportFormat
from unetkit.exporter.metadata import describe_network, make_metadata
from unetkit.plan import PartSpec, Plan
from unetkit.plugins import default_parts, load_parts
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.torch_engine import bytes_per_pixel, describe_run
from unetkit.registry import BUILTIN, Parts
from unetkit.resolve import create
from unetkit.serialization import load
from unetkit.summary.forward_hooks import find_network
from unetkit.train.checkpoint import HEADER, TrainRun, read_run
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.isolation import wrap_errors

#: The largest difference that is allowed, as a fraction of the range of the outputs, in float32 and with `half`.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2


@dataclass(frozen=True)
class ExportReport:
    """A file that was exported and checked.

    Attributes:
        path: the file.
        bytes: its size, with that of files beside it.
        format: the name of the format.
        output: "logits" or "probabilities".
        comparisons: the comparison of each batch.
        tolerance: the largest difference that was allowed.
        sizes: which sizes the file takes, in words.
        is_sealed: whether the file contains a digest of its bytes.
    """

    path: Path
    bytes: int
    format: str
    output: str
    comparisons: tuple[Comparison, ...]
    tolerance: float
    sizes: str
    is_sealed: bool

    @property
    def difference(self) -> float:
        """The largest difference of all batches, as a fraction of the range of the outputs."""
        return max(one.difference for one in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        values = vars(self) | {"path": str(self.path), "comparisons": [*map(to_dict, self.comparisons)]}
        return values | {"difference": self.difference}


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
    fixed_size: int | Size | None = None,
    tolerance: float | None = None,
    weights: str = "best",
    parts: Parts | None = None,
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
        fixed_size: the only height and width of images that the file takes; None for all that the network takes.
        tolerance: the largest difference as a fraction of the range of the outputs; None for 1e-4, or 2e-2 with `half`.
        weights: of a run, "best", or "last" for those of the last epoch.
        parts: the registered parts; None for all that are installed.

    Raises:
        ExportError: The network cannot be exported, or what was written does not compute the same.
        FileError: The run or the file cannot be read, or the file cannot be written.
        OptionError: An option has a wrong value.
    """
    path = Path(path)
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise OptionError(f"--tolerance {tolerance:g}: must be above 0")
    tolerance = tolerance or (HALF_TOLERANCE if half else TOLERANCE)
    run = _open_run(model)
    if parts is None:
        parts = load_parts(run.plugins) if run and run.plugins else default_parts()
    name, writer = find_format(parts, path, format)
    if run is not None:
        network = run.network("cpu", parts, weights)
        info = describe_run(run, network)
    else:
        network = cast(Any, model) if isinstance(model, nn.Module) else load(cast(Path, model), parts=parts)
        info = describe_network(network, str(model) if isinstance(model, str | Path) else "the model")
    activation = (
        info.target.activation(int(find_network(network).resolved_plan.classes)) if probabilities else "identity"
    )
    captured = capture(network, activation=activation, half=half, size=Plan.of(size=fixed_size).size)
    bytes_each = bytes_per_pixel(network, captured.size)
    info = replace(info, tiles=captured.tiles, output=captured.output, bytes_per_pixel=bytes_each)
    metadata = make_metadata(info, captured, find_network(network), run, weights, half)
    stored = make_stored_check(captured, tolerance)
    metadata |= {CHECK_KEY: stored.to_text(), DIGEST_KEY: PLACEHOLDER}
    with _write_folder(path) as temporary:
        with wrap_errors(f"format {name} cannot write {path.name}"):
            writer.write(captured, temporary, metadata)
        is_sealed = insert_digest(_files(writer, temporary))
        with wrap_errors(f"format {name} cannot open what it wrote"):
            runner = writer.open(temporary)
        found = compare_outputs(captured, runner)
        worst = max(found, key=lambda one: one.difference)
        if not worst.difference <= tolerance:
            raise ExportError(
                f"{path} was not kept: for {worst.what}, {'x'.join(map(str, worst.shape))}, its outputs differ by "
                f"{worst.difference:.1e} of their range from the network's, and at most {tolerance:g} is allowed "
                f"(--tolerance); pixels decided otherwise: {worst.changed:,.0f} per million"
            )
        size = sum(file.stat().st_size for file in _files(writer, temporary))
    return ExportReport(
        path, size, name, captured.output, tuple(found), tolerance, _describe_sizes(captured), is_sealed
    )


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
    intact = is_intact(_files(reader, path))
    with wrap_errors(f"format {name} cannot read {path}"):
        metadata = reader.read_metadata(path)
    if CHECK_KEY not in metadata:
        raise FileError(
            f"{path} was not exported by unetkit: its metadata do not have {CHECK_KEY}, so there is nothing to compare "
            "with; export the network with `unetkit export`"
        )
    if intact is False or (intact is None and metadata.get(DIGEST_KEY, PLACEHOLDER) != PLACEHOLDER):
        raise ExportError(f"{path} was changed after it was exported; copy it again, or export the network again")
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
            raise OptionError(f"{option} {path}: the format {spec.name} writes files that end in {writer.suffix}")
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
            f"parts of a model, such as --encoder {path}"
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    except OSError as error:
        raise FileError(f"--out {path} cannot be written: {error.strerror or error}") from error
    try:
        yield folder / path.name
        # The file that is opened comes last, so that it is never there without those that it needs.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.replace(path.with_name(file.name))
    except OSError as error:
        raise FileError(f"--out {path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
