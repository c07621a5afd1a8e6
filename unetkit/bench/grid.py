"""The grid of a benchmark: from lists of options to the cases that are measured, and what identifies a case.

`parse_axis` reads the values of one option, `make_plans` combines them into plans, `make_cases` combines plans with
input sizes, batch sizes and modes, and `exclude_cases` removes cases. `row_id` and `cache_key` are digests of a case.
The module imports no torch.
"""

from __future__ import annotations

import inspect
import json
import pickle
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from unetkit.errors import BuildError, OptionError, UnetkitError, UnknownNameError, did_you_mean
from unetkit.options import split_items
from unetkit.plan import PLAN_FIELDS, PartSpec, Plan
from unetkit.plugin_files import digest_plugin
from unetkit.plugins import PluginManager
from unetkit.predict.engines import missing_packages
from unetkit.registry import BUILTIN, PART_FIELDS, Parts
from unetkit.resolve import canonical_plan, resolve, signature_of
from unetkit.utils.file_digest import short_digest
from unetkit.utils.formatting import Size

if TYPE_CHECKING:
    from unetkit.bench.timing import TimingConfig

T = TypeVar("T")
#: (name, value) pairs of the fields of a TrainConfig, as text.
Training = tuple[tuple[str, str], ...]
_EXECUTIONS = ("eager", "compiled", "onnxruntime", "openvino")
#: The executions by another program than torch, to which the network is exported.
_EXPORTED = ("onnxruntime", "openvino")
_DTYPES = ("float32", "bfloat16", "float16")
_MODE_WORDS = (*_EXECUTIONS, "channels_last", *_DTYPES)
_VALID_MODES = (
    "the modes are onnxruntime, openvino, and eager and compiled, optionally followed by +channels_last, +bfloat16 or "
    "+float16"
)


@dataclass(frozen=True)
class Mode:
    """An execution mode. `str` returns its shortest form, such as "eager" or "compiled+channels_last+bfloat16".

    Attributes:
        execution: "eager"; "compiled", by torch.compile with its default settings; or the engine that the network is
            exported to, "onnxruntime" or "openvino".
        channels_last: store weights and input in NHWC memory format.
        dtype: "float32", or "bfloat16" or "float16" to run under torch.autocast; weights stay in float32.
    """

    execution: str = "eager"
    channels_last: bool = False
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str, option: str = "--mode") -> Mode:
        """Parse words that are joined by plus signs, in any order.

        Args:
            text: such as "compiled+bfloat16".
            option: the option that the text is the value of, for messages.

        Raises:
            OptionError: A word is unknown, or two words contradict each other.
        """
        words = text.split("+")
        for word in words:
            if word not in _MODE_WORDS:
                hint = did_you_mean(word, _MODE_WORDS)
                raise OptionError(f"{option} {text}: no mode is called {word!r}{hint}; {_VALID_MODES}")
        for group in (_EXECUTIONS, _DTYPES):
            if len(both := [word for word in words if word in group]) > 1:
                raise OptionError(f"{option} {text}: {' and '.join(both)} exclude each other; separate modes by commas")
        dtype = next((word for word in words if word in _DTYPES), "float32")
        execution = next((word for word in words if word in _EXECUTIONS), "eager")
        if execution in _EXPORTED:
            if len(words) > 1:
                raise OptionError(f"{option} {text}: an exported network runs in its own way; give {execution} alone")
            if absent := missing_packages(execution):
                raise OptionError(
                    f"{option} {text}: needs {' and '.join(absent)}; pip install 'unetkit[onnx,openvino]'"
                )
        return cls(execution, "channels_last" in words, dtype)

    @property
    def is_exported(self) -> bool:
        """True if another program than torch runs the network."""
        return self.execution in _EXPORTED

    def __str__(self) -> str:
        more = ["channels_last"] * self.channels_last + [self.dtype] * (self.dtype != "float32")
        return "+".join([self.execution, *more])


