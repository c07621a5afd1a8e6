"""Checks of a part within a small network that is trained, saved and loaded; and checks of a recipe's network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.builder import build
from unetkit.errors import UnetkitError
from unetkit.network import Network
from unetkit.plan import PartSpec, Plan
from unetkit.registry import Parts
from unetkit.serialization import load, save
from unetkit.summary.forward_hooks import collect_tensors, find_network, resolve_input_size
from unetkit.summary.trace import trace
from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.contracts import by, drawn, encoder_shapes
from unetkit.testing.subject import PartSubject, apart
from unetkit.utils.formatting import Size

#: The name by which the part stands in its network, so that a file can name one that has no name yet.
_NAME = "part-under-test"
_CHANNELS, _CLASSES = 3, 4
#: The rest of the network, to try in turn: a part need not take every pair of channels.
_ROUND = (
    {"encoder": "plain:widths=[4,8,16]"},
    {"encoder": "plain:widths=[4,8,16]", "fuse": "add"},
    {"encoder": "plain:widths=[8,8,8]", "fuse": "add"},
)


def network(subject: PartSubject) -> None:
    """Check that a network with the part accepts an odd size, trains, and is equal after saving and loading."""
    parts, spec = _named(subject)
    model, said = _first_built(subject, parts, spec)
    x = drawn(2, _CHANNELS, *_size_of(subject, find_network(model)))
    try:
        trains(model, x, said, only=subject.kind.field)
        predicts(model, x, said)
        comes_back(model, x, parts, said)
    except UnetkitError as error:
        raise Nonconformity(f"{said}{error}") from error


def _named(subject: PartSubject) -> tuple[Parts, PartSpec]:
    """Return the parts and the spec for the subject; a Python object is registered under a name."""
    if subject.spec.factory is None:
        return subject.parts, subject.spec
    parts = subject.parts.stage("unetkit.testing")
    parts[subject.kind.field].add(_NAME, subject.spec.factory)
    return parts, PartSpec(_NAME, subject.spec.options)


def _first_built(subject: PartSubject, parts: Parts, spec: PartSpec) -> tuple[Network, str]:
    refusals = []
    for words in _words(subject):
        line = str(Plan.of(**{**words, subject.kind.field: subject.spec}))
        said = f"in the network `{line}` "
        try:
            words = {**words, subject.kind.field: spec}
            return build(**words, classes=_CLASSES, in_channels=_CHANNELS, seed=0, parts=parts), said
        except UnetkitError as error:
            refusals.append(f"{said}it is refused: {error}".replace(_NAME, str(subject.spec)))
        except Exception as error:
            raise Nonconformity(f"{said}building fails with {one_line(error)}") from error
    raise Nonconformity(refusals[0])


def _words(subject: PartSubject) -> Iterator[dict[str, Any]]:
    if subject.kind.title == "model":
        yield {}
        return
    if subject.kind.title != "encoder":
        yield from ({k: v for k, v in words.items() if k != subject.kind.field} for words in _ROUND)
        return
    encoder = subject.make(subject.wirings[0])
    yield {"widths": (8,) * (len(encoder.strides) - 1), "decode_to": encoder.strides[0]}


def _size_of(subject: PartSubject, model: Network) -> Size:
    if subject.kind.title == "encoder":
        return encoder_shapes(model.encoder)[0][1:]
    return model.size or ((61, 69) if model.valid else (21, 27))


def trains(model: nn.Module, x: Tensor, said: str, *, only: str = "") -> None:
    """Check that a batch passes in training and that gradients reach every parameter (`only`: of these parts)."""
    try:
        outputs = collect_tensors(model.train()(x))
        torch.autograd.backward([(out * drawn(*out.shape)).sum() for out in outputs])
    except Exception as error:
        size = by(x.shape[-2:])
        raise Nonconformity(f"{said}a batch of 2 of {size} in training fails with {one_line(error)}") from error
    for name, parameter in model.named_parameters():
        mine = not only or only in name.split(".")
        if mine and parameter.requires_grad and parameter.grad is None:
            raise Nonconformity(f"{said}no gradient reaches {name}")


def predicts(model: nn.Module, x: Tensor, said: str) -> None:
    """Check that in eval mode the output is one tensor of logits, of the input size unless convolutions are valid."""
    with torch.no_grad():
        out = model.eval()(x)
    if not isinstance(out, Tensor):
        raise Nonconformity(f"{said}in eval it gives a {type(out).__name__}; promised is one tensor of logits")
    wanted = (len(x), find_network(model).resolved_plan.classes, *x.shape[-2:])
    wrong = out.shape[:2] != wanted[:2] if find_network(model).valid else out.shape != wanted
    if wrong:
        raise Nonconformity(f"{said}an input of {by(x.shape)} comes out as {by(out.shape)}; promised is {by(wanted)}")


def comes_back(model: Any, x: Tensor, parts: Parts, said: str) -> None:
    """Check that a saved and loaded model gives outputs that are identical to the bit. Raises Nonconformity."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        twin = load(path, parts=parts)
    with torch.no_grad():
        difference = apart((model.eval()(x),), (twin.eval()(x),))
    if difference:
        raise Nonconformity(f"{said}saved and loaded, it gives outputs that differ by up to {difference:.2g}")


def plan(subject: PartSubject) -> None:
    """Check that a recipe returns a Plan that names no other recipe, and whose line can be parsed."""
    made = _made(subject)
    if not isinstance(made, Plan):
        raise Nonconformity(f"returns a {type(made).__name__}; promised is a Plan")
    if made.recipe is not None:
        raise Nonconformity(f"its plan names the recipe {made.recipe}; write out what that says")
    try:
        back = Plan.parse(str(made))
    except UnetkitError as error:
        raise Nonconformity(f"its line `{made}` does not read back: {error}") from error
    if back != made:
        raise Nonconformity(f"its line `{made}` reads back as another plan, `{back}`; make it by Plan.of")


def _made(subject: PartSubject) -> Any:
    try:
        return subject.factory(**subject.options)
    except Exception as error:
        raise Nonconformity(f"making its plan fails with {one_line(error)}") from error


def own_size(subject: PartSubject) -> None:
    """Check that a recipe's network can be built on the meta device and traced at its own size."""
    try:
        model = build(recipe=subject.spec, parts=subject.parts, device="meta")
    except UnetkitError as error:
        raise Nonconformity(f"it does not build: {error}") from error
    size = resolve_input_size(find_network(model), None)
    try:
        last = trace(model, size).rows[-1]
    except UnetkitError as error:
        raise Nonconformity(f"at its own size: {error}") from error
    if not find_network(model).valid and (last.height, last.width) != size:
        raise Nonconformity(f"an input of its own size {by(size)} comes out as {by((last.height, last.width))}")
