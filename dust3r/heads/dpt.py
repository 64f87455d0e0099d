"""The DPT head: pointmap and confidence fused from four decoder depths."""

from torch import Tensor, nn

from croco.dpt import DPT
from dust3r.heads.linear import pointmap_and_confidence
from dust3r.heads.postprocess import Mode


class PointmapDPT(nn.Module):
    """Pointmap and confidence of one view by dense prediction.

    Heads that predict more extend ``dense``, which also hands on the fused features.
    """

    def __init__(
        self,
        enc_dim: int,
        dec_dim: int,
        dec_depth: int,
        patch_size: int,
        depth_mode: Mode,
        conf_mode: Mode | None,
        dpt_dim: int,
    ):
        super().__init__()
        if dec_depth < 4:
            raise ValueError(
                f"a DPT head reads four depths of the decoder, and dec_depth={dec_depth}: "
                "give 4 or more, or use head_type='linear'"
            )
        self.hooks = (0, dec_depth // 2, 3 * dec_depth // 4, dec_depth)
        self.depth_mode, self.conf_mode = depth_mode, conf_mode
        channels = 3 + (conf_mode is not None)
        self.dpt = DPT((enc_dim, dec_dim, dec_dim, dec_dim), channels, dpt_dim, patch_size)

    @classmethod
    def build(cls, model: nn.Module) -> "PointmapDPT":
        return cls(
            model.enc_embed_dim,
            model.dec_embed_dim,
            model.dec_depth,
            model.patch_size,
            model.depth_mode,
            model.conf_mode,
            model.dpt_dim,
        )

    def forward(self, tokens: list[Tensor], image_size: tuple[int, int]) -> dict[str, Tensor]:
        return self.dense(tokens, image_size)[0]

    def dense(
        self, tokens: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The prediction, and the DPT's last fused map (B, dpt_dim, H/2, W/2)."""
        raw, features = self.dpt([tokens[i] for i in self.hooks], image_size)
        return pointmap_and_confidence(raw.float(), self.depth_mode, self.conf_mode), features
