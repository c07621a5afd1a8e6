"""Moving over: a trained U-Net of segmentation_models_pytorch (smp) becomes one of ours, proved equal in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from unetkit.builder import build_plan
from unetkit.deploy.smp_unets import changed, counterparts, lost, plans, tensors_for
from unetkit.errors import CannotBuild, UnetkitError
from unetkit.foreign import one_line
from unetkit.lazyinit import set_aside
from unetkit.maker import parts_here
from unetkit.meta import mode_kept
from unetkit.plan import Plan
from unetkit.unet import UNet
from unetkit.whole import Whole

#: How far outputs may be apart, as a share of the largest.
_APART = 1e-5


def from_smp(model: nn.Module) -> UNet:
    """The U-Net of ours that gives what a `smp.Unet` gives in eval mode, with copies of its weights.

    Both are run on one small input before it is returned, in eval mode; outputs differ by less than 1e-5 of the
    largest. The encoder is timm's where smp took it from there (`tu-`) or has the same (ResNets, ResNeXts, SE-nets,
    MobileOne), else smp's own. Dtypes, device, training or eval mode, and what is frozen are kept.

    Args:
        model: on any device; it is left as it was. Also what `unetkit.build(model="smp/unet")` gives.

    Returns:
        The network; `str(network.plan)` is the line that rebuilds it.

    Raises:
        CannotBuild: it is no `smp.Unet`, was changed after it was built, or has what we cannot say, all of which is
            named; or it gives the same at every pixel, by which nothing is proved.
    """
    theirs = _theirs(model)
    why: UnetkitError | None = None
    for plan in plans(theirs):
        try:
            return _moved(theirs, plan)
        except UnetkitError as error:
            why = error
    raise CannotBuild(f"this smp.Unet cannot be carried over: {why}") from why


def _theirs(model: nn.Module) -> Any:
    """The U-Net of smp in what was given, if all of it can be carried."""
    model = getattr(model, "_orig_mod", model)  # as torch.compile wraps it
    model = model.model if isinstance(model, Whole) else model
    if type(model) is not smp.Unet:
        raise CannotBuild(f"a {type(model).__name__} is no smp.Unet; unetkit.from_smp takes what smp.Unet(...) gives")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise CannotBuild("this smp.Unet is on the meta device and has no weights; build it on the cpu or a gpu")
    names = lost(model) or [f"{name}, which was changed after it was built" for name in changed(model)]
    if names:
        raise CannotBuild(f"this smp.Unet cannot be carried over; we have no word for {'; '.join(names)}")
    return model


def _moved(theirs: Any, plan: Plan) -> UNet:
    """The network of a plan with their weights, proved."""
    first = next(theirs.parameters())
    # Random weights that nobody sees should not change what is drawn next.
    with set_aside(*[first.device] if first.is_cuda else []):
        ours = cast(UNet, build_plan(plan, parts_here(), first.device))
    names = counterparts(theirs, ours)
    try:
        ours.to(first.dtype).load_state_dict(tensors_for(ours, theirs, names), assign=True)
    except RuntimeError as error:
        raise CannotBuild(f"{plan} has other tensors: {' '.join(str(error).split())[:300]}") from error
    _prove(theirs, ours, plan)
    _as_trained(theirs, ours, names)
    vars(ours.encoder)["weights_from"] = "an smp.Unet"
    return ours


def _prove(theirs: Any, ours: UNet, plan: Plan) -> None:
    """Refuse where the two do not give the same in eval mode."""
    one, other = _runnable(theirs), _runnable(ours)
    why = ""
    for size in _sizes(theirs, ours):
        x = torch.rand(1, theirs.config["in_channels"], *size, generator=torch.Generator().manual_seed(0))
        try:
            there = _run(one, x)
        except MemoryError:
            raise
        except Exception as error:  # whatever a model says to a size that it does not take
            why = one_line(error)
            continue
        if torch.equal(there.amin((2, 3)), there.amax((2, 3))):
            why = "its output is the same at every pixel; train it first"
            continue
        difference, most = (_run(other, x) - there).abs().max().item(), there.abs().max().item()
        if difference <= _APART * most:
            return
        raise CannotBuild(f"{plan} gives outputs that differ by {difference:.3g}, where the largest is {most:.3g}")
    raise CannotBuild(f"{plan} cannot be compared: {why[:300]}")


def _sizes(theirs: Any, ours: UNet) -> Iterator[tuple[int, int]]:
    """A small size, and the one that the encoder is made for."""
    yield ours.padded_size((64, 64))
    config = getattr(getattr(theirs.encoder, "model", None), "pretrained_cfg", {})
    size = theirs.config.get("img_size") or config.get("input_size", (64,))[-1]
    yield (size, size) if isinstance(size, int) else tuple(size)


def _runnable(model: Any) -> Any:
    """The model where sums are exact to float32: a copy of one on a gpu or in another dtype."""
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in model.parameters())
    return model if plain else copy.deepcopy(model).to("cpu", torch.float32)


def _run(model: Any, x: Tensor) -> Tensor:
    with mode_kept(model), torch.no_grad():
        for module in model.modules():  # smp's eval() passes over a frozen encoder
            module.training = False
        out: Tensor = model(x)
        return out


def _as_trained(theirs: Any, ours: UNet, names: dict[str, str]) -> None:
    """Train what theirs trains: mode and frozen parameters, also of single layers."""
    ours.train(theirs.training)
    ours.encoder.train(theirs.encoder.training)
    parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(parameters[names[name]].requires_grad)
    for name, there in names.items():
        ours.get_submodule(name.rpartition(".")[0]).training = theirs.get_submodule(there.rpartition(".")[0]).training
