"""A check of the verdicts on trained networks: benchmarks whose truth is known, drawn from measured trainings.

The package contains the confusion matrices of small networks on the built-in data set `cells`, for each of many seeds
and each test image. A simulated benchmark draws the scores of all its rows from the seeds of one network, so that its
rows are equal, and adds a known difference to some of them. The verdicts are compared with the truth, and so are those
of common practices, on the same scores.

Scores are drawn by the smoothed bootstrap that keeps mean and variance (Silverman and Young, "The bootstrap: to smooth
or not to smooth?", 1987): a measured score is drawn with replacement, and normal noise of a quarter of the standard
deviation is added. Without noise, two dozen values would recur, and two rows would often get the very same score, which
real trainings do not; with much more, every distribution would become a normal one, for which the tests are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import sqrt

import numpy
from numpy.typing import NDArray
from scipy.special import stdtrit

from unetkit.bench.quality_statistics import (
    BoolArray,
    Comparison,
    FloatArray,
    QualityRules,
    compare_rows,
    detection_power,
    draw_scores,
    image_weights,
    make_looks,
    mean_iou,
    required_seeds,
    two_way_interval,
    wanted_seeds,
)
from unetkit.utils.tables import Listing, TableData

#: True differences of a row from the baseline in mean IoU.
SHIFTS = (0.0, 0.005, 0.01, 0.02)
#: True differences of the rows of a grid.
GRID_SHIFTS = (0.005, 0.01, 0.02, -0.005, -0.01, -0.02, -0.04)
#: Fixed number of seeds, and largest number of seeds of several looks.
FEW_SEEDS, MANY_SEEDS = 6, 16
#: Largest difference that counts as the same.
MARGIN = 0.005
#: Largest share of tables with a false verdict.
MAX_FALSE_RATE = 0.05
#: Smallest share of intervals that must cover the true difference.
MIN_COVERAGE = 0.93
#: Number of seeds of two common practices, and of their bootstrap draws.
WELCH_SEEDS, MEDIAN_SEEDS, _MEDIAN_DRAWS = 3, 5, 400
#: Standard deviation of the noise that is added to a drawn score, relative to that of the scores.
_SMOOTHING = 0.25
#: Number of resampled sets of images for an interval.
_IMAGE_DRAWS = 200
#: Number of simulated benchmarks whose bootstrap draws are held at a time.
_CHUNK = 250
#: How many of its standard errors a share may be off due to the number of simulated benchmarks.
_TOLERANCE = 2.5


@dataclass(frozen=True)
class PairTally:
    """The verdicts of one method on a row and a baseline in all benchmarks with the same true difference.

    Attributes:
        shift: the true difference.
        method: name of the method.
        runs: number of simulated benchmarks.
        better: share in which the row is called better.
        worse: share in which it is called worse.
        same: share in which it is called the same.
        predicted: share in which the difference should be found by the formula of `detection_power`; NaN if there is no
            formula for this method.
        coverage: share of the 95% intervals that contain the true difference; NaN for methods without an interval.
        seeds: mean number of trainings of a row.
    """

    shift: float
    method: str
    runs: int
    better: float
    worse: float
    same: float
    predicted: float
    coverage: float
    seeds: float

    @property
    def is_false(self) -> float:
        """The share of the false verdicts."""
        same = self.same if abs(self.shift) >= MARGIN else 0.0
        return self.worse + same + (self.better if self.shift <= 0 else 0.0)


@dataclass(frozen=True)
class GridTally:
    """The verdicts on a table of several rows in all simulated benchmarks.

    Attributes:
        method: name of the method.
        shifts: true differences of the rows from the baseline.
        runs: number of simulated benchmarks.
        false_tables: share of the tables with at least one false verdict, or with a row that was dropped although the
            row that it was called worse than is not better.
        found: share of the rows that are called better or worse, for each true difference.
        dropped: share of the rows that are not, but are called worse than the best row, for each true difference.
        seeds: mean number of trainings of a row, including the baseline.
    """

    method: str
    shifts: tuple[float, ...]
    runs: int
    false_tables: float
    found: dict[float, float]
    dropped: dict[float, float]
    seeds: float


@dataclass(frozen=True)
class ImageTally:
    """Counts of how often the interval over seeds and images covers the true difference of two networks.

    Attributes:
        a: name of the first network.
        b: name of the second network.
        seeds: number of seeds.
        images: number of images.
        runs: number of simulated benchmarks.
        coverage: share of the intervals that contain the true difference.
        seed_coverage: the same for the interval over seeds alone, which does not hold for other images.
    """

    a: str
    b: str
    seeds: int
    images: int
    runs: int
    coverage: float
    seed_coverage: float


@dataclass(frozen=True)
class QualitySelftest:
    """The results of the check.

    Attributes:
        network: name of the network whose scores are drawn.
        trainings: number of measured seeds.
        std: standard deviation of its scores over seeds.
        pairs: results for one row and a baseline.
        grids: results for several rows: equal ones first, then different ones.
        images: results of the intervals over seeds and images.
    """

    network: str
    trainings: int
    std: float
    pairs: list[PairTally]
    grids: list[GridTally]
    images: list[ImageTally]

    @property
    def saved(self) -> float:
        """The part of the trainings that looks and a race save in a grid of different rows."""
        fixed, raced = self.grids[-2:]
        return 1 - raced.seeds / fixed.seeds


def load_matrices() -> dict[str, NDArray[numpy.uint16]]:
    """Return the measured confusion matrices of each network, (seeds, images, classes, classes).

    The networks are `--encoder plain:widths=[8,16,32]`, with skip connections that are concatenated or added. They were
    trained for 250 steps on `cells:count=120,val=16,test=40,size=96`, and are those of the best epoch.
    """
    with files("unetkit.bench").joinpath("cells_scores.npz").open("rb") as file, numpy.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def simulate(matrices: Mapping[str, NDArray[numpy.integer]], runs: int = 2000, seed: int = 0) -> QualitySelftest:
    """Simulate benchmarks, and compare the verdicts with the truth.

    Args:
        matrices: measured confusion matrices of one or more networks, each (S, N, K, K) for the same seeds and images;
            verdicts are simulated with the scores of the first network.
        runs: number of benchmarks for each true difference. There are a quarter as many of grids, and of intervals over
            seeds and images.
        seed: seed of the random generator.
    """
    rng = numpy.random.default_rng(seed)
    network, counts = next(iter(matrices.items()))
    measured: FloatArray = mean_iou(counts.sum(axis=1, dtype=numpy.float64))
    few, many = max(2, runs // 4), make_looks(None, MANY_SEEDS)
    pairs = []
    for shift in SHIFTS:
        scores = draw_smoothly(measured, (runs, 2, MANY_SEEDS), rng)
        scores[:, 1] += shift
        pairs += _tally_pairs(scores, shift, float(measured.std()), rng)
    grids = []
    for shifts in ((0.0,) * len(GRID_SHIFTS), GRID_SHIFTS):
        scores = draw_smoothly(measured, (few, len(shifts) + 1, MANY_SEEDS), rng)
        scores[:, 1:] += numpy.array(shifts)[:, None]
        fixed, raced = _make_rules((MANY_SEEDS,)), _make_rules(many, race=True)
        grids += [_tally_grid(f"{MANY_SEEDS} seeds", scores, shifts, fixed)]
        grids += [_tally_grid(f"looks up to {MANY_SEEDS}, race", scores, shifts, raced)]
    others = list(matrices)[1:]
    images = [_tally_images(matrices, network, b, n, few, rng) for b in others for n in (FEW_SEEDS, MANY_SEEDS)]
    return QualitySelftest(network, len(measured), float(measured.std()), pairs, grids, images)


def _make_rules(looks: tuple[int, ...], *, race: bool = False) -> QualityRules:
    return QualityRules("miou", "more", MARGIN, looks, race)


def draw_smoothly(measured: FloatArray, shape: tuple[int, ...], rng: numpy.random.Generator) -> FloatArray:
    """Draw scores from measured ones with replacement, with a little noise; mean and variance stay the same.

    Args:
        measured: measured scores.
        shape: shape of the result.
        rng: random generator for the draws.
    """
    mean, std = measured.mean(), measured.std()
    noise = _SMOOTHING * std * rng.standard_normal(shape)
    scores: FloatArray = mean + (rng.choice(measured, shape) - mean + noise) / sqrt(1 + _SMOOTHING**2)
    return scores


def _tally_pairs(scores: FloatArray, shift: float, std: float, rng: numpy.random.Generator) -> list[PairTally]:
    """Return the tallies of all methods for scores (runs, baseline and row, seeds)."""
    fixed = _make_rules((FEW_SEEDS,))
    looks = _make_rules(make_looks(None, MANY_SEEDS))
    predicted = detection_power(sqrt(2) * std, shift, FEW_SEEDS) if shift else fixed.alpha
    few = _tally_rules(f"{FEW_SEEDS} seeds", scores, shift, fixed, predicted)
    tallies = [few, _tally_rules(f"looks up to {MANY_SEEDS}", scores, shift, looks, numpy.nan)]
    baseline, row = scores[:, 0], scores[:, 1]
    practices = {
        "one run each": (1, *_judge_by_one_run(baseline, row)),
        f"Welch, {WELCH_SEEDS} seeds": (WELCH_SEEDS, *_judge_by_welch(baseline, row)),
        f"medians, {MEDIAN_SEEDS} seeds": (MEDIAN_SEEDS, *_judge_by_medians(baseline, row, rng)),
    }
    for method, (seeds, low, high) in practices.items():
        covered = numpy.nan if seeds == 1 else float(((low <= shift) & (shift <= high)).mean())
        better, worse = float((low > 0).mean()), float((high < 0).mean())
        tallies.append(PairTally(shift, method, len(scores), better, worse, 0.0, numpy.nan, covered, seeds))
    return tallies


def _tally_rules(method: str, scores: FloatArray, shift: float, rules: QualityRules, predicted: float) -> PairTally:
    found, counts = zip(*(_run(values, rules) for values in scores), strict=True)
    rows = [one["1"] for one in found]
    verdicts = [row.verdict for row in rows]
    covered = sum(row.low <= shift <= row.high for row in rows) / len(rows)
    better, worse, same = (verdicts.count(verdict) / len(rows) for verdict in ("better", "worse", "same"))
    return PairTally(shift, method, len(rows), better, worse, same, predicted, covered, sum(counts) / len(rows) / 2)


def _run(values: FloatArray, rules: QualityRules) -> tuple[dict[str, Comparison], int]:
    """Return the comparisons of a benchmark that stops where the rules say so, and the number of its trainings."""
    scores: dict[str, Sequence[float]] = {str(row): one.tolist() for row, one in enumerate(values)}
    wanted = wanted_seeds(scores, "0", rules)
    trained = {row: one[: wanted[row]] for row, one in scores.items()}
    return compare_rows(trained, "0", rules), sum(wanted.values())


def _judge_by_one_run(baseline: FloatArray, row: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return an interval without width: the higher score wins."""
    difference = row[:, 0] - baseline[:, 0]
    return difference, difference


