"""A model as one .safetensors file: its weights, and in the metadata the line that rebuilds it.

The file contains a digest of all its other bytes, so that damage and edits are detected. This is not a signature.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unetkit.builder import build_plan
from unetkit.errors import BuildError, FileError, PluginError, UnetkitError
from unetkit.network import Network, state_shapes
from unetkit.plan import Plan
from unetkit.plugins import default_parts
from unetkit.registry import Parts
from unetkit.summary.forward_hooks import find_network
from unetkit.utils.file_digest import digest_of
from unetkit.utils.files import write_requested_file
from unetkit.utils.formatting import format_type
from unetkit.utils.isolation import ignore_breakpoints
from unetkit.utils.module_settings import describe_modules, find_difference
from unetkit.utils.modules import check_device
from unetkit.utils.oom import is_oom

FORMAT, VERSION = "unetkit", 1
#: The placeholder of the digest while it is computed.
DIGEST_PLACEHOLDER = b"0" * 64
_DIGEST_PATTERN = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def compute_digest(data: bytes, at: int) -> bytes:
    """Return the digest of a file's bytes in hex, with zeros in place of the digest itself."""
    return digest_of([data], 0, at)


def read_file(path: Path) -> bytes:
    """Read a file. Raises FileError if it does not exist, is empty, or cannot be read."""
    try:
        if not path.is_file():
            raise FileError(f"{path} does not exist; give a file that unetkit.save wrote")
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error})") from error
    if not data:
        raise FileError(f"{path} is empty; save the model again")
    return data


#: Above the length of every header, in bytes; other files mostly begin with a greater number.
_LONGEST_HEADER = 10**8


def read_metadata(path: Path, data: bytes) -> dict[str, Any]:
    """Return the metadata of an intact file that unetkit saved. Raises FileError for any other file."""
    end = 8 + int.from_bytes(data[:8], "little")
    starts_well = data[8:9] in (b"{", b"")
    if is_pickle(data):
        raise FileError(
            f"{path} is a pickle, which can run code when it is opened; build the model, give it what torch.load reads "
            "with weights_only=True, and write it with unetkit.save"
        )
    try:
        header = json.loads(data[8:end]) if end <= len(data) else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        what = "is cut short or damaged; copy or save it again"
        if not starts_well or end > _LONGEST_HEADER:
            what = "is not a .safetensors file; give one that unetkit.save or `unetkit build --save` wrote"
        raise FileError(f"{path} {what}")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FileError(
            f"{path} is a safetensors file, but it does not contain the plan of a model; "
            "an encoder's weights in timm's format are loaded with --pretrained"
        )
    if metadata.get("version") != str(VERSION):
        raise FileError(
            f"{path} is of format version {metadata.get('version')}, and unetkit {version('unetkit')} reads {VERSION}; "
            "install a newer unetkit"
        )
    found = _DIGEST_PATTERN.search(data, 8, end)
    if found is None or compute_digest(data, found.start(1)) != found[1]:
        why = "is cut short" if len(data) < end + _data_size(header) else "was changed after it was saved"
        raise FileError(f"{path} {why}; copy it again from where it is intact, or save the model again")
    return metadata


def is_pickle(data: bytes) -> bool:
    """Return whether the data are a zip archive of torch.save, or a pickle of protocol 2 or later."""
    bare = data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    # A header of 640 bytes starts a safetensors file as protocol 2 starts a pickle.
    return (bare and data[8:10] != b'{"') or (data[:4] == b"PK\x03\x04" and b"data.pkl" in data)


def _data_size(header: dict[str, Any]) -> int:
    """Return the number of data bytes that a header describes; 0 if it is invalid."""
    try:
        return max(int(v["data_offsets"][1]) for name, v in header.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, OverflowError):
        return 0


_RECORDED_VERSIONS = ("unetkit", "torch", "timm")


def save(model: nn.Module, path: str | Path) -> None:
    """Save the weights of a model and the line that rebuilds it. An existing file is replaced only by a complete one.

    Dtypes are kept; device, memory format, and which parameters are frozen are not. A model of which the plan would
    build another one, such as one with another padding mode or a forward hook, is refused. Tensors that share memory
    are written for each name, and are shared again when they are loaded if the plan builds them so.

    Args:
        model: a model from `unetkit.build`, or a compiled one.
        path: usually *.safetensors; its folder is created if necessary.

    Raises:
        FileError: The model has no plan, or no weights, that a file could store, it was changed after it was built, or
            the file cannot be written.
    """
    model, path = getattr(model, "_orig_mod", model), Path(path)
    data = safetensors.torch.save(_collect_tensors(model), _make_metadata(model))
    at = data.index(b'"sha256":"' + DIGEST_PLACEHOLDER) + len(b'"sha256":"')
    with write_requested_file(path) as temporary, temporary.open("wb") as file:
        file.write(data[:at])
        file.write(compute_digest(data, at))
        file.write(memoryview(data)[at + len(DIGEST_PLACEHOLDER) :])


