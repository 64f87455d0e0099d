"""From a dataset, or its specification string, to batches."""

import os
import signal
import threading

import cv2
import torch
from torch.utils.data import DataLoader

from dust3r.datasets.bad_samples import SkipBadSamples
from dust3r.datasets.combine import ConcatDataset, RepeatedDataset, StereoDataset
from dust3r.datasets.sampler import AspectRatioBatchSampler, Part
from dust3r.datasets.shards import ResizedShards, Shards
from dust3r.utils.spec import DATASETS, build


class StereoLoader(DataLoader):
    """Batches of view pairs: lists of two views (DESIGN 2), every value with a batch dimension.

    ``len`` is the number of batches of a whole epoch. Iterating gives the epoch chosen with
    ``set_epoch``. A batch is a function of the dataset, the seed, the epoch and its number alone:
    not of the number of workers, nor of torch's and numpy's global generators, which stay as they
    are.
    """

    dataset: StereoDataset
    batch_sampler: AspectRatioBatchSampler

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch of the next iterations, in all workers.

        Args:
            epoch: number of the epoch, from 0.
            start_batch: batches to leave out at the beginning, without loading them, where a run
                is resumed in the middle of an epoch.

        Raises:
            ValueError: the epoch has fewer than ``start_batch`` batches.
        """
        self.batch_sampler.set_epoch(epoch, start_batch)
        self.dataset.set_epoch(epoch)

    @property
    def num_skipped(self) -> int:
        """Bad samples that were replaced so far; 0 where they stop the run instead."""
        return self.dataset.num_skipped if isinstance(self.dataset, SkipBadSamples) else 0


def get_data_loader(
    dataset: StereoDataset | str,
    batch_size: int,
    num_workers: int = 8,
    shuffle: bool = True,
    drop_last: bool = True,
    pin_mem: bool = True,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    skip_bad_samples: bool = False,
) -> StereoLoader:
    """Loader of a dataset's batches on one rank of a run.

    Args:
        dataset: a dataset, or the specification string of one.
        batch_size: pairs per batch and rank.
        num_workers: processes that load; they live as long as the loader. 0: load in this process.
        shuffle, drop_last, rank, world_size, seed: see ``AspectRatioBatchSampler``.
        pin_mem: put batches where a GPU reads them fastest; no effect without one.
        skip_bad_samples: replace samples that raise ``SampleError`` and count them.

    Raises:
        SpecError: the specification string is wrong.
        ValueError: it is not one of a dataset, or the dataset cannot feed this batch size on so
            many ranks.
    """
    if isinstance(dataset, str):
        text, dataset = dataset, build(dataset, DATASETS)
        if not isinstance(dataset, StereoDataset):
            raise ValueError(f"expected a dataset, but {text!r} describes {dataset!r}")
    if skip_bad_samples:
        dataset = SkipBadSamples(dataset)
    sampler = AspectRatioBatchSampler(
        len(dataset),
        len(dataset.resolutions),
        batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        parts=_parts(dataset),
    )
    return StereoLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_mem and torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
        # Without a generator of its own, every epoch's iterator draws from torch's global one, and
        # a run resumed inside an epoch would not get back to the same random state.
        generator=torch.Generator().manual_seed(seed),
    )


def _parts(dataset: StereoDataset) -> list[Part] | None:
    """What of the data set is stored together; None where nothing is."""
    match dataset:
        case SkipBadSamples(dataset=inner):
            return _parts(inner)
        case Shards() | ResizedShards():
            return dataset.parts
        case RepeatedDataset(dataset=inner, times=times):
            parts = _parts(inner)
            return parts and parts * times
        case ConcatDataset(datasets=terms):
            of_terms = [_parts(term) for term in terms]
            if not any(of_terms):
                return None
            alone = ([Part(len(term))] for term in terms)
            return [part for own, one in zip(of_terms, alone, strict=True) for part in own or one]
    return None


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_asks, daemon=True).start()


def _end_when_parent_asks() -> None:
    """End this worker at a SIGTERM from its parent, and at no other.

    Slurm and Kubernetes ask every process of a job to stop; it is for the process that trains to
    finish its step, save, and end its workers, which need their batches until then. Ignoring the
    signal whoever sends it would hang a parent at its exit: multiprocessing terminates what is
    left of its children, and then waits for them.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
