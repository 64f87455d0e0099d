"""Measures of an image: points without a scale are judged as the same points in metres are."""

import math

import pytest
import torch

from dust3r.evaluation.measure import OWN, measure_image, metres_of_unit, point_errors
from dust3r.evaluation.methods import POINT, Method
from dust3r.evaluation.rankings import Columns

SIDE = 24
NOISE = 0.1


@pytest.fixture
def views():
    torch.manual_seed(0)
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.4, 0.0, 0.1])
    made = []
    for camera in (torch.eye(4), pose):
        points = torch.rand(1, SIDE, SIDE, 3) * 2 + torch.tensor([-1.0, -1.0, 2.0])
        valid = torch.rand(1, SIDE, SIDE) > 0.2
        made.append(
            {
                "pts3d": points,
                "depthmap": points[..., 2],
                "valid_mask": valid,
                "camera_pose": camera[None],
                "label": ["wall"],
            }
        )
    return tuple(made)


def predicted(views, scale=1.0):
    """Points with noise whose deviation is stated as it is, in a unit of 1 / ``scale`` metres."""
    torch.manual_seed(1)
    made = []
    for view, key in zip(views, ("pts3d", "pts3d_in_other_view"), strict=True):
        sigma = NOISE * torch.rand(1, 3, SIDE, SIDE).exp()
        noise = (sigma * torch.randn(sigma.shape)).movedim(1, -1)
        points = scale * (view["pts3d"] + noise)
        logvar = 2 * (sigma * scale).log()
        mean = points.movedim(-1, 1)
        made.append({key: points, "xyz_mu": mean, "xyz_logvar": logvar,
                     "conf": 1 + 1 / sigma.mean(1)})  # fmt: skip
    return tuple(made)


def measured(views, predictions, family="hetero", metres=1.0, n=0):
    return measure_image(
        views[n],
        predictions[n],
        views[0]["camera_pose"],
        Method(family, family),
        point_errors(views[n], predictions[n], "umeyama"),
        n + 1,
        Columns(),
        metres,
    )


@pytest.mark.parametrize("scale", [0.25, 1.0, 30.0])
def test_the_unit_is_the_ratio_of_distances(views, scale):
    assert metres_of_unit(views, predicted(views, scale)) == pytest.approx(1 / scale, rel=0.01)


def test_what_is_not_valid_or_not_finite_says_nothing_of_the_unit(views):
    predictions = predicted(views, 0.5)
    expected = metres_of_unit(views, predictions)
    for view, prediction in zip(views, predictions, strict=True):
        points = prediction["pts3d" if "pts3d" in prediction else "pts3d_in_other_view"]
        points[~view["valid_mask"]] = 1e6
        view["pts3d"][~view["valid_mask"]] = torch.nan
    assert metres_of_unit(views, predictions) == pytest.approx(expected, rel=1e-5)
    predictions[1]["pts3d_in_other_view"][:] = torch.nan
    assert metres_of_unit(views, predictions) == pytest.approx(2, rel=0.02)
    for view in views:
        view["valid_mask"][:] = False
    assert metres_of_unit(views, predictions) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_the_unit_of_points_changes_nothing_once_it_is_known(views, n):
    found = [
        measured(views, one, metres=metres_of_unit(views, one), n=n)
        for one in (predicted(views), predicted(views, 0.25))
    ]
    for one in found:
        total, count = one.nll
        # Of a Gaussian about points that are off by it, to the error of 450 draws.
        log_sigma = (predicted(views)[n]["xyz_logvar"] / 2).movedim(1, -1)[views[n]["valid_mask"]]
        expected = float((log_sigma + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1).mean())
        assert total / count == pytest.approx(expected, abs=0.2)
    first, second = found
    assert second.nll[0] / second.nll[1] == pytest.approx(first.nll[0] / first.nll[1], abs=1e-3)
    torch.testing.assert_close(
        torch.from_numpy(second.pixels[OWN].values), torch.from_numpy(first.pixels[OWN].values),
        rtol=1e-4, atol=0,
    )  # fmt: skip
    assert (second.levels - first.levels).sum() == 0 and abs(second.levels - first.levels).max() < 3
    assert second.numbers[POINT, OWN]["rho"] > 0.2
