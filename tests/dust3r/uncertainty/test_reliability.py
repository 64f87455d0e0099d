"""Errors of views as calibrations take them: of depths, of points, of whitened points."""

import math

import pytest
import torch

from dust3r.uncertainty.calibration_samples import ErrorCollector
from dust3r.uncertainty.estimates import POINTS, stated_depths
from dust3r.uncertainty.reliability import view_errors
from dust3r.uncertainty.stated import ELLIPSOID_SIGMA
from dust3r.utils.geometry import geotrf

SHAPE = (2, 30, 40)


@pytest.fixture
def pair():
    """A view, camera 1's pose, and predicted points that are off by a Gaussian of known spread."""
    generator = torch.Generator().manual_seed(0)
    pose1 = torch.eye(4).repeat(2, 1, 1)
    pose1[:, :3, 3] = torch.tensor([1.0, 2, 3])
    local = torch.rand(*SHAPE, 3, generator=generator) + torch.tensor([0.0, 0, 2])
    spread = torch.exp(torch.randn(*SHAPE, 3, generator=generator) - 2)
    noise = spread * torch.randn(*SHAPE, 3, generator=generator)
    view = {
        "pts3d": geotrf(pose1, local),
        "depthmap": local[..., 2],
        "valid_mask": torch.rand(SHAPE, generator=generator) > 0.2,
    }
    prediction = {
        "pts3d": local + noise,
        "conf": torch.ones(SHAPE) * 4,
        "xyz_mu": (local + noise).movedim(-1, 1),
        "xyz_logvar": spread.square().log().movedim(-1, 1),
    }
    return view, pose1, prediction, noise, spread


