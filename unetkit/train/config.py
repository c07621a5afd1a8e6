"""What is chosen of a training run beside the network, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unetkit.errors import OptionError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        data: what `unetkit.data.datasets.open_data` takes: a folder, or a set by name.
        val_fraction: the share of a folder without a split that is set aside to choose the best weights by.
        group_by: a regular expression; files whose names it matches alike are never on two sides of the split.
        ignore_index: the number in mask files that stands for "counts nowhere", beside what the data say.
        crop: height and width that each training image is cut (or padded) to; if None, those of the first one, at
            most 256.
        batch_size: images a step, of each process.
        epochs: passes over the training images.
        loss: a sum of losses, `bce+dice`; "" takes what suits the data.
        augment: what is done to training images, `hflip,elastic`; "" takes what the data set asks for.
        lr: the highest learning rate, after the warm-up.
        optimizer: how the weights follow the gradient: `adamw:encoder_lr=1e-4,clip=0`.
        freeze_encoder: epochs in which the encoder, its norms' statistics too, is left as it is; -1 for all.
        dtype: of what autocast computes; "auto" is bfloat16 or float16 on a GPU and float32 on a CPU.
        patience: epochs without a better score after which training stops; 0 for never.
        preview_every: epochs between two pictures of predictions; 0 for none.
        seed: of the split, the initialisation, the order and the augmentation, each a stream of its own.
        workers: processes that read and augment; 0 does it in the training process. If None, none on a CPU, which has
            no core to spare, and up to eight for a GPU.
        device: "cpu", "cuda" or "cuda:1"; the GPU where there is one, if None.
        tensorboard: whether to write its event files too.
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
            raise OptionError(f"--dtype {self.dtype}: takes one of {known}{did_you_mean(self.dtype, DTYPES)}")
        if not 0 < self.lr < float("inf"):
            raise OptionError(f"--lr {self.lr:g}: must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def of(cls, said: dict[str, Any]) -> TrainConfig:
        """What `to_dict` gave, back."""
        return cls(**{**said, "crop": said["crop"] and tuple(said["crop"])})
