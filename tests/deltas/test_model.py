"""Posed frames in, depth out: sizes, conventions, seeds, and frames that say nothing."""

from dataclasses import fields

import pytest
import torch
from deltas_scenes import INTRINSICS, camera_poses, images, scene_points, small_model

from deltas.model import Deltas
from dust3r.utils.geometry import geotrf, project
from dust3r.utils.spec import MODELS, build


def predict(model, frames=None, poses=None, intrinsics=None, seed=0, **options):
    frames = images() if frames is None else frames
    poses = camera_poses() if poses is None else poses
    intrinsics = INTRINSICS[None] if intrinsics is None else intrinsics
    generator = torch.Generator().manual_seed(seed)
    return model(frames, poses, intrinsics, generator, **options)


@pytest.fixture(scope="module")
def model() -> Deltas:
    return small_model()


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (45, 70)])
@torch.no_grad()
def test_every_size_comes_back(model, size):
    found = predict(model, images(size))
    height, width = size
    for scale, depth in zip((1, 2, 4, 8), found.depth, strict=True):
        assert depth.shape == (1, 1, -(-height // scale), -(-width // scale))
        assert depth.isfinite().all()
    assert found.points.shape == (1, 24, 2)
    assert found.matches.pixels.shape == (1, 2, 24, 2)
    assert found.confidence.shape == (1, 24, 3)
    assert found.points3d.shape == (1, 24, 3)
    assert found.valid.shape == found.z.shape == (1, 24)
    assert (found.points >= 0).all() and (found.points < torch.tensor([width, height])).all()


@torch.no_grad()
def test_poses_are_camera_to_world_and_the_anchor_is_first(model):
    depth = torch.linspace(1.0, 6.0, 24)
    points, points3d = scene_points(depth)
    poses = camera_poses()
    world = geotrf(poses[:, 0], points3d)

    def distances(given):
        segments = predict(model, poses=given, points=points).matches.segments
        views = poses[0, 1:, None].inverse()
        seen = torch.stack([project(geotrf(view, world), INTRINSICS)[0] for view in views], 1)
        offset = seen - segments.centre
        along = (offset * segments.direction).sum(-1, keepdim=True) * segments.direction
        return (offset - along).norm(dim=-1)[segments.seen]

    assert len(distances(poses)) > 10
    assert distances(poses).max() < 0.05
    inverted = distances(poses.inverse())
    assert not len(inverted) or inverted.median() > 1


@torch.no_grad()
def test_one_camera_or_one_for_each_frame(model):
    one = predict(model)
    each = predict(model, intrinsics=INTRINSICS.expand(1, 3, 3, 3))
    assert torch.equal(one.depth[0], each.depth[0])
    other = INTRINSICS.expand(1, 3, 3, 3).clone()
    other[:, 2, 0, 0] *= 1.2
    other = predict(model, intrinsics=other).matches
    assert torch.equal(other.pixels[:, 0], one.matches.pixels[:, 0])
    assert not torch.equal(other.pixels[:, 1], one.matches.pixels[:, 1])


@torch.no_grad()
def test_batches_are_sequences_apart(model):
    frames, poses = images(batch=2), camera_poses().repeat(2, 1, 1, 1)
    poses[1, 2, 0, 3] += 0.1
    points = torch.stack([scene_points(torch.ones(24))[0][0]] * 2)
    both = predict(model, frames, poses, INTRINSICS.expand(2, 3, 3), points=points)
    for k in range(2):
        own = predict(model, frames[k : k + 1], poses[k : k + 1], points=points[k : k + 1])
        assert torch.allclose(own.points3d, both.points3d[k : k + 1], rtol=1e-3, atol=1e-3)
        assert torch.allclose(own.depth[0], both.depth[0][k : k + 1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_random_points_follow_the_generator(model):
    first, again, other = (predict(model, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.points, again.points) and torch.equal(first.depth[0], again.depth[0])
    assert not torch.equal(first.points, other.points)
    detected = first.scores > 0
    assert torch.equal(first.points[detected], other.points[detected])


@pytest.mark.parametrize("case", ["inverted", "no overlap", "same pose", "behind"])
def test_frames_that_say_nothing_give_finite_depth_and_derivatives(case):
    model = small_model().train()
    poses = camera_poses()
    if case == "inverted":
        poses = poses.inverse()
    elif case == "no overlap":
        poses[:, 1:, :3, 3] += 50
    elif case == "same pose":
        poses = poses[:, :1].repeat(1, 3, 1, 1)
    else:
        poses[:, 1:] = poses[:, 1:] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    found = predict(model, images((64, 64)), poses)
    if case in ("no overlap", "behind"):
        assert not found.valid.any()
    tensors = [getattr(found, field.name) for field in fields(found)]
    tensors = [x for x in tensors if isinstance(x, torch.Tensor)] + list(found.depth)
    assert all(x.isfinite().all() for x in (*tensors, found.matches.pixels, found.confidence))
    sum(depth.mean() for depth in found.depth).backward(retain_graph=True)
    (found.points3d.mean() + found.confidence.mean()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 50 and all(grad.isfinite().all() for grad in grads)


def test_depth_is_learned_through_the_matches():
    model = small_model()
    # Depth depends on the matching, and so must its derivatives.
    found = predict(model)
    assert found.valid.any()
    found.depth[0].sum().backward()
    assert model.triangulation.bn_match_convD.weight.grad.abs().item() > 0


@torch.no_grad()
def test_folded_model_says_the_same(model):
    plain, folded = predict(model), small_model()
    assert folded.fold_batch_norms() > 50
    found = predict(folded, points=plain.points)
    for old, new in zip(plain.depth, found.depth, strict=True):
        assert (old - new).abs().max() <= 1e-4 * old.abs().max()
    assert (found.confidence - plain.confidence).abs().max() < 1e-4
    with pytest.raises(ValueError, match="before fold_batch_norms"):
        folded.load_state_dict(model.state_dict())


@torch.no_grad()
def test_half_precision_keeps_coordinates(model):
    given = {"points": scene_points(torch.ones(24))[0], "poses": camera_poses()}
    plain = predict(model, **given).matches.segments
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(model, **given)
    assert torch.allclose(found.matches.segments.centre, plain.centre, atol=1e-4)
    assert found.depth[0].isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": images()[:, :1]}, "F >= 2"),
        ({"poses": camera_poses()[:, :2]}, "one camera-to-world matrix for each image"),
        ({"poses": camera_poses() * torch.nan}, "not all finite"),
        ({"intrinsics": INTRINSICS}, "intrinsics are"),
        ({"intrinsics": torch.zeros(1, 3, 3)}, "focal lengths"),
        ({"points": torch.full((1, 4, 2), 64.0)}, "inside the image of 64 x 48"),
        ({"points": torch.zeros(4, 2)}, "expected \\(B, N, 2\\)"),
    ],
)
def test_what_does_not_fit_is_said(model, change, message):
    with pytest.raises(ValueError, match=message):
        predict(model, **change)


@pytest.mark.parametrize("options", [{"num_kps": 0}, {"frac_superpoint": 2}, {"mindepth": 11}])
def test_settings_that_mean_nothing(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Deltas(width=4, depths=(1, 1, 1, 1), **options)


def test_specification_string():
    model = build("Deltas(num_kps=100, width=4, depths=(1, 1, 1, 1), maxdepth=8)", MODELS)
    assert model.num_kps == 100 and model.depth_range == (0.5, 8)
