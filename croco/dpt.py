"""DPT: fusing tokens of four depths into a dense map (Ranftl et al., "Vision Transformers for Dense
Prediction", 2021).

Parameter names are those of the published DUSt3R and MASt3R heads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the four reassembled maps and of the head's last layers, at the published width 256.
REASSEMBLED = (96, 192, 384, 768)
PUBLISHED_WIDTH = 256


class DPT(nn.Module):
    """Tokens of four layers to a map of ``out_channels`` at the image's resolution.

    Args:
        token_dims: width of the tokens of each of the four layers, shallow to deep.
        out_channels: channels of the output.
        width: channels of the fused maps; the other widths scale with it.
        patch_size: pixels of a token's side.
    """

    def __init__(
        self,
        token_dims: tuple[int, int, int, int],
        out_channels: int,
        width: int = PUBLISHED_WIDTH,
        patch_size: int = 16,
    ):
        super().__init__()
        if width % 8:
            raise ValueError(f"dpt_dim={width} is not a multiple of 8")
        self.patch_size = patch_size
        self.width = width
        dims = [c * width // PUBLISHED_WIDTH for c in REASSEMBLED]
        up4, up2, keep, down2 = (
            [nn.Conv2d(token_dim, dim, 1)] for token_dim, dim in zip(token_dims, dims, strict=True)
        )
        up4.append(nn.ConvTranspose2d(dims[0], dims[0], 4, stride=4))
        up2.append(nn.ConvTranspose2d(dims[1], dims[1], 2, stride=2))
        down2.append(nn.Conv2d(dims[3], dims[3], 3, stride=2, padding=1))
        self.act_postprocess = nn.ModuleList(nn.Sequential(*m) for m in (up4, up2, keep, down2))
        self.scratch = _Scratch(dims, width)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            Upsample2(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, out_channels, 1),
        )

    def forward(self, tokens: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Dense output and the features it was made from.

        Args:
            tokens: four tensors (B, N, token_dims[i]) over the same token grid, rows first.
            image_size: (H, W) in pixels.

        Returns:
            the output (B, out_channels, H, W) and the last fused map (B, width, H/2, W/2).
        """
        grid = tuple(side // self.patch_size for side in image_size)
        maps = [
            narrow(reassemble(_to_map(layer, grid)))
            for layer, reassemble, narrow in zip(
                tokens, self.act_postprocess, self.scratch.layer_rn, strict=True
            )
        ]
        fused = self.scratch.fuse(maps)
        return self.head(fused), fused


class _Scratch(nn.Module):
    """Equal-width maps of four scales, fused from the coarsest to the finest."""

    def __init__(self, dims: list[int], width: int):
        super().__init__()
        narrow = [nn.Conv2d(dim, width, 3, padding=1, bias=False) for dim in dims]
        # Published files hold these layers under both names; the tensors are shared.
        for i, layer in enumerate(narrow, 1):
            self.add_module(f"layer{i}_rn", layer)
        self.layer_rn = nn.ModuleList(narrow)
        for i in range(1, 5):
            self.add_module(f"refinenet{i}", FusionBlock(width))
        # The coarsest map has nothing to be added to: kept for its name, and never run.
        self.refinenet4.resConfUnit1.requires_grad_(False)

    def fuse(self, maps: list[Tensor]) -> Tensor:
        path = self.refinenet4(maps[3])
        # An odd token grid halves with rounding up, and doubles back to one row or column more.
        path = path[..., : maps[2].shape[-2], : maps[2].shape[-1]]
        path = self.refinenet3(path, maps[2])
        path = self.refinenet2(path, maps[1])
        return self.refinenet1(path, maps[0])


class FusionBlock(nn.Module):
    """Adds a skip map to the coarser path, refines and doubles the resolution."""

    def __init__(self, width: int):
        super().__init__()
        self.resConfUnit1 = ResidualConvUnit(width)
        self.resConfUnit2 = ResidualConvUnit(width)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, path: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            path = path + self.resConfUnit1(skip)
        # A projection is the same before as after bilinear upsampling, at a quarter of the cost.
        return upsample2(self.out_conv(self.resConfUnit2(path)))


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Upsample2(nn.Module):
    """``upsample2`` as a layer; published heads count it in their layers' numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample2(x)


def upsample2(x: Tensor) -> Tensor:
    """Bilinear doubling of (B, C, H, W), corners aligned."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)
