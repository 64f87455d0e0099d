"""SIFT triangulation: points are right, wrong poses are bad, and nothing seen is said."""

import dataclasses

import numpy as np
import pytest
import textured_plane

from deltas.compare.classical import SiftTriangulation, SparsePoints, complete
from deltas.compare.methods import Frames


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames.of(textured_plane.sample())


def errors(points: SparsePoints) -> np.ndarray:
    """Relative to the plane's depth at the points' very places, between pixels."""
    inverse = 1 / textured_plane.depth()
    down, across = inverse[1, 0] - inverse[0, 0], inverse[0, 1] - inverse[0, 0]
    x, y = points.pixels.T
    return np.abs(points.depth * (inverse[0, 0] + x * across + y * down) - 1)


def test_points_are_right_and_so_is_the_map_between_them(frames):
    method = SiftTriangulation()
    points = method.triangulate(frames)
    assert len(points) > 60
    assert np.median(errors(points)) < 0.01 and np.percentile(errors(points), 90) < 0.03
    said = method.predict(frames)
    truth = textured_plane.depth()
    assert said.stated.all()
    assert np.median(np.abs(said.depth - truth) / truth) < 0.01
    x, y = points.pixels[0].round().astype(int)
    assert said.uncertainty[y, x] < 1 < said.uncertainty.max()


def test_each_neighbour_alone_gives_the_same_depth(frames):
    for view in (1, 2):
        pair = Frames(*(getattr(frames, f.name)[[0, view]] for f in dataclasses.fields(frames)))
        found = SiftTriangulation().triangulate(pair)
        assert len(found) > 30 and np.median(errors(found)) < 0.015


def test_points_out_of_range_are_left_out(frames):
    near = SiftTriangulation(0.5, 1.8).triangulate(frames)
    assert len(near) and near.depth.max() <= 1.8


def test_inverted_poses_are_bad(frames):
    inverted = dataclasses.replace(frames, poses=np.linalg.inv(frames.poses))
    right, wrong = (SiftTriangulation().triangulate(one) for one in (frames, inverted))
    assert len(wrong) < 0.5 * len(right)
    assert not len(wrong) or np.median(errors(wrong)) > 0.1


@pytest.mark.parametrize("what", ["another place", "no texture", "one place"])
def test_without_a_point_there_is_no_depth(frames, what):
    images, poses = frames.images.clone(), frames.poses.copy()
    if what == "another place":
        # What the neighbours see is no part of the anchor's picture.
        images[1:] = images[1:].flip(-1).flip(-2).transpose(-1, -2).reshape(images[1:].shape)
    elif what == "no texture":
        images[:] = 0.2
    else:
        poses[1:] = poses[0]
    said = SiftTriangulation().predict(Frames(images, poses, frames.intrinsics))
    assert not said.stated.any()
    assert (said.filled(1.7) == np.float32(1.7)).all()


def test_completion_is_exact_on_planes_and_nearest_outside_the_hull():
    pixels = np.array([[2.0, 2], [30, 3], [28, 20], [4, 18]])
    inverse = 0.3 + 0.01 * pixels[:, 0] - 0.002 * pixels[:, 1]
    said = complete(SparsePoints(pixels, 1 / inverse), (24, 32))
    np.testing.assert_allclose(1 / said.depth[10, 15], 0.3 + 0.15 - 0.02, rtol=1e-5)
    np.testing.assert_allclose(said.depth[23, 31], 1 / inverse[2], rtol=1e-5)
    assert said.uncertainty[18, 4] == 0 and said.uncertainty[0, 2] == 2


@pytest.mark.parametrize("pixels", [[[5.0, 5]], [[5.0, 5], [9, 5]], [[5.0, 5], [9, 5], [12, 5]]])
def test_completion_of_points_without_a_hull_is_nearest(pixels):
    depth = 1.0 + np.arange(len(pixels))
    said = complete(SparsePoints(np.array(pixels), depth), (10, 16))
    assert said.stated.all() and said.depth[2, 0] == 1 and said.depth[9, 15] == depth[-1]
