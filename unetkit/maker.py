"""Makes parts: each from its word and spec, with what it is told by the parts before it, and its owner remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn
from torch.nn.parameter import UninitializedParameter

from unetkit.errors import CannotBuild, PluginError, UnetkitError
from unetkit.foreign import one_line, quiet
from unetkit.lazyinit import drawn_once
from unetkit.plan import PartSpec, Plan
from unetkit.plugins import default_parts
from unetkit.registry import Parts
from unetkit.resolve import NO_LOGITS, canonical, kind_of, signature_of, typed_options
from unetkit.unet import Chain, Stage


def make_part(kind: str, part: Any, *wiring: Any, parts: Parts | None = None) -> nn.Module:
    """Make one part alone: `make_part("block", "double:norm=group", 8, 16)`.

    For parts that hold others, and for trying one. Names are looked up where the build that is under way looks them
    up, and what it is made of counts among the model's.

    Args:
        kind: the word, title or plural of a kind: "fuse", "fusion" or "fusions".
        part: a name with options, a PartSpec, or a class or callable.
        wiring: what the builder would supply: the positional arguments of its kind's factory.
        parts: where names are looked up; those of the build under way, or all that is installed, if None.

    Raises:
        UnetkitError: there is no such part, or it cannot be made so.
    """
    parts = parts or parts_here()
    word = parts[kind].kind.word
    spec = canonical(word, PartSpec.of(part), parts)
    _, owners = _UNDER_WAY.get() or (None, set())
    owners.update(owner_of(word, link, parts) for link in spec.links)
    return cast(nn.Module, Maker(Plan(), parts)(word, spec, wiring))


#: The build that a part may be made for: where it looks names up, and the owners of the parts that it has.
_UNDER_WAY: ContextVar[tuple[Parts, set[str]] | None] = ContextVar("_UNDER_WAY", default=None)


def parts_here() -> Parts:
    """Where names are looked up: as the build under way does, or else among all that is installed."""
    parts, _ = _UNDER_WAY.get() or (None, set())
    return parts or default_parts()


@contextmanager
def under_way(parts: Parts) -> Iterator[set[str]]:
    """Look names up in these parts within; gives the owners of what is made, which grows meanwhile."""
    _, outside = _UNDER_WAY.get() or (None, set())
    owners: set[str] = set()
    token = _UNDER_WAY.set((parts, owners))
    try:
        yield owners
    finally:
        _UNDER_WAY.reset(token)
        outside |= owners  # a part may build a whole network


OURS = "unetkit"


def owner_of(word: str, spec: PartSpec, parts: Parts) -> str:
    """Who registered a part; unetkit's own are known to join. "" for a Python object."""
    if spec == NO_LOGITS:
        return OURS
    return "" if spec.factory is not None else parts[kind_of(word)].get(spec.name).owner


class Level(NamedTuple):
    """Where a stage stands: the stride it ends at, its scale, and the index of the map that it joins."""

    stride: int
    scale: float
    skip: int | None


