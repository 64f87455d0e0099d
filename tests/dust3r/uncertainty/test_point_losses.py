"""Terms on points: what they are compared with, in which unit, and the gate's variation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.criterion import MissingInput
from dust3r.losses import L21, ConfLoss, Regr3D
from dust3r.uncertainty.losses import average_over_views
from dust3r.uncertainty.point_losses import (
    GateVariation,
    PointEvidence,
    PointLikelihood,
    Ramp,
    add_aligned_targets,
    add_point_targets,
    regression_of,
)

GOLDEN = Path(__file__).parents[2] / "golden"
SHAPE = (2, 4, 5)


def views_and_predictions(scale=1.0, metric=True):
    """A pair whose prediction is its truth in camera 1's frame, ``scale`` times as large."""
    random = torch.Generator().manual_seed(0)
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[:, :3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    pose[:, :3, 3] = torch.tensor([1.0, 2, 3])
    views, preds = [], []
    for key in ("pts3d", "pts3d_in_other_view"):
        in_camera1 = torch.randn(*SHAPE, 3, generator=random) + torch.tensor([0, 0, 4.0])
        world = in_camera1 @ pose[0, :3, :3].T + pose[0, :3, 3]
        mask = torch.rand(SHAPE, generator=random) > 0.3
        views.append({"pts3d": world, "camera_pose": pose, "valid_mask": mask})
        views[-1]["is_metric_scale"] = torch.full((2,), metric)
        preds.append({key: scale * in_camera1})
    return tuple(views), tuple(preds)


def evidence(mean):
    shape = (SHAPE[0], 1, *SHAPE[1:])
    lower = torch.tensor([1.0, 0.2, 0.8, -0.1, 0.3, 1.2])[None, :, None, None]
    return {
        "xyz_niw_m": mean.movedim(-1, 1),
        "xyz_niw_kappa": torch.full(shape, 2.0),
        "xyz_niw_nu": torch.full(shape, 6.0),
        "xyz_niw_L": lower.expand(SHAPE[0], 6, *SHAPE[1:]).clone(),
    }


def test_weighted_likelihood_has_the_gradients_that_it_promises():
    random = torch.Generator().manual_seed(0)
    y, mean, log_variance = torch.randn(3, 1, 3, 4, 5, generator=random, dtype=torch.float64)
    mask = torch.ones(1, 4, 5, dtype=torch.bool)
    sigma, error = (0.5 * log_variance).exp(), y - mean
    for beta, pull in ((0, error / sigma**2), (0.5, error / sigma), (1, error)):
        pred = {"xyz_mu": mean.clone().requires_grad_()}
        pred["xyz_logvar"] = log_variance.clone().requires_grad_()
        loss = PointLikelihood(beta)({"point_target": y, "point_target_valid": mask}, pred)
        loss.backward()
        torch.testing.assert_close(-20 * pred["xyz_mu"].grad, pull)
        # Whatever the weight, a variance rests where it is the squared error.
        push = 20 * pred["xyz_logvar"].grad
        torch.testing.assert_close(push, 0.5 * sigma ** (2 * beta) * (1 - (error / sigma) ** 2))
    for beta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"--hetero_beta is from 0 to 1, not {beta}"):
            PointLikelihood(beta)


def gaussian(mean):
    return {"xyz_mu": mean.movedim(-1, 1), "xyz_logvar": torch.zeros_like(mean.movedim(-1, 1))}


