"""Tiles compared with one pass over the whole image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unetkit.deploy.layouts import Fit
from unetkit.deploy.stitching import Pass, Source, Window, windows
from unetkit.errors import UnetkitError
from unetkit.inspect.figures import format_bytes
from unetkit.inspect.trace import trace
from unetkit.jobs.memory import free
from unetkit.plan import Size


class Check:
    """The largest difference from what one pass over the whole image gives, and how often it decides otherwise.

    Where one pass cannot be had, `said` says so.
    """

    def __init__(self, fit: Fit, network: nn.Module, passed: Pass, source: Source) -> None:
        self._most, self._otherwise, self._pixels, self._why = 0.0, 0, source.size[0] * source.size[1], ""
        self._whole = torch.empty(0)
        try:
            layout = fit.at_once(source.size)
            if why := too_large(network, (layout.rows.whole + fit.shrinks[0], layout.columns.whole + fit.shrinks[1])):
                self._why = why
                return
            (found,) = windows(passed, source, layout)
            self._whole = found.values
        except UnetkitError as error:
            self._why = str(error)

    def add(self, window: Window, decide: Callable[[Tensor], Tensor]) -> None:
        """Compare the probabilities of a window (L, h, w)."""
        if self._why:
            return
        whole = self._whole[:, window.rows, window.columns]
        self._most = max(self._most, float((whole - window.values).abs().max()))
        other = (decide(whole[None]) != decide(window.values[None]))[0]
        self._otherwise += int((other.any(0) if other.ndim == 3 else other).sum())

    @property
    def said(self) -> str:
        """What came of it, in words."""
        if self._why:
            return f"not checked: {self._why}"
        share = f"{self._otherwise:,} of {self._pixels:,} pixels are decided otherwise"
        return f"probabilities differ by at most {self._most:.1e} from one pass over the whole image; {share}"


def too_large(network: nn.Module, size: Size) -> str:
    """Why one pass over an input of a size would take more memory than there is, or ""."""
    device = next(network.parameters()).device
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free()
    # What autograd would keep is more than what a pass without it holds at any time.
    needs = trace(network, size).activation_bytes
    if needs <= left:
        return ""
    return f"one pass may take {format_bytes(needs)}, and {format_bytes(left)} are free; check on a smaller image"
