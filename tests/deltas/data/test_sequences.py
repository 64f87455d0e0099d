"""Sequences: which frames, on which grid, in which units, from every format; mistakes are named."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from raw.scannet import COLOR_CAMERA, COLOR_SIZE, write_export, write_release
from raw.sun3d import write_sequence
from rgbd_raw import CAMERA, OPENGL, SIZE, spoil, steps, write_image, write_matrix
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.layout import (
    SceneData,
    depth_path,
    image_path,
    write_depth,
    write_metadata,
)
from datasets_preprocess.layout import write_image as write_processed_image
from deltas.data.sequences import Sequences
from dust3r.datasets import ColorJitter, SampleError, get_data_loader
from dust3r.utils.reprojection import carried_pixels, overlap

WORLD = World()
SMALL = {"width": 80, "height": 64}
AS_STORED = dict(zip(("width", "height"), SIZE, strict=True))
CAMERA_KEYS = ("depthmap", "camera_intrinsics", "camera_pose")


@pytest.fixture(scope="module")
def frames():
    """Pose, colour and depth of a walk so slow that the texture's waves can be told apart."""
    poses = WORLD.poses(12, step_deg=2)
    return [(pose, *WORLD.render(pose, CAMERA, SIZE)) for pose in poses]


@pytest.fixture(scope="module")
def two_cameras(frames):
    """The same with the colours of ScanNet's finer camera."""
    size = (COLOR_CAMERA, COLOR_SIZE)
    return [(pose, WORLD.render(pose, *size)[0], depth) for pose, _, depth in frames[:6]]


def write_processed(
    root: Path, frames, *, names: list[str] | None = None, change_pose=np.copy
) -> Path:
    """A processed data set of one scene, 'room'."""
    names = names or [f"frame_{number:05d}" for number in range(len(frames))]
    for name, (_, rgb, depth) in zip(names, frames, strict=True):
        write_processed_image(image_path(root, "room", name), rgb)
        write_depth(depth_path(root, "room", name), depth)
    poses = np.stack([change_pose(pose) for pose, _, _ in frames])
    intrinsics = np.stack([CAMERA] * len(frames))
    data = SceneData("room", names, intrinsics, poses, [(0, 1, 0.5)])
    write_metadata(root, [data])
    return root


@pytest.fixture(scope="module")
def processed(tmp_path_factory, frames) -> Path:
    return write_processed(tmp_path_factory.mktemp("processed"), frames)


def write_timed(folder: Path, frames, poses: str, *, rotated: bool = False) -> Path:
    """color/ and depth/ by time, half a frame apart, with poses of the kind named."""
    for number, (pose, rgb, depth) in enumerate(frames):
        time = 1000 * number + 500
        stored = steps(depth, 1000)
        stored = (stored << 3) | (stored >> 13) if rotated else stored
        write_image(folder / "color" / f"{time:08d}.jpg", rgb)
        write_image(folder / "depth" / f"{time + 300:08d}.png", stored)
        if poses == "each":
            write_matrix(folder / "extrinsics" / f"{time:08d}.txt", pose[:3])
    matrices = np.stack([pose for pose, _, _ in frames])
    if poses == "3x4":
        write_matrix(folder / "extrinsics" / "20200101.txt", matrices[:, :3].reshape(-1, 4))
    elif poses == "4x4":
        write_matrix(folder / "poses.txt", matrices.reshape(-1, 4))
    elif poses == "times":
        times = 1000 * np.arange(len(frames)) + 300
        turns = Rotation.from_matrix(matrices[:, :3, :3]).as_quat()
        write_matrix(
            folder / "groundtruth.txt", np.column_stack([times, matrices[:, :3, 3], turns])
        )
    write_matrix(folder / "intrinsics.txt", CAMERA)
    return folder


def numbers_of(sample) -> list[int]:
    return [int(label[-5:]) for label in sample["label"]]


