from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import unetkit
from tests.rounding import assert_equal_to_rounding
from unetkit.errors import BuildError, FileError
from unetkit.rewrites import FOLD_BATCH_NORM, MOVE_PROJECTION, REPARAMETERIZE, Rewrite, fast
from unetkit.tiling.requirements import find_tile_requirements
from unetkit.utils.rounding import FLOAT64_TOLERANCE

PLAIN = "plain:widths=[8,16,32]"
#: A network with batch norms, and with 1x1 convolutions after bilinear upsampling.
ADD: dict[str, Any] = {"encoder": "test_resnet", "fuse": "add", "widths": "64,48,32,16,8"}


def build(encoder: Any = PLAIN, **words: Any) -> Any:
    """Build a network whose batch norms are as after a training; new ones hardly change anything."""
    model = unetkit.build(encoder, seed=0, **words)
    generator = torch.Generator().manual_seed(0)
    for norm in norms_of(model):
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.bias.data.normal_(0, 0.3, generator=generator)
        for tensor in (norm.running_var, norm.weight.data):
            tensor.uniform_(0.5, 1.5, generator=generator)
    # In float32, the rounding of weights that were folded would hide what the outputs differ by.
    return model.double()


def norms_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def done(model: Any) -> dict[str, Rewrite]:
    return {rewrite.name: rewrite for rewrite in model.rewrites}


def difference(one: Any, other: Any, *size: int) -> float:
    """Return the largest difference of the outputs in float64, as a share of their range."""
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        found, expected = (copy.deepcopy(model).eval()(x) for model in (one, other))
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


LINES: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    encoder=st.sampled_from(
        (
            "plain:widths=[8,16,32,32]",
            "test_resnet",
            "test_resnet:output_stride=16",
            "test_efficientnet",
            "test_byobnet",
            "test_vit",
        )
    ),
    up=st.sampled_from(("bilinear", "bilinear:align_corners=true", "nearest", "transposed:groups=2", "pixelshuffle")),
    align=st.sampled_from(("crop", "pad", "resize")),
    fuse=st.sampled_from(("concat", "add", "mean", "max", "attention-gate:norm=batch")),
    block=st.builds(
        "{}:order={},norm={},padding_mode={}".format,
        st.sampled_from(("double", "basic", "bottleneck", "preact")),
        st.sampled_from(("conv-norm-act", "conv-act-norm", "norm-act-conv")),
        st.sampled_from(("batch", "batch", "group", "none")),
        st.sampled_from(("zeros", "reflect")),
    ),
    head=st.sampled_from(("conv", "conv-act-norm", "deep-supervision")),
    decode_to=st.sampled_from((1, 2)),
)


@settings(max_examples=5, derandomize=True, phases=(Phase.generate,))
@given(LINES)
def test_outputs_are_equal_for_any_parts(words: dict[str, Any]) -> None:
    model = build(**words)
    rewritten = fast(model)
    assert not any(rewrite.left_out for rewrite in rewritten.rewrites)
    assert difference(rewritten, model, 61, 83) < FLOAT64_TOLERANCE
    if "norm=batch" in words["block"] and "conv-act-norm" not in words["block"]:
        assert len(norms_of(rewritten)) < len(norms_of(model))


def test_all_that_can_be_rewritten_is() -> None:
    model = build(**ADD)
    rewritten = fast(model)
    assert not norms_of(rewritten)
    assert len(done(rewritten)[FOLD_BATCH_NORM.name].places) == len(norms_of(model))
    moved = [f"stages.{i}.fusion.project_x" for i, stage in enumerate(model.stages) if _projects(stage)]
    assert moved
    assert done(rewritten)[MOVE_PROJECTION.name].places == tuple(moved)
    assert all(0 <= rewrite.difference < FLOAT64_TOLERANCE for rewrite in rewritten.rewrites)
    assert f"{len(norms_of(model))} (encoder.model.conv1.1, " in str(rewritten.rewrites[0])
    assert rewritten.head.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert unetkit.trace(rewritten, 64).macs < unetkit.trace(model, 64).macs


def _projects(stage: Any) -> bool:
    return stage.fusion is not None and isinstance(stage.fusion.project_x, nn.Conv2d)


