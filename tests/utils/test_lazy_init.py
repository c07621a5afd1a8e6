"""Weights that are drawn once are still the weights that an eager build would draw."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import unetkit
from unetkit.utils.lazy_init import defer_init


def test_a_fill_that_is_overwritten_is_never_carried_out() -> None:
    with defer_init():
        layer = nn.Conv2d(64, 64, 3)
        nn.init.zeros_(layer.weight)
    assert not layer.weight.any()


def test_reading_sees_what_an_eager_run_would_show() -> None:
    with defer_init():
        ones = torch.empty(1000)
        ones.fill_(7).uniform_(0, 1)
        assert 0 < float(ones.mean()) < 1
        ones.mul_(2).normal_(5, 0.1)
        half = ones[:500]
        half.zero_()
        twice = torch.empty(1000).uniform_(1, 2)
        added = twice + 1
    assert not half.any()
    assert float(ones[500:].mean()) == pytest.approx(5, abs=0.1)
    assert float(added.min()) >= 2
    assert torch.equal(added, twice + 1)


def test_a_part_of_a_tensor_leaves_the_rest_random() -> None:
    with defer_init():
        whole = torch.empty(10, 10).uniform_(1, 2)
        whole[0].normal_(100, 1)
        strided = torch.empty(10, 10).normal_(3, 0.1)
        strided.t()[0].zero_()
    assert float(whole[1:].min()) >= 1
    assert float(whole[0].min()) > 90
    assert not strided[:, 0].any()
    assert float(strided[:, 1:].mean()) == pytest.approx(3, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "test_efficientnet", "vgg11", "test_nfnet"])
def test_every_weight_has_the_spread_that_timm_gives_it(name: str) -> None:
    torch.manual_seed(0)
    eager = dict(timm.create_model(name, features_only=True).requires_grad_(False).named_parameters())
    with defer_init():
        drawn = dict(timm.create_model(name, features_only=True).requires_grad_(False).named_parameters())
    for key, weight in drawn.items():
        assert weight.shape == eager[key].shape
        assert float(weight.std(correction=0)) == pytest.approx(float(eager[key].std(correction=0)), rel=0.5, abs=0.02)
        assert float(weight.mean()) == pytest.approx(float(eager[key].mean()), abs=0.1)


def test_seeds_fix_every_weight() -> None:
    first, second, other = (unetkit.build("test_resnet", seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_without_a_seed_the_global_one_counts() -> None:
    torch.manual_seed(3)
    first = unetkit.build("plain:widths=[4,8]").state_dict()
    torch.manual_seed(3)
    second = unetkit.build("plain:widths=[4,8]").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_given_memory_is_not_filled() -> None:
    with defer_init():
        layer = nn.Linear(4, 4)
        layer.weight.data = torch.eye(4)
    assert torch.equal(layer.weight.detach(), torch.eye(4))


def test_overwriting_with_itself_reads_it_first() -> None:
    with defer_init():
        one = torch.full((100,), 777.0).uniform_(1, 2)
        one.copy_(one)
        other = torch.full((10,), 777.0).uniform_(1, 2)
        other.fill_(other[0])
    assert 1 <= float(one.min()) <= float(one.max()) <= 2
    assert 1 <= float(other.min()) == float(other.max()) <= 2


def test_tensors_without_plain_memory_pass() -> None:
    with defer_init():
        layer = nn.Linear(3, 3)
        sparse = torch.eye(3).to_sparse()
        product = torch.sparse.mm(sparse, layer.weight.detach())
    assert torch.equal(product, layer.weight.detach())


def test_a_generator_of_ones_own_is_used_at_once() -> None:
    with defer_init():
        first = [torch.empty(5).normal_(generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    again = [torch.empty(5).normal_(generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_error_leaves_nothing_unfilled() -> None:
    kept: list[torch.Tensor] = []
    with suppress(ZeroDivisionError), defer_init():
        kept.append(torch.full((100,), 777.0).uniform_(0, 1))
        raise ZeroDivisionError
    assert float(kept[0].max()) <= 1


def test_nothing_waits_where_tensors_are_not_plain() -> None:
    with torch.inference_mode():
        assert unetkit.build("test_resnet").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    with FakeTensorMode():
        assert unetkit.build("test_resnet").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_layers_of_one_shape_are_not_alike() -> None:
    with defer_init():
        layers = [nn.Conv2d(8, 8, 3) for _ in range(4)]
    weights = [layer.weight for layer in layers]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_seeded_builds_of_several_threads_are_equal() -> None:
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: unetkit.build("plain:widths=[4,8]", seed=1).state_dict(), range(8)))
    assert all(torch.equal(models[0][key], model[key]) for model in models for key in model)
