"""The way to a Ray cluster that runs already, and what must be the same on its machines."""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from unetkit.errors import BadOption
from unetkit.foreign import one_line
from unetkit.jobs.machine import code

#: What results depend on beside the code. Another Ray is refused by Ray itself.
_LIBRARIES = ("torch", "timm", "segmentation-models-pytorch")
#: Seconds to wait for a machine that does not answer: Ray would wait for two minutes.
_ANSWER = 10.0
_START_ONE = "start one with `ray start --head`, and give its HOST:PORT"


def import_ray() -> Any:
    """Ray itself, told to keep what it reports from the terminal, and not to ask again and again for a cluster.

    Raises:
        BadOption: it is not installed.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise BadOption("--engine ray: Ray is not installed; pip install 'unetkit[ray]'") from error
    return ray


@contextmanager
def connected(ray: Any, address: str | None) -> Iterator[str]:
    """A connection to a cluster, for as long as it takes: gives what to call the cluster.

    Raises:
        BadOption: none answers there.
    """
    if ray.is_initialized():
        yield "the Ray cluster"
        return
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    _knock(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:  # Ray leaves so where what answers is no cluster
        why = one_line(error).partition(". ")[0]
        raise BadOption(f"--ray-address {address}: Ray cannot join it ({why}); {_START_ONE}") from error
    try:
        yield f"the Ray cluster at {ray.get_runtime_context().gcs_address}"
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise where nothing answers."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or "/" in host:
        raise BadOption(f"--ray-address {address}: takes HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise BadOption(f"--ray-address {address}: no Ray cluster answers there ({error}); {_START_ONE}") from error


def versions() -> dict[str, str]:
    """What must be the same on every machine of a run, by its name."""
    libraries = {name: version(name) for name in ("unetkit", *_LIBRARIES)}
    return {"Python": platform.python_version(), **libraries, "unetkit's code": code("bench", "jobs")}
