"""What an exported radius says: nine tenths of the points lie within it."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from dust3r.export import write_maps, write_ply
from dust3r.splat.ply import read_vertices
from dust3r.uncertainty.calibration_fit import fit
from dust3r.uncertainty.calibration_samples import ErrorSamples
from dust3r.utils.geometry import geotrf

TOLD = {"family": "feat", "region": "interval", "dataset": "Rooms()", "checkpoint": "a.pth"}


def errors_of(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors with tails, three times as large as the deviations that are stated of them."""
    rng = np.random.default_rng(seed)
    sigmas = 0.01 * rng.lognormal(0, 0.5, shape)
    return 3 * sigmas * rng.laplace(size=shape) / np.sqrt(2), sigmas


@pytest.fixture(params=[{}, {"bins": 3, "binned_by": "relative"}], ids=["one", "bins"])
def calibrated(request, build):
    """A scene whose depths are off, with the radius of a calibration of other errors; the truth."""
    errors, sigmas = errors_of((300, 100), 1)
    depths = np.random.default_rng(2).uniform(1, 3, errors.shape)
    samples = ErrorSamples.from_arrays(errors, sigmas, depths=depths)
    scene = build()
    off = [errors_of(one.shape, 3 + n) for n, one in enumerate(scene.depthmaps)]
    wrong = replace(
        scene,
        depthmaps=tuple(np.float32(d + e) for d, (e, _) in zip(scene.depthmaps, off, strict=True)),
        deviations=tuple(np.float32(sigma) for _, sigma in off),
    )
    return wrong.calibrated(fit(samples, **TOLD, **request.param)), scene.depthmaps


def test_nine_tenths_of_true_depths_lie_within_the_radius_of_the_maps(calibrated, tmp_path):
    scene, truth = calibrated
    folder = write_maps(scene, tmp_path / "maps")
    within, stated = [], []
    for path in folder.glob("*.npz"):
        with np.load(path) as maps:
            number = [source.name for source in scene.sources].index(str(maps["name"]))
            away = np.abs(maps["depth"] - truth[number]).ravel()
            within.append(away <= maps["radius90"].ravel())
            stated.append(away <= 1.645 * maps["sigma"].ravel())
    assert len(within) == len(truth)
    assert np.concatenate(within).mean() == pytest.approx(0.9, abs=0.02)
    # Without calibration the same deviations hold far less.
    assert np.concatenate(stated).mean() < 0.6


def test_nine_tenths_of_points_lie_within_the_radius_of_the_cloud(calibrated, tmp_path):
    scene, truth = calibrated
    path = write_ply(scene, tmp_path / "cloud.ply")
    points = trimesh.load(path).vertices
    header, body = path.read_bytes().split(b"end_header\n", 1)
    assert header.endswith(b"property float radius90\n")
    radii = np.frombuffer(body, "u1").reshape(len(points), -1)[:, -4:].copy().view("<f4")[:, 0]
    ends = np.cumsum([one.size for one in truth])
    assert ends[-1] == len(points)
    within = [
        np.abs(geotrf(np.linalg.inv(pose), own)[:, 2] - true.ravel()) <= radius
        for pose, own, true, radius in zip(
            scene.poses, np.split(points, ends[:-1]), truth, np.split(radii, ends[:-1]), strict=True
        )
    ]
    assert np.concatenate(within).mean() == pytest.approx(0.9, abs=0.02)


def test_nine_tenths_of_true_points_lie_within_the_balls_of_a_model_of_points(build, tmp_path):
    """As stated of points: errors are lengths, here along the ray that a pixel's points are on."""
    errors, sigmas = errors_of((300, 100), 1)
    told = {**TOLD, "family": "hetero", "region": "ball", "alignment": "umeyama"}
    scene = build()
    off = [errors_of(one.shape, 3 + n) for n, one in enumerate(scene.depthmaps)]
    truth = [scene.pts3d(n) for n in range(len(scene))]
    depths = []
    for n, (error, _) in enumerate(off):
        away = np.linalg.norm(truth[n] - scene.poses[n, :3, 3], axis=-1)
        depths.append(np.float32(scene.depthmaps[n] * (1 + error / away)))
    wrong = replace(
        scene,
        depthmaps=tuple(depths),
        deviations=tuple(np.float32(sigma) for _, sigma in off),
        deviations_of="point",
    )
    samples = ErrorSamples.from_arrays(np.abs(errors), sigmas)
    found = wrong.calibrated(fit(samples, **told))
    within = [
        np.linalg.norm(found.pts3d(n) - truth[n], axis=-1) <= found.radii90[n]
        for n in range(len(found))
    ]
    assert np.concatenate([one.ravel() for one in within]).mean() == pytest.approx(0.9, abs=0.02)
    with np.load(next(write_maps(found, tmp_path / "maps").glob("*.npz"))) as maps:
        assert maps["sigma_of"] == "point"
    path = write_ply(found, tmp_path / "cloud.ply")
    assert b"\ncomment sigma is of points\n" in path.read_bytes()[:1000]
    assert len(read_vertices(path)) == sum(one.size for one in depths)
