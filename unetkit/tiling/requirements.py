"""Find which tiles a network requires, from passes on meta tensors: sizes, and the influence of a tile's borders."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError
from unetkit.network import Network
from unetkit.summary.forward_hooks import collect_tensors, find_network, make_meta_input, record_forward
from unetkit.summary.input_sizes import SizeSearch, size_error
from unetkit.summary.receptive_field import receptive_field
from unetkit.tiling.layout import TILE, TileRequirements
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.integers import round_up
from unetkit.utils.isolation import ignore_breakpoints
from unetkit.utils.modules import meta_copy
from unetkit.utils.spatial import resize_to_input


def full_size(model: nn.Module, x: Tensor) -> Tensor:
    """Compute logits (B, K, h, w) of images (B, C, H, W), resized bilinearly if the model returns them at a stride."""
    return resize_to_input(collect_tensors(model(x))[0], find_network(model).output_stride)


class _FullSizeModel(nn.Module):
    """A model whose logits have the size at which tiles are combined."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return full_size(self.model, x)


#: Requirements by network. They depend only on its layers, so they still hold when its weights change.
_known: WeakKeyDictionary[nn.Module, TileRequirements] = WeakKeyDictionary()


@ignore_breakpoints()
def find_tile_requirements(model: nn.Module) -> TileRequirements:
    """Find what a network requires of tiles.

    Args:
        model: a model from `unetkit.build` or `load`, which is not changed.

    Raises:
        InputSizeError: The network accepts no size.
    """
    if model not in _known:
        _known[model] = _fit(model)
    return _known[model]


def _fit(model: nn.Module) -> TileRequirements:
    network = find_network(model)
    period = network.period
    with torch.inference_mode(False), torch.enable_grad():
        meta_model = _FullSizeModel(meta_copy(model).eval()).eval()
        if network.size:
            shrinks = _shrinks(meta_model, network.size) if network.valid else (0, 0)
            why = f"the network takes {format_size(network.size)}"
            return TileRequirements(period, network.size, network.size, shrinks, explanation=why)
        if _reads_values(meta_model, (round_up(TILE, period),) * 2):
            why = "a part reads values of tensors"
            if network.valid:
                raise InputSizeError(f"{why}, so that the tiles that valid convolutions need are unknown")
            smallest = round_up(max(1, network.min_size), period)
            return TileRequirements(period, None, (smallest, smallest), explanation=why)
        least = _smallest_side(meta_model, network, period)
        shrinks = _shrinks(meta_model, (least, least))
        edge, why = _edge(meta_model, least, period)
    return TileRequirements(period, None, (least, least), shrinks, edge, why)


def _reads_values(meta_model: nn.Module, size: Size) -> bool:
    """Return whether a part reads values of tensors, so that a pass on meta tensors shows nothing."""
    with torch.no_grad():
        return record_forward(meta_model, make_meta_input(find_network(meta_model), size)).reads_values()


def _shrinks(meta_model: nn.Module, size: Size) -> Size:
    """Return how much smaller than an input of this size the output is."""
    out, x = _run(meta_model, size)
    return x.shape[-2] - out.shape[-2], x.shape[-1] - out.shape[-1]


def _smallest_side(meta_model: nn.Module, network: Network, period: int) -> int:
    """Return the smallest accepted side among those that differ by the period and drop no row or column."""
    if not network.valid:
        return round_up(max(1, network.min_size), period)
    search = SizeSearch(meta_model)
    if not (sizes := search.nearest_sizes((TILE, TILE))):
        raise InputSizeError(f"no size up to 2048 is accepted by {network.plan}")
    return search.smallest_like(sizes[0][0])


def _run(meta_model: nn.Module, size: Size) -> tuple[Tensor, Tensor]:
    """Return the output of a pass, and its input."""
    x = make_meta_input(find_network(meta_model), size)
    seen = record_forward(meta_model, x)
    if seen.output is None:
        raise size_error(SizeSearch(meta_model), size, seen) from seen.error
    return seen.output, x


def _edge(meta_model: nn.Module, least: int, period: int) -> tuple[tuple[Size, Size] | None, str]:
    """Return how far the borders of an input influence the output, or None; and which property causes this."""
    out, x = _run(meta_model, (least + 8 * period,) * 2)
    field = receptive_field(out, x)
    if field.size is None:
        return None, f"the receptive field of a pixel is {field}"
    larger = least + round_up(2 * max(field.size) + 2 * period, period)
    out, x = _run(meta_model, (larger, larger))
    if receptive_field(out, x).size != field.size:
        return None, "what a pixel depends on grows with the image"
    if uneven := next(filter(None, map(_explain_if_position_dependent, _nodes(out.grad_fn))), ""):
        return None, uneven
    return _count_affected(out, x), f"a pixel depends on {field} pixels"


def _count_affected(out: Tensor, x: Tensor) -> tuple[Size, Size]:
    """Count the output rows and columns that depend on what lies before the first or after the last input pixel."""

    def beyond(at: int, pixel: int, axis: int) -> bool:
        # The receptive fields of an output pixel and of the pixel at the far end together span more than the input.
        both = out[:, :1, at : at + 1, at : at + 1] + x[:, :1, pixel : pixel + 1, pixel : pixel + 1]
        found = receptive_field(both, x).size
        return found is not None and found[axis] > x.shape[axis - 2]

    side, last = out.shape[-1], x.shape[-1] - 1
    first = [_count(side, lambda at, a=a: not beyond(at, last, a)) for a in (0, 1)]  # type: ignore[misc]
    clear = [_count(side, lambda at, a=a: beyond(at, 0, a)) for a in (0, 1)]  # type: ignore[misc]
    return (first[0], first[1]), (side - clear[0], side - clear[1])


def _count(side: int, until: Callable[[int], bool]) -> int:
    """Count the pixels before the first, and behind the last, for which `until` holds."""
    return bisect_left(range(side), x=True, key=until)


def _nodes(root: Any) -> Iterator[Any]:
    stack, seen = [root], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [parent for parent, _ in node.next_functions]


def _explain_if_position_dependent(node: Any) -> str:
    """Explain why an operation depends on the position or the size of its input; "" if it does not."""
    name = node.name()
    statistics = "NativeGroupNorm" in name or ("BatchNorm" in name and node._saved_training)
    if statistics or ("NativeLayerNorm" in name and len(node._saved_normalized_shape) > 1):
        return "a norm takes its statistics from the whole image"
    if not name.startswith("Upsample"):
        return ""
    if getattr(node, "_saved_align_corners", False):
        return "an interpolation aligns corners, and so depends on the image's size"
    pairs = zip(node._saved_self_sym_sizes[-2:], node._saved_output_size, strict=True)
    return (
        ""
        if all(big % small == 0 for small, big in map(sorted, pairs))
        else "maps are resized by a factor that is not an integer"
    )
