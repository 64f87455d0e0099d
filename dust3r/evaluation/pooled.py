"""Exact rankings over the pixels of all images, in memory that does not grow with their number.

The ranks of a data set's pixels are those of an external merge sort. Each image's columns are
sorted in its record. A column's keys are cut, for all images, into slices of about ``SLICE``
pixels, each of which is sorted at once and gives its pixels their ranks, on disk; images are then
read again one by one, with the ranks, to be summed up. All work is in pieces that do not depend on
the number of processes.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dust3r.evaluation.rankings import SUMS, Ordered, Standing, around_coverages, sums_of, ties_of
from dust3r.evaluation.records import Run
from dust3r.evaluation.sketch import COVERAGES
from dust3r.evaluation.workers import mapped
from dust3r.training.distributed import World

SLICE = 1 << 22

# A column of a ranking: (method, name).
Key = tuple[str, str]
Column = tuple[Run, ...]

_SAMPLED = 256
_IMAGES = 16
# What is written of a pixel; sums of weights with seven digits have many more.
_RANK = np.dtype([("twice", np.uint32), ("weight", np.float32)])
_MOST = 1 << 31


@dataclass(frozen=True)
class Pooled:
    """``sums_of`` this rank's share of all pixels, with what ``ExactRanking.update`` needs."""

    sums: np.ndarray
    groups: tuple[np.ndarray, np.ndarray]
    total: int


def pooled(
    columns: Mapping[Key, Sequence[Run]],
    rankings: Sequence[tuple[Key, Key]],
    folder: Path,
    world: World,
    workers: int = 0,
) -> dict[tuple[Key, Key], Pooled]:
    """Sums of rankings over all images, shared among ranks and worker processes.

    Args:
        columns: of all images that have them, in the same order on all ranks.
        rankings: keys of errors and of uncertainties, of the same images.
        folder: for temporary files of 8 bytes for each pixel of each column, which all ranks see.

    Raises:
        ValueError: a record is cut short, or there are more than 2^31 pixels.
    """
    runs = {key: tuple(column) for key, column in columns.items() if column}
    rankings = [pair for pair in rankings if pair[0] in runs]
    folder.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix=".ranks-", dir=folder) if world.is_main else None
    scratch = Path(world.gather(made)[0])
    try:
        # Methods of one model share columns; each is ranked once.
        ranked: dict[Column, _Ranked] = {}
        for column in dict.fromkeys(runs[key] for pair in rankings for key in pair):
            spill = scratch / str(len(ranked))
            ranked[column] = _rank(column, str(spill), world, workers)
        distinct = list(dict.fromkeys((runs[e], runs[u]) for e, u in rankings))
        pieces = [
            (
                begin,
                [(e[begin : begin + _IMAGES], u[begin : begin + _IMAGES]) for e, u in distinct],
            )
            for begin in range(0, max((len(e) for e, _ in distinct), default=0), _IMAGES)
        ]
        about = [(ranked[e], ranked[u]) for e, u in distinct]
        sums = np.zeros((len(distinct), SUMS))
        mine = pieces[world.rank :: world.size]
        for part in mapped(partial(_sum_images, about), mine, workers):
            sums += part
        world.barrier()
    finally:
        if world.is_main:
            shutil.rmtree(scratch)
    found = {
        pair: Pooled(sums[n], (about[n][1].groups, about[n][0].groups), about[n][0].total)
        for n, pair in enumerate(distinct)
    }
    return {(e, u): found[runs[e], runs[u]] for e, u in rankings}


@dataclass(frozen=True)
class _Ranked:
    """A column whose ranks are in a file, those of an image from pixel ``begins`` on."""

    spill: str
    begins: np.ndarray
    total: int
    groups: np.ndarray

    def standing(self, image: int) -> Standing:
        size = int(self.begins[image + 1] - self.begins[image])
        with open(self.spill, "rb") as file:
            file.seek(_RANK.itemsize * int(self.begins[image]))
            found = np.fromfile(file, _RANK, size)
        return Standing(found["twice"], found["weight"])


