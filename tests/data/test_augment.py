"""Augmentation: image, mask and weight move together, and the seed alone says how."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unetkit.data.augment import Elastic, make_augment
from unetkit.data.statistics import ValueRange
from unetkit.data.types import IGNORE, Sample, Target
from unetkit.errors import OptionError, UnetkitError, UnknownNameError
from unetkit.plugins import load_parts
from unetkit.utils.integers import mirror_indices

BINARY = Target("binary", ("background", "cell"))
ALL = "hflip,vflip,rotate90,rotate:degrees=40,scale,elastic,light,noise,blur"
MOVES = "hflip,vflip,rotate90,rotate:degrees=40,scale,elastic"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(height: int = 48, width: int = 64, channels: int = 1, labels: int = 5) -> Sample:
    """Smooth hills as the image, and how high they are as the mask, so that each tells the other."""
    hills = F.interpolate(random(1, channels, 5, 6), (height, width), mode="bilinear", align_corners=True)[0]
    return Sample("blobs", hills, (hills[0] * labels).long().clamp(0, labels - 1), torch.ones(height, width).long())


def test_nothing_but_the_crop_moves_nothing() -> None:
    sample, weight = blobs(), random(48, 64)
    out, moved = make_augment("none", (48, 64))(sample, weight, 3)
    assert torch.equal(out.image, sample.image)
    assert torch.equal(out.mask, sample.mask)
    assert moved is not None
    assert torch.equal(moved, weight)
    assert (out.name, out.instances) == (sample.name, None)


@pytest.mark.parametrize("text", ["hflip", "vflip", "rotate90"])
def test_flips_and_turns_are_exact(text: str) -> None:
    sample = blobs(40, 40)
    weight = sample.image[0] * 7
    augment = make_augment(text, (40, 40))
    seen = set()
    for seed in range(12):
        out, moved = augment(sample, weight, seed)
        assert moved is not None
        assert torch.equal(out.image[0] * 7, moved)
        assert torch.equal(out.mask, (out.image[0] * 5).long().clamp(0, 4))
        assert torch.equal(out.image.flatten().sort().values, sample.image.flatten().sort().values)
        seen.add(tuple(out.image[0, 0].tolist()))
    assert len(seen) == (4 if text == "rotate90" else 2)


@pytest.mark.parametrize("text", ["rotate:degrees=180", "scale", "elastic:std=4", MOVES])
@pytest.mark.parametrize("size", [(48, 64), (64, 48)], ids=str)
def test_the_mask_and_the_weight_move_as_the_image_does(text: str, size: tuple[int, int]) -> None:
    sample = blobs(*size, labels=8)
    for seed in range(6):
        out, weight = make_augment(text, size)(sample, sample.image[0].clone(), seed)
        assert weight is not None
        counts = out.mask != IGNORE
        assert counts.float().mean() > 0.2
        # Away from what came from beyond the image, the two differ by what rounding to the nearest pixel may.
        inner = F.max_pool2d((~counts).float()[None], 5, 1, 2)[0] == 0
        assert (out.image[0] - weight)[inner].abs().max() < 0.15
        assert torch.equal(out.mask[inner], (weight[inner] * 8).long().clamp(0, 7))
        assert weight[~counts].eq(0).all()


@pytest.mark.parametrize("text", ["rotate:degrees=90", "scale:low=1.5,high=3", "elastic:std=6", "rotate90"])
def test_a_marked_pixel_is_found_where_the_image_has_it(text: str) -> None:
    for seed in range(8):
        image, mask = torch.zeros(1, 41, 41), torch.zeros(41, 41).long()
        image[0, 17:20, 22:25], mask[17:20, 22:25] = 1, 1
        out, _ = make_augment(text, (41, 41))(Sample("", image, mask), None, seed)
        if not (out.mask == 1).any():
            continue  # it was moved out of the image
        centres = [torch.nonzero(found).float().mean(0) for found in (out.mask == 1, out.image[0] > 0.5)]
        assert (centres[0] - centres[1]).abs().max() <= 1


@settings(max_examples=30)
@given(seed=st.integers(0, 2**63 - 1), height=st.integers(1, 70), width=st.integers(1, 70), planes=st.booleans())
def test_no_label_is_made_up_and_the_size_is_the_crops(seed: int, height: int, width: int, planes: bool) -> None:
    shape = (3, height, width) if planes else (height, width)
    labels = torch.tensor([IGNORE, 0, 3, 7, 250])
    mask = labels[torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(seed))]
    sample = Sample("", random(2, height, width, seed=seed), mask)
    out, weight = make_augment(ALL, (32, 24))(sample, random(height, width), seed)
    assert out.image.shape == (2, 32, 24)
    assert out.image.dtype == torch.float32
    assert out.image.isfinite().all()
    assert out.mask.shape == (*shape[:-2], 32, 24)
    assert out.mask.dtype == torch.int64
    assert set(out.mask.flatten().tolist()) <= {IGNORE, *mask.flatten().tolist()}
    assert weight is not None
    assert (weight.shape, weight.dtype) == ((32, 24), torch.float32)
    assert type(out.image) is type(out.mask) is type(weight) is Tensor


def test_a_small_image_lies_in_its_mirror_image_which_does_not_count() -> None:
    sample = blobs(5, 7)
    out, weight = make_augment("none", (30, 7))(sample, torch.ones(5, 7), 1)
    rows = (out.mask != IGNORE).any(1).nonzero().flatten().tolist()
    assert rows == list(range(rows[0], rows[0] + 5))
    assert torch.equal(out.image[:, rows], sample.image)
    assert torch.equal(out.image[:, rows[0] - 1], sample.image[:, 1])
    assert torch.equal(out.image[:, rows[-1] + 1], sample.image[:, 3])
    assert weight is not None
    assert torch.equal(weight == 1, out.mask != IGNORE)


def test_a_single_pixel_is_its_own_mirror_image() -> None:
    assert mirror_indices(torch.arange(-2, 3), 1).tolist() == [0] * 5


@given(before=st.integers(0, 40), length=st.integers(2, 9), after=st.integers(0, 40))
def test_mirrored_is_what_numpy_calls_reflect(before: int, length: int, after: int) -> None:
    padded = np.pad(np.arange(length), (before, after), mode="reflect")
    assert mirror_indices(torch.arange(-before, length + after), length).tolist() == padded.tolist()


def test_every_window_of_a_large_image_may_come() -> None:
    image = torch.arange(100.0 * 100).reshape(1, 100, 100) / 10000
    augment = make_augment("none", (10, 10))
    corners = {
        int((augment(Sample("", image, image[0].long()), None, seed)[0].image[0, 0, 0] * 10000).round())
        for seed in range(300)
    }
    rows, columns = {corner // 100 for corner in corners}, {corner % 100 for corner in corners}
    assert min(rows | columns) < 5
    assert max(rows | columns) > 85
    assert len(rows) > 60


def test_the_seed_alone_says_how_and_the_global_state_is_left_alone() -> None:
    sample, augment = blobs(), make_augment(ALL, (32, 32))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = augment(sample, None, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, weight = pickle.loads(pickle.dumps(augment))(sample, None, 5)  # as a worker has it
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.mask, again.mask)
    assert weight is None
    assert not torch.equal(first.image, augment(sample, None, 6)[0].image)


def test_what_is_given_is_left_as_it_was() -> None:
    sample, weight = blobs(), random(48, 64)
    copies = sample.image.clone(), sample.mask.clone(), weight.clone()
    for seed in range(4):
        make_augment(ALL, (64, 64))(sample, weight, seed)
    for now, before in zip((sample.image, sample.mask, weight), copies, strict=True):
        assert torch.equal(now, before)


def test_elastic_is_the_2015_papers() -> None:
    """Displacements at the grid's points are normal with that deviation, and bicubic in between."""
    step = Elastic(grid=3, std=10)
    fields = torch.stack([step.field(65, 33, torch.Generator().manual_seed(seed)) for seed in range(400)])
    points = fields[:, ::32, ::16]
    assert points.shape == (400, 3, 3, 2)
    assert points.mean().abs() < 0.5
    assert 9.5 < points.std() < 10.5
    coarse = points[:1].permute(0, 3, 1, 2)
    between = F.interpolate(coarse, (65, 33), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(fields[0], between)


def test_elastic_moves_by_as_many_pixels_as_it_says() -> None:
    ramp = torch.arange(60.0).expand(40, 60)
    image = torch.stack([ramp, torch.arange(40.0)[:, None].expand(40, 60)])
    step = Elastic(std=2)
    crop = make_augment("elastic:std=2", (40, 60))
    out, _ = crop(Sample("", image, torch.zeros(40, 60).long()), None, 9)
    draw = torch.Generator().manual_seed(9)
    for _ in range(2):  # the window before the steps
        torch.randint(0, 1, (), generator=draw)
    field = step.field(40, 60, draw)
    moved = (out.image - image).permute(1, 2, 0)[8:-8, 8:-8]
    torch.testing.assert_close(moved, field[8:-8, 8:-8], atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [0.02, 1.0, 4095.0])
@pytest.mark.parametrize("text", ["light", "noise", "blur"])
def test_tones_change_the_image_in_its_range_and_nothing_else(text: str, scale: float) -> None:
    sample = blobs(channels=4)
    sample = sample._replace(image=sample.image * scale)
    value_range = ValueRange((0.0,) * 4, (scale,) * 4)
    out, weight = make_augment(text, (48, 64), value_range=value_range)(sample, sample.image[0], 2)
    assert torch.equal(out.mask, sample.mask)
    assert weight is not None
    assert torch.equal(weight, sample.image[0])
    change = (out.image - sample.image).abs() / scale
    assert 0.001 < change.mean() < 0.3
    if text != "noise":
        assert out.image.min() >= -0.01 * scale
        assert out.image.max() <= 1.01 * scale


def test_light_leaves_a_flat_image_flat() -> None:
    flat = Sample("", torch.full((1, 8, 8), 7.0), torch.zeros(8, 8).long())
    out, _ = make_augment("light,noise:std=0,blur", (8, 8))(flat, None, 0)
    assert out.image.isfinite().all()
    assert out.image.max() - out.image.min() < 1e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "none"),
        ("none", "none"),
        ("elastic:grid=3,std=10.0,light", "elastic,light"),
        ("hflip,elastic:std=8,grid=4,rotate90", "hflip,elastic:grid=4,std=8.0,rotate90"),
        ("rotate:degrees=30,rotate:degrees=15", "rotate:degrees=30.0,rotate"),
    ],
)
def test_a_text_is_said_back_at_its_shortest(text: str, said: str) -> None:
    augment = make_augment(text, (8, 8))
    assert augment.text == said
    assert make_augment(said, (8, 8)).text == said


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("elastik", UnknownNameError, "did you mean elastic?)"),
        ("hflip,elastic:sdt=3", OptionError, "did you mean std?)"),
        ("rotate90:degrees=3", OptionError, "rotate90 has no options, so 'degrees'"),
        ("elastic:std=big", OptionError, "std must be a number; got big"),
        ("elastic:std=-1", OptionError, "--augment elastic:std=-1: std takes numbers from 0; got -1"),
        ("elastic:grid=1", OptionError, "grid takes numbers from 2, up to 64; got 1"),
        ("scale:low=2,high=1", OptionError, "high takes numbers from 2, up to 20; got 1"),
        ("rotate:degrees=nan", OptionError, "degrees takes numbers from 0, up to 180; got nan"),
        ("noise:std=inf", OptionError, "std takes numbers from 0; got inf"),
        ("none,hflip", OptionError, "none cannot be combined with other steps"),
        ("std=3", OptionError, "is not a part"),
        ("hflip,", OptionError, "a part is empty"),
        ("hflip+rotate90", OptionError, "commas"),
        ('elastic:std="3', OptionError, "a double quote is not closed"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(text: str, kind: type[UnetkitError], told: str) -> None:
    with pytest.raises(kind) as refused:
        make_augment(text, (8, 8))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_number_of_threads_changes_no_sample() -> None:
    sample = Sample("", random(1, 512, 512), (random(512, 512) * 3).long())
    augment, threads = (
        make_augment("hflip,vflip,rotate90,elastic:std=5,scale,light,blur", (512, 512)),
        torch.get_num_threads(),
    )
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append([augment(sample, random(512, 512), seed) for seed in range(4)])
    finally:
        torch.set_num_threads(threads)
    for (one, weight), (two, other) in zip(*found, strict=True):
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.mask, two.mask)
        assert weight is not None
        assert other is not None
        assert torch.equal(weight, other)


def test_a_crop_without_pixels_is_refused() -> None:
    with pytest.raises(OptionError, match="at least 1x1"):
        make_augment("none", (0, 8))


def test_every_step_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    assert not [name for name in load_parts(isolated=True).augmentations.names() if f"\n| `{name}" not in page]