@pytest.mark.parametrize("norm_mode", ["avg_dis", "median_dis", "?avg_dis", "avg_log1p"])
@pytest.mark.parametrize("opt_fit_gt", [False, True])
def test_targets_are_true_points_in_the_predictions_frame_and_unit(norm_mode, opt_fit_gt):
    views, preds = views_and_predictions(scale=7.0, metric=False)
    regression = Regr3D(L21, norm_mode=norm_mode, opt_fit_gt=opt_fit_gt)
    tolerance = 0.3 if "log1p" in norm_mode and not opt_fit_gt else 1e-4
    for view, pred in zip(add_point_targets(views, preds, regression), preds, strict=True):
        (points,) = pred.values()
        valid = view["point_target_valid"]
        assert torch.equal(valid, view["valid_mask"])
        found = view["point_target"].movedim(1, -1)[valid]
        torch.testing.assert_close(found, points[valid], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm_mode", ["?avg_dis", None])
def test_metric_targets_stay_in_metres(norm_mode):
    views, preds = views_and_predictions(scale=7.0)
    targets = add_point_targets(views, preds, Regr3D(L21, norm_mode=norm_mode))
    for view, pred in zip(targets, preds, strict=True):
        (points,) = pred.values()
        found = view["point_target"].movedim(1, -1)[view["point_target_valid"]]
        expected = points[view["point_target_valid"]] / 7
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_aligned_targets_are_the_prediction_where_a_similarity_explains_the_error():
    views, preds = views_and_predictions(scale=7.0)
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    moved = tuple({key: one @ turn + 3 for key, one in pred.items()} for pred in preds)
    targets = add_aligned_targets(views, moved, Regr3D(L21, norm_mode="?avg_dis"))
    for view, pred in zip(targets, moved, strict=True):
        (points,), valid = pred.values(), view["point_target_valid"]
        found = view["point_target"].movedim(1, -1)
        torch.testing.assert_close(found[valid], points[valid], rtol=1e-4, atol=1e-4)


def test_aligned_targets_are_off_by_the_rest_of_the_error_in_metres():
    views, preds = views_and_predictions(scale=7.0)
    noise = torch.randn(*SHAPE, 3, generator=torch.Generator().manual_seed(1))
    bent = ({"pts3d": preds[0]["pts3d"] + 7 * 0.1 * noise}, preds[1])
    first, second = add_aligned_targets(views, bent, Regr3D(L21, norm_mode="?avg_dis"))
    off = (first["point_target"].movedim(1, -1) - bent[0]["pts3d"])[first["point_target_valid"]]
    # Errors of 0.1 along each axis, in metres, less what the similarity takes up.
    assert 0.1 < off.norm(dim=-1).square().mean().sqrt() < 0.1 * 3**0.5
    assert second["point_target_valid"].any()


def test_a_view_without_valid_pixels_has_no_aligned_targets():
    views, preds = views_and_predictions()
    views[0]["valid_mask"][0] = False
    first, _ = add_aligned_targets(views, preds, Regr3D(L21, norm_mode="?avg_dis"))
    assert not first["point_target_valid"][0].any() and first["point_target_valid"][1].any()
    assert first["point_target"].isfinite().all()


@pytest.mark.parametrize("add_targets", [add_point_targets, add_aligned_targets])
def test_targets_have_no_gradient(add_targets):
    views, preds = views_and_predictions()
    for pred in preds:
        for points in pred.values():
            points.requires_grad_()
    targets = add_targets(views, preds, Regr3D(L21, norm_mode="avg_dis"))
    assert not any(view["point_target"].requires_grad for view in targets)


@pytest.mark.parametrize(
    ("term", "describe"),
    [(PointEvidence(1e-3), evidence), (PointLikelihood(), gaussian)],
)
def test_only_valid_pixels_count(term, describe):
    views, preds = views_and_predictions()
    views = add_point_targets(views, preds, Regr3D(L21, norm_mode="?avg_dis"))
    preds = tuple(describe(points) for pred in preds for points in pred.values())
    before = average_over_views(term, views, preds)
    for view in views:
        view["point_target"].movedim(1, -1)[~view["point_target_valid"]] = 1e6
    assert average_over_views(term, views, preds) == before
    nothing = {**views[0], "point_target_valid": torch.zeros(SHAPE, dtype=torch.bool)}
    leaf = {name: value.requires_grad_() for name, value in preds[0].items()}
    value = term(nothing, leaf)
    value.backward()
    assert value == 0 and all(p.grad is None or (p.grad == 0).all() for p in leaf.values())


def test_truth_that_is_not_finite_is_not_valid():
    views, preds = views_and_predictions()
    views[1]["pts3d"][0, 0] = torch.nan
    views = add_point_targets(views, preds, Regr3D(L21, norm_mode="avg_dis"))
    assert not views[1]["point_target_valid"][0, 0].any()
    loss = PointEvidence(1e-3)(views[1], evidence(preds[1]["pts3d_in_other_view"]))
    assert loss.isfinite()


def test_a_prediction_that_is_not_finite_shows():
    views, preds = views_and_predictions()
    views = add_point_targets(views, preds, Regr3D(L21, norm_mode="?avg_dis"))
    bad = evidence(preds[0]["pts3d"])
    bad["xyz_niw_L"][views[0]["point_target_valid"][:, None].expand(-1, 6, -1, -1)] = torch.nan
    assert PointEvidence(1e-3)(views[0], bad).isnan()


def test_the_published_number_goes_through_the_term():
    published = json.loads((GOLDEN / "uq.json").read_text())
    maps = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "uq.npz").items()}
    view = {"point_target": maps["y_xyz"], "point_target_valid": maps["mask"]}
    pred = {"xyz_niw_m": maps["m_xyz"], "xyz_niw_L": maps["L"]}
    pred |= {"xyz_niw_kappa": maps["kappa"], "xyz_niw_nu": maps["nu_niw"]}
    expected = published["niw3d(lambda=1e-3, masked)"]
    assert PointEvidence(1e-3)(view, pred).item() == pytest.approx(expected, rel=1e-5)
    pred = {f"xyz_{name}": maps[f"{name}_xyz"] for name in ("nu", "alpha", "beta")}
    expected = published["nig3d(lambda=1e-3, masked)"]
    value = PointEvidence(1e-3)(view, pred | {"xyz_gamma": maps["m_xyz"]})
    assert value.item() == pytest.approx(expected, rel=1e-5)
    pred = {"xyz_mu": maps["m_xyz"], "xyz_logvar": maps["logvar_xyz"]}
    expected = published["hetero_gaussian_nll(masked)"]
    assert PointLikelihood()(view, pred).item() == pytest.approx(expected, rel=1e-5)


