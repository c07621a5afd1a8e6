"""Build a network from a plan and the registered parts: select parts, propagate channels, and reject errors early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from unetkit.errors import BuildError, OptionError, PluginError, UnetkitError
from unetkit.network import Network, WholeModel, state_shapes
from unetkit.plan import PartSpec, Plan, ResolvedPlan, UNetPlan
from unetkit.plugins import default_parts
from unetkit.registry import BUILTIN, PART_KINDS, Factory, Parts
from unetkit.resolve import NO_LOGITS, canonical_spec, minimal_plan, parse_options, resolve, signature_of
from unetkit.summary.input_sizes import verify
from unetkit.unet import BlockSequence, Stage, UNet
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import INTERRUPTS, one_line, stdout_to_stderr
from unetkit.utils.lazy_init import defer_init, preserve_rng
from unetkit.utils.module_settings import describe_modules
from unetkit.utils.modules import check_device, move_to_meta


def make_part(kind: str, part: Any, *wiring: Any, parts: Parts | None = None) -> nn.Module:
    """Create a single part: `make_part("block", "double:norm=group", 8, 16)`.

    This is for parts that contain other parts, and for trying one. During a build, names are looked up where the build
    looks them up, and the plugins of the part count as plugins of the model.

    Args:
        kind: the option, title or plural of a kind: "fuse", "fusion" or "fusions".
        part: a name with options, a PartSpec, or a class or callable.
        wiring: the positional arguments that the builder would supply to the factory.
        parts: the registered parts; None for those of the build in progress, or all that are installed.

    Raises:
        UnetkitError: The part does not exist or cannot be created with these arguments.
    """
    parts = parts or current_parts()
    word = parts[kind].kind.field
    if parts[kind].kind not in PART_KINDS:
        raise OptionError(f"{kind}: make_part makes parts of a network, such as fusions")
    spec = canonical_spec(word, PartSpec.of(part), parts)
    return cast(nn.Module, PartBuilder(parts)(word, spec, wiring))


#: The build that is in progress: its registry, and the owners of the parts that it uses.
_CURRENT_BUILD: ContextVar[tuple[Parts, set[str]] | None] = ContextVar("_CURRENT_BUILD", default=None)


def current_parts() -> Parts:
    """Return the registered parts of the build in progress, or all that are installed."""
    parts, _ = _CURRENT_BUILD.get() or (None, set())
    return parts or default_parts()


@contextmanager
def build_context(parts: Parts) -> Iterator[set[str]]:
    """Look names up in these parts within the context; yields the owners of the parts that are created in it."""
    _, outside = _CURRENT_BUILD.get() or (None, set())
    owners: set[str] = set()
    token = _CURRENT_BUILD.set((parts, owners))
    try:
        yield owners
    finally:
        _CURRENT_BUILD.reset(token)
        outside |= owners  # a part may build a whole network


class MadePart(NamedTuple):
    """A part with its kind and plugin, and the positional arguments and the options that it was made with.

    The plugin is "" for a part that is given as a Python object.
    """

    part: nn.Module
    word: str
    owner: str
    wiring: tuple[Any, ...]
    options: dict[str, Any]


_RECORDED: ContextVar[dict[int, MadePart] | None] = ContextVar("_RECORDED", default=None)


@contextmanager
def record_parts() -> Iterator[dict[int, MadePart]]:
    """Record every part that is created in the context; yields the parts by their ids."""
    made: dict[int, MadePart] = {}
    token = _RECORDED.set(made)
    try:
        yield made
    finally:
        _RECORDED.reset(token)


class PartBuilder:
    """Creates parts one after the other; errors name the part, and the stage at which it does not fit."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __call__(self, word: str, spec: PartSpec, wiring: tuple[Any, ...], where: str = "", **extra: Any) -> Any:
        """Create a part.

        Args:
            word: the option that the part was given for, without dashes.
            spec: its name and options, or a chain of blocks.
            wiring: the positional arguments of its factory.
            where: the stage, for messages.
            extra: further options of its factory, which the plan has as fields.
        """
        if spec.chained:
            if len(wiring) != 2:
                raise BuildError(
                    f"--{word} {spec} needs in_channels and out_channels; got {_format_args(wiring) or 'none'}"
                )
            first, *rest = spec.links
            alike = (wiring[-1], wiring[-1])  # the following blocks keep the number of channels
            chain = BlockSequence(self(word, first, wiring, where), *(self(word, link, alike, where) for link in rest))
            return self._record(MadePart(chain, word, BUILTIN, wiring, {}))
        known = signature_of(word, spec, self.parts)
        options = {**parse_options(word, spec, known), **extra}
        factory, owner = self.load(word, spec, where)
        try:
            with stdout_to_stderr(), _construction_context(word, owner):
                part = factory(*wiring, **options)
        except UnetkitError as error:
            raise type(error)(f"--{word} {spec}{where}: {error}") from error
        except INTERRUPTS:
            raise
        except BaseException as error:  # a bug in the code of a part; the message names the part and its owner
            of = f" (of {owner})" if owner else ""
            why = f"with the positional arguments {_format_args(wiring)} failed: {one_line(error)}"
            raise BuildError(f"--{word} {spec}{of}{where} {why}") from error
        if not isinstance(part, nn.Module):
            what = f"made an object of type {type(part).__name__}; a part is a torch.nn.Module"
            raise BuildError(f"--{word} {spec}{where} {what}")
        if any(isinstance(p, UninitializedParameter) for p in part.parameters()):
            raise BuildError(f"--{word} {spec}{where} has lazy layers, whose shapes are unknown; give their channels")
        if torch.get_default_device().type == "meta":
            move_to_meta(part)
        return self._record(MadePart(part, word, owner, wiring, options))

    def _record(self, made: MadePart) -> nn.Module:
        _, owners = _CURRENT_BUILD.get() or (None, set())
        owners.add(made.owner)
        if (recorded := _RECORDED.get()) is not None:
            recorded[id(made.part)] = made
        return made.part

    def load(self, word: str, spec: PartSpec, where: str = "") -> tuple[Factory, str]:
        """Return the factory of a part, imported if necessary, and its owner; "" for a Python object."""
        if spec.factory is not None:
            return spec.factory, ""
        entry = self.parts[word].get(spec.name)
        try:
            with torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext():
                return entry.load(), entry.owner
        except PluginError as error:
            raise PluginError(f"--{word} {spec} (of {entry.owner}){where}: {error}") from error

    def build_declaring(self, word: str, spec: PartSpec, wiring: tuple[Any, ...], where: str = "") -> Any:
        """Create a part that declares its output channels in `out_channels`."""
        part = self(word, spec, wiring, where)
        out_channels = getattr(part, "out_channels", None)
        if not _is_positive_integers((out_channels,)):
            raise BuildError(
                f"--{word} {spec}{where} must have an integer attribute out_channels; it has {out_channels!r}"
            )
        return part

    def sized_options(self, word: str, spec: PartSpec, plan: Plan) -> dict[str, Any]:
        """Return the option `img_size` with the plan's size for a factory that has this option and was not given it."""
        options = {option.name for option in signature_of(word, spec, self.parts).options}
        takes_size = plan.size and "img_size" in options.difference(name for name, _ in spec.options)
        return {"img_size": plan.size} if takes_size else {}


