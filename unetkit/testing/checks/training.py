"""Checks of what a training run is made of: losses, targets, augmentations, optimizers and datasets.

Shapes: B batch, K outputs of the network, C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unetkit.builder import build
from unetkit.data.augment import SampleTensors, find_step_error
from unetkit.data.sample_checks import find_mask_error, find_sample_error, find_splits_error
from unetkit.data.splits import SplitConfig
from unetkit.data.types import IGNORE, Sample, Target
from unetkit.errors import UnetkitError
from unetkit.network import declared_outputs, prediction_of
from unetkit.options import format_value
from unetkit.summary.outputs import find_output_error, list_outputs
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.contracts import format_shape, random_tensor
from unetkit.testing.subject import PartSubject
from unetkit.train.optim import OptimizerConfig
from unetkit.train.outputs import make_output_losses
from unetkit.utils.formatting import format_plural, format_type
from unetkit.utils.spatial import size_of

#: What masks may mean, each with the number of outputs of a network for them.
_TARGETS = (
    (Target("binary", ("background", "cell")), 1),
    (Target("binary", ("background", "cell")), 2),
    (Target("multiclass", ("background", "cat", "dog")), 3),
    (Target("multilabel", ("red", "green")), 2),
)


def _call(prefix: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call code of a plugin. Raises Nonconformity for any exception."""
    try:
        return function(*arguments)
    except Exception as error:
        raise Nonconformity(f"{prefix}fails with {one_line(error)}") from error


def _make(subject: PartSubject, *wiring: Any) -> Any:
    """Create what is checked. An UnetkitError, which rejects the arguments, passes through."""
    try:
        return subject.factory(*wiring, **subject.options)
    except UnetkitError:
        raise
    except Exception as error:
        raise Nonconformity(
            f"its creation fails with {one_line(error)}; reject unsupported arguments with an OptionError"
        ) from error


# Losses


def check_loss(subject: PartSubject) -> None:
    """Check the values and gradients of a loss for each meaning of masks that it accepts."""
    rejections = []
    numbers = Target("regression", ("height", "width"))
    targets = ((numbers, 2),) if getattr(subject.factory, "regression", False) else _TARGETS
    for target, outputs in targets:
        activation = target.activation(outputs)
        prefix = f"for {target.kind} masks and {format_plural(outputs, 'output')}: "
        try:
            term = _make(subject, target, activation)
        except UnetkitError as error:
            rejections.append(f"{prefix}{error}")
            continue
        _check_values(term, target, outputs, prefix)
    if len(rejections) == len(targets):
        raise Nonconformity(f"it rejects all masks that were tried: {rejections[0]}")


def _check_values(term: Any, target: Target, outputs: int, prefix: str) -> None:
    masks = _random_masks(target)
    logits = random_tensor(3, outputs, 6, 7).double()
    borders = random_tensor(3, 6, 7).double().abs() if getattr(term, "border", None) else None
    given = [tensor.clone() for tensor in (logits, masks)]
    values = _compute_loss(term, logits, masks, borders, prefix)
    if not (torch.equal(logits, given[0]) and torch.equal(masks.nan_to_num(), given[1].nan_to_num())):
        raise Nonconformity(f"{prefix}it changes its inputs in place")
    # A loss may compute in float32: 8 rounding errors for each logit of an image.
    rounding = 8 * torch.finfo(torch.float32).eps * logits[0].numel()
    one = None if borders is None else borders[1:2]
    if not torch.allclose(
        values[1:2], _compute_loss(term, logits[1:2], masks[1:2], one, prefix), rtol=rounding, atol=rounding
    ):
        raise Nonconformity(
            f"{prefix}the value of an image depends on the other images of the batch; "
            "compute a value for each image from its own pixels"
        )
    unknown, ignored = (torch.nan, masks.isnan()) if masks.is_floating_point() else (IGNORE, masks == IGNORE)
    planes = ignored if ignored.ndim == 4 else ignored[:, None]
    shifted = torch.where(planes.expand_as(logits), logits + 3, logits)
    if not torch.allclose(values, _compute_loss(term, shifted, masks, borders, prefix), rtol=rounding, atol=rounding):
        raise Nonconformity(f"{prefix}pixels where the mask is {unknown} change the value; leave them out")
    empty = _compute_loss(term, logits.requires_grad_(), torch.full_like(masks, unknown), borders, prefix)
    if empty.detach().abs().max() > 0:
        raise Nonconformity(f"{prefix}the value is {float(empty.detach().max()):g} where all pixels are ignored, not 0")
    _check_gradient(term, logits.detach(), masks, borders, prefix)
    truth = _true_logits(target, outputs, masks)
    right, wrong = (_compute_loss(term, sign * truth, masks, borders, prefix).mean() for sign in (1, -1))
    if not right < wrong:
        raise Nonconformity(
            f"{prefix}the value is {float(right):.3g} for a right and {float(wrong):.3g} for a wrong prediction; "
            "it must be lower for a right one"
        )


