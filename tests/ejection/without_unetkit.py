"""Run networks from their ejected files where unetkit cannot be imported: `python without_unetkit.py FOLDER`.

For each NAME.py, load NAME.safetensors into its network, and print what it computes from NAME.pt as a line of JSON.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Refuse:
    """A finder that refuses unetkit and its plugins."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0].startswith("unetkit"):
            raise ImportError(f"{name} must not be needed")


def digest(tensor: Tensor | None) -> str:
    if tensor is None:
        return ""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def compute(network: nn.Module, x: Tensor) -> dict[str, str]:
    """Return digests of the names of the weights, of the prediction, and of all outputs and gradients in training."""
    with torch.no_grad():
        found = {"prediction": digest(network.eval()(x))}
    torch.manual_seed(0)  # for dropout
    outputs = network.train()(x)
    named = outputs if isinstance(outputs, dict) else {"mask": outputs} if isinstance(outputs, Tensor) else outputs
    named = named if isinstance(named, dict) else dict(enumerate(named))
    torch.stack([output.square().mean() for output in named.values()]).sum().backward()  # type: ignore[no-untyped-call]
    found |= {f"output {name}": digest(output) for name, output in named.items()}
    found |= {f"gradient of {name}": digest(parameter.grad) for name, parameter in network.named_parameters()}
    return found | {name: digest(tensor) for name, tensor in network.state_dict().items()}


def main(folder: Path) -> None:
    sys.meta_path.insert(0, Refuse())
    torch.set_num_threads(1)
    for file in sorted(folder.glob("*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network = module.load(str(file.with_suffix(".safetensors")))
        with torch.device("meta"):
            assert isinstance(network, type(module.build()))
        found = compute(network, torch.load(file.with_suffix(".pt")))
        print(json.dumps({"name": file.stem, "found": found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
