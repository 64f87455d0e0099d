"""What the evaluation of reconstructions measures, and the problems it and the benchmark make."""

import importlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dust3r.cloud_opt import global_aligner
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.reconstruction import Reconstruction
from dust3r.utils.image import load_images

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture(scope="module")
def truth():
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("alignment_problems").room(0, 4, (64, 48), step=3)
    finally:
        sys.path.remove(str(SCRIPTS))


def reconstructed(output, truth):
    scene = global_aligner(output, verbose=False)
    scene.preset_principal_point(truth.intrinsics[:, :2, 2])
    scene.compute_global_alignment()
    return Reconstruction.from_scene(scene)


def perfect(truth, move=None, scale=1.0, deviation=None):
    """The truth in a world that is moved and larger."""
    poses = truth.poses.copy()
    poses[:, :3, 3] *= scale
    poses = poses if move is None else move @ poses
    count = len(truth)
    return Reconstruction(
        sources=(None,) * count,
        images=tuple(np.zeros((*depth.shape, 3), np.float32) for depth in truth.depths),
        poses=poses,
        intrinsics=truth.intrinsics,
        depthmaps=tuple((scale * truth.depths).astype(np.float32)),
        confidences=tuple(np.ones_like(truth.depths)),
        valid=tuple(truth.depths > 0),
        deviations=deviation,
    )


def test_the_truth_in_another_world_has_no_error(script, truth):
    evaluation = script("eval_reconstruction")
    move = np.eye(4)
    move[:3, :3] = cv2.Rodrigues(np.array([0.3, -1.0, 0.5]))[0]
    move[:3, 3] = 3, -2, 1
    measures = evaluation.measure(perfect(truth, move, 0.4), truth)
    for name in ("rotation_mean", "direction_mean", "focal", "ate", "point_mean"):
        assert measures[name] < 1e-4, name
    for name in ("RRA@5", "RTA@15", "mAA30", "kept"):
        assert measures[name] == 1, name


def test_a_turned_camera_is_seen_in_its_pairs_alone(script, truth):
    turned = truth.poses.copy()
    turned[3, :3, :3] = turned[3, :3, :3] @ cv2.Rodrigues(np.array([0, np.radians(8), 0]))[0]
    rotation, direction = script("alignment_problems").pose_errors(turned, truth.poses)
    expected = [0, 0, 8, 0, 8, 8]
    np.testing.assert_allclose(rotation, expected, atol=1e-6)
    np.testing.assert_allclose(direction, 0, atol=1e-6)


def test_deviations_as_large_as_the_errors_cover_and_rank_them(script, truth):
    evaluation = script("eval_reconstruction")
    rng = np.random.default_rng(0)
    spread = truth.depths * np.exp(rng.uniform(-5, -2, truth.depths.shape))
    result = perfect(truth, deviation=tuple(spread.astype(np.float32)))
    off = tuple((truth.depths + spread * rng.standard_normal(spread.shape)).astype(np.float32))
    measures = evaluation.measure(Reconstruction(**{**vars(result), "depthmaps": off}), truth)
    assert abs(measures["within_1"] - 0.68) < 0.03
    assert abs(measures["within_2"] - 0.95) < 0.03
    random = tuple(rng.permuted(spread.reshape(len(spread), -1)).reshape(spread.shape))
    shuffled = Reconstruction(**{**vars(result), "depthmaps": off, "deviations": random})
    assert measures["ranking"] < 0.5
    assert evaluation.measure(shuffled, truth)["ranking"] > 0.8


def test_alignment_solves_what_noisy_pairs_pose(script, truth):
    problems, evaluation = script("alignment_problems"), script("eval_reconstruction")
    exact, noisy = (
        evaluation.measure(reconstructed(problems.noisy_pairs(truth, *noise), truth), truth)
        for noise in ((0.0,), (0.05, 0.05))
    )
    assert exact["rotation_mean"] < 0.02 and exact["point_mean"] < 1e-3
    assert 0.02 < noisy["rotation_mean"] < 3


