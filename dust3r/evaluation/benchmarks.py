"""Named data sets to evaluate on, and which of their pairs."""

import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dust3r.datasets.bad_samples import SampleError
from dust3r.datasets.combine import Draw, StereoDataset
from dust3r.utils.spec import DATASETS, SpecError, build
from dust3r.utils.view import check_view

log = logging.getLogger(__name__)

View = dict[str, Any]
EXAMPLE = "\"Rooms:ScanNetpp('all', ROOT='data/rooms', resolution=224); Kitchen:ScanNetpp(...)\""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Benchmark:
    """A named data set: ``spec`` describes it, ``dataset`` is it."""

    name: str
    spec: str
    dataset: StereoDataset

    def choose(self, count: int | None, seed: int) -> list[int]:
        """Pairs to evaluate, ascending: ``count`` at random, or all where None or fewer.

        A function of the name, the data set's length, ``count`` and ``seed`` alone.
        """
        return choose(self.name, len(self.dataset), count, seed)


def choose(name: str, total: int, count: int | None, seed: int) -> list[int]:
    """``Benchmark.choose`` of a data set of ``total`` pairs."""
    if count is None or count >= total:
        return list(range(total))
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), total))
    return sorted(rng.choice(total, count, replace=False).tolist())


def parse_benchmarks(text: str) -> list[Benchmark]:
    """The data sets of ``"Name:Dataset(...); Name:Dataset(...)"``.

    Names are letters, digits and ``_ . + -``, since files are called by them.

    Raises:
        ValueError: a part is not ``Name:Dataset(...)``, a name comes twice, or a data set is none,
            is empty, or cannot be built; the message says which.
    """
    parts = [part for part in _split(text) if part.strip()]
    if not parts:
        raise ValueError(f"--benchmarks names no data set; give for example {EXAMPLE}")
    found: dict[str, Benchmark] = {}
    for part in parts:
        name, colon, spec = part.strip().partition(":")
        name, spec = name.strip(), spec.strip()
        if not colon or not _NAME.fullmatch(name) or not spec:
            raise ValueError(
                f"--benchmarks: {part.strip()!r} is not Name:Dataset(...), with a name of letters, "
                f"digits and _ . + - ; give for example {EXAMPLE}"
            )
        if name in found:
            raise ValueError(f"--benchmarks names {name!r} twice; give each a name of its own")
        found[name] = Benchmark(name, spec, _dataset(name, spec))
    return list(found.values())


def load_pairs(
    dataset: StereoDataset,
    indices: Sequence[int],
    batch_size: int,
    num_workers: int,
    seed: int = 0,
) -> Iterator[tuple[list[int], tuple[View, View] | None, list[str]]]:
    """Batches of pairs of one resolution, in order.

    Each sample is a function of the data set, its index and ``seed``.

    Yields:
        The indices of a batch and its two views; pairs that cannot be used come alone, with None
        in place of views and the reason.
    """
    loader = DataLoader(
        _Chosen(dataset, tuple(indices), seed),
        batch_size=batch_size,
        num_workers=min(num_workers, -(-len(indices) // batch_size)),
        collate_fn=_collate,
        worker_init_fn=_prepare_worker,
    )
    for good, views, bad in loader:
        for index, reason in bad:
            log.warning("left out: %s", reason)
            yield [index], None, [reason]
        if good:
            for view in views:
                check_view(view)
            yield good, tuple(views), []


@dataclass(frozen=True)
class _Chosen(Dataset):
    dataset: StereoDataset
    indices: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, list[View] | str]:
        index = self.indices[place]
        try:
            return index, self.dataset.load(Draw(index, 0, (self.seed, 0)))
        except SampleError as error:
            return index, str(error)


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _collate(samples: list[tuple[int, list[View] | str]]) -> tuple[list[int], Any, list]:
    good = [(index, views) for index, views in samples if not isinstance(views, str)]
    bad = [(index, reason) for index, reason in samples if isinstance(reason, str)]
    views = default_collate([views for _, views in good]) if good else None
    return [index for index, _ in good], views, bad


def _dataset(name: str, spec: str) -> StereoDataset:
    try:
        dataset = build(spec, DATASETS)
    except SpecError as error:
        raise SpecError(f"--benchmarks, {name}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--benchmarks, {name}: {error}") from error
    if not isinstance(dataset, StereoDataset):
        raise ValueError(f"--benchmarks, {name}: {spec!r} describes {dataset!r}, no data set")
    if len(dataset) == 0:
        raise ValueError(f"--benchmarks, {name}: {spec!r} is empty: it has no pair")
    return dataset


def _split(text: str) -> list[str]:
    """The text cut at semicolons outside quotes."""
    parts, quote = [""], ""
    for character in text:
        if character == ";" and not quote:
            parts.append("")
            continue
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        parts[-1] += character
    return parts
