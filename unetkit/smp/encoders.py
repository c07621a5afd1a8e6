"""Every encoder of segmentation_models_pytorch (smp)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as known
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unetkit.errors import BuildError
from unetkit.parts.encoders.input_sizes import probe_sizes
from unetkit.parts.encoders.normalization import Statistics, of_config
from unetkit.utils.isolation import one_line
from unetkit.utils.modules import meta_copy

#: The side of the input that it is shown: its deepest map is 2x2.
_SIDE = 64


class FeatureMap(NamedTuple):
    """A map that an encoder gives: which of its outputs it is, and the module that it comes from, "" for none."""

    output: int
    channels: int
    stride: int
    module: str


def inspect_feature_maps(model: nn.Module, in_channels: int) -> tuple[list[FeatureMap], list[str]]:
    """The maps of an encoder, and the outermost of its modules whose weights reach none of them.

    Left out are the input itself and maps without channels; of several maps of one stride the deepest is given.

    Args:
        model: an encoder of smp, on any device; it is left as it was.
        in_channels: of its input.
    """
    ghost = meta_copy(model).eval()
    ran: list[tuple[str, Any]] = []  # what came out stays alive, so that no two have one id
    for path, module in ghost.named_modules():
        if not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda _, __, out, path=path: ran.append((path, out)))
    x = torch.empty(1, in_channels, _SIDE, _SIDE, dtype=next(ghost.parameters()).dtype, device="meta")
    with torch.enable_grad(), torch.device("meta"):
        maps = ghost(x)
        torch.autograd.backward([each.sum() for each in maps if each.requires_grad and each is not x])
    sources = {id(out): path for path, out in ran}
    found: dict[int, FeatureMap] = {}
    for output, each in enumerate(maps):
        if each is not x and each.shape[1]:
            stride = _SIDE // each.shape[-1]
            found[stride] = FeatureMap(output, each.shape[1], stride, sources.get(id(each), ""))
    return [*found.values()], _idle(ghost)


def _idle(ghost: nn.Module) -> list[str]:
    """The paths of the outermost modules none of whose parameters has a gradient."""
    idle: list[str] = []
    for path, module in ghost.named_modules():
        grads = [parameter.grad for parameter in module.parameters()]
        within = any(path.startswith(f"{outer}.") for outer in idle)
        if grads and not within and all(grad is None for grad in grads):
            idle.append(path)
    return idle


_FILE = "model.safetensors"
_CONFIG = "config.json"


class SmpWeights(NamedTuple):
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
            BuildError: the hub's cannot be had.
        """
        beside = Path(self.name).with_name(_CONFIG)
        if self.hub is None and not beside.is_file():
            return None
        try:
            text = Path(_downloaded(*self.hub, _CONFIG) if self.hub else beside).read_text(encoding="utf-8")
            return of_config(json.loads(text))
        except Exception as error:  # whatever the hub's client or a file's reader raises
            raise BuildError(
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


def find_smp_weights(architecture: str, tag: str | None, pretrained: bool | str) -> SmpWeights | None:
    """The weights that are asked for, if any; with neither tag nor file smp's usual ones.

    Raises:
        BuildError: smp has no weights of this tag, or there is no such file.
    """
    # A plus would join parts on the line, as in smp's imagenet+5k.
    tags = {tag.replace("+", "_"): at for tag, at in known[architecture]["pretrained_settings"].items()}
    if tag is not None and tag not in tags:
        raise BuildError(f"smp has no weights tagged {tag!r} for {architecture}; it has {', '.join(tags)}")
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            takes = f"a .safetensors file of smp/{architecture}'s tensors"
            raise BuildError(f"there is no weights file {pretrained}; --pretrained takes {takes}")
        return SmpWeights(pretrained, f"read from {pretrained}")
    tag = tag or ("imagenet" if "imagenet" in tags else next(iter(tags)))
    hub = tags[tag]["repo_id"], tags[tag]["revision"]
    return SmpWeights(f"smp {architecture}.{tag}", "had from smp's hub", hub) if pretrained else None


#: How often smp's encoders halve the input, unless told to stop before.
_DEPTH = 5


class SmpEncoder(nn.Module):
    """An encoder of segmentation_models_pytorch (smp); channels and strides are those of the maps that it gives.

    Where several maps have one stride (dilation in place of stride makes such), the deepest of them is given. Layers
    of smp's that no map needs are left out.

    Args:
        levels: how many of its maps to use, counted from the shallowest; none means all.
        output_stride: dilates the last stages so that no map is coarser than this, where the encoder can.
        pretrained: smp's weights for it, or the path of a .safetensors file of its tensors; `--pretrained` says the
            same. On the meta device, which holds no weights, they are looked for, but neither downloaded nor read.
    """

    def __init__(
        self,
        in_channels: int,
        name: str,
        *,
        levels: int | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        name, dot, tag = name.partition(".")
        self.weights = weights = find_smp_weights(name, tag if dot else None, pretrained)
        depth = _DEPTH if levels is None else _depth(name, levels, output_stride)
        self.model = _create(name, in_channels, depth, output_stride, weights)
        self.weights_from = weights.name if weights else "random"
        maps, idle = inspect_feature_maps(self.model, in_channels)
        for path in idle:
            self.model.set_submodule(path, _Passed())  # not deleted: some count the modules that they hold
        self.take = [found.output for found in maps]
        self.strides = tuple(found.stride for found in maps)
        self.channels = tuple(found.channels for found in maps)
        self.source = tuple(f"smp {found.module or name}, reduction {found.stride}" for found in maps)
        key = "smp", name, depth, output_stride
        self.min_size, self.multiple = probe_sizes(key, self.model, in_channels, self.strides[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], H / strides[i], W / strides[i]), rounded as the encoder does."""
        maps = self.model(x)
        return [maps[i] for i in self.take]

    def statistics(self) -> Statistics | None:
        """As `unetkit.parts.encoders.normalization` says."""
        return self.weights.statistics() if self.weights else None


def _depth(name: str, levels: int, output_stride: int) -> int:
    """The depth that smp calls so many maps: each of its maps but the input is one deeper."""
    with torch.device("meta"):
        maps, _ = inspect_feature_maps(_create(name, 3, _DEPTH, output_stride, None), 3)
    if not 2 <= levels <= len(maps):
        raise BuildError(f"smp/{name} gives {len(maps)} maps; levels={levels} must be from 2 to that")
    return maps[levels - 1].output


def _create(name: str, in_channels: int, depth: int, output_stride: int, weights: SmpWeights | None) -> Any:
    """The encoder as smp's `get_encoder` makes it, which warns of half of its names and takes no files."""
    options = copy.deepcopy(known[name]["params"])
    with NumbersOnCpu():
        model = known[name]["encoder"](depth=depth, output_stride=output_stride, **options)
    if weights and torch.get_default_device().type != "meta":
        _load(name, model, weights)
    model.set_in_channels(in_channels, pretrained=weights is not None)
    try:
        if output_stride != 32:
            model.make_dilated(output_stride)
    except Exception as error:
        why = f"does not take output_stride={output_stride} ({one_line(error)}); leave it out, or take a ResNet"
        raise BuildError(f"smp/{name} {why}") from error
    # A first convolution for other than three channels is made on the cpu, wherever the rest is.
    return model.to(torch.get_default_device())


def _load(name: str, model: Any, weights: SmpWeights) -> None:
    try:
        model.load_state_dict(weights.read())
    except Exception as error:  # whatever the hub's client, a file's reader or torch raises
        raise BuildError(
            f"the pretrained weights of smp/{name} cannot be {weights.where} ({one_line(error)[:300]}); give a "
            ".safetensors file of its tensors with `--pretrained FILE`, or leave --pretrained out for random weights"
        ) from error


class _Passed(nn.Module):
    """What stands where a layer was that no map needs."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """The map as it is."""
        return x


class NumbersOnCpu(TorchFunctionMode):
    """Within, `torch.linspace` is on the cpu: Mix Transformers read numbers from it, which meta tensors have not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return func(*args, **({"device": "cpu"} | given if func is torch.linspace else given))
