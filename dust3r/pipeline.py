"""From loaded images to a reconstruction in one call: what the demo and the evaluation run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.reconstruction import Reconstruction

Progress = Callable[[str, float], None]


def reconstruct(
    model: AsymmetricCroCo3DStereo,
    images: Sequence[dict[str, Any]],
    *,
    scene_graph: str = "complete",
    device: str | torch.device | None = None,
    batch_size: int = 8,
    niter: int = 300,
    shared_intrinsics: bool = False,
    weights: str = "confidence",
    clean: bool = True,
    sky: bool = False,
    progress: Progress | None = None,
) -> Reconstruction:
    """Cameras, depth and points of photographs.

    Args:
        images: views of ``dust3r.utils.image.load_images``, two or more.
        scene_graph: which pairs are looked at, as for ``dust3r.image_pairs.make_pairs``.
        device: of the network; the model's own where None.
        batch_size: pairs at a time; halved by itself where memory ends.
        niter: most iterations of the global alignment.
        shared_intrinsics: one camera took all images.
        weights: what a point counts in the alignment: its ``'confidence'`` or, with models that
            state a variance, its ``'uncertainty'``.
        clean: drop points that stand in front of what other cameras saw.
        sky: mask the sky.
        progress: called with what is being done and the fraction of the whole that is done.

    Raises:
        ValueError: fewer than two images, an unknown graph or ``weights``, or a model without what
            ``weights`` needs. The message is meant for the person who asked.
    """
    raise NotImplementedError
