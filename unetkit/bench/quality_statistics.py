"""The statistics of trained networks: from scores of rows over seeds to verdicts that hold up.

A row is one configuration of a network, and seed number s is shared by all rows: it fixes split, initialisation, order
and augmentation alike, so the scores of two rows are paired by seed. A verdict is one on the mean of the paired
differences between a row and the baseline, over all seeds that could have been drawn.

Verdicts may be taken at several looks, after numbers of seeds that are fixed beforehand. Testing at 5% at each of six
looks would call 16% of equal rows different, so each look spends a part of the error probability (Lan and DeMets,
"Discrete sequential boundaries for clinical trials", 1983). Several rows are corrected for by the method of Holm, in
the group-sequential form of Maurer and Bretz, "Multiple testing in group sequential trials using graphical approaches",
2013. The probability of at least one false "better" or "worse" in a table is at most alpha, and so is that of at least
one false "same".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import copysign, e, inf, isfinite, log, nan, sqrt
from typing import Any, Literal

import numpy
from numpy.typing import NDArray
from scipy.special import nctdtr, stdtr, stdtrit

FloatArray = NDArray[numpy.float64]
BoolArray = NDArray[numpy.bool_]
IntArray = NDArray[numpy.int64]
Verdict = Literal["better", "worse", "same", "inconclusive", "exploratory"]

#: Smallest number of seeds with a verdict. An exact test that flips the signs of the differences cannot have a p-value
#: below 2^(1 - seeds), which is above 0.05 for fewer than six.
MIN_SEEDS = 6
#: The numbers of seeds at which "auto" looks grow by a factor of the square root of two.
_GROWTH_STEPS_PER_OCTAVE = 2
#: Looks are left out if they would be followed by the last look before this factor of seeds is added.
_MIN_GROWTH = 1.2
#: The part of the error probability that comparisons with the baseline have in a race; the other pairs have the rest.
#: With the same part for each pair, 23 rows would share a twelfth of it.
_BASELINE_SHARE = 0.5
#: Conditional power below which further seeds are hopeless.
_FUTILITY_POWER = 0.1
#: Largest number of seeds that `required_seeds` considers.
MAX_REQUIRED_SEEDS = 1000
#: Effects beyond this number of standard errors are certain to be found; the distribution function fails for them.
_MAX_NONCENTRALITY = 35.0
#: A standard deviation below this fraction of the values is due to rounding.
_ROUNDING = 1e-12
#: Number of draws for the nominal levels, and the one-sided error probabilities at which they are computed.
_LEVEL_DRAWS = 10_000
_LEVEL_GRID: FloatArray = numpy.geomspace(1e-9, 0.25, 25)
#: Largest number of values that are held at a time while scores are resampled.
_CHUNK = 2**22


@dataclass(frozen=True)
class QualityRules:
    """The rules of the verdicts, which are fixed before the first training.

    Attributes:
        metric: name of the metric.
        better: "more" if larger values of the metric are better, "less" if smaller ones are.
        margin: largest difference that counts as "same"; if it is 0, no row is called "same".
        looks: increasing numbers of seeds at which verdicts are taken; a single look is a fixed number of seeds.
        race: whether rows that are worse than the best row are dropped at the looks.
        alpha: probability of at least one false difference in a table, and of at least one false "same".
    """

    metric: str
    better: Literal["more", "less"]
    margin: float
    looks: tuple[int, ...]
    race: bool = False
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.better not in ("more", "less"):
            raise ValueError(f"better must be 'more' or 'less', not {self.better!r}")
        if not (isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin must be 0 or more, not {self.margin}")
        if not self.looks or self.looks[0] < 1 or any(a >= b for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise ValueError(f"looks must be increasing numbers of seeds, not {self.looks}")
        if not 0 < self.alpha <= float(_LEVEL_GRID[-1]):
            raise ValueError(f"alpha must be above 0 and at most {_LEVEL_GRID[-1]}, not {self.alpha}")

    @property
    def valid_looks(self) -> tuple[int, ...]:
        """The looks with enough seeds for a verdict."""
        return tuple(look for look in self.looks if look >= MIN_SEEDS)

    def for_metric(self, metric: str, better: Literal["more", "less"]) -> QualityRules:
        """Return the same rules for another metric.

        Args:
            metric: name of the metric.
            better: the direction in which it is better.
        """
        return replace(self, metric=metric, better=better)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**asdict(self), "looks": list(self.looks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QualityRules:
        """Create rules from the result of `to_dict`.

        Args:
            values: the fields.
        """
        return cls(**{**values, "looks": tuple(values["looks"])})


@dataclass(frozen=True)
class Comparison:
    """The comparison of a row with the baseline over their common seeds.

    Attributes:
        difference: mean of the row's scores minus the baseline's, in the metric's own direction.
        low: lower bound of Student's 95% interval of the difference over seeds; NaN with fewer than two seeds.
        high: upper bound of this interval. It is neither corrected for several rows nor for several looks: of all
            rows, it covers the true difference of 92% to 96% (with four to six looks), but of rows that are decided
            early, differences tend to be exaggerated.
        std: standard deviation of the paired differences; NaN with fewer than two seeds.
        correlation: Pearson's correlation of both rows over seeds; NaN if it is undefined. Pairing gains precision if
            it is positive.
        seeds: number of common seeds.
        verdict: the verdict.
        decided_at: number of seeds of the look at which the verdict fell; 0 if the row is undecided.
        more_seeds: about how many more seeds would settle an undecided row; None if it is decided, or if more than
            1000 seeds (MAX_REQUIRED_SEEDS) would be needed.
        worse_than: id of the best row, if the rows were raced and this one is significantly worse; "" otherwise.
        is_hopeless: whether the row was given up before the last look, since a further look would have decided it with
            a probability below 0.1.
    """

    difference: float
    low: float
    high: float
    std: float
    correlation: float
    seeds: int
    verdict: Verdict
    decided_at: int
    more_seeds: int | None
    worse_than: str
    is_hopeless: bool

    @property
    def is_decided(self) -> bool:
        """True if the verdict is "better", "worse" or "same"."""
        return self.verdict in ("better", "worse", "same")


def make_looks(seeds: int | None, max_seeds: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which verdicts are taken.

    Args:
        seeds: a fixed number of seeds, which gives one look, or None for several looks.
        max_seeds: the last look if there are several: 16 gives 6, 8, 11 and 16.
    """
    if seeds is not None:
        return (seeds,)
    looks = []
    step = 5  # 2^(5/2) rounds to MIN_SEEDS
    while (look := round(2 ** (step / _GROWTH_STEPS_PER_OCTAVE))) * _MIN_GROWTH <= max_seeds:
        looks.append(look)
        step += 1
    return (*looks, max_seeds)