def test_confidence_tells_of_the_error(script, truth):
    output = script("alignment_problems").noisy_pairs(truth, 0.02, outliers=0.1)
    again = script("alignment_problems").noisy_pairs(truth, 0.02, outliers=0.1)
    conf, points = output["pred1"]["conf"][0], output["pred1"]["pts3d"][0]
    torch.testing.assert_close(again["pred1"]["pts3d"], output["pred1"]["pts3d"])
    z = torch.from_numpy(truth.depths[0])
    error = (points[..., 2] / z / (points[..., 2] / z).median() - 1).abs()
    surest = conf >= conf.quantile(0.5)
    assert conf.min() >= 1
    assert error[surest].mean() < 0.7 * error[~surest].mean()


def test_chains_overlap_and_follow_the_seed(script, write_tree):
    evaluation = script("eval_reconstruction")
    dataset = ScanNetpp("all", write_tree(frames={"desk": 8, "lamp": 8}), 64)
    rows = {tuple(pair) for pair in dataset.pairs.tolist()}
    chains = [
        evaluation.chain(dataset, 1, 3, 0.3, np.random.default_rng(seed)) for seed in (1, 1, 2, 3)
    ]
    assert chains[0] == chains[1] and len({tuple(one) for one in chains}) > 1
    for found in chains:
        assert len(set(found)) == 3 and (dataset.sceneids[found] == 1).all()
        assert all((a, b) in rows or (b, a) in rows for a, b in zip(found, found[1:], strict=False))
    with pytest.raises(ValueError, match="min_overlap"):
        evaluation.chain(dataset, 1, 3, 0.9, np.random.default_rng(0))


def test_truth_is_at_the_pixels_of_the_network(script, write_tree, plane):
    evaluation = script("eval_reconstruction")
    dataset = ScanNetpp("all", write_tree(frames={"desk": 3}, size=(200, 150)), 64)
    images = load_images([evaluation.paths(dataset, n)[0] for n in (0, 2)], 64, verbose=False)
    truth = evaluation.read_truth(dataset, (0, 2), images)
    measures = evaluation.measure(perfect(truth), truth)
    assert truth.depths.shape == (2, 48, 64) and measures["point_mean"] < 1e-3
    for n in range(2):
        points = perfect(truth).pts3d(n)
        colours = images[n]["img"][0].permute(1, 2, 0).numpy()
        seen = plane["decode_world_xy"](colours)
        assert np.abs(seen - points[..., :2])[4:-4, 4:-4].mean() < 0.02
        np.testing.assert_allclose(points @ plane["normal"], plane["offset"], atol=0.02)


def test_failed_scenes_are_counted_and_have_no_share(script, truth):
    evaluation = script("eval_reconstruction")
    good = evaluation.measure(perfect(truth), truth) | {"seconds": 1.0}
    cells = evaluation.row(
        [good, good, "no camera could be placed", good | {"rotation_median": 50}]
    )
    titles = [column.title for column in evaluation.COLUMNS]
    assert cells[0] == "2"
    assert cells[1 + titles.index("rot (deg)")] == "0.00"
    assert cells[1 + titles.index("RRA@5")] == "75"
    assert cells[1 + titles.index("1 s (%)")] == "-"
    json.dumps(good)


def test_gradient_descent_lowers_the_error_of_its_first_guess(script, truth):
    bench, problems = script("bench_alignment"), script("alignment_problems")
    output = problems.noisy_pairs(truth, 0.05)
    guess, found = (bench.gradient_descent(output, niter=niter) for niter in (0, 150))
    errors = [
        problems.pose_errors(one.poses.numpy(), truth.poses)[0].mean() for one in (guess, found)
    ]
    assert errors[1] < errors[0]
    start = bench._aligned(bench._aligner(output, niter=0))
    np.testing.assert_allclose(
        *(problems.pose_errors(one.poses.numpy(), truth.poses)[0] for one in (guess, start)),
        atol=0.05,
    )
