"""Weights that a training run starts from: read a file of any usual kind, and load the tensors that fit the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unetkit.errors import FileError
from unetkit.network import Network, is_within, list_loaded
from unetkit.serialization import FORMAT, is_pickle, read_metadata
from unetkit.summary.forward_hooks import find_network
from unetkit.train.checkpoint import BEST, LAST

#: Prefixes that wrappers add to the names of a state_dict: DataParallel, torch.compile, Lightning modules and others.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
#: Keys under which checkpoints keep a state_dict beside other things, best first.
_KEYS = ("state_dict", "model_state_dict", "model_state", "network_weights", "model", "network", "net", "weights")


def load_init_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load the tensors of a file that fit a model by name and shape, and add them to the network's `loaded`.

    Args:
        model: the model, on any device; its other tensors stay as they are.
        path: a .safetensors file (of `unetkit.save` or any other), a file of `torch.save` that contains a state_dict,
            or the folder of a training run. Nothing in a file is executed.

    Returns:
        What was not loaded: names in the state_dict of the model or of the file, each with the reason.

    Raises:
        FileError: The file cannot be read, contains no tensors, or none of its weights fits.
    """
    found = read_tensors(Path(path))
    own: dict[str, Tensor] = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    theirs = _rename(found, own, [*_iter_places(model)])
    left = {
        name: f"{_format(theirs[name])} in the file, {_format(tensor)} in the network"
        for name, tensor in own.items()
        if name in theirs and theirs[name].shape != tensor.shape
    }
    left |= {name: "not in the file" for name in own if name not in theirs}
    left |= {name: "not in the network" for name in theirs if name not in own}
    taken = {name: theirs[name] for name in own if name not in left}
    if not any(tensor.ndim > 1 for tensor in taken.values()):
        raise FileError(
            f"--init-weights {path}: no weight of its {len(found)} tensors fits the network; "
            f"{_compare(found, theirs, own)}; describe the network that was trained"
        )
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    _mark_loaded(model, own.keys() - taken.keys())
    return left


def _compare(found: dict[str, Tensor], theirs: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Compare a weight that a file and the network both have by name or, without one, the first tensors of both."""
    for name, tensor in own.items():
        if tensor.ndim > 1 and name in theirs:
            return f"{name} is {_format(theirs[name])} in the file and {_format(tensor)} in the network"
    (name, tensor), (mine, other) = next(iter(found.items())), next(iter(own.items()))
    return f"the file begins with {name} ({_format(tensor)}) and the network with {mine} ({_format(other)})"


def _format(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _mark_loaded(model: nn.Module, others: set[str]) -> None:
    """Add to the network's `loaded` all tensors but these."""
    network, start = _locate_network(model)
    inside = {name.removeprefix(start) for name in others if name.startswith(start)}
    drawn = {name for name in inside if not any(is_within(name, one) for one in network.loaded)}
    network.loaded = list_loaded(network, drawn)


def _locate_network(model: nn.Module) -> tuple[Network, str]:
    """Return the network in a model, and the prefix of its names in the model's state_dict, such as "network."."""
    network: Network = find_network(model)
    name = next(name for name, module in model.named_modules() if module is network)
    return network, f"{name}." if name else ""


def _iter_places(model: nn.Module) -> Iterator[str]:
    """Yield prefixes that names in a file may lack: of the network, of its encoder, of the library's part of that."""
    network, start = _locate_network(model)
    weights = network.pretrained_name
    inside = (weights.partition(".")[0], weights, f"{weights}.model")  # timm keeps some models in another one
    yield from dict.fromkeys(["", start, *(f"{start}{name}." for name in inside)])


def _rename(found: dict[str, Tensor], own: dict[str, Tensor], places: list[str]) -> dict[str, Tensor]:
    """Rename the tensors of a file so that as many as possible have the name and shape of one of the model."""

    def renamed(prefix: str, place: str) -> dict[str, Tensor]:
        return {place + name.removeprefix(prefix): tensor for name, tensor in found.items()}

    def count(names: dict[str, Tensor]) -> tuple[int, int]:
        common = [name for name in names if name in own]
        return sum(names[name].shape == own[name].shape for name in common), len(common)

    candidates = (renamed(prefix, place) for prefix in _list_prefixes(found) for place in places)
    return max(candidates, key=count)  # the first of the best, which changes least


def _list_prefixes(names: Mapping[str, Any]) -> list[str]:
    """List what may be removed from the start of names: sequences of the usual prefixes that some names begin with."""
    prefixes = [""]
    for prefix in prefixes:  # which grows
        prefixes += [prefix + one for one in _PREFIXES if any(name.startswith(prefix + one) for name in names)]
    return prefixes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, a file of torch.save, or a run's folder, without executing anything.

    Raises:
        FileError: The file cannot be read, or contains no state_dict.
    """
    try:
        if path.is_dir():
            path = _find_weights(path)
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"--init-weights {path}: cannot be read ({error.strerror or error})") from error
    found = _unpickle(path) if is_pickle(data) else _read_safetensors(path, data)
    tensors = _find_state_dict(found)
    if not tensors:
        raise FileError(
            f"--init-weights {path}: contains no state_dict; save one with torch.save(model.state_dict(), ...)"
        )
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def _find_weights(folder: Path) -> Path:
    for name in (BEST, LAST):
        if (folder / name).is_file():
            return folder / name
    raise FileError(
        f"--init-weights {folder}: is a folder without {BEST}; give a file, or a folder that `unetkit train` wrote"
    )


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle and torch may raise anything
        found = re.search(r"GLOBAL ([\w.]+)", str(error))  # of torch's long message, which advises to run the code
        what, such = ("", f", such as {found[1]}") if found else ("is damaged, or ", "")
        raise FileError(
            f"--init-weights {path}: {what}contains more than tensors and plain values{such}; "
            "save the state_dict alone, with torch.save(model.state_dict(), ...)"
        ) from error


def _read_safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if (header.get("__metadata__") or {}).get("format") == FORMAT:
            read_metadata(path, data)  # rejects a damaged file
        return safetensors.torch.load(data)
    except (ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise FileError(
            f"--init-weights {path}: is neither a .safetensors file nor a file of torch.save, or is damaged"
        ) from error


def _find_state_dict(found: Any) -> dict[str, Tensor]:
    """Return the state_dict in what a file contains: itself, or under one of the usual keys."""
    if not isinstance(found, Mapping):
        return {}
    if tensors := {name: value for name, value in found.items() if isinstance(value, Tensor) and isinstance(name, str)}:
        return tensors
    inner = (_find_state_dict(found.get(key)) for key in _KEYS)
    return next((tensors for tensors in inner if tensors), {})
