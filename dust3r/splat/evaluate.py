"""How like the photographs splats are in views that were held out: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from dust3r.splat.gaussians import Gaussians
from dust3r.splat.rasterise import Rasteriser
from dust3r.splat.train import Shot

log = logging.getLogger(__name__)

# Of images (1, 3, H, W) in [0, 1].
Perceptual = Callable[[Tensor, Tensor], Tensor]

# The network halves its image four times.
_LEAST_SIDE_LPIPS = 32


@dataclass(frozen=True)
class Score:
    """Of one view, or the mean of several; ``lpips`` is NaN where it was left out.

    Attributes:
        name: of the photograph.
        psnr: dB, more is better.
        ssim: at most 1, more is better.
        lpips: 0 or more, less is better.
    """

    name: str
    psnr: float
    ssim: float
    lpips: float = math.nan


def score(
    params: torch.nn.ParameterDict,
    shots: Sequence[Shot],
    rasteriser: Rasteriser,
    *,
    sh_degree: int,
    near: float = 0.01,
    perceptual: Perceptual | None = None,
) -> tuple[list[Score], list[np.ndarray]]:
    """Each view's score, and its rendering (H, W, 3) uint8.

    Numbers are of what an 8-bit image can hold: clipped to [0, 1] and rounded.
    """
    scores, pictures = [], []
    with torch.no_grad():
        gaussians = Gaussians.of(params)
        for shot in shots:
            image = rasteriser(gaussians, shot.camera, sh_degree=sh_degree, near=near).image
            steps = (image.clamp(0, 1) * 255).round()
            pictures.append(steps.to(torch.uint8).cpu().numpy())
            pair = [one.permute(2, 0, 1)[None] for one in (steps / 255, shot.target())]
            scores.append(
                Score(
                    shot.name,
                    float(peak_signal_noise_ratio(*pair, data_range=1.0)),
                    float(structural_similarity_index_measure(*pair, data_range=1.0)),
                    float(perceptual(*pair)) if perceptual is not None else math.nan,
                )
            )
    return scores, pictures


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean over views of each number."""
    columns = ([getattr(one, name) for one in scores] for name in ("psnr", "ssim", "lpips"))
    return Score("mean", *(float(np.mean(column)) for column in columns))


def load_lpips(device: torch.device, least_side: int) -> tuple[Perceptual | None, str]:
    """LPIPS (Zhang et al., 2018) by VGG-16, as splats are compared in print; and why not, if not.

    Its network's weights are downloaded by torchvision at the first use.

    Args:
        device: where images are.
        least_side: of the images, in pixels.
    """
    if least_side < _LEAST_SIDE_LPIPS:
        return None, f"LPIPS is left out: its network needs {_LEAST_SIDE_LPIPS} pixels a side"
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True).to(device)
    except (URLError, OSError, ModuleNotFoundError) as error:
        folder = torch.hub.get_dir()
        return None, (
            f"LPIPS is left out: the weights of its VGG-16 could not be had ({error}); with a "
            "network once, torchvision.models.vgg16(weights='DEFAULT') puts them into "
            f"{folder}/checkpoints, which can be copied"
        )
    return metric, ""
