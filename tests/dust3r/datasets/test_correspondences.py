import time

import numpy as np
import pytest
import torch

import mast3r.losses  # noqa: F401  (registers the matching losses)
from dust3r.datasets import get_data_loader
from dust3r.datasets.correspondences import all_correspondences, sample_correspondences
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project
from dust3r.utils.spec import LOSSES, build
from dust3r.utils.view import symmetrise


def views(root, resolution=(64, 48), index=4, **options):
    options = {"n_corres": 400, "nneg": 0.25} | options
    return ScanNetpp(split="all", ROOT=root, resolution=resolution, **options)[index]


def at(values, pixels):
    """Rows of (H, W, C) at (x, y)."""
    return values[pixels[:, 1], pixels[:, 0]]


def landing(first, second, pixels):
    """Where pixels of the first view truly are in the second, on the grid it travels on."""
    points = geotrf(inv(second["camera_pose"]), at(first["pts3d"], pixels))
    there = project(points, second["camera_intrinsics"])[0]
    height, width = second["true_shape"]
    return there[:, ::-1] if height > width else there


def camera(pose, depth, focal=40.0):
    """A view of depth (H, W) without an image."""
    height, width = depth.shape
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    depth, pose = depth.astype(np.float32), pose.astype(np.float32)
    return {
        "depthmap": depth,
        "valid_mask": depth > 0,
        "pts3d": depthmap_to_pts3d(depth, intrinsics, pose),
        "camera_pose": pose,
        "camera_intrinsics": intrinsics,
        "true_shape": np.array(depth.shape, np.int32),
    }


def moved(x=0.0, z=0.0):
    pose = np.eye(4)
    pose[[0, 2], 3] = x, z
    return pose


@pytest.mark.parametrize("size", [(96, 72), (72, 96), (301, 217)], ids=["wide", "upright", "large"])
@pytest.mark.parametrize("aug_crop", [0, 16])
def test_corresponding_pixels_show_one_point_of_the_world(write_tree, plane, size, aug_crop):
    first, second = views(write_tree(size=size), aug_crop=aug_crop)
    valid = first["valid_corres"]
    assert valid.sum() == 300 and (valid == second["valid_corres"]).all()
    pixels = [view["corres"] for view in (first, second)]
    for view, place in zip((first, second), pixels, strict=True):
        assert place.shape == (400, 2) and place.dtype == np.int32
        height, width = view["valid_mask"].shape
        assert (place >= 0).all() and (place < (width, height)).all()
        assert at(view["valid_mask"], place[valid]).all()
    # Colours encode the world's (x, y); a pixel is a few centimetres wide.
    shown = [
        plane["decode_world_xy"](at(view["img"].permute(1, 2, 0).numpy(), place[valid]))
        for view, place in zip((first, second), pixels, strict=True)
    ]
    pixel_size = np.median(second["depthmap"]) / second["camera_intrinsics"][0, 0]
    assert np.abs(np.median(shown[0] - shown[1], 0)).max() < 0.5 * pixel_size
    assert np.abs(shown[0] - shown[1]).max() < 2 * pixel_size
    offset = landing(first, second, pixels[0]) - pixels[1]
    assert np.abs(offset[valid]).max() <= 0.501
    assert np.abs(offset[~valid]).max(1).min() > 3


def test_mixed_orientations_of_a_pair(write_tree):
    root = write_tree(size=(80, 80))
    shapes = set()
    for index in range(11):
        first, second = views(root, index=index)
        shapes.add((tuple(first["true_shape"]), tuple(second["true_shape"])))
        valid = first["valid_corres"]
        offset = landing(first, second, first["corres"]) - second["corres"]
        assert valid.sum() == 300 and np.abs(offset[valid]).max() <= 0.501
    assert len(shapes) == 4


