"""The encoders of segmentation_models_pytorch (smp) as parts of a network, and their pretrained weights.

smp's own description of an encoder is incomplete, so its feature maps, and the layers that none of them needs, are
found by one forward pass on the meta device.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unetkit.errors import BuildError
from unetkit.parts.encoders.input_sizes import probe_sizes
from unetkit.parts.encoders.normalization import NormalizationStats, parse_normalization_stats
from unetkit.utils.isolation import one_line
from unetkit.utils.meta_shapes import MetaShapes
from unetkit.utils.modules import meta_copy

#: Side of the input of that pass, in pixels; the deepest map is 2x2.
_PROBE_SIDE = 64


class FeatureMap(NamedTuple):
    """A feature map of an encoder.

    Attributes:
        output: index of the map among the encoder's outputs.
        channels: channels of the map.
        stride: stride of the map, in input pixels.
        module: name of the module that made it; "" where no module did.
    """

    output: int
    channels: int
    stride: int
    module: str


def inspect_feature_maps(model: nn.Module, in_channels: int) -> tuple[list[FeatureMap], list[str]]:
    """Find the feature maps of an encoder, and the modules whose weights influence none of them.

    The input itself and maps without channels are left out; of several maps of one stride only the deepest is kept.

    Args:
        model: an encoder of smp on any device, which is left unchanged.
        in_channels: channels of its input.

    Returns:
        The maps, shallow to deep, and the names of the outermost unused modules.
    """
    meta_model = meta_copy(model).eval()
    outputs: list[tuple[str, Any]] = []  # keeps each output alive, so that no two have one id
    for name, module in meta_model.named_modules():
        if not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda _, __, output, name=name: outputs.append((name, output)))
    shape = 1, in_channels, _PROBE_SIDE, _PROBE_SIDE
    x = torch.empty(shape, dtype=next(meta_model.parameters()).dtype, device="meta")
    with torch.enable_grad(), torch.device("meta"), MetaShapes():
        tensors = meta_model(x)
    modules = {id(output): name for name, output in outputs}
    maps: dict[int, FeatureMap] = {}
    for index, each in enumerate(tensors):
        if each is not x and each.shape[1]:
            stride = _PROBE_SIDE // each.shape[-1]
            maps[stride] = FeatureMap(index, each.shape[1], stride, modules.get(id(each), ""))
    used = _parameters_behind([each for each in tensors if each is not x])
    return [*maps.values()], _find_unused(meta_model, used)


def _parameters_behind(outputs: list[Tensor]) -> set[int]:
    """Return the ids of the parameters that a backward pass from these outputs would reach."""
    nodes: list[Any] = [output.grad_fn for output in outputs if output.grad_fn]
    seen, found = {*nodes}, set()
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        following = {each for each, _ in node.next_functions if each} - seen
        seen |= following
        nodes += following
    return found


def _find_unused(model: nn.Module, used: set[int]) -> list[str]:
    """Return the names of the outermost modules that have parameters, but none of the used ones."""
    unused: list[str] = []
    for name, module in model.named_modules():
        own = {id(parameter) for parameter in module.parameters()}
        if own and not own & used and not any(name.startswith(f"{outer}.") for outer in unused):
            unused.append(name)
    return unused


_FILE = "model.safetensors"
_CONFIG = "config.json"


class SmpWeights(NamedTuple):
    """Pretrained weights, on the hub or in a local file.

    Attributes:
        name: their name for the trace, or the path of the file.
        action: how they are had, after "cannot be" in a message: "loaded from smp's hub" or "read from FILE".
        hub: the repository and revision on the hub; None for a local file.
    """

    name: str
    action: str
    hub: tuple[str, str] | None = None

    def read(self) -> dict[str, Tensor]:
        """Read the tensors by the encoder's own names, after a download where the hub's cache lacks them."""
        return load_file(self.name if self.hub is None else _download(*self.hub, _FILE))

    def statistics(self) -> NormalizationStats | None:
        """Read the mean and standard deviation of the training images, which smp keeps beside weights in config.json.

        Return None for a local file without a config.json beside it.

        Raises:
            BuildError: config.json cannot be downloaded or read.
        """
        config_file = Path(self.name).with_name(_CONFIG)
        if self.hub is None and not config_file.is_file():
            return None
        try:
            text = Path(_download(*self.hub, _CONFIG) if self.hub else config_file).read_text(encoding="utf-8")
            return parse_normalization_stats(json.loads(text))
        except Exception as error:  # the hub's client or the file's reader may raise anything
            raise BuildError(
                f"the mean and standard deviation that {self.name} was trained with are unknown: config.json beside "
                f"the weights cannot be read ({one_line(error)[:200]}); try again where the hub can be reached"
            ) from error


def _download(repo: str, revision: str, file: str) -> str:
    cached = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(cached, str):
        return cached
    # Ask the hub once before: the download would retry for most of a minute if it cannot be reached.
    get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
    return hf_hub_download(repo, file, revision=revision)


def find_smp_weights(architecture: str, tag: str | None, pretrained: bool | str) -> SmpWeights | None:
    """Find the pretrained weights of an encoder, without loading them.

    Args:
        architecture: smp's name of the encoder.
        tag: which of smp's weights; None means the default.
        pretrained: True for smp's weights, a path for a .safetensors file, False for none.

    Returns:
        The weights; None without.

    Raises:
        BuildError: smp has no weights with this tag, or the file does not exist.
    """
    # A plus on the command line would chain parts, so smp's imagenet+5k becomes imagenet_5k.
    tags = {tag.replace("+", "_"): at for tag, at in smp_encoders[architecture]["pretrained_settings"].items()}
    if tag is not None and tag not in tags:
        raise BuildError(f"smp has no weights tagged {tag!r} for {architecture}; it has {', '.join(tags)}")
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            expected = f"a .safetensors file of smp/{architecture}'s tensors"
            raise BuildError(f"--pretrained {pretrained}: the file does not exist; give {expected}")
        return SmpWeights(pretrained, f"read from {pretrained}")
    tag = tag or ("imagenet" if "imagenet" in tags else next(iter(tags)))
    hub = tags[tag]["repo_id"], tags[tag]["revision"]
    return SmpWeights(f"smp {architecture}.{tag}", "loaded from smp's hub", hub) if pretrained else None


#: How often smp's encoders halve the input by default.
_MAX_DEPTH = 5


class SmpEncoder(nn.Module):
    """Feature maps of an encoder of segmentation_models_pytorch (smp), with their channels and strides.

    Where several maps have the same stride, as with dilation, only the deepest of them is used. Layers of smp's that no
    map needs are left out.

    Args:
        levels: number of feature maps to use, counted from the shallowest; none means all.
        output_stride: largest stride of the feature maps, reached by dilating the last stages, where the encoder can.
        pretrained: true loads smp's pretrained weights, a path loads a .safetensors file of the encoder's tensors; the
            same as `--pretrained`. On the meta device the weights must exist but are not loaded.
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
        depth = _MAX_DEPTH if levels is None else _depth_for_levels(name, levels, output_stride)
        self.model = _create(name, in_channels, depth, output_stride, weights)
        self.weights_from = weights.name if weights else "random"
        maps, unused = inspect_feature_maps(self.model, in_channels)
        self.arguments = {"name": name, "in_channels": in_channels, "depth": depth, "output_stride": output_stride}
        self.unused = tuple(unused)
        for path in unused:
            self.model.set_submodule(path, _PassThrough())  # not deleted, because some encoders count their modules
        self.indices = [each.output for each in maps]
        self.strides = tuple(each.stride for each in maps)
        self.channels = tuple(each.channels for each in maps)
        self.source = tuple(f"smp {each.module or name}, reduction {each.stride}" for each in maps)
        key = "smp", name, depth, output_stride
        self.min_size, self.multiple = probe_sizes(key, self.model, in_channels, self.strides[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps (B, channels[i], H / strides[i], W / strides[i]), rounded as the encoder does."""
        maps = self.model(x)
        return [maps[i] for i in self.indices]

    def statistics(self) -> NormalizationStats | None:
        """Return mean and standard deviation for the pretrained weights; None without."""
        return self.weights.statistics() if self.weights else None


def _depth_for_levels(name: str, levels: int, output_stride: int) -> int:
    """Return smp's depth of an encoder with a number of maps: each map but the input is one deeper."""
    with torch.device("meta"):
        maps, _ = inspect_feature_maps(_create(name, 3, _MAX_DEPTH, output_stride, None), 3)
    if not 2 <= levels <= len(maps):
        raise BuildError(f"smp/{name} has {len(maps)} feature maps; levels={levels} must be from 2 to {len(maps)}")
    return maps[levels - 1].output


def _create(name: str, in_channels: int, depth: int, output_stride: int, weights: SmpWeights | None) -> Any:
    """Create an encoder as smp's `get_encoder` does, which warns of half of its names and takes no files."""
    options = copy.deepcopy(smp_encoders[name]["params"])
    with LinspaceOnCpu():
        model = smp_encoders[name]["encoder"](depth=depth, output_stride=output_stride, **options)
    if weights and torch.get_default_device().type != "meta":
        _load_weights(name, model, weights)
    model.set_in_channels(in_channels, pretrained=weights is not None)
    try:
        if output_stride != 32:
            model.make_dilated(output_stride)
    except Exception as error:
        refusal = f"smp/{name} does not take output_stride={output_stride} ({one_line(error)})"
        raise BuildError(f"{refusal}; leave it out, or use a ResNet") from error
    # smp makes a first convolution for other than three channels on the CPU, whatever the default device.
    return model.to(torch.get_default_device())


def _load_weights(name: str, model: Any, weights: SmpWeights) -> None:
    try:
        model.load_state_dict(weights.read())
    except Exception as error:  # the hub's client, the file's reader or torch may raise anything
        raise BuildError(
            f"the pretrained weights of smp/{name} cannot be {weights.action} ({one_line(error)[:300]}); give a "
            ".safetensors file of its tensors with `--pretrained FILE`, or leave --pretrained out for random weights"
        ) from error


class _PassThrough(nn.Module):
    """A replacement of a layer that no map needs, which returns its input."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Return the input."""
        return x


class LinspaceOnCpu(TorchFunctionMode):
    """A mode in which `torch.linspace` is on the CPU: Mix Transformers read its values, which meta tensors lack."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({"device": "cpu"} | kwargs if func is torch.linspace else kwargs))
