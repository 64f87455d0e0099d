"""The MASt3R head: a DPT for geometry, an MLP on encoder and decoder tokens for descriptors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croco.blocks import Mlp
from dust3r.heads.dpt import PointmapDPT
from dust3r.heads.postprocess import Mode, confidence


class CatMlpDPT(PointmapDPT):
    """``dpt`` and, per pixel, a unit-norm descriptor with its confidence (MASt3R, section 3.2)."""

    def __init__(
        self,
        *args,
        patch_size: int,
        desc_dim: int,
        desc_conf_mode: Mode | None,
        desc_mlp_ratio: float = 4.0,
        **kwargs,
    ):
        super().__init__(*args, patch_size=patch_size, **kwargs)
        self.patch_size = patch_size
        self.desc_dim = desc_dim
        self.desc_conf_mode = desc_conf_mode
        token_dim = kwargs["enc_dim"] + kwargs["dec_dim"]
        channels = desc_dim + (desc_conf_mode is not None)
        self.head_local_features = Mlp(
            token_dim, round(desc_mlp_ratio * token_dim), channels * patch_size**2
        )
        self._start_alike()

    @classmethod
    def build(cls, model: nn.Module, **more: Any) -> "CatMlpDPT":
        """The head for ``model``; ``more`` are arguments that models do not have."""
        return cls(
            enc_dim=model.enc_embed_dim,
            dec_dim=model.dec_embed_dim,
            dec_depth=model.dec_depth,
            patch_size=model.patch_size,
            depth_mode=model.depth_mode,
            conf_mode=model.conf_mode,
            dpt_dim=model.dpt_dim,
            desc_dim=model.desc_dim,
            desc_conf_mode=model.desc_conf_mode if model.two_confs else None,
            desc_mlp_ratio=model.desc_mlp_ratio,
            **more,
        )

    def start_as(self, other: "CatMlpDPT") -> None:
        """Take the descriptors' weights of another head, so that both images speak one language.

        Trained from heads that differ, a small model's descriptors collapse into a constant, where
        the matching loss is flat, before what the tokens know can show.
        """
        self.head_local_features.load_state_dict(other.head_local_features.state_dict())

    @torch.no_grad()
    def _start_alike(self) -> None:
        """All pixels of a patch start with one descriptor.

        Else a point's descriptor would depend on where in its patch it falls, which differs from
        view to view, and nothing would match at first: see ``start_as``.
        """
        last = self.head_local_features.fc2
        for values in (last.weight, last.bias):
            by_pixel = values.view(-1, self.patch_size**2, *values.shape[1:])
            by_pixel.copy_(by_pixel[:, :1].clone().expand_as(by_pixel))

    def dense(
        self, tokens: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        prediction, features = super().dense(tokens, image_size)
        grid = tuple(side // self.patch_size for side in image_size)
        patches = self.head_local_features(torch.cat([tokens[0], tokens[-1]], dim=-1))
        local = F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, grid), self.patch_size)
        local = local.float().permute(0, 2, 3, 1)
        prediction["desc"] = F.normalize(local[..., : self.desc_dim], dim=-1)
        if self.desc_conf_mode is None:
            prediction["desc_conf"] = prediction["conf"]
        else:
            prediction["desc_conf"] = confidence(local[..., self.desc_dim], self.desc_conf_mode)
        return prediction, features
