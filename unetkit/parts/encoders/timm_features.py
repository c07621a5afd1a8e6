"""One timm model's feature network, as timm makes it; what timm raises, in one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from unetkit.errors import CannotBuild, UnetkitError
from unetkit.parts.encoders.timm_weights import find_timm_weights, refuse_foreign, watched


class Request(NamedTuple):
    """What is asked of timm: a name, channels of the input, the stride to dilate from, and timm's own options."""

    name: str
    in_channels: int
    output_stride: int = 32
    options: tuple[tuple[str, Any], ...] = ()

    def create(self, weights: bool | str = False, **extra: Any) -> Any:
        """Its feature network, with timm's weights (True), those of a file, or random ones.

        Args:
            weights: as said.
            extra: more of timm's options; those that were asked for go before them.

        Raises:
            CannotBuild: timm does not make it so, or has no such weights.
        """
        options = {**extra, **dict(self.options)}
        if self.output_stride != 32:
            options["output_stride"] = self.output_stride
        if isinstance(weights, str):
            if not Path(weights).is_file():
                raise CannotBuild(f"there is no weights file {weights}; --pretrained takes a file in timm's format")
            options["pretrained_cfg_overlay"] = {"file": weights}
        loads = bool(weights) and torch.get_default_device().type != "meta"
        try:
            find_timm_weights(self.name, pretrained=weights is True, loads=loads)
            with watched(loads) as loadings:
                model = timm.create_model(
                    self.name, features_only=True, in_chans=self.in_channels, pretrained=loads, **options
                )
            refuse_foreign(self.name, model, loadings)
        except MemoryError:
            raise
        except Exception as error:  # whatever timm, its hub client or a file's reader raises
            raise CannotBuild(self._reason(error, weights)) from error
        return model

    def ghost(self, **extra: Any) -> Any:
        """Its feature network on meta, in eval mode."""
        with torch.device("meta"):
            return self.create(**extra).eval()

    def _reason(self, error: Exception, weights: bool | str) -> str:
        text = " ".join(str(error).split())[:300]
        why = text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}".rstrip(": ")
        if weights:
            where = f"read from {weights}" if isinstance(weights, str) else "had from timm's hub"
            return (
                f"the pretrained weights of timm/{self.name} cannot be {where} ({why}); give a file in timm's format "
                "with `--pretrained FILE`, or leave --pretrained out for random weights"
            )
        if isinstance(error, UnetkitError):
            return text
        if self.options:
            said = ", ".join(f"{name}={value}" for name, value in self.options)
            return f"timm/{self.name} cannot be made with {said} ({why}); leave it out, or give another value"
        if self.output_stride != 32:
            said = f"timm/{self.name} does not take output_stride={self.output_stride}"
            return f"{said} ({why}); leave it out, or take a ResNet"
        return f"timm/{self.name} gives no feature maps ({why})"