def load(path: str | Path, *, parts: Parts | None = None, device: Any = None) -> Network:
    """Rebuild a model that `save` wrote, with weights that are identical to the bit.

    Nothing is downloaded or unpickled.

    Args:
        path: the file, or a folder that `save_pretrained` of segmentation-models-pytorch wrote; that becomes a whole
            model (`--model smp/unet`; see `from_smp` to convert it to a U-Net of parts).
        parts: the registered parts; None for all that are installed.
        device: the device for the weights; None for torch's default device.

    Returns:
        The network in training mode, as `build` returns it, with every parameter as trainable as `build` makes it; call
        `.eval()` to predict.

    Raises:
        FileError: The file does not exist, was not saved by unetkit, or is damaged.
        PluginError: A plugin that the model needs is not loaded; nothing is imported to find one.
        UnknownNameError: The plan names a part that does not exist.
    """
    path = Path(path)
    if _is_folder(path):
        return _load_smp_folder(
            path, parts or default_parts(), torch.get_default_device() if device is None else device
        )
    data = read_file(path)
    metadata = read_metadata(path, data)
    parts = parts or default_parts()
    saved = _read_plugins(path, metadata.get("plugins", "[]"))
    elsewhere = _check_plugins(path, saved, parts)
    parts = parts.prefer(plugin.name for plugin in saved)
    device = torch.get_default_device() if device is None else device
    check_device(device)
    try:
        tensors = {name: tensor.to(device) for name, tensor in safetensors.torch.load(data).items()}
        plan = Plan.parse(metadata["plan"])
        model = _build_with(plan, parts, device, tensors)
    except (KeyError, RuntimeError, SafetensorError) as error:
        if is_oom(error):
            raise UnetkitError(f"{path}: not enough memory on {device} for its weights; give another device") from error
        writers = ", ".join(f"{name} {metadata.get(name)}" for name in _RECORDED_VERSIONS)
        why = f"does not fit what its plan builds here{elsewhere}: {_short_error(error)}"
        raise FileError(f"{path}, of {writers}, {why}") from error
    except UnetkitError as error:
        raise type(error)(f"{path} cannot be rebuilt{elsewhere}: {error}") from error
    network = find_network(model)
    vars(network.encoder)["weights_from"], network.loaded = str(path), ("",)
    return model


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False where it cannot be accessed, which reading it then reports."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _load_smp_folder(folder: Path, parts: Parts, device: Any) -> Network:
    from unetkit.smp.convert import read_pretrained_folder  # it imports smp, which takes half a second

    plan, tensors = read_pretrained_folder(folder)
    check_device(device)
    try:
        model = _build_with(plan, parts, device, {name: tensor.to(device) for name, tensor in tensors.items()})
    except (KeyError, RuntimeError) as error:
        raise FileError(f"{folder} does not fit what its config.json builds here: {_short_error(error)}") from error
    except UnetkitError as error:
        raise type(error)(f"{folder} cannot be rebuilt: {error}") from error
    vars(model.encoder)["weights_from"], model.loaded = str(folder), ("",)
    return model


def _collect_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict as contiguous tensors with separate memory."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta:
            meta = "is on the meta device and has no weights; build it on the cpu or a gpu"
            what = meta if isinstance(value, Tensor) else "is not a tensor; store it in a buffer"
            raise FileError(f"the model cannot be saved: {name} {what}")
        tensor = value.detach().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if pointer in taken else tensor
        taken.add(pointer)
    return tensors


def check_has_names(plan: Plan) -> None:
    """Raise FileError if a file could not rebuild the network of a plan, since a part or an option is an object."""
    for word, spec in plan.specs():
        if spec.objects:
            flag, is_part = word.replace("_", "-"), spec.factory is not None
            what = "was given as a Python object" if is_part else "has an option that was given as a Python object"
            advice = "build with its name" if is_part else "choose the object there by a word"
            raise FileError(
                f"--{flag} {spec} {what} and has no name by which a file could rebuild it; "
                f"register it in a plugin and {advice}"
            )


def _make_metadata(model: nn.Module) -> dict[str, str]:
    plan = getattr(model, "plan", None)
    if not isinstance(plan, Plan):
        raise FileError(f"{format_type(model)} has no plan to rebuild it from; save what unetkit.build returned")
    check_has_names(plan)
    if not hasattr(model, "built_shapes"):
        raise FileError(
            "the model that a plugin returned contains no network of unetkit.build; save what unetkit.build returned"
        )
    built = cast(Network, model)
    if changed := state_shapes(model).items() ^ built.built_shapes.items():
        name = min(name for name, _ in changed)
        here, there = state_shapes(model).get(name), built.built_shapes.get(name)
        if here is not None and there is not None:
            what = "is {}, but the plan builds {}".format(
                *("x".join(map(str, shape)) or "a number" for shape in (here, there))
            )
        else:
            what = "is missing, but the plan builds it" if here is None else "is additional to what the plan builds"
        raise FileError(
            f"{name} {what}, so a file could not rebuild the model; save it as it was built, and rewrite it "
            "(unetkit.fast), reparameterize, prune or quantize it after loading"
        )
    if difference := find_difference(built.built_modules, describe_modules(model)):
        raise FileError(
            f"{difference}, so a file could not rebuild the model; use an option of a part that does "
            "this (`unetkit list` shows them), make it a part of a plugin, or undo it"
        )
    about = {"format": FORMAT, "version": str(VERSION), "plan": str(plan), "sha256": DIGEST_PLACEHOLDER.decode()}
    plugins = [
        {"name": p.name, "version": p.version, "distribution": p.distribution, "target": Path(p.target).name}
        for p in find_network(model).plugins
    ]
    return about | {"plugins": json.dumps(plugins)} | {name: version(name) for name in _RECORDED_VERSIONS}


