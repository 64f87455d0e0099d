"""From pairs of images to one scene (Wang et al., "DUSt3R", 2024, section 3.3)."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from dust3r.cloud_opt.base_opt import BaseOptimizer
from dust3r.cloud_opt.modular_optimizer import ModularPointCloudOptimizer
from dust3r.cloud_opt.optimizer import PointCloudOptimizer
from dust3r.cloud_opt.pair_viewer import PairViewer

__all__ = [
    "GlobalAlignerMode",
    "ModularPointCloudOptimizer",
    "PairViewer",
    "PointCloudOptimizer",
    "global_aligner",
]


class GlobalAlignerMode(Enum):
    """How pairs become one scene."""

    PointCloudOptimizer = "PointCloudOptimizer"
    ModularPointCloudOptimizer = "ModularPointCloudOptimizer"
    PairViewer = "PairViewer"


_CLASSES = {
    GlobalAlignerMode.PointCloudOptimizer: PointCloudOptimizer,
    GlobalAlignerMode.ModularPointCloudOptimizer: ModularPointCloudOptimizer,
    GlobalAlignerMode.PairViewer: PairViewer,
}


def global_aligner(
    dust3r_output: Mapping[str, Any],
    device: Any = "cpu",
    mode: GlobalAlignerMode = GlobalAlignerMode.PointCloudOptimizer,
    **options: Any,
) -> BaseOptimizer:
    """The scene of the pairs that ``dust3r.inference.inference`` returned, yet to be aligned.

    Args:
        device: accepted as in published scripts; alignment runs on the CPU, where its small
            matrices are solved fastest.
        mode: ``PairViewer`` for two images, else an optimiser.
        options: of ``BaseOptimizer``.

    Raises:
        ValueError: the mode is unknown, or what ``BaseOptimizer`` raises.
    """
    try:
        chosen = _CLASSES[GlobalAlignerMode(mode)]
    except ValueError:
        names = ", ".join(GlobalAlignerMode.__members__)
        raise ValueError(f"mode={mode!r} is no GlobalAlignerMode: {names}") from None
    output = (dust3r_output[key] for key in ("view1", "view2", "pred1", "pred2"))
    return chosen(*output, **options)
