"""The effect of a choice on the quality of trained networks, over all pairs of rows that differ only in it.

The pairs are those of a grid, and do not stand for others. What varies are seeds and images: for each seed, the effect
is the mean difference over the pairs, and its interval comes from resampling seeds and images each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy

from unetkit.bench.effects import find_pairs, list_choices, select_metrics
from unetkit.bench.quality import RunQuality, read_quality
from unetkit.bench.quality_statistics import FloatArray, mean_interval, two_way_interval
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.utils.tables import TableData

#: Conditions of the costs, which do not change a training.
_CONDITIONS = ("mode",)


@dataclass(frozen=True)
class QualityEffect:
    """The effect on a metric of trained networks of replacing value `a` of a factor by value `b`.

    Attributes:
        factor: name of the factor, such as "fuse".
        a: value of the factor before, which appears first in the rows.
        b: value of the factor after.
        metric: name of the metric.
        difference: mean over pairs and seeds of the score with `b` minus that with `a`.
        low, high: its 95% interval.
        seeds: number of seeds that all rows of the pairs have.
        has_images: whether the interval holds for other images, too, or only for other seeds.
        pairs: pairs of rows that differ only in this factor, with the mean difference of each.
        interactions: in words, each other factor on which the effect depends by more than the effect itself.
    """

    factor: str
    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    seeds: int
    has_images: bool
    pairs: tuple[tuple[BenchRow, BenchRow, float], ...]
    interactions: tuple[str, ...] = ()


def estimate_quality_effects(
    quality: RunQuality, metric: str, rows: Sequence[BenchRow] | None = None
) -> list[QualityEffect]:
    """Estimate the effects of all choices for which there are pairs of rows that differ only in them.

    Rows with failed trainings are left out, and so are effects with fewer than two common seeds.

    Args:
        quality: the quality of a run.
        metric: name of a metric of trained networks.
        rows: the rows whose pairs are used; all rows of the run if None.
    """
    run = quality.run
    compared = [
        row
        for row in (run.rows if rows is None else rows)
        if row.is_measured and quality.of(row, metric).mean is not None
    ]
    choices = list_choices(run, _CONDITIONS)
    found = (
        _estimate(quality, metric, factor, a, b, pairs, [name for name in choices if name != factor])
        for factor, values in choices.items()
        for a, b, pairs in find_pairs(factor, values, compared)
    )
    return [effect for effect in found if effect is not None]


def _estimate(
    quality: RunQuality,
    metric: str,
    factor: str,
    a: str,
    b: str,
    pairs: list[tuple[BenchRow, BenchRow]],
    others: Sequence[str],
) -> QualityEffect | None:
    """Estimate an effect, and find on which of the other factors it depends; None with fewer than two common seeds."""
    scores = {row.id: quality.of(row, metric).scores for pair in pairs for row in pair}
    seeds = min(map(len, scores.values()))
    if seeds < 2:
        return None
    differences = numpy.array([numpy.subtract(scores[y.id][:seeds], scores[x.id][:seeds]) for x, y in pairs])
    by_seed: FloatArray = differences.mean(0)
    draws = {row_id: quality.image_draws(row_id, metric) for row_id in scores}
    known = [[draws[x.id], draws[y.id]] for x, y in pairs]
    resampled = [second[1][:, :seeds] - first[1][:, :seeds] for first, second in known if first and second]
    has_images = len(resampled) == len(pairs)
    low, high = (
        two_way_interval(by_seed, numpy.mean(resampled, axis=0), quality.num_images)
        if has_images
        else mean_interval(by_seed)
    )
    difference = float(by_seed.mean())
    rated = tuple((x, y, float(row.mean())) for (x, y), row in zip(pairs, differences, strict=True))
    interactions = tuple(_find_interactions(others, pairs, differences, abs(difference)))
    return QualityEffect(factor, a, b, metric, difference, low, high, seeds, has_images, rated, interactions)


def _find_interactions(
    others: Sequence[str], pairs: Sequence[tuple[BenchRow, BenchRow]], differences: FloatArray, size: float
) -> Iterator[str]:
    """Yield each of the others between whose values the effect differs by more than its size, and not by chance."""
    for other in others:
        values = dict.fromkeys(row.factors.get(other, "") for row, _ in pairs)
        effects = {
            value: differences[[row.factors.get(other, "") == value for row, _ in pairs]].mean(0) for value in values
        }
        if len(effects) < 2:
            continue
        ordered = sorted(effects, key=lambda value: float(effects[value].mean()))
        least, most = ordered[0], ordered[-1]
        low, _ = mean_interval(effects[most] - effects[least])
        if low > 0 and float((effects[most] - effects[least]).mean()) > size:
            ends = ", ".join(f"{float(effects[value].mean()):+.4f} with {value}" for value in (least, most))
            yield f"depends on {other.replace('_', ' ')}: {ends}"


def list_quality_effects(
    run: BenchRun, names: str | None = None, rows: Sequence[BenchRow] | None = None
) -> list[QualityEffect]:
    """Return the effects on the metrics of trained networks of a run.

    Args:
        run: the results of a benchmark.
        names: names of metrics, separated by commas; all metrics if None.
        rows: the rows whose pairs are used; all rows of the run if None.

    Raises:
        UnknownNameError: The run has no such metric.
    """
    selected = [metric.name for metric in select_metrics(run, names) if metric.trained]
    quality = read_quality(run)
    if quality is None:
        return []
    return [effect for name in selected for effect in estimate_quality_effects(quality, name, rows)]


def quality_effects_table(effects: Sequence[QualityEffect]) -> TableData:
    """Format effects on the quality as a table.

    Args:
        effects: effects on metrics of trained networks.
    """
    rows = [
        [
            one.factor.replace("_", " "),
            f"{one.a} -> {one.b}",
            one.metric,
            f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})",
            str(len(one.pairs)),
            str(one.seeds),
            "; ".join(one.interactions),
        ]
        for one in effects
    ]
    title = "effects on trained networks, with 95% intervals over seeds and, where it is possible, images"
    return TableData(["factor", "change", "metric", "difference", "pairs", "seeds", "interactions"], rows, title)


def quality_effects_to_records(effects: Sequence[QualityEffect]) -> list[dict[str, Any]]:
    """Convert effects to plain data for JSON, with the ids of the rows of each pair.

    Args:
        effects: effects on metrics of trained networks.
    """
    return [
        {**asdict(replace(one, pairs=())), "pairs": [{"a": a.id, "b": b.id, "difference": x} for a, b, x in one.pairs]}
        for one in effects
    ]
