"""From a plan and the registered parts to a network: picks parts, negotiates channels, refuses early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from unetkit.errors import BadOption, CannotBuild, PluginError
from unetkit.foreign import quiet
from unetkit.inspect.limits import prove
from unetkit.lazyinit import set_aside
from unetkit.maker import OURS, Level, Maker, one_each, owner_of, parts_here, under_way
from unetkit.meta import check_device
from unetkit.network import Network, layout_of
from unetkit.plan import PartSpec, Plan
from unetkit.registry import Parts
from unetkit.resolve import NO_LOGITS, resolve, shortest
from unetkit.unet import UNet
from unetkit.whole import Whole

#: A stage is as wide as the skip that it joins, up to this.
WIDEST = 512


def build(
    encoder: Any = None,
    *,
    recipe: Any = None,
    model: Any = None,
    up: Any = None,
    fuse: Any = None,
    align: Any = None,
    block: Any = None,
    head: Any = None,
    logits: Any = None,
    widths: Any = None,
    decode_to: Any = None,
    in_channels: Any = None,
    classes: Any = None,
    size: Any = None,
    pretrained: Any = None,
    seed: Any = None,
    parts: Parts | None = None,
    device: Any = None,
) -> Network:
    """Build a U-Net.

    The words are those of the command line: `build("resnet101", fuse="add")` is
    `unetkit build --encoder resnet101 --fuse add`. `unetkit.list_parts` lists the names.

    Args:
        encoder: a part, or a whole Plan, which the other words override.
        recipe: the name of a U-Net to start from.
        model: a whole model in place of parts, such as "smp/unetplusplus"; beside it only `encoder` and the words from
            `in_channels` on may be said.
        up, fuse, align, block: a part, or a list (or "a/b/c") of one a level, deep to shallow.
        head, logits: a part; logits may be "none".
        widths: the decoder's channels, deep to shallow.
        decode_to: the stride to decode to.
        in_channels, classes: channels of input and output; 3 and 2 unless a recipe says otherwise.
        size: the input size that it is meant for, an int or (height, width).
        pretrained: True for timm's encoder weights, or the path of a file.
        seed: fixes the random weights; the global random state is left as it was.
        parts: where names are looked up; all that is installed, if None (within a part, where its own build looks).
        device: where the model is made; "meta" costs no weights.

    A part is a name with options ("transposed:kernel=4"), a PartSpec, or a class or callable with the signature
    of its kind (see `unetkit.protocols`).

    Returns:
        The network, in training mode; `str(model.plan)` is the shortest line that rebuilds it.

    Raises:
        UnetkitError: one line that says what does not fit, where, and what to do instead.
    """
    plan = encoder if isinstance(encoder, Plan) else Plan()
    words = {
        "encoder": None if isinstance(encoder, Plan) else encoder,
        "recipe": recipe,
        "model": model,
        "up": up,
        "fuse": fuse,
        "align": align,
        "block": block,
        "head": head,
        "logits": logits,
        "widths": widths,
        "decode_to": decode_to,
        "in_channels": in_channels,
        "classes": classes,
        "size": size,
        "pretrained": pretrained,
        "seed": seed,
    }
    if not isinstance(parts, Parts | None):
        raise BadOption(f"parts={parts!r:.80} is no Parts; unetkit.load_parts(plugins=[...]) returns one")
    return build_plan(Plan.of(**words).over(plan), parts or parts_here(), device)


def build_plan(plan: Plan, parts: Parts, device: Any = None, *, pretrained: bool = True) -> Network:
    """Build what a plan says, and let plugins wrap the result.

    Args:
        plan: what was said.
        parts: where names are looked up.
        device: where the model is made.
        pretrained: whether to load the weights that the plan asks for; not where others take their place.
    """
    whole, base = resolve(plan, parts)
    check_device(device)
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(torch.device(device))
        if whole.seed is not None:
            stack.enter_context(_seeded(whole.seed, device))
        owners = stack.enter_context(under_way(parts))
        assemble = _assemble if whole.model is None else _wrapped
        network, derived = assemble(whole if pretrained else replace(whole, pretrained=None), parts)
        network.whole = whole.over(derived)
        network.plan = shortest(network.whole, base.over(derived))
        owners.update(owner_of(word, spec, parts) for word, spec in network.whole.specs())
        wrapped, wrappers = parts.wrap(network, network.whole, owners)
    model = cast(Network, wrapped)
    try:
        model.plan, model.layout = network.plan, layout_of(model)
    except AttributeError as error:
        named = f"{', '.join(sorted(wrappers))} made a {type(model).__name__}"
        raise PluginError(f"plugin {named} of a model, which takes no plan or layout: {error}") from error
    used = (owners | wrappers) - {OURS}
    network.plugins = tuple(plugin for plugin in parts.plugins if plugin.loaded and plugin.name in used)
    if plan.size is not None or used or whole.model is not None:
        with quiet():
            prove(model, any_size=plan.size is None)
    return model


@contextmanager
def _seeded(seed: int, device: Any) -> Iterator[None]:
    """Draw from a seed and leave the random state as it was, that of the device built on included."""
    target = torch.get_default_device() if device is None else torch.device(device)
    on_gpu = [target] if target.type == "cuda" else []
    with set_aside(*on_gpu):
        torch.default_generator.manual_seed(seed)
        for gpu in on_gpu:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def _assemble(plan: Any, parts: Parts) -> tuple[Network, Plan]:
    """The network of a whole plan, and the words that follow from its encoder where nothing is said.

    A whole plan is typed Any here and below: it says every word that a network needs, and a twin of Plan would be
    needed only to say so.
    """
    make = Maker(plan, parts)
    encoder = make.encoder()
    levels = _levels(encoder, plan)
    derived = Plan(widths=_default_widths(encoder, levels))
    stages = make.stages(encoder, levels, one_each("widths", plan.widths or derived.widths, levels))
    valid = any(getattr(part, "valid", False) for part in (encoder, *(stage.block for stage in stages)))
    derived = replace(derived, logits=NO_LOGITS if valid else PartSpec("bilinear"))
    network = UNet(
        encoder,
        stages,
        make("head", plan.head, (make.out_channels, plan.classes)),
        make.logits(plan.logits or derived.logits, plan.decode_to),
        skips=tuple(level.skip for level in levels if level.skip is not None),
        min_size=1 if valid else getattr(encoder, "min_size", max(encoder.strides)),
        multiple=1 if valid else getattr(encoder, "multiple", 1),
        size=getattr(encoder, "size", None),
        valid=valid,
    )
    return network, derived


def _wrapped(plan: Any, parts: Parts) -> tuple[Network, Plan]:
    """The network of a plan that names a whole model."""
    return Whole(Maker(plan, parts).model()), Plan()


def _levels(encoder: Any, plan: Any) -> list[Level]:
    """The stages that lead from the deepest map to the stride to decode to; the last ones may join no map."""
    *strides, stride = encoder.strides
    if plan.decode_to >= stride:
        raise CannotBuild(f"--decode-to {plan.decode_to}: the deepest map of {plan.encoder} is at stride {stride}")
    ends: list[tuple[int, int | None]] = [(s, i) for i, s in reversed([*enumerate(strides)]) if s >= plan.decode_to]
    last = ends[-1][0] if ends else stride
    while last > plan.decode_to:
        last = last // 2 if last % 2 == 0 and last // 2 >= plan.decode_to else plan.decode_to
        ends.append((last, None))
    starts = [stride, *(end for end, _ in ends)]
    return [Level(end, start / end, skip) for start, (end, skip) in zip(starts, ends, strict=False)]


def _default_widths(encoder: Any, levels: list[Level]) -> tuple[int, ...]:
    """As wide as the skip, at most WIDEST; half as wide as the stage before where there is no skip."""
    wanted = getattr(encoder, "widths", None) or encoder.channels
    widths: list[int] = []
    for level in levels:
        before = widths[-1] if widths else encoder.channels[-1]
        widths.append(max(1, before // 2) if level.skip is None else min(WIDEST, wanted[level.skip]))
    return tuple(widths)
