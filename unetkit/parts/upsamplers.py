"""Upsamplers, which enlarge a map (B, channels, h, w) by the scale between two levels.

An upsampler is given the target size. Interpolation reaches any size; learned upsamplers give the scale times the size
of the map, and leave the rest to the align.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError, OptionError
from unetkit.utils.formatting import Size


class BilinearUpsampler(nn.Module):
    """Bilinear interpolation straight to the target size, without parameters.

    Args:
        align_corners: true aligns the centers of the corner pixels of input and output, false their outer edges.
    """

    def __init__(self, channels: int, scale: float, *, align_corners: bool = False) -> None:
        super().__init__()
        self.out_channels = channels
        self.align_corners = align_corners

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


class NearestUpsampler(nn.Module):
    """Nearest-neighbor interpolation straight to the target size, without parameters."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        return F.interpolate(x, size, mode="nearest")


class TransposedUpsampler(nn.ConvTranspose2d):
    """Transposed convolution, by default 2x2 with stride 2 for a scale of 2 (Ronneberger 2015).

    With init=bilinear and channels=keep it starts as bilinear interpolation (align_corners=false), except at the
    border. With channels=half, each output channel starts as the mean of two interpolated input channels (three for one
    of them where the number is odd). With groups, this holds within each group.

    Args:
        kernel: kernel size; none means the stride, or with init=bilinear the size that is exact, 2n - (n mod 2) for
            stride n.
        stride: stride of the convolution; none means the scale between the two levels.
        padding: padding of the convolution; none means as much as makes the output exactly stride times the input size.
        output_padding: size added to one side of the output; none means as much as makes the output exactly stride
            times the input size.
        channels: half halves the number of channels, keep leaves it unchanged.
        init: initial weights, random (PyTorch's default) or bilinear interpolation (Long 2015).
        groups: number of groups of channels that are convolved separately.
        bias: whether the convolution has a bias.
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
        n = check_integer_scale(scale, "transposed") if stride is None else stride
        exact = 2 * n - n % 2
        k = kernel if kernel is not None else exact if init == "bilinear" else n
        # (h-1)n - 2p + k + op = nh asks for 2p - op = k - n.
        p = padding if padding is not None else max(0, (k - n + 1) // 2)
        op = output_padding if output_padding is not None else max(0, 2 * p - (k - n))
        if k < 1 or n < 1 or p < 0 or not 0 <= op < n:
            raise OptionError(
                f"transposed cannot have kernel={k}, stride={n}, padding={p}, output_padding={op}: kernel and stride "
                "must be at least 1, padding at least 0, output_padding at least 0 and below the stride"
            )
        if init == "bilinear" and (k, 2 * p, op) != (exact, exact - n, 0):
            raise OptionError(
                f"kernel={k}, padding={p}, output_padding={op} cannot be bilinear interpolation by {n}; leave them "
                f"out, which means kernel={exact}, padding={(exact - n) // 2}, output_padding=0"
            )
        out_channels = in_channels if channels == "keep" else in_channels // 2
        if out_channels < 1 or groups < 1 or in_channels % groups or out_channels % groups:
            raise BuildError(
                f"transposed with groups={groups} cannot map {in_channels} to {out_channels} channels; both numbers "
                "must be positive multiples of groups; give other groups, or channels=keep"
            )
        self.init = init
        super().__init__(in_channels, out_channels, k, stride=n, padding=p, output_padding=op, groups=groups, bias=bias)

    def reset_parameters(self) -> None:
        """Initialize the weights anew, as `init` says."""
        super().reset_parameters()
        if self.init == "bilinear":
            with torch.no_grad():
                self.weight.copy_(
                    bilinear_weight(self.in_channels, self.out_channels, self.kernel_size[0], self.groups)
                )
                if self.bias is not None:
                    self.bias.zero_()

    def forward(self, x: Tensor, size: Size) -> Tensor:  # type: ignore[override]
        """(B, C, h, w) -> (B, out_channels, about h * stride, about w * stride); the target size is ignored."""
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
    """Return the weight of a transposed convolution that interpolates bilinearly (Long 2015, FCN).

    The kernel is (1 - |y - center| / factor)(1 - |x - center| / factor), with factor (k + 1) // 2 and center
    factor - 1 for odd k, factor - 0.5 for even k. Each output channel has this kernel for the input channels that are
    assigned to it, divided by their number, and zeros for all others.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: kernel size k.
        groups: number of groups, which divides both numbers of channels.

    Returns:
        A tensor of (in_channels, out_channels / groups, kernel, kernel).
    """
    factor = (kernel + 1) // 2
    center = factor - 1 if kernel % 2 else factor - 0.5
    profile = 1 - (torch.arange(kernel) - center).abs() / factor
    inputs, outputs = in_channels // groups, out_channels // groups  # channels per group
    if inputs >= outputs:
        pairs = [(i, i * outputs // inputs) for i in range(inputs)]
    else:
        pairs = [(o * inputs // outputs, o) for o in range(outputs)]
    shares = torch.zeros(inputs, outputs)
    for i, o in pairs:
        shares[i, o] = 1
    shares = shares / shares.sum(dim=0)
    return shares.repeat(groups, 1)[:, :, None, None] * torch.outer(profile, profile)


class PixelShuffleUpsampler(nn.Module):
    """Convolution to scale x scale times the channels, rearranged into pixels (sub-pixel convolution, Shi 2016).

    Args:
        kernel: kernel size of the convolution, an odd number; the map is padded so that its size stays the same.
        channels: half halves the number of channels, keep leaves it unchanged.
    """

    def __init__(
        self,
        in_channels: int,
        scale: float,
        *,
        kernel: int = 1,
        channels: Literal["half", "keep"] = "keep",
    ) -> None:
        n = check_integer_scale(scale, "pixelshuffle")
        if kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"kernel={kernel} must be a positive odd number, so that the size stays the same")
        out_channels = in_channels if channels == "keep" else in_channels // 2
        if out_channels < 1:
            raise BuildError(f"pixelshuffle cannot halve {in_channels} channel; give channels=keep")
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels * n * n, kernel, padding=kernel // 2)
        self.shuffle = nn.PixelShuffle(n)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, out_channels, h * scale, w * scale); the target size is ignored."""
        out: Tensor = self.shuffle(self.conv(x))
        return out


def check_integer_scale(scale: float, name: str) -> int:
    """Return the scale as an integer, for an upsampler called `name`. Raise BuildError where it is not one."""
    if scale != int(scale):
        raise BuildError(f"{name} cannot upsample by {scale:g}, which is not an integer; use bilinear or nearest")
    return int(scale)