def test_variation_of_a_constant_gate_is_zero():
    assert GateVariation()({}, {"rg_gate": torch.full((2, 1, 8, 9), 0.3)}) == 0
    assert GateVariation()({}, {"rg_gate": torch.ones(1, 1, 1, 1)}) == 0


def test_variation_is_the_mean_step_right_and_down():
    gate = torch.zeros(1, 1, 4, 6)
    gate[..., 3:] = 0.5
    assert GateVariation()({}, {"rg_gate": gate}).item() == pytest.approx(0.5 / 5)
    assert GateVariation()({}, {"rg_gate": gate.mT}).item() == pytest.approx(0.5 / 5)


def test_a_model_without_a_gate_is_told():
    with pytest.raises(MissingInput, match="rg_gate"):
        GateVariation()({}, {"pts3d": torch.zeros(1, 2, 2, 3)})


def test_weights_grow_linearly():
    ramp = Ramp(0.5, steps=10)
    assert [ramp.at(step) for step in (1, 5, 10, 99)] == [0.05, 0.25, 0.5, 0.5]
    assert Ramp(0.5, steps=0).at(1) == 0.5
    with pytest.raises(ValueError, match="0 steps or more, not -1"):
        Ramp(0.5, steps=-1)


def test_the_regression_is_found_inside_the_criterion():
    regression = Regr3D(L21, norm_mode="?avg_dis")
    assert regression_of(ConfLoss(regression, alpha=0.2) + 0.5 * Regr3D(L21)) is regression
    with pytest.raises(ValueError, match="has none: add one to --train_criterion"):
        regression_of(torch.nn.Identity())
