"""smp's encoders as ours: all of them, any size, weights from its hub or a file, nothing kept that no map needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import close_session
from segmentation_models_pytorch import encoders as theirs
from torch import Tensor

import unetkit
from tests.parts import test_pretrained
from tests.parts.test_pretrained import Hub, adapted, refusal, use
from unetkit.errors import BuildError, OptionError
from unetkit.parts.encoders.normalization import get_normalization_stats
from unetkit.smp import catalog as smp_names
from unetkit.utils.lazy_init import defer_init, preserve_rng
from unetkit.utils.meta_shapes import MetaShapes

hub = test_pretrained.hub
closed_url = test_pretrained.closed_url

#: One small encoder of each of smp's kinds, with the strides of its maps.
PYRAMID = (2, 4, 8, 16, 32)
KINDS = {
    "resnet18": PYRAMID,
    "dpn68": PYRAMID,
    "vgg11": (1, *PYRAMID),
    "se_resnet50": PYRAMID,
    "densenet121": PYRAMID,
    "inceptionv4": PYRAMID,
    "efficientnet-b0": PYRAMID,
    "mobilenet_v2": PYRAMID,
    "xception": PYRAMID,
    "timm-efficientnet-b0": PYRAMID,
    "timm-tf_efficientnet_lite0": PYRAMID,
    "timm-skresnet18": PYRAMID,
    "mit_b0": (4, 8, 16, 32),
    "mobileone_s0": PYRAMID,
}
#: One of each kind of layers: what several kinds have in common is tried with these.
SOME = ("resnet18", "vgg11", "efficientnet-b0", "xception", "mit_b0")
#: Those whose strides are poolings, which cannot be dilated.
POOLED = {"vgg11", "densenet121", "inceptionv4", "xception"}
#: What images are normalised by.
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_space": "RGB", "input_range": [0, 1]}
HALF = [0.5, 0.5, 0.5]
REPO, REVISION = theirs.encoders["resnet18"]["pretrained_settings"]["imagenet"].values()
FILE = f"/{REPO}/resolve/{REVISION}/model.safetensors"


@cache
def random_weights(name: str = "resnet18") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = theirs.get_encoder(name, weights=None).state_dict()
    return {
        key: torch.rand(t.shape, generator=generator) if t.is_floating_point() else torch.full_like(t, 3)
        for key, t in tensors.items()
    }


def assert_has(model: Any, weights: dict[str, Tensor]) -> None:
    state = model.encoder.model.state_dict()
    assert state.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-6, atol=0, msg=key)


def test_the_names_are_those_that_smp_lists() -> None:
    assert smp_names.smp_encoder_names() == theirs.get_encoder_names()


def test_listing_them_imports_neither_smp_nor_torch() -> None:
    heavy = "{'torch', 'timm', 'segmentation_models_pytorch'} & sys.modules.keys()"
    script = f"import sys; from unetkit.smp import catalog; print(len(catalog.smp_encoder_names()), {heavy})"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told == f"{len(theirs.get_encoder_names())} set()\n"


def test_smp_is_asked_where_its_files_look_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp_names, "_read_text", lambda path: "")
    assert smp_names.smp_encoder_names.__wrapped__() == theirs.get_encoder_names()


@pytest.mark.parametrize(
    ("said", "shortest", "source"),
    [
        ("mit_b0", "--encoder mit_b0", "smp mit_b0, reduction 4"),
        ("smp/mit_b0", "--encoder mit_b0", "smp mit_b0, reduction 4"),
        ("resnet18", "--encoder resnet18", "timm act1, reduction 2"),
        ("smp/resnet18", "--encoder smp/resnet18", "smp relu, reduction 2"),
        ("smp/efficientnet-b0", "--encoder efficientnet-b0", "smp _swish, reduction 2"),
    ],
)
def test_a_bare_name_is_timms_first_and_then_smps(said: str, shortest: str, source: str) -> None:
    model: Any = unetkit.build(said, device="meta")
    assert str(model.plan) == shortest
    assert model.encoder.source[0] == source


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_its_maps_are_smps(name: str) -> None:
    encoder: Any = unetkit.make_part("encoder", f"smp/{name}", 3)
    with preserve_rng(), defer_init(discard=True):  # every weight is replaced
        whole = theirs.encoders[name]["encoder"](**theirs.encoders[name]["params"])
    tensors = whole.state_dict()
    for key, tensor in encoder.model.state_dict().items():
        tensors[key].copy_(tensor)
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, expected = encoder.eval()(x), whole.eval()(x)
    expected = [each for each in expected if each is not x and each.shape[1]]
    assert encoder.strides == KINDS[name]
    assert [tuple(each.shape) for each in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_it_takes_any_size_and_trains_all_that_it_has(name: str) -> None:
    model = unetkit.build(f"smp/{name}", widths=(16, 8, 8, 8, 8), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for size in ((64, 64), (49, 67)):
        out = model(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)))
        assert out.shape == (2, 2, *size)
        optimizer.zero_grad()
        out.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert model(torch.rand(2, 3, 64, 64)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "output_stride"), [*((name, 16) for name in SOME), ("resnet18", 8)])
def test_it_is_dilated_or_says_that_it_cannot_be(name: str, output_stride: int) -> None:
    spec = f"smp/{name}:output_stride={output_stride}"
    if name in POOLED:
        message = refusal(spec, device="meta")
        assert f"smp/{name} does not take output_stride={output_stride} (ValueError: " in message
        assert message.endswith("; leave it out, or use a ResNet")
        return
    model: Any = unetkit.build(spec, device="meta")
    assert model.encoder.strides == tuple(stride for stride in KINDS[name] if stride <= output_stride)
    deepest = theirs.encoders[name]["params"]["out_channels"][-1]
    assert model.encoder.channels[-1] == deepest
    with MetaShapes():
        assert model(torch.empty(2, 3, 97, 131, device="meta")).shape == (2, 2, 97, 131)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "in_channels"),
    [("resnet18", 1), ("resnet18", 2), ("resnet18", 13), ("efficientnet-b0", 13), ("mit_b0", 2)],
)
def test_the_input_may_have_any_number_of_channels(name: str, in_channels: int) -> None:
    model = unetkit.build(f"smp/{name}", in_channels=in_channels, device="meta")
    with MetaShapes():
        assert model(torch.empty(2, in_channels, 64, 64, device="meta")).shape == (2, 2, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "levels"), [*((name, 3) for name in SOME), ("resnet18", 2), ("mit_b0", 2)])
def test_fewer_levels_leave_out_the_layers_below_them(name: str, levels: int) -> None:
    model = unetkit.build(f"smp/{name}:levels={levels}", device="meta")
    assert model.encoder.strides == KINDS[name][:levels]
    with MetaShapes():
        model(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("levels", [1, 6])
def test_as_many_levels_as_it_has(levels: int) -> None:
    message = refusal(f"smp/resnet18:levels={levels}", device="meta")
    assert message.endswith(f"smp/resnet18 has 5 feature maps; levels={levels} must be from 2 to 5")


def test_what_it_has_no_option_for_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        unetkit.build("mit_b0:drop_path_rate=0.1", device="meta")
    assert "'drop_path_rate'; it has levels, output_stride, pretrained" in str(caught.value)


@pytest.mark.slow
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = unetkit.build("mit_b0", widths=(16, 8, 8, 8, 8)).eval()
    unetkit.save(model, tmp_path / "model.safetensors")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(unetkit.load(tmp_path / "model.safetensors").eval()(x), model(x))


def test_building_leaves_numbers_on_the_device_they_are_made_on() -> None:
    unetkit.build("mit_b0", device="meta")
    with torch.device("meta"):
        assert torch.linspace(0, 1, 2).is_meta


@pytest.mark.parametrize("in_channels", [3, 1, 5])
def test_the_weights_are_those_that_the_hub_serves(hub: Hub, in_channels: int) -> None:
    weights = random_weights()
    hub.files[FILE] = safetensors.torch.save(weights)
    model = unetkit.build("smp/resnet18", pretrained=True, in_channels=in_channels)
    first = adapted(weights["conv1.weight"], in_channels) if in_channels != 3 else weights["conv1.weight"]
    assert_has(model, weights | {"conv1.weight": first})
    assert model.encoder.weights_from == "smp resnet18.imagenet"
    assert str(model.plan) == " ".join(
        ["--encoder smp/resnet18", *([f"--in-channels {in_channels}"] if in_channels != 3 else []), "--pretrained"]
    )


def test_they_may_be_of_fewer_levels(hub: Hub) -> None:
    weights = random_weights()
    hub.files[FILE] = safetensors.torch.save(weights)
    model = unetkit.build("smp/resnet18:levels=3", pretrained=True)
    assert_has(model, {key: tensor for key, tensor in weights.items() if not key.startswith(("layer3", "layer4"))})


def test_weights_in_the_cache_need_no_hub(
    hub: Hub, closed_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights()
    hub.files[FILE] = safetensors.torch.save(weights)
    unetkit.build("smp/resnet18", pretrained=True)
    use(closed_url, tmp_path, monkeypatch)
    assert_has(unetkit.build("smp/resnet18", pretrained=True), weights)


def test_a_tag_names_the_weights(hub: Hub) -> None:
    weights = random_weights()
    repo, revision = theirs.encoders["resnet18"]["pretrained_settings"]["swsl"].values()
    hub.files[f"/{repo}/resolve/{revision}/model.safetensors"] = safetensors.torch.save(weights)
    model = unetkit.build("smp/resnet18.swsl", pretrained=True)
    assert_has(model, weights)
    assert model.encoder.weights_from == "smp resnet18.swsl"
    assert unetkit.Plan.parse(str(model.plan)) == model.plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mit_b0", "smp mit_b0.imagenet"),
        ("smp/resnext101_32x4d", "smp resnext101_32x4d.ssl"),
        ("smp/dpn68b", "smp dpn68b.imagenet_5k"),
        ("inceptionv4.imagenet_background", "smp inceptionv4.imagenet_background"),
    ],
)
def test_on_meta_the_weights_are_named_and_not_fetched(hub: Hub, name: str, weights: str) -> None:
    model = unetkit.build(name, pretrained=True, device="meta")
    assert model.encoder.weights_from == weights
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert not hub.requests


@pytest.mark.parametrize("words", [{}, {"pretrained": True}, {"device": "meta"}])
def test_a_tag_that_smp_has_not(hub: Hub, words: dict[str, Any]) -> None:
    message = refusal("smp/resnet18.nonsense", **words)
    assert message.endswith("'nonsense' for resnet18; it has imagenet, ssl, swsl")
    assert not hub.requests


def test_without_pretrained_nothing_is_asked_for(hub: Hub) -> None:
    assert unetkit.build("smp/resnet18").encoder.weights_from == "random"
    assert not hub.requests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        # As smp has them, and ranges and channels that it could have.
        ("resnet18", IMAGENET, (IMAGENET["mean"], IMAGENET["std"])),
        ("xception", {"mean": HALF, "std": HALF}, (HALF, HALF)),
        ("resnet18", IMAGENET | {"input_range": [0, 255]}, None),
        ("resnet18", IMAGENET | {"input_space": "BGR"}, None),
    ],
)
def test_what_images_were_normalised_by_is_what_smp_says(
    hub: Hub, name: str, said: dict[str, Any], expected: tuple[list[float], list[float]] | None
) -> None:
    repo, revision = theirs.encoders[name]["pretrained_settings"]["imagenet"].values()
    hub.files[f"/{repo}/resolve/{revision}/config.json"] = json.dumps(said).encode()
    for whole in (None, "smp/unet"):
        model = unetkit.build(f"smp/{name}", model=whole, pretrained=True, device="meta")  # no weights are had
        found = get_normalization_stats(model.encoder)
        assert found == (expected and tuple(map(tuple, expected)))
    params = theirs.get_preprocessing_params(name, pretrained="imagenet")
    assert found is None or [*map(list, found)] == [params["mean"], params["std"]]
    assert get_normalization_stats(unetkit.build(f"smp/{name}", device="meta").encoder) is None


def test_those_of_a_file_stand_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(random_weights(), path)
    encoder = unetkit.build("smp/resnet18", pretrained=str(path)).encoder
    assert get_normalization_stats(encoder) is None
    (tmp_path / "config.json").write_text(json.dumps({"mean": HALF, "std": HALF}))
    assert get_normalization_stats(encoder) == (tuple(HALF), tuple(HALF))


def test_a_hub_that_has_none_is_refused_in_one_line(hub: Hub) -> None:
    encoder = unetkit.build("smp/resnet18", pretrained=True, device="meta").encoder
    with pytest.raises(BuildError, match=r"mean and standard deviation .*resnet18\.imagenet") as no:
        get_normalization_stats(encoder)
    assert "\n" not in str(no.value)


def test_a_hub_that_is_not_there_is_asked_once(
    closed_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    use(closed_url, tmp_path, monkeypatch)
    monkeypatch.setattr(time, "sleep", waits.append)
    message = refusal("smp/resnet18", pretrained=True)
    close_session()
    assert not waits
    assert "smp/resnet18 cannot be loaded " in message
    assert "`--pretrained FILE`" in message
    assert message.endswith(" for random weights")


def test_a_hub_without_the_weights(hub: Hub) -> None:
    message = refusal("smp/resnet18", pretrained=True)
    assert "smp/resnet18 cannot be loaded " in message
    assert "Not Found" in message


@pytest.mark.parametrize("in_channels", [3, 1, 5])
def test_a_local_file(tmp_path: Path, in_channels: int) -> None:
    weights, path = random_weights(), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    model = unetkit.build("smp/resnet18", pretrained=path, in_channels=in_channels)
    first = adapted(weights["conv1.weight"], in_channels) if in_channels != 3 else weights["conv1.weight"]
    assert_has(model, weights | {"conv1.weight": first})
    assert model.encoder.weights_from == str(path)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_that_is_not_there(tmp_path: Path, device: str) -> None:
    path = tmp_path / "weights.safetensors"
    message = refusal("mit_b0", pretrained=path, device=device)
    assert re.search(f"--pretrained {path}: the file does not exist; .*smp/mit_b0", message)


def test_a_file_that_is_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(os.urandom(100))
    message = refusal("mit_b0", pretrained=path)
    assert f"smp/mit_b0 cannot be read from {path} (" in message


@pytest.mark.parametrize(("of", "into"), [("resnet34", "smp/resnet18"), ("resnet18", "smp/resnet34")])
def test_weights_of_another_network(tmp_path: Path, of: str, into: str) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(random_weights(of), path)
    message = refusal(into, pretrained=path)
    assert f"the pretrained weights of {into} cannot be read from {path} (" in message
    assert "layer1.2" in message
