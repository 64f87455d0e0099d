"""FeatUQ: evidential depth uncertainty predicted from decoder features (the student)."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from dust3r.heads.dpt_uq import GeoUQ, convolutions, depth_outputs
from dust3r.uncertainty.evidential import NormalInverseGamma


class FeatUQ(GeoUQ):
    """GeoUQ (same names, so that its weights load) and the same distribution from features."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.depth_mean_head = convolutions(self.dpt.width, 256, 1)
        self.depth_evi_head_feat = convolutions(self.dpt.width, 512, 4)

    def dense(
        self, tokens: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        prediction, features = super().dense(tokens, image_size)

        def to_image(x: Tensor) -> Tensor:
            return F.interpolate(x, size=image_size, mode="bilinear", align_corners=True)

        coarse = NormalInverseGamma.from_raw(self.depth_evi_head_feat(features))
        fine = NormalInverseGamma(
            **{f.name: to_image(getattr(coarse, f.name)) for f in dataclasses.fields(coarse)}
        )
        prediction["depth_mean_feat"] = to_image(self.depth_mean_head(features).float())
        prediction |= depth_outputs(fine, "_feat")
        return prediction, features
