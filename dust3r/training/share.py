"""How the batches of an update are shared out over the processes there are.

A run keeps its global batch (batch size x accumulation x processes) as long as it lasts. When it
is resumed on other processes than it began with, because a node was lost or joined, they share out
the same batches: half of the processes take twice as many for each update. Samples, crops and the
learning rate of every update stay what they were; sums are taken in another order.

A *step* is one batch on each of the processes that the run began with, and steps are what progress,
schedule and checkpoints count.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler

from dust3r.datasets.combine import Draw
from dust3r.datasets.loader import StereoLoader
from dust3r.datasets.sampler import AspectRatioBatchSampler


@dataclass(frozen=True)
class Share:
    """The part that one of ``size`` processes takes of a run that began with ``began``.

    Attributes:
        began: processes that the run began with.
        size: processes that there are.
        accum_iter: steps whose gradients make one update.

    Raises:
        ValueError: they cannot share an update evenly.
    """

    began: int
    size: int
    accum_iter: int = 1

    def __post_init__(self) -> None:
        batches = self.began * self.accum_iter
        if batches % self.size:
            fitting = [n for n in range(1, batches + 1) if batches % n == 0]
            raise ValueError(
                f"this run began with {self.began} processes and --accum_iter {self.accum_iter}: "
                f"an update is made of {batches} batches, which {self.size} processes cannot "
                f"share evenly. Go on with {_listed(fitting)} processes (--nproc_per_node, "
                "--nnodes), or begin anew in another --output_dir, with this one's last "
                "checkpoint as --pretrained"
            )

    @property
    def batches_per_update(self) -> int:
        """Batches of one process whose gradients make a whole update."""
        return self.began * self.accum_iter // self.size

    def batches(self, steps: int) -> int:
        """Batches of one process in the first ``steps`` of an epoch; exact at updates."""
        return steps * self.began // self.size

    def steps(self, batches: int) -> int:
        """Steps that the first ``batches`` of one process have begun."""
        return -(-batches * self.size // self.began)

    def ends_step(self, batches: int) -> bool:
        """Whether after so many batches no step is half done."""
        return batches * self.size % self.began == 0


class SharedBatches(Sampler[list[Draw]]):
    """Of the batches that ``share.began`` processes would draw, those of one of ``share.size``.

    Args:
        samplers: those of the processes that the run began with, by rank.
        share: how many processes there are now.
        rank: which of them this is.

    Raises:
        ValueError: the last update of an epoch cannot be shared evenly.
    """

    def __init__(self, samplers: list[AspectRatioBatchSampler], share: Share, rank: int) -> None:
        self.samplers, self.share, self.rank = samplers, share, rank
        steps = len(samplers[0])
        if steps * share.began % share.size:
            raise ValueError(
                f"an epoch of this run has {steps} steps of {share.began} batches, which "
                f"{share.size} processes cannot share evenly: go on with {share.began} processes, "
                "or with a number that divides it"
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """As ``AspectRatioBatchSampler``'s; ``start_batch`` is in batches of one process."""
        for sampler in self.samplers:
            sampler.set_epoch(epoch, self.share.steps(start_batch))

    def __len__(self) -> int:
        return self.share.batches(len(self.samplers[0]))

    def __iter__(self) -> Iterator[list[Draw]]:
        in_order = itertools.chain.from_iterable(zip(*self.samplers, strict=True))
        return itertools.islice(in_order, self.rank, None, self.share.size)


def share_out(loader: StereoLoader, share: Share, rank: int) -> StereoLoader:
    """``loader``, or one over what ``share`` gives to process ``rank``, where their number changed.

    Raises:
        ValueError: an epoch cannot be shared evenly, or the loader is not one of drawn batches.
    """
    if share.began == share.size:
        return loader
    drawn = loader.batch_sampler
    if not isinstance(drawn, AspectRatioBatchSampler):
        raise ValueError(
            f"batches of {type(drawn).__name__} cannot be shared out over {share.size} processes, "
            f"where {share.began} began the run: go on with {share.began}"
        )
    samplers = [
        AspectRatioBatchSampler(
            drawn.num_samples,
            drawn.num_aspects,
            drawn.batch_size,
            rank=began_rank,
            world_size=share.began,
            seed=drawn.seed,
            shuffle=drawn.shuffle,
            drop_last=drawn.drop_last,
            parts=drawn.parts,
        )
        for began_rank in range(share.began)
    ]
    return StereoLoader(
        loader.dataset,
        batch_sampler=SharedBatches(samplers, share, rank),
        num_workers=loader.num_workers,
        persistent_workers=loader.persistent_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )


def _listed(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