def check_truth(sample, poses):
    """Depth and colours are the world's at the sample's own cameras, and half a pixel off not."""
    height, width = sample["depthmap"].shape[1:]
    np.testing.assert_allclose(sample["camera_pose"], np.stack(poses), atol=1e-4)
    for number, pose in enumerate(poses):
        depth, valid = sample["depthmap"][number], sample["valid_mask"][number]
        image = sample["img"][number].permute(1, 2, 0).numpy()
        intrinsics = sample["camera_intrinsics"][number].astype(np.float64)
        truth = WORLD.render(pose, intrinsics, (width, height))[1]
        # Edges apart, where a depth is that of either side.
        low, high = (how(truth, np.ones((3, 3))) for how in (cv2.erode, cv2.dilate))
        smooth = valid & (high < 1.05 * truth) & (truth < 1.05 * low)
        assert valid.mean() > 0.9 and smooth.mean() > 0.7
        errors = []
        for shift in ((0, 0), (0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)):
            moved = intrinsics.copy()
            moved[:2, 2] += shift
            colours, truth = WORLD.render(pose, moved, (width, height))
            off = (
                np.abs(depth - truth)[smooth] / truth[smooth],
                np.abs(image - (colours / 127.5 - 1))[smooth],
            )
            errors.append([one.mean() for one in off])
        assert errors[0][0] < 0.002
        assert (np.array(errors[0]) < np.array(errors[1:])).all()


@pytest.mark.parametrize("size", [(80, 64), (200, 180)])
def test_points_carried_between_resized_frames_meet_to_half_a_pixel(processed, frames, size):
    dataset = Sequences(ROOT=processed, seq_gap=2, width=size[0], height=size[1])
    sample = dataset[3]
    check_truth(sample, [frames[n][0] for n in numbers_of(sample)])
    scale = np.array(size) / SIZE
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    original = (np.stack([u, v], -1) + 0.5) / scale - 0.5
    rays = np.concatenate([original, np.ones((*u.shape, 1))], -1) @ np.linalg.inv(CAMERA).T
    poses = sample["camera_pose"].astype(np.float64)
    _, depth = WORLD.render_rays(poses[0], rays)
    for other in (1, 2):
        in_world = rays * depth[..., None] @ poses[0][:3, :3].T + poses[0][:3, 3]
        seen = (in_world - poses[other][:3, 3]) @ poses[other][:3, :3] @ CAMERA.T
        truth = (seen[..., :2] / seen[..., 2:] + 0.5) * scale - 0.5
        pixels, z = carried_pixels(
            sample["depthmap"][0],
            sample["camera_intrinsics"][0],
            poses[0],
            sample["camera_intrinsics"][other],
            poses[other],
        )
        kept = (z > 0) & (seen[..., 2] > 0.3)
        miss = np.linalg.norm(pixels - truth, axis=-1)[kept]
        assert np.median(miss) < 0.1 and np.percentile(miss, 95) < 0.5


def test_a_sample_has_the_anchor_first_and_its_neighbours_by_the_gap(processed):
    for length, gap, offsets in (
        (3, 2, [0, -2, 2]),
        (5, 2, [0, -4, -2, 2, 4]),
        (2, 3, [0, 3]),
        (4, 1, [0, -1, 1, 2]),
    ):
        dataset = Sequences(ROOT=processed, seq_length=length, seq_gap=gap, check=False, **SMALL)
        assert len(dataset) == 12 - (max(offsets) - min(offsets))
        for index in (0, len(dataset) - 1):
            sample = dataset[index]
            found = numbers_of(sample)
            assert [n - found[0] for n in found] == offsets
            assert sample["instance"] == [str(path) for path in dataset.sample_paths(index)]
    assert sample["img"].shape == (4, 3, 64, 80) and sample["img"].dtype == torch.float32
    assert sample["img"].min() >= -1 and sample["img"].max() <= 1
    assert sample["depthmap"].shape == sample["valid_mask"].shape == (4, 64, 80)
    assert sample["camera_pose"].shape == (4, 4, 4)
    assert sample["camera_intrinsics"].shape == (4, 3, 3)
    assert sample["valid_mask"].dtype == bool
    for key in ("depthmap", "camera_pose", "camera_intrinsics"):
        assert sample[key].dtype == np.float32 and np.isfinite(sample[key]).all()


