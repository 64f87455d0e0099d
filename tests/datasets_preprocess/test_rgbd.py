"""RGB-D recordings of a ray-cast room, in each format's layout, to the processed layout."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets_preprocess.layout import depth_path, image_path, read_depth, read_metadata
from datasets_preprocess.preprocess_rgbd import main, preprocess
from datasets_preprocess.rgbd.formats import find_recordings, intrinsics_matrix, pose_fault
from datasets_preprocess.rgbd.frames import KINECT, edge_agreement, read_depth_map
from datasets_preprocess.rgbd.settings import Settings
from tests.datasets_preprocess.raycast_room import (
    CAMERA,
    SIZE,
    check_scene,
    render,
    walk,
    write_png,
    write_scannet,
    write_seven_scenes,
    write_sun3d,
    write_unregistered,
)

SAME = Settings(color_intrinsics="same")


def test_seven_scenes(tmp_path):
    poses = walk()
    folder = write_seven_scenes(tmp_path / "raw" / "kitchen", poses)
    preprocess([folder], tmp_path / "out")
    check_scene(tmp_path / "out", "kitchen", poses)
    index = read_metadata(tmp_path / "out")
    assert index.images.tolist() == [f"frame-{k:06d}" for k in range(5)]
    np.testing.assert_allclose(index.intrinsics[2], CAMERA, rtol=1e-6)
    assert ((index.pairs[:, 2] >= 0.2) & (index.pairs[:, 2] <= 0.9)).all() and len(index.pairs)
    first_rows = read_depth(depth_path(tmp_path / "out", "kitchen", "frame-000000"))[:4]
    assert (first_rows == 0).all()
    sheet = cv2.imread(str(tmp_path / "out" / "kitchen" / "contact_sheet.png"))
    assert min(sheet.shape[:2]) > 300
    report = json.loads((tmp_path / "out" / "kitchen" / "preprocess.json").read_text())
    assert report["frames"] == 5 and report["reprojection_error"] < 0.01
    assert sum(report["chosen"]) == report["pairs"] == len(index.pairs)


def test_frames_that_cannot_be_used_are_left_out_and_counted(tmp_path, caplog):
    poses = walk(10)
    folder = write_seven_scenes(tmp_path / "kitchen", poses)
    np.savetxt(folder / "frame-000000.pose.txt", np.full((4, 4), -np.inf))
    np.savetxt(folder / "frame-000001.pose.txt", 2 * poses[1])
    (folder / "frame-000002.depth.png").unlink()
    (folder / "frame-000003.pose.txt").unlink()
    (folder / "frame-000004.pose.txt").write_text("1 0 0 lost")
    write_png(folder / "frame-000005.depth.png", np.zeros(SIZE, np.uint16))
    (folder / "frame-000006.color.png").write_bytes(b"no image")
    with caplog.at_level(logging.INFO):
        preprocess([folder], tmp_path / "out")
    check_scene(tmp_path / "out", "kitchen", poses[7:])
    report = json.loads((tmp_path / "out" / "kitchen" / "preprocess.json").read_text())
    assert report["skipped"] == {
        "pose not finite": 1,
        "pose not rigid": 1,
        "no depth file": 1,
        "no pose file": 1,
        "pose unreadable": 1,
        "less than 1% with depth": 1,
        "unreadable colour or depth": 1,
    }
    assert "3 frames kept, 7 left out (" in caplog.text
    assert "frame-000006.color.png: not a readable image" in caplog.text


def test_seven_scenes_without_intrinsics_are_warned_about(tmp_path, caplog):
    folder = write_seven_scenes(tmp_path / "kitchen", walk(2))
    (folder / "camera-intrinsics.txt").unlink()
    (recording,) = find_recordings([folder])
    np.testing.assert_array_equal(recording.intrinsics, intrinsics_matrix(585, 585, 320, 240))
    assert "585 585 320 240" in caplog.text and "--intrinsics" in caplog.text
    given = Settings(intrinsics=(80.0, 82.0, 48.3, 35.2))
    preprocess([folder], tmp_path / "out", given)
    check_scene(tmp_path / "out", "kitchen", walk(2))


def test_a_folder_of_sequences_becomes_as_many_scenes(tmp_path):
    for name in ("seq-01", "seq-02"):
        write_seven_scenes(tmp_path / "kitchen" / name, walk(3))
    (tmp_path / "kitchen" / "seq-02" / "camera-intrinsics.txt").unlink()
    np.savetxt(tmp_path / "kitchen" / "camera-intrinsics.txt", CAMERA)
    preprocess([tmp_path / "kitchen"], tmp_path / "out")
    assert read_metadata(tmp_path / "out").scenes.tolist() == ["kitchen_seq-01", "kitchen_seq-02"]
    check_scene(tmp_path / "out", "kitchen_seq-02", walk(3))


def test_scannet_colour_of_another_size_and_lens(tmp_path):
    """1296x968 colour over 640x480 depth, in small: other focals, other centre, other aspect."""
    poses = walk(12)
    colour = intrinsics_matrix(165.0, 164.0, 99.0, 70.0)
    folder = write_scannet(tmp_path / "scene0000_00", poses, colour, (146, 194))
    np.savetxt(folder / "pose" / "1.txt", np.full((4, 4), -np.inf))
    preprocess([folder], tmp_path / "out")
    kept = [0, *range(2, 12)]
    check_scene(tmp_path / "out", "scene0000_00", poses[kept])
    index = read_metadata(tmp_path / "out")
    assert index.images.tolist() == [str(k) for k in kept]
    np.testing.assert_allclose(index.intrinsics[0], CAMERA, rtol=1e-6)


def test_scannet_depth_outside_the_colour_image_is_removed(tmp_path):
    narrow = intrinsics_matrix(160.0, 160.0, 95.5, 71.5)
    folder = write_scannet(tmp_path / "scene", walk(2), narrow, (144, 192))
    for name in ("0", "1"):
        image = folder / "color" / f"{name}.png"
        write_png(image, cv2.imread(str(image))[:, :160])
    preprocess([folder], tmp_path / "out")
    depth = read_depth(depth_path(tmp_path / "out", "scene", "0"))
    outside = 48.3 + 80.0 * (159.5 - 95.5) / 160.0
    assert (depth[:, int(np.ceil(outside + 0.5)) :] == 0).all()
    assert (depth[:, 1 : int(outside - 0.5)] > 0).all() and (depth[:, 0] == 0).all()


def test_scannet_needs_the_depth_cameras_intrinsics(tmp_path):
    folder = write_scannet(tmp_path / "scene", walk(2), CAMERA, SIZE)
    (folder / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(FileNotFoundError, match="intrinsic_depth.txt.*--intrinsics fx fy cx cy"):
        preprocess([folder], tmp_path / "out")


def test_sun3d_bits_times_and_newest_poses(tmp_path):
    poses = walk()
    folder = write_sun3d(tmp_path / "hotel", poses)
    preprocess([folder], tmp_path / "out")
    check_scene(tmp_path / "out", "hotel", poses)
    assert read_metadata(tmp_path / "out").images[1] == "0000002-000000083333"


def test_sun3d_depth_is_the_nearest_in_time(tmp_path):
    folder = write_sun3d(tmp_path / "hotel", walk(), depth_delay=-12000)
    (folder / "depth" / "0000004-000000104666.png").unlink()
    (recording,) = find_recordings([folder])
    named = [(int(f.color.stem[:7]), int(f.depth.stem[:7])) for f in recording.frames]
    assert named == [(1, 2), (2, 3), (4, 5), (5, 6)]
    assert recording.skipped == {"no depth at that time": 1}


def test_sun3d_thinned_out_keeps_each_images_own_pose(tmp_path):
    poses = walk(8)
    folder = write_sun3d(tmp_path / "hotel", poses)
    for image in sorted((folder / "image").iterdir())[1::2]:
        image.unlink()
    preprocess([folder], tmp_path / "out")
    check_scene(tmp_path / "out", "hotel", poses[::2])
    np.savetxt(folder / "extrinsics" / "20140101.txt", poses[:6, :3].reshape(-1, 4))
    with pytest.raises(ValueError, match="holds 6 poses for 4 images numbered up to 7"):
        find_recordings([folder])


def test_bits_of_every_depth_come_back(tmp_path):
    stored = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_png(tmp_path / "d.png", (stored << 3) | (stored >> 13))
    depth = read_depth_map(tmp_path / "d.png", 0.001, rotated_bits=True)
    expected = np.where(stored < 65535, stored, 0)
    np.testing.assert_array_equal((depth * 1000).round(), expected)


def test_depth_unit_scales_depth(tmp_path):
    poses = walk(3)
    folder = write_seven_scenes(tmp_path / "kitchen", poses)
    for path in folder.glob("*.depth.png"):
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int)
        write_png(path, np.where(stored < 65535, 5 * stored, 0).astype(np.uint16))
    preprocess([folder], tmp_path / "out", replace(SAME, depth_unit=0.0002))
    check_scene(tmp_path / "out", "kitchen", poses)


def test_a_wrong_unit_is_warned_about(tmp_path, caplog):
    folder = write_seven_scenes(tmp_path / "kitchen", walk(3))
    preprocess([folder], tmp_path / "out", replace(SAME, depth_unit=0.015, max_overlap=1.0))
    assert "the median depth is 4" in caplog.text and "outside 0.1 to 20.0 m" in caplog.text
    assert "--depth_unit" in caplog.text


def test_max_side_scales_everything_alike(tmp_path):
    camera = np.diag([2.0, 2, 1]) @ CAMERA
    folder = write_seven_scenes(tmp_path / "kitchen", walk(), camera, (144, 192))
    preprocess([folder], tmp_path / "out", Settings(max_side=100))
    index = read_metadata(tmp_path / "out")
    depth = read_depth(depth_path(tmp_path / "out", "kitchen", "frame-000000"))
    assert depth.shape == (75, 100)
    expected = (camera[0, 2] + 0.5) * 100 / 192 - 0.5
    assert index.intrinsics[0, 0, 2] == pytest.approx(expected, abs=1e-4)
    check_scene(tmp_path / "out", "kitchen", walk())


def test_unregistered_colour_of_a_kinect_is_noticed_and_registered(tmp_path, caplog):
    poses = walk(3)
    folder, camera = write_unregistered(tmp_path / "kitchen", poses)
    with caplog.at_level(logging.INFO):
        preprocess([folder], tmp_path / "out")
    assert "colour camera Kinect's, 525 525 320 240" in caplog.text
    rgb = cv2.imread(str(image_path(tmp_path / "out", "kitchen", "frame-000001")))[..., ::-1]
    expected, _ = render(camera, poses[1], (480, 640))
    raw = cv2.imread(str(folder / "frame-000001.color.png"))[..., ::-1]
    inner = np.s_[20:-20, 20:-20]
    assert np.median(abs(rgb[inner].astype(int) - expected[inner])) < 3
    assert np.median(abs(raw[inner].astype(int) - expected[inner])) > 10


def test_registered_colour_is_left_alone(tmp_path, caplog):
    camera = intrinsics_matrix(585, 585, 320, 240)
    folder = write_seven_scenes(tmp_path / "kitchen", walk(2), camera, (480, 640))
    with caplog.at_level(logging.INFO):
        preprocess([folder], tmp_path / "out")
    assert "colour camera the depth camera's: depth edges" in caplog.text


def test_a_colour_camera_can_be_given(tmp_path):
    poses = walk(3)
    folder = write_seven_scenes(tmp_path / "kitchen", poses)
    for k, pose in enumerate(poses):
        beside = pose.copy()
        beside[:3, 3] += pose[:3, :3] @ [0.05, 0.01, 0]
        rgb, _ = render(intrinsics_matrix(70, 71, 50, 40), beside, (80, 104))
        write_png(folder / f"frame-{k:06d}.color.png", rgb[..., ::-1])
    camera = (70.0, 71.0, 50.0, 40.0)
    settings = Settings(color_intrinsics=camera, color_offset=(0.05, 0.01, 0.0))
    preprocess([folder], tmp_path / "out", settings)
    check_scene(tmp_path / "out", "kitchen", poses)


def test_scenes_of_several_runs_share_one_index(tmp_path, caplog):
    first = write_seven_scenes(tmp_path / "kitchen", walk(3))
    second = write_sun3d(tmp_path / "hotel", walk(4))
    preprocess([first], tmp_path / "out")
    stamp = image_path(tmp_path / "out", "kitchen", "frame-000000").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        preprocess([first, second], tmp_path / "out")
    assert "kitchen: already complete" in caplog.text
    assert image_path(tmp_path / "out", "kitchen", "frame-000000").stat().st_mtime_ns == stamp
    index = read_metadata(tmp_path / "out")
    assert index.scenes.tolist() == ["hotel", "kitchen"]
    assert index.sceneids.tolist() == [0] * 4 + [1] * 3
    for i, j in index.pairs[:, :2].astype(int):
        assert index.sceneids[i] == index.sceneids[j]
    check_scene(tmp_path / "out", "kitchen", walk(3))


def test_overwrite_makes_a_scene_anew(tmp_path, caplog):
    folder = write_seven_scenes(tmp_path / "kitchen", walk(4))
    preprocess([folder], tmp_path / "out")
    preprocess([folder], tmp_path / "out", Settings(frame_step=2))
    assert "with other settings, kept; --overwrite" in caplog.text
    assert len(read_metadata(tmp_path / "out").images) == 4
    preprocess([folder], tmp_path / "out", Settings(frame_step=2), overwrite=True)
    index = read_metadata(tmp_path / "out")
    assert index.images.tolist() == ["frame-000000", "frame-000002"]


def test_a_scene_of_another_recording_is_not_taken_for_this_one(tmp_path):
    preprocess([write_seven_scenes(tmp_path / "a" / "kitchen", walk(2))], tmp_path / "out")
    other = write_seven_scenes(tmp_path / "b" / "kitchen", walk(3))
    with pytest.raises(ValueError, match="was made from .*a/kitchen, not from .*b/kitchen"):
        preprocess([other], tmp_path / "out")
    assert len(read_metadata(tmp_path / "out").images) == 2


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path):
    folders = [write_seven_scenes(tmp_path / part / "room", walk(2)) for part in "ab"]
    assert [r.name for r in find_recordings(folders)] == ["a_room", "b_room"]
    with pytest.raises(ValueError, match="would both become the scene 'a_room'"):
        find_recordings([folders[0], folders[0]])


def test_unknown_folders_say_what_was_looked_for(tmp_path):
    (tmp_path / "rgb").mkdir()
    with pytest.raises(ValueError) as caught:
        find_recordings([tmp_path])
    message = str(caught.value)
    for text in ("7scenes: frame-XXXXXX.color.jpg", "color/, depth/, pose/", "extrinsics/", "rgb/"):
        assert text in message
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_recordings([tmp_path / "nowhere"])
    seven = write_seven_scenes(tmp_path / "kitchen", walk(2))
    with pytest.raises(ValueError, match="Looked for sun3d"):
        find_recordings([seven], "sun3d")


def test_too_few_frames_name_the_reasons(tmp_path):
    folder = write_seven_scenes(tmp_path / "kitchen", walk(3))
    for k in (0, 2):
        np.savetxt(folder / f"frame-{k:06d}.pose.txt", np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r"1 usable frame.*at least 2.*2 pose not finite"):
        preprocess([folder], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_no_pair_in_range_tells_the_overlaps_found(tmp_path):
    folder = write_seven_scenes(tmp_path / "kitchen", np.stack([walk(1)[0]] * 3))
    with pytest.raises(
        ValueError, match=r"from 0.2 to 0.9. Overlaps found: from 1.00 to 1.00 in 3"
    ):
        preprocess([folder], tmp_path / "out")


def test_one_bad_recording_does_not_keep_the_others_out(tmp_path):
    good = write_seven_scenes(tmp_path / "kitchen", walk(3))
    bad = write_seven_scenes(tmp_path / "cellar", np.stack([walk(1)[0]] * 2))
    with pytest.raises(ValueError, match="1 of 2 recordings failed. cellar: no pair"):
        preprocess([bad, good], tmp_path / "out")
    assert read_metadata(tmp_path / "out").scenes.tolist() == ["kitchen"]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda pose: pose, None),
        (lambda pose: np.where(np.eye(4) > 0, np.nan, pose), "pose not finite"),
        (lambda pose: pose @ np.diag([1.1, 1.1, 1.1, 1]), "pose not rigid"),
        (lambda pose: pose @ np.diag([1.0, 1, -1, 1]), "pose not rigid"),
        (lambda pose: pose + np.diag([0, 0, 0, 1.0]), "pose not rigid"),
        (lambda pose: np.zeros((4, 4)), "pose not rigid"),
    ],
)
def test_poses_are_rotations_and_translations(spoil: Callable, fault: str | None):
    assert pose_fault(spoil(walk(3)[2])) == fault


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_overlap": 0.9, "max_overlap": 0.2}, "min_overlap <= max_overlap"),
        ({"min_overlap": 0.0}, "0 < min_overlap"),
        ({"max_pairs": 0}, "max_pairs must be at least 1, got 0"),
        ({"frame_step": 0}, "frame_step must be at least 1"),
        ({"depth_unit": 0.0}, "depth_unit is metres per step"),
        ({"color_intrinsics": "kinect"}, "auto, same or fx fy cx cy, got kinect"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_command_line_errors_are_messages(tmp_path):
    arguments = ["--input", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="error: .*nowhere: no such folder"):
        main(arguments)
    with pytest.raises(SystemExit, match="auto, same or fx fy cx cy, got 1 2 3"):
        main([*arguments, "--color_intrinsics", "1", "2", "3"])
    with pytest.raises(SystemExit, match="num_workers must be at least 1, got 0"):
        folder = write_seven_scenes(tmp_path / "kitchen", walk(2))
        main(["--input", str(folder), "--output_dir", str(tmp_path / "out"), "--num_workers", "0"])


def test_command_line_with_several_processes(tmp_path):
    folder = write_seven_scenes(tmp_path / "kitchen", walk(6))
    done = subprocess.run(
        [sys.executable, "-m", "datasets_preprocess.preprocess_rgbd", "--input", str(folder)]
        + ["--output_dir", str(tmp_path / "out"), "--num_workers", "2", "--max_pairs", "5"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "6 frames kept, 0 left out" in done.stderr and "5 pairs" in done.stderr
    check_scene(tmp_path / "out", "kitchen", walk(6))
    assert len(read_metadata(tmp_path / "out").pairs) == 5


def test_an_unreadable_frame_does_not_keep_the_colour_camera_unknown(tmp_path):
    folder, _ = write_unregistered(tmp_path / "kitchen", walk(2))
    (recording,) = find_recordings([folder])
    agreement = edge_agreement(recording, 0.001, KINECT)
    (folder / "frame-000000.color.png").write_bytes(b"no image")
    assert edge_agreement(recording, 0.001, KINECT) == pytest.approx(agreement, abs=0.3)
    (folder / "frame-000001.depth.png").write_bytes(b"no image")
    assert edge_agreement(recording, 0.001, KINECT) == 0.0
