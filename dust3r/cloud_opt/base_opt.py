"""What the aligners of dense pairs have in common: they read what the network said of each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.cloud_opt.observations import Observations, read_output
from dust3r.cloud_opt.scene import Scene
from dust3r.reconstruction import Source
from dust3r.utils.image import rgb


class BaseOptimizer(Scene):
    """Pairs of images, to be brought into one world.

    Positional arguments are those that ``dust3r.inference.inference`` returns.

    Args:
        weights: what a point counts: its ``'confidence'``, or where the model states a variance its
            ``'uncertainty'``.
        options: of ``Scene``: ``min_conf_thr``, ``shared_intrinsics``, ``optimize_pp``,
            ``fx_and_fy``, ``verbose``.

    Attributes:
        image_ids: ``idx`` of each image; some are missing where pairs did not connect all.
        im_conf: (H, W) largest confidence of each pixel over all pairs, per image.

    Raises:
        ValueError: there is no pair, nothing to weigh by, or a mask that covers a whole image.
    """

    def __init__(
        self,
        view1: Mapping[str, Any],
        view2: Mapping[str, Any],
        pred1: Mapping[str, Any],
        pred2: Mapping[str, Any],
        *,
        weights: str = "confidence",
        **options: Any,
    ):
        self.observations, notes = read_output(view1, view2, pred1, pred2, weights)
        data = self.observations
        super().__init__(
            _upright_images(view1, view2, data.image_ids),
            _sources(view1, view2, data.image_ids, data.shapes),
            data.image_ids,
            data.masks,
            [tuple(edge) for edge in data.edges.tolist()],
            notes,
            **options,
        )
        self.deviations_of = data.sigmas_of
        self.im_conf = _largest_confidences(data)


def _upright_images(
    view1: Mapping[str, Any], view2: Mapping[str, Any], image_ids: Sequence[int]
) -> list[np.ndarray]:
    where: dict[int, Tensor] = {}
    for view in (view1, view2):
        for name, image in zip(view["idx"], view["img"], strict=True):
            where.setdefault(int(name), image)
    return [rgb(where[name].reshape(where[name].shape[-3:])) for name in image_ids]


def _sources(
    view1: Mapping[str, Any],
    view2: Mapping[str, Any],
    image_ids: Sequence[int],
    shapes: Sequence[tuple[int, int]],
) -> tuple[Source, ...]:
    """Those of the views; views made without ``load_images`` are their own originals."""
    found: dict[int, Source] = {}
    for view in (view1, view2):
        for name, source in zip(view["idx"], view.get("source", ()), strict=False):
            found.setdefault(int(name), source)
    return tuple(
        found.get(name) or Source(f"image_{name:03d}.png", None, (width, height), np.eye(3))
        for name, (height, width) in zip(image_ids, shapes, strict=True)
    )


def _largest_confidences(observations: Observations) -> list[Tensor]:
    confidences = [torch.zeros(shape) for shape in observations.shapes]
    for side in (0, 1):
        for pair, n in enumerate(observations.edges[:, side].tolist()):
            stated = observations.confidences[side][pair].reshape(observations.shapes[n])
            stated = stated.float().nan_to_num(0.0, 0.0, 0.0)
            torch.maximum(confidences[n], stated, out=confidences[n])
    return confidences