def _compute_loss(term: Any, logits: Tensor, masks: Tensor, borders: Tensor | None, prefix: str) -> Tensor:
    values: Any = _call(prefix, term, logits, masks, borders)
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if shape != (len(logits),):
        raise Nonconformity(f"{prefix}returns {shape}; expected a value for each of {len(logits)} images, (B,)")
    if not values.isfinite().all():
        raise Nonconformity(f"{prefix}returns values that are not finite")
    tensor: Tensor = values
    return tensor


def _check_gradient(term: Any, logits: Tensor, masks: Tensor, borders: Tensor | None, prefix: str) -> None:
    for scale in (1, 100):  # large logits saturate the sigmoid and the softmax
        scaled = (scale * logits).requires_grad_()
        values = _compute_loss(term, scaled, masks, borders, prefix)
        if not values.requires_grad:
            raise Nonconformity(f"{prefix}the value has no gradient; compute it from the logits with torch")
        (gradient,) = torch.autograd.grad(values.sum(), scaled)
        if not gradient.isfinite().all():
            raise Nonconformity(
                f"{prefix}the gradient is not finite for logits of {scale}; "
                "compute it from log_softmax or logsigmoid, not from the logarithm of probabilities"
            )
    if (
        not gradient.any()
        and not torch.autograd.grad(term(logits.requires_grad_(), masks, borders).sum(), logits)[0].any()
    ):
        raise Nonconformity(f"{prefix}the gradient is 0")


def _random_masks(target: Target) -> Tensor:
    """Draw three masks, with all classes or labels and with ignored pixels in each; or maps for regression."""
    source = torch.Generator().manual_seed(0)
    if target.kind == "regression":
        maps = torch.randn(3, len(target.names), 6, 7, generator=source)
        maps[..., 0, :] = torch.nan
        return maps
    shape = (3, len(target.names), 6, 7) if target.kind == "multilabel" else (3, 6, 7)
    masks = torch.randint(2 if target.kind == "multilabel" else len(target.names), shape, generator=source)
    masks[..., 0, :] = IGNORE
    return masks


def _true_logits(target: Target, outputs: int, masks: Tensor) -> Tensor:
    """Return logits (B, K, H, W) that are right everywhere."""
    if target.kind == "regression":
        return masks.nan_to_num().double()
    if target.activation(outputs) == "softmax":
        return 8.0 * torch.stack([masks == index for index in range(outputs)], 1).double() - 4
    planes = masks if masks.ndim == 4 else masks[:, None]
    return 8.0 * (planes == 1).double() - 4


# Targets of outputs


def check_target(subject: PartSubject) -> None:
    """Check the maps of a target for each meaning of masks that it accepts."""
    rejections = []
    meanings = [meaning for meaning, outputs in _TARGETS if outputs == meaning.outputs]
    for meaning in meanings:
        prefix = f"for {meaning.kind} masks: "
        try:
            target = _make(subject, meaning)
        except UnetkitError as error:
            rejections.append(f"{prefix}{error}")
            continue
        if not isinstance(getattr(target, "maps", None), Target):
            raise Nonconformity(f"{prefix}must declare maps, a unetkit.data.types.Target that says what its maps mean")
        for mask in (*_random_masks(meaning), *_special_masks(meaning)):
            _check_map(target, mask, prefix)
        _call(f"{prefix}pickling ", lambda held: pickle.loads(pickle.dumps(held)), target)  # noqa: S301
    if len(rejections) == len(meanings):
        raise Nonconformity(f"it rejects all masks that were tried: {rejections[0]}")


def _special_masks(meaning: Target) -> list[Tensor]:
    """Return masks of one pixel, of one class only, and without a pixel that is not ignored."""
    planes = (len(meaning.names),) if meaning.kind == "multilabel" else ()
    fills = ((1, (1, 1)), (0, (5, 9)), (1, (9, 5)), (IGNORE, (4, 4)))
    return [torch.full((*planes, *size), value) for value, size in fills]


