"""PnP: exact on exact input, a covariance that is honest, and failures instead of exceptions."""

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from mast3r.visloc.metrics import pose_deviation, pose_error
from mast3r.visloc.pnp import absolute_pose
from mast3r.visloc.scene import Camera

SIZE = 640, 480
PINHOLE = Camera.pinhole(np.array([[585.0, 0, 320], [0, 580, 241], [0, 0, 1]]), SIZE)
DISTORTED = Camera(
    pycolmap.Camera(
        model="OPENCV",
        width=SIZE[0],
        height=SIZE[1],
        params=[585, 580, 320, 240, -0.2, 0.05, 0.001, -0.002],
    )
)


def problem(seed=0, count=100, noise=0.0, wrong=0.0, camera=PINHOLE):
    """Pixels, points and the pose of a random view."""
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = rng.normal(size=3) * 3
    pixels = rng.uniform((0, 0), np.array(SIZE) - 1, (count, 2))
    rays = camera.rays(pixels) * rng.uniform(1, 5, (count, 1))
    points = rays @ pose[:3, :3].T + pose[:3, 3]
    pixels += noise * rng.normal(size=pixels.shape)
    bad = rng.random(count) < wrong
    pixels[bad] = rng.uniform((0, 0), SIZE, (bad.sum(), 2))
    return pixels, points, pose


@pytest.mark.parametrize("camera", [PINHOLE, DISTORTED])
def test_exact_matches_among_wrong_ones_give_the_exact_pose(camera):
    pixels, points, pose = problem(wrong=0.5, camera=camera)
    found = absolute_pose(pixels, points, camera)
    error = pose_error(found.pose, pose)
    assert error.position < 1e-5 and error.rotation < 1e-4
    assert 40 <= found.inliers.sum() <= 60 and found.reason == ""


@pytest.mark.parametrize(("copies", "camera"), [(1, PINHOLE), (1, DISTORTED), (3, PINHOLE)])
def test_the_covariance_is_that_of_the_errors(copies, camera):
    squares = []
    for seed in range(120):
        pixels, points, pose = problem(seed, 60, noise=1.0, wrong=0.2, camera=camera)
        # A pixel that several map images match is seen once.
        rows = np.repeat(np.arange(60), copies)
        found = absolute_pose(pixels[rows], points[rows], camera)
        deviation = pose_deviation(found.pose, pose)
        squares.append(deviation @ np.linalg.solve(found.covariance, deviation))
    # Six degrees of freedom; the standard error of the mean is 0.32.
    assert 5 < np.mean(squares) < 7.5
    assert 0.4 < np.mean(np.array(squares) < 5.35) < 0.6


def test_the_frame_of_the_covariance_is_the_world():
    """A world turned by Q turns both blocks."""
    pixels, points, _ = problem(3, 200, noise=0.5)
    turn = Rotation.from_rotvec([0.3, -1.0, 0.7]).as_matrix()
    one = absolute_pose(pixels, points, PINHOLE)
    other = absolute_pose(pixels, points @ turn.T, PINHOLE)
    both = np.kron(np.eye(2), turn)
    scale = np.sqrt(np.outer(np.diag(other.covariance), np.diag(other.covariance)))
    difference = (other.covariance - both @ one.covariance @ both.T) / scale
    assert np.abs(difference).max() < 0.05


def test_positions_and_their_deviations_scale_with_the_scene():
    pixels, points, _ = problem(4, 200, noise=0.5)
    one, ten = (absolute_pose(pixels, points * scale, PINHOLE) for scale in (1, 10))
    np.testing.assert_allclose(ten.pose[:3, 3], 10 * one.pose[:3, 3], rtol=1e-2, atol=1e-2)
    deviations = [np.sqrt(np.diag(found.covariance)) for found in (one, ten)]
    np.testing.assert_allclose(deviations[1], deviations[0] * [1, 1, 1, 10, 10, 10], rtol=0.05)


def test_the_same_input_gives_the_same_pose():
    pixels, points, _ = problem(5, 300, noise=1.0, wrong=0.7)
    one, two = (absolute_pose(pixels, points, PINHOLE) for _ in range(2))
    np.testing.assert_array_equal(one.pose, two.pose)
    np.testing.assert_array_equal(one.inliers, two.inliers)


def test_what_is_not_finite_is_left_out():
    pixels, points, pose = problem(6)
    pixels[3], points[8] = np.nan, np.inf
    found = absolute_pose(pixels, points, PINHOLE)
    assert found.inliers.sum() == 98 and not found.inliers[[3, 8]].any()
    assert pose_error(found.pose, pose).position < 1e-5


def line(noise):
    along = np.linspace(0, 1, 40)[:, None] * [1.0, 0.5, 0.2] + [0, 0, 3]
    return along + noise * np.random.default_rng(0).normal(size=along.shape)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 3)),
        np.tile([0.0, 0, 3], (3, 1)),
        np.tile([0.0, 0, 3], (50, 1)),
        np.full((50, 3), np.nan),
        line(0.0),
        line(1e-9),
    ],
)
def test_degenerate_points_fail_with_a_reason(points):
    pixels = PINHOLE.project(np.nan_to_num(points, nan=1.0))
    found = absolute_pose(pixels, points, PINHOLE)
    assert found.pose is None and found.covariance is None and found.reason
    assert found.inliers.shape == (len(points),) and not found.inliers.any()


def test_matches_by_chance_fail():
    rng = np.random.default_rng(0)
    pixels, points = rng.uniform((0, 0), SIZE, (400, 2)), rng.normal(size=(400, 3)) + [0, 0, 4]
    found = absolute_pose(pixels, points, PINHOLE, min_inliers=12, max_trials=2000)
    assert found.pose is None and "agree on a pose" in found.reason


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match=r"expected \(K, 2\)"):
        absolute_pose(np.zeros((5, 2)), np.zeros((4, 3)), PINHOLE)
    with pytest.raises(ValueError, match="threshold=0 must be above 0"):
        absolute_pose(np.zeros((5, 2)), np.zeros((5, 3)), PINHOLE, threshold=0)