def test_gaps_can_be_compared_on_the_same_anchors(processed):
    found = []
    for gap in (1, 2, 4):
        data = Sequences(ROOT=processed, seq_gap=gap, anchor_gap=4, check=False, **SMALL)
        found.append([numbers_of(data[n])[0] for n in range(len(data))])
    assert found == [[4, 5, 6, 7]] * 3


def test_frames_without_a_pose_are_skipped_and_counted(tmp_path, frames):
    root = write_processed(tmp_path, frames)
    stored = dict(np.load(root / "all_metadata.npz"))
    stored["trajectories"][4] = -np.inf
    stored["trajectories"][7, 0, 0] = np.nan
    stored["trajectories"][9, :3, :3] = 0
    np.savez(root / "all_metadata.npz", **stored)
    dataset = Sequences(ROOT=root, seq_gap=1, check=False, **SMALL)
    assert dataset.skipped == {"pose not finite": 2, "pose not rigid": 1}
    assert "9 frames kept, 3 left out (2 pose not finite, 1 pose not rigid)" in dataset.summary()
    assert {4, 7, 9}.isdisjoint(n for i in range(len(dataset)) for n in numbers_of(dataset[i]))


def test_no_sequence_reaches_over_an_interruption(tmp_path, frames):
    numbers = [*range(10, 16), *range(300, 306)]
    root = write_processed(tmp_path, frames, names=[f"frame_{n:05d}" for n in numbers])
    dataset = Sequences(ROOT=root, seq_gap=2, check=False, **SMALL)
    assert len(dataset) == 4
    for sample in (dataset[index] for index in range(4)):
        assert np.ptp(numbers_of(sample)) == 4


def test_scannet_is_read_as_it_is_exported(tmp_path, two_cameras):
    write_export(tmp_path / "scene0000_00", two_cameras)
    write_matrix(tmp_path / "scene0000_00" / "pose" / "5.txt", np.full((4, 4), -np.inf))
    (tmp_path / "scene0000_00" / "pose" / "0.txt").unlink()
    dataset = Sequences(ROOT=tmp_path, seq_gap=1, width=120, height=96)
    assert dataset.skipped == {"pose not finite": 1, "no pose file": 1} and len(dataset) == 2
    sample = dataset[0]
    assert sample["label"] == [f"scene0000_00/{n}" for n in (2, 1, 3)]
    check_truth(sample, [two_cameras[n][0] for n in (2, 1, 3)])


def test_scannets_lists_give_the_official_split(tmp_path):
    raw = write_release(tmp_path)
    for split, names in (
        ("train", ["scans_scene0000_00", "scans_scene0000_01"]),
        ("test", ["scans_test_scene0707_00"]),
    ):
        dataset = Sequences(ROOT=raw, split=split, seq_gap=1, check=False)
        assert [(s.name, s.split) for s in dataset.scenes] == [(name, split) for name in names]
    with pytest.raises(ValueError, match=r"0 of 3 scenes .*official splits: test, train"):
        Sequences(ROOT=raw, split="val", seq_gap=1)


def test_sun3d_is_read_as_it_is_downloaded(tmp_path):
    write_sequence(tmp_path / "hotel" / "floor_1", 6)
    dataset = Sequences(ROOT=tmp_path, seq_gap=1, width=120, height=96, check=False)
    assert [scene.name for scene in dataset.scenes] == ["hotel_floor_1"] and len(dataset) == 4
    poses = WORLD.poses(6)
    check_truth(dataset[1], [poses[n] for n in (2, 1, 3)])


@pytest.mark.parametrize("poses", ["each", "3x4", "4x4", "times"])
@pytest.mark.parametrize("rotated", [True, False])
def test_sun3d_with_poses_in_other_files(tmp_path, frames, poses, rotated):
    root = write_timed(tmp_path / "hotel", frames[:5], poses, rotated=rotated)
    dataset = Sequences(ROOT=root, seq_gap=1, **SMALL)
    assert len(dataset) == 3
    check_truth(dataset[0], [frames[n][0] for n in (1, 0, 2)])


