"""Upsamplers: (B, channels, h, w) -> (B, out_channels, *size), or nearest to it, for a scale between two levels."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError, OptionError
from unetkit.utils.formatting import Size


class Bilinear(nn.Module):
    """Bilinear interpolation straight to the wanted size; no parameters.

    Args:
        align_corners: whether corner pixels keep their centres (true) or their outer edges (false).
    """

    def __init__(self, channels: int, scale: float, *, align_corners: bool = False) -> None:
        super().__init__()
        self.out_channels = channels
        self.align_corners = align_corners

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


class Nearest(nn.Module):
    """Each pixel repeated, straight to the wanted size; no parameters."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        return F.interpolate(x, size, mode="nearest")


class Transposed(nn.ConvTranspose2d):
    """A transposed convolution, 2x2 with stride 2 unless told otherwise (Ronneberger 2015).

    Started as bilinear interpolation it equals `bilinear` (align_corners=false) away from the border for as many
    channels out as in, grouped or not. With fewer out, each starts as the interpolated mean of the in-channels that
    fall to it; with more, each copies the in-channel that it falls to; in a grouped layer, within the group.

    Args:
        kernel: none means the stride, or with init=bilinear the one that is exact: 2n - (n mod 2) for stride n.
        stride: none means the scale between the two levels.
        padding: none means what makes the output the stride times the input.
        output_padding: none means what makes the output the stride times the input.
        channels: keep them or halve them.
        init: random (torch's own) or bilinear (Long 2015).
        groups: of channels that are convolved apart.
        bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        scale: float,
        *,
        kernel: int | None = None,
        stride: int | None = None,
        padding: int | None = None,
        output_padding: int | None = None,
        channels: Literal["half", "keep"] = "half",
        init: Literal["random", "bilinear"] = "random",
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        n = whole_scale(scale, "transposed") if stride is None else stride
        exact = 2 * n - n % 2
        k = kernel if kernel is not None else exact if init == "bilinear" else n
        # (h-1)n - 2p + k + op = nh asks for 2p - op = k - n.
        p = padding if padding is not None else max(0, (k - n + 1) // 2)
        op = output_padding if output_padding is not None else max(0, 2 * p - (k - n))
        if k < 1 or n < 1 or p < 0 or not 0 <= op < n:
            raise OptionError(f"transposed cannot have kernel={k}, stride={n}, padding={p}, output_padding={op}")
        if init == "bilinear" and (k, 2 * p, op) != (exact, exact - n, 0):
            raise OptionError(
                f"kernel={k}, padding={p}, output_padding={op} cannot be bilinear interpolation by {n}: "
                f"kernel={exact}, padding={(exact - n) // 2}, output_padding=0 is (leave them out)"
            )
        out_channels = in_channels if channels == "keep" else in_channels // 2
        if out_channels < 1 or groups < 1 or in_channels % groups or out_channels % groups:
            raise BuildError(f"transposed with groups={groups} cannot join {in_channels} to {out_channels} channels")
        self.init = init
        super().__init__(in_channels, out_channels, k, stride=n, padding=p, output_padding=op, groups=groups, bias=bias)

    def reset_parameters(self) -> None:
        """Start the weights anew, as `init` says."""
        super().reset_parameters()
        if self.init == "bilinear":
            with torch.no_grad():
                self.weight.copy_(
                    bilinear_weight(self.in_channels, self.out_channels, self.kernel_size[0], self.groups)
                )
                if self.bias is not None:
                    self.bias.zero_()

    def forward(self, x: Tensor, size: Size) -> Tensor:  # type: ignore[override]
        """(B, C, h, w) -> (B, out_channels, about h * stride, about w * stride), whatever the wanted size."""
        return F.conv_transpose2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            cast(tuple[int, int], self.padding),
            self.output_padding,
            self.groups,
        )


def bilinear_weight(in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> Tensor:
    """The weight (in_channels, out_channels / groups, kernel, kernel) of a transposed convolution that interpolates.

    One kernel is (1 - |y - centre| / factor)(1 - |x - centre| / factor), with factor (k + 1) // 2 and centre
    factor - 1 for odd k, factor - 0.5 for even k (Long 2015, FCN). Kernels stand where in- and out-channel fall to
    one another, divided by how many in-channels an out-channel has.
    """
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    line = 1 - (torch.arange(kernel) - centre).abs() / factor
    inside, outside = in_channels // groups, out_channels // groups
    if inside >= outside:
        pairs = [(i, i * outside // inside) for i in range(inside)]
    else:
        pairs = [(o * inside // outside, o) for o in range(outside)]
    mix = torch.zeros(inside, outside)
    for i, o in pairs:
        mix[i, o] = 1
    mix = mix / mix.sum(dim=0)
    return mix.repeat(groups, 1)[:, :, None, None] * torch.outer(line, line)


class PixelShuffle(nn.Module):
    """A convolution to scale x scale times the channels, rearranged into pixels (Shi 2016).

    Args:
        kernel: odd, of the convolution; the map is padded, so that its size stays.
        channels: keep them or halve them.
    """

    def __init__(
        self,
        in_channels: int,
        scale: float,
        *,
        kernel: int = 1,
        channels: Literal["half", "keep"] = "keep",
    ) -> None:
        n = whole_scale(scale, "pixelshuffle")
        if kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"kernel={kernel}: takes an odd number, so that the size stays")
        out_channels = in_channels if channels == "keep" else in_channels // 2
        if out_channels < 1:
            raise BuildError(f"pixelshuffle cannot halve {in_channels} channels")
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels * n * n, kernel, padding=kernel // 2)
        self.shuffle = nn.PixelShuffle(n)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, out_channels, h * scale, w * scale), whatever the wanted size."""
        out: Tensor = self.shuffle(self.conv(x))
        return out


def whole_scale(scale: float, name: str) -> int:
    """The scale as an integer. Raises BuildError where it is none."""
    if scale != int(scale):
        raise BuildError(f"{name} cannot upsample by {scale:g}, which is no whole number; take bilinear or nearest")
    return int(scale)
