from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import close_session, constants
from torch import Tensor

import unetkit
from unetkit.errors import BuildError
from unetkit.parts.encoders.normalization import get_normalization_stats
from unetkit.parts.encoders.timm_weights import capture_load

NAME = "test_resnet"
REPO = "timm/test_resnet.r160_in1k"
FIRST = "conv1.0.weight"


def random_weights(name: str = NAME, **options: Any) -> dict[str, Tensor]:
    """The whole timm model's state_dict, in which nothing, norms included, is what a model starts with."""
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = timm.create_model(name, **options).state_dict()
    return {
        key: torch.rand(t.shape, generator=generator) if t.is_floating_point() else torch.full_like(t, 3)
        for key, t in tensors.items()
    }


class Hub:
    """As much of a model hub as its client needs to find and fetch files, on loopback."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                body = hub.files.get(self.path.partition("?")[0].replace("/resolve/main/", "/"))
                self.send_response(404 if body is None else 200)
                if body is None:
                    self.send_header("X-Error-Code", "EntryNotFound" if REPO in self.path else "RepoNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", "c" * 40)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use(hub.url, tmp_path, monkeypatch)
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()
    close_session()


def use(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the hub's client at a url; it reads HF_ENDPOINT and HF_HOME on import, which another test has done."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def encoder_state(model: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = model.encoder.model.state_dict()
    return state


def assert_served(model: Any, weights: dict[str, Tensor], first: Tensor | None = None) -> None:
    """The encoder's tensors are these, all but the classifier's; the first convolution's may be another."""
    expected = {key: tensor for key, tensor in weights.items() if not key.startswith("fc.")}
    if first is not None:
        expected[FIRST] = first
    state = encoder_state(model)
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-6, atol=0, msg=key)


def adapted(weight: Tensor, in_channels: int) -> Tensor:
    """Colours summed for one channel; else repeated in turn, and scaled so that their sum keeps its size."""
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [i % 3 for i in range(in_channels)]] * (3 / in_channels)


