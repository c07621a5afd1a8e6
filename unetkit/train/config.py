"""The configuration of a training run, apart from the network, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unetkit.errors import OptionError
from unetkit.utils.config_fields import check_fields, config_field, format_option
from unetkit.utils.formatting import Size
from unetkit.utils.parsing import parse_nodata, parse_size

DTYPES = ("auto", "float32", "bfloat16", "float16")
#: Fields that do not change what is trained, and which may therefore change when a run is continued.
CHANGEABLE = ("preview_every", "workers", "threads", "device", "tensorboard")


def _parse_freeze(value: str | int) -> int:
    if value in ("all", -1):
        return -1
    if not str(value).isdecimal():
        raise OptionError("must be a number of epochs, or all")
    return int(value)


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. Every field but the seed, which the plan has, is an option of the command.

    Attributes:
        seed: the seed of the initialization, the order, the augmentation and, unless that has a seed of its own, the
            split. All have separate streams.
    """

    data: str = config_field("cells", "Training data, see above.", metavar="FOLDER|SET")
    val_fraction: float = config_field(
        0.2, "Share of the images for validation where the data have no split.", metavar="X"
    )
    group_by: str = config_field(
        "", "Keep files in one split if REGEX finds the same text in their names.", metavar="REGEX"
    )
    split_seed: int | None = config_field(None, "Seed of that split.", metavar="N", default_text="--seed", least=0)
    ignore_index: int | None = config_field(
        None, "Mask value to ignore in losses and scores, besides those that the data define.", metavar="N"
    )
    nodata: str = config_field(
        "",
        "Number in images that means that there are no data, such as -9999 or nan; such pixels are ignored.",
        metavar="VALUE",
        default_text="what a TIFF file declares",
        parse=str,
    )
    channels: str = config_field(
        "",
        "Convert images of one or three channels to grey or rgb.",
        choices=("grey", "rgb"),
        default_text="as the files are",
    )
    crop: Size | None = config_field(
        None,
        "Size of the training crops.",
        metavar="HxW",
        default_text="--size, or the first image's, at most 256",
        parse=parse_size,
    )
    loss: str = config_field(
        "", "Sum of losses, such as bce+dice.", metavar="TERM[+...]", default_text="chosen by the data"
    )
    augment: str = config_field(
        "",
        "Augmentations, such as hflip,rotate90,elastic,light; or none.",
        metavar="STEP,...",
        default_text="those of the data set",
    )
    batch_size: int = config_field(8, "Images in a training step, for each process.", metavar="N", least=1)
    epochs: int = config_field(
        20, "Number of passes over the training images, each followed by a validation.", metavar="N", least=1
    )
    steps: int | None = config_field(
        None,
        "Number of training steps in all, divided over the epochs, which then are no passes.",
        metavar="N",
        default_text="one pass for each epoch",
        least=1,
    )
    init_weights: str = config_field(
        "",
        "Start from the weights in FILE (.safetensors, a state_dict of torch.save, or a run's folder) that fit.",
        metavar="FILE",
    )
    lr: float = config_field(1e-3, "Highest learning rate, after warm-up.", metavar="X")
    optimizer: str = config_field("adamw", "Optimizer with its options, such as adamw:clip=1.", metavar="NAME")
    freeze_encoder: int = config_field(
        0,
        "Keep the encoder's loaded weights and the statistics of its norms frozen for the first EPOCHS, or always.",
        metavar="EPOCHS|all",
        least=-1,
        parse=_parse_freeze,
    )
    dtype: str = config_field(
        "auto",
        "Number type of autocast: float32, bfloat16 or float16.",
        metavar="TYPE",
        choices=DTYPES,
        default_text="float32 on a CPU, else bfloat16 or float16",
    )
    patience: int = config_field(0, "Stop after N epochs without a better mIoU; 0 for never.", metavar="N", least=0)
    preview_every: int = config_field(5, "Draw predictions every N epochs; 0 for never.", metavar="N", least=0)
    workers: int | None = config_field(
        None, "Number of data loading processes.", metavar="N", default_text="0 on a CPU, up to 8 for a GPU", least=0
    )
    threads: int | None = config_field(
        None, "Number of torch's threads, for each process.", metavar="N", default_text="torch's choice", least=1
    )
    device: str | None = config_field(
        None, "Device, such as cpu, cuda or cuda:1.", metavar="NAME", default_text="a GPU if there is one"
    )
    tensorboard: bool = config_field(default=False, help="Also write TensorBoard event files.")
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.nodata:
            try:
                parse_nodata(self.nodata)
            except OptionError as error:
                raise OptionError(f"--nodata {self.nodata}: {error}") from None
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: must be at least 0")
        if self.steps is not None and self.steps < self.epochs:
            few = f"--steps {self.steps}: must be at least the number of epochs, {self.epochs}"
            raise OptionError(f"{few}; give a lower --epochs, too")
        if not 0 < self.lr < float("inf"):
            raise OptionError(f"--lr {self.lr:g}: must be a finite number above 0")

    @property
    def nodata_value(self) -> float | None:
        """The number that means that there are no data; None without."""
        return parse_nodata(self.nodata) if self.nodata else None

    def format_option(self, name: str) -> str:
        """Return the option that sets a field to its value, such as "--lr 0.1"; "" for an option that is not given."""
        is_all = name == "freeze_encoder" and self.freeze_encoder < 0
        return format_option(name, "all" if is_all else getattr(self, name))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Restore a configuration from its fields as JSON has them, where a tuple is a list."""
        return cls(**{**values, "crop": values["crop"] and tuple(values["crop"])})
