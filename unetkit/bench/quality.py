"""The quality of the rows of a run: scores over seeds, and comparisons with the baseline, from what is stored.

Comparisons use the rules in the header of the run (`unetkit.bench.quality_statistics`). Only the metric of these rules
gets verdicts; other metrics of trained networks are described, since verdicts on them were not planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy

from unetkit.bench.quality_statistics import (
    MIN_SEEDS,
    Comparison,
    FloatArray,
    QualityRules,
    class_iou,
    compare_rows,
    draw_scores,
    image_weights,
    mean_dice,
    mean_iou,
    two_way_interval,
)
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.bench.training import training_folder
from unetkit.bench.training_runner import collect_scores, find_best_row, find_wanted_seeds
from unetkit.registry import MetricInfo
from unetkit.utils.formatting import format_plural

#: Number of resampled sets of images for an interval.
_DRAWS = 1000
#: Smallest number of seeds whose correlation is shown; that of two is always 1 or -1.
_MIN_CORRELATED = 4


@dataclass(frozen=True)
class RowQuality:
    """The scores of a row by one metric.

    Attributes:
        scores: a score for each seed, in order, as far as no seed is missing.
        failed: number of trainings that gave no score.
        trainings: number of all trainings.
        comparison: the comparison with the baseline over their common seeds; None for the baseline itself, for rows
            with failed trainings, and before there are two common seeds.
        is_baseline: whether this is the baseline.
        has_verdict: whether the metric is that of the rules.
    """

    scores: tuple[float, ...]
    failed: int
    trainings: int
    comparison: Comparison | None
    is_baseline: bool
    has_verdict: bool

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None without scores, or if a training failed."""
        return fmean(self.scores) if self.scores and not self.failed else None

    @property
    def std(self) -> float | None:
        """The standard deviation over the seeds; None with fewer than two."""
        return stdev(self.scores) if len(self.scores) > 1 and not self.failed else None

    @property
    def verdict(self) -> str:
        """The verdict in words, with what is known about how many more seeds would settle it."""
        if self.failed:
            return f"failed on {self.failed} of {format_plural(self.trainings, 'seed')}"
        if self.is_baseline:
            return "baseline"
        if self.comparison is None:
            return "" if not self.scores else "no comparison"
        if not self.has_verdict:
            return ""
        verdict, more = str(self.comparison.verdict), self.comparison.more_seeds
        if self.comparison.worse_than:
            return f"{verdict}, worse than the best" if verdict != "worse" else verdict
        if verdict == "exploratory":
            return f"exploratory: fewer than {MIN_SEEDS} seeds"
        if verdict == "inconclusive":
            about = (
                f"about {format_plural(more, 'more seed')}" if more else "no number of seeds in reach would settle it"
            )
            return f"inconclusive, {about}"
        return verdict


