"""Engines that are compared with a network of torch on the first tiles, by their results and by their time.

This is NumPy without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import numpy as np

from unetkit.errors import ExportError, InputSizeError
from unetkit.predict.engines import Engine
from unetkit.utils.formatting import Size
from unetkit.utils.isolation import INTERRUPTS, one_line

#: The rounds of the comparison, in each of which every engine takes a turn.
_ROUNDS = 3
#: The share of the time that another engine saves at least, about; with less to do, opening one does not pay.
_SAVING = 0.2
#: The largest difference of probabilities with which an engine is used.
_MOST_DIFFERENCE = 1e-3


class AutoEngine:
    """An engine that chooses among engines by timing them on the first tiles, in turns.

    Args:
        reference: the engine whose results are right; it is used where comparing does not pay.
        name: its name.
        others: functions by name that open other engines; one that raises an exception is left out.
        cost: the seconds that opening them takes, about.
        expected: the number of passes that will follow; None if it is unknown, which is taken for many.
        on_notice: called with each line that a user should see.

    Attributes:
        chosen: the name of the engine in use; "" until it is chosen.
    """

    def __init__(
        self,
        reference: Engine,
        name: str,
        others: Mapping[str, Callable[[], Engine]],
        *,
        cost: float = 0.0,
        expected: int | None = None,
        on_notice: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._reference, self._name, self._others = reference, name, others
        self._cost, self._expected, self._on_notice = cost, expected, on_notice
        self._engine, self._passes, self.chosen = reference, 0, ""

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        if self.chosen:
            return self._engine(tiles)
        start = perf_counter()
        output = self._reference(tiles)
        seconds = perf_counter() - start
        self._passes += 1
        if self._passes == 1:  # the first pass of a process is slower than the others
            return output
        left = None if self._expected is None else self._expected - self._passes
        if left is not None and left * seconds * _SAVING <= self._cost + _ROUNDS * len(self._others) * seconds:
            self._choose(self._name)
        else:
            self._compare(tiles, output)
        return output

    def explain_if_too_large(self, size: Size) -> str:
        return self._reference.explain_if_too_large(size)

    def _choose(self, name: str, engine: Engine | None = None) -> None:
        self.chosen, self._engine = name, engine or self._reference

    def _compare(self, tiles: np.ndarray, expected: np.ndarray) -> None:
        engines: dict[str, Engine] = {self._name: self._reference}
        for name, open_one in self._others.items():
            try:
                engine = open_one()
                differs = _describe_difference(engine(tiles), expected)  # and a first pass, which is slower
            except (*INTERRUPTS, InputSizeError):
                raise
            except Exception as error:  # of whatever library; the reference works
                self._on_notice(f"engine {name} is not used: {one_line(error)}")
                continue
            if differs:
                self._on_notice(f"engine {name} is not used: {differs}")
            else:
                engines[name] = engine
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(_ROUNDS):
            for name, engine in engines.items():
                start = perf_counter()
                engine(tiles)
                times[name].append(perf_counter() - start)
        ratios = {
            name: median(own / base for own, base in zip(times[name], times[self._name], strict=True))
            for name in engines
        }
        best = min(ratios, key=lambda name: ratios[name])
        self._choose(best, engines[best])
        if len(engines) > 1:
            shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
            self._on_notice(f"engine {best}, the fastest of those timed on the first tiles (time of a pass: {shown})")


class ComparedEngine:
    """An engine whose first pass is compared with that of a reference.

    Args:
        engine: the engine.
        name: its name.
        reference: the engine whose results are right.
    """

    def __init__(self, engine: Engine, name: str, reference: Engine) -> None:
        self._engine, self._name, self._reference, self._is_compared = engine, name, reference, False

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        output = self._engine(tiles)
        if not self._is_compared:
            if differs := _describe_difference(output, self._reference(tiles)):
                raise ExportError(f"--engine {self._name}: {differs} from torch's; use --engine torch")
            self._is_compared = True
        return output

    def explain_if_too_large(self, size: Size) -> str:
        return self._reference.explain_if_too_large(size)


def _describe_difference(found: np.ndarray, expected: np.ndarray) -> str:
    """Say in words how probabilities (B, L, H, W) differ from the expected ones; "" if they agree."""
    if found.shape != expected.shape:
        return f"it returns {'x'.join(map(str, found.shape))}, not {'x'.join(map(str, expected.shape))}"
    difference = float(np.abs(found - expected).max())
    return "" if difference <= _MOST_DIFFERENCE else f"its probabilities differ by up to {difference:.1e}"