def test_the_given_model_is_unchanged_and_still_training() -> None:
    model = build(**ADD).train()
    model.head.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        rewritten = unetkit.fast(model)
    assert not any(parameter.is_inference() for parameter in rewritten.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in rewritten.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert not rewritten.head.conv.weight.requires_grad
    assert rewritten.stages[0].block[0].conv.weight.requires_grad


@pytest.mark.slow
def test_it_composes_with_tiles_compile_and_export(tmp_path: Path) -> None:
    import onnxruntime

    model = build("plain:widths=[8,16]", fuse="add").float().eval()
    rewritten = fast(model)
    assert find_tile_requirements(rewritten) == find_tile_requirements(model)
    assert rewritten.plan == model.plan
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(rewritten, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(sizes,))
    compiled = torch.compile(rewritten, backend="eager", fullgraph=True, dynamic=True)
    torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in ((64, 64), (77, 51)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = model(x)
            for runnable in (rewritten, compiled, program.module()):
                assert_equal_to_rounding(runnable(x), expected, model)
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_equal_to_rounding(torch.from_numpy(logits), expected, model)


@pytest.mark.slow
def test_it_takes_what_load_and_compile_and_from_smp_return(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    model = build(**ADD)
    unetkit.save(model, tmp_path / "model.safetensors")
    compiled: Any = torch.compile(unetkit.load(tmp_path / "model.safetensors"))
    rewritten = fast(compiled)
    assert difference(rewritten, model, 64, 64) < FLOAT64_TOLERANCE
    theirs = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(32, 16, 8, 8, 8))
    with pytest.raises(BuildError, match="from_smp"):
        fast(theirs)
    assert not norms_of(fast(unetkit.from_smp(theirs)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    model = build(**ADD).to(dtype).eval()
    rewritten = fast(model)
    assert {parameter.dtype for parameter in rewritten.parameters()} == {dtype}
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    with torch.no_grad():
        found, expected = rewritten(x).double(), model.double()(x.double())
    assert (found - expected).abs().max() < 8 * len([*model.modules()]) ** 0.5 * torch.finfo(dtype).eps * expected.std()


@pytest.mark.slow
def test_modules_of_timm_reparameterize_themselves() -> None:
    model = build("test_byobnet")  # which has none
    assert REPARAMETERIZE.name not in done(fast(model))
    model = build("repvgg_a0", decode_to=8)
    rewritten = fast(model)
    assert len(done(rewritten)[REPARAMETERIZE.name].places) == 22
    assert not norms_of(rewritten)
    assert torch.get_default_dtype() == torch.float32


class ReadsItsWeights(nn.Module):
    """A block whose forward also reads the weight of its convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.factor = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.factor(self.norm(self.conv(x))) * self.conv.weight.mean()
        return out


class ReadsItsNorm(ReadsItsWeights):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.factor(self.norm(self.conv(x))) + self.norm.get_buffer("running_mean").mean()
        return out


class UsesItTwice(ReadsItsWeights):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        out: Tensor = self.factor(self.norm(x)) + x
        return out


@pytest.mark.parametrize("block", [ReadsItsWeights, ReadsItsNorm])
def test_a_rewrite_that_changes_the_outputs_is_left_out(block: type[nn.Module]) -> None:
    model = build(block=["double", block])
    rewritten = fast(model)
    assert done(rewritten)[FOLD_BATCH_NORM.name].left_out == ("stages.1.block.norm",)
    assert "left out 1 (stages.1.block.norm)" in str(done(rewritten)[FOLD_BATCH_NORM.name])
    assert [*dict(rewritten.named_modules()).values()].count(rewritten.stages[1].block.norm) == 1
    assert norms_of(rewritten) == [rewritten.stages[1].block.norm]
    assert difference(rewritten, model, 64, 64) < FLOAT64_TOLERANCE


def test_layers_with_hooks_parametrizations_or_further_uses_are_left_alone() -> None:
    model = build(block=UsesItTwice)
    assert fast(model).rewrites[0].left_out == ()
    assert len(norms_of(fast(model))) == len(model.stages)
    model = build()
    weight_norm(model.stages[0].block[0].conv)
    model.stages[0].block[1].norm.register_forward_hook(lambda module, args, out: out + 1)
    rewritten = fast(model)
    assert norms_of(rewritten) == [unit.norm for unit in rewritten.stages[0].block]
    assert difference(rewritten, model, 61, 83) < FLOAT64_TOLERANCE


def test_shared_layers_and_tied_weights() -> None:
    model = build("plain:widths=[16,16,16]", widths="16,16", fuse="add")
    model.stages[0].block[1] = model.stages[1].block[1]  # called twice
    model.stages[0].block[0].conv.weight = model.stages[1].block[0].conv.weight
    rewritten = fast(model)
    assert norms_of(rewritten) == [rewritten.stages[1].block[1].norm]
    assert difference(rewritten, model, 61, 83) < FLOAT64_TOLERANCE


def test_a_network_without_anything_to_rewrite_is_stored_in_channels_last() -> None:
    (only,) = fast(build(block="double:norm=group", encoder="plain:widths=[4,8],norm=group")).rewrites
    assert "channels_last" in str(only)


def test_a_network_that_fails_in_float64_is_left_alone() -> None:
    class Narrow(nn.Conv2d):
        def __init__(self, in_channels: int, classes: int) -> None:
            super().__init__(in_channels, classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    rewritten = fast(build(head=Narrow))
    assert norms_of(rewritten)
    assert "float64" in str(rewritten.rewrites[0])


def test_valid_convolutions_and_a_batch_norm_of_batch_statistics() -> None:
    model = build("plain:widths=[4,8],padding=0", block="double:padding=0", align="crop", up="transposed")
    for norm in norms_of(model)[:2]:
        norm.running_mean = norm.running_var = None
    rewritten = fast(model)
    assert len(norms_of(rewritten)) == 2
    assert difference(rewritten, model, 64, 64) < FLOAT64_TOLERANCE


def test_what_cannot_be_rewritten_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="meta"):
        fast(unetkit.build(PLAIN, device="meta"))
    for wrong in (nn.Conv2d(1, 1, 1), "--encoder resnet18"):
        with pytest.raises(BuildError, match="takes a"):
            fast(wrong)  # type: ignore[type-var]
    with pytest.raises(FileError, match="fast"):
        unetkit.save(fast(build()), tmp_path / "model.safetensors")
