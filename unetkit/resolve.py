"""Complete a plan with its recipe and the defaults, and find the shortest equivalent plan. This imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unetkit.errors import BuildError, OptionError, PluginError, UnknownNameError, did_you_mean
from unetkit.options import (
    Option,
    PythonValue,
    Signature,
    describe_type,
    format_value,
    guess_value,
    has_text,
    parse_value,
    read_signature,
)
from unetkit.plan import Levels, PartSpec, Plan, ResolvedPlan, UNetPlan
from unetkit.registry import Parts, find_kind
from unetkit.utils.isolation import wrap_errors

#: The defaults of a plan's fields. Those of widths and logits depend on the encoder, so the builder sets them.
DEFAULTS = Plan.of(
    up="bilinear", fuse="concat", align="resize", block="double", head="conv", decode_to=1, in_channels=3, classes=2
)

#: The defaults of a plan with a whole model, which has no parts of a U-Net except an encoder.
BESIDE_MODEL = Plan.of(in_channels=3, classes=2)
_FIELDS_BESIDE_MODEL = ("recipe", "model", "encoder", "in_channels", "classes", "size", "pretrained", "seed")

#: The value of `logits` with which they keep the size of the decoder's last map.
NO_LOGITS = PartSpec("none")


def resolve(plan: Plan, parts: Parts) -> ResolvedPlan:
    """Add recipe and defaults to a plan, check every name and option, and bring each part into its canonical form.

    The options of an encoder are added to those of the recipe's encoder if both are the same encoder.

    Returns:
        The resolved plan, a UNetPlan unless it has a whole model.

    Raises:
        UnknownNameError, OptionError: A name, an option or a value does not exist.
        BuildError: No encoder is given.
    """
    from_recipe = Plan()
    if plan.recipe is not None:
        recipe = canonical_spec("recipe", plan.recipe, parts)
        # What a recipe names is its own plugin's, also if another plugin has a part of the same name.
        owners = () if recipe.factory is not None else (parts.recipes.get(recipe.name).owner,)
        from_recipe = canonical_plan(_run_recipe(recipe, parts), parts.prefer(owners))
        plan = replace(plan, recipe=recipe, encoder=_add_options(plan.encoder, from_recipe.encoder, parts))
    plan = canonical_plan(plan, parts)
    model = plan.model or from_recipe.model
    if plan.recipe is not None and model is not None and from_recipe.model is None:
        raise BuildError(
            f"--recipe {plan.recipe} is a U-Net of parts, but --model {model} is a whole model; leave one of them out"
        )
    base = from_recipe.with_defaults(
        DEFAULTS if model is None else _defaults_beside_model(model, plan.with_defaults(from_recipe), parts)
    )
    full = plan.with_defaults(base).explicit()
    if model is not None:
        return ResolvedPlan(**full, base=base)
    if "encoder" not in full:
        raise BuildError("no encoder is given; use --encoder (such as resnet34), --recipe or --model")
    return UNetPlan(**full, base=base)


def _add_options(encoder: PartSpec | None, base: PartSpec | None, parts: Parts) -> PartSpec | None:
    """Return an encoder with the options of a base that it lacks, if both are the same encoder."""
    if encoder is None or base is None:
        return encoder
    signature_of("encoder", encoder, parts)  # rejects an unknown name
    same = encoder.factory == base.factory and _qualified_name("encoder", encoder, parts) == base.name
    return base.with_options(dict(encoder.options)) if same else encoder


def _defaults_beside_model(model: PartSpec, plan: Plan, parts: Parts) -> Plan:
    """Return the defaults for a whole model, including its own encoder.

    Raises BuildError for an option that describes a part of a U-Net, or that this model does not have.
    """
    options = {option.name: option for option in signature_of("model", model, parts).options}
    for word in plan.explicit():
        if word not in _FIELDS_BESIDE_MODEL:
            flag = word.replace("_", "-")
            raise BuildError(
                f"--{flag} describes a part of a U-Net, but --model {model} is a whole model; leave one of them out"
            )
        if word in _FIELDS_OF_PARTS and word not in options:
            raise BuildError(f"--{word}: model {model} has no such option; leave it out")
    encoder = options["encoder"].default if "encoder" in options else None
    return replace(BESIDE_MODEL, encoder=canonical_spec("encoder", PartSpec.of(encoder), parts) if encoder else None)


def minimal_plan(plan: ResolvedPlan, parts: Parts) -> Plan:
    """Return the plan with only the options that differ from its base, and one part where all levels have the same."""
    base = plan.base
    explicit = {name: _collapse_levels(value) for name, value in plan.explicit().items()}
    news = {name for name in explicit if name == "recipe" or explicit[name] != _collapse_levels(getattr(base, name))}
    shortest = Plan(**{name: explicit[name] for name in news})
    if plan.recipe is None or shortest.encoder is None or base.encoder is None:
        return shortest
    return replace(shortest, encoder=_minimal_spec(shortest.encoder, base.encoder, parts))


def _minimal_spec(spec: PartSpec, base: PartSpec, parts: Parts) -> PartSpec:
    """Return an encoder with only the options that differ from those of the recipe's, if both are the same encoder."""
    if (spec.name, spec.factory) != (base.name, base.factory):
        return spec
    options, inherited = dict(spec.options), dict(base.options)
    # A canonical spec leaves out what is at its default, which must be said here to differ from the recipe.
    defaults = {o.name: _store(spec, o.default, o.type) for o in signature_of("encoder", spec, parts).options}
    differ = {name: text for name, text in options.items() if inherited.get(name) != text}
    differ |= {name: defaults[name] for name in inherited.keys() - options.keys()}
    return replace(spec, options=()).with_options(differ)


