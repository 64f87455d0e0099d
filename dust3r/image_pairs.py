"""Which pairs of images the network looks at."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

GRAPHS = ("complete", "swin", "logwin", "oneref")
PREFILTERS = ("seq", "cyc")
DEFAULT_WINDOW = 3

Pairs = list[tuple[int, int]]


def make_pairs(
    imgs: Sequence[dict[str, Any]],
    scene_graph: str = "complete",
    prefilter: str | None = None,
    symmetrize: bool = True,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of the views of ``dust3r.utils.image.load_images``, in the order of their images.

    Args:
        imgs: two views or more.
        scene_graph: ``'complete'``: each image with each other. ``'swin-k'``: each with the next k,
            the last ones with the first, but for ``'swin-k-noncyclic'``. ``'logwin-k'``: each with
            those 1, 2, 4, ..., 2^(k-1) further on, ``-noncyclic`` likewise. k is 3 where it is not
            given. ``'oneref-i'``: image i, from 0, with each other; the first where i is not given.
        prefilter: of these keep only images at most k apart: ``'seq<k>'``, such as ``'seq5'``; or
            ``'cyc<k>'``, in a round, where the last image is one apart from the first.
        symmetrize: add every pair the other way round, after all others.

    Raises:
        ValueError: fewer than two images, an unknown graph or filter, k below 1, or a reference
            that is no image.
    """
    pairs = _pairs(len(imgs), scene_graph, prefilter, symmetrize)
    return [(imgs[i], imgs[j]) for i, j in pairs]


def pair_count(
    count: int, scene_graph: str = "complete", prefilter: str | None = None, symmetrize: bool = True
) -> int:
    """The number of pairs that ``make_pairs`` would give for ``count`` images; the same errors."""
    return len(_pairs(count, scene_graph, prefilter, symmetrize))


def _pairs(count: int, scene_graph: str, prefilter: str | None, symmetrize: bool) -> Pairs:
    if count < 2:
        raise ValueError(f"a reconstruction needs two images or more, and there is {count}")
    pairs = _graph(count, scene_graph)
    if prefilter:
        pairs = _near(pairs, count, prefilter)
    return pairs + [(j, i) for i, j in pairs] if symmetrize else pairs


def _graph(count: int, text: str) -> Pairs:
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
