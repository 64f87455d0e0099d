"""Depth and pose measures, by hand and by their invariances."""

import math

import cv2
import numpy as np
import pytest
import torch

from dust3r.evaluation.depth_cli import DepthMeasures, depth_measures
from dust3r.evaluation.pose_cli import PoseAccuracy
from dust3r.evaluation.pose_measures import accuracies, pose_errors, with_left_out


def test_depth_measures_by_hand():
    found = depth_measures(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert found["abs_rel"] == pytest.approx(0.5) and found["abs_diff"] == pytest.approx(1)
    assert found["sq_rel"] == pytest.approx(0.5) and found["rmse"] == pytest.approx(1)
    expected = math.sqrt((math.log(2) ** 2 + math.log(1.5) ** 2) / 2)
    assert found["rmse_log"] == pytest.approx(expected)
    assert (found["a1"], found["a2"], found["a3"]) == (0, 0.5, 0.5)


@pytest.mark.parametrize("alignment", ["median", "lstsq"])
def test_aligned_measures_do_not_know_the_scale(alignment):
    torch.manual_seed(0)
    truth = 1 + torch.rand(50)
    depth = truth * (1 + 0.1 * torch.randn(50))
    one, other = (depth_measures(s * depth, truth, alignment) for s in (1, 7))
    assert one == pytest.approx(other, rel=1e-5)
    assert depth_measures(7 * truth, truth, alignment)["abs_rel"] < 1e-6


def test_depths_that_cannot_be_measured_are_counted():
    metric = DepthMeasures()
    truth = torch.ones(4)
    metric.update(torch.tensor([1.0, 1, torch.nan, 1]), truth, "median", 1e-3)
    metric.update(torch.full((4,), torch.nan), truth, "median", 1e-3)
    metric.update(-truth, truth, "median", 1e-3)
    found = metric.compute()
    assert (found["images"], found["images_without"]) == (1, 2)
    assert (found["valid"], found["not_finite"]) == (12, 5) and found["abs_rel"] == 0


def cameras(count=4):
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = np.random.default_rng(0).normal(size=(count, 3))
    return poses


def test_poses_are_free_of_frame_and_scale_and_turns_are_seen():
    true = cameras()
    move = np.eye(4)
    move[:3, :3] = cv2.Rodrigues(np.array([0.3, -1.0, 0.5]))[0]
    moved = true.copy()
    moved[:, :3, 3] *= 3
    rotation, direction = pose_errors(move @ moved, true)
    assert max(rotation.max(), direction.max()) < 1e-5
    turned = true.copy()
    turned[0, :3, :3] = cv2.Rodrigues(np.array([0, np.radians(10), 0]))[0]
    rotation, _ = pose_errors(turned, true)
    np.testing.assert_allclose(rotation, [10, 10, 10, 0, 0, 0], atol=1e-6)


def test_accuracies_by_hand():
    rotation, direction = np.array([1.0, 20.0, 4.0]), np.array([2.0, 0.0, np.nan])
    found = accuracies(rotation, direction)
    assert found["RRA@15"] == pytest.approx(2 / 3) and found["RTA@15"] == 1
    # Of worst errors 2, 20 and 4, thresholds of 3 to 30, 21 to 30 and 5 to 30 are above.
    assert found["mAA30"] == pytest.approx((28 + 10 + 26) / 90)
    rotation, direction = with_left_out(rotation[:1], direction[:1], 3)
    assert rotation.tolist() == [1, 180, 180] and len(direction) == 3


def test_sets_are_joined_by_pairs():
    metric = PoseAccuracy()
    metric.update(np.zeros(3), np.zeros(3), failed=False)
    metric.update(np.array([180.0]), np.array([180.0]), failed=True)
    found = metric.compute()
    assert found["RRA@15"] == 0.75 and found["mAA@30"] == 0.75
    assert (found["sets"], found["failed"], found["pairs"]) == (2, 1, 4)