def compare_rows(scores: Mapping[str, Sequence[float]], baseline: str, rules: QualityRules) -> dict[str, Comparison]:
    """Compare each row with the baseline, and take the verdicts at the looks.

    All rows that have enough scores for a look and are not decided before are tested with their scores up to this look.
    "Better" and "worse" are from a paired t-test, and "same" is from two one-sided t-tests against the margin
    (Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for assessing the equivalence
    of average bioavailability", 1987); a row that is both is called better or worse. With a race, differences
    between all pairs of rows are one family, so that claims on the best row, which is chosen by its scores, hold, too;
    half of the error probability is for the comparisons with the baseline.

    Args:
        scores: scores of each row in the order of the seeds.
        baseline: the row that the others are compared with.
        rules: the rules.

    Returns:
        A comparison for each row but the baseline.

    Raises:
        ValueError: The baseline has no entry, or a score is not finite.
    """
    replay = _Replay(scores, baseline, rules)
    return {row: replay.compare(index) for index, row in enumerate(replay.rows) if index}


def wanted_seeds(scores: Mapping[str, Sequence[float]], baseline: str, rules: QualityRules) -> dict[str, int]:
    """Return how many seeds each row should have by now.

    Rows that are decided, dropped or hopeless get no more seeds, and the others those up to the next look. The baseline
    and, in a race, the best row get as many as any row that is still compared. If each row has what it should have,
    the run is finished. Rows may reach a look at different times, but it is best to train seed after seed.

    Args:
        scores: scores of each row in the order of the seeds; rows without scores have to be there, too.
        baseline: the row that the others are compared with.
        rules: the rules.

    Raises:
        ValueError: The baseline has no entry, or a score is not finite.
    """
    replay = _Replay(scores, baseline, rules)
    return dict(zip(replay.rows, replay.wanted.tolist(), strict=True))


