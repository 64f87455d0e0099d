"""Which pairs of images show the same place, by what their pointmaps and pixels say of each other.

A pair network always answers; where two images share nothing, it puts the second somewhere. Two
things give that away: the answers for (i, j) and (j, i) contradict each other, and points of j
that fall into image i do not have its colours. Confidence is no help across models: its level
depends on how they were trained.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from dust3r.cloud_opt.observations import Observations, read_output
from dust3r.cloud_opt.similarity import register
from dust3r.post_process import estimate_focal_knowing_depth
from dust3r.utils.geometry import project

# Measured on pairs within and across unseen rooms by the shipped model; see docs/results.md.
LEAST_AGREEMENT = 0.45
MOST_CONTRADICTION = 0.15

_POINTS = 1024
_LEAST_INSIDE = 0.05
# Colours are compared over blurs of this fraction of the width: geometry is off by pixels.
_BLUR = 0.1


def overlapping_parts(output: Mapping[str, Any]) -> list[list[int]]:
    """Numbers (``idx``) of images in groups that the overlapping pairs connect, largest first.

    A group of two or more images joins another by at least two overlapping pairs: one may be
    chance.

    Args:
        output: of ``dust3r.inference.inference``.
    """
    data, _ = read_output(*(output[key] for key in ("view1", "view2", "pred1", "pred2")))
    edges = data.edges.numpy()
    agreement, contradiction = pair_evidence(data, output)
    good = (agreement >= LEAST_AGREEMENT) & ~(contradiction > MOST_CONTRADICTION)
    unordered = sorted({tuple(sorted(edge)) for edge in edges[good].tolist()})
    label = _joined_twice(unordered, data.n_images)
    parts = [np.flatnonzero(label == one).tolist() for one in np.unique(label)]
    # Images that no pair reaches, left out when the output was read, are parts by themselves.
    named = [[data.image_ids[n] for n in part] for part in parts]
    everyone = {int(i) for view in ("view1", "view2") for i in output[view]["idx"]}
    named += [[name] for name in sorted(everyone - set(data.image_ids))]
    return sorted(named, key=lambda part: (-len(part), part))


def pair_evidence(data: Observations, output: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """For and against every pair (P,).

    Returns:
        agreement: correlation of blurred colours of the second image's points with those of the
            first image where they fall into it, the mean of (i, j) and (j, i) where both are there;
            -1 where less than a twentieth falls inside.
        contradiction: how far (i, j) followed by (j, i) is from no motion, relative to the depth of
            the scene; NaN where there is no (j, i).
    """
    images: dict[int, Tensor] = {}
    number = {name: n for n, name in enumerate(data.image_ids)}
    for view in ("view1", "view2"):
        for name, image in zip(output[view]["idx"], output[view]["img"], strict=True):
            if int(name) in number:
                images.setdefault(number[int(name)], _blurred(image.float()))
    places = {tuple(edge): pair for pair, edge in enumerate(data.edges.tolist())}
    agreement = np.array([_agreement(data, images, pair) for pair in range(len(data))])
    contradiction = np.full(len(data), np.nan)
    both = agreement.copy()
    for (i, j), pair in places.items():
        back = places.get((j, i))
        if back is None:
            continue
        both[pair] = (agreement[pair] + agreement[back]) / 2
        if i < j:
            contradiction[[pair, back]] = _contradiction(data, pair, back)
    return both, contradiction


def _agreement(data: Observations, images: Mapping[int, Tensor], pair: int) -> float:
    first, second = data.edges[pair].tolist()
    height, width = data.shapes[first]
    points = data.points[0][pair].float().reshape(1, height, width, 3).nan_to_num()
    centre = torch.tensor([[width / 2, height / 2]])
    focal = estimate_focal_knowing_depth(points, centre, "weiszfeld")[0]
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    chosen = _spread(data, second)
    pixels, depth = project(data.maps(1, pair, chosen), intrinsics)
    limits = torch.tensor([width - 1.0, height - 1.0])
    inside = (depth > 0) & ((pixels >= 0) & (pixels <= limits)).all(-1)
    if inside.float().mean() < _LEAST_INSIDE:
        return -1.0
    grid = (2 * pixels[inside] / limits - 1)[None, None]
    seen = F.grid_sample(images[first][None], grid, align_corners=True)[0, :, 0]
    own = images[second].flatten(1)[:, chosen[inside]]
    seen, own = (colours - colours.mean(1, keepdim=True) for colours in (seen, own))
    return float((seen * own).sum() / (seen.norm() * own.norm()).clamp_min(1e-6))


def _contradiction(data: Observations, pair: int, back: int) -> float:
    first, second = data.edges[pair].tolist()
    moves = []
    for there, own, image in ((pair, back, second), (back, pair, first)):
        chosen = _spread(data, image)
        vote = data.vote(1, there, chosen)
        source = data.maps(0, own, chosen)
        moves.append(register(source[None], data.maps(1, there, chosen)[None], vote[None])[0])
    there_and_back = moves[0] @ moves[1]
    depth = data.maps(0, pair, _spread(data, first)).norm(dim=-1).median()
    return float(there_and_back[:3, 3].norm() / depth)


def _spread(data: Observations, image: int) -> Tensor:
    allowed = data.masks[image].flatten().nonzero()[:, 0]
    return allowed[torch.linspace(0, len(allowed) - 1, min(_POINTS, len(allowed))).long()]


def _blurred(image: Tensor) -> Tensor:
    size = 2 * int(_BLUR * image.shape[-1] / 2) + 1
    image = image.reshape(1, *image.shape[-3:])
    return F.avg_pool2d(image, size, 1, size // 2, count_include_pad=False)[0]


def _joined_twice(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    """Labels (count,) of groups: components, cut where one pair alone joins two groups of two."""
    kept = list(pairs)
    for pair in pairs:
        without = _components([other for other in kept if other != pair], count)
        sides = [int((without == without[n]).sum()) for n in pair]
        if without[pair[0]] != without[pair[1]] and min(sides) > 1:
            kept.remove(pair)
    return _components(kept, count)


def _components(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
