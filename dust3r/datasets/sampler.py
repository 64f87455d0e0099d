"""Batches of one aspect ratio, shared out over the processes of a run."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from dust3r.datasets.combine import Draw


class Part(NamedTuple):
    """Consecutive samples of a data set, and which of them are stored together.

    ``length`` samples in stretches that end before the numbers ``ends``; ``window`` stretches are
    shuffled together. Without ``ends`` all are.
    """

    length: int
    ends: tuple[int, ...] = ()
    window: int = 1


def shuffled(parts: Sequence[Part], rng: np.random.Generator) -> np.ndarray:
    """A random order of the samples of all parts, in which what is stored together stays near.

    Of each part, stretches come in random order and samples shuffled within a window of them; the
    parts are mixed as evenly as by shuffling everything.
    """
    orders, start = [], 0
    for part in parts:
        orders.append(start + _order_of(part, rng))
        start += part.length
    if len(orders) == 1:
        return orders[0]
    turns = rng.permutation(np.repeat(np.arange(len(parts)), [part.length for part in parts]))
    # The nth turn of a part takes its nth sample: sorted by part, stably, turns are in that order.
    order = np.empty(start, int)
    order[np.argsort(turns, kind="stable")] = np.concatenate(orders)
    return order


class AspectRatioBatchSampler(Sampler[list[Draw]]):
    """Batches of draws with one aspect ratio each, the same number and sizes on every rank.

    The order and the aspect ratios are a function of (``seed``, epoch). All ranks share the aspect
    ratio of a step, so that none waits for one with larger images, and the samples of a step over
    all ranks are those that one process would have drawn in a batch ``world_size`` times as large.

    Args:
        num_samples: length of the dataset.
        num_aspects: number of its resolutions.
        batch_size: samples per batch and rank.
        rank, world_size: which share of how many to draw.
        seed: of the order; the draws' keys are (seed, epoch).
        shuffle: in random order, another each epoch; else in order, with the aspect ratios of
            epoch 0 in every epoch.
        drop_last: leave out the samples that do not fill a batch on every rank. Else the last
            batch is smaller, and up to ``world_size`` - 1 samples are drawn twice to make ranks
            even.
        parts: what of the data set is stored together and shall be drawn in turn, see ``shuffled``;
            None: every order is as likely.

    Raises:
        ValueError: an argument is out of range, or the dataset cannot fill one batch per rank.
    """

    def __init__(
        self,
        num_samples: int,
        num_aspects: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        parts: Sequence[Part] | None = None,
    ) -> None:
        if parts is not None and sum(part.length for part in parts) != num_samples:
            raise ValueError(f"parts={parts}: their lengths are not those of {num_samples} samples")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected 1 or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: expected 0 to world_size - 1 = {world_size - 1}")
        if seed < 0:
            raise ValueError(f"seed={seed}: expected 0 or more")
        if num_samples == 0:
            raise ValueError("the data set is empty")
        if drop_last and num_samples < batch_size * world_size:
            raise ValueError(
                f"a data set of {num_samples} samples cannot fill one batch of {batch_size} on "
                f"each of {world_size} processes ({batch_size * world_size} samples): start fewer "
                "processes (--nproc_per_node), choose a smaller --batch_size, or draw samples "
                f"more often with '{batch_size * world_size} @ dataset'"
            )
        self.num_samples = num_samples
        self.num_aspects = num_aspects
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.parts = parts
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch to draw, and how many of its batches to leave out at the beginning.

        Raises:
            ValueError: the epoch has fewer than ``start_batch`` batches.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(
                f"start_batch={start_batch}: an epoch has {len(self)} batches; a run that is "
                "resumed needs the data set, batch size and number of processes it began with"
            )
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever ``start_batch`` is."""
        per_step = self.batch_size * self.world_size
        if self.drop_last:
            return self.num_samples // per_step
        return -(-self.num_samples // per_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        key = (self.seed, self.epoch)
        rng = np.random.default_rng(key if self.shuffle else (self.seed, 0))
        aspects = rng.integers(self.num_aspects, size=len(self))
        order = self._make_even(self._order(rng))
        per_step = self.batch_size * self.world_size
        for step in range(self.start_batch, len(self)):
            shared = order[step * per_step : (step + 1) * per_step]
            aspect = int(aspects[step])
            yield [Draw(int(index), aspect, key) for index in shared[self.rank :: self.world_size]]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_samples)
        return (
            rng.permutation(self.num_samples) if self.parts is None else shuffled(self.parts, rng)
        )

    def _make_even(self, order: np.ndarray) -> np.ndarray:
        if self.drop_last:
            return order
        return np.resize(order, -(-len(order) // self.world_size) * self.world_size)


def _order_of(part: Part, rng: np.random.Generator) -> np.ndarray:
    if not part.ends:
        return rng.permutation(part.length)
    stretches = np.split(np.arange(part.length), part.ends[:-1])
    turns = rng.permutation(len(stretches))
    windows = (turns[start : start + part.window] for start in range(0, len(turns), part.window))
    return np.concatenate(
        [rng.permutation(np.concatenate([stretches[i] for i in window])) for window in windows]
    )
