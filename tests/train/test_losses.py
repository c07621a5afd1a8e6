"""Losses beside slow computations from their formulae, torch's own and smp's; what they refuse; and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.saying import says
from unetkit.data.border_weights import border_weights
from unetkit.data.types import IGNORE, Target
from unetkit.errors import OptionError, UnetkitError, UnknownNameError
from unetkit.plan import PartSpec
from unetkit.plugins import load_parts
from unetkit.train.losses import make_loss

BINARY = Target("binary", ("background", "cell"))
ANIMALS = Target("multiclass", ("background", "cat", "dog", "cow"))
LABELS = Target("multilabel", ("hot", "wet", "old"))
#: Targets with the outputs that a network may have for them.
KINDS = {"sigmoid": (BINARY, 1), "two": (BINARY, 2), "softmax": (ANIMALS, 4), "labels": (LABELS, 3)}
#: Losses that each takes, plain and with every option.
TEXTS = {
    "sigmoid": [
        "bce",
        "bce:positive=3",
        "dice",
        "focal",
        "focal:weights=[0.75,0.25],gamma=1.5",
        "border:weights=[1,4]",
    ],
    "two": ["ce", "ce:weights=[1,5]", "ce:weights=balanced", "dice", "focal", "border", "border:weights=balanced"],
    "softmax": ["ce", "ce:weights=[1,5,0,2]", "dice", "focal:gamma=0", "focal:weights=balanced", "border:w0=3,sigma=2"],
    "labels": ["bce", "bce:positive=[1,5,2]", "dice", "focal:gamma=3"],
}
EVERY = [(kind, text) for kind, texts in TEXTS.items() for text in [*texts, "", "+".join(texts)]]
EVERY = [(kind, text) for kind, text in EVERY if text.count("border") < 2]


def drawn(kind: str, seed: int = 0, batch: int = 3, size: tuple[int, int] = (6, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, masks with some IGNORE, and border maps; a class may be in no mask."""
    (target, outputs), source = KINDS[kind], torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, outputs, *size, generator=source, dtype=torch.float64) * 3
    planes = [outputs] if kind == "labels" else []
    most = 2 if kind == "labels" else len(target.names)
    masks = torch.randint(most, (batch, *planes, *size), generator=source) * torch.randint(
        2, (batch, *planes, 1, 1), generator=source
    )
    masks[torch.rand(masks.shape, generator=source) < 0.2] = IGNORE
    return logits, masks, torch.rand(batch, *size, generator=source, dtype=torch.float64) * 10


def loss_of(kind: str, text: str) -> Any:
    return make_loss(text, *KINDS[kind])


# Beside slow computations from the formulae


def chance(logits: list[float], true: int) -> float:
    """The probability of what is true: of a class by softmax, of one output's 0 or 1 by sigmoid."""
    if len(logits) == 1:
        return 1 / (1 + math.exp(-logits[0] if true else logits[0]))
    return math.exp(logits[true]) / sum(map(math.exp, logits))


def pixels(kind: str, logits: Tensor, masks: Tensor) -> list[list[tuple[list[float], int, int, int]]]:
    """For each image, of each pixel that counts: its logits, what is true, and row and column."""
    found: list[list[tuple[list[float], int, int, int]]] = []
    for image, mask in zip(logits, masks, strict=True):
        planes = zip(image[:, None], mask, strict=True) if kind == "labels" else [(image, mask)]
        places = [(plane, truth, y, x) for plane, truth in planes for y, x in (truth != IGNORE).nonzero().tolist()]
        found.append([(plane[:, y, x].tolist(), int(truth[y, x]), y, x) for plane, truth, y, x in places])
    return found


def balanced(true: list[int], one: int) -> float:
    return len(true) / (len(set(true)) * true.count(one))


def weighed(
    kind: str, logits: Tensor, masks: Tensor, weight: Callable[[int, list[int], int, int, int], float], gamma: float = 0
) -> list[float]:
    """The mean over each image's pixels of weight (1 - p)^gamma (-log p)."""
    values = []
    for number, seen in enumerate(pixels(kind, logits, masks)):
        true = [truth for _, truth, _, _ in seen]
        terms = [
            -weight(truth, true, number, y, x) * (1 - chance(said, truth)) ** gamma * math.log(chance(said, truth))
            for said, truth, y, x in seen
        ]
        values.append(sum(terms) / len(terms) if terms else 0.0)
    return values


def same(found: Tensor, expected: Any) -> bool:
    return torch.allclose(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["two", "softmax"]))