def test_streams_belong_together_by_time(tmp_path, frames):
    root = write_timed(tmp_path / "hotel", frames[:8], "times")
    (root / "depth" / "00002800.png").unlink()
    lines = (root / "groundtruth.txt").read_text().splitlines()
    (root / "groundtruth.txt").write_text("\n".join(["# time tx ...", *lines[:5], *lines[6:]]))
    dataset = Sequences(ROOT=root, seq_gap=1, **SMALL)
    assert dataset.skipped == {"no depth at that time": 1, "no pose at that time": 1}
    sample = dataset[2]
    assert numbers_of(sample) == [4500, 3500, 6500]
    check_truth(sample, [frames[n][0] for n in (4, 3, 6)])
    write_matrix(root / "groundtruth.txt", np.zeros((3, 12)))
    with pytest.raises(ValueError, match="3 poses for 8 images"):
        Sequences(ROOT=root)


def poses_in_millimetres(pose):
    return np.block([[pose[:3, :3], 1000 * pose[:3, 3:]], [pose[3:]]])


@pytest.mark.parametrize(
    ("wrong", "problem", "mend"),
    [
        ({"change_pose": np.linalg.inv}, "miss by", "mended by: inverting the poses"),
        ({"change_pose": lambda pose: pose @ OPENGL}, "miss by", "mended by: axes of OpenGL"),
        ({"unit": 1e6}, "median depth is 0.00", "mended by: depth 1000 times as large"),
        ({"unit": 1.0}, "median depth is ", "mended by: depth 1000 times as small"),
        ({"change_pose": poses_in_millimetres}, "miss by", "poses' unit is another"),
        ({"unit": 1.0, "change_pose": poses_in_millimetres}, "median depth is ", "change both"),
    ],
)
def test_wrong_units_and_poses_are_errors_with_the_numbers_of_each_convention(
    tmp_path, frames, wrong, problem, mend
):
    root = write_processed(tmp_path, frames[:5], change_pose=wrong.get("change_pose", np.copy))
    if "unit" in wrong:
        stored = dict(np.load(root / "all_metadata.npz"))
        np.savez(root / "all_metadata.npz", **stored, depth_unit=np.array([wrong["unit"]]))
    with pytest.raises(ValueError, match="scene room: ") as caught:
        Sequences(ROOT=root, seq_gap=1, **AS_STORED)
    text = str(caught.value)
    assert problem in text.split("Expected")[0] and mend in text
    assert text.count("reprojection error") == text.count("median depth") - ("unit" in wrong) == 5


def test_millimetres_of_a_raw_recording_taken_for_metres_are_an_error(tmp_path, two_cameras):
    write_export(tmp_path / "scene0000_00", two_cameras)
    Sequences(ROOT=tmp_path, seq_gap=1, **AS_STORED)
    with pytest.raises(ValueError, match="outside 0.1 to 20.* depth 1000 times as small"):
        Sequences(ROOT=tmp_path, seq_gap=1, depth_unit=1, **AS_STORED)


def test_views_without_overlap_are_given_and_are_no_error_of_conventions(tmp_path, frames):
    turned = [pose @ np.diag([-1.0, 1, -1, 1]) for pose, _, _ in frames[3:6]]
    away = [(pose, *WORLD.render(pose, CAMERA, SIZE)) for pose in turned]
    dataset = Sequences(
        ROOT=write_processed(tmp_path, [*frames[:3], *away]), seq_gap=2, **AS_STORED
    )
    sample = dataset[0]
    overlaps = [
        overlap(*(sample[key][0] for key in CAMERA_KEYS), *(sample[key][n] for key in CAMERA_KEYS))
        for n in (1, 2)
    ]
    assert overlaps[0] > 0.5 and overlaps[1] == 0
    assert all(np.isfinite(sample[key]).all() for key in CAMERA_KEYS)


def test_a_camera_that_stands_still_cannot_be_checked(tmp_path, frames, caplog):
    still = write_processed(tmp_path / "still", [frames[0]] * 5, change_pose=np.linalg.inv)
    Sequences(ROOT=still, seq_gap=1, **AS_STORED)
    blank = [(pose, np.full_like(rgb, 90), depth) for pose, rgb, depth in frames[:5]]
    Sequences(ROOT=write_processed(tmp_path / "blank", blank), seq_gap=1, **AS_STORED)
    assert "too little texture or motion" in caplog.text


