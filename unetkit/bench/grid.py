"""From lists of words to the combinations that are measured. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from unetkit.bench.timing import TimingConfig
from unetkit.errors import BuildError, OptionError, UnetkitError, UnknownNameError, did_you_mean
from unetkit.options import split_items
from unetkit.plan import PLAN_FIELDS, PartSpec, Plan
from unetkit.plugins import PluginManager
from unetkit.registry import KINDS, Parts, Plugin
from unetkit.resolve import canonical_plan, kind_of, resolve, signature_of
from unetkit.utils.formatting import Size


def row_id(plan: Plan, *condition: object) -> str:
    """A digest of a combination and its condition, the same in every run.

    Raises OptionError for a plan that another process could not be sent.
    """
    try:
        factories = [pickle.dumps(spec.factory) for spec in _factories([plan])]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        where = "a part given as a class or function is defined at the top of a module"
        raise OptionError(f"a plan cannot be sent to another process, where it is measured: {error}; {where}") from None
    return _short("\0".join(map(str, (plan, *condition))).encode(), *factories)


def cache_key(case: Case, baseline: str, owners: set[str], host: PluginManager) -> str:
    """A digest of a row and of all the code that has a part in it but unetkit's: what is edited is measured again.

    Args:
        case: the row.
        baseline: the line that it is timed against, where one is chosen.
        owners: of the metrics.
        host: the plugins.
    """
    plans = [case.plan, *([Plan.parse(baseline)] if baseline else [])]
    owners = owners.union(*(_owners(plan, host) for plan in plans)) - {"unetkit"}
    used = [p for p in host.loaded() if p.name in owners or host.implements("unetkit_wrap_model", p)]
    code = [f"{plugin} {_digest(plugin)}" for plugin in used]
    return _short(json.dumps([case.id, *code, *map(_source, _factories(plans))]).encode())


def _owners(plan: Plan, host: PluginManager) -> set[str]:
    """Of a plan's parts; none where names are unknown."""
    try:
        whole, _ = resolve(plan, host.parts)
        specs = [(word, spec) for word, spec in whole.specs() if spec.factory is None and str(spec) != "none"]
        return {host.parts[kind_of(word)].get(spec.name).owner for word, spec in specs}
    except UnetkitError:
        return set()


def _factories(plans: list[Plan]) -> Iterator[PartSpec]:
    return (spec for plan in plans for _, spec in plan.specs() if spec.factory is not None)


