"""The plane sweep: a slanted plane, wrong poses, occluded and missing views, its arguments."""

import dataclasses

import numpy as np
import pytest
import textured_plane
import torch

from deltas.compare.methods import Frames
from deltas.compare.plane_sweep import PlaneSweep, _better_half

INSIDE = (slice(8, -8), slice(20, -20))


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames.of(textured_plane.sample())


def sweep(**options) -> PlaneSweep:
    return PlaneSweep(**{"planes": 48, "window": 7, "aggregation": 5, "maxdepth": 5.0} | options)


def error(said) -> np.ndarray:
    truth = textured_plane.depth()
    return (np.abs(said.depth - truth) / truth)[INSIDE]


def test_a_slanted_plane_is_found_between_planes(frames):
    said = sweep().predict(frames)
    assert np.median(error(said)) < 0.01 and np.percentile(error(said), 90) < 0.03
    # The planes themselves are 0.0375 / m apart.
    coarse = np.abs(1 / said.depth - 1 / textured_plane.depth())[INSIDE]
    assert np.median(coarse) < 0.0375 / 4


def test_exposure_does_not_matter(frames):
    images = frames.images.clone()
    images[1] = 0.6 * images[1] - 0.2
    assert np.median(error(sweep().predict(dataclasses.replace(frames, images=images)))) < 0.01


def test_inverted_poses_are_bad_and_look_uncertain(frames):
    inverted = dataclasses.replace(frames, poses=np.linalg.inv(frames.poses))
    right, wrong = (sweep().predict(one) for one in (frames, inverted))
    assert np.nanmedian(error(wrong)) > 0.1
    assert np.nanmedian(wrong.uncertainty) > 2 * np.nanmedian(right.uncertainty)


def test_a_view_that_shows_something_else_does_no_harm(frames):
    images = frames.images.clone()
    images[2] = images[2].flip(-1)
    assert np.median(error(sweep().predict(dataclasses.replace(frames, images=images)))) < 0.03


def test_without_overlap_there_is_no_depth(frames):
    poses = frames.poses.copy()
    poses[1:] = poses[1:] @ np.diag([-1.0, 1, -1, 1])
    said = sweep().predict(dataclasses.replace(frames, poses=poses))
    assert not said.stated.any() and np.isnan(said.uncertainty).all()


def test_costs_are_unknown_where_no_view_sees_the_plane(frames):
    costs = sweep().costs(frames)
    assert costs.shape == (48, *textured_plane.SIZE)
    known = costs.isfinite()
    # The nearest plane is partly out of both neighbours' pictures; the middle is always seen.
    assert known[:, 48, 64].all() and not known[0].all()
    assert (costs[known] >= 0).all() and (costs[known] <= 2).all()


def test_views_count_by_their_better_half():
    nan = float("nan")
    costs = torch.tensor([[3.0, nan, 4.0], [1.0, 2.0, nan], [2.0, nan, nan]])[:, None]
    torch.testing.assert_close(_better_half(costs), torch.tensor([[1.5, 2.0, 4.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planes": 2}, "needs 3"),
        ({"window": 4}, "window=4: expected an odd"),
        ({"mindepth": 6.0}, "below maxdepth"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sweep(**options)
