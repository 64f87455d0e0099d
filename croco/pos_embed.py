"""Positional information: fixed 2-D sine-cosine embeddings and rotary embeddings (RoPE) in 2-D."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def sincos_embedding_2d(dim: int, height: int, width: int) -> Tensor:
    """Fixed embedding (height * width, dim) of a token grid, rows first.

    Half of the channels encode the column, half the row, each as sines then cosines of
    geometrically spaced frequencies (Vaswani et al., 2017, section 3.5, per axis as in He et al.,
    "Masked Autoencoders", 2022).

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine embedding needs a width that 4 divides, not {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    parts = []
    for position in (columns, rows):
        angles = position.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()


def grid_positions(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """(row, column) of every token of a grid, rows first: (batch, height * width, 2), int64."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([rows, columns], dim=-1).reshape(1, -1, 2).expand(batch, -1, -1)


@dataclass(frozen=True)
class Rotation:
    """Cosines and signed sines of the angles by which RoPE turns a head's channels.

    Both are (B, N, head_dim). A head's channels are four equal parts, [a | b] for the row and
    [c | d] for the column; (a_i, b_i) turn together, and (c_i, d_i). The sines are negative for a
    and c, so that the turned channels are ``x * cos + [b | a | d | c] * sin``.
    """

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Turn queries or keys (B, N, ..., head_dim); the type of ``x`` is kept."""
        spread = (*self.cos.shape[:2], *(1,) * (x.ndim - 3), self.cos.shape[2])
        a, b, c, d = x.chunk(4, dim=-1)
        partner = torch.cat([b, a, d, c], dim=-1)
        turned = torch.addcmul(x * self.cos.view(spread), partner, self.sin.view(spread))
        return turned.to(x.dtype)


class RoPE2D(nn.Module):
    """Rotary position embedding over a 2-D token grid (Su et al., 2021; in 2-D as CroCo v2, 2023).

    It has no weights. Called on positions (B, N, 2) of (row, column), it gives the ``Rotation``
    that every layer of a trunk shares.
    """

    def __init__(self, head_dim: int, base: float = 100.0):
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"RoPE in 2-D needs a head width that 4 divides, not {head_dim}")
        self.head_dim = head_dim
        self.base = base

    def forward(self, positions: Tensor) -> Rotation:
        count = self.head_dim // 4
        exponents = torch.arange(count, dtype=torch.float32, device=positions.device) / count
        angles = positions[..., None].float() * self.base**-exponents
        cos, sin = angles.cos(), angles.sin()
        return Rotation(
            torch.cat([cos, cos], dim=-1).flatten(-2), torch.cat([-sin, sin], dim=-1).flatten(-2)
        )