def test_cross_entropy_is_its_formula(seed: int, kind: str) -> None:
    logits, masks, _ = drawn(kind, seed)
    table = [1, 5, 0, 2][: KINDS[kind][1]]
    assert same(loss_of(kind, "ce")(logits, masks), weighed(kind, logits, masks, lambda *_: 1))
    text = f"ce:weights={table}".replace(" ", "")
    assert same(loss_of(kind, text)(logits, masks), weighed(kind, logits, masks, lambda true, *_: table[true]))
    expected = weighed(kind, logits, masks, lambda true, every, *_: balanced(every, true))
    assert same(loss_of(kind, "ce:weights=balanced")(logits, masks), expected)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["sigmoid", "labels"]))
def test_binary_cross_entropy_is_its_formula(seed: int, kind: str) -> None:
    logits, masks, _ = drawn(kind, seed)
    expected = weighed(kind, logits, masks, lambda true, *_: 4 if true else 1)
    assert same(loss_of(kind, "bce:positive=4")(logits, masks), expected)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([*KINDS]), st.sampled_from([0, 1, 2, 2.5]))
def test_focal_is_its_formula(seed: int, kind: str, gamma: float) -> None:
    logits, masks, _ = drawn(kind, seed)
    expected = weighed(kind, logits, masks, lambda *_: 1, gamma)
    assert same(loss_of(kind, f"focal:gamma={gamma}")(logits, masks), expected)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["sigmoid", "two", "softmax"]))
def test_the_border_loss_is_the_papers_energy_as_a_mean(seed: int, kind: str) -> None:
    logits, masks, maps = drawn(kind, seed)
    expected = weighed(kind, logits, masks, lambda true, every, n, y, x: 1 + float(maps[n, y, x]))
    assert same(loss_of(kind, "border")(logits, masks, maps), expected)
    expected = weighed(kind, logits, masks, lambda true, every, n, y, x: balanced(every, true) + float(maps[n, y, x]))
    assert same(loss_of(kind, "border:weights=balanced")(logits, masks, maps), expected)


def test_the_border_loss_is_the_papers_formula_from_instances_on() -> None:
    instances = torch.zeros(12, 14, dtype=torch.int64)
    for number, (top, left, side) in enumerate([(1, 1, 4), (1, 7, 5), (8, 3, 3)], 1):
        instances[top : top + side, left : left + side] = number
    logits, masks = torch.randn(1, 1, 12, 14, generator=torch.Generator().manual_seed(0)), (instances > 0).long()[None]
    cells = [(instances == number).nonzero().tolist() for number in (1, 2, 3)]

    def weight(true: int, every: list[int], number: int, y: int, x: int) -> float:
        near = sorted(min(math.dist((y, x), pixel) for pixel in cell) for cell in cells)
        return 1 + (0 if true else 7 * math.exp(-((near[0] + near[1]) ** 2) / (2 * 3**2)))

    found = loss_of("sigmoid", "border:w0=7,sigma=3")(logits, masks, border_weights(instances, w0=7, sigma=3)[None])
    expected = weighed("sigmoid", logits.double(), masks, weight)
    assert float(found) == pytest.approx(expected[0], rel=1e-3)  # maps are 0 where they would be below w0 / 10,000
    assert expected[0] > 1.1 * float(loss_of("sigmoid", "bce")(logits, masks))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([*KINDS]))
def test_dice_is_its_formula_over_the_classes_that_are_there(seed: int, kind: str) -> None:
    logits, masks, _ = drawn(kind, seed)
    values = []
    for image, mask in zip(logits, masks, strict=True):
        lost = []
        for one in range(KINDS[kind][1]):
            truth = mask[one] if kind == "labels" else mask
            wanted = one if kind in ("two", "softmax") else 1
            both = seen = true = 0.0
            for y, x in (truth != IGNORE).nonzero().tolist():
                said = image[:, y, x].tolist() if kind in ("two", "softmax") else [float(image[one, y, x])]
                p = chance(said, wanted)
                both, seen, true = (
                    both + p * (truth[y, x] == wanted).item(),
                    seen + p,
                    true + (truth[y, x] == wanted).item(),
                )
            lost += [1 - 2 * both / (seen + true)] if true else []
        values.append(sum(lost) / len(lost) if lost else 0.0)
    assert same(loss_of(kind, "dice")(logits, masks), values)


# Beside torch's and smp's own


