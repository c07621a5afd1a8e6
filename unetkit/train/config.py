"""The configuration of a training run, apart from the network, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unetkit.errors import OptionError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run.

    Attributes:
        data: a folder or the name of a data set, for `unetkit.data.datasets.open_data`.
        val_fraction: the share of the images that is used for validation if the data have no split.
        group_by: a regular expression; files whose names it matches alike are never split.
        ignore_index: a mask value that is ignored, in addition to those that the data define.
        crop: the height and width of training crops; None for the size of the first image, at most 256.
        batch_size: the number of images in a step, for each process.
        epochs: the number of passes over the training images.
        loss: a sum of losses, `bce+dice`; "" selects one that fits the data.
        augment: augmentation steps, `hflip,elastic`; "" selects those of the data set.
        lr: the highest learning rate, after the warm-up.
        optimizer: the optimizer with its options, `adamw:encoder_lr=1e-4,clip=0`.
        freeze_encoder: the number of epochs in which the encoder and the statistics of its norms are frozen; -1 for
            all.
        dtype: the number type of autocast; "auto" is bfloat16 or float16 on a GPU and float32 on a CPU.
        patience: the number of epochs without a better score after which training stops; 0 disables this.
        preview_every: the number of epochs between two pictures of predictions; 0 for none.
        seed: the seed of the split, the initialization, the order and the augmentation, which have separate streams.
        workers: the number of data loading processes; 0 loads data in the training process. None means 0 on a CPU,
            which has no core to spare, and up to eight for a GPU.
        device: "cpu", "cuda" or "cuda:1"; None for a GPU if there is one.
        tensorboard: whether to write TensorBoard event files, too.
    """

    data: str = "cells"
    val_fraction: float = 0.2
    group_by: str = ""
    ignore_index: int | None = None
    crop: tuple[int, int] | None = None
    batch_size: int = 8
    epochs: int = 20
    loss: str = ""
    augment: str = ""
    lr: float = 1e-3
    optimizer: str = "adamw"
    freeze_encoder: int = 0
    dtype: str = "auto"
    patience: int = 0
    preview_every: int = 5
    seed: int = 0
    workers: int | None = None
    device: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "epochs": 1, "freeze_encoder": -1, "patience": 0, "preview_every": 0}
        least |= {"seed": 0, "workers": 0}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise OptionError(f"--{name.replace('_', '-')} {given}: must be at least {value}")
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise OptionError(f"--dtype {self.dtype}: must be one of {known}{did_you_mean(self.dtype, DTYPES)}")
        if not 0 < self.lr < float("inf"):
            raise OptionError(f"--lr {self.lr:g}: must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Restore a configuration from the result of `to_dict`."""
        return cls(**{**values, "crop": values["crop"] and tuple(values["crop"])})