class Maker:
    """Makes a plan's parts one after the other, and says where it stands when one does not fit."""

    def __init__(self, plan: Any, parts: Parts) -> None:
        self.plan = plan
        self.parts = parts
        self.out_channels = 0

    def __call__(self, word: str, spec: PartSpec, wiring: tuple[Any, ...], where: str = "", **extra: Any) -> Any:
        if spec.then:
            if len(wiring) != 2:
                raise CannotBuild(f"--{word} {spec} needs in_channels and out_channels; got {_told(wiring) or 'none'}")
            first, *rest = spec.links
            alike = (wiring[-1], wiring[-1])  # what follows keeps the channels
            return Chain(self(word, first, wiring, where), *(self(word, link, alike, where) for link in rest))
        known = signature_of(word, spec, self.parts)
        options = {**typed_options(word, spec, known), **extra}
        factory, owner = spec.factory, ""
        if factory is None:
            entry = self.parts[kind_of(word)].get(spec.name)
            owner = f" (of {entry.owner})"
            try:
                factory = entry.load()
            except PluginError as error:
                raise PluginError(f"--{word} {spec}{owner}{where}: {error}") from error
        # Only for our own encoders, which draw most weights twice: what a plugin does while it builds is not ours to
        # know, and some of it (reading a weight through numpy) cannot be seen.
        ours = word == "encoder" and owner_of(word, spec, self.parts) == OURS
        try:
            with quiet(), drawn_once() if ours else nullcontext():
                part = factory(*wiring, **options)
        except UnetkitError as error:
            raise type(error)(f"--{word} {spec}{where}: {error}") from error
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a foreign factory's own mistake: say whose and where
            why = f"with {_told(wiring)} failed: {one_line(error)}"
            raise CannotBuild(f"--{word} {spec}{owner}{where} {why}") from error
        if not isinstance(part, nn.Module):
            raise CannotBuild(f"--{word} {spec}{where} made a {type(part).__name__}; a part is a torch.nn.Module")
        if any(isinstance(p, UninitializedParameter) for p in part.parameters()):
            raise CannotBuild(f"--{word} {spec}{where} has lazy layers, whose shapes are not known yet; give channels")
        return part

    def encoder(self) -> Any:
        spec, plan = self.plan.encoder, self.plan
        extra: dict[str, Any] = {}
        takes = {option.name for option in signature_of("encoder", spec, self.parts).options}
        if plan.pretrained:
            if "pretrained" not in takes:
                raise CannotBuild(f"--pretrained: encoder {spec.name} has no weights to load; leave it out")
            extra["pretrained"] = plan.pretrained
        if plan.size and "img_size" in takes.difference(name for name, _ in spec.options):
            extra["img_size"] = plan.size
        encoder = self("encoder", spec, (plan.in_channels,), **extra)
        channels, strides = getattr(encoder, "channels", ()), getattr(encoder, "strides", ())
        if not channels or len(channels) != len(strides) or any(a >= b for a, b in pairwise((0, *strides))):
            raise CannotBuild(
                f"--encoder {spec} declares channels {channels} and strides {strides}; "
                "it must declare as many of each, with strides that increase"
            )
        return encoder

    def model(self) -> nn.Module:
        """The whole model of a plan; its encoder is told with the library that it is of, as "timm/resnet34"."""
        spec, plan = self.plan.model, self.plan
        takes = {option.name for option in signature_of("model", spec, self.parts).options}
        extra: dict[str, Any] = {"pretrained": plan.pretrained} if plan.pretrained else {}
        if plan.encoder is not None:
            entry = self.parts.encoders.get(plan.encoder.name)
            full = replace(plan.encoder, name=f"{entry.source}/{entry.name}" if entry.source else entry.name)
            extra["encoder"] = str(full)
        if plan.size and "img_size" in takes.difference(name for name, _ in spec.options):
            extra["img_size"] = plan.size
        return cast(nn.Module, self("model", spec, (plan.in_channels, plan.classes), **extra))

    def stages(self, encoder: Any, levels: list[Level], widths: tuple[int, ...]) -> list[Stage]:
        plan = self.plan
        ups, blocks = one_each("up", plan.up, levels), one_each("block", plan.block, levels)
        joins = [level for level in levels if level.skip is not None]
        fuses, aligns = one_each("fuse", plan.fuse, joins), one_each("align", plan.align, joins)
        self.out_channels = encoder.channels[-1]
        made = []
        for index, level in enumerate(levels):
            where = f" at stages.{index} (stride {level.stride})"
            up = self.joined("up", ups[index], (self.out_channels, level.scale), where)
            align = fuse = None
            if level.skip is not None:  # only the last stages may lack a skip, so the indices agree
                align = self("align", aligns[index], (), where)
                fuse = self.joined("fuse", fuses[index], (self.out_channels, encoder.channels[level.skip]), where)
            block = self("block", blocks[index], (self.out_channels, widths[index]), where)
            self.out_channels = widths[index]
            made.append(Stage(up, align, fuse, block, level.scale, level.stride))
        return made

    def joined(self, word: str, spec: PartSpec, wiring: tuple[Any, ...], where: str) -> Any:
        """A part that declares how many channels it gives; they become those of the next part's input."""
        part = self(word, spec, wiring, where)
        out_channels = getattr(part, "out_channels", None)
        if not isinstance(out_channels, int) or out_channels < 1:
            raise CannotBuild(f"--{word} {spec}{where} must declare out_channels, an integer; it has {out_channels!r}")
        self.out_channels = out_channels
        return part

    def logits(self, spec: Any, scale: float) -> nn.Module | None:
        if spec == NO_LOGITS:
            return None
        part = self("logits", spec, (self.plan.classes, scale))
        if part.out_channels != self.plan.classes:
            raise CannotBuild(
                f"--logits {spec} gives {part.out_channels} channels for {self.plan.classes} classes; "
                "take one that keeps them (such as transposed:channels=keep)"
            )
        return cast(nn.Module, part)


T = TypeVar("T")


def one_each(word: str, given: tuple[T, ...] | None, levels: list[Level]) -> tuple[T, ...]:
    """One value a level, from one for all or one for each. Raises CannotBuild for any other number."""
    given = given or ()
    if len(given) == 1 and (word != "widths" or len(levels) == 1):
        return given * len(levels)
    if len(given) != len(levels):
        strides = ", ".join(str(level.stride) for level in levels)
        kind = " that join a skip" if word in ("fuse", "align") else ""
        one = "" if word == "widths" or len(levels) == 1 else "one, or "
        count, at = ("is 1 level", "stride") if len(levels) == 1 else (f"are {len(levels)} levels", "strides")
        raise CannotBuild(
            f"--{word} gives {len(given)}, but there {count}{kind} (at {at} {strides}); "
            f"give {one}{len(levels)}, deep to shallow"
        )
    return given


def _told(wiring: tuple[Any, ...]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in wiring)