def refusal(*args: Any, **words: Any) -> str:
    with pytest.raises(BuildError) as caught:
        unetkit.build(*args, **words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("in_channels", [3, 1, 5])
def test_the_weights_are_those_that_the_hub_serves(hub: Hub, in_channels: int) -> None:
    weights = random_weights()
    hub.files[f"/{REPO}/model.safetensors"] = safetensors.torch.save(weights)
    model = unetkit.build(NAME, pretrained=True, in_channels=in_channels)
    first = adapted(weights[FIRST], in_channels) if in_channels != 3 else None
    if first is not None:
        torch.testing.assert_close(first, timm.models.adapt_input_conv(in_channels, weights[FIRST]))
    assert_served(model, weights, first)
    assert f"GET /{REPO}/resolve/main/model.safetensors" in hub.requests
    assert model.encoder.weights_from == "timm test_resnet.r160_in1k"
    assert model(torch.rand(1, in_channels, 64, 64)).shape == (1, 2, 64, 64)
    assert unetkit.Plan.parse(str(model.plan)) == model.plan
    assert model.plan.pretrained is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole", "mean", "std"),
    [
        ("resnet18", "smp/unet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("xception65.ra3_in1k", None, (0.5,) * 3, (0.5,) * 3),
        ("mobilenetv3_large_100.miil_in21k", None, (0.0,) * 3, (1.0,) * 3),
    ],
)
def test_what_images_were_normalised_by_is_what_timm_says(
    hub: Hub, name: str, whole: str | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    model = unetkit.build(f"timm/{name}", model=whole, pretrained=True, device="meta")
    assert get_normalization_stats(model.encoder) == (mean, std)
    model = unetkit.build(f"timm/{name}", model=whole, device="meta")
    assert get_normalization_stats(model.encoder) is None
    assert not hub.requests


def test_a_tag_names_the_weights(hub: Hub) -> None:
    weights = random_weights()
    hub.files[f"/{REPO}/model.safetensors"] = safetensors.torch.save(weights)
    assert_served(unetkit.build("timm/test_resnet.r160_in1k", pretrained=True), weights)


def test_weights_in_the_cache_need_no_hub(
    hub: Hub, closed_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights()
    hub.files[f"/{REPO}/model.safetensors"] = safetensors.torch.save(weights)
    unetkit.build(NAME, pretrained=True)
    use(closed_url, tmp_path, monkeypatch)
    assert_served(unetkit.build(NAME, pretrained=True), weights)


@pytest.mark.slow
def test_a_fresh_process_takes_the_hub_from_its_environment(hub: Hub, tmp_path: Path) -> None:
    weights = random_weights()
    hub.files[f"/{REPO}/model.safetensors"] = safetensors.torch.save(weights)
    script = f"import unetkit; unetkit.save(unetkit.build('{NAME}', pretrained=True), 'model.safetensors')"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert_served(unetkit.load(tmp_path / "model.safetensors"), weights)


@pytest.mark.parametrize("in_channels", [3, 1, 5])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_local_file_in_timms_format(tmp_path: Path, suffix: str, in_channels: int) -> None:
    weights, path = random_weights(), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": weights}, path)
    else:
        safetensors.torch.save_file(weights, path)
    model = unetkit.build(NAME, pretrained=path, in_channels=in_channels)
    assert_served(model, weights, adapted(weights[FIRST], in_channels) if in_channels != 3 else None)
    assert model.plan.pretrained == str(path)
    assert model.encoder.weights_from == str(path)


@pytest.mark.parametrize("classes", [0, 10])
def test_a_local_file_may_have_another_classifier_or_none(tmp_path: Path, classes: int) -> None:
    weights, path = random_weights(num_classes=classes), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    assert_served(unetkit.build(NAME, pretrained=path), weights)


def test_what_only_the_classifier_needs_is_not_foreign(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, path = random_weights("test_efficientnet"), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    state = encoder_state(unetkit.build("test_efficientnet", pretrained=path))
    assert "conv_head.weight" in weights.keys() - state.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, weights[key]), key
    assert not caplog.records


def test_without_pretrained_nothing_is_asked_for(hub: Hub) -> None:
    assert unetkit.build(NAME).encoder.weights_from == "random"
    assert not hub.requests


def test_on_meta_the_weights_are_named_and_not_fetched(hub: Hub) -> None:
    model = unetkit.build(NAME, pretrained=True, device="meta")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.encoder.weights_from == "timm test_resnet.r160_in1k"
    assert not hub.requests


def test_a_hub_that_is_not_there_is_asked_once(
    closed_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    use(closed_url, tmp_path, monkeypatch)
    monkeypatch.setattr(time, "sleep", waits.append)
    message = refusal(NAME, pretrained=True)
    close_session()
    assert not waits
    assert "timm/test_resnet cannot be loaded " in message
    assert "`--pretrained FILE`" in message
    assert message.endswith(" for random weights")


def test_a_hub_without_the_weights(hub: Hub) -> None:
    message = refusal(NAME, pretrained=True)
    assert "timm/test_resnet cannot be loaded " in message
    assert "Not Found" in message
    assert "`--pretrained FILE`" in message


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_that_is_not_there(tmp_path: Path, device: str) -> None:
    path = tmp_path / "weights.safetensors"
    message = refusal(NAME, pretrained=path, device=device)
    assert f"--pretrained {path}: the file does not exist" in message
    assert NAME in message


def test_a_file_that_is_no_weights(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pth"):
        path = tmp_path / name
        path.write_bytes(b"no weights at all")
        message = refusal(NAME, pretrained=path)
        assert f"timm/test_resnet cannot be read from {path} (" in message
        assert "`--pretrained FILE`" in message


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "weights.pth"
    torch.save({"conv1.0.weight": Attack()}, path)
    assert f"cannot be read from {path} (" in refusal(NAME, pretrained=path)
    assert not (tmp_path / "ran").exists()


def test_a_file_without_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({}, path)
    # torch fills in how many batches a norm has seen, which old files do not say
    tensors = sum("num_batches" not in key for key in encoder_state(unetkit.build(NAME)))
    assert f"they lack {tensors} of test_resnet's tensors" in refusal(NAME, pretrained=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "into", "why"),
    [
        # A deeper network of the same widths has all that the shallower one wants.
        ("resnet34", "resnet18", "they have 96 tensors that resnet18 does not have, such as layer1.2.bn1.bias"),
        ("resnet18", "resnet34", "they lack 80 of resnet34's tensors, such as layer1.2.conv1.weight"),
        ("test_convnext", "test_efficientnet", "they lack "),
        ("resnet50", "resnet18", "size mismatch for layer1.0.conv1.weight"),
    ],
)
def test_weights_of_another_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, of: str, into: str, why: str
) -> None:
    path = tmp_path / "weights.safetensors"
    with torch.device("meta"):
        shapes = timm.create_model(of).state_dict()
    weights = {key: torch.zeros(tensor.shape, dtype=torch.float16) for key, tensor in shapes.items()}
    safetensors.torch.save_file(weights, path)
    message = refusal(into, pretrained=path)
    assert why in message
    assert f"the pretrained weights of timm/{into} cannot be read from {path} (" in message
    assert not caplog.records


def test_weights_of_another_network_from_the_hub(hub: Hub) -> None:
    weights = random_weights()
    del weights["layer2.0.conv1.weight"]
    hub.files[f"/{REPO}/model.safetensors"] = safetensors.torch.save(weights)
    assert re.search(r"they lack 1 of .*layer2\.0\.conv1\.weight\)", refusal(NAME, pretrained=True))


@pytest.mark.parametrize("words", [{}, {"pretrained": True}, {"device": "meta"}])
def test_a_tag_that_timm_has_not(hub: Hub, words: dict[str, Any]) -> None:
    message = refusal("resnet18.nonsense", **words)
    assert "'nonsense' for resnet18; it has " in message
    assert "a1_in1k" in message
    assert not hub.requests


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_without_weights(hub: Hub, device: str) -> None:
    message = refusal("test_mambaout", pretrained=True, device=device)
    assert "timm/test_mambaout cannot be loaded" in message
    assert "(timm has no weights for test_mambaout)" in message
    assert "`--pretrained FILE`" in message
    assert not hub.requests


def test_an_encoder_without_weights() -> None:
    assert refusal("plain", pretrained=True).startswith("--pretrained: encoder plain ")


@pytest.mark.parametrize("name", [NAME, "test_efficientnet", "test_vit"])
def test_a_load_leaves_torch_and_the_model_as_they_were(tmp_path: Path, name: str) -> None:
    before = torch.nn.Module.load_state_dict
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(random_weights(name), path)
    loaded = unetkit.build(name, pretrained=path)
    assert not any(module._load_state_dict_post_hooks for module in loaded.modules())
    path.write_bytes(b"no weights at all")
    refusal(name, pretrained=path)
    assert torch.nn.Module.load_state_dict is before


def test_only_loads_of_the_capturing_thread_are_captured() -> None:
    def load() -> None:
        module = torch.nn.Sequential(torch.nn.Linear(1, 1))
        module.load_state_dict(module.state_dict())

    with capture_load(True) as captured:
        thread = Thread(target=load)
        thread.start()
        thread.join()
        assert not captured
        load()
    load()
    assert [type(module).__name__ for module, _ in captured] == ["Sequential"]
