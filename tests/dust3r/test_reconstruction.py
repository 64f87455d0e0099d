"""What a reconstruction shows and hides, and how it comes from a scene."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dust3r.reconstruction import Reconstruction, Source
from dust3r.uncertainty.calibration import Calibration


def source(number, scale=2.0):
    return Source(f"{number}.jpg", Path(f"{number}.jpg"), (20, 10), np.diag([scale, scale, 1.0]))


def reconstruction(deviations=True):
    """Two images (5, 10) with confidences and relative deviations of 100 different values."""
    order = np.random.default_rng(0).permutation(100).reshape(2, 5, 10).astype(np.float32)
    depths = np.linspace(1, 3, 100, dtype=np.float32).reshape(2, 5, 10)
    return Reconstruction(
        sources=(source(0), source(1)),
        images=(np.zeros((5, 10, 3), np.float32),) * 2,
        poses=np.eye(4)[None].repeat(2, 0),
        intrinsics=np.array([[[10.0, 0, 5], [0, 10, 2.5], [0, 0, 1]]] * 2),
        depthmaps=tuple(depths),
        confidences=tuple(1 + order),
        valid=(np.ones((5, 10), bool),) * 2,
        deviations=tuple((0.01 + 0.001 * order) * depths) if deviations else None,
    )


def share(kept):
    return np.stack(kept).mean()


@pytest.mark.parametrize("deviations", [True, False])
def test_hiding_takes_the_most_doubtful_of_all_images(deviations):
    scene = reconstruction(deviations)
    assert share(scene.kept()) == 1
    assert share(scene.kept(hide=1)) == 0
    half = np.stack(scene.kept(hide=0.5))
    assert half.mean() == pytest.approx(0.5, abs=0.01)
    doubts = np.stack(scene.doubts())
    assert doubts[half].max() < doubts[~half].min()


def test_hidden_points_grow_with_the_fraction():
    scene = reconstruction()
    shown = [np.stack(scene.kept(hide=hide)) for hide in (0, 0.2, 0.5, 0.9, 1)]
    for more, less in zip(shown, shown[1:], strict=False):
        assert (more | less == more).all() and less.sum() < more.sum()


def test_deviation_over_depth_comes_before_confidence():
    scene = reconstruction()
    kept = np.stack(scene.kept(hide=0.5))
    relative = np.stack(scene.deviations) / np.stack(scene.depthmaps)
    assert relative[kept].max() < relative[~kept].min()


def test_the_least_confidence_comes_before_the_fraction():
    scene = reconstruction()
    sure = np.stack(scene.confidences) >= 41
    assert (np.stack(scene.kept(min_confidence=41)) == sure).all()
    both = np.stack(scene.kept(min_confidence=41, hide=0.5))
    assert both[~sure].sum() == 0
    assert both.sum() == pytest.approx(sure.sum() / 2, abs=1)
    assert share(scene.kept(min_confidence=1000, hide=0.5)) == 0


@pytest.mark.parametrize("deviations", [True, False])
def test_doubt_is_infinite_where_there_is_nothing(deviations):
    scene = reconstruction(deviations)
    scene.depthmaps[0][2] = scene.confidences[0][2] = 0
    scene.valid[0][2] = False
    doubts = scene.doubts()
    assert np.isinf(doubts[0][2]).all()
    assert np.isfinite(np.delete(doubts[0], 2, axis=0)).all()
    assert not scene.kept(hide=0.1)[0][2].any()


def test_points_and_cameras_of_the_originals():
    scene = reconstruction()
    points = scene.pts3d(0)
    np.testing.assert_allclose(points[..., 2], scene.depthmaps[0])
    np.testing.assert_allclose(
        points[..., 0] / points[..., 2] * 10 + 5, np.arange(10) + 0 * points[..., 0], atol=1e-5
    )
    np.testing.assert_allclose(scene.original_intrinsics()[1], [[20, 0, 10], [0, 20, 5], [0, 0, 1]])
    assert len(scene) == 2


@pytest.mark.parametrize("deviations", [True, False])
def test_from_a_scene(deviations):
    maps = [torch.rand(3, 4), torch.rand(4, 3)]
    scene = SimpleNamespace(
        sources=(source(0), source(1)),
        notes=("of the scene",),
        imgs=[np.zeros((3, 4, 3), np.float32), np.zeros((4, 3, 3), np.float32)],
        im_conf=maps,
        get_im_poses=lambda: torch.eye(4).repeat(2, 1, 1).requires_grad_(),
        get_intrinsics=lambda: torch.eye(3).repeat(2, 1, 1),
        get_depthmaps=lambda: maps,
        get_valid=lambda: [one > 0.5 for one in maps],
        get_deviations=lambda: maps if deviations else None,
        deviations_of="point",
    )
    found = Reconstruction.from_scene(scene, ["a note"])
    assert found.poses.dtype == found.intrinsics.dtype == np.float64
    assert [one.shape for one in found.depthmaps] == [(3, 4), (4, 3)]
    assert found.valid[0].dtype == bool and (found.valid[1] == (maps[1].numpy() > 0.5)).all()
    assert (found.deviations is not None) == deviations
    assert found.deviations_of == "point"
    assert found.notes == ("a note", "of the scene") and found.sources[1].name == "1.jpg"


def calibration(**changed):
    """Of intervals: radii that hold 90% are 4 sigma, in three bins 2, 4 and 8 of them."""
    edges = np.array([0.03, 0.06]) if changed.get("binned_by") else np.zeros(0)
    told = {
        "family": "geom",
        "region": "interval",
        "unit": "m",
        "scale": 2.0,
        "scale_by": "nll",
        "knots": np.array([[0.0, 1], [0, 1]]),
        "levels": np.array([0.5, 0.9]),
        "radii": np.array([[1.0, 2], [2, 4], [4, 8]] if len(edges) else [[1.0, 4]]),
        "edges": edges,
        "binned_by": None,
        "dataset": "Rooms()",
        "checkpoint": "model.pth",
        "checkpoint_sha256": "",
        "pixels": 100,
        "left_out": 0,
        "images": 20,
        "pairs": 10,
    }
    return Calibration(**told | changed)


def test_calibrated_radii_are_of_the_scenes_unit():
    scene = reconstruction()
    plain = scene.calibrated(calibration())
    np.testing.assert_allclose(plain.radii90, 4 * np.stack(scene.deviations), rtol=1e-6)
    assert plain.radii90[0].dtype == np.float32 and scene.radii90 is None
    binned = scene.calibrated(calibration(binned_by="relative"))
    relative = np.stack(scene.deviations) / np.stack(scene.depthmaps)
    factor = np.stack(binned.radii90) / np.stack(scene.deviations)
    assert factor[relative < 0.029] == pytest.approx(2)
    assert factor[relative > 0.061] == pytest.approx(8)


def test_what_no_scene_can_be_calibrated_by():
    with pytest.raises(ValueError, match="states no deviations"):
        reconstruction(deviations=False).calibrated(calibration())
    for changed in ({"region": "ball"}, {"binned_by": "sigma"}):
        with pytest.raises(ValueError, match="nothing of deviations of depths in a scene's own"):
            reconstruction().calibrated(calibration(**changed))
    with pytest.raises(ValueError, match="intervals .* nothing of deviations of points .* balls"):
        replace(reconstruction(), deviations_of="point").calibrated(calibration())


def test_deviations_of_points_are_compared_with_distances():
    scene = replace(reconstruction(), deviations_of="point")
    away = np.stack([np.linalg.norm(scene.pts3d(n), axis=-1) for n in range(2)])
    np.testing.assert_allclose(scene.doubts(), np.stack(scene.deviations) / away, rtol=1e-5)
    plain = scene.calibrated(calibration(region="ball"))
    np.testing.assert_allclose(plain.radii90, 4 * np.stack(scene.deviations), rtol=1e-6)
    binned = scene.calibrated(calibration(region="ball", binned_by="relative"))
    relative = np.stack(scene.deviations) / away
    factor = np.stack(binned.radii90) / np.stack(scene.deviations)
    assert factor[relative < 0.029] == pytest.approx(2)
    assert factor[relative > 0.061] == pytest.approx(8)
