"""From what was said to a whole plan, and back to the shortest line that says it. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from unetkit.errors import BuildError, OptionError, PluginError, UnknownNameError, did_you_mean
from unetkit.options import (
    Signature,
    describe_type,
    format_value,
    guess_value,
    load_target,
    parse_value,
    read_signature,
)
from unetkit.plan import Levels, PartSpec, Plan
from unetkit.registry import Parts

#: What a line leaves unsaid. Widths and logits depend on the encoder, so the builder fills them in.
DEFAULTS = Plan.of(
    up="bilinear", fuse="concat", align="resize", block="double", head="conv", decode_to=1, in_channels=3, classes=2
)

#: The same beside a whole model, which has no parts of ours but an encoder.
BESIDE_MODEL = Plan.of(in_channels=3, classes=2)
_BESIDE = ("recipe", "model", "encoder", "in_channels", "classes", "size", "pretrained", "seed")

#: Logits left at the size that the decoder reached.
NO_LOGITS = PartSpec("none")


def kind_of(word: str) -> str:
    """The kind of part behind a word: logits are brought to size by an upsampler."""
    return "up" if word == "logits" else word


def resolve(plan: Plan, parts: Parts) -> tuple[Plan, Plan]:
    """Fill in recipe and defaults, with every name and option checked and in its one canonical form.

    Returns:
        The whole plan, and the base that it stands on: what recipe and defaults alone give.

    Raises:
        UnknownNameError, OptionError: for a name, an option or a value that there is not.
        BuildError: where nothing says which encoder.
    """
    said = Plan()
    if plan.recipe is not None:
        recipe = canonical_spec("recipe", plan.recipe, parts)
        said = canonical_plan(_recipe(recipe, parts), parts)
        plan = replace(plan, recipe=recipe)
    plan = canonical_plan(plan, parts)
    model = plan.model or said.model
    if plan.recipe is not None and model is not None and said.model is None:
        raise BuildError(f"--recipe {plan.recipe} is a U-Net of parts, but --model {model} is whole; leave one out")
    base = said.with_defaults(DEFAULTS if model is None else _beside(model, plan.with_defaults(said), parts))
    whole = plan.with_defaults(base)
    if whole.encoder is None and model is None:
        raise BuildError("nothing says which encoder; give --encoder (such as resnet34), --recipe or --model")
    return whole, base


def _beside(model: PartSpec, plan: Plan, parts: Parts) -> Plan:
    """What stands where nothing is said beside a whole model: its own encoder's name among it.

    Raises BuildError for a word that says a part of a U-Net of ours, or of this model has none.
    """
    takes = {option.name: option for option in signature_of("model", model, parts).options}
    for word in plan.explicit():
        if word not in _BESIDE:
            flag = word.replace("_", "-")
            raise BuildError(f"--{flag} says a part of a U-Net, but --model {model} is whole; leave one of them out")
        if word in _MOVED and word not in takes:
            raise BuildError(f"--{word}: model {model} takes none; leave it out")
    encoder = takes["encoder"].default if "encoder" in takes else None
    return replace(BESIDE_MODEL, encoder=canonical_spec("encoder", PartSpec.of(encoder), parts) if encoder else None)


def minimal_plan(whole: Plan, base: Plan) -> Plan:
    """The plan that says only what differs from its base, a word once where it is the same at every level."""
    said = {name: _collapse(value) for name, value in whole.explicit().items()}
    news = {name for name in said if name == "recipe" or said[name] != _collapse(getattr(base, name))}
    return Plan(**{name: said[name] for name in news})


def _collapse(value: Any) -> Any:
    is_levels = isinstance(value, tuple) and isinstance(value[0], PartSpec)
    return value[:1] if is_levels and len(set(value)) == 1 else value


def canonical_plan(plan: Plan, parts: Parts) -> Plan:
    """Every part of a plan in its canonical form; an option that is a word too becomes that word."""
    plan = _moved(plan)
    changed: dict[str, Any] = {}
    for word, value in plan.explicit().items():
        if isinstance(value, PartSpec):
            changed[word] = canonical_spec(word, value, parts)
        elif isinstance(value, tuple) and isinstance(value[0], PartSpec):
            levels: Levels = tuple(canonical_spec(word, spec, parts) for spec in value)
            changed[word] = levels
    return replace(plan, **changed)


#: Options of a model or an encoder that are said by a word of their name.
_MOVED = {"encoder": str, "pretrained": bool | str}


def _moved(plan: Plan) -> Plan:
    for word in ("model", "encoder"):
        spec: PartSpec | None = getattr(plan, word)
        options = dict(spec.options) if spec is not None else {}
        for name in (_MOVED.keys() & options.keys()) - {word}:
            value = parse_value(options.pop(name), _MOVED[name])
            moved = Plan.of(**{name: value}) if value else Plan()
            plan = plan.with_defaults(moved)
        if spec is not None:
            changed: dict[str, Any] = {word: replace(spec, options=tuple(options.items()))}
            plan = replace(plan, **changed)
    return plan


def canonical_spec(word: str, spec: PartSpec, parts: Parts) -> PartSpec:
    """A part with the shortest name that means it, typed options, and none that equals its default."""
    if word == "logits" and spec == NO_LOGITS:
        return spec
    if spec.then:
        if word != "block":
            raise OptionError(f"--{word} {spec}: only blocks follow one another with +; give one part")
        first, *rest = (canonical_spec(word, link, parts) for link in spec.links)
        return replace(first, then=tuple(rest))
    known = signature_of(word, spec, parts)
    given = parse_options(word, spec, known)
    options = {
        option.name: format_value(given[option.name], option.type)
        for option in known.options
        if option.name in given and given[option.name] != option.default
    }
    options |= {name: format_value(given[name]) for name in given.keys() - {o.name for o in known.options}}
    return PartSpec(_name(word, spec, parts), factory=spec.factory).with_options(options)


def _name(word: str, spec: PartSpec, parts: Parts) -> str:
    if spec.factory is not None:
        return spec.name
    return parts[kind_of(word)].get(spec.name).qualified_name


def signature_of(word: str, spec: PartSpec, parts: Parts) -> Signature:
    """What the factory behind a spec says of itself. Raises UnknownNameError."""
    if spec.factory is not None:
        return read_signature(spec.factory)
    owner = ""
    try:
        entry = parts[kind_of(word)].get(spec.name)
        owner = f" (of {entry.owner})"
        return entry.signature
    except UnknownNameError as error:
        raise UnknownNameError(f"--{word} {spec}: {error}") from None
    except PluginError as error:
        raise PluginError(f"--{word} {spec}{owner}: {error}") from error


def parse_options(word: str, spec: PartSpec, known: Signature, see: str = "") -> dict[str, Any]:
    """A spec's options as Python values, by the signature's annotations. Raises OptionError.

    Args:
        word: that the spec was given for, without its dashes.
        spec: a name with options.
        known: what its factory takes.
        see: where its options are described, if not by `unetkit list`.
    """
    types = {option.name: option.type for option in known.options}
    typed: dict[str, Any] = {}
    for name, text in spec.options:
        if name in known.positional:
            why = "so the builder gives it; an option stands after a *"
            raise OptionError(f"--{word} {spec}: {name!r} is positional in {spec.name}, {why}")
        if name not in types and known.var_keyword:
            typed[name] = guess_value(text)
            continue
        if name not in types:
            has = f"; it has {', '.join(types)}" if types else "; it has none"
            where = see or f"`unetkit list {kind_of(word)} {spec.name}`"
            raise OptionError(
                f"--{word} {spec}: {spec.name} has no option {name!r}{did_you_mean(name, types) or has}"
                f"; {where} describes them"
            )
        try:
            typed[name] = parse_value(text, types[name])
        except ValueError:
            raise OptionError(f"--{word} {spec}: {name} takes {describe_type(types[name])}; got {text}") from None
    missing = [option.name for option in known.options if option.required and option.name not in typed]
    if missing:
        raise OptionError(f"--{word} {spec}: {spec.name} needs {missing[0]}=..., which has no default")
    return typed


def _recipe(spec: PartSpec, parts: Parts) -> Plan:
    known = signature_of("recipe", spec, parts)
    factory = spec.factory or parts.recipes.get(spec.name).load()
    plan = factory(**parse_options("recipe", spec, known))
    if not isinstance(plan, Plan) or plan.recipe is not None:
        raise BuildError(f"--recipe {spec}: a recipe returns a Plan that names no other recipe; got {plan!r}")
    return plan


class Menu:
    """The names that a word of a command takes, each a factory with keyword-only options."""

    def __init__(self, word: str, what: str, see: str, factories: Mapping[str, Callable[..., Any] | str]) -> None:
        """Offer names.

        Args:
            word: of the command line, without its dashes: "loss".
            what: one of them is: "loss".
            see: where all are described: "docs/losses.md".
            factories: by name, each a callable or "module:attr"; its positional parameters are given by whoever makes
                one, its keyword-only ones are options.
        """
        self.word, self.what, self.see, self.factories = word, what, see, factories

    def make(self, text: str | PartSpec, *wiring: Any) -> Any:
        """What a name with options means. Raises UnknownNameError, or OptionError."""
        spec, known = PartSpec.of(text), self.signature(text)
        options = parse_options(self.word, spec, known, self.see)
        factory = self.factories[spec.name]
        return (load_target(factory) if isinstance(factory, str) else factory)(*wiring, **options)

    def said(self, text: str | PartSpec) -> str:
        """The shortest text that means the same."""
        spec, known = PartSpec.of(text), self.signature(text)
        given = parse_options(self.word, spec, known, self.see)
        defaults = {option.name: option.default for option in known.options}
        types = {option.name: option.type for option in known.options}
        kept = {name: format_value(value, types[name]) for name, value in given.items() if value != defaults[name]}
        return str(PartSpec(spec.name).with_options(kept))

    def signature(self, text: str | PartSpec) -> Signature:
        """What the factory behind a name takes. Raises UnknownNameError, or OptionError."""
        spec = PartSpec.of(text)
        if spec.then:
            raise OptionError(f"--{self.word} {spec}: one {self.what} is taken here; nothing follows it with +")
        if spec.name not in self.factories:
            near = did_you_mean(spec.name, self.factories) or f"; there are {', '.join(self.factories)}"
            raise UnknownNameError(f"--{self.word} {spec}: no {self.what} is called {spec.name!r}{near}")
        return read_signature(self.factories[spec.name])
