"""What a sweep is asked to do: of whom, which names in which order, and what it may take."""

from __future__ import annotations

import os
import platform
import random
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

from tests.sweep.subjects import SUBJECTS
from unetkit.errors import UnknownNameError, did_you_mean
from unetkit.parts.encoders.timm_catalog import timm_model_names
from unetkit.utils.formatting import format_bytes
from unetkit.utils.system import code_digest, cpu_name

#: What is answered of every name, in this order: "ok", or the cause of the failure in one line.
ANSWERS = ("built", "own", "odd", "small", "backward")
QUESTIONS = ANSWERS[1:]


@dataclass(frozen=True)
class Settings:
    """What one run of a sweep is told.

    Attributes:
        of: who is asked, a name of SUBJECTS.
        names: globs; a name that any of them matches is asked.
        sample: how many of them, drawn at random; all, if None.
        seed: fixes the order, so the sample too, and the random weights and images.
        jobs: how many models at a time, each in a process with one thread.
        memory: bytes for all jobs together.
        real_up_to: models with more parameters are asked on meta only.
        timeout: seconds that one model may take.
    """

    of: str = "unetkit"
    names: tuple[str, ...] = ("*",)
    sample: int | None = None
    seed: int = 0
    jobs: int = 1
    memory: int = 4 << 30
    real_up_to: int = 10**12
    timeout: float = 600.0

    @property
    def share(self) -> int:
        """Bytes that one model may take."""
        return self.memory // self.jobs

    def order(self) -> list[str]:
        """The names in random order: whatever part of it is done is a random sample of the whole.

        Raises:
            UnknownNameError: no name matches.
        """
        found = sorted(name for name in timm_model_names() if any(fnmatchcase(name, glob) for glob in self.names))
        if not found:
            asked = " ".join(self.names)
            raise UnknownNameError(f"no name of timm's matches {asked}{did_you_mean(asked, timm_model_names())}")
        random.Random(self.seed).shuffle(found)
        return found[: self.sample]

    def versions(self) -> dict[str, str]:
        """What decides the answers: what was measured with others is measured again."""
        return {
            **{name: version(name) for name in SUBJECTS[self.of].distributions},
            **({"code": code_digest()} if self.of == "unetkit" else {}),
            "python": platform.python_version(),
        }

    def header(self) -> dict[str, Any]:
        """What stands once for all rows of a sweep."""
        chosen = {"names": " ".join(self.names), "sample": self.sample, "seed": self.seed, "planned": len(self.order())}
        machine = f"{cpu_name()}, {os.cpu_count()} cores"
        took = {"jobs": self.jobs, "memory": format_bytes(self.memory), "real_up_to": self.real_up_to}
        return {"of": self.of, **self.versions(), "cpu": machine, **chosen, **took, "date": date.today().isoformat()}
