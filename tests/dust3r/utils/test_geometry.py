"""Poses, projection, views: each way and back."""

import numpy as np
import pytest
import torch

from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project
from dust3r.utils.view import check_view, own_depth, symmetrise


def a_pose(seed, as_type):
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    pose[:3, 3] = rng.standard_normal(3)
    return as_type(pose)


BOTH = pytest.mark.parametrize("as_type", [torch.from_numpy, np.array], ids=["torch", "numpy"])
K = [[100.0, 0.5, 15.2], [0, 110.0, 11.7], [0, 0, 1]]


@BOTH
def test_depth_to_points_and_back(as_type):
    depth = as_type(np.random.default_rng(0).uniform(1, 3, (24, 32)))
    k, pose = as_type(np.array(K)), a_pose(1, as_type)
    world = depthmap_to_pts3d(depth, k, pose)
    pixels, z = project(geotrf(inv(pose), world), k)
    v, u = np.mgrid[:24, :32]
    np.testing.assert_allclose(np.asarray(pixels), np.stack([u, v], -1), atol=1e-8)
    np.testing.assert_allclose(np.asarray(z), np.asarray(depth), rtol=1e-10)


@BOTH
def test_batches_of_poses_move_batches_of_maps(as_type):
    poses = as_type(np.stack([np.asarray(a_pose(s, np.array)) for s in (1, 2)]))
    maps = as_type(np.random.default_rng(0).standard_normal((2, 4, 5, 3)))
    moved = np.asarray(geotrf(poses, maps))
    for i in (0, 1):
        np.testing.assert_allclose(moved[i], np.asarray(geotrf(poses[i], maps[i])))
    np.testing.assert_allclose(
        np.asarray(geotrf(inv(poses), geotrf(poses, maps))), np.asarray(maps)
    )


def test_own_depth_of_points_in_the_other_camera():
    poses = torch.stack([a_pose(s, torch.from_numpy) for s in (1, 2)])[:, None]
    depth = torch.rand(1, 6, 8, dtype=torch.float64) + 1
    world = depthmap_to_pts3d(depth, torch.tensor(K)[None].double(), poses[1])
    in_first = geotrf(inv(poses[0]), world)
    torch.testing.assert_close(own_depth(in_first, *poses), depth)


def a_view(batch=2):
    return {
        "img": torch.zeros(batch, 3, 16, 32),
        "true_shape": torch.zeros(batch, 2),
        "depthmap": torch.zeros(batch, 16, 32),
        "valid_mask": torch.zeros(batch, 16, 32),
        "pts3d": torch.zeros(batch, 16, 32, 3),
        "camera_pose": torch.zeros(batch, 4, 4),
        "camera_intrinsics": torch.zeros(batch, 3, 3),
    }


def test_view_contract():
    check_view(a_view())
    check_view({k: v for k, v in a_view().items() if k in ("img", "true_shape")}, with_truth=False)
    with pytest.raises(ValueError, match="lacks depthmap"):
        check_view({k: v for k, v in a_view().items() if k != "depthmap"})
    with pytest.raises(ValueError, match=r"pts3d.*\(2, 16, 32, 3\)"):
        check_view(a_view() | {"pts3d": torch.zeros(2, 3, 16, 32)})
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        check_view(a_view() | {"img": torch.zeros(3, 16, 32)})


def test_symmetrise_interleaves_everything():
    first = {"x": torch.tensor([1, 2]), "name": ["a", "b"], "idx": [torch.tensor([1, 2])]}
    second = {"x": torch.tensor([3, 4]), "name": ["c", "d"], "idx": [torch.tensor([3, 4])]}
    one, two = symmetrise(first, second)
    assert one["x"].tolist() == [1, 3, 2, 4] and two["x"].tolist() == [3, 1, 4, 2]
    assert one["name"] == ["a", "c", "b", "d"] and two["name"] == ["c", "a", "d", "b"]
    assert one["idx"][0].tolist() == [1, 3, 2, 4]


def test_files_are_whole_or_as_before(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.suffix == ".txt"
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
