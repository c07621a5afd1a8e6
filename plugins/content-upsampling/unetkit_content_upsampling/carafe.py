"""CARAFE, which upsamples by content-aware reassembly: (B, C, h, w) -> (B, C, h * scale, w * scale)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit.parts.upsamplers import check_integer_scale
from unetkit.utils.formatting import Size


class CARAFE(nn.Module):
    """Weighted mean of a neighbourhood for each pixel, with weights computed from the map (CARAFE, Wang 2019).

    A 1x1 convolution compresses the map, a second one makes scale x scale kernels at each pixel of it, and a softmax
    lets the weights of each kernel sum to one. With r = (kernel - 1) / 2 the output pixel (y, x) is

        sum over n, m from -r to r of kernel_yx[n, m] * map[y // scale + n, x // scale + m]

    where the map is zero outside its borders.

    Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, arXiv 1905.02188.

    Args:
        kernel: side of the neighbourhood, an odd number (k_up in the paper).
        encoder_kernel: kernel size of the convolution that computes the weights, an odd number (k_encoder).
        compressed: number of channels to which the map is compressed for this convolution (C_m).
    """

    def __init__(
        self,
        in_channels: int,
        scale: float,
        *,
        kernel: int = 5,
        encoder_kernel: int = 3,
        compressed: int = 64,
    ) -> None:
        check_integer_scale(scale, "carafe")
        for name, side in (("kernel", kernel), ("encoder_kernel", encoder_kernel)):
            if side < 1 or side % 2 == 0:
                raise OptionError(f"{name}={side} must be a positive odd number, so that it has a center")
        if compressed < 1:
            raise OptionError(f"compressed={compressed} must be at least 1")
        super().__init__()
        self.out_channels = in_channels
        self.scale, self.kernel = int(scale), kernel
        self.compress = nn.Conv2d(in_channels, compressed, 1)
        self.encode = nn.Conv2d(
            compressed,
            (self.scale * kernel) ** 2,
            encoder_kernel,
            padding=encoder_kernel // 2,
        )

    def kernels(self, x: Tensor) -> Tensor:
        """Compute the weights (B, kernel * kernel, h * scale, w * scale) for a map (B, C, h, w); they sum to one."""
        kernels = F.pixel_shuffle(self.encode(self.compress(x)), self.scale)
        return kernels.softmax(dim=1).to(x.dtype)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, h * scale, w * scale); the target size is ignored."""
        kernels, n = self.kernels(x), self.scale
        height, width = kernels.shape[-2:]
        padded = F.pad(x, [self.kernel // 2] * 4)
        enlarged = F.interpolate(padded, scale_factor=float(n), mode="nearest")
        out = kernels.new_zeros(())
        # Shifts are added one by one: F.unfold would keep kernel x kernel copies of the map for the backward pass.
        for index in range(self.kernel**2):
            top, left = (n * shift for shift in divmod(index, self.kernel))
            shifted = enlarged[..., top : top + height, left : left + width]
            out = out + kernels[:, index : index + 1] * shifted
        return out
