"""Patch embeddings of the pairwise models: one shape per batch, or landscape and portrait mixed."""

import torch
from torch import Tensor

from croco.blocks import PatchEmbed
from croco.pos_embed import grid_positions


class PatchEmbedDust3R(PatchEmbed):
    """Images of one shape, upright as they are."""

    def forward(self, image: Tensor, true_shape: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``image`` (B, 3, H, W) to tokens (B, N, dim) and positions (B, N, 2)."""
        return super().forward(image)


class ManyAR_PatchEmbed(PatchEmbed):  # noqa: N801 (name of the published specification strings)
    """Batches in landscape layout whose portrait images travel transposed.

    Portrait images are turned upright before the projection, and their positions are those of the
    upright grid, so that the network sees every image as a person would.
    """

    def forward(self, image: Tensor, true_shape: Tensor) -> tuple[Tensor, Tensor]:
        """``image`` (B, 3, H, W) with W >= H; ``true_shape`` (B, 2) the upright (height, width)."""
        self.check_size(image)
        batch, _, height, width = image.shape
        if width < height:
            raise ValueError(
                f"ManyAR_PatchEmbed takes batches in landscape layout, and this one is {height}x"
                f"{width} (height x width): transpose portrait images and keep their upright size "
                "in true_shape, or use patch_embed_cls='PatchEmbedDust3R' with landscape_only=False"
            )
        is_landscape = _is_landscape(true_shape)
        rows, columns = height // self.patch_size, width // self.patch_size
        landscape = grid_positions(batch, rows, columns, image.device)
        if is_landscape.all():
            return self.proj(image).flatten(2).transpose(1, 2), landscape

        is_landscape = is_landscape.to(image.device)
        tokens = image.new_empty(batch, rows * columns, self.proj.out_channels)
        upright = {
            True: self.proj(image[is_landscape]),
            False: self.proj(image[~is_landscape].transpose(2, 3)),
        }
        tokens = tokens.to(upright[True].dtype)
        positions = landscape.clone()
        for is_wide, grid in upright.items():
            chosen = is_landscape == is_wide
            tokens[chosen] = grid.flatten(2).transpose(1, 2)
            positions[chosen] = grid_positions(len(grid), *grid.shape[2:], image.device)
        return tokens, positions


def _is_landscape(true_shape: Tensor) -> Tensor:
    height, width = true_shape.unbind(-1)
    return torch.as_tensor(width >= height)


PATCH_EMBEDS = {c.__name__: c for c in (PatchEmbedDust3R, ManyAR_PatchEmbed)}