class _Replay:
    """The state after all looks that the scores suffice for; the baseline has index 0, and more is better.

    Args:
        scores: scores of each row in the order of the seeds.
        baseline: the row that the others are compared with.
        rules: the rules.
    """

    def __init__(self, scores: Mapping[str, Sequence[float]], baseline: str, rules: QualityRules) -> None:
        if baseline not in scores:
            raise ValueError(f"the baseline {baseline} has no scores")
        self.rules, self.looks = rules, rules.valid_looks
        self.rows = [baseline, *(row for row in scores if row != baseline)]
        self.sign = 1 if rules.better == "more" else -1
        self.counts: IntArray = numpy.array([len(scores[row]) for row in self.rows], dtype=numpy.int64)
        count = len(self.rows)
        self.values: FloatArray = numpy.zeros((count, int(self.counts.max())))
        for index, row in enumerate(self.rows):
            self.values[index, : self.counts[index]] = scores[row]
        if not numpy.isfinite(self.values).all():
            raise ValueError("scores must be finite")
        self.values *= self.sign

        # Differences of the second row of a pair from the first; the first pairs are those with the baseline.
        self.first, self.second = numpy.triu_indices(count, 1)
        if not rules.race:
            self.first, self.second = self.first[: count - 1], self.second[: count - 1]
        is_with_baseline = self.first == 0
        self.weights: FloatArray = numpy.where(
            is_with_baseline,
            (_BASELINE_SHARE if rules.race else 1) / max(count - 1, 1),
            (1 - _BASELINE_SHARE) / max(int(numpy.count_nonzero(~is_with_baseline)), 1),
        )
        self.difference_levels, self.direction = numpy.ones(len(self.first)), numpy.zeros(len(self.first))
        self.is_different: BoolArray = numpy.zeros(len(self.first), dtype=bool)
        self.same_levels: FloatArray = numpy.ones(count - 1)
        self.is_same: BoolArray = numpy.zeros(count - 1, dtype=bool)

        self.verdicts: list[Verdict | None] = [None] * count
        self.tested_at: IntArray = numpy.zeros(count, dtype=numpy.int64)
        self.worse_than = [""] * count
        self.is_hopeless: BoolArray = numpy.zeros(count, dtype=bool)
        self.is_stopped: BoolArray = numpy.zeros(count, dtype=bool)
        self.wanted: IntArray = numpy.full(count, (self.looks or rules.looks[-1:])[0], dtype=numpy.int64)
        for number in range(len(self.looks)):
            if not self._look(number):
                break

    def _look(self, number: int) -> bool:
        """Take the verdicts of a look; return whether any row was tested."""
        look = self.looks[number]
        is_here = (self.counts >= look) & (self.wanted >= look)  # scores that nobody asked for change no verdict
        is_active = is_here & ~self.is_stopped
        is_active[0] = False
        if not (is_here[0] and is_active.any()):
            return False
        self.tested_at[is_active] = look
        self._test(number, is_active, is_here)
        for row in range(1, len(self.rows)):
            if self.verdicts[row] is None and self.is_different[row - 1]:
                self.verdicts[row] = "better" if self.direction[row - 1] > 0 else "worse"
            elif self.verdicts[row] is None and self.is_same[row - 1]:
                self.verdicts[row] = "same"
        leader = self._drop(look, is_active, is_here) if self.rules.race else 0
        self.is_stopped |= [verdict is not None for verdict in self.verdicts]
        if number + 1 < len(self.looks):
            self._give_up(number, is_active & ~self.is_stopped, leader)
            is_active &= ~self.is_stopped
            if is_active.any():
                is_active[[0, leader]] = True
                self.wanted[is_active] = self.looks[number + 1]
        return True

    def _test(self, number: int, is_active: BoolArray, is_here: BoolArray) -> None:
        """Test all hypotheses about active rows, and reject what Holm's method allows.

        Hypotheses about stopped rows keep the level of their last test, and may still be rejected if others are.
        """
        look, alpha = self.looks[number], self.rules.alpha
        uses = is_here[self.first] & is_here[self.second] & (is_active[self.first] | is_active[self.second])
        uses &= ~self.is_different
        mean, std = _describe_differences(self.values[self.second[uses], :look] - self.values[self.first[uses], :look])
        p_values = _upper_p_values(numpy.abs(mean), std, look)
        self.difference_levels[uses] = 2 * _sequential_levels(p_values, number, self.looks)
        self.direction[uses] = numpy.sign(mean)
        self.is_different = _reject(self.difference_levels, self.weights, alpha, self.is_different)
        if self.rules.margin:
            tested = is_active[1:]
            mean, std = _describe_differences(self.values[1:][tested, :look] - self.values[0, :look])
            p_values = _upper_p_values(self.rules.margin - numpy.abs(mean), std, look)
            self.same_levels[tested] = _sequential_levels(p_values, number, self.looks)
            self.is_same = _reject(self.same_levels, numpy.ones(len(self.same_levels)), alpha, self.is_same)

    def _drop(self, look: int, is_active: BoolArray, is_here: BoolArray) -> int:
        """Drop the active rows that are worse than the best row, and return the latter."""
        can_lead = is_here & numpy.array([not row for row in self.worse_than])
        leader = int(numpy.where(can_lead, self.values[:, :look].mean(axis=1), -inf).argmax())
        is_first, is_second = self.first == leader, self.second == leader
        is_loss = self.is_different & ((is_first & (self.direction < 0)) | (is_second & (self.direction > 0)))
        for pair in numpy.flatnonzero(is_loss):
            row = self.second[pair] if is_first[pair] else self.first[pair]
            if is_active[row]:
                self.worse_than[row] = self.rows[leader]
                self.is_stopped[row] = True
        return leader

    def _give_up(self, number: int, is_active: BoolArray, leader: int) -> None:
        """Stop active rows that no further look is likely to decide.

        The probability is the conditional power of Lan, Simon and Halperin, "Stochastically curtailed tests in long-
        term clinical trials", 1982, averaged over the true differences that the scores so far leave possible
        (Spiegelhalter, Freedman and Blackburn, "Monitoring clinical trials: conditional or predictive power?", 1986):
        the observed difference alone is too uncertain after six seeds. That of several looks is at least the largest
        among them, which is used.
        """
        if not is_active.any():
            return
        look = self.looks[number]
        mean, std = _describe_differences(self.values[is_active, :look] - self.values[0, :look])
        power = numpy.zeros(len(mean))
        different_level, same_level = self.local_levels
        for further in range(number + 1, len(self.looks)):
            seeds = self.looks[further]
            # The mean over all seeds of a further look, given the present ones, is distributed around the present mean.
            spread = numpy.maximum(std * sqrt(1 / look - 1 / seeds), 1e-300)
            least, room = (
                stdtrit(seeds - 1, 1 - _nominal_level(level, further, self.looks)) * std / sqrt(seeds)
                for level in (different_level / 2, same_level)
            )
            least, room = numpy.maximum(least, 1e-280), numpy.maximum(self.rules.margin - room, 0)
            decides = stdtr(look - 1, (mean - least) / spread) + stdtr(look - 1, (-mean - least) / spread)
            decides += stdtr(look - 1, (room - mean) / spread) - stdtr(look - 1, (-room - mean) / spread)
            power = numpy.maximum(power, decides)
        is_hopeless = numpy.zeros(len(self.rows), dtype=bool)
        is_hopeless[is_active] = power < _FUTILITY_POWER
        others = is_active & ~is_hopeless
        others[leader] = False
        if others.any():  # the best row is trained on in any case, so it is tested, too
            is_hopeless[leader] = False
        self.is_hopeless |= is_hopeless
        self.is_stopped |= is_hopeless

    @property
    def local_levels(self) -> tuple[float, float]:
        """The error probabilities that are left for each difference from the baseline, and for each equality."""
        left = float(self.weights[~self.is_different].sum())
        different = self.rules.alpha * float(self.weights[0]) / left if left else self.rules.alpha
        return min(different, self.rules.alpha), self.rules.alpha / max(int(numpy.count_nonzero(~self.is_same)), 1)

    def compare(self, row: int) -> Comparison:
        """Return the comparison of a row with the baseline."""
        seeds = int(min(self.counts[row], self.counts[0]))
        mine, theirs = self.sign * self.values[row, :seeds], self.sign * self.values[0, :seeds]
        differences = mine - theirs
        difference = float(differences.mean()) if seeds else nan
        std = float(_describe_differences(differences[None])[1][0]) if seeds > 1 else nan
        low, high = mean_interval(differences)
        verdict = self.verdicts[row]
        is_short = seeds < MIN_SEEDS or not self.looks
        more_seeds = None
        if verdict is None and seeds > 1:
            required = _required_seeds(std, difference, self.rules.margin, *self.local_levels, power=0.8)
            more_seeds = required and max(required - seeds, 1)
        return Comparison(
            difference=difference,
            low=low,
            high=high,
            std=std,
            correlation=_correlate(mine, theirs),
            seeds=seeds,
            verdict=verdict or ("exploratory" if is_short else "inconclusive"),
            decided_at=int(self.tested_at[row]) if verdict else 0,
            more_seeds=more_seeds,
            worse_than=self.worse_than[row],
            is_hopeless=bool(self.is_hopeless[row]) and verdict is None,
        )


