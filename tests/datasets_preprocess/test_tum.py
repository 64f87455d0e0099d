"""TUM RGB-D: what belongs together in time, and which lens took it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rgbd_raw import steps, write_image

from datasets_preprocess.rgbd.formats import find_recordings
from datasets_preprocess.rgbd.tum import camera_of, read_tum

SIZE = (480, 640)
TIMES = (10.0, 10.033, 10.066, 10.1)


def write_lists(folder: Path, depth_times, pose_times) -> Path:
    """Colour at ``TIMES``; each pose stands at its own time along x."""
    depth = np.full(SIZE, 2.0)
    for time in TIMES:
        write_image(folder / "rgb" / f"{time:.6f}.png", np.full((*SIZE, 3), 90, np.uint8))
    for time in depth_times:
        write_image(folder / "depth" / f"{time:.6f}.png", steps(depth, 5000))
    lists = {
        "rgb": [f"{time:.6f} rgb/{time:.6f}.png" for time in TIMES],
        "depth": [f"{time:.6f} depth/{time:.6f}.png" for time in depth_times],
        "groundtruth": [f"{time:.4f} {time} 0 0 0 0 0 1" for time in pose_times],
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(["# a comment", "", *lines]))
    return folder


def read(folder: Path):
    return read_tum(folder, folder.name, None, 1)


def test_nearest_times_belong_together_up_to_20_ms(tmp_path):
    folder = write_lists(
        tmp_path / "rgbd_dataset_freiburg1_xyz",
        depth_times=(10.006, 10.015, 10.055, 10.19),
        pose_times=(10.001, 10.05, 10.09, 10.5),
    )
    recording = read(folder)
    found = [(f.color.stem, f.depth.stem, round(f.pose[0, 3], 3)) for f in recording.frames]
    assert found == [
        ("10.000000", "10.006000", 10.001),
        ("10.033000", "10.015000", 10.05),
        ("10.066000", "10.055000", 10.05),
    ]
    assert recording.skipped == {"no depth at that time": 1}
    assert recording.examples == {"no depth at that time": "10.100000.png"}


def test_a_single_pose_serves_what_is_near(tmp_path):
    folder = write_lists(tmp_path / "rgbd_dataset_freiburg3_a", TIMES, pose_times=(10.07,))
    recording = read(folder)
    assert [frame.name for frame in recording.frames] == ["10.066000"]
    assert recording.skipped == {"no pose at that time": 3}


@pytest.mark.parametrize(
    ("name", "focal", "distorted"),
    [
        ("rgbd_dataset_freiburg1_desk", 517.3, True),
        ("rgbd_dataset_freiburg2_xyz", 520.9, True),
        ("rgbd_dataset_freiburg3_office", 535.4, False),
        ("fr2_desk", 520.9, True),
    ],
)
def test_the_folder_says_which_camera(name, focal, distorted):
    intrinsics, distortion = camera_of(name)
    assert intrinsics[0, 0] == pytest.approx(focal, abs=0.05)
    assert distortion.any() == distorted


def test_another_name_is_refused_unless_intrinsics_are_given(tmp_path):
    folder = write_lists(tmp_path / "my_desk", TIMES, TIMES)
    with pytest.raises(ValueError, match="my_desk.*freiburg1, freiburg2 or freiburg3"):
        read(folder)
    (recording,) = find_recordings([folder], intrinsics=np.diag([500.0, 500.0, 1.0]))
    assert recording.format == "tum" and len(recording.frames) == 4
    loaded = recording.load(recording.frames[0])
    np.testing.assert_allclose(loaded.depth, 2.0, atol=1e-4)


def test_depth_and_colour_are_undistorted_alike(tmp_path):
    """Only freiburg3 is left as it is; a straight line in space becomes one in the image."""
    folder = write_lists(tmp_path / "rgbd_dataset_freiburg1_desk", TIMES, TIMES)
    intrinsics, distortion = camera_of(folder.name)
    ends = np.stack([np.linspace(-0.45, 0.45, 400), np.full(400, 0.38), np.ones(400)], 1)
    seen = cv2.projectPoints(ends, np.zeros(3), np.zeros(3), intrinsics, distortion)[0][:, 0]
    depth = np.full(SIZE, 2.0)
    depth[np.arange(480)[:, None] > np.interp(np.arange(640), *seen.T)] = 1.0
    rgb = np.where((depth == 1)[..., None], 200, 50).astype(np.uint8).repeat(3, -1)
    frame = read(folder).frames[0]
    write_image(frame.color, rgb)
    write_image(frame.depth, steps(depth, 5000))
    loaded = read(folder).load(frame)
    row = intrinsics[1, 1] * 0.38 + intrinsics[1, 2]
    for column in (110, 320, 530):
        edges = [
            np.flatnonzero(loaded.depth[:, column] == 1.0)[0],
            np.flatnonzero(loaded.rgb[:, column, 0] > 125)[0],
        ]
        assert np.abs(np.array(edges) - row - 0.5).max() < 1.1
        # The test would say nothing if the lens did not move the line.
        assert abs(np.flatnonzero(depth[:, column] == 1.0)[0] - row) > 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("groundtruth.txt", "10.0 1 2 3\n", "expected time tx ty tz qx qy qz qw"),
        ("rgb.txt", "# nothing\n", "rgb.txt: expected lines of a time"),
        ("depth.txt", "soon depth/1.png\n", "begins with a time in seconds"),
    ],
)
def test_damaged_lists_are_named(tmp_path, name, content, message):
    folder = write_lists(tmp_path / "fr1_desk", TIMES, TIMES)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(folder)
