"""Training: the same run is the same weights, however it is stopped, resumed, or shared among processes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import unetkit
from tests.train.example_sets import Squares, squares
from tests.train.running import QUICK, TINY, Seen, child, one_of_two, run_module, started
from unetkit import train
from unetkit.cli import cli
from unetkit.data.datasets import open_data
from unetkit.data.export import write_dataset
from unetkit.data.types import Sample, Target
from unetkit.errors import FileError, InputSizeError, OptionError, UnetkitError, UnknownNameError
from unetkit.parts.blocks import DoubleConv
from unetkit.summary.forward_hooks import find_network
from unetkit.train.checkpoint import BEST, HEADER, LAST, LOG, STATE, read_state
from unetkit.train.config import TrainConfig
from unetkit.train.dataloader import AugmentedDataset, Loader, epoch_batches
from unetkit.train.distributed import ProcessGroup
from unetkit.train.optim import adamw
from unetkit.train.progress import CURVES, PREVIEWS
from unetkit.train.trainer import STOPPED, TrainCallback
from unetkit.utils.config_fields import make_config


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_state(folder / STATE).model


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_files(one: Path, other: Path) -> bool:
    return all(
        same(unetkit.load(one / name).state_dict(), unetkit.load(other / name).state_dict()) for name in (BEST, LAST)
    )


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


# The same again


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, line in (("a", TINY), ("b", TINY), ("c", f"{TINY} --seed 1")):
        train.run(line, tmp_path / name, data=squares(), **QUICK)
    assert same(state_of(tmp_path / "a"), state_of(tmp_path / "b"))
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    assert not same(state_of(tmp_path / "a"), state_of(tmp_path / "c"))


def test_the_global_random_state_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train.run(TINY, tmp_path / "a", data=squares(4), **{**QUICK, "epochs": 1})
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_another_encoder_is_shown_the_same_samples_in_the_same_order(tmp_path: Path) -> None:
    seen = []
    for name, line in (("a", TINY), ("b", "--encoder plain:widths=[8,16,32] --fuse add")):
        callback = Seen()
        train.run(line, tmp_path / name, data=squares(), callback=callback, **{**QUICK, "epochs": 1})
        seen.append([batch for epoch in range(2) for batch in callback.trainer.loader.epoch(epoch)])
    for one, other in zip(*seen, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    batches = []
    callback = Seen()
    train.run(TINY, tmp_path / "a", data=squares(), callback=callback, **{**QUICK, "epochs": 1})
    for workers in (0, 2):
        callback.trainer.loader.workers = workers
        batches.append(list(callback.trainer.loader.epoch(0)))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images)


class Deadly(Squares):
    """Ends the process that reads it, where that only loads data, or says that a file cannot be read."""

    def __init__(self, message: str = "") -> None:
        super().__init__("train", 12)
        self.message, self.owner = message, os.getpid()

    def __getitem__(self, index: int) -> Sample:
        if self.message:
            raise FileError(self.message)
        if os.getpid() != self.owner:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def loader_of(images: Squares, workers: int, world: int = 1) -> Loader:
    data = AugmentedDataset(images, lambda sample, weight, seed: (sample, weight), None, abs, 0)
    return Loader(data, TrainConfig(batch_size=4), ProcessGroup(0, world, torch.device("cpu")), workers=workers)


@pytest.mark.slow
def test_a_process_that_loads_data_and_dies_ends_the_run_in_one_line() -> None:
    with pytest.raises(UnetkitError, match=r"data loading process .* --workers 0$"):
        list(loader_of(Deadly(), 2).epoch(0))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_read_is_one_line_from_any_process(workers: int) -> None:
    with pytest.raises(FileError, match=r"^x\.png: is cut short$"):
        list(loader_of(Deadly("x.png: is cut short"), workers).epoch(0))


def test_no_more_processes_load_data_than_there_is_shared_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    loader = loader_of(Deadly(), 8)
    assert loader.limit_workers(2**20) == ""
    assert loader.workers == 8
    told = loader.limit_workers(8 * 2**20)
    assert loader.workers == 2
    assert re.match("2 of 8 data loading processes, .*64 MiB .*/dev/shm", told)
    shared = loader_of(Deadly(), 8, world=2)
    shared.limit_workers(8 * 2**20)
    assert shared.workers == 1
    assert loader_of(Deadly(), 0).limit_workers(2**40) == ""


@given(count=st.integers(1, 30), batch=st.integers(1, 12), epoch=st.integers(0, 3))
def test_an_epoch_shows_images_once_in_full_batches(count: int, batch: int, epoch: int) -> None:
    steps = epoch_batches(0, epoch, count, batch)
    assert {len(step) for step in steps} == {batch}
    assert len(steps) == max(count // batch, 1)
    if count >= batch:
        shown = [index for step in steps for _, _, index in step]
        assert len(set(shown)) == len(shown)
    assert len({key for step in steps for key in step}) == len(steps) * batch


@pytest.mark.slow
@given(count=st.integers(4, 30), world=st.integers(1, 3))
def test_processes_share_the_steps_of_one_with_a_larger_batch(count: int, world: int) -> None:
    data = AugmentedDataset(squares(count).splits["train"], lambda sample, weight, seed: (sample, weight), None, abs, 0)

    def names(batch_size: int, rank: int, size: int) -> list[list[str]]:
        group = ProcessGroup(rank, size, torch.device("cpu"))
        return [batch.names for batch in Loader(data, TrainConfig(batch_size=batch_size), group, workers=0).epoch(0)]

    alone, shared = names(2 * world, 0, 1), [names(2, rank, world) for rank in range(world)]
    assert alone == [[name for names in step for name in names] for step in zip(*shared, strict=True)]


@given(count=st.integers(1, 12), epochs=st.integers(1, 5), more=st.integers(0, 40))
def test_a_number_of_steps_is_divided_over_the_epochs_in_the_order_of_passes(
    count: int, epochs: int, more: int
) -> None:
    data = AugmentedDataset(squares(count).splits["train"], lambda sample, weight, seed: (sample, weight), None, abs, 0)
    group = ProcessGroup(0, 1, torch.device("cpu"))
    config = TrainConfig(batch_size=2, epochs=epochs, steps=epochs + more)
    loader = Loader(data, config, group, workers=0)
    epoch_keys = [loader._steps(loader.first_step(e), loader.first_step(e + 1)) for e in range(epochs)]
    lengths = [len(keys) for keys in epoch_keys]
    assert sum(lengths) == epochs + more
    assert max(lengths) - min(lengths) <= 1
    passes = [step for number in range(epochs + more) for step in epoch_batches(0, number, count, 2)]
    assert [step for keys in epoch_keys for step in keys] == passes[: epochs + more]


def test_a_run_has_the_steps_that_are_given_and_a_validation_for_each_epoch(tmp_path: Path) -> None:
    seen = Seen()
    train.run(TINY, tmp_path / "a", data=squares(), callback=seen, **{**QUICK, "epochs": 3, "steps": 4})
    assert seen.steps == 4
    assert [line["epoch"] for line in log_of(tmp_path / "a")] == [1, 2, 3]
    with pytest.raises(OptionError, match="--steps 2"):
        train.run(TINY, tmp_path / "b", data=squares(), **{**QUICK, "epochs": 3, "steps": 2})


# Stopped and resumed


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_run_that_is_interrupted_goes_on_to_the_same_weights(tmp_path: Path, step: int) -> None:
    train.run(TINY, tmp_path / "whole", data=squares(), **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train.run(TINY, tmp_path / "cut", data=squares(), callback=Seen(step), save_every=0.0, **QUICK)
    train.resume(tmp_path / "cut", data=squares())
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")
    assert same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moments_goes_on_to_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    line = f"{TINY} --block double:dropout=0.2"
    with started(child, str(tmp_path / "whole"), line, 300.0) as whole:
        whole.join(120)
    assert whole.exitcode == 0
    took, kills, draw = 0.1, 0, random.Random(0)
    for _ in range(200):
        with started(child, str(tmp_path / "cut"), line, 0.0) as process:
            process.join(took * draw.uniform(0.2, 1.0))  # and then it is killed
        if process.exitcode == 0:
            break
        kills += 1
        took *= 1.25
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0
    assert kills >= 3
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert not [*(tmp_path / "cut").glob(".*.tmp")]


@pytest.mark.slow
def test_a_run_that_is_done_is_left_as_it_is(tmp_path: Path) -> None:
    train.run(TINY, tmp_path / "a", data=squares(), **QUICK)
    before = (tmp_path / "a" / STATE).read_bytes()
    train.resume(tmp_path / "a", data=squares())
    assert (tmp_path / "a" / STATE).read_bytes() == before


def test_a_loss_that_is_no_number_stops_with_the_step_and_a_saved_state(tmp_path: Path) -> None:
    with pytest.raises(UnetkitError, match=r"(nan|inf) at step \d of epoch 1 \(images ") as said:
        train.run(TINY, tmp_path / "a", data=squares(), lr=1e30, **QUICK)
    assert str(tmp_path / "a" / STOPPED) in str(said.value)
    assert read_state(tmp_path / "a" / STOPPED).model


@pytest.mark.slow
def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    line = "--encoder plain:widths=[4,8],norm=none --block double:norm=none"  # statistics of norms would change
    train.run(line, tmp_path / "a", data=squares(), lr=1e-30, patience=2, **{**QUICK, "epochs": 9})
    assert len(log_of(tmp_path / "a")) == 3
    assert re.search("epoch 1 .*2 epochs", read_state(tmp_path / "a" / STATE).stop_reason)


# What is trained


@pytest.mark.slow
def test_a_tiny_network_learns_squares(tmp_path: Path) -> None:
    run = train.run(TINY, tmp_path / "a", data=squares(), lr=0.01, **{**QUICK, "epochs": 30})
    assert max(line["miou"] for line in log_of(tmp_path / "a")) > 0.9
    network = run.network()
    sample = squares().splits["val"][0]
    chances = run.target.probabilities(network(run.normalize(sample.image)[None]))
    assert (run.target.to_mask(chances)[0] == sample.mask).float().mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("--recipe unet-2015 --encoder plain:widths=[4,8],padding=0 --size 44", None),
        ("--encoder plain:widths=[4,8,16] --head deep-supervision", None),
        ("--encoder plain:widths=[4,8,16] --decode-to 2 --logits none", None),
        ("--encoder test_resnet --fuse add", Target("multiclass", ("ground", "square", "other"))),
        ("--encoder plain:widths=[4,8]", Target("multilabel", ("square", "ground"))),
        ("--encoder plain:widths=[4,8] --classes 2", None),
        ("--model smp/linknet --encoder smp/mobilenet_v2", None),
    ],
)
def test_networks_of_every_kind_are_trained_and_come_back(line: str, target: Target | None, tmp_path: Path) -> None:
    run = train.run(line, tmp_path / "a", data=squares(8, target=target), **{**QUICK, "epochs": 1})
    assert train.read(tmp_path / "a") == run
    assert find_network(run.network()).plan == run.plan
    assert 0 <= log_of(tmp_path / "a")[0]["miou"] <= 1


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_is_with_its_norms_and_is_let_go(tmp_path: Path) -> None:
    line, model = "--encoder test_resnet", unetkit.build("test_resnet", seed=3, in_channels=1, classes=1)
    unetkit.save(model, tmp_path / "begun.safetensors")
    for name, freeze in (("one", 1), ("all", -1)):
        options = {**QUICK, "freeze_encoder": freeze, "init_weights": tmp_path / "begun.safetensors"}
        train.run(line, tmp_path / name, data=squares(8), **options)
    begun = model.encoder.state_dict()
    one, all_ = (train.read(tmp_path / name).network(weights="last").encoder.state_dict() for name in ("one", "all"))
    assert same(begun, all_)
    assert not same(begun, one)


def test_the_rate_rises_and_falls() -> None:
    schedule = adamw(warmup=0.2)
    shares = [schedule.lr_factor(step, 100) for step in range(100)]
    assert shares[:20] == sorted(shares[:20])
    assert shares[20:] == sorted(shares[20:], reverse=True)
    assert max(shares) == shares[20] == 1
    assert shares[-1] < 0.01


def test_the_encoder_has_a_rate_of_its_own_and_norms_do_not_decay() -> None:
    network = unetkit.build("plain:widths=[4,8]", seed=0)
    schedule = adamw(encoder_lr=0.5, weight_decay=0.1, warmup=0)
    optimizer = schedule.make_optimizer(network, 0.25)
    schedule.set_rates(optimizer, 0, 10)
    groups = optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.25, 0.0),
        (0.25, 0.1),
        (0.5, 0.0),
        (0.5, 0.1),
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


# What is refused


@pytest.mark.slow
def test_what_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--in-channels 3: .*squares have 1 channel"):
        train.run(f"{TINY} --in-channels 3", tmp_path / "a", data=squares(), **QUICK)
    with pytest.raises(OptionError, match=r"--classes 5: .*binary \(background, square\)"):
        train.run(f"{TINY} --classes 5", tmp_path / "a", data=squares(), **QUICK)
    with pytest.raises(UnknownNameError, match=r"--optimizer adam: .*did you mean adamw"):
        train.run(TINY, tmp_path / "a", data=squares(), optimizer="adam", **QUICK)
    with pytest.raises(OptionError, match=r"--optimizer adamw:clp=1: .*did you mean clip"):
        train.run(TINY, tmp_path / "a", data=squares(), optimizer="adamw:clp=1", **QUICK)
    with pytest.raises(OptionError, match=r"--epochs 0: must be at least 1"):
        train.run(TINY, tmp_path / "a", data=squares(), epochs=0)
    with pytest.raises(OptionError, match=r"--dtype bf16: .*did you mean bfloat16"):
        train.run(TINY, tmp_path / "a", data=squares(), dtype="bf16")
    with pytest.raises(UnknownNameError, match=r"no step is called|hflp"):
        train.run(TINY, tmp_path / "a", data=squares(), augment="hflp", **QUICK)
    with pytest.raises(InputSizeError, match=r"input size 32x32 does not work: .* nearest "):
        train.run("--recipe unet-2015", tmp_path / "a", data=squares(), **QUICK)
    with pytest.raises(OptionError, match=r"clip must be at least 0"):
        train.run(TINY, tmp_path / "a", data=squares(), optimizer="adamw:clip=nan", **QUICK)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_batch_norm_that_sees_one_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"1x1x32x32: in training, a batch norm"):
        train.run("--encoder resnet18 --widths 8,8,8,8,8", tmp_path / "a", data=squares(), **{**QUICK, "batch_size": 1})


@pytest.mark.slow
def test_half_precision_trains_on_a_cpu(tmp_path: Path) -> None:
    for precision in ("bfloat16", "float16"):
        folder = tmp_path / precision
        train.run(TINY, folder, data=squares(), dtype=precision, lr=0.01, **{**QUICK, "epochs": 4})
        assert log_of(folder)[-1]["loss"] < log_of(folder)[0]["loss"]


def test_the_same_command_continues_a_run_and_another_one_is_refused(tmp_path: Path) -> None:
    def run(line: str = TINY, folder: str = "a", count: int = 4, **config: Any) -> train.TrainRun:
        options = {"threads": 1, **QUICK, **config}  # with another number, the last digits may differ
        return train.run(line, tmp_path / folder, data=squares(count), **options)

    with pytest.raises(KeyboardInterrupt):
        run(callback=Seen(2))  # squares(4) are one step in an epoch
    for line, options, what in (
        (f"{TINY} --fuse add", {}, "--fuse: .* without it, not with --fuse add"),
        (f"{TINY} --seed 1", {}, "--seed: .* with --seed 0, not with --seed 1"),
        (TINY, {"lr": 0.5}, "--lr: .* with --lr 0.001, not with --lr 0.5"),
        (TINY, {"loss": "dice"}, "--loss: .* with --loss bce.*, not with --loss dice"),
        (TINY, {"crop": 16}, "--crop: .* with --crop 32x32, not with --crop 16x16"),
        (
            TINY,
            {"freeze_encoder": "all"},
            "--freeze-encoder: .* with --freeze-encoder 0, not with --freeze-encoder all",
        ),
        (TINY, {"count": 6}, "is not the data of"),
    ):
        with pytest.raises(OptionError, match=what):
            run(line, **options)
    run(f"{TINY} --fuse concat", loss="", workers=0)  # says what is the default anyway
    assert [line["epoch"] for line in log_of(tmp_path / "a")] == [1, 2]
    run(folder="b")
    assert same_files(tmp_path / "a", tmp_path / "b")
    run(callback=Seen(1))  # finished, so no step follows
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_a_run_that_saved_no_step_does_not_keep_its_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train.run(TINY, tmp_path / "a", data=squares(4), callback=Seen(1), **QUICK)
    assert (tmp_path / "a" / HEADER).exists()
    line = "--encoder plain:widths=[2,4] --seed 3"
    for folder in "ab":
        train.run(line, tmp_path / folder, data=squares(6), lr=0.1, **QUICK)
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert train.read(tmp_path / "a").config.lr == 0.1


def test_arguments_of_run_are_read_as_the_options_are(tmp_path: Path) -> None:
    options = {"crop": "16x24", "nodata": -9999, "seed": 7, **QUICK, "epochs": 1}
    run = train.run(TINY, tmp_path / "a", data=squares(4), **options)
    read = train.read(tmp_path / "a").config
    assert read == run.config
    assert (read.crop, read.nodata_value, read.seed) == ((16, 24), -9999, 7)
    assert run.plan.seed == 7
    with pytest.raises(OptionError, match=r"no argument 'epoch' .did you mean epochs"):
        train.run(TINY, tmp_path / "b", data=squares(4), epoch=1)
    for wrong in ({"crop": "big"}, {"lr": "fast"}, {"epochs": 1.5}, {"epochs": True}, {"tensorboard": "yes"}):
        [(name, value)] = wrong.items()
        with pytest.raises(OptionError, match=f"train.run: {name}={value!r}: "):
            train.run(TINY, tmp_path / "b", data=squares(4), **wrong)
    assert make_config(TrainConfig, vars(read), "train.run") == read  # what a run stores can be given again
    given = {"lr": "0.5", "epochs": "7", "freeze_encoder": "all"}
    config = make_config(TrainConfig, given, "train.run")
    assert config == TrainConfig(lr=0.5, epochs=7, freeze_encoder=-1)
    assert make_config(TrainConfig, vars(config), "train.run") == config
    with pytest.raises(OptionError, match=r"no argument 'worker' .did you mean workers"):
        train.resume(tmp_path / "a", worker=2)
    with pytest.raises(FileError, match="was given as a Python object"):
        train.run(unetkit.Plan.of(encoder="plain", block=DoubleConv), tmp_path / "b", data=squares(4))
    assert not (tmp_path / "b").exists()


class NoGradient(TrainCallback):
    """Makes every gradient of the head NaN, from a loss scale at which few steps are left."""

    def on_train_begin(self, trainer: Any) -> None:
        self.scaler = trainer.stepper.scaler
        self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": 2.0**-22})
        *_, last = trainer.stepper.network.parameters()
        last.register_hook(lambda gradient: gradient * float("nan"))


def test_a_gradient_that_no_loss_scale_makes_finite_ends_a_run(tmp_path: Path) -> None:
    options = {**QUICK, "dtype": "float16", "epochs": 9}
    with pytest.raises(UnetkitError, match=r"gradient .*NaN .* at step 3 of epoch 1 "):
        train.run(TINY, tmp_path / "a", data=squares(12, 16), callback=NoGradient(), **options)


@pytest.mark.slow
def test_what_is_no_run_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"not a training run: .*run\.json"):
        train.resume(tmp_path)
    train.run(TINY, tmp_path / "a", data=squares(4), **{**QUICK, "epochs": 1})
    (tmp_path / "a" / STATE).write_bytes(b"torn")
    with pytest.raises(FileError, match=r"state.pt .* damaged"):
        train.resume(tmp_path / "a", data=squares(4))
    (tmp_path / "a" / HEADER).write_text("{")
    with pytest.raises(FileError, match=r"run.json .*damaged"):
        train.read(tmp_path / "a")


def test_a_truncated_validation_image_ends_the_run_in_its_first_epoch(tmp_path: Path) -> None:
    write_dataset(open_data("cells:count=4,val=3,test=1,size=64"), tmp_path / "data")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "data" / split / "instances")
    cut = tmp_path / "data" / "val" / "images" / "val-00002.png"
    cut.write_bytes(cut.read_bytes()[:-300])
    seen = Seen()
    seen.on_step_end = lambda done, loss: time.sleep(0.05)  # type: ignore[method-assign]
    with pytest.raises(FileError, match=r"val-00002\.png: cannot be read as an image"):
        train.run(TINY, tmp_path / "a", data=str(tmp_path / "data"), callback=seen, **{**QUICK, "batch_size": 1})
    assert not (tmp_path / "a" / LOG).exists()


def test_an_image_with_what_is_no_number_is_named(tmp_path: Path) -> None:
    data = squares()

    class Broken(Squares):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return sample._replace(image=sample.image.where(sample.image > 0.3, float("nan"))) if index == 7 else sample

    broken = replace(data, splits={**data.splits, "train": Broken("train", 12)})
    with pytest.raises(FileError, match=r"train-7: its image contains NaN or infinity"):
        train.run(TINY, tmp_path / "a", data=broken, **QUICK)


class Spoilt(Squares):
    """Squares of which the image with the number 7 has another mask."""

    def __init__(self, split: str, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(split, 12)
        self.spoil = spoil

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample._replace(mask=self.spoil(sample.mask)) if index == 7 else sample


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda mask: mask[1:], "mask is int64 of 31x32; expected int64 of 32x32"),
        (lambda mask: torch.nn.functional.pad(mask, (0, 3)), "mask is int64 of 32x35"),
        (lambda mask: mask + 2, "mask has values from 2 to 3; expected 0 to 1"),
        (lambda mask: mask.float(), "mask is float32"),
    ],
)
def test_a_mask_that_does_not_fit_its_image_or_the_classes_is_named(
    split: str, spoil: Callable[[torch.Tensor], torch.Tensor], why: str, tmp_path: Path
) -> None:
    data = squares()
    spoilt = replace(data, splits={**data.splits, split: Spoilt(split, spoil)})
    with pytest.raises(FileError, match=f"^{split}-7: its {why}"):
        train.run(TINY, tmp_path / "a", data=spoilt, **{**QUICK, "epochs": 1})


@pytest.mark.slow
def test_a_run_whose_state_is_gone_keeps_its_weights(tmp_path: Path) -> None:
    train.run(TINY, tmp_path / "a", data=squares(4), **{**QUICK, "epochs": 1})
    before = (tmp_path / "a" / BEST).read_bytes()
    (tmp_path / "a" / STATE).unlink()
    with pytest.raises(FileError, match=r"no state\.pt to continue from"):
        train.resume(tmp_path / "a", data=squares(4))
    assert (tmp_path / "a" / BEST).read_bytes() == before


@pytest.mark.slow
def test_data_that_moved_are_gone_on_with_and_changed_data_are_refused(tmp_path: Path) -> None:
    write_dataset(open_data("cells:count=4,val=2,test=1,size=32"), tmp_path / "here")
    for split in ("val", "test"):
        shutil.rmtree(tmp_path / "here" / split)
    with pytest.raises(KeyboardInterrupt):
        train.run(TINY, tmp_path / "a", data=str(tmp_path / "here"), callback=Seen(1), **{**QUICK, "batch_size": 1})
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(FileError, match=r"here: the folder does not exist"):
        train.resume(tmp_path / "a")
    train.resume(tmp_path / "a", data=str(tmp_path / "there"))
    assert len(log_of(tmp_path / "a")) == 2
    for kind in ("images", "masks", "instances"):
        (tmp_path / "there" / "train" / kind / "train-00000.png").rename(tmp_path / "there" / "train" / kind / "x.png")
    with pytest.raises(OptionError, match=r"not the data of .*classes or images differ"):
        train.resume(tmp_path / "a", data=str(tmp_path / "there"))


# On the command line


@contextmanager
def start(*words: str, stderr: Path) -> Iterator[Any]:
    """Start `python -m MODULE WORDS`; what it prints on stderr is in a file."""
    with started(run_module, list(words), str(stderr)) as process:
        yield process


CELLS = ["--data", "cells:count=8,val=2,test=1,size=32", "--encoder", "plain:widths=[4,8],norm=none"]
#: In which a step is proportional to the gradient; AdamW divides by it, so that rounding alone may decide a step.
SGD = ["--optimizer", "sgd", "--lr", "0.1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    more = ["--batch-size", "4", "--epochs", "2", "--block", "double:norm=none", "--device", "cpu"]
    told = folder.with_name("told")
    with start("unetkit", "train", *CELLS, *more, *SGD, "--tensorboard", "--out", str(folder), stderr=told) as done:
        done.join(300)
    said = told.read_text()
    assert done.exitcode == 0, said
    assert "epoch 2 of 2: loss" in said
    assert f"curves in {folder / CURVES}; predictions in {folder / PREVIEWS}" in said
    return folder


@pytest.mark.slow
def test_a_run_leaves_weights_a_log_curves_and_samples(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {HEADER, LOG, STATE, BEST, LAST, CURVES, PREVIEWS, "tensorboard"}
    assert [line["epoch"] for line in log_of(trained)] == [1, 2]
    for picture in (trained / CURVES, trained / PREVIEWS / "epoch-002.png"):
        with Image.open(picture) as opened:
            assert min(opened.size) > 100
    assert [*(trained / "tensorboard").glob("events*")]
    assert unetkit.load(trained / BEST).plan == train.read(trained).plan


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(trained: Path, tmp_path: Path) -> None:
    more = ["--batch-size", "2", "--epochs", "2", "--block", "double:norm=none", "--device", "cpu"]
    line = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "unetkit", "train"]
    told = tmp_path / "told"
    line += [*CELLS, *more, *SGD, "--preview-every", "0", "--out", str(tmp_path / "two")]
    with start(*line, stderr=told) as done:
        done.join(300)
    said = told.read_text()
    assert done.exitcode == 0, said
    assert "devices  2 processes with 2 images in a step" in said
    one, two, begun = (
        state_of(trained),
        state_of(tmp_path / "two"),
        unetkit.build(train.read(trained).plan).state_dict(),
    )
    trained_by = max(float((value - begun[name]).abs().max()) for name, value in one.items())
    apart = max(float((value - two[name]).abs().max()) for name, value in one.items())
    assert trained_by > 0.01
    assert apart < 1e-3 * trained_by  # far above rounding, far below what another gradient would give
    for alone, shared in zip(log_of(trained), log_of(tmp_path / "two"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert shared["miou"] == pytest.approx(alone["miou"], abs=0.01)


def two(folder: Path, **options: Any) -> list[int | None]:
    """Train in two processes; how each ended. The first may be stopped after so many steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = (started(one_of_two, rank, port, str(folder), options) for rank in (0, 1))
    with first as one, second as other:
        one.join(120)
        other.join(2 if options.get("stop") else 120)
    return [one.exitcode, other.exitcode]