@dataclass(frozen=True)
class Case:
    """A model under one condition, which becomes a row when it is measured.

    Attributes:
        plan: plan of the model without options that equal their default; its size is the input size, if one is given.
        batch_size: number of images in the input.
        mode: execution mode.
        factors: (name, value) pairs, as in `unetkit.bench.results.BenchRow.factors`.
        training: (name, value) pairs of the fields of a TrainConfig that the grid sets, as text, without those that
            equal their default.
        defaults: names of the factors that the command left at their default.
    """

    plan: Plan
    batch_size: int
    mode: Mode
    factors: tuple[tuple[str, str], ...]
    training: Training = ()
    defaults: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A digest of the model, the condition and the training that is equal in all runs."""
        return row_id(self.plan, self.batch_size, self.mode, *(f"{name}={value}" for name, value in self.training))

    @property
    def cost_id(self) -> str:
        """A digest of what affects the costs, which rows that differ only in their training share."""
        return row_id(replace(self.plan, pretrained=None), self.batch_size, self.mode)


@dataclass(frozen=True)
class Completed(Generic[T]):
    """A plan or the settings of a training, completed by defaults.

    Attributes:
        short: the same without what equals its default.
        factors: value of each field as text, in the order of the grid.
        defaults: names of the fields that were not given.
    """

    short: T
    factors: Mapping[str, str] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()


#: Modules that the processes of all rows need.
PRELOAD = ("unetkit.bench.worker", "unetkit.bench.statistics")


def list_libraries(plans: Iterable[Plan]) -> list[str]:
    """Return the libraries that the processes of rows need; each takes seconds to import, so only those that rows use.

    Args:
        plans: the plans of the rows.
    """
    plans = [*plans]
    is_plain = all(plan.encoder and plan.encoder.name == "plain" and not (plan.model or plan.recipe) for plan in plans)
    needs_smp = any("smp/" in str(plan) for plan in plans)
    return [*([] if is_plain else ["timm"]), *(["segmentation_models_pytorch"] if needs_smp else [])]


@dataclass(frozen=True)
class Trial:
    """A case with everything that the process which measures it has to know.

    Attributes:
        case: the case.
        baseline: plan of the model that it is timed against, with the input size and batch size of the case.
        baseline_mode: execution mode of the baseline.
        size: input size (height, width) of the baseline, if it is known already.
        default_size: input size of a case that has none of its own; None for the network's.
        metrics: names of the metrics to measure.
        timing_config: settings of the timings.
        plugins: files and modules to load in addition to the installed plugins.
    """

    case: Case
    baseline: Plan
    baseline_mode: Mode
    size: Size | None
    metrics: tuple[str, ...]
    timing_config: TimingConfig
    default_size: Size | None = None
    plugins: tuple[str, ...] = ()


#: Fields of a plan that are no parts: conditions, the weights to start from, and the seed, which all rows share.
EXCLUDED_FIELDS = ("size", "pretrained", "seed")
#: Fields of a plan that the grid takes lists of, in order.
AXES = tuple(field for field in PLAN_FIELDS if field.name not in EXCLUDED_FIELDS)
#: Fields that also apply to whole models; all others describe the parts of a U-Net.
_MODEL_FIELDS = ("model", "encoder", "in_channels", "classes")
#: Fields whose values follow from the data if networks are trained.
_FIELDS_OF_DATA = ("in_channels", "classes")
#: Value of the factor "model" of a U-Net that is made of parts.
UNET_MODEL = "unet"
#: Value of the factor "size" of a network whose own input size is not known yet.
OWN_SIZE = "own"


def parse_axis(field: str, texts: Iterable[str], parts: Parts) -> list[str]:
    """Return the values of one field: the items of comma-separated lists, with globs replaced by the names they match.

    A comma inside the options of a part belongs to them: `bilinear,transposed:kernel=4,init=bilinear` has two items.
    Widths contain commas themselves, so each text is one value of that field.

    Args:
        field: name of the field of a plan, such as "encoder".
        texts: the values of all occurrences of the option.
        parts: parts in which names are looked up.

    Raises:
        UnknownNameError: A name does not exist, or a glob matches nothing.
        OptionError: A list or the options of a part are malformed.
    """
    items = texts if field == "widths" else split_axis(field, texts)
    values = [*dict.fromkeys(value for item in items for value in _expand_glob(field, item, parts))]
    for value in values:
        canonical_plan(Plan.of(**{field: value}), parts)  # reports a mistyped name before any row is measured
    return values


def split_axis(field: str, texts: Iterable[str]) -> list[str]:
    """Split comma-separated lists into their items.

    Args:
        field: name of the option, for error messages.
        texts: the values of all occurrences of the option.

    Raises:
        OptionError: A list is malformed.
    """
    return [item for text in texts for item in _split_list(field, text)]


def _split_list(field: str, text: str) -> list[str]:
    try:
        return split_list(text)
    except OptionError as error:
        raise OptionError(f"--{field.replace('_', '-')} {text or repr(text)}: {error}") from None


def split_list(text: str) -> list[str]:
    """Split a comma-separated list into its items. Raises OptionError for a malformed one."""
    try:
        items = split_items(text)
    except ValueError as error:
        raise OptionError(str(error)) from None
    if not text:
        raise OptionError("the list is empty; give an item, or leave the option out")
    if not all(items):
        raise OptionError("an item of the list is empty; remove a comma")
    for before, item in pairwise(items):
        if "=" in before and item.isdecimal():
            raise OptionError("a comma separates the items of this list; a list within one needs brackets")
    return items


def _expand_glob(field: str, item: str, parts: Parts) -> list[str]:
    name, colon, options = item.partition(":")
    if field not in PART_FIELDS or not any(sign in name for sign in "*?["):
        return [item]
    # Without a library, as in "resnet*", a glob leaves out the names of another library that need its prefix.
    is_exact = "/" in name or field == "model"
    entries = [entry for entry in parts[field].find(name) if is_exact or not (entry.library and entry.prefix)]
    names = [entry.qualified_name + colon + options for entry in entries]
    if not names:
        kind = parts[field].kind
        raise UnknownNameError(f"--{field} {item}: no {kind.title} matches; `unetkit list {kind.attribute}` lists all")
    return names


def make_plans(axes: Mapping[str, Sequence[str]], parts: Parts) -> list[Plan]:
    """Combine the values of all fields into plans.

    Whole models are combined only with the fields that apply to them, and come after the models made of parts.

    Args:
        axes: the values of each field, by its name.
        parts: parts in which names are looked up.

    Raises:
        BuildError: No encoder, recipe or model is given.
        UnetkitError: A value does not fit its field.
    """
    axes = {field.name: axes[field.name] for field in AXES if axes.get(field.name)}
    models = axes.pop("model", [])
    plans: list[Plan] = []
    if "encoder" in axes or "recipe" in axes:
        plans += _combine(axes)
    elif not models or axes.keys() - {*_MODEL_FIELDS}:
        raise BuildError("no encoder is given; give --encoder, such as resnet18,resnet34, or --recipe or --model")
    for model in models:
        model_axes = {name: axes[name] for name in _MODEL_FIELDS if name in axes}
        spec = Plan.of(model=model).model
        if spec and "encoder" not in {option.name for option in signature_of("model", spec, parts).options}:
            model_axes.pop("encoder", None)
        plans += _combine({"model": [model], **model_axes})
    return [*dict.fromkeys(plans)]


def _combine(axes: Mapping[str, Sequence[str]]) -> Iterator[Plan]:
    for values in product(*axes.values()):
        yield Plan.of(**dict(zip(axes, values, strict=True)))


def make_cases(
    plans: Sequence[Plan],
    sizes: Sequence[Any],
    batch_sizes: Sequence[int],
    modes: Sequence[Mode],
    parts: Parts,
    trainings: Sequence[Completed[Training]] = (Completed(()),),
    *,
    trained: bool = False,
) -> list[Case]:
    """Combine plans with all conditions and trainings, in order and without duplicates.

    The factors of a case also contain what was left at its default, so that the cases of different commands can be
    compared. Options that equal their default are removed from its plan and its training, so that it has the same id
    with and without them.

    Args:
        plans: plans of the models.
        sizes: input sizes, such as 256 or (480, 640); if empty, the size of each plan.
        batch_sizes: numbers of images in an input.
        modes: execution modes.
        parts: parts in which names are looked up.
        trainings: settings of trainings.
        trained: whether networks are trained.
    """
    varies_weights = any(plan.pretrained for plan in plans)
    cases: dict[str, Case] = {}
    for plan in plans:
        completed = _complete_plan(plan, parts, trained=trained)
        weights = {"pretrained": format_pretrained(plan.pretrained)} if trained or varies_weights else {}
        weight_defaults = weights.keys() if not varies_weights else ()
        for size, batch_size, mode, of_training in product(sizes or [None], batch_sizes, modes, trainings):
            sized = completed.short if size is None else Plan.of(size=size).with_defaults(completed.short)
            conditions = _conditions(sized, batch_size, mode)
            factors = {**completed.factors, **weights, **of_training.factors, **conditions}
            defaults = {*completed.defaults, *weight_defaults, *of_training.defaults}
            names = tuple(name for name in factors if name in defaults)
            case = Case(sized, batch_size, mode, tuple(factors.items()), of_training.short, names)
            cases.setdefault(case.id, case)
    return [*cases.values()]


def _complete_plan(plan: Plan, parts: Parts, *, trained: bool) -> Completed[Plan]:
    given = _parts_as_factors(plan)
    known = {"model": UNET_MODEL}
    try:
        full = resolve(plan, parts)
        known |= _parts_as_factors(full)
    except UnetkitError:  # it is a row with this error
        pass
    values = {**known, **given}
    for name in _FIELDS_OF_DATA:
        if trained and name not in given:
            values.pop(name, None)
    ordered = {one.name: values[one.name] for one in AXES if one.name in values}
    return Completed(shorten(plan, parts), ordered, tuple(name for name in ordered if name not in given))


def shorten(plan: Plan, parts: Parts) -> Plan:
    """Return a plan without the options that say what recipe and defaults say in the same words.

    A part under another name, such as timm/resnet18, is left. Channels and classes are left, too, since the data of
    trainings may have others. A plan with a mistake is left as it is.

    Args:
        plan: the plan of a model.
        parts: parts in which names are looked up.
    """
    try:
        base = resolve(plan, parts).base
    except UnetkitError:
        return plan
    given, defaults = _parts_as_factors(plan), _parts_as_factors(base)
    same = [name for name in given if defaults.get(name) == given[name] and name not in _FIELDS_OF_DATA]
    return replace(plan, **dict.fromkeys(same))


def format_pretrained(pretrained: bool | str | None) -> str:
    """Return the value of the factor "pretrained": "yes", "no", or the path of the weights."""
    return pretrained if isinstance(pretrained, str) else "yes" if pretrained else "no"


def _parts_as_factors(plan: Plan) -> dict[str, str]:
    """Return the fields of a plan that describe its model, as text."""
    return _fields_as_text(replace(plan, size=None, seed=None, pretrained=None))


def size_as_factor(size: Size) -> str:
    """Return an input size as the value of the factor "size": 256 or 480x640.

    Args:
        size: height and width in pixels.
    """
    return _fields_as_text(Plan(size=size))["size"]


def _conditions(plan: Plan, batch_size: int, mode: Mode) -> dict[str, str]:
    size = OWN_SIZE if plan.size is None else size_as_factor(plan.size)
    return {"size": size, "batch_size": str(batch_size), "mode": str(mode)}


def _fields_as_text(plan: Plan) -> dict[str, str]:
    """Return the fields that a plan sets, as text."""
    tokens = shlex.split(str(plan))
    return {flag[2:].replace("-", "_"): value for flag, value in zip(tokens[::2], tokens[1::2], strict=True)}


def exclude_cases(cases: Sequence[Case], exclusions: Iterable[str]) -> list[Case]:
    """Remove the cases that match a line such as `--encoder resnet50 --batch-size 8,16`.

    Args:
        cases: the cases of a grid.
        exclusions: lines of options; each takes a list, which may contain globs. A case matches if it matches them all.

    Raises:
        OptionError: A line is malformed, or matches no case.
        UnknownNameError: No case has an option of that name.
    """
    remaining = [*cases]
    for line in exclusions:
        patterns = _parse_exclusion(line, {name for case in cases for name, _ in case.factors})
        kept = [case for case in remaining if not all(_matches(dict(case.factors), *pair) for pair in patterns.items())]
        if len(kept) == len(remaining):
            raise OptionError(f"--exclude {line!r} matches none of the remaining rows; `--dry-run` lists the rows")
        remaining = kept
    return remaining


def _parse_exclusion(line: str, known: set[str]) -> dict[str, list[str]]:
    try:
        tokens = shlex.split(line)
    except ValueError as error:
        raise OptionError(f"--exclude {line!r}: {error}") from None
    flags, values = tokens[::2], tokens[1::2]
    if not tokens or len(flags) != len(values) or not all(flag.startswith("--") for flag in flags):
        example = "'--encoder resnet50 --batch-size 8'"
        raise OptionError(f"--exclude {line!r}: must consist of options with a value each, such as {example}")
    names = [flag[2:].replace("-", "_") for flag in flags]
    for name in names:
        if name not in known:
            raise UnknownNameError(f"--exclude {line!r}: no row has an option {name!r}{did_you_mean(name, known)}")
    return {name: _split_list(name, text) for name, text in zip(names, values, strict=True)}


def _matches(factors: Mapping[str, str], name: str, patterns: Sequence[str]) -> bool:
    return name in factors and any(fnmatchcase(factors[name], pattern) for pattern in patterns)


def row_id(plan: Plan, *condition: object) -> str:
    """Return a digest of a model and its condition that is equal in all runs.

    Args:
        plan: plan of the model.
        condition: what else tells rows apart, such as batch size and mode.

    Raises:
        OptionError: The plan cannot be sent to another process.
    """
    try:
        objects = [pickle.dumps(spec.objects) for spec in _python_specs([plan])]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        advice = "define a class or function that is given in Python at the top level of a module"
        raise OptionError(f"the plan cannot be sent to the process that measures it: {error}; {advice}") from None
    return short_digest("\0".join(map(str, (plan, *condition))).encode(), *objects)


def cache_key(case: Case, baseline: str, owners: Collection[str], manager: PluginManager) -> str:
    """Return a digest of a case and of all code outside unetkit that it uses, so that an edit causes a new measurement.

    Args:
        case: the case.
        baseline: line of the baseline, if one is given.
        owners: names of the plugins that own the metrics, and what else a training uses.
        manager: the loaded plugins.
    """
    plans = [case.plan, *([Plan.parse(baseline)] if baseline else [])]
    owners = {*owners}.union(*(_part_owners(plan, manager) for plan in plans)) - {BUILTIN}
    used = [p for p in manager.loaded_plugins() if p.name in owners or manager.implements("unetkit_wrap_model", p)]
    code = [f"{plugin} {digest_plugin(plugin.target)}" for plugin in used]
    return short_digest(json.dumps([case.id, *code, *map(_source_code, _python_specs(plans))]).encode())


def _part_owners(plan: Plan, manager: PluginManager) -> set[str]:
    """Return the names of the plugins that own the parts of a plan; none if the plan has unknown names."""
    try:
        resolved = resolve(plan, manager.parts)
        specs = [(field, spec) for field, spec in resolved.specs() if spec.factory is None and str(spec) != "none"]
        return {manager.parts[field].get(spec.name).owner for field, spec in specs}
    except UnetkitError:
        return set()


def _python_specs(plans: list[Plan]) -> Iterator[PartSpec]:
    """Yield the parts that are given as a class or function, or have an option that is given as an object."""
    return (spec for plan in plans for _, spec in plan.specs() if spec.objects)


def _source_code(spec: PartSpec) -> str:
    return "".join(map(_read_source, spec.objects))


def _read_source(value: Any) -> str:
    try:
        return inspect.getsource(getattr(value, "func", value))
    except (OSError, TypeError):
        return ""
