"""Exact nearest neighbours among many descriptors by blocked matrix products.

The search looks at every key once, in single precision, and keeps of each group of keys only the
largest score, which costs a third of an argmax. Groups whose largest score is within rounding of
the best are looked at again, in double precision, so that the answer depends neither on the sizes
of blocks nor on how a processor orders its sums. Exact ties go to the lowest index, as in argmax.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DISTANCES = ("dot", "l2")

# Keys that share one largest score.
_GROUP = 128
# Queries x keys of one product: on a CPU the scores stay in the caches, a GPU is kept busy.
_TILES = {"cpu": (1024, 1024), "cuda": (8192, 16384)}
# With more close groups than this (keys that are all alike) a query is compared with every key.
_MOST_CLOSE_GROUPS = 16
_PAIRS_AT_A_TIME = 4096
_DENSE_SCORES = 1 << 22
_HALF_ULP = torch.finfo(torch.float32).eps / 2


class NearestNeighbours:
    """Keys to search for the nearest one of a query.

    Args:
        keys: (N, D) float32, finite, N >= 1, on the device to search on.
        dist: ``'dot'``: nearest is the largest scalar product; ``'l2'``: the least distance.
        block_size: most queries at a time; bounds the memory, and does not change the result.
    """

    def __init__(self, keys: Tensor, dist: str = "dot", block_size: int = 2**13):
        self.keys, self.dist, self.block_size = keys, dist, block_size
        # Far from the origin squared lengths would drown the differences between them.
        self._centre = keys.double().mean(0) if dist == "l2" else torch.zeros_like(keys[0]).double()
        columns = self._augmented_keys()
        self._longest = columns.norm(dim=1).max()
        # Repeats of the last key fill the last group: ties go to the lowest index, so none wins.
        missing = -len(columns) % _GROUP
        columns = torch.cat([columns, columns[-1:].expand(missing, -1)])
        self._columns = columns.t().contiguous()

    @torch.no_grad()
    def nearest(self, queries: Tensor) -> Tensor:
        """Index (M,) int64 of the key nearest to each query (M, D), of the keys' type and device.

        The lowest index where several keys are exactly as near.
        """
        found = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
        with _full_precision(queries.device.type):
            for start in range(0, len(queries), self.block_size):
                part = slice(start, start + self.block_size)
                found[part] = self._nearest(queries[part])
        return found

    def _augmented_keys(self) -> Tensor:
        if self.dist == "dot":
            return self.keys
        centred = self.keys.double() - self._centre
        # |q - k|^2 = |q|^2 - 2 (q . k - |k|^2 / 2): one more column makes it a scalar product.
        return torch.cat([centred, -0.5 * (centred**2).sum(1, keepdim=True)], 1).float()

    def _augmented(self, queries: Tensor) -> Tensor:
        if self.dist == "dot":
            return queries
        centred = (queries.double() - self._centre).float()
        return torch.cat([centred, torch.ones_like(centred[:, :1])], 1)

    def _nearest(self, queries: Tensor) -> Tensor:
        rows = self._augmented(queries)
        best = self._largest_by_group(rows)
        # What either of two single-precision scalar products may be off, rounded inputs included.
        slack = (2 * (rows.shape[1] + 8) * _HALF_ULP) * rows.norm(dim=1) * self._longest
        close = best >= (best.amax(1) - slack)[:, None]
        many = close.count_nonzero(1) > _MOST_CLOSE_GROUPS
        found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        few = torch.nonzero(~many)[:, 0]
        found[few] = self._among_groups(queries[few], rows[few], close[few], slack[few])
        if many.any():
            found[many] = self._among_all(queries[many])
        return found

    def _largest_by_group(self, rows: Tensor) -> Tensor:
        """Largest score (M, groups) of every query in every group of keys."""
        count = self._columns.shape[1]
        tall, wide = _TILES["cuda" if rows.device.type == "cuda" else "cpu"]
        tall, wide = min(tall, len(rows)), min(wide, count)
        best = rows.new_empty(len(rows), count // _GROUP)
        scores = rows.new_empty(tall * wide)
        for top in range(0, len(rows), tall):
            some = rows[top : top + tall]
            for left in range(0, count, wide):
                columns = self._columns[:, left : left + wide]
                shape = len(some), columns.shape[1]
                product = scores[: shape[0] * shape[1]].view(shape)
                torch.mm(some, columns, out=product)
                groups = slice(left // _GROUP, (left + shape[1]) // _GROUP)
                best[top : top + tall, groups] = product.unflatten(1, (-1, _GROUP)).amax(2)
        return best

    def _among_groups(self, queries: Tensor, rows: Tensor, close: Tensor, slack: Tensor) -> Tensor:
        """Nearest keys (M,) of queries, of which ``close`` (M, groups) says where they may be."""
        grouped = self._columns.unflatten(1, (-1, _GROUP))
        best = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)
        found = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for pairs in close.nonzero().split(_PAIRS_AT_A_TIME):
            row, group = pairs.unbind(1)
            columns = grouped.index_select(1, group).transpose(0, 1)
            scores = torch.bmm(rows[row, None], columns)[:, 0]
            near = scores >= (scores.amax(1) - slack[row])[:, None]
            place, within = near.nonzero().unbind(1)
            row, key = row[place], group[place] * _GROUP + within
            key.clamp_(max=len(self.keys) - 1)
            score = self._exact(queries[row], self.keys[key])
            largest, lowest = _lowest_of_best(row, key, score, len(rows))
            # Keys rise from one part to the next: an equal score comes too late.
            better = largest > best
            best[better], found[better] = largest[better], lowest[better]
        return found

    def _exact(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (K,) of K pairs of rows in double precision; a function of the two rows alone."""
        queries, keys = queries.double(), keys.double()
        if self.dist == "dot":
            return (queries * keys).sum(1)
        return -((queries - keys) ** 2).sum(1)

    def _among_all(self, queries: Tensor) -> Tensor:
        """Nearest keys (M,), every one compared in double precision."""
        many = max(1, _DENSE_SCORES // len(self.keys))
        keys = self.keys.double()
        found = []
        for some in queries.double().split(many):
            if self.dist == "dot":
                scores = some @ keys.t()
                # Equal keys may differ in the last bits here, by where in a block they lie.
                rounding = 4 * keys.shape[1] * torch.finfo(torch.float64).eps
                slack = rounding * some.norm(dim=1, keepdim=True) * self._longest
            else:
                scores = -torch.cdist(some, keys, compute_mode="donot_use_mm_for_euclid_dist")
                slack = 0.0
            near = scores >= scores.amax(1, keepdim=True) - slack
            # The first of several largest values is what argmax gives.
            found.append(near.to(torch.uint8).argmax(1))
        return torch.cat(found)


def _lowest_of_best(row: Tensor, key: Tensor, score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest score (count,) of each row, -inf where it has none, and its lowest key."""
    best = score.new_full((count,), -math.inf).scatter_reduce(0, row, score, "amax")
    wins = score == best[row]
    lowest = torch.full((count,), torch.iinfo(torch.int64).max, device=key.device)
    return best, lowest.scatter_reduce(0, row[wins], key[wins], "amin")


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Products of single precision as such: no TF32, no bf16, no autocast.

    The bound on what rounding may hide would not hold otherwise.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