def test_balls_are_of_distances_in_camera_1s_frame(pair):
    view, pose1, prediction, noise, spread = pair
    for family, sigma in (("hetero", spread.norm(dim=-1)), ("conf", torch.full(SHAPE, 0.25))):
        found = view_errors(view, prediction, family, pose1)
        torch.testing.assert_close(found.errors, noise.norm(dim=-1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.sigmas, sigma)
        assert found.scale(view["valid_mask"]) == pytest.approx(1, abs=0.05)
        # Nothing is aligned: a model that is half as large is off by half of all distances.
        half = prediction | {
            "pts3d": prediction["pts3d"] / 2,
            "xyz_mu": prediction["xyz_mu"] / 2,
        }
        found = view_errors(view, half, family, pose1)
        assert found.scale(view["valid_mask"]) == pytest.approx(2, abs=0.1)
        assert found.errors.median() > 0.9


def test_whitened_lengths_have_the_sigma_of_a_true_covariance(pair):
    view, pose1, prediction, noise, spread = pair
    found = view_errors(view, prediction, "hetero", pose1, "ellipsoid")
    torch.testing.assert_close(found.errors, (noise / spread).norm(dim=-1), atol=1e-3, rtol=1e-3)
    assert found.errors.square().mean().sqrt().item() == pytest.approx(ELLIPSOID_SIGMA, rel=0.05)
    for family, region in (("conf", "interval"), ("hetero", "interval")):
        with pytest.raises(ValueError, match=f"{family!r} states balls, no intervals"):
            view_errors(view, prediction, family, pose1, region)
    with pytest.raises(ValueError, match="no covariance"):
        view_errors(view, prediction, "conf", pose1, "ellipsoid")


def test_a_similarity_of_the_image_leaves_errors_of_shape(pair):
    view, pose1, prediction, noise, spread = pair
    # Little noise: of much, least squares make a smaller scene.
    points = prediction["pts3d"] - 0.9 * noise
    narrower = prediction["xyz_logvar"] + 2 * math.log(0.1)
    prediction |= {"pts3d": points, "xyz_mu": points.movedim(-1, 1), "xyz_logvar": narrower}
    turned = geotrf(rigid(0.4, [0.3, -1.0, 2.0]), prediction["pts3d"]) / 2
    moved = prediction | {"pts3d": turned, "xyz_mu": turned.movedim(-1, 1)}
    for family in ("hetero", "conf"):
        found = view_errors(view, moved, family, pose1, alignment="umeyama")
        expected = view_errors(view, prediction, family, pose1, alignment="umeyama")
        mask = view["valid_mask"]
        torch.testing.assert_close(found.errors[mask], expected.errors[mask], atol=1e-4, rtol=1e-3)
        # A similarity has seven numbers, so that of thousands of pixels it takes next to no error.
        ratio = found.errors[mask] / (0.1 * noise).norm(dim=-1)[mask]
        assert ratio.median() == pytest.approx(1, abs=0.03)
        assert found.errors[~mask].isnan().all()
        # What is known before the truth is: as far away as predicted.
        torch.testing.assert_close(found.depths, turned.norm(dim=-1))
    alike = prediction | {"xyz_logvar": torch.full_like(narrower, math.log(0.05**2))}
    found = view_errors(view, alike, "hetero", pose1, alignment="umeyama")
    lengths = view_errors(view, alike, "hetero", pose1, "ellipsoid", alignment="umeyama")
    torch.testing.assert_close(0.05 * lengths.errors[mask], found.errors[mask])


def test_what_has_no_similarity_has_no_error(pair):
    view, pose1, prediction, *_ = pair
    view["valid_mask"][1] = False
    view["valid_mask"][1, 0, :3] = True
    found = view_errors(view, prediction, "conf", pose1, alignment="umeyama")
    assert found.errors[1].isnan().all()
    assert found.errors[0][view["valid_mask"][0]].isfinite().all()
    keys = [f"depth_{key}" for key in ("gamma", "nu", "alpha", "beta")]
    depth = dict.fromkeys(keys, torch.full((2, 1, 30, 40), 3.0))
    with pytest.raises(ValueError, match="'geom' states intervals of depth"):
        view_errors(view, depth, "geom", pose1, alignment="umeyama")


def test_what_is_drawn_of_points_are_the_errors_that_are_calibrated(pair):
    view, pose1, prediction, *_ = pair
    view["camera_pose"] = pose1
    # Of the second image, pixels too few for a similarity: errors are after a scale alone.
    view["valid_mask"][1] = False
    view["valid_mask"][1, 0, :3] = True
    (found,) = stated_depths(view, prediction, pose1)
    expected = view_errors(view, prediction, "hetero", pose1, alignment="umeyama")
    mask = view["valid_mask"][0]
    torch.testing.assert_close(found.error[0][mask], expected.errors[0][mask])
    torch.testing.assert_close(found.uncertainty, expected.sigmas)
    assert found.name == POINTS and found.is_deviation and found.nll(view["depthmap"]) is None
    assert found.error[1][view["valid_mask"][1]].isfinite().all()
    confidence = {key: prediction[key] for key in ("pts3d", "conf")}
    assert stated_depths(view, confidence, pose1) == []


def rigid(angle: float, shift: list[float]) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    moved = torch.eye(4).repeat(2, 1, 1)
    moved[:, :2, :2] = torch.tensor([[c, -s], [s, c]])
    moved[:, :3, 3] = torch.tensor(shift)
    return moved


def test_valid_pixels_alone_are_collected_and_others_counted(pair):
    view, pose1, prediction, *_ = pair
    prediction["pts3d"][0, :3] = torch.nan
    collector = ErrorCollector(per_image=10_000)
    found = view_errors(view, prediction, "conf", pose1)
    found.add_to(collector, view["valid_mask"], "a", with_depths=True)
    valid = view["valid_mask"]
    assert collector.left_out == int(valid[0, :3].sum())
    samples = collector.samples()
    assert len(samples) == int(valid.sum()) - collector.left_out and samples.count == 2
    assert samples.df is None and (samples.depths > 0).all()
