"""Losses of DELTAS: 0 on the truth, with a graph on nothing, and each moves its own part."""

from dataclasses import replace

import pytest
import torch
from deltas_scenes import INTRINSICS, SIZE, camera_poses, images, scene_points, small_model

from deltas.detector.superpoint import SuperPoint
from deltas.training.losses import DeltasLoss, depth_loss, true_matches
from dust3r.utils.geometry import geotrf, inv, project
from dust3r.utils.spec import LOSSES, build

HEIGHT, WIDTH = SIZE
WALL = 3.0
RANGE = (0.5, 10.0)


def wall_batch(distance: float = WALL) -> dict[str, torch.Tensor]:
    """Three frames of a wall that stands ``distance`` before the anchor, square to its axis."""
    poses = camera_poses()
    depths = []
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).float() @ INTRINSICS.inverse().T
    for pose in inv(poses[0, 0]) @ poses[0]:
        towards = rays @ pose[:3, :3].T
        depths.append((distance - pose[2, 3]) / towards[..., 2])
    depth = torch.stack(depths)[None]
    return {
        "img": images(),
        "depthmap": depth,
        "valid_mask": depth > 0,
        "camera_pose": poses,
        "camera_intrinsics": INTRINSICS.expand(1, 3, 3, 3),
    }


def predict(model, batch, points=None):
    frames = (batch["img"], batch["camera_pose"], batch["camera_intrinsics"])
    return model(*frames, torch.Generator().manual_seed(0), points=points)


def loss_of(batch, prediction, **weights) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return DeltasLoss(**{"w_ip": 0, **weights})(batch, prediction)


