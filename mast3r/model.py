"""AsymmetricMASt3R: pairwise pointmaps with descriptors for matching.

Leroy et al., "Grounding Image Matching in 3D with MASt3R", 2024.
"""

import re
from typing import Any

import mast3r.heads  # noqa: F401  (registers the heads with descriptors)
from dust3r.heads.postprocess import Mode
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.utils.spec import MODELS

__all__ = ["AsymmetricMASt3R", "load_model"]


@MODELS.register()
class AsymmetricMASt3R(AsymmetricCroCo3DStereo):
    """``AsymmetricCroCo3DStereo`` with, for ``head_type='catmlp+dpt'``, descriptors.

    Args:
        output_mode: ``'pts3d'``, or ``'pts3d+desc<D>'`` with descriptors of D channels.
        two_confs: whether descriptors have a confidence of their own.
        desc_conf_mode: its activation; that of ``conf_mode`` when None.
        desc_mode: ``'norm'``: descriptors have unit norm.
        desc_mlp_ratio: hidden channels of the descriptors' MLP per channel of its input; the
            published 4 makes that MLP the larger part of a small model.
        Others as ``AsymmetricCroCo3DStereo``.
    """

    def __init__(
        self,
        output_mode: str = "pts3d",
        head_type: str = "dpt",
        two_confs: bool = False,
        desc_mode: str = "norm",
        desc_conf_mode: Mode | None = None,
        desc_mlp_ratio: float = 4.0,
        conf_mode: Mode | None = ("exp", 1, float("inf")),
        **kwargs: Any,
    ):
        if desc_mode not in ("norm", ("norm",), ["norm"]):
            raise ValueError(f"desc_mode={desc_mode!r}: descriptors are 'norm', unit length")
        if not desc_mlp_ratio > 0:
            raise ValueError(f"desc_mlp_ratio={desc_mlp_ratio!r} must be above 0; 4 is published")
        # Plain values, set before the trunk is built because the head's builder reads them.
        self.two_confs = two_confs
        self.desc_conf_mode = tuple(desc_conf_mode or conf_mode or ()) or None
        self.desc_mlp_ratio = desc_mlp_ratio
        self.desc_dim = 0
        super().__init__(
            output_mode=output_mode, head_type=head_type, conf_mode=conf_mode, **kwargs
        )
        if self.desc_dim:
            self.downstream_head2.start_as(self.downstream_head1)

    def check_output_mode(self, output_mode: str, head_type: str) -> None:
        match = re.fullmatch(r"pts3d(?:\+desc(\d+))?", output_mode)
        if not match:
            raise ValueError(f"output_mode={output_mode!r} is not 'pts3d' or 'pts3d+desc<number>'")
        self.desc_dim = int(match[1] or 0)
        wants_descriptors = "catmlp" in head_type
        if bool(self.desc_dim) != wants_descriptors:
            needed = "'pts3d+desc24'" if wants_descriptors else "'pts3d'"
            raise ValueError(
                f"output_mode={output_mode!r} does not fit head_type={head_type!r}: give {needed}, "
                "or 'catmlp+dpt' for descriptors"
            )
