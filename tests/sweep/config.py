"""The configuration of a sweep: the library, the names and their order, and the resources."""

from __future__ import annotations

import os
import platform
import random
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

from tests.sweep.libraries import LIBRARIES
from unetkit.errors import UnknownNameError, did_you_mean
from unetkit.parts.encoders.timm_catalog import timm_model_names
from unetkit.utils.formatting import format_bytes
from unetkit.utils.system import code_digest, cpu_name

#: The results of a model, in this order: "ok", or the error in one line.
RESULTS = ("built", "own", "odd", "small", "backward")
#: The checks of a network that was built.
CHECKS = RESULTS[1:]


@dataclass(frozen=True)
class SweepConfig:
    """The configuration of a sweep.

    Attributes:
        library: library to check, a name of LIBRARIES.
        names: globs; a name is checked if any of them matches.
        sample: number of names, drawn at random; None for all.
        seed: seed of the order, and therefore of the sample, and of the random weights and images.
        jobs: number of models that are checked at a time, each in a process with one thread.
        memory: memory for all jobs together, in bytes.
        real_up_to: models with more parameters are checked only on meta tensors.
        timeout: time limit for a model, in seconds.
    """

    library: str = "unetkit"
    names: tuple[str, ...] = ("*",)
    sample: int | None = None
    seed: int = 0
    jobs: int = 1
    memory: int = 4 << 30
    real_up_to: int = 10**12
    timeout: float = 600.0

    @property
    def memory_per_job(self) -> int:
        """The memory for one model, in bytes."""
        return self.memory // self.jobs

    def list_names(self) -> list[str]:
        """Return the names in random order, so that an unfinished sweep is a random sample.

        Raises:
            UnknownNameError: No name matches.
        """
        names = sorted(name for name in timm_model_names() if any(fnmatchcase(name, glob) for glob in self.names))
        if not names:
            globs = " ".join(self.names)
            raise UnknownNameError(f"timm has no model that matches {globs}{did_you_mean(globs, timm_model_names())}")
        random.Random(self.seed).shuffle(names)
        return names[: self.sample]

    def get_versions(self) -> dict[str, str]:
        """Return the versions that determine the results; a model is measured again if they differ."""
        return {
            **{name: version(name) for name in LIBRARIES[self.library].distributions},
            **({"code": code_digest()} if self.library == "unetkit" else {}),
            "python": platform.python_version(),
        }

    def make_header(self) -> dict[str, Any]:
        """Return the header of the rows of this sweep."""
        names = self.list_names()
        selection = {"names": " ".join(self.names), "sample": self.sample, "seed": self.seed, "planned": len(names)}
        machine = f"{cpu_name()}, {os.cpu_count()} cores"
        limits = {"jobs": self.jobs, "memory": format_bytes(self.memory), "real_up_to": self.real_up_to}
        header = {"library": self.library, **self.get_versions(), "cpu": machine, **selection, **limits}
        return {**header, "date": date.today().isoformat()}
