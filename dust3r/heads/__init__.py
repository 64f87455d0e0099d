"""Heads: from decoder tokens to the predictions of one view.

``HEADS`` maps a model's ``head_type`` to the builder of its head. A builder takes the model and
returns a module whose ``forward(tokens, image_size)`` takes the list of token maps of the encoder
and every decoder layer, each (B, N, dim), and (H, W), and returns a prediction (DESIGN: pts3d,
conf and the head's own).
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from dust3r.heads.dpt import PointmapDPT
from dust3r.heads.dpt_uq import GeoUQ
from dust3r.heads.dpt_uq_feat import FeatUQ
from dust3r.heads.linear import PointmapLinear

HEADS: dict[str, Callable[[Any], nn.Module]] = {
    "linear": PointmapLinear.build,
    "dpt": PointmapDPT.build,
    "dpt_uq": GeoUQ.build,
    "dpt_uq_feat": FeatUQ.build,
}


def build_head(head_type: str, model: nn.Module) -> nn.Module:
    """The head called ``head_type`` for ``model``.

    Raises:
        ValueError: no head of that name is registered.
    """
    if head_type not in HEADS:
        hint = ""
        if "catmlp" in head_type:
            hint = "; heads with descriptors belong to AsymmetricMASt3R"
        raise ValueError(f"head_type={head_type!r} is none of {sorted(HEADS)}{hint}")
    return HEADS[head_type](model)
