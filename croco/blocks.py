"""Transformer layers: MLP, self- and cross-attention, encoder and decoder blocks, patch embedding.

Parameter names are those of the published CroCo, DUSt3R and MASt3R weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from croco.pos_embed import Rotation, grid_positions

NORM_EPS = 1e-6


class Mlp(nn.Module):
    """Two linear layers with a GELU between: (..., in_features) to (..., out_features)."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, dim)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = _checked_heads(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        if rotation is not None:
            qk = rotation.apply(qk)
        return self.proj(_attend(qk[:, :, 0], qk[:, :, 1], v))


class CrossAttention(nn.Module):
    """Multi-head attention of queries (B, N, dim) over the tokens (B, M, dim) of another view."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = _checked_heads(dim, num_heads)
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        rotation_x: Rotation | None = None,
        rotation_y: Rotation | None = None,
    ) -> Tensor:
        heads = (self.num_heads, -1)
        q = self.projq(x).unflatten(-1, heads)
        k = self.projk(y).unflatten(-1, heads)
        v = self.projv(y).unflatten(-1, heads)
        if rotation_x is not None:
            q, k = rotation_x.apply(q), rotation_y.apply(k)
        return self.proj(_attend(q, k, v))


class Block(nn.Module):
    """Pre-norm encoder block: self-attention, then MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm decoder block: self-attention, cross-attention to the other view, then MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, norm_y: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm_y = nn.LayerNorm(dim, eps=NORM_EPS) if norm_y else nn.Identity()

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        rotation_x: Rotation | None = None,
        rotation_y: Rotation | None = None,
    ) -> Tensor:
        """``x`` (B, N, dim) is this view's tokens, ``y`` (B, M, dim) the other's, unchanged."""
        x = x + self.attn(self.norm1(x), rotation_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), rotation_x, rotation_y)
        return x + self.mlp(self.norm3(x))


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) to tokens (B, N, dim) and their (row, column) positions (B, N, 2).

    Raises:
        ValueError: H or W is not a multiple of the patch size.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.check_size(image)
        grid = self.proj(image)
        positions = grid_positions(len(grid), *grid.shape[2:], grid.device)
        return grid.flatten(2).transpose(1, 2), positions

    def check_size(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"an image of {height}x{width} (height x width) does not divide into patches of "
                f"{self.patch_size} pixels: crop or resize it so that both sides are multiples"
            )


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linear layers and patch projections, zero biases, unit norms (MAE, 2022)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        weight = module.proj.weight
        nn.init.xavier_uniform_(weight.view(len(weight), -1))


def _checked_heads(dim: int, num_heads: int) -> int:
    if dim % num_heads:
        raise ValueError(f"a width of {dim} does not divide into {num_heads} heads")
    return num_heads


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries (B, N, heads, d) over (B, M, heads, d), heads joined: (B, N, dim)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rope_base(pos_embed: str) -> float | None:
    """The base of ``RoPE<base>``, or None for ``cosine``.

    Raises:
        ValueError: ``pos_embed`` is neither.
    """
    if pos_embed == "cosine":
        return None
    if pos_embed.startswith("RoPE"):
        try:
            return float(pos_embed.removeprefix("RoPE"))
        except ValueError:
            pass
    raise ValueError(
        f"pos_embed={pos_embed!r} is not known: give 'cosine' or 'RoPE' and its base, as 'RoPE100'"
    )