def test_cross_entropies_are_torchs() -> None:
    logits, masks, _ = drawn("softmax", batch=1)
    assert same(loss_of("softmax", "ce")(logits, masks)[0], F.cross_entropy(logits, masks, ignore_index=IGNORE))
    logits, masks, _ = drawn("labels", batch=1)
    masks = masks.clamp_min(0)
    positive = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)[:, None, None]
    told = F.binary_cross_entropy_with_logits(logits, masks.double(), pos_weight=positive)
    assert same(loss_of("labels", "bce:positive=[1,5,2]")(logits, masks)[0], told)


@pytest.mark.parametrize("kind", KINDS)
def test_dice_is_smps_for_an_image_that_has_every_class(kind: str) -> None:
    logits, masks, _ = drawn(kind, seed=5, batch=1)
    masks.flatten(-2)[..., :8] = torch.arange(8) % (2 if kind == "labels" else len(KINDS[kind][0].names))
    mode = {"sigmoid": "binary", "two": "multiclass", "softmax": "multiclass", "labels": "multilabel"}[kind]
    told = smp.losses.DiceLoss(mode, ignore_index=IGNORE)(logits, masks)
    assert same(loss_of(kind, "dice")(logits, masks)[0], told)


@pytest.mark.parametrize("kind", ["sigmoid", "labels"])
def test_focal_is_smps_of_sigmoids(kind: str) -> None:
    logits, masks, _ = drawn(kind, batch=1)
    masks = masks.clamp_min(0)
    told = smp.losses.FocalLoss("binary", gamma=2.0)(logits, masks)
    assert same(loss_of(kind, "focal")(logits, masks)[0], told)


def test_the_lin_papers_alpha_is_a_pair_of_weights() -> None:
    logits, masks, _ = drawn("sigmoid", batch=1)
    masks = masks.clamp_min(0)
    told = smp.losses.FocalLoss("binary", alpha=0.25)(logits, masks)
    assert same(loss_of("sigmoid", "focal:weights=[0.75,0.25]")(logits, masks)[0], told)


def test_two_logits_and_their_difference_are_the_same_to_every_term() -> None:
    two, masks, maps = drawn("two")
    one = two[:, 1:] - two[:, :1]
    for softmax, sigmoid in (("ce", "bce"), ("focal", "focal"), ("border:weights=[1,2]", "border:weights=[1,2]")):
        assert same(loss_of("two", softmax)(two, masks, maps), loss_of("sigmoid", sigmoid)(one, masks, maps))


# What holds for all of them


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_the_value_of_an_image_does_not_depend_on_the_others(kind: str, text: str) -> None:
    logits, masks, maps = drawn(kind, batch=4)
    loss = loss_of(kind, text)
    together = loss(logits, masks, maps)
    alone = [loss(logits[n : n + 1], masks[n : n + 1], maps[n : n + 1]) for n in range(4)]
    assert together.shape == (4,)
    assert same(together, torch.cat(alone))


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_what_is_ignored_changes_nothing(kind: str, text: str) -> None:
    logits, masks, maps = drawn(kind)
    ignored = (masks if masks.ndim == 4 else masks[:, None]) == IGNORE
    loss, logits = loss_of(kind, text), logits.requires_grad_()
    value = loss(logits, masks, maps)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert not grad[ignored.expand_as(logits)].any()
    other = torch.where(ignored, 7.0, logits.detach())
    assert same(loss(other, masks, maps), value.detach())


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_an_image_in_which_nothing_counts_gives_0_and_a_gradient(kind: str, text: str) -> None:
    logits, masks, maps = drawn(kind)
    masks[1] = IGNORE
    logits.requires_grad_()
    value = loss_of(kind, text)(logits, masks, maps)
    assert value[1] == 0
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_the_gradient_is_that_of_differences(kind: str, text: str) -> None:
    logits, masks, maps = drawn(kind, batch=2, size=(3, 3))
    loss = loss_of(kind, text)
    assert torch.autograd.gradcheck(lambda x: loss(x, masks, maps), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_logits_of_half_precision_give_finite_values_in_float32(kind: str, text: str, dtype: torch.dtype) -> None:
    logits, masks, maps = drawn(kind, size=(40, 40))
    far = (logits * 2000).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss_of(kind, text)(far, masks, maps.float())
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), loss_of(kind, text)(far.detach().double(), masks, maps), rtol=1e-4)
    value.sum().backward()
    assert far.grad is not None
    assert far.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "text"), EVERY)
def test_what_is_said_means_the_same_and_is_the_shortest(kind: str, text: str) -> None:
    logits, masks, maps = drawn(kind)
    loss = loss_of(kind, text)
    again = loss_of(kind, loss.text)
    assert again.text == loss.text
    assert torch.equal(again(logits, masks, maps), loss(logits, masks, maps))


