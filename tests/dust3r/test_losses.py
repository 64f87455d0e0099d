"""Pointmap criteria: golden numbers, invariances, empty and broken inputs."""

import numpy as np
import pytest
import torch
from golden_losses import GOLDEN, assert_agrees, cases_of

from dust3r.losses import (
    L21,
    ConfLoss,
    Regr3D,
    Regr3D_ScaleInv,
    Regr3D_ScaleShiftInv,
    Regr3D_ShiftInv,
)
from dust3r.utils.spec import LOSSES, build

CASES = cases_of("dust3r")
REGRESSIONS = (Regr3D, Regr3D_ShiftInv, Regr3D_ScaleInv, Regr3D_ScaleShiftInv)


@pytest.fixture
def golden():
    """view1, view2, pred1, pred2 of the golden cases."""
    with np.load(GOLDEN / "losses.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    views = [
        {key: arrays[f"view{i}.{key}"] for key in ("camera_pose", "pts3d", "valid_mask")}
        for i in (1, 2)
    ]
    keys = ("pts3d", "pts3d_in_other_view")
    preds = [
        {key: arrays[f"pred{i}.pts"].requires_grad_(), "conf": arrays[f"pred{i}.conf"]}
        for i, key in enumerate(keys, start=1)
    ]
    return *views, *preds


def points(pair):
    return [pair[2]["pts3d"], pair[3]["pts3d_in_other_view"]]


def with_points(pair, change):
    """The same pair with both predicted pointmaps changed."""
    first, second = map(change, points(pair))
    pred1, pred2 = pair[2] | {"pts3d": first}, pair[3] | {"pts3d_in_other_view": second}
    return pair[0], pair[1], pred1, pred2


def with_truth(pair, scale):
    """The same pair in a world ``scale`` times as large."""
    views = []
    for view in pair[:2]:
        pose = view["camera_pose"].clone()
        pose[:, :3, 3] *= scale
        views.append(view | {"camera_pose": pose, "pts3d": view["pts3d"] * scale})
    return *views, *pair[2:]


def with_masks(pair, change):
    return *(v | {"valid_mask": change(v["valid_mask"])} for v in pair[:2]), *pair[2:]


def same(criterion, pair, other, rel=1e-5):
    return criterion(*pair)[0].item() == pytest.approx(criterion(*other)[0].item(), rel=rel)


def test_golden_file_has_the_six_cases():
    assert len(CASES) == 6


@pytest.mark.parametrize("text", CASES)
def test_agrees_with_the_published_numbers(golden, text):
    assert_agrees(text, CASES[text], golden)


@pytest.mark.parametrize("given", ["L21", "L21()"])
def test_a_point_criterion_is_taken_as_class_and_as_instance(golden, given):
    value, _ = build(f"Regr3D({given})", LOSSES)(*golden)
    assert value.item() == pytest.approx(CASES["Regr3D(L21, norm_mode='avg_dis')"]["loss"], 1e-4)


def test_l21_is_the_euclidean_distance():
    distance = L21()(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 5.0, 7.0]]))
    assert distance.tolist() == [5.0]


@pytest.mark.parametrize("kind", REGRESSIONS)
@pytest.mark.parametrize("norm_mode", ["avg_dis", "avg", "median", "median_log1p"])
def test_the_scale_of_either_side_does_not_matter(golden, kind, norm_mode):
    criterion = kind(L21, norm_mode=norm_mode)
    scales = torch.tensor([0.3, 7.0])[:, None, None, None]
    assert same(criterion, golden, with_points(golden, lambda p: p * scales))
    assert same(criterion, golden, with_truth(golden, 5.0))


def test_all_norms_are_the_radius_of_a_sphere(golden):
    def project(points):
        return 4 * torch.nn.functional.normalize(points, dim=-1)

    sphere = with_points(golden, project)
    centre = golden[0]["camera_pose"][:, None, None, :3, 3]
    for i in (0, 1):
        points = centre + project(golden[i]["pts3d"] - centre)
        sphere = (*sphere[:i], sphere[i] | {"pts3d": points}, *sphere[i + 1 :])
    plain = Regr3D(L21, norm_mode=None)(*sphere)[0].item() / 4
    for mode in ("avg_dis", "median_dis", "avg_log1p", "median_log1p"):
        value, _ = Regr3D(L21, norm_mode=mode)(*sphere)
        assert value.item() == pytest.approx(plain, rel=1e-5)


