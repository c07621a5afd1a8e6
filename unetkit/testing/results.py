"""What a check finds. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How the message of a check begins that was not made, since one that it builds on did not pass.
BUILDS_ON = "it builds on "


@dataclass(frozen=True)
class Result:
    """What one check found of one part, or of a plugin itself.

    Attributes:
        part: kind and name, as in "fusion gate"; "plugin" for a check of the plugin itself.
        check: its name; `CHECKS` says what each asks.
        outcome: skipped where there is nothing to check, or where a check that it builds on did not pass.
        message: one line that says what is wrong, or why it was skipped.
    """

    part: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""

    @property
    def follows(self) -> bool:
        """Whether it was skipped because a check that it builds on did not pass."""
        return self.outcome == "skipped" and self.message.startswith(BUILDS_ON)

    def __str__(self) -> str:
        return f"{self.part}: {self.check} {self.outcome}" + (f": {self.message}" if self.message else "")


class Nonconformity(AssertionError):
    """A promise of its kind that a part does not keep, in one line: with what, what was promised, what came."""


class NothingToCheck(Exception):
    """A check that does not apply, and why."""


def one_line(error: BaseException) -> str:
    """An error's type and first line."""
    text = str(error).strip().split("\n")[0][:300] or "no message"
    return f"{type(error).__name__}: {text}"