def test_every_term_is_tried_with_every_option() -> None:
    tried = {
        (spec.name, name) for texts in TEXTS.values() for spec in map(PartSpec.parse, texts) for name, _ in spec.options
    }
    losses = load_parts(isolated=True).losses.find()
    known = {(loss.name, option.name) for loss in losses for option in loss.signature.options}
    assert known - tried == {(loss.name, "share") for loss in losses}


def test_a_sum_is_the_sum_and_a_share_is_a_factor() -> None:
    logits, masks, _ = drawn("softmax")
    both = loss_of("softmax", "ce:share=2+dice:share=0.5")
    expected = 2 * loss_of("softmax", "ce")(logits, masks) + 0.5 * loss_of("softmax", "dice")(logits, masks)
    assert same(both(logits, masks), expected)
    assert both.text == "ce:share=2.0+dice:share=0.5"
    assert (both.border, loss_of("two", "dice+border:sigma=3").border) == (None, (10.0, 3.0))


@pytest.mark.parametrize(("kind", "said"), [("sigmoid", "bce+dice"), ("labels", "bce+dice"), ("two", "ce+dice")])
def test_the_default_suits_the_data(kind: str, said: str) -> None:
    assert loss_of(kind, "").text == said


def test_dice_is_blind_to_a_class_that_the_truth_has_not_and_bce_sees_it() -> None:
    logits, masks = torch.full((1, 1, 4, 4), 3.0), torch.zeros(1, 4, 4, dtype=torch.int64)
    assert loss_of("sigmoid", "dice")(logits, masks) == 0
    assert loss_of("sigmoid", "bce+dice")(logits, masks) > 3
    # Of classes that exclude each other, what is taken for an absent one is missing in another.
    logits = torch.zeros(1, 4, 4, 4)
    logits[:, 3] = 9
    assert loss_of("softmax", "dice")(logits, masks) > 0.99


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "sigmoid",
            "ce",
            "--loss ce: … softmax, … binary masks on 1 output … write bce",
        ),
        (
            "labels",
            "ce+dice",
            "--loss ce: … multilabel masks on 3 outputs",
        ),
        ("softmax", "dice+bce", "--loss bce: … sigmoid, … 4 classes … write ce"),
        (
            "two",
            "bce",
            "--loss bce: … write ce, or leave out --classes",
        ),
        ("labels", "border", "--loss border: … one class for each pixel"),
        ("labels", "focal:weights=[1,2,3]", "--loss focal:weights=[1,2,3]: … classes"),
        ("softmax", "ce:weights=[1,5]", "--loss ce:weights=[1,5]: … 2 numbers for 4 classes (background, c"),
        (
            "two",
            "ce:weights=[0,0]",
            "--loss ce:weights=[0,0]: … not all 0",
        ),
        ("two", "ce:weights=[1,-1]", "…weights must be … at least 0"),
        (
            "two",
            "ce:weights=some",
            "--loss ce:weights=some: … a list of numbers, … got some",
        ),
        ("labels", "bce:positive=[1,2]", "…positive has 2 numbers; … 3 labels"),
        ("sigmoid", "bce:positive=-1", "…positive must be … at least 0"),
        ("sigmoid", "bce:share=0", "--loss bce:share=0: … above 0"),
        ("sigmoid", "focal:gamma=0.5", "--loss focal:gamma=0.5: … at least 1"),
        ("sigmoid", "border:sigma=0", "…sigma above 0; got 10 and 0"),
        ("sigmoid", "border+border:w0=5", "…border appears twice"),
        (
            "sigmoid",
            "dice:smooth=1",
            "…'smooth'; it has share; `unetkit list loss dice`",
        ),
        ("sigmoid", "border:sima=2", "…'sima' (did you mean sigma?)"),
        ("sigmoid", "bce+", "…a part is empty"),
    ],
)
def test_what_contradicts_the_data_is_refused_in_one_line(kind: str, text: str, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        loss_of(kind, text)
    assert says(str(refused.value), message)


def test_an_unknown_term_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no loss is called 'dise' .did you mean dice"):
        loss_of("sigmoid", "bce+dise")
    with pytest.raises(UnknownNameError, match="the losses are ce, bce, dice, focal, border"):
        loss_of("sigmoid", "hinge")


def test_the_border_loss_asks_for_its_maps() -> None:
    logits, masks, _ = drawn("sigmoid")
    with pytest.raises(UnetkitError, match="needs a border map"):
        loss_of("sigmoid", "border")(logits, masks)