def test_pairs_are_one_to_one_and_the_same_from_either_side(write_tree):
    first, second = views(write_tree())
    forth, back = all_correspondences(first, second), all_correspondences(second, first)
    assert len(np.unique(forth.first, axis=0)) == len(np.unique(forth.second, axis=0))
    assert len(forth.first) == len(np.unique(forth.first, axis=0)) > 1000
    pairs, swapped = (
        {tuple(row) for row in np.concatenate(sides, axis=1).tolist()}
        for sides in ((forth.first, forth.second), (back.second, back.first))
    )
    assert pairs == swapped


def test_what_is_hidden_in_one_view_does_not_correspond():
    # A near post in the middle of a wall: each camera sees wall that it hides from the other.
    def post(shift):
        depth = np.full((48, 64), 4.0)
        depth[:, 28 - shift : 36 - shift] = 1.0
        return depth

    # Moving by 0.2 shifts the post (depth 1) by 8 pixels and the wall (depth 4) by 2.
    first, second = camera(moved(), post(0)), camera(moved(x=0.2), post(8))
    found = all_correspondences(first, second)
    shift = (found.first - found.second)[:, 0]
    depth = at(first["depthmap"], found.first)
    assert (depth == at(second["depthmap"], found.second)).all()
    assert (shift == np.where(depth == 1, 8, 2)).all()
    # Columns 22 to 27 of the wall are seen in view 1, and are behind the post in view 2.
    assert not np.isin(found.first[:, 0], range(22, 28)).any()
    assert np.isin(range(2, 22), found.first[:, 0]).all()


def test_pixels_without_depth_do_not_correspond():
    depth = np.full((48, 64), 2.0)
    holed = depth.copy()
    holed[10:20, 10:20] = 0
    found = all_correspondences(camera(moved(), holed), camera(moved(), depth))
    assert len(found.first) == 48 * 64 - 100
    found = all_correspondences(camera(moved(), depth), camera(moved(), holed))
    assert len(found.first) == 48 * 64 - 100


def test_drawn_evenly_over_all_that_correspond():
    first = second = camera(moved(), np.full((48, 64), 2.0))
    counts = np.zeros((48, 64))
    for seed in range(300):
        pixels = sample_correspondences(first, second, 100, 0.0, np.random.default_rng(seed)).first
        assert len(np.unique(pixels, axis=0)) == 100
        np.add.at(counts, (pixels[:, 1], pixels[:, 0]), 1)
    quarters = counts.reshape(4, 12, 4, 16).sum((1, 3)) / (300 * 100 / 16)
    assert np.abs(quarters - 1).max() < 0.1


@pytest.mark.parametrize("nneg", [0, 0.5, 1])
def test_the_share_of_negatives_is_at_least_that_asked_for(write_tree, nneg):
    first, _ = views(write_tree(), nneg=nneg)
    assert (~first["valid_corres"]).sum() == 400 * nneg
    many, _ = views(write_tree(), n_corres=10_000, nneg=nneg)
    assert many["corres"].shape == (10_000, 2)
    assert (~many["valid_corres"]).mean() >= max(nneg, 0.6)


@pytest.mark.parametrize("away", ["behind", "aside", "no depth there", "no depth here", "none"])
def test_pairs_without_overlap_have_negatives_alone(away):
    depth = np.full((48, 64), 2.0)
    first, second = camera(moved(), depth), camera(moved(), depth)
    if away == "behind":
        second = camera(np.diag([-1.0, 1, -1, 1]), depth)
    elif away == "aside":
        second = camera(moved(x=50), depth)
    elif away == "no depth there":
        second = camera(moved(), 0 * depth)
    elif away == "no depth here":
        first = camera(moved(), 0 * depth)
    else:
        first = second = camera(moved(), 0 * depth)
    with np.errstate(all="raise"):
        pairs = sample_correspondences(first, second, 50, 0.5, np.random.default_rng(0))
    assert not pairs.valid.any()
    assert all((p >= 0).all() and (p < (64, 48)).all() for p in (pairs.first, pairs.second))
    view1, view2 = (
        {"corres": torch.from_numpy(p)[None], "valid_corres": torch.from_numpy(pairs.valid)[None]}
        for p in (pairs.first, pairs.second)
    )
    maps = torch.nn.functional.normalize(torch.randn(1, 48, 64, 8), dim=-1).requires_grad_()
    pred = {"desc": maps, "desc_conf": torch.ones(1, 48, 64)}
    loss = build("ConfMatchingLoss(MatchingLoss(InfoNCE(mode='proper')), alpha=10.0)", LOSSES)
    value, _ = loss(view1, view2, pred, pred)
    value.backward()
    assert value.item() == 0 and not maps.grad.any()