def _check_map(target: Any, mask: Tensor, prefix: str) -> None:
    prefix = f"{prefix}a mask of {format_shape(mask.shape)} "
    given = mask.clone()
    found = _call(prefix, target, mask)
    if not torch.equal(mask, given):
        raise Nonconformity(f"{prefix}is changed in place; return a new tensor")
    if error := find_mask_error(found, target.maps, mask.shape[-2:]):
        raise Nonconformity(f"{prefix}gives a map that {error}")
    ignored = (mask == IGNORE).reshape(-1, *mask.shape[-2:]).all(0)
    left_out = found.isnan() if found.is_floating_point() else found == IGNORE
    if not left_out[..., ignored].all():
        value = "NaN" if found.is_floating_point() else IGNORE
        raise Nonconformity(f"{prefix}has pixels that are ignored ({IGNORE}), which its map does not ignore ({value})")
    if left_out.all() and not (mask == IGNORE).any():
        raise Nonconformity(f"{prefix}gives a map in which all pixels are ignored, so that nothing is learned")
    again = _call(prefix, target, mask)
    if not torch.equal(found.nan_to_num(), again.nan_to_num()):
        raise Nonconformity(f"{prefix}gives different maps in two calls; compute a map from the mask alone")


def check_outputs(subject: PartSubject) -> None:
    """Check that the loss of each named output can be computed for some masks, and trains the output."""
    if not declared_outputs(subject.make(subject.positional_cases[0])):
        return
    rejections = []
    for masks, classes in _TARGETS:
        try:
            part = subject.make((subject.positional_cases[0][0], classes)).train()
            _check_output_losses(subject, part, masks)
        except UnetkitError as error:
            rejections.append(f"for {masks.kind} masks and {classes} classes: {error}")
    if len(rejections) == len(_TARGETS):
        raise Nonconformity(f"it cannot be trained with any masks that were tried: {rejections[0]}")


def _check_output_losses(subject: PartSubject, part: Any, masks: Target) -> None:
    args = subject.positional_cases[0]
    part_input = subject.samples(training=True)[0][1]
    returned = subject.contract.call(part, part_input.clone())
    declared = declared_outputs(part)
    if error := find_output_error(returned, declared, len(prediction_of(returned)[0])):
        raise Nonconformity(f"{subject.describe_case(args)}{error}")
    losses = make_output_losses(list_outputs(returned, declared), masks, subject.parts, "its `outputs`")
    for name, one in losses.items():
        size = size_of(returned[name])
        planes = (len(masks.names),) if masks.kind == "multilabel" else ()
        drawn = torch.randint(2, (part_input.batch, *planes, *size), generator=torch.Generator().manual_seed(0))
        maps = torch.stack([one.target(mask) for mask in drawn])
        value = _call(f"the loss of output {name!r} ", one.loss, returned[name], maps).sum()
        if not value.isfinite() or not torch.autograd.grad(value, returned[name])[0].isfinite().all():
            raise Nonconformity(f"the loss of output {name!r}, or its gradient, is not finite")


# Augmentations


def check_augmentation(subject: PartSubject) -> None:
    """Check that a step keeps types, moves image and mask together, and depends on its generator only."""
    step = _make(subject)
    for channels, labels, size, has_weight in ((3, 0, (37, 41), True), (1, 2, (40, 40), False), (3, 0, (5, 7), True)):
        sample = _random_sample(channels, labels, size, has_weight)
        prefix = f"for an image of {channels}x{format_shape(size)}: "
        for seed in range(8):
            _check_step(step, sample, seed, prefix)


def _check_step(step: Any, sample: SampleTensors, seed: int, prefix: str) -> None:
    given = _clone(sample)
    torch.manual_seed(seed)
    found = _call(prefix, step, sample, torch.Generator().manual_seed(seed))
    _check_result(found, given, prefix)
    if not _equal(sample, given):
        raise Nonconformity(f"{prefix}it changes its input in place; return new tensors")
    torch.manual_seed(seed + 100)
    again = _call(prefix, step, sample, torch.Generator().manual_seed(seed))
    if not _equal(SampleTensors(*found), SampleTensors(*again)):
        raise Nonconformity(
            f"{prefix}two calls with equal generators differ; draw every random number from the generator"
        )


def _check_result(found: Any, given: SampleTensors, prefix: str) -> None:
    if why := find_step_error(found, given):
        raise Nonconformity(f"{prefix}{why}")
    image, mask, _ = found
    if not image.isfinite().all():
        raise Nonconformity(f"{prefix}the image has values that are not finite")
    if new := sorted(set(mask.flatten().tolist()) - {*given.mask.flatten().tolist(), IGNORE}):
        raise Nonconformity(
            f"{prefix}the mask has new values, such as {new[0]}; interpolate masks with the nearest pixel"
        )
    moved = not torch.equal(image, given.image) and torch.equal(
        image.flatten().sort()[0], given.image.flatten().sort()[0]
    )
    if moved and torch.equal(mask, given.mask):
        raise Nonconformity(f"{prefix}it moves the image's pixels, but not the mask's; move both alike")
    if torch.equal(image, given.image) and not torch.equal(mask, given.mask):
        raise Nonconformity(f"{prefix}it changes the mask, but not the image; change both alike")