@pytest.mark.slow
def test_two_processes_with_norms_and_border_weights_stop_and_go_on_to_the_same_weights(tmp_path: Path) -> None:
    unetkit.save(unetkit.build("plain:widths=[4,8]", in_channels=1, classes=1), tmp_path / "begun.safetensors")
    begun = str(tmp_path / "begun.safetensors")
    options: dict[str, Any] = {"loss": "border+dice", "freeze_encoder": 1, "init_weights": begun, "epochs": 3}
    assert two(tmp_path / "whole", **options) == [0, 0]
    assert two(tmp_path / "cut", **options, stop=4)[0] == 4
    assert 0 < read_state(tmp_path / "cut" / STATE).epochs_done < 3
    assert two(tmp_path / "cut") == [0, 0]
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_no_number_stops_all_processes(precision: str, tmp_path: Path) -> None:
    assert two(tmp_path / "a", lr=1e30, dtype=precision) == [3, 3]


def test_another_number_of_processes_goes_on_after_an_epoch_and_not_within_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train.run(TINY, tmp_path / "a", data=squares(), callback=Seen(2), save_every=0.0, **QUICK)
    state = read_state(tmp_path / "a" / STATE)
    state.world_size = 2
    state.write(tmp_path / "a" / STATE)
    with pytest.raises(OptionError, match=r"2 processes; use --resume with 2"):
        train.resume(tmp_path / "a", data=squares())


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    told = tmp_path / "told"
    line = ["train", *CELLS, "--augment", "none", "--preview-every", "0", "--epochs", "100000", "--out", str(folder)]
    with start("unetkit", *line, stderr=told) as process:
        end = time.monotonic() + 120
        while not (folder / LOG).exists() or not (folder / LOG).read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
        if process.exitcode is None:  # Python drops an interrupt that falls into a destructor; a user then repeats it
            os.kill(process.pid, signal.SIGINT)
            process.join(60)
    assert process.exitcode == 130
    said = told.read_text().splitlines()[-1]
    assert said.startswith("Error: interrupted; ")
    assert said.endswith(f": unetkit train --resume {folder}")
    with pytest.raises(OptionError, match=r"^--epochs cannot be changed by --resume"):
        cli.main(["train", "--resume", str(folder), "--epochs", "3"], standalone_mode=False)
