"""Random lines of the grammar, for networks that are small enough to run in a test."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import unetkit
from unetkit.errors import UnetkitError
from unetkit.network import Network

_NORMS = ("batch", "group", "instance", "layer", "none")
_ACTS = ("relu", "gelu", "silu", "leaky_relu", "hard_swish", "prelu")
_ORDERS = ("conv-norm-act", "conv-act-norm", "norm-act-conv")
_ENCODERS = (
    "test_resnet",
    "test_resnet:levels=3",
    "test_resnet:output_stride=8",
    "test_convnext",
    "test_efficientnet",
    "test_vit",
    "test_vit2",
    "test_mambaout",
    "smp/resnet18",
    "nested:of=test_resnet",
)
_UPS = (
    "bilinear",
    "bilinear:align_corners=true",
    "nearest",
    "transposed",
    "transposed:kernel=4",
    "transposed:kernel=3,padding=0,output_padding=0",
    "transposed:init=bilinear,channels=keep",
    "pixelshuffle",
    "pixelshuffle:channels=half,kernel=3",
    "carafe:compressed=8",
    "dysample",
)
_FUSES = ("concat", "add", "mean", "max", "attention-gate", "attention-gate:norm=batch")
_ALIGNS = ("resize", "resize:mode=bilinear", "crop", "pad")
_HEADS = ("conv", "conv:kernel=3", "conv-act-norm", "conv-act-norm:norm=group", "deep-supervision:levels=1")
_LOGITS = ("bilinear", "bilinear:align_corners=true", "nearest", "none", "transposed:channels=keep", "pixelshuffle")


def draw_line(random: Random) -> str:
    """Draw a line, of which `unetkit.build` may still refuse the combination."""
    padding = random.choice((1, 1, 1, 0))
    words = {
        "--encoder": random.choice((_draw_plain(random, padding), random.choice(_ENCODERS) if padding else "")),
        "--up": _draw_levels(random, _UPS),
        "--fuse": _draw_levels(random, _FUSES),
        "--align": random.choice(_ALIGNS),
        "--block": _draw_block(random, padding),
        "--head": random.choice(_HEADS),
        "--decode-to": random.choice(("1", "1", "2", "4")),
        "--logits": random.choice(("", "", *_LOGITS)),
        "--in-channels": random.choice(("1", "3")),
        "--classes": random.choice(("1", "2", "5")),
    }
    if words["--encoder"].startswith("test_vit"):  # its maps have all the same width, and so would the stages
        words["--widths"] = {"1": "32,16,16,8,8", "2": "32,16,16,8", "4": "32,16,16"}[words["--decode-to"]]
    return " ".join(f"{flag} {value}" for flag, value in words.items() if value)


def draw_networks(random: Random) -> Iterator[tuple[str, Network]]:
    """Yield random lines with their networks, without end."""
    while True:
        line = draw_line(random)
        try:
            yield line, unetkit.build(line, seed=0)
        except UnetkitError:  # parts that do not fit together
            continue


def _draw_levels(random: Random, parts: tuple[str, ...]) -> str:
    count = random.choice((1, 1, 3))
    return "/".join(random.choice(parts) for _ in range(count))


def _draw_conv(random: Random, padding: int) -> str:
    options = {
        "norm": random.choice(_NORMS),
        "act": random.choice(_ACTS),
        "order": random.choice(_ORDERS),
        "padding": str(padding),
        "bias": random.choice(("true", "false", "none")),
        "dropout": random.choice(("0", "0", "0.25")),
    }
    if padding:
        options["padding_mode"] = random.choice(("zeros", "zeros", "reflect", "replicate", "circular"))
    chosen = random.sample(sorted(options), 2)
    return ",".join(f"{name}={options[name]}" for name in {*chosen, "padding"})


def _draw_plain(random: Random, padding: int) -> str:
    widths = random.choice(("[8,16,24,32]", "[4,8,8,16]", "[64,32,32,32]"))
    return f"plain:widths={widths},{_draw_conv(random, padding)}"


def _draw_block(random: Random, padding: int) -> str:
    kind = random.choice(("double", "basic", "bottleneck", "preact"))
    chained = random.choice(("", "", "+scse", "+cbam:kernel=3"))
    return f"{kind}:{_draw_conv(random, padding)}{chained}"
