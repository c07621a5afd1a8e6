"""Exact rewrites that make a network faster in eval mode, each proved on the network itself in float64.

`fast` returns a rewritten copy, whose attribute `rewrites` says what was done and by how much the outputs differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from unetkit.errors import BuildError, UnetkitError
from unetkit.parts.upsamplers import BilinearUpsampler, NearestUpsampler
from unetkit.summary.forward_hooks import collect_tensors, find_network
from unetkit.summary.input_sizes import SizeSearch
from unetkit.utils.formatting import Size, format_type
from unetkit.utils.isolation import INTERRUPTS, ignore_breakpoints
from unetkit.utils.modules import to_channels_last, to_meta
from unetkit.utils.rounding import FLOAT64_TOLERANCE

M = TypeVar("M", bound=nn.Module)
#: Exceptions of a pass that end everything; after any other, what was tried is left out.
_RAISED = (*INTERRUPTS, MemoryError)
#: The name of the rewrite that changes how weights are stored.
CHANNELS_LAST = "weights stored in channels_last memory"
#: Where a rewrite applies: the names of the modules that it changes.
Site = tuple[str, ...]


@dataclass(frozen=True)
class Rewrite:
    """A record of what one kind of rewrite did to a network.

    Attributes:
        name: what was done, in words.
        places: the names of the modules that were rewritten.
        difference: the largest difference of the outputs from those of the given network, in float64, as a share of
            their range; with the rewrites that are listed before.
        left_out: the names of modules that could have been rewritten, but then the outputs would differ.
    """

    name: str
    places: tuple[str, ...]
    difference: float
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.places and not self.left_out:
            return self.name
        what = f"{self.name}: {len(self.places)}"
        if self.places:
            what += f" ({_shorten(self.places)}), outputs differ by {self.difference:.1e} of their range"
        if self.left_out:
            what += f"; left out {len(self.left_out)} ({_shorten(self.left_out)}), which would change the outputs"
        return what


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"


def fast(model: M) -> M:
    """Return a copy of a network that computes the same in eval mode, in less time.

    Modules of timm and smp that can be reparameterized (RepVGG, MobileOne, ...) are, batch norms are folded into the
    convolutions before them, 1x1 convolutions after an interpolation are moved before it, and weights are stored in
    `channels_last` memory. Each is tried on a copy in float64, with random images of two sizes. Wherever the outputs
    would differ by 1e-10 of their range or more, it is left out.

    Args:
        model: a model from `unetkit.build`, `load` or `from_smp`, on any device and of any dtype. It is not changed.

    Returns:
        The copy, in eval mode. Its attribute `rewrites` is a list of `Rewrite`. It cannot be trained as the given
        network can, nor be saved by `unetkit.save`: save the given network, and call `fast` after loading it.

    Raises:
        BuildError: The model is not one of unetkit, or is on the meta device.
    """
    return rewrite(model, KINDS)


def rewrite(model: M, kinds: Sequence[Kind], *, channels_last: bool = True) -> M:
    """Return a rewritten copy as `fast` does, with the given kinds of rewrites only."""
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps it so
    _check(model)
    with torch.inference_mode(False):  # in which new parameters could never be differentiated
        return _rewrite(model, kinds, channels_last=channels_last)


@ignore_breakpoints()
def _rewrite(model: M, kinds: Sequence[Kind], *, channels_last: bool) -> M:
    copied = _eval_copy(model)
    exact: nn.Module = _eval_copy(model).to("cpu", torch.float64)
    proof = _Proof(exact)
    if proof.failure:
        cast(Any, copied).rewrites = [Rewrite(proof.failure, (), inf)]
        return copied
    done: list[Rewrite] = []
    for kind in kinds:
        attempt = _Attempt(kind, proof, exact)
        attempt.keep(attempt.find())
        exact = attempt.model
        for site in attempt.kept:
            kind.apply(copied, site)
        if attempt.kept or attempt.left_out:
            done.append(attempt.summary())
    if channels_last:
        difference = proof.measure(to_channels_last(exact))
        is_exact = difference < FLOAT64_TOLERANCE
        if is_exact:
            to_channels_last(copied)
        names = tuple(name for name, tensor in copied.named_parameters() if tensor.ndim == 4)
        done.append(Rewrite(CHANNELS_LAST, names if is_exact else (), difference, () if is_exact else names))
    cast(Any, copied).rewrites = done
    return copied


def _check(model: nn.Module) -> None:
    """Raise BuildError for what cannot be rewritten."""
    if not isinstance(model, nn.Module):
        raise BuildError(f"unetkit.fast takes a model from unetkit.build, not {format_type(model)}")
    try:
        find_network(model)
    except UnetkitError:
        what = "give what unetkit.build or unetkit.load returned"
        if type(model).__module__.startswith("segmentation_models_pytorch"):
            is_unet = type(model).__name__ == "Unet"
            folder = "write it by its save_pretrained, and give what unetkit.load returns for that folder"
            what = "convert it by unetkit.from_smp first" if is_unet else folder
        raise BuildError(f"unetkit.fast takes a network of unetkit, not {format_type(model)}; {what}") from None
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise BuildError(
            "the model is on the meta device and has no weights that could be rewritten; build it on the CPU or a GPU"
        )


def _eval_copy(model: M) -> M:
    copied = copy.deepcopy(model)
    for module in copied.modules():  # the eval() of a part may leave layers in training mode
        module.training = False
    return copied


#: Heights and widths of the images of a proof; odd sides make the maps of neighboring levels differ by odd pixels.
_SIZES: tuple[Size, ...] = ((64, 64), (77, 51))


class _Proof:
    """The outputs of a network in float64 on random images, with which those of rewritten copies are compared."""

    def __init__(self, model: nn.Module) -> None:
        """Run the network on a square image and on one with odd sides, or on sizes that it takes near these.

        Args:
            model: the network in float64, on the CPU and in eval mode.
        """
        self.network = find_network(model)
        self.inputs: list[Tensor] = []
        self.expected: list[list[Tensor]] = []
        error: Exception | None = None
        for size in [self.network.size] if self.network.size else _SIZES:
            error = self._add(model, size) or error
        if not self.inputs and error is not None:
            for size in SizeSearch(to_meta(model)).nearest_sizes(_SIZES[0]):
                error = self._add(model, size) or error
        self.failure = (
            ""
            if self.inputs
            else f"nothing rewritten, since the network fails in float64, in which rewrites are proved: {error!s:.200}"
        )

    def _add(self, model: nn.Module, size: Size) -> Exception | None:
        """Run the network on an image of this size; return the error if it fails."""
        generator = torch.Generator("cpu").manual_seed(len(self.inputs))
        channels = self.network.resolved_plan.in_channels
        x = torch.randn(1, channels, *size, generator=generator, dtype=torch.float64, device="cpu")
        try:
            self.expected.append(_run(model, x))
        except _RAISED:
            raise
        except Exception as error:  # a network may raise anything for a size that it does not take
            return error
        self.inputs.append(x)
        return None

    def measure(self, model: nn.Module) -> float:
        """Return the largest difference of a copy's outputs as a share of their range; inf if the copy fails."""
        try:
            found = [_run(model, x) for x in self.inputs]
        except _RAISED:
            raise
        except Exception:  # a part may fail in any way when its layers were changed
            return inf
        return max(
            _relative_difference(one, other)
            for outputs, expected in zip(found, self.expected, strict=True)
            for one, other in zip(outputs, expected, strict=True)
        )