def _judge_by_welch(baseline: FloatArray, row: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the 95% interval of Welch's t-test for unpaired scores of three seeds."""
    a, b = baseline[:, :WELCH_SEEDS], row[:, :WELCH_SEEDS]
    x, y = a.var(axis=1, ddof=1) / WELCH_SEEDS, b.var(axis=1, ddof=1) / WELCH_SEEDS
    degrees = (x + y) ** 2 / ((x**2 + y**2) / (WELCH_SEEDS - 1))
    difference, half_width = b.mean(axis=1) - a.mean(axis=1), stdtrit(degrees, 0.975) * numpy.sqrt(x + y)
    return difference - half_width, difference + half_width


def _judge_by_medians(
    baseline: FloatArray, row: FloatArray, rng: numpy.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return the 95% percentile bootstrap interval of the difference of the medians of five seeds."""
    picks = rng.integers(MEDIAN_SEEDS, size=(2, _MEDIAN_DRAWS, MEDIAN_SEEDS))
    bounds = []
    for start in range(0, len(row), _CHUNK):
        a, b = (
            numpy.median(values[start : start + _CHUNK][:, pick], axis=2)
            for values, pick in zip((baseline, row), picks, strict=True)
        )
        bounds.append(numpy.quantile(b - a, (0.025, 0.975), axis=1))
    low, high = numpy.concatenate(bounds, axis=1)
    return low, high


def _tally_grid(method: str, scores: FloatArray, shifts: tuple[float, ...], rules: QualityRules) -> GridTally:
    truths = numpy.array([0.0, *shifts])
    is_false: BoolArray = numpy.zeros(len(scores), dtype=bool)
    called, dropped = dict.fromkeys(sorted(set(shifts)), 0), dict.fromkeys(sorted(set(shifts)), 0)
    trainings = 0
    for run, values in enumerate(scores):
        found, count = _run(values, rules)
        trainings += count
        for row, comparison in found.items():
            is_false[run] |= _is_false(comparison, int(row), truths)
            is_called = comparison.verdict in ("better", "worse")
            called[truths[int(row)]] += is_called
            dropped[truths[int(row)]] += not is_called and comparison.worse_than != ""
    found_shares, dropped_shares = (
        {shift: count / len(scores) / shifts.count(shift) for shift, count in counts.items()}
        for counts in (called, dropped)
    )
    seeds = trainings / len(scores) / len(truths)
    return GridTally(method, shifts, len(scores), float(is_false.mean()), found_shares, dropped_shares, seeds)


def _is_false(comparison: Comparison, row: int, truths: FloatArray) -> bool:
    truth = float(truths[row])
    is_wrong = {"better": truth <= 0, "worse": truth >= 0, "same": abs(truth) >= MARGIN}
    is_wrongly_dropped = comparison.worse_than != "" and float(truths[int(comparison.worse_than)]) <= truth
    return is_wrong.get(comparison.verdict, False) or is_wrongly_dropped


def _tally_images(
    matrices: Mapping[str, NDArray[numpy.integer]], a: str, b: str, seeds: int, runs: int, rng: numpy.random.Generator
) -> ImageTally:
    """Return how often intervals of the difference of two networks cover the one over all measured seeds and images."""
    first, second = (matrices[name].astype(numpy.float64) for name in (a, b))
    truth = float((mean_iou(second.sum(axis=1)) - mean_iou(first.sum(axis=1))).mean())
    images = first.shape[1]
    weights = image_weights(images, _IMAGE_DRAWS)
    unit = numpy.ones((1, images))
    covered = covered_by_seeds = 0
    for _ in range(runs):
        chosen = numpy.ix_(rng.integers(len(first), size=seeds), rng.integers(images, size=images))
        points = (draw_scores(second[chosen], mean_iou, unit) - draw_scores(first[chosen], mean_iou, unit))[0]
        draws = draw_scores(second[chosen], mean_iou, weights) - draw_scores(first[chosen], mean_iou, weights)
        low, high = two_way_interval(points, draws, images)
        covered += low <= truth <= high
        half_width = stdtrit(seeds - 1, 0.975) * points.std(ddof=1) / sqrt(seeds)
        covered_by_seeds += abs(points.mean() - truth) <= half_width
    return ImageTally(a, b, seeds, images, runs, covered / runs, covered_by_seeds / runs)


def has_passed(result: QualitySelftest) -> bool:
    """Return whether false verdicts are rare enough, and whether intervals cover the truth often enough.

    Args:
        result: as `simulate` returns it.
    """
    rules = [tally for tally in result.pairs if not numpy.isnan(tally.coverage) and _is_own(tally.method)]
    rates = [(tally.is_false, tally.runs) for tally in rules]
    rates += [(tally.false_tables, tally.runs) for tally in result.grids]
    covers = [(tally.coverage, tally.runs) for tally in rules] + [(one.coverage, one.runs) for one in result.images]
    return all(rate <= MAX_FALSE_RATE + _allowance(runs) for rate, runs in rates) and all(
        coverage >= MIN_COVERAGE - _allowance(runs) for coverage, runs in covers
    )


def _is_own(method: str) -> bool:
    return method in (f"{FEW_SEEDS} seeds", f"looks up to {MANY_SEEDS}")


def _allowance(runs: int) -> float:
    return _TOLERANCE * sqrt(MAX_FALSE_RATE * (1 - MAX_FALSE_RATE) / runs)


def format_quality_selftest(result: QualitySelftest) -> Listing:
    """Format the results as tables, with notes on whether the requirements are met.

    Args:
        result: as `simulate` returns it.
    """
    pair_headers = ["true difference", "method", "better", "worse", "same", "predicted", "coverage", "seeds"]
    pairs = [
        [
            f"{tally.shift:g}",
            tally.method,
            *(_percent(share) for share in (tally.better, tally.worse, tally.same, tally.predicted, tally.coverage)),
            f"{tally.seeds:.1f}",
        ]
        for tally in result.pairs
    ]
    names = sorted({*GRID_SHIFTS, 0.0})
    grid_headers = ["rows", "method", "false tables", *(f"found {shift:+g}" for shift in names), "seeds"]
    grids = [
        [
            "equal" if not any(tally.shifts) else "different",
            tally.method,
            _percent(tally.false_tables),
            *(_describe_found(tally, shift) for shift in names),
            f"{tally.seeds:.1f}",
        ]
        for tally in result.grids
    ]
    image_headers = ["networks", "seeds", "images", "coverage over seeds and images", "coverage over seeds alone"]
    images = [
        [f"{one.a}, {one.b}", str(one.seeds), str(one.images), _percent(one.coverage), _percent(one.seed_coverage)]
        for one in result.images
    ]
    tables = [
        TableData(pair_headers, pairs, f"a row and a baseline, {result.pairs[0].runs} benchmarks each"),
        TableData(
            grid_headers, grids, f"{len(GRID_SHIFTS)} rows and a baseline, {result.grids[0].runs} benchmarks each"
        ),
    ]
    if images:
        tables.append(TableData(image_headers, images, f"intervals, {result.images[0].runs} benchmarks each"))
    head = f"scores of {result.network} over {result.trainings} seeds: standard deviation {result.std:.4f}"
    return Listing([head], tables, _make_notes(result))


def _make_notes(result: QualitySelftest) -> list[str]:
    equal = [tally for tally in result.pairs if tally.shift == 0]
    rates = [f"{tally.is_false:.1%} by {tally.method}" for tally in equal]
    biggest = max(SHIFTS)
    required = required_seeds(sqrt(2) * result.std, biggest, 0.0)
    return [
        f"equal rows called different: {', '.join(rates)} (at most {MAX_FALSE_RATE:.0%} allowed)",
        f"a difference of {biggest:g} needs {required or 'more than 1000'} seeds to be found with a probability of 80%",
        "a false table has at least one false verdict; found is better or worse, + rows dropped as worse than the best",
        f"looks and a race need {result.saved:.0%} fewer trainings than {MANY_SEEDS} seeds for each row",
        "passed" if has_passed(result) else "failed: there are too many false verdicts, or intervals are too narrow",
    ]


def _describe_found(tally: GridTally, shift: float) -> str:
    if shift not in tally.found:
        return ""
    dropped = tally.dropped[shift]
    return f"{tally.found[shift]:.0%}" + (f" + {dropped:.0%}" if dropped else "")


def _percent(share: float) -> str:
    return "" if numpy.isnan(share) else f"{share:.1%}"
