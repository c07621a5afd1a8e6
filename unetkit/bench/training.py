"""The trainings of a benchmark: the options that the grid sets, the ones to run next, and the tasks of processes.

A training is one row with one seed. The module imports neither torch nor numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from unetkit.bench.grid import Case, Completed, Training, split_axis
from unetkit.errors import OptionError
from unetkit.options import split_items
from unetkit.plan import PartSpec, Plan
from unetkit.registry import Parts
from unetkit.resolve import canonical_spec
from unetkit.train.config import TrainConfig
from unetkit.utils.config_fields import ConfigField, list_config_fields

#: Fields of a TrainConfig that the grid takes lists of, in order. The batch size is one, too, and a condition of costs.
TRAINING_AXES = (
    "loss",
    "augment",
    "crop",
    "epochs",
    "steps",
    "lr",
    "optimizer",
    "freeze_encoder",
    "dtype",
    "patience",
)
#: Fields of a TrainConfig that describe the data, which all rows share.
DATA_FIELDS = ("val_fraction", "group_by", "split_seed", "ignore_index", "nodata", "channels")
#: Fields whose values contain commas, so that each occurrence of the option is one value.
_UNSPLIT = ("augment",)
FIELDS = {one.name: one for one in list_config_fields(TrainConfig)}


def parse_training_axis(name: str, texts: Iterable[str], parts: Parts) -> list[str]:
    """Return the values of one field of a training: the items of comma-separated lists.

    A value of --augment contains commas itself, so each occurrence of it is one value.

    Args:
        name: a name in TRAINING_AXES, or "batch_size".
        texts: the values of all occurrences of the option.
        parts: parts in which names are looked up.

    Raises:
        OptionError: A value is not one of the field.
        UnknownNameError: A loss, an augmentation or an optimizer does not exist.
    """
    values = [*dict.fromkeys(texts if name in _UNSPLIT else split_axis(name, texts))]
    for value in values:
        TrainConfig(**{name: parse_training_value(FIELDS[name], value)}) if name != "steps" else None
        _check_names(name, value, parts)
    return values


def _check_names(name: str, value: str, parts: Parts) -> None:
    """Look up the parts that a value names, so that a mistyped name is reported before anything is trained."""
    specs: list[PartSpec] = []
    if name in ("loss", "optimizer"):
        specs = [*PartSpec.parse(value).links]
    elif name == "augment" and value != "none":
        specs = [PartSpec.parse(step) for step in split_items(value)]
    for spec in specs:
        canonical_spec(name, spec, parts)


def parse_training_value(field: ConfigField, text: str) -> Any:
    """Read the value of a field of a TrainConfig from text. Raises OptionError."""
    try:
        return field.parse(field.type(text))
    except OptionError as error:
        raise OptionError(f"{field.flag} {text}: {error}") from None
    except ValueError:
        kind = "an integer" if field.type is int else "a number"
        raise OptionError(f"{field.flag} {text}: must be a list of values, each {kind}") from None


def combine_trainings(axes: Mapping[str, Sequence[str]], *, trained: bool) -> list[Completed[Training]]:
    """Combine the values of all fields into settings of trainings; a single one without any.

    Args:
        axes: the values of each field, by its name.
        trained: whether networks are trained, so that the settings are completed by the defaults.
    """
    given = {name: axes[name] for name in ("batch_size", *TRAINING_AXES) if axes.get(name)}
    combined = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    return [_complete(values) if trained else Completed(tuple(values.items()), values) for values in combined]


def _complete(given: dict[str, str]) -> Completed[Training]:
    """Complete settings by the defaults that do not follow from the data."""
    usual = {name: getattr(TrainConfig, name) for name in TRAINING_AXES}
    defaults = {name: str(value) for name, value in usual.items() if value not in (None, "")}
    values = parse_training_values(given)
    same = [name for name in given if name in defaults and values[name] == usual[name]]
    factors = {**defaults, **given, **{name: defaults[name] for name in same}}
    short = tuple((name, text) for name, text in given.items() if name not in same)
    return Completed(short, factors, tuple(name for name in defaults if name not in given))


def train_settings(case: Case) -> dict[str, Any]:
    """Return the fields of a TrainConfig that the grid sets for a case."""
    return parse_training_values(dict(case.training))


def parse_training_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """Read the values of fields of a TrainConfig from text, by name."""
    return {name: parse_training_value(FIELDS[name], text) for name, text in texts.items()}


def find_training_owners(case: Case, data: str, parts: Parts) -> set[str]:
    """Return the names of the plugins that supply the data, the loss, the augmentation and the optimizer of a case."""
    names = [("data", data.partition(":")[0])]
    for name, value in case.training:
        if name in ("loss", "optimizer"):
            names += [(name, spec.name) for spec in PartSpec.parse(value).links]
        elif name == "augment" and value != "none":
            names += [(name, PartSpec.parse(step).name) for step in split_items(value)]
    return {parts[kind].entries[name].owner for kind, name in names if name in parts[kind].entries}


def training_folder(folder: Path, row_id: str, seed: int) -> Path:
    """Return the folder of a training within the folder of its benchmark.

    Args:
        folder: folder of the benchmark.
        row_id: id of the row.
        seed: seed of the training.
    """
    return folder / "trainings" / row_id / f"seed-{seed}"


def digest_of_header(folder: Path) -> str:
    """Return a digest of the first line of the results file in a folder, its header; "" if there is none."""
    try:
        with (folder / "rows.jsonl").open("rb") as file:
            return hashlib.sha256(file.readline()).hexdigest()[:16]
    except OSError:
        return ""


@dataclass(frozen=True)
class DataRequest:
    """A request to open the data of a benchmark, with everything that its process has to know.

    Attributes:
        data: the text for `--data`.
        settings: fields of a TrainConfig that describe the data.
        seeds: seeds of the splits that are needed, if the data have no split of their own.
        cases: the rows, whose losses, augmentations and plans are checked against the data.
        plugins: files and modules to load in addition to the installed plugins.
        checks_images: whether to read all images of a folder, to find damaged ones.
    """

    data: str
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    cases: tuple[Case, ...]
    plugins: tuple[str, ...] = ()
    checks_images: bool = True


@dataclass(frozen=True)
class TrainingTask:
    """A training, with everything that its process has to know.

    Attributes:
        row_id: id of the row.
        plan: plan of the network, without a seed.
        settings: fields of a TrainConfig, those of the data among them.
        seed: seed of everything random.
        data: the text for `--data`.
        opened: the opened data set and its statistics as `pickle` writes them; None if the process has to open it.
        folder: folder of the training.
        borders: folder of border weights, which all trainings share.
        cache_key: digest of the row and of the code of plugins that it uses.
        key: digest of all that is trained, so that a training of something else in the same folder is not continued.
        token: digest of the results file, by which a process on another machine knows whether it shares the folder.
        rescores: whether a finished training is done again, since a metric failed.
        metrics: names of the metrics of trained networks.
        saves_predictions: whether the predicted masks are stored, for the report.
        plugins: files and modules to load in addition to the installed plugins.
    """

    row_id: str
    plan: Plan
    settings: dict[str, Any]
    seed: int
    data: str
    opened: bytes | None
    folder: str
    borders: str
    cache_key: str
    key: str
    token: str
    metrics: tuple[str, ...]
    rescores: bool = False
    saves_predictions: bool = False
    plugins: tuple[str, ...] = ()
