"""What the network said of every pair, in the form in which alignment reads it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from dust3r.uncertainty.families import point_distribution
from dust3r.utils.view import points_key

log = logging.getLogger(__name__)

WEIGHTS = ("confidence", "uncertainty")
# What deviations are of.
DEPTH, POINT = "depth", "point"

# A confidence of 1 is the least a published model states; its logarithm alone would be no vote.
_LEAST_VOTE = 0.02
# Relative standard deviations below this are not believed, and no weight is that much above or
# below the median one.
_LEAST_SIGMA = 0.005
_WEIGHT_RANGE = 100.0
# Coordinates beyond this are no points; their squares would leave single precision.
_FARTHEST = 1e9


@dataclass(frozen=True)
class Observations:
    """P pairs of N images. Maps are indexed [pair], each (H, W, ...) of the pair's first or second.

    Attributes:
        edges: (P, 2) numbers in 0..N-1 of the pair's images.
        image_ids: the ``idx`` of image n, as the views had it.
        shapes: (height, width) of image n.
        points: pointmaps of first and second images, both in the first camera's frame.
        confidences: of the same.
        sigmas: standard deviation of depth over depth, of the same; of models that state a
            distribution of points, the root of a point's expected squared error over its distance
            from the first camera. None where none is stated.
        sigmas_of: ``'depth'`` or ``'point'``, what ``sigmas`` are of.
        masks: (H, W) bool of image n: which pixels have a vote.
        weights: one of ``WEIGHTS``.
    """

    edges: Tensor
    image_ids: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    points: tuple[Sequence[Tensor], Sequence[Tensor]]
    confidences: tuple[Sequence[Tensor], Sequence[Tensor]]
    sigmas: tuple[Sequence[Tensor], Sequence[Tensor]] | None
    masks: tuple[Tensor, ...]
    weights: str
    sigmas_of: str = DEPTH

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def n_images(self) -> int:
        return len(self.shapes)

    def said(
        self, side: int, pair: int, pixels: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Points (K, 3) and votes (K,) of the flattened ``pixels`` of one map.

        Both are 0 at masked pixels and where something is not finite or absurdly far.
        """
        points = self.points[side][pair].reshape(-1, 3)[pixels].float()
        if self.weights == "confidence":
            confidence = self.confidences[side][pair].reshape(-1)[pixels].float()
            vote = confidence.clamp_min(1).log().clamp_min(_LEAST_VOTE)
            sane = confidence.isfinite()
        else:
            sigma = self.sigmas[side][pair].reshape(-1)[pixels].float()
            vote = 1 / (sigma.square() + _LEAST_SIGMA**2)
            sane = sigma.isfinite()
        mask = self.masks[int(self.edges[pair, side])].reshape(-1)[pixels]
        # Not a number compares as false too.
        good = mask & sane & (points.abs().amax(-1) < _FARTHEST)
        return torch.where(good[:, None], points, 0.0), torch.where(good, vote, 0.0)

    def scores(self) -> Tensor:
        """(P,) how sure the network is of each pair: the product of its maps' mean confidences,
        masked pixels aside."""
        means = torch.zeros(2, len(self))
        for side in (0, 1):
            for pair, n in enumerate(self.edges[:, side].tolist()):
                stated = self.confidences[side][pair].float().nan_to_num(0.0, 0.0, 0.0)
                means[side, pair] = (stated * self.masks[n]).sum() / self.masks[n].sum()
        return means.prod(dim=0)

    def sample(self, most: int) -> "Samples":
        """The same on at most ``most`` pixels of every image, on a regular grid."""
        pixels = [
            _grid(shape, mask, most) for shape, mask in zip(self.shapes, self.masks, strict=True)
        ]
        size = max(len(one) for one in pixels)
        chosen = torch.zeros(self.n_images, size, dtype=torch.int64)
        real = torch.zeros(self.n_images, size, dtype=torch.bool)
        for n, one in enumerate(pixels):
            chosen[n, : len(one)], real[n, : len(one)] = one, True
        widths = torch.tensor([width for _, width in self.shapes])[:, None]
        points, votes = [], []
        for side in (0, 1):
            numbers = self.edges[:, side].tolist()
            maps, counts = zip(
                *(self.said(side, pair, chosen[n]) for pair, n in enumerate(numbers)), strict=True
            )
            points.append(torch.stack(maps))
            votes.append(torch.stack(counts) * real[numbers])
        together = torch.cat([vote[vote > 0] for vote in votes])
        middle = together.median() if together.numel() else torch.tensor(1.0)
        votes = [
            torch.where(v > 0, (v / middle).clamp(1 / _WEIGHT_RANGE, _WEIGHT_RANGE), 0.0)
            for v in votes
        ]
        return Samples(
            edges=self.edges,
            pixels=torch.stack([chosen % widths, chosen // widths], -1).float(),
            points=(points[0], points[1]),
            votes=(votes[0], votes[1]),
        )


@dataclass(frozen=True)
class Samples:
    """M pixels of every image, and what P pairs say of them.

    Attributes:
        edges: (P, 2).
        pixels: (N, M, 2) as (u, v); where an image has fewer, the rest has no votes.
        points: of first and second images, (P, M, 3) each, in the first camera's frame.
        votes: (P, M) each; around 1, and 0 where there is none.
    """

    edges: Tensor
    pixels: Tensor
    points: tuple[Tensor, Tensor]
    votes: tuple[Tensor, Tensor]

    @property
    def n_images(self) -> int:
        return len(self.pixels)


def check_weights(weights: str, states_variance: bool) -> None:
    """Raises ValueError where ``weights`` is unknown, or the model has nothing to weigh by."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is neither of {WEIGHTS}")
    if weights == "uncertainty" and not states_variance:
        raise ValueError(
            "weights='uncertainty' needs a model that states a variance (head_type='dpt_uq', "
            "'dpt_uq_feat' or one on points, 'catmlp+dpt+xyz_...'), and this one gives points and "
            "confidences alone: use weights='confidence', or a checkpoint such as "
            "checkpoints/rooms_small_uq.safetensors"
        )


def read_output(
    view1: Mapping[str, Any],
    view2: Mapping[str, Any],
    pred1: Mapping[str, Any],
    pred2: Mapping[str, Any],
    weights: str = "confidence",
) -> tuple[Observations, list[str]]:
    """Observations from what ``dust3r.inference.inference`` returns, and notes for the user.

    Where the pairs do not connect all images, the largest connected part is kept, and a note names
    the parts.

    Raises:
        ValueError: there is no pair, ``weights`` is unknown, or the model states no variance.
    """
    ids1, ids2 = ([int(i) for i in view["idx"]] for view in (view1, view2))
    if not ids1:
        raise ValueError("there is no pair to align: make_pairs gave none")
    sigmas = _relative_sigmas(pred1), _relative_sigmas(pred2)
    sigmas_of = DEPTH
    if sigmas[0] is None:
        sigmas = _sigmas_of_points(pred1), _sigmas_of_points(pred2)
        sigmas_of = DEPTH if sigmas[0] is None else POINT
    has_sigmas = sigmas[0] is not None and sigmas[1] is not None
    check_weights(weights, states_variance=has_sigmas)
    keep, image_ids, notes = _largest_part(ids1, ids2)
    number = {name: n for n, name in enumerate(image_ids)}

    def chosen(values: Sequence | None) -> Sequence | None:
        if values is None or len(keep) == len(ids1):
            return values
        return [values[pair] for pair in keep]

    shapes: list[tuple[int, int]] = [(0, 0)] * len(image_ids)
    masks: list[Tensor | None] = [None] * len(image_ids)
    for view, ids in ((view1, ids1), (view2, ids2)):
        for pair in keep:
            n = number[ids[pair]]
            shapes[n] = tuple(int(side) for side in view["true_shape"][pair])
            if "mask" in view and view["mask"][pair] is not None:
                masks[n] = torch.as_tensor(view["mask"][pair]).reshape(shapes[n]).bool()
    return Observations(
        edges=torch.tensor([[number[ids1[p]], number[ids2[p]]] for p in keep]),
        image_ids=tuple(image_ids),
        shapes=tuple(shapes),
        points=(chosen(pred1["pts3d"]), chosen(pred2["pts3d_in_other_view"])),
        confidences=(chosen(pred1["conf"]), chosen(pred2["conf"])),
        sigmas=(chosen(sigmas[0]), chosen(sigmas[1])) if has_sigmas else None,
        masks=tuple(
            torch.ones(shape, dtype=torch.bool) if mask is None else mask
            for shape, mask in zip(shapes, masks, strict=True)
        ),
        weights=weights,
        sigmas_of=sigmas_of,
    ), notes


def _relative_sigmas(prediction: Mapping[str, Any]) -> list[Tensor] | None:
    """Standard deviation of depth over depth, (H, W) per pair: of FeatUQ, else of GeoUQ.

    A ratio, because pointmaps need not be metric where these depths are.
    """
    for mean, variance in (("depth_mean_feat", "depth_var_feat"), ("depth_mu", "depth_var")):
        if mean in prediction and variance in prediction:
            return [
                (v.float().sqrt() / m.float().abs().clamp_min(1e-6)).reshape(m.shape[-2:])
                for m, v in zip(prediction[mean], prediction[variance], strict=True)
            ]
    return None


def _sigmas_of_points(prediction: Mapping[str, Any]) -> list[Tensor] | None:
    """Deviation of points over their distance from camera 1, (H, W) per pair."""
    points, found = prediction[points_key(prediction)], []
    for pair, cloud in enumerate(points):
        maps = {name: value[pair][None] for name, value in prediction.items()}
        said = point_distribution(maps)
        if said is None:
            return None
        deviation = said.total.sum(dim=1)[0].sqrt()
        found.append(deviation.float() / cloud.float().norm(dim=-1).clamp_min(1e-6))
    return found


def _largest_part(ids1: list[int], ids2: list[int]) -> tuple[list[int], list[int], list[str]]:
    """Pairs to keep, the ids of their images in order, and a note where something was left out."""
    names = sorted({*ids1, *ids2})
    number = {name: n for n, name in enumerate(names)}
    rows, columns = ([number[i] for i in ids] for ids in (ids1, ids2))
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names),) * 2)
    count, label = connected_components(graph, directed=False)
    if count == 1:
        return list(range(len(ids1))), names, []
    largest = int(np.bincount(label).argmax())
    parts = [
        [name for name, one in zip(names, label, strict=True) if one == c] for c in range(count)
    ]
    note = (
        f"the pairs do not connect all images; their parts are {', '.join(map(str, parts))} "
        f"(numbers of images). Only {parts[largest]} are reconstructed: add pairs or images "
        "between the parts, or reconstruct each part by itself"
    )
    log.warning(note)
    keep = [p for p, row in enumerate(rows) if label[row] == largest]
    return keep, parts[largest], [note]


def _grid(shape: tuple[int, int], mask: Tensor, most: int) -> Tensor:
    """Flat numbers of at most ``most`` unmasked pixels, spread evenly."""
    height, width = shape
    allowed = int(mask.sum())
    # Where a mask leaves little, the grid is finer, so that about as many pixels remain.
    step = max(1, int(np.ceil(np.sqrt(allowed / most))))
    v, u = torch.meshgrid(
        torch.arange(min(step // 2, height - 1), height, step),
        torch.arange(min(step // 2, width - 1), width, step),
        indexing="ij",
    )
    pixels = (v * width + u).flatten()
    pixels = pixels[mask.flatten()[pixels]]
    return pixels[torch.linspace(0, len(pixels) - 1, min(most, len(pixels))).long()]