@contextmanager
def _construction_context(word: str, owner: str) -> Iterator[None]:
    """Prepare for the code of a part: its random weights may be drawn later, and on the meta device none are.

    Weights are drawn later only for built-in encoders and blocks, which have most of them. What the code of a plugin
    does while it builds is unknown, and some of it, such as reading a weight through numpy, cannot be observed.

    Where the device is meta, the code of plugins runs on the CPU, and `move_to_meta` moves the result: a constant that
    it creates at its first call and keeps for all later ones must have values.
    """
    if owner == BUILTIN:
        is_meta = torch.get_default_device().type == "meta"  # each fill takes milliseconds there and draws nothing
        with defer_init() if is_meta or word in ("encoder", "block") else nullcontext():
            yield
    elif torch.get_default_device().type == "meta":
        with torch.device("cpu"), preserve_rng(), defer_init(discard=True):
            yield
    else:
        yield


def _format_args(wiring: tuple[Any, ...]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in wiring)


#: The largest default width of a stage, which otherwise has as many channels as its skip.
MAX_WIDTH = 512


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
        encoder: a part; or a whole Plan, or a line such as "--encoder resnet101 --fuse add", which the other words
            override.
        recipe: the name of a U-Net to start from.
        model: a whole model in place of parts, such as "smp/unetplusplus"; beside it only `encoder` and the words from
            `in_channels` on may be given.
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
    if isinstance(encoder, str) and encoder.lstrip().startswith("--"):
        encoder = Plan.parse(encoder)
    plan = encoder if isinstance(encoder, Plan) else Plan()
    words = Plan.of(
        encoder=None if isinstance(encoder, Plan) else encoder,
        recipe=recipe,
        model=model,
        up=up,
        fuse=fuse,
        align=align,
        block=block,
        head=head,
        logits=logits,
        widths=widths,
        decode_to=decode_to,
        in_channels=in_channels,
        classes=classes,
        size=size,
        pretrained=pretrained,
        seed=seed,
    )
    if not isinstance(parts, Parts | None):
        raise OptionError(f"parts={parts!r:.80} is not a Parts object; use unetkit.load_parts(plugins=[...])")
    return build_plan(words.with_defaults(plan), parts or current_parts(), device)


