"""Scenes with a known answer for sparse alignment: forward results made from true geometry."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="session")
def problems() -> Iterator:
    """The modules ``alignment_problems`` and ``sparse_problems`` of the scripts, as one."""
    sys.path.insert(0, str(SCRIPTS))
    import alignment_problems
    import sparse_problems

    class Both:
        room = staticmethod(alignment_problems.room)
        pose_errors = staticmethod(alignment_problems.pose_errors)
        focal_errors = staticmethod(alignment_problems.focal_errors)
        KnownResults = sparse_problems.KnownResults

    yield Both
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def truth(problems: object):
    """Six views of a room, 112x80."""
    return problems.room(0, 6, (112, 80))


@pytest.fixture(scope="session")
def results(problems: object, truth: object) -> Callable:
    """Forward results of a network that errs by so much."""

    def make(noise: float = 0.0, pixel_noise: float = 0.0, outliers: float = 0.0, **more):
        return problems.KnownResults(truth, noise, pixel_noise, outliers, **more)

    return make
