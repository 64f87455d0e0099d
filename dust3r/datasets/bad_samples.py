"""Samples that cannot be used: the error that names them, and the wrapper that replaces them."""

import hashlib
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dust3r.datasets.combine import Draw, StereoDataset, View
from dust3r.datasets.cropping import Size

logger = logging.getLogger(__name__)

_REMEMBERED = 65_536


class SampleError(ValueError):
    """A sample that cannot be used: unreadable files, a pose that is no number, no depth at all.

    ``path`` is the file at fault and ``index`` the sample's position in its dataset; both stand in
    the message too, and are None on the copy that a loader worker's error becomes.
    """

    # Loader workers' errors are built anew in the main process from their message alone.
    def __init__(self, message: str, path: str | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.index = index


@contextmanager
def naming_sample(path: str | Path, index: int) -> Iterator[None]:
    """Turn errors of reading and checking inside the block into a ``SampleError`` that names them.

    Args:
        path: the file being read.
        index: the sample's position in its dataset.
    """
    try:
        yield
    except SampleError:
        raise
    except (OSError, ValueError) as error:
        raise SampleError(f"sample {index} ({path}): {error}", str(path), index) from error


class SkipBadSamples(StereoDataset):
    """A dataset that gives the next good sample in the place of one that raises ``SampleError``.

    Counts and the files already reported live in memory that loader workers share, so
    ``num_skipped`` is right in the main process, and each file at fault is logged once over all
    workers and epochs.

    Args:
        dataset: what to read from.
        max_tries: bad samples in a row after which it gives up: then the data is at fault.

    Raises:
        SampleError: (on loading) ``max_tries`` samples in a row are bad, or all there are.
    """

    def __init__(self, dataset: StereoDataset, max_tries: int = 50) -> None:
        self.dataset = dataset
        self.max_tries = max_tries
        self._count = multiprocessing.Value("q", 0)
        self._num_known = multiprocessing.Value("q", 0)
        self._known = multiprocessing.Array("Q", _REMEMBERED, lock=False)

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return self.dataset.resolutions

    @property
    def num_skipped(self) -> int:
        """Bad samples replaced so far, over all workers; one met in two epochs counts twice."""
        return self._count.value

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"SkipBadSamples({self.dataset!r})"

    def load(self, draw: Draw) -> list[View]:
        tries = min(self.max_tries, len(self))
        for step in range(tries):
            index = (draw.index + step) % len(self)
            try:
                return self.dataset.load(draw._replace(index=index))
            except SampleError as error:
                self._record(error)
                last = error
        raise SampleError(
            f"{tries} bad samples in a row from sample {draw.index} on, so the data set "
            f"itself is at fault; the last one: {last}",
            last.path,
            last.index,
        ) from last

    def draw_paths(self, draw: Draw) -> list[Path]:
        """The files of the sample asked for, whether or not it is a good one."""
        return self.dataset.draw_paths(draw)

    def _record(self, error: SampleError) -> None:
        with self._count.get_lock():
            self._count.value += 1
        name = (error.path or str(error)).encode()
        digest = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
        with self._num_known.get_lock():
            known = self._num_known.value
            if known == _REMEMBERED or digest in self._known[:known]:
                return
            self._known[known] = digest
            self._num_known.value = known + 1
        logger.warning("skipped: %s", error)