def build_plan(plan: Plan, parts: Parts, device: Any = None, *, pretrained: bool = True, check: bool = True) -> Network:
    """Build the model of a plan, and let plugins wrap the result.

    Args:
        plan: the plan.
        parts: the registered parts.
        device: the device on which the model is created.
        pretrained: whether to load the weights that the plan requests; False if others will replace them.
        check: whether to pass meta tensors through the network; False if that was done for the same plan.
    """
    resolved = resolve(plan, parts)
    check_device(device)
    make = PartBuilder(parts)
    # Before the device's context, where the tensors that a module creates when it is imported would be lost.
    loaded = [make.load(word, spec) for word, spec in resolved.specs() if spec != NO_LOGITS]
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(torch.device(device))
        if resolved.seed is not None:
            stack.enter_context(_seeded(resolved.seed, device))
        owners = stack.enter_context(build_context(parts))
        given = resolved if pretrained else replace(resolved, pretrained=None)
        network, derived = _build_unet(make, given) if isinstance(given, UNetPlan) else _build_whole(make, given)
        if given.pretrained or getattr(network.encoder, "weights_from", "random") != "random":
            network.loaded = (_find_pretrained_part(network),)
        complete = replace(resolved.with_defaults(derived), base=resolved.base.with_defaults(derived))
        network.resolved_plan, network.plan = complete, minimal_plan(complete, parts)
        owners.update(owner for _, owner in loaded)  # recipes, and parts that have nothing to do, are not made
        wrapped, wrappers = parts.wrap_model(network, network.resolved_plan, owners)
    model = cast(Network, wrapped)
    try:
        model.plan, model.built_shapes = network.plan, state_shapes(model)
        model.built_modules = describe_modules(model)
    except AttributeError as error:
        named = f"{', '.join(sorted(wrappers))} made a {type(model).__name__}"
        raise PluginError(f"plugin {named} of a model, which cannot store its plan: {error}") from error
    used = (owners | wrappers) - {BUILTIN}
    network.plugins = tuple(plugin for plugin in parts.plugins if plugin.loaded and plugin.name in used)
    if check and (plan.size is not None or used or resolved.model is not None):
        with stdout_to_stderr():
            verify(model, any_size=plan.size is None)
    return model


def _find_pretrained_part(network: Network) -> str:
    """Return the name of the module that pretrained weights filled. Raise BuildError if there is no such module."""
    name = network.pretrained_name
    try:
        network.get_submodule(name)
    except AttributeError as error:
        what = f"{type(network.encoder).__name__} declares pretrained_part={network.encoder.pretrained_part!r}"
        raise BuildError(f"{what}, but has no such module; name one of its modules, or leave it out") from error
    return name