def _source(spec: PartSpec) -> str:
    try:
        return inspect.getsource(getattr(spec.factory, "func", spec.factory))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def _digest(plugin: Plugin) -> str:
    """Of every source file of a plugin's module, or of the package that it is."""
    file = Path(plugin.target).expanduser()
    if file.is_file():
        return _short(file.read_bytes())
    try:
        spec = find_spec(plugin.target.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = [path for place in places for path in sorted(place.rglob("*.py"))]
    files += [Path(spec.origin)] if spec and spec.origin and not places else []
    return _short(*(path.read_bytes() for path in files))


def _short(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]


_RUNS = ("eager", "compiled")
_DTYPES = ("float32", "bfloat16", "float16")
_WORDS = (*_RUNS, "channels_last", *_DTYPES)


@dataclass(frozen=True)
class Mode:
    """`str` writes it shortest: "eager", "compiled+channels_last+bfloat16".

    Attributes:
        compiled: whether torch.compile, with its defaults, is used.
        channels_last: whether weights and input are NHWC in memory.
        dtype: "bfloat16" or "float16" is run under torch.autocast; weights stay in float32.
    """

    compiled: bool = False
    channels_last: bool = False
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Read words joined by plus, in any order. Raises OptionError."""
        words = text.split("+")
        for word in words:
            if word not in _WORDS:
                raise OptionError(f"--mode {text}: no mode is called {word!r}{did_you_mean(word, _WORDS)}; {_HAS}")
        for group in (_RUNS, _DTYPES):
            if len(both := [word for word in words if word in group]) > 1:
                raise OptionError(
                    f"--mode {text}: {' and '.join(both)} contradict each other; modes are listed by commas"
                )
        dtype = next((word for word in words if word in _DTYPES), "float32")
        return cls("compiled" in words, "channels_last" in words, dtype)

    def __str__(self) -> str:
        more = ["channels_last"] * self.channels_last + [self.dtype] * (self.dtype != "float32")
        return "+".join([_RUNS[self.compiled], *more])


_HAS = "there are eager and compiled, and after a + channels_last, bfloat16 and float16 (autocast)"


#: Words of a plan that are none of a grid's: weights change no cost, and one seed serves all rows.
NOT_ASKED = ("size", "pretrained", "seed")
#: The words that a grid takes lists of, in order.
AXES = tuple(word for word in PLAN_FIELDS if word.name not in NOT_ASKED)
#: Beside a whole model only these are said.
_BESIDE_MODEL = ("model", "encoder", "in_channels", "classes")
#: What a row of parts has as its model, where other rows are whole models.
OF_PARTS = "unet"
_KINDS = {kind.word for kind in KINDS}


@dataclass(frozen=True)
class Case:
    """One combination under one condition.

    Attributes:
        plan: of the network; its size is the input's, where that is asked.
        batch: images in an input.
        mode: how it runs.
        factors: as `unetkit.bench.results.Row` has them.
    """

    plan: Plan
    batch: int
    mode: Mode
    factors: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """A digest of the combination and its condition, the same in every run."""
        return row_id(self.plan, self.batch, self.mode)


def parse_axis(word: str, texts: Iterable[str], parts: Parts) -> list[str]:
    """The values that an axis is given: lists by commas, globs of names, or the option again.

    A comma within a part's options goes on with them: `bilinear,transposed:kernel=4,init=bilinear` are two. Widths
    hold commas themselves, so each list of them is a value.

    Raises:
        UnknownNameError: a glob that no name matches.
        OptionError: what is no list.
    """
    each = texts if word == "widths" else split_axis(word, texts)
    found = [*dict.fromkeys(name for item in each for name in _matching(word, item, parts))]
    for name in found:
        canonical_plan(Plan.of(**{word: name}), parts)  # a wrong name or option is a slip, and no combination
    return found


def split_axis(word: str, texts: Iterable[str]) -> list[str]:
    """What stands between commas, and between the option and the option again."""
    return [item for text in texts for item in _items(word, text)]


def _items(word: str, text: str) -> list[str]:
    try:
        found = split_items(text)
    except ValueError as error:
        raise OptionError(f"--{word.replace('_', '-')} {text}: {error}") from None
    if not all(found):
        raise OptionError(f"--{word.replace('_', '-')} {text}: nothing stands before or after a comma")
    return found


def _matching(word: str, item: str, parts: Parts) -> list[str]:
    name, colon, options = item.partition(":")
    if kind_of(word) not in _KINDS or not any(sign in name for sign in "*?["):
        return [item]
    # A bare glob is about names as they are said, not about another library's part of a name that is taken.
    entries = [e for e in parts[kind_of(word)].find(name) if "/" in name or word == "model" or not e.sourced]
    found = [entry.qualified_name + colon + options for entry in entries]
    if not found:
        kind = parts[kind_of(word)].kind
        raise UnknownNameError(f"--{word} {item}: no {kind.title} matches; `unetkit list {kind.attribute}` lists all")
    return found


def make_plans(words: Mapping[str, Sequence[str]], parts: Parts) -> list[Plan]:
    """Every combination of words as a plan; whole models take what they take, beside the others.

    Raises:
        BuildError: nothing says which encoder.
        UnetkitError: a value that its word cannot take.
    """
    asked = {word.name: words[word.name] for word in AXES if words.get(word.name)}
    models = asked.pop("model", [])
    found: list[Plan] = []
    if "encoder" in asked or "recipe" in asked:
        found += _product(asked)
    elif not models or asked.keys() - {*_BESIDE_MODEL}:
        raise BuildError("nothing says which encoders; give --encoder (such as resnet18,resnet34), --recipe or --model")
    for model in models:
        beside = {name: asked[name] for name in _BESIDE_MODEL if name in asked}
        spec = Plan.of(model=model).model
        if spec and "encoder" not in {option.name for option in signature_of("model", spec, parts).options}:
            beside.pop("encoder", None)
        found += _product({"model": [model], **beside})
    return [*dict.fromkeys(found)]


def _product(asked: Mapping[str, Sequence[str]]) -> Iterator[Plan]:
    for chosen in product(*asked.values()):
        yield Plan.of(**dict(zip(asked, chosen, strict=True)))


def make_cases(
    found: Sequence[Plan], sizes: Sequence[Any], batches: Sequence[int], modes: Sequence[Mode]
) -> list[Case]:
    """Every plan under every condition, in order.

    Args:
        found: plans; a size that one says is left where `sizes` is empty.
        sizes: input sizes, as a plan takes them.
        batches: images in an input.
        modes: how networks run.
    """
    with_models = any(plan.model is not None for plan in found)
    made: dict[str, Case] = {}
    for plan, size, batch, mode in product(found, sizes or [None], batches, modes):
        sized = plan if size is None else Plan.of(size=size).with_defaults(plan)
        case = Case(sized, batch, mode, _factors(sized, batch, mode, with_models=with_models))
        made.setdefault(case.id, case)
    return [*made.values()]


def _factors(plan: Plan, batch: int, mode: Mode, *, with_models: bool) -> tuple[tuple[str, str], ...]:
    said = _words(replace(plan, size=None, seed=None, pretrained=None))
    first = {"model": OF_PARTS} if with_models and plan.model is None else {}
    size = _words(Plan(size=plan.size)).get("size", "own")
    return tuple({**first, **said, "size": size, "batch": str(batch), "mode": str(mode)}.items())


def _words(plan: Plan) -> dict[str, str]:
    """The words of a plan as text."""
    tokens = shlex.split(str(plan))
    return {flag[2:].replace("-", "_"): value for flag, value in zip(tokens[::2], tokens[1::2], strict=True)}


def exclude_cases(found: Sequence[Case], excepted: Iterable[str]) -> list[Case]:
    """The cases that no line of `excepted` matches: `--encoder resnet50 --batch-size 8,16` matches both such batches.

    Raises:
        OptionError: a line that is none, or matches no row.
    """
    left = [*found]
    for line in excepted:
        wanted = _wanted(line, {name for case in found for name, _ in case.factors})
        kept = [case for case in left if not all(_is(dict(case.factors), *pair) for pair in wanted.items())]
        if len(kept) == len(left):
            raise OptionError(f"--exclude {line!r} matches no row that is left; `--dry-run` shows the rows")
        left = kept
    return left


def _wanted(line: str, known: set[str]) -> dict[str, list[str]]:
    try:
        tokens = shlex.split(line)
    except ValueError as error:
        raise OptionError(f"--exclude {line!r}: {error}") from None
    flags, given = tokens[::2], tokens[1::2]
    if not tokens or len(flags) != len(given) or not all(flag.startswith("--") for flag in flags):
        raise OptionError(
            f"--exclude {line!r}: takes words as a row has them, such as '--encoder resnet50 --batch-size 8'"
        )
    names = [flag[2:].replace("-", "_") for flag in flags]
    for name in names:
        if name not in known:
            raise UnknownNameError(f"--exclude {line!r}: no row has a {name!r}{did_you_mean(name, known)}")
    return {name: _items(name, text) for name, text in zip(names, given, strict=True)}


def _is(factors: Mapping[str, str], name: str, patterns: Sequence[str]) -> bool:
    return name in factors and any(fnmatchcase(factors[name], pattern) for pattern in patterns)


#: What every child imports; smp takes seconds more, and is added where a row asks for it.
PRELOAD = ("unetkit.bench.worker", "timm")


@dataclass(frozen=True)
class Trial:
    """A case and all that its child needs to know.

    Attributes:
        case: what is measured.
        baseline: the network that it is timed against, under the size and batch of the case.
        baseline_mode: how that runs.
        size: of the input, where it is known already.
        metrics: the names of what is measured.
        rules: for how long and how precisely.
        plugins: named beside what is installed.
    """

    case: Case
    baseline: Plan
    baseline_mode: Mode
    size: Size | None
    metrics: tuple[str, ...]
    rules: TimingConfig
    plugins: tuple[str, ...] = ()