class RunQuality:
    """The quality of all rows of a run with trainings.

    Args:
        run: the results of a benchmark, whose header has trainings.
    """

    def __init__(self, run: BenchRun) -> None:
        if run.header.training is None:
            raise ValueError(f"{run.folder} contains no trainings")
        self.run, self.header = run, run.header.training
        self.rules = QualityRules.from_dict(self.header.rules)
        self.metrics: list[MetricInfo] = [metric for metric in run.header.metrics if metric.trained]
        self._by_metric: dict[str, dict[str, RowQuality]] = {}
        self._counts: dict[tuple[str, int], FloatArray] = {}
        self._draws: dict[tuple[str, str], tuple[FloatArray, FloatArray]] = {}

    def of(self, row: BenchRow, metric: str) -> RowQuality:
        """Return the quality of a row.

        Args:
            row: a row of the run.
            metric: name of a metric of trained networks.
        """
        if metric not in self._by_metric:
            self._by_metric[metric] = self._judge(metric)
        nothing = RowQuality((), 0, 0, None, row.id == self.header.baseline_row, metric == self.rules.metric)
        return self._by_metric[metric].get(row.id, nothing)

    def _judge(self, metric: str) -> dict[str, RowQuality]:
        scores, failed = collect_scores(self.run.trainings, metric, self.header.seed)
        counts = Counter(one.row_id for one in self.run.trainings)
        baseline = self.header.baseline_row
        whole = {row_id: values for row_id, values in scores.items() if row_id not in failed and len(values) > 1}
        better = next(one.better for one in self.metrics if one.name == metric)
        rules = self.rules.for_metric(metric, "less" if better == "less" else "more")
        found = compare_rows(whole, baseline, rules) if baseline in whole else {}
        return {
            row_id: RowQuality(
                tuple(values),
                failed.get(row_id, 0),
                counts[row_id],
                found.get(row_id),
                row_id == baseline,
                metric == self.rules.metric,
            )
            for row_id, values in scores.items()
        }

    def count_missing(self) -> int:
        """Return the number of trainings that are still to do until the next verdicts; 0 if the run is finished."""
        rows = [row.id for row in self.run.rows if row.is_measured]
        done = Counter(one.row_id for one in self.run.trainings)
        wanted = find_wanted_seeds(rows, self.run.trainings, self.header, self.rules)
        return sum(max(0, count - done[row_id]) for row_id, count in wanted.items())

    @cached_property
    def best_row(self) -> str:
        """The id of the row with the best mean by the metric of the rules; "" if there is none."""
        scores, failed = collect_scores(self.run.trainings, self.rules.metric, self.header.seed)
        whole = {row_id: values for row_id, values in scores.items() if row_id not in failed and values}
        return find_best_row(whole, self.rules)

    def image_interval(self, row: BenchRow, metric: str) -> tuple[float, float] | None:
        """Return the 95% interval of the difference to the baseline that also holds for other images of the same kind.

        Args:
            row: a row of the run.
            metric: name of a metric of trained networks.

        Returns:
            None if seeds score different images, if the metric does not follow from confusion matrices, or if there is
            no comparison.
        """
        quality = self.of(row, metric)
        if quality.comparison is None:
            return None
        mine, theirs = self.image_draws(row.id, metric), self.image_draws(self.header.baseline_row, metric)
        if mine is None or theirs is None:
            return None
        count = min(len(mine[0]), len(theirs[0]))
        points, draws = mine[0][:count] - theirs[0][:count], mine[1][:, :count] - theirs[1][:, :count]
        return two_way_interval(points, draws, self.num_images)

    def image_draws(self, row_id: str, metric: str) -> tuple[FloatArray, FloatArray] | None:
        """Return the scores of a row, (S,), and those on resampled images, (D, S), which are the same for all rows.

        Args:
            row_id: id of the row.
            metric: name of a metric of trained networks.
        """
        score = self._score_function(metric)
        if score is None or not self.has_common_images:
            return None
        if (row_id, metric) not in self._draws:
            scores, _ = collect_scores(self.run.trainings, metric, self.header.seed)
            seeds = range(self.header.seed, self.header.seed + len(scores.get(row_id, ())))
            counts = [self.load_counts(row_id, seed) for seed in seeds]
            if not counts or any(one is None for one in counts):
                return None
            stacked = numpy.stack([one for one in counts if one is not None])
            weights = image_weights(stacked.shape[1], _DRAWS)
            points: FloatArray = score(stacked.sum(1))
            self._draws[row_id, metric] = points, draw_scores(stacked, score, weights)
        return self._draws[row_id, metric]

    @property
    def num_images(self) -> int:
        """The number of scored images."""
        return self.header.images[self.header.scored]

    @property
    def has_common_images(self) -> bool:
        """True if all seeds score the same images."""
        return (
            self.header.is_split or self.header.scored == "test" or self.header.settings.get("split_seed") is not None
        )

    def _score_function(self, metric: str) -> Callable[[FloatArray], FloatArray] | None:
        name, _, class_name = metric.partition(":")
        if name == "iou" and class_name in self.header.classes:
            index = self.header.classes.index(class_name)
            return lambda counts: class_iou(counts, index)
        return {"miou": mean_iou, "dice": mean_dice}.get(name)

    def load_counts(self, row_id: str, seed: int) -> FloatArray | None:
        """Return the confusion matrix of each scored image, (N, K, K); None if it is not stored, or for labels.

        Args:
            row_id: id of the row.
            seed: seed of the training.
        """
        if (row_id, seed) not in self._counts:
            found = load_scores(self.run.folder, row_id, seed)
            if found is None or found["confusion"].ndim != 3:
                return None
            self._counts[row_id, seed] = found["confusion"].astype(numpy.float64)
        return self._counts[row_id, seed]


_last_read: list[tuple[BenchRun, RunQuality]] = []


def read_quality(run: BenchRun) -> RunQuality | None:
    """Return the quality of a run; None if its rows were not trained.

    That of the last run is kept, since tables, notes and the report need the same comparisons and resampled scores.

    Args:
        run: the results of a benchmark.
    """
    if run.header.training is None:
        return None
    if not _last_read or _last_read[0][0] is not run:
        _last_read[:] = [(run, RunQuality(run))]
    return _last_read[0][1]