def test_the_log_norm_is_less_swayed_by_far_points(golden):
    def loss_ratio(mode):
        criterion = Regr3D(L21, norm_mode=mode, gt_scale=False)
        far = golden[0]["pts3d"].clone()
        far[:, 0] *= 100
        return (
            criterion(golden[0] | {"pts3d": far}, *golden[1:])[1]["Regr3D_pts3d_2"]
            / criterion(*golden)[1]["Regr3D_pts3d_2"]
            - 1
        ).abs()

    assert loss_ratio("median_log1p") < loss_ratio("avg_log1p") < loss_ratio("avg_dis")


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_the_choice_of_world_frame_does_not_matter(golden, kind):
    angle = torch.tensor(0.7)
    move = torch.eye(4)
    move[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    move[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
    moved = [
        view
        | {
            "camera_pose": move @ view["camera_pose"],
            "pts3d": view["pts3d"] @ move[:3, :3].T + move[:3, 3],
        }
        for view in golden[:2]
    ]
    assert same(kind(L21), golden, (*moved, *golden[2:]), rel=1e-4)


@pytest.mark.parametrize("kind", [Regr3D_ShiftInv, Regr3D_ScaleShiftInv])
def test_a_depth_shift_does_not_matter_but_a_sideways_one_does(golden, kind):
    criterion = kind(L21, norm_mode=None)
    shifted = with_points(golden, lambda p: p + torch.tensor([0.0, 0.0, 3.0]))
    assert same(criterion, golden, shifted)
    sideways = with_points(golden, lambda p: p + torch.tensor([3.0, 0.0, 0.0]))
    assert not same(criterion, golden, sideways, rel=1e-2)


@pytest.mark.parametrize("kind", [Regr3D_ScaleInv, Regr3D_ScaleShiftInv])
def test_scale_invariance_needs_no_normalisation(golden, kind):
    criterion = kind(L21, norm_mode=None)
    assert same(criterion, golden, with_points(golden, lambda p: p * 20))
    assert not same(Regr3D(L21, norm_mode=None), golden, with_points(golden, lambda p: p * 20))


def test_a_collapsed_prediction_is_not_blown_up(golden):
    criterion = Regr3D_ScaleInv(L21, norm_mode=None)
    tiny = with_points(golden, lambda p: p * 1e-6)
    nothing = with_points(golden, lambda p: p * 0)
    assert same(criterion, tiny, nothing, rel=1e-2)


@pytest.mark.parametrize("kind", REGRESSIONS)
@pytest.mark.parametrize("norm_mode", ["avg_dis", "median_log1p"])
def test_gt_scale_states_the_error_in_the_unit_of_the_ground_truth(golden, kind, norm_mode):
    criterion = kind(L21, norm_mode=norm_mode, gt_scale=True)
    value = criterion(*golden)[0].item()
    assert criterion(*with_truth(golden, 1000.0))[0].item() == pytest.approx(1000 * value, rel=1e-4)
    assert same(criterion, golden, with_points(golden, lambda p: p * 9))


def test_without_normalisation_the_distance_is_plain(golden):
    value, _ = Regr3D(L21, norm_mode=None)(*with_points(golden, lambda p: p * 0))
    expected = 0.0
    for view in golden[:2]:
        centre = golden[0]["camera_pose"][:, None, None, :3, 3]
        from_camera1 = (view["pts3d"] - centre).norm(dim=-1)
        expected += from_camera1[view["valid_mask"]].mean().item()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", REGRESSIONS)
@pytest.mark.parametrize("norm_mode", ["avg_dis", "median_log1p", None])
def test_a_batch_without_valid_pixels_gives_zero_and_zero_gradients(golden, kind, norm_mode):
    empty = with_masks(golden, torch.zeros_like)
    criterion = ConfLoss(kind(L21, norm_mode=norm_mode), alpha=0.2)
    value, details = criterion(*empty)
    value.backward()
    assert value.item() == 0
    assert all(float(detail) == 0 for detail in details.values())
    assert all(p.grad.abs().max() == 0 for p in points(empty))


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_a_sample_without_valid_pixels_leaves_the_others_alone(golden, kind):
    def only_first(mask):
        return mask & torch.tensor([True, False])[:, None, None]

    masked = with_masks(golden, only_first)
    alone = tuple({key: value[:1] for key, value in part.items()} for part in golden)
    criterion = ConfLoss(kind(L21), alpha=0.2)
    assert same(criterion, masked, alone)
    criterion(*masked)[0].backward()
    for p in points(masked):
        assert p.grad.isfinite().all() and p.grad[0].abs().max() > 0 and p.grad[1].abs().max() == 0


@pytest.mark.parametrize("kind", REGRESSIONS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_true_points_that_are_not_finite_count_as_invalid(golden, kind, bad):
    broken = golden[0]["pts3d"].clone()
    broken[:, 3:9] = bad
    mask = golden[0]["valid_mask"].clone()
    mask[:, 3:9] = False
    criterion = ConfLoss(kind(L21), alpha=0.2)
    value, _ = criterion(golden[0] | {"pts3d": broken}, *golden[1:])
    expected, _ = criterion(golden[0] | {"valid_mask": mask}, *golden[1:])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert all(p.grad.isfinite().all() for p in points(golden))


def test_a_pose_that_is_not_finite_or_singular_leaves_the_sample_out(golden):
    alone = tuple({key: value[:1] for key, value in part.items()} for part in golden)
    for bad in (torch.nan, 0.0):
        pose = golden[0]["camera_pose"].clone()
        pose[1] = bad
        broken = (golden[0] | {"camera_pose": pose}, *golden[1:])
        assert same(Regr3D(L21), broken, alone)


@pytest.mark.parametrize("kind", REGRESSIONS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_predicted_at_invalid_pixels_does_not_matter(golden, kind, bad):
    spoilt = list(golden)
    for i, key in ((0, "pts3d"), (1, "pts3d_in_other_view")):
        mask, pred = golden[i]["valid_mask"], golden[i + 2]
        points = torch.where(mask[..., None], pred[key].detach(), bad).requires_grad_()
        conf = torch.where(mask, pred["conf"], bad).requires_grad_()
        spoilt[i + 2] = {key: points, "conf": conf}
    criterion = ConfLoss(kind(L21), alpha=0.2)
    assert same(criterion, golden, spoilt)
    criterion(*spoilt)[0].backward()
    assert all(x.grad.isfinite().all() for pred in spoilt[2:] for x in pred.values())


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_a_diverged_prediction_shows_in_the_loss(golden, kind):
    mask = golden[0]["valid_mask"]
    broken = golden[2]["pts3d"].detach().clone()
    broken[tuple(mask.nonzero()[0])] = torch.nan
    value, _ = kind(L21)(*golden[:2], {"pts3d": broken}, golden[3])
    assert not value.isfinite()


@pytest.mark.parametrize("text", CASES)
def test_bf16_autocast_changes_nothing(golden, text):
    criterion = build(text, LOSSES)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = criterion(*golden)
    assert value.dtype == torch.float32
    assert value.item() == criterion(*golden)[0].item()


def test_bf16_predictions_are_widened(golden):
    value, _ = Regr3D(L21)(*with_points(golden, lambda p: p.bfloat16()))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(Regr3D(L21)(*golden)[0].item(), rel=1e-2)


def test_views_may_differ_in_size(golden):
    halves = [{k: v if k == "camera_pose" else v[:, ::2] for k, v in golden[1].items()}]
    halves.append({k: v[:, ::2] for k, v in golden[3].items()})
    _, details = Regr3D(L21, norm_mode=None)(golden[0], halves[0], golden[2], halves[1])
    _, whole = Regr3D(L21, norm_mode=None)(*golden)
    assert details["Regr3D_pts3d_1"] == pytest.approx(whole["Regr3D_pts3d_1"].item(), rel=1e-6)


def one_pixel(distance, conf):
    """A pair whose only pixel is predicted ``distance`` off the truth with confidence ``conf``."""
    truth = torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 1, 3)
    view = {
        "camera_pose": torch.eye(4)[None],
        "pts3d": truth,
        "valid_mask": torch.ones(1, 1, 1, dtype=torch.bool),
    }
    points = truth + torch.tensor([distance, 0.0, 0.0])
    conf = torch.full((1, 1, 1), conf, requires_grad=True)
    return (
        view,
        view,
        {"pts3d": points, "conf": conf},
        {"pts3d_in_other_view": points, "conf": conf},
    )


def test_confidence_settles_at_alpha_over_the_loss_below_zero():
    criterion = ConfLoss(Regr3D(L21, norm_mode=None), alpha=0.2)
    pair = one_pixel(distance=0.02, conf=10.0)
    value, _ = criterion(*pair)
    value.backward()
    assert pair[2]["conf"].grad.item() == pytest.approx(0, abs=1e-6)
    assert value.item() == pytest.approx(2 * 0.2 * (1 - np.log(10.0)), rel=1e-5)
    assert value.item() < 0


def test_a_perfect_prediction_has_zero_loss_and_a_finite_gradient():
    view, _, pred1, _ = one_pixel(distance=0.0, conf=1.0)
    points = pred1["pts3d"].clone().requires_grad_()
    value, _ = Regr3D(L21)(view, view, {"pts3d": points}, {"pts3d_in_other_view": points})
    value.backward()
    assert value.item() == 0 and points.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regr3D(L21, norm_mode="?mean"), "'?mean'; use one of avg_dis"),
        (lambda: Regr3D("L21"), "criterion such as L21, and was given 'L21'"),
        (lambda: Regr3D(Regr3D(L21)), "criterion such as L21, and was given Regr3D"),
        (lambda: ConfLoss(L21()), "loss per pixel such as Regr3D"),
        (lambda: ConfLoss(0.5 * Regr3D(L21)), "loss per pixel such as Regr3D"),
        (lambda: ConfLoss(Regr3D(L21), alpha=0), "alpha of ConfLoss must be above 0, and is 0"),
    ],
)
def test_wrong_arguments_are_explained(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("part", "key"),
    [(0, "camera_pose"), (1, "valid_mask"), (3, "pts3d_in_other_view"), (2, "conf")],
)
def test_a_missing_key_is_named(golden, part, key):
    broken = list(golden)
    broken[part] = {k: v for k, v in broken[part].items() if k != key}
    with pytest.raises(ValueError, match=f"needs '{key}' in (view|prediction) {part % 2 + 1}"):
        ConfLoss(Regr3D(L21))(*broken)


def test_a_prediction_of_another_size_is_explained(golden):
    with pytest.raises(ValueError, match=r"prediction 1 has points \(2, 12, 32, 3\) and view 1"):
        Regr3D(L21)(*with_points(golden, lambda p: p[:, ::2]))
