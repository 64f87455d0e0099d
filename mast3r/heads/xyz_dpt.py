"""MASt3R heads that state a distribution of each point, with or without gated refinement.

A second DPT, beside that of the geometry, gives the parameters; the points are the mean. Parameter
names are those of the published weights (Trust3R, 2026).
"""

import torch
from torch import Tensor, nn

from croco.blocks import Mlp
from croco.dpt import DPT
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.points import NormalInverseWishart, PointGaussian
from mast3r.heads.catmlp_dpt import CatMlpDPT
from mast3r.heads.residual_gated import Mode, ResidualGated


class DistributionDPT(CatMlpDPT):
    """``catmlp+dpt`` and, per pixel, a distribution of the point around the predicted one.

    Subclasses say what their DPT is called and what its channels mean. Points and distributions of
    both views are in camera 1's frame.

    Args:
        gate_mode: refine the points first, as ``ResidualGated``; None for the points as they are.
        Others as ``CatMlpDPT``.
    """

    channels: int

    def __init__(
        self,
        *args,
        enc_dim: int,
        dec_dim: int,
        patch_size: int,
        dpt_dim: int,
        gate_mode: Mode | None = None,
        desc_mlp_ratio: float = 4.0,
        **kwargs,
    ):
        super().__init__(
            *args,
            enc_dim=enc_dim,
            dec_dim=dec_dim,
            patch_size=patch_size,
            dpt_dim=dpt_dim,
            desc_mlp_ratio=desc_mlp_ratio,
            **kwargs,
        )
        dims = (enc_dim, dec_dim, dec_dim, dec_dim)
        self.add_distribution(DPT(dims, self.channels, dpt_dim, patch_size))
        self.residual_gated = None
        if gate_mode is not None:
            self.residual_gated = ResidualGated(gate_mode, patch_size)
            self._add_mlps(enc_dim + dec_dim, desc_mlp_ratio)

    def add_distribution(self, dpt: DPT) -> None:
        """Keep ``dpt`` under its published name."""
        raise NotImplementedError

    def distribution_dpt(self) -> DPT:
        """What ``add_distribution`` kept."""
        raise NotImplementedError

    def describe(self, points: Tensor, raw: Tensor) -> dict[str, Tensor]:
        """Maps of the distribution around ``points`` (B,3,H,W), from channels (B,C,H,W)."""
        raise NotImplementedError

    def dense(
        self, tokens: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        prediction, features = super().dense(tokens, image_size)
        if self.residual_gated is not None:
            grid = tuple(side // self.patch_size for side in image_size)
            both = torch.cat([tokens[0], tokens[-1]], dim=-1)
            prediction |= self.residual_gated(
                prediction["pts3d"], self.gate_mlp(both), self.delta_mlp(both), grid
            )
        raw, _ = self.distribution_dpt()([tokens[i] for i in self.hooks], image_size)
        prediction |= self.describe(prediction["pts3d"].movedim(-1, 1), raw.float())
        return prediction, features

    def _add_mlps(self, token_dim: int, ratio: float) -> None:
        hidden, values = round(ratio * token_dim), self.residual_gated.values_per_token
        self.gate_mlp = Mlp(token_dim, hidden, values)
        self.delta_mlp = Mlp(token_dim, hidden, 3 * values)
        # The refinement starts as none at all: a pretrained geometry is not disturbed.
        nn.init.zeros_(self.delta_mlp.fc2.weight)
        nn.init.zeros_(self.delta_mlp.fc2.bias)
        if self.residual_gated.mode == "bilinear":
            nn.init.zeros_(self.residual_gated.delta_post.bias)


class EvidentialDPT(DistributionDPT):
    """``xyz_evi_dpt``: a normal-inverse-gamma of each coordinate."""

    channels = 9

    def add_distribution(self, dpt: DPT) -> None:
        self.dpt_xyz_evi = dpt

    def distribution_dpt(self) -> DPT:
        return self.dpt_xyz_evi

    def describe(self, points: Tensor, raw: Tensor) -> dict[str, Tensor]:
        nig = NormalInverseGamma.from_evidence(points, raw)
        return {
            "xyz_gamma": nig.gamma,
            "xyz_nu": nig.nu,
            "xyz_alpha": nig.alpha,
            "xyz_beta": nig.beta,
            "xyz_mu": nig.mean,
            "xyz_var": nig.variance,
        }


class WishartDPT(DistributionDPT):
    """``xyz_niw_dpt``: a normal-inverse-Wishart of the point, with a full covariance."""

    channels = 8

    def add_distribution(self, dpt: DPT) -> None:
        self.dpt_xyz_niw = dpt

    def distribution_dpt(self) -> DPT:
        return self.dpt_xyz_niw

    def describe(self, points: Tensor, raw: Tensor) -> dict[str, Tensor]:
        niw = NormalInverseWishart.from_raw(points, raw)
        return {
            "xyz_niw_m": niw.m,
            "xyz_niw_kappa": niw.kappa,
            "xyz_niw_nu": niw.nu,
            "xyz_niw_L": niw.L,
            "xyz_niw_psi_diag": niw.psi_diagonal,
            "xyz_niw_scale": niw.scale,
            "xyz_niw_var_diag": niw.spread,
            "xyz_mu": niw.mean,
            "xyz_var": niw.spread,
        }


class HeteroscedasticDPT(DistributionDPT):
    """``xyz_hetero_dpt``: a Gaussian of each coordinate."""

    channels = 3

    def add_distribution(self, dpt: DPT) -> None:
        self.dpt_xyz_logvar = nn.ModuleDict({"dpt": dpt})

    def distribution_dpt(self) -> DPT:
        return self.dpt_xyz_logvar["dpt"]

    def describe(self, points: Tensor, raw: Tensor) -> dict[str, Tensor]:
        gaussian = PointGaussian.from_raw(points, raw)
        return {
            "xyz_mu": gaussian.mean,
            "xyz_logvar": gaussian.log_variance,
            "xyz_var": gaussian.total,
        }
