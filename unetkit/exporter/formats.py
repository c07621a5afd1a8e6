"""The built-in export formats: ONNX, torch's exported programs, and OpenVINO.

A format writes a program and its metadata to a file, and opens the file by its own engine, without unetkit's network.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from unetkit.errors import ExportError, FileError, OptionError
from unetkit.exporter.capture import INPUT, CapturedNetwork, describe_module, silence
from unetkit.predict.onnx_engine import open_session
from unetkit.predict.openvino_engine import compile_file, openvino_core
from unetkit.utils.file_digest import DIGEST_KEY
from unetkit.utils.formatting import format_bytes
from unetkit.utils.isolation import INTERRUPTS

#: A protobuf message, which an ONNX file is, cannot be larger.
_MOST_BYTES = 2**31 - 2**20


class ExportFormat(Protocol):
    """The factory is `(*, ...)`. A format writes networks to files that another program runs.

    Attributes:
        suffix: the ending of its files, such as ".onnx".
        companions: endings of files that it writes beside, with the same name, such as (".bin",). Optional, ().
    """

    @property
    def suffix(self) -> str: ...

    def write(self, captured: CapturedNetwork, path: Path, metadata: Mapping[str, str], /) -> None:
        """Write a program (`captured.program`, of torch.export) to a path that ends in `suffix`, with its metadata.

        The metadata should be stored as they are, not compressed: a digest of the file is then inserted in them.
        """
        ...

    def open(self, path: Path, /) -> Callable[[np.ndarray], np.ndarray]:
        """Open a file by the engine that is meant to run it: images (B, C, H, W) to outputs, float32."""
        ...

    def read_metadata(self, path: Path, /) -> dict[str, str]:
        """Return the metadata that `write` stored, without which a file cannot be verified."""
        ...


class Onnx:
    """ONNX (.onnx), by torch's exporter; runs by ONNX Runtime and many others. Needs `unetkit[onnx]`.

    Args:
        opset: version of ONNX's operators; none for the one that torch's exporter prefers.
    """

    suffix = ".onnx"

    def __init__(self, *, opset: int | None = None) -> None:
        if opset is not None and opset < 18:
            raise OptionError(f"opset={opset}: must be at least 18, the first that torch's exporter writes")
        self.opset = opset

    def write(self, captured: CapturedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the program to one file, without external data."""
        if captured.weight_bytes > _MOST_BYTES:
            raise ExportError(
                f"the weights take {format_bytes(captured.weight_bytes)}, and an ONNX file is smaller than 2 GB; "
                "--half halves them, and a .pt2 file may be larger"
            )
        model = _to_onnx(captured, self.opset)
        model.metadata_props.update(metadata)
        import onnx_ir

        onnx_ir.save(model, path)

    def open(self, path: Path) -> Callable[[np.ndarray], np.ndarray]:
        """Open a file by ONNX Runtime on the CPU, as prediction does."""
        session = open_session(path)
        names = [value.name for value in session.get_inputs()]
        return lambda image: np.asarray(session.run(None, {names[0]: image})[0])

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata of a file."""
        onnx = _import("onnx", "onnx")
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's exceptions have no common base
            raise FileError(f"{path} is not an ONNX model: {_first_line(error)}") from error
        return {entry.key: entry.value for entry in model.metadata_props}


def _to_onnx(captured: CapturedNetwork, opset: int | None) -> Any:
    """Convert a program to an onnx_ir.Model without what concerns only this machine."""
    for package in ("onnx", "onnxscript", "onnxruntime"):  # the last one checks the file afterwards
        _import(package, "onnx")
    from torch.onnx import OnnxExporterError

    try:
        with silence(), torch.no_grad():
            exported = torch.onnx.export(
                captured.program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[captured.output],
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except (OnnxExporterError, RuntimeError, ValueError) as error:
        raise _explain(captured, error, opset) from error
    if exported is None:
        raise ExportError("torch's exporter returned no program; export to .pt2 instead")
    model = exported.model
    given = model.opset_imports.get("")
    if opset is not None and given != opset:
        raise OptionError(
            f"--format onnx:opset={opset}: torch's exporter cannot write this network with opset {opset} "
            f"(it wrote {given}); leave the option out"
        )
    _clean(model)
    return model


def _clean(model: Any) -> None:
    """Name the dynamic sides, and remove stack traces, which name files of this machine."""
    import onnx_ir

    image = model.graph.inputs[0]
    names = dict(zip(map(str, (image.shape[0], *image.shape[2:])), ("batch", "height", "width"), strict=True))
    names = {old: new for old, new in names.items() if not old.isdecimal()}
    if names:
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

        def rename(dim: Any) -> Any:
            if isinstance(dim, int) or dim.value is None:  # an unknown size: those of one name are taken to be equal
                return dim
            return pattern.sub(lambda found: names[found[0]], dim.value)

        values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = onnx_ir.Shape(map(rename, value.shape))
    for holder in (model, model.graph, *model.functions.values()):
        holder.metadata_props.clear()
        holder.doc_string = ""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = ""
        for value in node.outputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


_OPERATOR = re.compile(r"<OpOverload\(op='([\w.:]+)'")


def _explain(captured: CapturedNetwork, error: BaseException, opset: int | None) -> ExportError | OptionError:
    """Name the operator that could not be converted, and the module in which it stands."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    texts = [str(one) for one in chain]
    found = next((match[1] for text in reversed(texts) if (match := _OPERATOR.search(text))), "")
    if not found:
        option = f" with opset {opset}" if opset is not None else ""
        return ExportError(f"torch's ONNX exporter fails{option}: {_first_line(chain[-1])}; export to .pt2 instead")
    # The exporter names an operator as it is after decomposition: prims.bessel_j0 of aten.special_bessel_j0.
    base = re.split(r"[.:]+", found)[1]
    nodes = [*captured.program.graph.nodes]
    exact = [node for node in nodes if _op_name(node).split("::")[-1] == base]
    name = next((_module_of(node) for node in exact or nodes if base in _op_name(node)), "")
    where = describe_module(cast(nn.Module, captured.reference.model), name) if name else "the network"
    return ExportError(
        f"{where} uses the operator {found.replace('.', '::', 1)}, which torch's exporter cannot write as ONNX; "
        "replace this part, or export to .pt2"
    )