def _run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the prediction, and the further outputs if there are any."""
    network = find_network(model)
    with torch.no_grad():
        outputs = collect_tensors(model(x))
        return [*outputs, *network.forward_outputs(x).values()] if network.outputs else outputs


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return inf
    scale = float(expected.max() - expected.min()) or float(expected.abs().max()) or 1.0
    difference = float((found - expected).abs().max()) / scale
    return difference if difference == difference else inf


class _Attempt:
    """The attempt to apply one kind of rewrite to a network, wherever it leaves the outputs as they are."""

    def __init__(self, kind: Kind, proof: _Proof, model: nn.Module) -> None:
        self.kind = kind
        self.proof = proof
        self.model = model
        self.kept: list[Site] = []
        self.left_out: list[Site] = []
        self.difference = 0.0

    def find(self) -> list[Site]:
        """Return the sites that are found with every input, in the order of the network."""
        found = [self.kind.find(self.model, x) for x in self.proof.inputs]
        return [site for site in found[0] if all(site in other for other in found)]

    def keep(self, sites: list[Site]) -> None:
        """Apply the rewrite to all these sites; if outputs differ, to each half, down to single sites."""
        if not sites:
            return
        trial = copy.deepcopy(self.model)
        difference = self._try(trial, sites)
        if difference < FLOAT64_TOLERANCE:
            self.model, self.difference = trial, difference
            self.kept += sites
        elif len(sites) == 1:
            self.left_out += sites
        else:
            middle = len(sites) // 2
            self.keep(sites[:middle])
            self.keep(sites[middle:])

    def _try(self, trial: nn.Module, sites: list[Site]) -> float:
        try:
            for site in sites:
                self.kind.apply(trial, site)
        except _RAISED:
            raise
        except Exception:  # a layer may have weights that cannot be replaced
            return inf
        return self.proof.measure(trial)

    def summary(self) -> Rewrite:
        kept, left_out = (tuple(site[-1] for site in sites) for sites in (self.kept, self.left_out))
        return Rewrite(self.kind.name, kept, self.difference, left_out)


@dataclass(frozen=True)
class Kind:
    """A kind of rewrite.

    Attributes:
        name: what it does, in words.
        find: returns the sites at which a network may be rewritten, for an input with which it is run.
        apply: rewrites one site in place, computing in float64 and keeping dtypes.
    """

    name: str
    find: Callable[[nn.Module, Tensor], list[Site]]
    apply: Callable[[nn.Module, Site], None]


# Pairs of layers


class _UseCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that take each of the tensors that are watched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched: dict[int, Tensor] = {}
        self.uses: dict[int, int] = {}

    def watch(self, tensor: Tensor) -> None:
        self.watched[id(tensor)] = tensor  # which keeps its id from being used again
        self.uses.setdefault(id(tensor), 0)

    def count(self, value: Any) -> None:
        for tensor in tree_iter(value):
            if id(tensor) in self.watched:
                self.uses[id(tensor)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _find_pairs(
    model: nn.Module,
    x: Tensor,
    is_first: Callable[[nn.Module], bool],
    is_second: Callable[[nn.Module], bool],
) -> list[Site]:
    """Run a model, and return the names of modules of which the second takes what the first returns.

    Each is called once, and nothing else takes the output of the first.
    """
    if not any(map(is_second, model.modules())):
        return []
    counter, handles = _UseCounter(), []
    outputs: dict[str, list[Any]] = {}
    inputs: dict[str, list[Any]] = {}

    def record_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs.setdefault(name, []).append(output)
            if isinstance(output, Tensor):
                counter.watch(output)

        return hook

    def record_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            inputs.setdefault(name, []).append(args[0] if args else None)

        return hook

    for name, module in model.named_modules():
        if is_first(module) and not _has_hooks(module):
            handles.append(module.register_forward_hook(record_output(name)))
        if is_second(module) and not _has_hooks(module):
            handles.append(module.register_forward_pre_hook(record_input(name)))
    try:
        with counter, torch.no_grad():
            counter.count(model(x))
    finally:
        for handle in handles:
            handle.remove()
    makers = {id(made[0]): name for name, made in outputs.items() if len(made) == 1}
    return [
        (makers[id(taken[0])], name)
        for name, taken in inputs.items()
        if len(taken) == 1 and id(taken[0]) in makers and counter.uses[id(taken[0])] == 1
    ]


def _has_hooks(module: nn.Module) -> bool:
    """Return whether hooks or a forward of its own change what a module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a module under every name that it has."""
    old = model.get_submodule(name)
    for part in new.modules():
        part.training = False
    for parent in [*model.modules()]:
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


# Batch norms


def _find_batch_norms(model: nn.Module, x: Tensor) -> list[Site]:
    return _find_pairs(model, x, _has_own_weight, _is_frozen_norm)


def _has_own_weight(module: nn.Module) -> bool:
    """Return whether a module is a convolution whose weight is a parameter of its own, not computed."""
    return isinstance(module, _ConvNd) and module._parameters.get("weight") is not None


def _is_frozen_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm that uses statistics of the training, alone or with an activation."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


def _fold_batch_norm(model: nn.Module, site: Site) -> None:
    """Scale and shift the outputs of a convolution by its weights, as the batch norm after it does."""
    conv, norm = (cast(Any, model.get_submodule(name)) for name in site)
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -_exact(norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + _exact(norm.bias)
    weight, bias = conv.weight, conv.bias
    if bias is not None:
        shift = shift + _exact(bias) * scale
    conv.weight = _parameter_like(weight, _scale_outputs(conv, _exact(weight), scale))
    conv.bias = _parameter_like(weight if bias is None else bias, shift)
    _replace(model, site[1], _rest_of_norm(norm))


def _scale_outputs(conv: _ConvNd, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply the weight of a convolution by a number for each output channel."""
    if not isinstance(conv, _ConvTransposeNd):
        return weight * scale.view(-1, *[1] * (weight.ndim - 1))
    grouped = weight.view(conv.groups, -1, *weight.shape[1:])  # (groups, in channels, out channels, kernel)
    return (grouped * scale.view(conv.groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)


def _parameter_like(old: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(old.device, old.dtype), requires_grad=old.requires_grad)


def _rest_of_norm(norm: nn.Module) -> nn.Module:
    """Return what a batch norm does beside its scale and shift: timm's have an activation, and may have a dropout."""
    rest = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()


# 1x1 convolutions after an interpolation

_INTERPOLATIONS = (BilinearUpsampler, NearestUpsampler, nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d)


class ProjectedUpsampler(nn.Module):
    """A 1x1 convolution, then an interpolation, which gives the same as the reverse order for fewer operations.

    Attributes:
        project: the convolution.
        up: the interpolation.
        out_channels: channels of the result.
    """

    def __init__(self, project: nn.Conv2d, up: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.up = up
        self.out_channels = project.out_channels

    def forward(self, x: Tensor, *size: Size) -> Tensor:
        """(B, C, h, w) -> (B, out_channels, H, W)."""
        out: Tensor = self.up(self.project(x), *size)
        return out


def _find_projections(model: nn.Module, x: Tensor) -> list[Site]:
    return _find_pairs(model, x, lambda module: type(module) in _INTERPOLATIONS, _is_projection)


def _is_projection(module: nn.Module) -> bool:
    """Return whether a module is a 1x1 convolution to no more channels than it takes."""
    if type(module) is not nn.Conv2d or not _has_own_weight(module) or module.out_channels > module.in_channels:
        return False
    is_padded = module.padding not in ((0, 0), "same", "valid")
    return module.kernel_size == (1, 1) and module.stride == (1, 1) and not is_padded


def _move_projection(model: nn.Module, site: Site) -> None:
    up, project = (model.get_submodule(name) for name in site)
    _replace(model, site[1], nn.Identity())
    _replace(model, site[0], ProjectedUpsampler(cast(nn.Conv2d, project), up))


# Modules that reparameterize themselves

_REPARAMETERIZE = ("fuse", "reparameterize", "switch_to_deploy")


def _find_reparameterizable(model: nn.Module, x: Tensor) -> list[Site]:
    return [(name,) for name, module in model.named_modules() if _method_of(module)]


def _method_of(module: nn.Module) -> Callable[[], Any] | None:
    """Return the method of a module of timm or smp that merges its branches, as `timm.utils` looks for it."""
    if not type(module).__module__.startswith(("timm.", "segmentation_models_pytorch.")):
        return None
    return next((getattr(module, name) for name in _REPARAMETERIZE if callable(getattr(module, name, None))), None)


def _reparameterize(model: nn.Module, site: Site) -> None:
    try:
        module = model.get_submodule(site[0])
    except AttributeError:
        return  # a module around it was merged
    method, first = _method_of(module), next(module.parameters(), None)
    if method is None or first is None:
        return
    device, dtype = first.device, first.dtype
    with _default_float64():
        module.to("cpu", torch.float64)
        new = method()
        new = new if isinstance(new, nn.Module) else module
    _replace(model, site[0], new.to(device, dtype))


@contextmanager
def _default_float64() -> Iterator[None]:
    """Make new layers in float64, since timm gives the merged ones no dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


REPARAMETERIZE = Kind("modules reparameterized", _find_reparameterizable, _reparameterize)
FOLD_BATCH_NORM = Kind("batch norms folded into convolutions", _find_batch_norms, _fold_batch_norm)
MOVE_PROJECTION = Kind("1x1 convolutions moved before interpolations", _find_projections, _move_projection)
#: The kinds of rewrites that `fast` applies, in order.
KINDS = (REPARAMETERIZE, FOLD_BATCH_NORM, MOVE_PROJECTION)
