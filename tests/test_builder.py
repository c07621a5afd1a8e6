"""Parts made of parts: blocks that follow one another, parts that make others, the maps that a wrapper works on."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unetkit
from unetkit.errors import BuildError, FileError, OptionError, PluginError, UnknownNameError
from unetkit.parts.blocks import BasicBlock, DoubleConv
from unetkit.plan import PartSpec, Plan
from unetkit.plugins import load_parts
from unetkit.registry import Parts

PLAIN = "plain:widths=[4,8]"


def test_blocks_follow_one_another() -> None:
    model: Any = unetkit.build(PLAIN, block="double:norm=none+basic+double:act=gelu", widths=(6,), seed=0)
    first, second, third = block = model.stages[0].block
    assert [type(b) for b in block] == [DoubleConv, BasicBlock, DoubleConv]
    assert [m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d)] == [12, 6, 6, 6, 6, 6]
    assert isinstance(second.shortcut, nn.Identity)
    assert str(model.plan) == f"--encoder '{PLAIN}' --block double:norm=none+basic+double:act=gelu --widths 6 --seed 0"
    x = torch.randn(2, 12, 7, 5)
    assert torch.equal(block.eval()(x), third(second(first(x))))
    assert tuple(model(torch.randn(2, 3, 9, 11)).shape) == (2, 2, 9, 11)


def test_each_level_has_its_own_chain_and_each_link_its_canonical_form() -> None:
    model: Any = unetkit.build(
        "plain:widths=[4,8,16]", block="double:norm=batch+basic:order=conv-norm-act/preact", device="meta"
    )
    assert str(model.plan).endswith("--block double+basic/preact")
    assert Plan.parse(str(model.plan)) == model.plan
    assert [type(stage.block).__name__ for stage in model.stages] == ["BlockSequence", "PreActBlock"]


def test_a_chain_may_hold_python_objects() -> None:
    class Twice(nn.Module):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__()
            assert in_channels == out_channels

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    spec = PartSpec.of("double") + Twice + "basic"
    model: Any = unetkit.build(PLAIN, block=spec)
    assert [type(b).__name__ for b in model.stages[0].block] == ["DoubleConv", "Twice", "BasicBlock"]
    assert str(model.plan).endswith("--block 'double+<test_a_chain_may_hold_python_objects.<locals>.Twice>+basic'")
    with pytest.raises(unetkit.UnetkitError, match="was given as a Python object"):
        unetkit.save(model, "never.safetensors")


def test_a_chain_is_valid_where_a_link_is() -> None:
    model: Any = unetkit.build(PLAIN, block="double+double:padding=0", align="crop", device="meta")
    assert model.stages[0].block.valid
    assert model.valid
    assert not unetkit.build(PLAIN, block="double+basic", device="meta").valid


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"up": "bilinear+nearest"}, "--up bilinear+nearest: one upsampler "),
        ({"head": "conv+conv"}, "--head conv+conv: one head "),
        ({"block": "double+"}, "a part is empty"),
        ({"block": "+double"}, "a part is empty"),
        ({"block": "double+bass"}, "did you mean basic"),
        ({"block": "double+basic:nrm=group"}, "did you mean norm"),
    ],
)
def test_what_does_not_follow(words: dict[str, Any], message: str) -> None:
    with pytest.raises(unetkit.UnetkitError) as error:
        unetkit.build(PLAIN, device="meta", **words)
    assert message in str(error.value)


def test_a_line_is_the_line_of_the_command() -> None:
    model = unetkit.build(" --encoder plain:widths=[4,8] --fuse add --classes 3", fuse="max", device="meta")
    assert str(model.plan) == "--encoder 'plain:widths=[4,8]' --fuse max --classes 3"
    with pytest.raises(unetkit.UnetkitError, match=r"no option 'encodr' .did you mean encoder"):
        unetkit.build("--encodr plain")


@pytest.mark.parametrize("part", [nn.Conv2d(4, 2, 1), nn.Identity()])
def test_an_instance_is_no_part(part: nn.Module) -> None:
    with pytest.raises(
        OptionError, match=f"^--head: an instance of {type(part).__name__} is not a part: give its class"
    ):
        unetkit.build(PLAIN, head=part)


@pytest.mark.parametrize(
    ("channels", "strides"),
    [(torch.tensor([4, 8]), (1, 2)), ((4, 8), torch.tensor([1, 2])), (8, 2), ((4.0, 8), (1, 2)), ((4, 8), (2, 1))],
    ids=str,
)
def test_an_encoder_declares_integers(channels: Any, strides: Any) -> None:
    class Declaring(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.channels, self.strides = channels, strides

    with pytest.raises(BuildError, match=r"Declaring> declares channels "):
        unetkit.build(Declaring, device="meta")


def test_a_part_alone() -> None:
    block = unetkit.make_part("block", "double:norm=none", 3, 5)
    assert tuple(block(torch.randn(1, 3, 4, 4)).shape) == (1, 5, 4, 4)
    assert type(unetkit.make_part("fusions", "add", 4, 4)).__name__ == "Add"
    assert unetkit.make_part("encoder", "test_resnet:output_stride=16", 1).strides == (2, 4, 8, 16)
    chain = unetkit.make_part("blocks", "double+basic", 3, 5)
    assert [type(b).__name__ for b in chain.children()] == ["DoubleConv", "BasicBlock"]
    assert isinstance(unetkit.make_part("head", nn.Conv2d, 4, 2, 1), nn.Conv2d)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("fuse", "ad", 1, 1), UnknownNameError, "--fuse ad: no fusion is called 'ad'"),
        (("losses", "dice"), OptionError, "losses: make_part "),
        (("up", "transposed:kernl=2", 4, 2.0), OptionError, "transposed has no option 'kernl'"),
        (("up", "transposed", 4, 1.5), BuildError, " upsample by 1.5"),
        (("fuse", "add", 4), BuildError, "--fuse add (of unetkit) with the positional arguments 4 failed: TypeError"),
    ],
)
def test_a_part_that_cannot_be_made(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        unetkit.make_part(*arguments)
    assert message in str(error.value)


OUTER = '''
import unetkit
from torch import nn

class Outer(nn.Module):
    """A block that makes another."""

    def __init__(self, in_channels: int, out_channels: int, *, of: str = "inner") -> None:
        super().__init__()
        self.block = unetkit.make_part("block", of, in_channels, out_channels)

    def forward(self, x):
        return self.block(x)

@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("outer", Outer)
'''
INNER = '''
import unetkit
from torch import nn

class Inner(nn.Conv2d):
    """One 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("inner", Inner)
