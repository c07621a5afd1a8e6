"""Pretrained weights of smp's encoders: a tag's on the hub, or those of a local file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as known
from torch import Tensor

from unetkit.errors import CannotBuild
from unetkit.foreign import one_line
from unetkit.parts.encoders.statistics import Statistics, of_config

_FILE = "model.safetensors"
_CONFIG = "config.json"


class Weights(NamedTuple):
    """Weights that there are: what they are called, and their file, or the repository and revision of the hub's."""

    name: str
    where: str
    hub: tuple[str, str] | None = None

    def read(self) -> dict[str, Tensor]:
        """The tensors, by the encoder's own names; downloaded where the hub's cache has them not."""
        return load_file(self.name if self.hub is None else _downloaded(*self.hub, _FILE))

    def statistics(self) -> Statistics | None:
        """What images were normalised by when they were made: smp keeps it beside them, in config.json.

        None of a local file that has none beside it.

        Raises:
            CannotBuild: the hub's cannot be had.
        """
        beside = Path(self.name).with_name(_CONFIG)
        if self.hub is None and not beside.is_file():
            return None
        try:
            text = Path(_downloaded(*self.hub, _CONFIG) if self.hub else beside).read_text(encoding="utf-8")
            return of_config(json.loads(text))
        except Exception as error:  # whatever the hub's client or a file's reader raises
            raise CannotBuild(
                f"the mean and standard deviation that {self.name} was trained with cannot be had: config.json beside "
                f"the weights cannot be read ({one_line(error)[:200]}); try again where the hub can be reached"
            ) from error


def _downloaded(repo: str, revision: str, file: str) -> str:
    cached = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(cached, str):
        return cached
    # Asked once: the download itself would ask a hub that is not there for most of a minute.
    get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
    return hf_hub_download(repo, file, revision=revision)


def find_smp_weights(architecture: str, tag: str | None, pretrained: bool | str) -> Weights | None:
    """The weights that are asked for, if any; with neither tag nor file smp's usual ones.

    Raises:
        CannotBuild: smp has no weights of this tag, or there is no such file.
    """
    # A plus would join parts on the line, as in smp's imagenet+5k.
    tags = {tag.replace("+", "_"): at for tag, at in known[architecture]["pretrained_settings"].items()}
    if tag is not None and tag not in tags:
        raise CannotBuild(f"smp has no weights tagged {tag!r} for {architecture}; it has {', '.join(tags)}")
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            takes = f"a .safetensors file of smp/{architecture}'s tensors"
            raise CannotBuild(f"there is no weights file {pretrained}; --pretrained takes {takes}")
        return Weights(pretrained, f"read from {pretrained}")
    tag = tag or ("imagenet" if "imagenet" in tags else next(iter(tags)))
    hub = tags[tag]["repo_id"], tags[tag]["revision"]
    return Weights(f"smp {architecture}.{tag}", "had from smp's hub", hub) if pretrained else None