def load_scores(folder: Path, row_id: str, seed: int) -> dict[str, Any] | None:
    """Return the arrays that a training stored about the scored images; None if they are missing.

    Args:
        folder: folder of the benchmark.
        row_id: id of the row.
        seed: seed of the training.
    """
    path = training_folder(folder, row_id, seed) / "scores.npz"
    try:
        with numpy.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError):
        return None


def image_iou(confusion: FloatArray) -> FloatArray:
    """Return the IoU of each class (N, K) in each image; NaN where the class occurs in neither mask.

    Args:
        confusion: confusion matrices (N, K, K), or for labels (N, L, 2, 2).
    """
    counts = confusion.astype(numpy.float64)
    if counts.ndim == 4:
        return class_iou(counts, 1)
    return numpy.stack([class_iou(counts, index) for index in range(counts.shape[-1])], axis=-1)


def describe_trainings(quality: RunQuality) -> list[str]:
    """Return lines on the data, the seeds, the rules of the verdicts, and the correlation that pairing gained.

    Args:
        quality: the quality of a run.
    """
    header, rules = quality.header, quality.rules
    images = ", ".join(f"{count} {name}" for name, count in header.images.items())
    scored = (
        "the test images, with the weights of the epoch that was best on the validation images"
        if header.scored == "test"
        else "the validation images, with the weights of the last epoch, since there are no test images"
    )
    lines = [f"trained on {header.data} ({images}); scores are of {scored}, as means ± standard deviations over seeds"]
    comparisons = len([row for row in quality.run.rows if row.is_measured]) - 1
    looks = rules.looks
    seeds = (
        format_plural(looks[0], "seed")
        if len(looks) == 1
        else f"looks after {', '.join(map(str, looks[:-1]))} and {looks[-1]} seeds"
    )
    if comparisons > 0 and looks[-1] < MIN_SEEDS:
        lines.append(
            f"there are no verdicts on {rules.metric} with fewer than {MIN_SEEDS} seeds, and this run has {looks[-1]}; "
            f"benchmark with --seeds {MIN_SEEDS} or more"
        )
    elif comparisons > 0:
        lines.append(
            f"verdicts on {rules.metric}: {seeds}, margin {rules.margin:g}; "
            f"the chance that any verdict of this benchmark is false is at most {rules.alpha:.0%}"
        )
    if not quality.has_common_images:
        lines.append("each seed has its own validation images, so intervals include how images vary")
    correlations = [
        one.comparison.correlation
        for row in quality.run.rows
        if (one := quality.of(row, rules.metric)).comparison
        and one.comparison.correlation == one.comparison.correlation
        and one.comparison.seeds >= _MIN_CORRELATED
    ]
    if correlations:
        lines.append(f"correlation of a row with the baseline over seeds: {median(correlations):.2f} (median of rows)")
    return lines


def is_best_in_bold(quality: RunQuality, row: BenchRow) -> bool:
    """Return whether a table may highlight a row as the best: it has the best mean, and the verdict "better".

    The baseline may be highlighted if all other rows are worse.

    Args:
        quality: the quality of a run.
        row: a row of the run.
    """
    if row.id != quality.best_row:
        return False
    metric = quality.rules.metric
    if row.id != quality.header.baseline_row:
        comparison = quality.of(row, metric).comparison
        return comparison is not None and comparison.verdict == "better"
    others = [quality.of(one, metric) for one in quality.run.rows if one.id != row.id and one.is_measured]
    return all(one.comparison is not None and one.comparison.verdict == "worse" for one in others)


def describe_uncertain_verdicts(quality: RunQuality) -> list[str]:
    """Return warnings about scores that do not vary, and verdicts that may not hold for other images, one line each.

    Args:
        quality: the quality of a run.
    """
    lines = []
    metric = quality.rules.metric
    for row in quality.run.rows:
        number = quality.run.numbers[row.id]
        found = quality.of(row, metric)
        if len(found.scores) > 1 and len({*found.scores}) == 1:
            lines.append(
                f"row {number} has the same score with every seed, as a network that predicts only one class has; "
                "train it longer before you compare it"
            )
        if found.comparison is None or found.comparison.verdict not in ("better", "worse"):
            continue
        interval = quality.image_interval(row, metric)
        if interval is not None and interval[0] <= 0 <= interval[1]:
            lines.append(
                f"row {number} is {found.comparison.verdict} on these images; with other images of the same kind, the "
                f"difference is {interval[0]:+.4f} to {interval[1]:+.4f}, so that it may vanish"
            )
    return lines
