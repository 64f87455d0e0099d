"""Which pairs of images the network looks at."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

GRAPHS = ("complete", "swin", "logwin", "oneref", "retrieval")
PREFILTERS = ("seq", "cyc")
DEFAULT_WINDOW = 3
DEFAULT_KEYS, DEFAULT_NEIGHBOURS = 20, 10

Pairs = list[tuple[int, int]]


def make_pairs(
    imgs: Sequence[dict[str, Any]],
    scene_graph: str = "complete",
    prefilter: str | None = None,
    symmetrize: bool = True,
    sim_mat: np.ndarray | None = None,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of the views of ``dust3r.utils.image.load_images``, in the order of their images.

    Args:
        imgs: two views or more.
        scene_graph: ``'complete'``: each image with each other. ``'swin-k'``: each with the next k,
            the last ones with the first, but for ``'swin-k-noncyclic'``. ``'logwin-k'``: each with
            those 1, 2, 4, ..., 2^(k-1) further on, ``-noncyclic`` likewise. k is 3 where it is not
            given. ``'oneref-i'``: image i, from 0, with each other; the first where i is not given.
            ``'retrieval-a-k'``: a key images, as different as can be, with each other; each image
            with the key image most similar to it, and with the k images most similar to it. 20 and
            10 where not given; one number is a. It joins all images, without any prefilter.
        prefilter: of these keep only images at most k apart: ``'seq<k>'``, such as ``'seq5'``; or
            ``'cyc<k>'``, in a round, where the last image is one apart from the first.
        symmetrize: add every pair the other way round, after all others.
        sim_mat: (N, N) how alike images are, larger is more, for ``'retrieval'``: such as
            ``mast3r.retrieval.Retrieval.build(model, imgs).similarity``. Other graphs ignore it.

    Raises:
        ValueError: fewer than two images, an unknown graph or filter, k below 1, a reference that
            is no image, or a similarity that is missing, not finite or not (N, N).
    """
    pairs = _pairs(len(imgs), scene_graph, prefilter, symmetrize, sim_mat)
    return [(imgs[i], imgs[j]) for i, j in pairs]


def pair_count(
    count: int,
    scene_graph: str = "complete",
    prefilter: str | None = None,
    symmetrize: bool = True,
    sim_mat: np.ndarray | None = None,
) -> int:
    """The number of pairs that ``make_pairs`` would give for ``count`` images; the same errors."""
    return len(_pairs(count, scene_graph, prefilter, symmetrize, sim_mat))


def _pairs(
    count: int,
    scene_graph: str,
    prefilter: str | None,
    symmetrize: bool,
    similarity: np.ndarray | None,
) -> Pairs:
    if count < 2:
        raise ValueError(f"a reconstruction needs two images or more, and there is {count}")
    pairs = _graph(count, scene_graph, similarity)
    if prefilter:
        pairs = _near(pairs, count, prefilter)
    return pairs + [(j, i) for i, j in pairs] if symmetrize else pairs


def _graph(count: int, text: str, similarity: np.ndarray | None) -> Pairs:
    if re.match(r"retrieval(-|$)", text):
        return _retrieved(_checked(similarity, count, text), *_parse_retrieval(text))
    name, number, cyclic = _parse_graph(text)
    if name == "complete":
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    if name == "oneref":
        reference = number or 0
        if not 0 <= reference < count:
            raise ValueError(
                f"scene_graph={text!r}: there is no image {reference}, the {count} images are "
                f"numbered from 0 to {count - 1}"
            )
        return [(reference, j) for j in range(count) if j != reference]
    window = DEFAULT_WINDOW if number is None else number
    if window < 1:
        raise ValueError(f"scene_graph={text!r}: its number is {window}, and must be 1 or more")
    # Beyond as many offsets as images a window has nothing new to offer.
    window = min(window, count)
    offsets = range(1, window + 1) if name == "swin" else [2**power for power in range(window)]
    ends = {
        ((i + offset) % count if cyclic else i + offset, i)
        for i in range(count)
        for offset in offsets
    }
    return sorted({(min(end), max(end)) for end in ends if end[0] != end[1] and end[0] < count})