def _collapse_levels(value: Any) -> Any:
    is_levels = isinstance(value, tuple) and isinstance(value[0], PartSpec)
    return value[:1] if is_levels and len(set(value)) == 1 else value


def canonical_plan(plan: Plan, parts: Parts) -> Plan:
    """Bring every part of a plan into its canonical form.

    An option of a part that is also an option of the plan moves there.
    """
    plan = _options_to_fields(plan)
    changed: dict[str, Any] = {}
    for word, value in plan.explicit().items():
        if isinstance(value, PartSpec):
            changed[word] = canonical_spec(word, value, parts)
        elif isinstance(value, tuple) and isinstance(value[0], PartSpec):
            changed[word] = _canonical_levels(word, _join_owners(word, value, parts), parts)
    return replace(plan, **changed)


def _canonical_levels(word: str, levels: Levels, parts: Parts) -> Levels:
    found: list[PartSpec] = []
    for index, spec in enumerate(levels):
        try:
            found.append(canonical_spec(word, spec, parts))
        except UnknownNameError as error:
            if not index or not levels[index - 1].links[-1].options:
                raise
            option, _ = levels[index - 1].links[-1].options[-1]
            advice = f"; a slash separates levels, so put the value of {option} in double quotes if it contains one"
            raise UnknownNameError(f"{error}{advice}") from error
    return tuple(found)


def _join_owners(word: str, levels: Levels, parts: Parts) -> Levels:
    """Return levels in which "owner/name" is one part: a plan was read without knowing the plugins, as two levels."""
    registry, joined = parts[word], list[PartSpec]()
    names = {entry.name for entry in registry.entries.values()}
    for spec in levels:
        *before, last = joined[-1].links if joined else (spec,)
        is_bare_name = bool(joined) and spec.factory is None and last == PartSpec(last.name)
        if is_bare_name and last.name not in names and registry.is_loaded(last.name):
            first, *rest = (*before, *replace(spec, name=f"{last.name}/{spec.name}").links)
            joined[-1] = replace(first, chained=tuple(rest))
        else:
            joined.append(spec)
    return tuple(joined)


#: Options of a model or an encoder that are set by a field of the same name.
_FIELDS_OF_PARTS = {"encoder": str, "pretrained": bool | str}


def _options_to_fields(plan: Plan) -> Plan:
    for word in ("model", "encoder"):
        spec: PartSpec | None = getattr(plan, word)
        options = dict(spec.options) if spec is not None else {}
        for name in (_FIELDS_OF_PARTS.keys() & options.keys()) - {word}:
            stored = options.pop(name)
            value = stored.value if isinstance(stored, PythonValue) else parse_value(stored, _FIELDS_OF_PARTS[name])
            moved = Plan.of(**{name: value}) if value else Plan()
            plan = plan.with_defaults(moved)
        if spec is not None:
            changed: dict[str, Any] = {word: replace(spec, options=tuple(options.items()))}
            plan = replace(plan, **changed)
    return plan


def canonical_spec(word: str, spec: PartSpec, parts: Parts) -> PartSpec:
    """Return a part with its shortest unambiguous name and typed options, without those at their default."""
    if word == "logits" and spec == NO_LOGITS:
        return spec
    if spec.chained:
        if word != "block":
            raise OptionError(f"--{word} {spec}: one {parts[word].kind.title} is expected here; do not use +")
        first, *rest = (canonical_spec(word, link, parts) for link in spec.links)
        return replace(first, chained=tuple(rest))
    known = signature_of(word, spec, parts)
    given = parse_options(word, spec, known)
    declared = {option.name: option for option in known.options}
    options = {
        name: _store(spec, value, declared[name].type if name in declared else None)
        for name, value in given.items()
        if name not in declared or not declared[name].is_default(value)
    }
    return PartSpec(_qualified_name(word, spec, parts), factory=spec.factory).with_options(options)


