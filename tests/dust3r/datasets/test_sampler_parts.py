import numpy as np
import pytest

from dust3r.datasets.sampler import AspectRatioBatchSampler, Part, shuffled

ENDS = (10, 10, 25, 40, 60)


def test_stretches_are_shuffled_within_windows():
    order = shuffled([Part(60, ENDS, window=2)], np.random.default_rng(0))
    assert sorted(order) == list(range(60))
    of_stretch = np.searchsorted(ENDS, order, side="right")
    stays = [set(of_stretch[:10]), set(of_stretch[-10:])]
    assert all(len(found) <= 2 for found in stays)
    assert (np.diff(order) != 1).mean() > 0.8


def test_one_window_of_everything_is_any_order():
    firsts = {
        int(shuffled([Part(60, ENDS, window=9)], np.random.default_rng(seed))[0])
        for seed in range(40)
    }
    assert len({np.searchsorted(ENDS, first, side="right") for first in firsts}) == 4


def test_parts_keep_their_order_and_mix():
    parts = [Part(60, ENDS, window=1), Part(300)]
    order = shuffled(parts, np.random.default_rng(3))
    assert sorted(order) == list(range(360))
    ours = order[order < 60]
    stretch = np.searchsorted(ENDS, ours, side="right")
    assert (np.diff(stretch) != 0).sum() == 3
    places = np.flatnonzero(order < 60)
    assert abs(np.median(places) - 180) < 60


def test_a_sampler_takes_parts_of_its_length_only():
    sampler = AspectRatioBatchSampler(60, 1, 6, parts=[Part(60, ENDS)])
    drawn = [draw.index for batch in sampler for draw in batch]
    assert sorted(drawn) == list(range(60))
    with pytest.raises(ValueError, match="not those of 61 samples"):
        AspectRatioBatchSampler(61, 1, 6, parts=[Part(60, ENDS)])
