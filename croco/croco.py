"""CroCo: cross-view completion.

Weinzaepfel et al., "CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View
Completion", 2022, and "CroCo v2", 2023.
"""

import torch
from torch import Tensor, nn

from croco.blocks import NORM_EPS, Block, DecoderBlock, PatchEmbed, init_weights, rope_base
from croco.masking import RandomMask
from croco.pos_embed import RoPE2D, Rotation, sincos_embedding_2d


class CroCoTrunk(nn.Module):
    """The encoder and decoder layers that CroCo and the pairwise pointmap models share.

    Args:
        img_size: (height, width) in pixels, or one number for both; fixes the token grid of
            ``pos_embed='cosine'`` only.
        pos_embed: ``'cosine'`` (added to the tokens) or ``'RoPE<base>'`` (inside the attention).
        norm_im2_in_dec: whether each decoder block normalises the other view's tokens.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        pos_embed: str,
        enc_embed_dim: int,
        enc_depth: int,
        enc_num_heads: int,
        dec_embed_dim: int,
        dec_depth: int,
        dec_num_heads: int,
        mlp_ratio: float = 4.0,
        norm_im2_in_dec: bool = True,
    ):
        super().__init__()
        img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if any(side % patch_size or side <= 0 for side in img_size):
            raise ValueError(f"img_size={img_size}: both sides must be multiples of {patch_size}")
        self.patch_size = patch_size
        self.enc_embed_dim, self.dec_embed_dim = enc_embed_dim, dec_embed_dim
        self.enc_depth, self.dec_depth = enc_depth, dec_depth

        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec_embed_dim))
        self.patch_embed = self.make_patch_embed(img_size)
        self.enc_blocks = nn.ModuleList(
            Block(enc_embed_dim, enc_num_heads, mlp_ratio) for _ in range(enc_depth)
        )
        self.enc_norm = nn.LayerNorm(enc_embed_dim, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(enc_embed_dim, dec_embed_dim)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(dec_embed_dim, dec_num_heads, mlp_ratio, norm_im2_in_dec)
            for _ in range(dec_depth)
        )
        self.dec_norm = nn.LayerNorm(dec_embed_dim, eps=NORM_EPS)

        base = rope_base(pos_embed)
        self.enc_rope = self.dec_rope = None
        if base is None:
            grid = self.patch_embed.grid_size
            self.register_buffer("enc_pos_embed", sincos_embedding_2d(enc_embed_dim, *grid))
            self.register_buffer("dec_pos_embed", sincos_embedding_2d(dec_embed_dim, *grid))
        else:
            self.enc_rope = RoPE2D(enc_embed_dim // enc_num_heads, base)
            self.dec_rope = RoPE2D(dec_embed_dim // dec_num_heads, base)

    def make_patch_embed(self, img_size: tuple[int, int]) -> PatchEmbed:
        return PatchEmbed(img_size, self.patch_size, self.enc_embed_dim)

    def initialize_weights(self) -> None:
        """Random weights for every layer; the mask token small and normal."""
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def compile_layers(self) -> None:
        """Run blocks by ``torch.compile`` from now on; names and weights stay.

        The rest of the forward pass chooses by names and shapes that differ from batch to batch,
        on which a compiled whole would be compiled again and again.
        """
        for block in (*self.enc_blocks, *self.dec_blocks):
            block.compile()

    def encode_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Encoder blocks and final norm on tokens (B, N, enc_dim) at (row, column) positions."""
        rotation = None
        if self.enc_rope is None:
            tokens = tokens + self._fixed_embedding(self.enc_pos_embed, positions)
        else:
            rotation = self.enc_rope(positions)
        for block in self.enc_blocks:
            tokens = block(tokens, rotation)
        return self.enc_norm(tokens)

    def enter_decoder(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Rotation | None]:
        """Add what the decoder knows of positions to tokens (B, N, dec_dim)."""
        if self.dec_rope is None:
            return tokens + self._fixed_embedding(self.dec_pos_embed, positions), None
        return tokens, self.dec_rope(positions)

    def _fixed_embedding(self, table: Tensor, positions: Tensor) -> Tensor:
        height, width = self.patch_embed.grid_size
        if positions[..., 0].max() >= height or positions[..., 1].max() >= width:
            raise ValueError(
                "pos_embed='cosine' is tied to img_size "
                f"{height * self.patch_size}x{width * self.patch_size}, and this image is larger; "
                "use pos_embed='RoPE100' for images of any size"
            )
        return table[positions[..., 0] * width + positions[..., 1]]


class CroCoNet(CroCoTrunk):
    """Completes a mostly hidden image from a second view of the scene.

    Defaults are the paper's: ViT-B encoder, a decoder of 8 blocks, 90% hidden.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        mask_ratio: float = 0.9,
        enc_embed_dim: int = 768,
        enc_depth: int = 12,
        enc_num_heads: int = 12,
        dec_embed_dim: int = 512,
        dec_depth: int = 8,
        dec_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_im2_in_dec: bool = True,
        pos_embed: str = "cosine",
    ):
        super().__init__(
            img_size,
            patch_size,
            pos_embed,
            enc_embed_dim,
            enc_depth,
            enc_num_heads,
            dec_embed_dim,
            dec_depth,
            dec_num_heads,
            mlp_ratio,
            norm_im2_in_dec,
        )
        self.mask_generator = RandomMask(mask_ratio)
        self.prediction_head = nn.Linear(dec_embed_dim, 3 * patch_size**2)
        self.initialize_weights()

    def forward(
        self, img1: Tensor, img2: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Complete ``img1`` from what is left of it and from ``img2``, both (B, 3, H, W).

        Args:
            mask: (B, N) bool, True where a patch of ``img1`` is hidden, the same number in each
                row; drawn at random when None.

        Returns:
            the completed patches (B, N, 3 * patch_size^2), the mask, and the true patches; N in
            rows, a patch's values as row, column, channel. The loss is taken on hidden patches.
        """
        tokens1, positions1 = self.patch_embed(img1)
        batch, count = tokens1.shape[:2]
        if mask is None:
            mask = self.mask_generator(batch, count, img1.device)
        seen = ~mask
        encoded1 = self.encode_tokens(
            tokens1[seen].view(batch, -1, tokens1.shape[-1]),
            positions1[seen].view(batch, -1, 2),
        )
        tokens2, positions2 = self.patch_embed(img2)
        encoded2 = self.encode_tokens(tokens2, positions2)

        embedded1 = self.decoder_embed(encoded1)
        full1 = self.mask_token.to(embedded1.dtype).expand(batch, count, -1).clone()
        full1[seen] = embedded1.flatten(0, 1)
        x, rotation1 = self.enter_decoder(full1, positions1)
        y, rotation2 = self.enter_decoder(self.decoder_embed(encoded2), positions2)
        for block in self.dec_blocks:
            x = block(x, y, rotation1, rotation2)
        return self.prediction_head(self.dec_norm(x)), mask, self.patchify(img1)

    def patchify(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, patch_size^2 * 3), a patch's values as row, column, channel."""
        p = self.patch_size
        blocks = image.unfold(2, p, p).unfold(3, p, p)
        return blocks.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Inverse of ``patchify`` for an image of ``height`` x ``width`` pixels."""
        p = self.patch_size
        grid = patches.unflatten(2, (p, p, 3)).unflatten(1, (height // p, width // p))
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, height, width)