def perfect(batch, prediction):
    """The prediction that says the truth."""
    truth = true_matches(batch, prediction.points, RANGE)
    depth = batch["depthmap"][:, :1]
    return replace(
        prediction,
        matches=replace(prediction.matches, pixels=truth.pixels),
        points3d=truth.points3d,
        valid=torch.ones_like(prediction.valid),
        depth=tuple(depth[..., s // 2 :: s, s // 2 :: s] for s in (1, 2, 4, 8)),
    )


@torch.no_grad()
def test_the_truth_costs_nothing():
    batch = wall_batch()
    prediction = predict(small_model(), batch)
    _, wrong = loss_of(batch, prediction)
    assert all(wrong[f"loss_{name}"] > 1e-3 for name in ("2d", "3d", "d", "sm"))
    _, right = loss_of(batch, perfect(batch, prediction))
    assert all(right[f"loss_{name}"] < 1e-5 for name in ("2d", "3d", "d"))
    assert right["abs_rel"] < 1e-5


def test_true_matches_are_where_the_surface_is_seen():
    batch = wall_batch()
    pixels, points = scene_points(torch.full((20,), WALL))
    truth = true_matches(batch, pixels, RANGE)
    assert torch.allclose(truth.points3d, points, atol=1e-4)
    views = inv(batch["camera_pose"][:, 1:]) @ batch["camera_pose"][:, :1]
    wanted = torch.stack([project(geotrf(view, points), INTRINSICS)[0] for view in views[0]], 1)
    assert torch.allclose(truth.pixels, wanted, atol=1e-3)
    assert truth.visible.float().mean() > 0.5
    # A nearer surface in one view hides the wall there, and there alone.
    batch["depthmap"][:, 1] = 1.0
    hidden = true_matches(batch, pixels, RANGE).visible
    assert not hidden[:, 0].any() and torch.equal(hidden[:, 1], truth.visible[:, 1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda batch: batch["valid_mask"].zero_(),
        lambda batch: batch["depthmap"].mul_(1000.0),
        lambda batch: batch["depthmap"].fill_(float("nan")),
    ],
    ids=["no valid pixel", "millimetres", "no number"],
)
def test_without_a_valid_pixel_losses_are_tensors_of_zero_with_a_graph(spoil):
    batch = wall_batch()
    spoil(batch)
    model = small_model(evidential=True)
    total, details = loss_of(batch, predict(model, batch), w_sm=0)
    assert isinstance(total, torch.Tensor) and total.requires_grad and total == 0
    assert all(details[f"loss_{name}"] == 0 for name in ("2d", "3d", "d", "evi"))
    total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_a_view_without_overlap_teaches_nothing_about_matches():
    batch = wall_batch()
    away = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    batch["camera_pose"][:, 1:] = batch["camera_pose"][:, :1] @ away
    model = small_model()
    total, details = loss_of(batch, predict(model, batch))
    assert details["loss_2d"] == 0 and details["loss_3d"] == 0 and details["loss_d"] > 0
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_inverted_poses_leave_few_matches_to_learn():
    batch = wall_batch()
    points, _ = scene_points(torch.full((40,), WALL))
    right = true_matches(batch, points, RANGE).visible.float().mean()
    batch["camera_pose"] = inv(batch["camera_pose"])
    # The wall is where the anchor sees it; the others, moved the wrong way, see it elsewhere.
    wrong = true_matches(batch, points, RANGE)
    assert right > 0.5
    assert wrong.visible.float().mean() < right


def test_coarse_depth_is_judged_by_depths_that_are_there():
    """Not by means over an edge, nor by other images of the batch."""
    truth = torch.full((2, 1, 32, 48), 1.0)
    truth[..., 20:] = 5.0
    truth[1] += 1.0
    valid = torch.ones_like(truth, dtype=torch.bool)
    coarse = [truth[..., s // 2 :: s, s // 2 :: s] for s in (1, 2, 4, 8)]
    assert depth_loss(coarse, truth, valid) == 0
    for image in coarse:
        assert set(image[0].unique().tolist()) <= {1.0, 5.0}
    assert depth_loss([x.flip(0) for x in coarse], truth, valid) > 0.5
    # A size that is not a multiple of 8: the last coarse pixel covers less.
    odd = torch.rand(1, 1, 45, 70) + 1
    sizes = [(-(-45 // s), -(-70 // s)) for s in (1, 2, 4, 8)]
    guess = [torch.ones(1, 1, *size) for size in sizes]
    assert depth_loss(guess, odd, odd > 0).isfinite()


@pytest.mark.parametrize(
    ("weight", "moved"),
    [
        ("w_2d", "interest.convDd"),
        ("w_3d", "triangulation.bn_match_convD"),
        ("w_d", "densification.conv_scale8"),
        ("w_sm", "densification.conv_final"),
        ("w_evi", "evidence.conv1"),
    ],
)
def test_each_loss_moves_its_part(weight, moved):
    batch = wall_batch()
    model = small_model(evidential=True)
    others = {f"w_{name}": 0 for name in ("2d", "3d", "sm", "d", "evi")}
    loss_of(batch, predict(model, batch), **others | {weight: 1.0})[0].backward()
    grad = model.get_submodule(moved).weight.grad
    assert grad.isfinite().all() and grad.abs().max() > 0
    still = {"w_evi": "densification.conv_final", "w_2d": "densification.conv_final"}
    if weight in still:
        assert not model.get_submodule(still[weight]).weight.grad.any()
    # Processes that share gradients wait for those of every parameter, zeros included.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_detector_learns_what_its_teacher_marks(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "teacher.pth"
    torch.save(SuperPoint(width=4).state_dict(), path)
    spec = f"DeltasLoss(teacher={str(path)!r}, homographies=2, threshold=0.0)"
    loss = build(spec, LOSSES)
    batch = wall_batch()
    model = small_model()
    total, details = loss(batch, predict(model, batch))
    labels = loss.teacher.labels(batch["img"][:, 0])
    assert labels.shape == (1, HEIGHT // 8, WIDTH // 8) and (labels < 64).any()
    sure = torch.nn.functional.one_hot(labels, 65).permute(0, 3, 1, 2) * 50.0
    _, learnt = loss(batch, replace(predict(model, batch), logits=sure))
    assert learnt["loss_ip"] < 1e-3 < details["loss_ip"]
    total.backward()
    assert model.interest.convPc.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "w_ip needs teacher"),
        ({"w_ip": 0, "w_d": -1.0}, "w_d=-1.0"),
        ({"w_ip": 0, "mindepth": 11.0}, "less than maxdepth"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DeltasLoss(**options)
    with pytest.raises(ValueError, match="all of the weights"):
        batch = wall_batch()
        zero = {f"w_{name}": 0 for name in ("ip", "2d", "3d", "sm", "d", "evi")}
        DeltasLoss(**zero)(batch, predict(small_model(), batch))