def test_jitter_is_one_for_all_frames_of_a_sample_and_follows_the_seed(tmp_path, frames):
    still = write_processed(tmp_path, [frames[0]] * 4)
    options = {"ROOT": still, "seq_gap": 1, "transform": ColorJitter, "check": False, **SMALL}
    seeded = Sequences(**options, seed=3)
    first, second = seeded[0]["img"], seeded[1]["img"]
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    assert not torch.equal(first, second)
    assert torch.equal(Sequences(**options, seed=3)[0]["img"], first)
    assert not torch.equal(Sequences(**options, seed=4)[0]["img"], first)
    unseeded = Sequences(**options)
    before = unseeded[0]["img"]
    unseeded.set_epoch(1)
    assert not torch.equal(unseeded[0]["img"], before)


def test_batches_are_stacked_and_a_resumed_epoch_goes_on_where_it_was(processed):
    options = "seq_gap=2, width=80, height=64, transform=ColorJitter, check=False"
    one = f"Sequences(ROOT='{processed}', {options})"
    loader = get_data_loader(f"6 @ {one} + 4 @ {one}", batch_size=2, num_workers=0, seed=5)
    loader.set_epoch(2)
    whole = list(loader)
    assert len(whole) == len(loader) == 5
    assert whole[0]["img"].shape == (2, 3, 3, 64, 80)
    assert whole[0]["camera_pose"].shape == (2, 3, 4, 4)
    assert [len(frame) for frame in whole[0]["label"]] == [2, 2, 2]
    loader.set_epoch(2, start_batch=3)
    for batch, again in zip(whole[3:], loader, strict=True):
        assert torch.equal(batch["img"], again["img"]) and batch["label"] == again["label"]


def test_files_that_cannot_be_used_are_named(tmp_path, frames):
    root = write_processed(tmp_path, frames)
    spoil(image_path(root, "room", "frame_00002"))
    write_depth(depth_path(root, "room", "frame_00005"), np.zeros(SIZE[::-1]))
    dataset = Sequences(ROOT=root, seq_gap=1, **SMALL)
    with pytest.raises(SampleError, match="frame_00002.jpg"):
        dataset[0]
    with pytest.raises(SampleError, match="anchor .*frame_00005.jpg has no valid depth"):
        dataset[4]
    assert not dataset[5]["valid_mask"][1].any()


def test_scenes_are_split_by_name_and_a_single_one_by_frames(tmp_path, processed, frames):
    def held(root):
        found = {}
        for split in ("train", "val", "test", "all"):
            data = Sequences(ROOT=root, split=split, seq_length=2, seq_gap=1, check=False, **SMALL)
            found[split] = {label for n in range(len(data)) for label in data[n]["label"]}
        assert found["val"] == found["test"] and not found["train"] & found["val"]
        assert found["train"] | found["val"] == found["all"]
        return found["val"]

    assert held(processed) == {"room/frame_00010", "room/frame_00011"}
    for name in "abc":
        write_timed(tmp_path / name, frames[:3], "3x4")
    assert len({label.split("/")[0] for label in held(tmp_path)}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "training"}, "choose one of train"),
        ({"seq_length": 1}, "seq_length=1: expected a whole number of 2"),
        ({"seq_gap": 0}, "seq_gap=0"),
        ({"depth_unit": 0}, "steps a metre"),
        ({"transform": "ColorJitter"}, "expected ImgNorm"),
        ({"anchor_gap": 9}, "anchor_gap=9: expected seq_gap=10"),
        ({"seq_gap": 6}, "reaches over 13 frames, and the longest stretch .* has 12"),
    ],
)
def test_arguments_that_cannot_be_are_refused(processed, options, message):
    with pytest.raises(ValueError, match=message):
        Sequences(**{"ROOT": processed, **options})


def test_folders_without_recordings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        Sequences(ROOT=tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="neither all_metadata.npz .* nor a recording"):
        Sequences(ROOT=tmp_path)