def _describe_differences(differences: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation of each row of (rows, seeds), which are exactly 0 if only rounding is left."""
    mean, std = differences.mean(axis=1), differences.std(axis=1, ddof=1)
    std[std <= _ROUNDING * numpy.abs(differences).max(axis=1, initial=0)] = 0
    return mean, std


def _upper_p_values(mean: FloatArray, std: FloatArray, seeds: int) -> FloatArray:
    """Return the one-sided p-values of t-tests against a mean of 0 or less."""
    with numpy.errstate(divide="ignore", invalid="ignore"):
        statistic = numpy.where(mean == 0, 0, mean / (std / sqrt(seeds)))
    p_values: FloatArray = stdtr(seeds - 1, -statistic)
    return p_values


def _correlate(a: FloatArray, b: FloatArray) -> float:
    if len(a) < 2:
        return nan
    a, b = a - a.mean(), b - b.mean()
    scale = sqrt(float(a @ a) * float(b @ b))
    return float(numpy.clip(a @ b / scale, -1, 1)) if scale > 0 else nan


def _reject(levels: FloatArray, weights: FloatArray, alpha: float, is_rejected: BoolArray) -> BoolArray:
    """Return which hypotheses Holm's weighted method rejects, which gives what a rejected one had to the others.

    Args:
        levels: the smallest local error probability at which each hypothesis is rejected.
        weights: the parts of the error probability of the family that the hypotheses have.
        alpha: the error probability of the family.
        is_rejected: hypotheses that are rejected already.
    """
    while True:
        now = is_rejected | (levels * weights[~is_rejected].sum() <= alpha * weights)
        if numpy.array_equal(now, is_rejected):
            return is_rejected
        is_rejected = now


def spending(share: float) -> float:
    """Return the part of the error probability that is spent at a part of the seeds, as Pocock's boundaries do.

    The function is that of Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983.

    Args:
        share: number of seeds divided by that of the last look.
    """
    return log(1 + (e - 1) * share)


def nominal_levels(alpha: float, looks: tuple[int, ...]) -> FloatArray:
    """Return the one-sided p-value at each look up to which a hypothesis is rejected.

    The probability that a true hypothesis is rejected up to a look is the part of alpha that is spent until then.

    Args:
        alpha: one-sided error probability over all looks, between 1e-9 and 0.25.
        looks: increasing numbers of seeds, at least two.
    """
    return numpy.array([_nominal_level(alpha, number, looks) for number in range(len(looks))])


def _nominal_level(alpha: float, number: int, looks: tuple[int, ...]) -> float:
    return float(numpy.exp(numpy.interp(log(alpha), numpy.log(_LEVEL_GRID), _log_level_table(looks)[number])))


def _sequential_levels(p_values: FloatArray, number: int, looks: tuple[int, ...]) -> FloatArray:
    """Return the smallest one-sided error probability over all looks at which each p-value of a look is significant."""
    table = _log_level_table(looks)[number]
    logs = numpy.log(numpy.maximum(p_values, 1e-300))
    levels: FloatArray = numpy.exp(numpy.interp(logs, table, numpy.log(_LEVEL_GRID), right=0.0))
    return levels


@lru_cache(maxsize=64)
def _log_level_table(looks: tuple[int, ...]) -> FloatArray:
    """Return the logarithms of the nominal levels (looks, levels of _LEVEL_GRID).

    The tails are too thin to count rejections among samples of differences. Instead, the t statistic of a look is
    integrated over: the direction of the residuals is independent of it, and given the residuals, earlier tests do not
    reject as long as it stays below a bound. With draws of the residuals, the probability that this look is the first
    to reject at the nominal level c is the mean of max(0, c - p), where p is the p-value of the bound.
    """
    rng = numpy.random.default_rng(0)
    counts = numpy.array(looks, dtype=float)[:, None]
    added = numpy.diff(counts, axis=0, prepend=0)
    sums = numpy.sqrt(added) * rng.standard_normal((len(looks), _LEVEL_DRAWS))
    within = [rng.chisquare(max(n - 1, 1), _LEVEL_DRAWS) * (n > 1) for n in added[:, 0]]
    squares = numpy.cumsum(sums**2 / added + within, axis=0)
    sums = numpy.cumsum(sums, axis=0)
    variances = (squares - sums**2 / counts) / (counts - 1)
    spent = numpy.diff([0.0, *(spending(look / looks[-1]) for look in looks)])
    table = numpy.log(spent)[:, None] + numpy.log(_LEVEL_GRID)[None]
    for number in range(1, len(looks)):
        residuals = sums[:number] - counts[:number] * sums[number] / looks[number]
        standard_error = numpy.sqrt(variances[number] / looks[number])
        for column in range(len(_LEVEL_GRID)):
            critical = stdtrit(counts[:number] - 1, numpy.exp(table[:number, column, None])) * -1
            least_sums = critical * numpy.sqrt(counts[:number] * variances[:number])
            bound = ((least_sums - residuals) / counts[:number]).min(axis=0) / standard_error
            p_values = numpy.sort(stdtr(looks[number] - 1, -bound))
            table[number, column] = log(_solve(p_values, float(_LEVEL_GRID[column] * spent[number])))
    return numpy.maximum.accumulate(table, axis=1)


def _solve(p_values: FloatArray, level: float) -> float:
    """Return the c at which the mean of max(0, c - p) over ascending p equals a level."""
    ranks = numpy.arange(1, len(p_values) + 1)
    # The mean as c passes each p; between two of them it is linear.
    means = (ranks * p_values - numpy.cumsum(p_values)) / len(p_values)
    rank = int(numpy.searchsorted(means, level, side="right"))
    return float((level * len(p_values) + p_values[:rank].sum()) / rank)


def mean_interval(values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean.

    Args:
        values: values of independent seeds (S,).
        level: probability that the interval covers the true mean.

    Returns:
        The bounds; NaN with fewer than two values.
    """
    count = len(values)
    if count < 2:
        return nan, nan
    mean, std = float(numpy.mean(values)), float(numpy.std(values, ddof=1))
    half_width = float(stdtrit(count - 1, (1 + level) / 2)) * std / sqrt(count)
    return mean - half_width, mean + half_width


def detection_power(std: float, difference: float, seeds: int, alpha: float = 0.05) -> float:
    """Return how likely a paired t-test finds a difference, by the noncentral t distribution.

    Args:
        std: standard deviation of the paired differences.
        difference: the true difference.
        seeds: number of seeds.
        alpha: two-sided error probability.
    """
    if seeds < 2:
        return 0.0
    critical = float(stdtrit(seeds - 1, 1 - alpha / 2))
    effect = _divide(abs(difference) * sqrt(seeds), std)
    return _exceeds(effect, critical, seeds) + _exceeds(-effect, critical, seeds)


def equivalence_power(std: float, difference: float, margin: float, seeds: int, alpha: float = 0.05) -> float:
    """Return about how likely two one-sided t-tests find that a difference is within the margin.

    Args:
        std: standard deviation of the paired differences.
        difference: the true difference.
        margin: largest difference that counts as the same.
        seeds: number of seeds.
        alpha: error probability.
    """
    if seeds < 2:
        return 0.0
    critical = float(stdtrit(seeds - 1, 1 - alpha))
    effects = (_divide((margin + sign * difference) * sqrt(seeds), std) for sign in (1, -1))
    return max(sum(_exceeds(effect, critical, seeds) for effect in effects) - 1, 0.0)


def _exceeds(effect: float, critical: float, seeds: int) -> float:
    """Return the probability that a noncentral t statistic exceeds a critical value."""
    if abs(effect) > _MAX_NONCENTRALITY:
        return float(effect > critical)
    return float(1 - nctdtr(seeds - 1, effect, critical))


def _divide(a: float, b: float) -> float:
    return a / b if b else copysign(inf, a) if a else 0.0


def required_seeds(std: float, difference: float, margin: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the number of seeds that settles whether a row differs from the baseline or is the same.

    It is the smaller of both. About ((t(1 - alpha/2) + t(power)) std / difference)^2 seeds find a difference; the exact
    number is that for which `detection_power` is large enough.

    Args:
        std: standard deviation of the paired differences.
        difference: the true difference.
        margin: largest difference that counts as the same.
        alpha: error probability.
        power: probability that the difference, or equality, is found.

    Returns:
        MIN_SEEDS or more; None if it would be more than 1000 (MAX_REQUIRED_SEEDS).
    """
    return _required_seeds(std, difference, margin, alpha, alpha, power=power)


def _required_seeds(
    std: float, difference: float, margin: float, different_alpha: float, same_alpha: float, *, power: float
) -> int | None:
    """Return the same as `required_seeds`, with error probabilities for each of the claims."""

    def settles(seeds: int) -> bool:
        if detection_power(std, difference, seeds, different_alpha) >= power:
            return True
        return margin > 0 and equivalence_power(std, difference, margin, seeds, same_alpha) >= power

    return _find_smallest(settles, MIN_SEEDS, MAX_REQUIRED_SEEDS)


def _find_smallest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the smallest number for which a condition holds that holds for all larger ones, too."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def detectable_difference(std: float, seeds: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest difference that a paired t-test is likely to find.

    Args:
        std: standard deviation of the paired differences.
        seeds: number of seeds.
        alpha: two-sided error probability.
        power: probability that the difference is found.

    Returns:
        The difference; infinite with fewer than two seeds.
    """
    if seeds < 2:
        return inf
    return float(stdtrit(seeds - 1, 1 - alpha / 2) + stdtrit(seeds - 1, power)) * std / sqrt(seeds)


def image_weights(images: int, draws: int = 1000, seed: int = 0) -> FloatArray:
    """Draw how often each image is in resampled sets of the same number of images.

    Args:
        images: number of images, N.
        draws: number of sets, D.
        seed: seed of the random generator; the same sets are drawn again, so that rows can be compared.

    Returns:
        Counts (D, N), whose sum is N in each set.
    """
    rng = numpy.random.default_rng(seed)
    return rng.multinomial(images, numpy.full(images, 1 / images), size=draws).astype(numpy.float64)


def draw_scores(counts: FloatArray, score: Callable[[FloatArray], FloatArray], weights: FloatArray) -> FloatArray:
    """Compute the scores on resampled images.

    Args:
        counts: what is counted in each image for each seed, (S, N, ...), such as confusion matrices (S, N, K, K).
        score: computes scores from sums over images, from (..., K, K) to (...).
        weights: how often each image is in each set, (D, N).

    Returns:
        Scores (D, S).
    """
    seeds, images, *shape = counts.shape
    flat = numpy.asarray(counts, dtype=numpy.float64).reshape(seeds, images, -1)
    step = max(1, _CHUNK // flat.shape[-1])
    scores = numpy.empty((len(weights), seeds))
    for seed in range(seeds):
        for start in range(0, len(weights), step):
            sums = weights[start : start + step] @ flat[seed]
            scores[start : start + step, seed] = score(sums.reshape(-1, *shape))
    return scores


def two_way_interval(points: FloatArray, draws: FloatArray, images: int | None = None) -> tuple[float, float]:
    """Return the 95% interval of the mean over seeds that also holds for other images of the same kind.

    Seeds and images both vary: Var = seed/S + image/N + both/(S N). The variance between seeds estimates the first and
    last term, and the variance of the mean between resampled sets of images the last two. The last one is known from
    the variance between sets that seeds do not share, and is counted once; resampling both at a time counts it three
    times (Owen, "The pigeonhole bootstrap", 2007). The bounds are quantiles of Student's distribution, since
    percentiles of so few seeds are too narrow; its degrees of freedom are by Satterthwaite, "An approximate
    distribution of estimates of variance components", 1946.

    Args:
        points: score of each seed on the images as they are (S,), or the difference of two rows.
        draws: scores on resampled images (D, S), in which images are the same for all seeds (and for both rows).
        images: number of images. If it is None, there should be 80 or more, since their variance is then taken as
            known; with 30 images that vary more than the seeds do, the interval covers 93% instead of 95%.

    Returns:
        The bounds; NaN with fewer than two seeds.
    """
    seeds = len(points)
    if seeds < 2:
        return nan, nan
    mean = float(numpy.mean(points))
    between_seeds = float(numpy.var(points, ddof=1)) / seeds
    means = draws.mean(axis=1, keepdims=True)
    between_images = float(numpy.var(means, ddof=1))
    both = float(numpy.var(draws - means, axis=0, ddof=1).mean()) / (seeds - 1)
    only_images = max(between_images - both, 0.0) * (images / (images - 1) if images and images > 1 else 1)
    variance = between_seeds + only_images
    uncertainty = between_seeds**2 / (seeds - 1) + (only_images**2 / (images - 1) if images and images > 1 else 0)
    degrees = _divide(variance**2, uncertainty) or inf
    half_width = float(stdtrit(min(degrees, 1e6), 0.975)) * sqrt(variance)
    return mean - half_width, mean + half_width


def mean_iou(counts: FloatArray) -> FloatArray:
    """Compute the mean IoU over the classes that occur in the true or the predicted mask; NaN if there are none.

    Args:
        counts: pixels by true class (rows) and predicted class (columns), (..., K, K).

    Returns:
        Means (...).
    """
    hits, either = _count_hits(counts)
    return _mean_of_defined(hits, either - hits)


def mean_dice(counts: FloatArray) -> FloatArray:
    """Compute the mean Dice over the classes that occur in the true or the predicted mask; NaN if there are none.

    Args:
        counts: pixels by true class (rows) and predicted class (columns), (..., K, K).

    Returns:
        Means (...).
    """
    hits, either = _count_hits(counts)
    return _mean_of_defined(2 * hits, either)


def class_iou(counts: FloatArray, index: int) -> FloatArray:
    """Compute the IoU of one class; NaN if it occurs in neither mask.

    Args:
        counts: pixels by true class (rows) and predicted class (columns), (..., K, K).
        index: the class.

    Returns:
        IoU (...).
    """
    hits, either = _count_hits(counts)
    return _mean_of_defined(hits[..., [index]], (either - hits)[..., [index]])


def _count_hits(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the correct pixels of each class, and the sum of true and predicted ones (..., K)."""
    counts = numpy.asarray(counts, dtype=numpy.float64)
    return numpy.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1) + counts.sum(axis=-2)


def _mean_of_defined(parts: FloatArray, wholes: FloatArray) -> FloatArray:
    """Return the mean of the defined fractions along the last axis."""
    is_defined = wholes > 0
    fractions = numpy.divide(parts, wholes, out=numpy.zeros(wholes.shape), where=is_defined)
    defined = is_defined.sum(axis=-1)
    means: FloatArray = numpy.divide(
        fractions.sum(axis=-1), defined, out=numpy.full(defined.shape, nan), where=defined > 0
    )
    return means
