"""Whole images of any size in one pass: logits for every pixel, whatever the network makes of sizes."""

from __future__ import annotations

import gc
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import unetkit
from unetkit.deploy.passes import _found, whole
from unetkit.errors import CannotPass
from unetkit.network import Network

#: Of valid convolutions: three levels; BN after ReLU and an odd upsampler.
VALID: dict[str, dict[str, Any]] = {
    "2015": {"recipe": "unet-2015", "encoder": "plain:widths=[4,8,16],padding=0"},
    "relu-bn": {"recipe": "unet-relu-bn", "encoder": "plain:widths=[4,6,8],order=conv-act-norm,padding=0"},
}
PADDED: dict[str, dict[str, Any]] = {
    "plain": {"encoder": "plain:widths=[4,8]"},
    "timm": {"encoder": "test_resnet"},
    "stride": {"encoder": "test_resnet", "decode_to": 4, "logits": "none"},
}


@cache
def network(name: str) -> Network:
    return unetkit.build(**(VALID | PADDED)[name], in_channels=2, classes=3, seed=0).eval()


def image(*size: int) -> torch.Tensor:
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(size[0] * 1000 + size[1]))


def run(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return whole(model, x)


@settings(max_examples=20)
@given(st.sampled_from([*VALID, *PADDED]), st.integers(1, 70), st.integers(1, 70))
def test_every_pixel_of_an_image_of_any_size_has_logits(name: str, height: int, width: int) -> None:
    out = run(network(name), image(height, width))
    assert out.shape == (1, 3, height, width)
    assert out.isfinite().all()


@pytest.mark.parametrize("size", [(37, 50), (3, 41), (1, 1)])
def test_valid_networks_see_the_image_mirrored(size: tuple[int, int]) -> None:
    x = image(*size)
    # 44 is the smallest side that passes, all that are larger by multiples of 4 do, and an output is smaller by 40.
    ends = [(20, -(-max(0, side - 4) // 4) * 4 + 24 - side) for side in size]
    mirrored = np.pad(x.numpy(), [(0, 0), (0, 0), *ends], mode="reflect" if min(size) > 1 else "edge")
    with torch.inference_mode():
        expected = network("2015")(torch.from_numpy(mirrored))[..., : size[0], : size[1]]
    assert torch.equal(run(network("2015"), x), expected)


def test_the_middle_of_a_valid_pass_is_what_the_network_gives_there() -> None:
    model = network("2015")
    for side in (44, 60, 92):
        x = image(side, side)
        with torch.no_grad():
            inner = model(x)
        margin = (side - inner.shape[-1]) // 2
        out = run(model, x)[..., margin : side - margin, margin : side - margin]
        assert inner.shape[-1] == side - 40
        # The pools of both begin at the same pixels where the margin is a multiple of their strides' product.
        assert margin % 4 == 0
        assert torch.allclose(out, inner, atol=1e-6)


def test_padded_networks_give_what_they_give() -> None:
    for name in ("plain", "timm"):
        x = image(45, 38)
        with torch.inference_mode():
            assert torch.equal(run(network(name), x), network(name)(x))


def test_logits_at_a_stride_are_brought_to_the_image_where_they_belong() -> None:
    model, x = network("stride"), image(64, 96)
    with torch.inference_mode():
        small = model(x)
    assert small.shape == (1, 3, 16, 24)
    assert torch.allclose(run(model, x), F.interpolate(small, (64, 96), mode="bilinear"), atol=1e-6)
    x = image(61, 93)
    with torch.inference_mode():
        small = model(x)
    # Pixel for pixel where they lie, and not squeezed into what is no multiple of the stride.
    assert torch.equal(run(model, x), F.interpolate(small, scale_factor=4, mode="bilinear")[..., :61, :93])


def test_what_an_encoder_of_one_size_does_not_take_is_refused() -> None:
    model = unetkit.build("levit_128s", device="meta").eval()
    assert whole(model, torch.empty(1, 3, 50, 33, device="meta")).shape == (1, 2, 50, 33)
    with pytest.raises(CannotPass, match="larger than 224x224"):
        whole(model, torch.empty(1, 3, 300, 33, device="meta"))


def test_what_a_network_needs_is_found_once_and_forgotten_with_it() -> None:
    model = unetkit.build(**VALID["2015"], in_channels=2, classes=3).eval()
    run(model, image(9, 9))
    with patch("unetkit.deploy.passes.meta_copy", side_effect=AssertionError):
        run(model, image(12, 30))
    before = len(_found)
    del model
    gc.collect()
    assert len(_found) == before - 1


def test_the_network_is_left_as_it_was() -> None:
    model = network("2015")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, image(20, 20))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