@contextmanager
def _seeded(seed: int, device: Any) -> Iterator[None]:
    """Draw from a seed, and restore the random state afterwards, including that of the device."""
    target = torch.get_default_device() if device is None else torch.device(device)
    on_gpu = [target] if target.type == "cuda" else []
    with preserve_rng(*on_gpu):
        torch.default_generator.manual_seed(seed)
        for gpu in on_gpu:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def _build_unet(make: PartBuilder, plan: UNetPlan) -> tuple[Network, Plan]:
    """Build a U-Net: the encoder, then a stage for each level, deep to shallow, then the head.

    Returns:
        The network, and the defaults that follow from the encoder: widths and logits.
    """
    encoder = _build_encoder(make, plan)
    levels = _list_levels(encoder, plan)
    defaults = Plan(widths=_default_widths(encoder, levels))
    widths = broadcast_levels("widths", plan.widths or defaults.widths, levels)
    stages = _build_stages(make, plan, encoder, levels, widths)
    valid = any(getattr(part, "valid", False) for part in (encoder, *(stage.block for stage in stages)))
    defaults = replace(defaults, logits=NO_LOGITS if valid else PartSpec("bilinear"))
    network = UNet(
        encoder,
        stages,
        [level.skip for level in levels],
        make("head", plan.head, (widths[-1], plan.classes)),
        _build_logits(make, plan.with_defaults(defaults)),
        min_size=1 if valid else getattr(encoder, "min_size", max(encoder.strides)),
        multiple=getattr(encoder, "multiple", 1),
        size=getattr(encoder, "size", None),
        valid=valid,
    )
    return network, defaults


def _build_whole(make: PartBuilder, plan: ResolvedPlan) -> tuple[Network, Plan]:
    """Build a whole model, which is given its encoder as text with its library, as in "timm/resnet34"."""
    spec = cast(PartSpec, plan.model)
    extra: dict[str, Any] = {"pretrained": plan.pretrained} if plan.pretrained else {}
    if plan.encoder is not None:
        entry = make.parts.encoders.get(plan.encoder.name)
        if plan.encoder.objects:
            raise BuildError(
                f"--encoder {plan.encoder}: a whole model takes the name of its encoder, with options that are text; "
                "leave out what is given as an object"
            )
        full = replace(plan.encoder, name=f"{entry.library}/{entry.name}" if entry.library else entry.name)
        extra["encoder"] = str(full)
    extra |= make.sized_options("model", spec, plan)
    return WholeModel(make("model", spec, (plan.in_channels, plan.classes), **extra)), Plan()


def _build_encoder(make: PartBuilder, plan: UNetPlan) -> Any:
    spec = plan.encoder
    extra = make.sized_options("encoder", spec, plan)
    if plan.pretrained:
        if not any(option.name == "pretrained" for option in signature_of("encoder", spec, make.parts).options):
            raise BuildError(f"--pretrained: encoder {spec.name} has no pretrained weights; leave it out")
        extra["pretrained"] = plan.pretrained
    encoder = make("encoder", spec, (plan.in_channels,), **extra)
    channels, strides = getattr(encoder, "channels", ()), getattr(encoder, "strides", ())
    is_declared = all(_is_positive_integers(declared) for declared in (channels, strides))
    if not is_declared or len(channels) != len(strides) or any(a >= b for a, b in pairwise(strides)):
        raise BuildError(
            f"--encoder {spec} declares channels {channels} and strides {strides}; "
            "it must declare as many of each, as tuples of positive integers, with strides that increase"
        )
    return encoder


def _is_positive_integers(declared: Any) -> bool:
    is_sequence = isinstance(declared, tuple | list) and len(declared) > 0
    return is_sequence and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in declared)


class Level(NamedTuple):
    """The stride at which a stage ends, its scale, and the index of the encoder's map that it fuses, if any."""

    stride: int
    scale: float
    skip: int | None


