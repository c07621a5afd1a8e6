from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from timm.layers import convert_sync_batchnorm
from timm.utils import reparameterize_model
from torch import Tensor, nn

import unetkit
from tests.test_builder import INNER
from unetkit import make_part
from unetkit import serialization as files
from unetkit.errors import FileError, OptionError, PluginError, UnetkitError, UnknownNameError
from unetkit.parts.blocks import DoubleConv
from unetkit.plan import Plan
from unetkit.plugin_files import module_name
from unetkit.registry import Parts
from unetkit.serialization import compute_digest

SMALL = "plain:widths=[8,16,32]"


def saved(path: Path, encoder: str = SMALL, **words: Any) -> Any:
    model = unetkit.build(encoder, seed=3, **words)
    unetkit.save(model, path)
    return model


@cache
def small_file() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        saved(path)
        return path.read_bytes()


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(FileError) as caught:
        unetkit.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def refused_save(model: nn.Module, path: Path) -> str:
    with pytest.raises(FileError) as caught:
        unetkit.save(model, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        # Copies, since what it gives are views of a file that the tests write over.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118


def seal(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of our format whose digest is right, whatever its content is."""
    data = safetensors.torch.save(tensors, metadata | {"sha256": "0" * 64})
    at = data.index(b'"sha256":"') + len(b'"sha256":"')
    path.write_bytes(data[:at] + compute_digest(data, at) + data[at + 64 :])


def assert_same(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in other.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        {"encoder": SMALL},
        {"encoder": SMALL, "in_channels": 5, "classes": 7, "fuse": "add/concat", "up": "transposed", "size": 64},
        {"recipe": "unet-same", "encoder": SMALL, "widths": [16, 8]},
        {"encoder": "test_resnet", "block": "basic:norm=group"},
        {"encoder": "resnet18"},
    ],
)
def test_a_loaded_model_is_equal_to_the_bit(tmp_path: Path, words: dict[str, Any]) -> None:
    model = saved(tmp_path / "model.safetensors", **words)
    x = torch.rand(2, model.resolved_plan.in_channels, 64, 64)
    model(x)  # moves the norms' statistics
    unetkit.save(model, tmp_path / "model.safetensors")
    loaded = unetkit.load(tmp_path / "model.safetensors")
    assert_same(model, loaded)
    assert (loaded.plan, str(loaded.plan)) == (model.plan, str(model.plan))
    assert loaded.training
    assert torch.equal(model(x), loaded(x))
    assert torch.equal(model.eval()(x), loaded.eval()(x))


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = saved(path)
    tensors, metadata = opened(path)
    assert tensors.keys() == model.state_dict().keys()
    assert (metadata["format"], metadata["version"]) == ("unetkit", "1")
    assert Plan.parse(metadata["plan"]) == model.plan
    assert metadata.keys() - {"sha256"} == {"format", "version", "plan", "plugins", "unetkit", "torch", "timm"}
    assert metadata["plugins"] == "[]"


def test_saving_twice_gives_the_same_model_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.safetensors"
    model = saved(path)
    unetkit.save(model, str(path))
    assert_same(model, unetkit.load(str(path)))
    assert os.listdir(path.parent) == [path.name]


def test_loading_draws_no_random_weights(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    unetkit.load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_dtypes_are_kept_and_trainability_is_as_built(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = unetkit.build(SMALL).to(torch.bfloat16)
    model.head.double()
    model.encoder.requires_grad_(False)
    unetkit.save(model, path)
    loaded = unetkit.load(path)
    assert next(loaded.encoder.parameters()).dtype == torch.bfloat16
    assert next(loaded.head.parameters()).dtype == torch.float64
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same(model.requires_grad_(True), loaded)


def test_channels_last_and_overlapping_tensors_are_written_contiguous(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = unetkit.build(SMALL).to(memory_format=torch.channels_last)
    norm = model.get_submodule("stages.0.block.0.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data = norm.weight.data  # two names, one memory
    unetkit.save(model, path)
    loaded = unetkit.load(path)
    assert_same(model, loaded)
    assert all(tensor.is_contiguous() for tensor in loaded.state_dict().values())


class Tied(nn.Module):
    """An encoder with one weight under two names, a buffer that no file holds, and a tensor in a list."""

    def __init__(self, in_channels: int, *, scale: float = 0.5, on_meta: bool = True) -> None:
        super().__init__()
        self.channels, self.strides = (4, 4, 4), (1, 2, 4)
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.second.weight = self.first.weight
        if on_meta:
            self.register_buffer("scale", torch.tensor(scale), persistent=False)
            self.shift = [{"by": torch.tensor(2 * scale)}]
        else:
            self.scale = float(self.first.weight.new_tensor(scale).item())
            self.shift = [{"by": torch.zeros(())}]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x) * self.scale + self.shift[0]["by"]
        y = self.first(x)
        return [x, y, self.second(y)]


@pytest.fixture
def parts() -> Parts:
    parts = unetkit.load_parts()
    parts.encoders.add("tied", Tied)
    return parts


@pytest.mark.parametrize("options", ["scale=0.25", "on_meta=false"])
def test_what_no_file_holds_is_built_and_ties_stay_tied(tmp_path: Path, parts: Parts, options: str) -> None:
    path = tmp_path / "model.safetensors"
    model = unetkit.build(f"tied:{options}", parts=parts)
    unetkit.save(model, path)
    loaded: Any = unetkit.load(path, parts=parts)
    assert_same(model, loaded)
    assert loaded.encoder.first.weight is loaded.encoder.second.weight
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.eval()(x), loaded.eval()(x))


def test_a_compiled_model_is_saved_as_what_it_compiles(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = unetkit.build(SMALL)
    compiled: Any = torch.compile(model, backend="eager")
    unetkit.save(compiled, path)
    assert_same(model, unetkit.load(path))


def test_the_device_is_that_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    loaded = unetkit.load(tmp_path / "model.safetensors", device="meta")
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"meta"}


@pytest.mark.slow
def test_pretrained_stays_in_the_plan_and_is_not_loaded_again(tmp_path: Path, parts: Parts) -> None:
    weights, path = tmp_path / "weights.safetensors", tmp_path / "model.safetensors"
    encoder: Any = unetkit.build("test_resnet").encoder
    safetensors.torch.save_file(encoder.model.state_dict(), weights)
    parts.recipes.add("mine", lambda: Plan.of(encoder="test_resnet", pretrained=weights))
    for model in (unetkit.build("test_resnet", pretrained=weights), unetkit.build(recipe="mine", parts=parts)):
        unetkit.save(model, path)
        kept = weights.rename(tmp_path / "kept")
        loaded: Any = unetkit.load(path, parts=parts)
        kept.rename(weights)
        assert loaded.plan == model.plan
        assert_same(model, loaded)
        assert loaded.encoder.weights_from == str(path)


def test_a_model_without_a_plan_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    message = refused_save(nn.Conv2d(1, 1, 1), path)
    assert "a Conv2d has no plan" in message
    assert not path.exists()


def test_a_part_given_as_an_object_is_not_saved(tmp_path: Path) -> None:
    message = refused_save(unetkit.build(Tied), tmp_path / "model.safetensors")
    assert message.startswith("--encoder <Tied> ")
    assert "register it in a plugin" in message


def test_a_model_on_meta_is_not_saved(tmp_path: Path) -> None:
    message = refused_save(unetkit.build(SMALL, device="meta"), tmp_path / "model.safetensors")
    assert "meta device" in message


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = unetkit.build(SMALL)
    for path in (tmp_path / "file" / "model.safetensors", tmp_path / "file" / "deeper" / "model.safetensors", tmp_path):
        assert refused_save(model, path).startswith(f"{path} cannot be written: ")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "model.safetensors"
    model = saved(path)

    def fail(*args: object) -> bytes:
        raise error

    monkeypatch.setattr(files, "compute_digest", fail)
    with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt):
        unetkit.save(unetkit.build(SMALL), path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [path.name]
    assert_same(model, unetkit.load(path))


INTERRUPTED = f"""
import time, unetkit
from unetkit import serialization as files

def halfway(*args):
    print("halfway", flush=True)
    time.sleep(600)

files.compute_digest = halfway
unetkit.save(unetkit.build("{SMALL}"), "model.safetensors")
"""


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:  # an interrupt is tried above
    path = tmp_path / "model.safetensors"
    model = saved(path)
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        assert len(os.listdir(tmp_path)) == 2
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert_same(model, unetkit.load(path))


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "without config.json and model.safetensors" in refusal(tmp_path)
    assert " cannot be read (" in refusal(tmp_path / ("long" * 100))


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert refusal(path).endswith("is empty; save the model again")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("kind", ["zip", "legacy", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_a_pickle_is_refused_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | int) -> None:
    path = tmp_path / "model.safetensors"
    monkeypatch.chdir(tmp_path)
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps({"weight": Attack()}, kind))
    else:
        torch.save({"weight": Attack()}, path, _use_new_zipfile_serialization=kind == "zip")
    assert " is a pickle, which can run code" in refusal(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("content", [b"some text, no model at all", b"PK\x03\x04 another archive", bytes(100)])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} is not a .safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, path, metadata)
    message = refusal(path)
    assert "does not contain the plan of a model" in message
    assert message.endswith("--pretrained")


def test_a_header_that_starts_as_a_pickle_does_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in range(640):
        data = safetensors.torch.save({"weight": torch.zeros(1)}, {"note": "x" * length})
        if data.startswith(b"\x80\x02"):
            break
    path.write_bytes(data)
    assert data.startswith(b"\x80\x02")
    assert "it does not contain the plan of a model" in refusal(path)


def test_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    tensors, metadata = opened(path)
    seal(path, tensors, metadata | {"version": "2"})
    assert " is of format version 2, and unetkit " in refusal(path)
    assert refusal(path).endswith(" reads 1; install a newer unetkit")


def test_a_changed_tensor_plan_or_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    data, (tensors, metadata) = path.read_bytes(), opened(path)
    assert data.count(b"[8,16,32]") == 1
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "was changed after it was saved" in refusal(path)
    path.write_bytes(data.replace(b"[8,16,32]", b"[8,16,33]"))
    assert "was changed after it was saved" in refusal(path)
    path.write_bytes(data.replace(b'"head.conv.bias"', b'"head.conv.bios"'))
    assert "was changed after it was saved" in refusal(path)
    tensors["head.conv.other"] = tensors.pop("head.conv.bias")
    safetensors.torch.save_file(tensors, path, metadata)
    assert "was changed after it was saved" in refusal(path)
    path.write_bytes(data)
    unetkit.load(path)


def test_a_file_cut_short_says_so(tmp_path: Path) -> None:
    path, data = tmp_path / "model.safetensors", small_file()
    header = 8 + int.from_bytes(data[:8], "little")
    for end in (1, 8, 9, header - 1, header, header + 1, len(data) - 1):
        path.write_bytes(data[:end])
        assert "is cut short" in refusal(path), end


def test_tensors_that_the_plan_does_not_build(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    tensors, metadata = opened(path)
    bias = tensors.pop("head.conv.bias")
    seal(path, tensors, metadata)
    assert f"unetkit {metadata['unetkit']}, torch {metadata['torch']}, " in refusal(path)
    assert 'Missing key(s) in state_dict: "head.conv.bias"' in refusal(path)
    seal(path, {**tensors, "head.conv.bias": bias.repeat(2)}, metadata)
    assert "size mismatch for head.conv.bias" in refusal(path)
    seal(path, {**tensors, "head.conv.bias": bias, "other": bias + 1}, metadata)
    assert 'Unexpected key(s) in state_dict: "other"' in refusal(path)


def test_a_part_that_is_not_installed_is_named(tmp_path: Path, parts: Parts) -> None:
    path = tmp_path / "model.safetensors"
    unetkit.save(unetkit.build("tied", parts=parts), path)
    with pytest.raises(UnknownNameError, match="no encoder is called 'tied'") as caught:
        unetkit.load(path)
    assert str(caught.value).startswith(f"{path} cannot be rebuilt: --encoder tied: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plan", ["", "--no such", "--encoder plain:widths=[1", "words", '"'])
def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path, plan: str) -> None:
    path = tmp_path / "model.safetensors"
    seal(path, {}, {"format": "unetkit", "version": "1", "plan": plan})
    with pytest.raises(UnetkitError) as caught:
        unetkit.load(path)
    assert str(caught.value).startswith(f"{path} cannot be rebuilt: ")


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"a":{}}', b'{"__metadata__":1}', b"{\xff}", b"[1]", json.dumps({"a": 1}).encode()]
)
def test_a_header_that_makes_no_sense(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(path)


@settings(max_examples=200)
@given(st.data())
def test_a_file_cut_anywhere_is_refused(data: st.DataObject) -> None:
    whole = small_file()
    cut = data.draw(st.one_of(st.integers(0, 20), st.integers(0, 5000), st.integers(0, len(whole) - 1)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(whole[:cut])
        refusal(path)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_a_byte_changed_anywhere_is_refused(data: st.DataObject) -> None:
    whole = bytearray(small_file())
    at = data.draw(st.one_of(st.integers(0, 20), st.integers(0, 5000), st.integers(0, len(whole) - 1)))
    whole[at] ^= data.draw(st.integers(1, 255))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(whole)
        refusal(path)


def test_a_model_that_was_changed_after_it_was_built_is_not_saved(tmp_path: Path) -> None:
    model = unetkit.build("plain:widths=[4,8]")
    model.head = torch.nn.Conv2d(4, 7, 1)
    assert "head.bias is additional to what" in refused_save(model, tmp_path / "m.safetensors")
    model.head = nn.Module()
    assert "head.conv.bias is missing, but" in refused_save(model, tmp_path / "m.safetensors")
    model.head.conv = nn.Conv2d(4, 2, 3)
    wrong = "head.conv.weight is 2x4x3x3, but the plan builds 2x4x1x1"
    assert wrong in refused_save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def double_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def change_timm_scale(model: Any) -> None:
    model.encoder.model.model.blocks[0].attn.scale *= 2


@pytest.mark.parametrize(
    ("encoder", "change", "named"),
    [
        (SMALL, lambda m: setattr(m.stages[0].block[0].conv, "padding_mode", "reflect"), "padding_mode='reflect'"),
        (SMALL, lambda m: m.set_submodule("stages.0.block.0.act", nn.GELU()), "act is GELU, and the plan builds ReLU"),
        (SMALL, lambda m: setattr(m.stages[0].block[0].norm, "eps", 1e-3), "norm has eps=0.001"),
        (SMALL, lambda m: setattr(m.stages[1], "up", make_part("up", "nearest", 16, 2.0)), "up is NearestUpsampler"),
        (SMALL, lambda m: setattr(m.stages[0].up, "align_corners", True), "up has align_corners=True"),
        (SMALL, lambda m: m.stages[0].block.append(nn.Dropout(0.5)), "block has length=3"),
        ("plain:widths=[8,16],dropout=0.1", lambda m: setattr(m.encoder.levels[0][0].dropout, "p", 0.5), "p=0.5"),
        ("test_vit", change_timm_scale, "attn has scale="),
        ("test_resnet", lambda m: m.set_submodule("encoder.model.maxpool", nn.AvgPool2d(2)), "AvgPool2d"),
        (SMALL, lambda m: m.head.register_forward_hook(double_output), "head has the forward hook double_output"),
        (SMALL, lambda m: m.register_forward_pre_hook(double_output), "the model has the forward hook"),
        (SMALL, lambda m: setattr(m.head, "forward", double_output), "head has the forward hook"),
    ],
)
def test_a_setting_that_the_plan_does_not_build_is_not_saved(
    tmp_path: Path, encoder: str, change: Any, named: str
) -> None:
    model = unetkit.build(encoder)
    change(model)
    assert named in refused_save(model, tmp_path / "m.safetensors")


def test_a_setting_of_a_part_of_a_plugin_is_what_it_says_of_itself(tmp_path: Path, parts: Parts) -> None:
    class Scaled(DoubleConv):
        scale, calls = 1.0, 0

        def extra_repr(self) -> str:
            return f"scale={self.scale}"

    parts.blocks.add("scaled", Scaled)
    model = unetkit.build(SMALL, block="scaled", parts=parts)
    model.stages[0].block.calls = 7
    unetkit.save(model, tmp_path / "m.safetensors")
    model.stages[0].block.scale = 2.0
    assert "scale=2.0" in refused_save(model, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "encoder", [SMALL, "test_vit", "test_byobnet", "test_convnext", "test_mambaout", "test_nfnet", "smp/mobilenet_v2"]
)
def test_training_and_what_changes_no_output_can_be_saved(tmp_path: Path, encoder: str) -> None:
    model: Any = unetkit.build(encoder)
    model.train()(torch.rand(2, 3, *model.padded_size((32, 32)))).sum().backward()
    model = convert_sync_batchnorm(model.eval())
    for module in model.modules():
        for name in ("inplace", "fused_attn"):
            if hasattr(module, name):
                setattr(module, name, not getattr(module, name))
    model.note = "its own"
    unetkit.save(model, tmp_path / "m.safetensors")
    unetkit.save(unetkit.load(tmp_path / "m.safetensors"), tmp_path / "again.safetensors")


def test_a_reparameterized_model_is_not_saved_and_says_what_works(tmp_path: Path) -> None:
    model = unetkit.build("repvgg_a0:levels=2", widths=[8], decode_to=2, seed=0).eval()
    unetkit.save(model, tmp_path / "m.safetensors")
    deployed = reparameterize_model(unetkit.load(tmp_path / "m.safetensors").eval().double())
    assert len(deployed.state_dict()) < len(model.state_dict())
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), model.double()(x), rtol=0, atol=1e-10)
    assert "reparameterize" in refused_save(deployed, tmp_path / "other.safetensors")


def test_a_device_that_there_is_not_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    unetkit.save(unetkit.build("plain:widths=[4,8]"), tmp_path / "m.safetensors")
    with pytest.raises(OptionError, match="--device nonsense: is not available"):
        unetkit.load(tmp_path / "m.safetensors", device="nonsense")


def test_a_new_file_has_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        unetkit.save(unetkit.build("plain:widths=[4,8]"), tmp_path / "m.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o640


def test_wrappers_are_told_the_same_plan_when_a_file_is_loaded(tmp_path: Path) -> None:
    source = tmp_path / "telling.py"
    source.write_text(
        "import unetkit\ntold = []\n@unetkit.hookimpl\ndef unetkit_wrap_model(plan):\n    told.append(str(plan))\n"
    )
    parts = unetkit.load_parts(plugins=[str(source)])
    model = unetkit.build(recipe="unet-same", encoder="plain:widths=[4,8]", parts=parts)
    unetkit.save(model, tmp_path / "m.safetensors")
    unetkit.load(tmp_path / "m.safetensors", parts=parts)
    told = sys.modules[module_name(source)].told
    assert told[0] == str(model.resolved_plan)
    assert set(told) == {told[0]}


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "target.safetensors")
    unetkit.save(unetkit.build("plain:widths=[4,8]"), link)
    assert link.is_symlink()
    assert unetkit.load(tmp_path / "target.safetensors").plan == Plan.of(encoder="plain:widths=[4,8]")


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(FileError, match="cannot be written"):
        unetkit.save(unetkit.build("plain:widths=[4,8]"), pipe)
    assert pipe.is_fifo()


def distribution(folder: Path, version: str) -> None:
    """As an installer leaves it."""
    info = folder / f"unetkit_inner-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / "inner_module.py").write_text(INNER)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: unetkit-inner\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[unetkit]\ninner = inner_module\n")


def test_a_file_names_the_plugins_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    distribution(tmp_path / "site", "1.2")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        model = unetkit.build("plain:widths=[4,8]", block="inner", parts=unetkit.load_parts(["inner"], isolated=True))
        unetkit.save(model, path)
    _, metadata = opened(path)
    assert json.loads(metadata["plugins"]) == [
        {"name": "inner", "version": "1.2", "distribution": "unetkit-inner", "target": "inner_module"}
    ]
    before = set(sys.modules)
    with pytest.raises(PluginError) as error:
        unetkit.load(path)
    assert str(error.value).startswith(f"{path} was built with plugin inner 1.2, ")
    assert str(error.value).endswith("; pip install unetkit-inner==1.2")
    assert set(sys.modules) == before
    distribution(tmp_path / "newer", "2.0")
    monkeypatch.syspath_prepend(tmp_path / "newer")
    parts = unetkit.load_parts(["inner"], isolated=True)
    assert unetkit.load(path, parts=parts).plan == model.plan


def test_another_version_is_told_where_the_file_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    distribution(tmp_path, "1.2")
    monkeypatch.syspath_prepend(tmp_path)
    parts = unetkit.load_parts(["inner"], isolated=True)
    unetkit.save(unetkit.build("plain:widths=[4,8]", block="inner", parts=parts), path)
    parts.plugins[1].version = "1.3"
    parts.blocks.entries["inner"] = replace(parts.blocks.entries["inner"], factory=DoubleConv)
    with pytest.raises(FileError, match=r"\(plugin inner was 1\.2 and is 1\.3\)"):
        unetkit.load(path, parts=parts)
    del parts.blocks.entries["inner"]
    with pytest.raises(UnetkitError, match=r"inner was 1\.2 and is 1\.3\): --block inner"):
        unetkit.load(path, parts=parts)


def test_a_plugin_that_was_a_file_or_fails_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source = tmp_path / "m.safetensors", tmp_path / "inner.py"
    source.write_text(INNER)
    parts = unetkit.load_parts([source])
    unetkit.save(unetkit.build("plain:widths=[4,8]", block="inner", parts=parts), path)
    with pytest.raises(PluginError, match=r"plugin inner, .*; parts=.*load_parts\(\['inner.py'\]\)"):
        unetkit.load(path)
    assert str(tmp_path) not in opened(path)[1]["plugins"]
    with pytest.raises(PluginError, match=r"without \.py: .*other\.py is plugin other"):
        unetkit.load(path, parts=unetkit.load_parts([source.rename(tmp_path / "other.py")]))
    source.write_text("1 / 0\n")
    with pytest.raises(PluginError, match=r"plugin inner, .*failed .*ZeroDivisionError"):
        unetkit.load(path, parts=unetkit.load_parts([source]))
    source.rename(tmp_path / "moved.py")
    with pytest.raises(PluginError, match=r"does not exist; .*--plugin FILE"):
        unetkit.load(path, parts=unetkit.load_parts([source]))


GOOD_PLUGIN = {"name": "x", "version": "1", "distribution": "x", "target": "x"}
FORGED = [
    {**GOOD_PLUGIN, "name": []},
    {**GOOD_PLUGIN, "version": "1; rm -rf x"},
    {**GOOD_PLUGIN, "distribution": "--upgrade x"},
]


@pytest.mark.parametrize(
    "plugins", ["nonsense", "null", "[1]", '{"name": "x"}', '[{"name": "x"}]', *(json.dumps([p]) for p in FORGED)]
)
def test_plugins_that_a_file_names_wrongly(tmp_path: Path, plugins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda _: plugins)
        unetkit.save(unetkit.build("plain:widths=[4,8]"), path)
    with pytest.raises(FileError, match="contains invalid plugin names"):
        unetkit.load(path)


def test_a_part_that_replaced_a_default_counts_among_a_files_plugins(tmp_path: Path) -> None:
    source = INNER.replace(
        'parts.blocks.add("inner", Inner)', 'parts.upsamplers.add("bilinear", Up, replaces="unetkit")'
    )
    source += "\n\nfrom unetkit.parts.upsamplers import NearestUpsampler\n\nclass Up(NearestUpsampler):\n    pass\n"
    (tmp_path / "up.py").write_text(source)
    parts = unetkit.load_parts([tmp_path / "up.py"])
    model = unetkit.build("plain:widths=[4,8,16]", up="nearest", decode_to=2, parts=parts)
    assert [plugin.name for plugin in model.plugins] == ["up"]
    unetkit.save(model, tmp_path / "m.safetensors")
    with pytest.raises(PluginError, match="was built with plugin up, which is not here"):
        unetkit.load(tmp_path / "m.safetensors")


def test_the_network_in_a_wrapper_is_no_whole_model(tmp_path: Path) -> None:
    model: Any = unetkit.build("plain:widths=[4,8,16]", head="deep-supervision")
    with pytest.raises(FileError, match=r"save what unetkit\.build returned"):
        unetkit.save(model.network, tmp_path / "m.safetensors")