def test_chance_is_that_of_the_sample(write_tree):
    dataset = ScanNetpp(split="all", ROOT=write_tree(), resolution=48, n_corres=64, nneg=0.5)
    plain = ScanNetpp(split="all", ROOT=dataset.root, resolution=48)

    def drawn(epoch, index=2):
        dataset.set_epoch(epoch)
        return dataset[index][0]["corres"]

    assert (drawn(0) == drawn(0)).all()
    assert (drawn(0) != drawn(1)).any() and (drawn(0) != drawn(0, index=3)).any()
    # Asking for correspondences changes nothing else of a sample.
    for view, same in zip(dataset[2], plain[2], strict=True):
        assert torch.equal(view["img"], same["img"])
        assert view.keys() - same.keys() == {"corres", "valid_corres"}


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (301, 217), (60, 45)])
def test_crops_around_correspondences_show_the_same_surface(write_tree, plane, size):
    root = write_tree(size=size)
    principal, shares = [], []
    for index in range(11):
        first, second = views(root, index=index, crop_around_corres=True, aug_crop=4)
        found = all_correspondences(first, second)
        shares.append(len(found.first) / first["valid_mask"].sum())
        principal.append(first["camera_intrinsics"][:2, 2])
        wide = size[0] >= size[1]
        assert tuple(first["true_shape"]) == ((48, 64) if wide else (64, 48))
        assert np.abs(first["pts3d"] @ plane["normal"] - plane["offset"]).max() < 0.02
        valid = first["valid_corres"]
        shown = [
            plane["decode_world_xy"](at(v["img"].permute(1, 2, 0).numpy(), v["corres"][valid]))
            for v in (first, second)
        ]
        pixel_size = np.median(second["depthmap"]) / second["camera_intrinsics"][0, 0]
        assert np.abs(np.median(shown[0] - shown[1], 0)).max() < max(pixel_size, 4 / 255)
    assert min(shares) > 0.2 and np.median(shares) > 0.4
    if min(size) > 64:
        assert np.std(principal, axis=0).max() > 5


def test_crops_of_a_pair_without_overlap_are_the_central_ones(write_tree):
    away = np.tile(np.eye(4, dtype=np.float32), (12, 1, 1))
    away[1::2] = np.diag([-1, 1, -1, 1])
    root = write_tree(trajectories=away)
    cropped, central = (views(root, crop_around_corres=crop)[1] for crop in (True, False))
    assert torch.equal(cropped["img"], central["img"]) and not cropped["valid_corres"].any()


def test_batches_hold_them_and_symmetrise(write_tree):
    text = f"ScanNetpp(split='all', ROOT='{write_tree()}', resolution=48, n_corres=64, nneg=0.5)"
    first, second = symmetrise(*next(iter(get_data_loader(text, 2, num_workers=0))))
    assert first["corres"].shape == (4, 64, 2) and first["valid_corres"].shape == (4, 64)
    assert torch.equal(first["corres"][::2], second["corres"][1::2])
    assert torch.equal(first["valid_corres"], second["valid_corres"])
    assert first["is_metric_scale"].dtype == torch.bool and first["is_metric_scale"].all()


def test_a_pair_of_training_size_takes_milliseconds():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1.9, 2.1, (224, 224))
    first, second = camera(moved(), depth, 200), camera(moved(x=0.3), depth, 200)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        sample_correspondences(first, second, 1024, 0.5, rng)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_corres": -1}, "n_corres=-1"), ({"n_corres": 8, "nneg": 1.5}, "nneg=1.5")],
)
def test_wrong_arguments_are_explained(write_tree, options, message):
    with pytest.raises(ValueError, match=message):
        views(write_tree(), **options)