def _rank(column: Column, spill: str, world: World, workers: int) -> _Ranked:
    begins = np.cumsum([0, *(run.size for run in column)])
    total = int(begins[-1])
    if total >= _MOST:
        raise ValueError(
            f"exact rankings are of {_MOST:,} pixels at most, not {total:,}; choose fewer pairs by "
            "--num_pairs, or --streaming"
        )
    if world.is_main:
        Path(spill).touch()
    world.barrier()
    sampled = np.concatenate(list(mapped(_sample, column)))
    bounds = _bounds(sampled, total)
    cuts = np.stack([_cut(run, bounds) for run in column])
    befores = cuts.sum(0)
    pieces = [
        (bounds[n : n + 2], cuts[:, n : n + 2], int(befores[n]))
        for n in range(len(bounds) - 1)
        if befores[n + 1] > befores[n]
    ]
    work = partial(_rank_slice, column, begins, spill, total)
    groups = np.zeros((2, len(COVERAGES)), np.int64)
    for part in mapped(work, pieces[world.rank :: world.size], workers):
        groups += part
    world.barrier()
    return _Ranked(spill, begins, total, sum(world.gather(groups)))


def _sample(run: Run) -> np.ndarray:
    return np.array(run.keys()[::_SAMPLED])


def _bounds(sampled: np.ndarray, total: int) -> np.ndarray:
    """Ascending keys, int64, between which there are about ``SLICE`` pixels, or one key."""
    ordered = np.sort(sampled).astype(np.int64)
    wanted = np.arange(1, -(-total // SLICE)) * len(ordered) * SLICE // total
    inner = ordered[wanted]
    # A key that fills a slice of its own is told from its neighbours, and needs no sorting.
    often = inner[1:][inner[1:] == inner[:-1]]
    return np.unique(np.concatenate([[-(1 << 31), 1 << 31], inner, often, often + 1]))


def _cut(run: Run, bounds: np.ndarray) -> np.ndarray:
    """Places (m,) in a run's sorted keys before which all are below the bounds (m,)."""
    return np.array([0, *np.searchsorted(run.keys(), bounds[1:-1].astype(np.int32)), run.size])


def _rank_slice(
    column: Column,
    begins: np.ndarray,
    spill: str,
    total: int,
    piece: tuple[np.ndarray, np.ndarray, int],
) -> np.ndarray:
    """Write the ranks of the pixels of one slice; its groups of ``around_coverages``."""
    (low, high), cuts, before = piece
    sizes = cuts[:, 1] - cuts[:, 0]
    ends = sizes.cumsum()
    count = int(ends[-1])
    if high - low == 1:
        found = np.empty(int(sizes.max()), _RANK)
        standing = Standing.of_equals(count, before, total)
        found["twice"], found["weight"] = standing.twice, standing.weights
        ties = np.array([0]), np.array([count])
    else:
        found, ties = _ranks(column, cuts, ends, before, total)
    with open(spill, "r+b", buffering=0) as file:
        for n in np.flatnonzero(sizes):
            begin = 0 if high - low == 1 else ends[n] - sizes[n]
            file.seek(_RANK.itemsize * int(begins[n] + cuts[n, 0]))
            file.write(found[begin : begin + sizes[n]])
    return around_coverages(*ties, before, count, total)


def _ranks(
    column: Column, cuts: np.ndarray, ends: np.ndarray, before: int, total: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Ranks of the pixels between ``cuts``, image after image, and their ``ties_of``."""
    keys = np.empty(int(ends[-1]), np.int32)
    for n in np.flatnonzero(cuts[:, 1] > cuts[:, 0]):
        column[n].read_keys(*cuts[n], keys[ends[n] - cuts[n, 1] + cuts[n, 0] : ends[n]])
    ordered, order = (part.numpy() for part in torch.from_numpy(keys).sort(stable=True))
    standing = Standing.of(ordered, before, total)
    part = np.empty(len(keys), _RANK)
    part["twice"], part["weight"] = standing.twice, standing.weights
    del standing, keys
    found = np.empty(len(part), _RANK)
    found.view(np.int64)[order] = part.view(np.int64)
    return found, ties_of(ordered)


def _sum_images(
    about: Sequence[tuple[_Ranked, _Ranked]],
    piece: tuple[int, Sequence[tuple[Column, Column]]],
) -> np.ndarray:
    """``sums_of`` some images, in order, by ranking."""
    first, rankings = piece
    sums = np.zeros((len(about), SUMS))
    for n in range(max(len(runs[0]) for runs in rankings)):
        known: dict[Any, tuple[Ordered, Standing]] = {}
        for place, (pair, runs) in enumerate(zip(about, rankings, strict=True)):
            sides = []
            if n >= len(runs[0]):
                continue
            for ranked, column in zip(pair, runs, strict=True):
                if ranked.spill not in known:
                    known[ranked.spill] = column[n].read(), ranked.standing(first + n)
                sides.append(known[ranked.spill])
            (error, of_error), (doubt, of_doubt) = sides
            groups = pair[1].groups, pair[0].groups
            sums[place] += sums_of(error, doubt, of_error, of_doubt, pair[0].total, groups)
    return sums