def _retrieved(similarity: np.ndarray, keys: int, neighbours: int) -> Pairs:
    """Pairs of the retrieval graph of MASt3R-SfM (Duisterhof et al., 2024)."""
    count = len(similarity)
    chosen = _far_apart(similarity, min(keys, count))
    ends = [(a, b) for place, a in enumerate(chosen) for b in chosen[:place]]
    others = np.setdiff1d(np.arange(count), chosen)
    # Of every other image, so that what is nobody's neighbour is still joined to the rest.
    nearest = np.asarray(chosen)[similarity[np.ix_(others, chosen)].argmax(1)]
    ends += zip(others.tolist(), nearest.tolist(), strict=True)
    foreign = np.where(np.eye(count, dtype=bool), -np.inf, similarity)
    most = min(neighbours, count - 1)
    ranked = np.argsort(-foreign, axis=1, kind="stable")[:, :most]
    ends += zip(np.repeat(np.arange(count), most).tolist(), ranked.ravel().tolist(), strict=True)
    return sorted({(min(end), max(end)) for end in ends})


def _far_apart(similarity: np.ndarray, number: int) -> list[int]:
    """Farthest-point sampling, from the image that is most like all others on."""
    chosen = [int(similarity.sum(1).argmax())]
    closest = similarity[chosen[0]].copy()
    while len(chosen) < number:
        closest[chosen[-1]] = np.inf
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, similarity[chosen[-1]])
    return chosen


def _checked(similarity: np.ndarray | None, count: int, text: str) -> np.ndarray:
    """Symmetric (N, N) float64."""
    if similarity is None:
        raise ValueError(
            f"scene_graph={text!r} goes by how alike images are: give make_pairs(..., sim_mat=s), "
            "such as s = mast3r.retrieval.Retrieval.build(model, imgs).similarity"
        )
    array = np.asarray(similarity, np.float64)
    if array.shape != (count, count):
        raise ValueError(
            f"sim_mat has the shape {array.shape}, and {(count, count)} is expected with {count} "
            "images: how alike each is to each"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"sim_mat holds {(~np.isfinite(array)).sum()} values that are not finite (NaN or "
            "infinite): every two images need a similarity"
        )
    return (array + array.T) / 2


def _parse_retrieval(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"retrieval(?:-(-?\d+))?(?:-(-?\d+))?", text)
    if not match:
        raise ValueError(f"scene_graph={text!r} is unknown; did you mean 'retrieval-20-10'?")
    defaults = DEFAULT_KEYS, DEFAULT_NEIGHBOURS
    keys, neighbours = (
        int(given) if given else default
        for given, default in zip(match.groups(), defaults, strict=True)
    )
    if keys < 1 or neighbours < 0:
        raise ValueError(
            f"scene_graph={text!r}: its numbers are {keys} key images, which must be 1 or more, "
            f"and {neighbours} neighbours of each image, 0 or more"
        )
    return keys, neighbours


def _parse_graph(text: str) -> tuple[str, int | None, bool]:
    match = re.fullmatch(r"([a-z]+)(?:-(-?\d+))?(-noncyclic)?", text)
    name, number, noncyclic = match.groups() if match else (text, None, None)
    if name not in GRAPHS:
        raise ValueError(f"scene_graph={text!r} is unknown; {_nearest(text, GRAPHS)}")
    if name == "complete" and (number or noncyclic):
        raise ValueError(f"scene_graph={text!r}: 'complete' stands alone, it has no window")
    if name == "oneref" and noncyclic:
        raise ValueError(f"scene_graph={text!r}: only 'swin' and 'logwin' can be noncyclic")
    return name, None if number is None else int(number), not noncyclic


def _near(pairs: Pairs, count: int, text: str) -> Pairs:
    match = re.fullmatch(r"([a-z]+)(-?\d+)?", text)
    name, number = match.groups() if match else (text, None)
    if name not in PREFILTERS:
        raise ValueError(f"prefilter={text!r} is unknown; {_nearest(text, PREFILTERS)}")
    limit = DEFAULT_WINDOW if number is None else int(number)
    if limit < 1:
        raise ValueError(
            f"prefilter={text!r} leaves no pair: its number is {limit}, and must be 1 or more"
        )
    if name == "seq":
        return [(i, j) for i, j in pairs if abs(i - j) <= limit]
    return [(i, j) for i, j in pairs if min((i - j) % count, (j - i) % count) <= limit]


def _nearest(text: str, known: Sequence[str]) -> str:
    word = re.match(r"[^\d-]*", text.casefold())[0]
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
