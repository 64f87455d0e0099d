"""Datasets of view pairs and their algebra: ``N @ dataset``, ``N * dataset`` and ``A + B``.

A sample is asked for by a ``Draw``: its index, the aspect ratio wanted and the key of its
randomness. The key travels with the index, so that what a loader worker returns is a pure function
of the draw: it depends neither on the worker, nor on what was loaded before, nor on where a run was
resumed.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from dust3r.datasets.cropping import Size

View = dict[str, object]


class Draw(NamedTuple):
    """One sample to load.

    ``index`` is the position in the dataset, ``aspect`` that in its ``resolutions``, ``key`` seeds
    all chance: the sampler's (seed, epoch), which combined datasets lengthen on the way down.
    """

    index: int
    aspect: int
    key: tuple[int, ...]


class StereoDataset(Dataset, ABC):
    """Samples that are lists of two views (DESIGN 2), indexed by integer, by pair or by ``Draw``.

    ``dataset[index]`` uses the first resolution, ``dataset[(index, aspect)]`` the one at that
    position; both take the epoch of the last ``set_epoch``. The sampler's draws bring their own.
    """

    epoch: int = 0

    @property
    @abstractmethod
    def resolutions(self) -> tuple[Size, ...]:
        """The (width, height) that ``aspect`` chooses from, width >= height."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, draw: Draw) -> list[View]:
        """The views of a draw whose index and aspect are in range, or what the class says it
        gives in their place."""

    @abstractmethod
    def draw_paths(self, draw: Draw) -> list[Path]:
        """The image file of each view of ``draw``."""

    def __getitem__(self, item: int | tuple[int, int] | Draw) -> list[View]:
        return self.load(self._draw(item))

    def sample_paths(self, item: int | tuple[int, int] | Draw) -> list[Path]:
        """The image file of each view of ``dataset[item]``, without reading them."""
        return self.draw_paths(self._draw(item))

    def set_epoch(self, epoch: int) -> None:
        """Choose the chance of samples that are asked for by integer or by pair."""
        self.epoch = epoch

    def __add__(self, other: "StereoDataset") -> "ConcatDataset":
        if not isinstance(other, StereoDataset):
            return NotImplemented
        return ConcatDataset([self, other])

    def __rmul__(self, times: int) -> "RepeatedDataset":
        return RepeatedDataset(times, self)

    def __rmatmul__(self, num_samples: int) -> "ResizedDataset":
        return ResizedDataset(num_samples, self)

    def _draw(self, item: int | tuple[int, int] | Draw) -> Draw:
        if isinstance(item, Draw):
            index, aspect, key = item
        else:
            index, aspect = item if isinstance(item, tuple) else (item, 0)
            key = (0, self.epoch)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)}")
        if not 0 <= aspect < len(self.resolutions):
            raise IndexError(f"aspect ratio {aspect} of a dataset with {len(self.resolutions)}")
        return Draw(int(index) % len(self), int(aspect), key)


class CombinedDataset(StereoDataset):
    """A dataset that gives the samples of others."""

    @abstractmethod
    def route(self, draw: Draw) -> tuple[StereoDataset, Draw]:
        """The dataset that holds the sample, and the draw to ask of it."""

    def load(self, draw: Draw) -> list[View]:
        dataset, inner = self.route(draw)
        return dataset.load(inner)

    def draw_paths(self, draw: Draw) -> list[Path]:
        dataset, inner = self.route(draw)
        return dataset.draw_paths(inner)


class ResizedDataset(CombinedDataset):
    """``N @ dataset``: N samples an epoch, chosen afresh each epoch.

    The choice is a function of the draw's key. It goes through random permutations of the dataset
    one after the other, so that with N >= len(dataset) every sample is seen before any repeats; a
    repeated sample gets other chance than the first time.

    Raises:
        ValueError: N is not a positive integer, or the dataset is empty.
    """

    def __init__(self, num_samples: int, dataset: StereoDataset) -> None:
        _check_count(num_samples, "@")
        if len(dataset) == 0:
            raise ValueError(f"{num_samples} @ an empty dataset: {dataset}")
        self.dataset = dataset
        self.num_samples = num_samples
        self._selection: tuple[tuple[int, ...] | None, np.ndarray] = (None, np.empty(0, int))

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return self.dataset.resolutions

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"{self.num_samples} @ {self.dataset!r}"

    def route(self, draw: Draw) -> tuple[StereoDataset, Draw]:
        if self._selection[0] != draw.key:
            self._selection = (draw.key, self._select(np.random.default_rng(draw.key)))
        index = int(self._selection[1][draw.index])
        nth_pass = draw.index // len(self.dataset)
        return self.dataset, Draw(index, draw.aspect, (*draw.key, nth_pass))

    def _select(self, rng: np.random.Generator) -> np.ndarray:
        passes = -(-self.num_samples // len(self.dataset))
        orders = [rng.permutation(len(self.dataset)) for _ in range(passes)]
        return np.concatenate(orders)[: self.num_samples]


class RepeatedDataset(CombinedDataset):
    """``N * dataset``: the dataset N times over, each time with other chance.

    Raises:
        ValueError: N is not a positive integer.
    """

    def __init__(self, times: int, dataset: StereoDataset) -> None:
        _check_count(times, "*")
        self.dataset = dataset
        self.times = times

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return self.dataset.resolutions

    def __len__(self) -> int:
        return self.times * len(self.dataset)

    def __repr__(self) -> str:
        return f"{self.times} * {self.dataset!r}"

    def route(self, draw: Draw) -> tuple[StereoDataset, Draw]:
        nth_pass, index = divmod(draw.index, len(self.dataset))
        return self.dataset, Draw(index, draw.aspect, (*draw.key, nth_pass))


class ConcatDataset(CombinedDataset):
    """``A + B``: the samples of A, then those of B; ``datasets`` lists the terms of a longer sum.

    Raises:
        ValueError: the datasets differ in their resolutions, so that no batch could hold both.
    """

    def __init__(self, datasets: list[StereoDataset]) -> None:
        self.datasets: list[StereoDataset] = []
        for dataset in datasets:
            self.datasets += dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
        for dataset in self.datasets:
            if dataset.resolutions != self.resolutions:
                raise ValueError(
                    f"datasets that are added need the same resolutions, got "
                    f"{list(self.resolutions)} of {self.datasets[0]!r} and "
                    f"{list(dataset.resolutions)} of {dataset!r}; give both one list"
                )
        self._ends = np.cumsum([len(dataset) for dataset in self.datasets])

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return self.datasets[0].resolutions

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return " + ".join(repr(dataset) for dataset in self.datasets)

    def route(self, draw: Draw) -> tuple[StereoDataset, Draw]:
        which = int(np.searchsorted(self._ends, draw.index, side="right"))
        start = int(self._ends[which - 1]) if which else 0
        inner = Draw(draw.index - start, draw.aspect, (*draw.key, which))
        return self.datasets[which], inner


def _check_count(count: int, operator: str) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count <= 0:
        raise ValueError(
            f"{count!r} {operator} dataset: the count must be a positive whole number, "
            f"as in 1000 {operator} dataset"
        )
