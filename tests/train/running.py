"""Processes that train, for tests; they import no pytest, and fork from the server that all tests share."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tests.train.example_sets import squares
from unetkit import train
from unetkit.errors import UnetkitError
from unetkit.train.checkpoint import HEADER
from unetkit.train.trainer import TrainCallback
from unetkit.utils import processes

TINY = "--encoder plain:widths=[4,8]"
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 4, "preview_every": 0, "device": "cpu"}


class Seen(TrainCallback):
    """Remembers the trainer, and may stop it."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.steps = stop_after, 0

    def on_train_begin(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, done: int, loss: float) -> None:
        self.steps += 1
        if self.steps == self.stop_after:
            raise KeyboardInterrupt


def child(folder: str, line: str, save_every: float) -> None:
    """Begin a run, or go on with it."""
    torch.set_num_threads(1)
    if (Path(folder) / HEADER).exists():
        train.resume(folder, data=squares(), save_every=save_every)
    else:
        train.run(line, folder, data=squares(), save_every=save_every, **{**QUICK, "epochs": 6})


def run_module(words: list[str], stderr: str) -> None:
    """Run `python -m MODULE WORDS` in a process of its own that has imported torch already."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with Path(stderr).open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    module, *sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def one_of_two(rank: int, port: int, folder: str, options: dict[str, Any]) -> None:
    """Train as a process of two, and end with 3 if the loss is no number."""
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    stop = options.pop("stop", None)
    callback = Seen(stop) if stop else None
    try:
        if (Path(folder) / HEADER).exists():
            train.resume(folder, data=squares(9), save_every=0.0)
        else:
            given = {**QUICK, "batch_size": 2, **options}
            train.run(TINY, folder, data=squares(9), save_every=0.0, callback=callback, **given)
    except (KeyboardInterrupt, UnetkitError) as error:
        sys.exit(3 if "is nan" in str(error) or "is inf" in str(error) else 4)


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Start a function of this module in a process that has imported torch, and kill what is left of it."""
    process = get_context("forkserver").Process(target=target, args=arguments)
    processes._SERVER.set_forkserver_preload([*processes._preloaded])
    processes._start_process(process.start, needs_script=False)
    try:
        yield process
    finally:
        process.kill()
        process.join()