def _store(spec: PartSpec, value: Any, kind: Any) -> str | PythonValue:
    """Return the value of an option as a spec stores it: as an object for a Python factory, or if it has no text."""
    return PythonValue(value) if spec.factory is not None or not has_text(value) else format_value(value, kind)


def _qualified_name(word: str, spec: PartSpec, parts: Parts) -> str:
    if spec.factory is not None:
        return spec.name
    return parts[word].get(spec.name).qualified_name


def signature_of(word: str, spec: PartSpec, parts: Parts) -> Signature:
    """Return the signature of the factory of a spec. Raises UnknownNameError."""
    if spec.factory is not None:
        return read_signature(spec.factory)
    owner = ""
    try:
        entry = parts[word].get(spec.name)
        owner = f" (of {entry.owner})"
        return entry.signature
    except UnknownNameError as error:
        raise UnknownNameError(f"--{word} {spec}: {error}") from None
    except PluginError as error:
        raise PluginError(f"--{word} {spec}{owner}: {error}") from error


def parse_options(word: str, spec: PartSpec, known: Signature) -> dict[str, Any]:
    """Parse the options of a spec to Python values by the annotations of the signature. Raises OptionError.

    Values that were given in Python to a factory that is not registered are returned as they are.

    Args:
        word: the option that the spec was given for, without dashes.
        spec: a name with options.
        known: the signature of its factory.
    """
    declared = {option.name: option for option in known.options}
    typed: dict[str, Any] = {}
    for name, value in spec.options:
        if name in known.positional:
            why = "so the builder gives it; options are keyword-only"
            raise OptionError(f"--{word} {spec}: {name!r} is positional in {spec.name}, {why}")
        if name not in declared and known.var_keyword:
            typed[name] = value.value if isinstance(value, PythonValue) else guess_value(value)
            continue
        if name not in declared:
            if not declared:
                raise OptionError(f"--{word} {spec}: {spec.name} has no options, so {name!r} is not one; leave it out")
            has = f"; it has {', '.join(declared)}"
            listed = (
                f"; `unetkit list {find_kind(word).field} {spec.name}` lists its options"
                if spec.factory is None
                else ""
            )
            raise OptionError(
                f"--{word} {spec}: {spec.name} has no option {name!r}{did_you_mean(name, declared) or has}{listed}"
            )
        typed[name] = _read_value(word, spec, declared[name], value)
    missing = [option.name for option in known.options if option.required and option.name not in typed]
    if missing:
        raise OptionError(f"--{word} {spec}: {spec.name} needs {missing[0]}=..., which has no default")
    return typed


def _read_value(word: str, spec: PartSpec, option: Option, value: str | PythonValue) -> Any:
    if isinstance(value, PythonValue) and spec.factory is not None:
        return value.value
    if option.unreadable:
        raise OptionError(
            f"--{word} {spec}: option {option.name!r} {option.unreadable}, so it cannot be read from text; "
            f"give it in Python, as in PartSpec.of({spec.name}, {{{option.name!r}: ...}})"
        )
    if isinstance(value, PythonValue) and option.type is Any:
        return value.value
    try:
        if isinstance(value, PythonValue) and not has_text(value.value):
            raise ValueError
        return parse_value(str(value), option.type)
    except ValueError:
        raise OptionError(f"--{word} {spec}: {option.name} must be {describe_type(option.type)}; got {value}") from None


def _run_recipe(spec: PartSpec, parts: Parts) -> Plan:
    known = signature_of("recipe", spec, parts)
    factory = spec.factory or parts.recipes.get(spec.name).load()
    plan = factory(**parse_options("recipe", spec, known))
    if not isinstance(plan, Plan) or plan.recipe is not None:
        raise BuildError(f"--recipe {spec}: a recipe must return a Plan that names no other recipe; got {plan!r}")
    return plan


def create(word: str, text: str | PartSpec, parts: Parts, *wiring: Any) -> Any:
    """Create what an option of a run names: `create("optimizer", "sgd:momentum=0.99", parts)`.

    Args:
        word: the option without dashes, which is the field of a kind.
        text: a name with options.
        parts: the registered parts.
        wiring: the positional arguments of the factory.

    Raises:
        UnknownNameError, OptionError: The name, an option or a value does not exist.
        PluginError: The factory fails.
    """
    spec = PartSpec.of(text)
    if spec.chained:
        raise OptionError(f"--{word} {spec}: one {parts[word].kind.title} is expected here; do not use +")
    options = parse_options(word, spec, signature_of(word, spec, parts))
    entry = parts[word].get(spec.name)
    factory = entry.load()
    try:
        with wrap_errors(f"--{word} {spec} (of {entry.owner}) cannot be created"):
            return factory(*wiring, **options)
    except OptionError as error:
        if str(error).startswith(("--", f"{spec.name}:")):
            raise  # it says what it is about
        raise OptionError(f"--{word} {spec}: {error}") from error