def _check_plugins(path: Path, saved: list[_SavedPlugin], parts: Parts) -> str:
    """Return notes on plugins of a file that have another version here. Raises PluginError if some are not loaded."""
    here = {plugin.name: plugin for plugin in parts.plugins if plugin.loaded}
    failed = {plugin.name: plugin for plugin in parts.plugins if not plugin.loaded}
    absent = [plugin for plugin in saved if plugin.name not in here]
    for plugin in absent:
        if found := failed.get(plugin.name):
            state = found.error if found.disabled else f"failed here: {found.error}"
            moved = found.target.endswith(".py") and not Path(found.target).expanduser().exists()
            advice = "; give its file by --plugin FILE" if moved and not found.disabled else ""
            raise PluginError(f"{path} was built with plugin {plugin.name}, which {state}{advice}")
    if absent:
        names = ", ".join(f"{plugin.name} {plugin.version}".strip() for plugin in absent)
        are = "s {}, which are not here" if len(absent) > 1 else " {}, which is not here"
        note = describe_other_files(parts, {plugin.name for plugin in saved})
        raise PluginError(f"{path} was built with plugin{are.format(names)}; {_installation_advice(absent)}{note}")
    others = [
        f"plugin {name} was {version_ or 'a file'} and is {here[name].version or 'a file'}"
        for name, version_, _, _ in saved
        if here[name].version != version_
    ]
    return f" ({', '.join(others)})" if others else ""


def describe_other_files(parts: Parts, names: Container[str]) -> str:
    """Return a note on plugin files that are loaded under other names, such as a renamed file; "" if there are none."""
    files = [plugin for plugin in parts.plugins if plugin.loaded and plugin.target.endswith(".py")]
    others = [f"{plugin.target} is plugin {plugin.name}" for plugin in files if plugin.name not in names]
    return f"; a plugin file is known by its name without .py: {', '.join(others)}" if others else ""


def _installation_advice(absent: list[_SavedPlugin]) -> str:
    install = [f"{plugin.distribution}=={plugin.version}" for plugin in absent if plugin.distribution]
    files = [plugin.target for plugin in absent if not plugin.distribution]
    load_files = [f"parts=unetkit.load_parts({files!r}) loads it"] if files else []
    return " and ".join([*([f"pip install {' '.join(install)}"] if install else []), *load_files])


class _SavedPlugin(NamedTuple):
    """A plugin as a file stores it."""

    name: str
    version: str
    distribution: str
    target: str


_NAME_PATTERN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)?")
_VERSION_PATTERN = re.compile(r"[A-Za-z0-9.+!_-]*")


def _read_plugins(path: Path, text: str) -> list[_SavedPlugin]:
    """Read the plugins that a file names.

    Raises FileError for what unetkit never writes, since a message repeats it to a shell.
    """
    try:
        saved = [_SavedPlugin(**plugin) for plugin in json.loads(text)]
        right = all(_VERSION_PATTERN.fullmatch(p.version) and _NAME_PATTERN.fullmatch(p.distribution) for p in saved)
        right = right and all(isinstance(value, str) for p in saved for value in p)
    except (ValueError, TypeError):
        right = False
    if not right:
        raise FileError(f"{path} contains invalid plugin names; copy the file again from its source")
    return saved


@ignore_breakpoints()
def _build_with(plan: Plan, parts: Parts, device: Any, tensors: dict[str, Tensor]) -> Network:
    """Build without weights and insert these; build with weights if a part computes some that no file contains."""
    try:
        model = build_plan(plan, parts, "meta", pretrained=False)
        _assign(model, tensors)
        if not any(tensor.is_meta for module in model.modules() for tensor in _iterate_tensors(vars(module))):
            return model
    except BuildError:
        pass  # a part may not support the meta device; if it cannot be built at all, the real build fails again
    model = build_plan(plan, parts, device, pretrained=False)
    _assign(model, tensors)
    return model


def _assign(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Assign the tensors to the model with their dtypes; parameters that are shared in the model remain shared."""
    tensors, made = dict(tensors), dict[int, nn.Parameter]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in tensors:
            fresh = made.setdefault(id(parameter), nn.Parameter(tensors[name], parameter.requires_grad))
            tensors[name] = fresh
    model.load_state_dict(tensors, strict=True, assign=True)


def _iterate_tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _iterate_tensors(member)


def _short_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