'''


@pytest.fixture
def nested(tmp_path: Path) -> Parts:
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER)
    return load_parts([tmp_path / "outer.py", tmp_path / "inner.py"])


def test_a_part_within_a_part_is_looked_up_where_the_build_looks(nested: Parts, tmp_path: Path) -> None:
    model: Any = unetkit.build(PLAIN, block="outer", parts=nested)
    assert type(model.stages[0].block.block).__name__ == "Inner"
    assert [plugin.name for plugin in model.plugins] == ["outer", "inner"]
    with pytest.raises(UnknownNameError, match="no block is called 'inner'"):
        unetkit.make_part("block", "inner", 2, 2)
    with pytest.raises(UnknownNameError, match="no block is called 'inner'"):
        unetkit.build(PLAIN, block="outer", parts=load_parts([tmp_path / "outer.py"]))


WITHIN = """
import unetkit
from torch import nn

class Within(nn.Module):
    \"\"\"A block that holds a whole network.\"\"\"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = unetkit.build(
            "plain:widths=[2,4]", block="inner", in_channels=in_channels, classes=out_channels, seed=1
        )

    def forward(self, x):
        return self.net(x)

@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("within", Within)
"""


@pytest.mark.slow
def test_a_part_may_build_a_network(tmp_path: Path) -> None:
    for name, source in (("within", WITHIN), ("inner", INNER)):
        (tmp_path / f"{name}.py").write_text(source)
    parts = load_parts([tmp_path / "within.py", tmp_path / "inner.py"])
    model: Any = unetkit.build(PLAIN, block="within", parts=parts, seed=0)
    again: Any = unetkit.build(PLAIN, block="within", parts=parts, seed=0)
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert [plugin.name for plugin in model.plugins] == ["within", "inner"]


def test_a_model_knows_whose_parts_it_has(nested: Parts) -> None:
    assert unetkit.build(PLAIN, parts=nested).plugins == ()
    (inner,) = unetkit.build(PLAIN, block="double+inner", parts=nested).plugins
    assert (inner.name, inner.version, inner.distribution, Path(inner.target).name) == ("inner", "", "", "inner.py")


def test_the_maps_of_every_stage() -> None:
    model = unetkit.build("plain:widths=[4,8,16]", seed=0).eval()
    x = torch.randn(2, 3, 20, 12)
    logits, maps = model.forward_features(x)
    assert torch.equal(logits, model(x))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 10, 6), (2, 4, 20, 12)]
    assert torch.equal(model.head(maps[-1]), logits)


def test_the_maps_of_a_padded_input() -> None:
    model = unetkit.build("test_resnet", seed=0).eval()
    x = torch.randn(1, 3, 5, 7)
    logits, maps = model.forward_features(x)
    assert torch.equal(logits, model(x))
    assert tuple(logits.shape) == (1, 2, 5, 7)
    assert model.padded_size((5, 7)) == tuple(maps[-1].shape[-2:]) == (32, 32)


def test_a_wrapper_whose_part_the_line_names_may_refuse(tmp_path: Path) -> None:
    source = INNER + (
        "\nfrom unetkit.errors import BuildError\n\n@unetkit.hookimpl\ndef unetkit_wrap_model(plan):\n"
        "    def wrap(model):\n        raise {error}\n    return wrap\n"
    )
    (tmp_path / "one.py").write_text(source.format(error="BuildError('only four levels; give levels=4')"))
    with pytest.raises(BuildError, match=r"^only four levels; give levels=4$"):
        unetkit.build(PLAIN, block="inner", parts=load_parts([tmp_path / "one.py"]))
    (tmp_path / "two.py").write_text(source.format(error="ZeroDivisionError('no')"))
    with pytest.raises(PluginError, match=r"^plugin two .*: ZeroDivisionError: no$"):
        unetkit.build(PLAIN, block="inner", parts=load_parts([tmp_path / "two.py"]))


def test_a_wrapper_of_others_is_left_out_where_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.py").write_text(
        "import unetkit\n\n@unetkit.hookimpl\ndef unetkit_wrap_model(plan):\n    raise unetkit.UnetkitError('no')\n"
    )
    model = unetkit.build(PLAIN, parts=load_parts([tmp_path / "one.py"]))
    assert type(model).__name__ == "UNet"
    assert "plugin one failed in unetkit" in capsys.readouterr().err


SEVERAL = (
    INNER
    + """
class Several(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.extra = nn.Conv2d(8, network.resolved_plan.classes, 1)

    def forward(self, x):
        if not self.training:
            return self.network(x)
        logits, maps = self.network.forward_features(x)
        return logits, self.extra(maps[0])

@unetkit.hookimpl
def unetkit_wrap_model(plan):
    return Several if plan.block[0].name == "inner" else None
"""
)


@pytest.mark.slow
def test_a_model_with_several_outputs_in_training(tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    parts = load_parts([tmp_path / "several.py"])
    model = unetkit.build("plain:widths=[4,8,16]", block="inner", parts=parts)
    traced = unetkit.trace(model, 32)
    (note,) = traced.notes
    assert "Several" in note
    assert traced.rows[-1].what == "operations outside the network's parts"
    assert traced.rows[-1].parameters == 8 * 2 + 2
    assert traced.parameters == sum(p.numel() for p in model.parameters())
    from unetkit.summary.sanity_check import run_sanity_check

    assert run_sanity_check(model, 32).passed
    unetkit.save(model, tmp_path / "m.safetensors")
    loaded = unetkit.load(tmp_path / "m.safetensors", parts=parts)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model.eval()(x), loaded.eval()(x))
    assert torch.equal(model.train()(x)[1], loaded.train()(x)[1])
    assert unetkit.build("plain:widths=[4,8,16]", parts=parts).plugins == ()


def test_a_block_with_the_wrong_channels_is_named_at_build(tmp_path: Path) -> None:
    source = INNER.replace("in_channels, out_channels, 1)", "in_channels, out_channels + 1, 1)")
    (tmp_path / "wrong.py").write_text(source)
    with pytest.raises(BuildError, match=r"^stages\.0\.block \(--block inner\) .* 4 .* 5$"):
        unetkit.build(PLAIN, block="inner", parts=load_parts([tmp_path / "wrong.py"]))


BROKEN = {
    "mistake": (
        "x + self.q",
        r"^--fuse broken: stages\.0\.fusion .*'q'\) in .*broken\.py:11$",
    ),
    "channels": (
        "self.conv(x)",
        r"^--fuse broken: stages\.0\.fusion\.conv, .* 3 channels, gets 8 .*broken\.py:11$",
    ),
    "none": ("None", r"^stages\.0\.fusion \(--fuse broken\) gives no tensor .*\(B, C, H, W\)$"),
    "pair": (
        "(x, skip)",
        r"^stages\.0\.fusion \(--fuse broken\) gives 2 tensors .*\(B, C, H, W\)$",
    ),
    "flat": ("x.flatten(2)", r"shape 1x8x65536 .*\(B, C, H, W\)$"),
    "nhwc": ("x.permute(0, 2, 3, 1)", r"out_channels=8, .* 256; .*NHWC"),
    "by chance": ("x[:, :5, :8, :8]", r"declares out_channels=8, but gives 5$"),
    "size": ("x[..., 1:, 1:]", r"255x255 .* 256x256; a fusion must keep "),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_what_a_fusion_does_wrong_is_said_of_it(case: str, tmp_path: Path) -> None:
    source, message = BROKEN[case]
    (tmp_path / "broken.py").write_text(
        "import unetkit\nfrom torch import nn\n\nclass Broken(nn.Module):\n"
        "    def __init__(self, x_channels: int, skip_channels: int) -> None:\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 8, 1)\n"
        f"        self.out_channels = x_channels\n\n    def forward(self, x, skip):\n        return {source}\n\n"
        "@unetkit.hookimpl\ndef unetkit_register(parts):\n    parts.fusions.add('broken', Broken)\n"
    )
    with pytest.raises(BuildError, match=message) as error:
        unetkit.build(PLAIN, fuse="broken", parts=load_parts([tmp_path / "broken.py"]))
    if case in ("mistake", "channels"):
        assert "broken.py" in "".join(traceback.format_exception(error.value)), "-v leads to the author's own line"


class Strided(nn.Module):
    """An encoder of strides 1 and 2."""

    def __init__(self, in_channels: int, *, strides: tuple[int, int] = (1, 2), listed: bool = True) -> None:
        super().__init__()
        self.channels, self.strides, self.listed = (4, 8), strides, listed
        self.one, self.two = nn.Conv2d(in_channels, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Any:
        first = self.one(x)
        return [first, self.two(first)] if self.listed else {"maps": first}


def test_what_an_encoder_declares_is_held_to_its_maps() -> None:
    unetkit.build(Strided, device="meta")
    with pytest.raises(BuildError, match=r"stride 2 .* 256x256$"):
        unetkit.build(PartSpec.of(Strided, {"strides": (2, 4)}), device="meta")
    with pytest.raises(BuildError, match=r"list of maps of shape \(B, C, H, W\)$"):
        unetkit.build(PartSpec.of(Strided, {"listed": False}), device="meta")


class Taking(nn.Module):
    """A fusion that keeps its options as they come.

    Args:
        act: a class.
        sizes: kernels of branches.
        extra: anything.
    """

    def __init__(
        self, x_channels: int, skip_channels: int, *, act: Any = nn.ReLU, sizes: Any = (3,), extra: Any = None
    ) -> None:
        super().__init__()
        self.out_channels, self.taken = x_channels, (act, sizes, extra)
        self.act, self.project = act(), nn.Conv2d(skip_channels, x_channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return self.act(x + self.project(skip))


def test_a_class_receives_the_objects_that_its_options_are_given() -> None:
    sizes, table = [12], torch.ones(3)
    given = PartSpec.of(Taking, {"act": nn.SiLU, "sizes": sizes, "extra": table})
    model: Any = unetkit.build("plain:widths=[4,8]", fuse=given)
    act, passed, extra = model.stages[0].fusion.taken
    assert (act, passed is sizes, extra is table) == (nn.SiLU, True, True)
    assert str(model.plan) == "--encoder 'plain:widths=[4,8]' --fuse '<Taking>:act=<SiLU>,extra=<Tensor>,sizes=[12]'"
    with pytest.raises(OptionError, match="is not a part"):
        Plan.parse(str(model.plan))
    again: Any = unetkit.build(copy.deepcopy(model.plan))
    assert again.plan != model.plan  # tensors are equal only to themselves
    other: Any = unetkit.build(fuse=PartSpec.of(Taking, {"extra": None, "act": nn.ReLU}), encoder="plain:widths=[4,8]")
    assert other.stages[0].fusion.taken == (nn.ReLU, (3,), None)
    assert str(other.plan) == "--encoder 'plain:widths=[4,8]' --fuse '<Taking>'"
    two: Any = unetkit.build("plain:widths=[4,6,8]", fuse=[PartSpec.of(Taking, {"extra": e}) for e in ("1", 1)])
    assert [stage.fusion.taken[2] for stage in two.stages] == ["1", 1]
    with pytest.raises(OptionError, match=r"'act' is annotated Any"):
        unetkit.build("plain", fuse=PartSpec.of(Taking).with_options({"act": "silu"}))


def test_a_part_with_a_name_is_given_objects_that_have_no_text(tmp_path: Path) -> None:
    plan = Plan.of(encoder=PartSpec.of("test_resnet", {"act_layer": nn.SiLU}), in_channels=1)
    model: Any = unetkit.build(plan)
    assert any(isinstance(module, nn.SiLU) for module in model.encoder.modules())
    assert "act_layer=<SiLU>" in str(model.plan)
    with pytest.raises(OptionError, match="is an object, which only Python can give"):
        Plan.parse(str(model.plan))
    with pytest.raises(FileError, match="given as a Python object"):
        unetkit.save(model, tmp_path / "a.safetensors")
    with pytest.raises(OptionError, match=r"norm must be one of .*; got <SiLU>$"):
        unetkit.build("plain", block=PartSpec.of("double", {"norm": nn.SiLU}))
    with pytest.raises(BuildError, match="options that are text"):
        unetkit.build(plan, model="smp/unet")