def _op_name(node: Any) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else ""


def _module_of(node: Any) -> str:
    stack = [*node.meta.get("nn_module_stack", {}).values()]
    return str(stack[-1][0]).removeprefix("model.") if stack else ""


class TorchProgram:
    """A program of torch.export (.pt2), which torch runs without unetkit."""

    suffix = ".pt2"

    def write(self, captured: CapturedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the program, with the metadata as the extra file "metadata.json"."""
        # The archive has a checksum of each entry, so the digest, which is inserted later, is the archive's comment.
        held = {key: value for key, value in metadata.items() if key != DIGEST_KEY}
        with silence():
            torch.export.save(captured.program, path, extra_files={"metadata.json": json.dumps(held)})
        comment = metadata.get(DIGEST_KEY, "").encode()
        with path.open("r+b") as file:
            file.seek(-2, 2)
            if file.read(2) != b"\0\0":
                raise ExportError("torch.export.save wrote an archive with a comment; use another version of torch")
            file.seek(-2, 2)
            file.write(struct.pack("<H", len(comment)) + comment)

    def open(self, path: Path) -> Callable[[np.ndarray], np.ndarray]:
        """Open a file by torch on the CPU."""
        module = self._load(path).module()

        def run(image: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(module(torch.from_numpy(image)))

        return run

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata of a file."""
        # Not by torch.export.load, which may run code of a file that is not to be trusted.
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("/extra/metadata.json")]
                return dict(json.loads(archive.read(names[0]))) if names else {}
        except (OSError, zipfile.BadZipFile) as error:
            raise FileError(f"{path} is not a program of torch.export: {_first_line(error)}") from error
        except (ValueError, TypeError) as error:
            raise FileError(f"{path}: its metadata.json is damaged ({error})") from error

    def _load(self, path: Path) -> torch.export.ExportedProgram:
        try:
            with silence():
                return torch.export.load(path)
        except INTERRUPTS:
            raise
        except Exception as error:  # torch raises whatever it meets
            raise FileError(f"{path} is not a program of torch.export: {_first_line(error)}") from error


class OpenVino:
    """OpenVINO (.xml with its .bin), converted from ONNX. Needs `unetkit[onnx,openvino]`."""

    suffix = ".xml"
    companions = (".bin",)

    def write(self, captured: CapturedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the .xml file, and the weights to a .bin file beside it."""
        openvino = _import("openvino", "openvino")
        import onnx_ir

        data = onnx_ir.to_proto(_to_onnx(captured, None)).SerializeToString()
        model = openvino_core().read_model(data)
        for key, value in metadata.items():
            model.set_rt_info(value, ["unetkit", key])
        openvino.save_model(model, path, compress_to_fp16=False)

    def open(self, path: Path) -> Callable[[np.ndarray], np.ndarray]:
        """Open a file by OpenVINO on the CPU in float32, as prediction does."""
        compiled = compile_file(path)
        return lambda image: np.array(compiled(image)[0])

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata of a file."""
        model = self._read(path)
        if not model.has_rt_info(["unetkit"]):
            return {}
        return {key: model.get_rt_info(["unetkit", key]).astype(str) for key in model.get_rt_info(["unetkit"]).value}

    def _read(self, path: Path) -> Any:
        _import("openvino", "openvino")
        try:
            return openvino_core().read_model(path)
        except RuntimeError as error:
            raise FileError(f"{path} is not a model of OpenVINO: {_first_line(error)}") from error


def _import(package: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ExportError(f"this format needs the package {package}; pip install 'unetkit[{extra}]'") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
