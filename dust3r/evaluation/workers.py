"""Work on many pieces in several processes, with results that do not depend on how many."""

import itertools
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

Piece = TypeVar("Piece")
Result = TypeVar("Result")

# Pieces in hand for each process: one that it works on, and the next.
_AHEAD = 2


def mapped(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], workers: int = 0
) -> Iterator[Result]:
    """Results in the order of the pieces, few of which are in memory at a time.

    Every piece is worked on by one thread, as the last digits of sums depend on their number.

    Args:
        function: has to be picklable, as pieces and results have, where there are workers.
        workers: processes; below 2 the work is done in this one.

    Raises:
        Whatever ``function`` does, when it is the piece's turn.
    """
    if workers < 2:
        libraries = ThreadpoolController()
        for piece in pieces:
            with _one_thread(libraries):
                result = function(piece)
            yield result
        return
    # A forked process has all modules at once; elsewhere than on Linux forks are not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _stay_on_one_thread)
    waiting: deque = deque()
    pieces = iter(pieces)
    try:
        waiting.extend(
            pool.submit(function, piece) for piece in itertools.islice(pieces, _AHEAD * workers)
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, piece) for piece in itertools.islice(pieces, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _stay_on_one_thread() -> None:
    # The BLAS of numpy and scipy have threads of their own, which wait for each other spinning.
    threadpool_limits(1)
    torch.set_num_threads(1)


@contextmanager
def _one_thread(libraries: ThreadpoolController) -> Iterator[None]:
    threads = torch.get_num_threads()
    with libraries.limit(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