def _random_sample(channels: int, labels: int, size: tuple[int, int], has_weight: bool) -> SampleTensors:
    source = torch.Generator().manual_seed(sum(size))
    # From 0 to 1 but for outliers, as the range of training images leaves some values out on both sides.
    image = 1.2 * torch.rand(channels, *size, generator=source) - 0.1
    mask = torch.randint(2 if labels else 4, (labels, *size) if labels else size, generator=source)
    mask[..., 0, :2] = IGNORE
    return SampleTensors(image, mask, torch.rand(size, generator=source) if has_weight else None)


def _clone(sample: SampleTensors) -> SampleTensors:
    return SampleTensors(*(None if tensor is None else tensor.clone() for tensor in sample))  # type: ignore[arg-type]


def _equal(one: SampleTensors, other: SampleTensors) -> bool:
    return all(a is b or torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


# Optimizers


def check_optimizer(subject: PartSubject) -> None:
    """Check that a step changes the parameters, and that the saved state continues exactly."""
    config = _make(subject)
    if not isinstance(config, OptimizerConfig):
        raise Nonconformity(f"returns {format_type(config)}; expected a unetkit.train.optim.OptimizerConfig")
    network: Any = build("plain:widths=[4,8]", in_channels=1, seed=0)
    optimizer = _call("creating the optimizer ", config.make_optimizer, network, 0.01)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Nonconformity(f"`create` returns {format_type(optimizer)}; expected a torch.optim.Optimizer")
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if sorted(held) != sorted(id(parameter) for parameter in network.parameters()):
        raise Nonconformity("the optimizer does not hold every parameter once; pass it the groups that it is given")
    before = copy.deepcopy(network.state_dict())
    for at in range(2):
        _take_step(config, network, optimizer, at)
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise Nonconformity(f"{name} is not finite after two steps with a learning rate of 0.01")
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-6 and torch.equal(parameter, before[name]):
            raise Nonconformity(f"{name} has a gradient, but does not change in a step")
    twin = copy.deepcopy(network)
    resumed = config.make_optimizer(twin, 0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, its in ((network, optimizer), (twin, resumed)):
        _take_step(config, trained, its, 2)
    if any(not torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True)):
        raise Nonconformity(
            "a step after loading the state_dict differs from the step without interruption; "
            "keep everything that changes in the optimizer's `state`"
        )


def _take_step(config: OptimizerConfig, network: Any, optimizer: torch.optim.Optimizer, at: int) -> None:
    torch.manual_seed(at)
    x = torch.rand(2, 1, 16, 16)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(x), (x[:, 0] > 0.5).long()).backward()  # type: ignore[no-untyped-call]
    config.set_rates(optimizer, at, 10)
    _call("a step ", optimizer.step)


# Datasets


def check_dataset(subject: PartSubject) -> None:
    """Check the splits of a dataset and their samples.

    Raises SkipCheck if an option without a default, such as a folder, is missing or leads to no data.
    """
    required = [option.name for option in subject.signature.options if option.required]
    if missing := [name for name in required if name not in dict(subject.spec.options)]:
        raise SkipCheck(f"option {missing[0]!r} has no default; check it with a value, as in NAME:{missing[0]}=...")
    wiring = [SplitConfig(0, 0.2, "")] if subject.signature.positional else []
    data = _make(subject, *wiring)
    if why := find_splits_error(data):
        raise Nonconformity(why)
    names: dict[str, tuple[str, int]] = {}
    for split, images in data.splits.items():
        for index in {0, len(images) // 2, len(images) - 1}:
            sample = _call(f"image {index} of {split} ", images.__getitem__, index)
            prefix = f"image {index} of {split}: "
            if why := find_sample_error(sample, data.target, data.channels):
                raise Nonconformity(f"{prefix}{why}")
            if names.setdefault(sample.name, (split, index)) != (split, index):
                place = "image {1} of {0}".format(*names[sample.name])
                raise Nonconformity(f"{prefix}its name {format_value(sample.name)} is also that of {place}")
            if not _is_same_sample(sample, images[index]):
                raise Nonconformity(f"{prefix}it differs at the second access; a sample must be the same each time")
        copied = _call(f"pickling {split} ", lambda held: pickle.loads(pickle.dumps(held)), images)  # noqa: S301
        if not _is_same_sample(images[0], copied[0]):
            raise Nonconformity(f"split {split!r} differs after pickling, as workers of a loader receive it")


def _is_same_sample(one: Sample, other: Sample) -> bool:
    return one.name == other.name and torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)