def _list_levels(encoder: Any, plan: UNetPlan) -> list[Level]:
    """Return the levels from the deepest map to the stride where the decoder ends; the last ones may have no skip."""
    *strides, stride = encoder.strides
    if plan.decode_to >= stride:
        raise BuildError(
            f"--decode-to {plan.decode_to}: must be below {stride}, the stride of the deepest map of {plan.encoder}"
        )
    ends: list[tuple[int, int | None]] = [(s, i) for i, s in reversed([*enumerate(strides)]) if s >= plan.decode_to]
    last = ends[-1][0] if ends else stride
    while last > plan.decode_to:
        last = last // 2 if last % 2 == 0 and last // 2 >= plan.decode_to else plan.decode_to
        ends.append((last, None))
    starts = [stride, *(end for end, _ in ends)]
    return [Level(end, start / end, skip) for start, (end, skip) in zip(starts, ends, strict=False)]


def _default_widths(encoder: Any, levels: list[Level]) -> tuple[int, ...]:
    """Return the width of the skip, at most MAX_WIDTH, or half the width of the previous stage without a skip."""
    wanted = getattr(encoder, "widths", None) or encoder.channels
    widths: list[int] = []
    for level in levels:
        before = widths[-1] if widths else encoder.channels[-1]
        widths.append(max(1, before // 2) if level.skip is None else min(MAX_WIDTH, wanted[level.skip]))
    return tuple(widths)


def _build_stages(
    make: PartBuilder, plan: UNetPlan, encoder: Any, levels: list[Level], widths: tuple[int, ...]
) -> list[Stage]:
    ups, blocks = broadcast_levels("up", plan.up, levels), broadcast_levels("block", plan.block, levels)
    with_skip = [level for level in levels if level.skip is not None]  # the first ones, so the indices agree
    fuses, aligns = broadcast_levels("fuse", plan.fuse, with_skip), broadcast_levels("align", plan.align, with_skip)
    channels, stages = encoder.channels[-1], []
    for index, level in enumerate(levels):
        where = f" at stages.{index} (stride {level.stride})"
        up = make.build_declaring("up", ups[index], (channels, level.scale), where)
        channels, align, fusion = up.out_channels, None, None
        if level.skip is not None:
            align = make("align", aligns[index], (), where)
            fusion = make.build_declaring("fuse", fuses[index], (channels, encoder.channels[level.skip]), where)
            channels = fusion.out_channels
        block = make("block", blocks[index], (channels, widths[index]), where)
        channels = widths[index]
        stages.append(Stage(up, align, fusion, block, scale=level.scale, stride=level.stride))
    return stages


def _build_logits(make: PartBuilder, plan: UNetPlan) -> nn.Module | None:
    if plan.logits is None or plan.logits == NO_LOGITS:
        return None
    part = make.build_declaring("logits", plan.logits, (plan.classes, plan.decode_to))
    if part.out_channels != plan.classes:
        raise BuildError(
            f"--logits {plan.logits}: turns {plan.classes} channels, one for each class, into {part.out_channels}; "
            "take one that keeps them (such as transposed:channels=keep)"
        )
    return cast(nn.Module, part)


T = TypeVar("T")


def broadcast_levels(word: str, given: tuple[T, ...] | None, levels: list[Level]) -> tuple[T, ...]:
    """Return a value for each level from one for all or one for each. Raises BuildError for any other number."""
    given = given or ()
    if len(given) == 1 and (word != "widths" or len(levels) == 1):
        return given * len(levels)
    if len(given) != len(levels):
        strides = ", ".join(str(level.stride) for level in levels)
        kind = " that join a skip" if word in ("fuse", "align") else ""
        one = "" if word == "widths" or len(levels) == 1 else "one, or "
        are, at = ("is", "stride") if len(levels) == 1 else ("are", "strides")
        values, count = format_plural(len(given), "value"), format_plural(len(levels), "level")
        raise BuildError(
            f"--{word} gives {values}, but there {are} {count}{kind} (at {at} {strides}); "
            f"give {one}{len(levels)}, deep to shallow"
        )
    return given
