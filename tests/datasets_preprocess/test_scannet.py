"""ScanNet: .sens files whole and damaged, and the lists of the official split."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from raw.scannet import COLOR_CAMERA, frames_of, write_release, write_sens
from rgbd_raw import CAMERA
from world import World

from datasets_preprocess.layout import read_metadata
from datasets_preprocess.preprocess_scannet import main
from datasets_preprocess.rgbd.formats import find_recordings


@pytest.fixture(scope="module")
def frames():
    return frames_of(World(), 4)


def read(path: Path):
    (recording,) = find_recordings([path.parent])
    return recording


def test_a_sens_file_holds_poses_cameras_and_pixels(tmp_path, frames):
    recording = read(write_sens(tmp_path / "scene0000_00" / "scene0000_00.sens", frames, lost=1))
    assert recording.format == "sens"
    assert [frame.name for frame in recording.frames] == ["0", "2", "3"]
    assert recording.skipped == {"pose not finite": 1}
    np.testing.assert_allclose(recording.intrinsics, CAMERA, rtol=1e-6)
    np.testing.assert_allclose(recording.color_intrinsics, COLOR_CAMERA, rtol=1e-6)
    for frame, (pose, rgb, depth) in zip(
        recording.frames, [frames[0], frames[2], frames[3]], strict=True
    ):
        np.testing.assert_allclose(frame.pose, pose, atol=1e-6)
        loaded = recording.load(frame)
        assert np.abs(loaded.depth - depth).max() <= 0.00051
        assert np.abs(loaded.rgb.astype(int) - rgb).mean() < 4


def test_a_cut_or_damaged_sens_file_gives_what_is_whole(tmp_path, frames):
    path = write_sens(tmp_path / "scene0000_00" / "scene0000_00.sens", frames)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 200])
    recording = read(path)
    assert [frame.name for frame in recording.frames] == ["0", "1", "2"]
    assert recording.skipped == {"missing at the end of a cut .sens file": 1}

    path.write_bytes(whole)
    recording = read(path)
    depth_at = recording.frames[1].offset + recording.frames[1].color_bytes
    path.write_bytes(whole[:depth_at] + b"\0" * 20 + whole[depth_at + 20 :])
    with pytest.raises(ValueError, match="frame 1: unreadable depth"):
        recording.load(recording.frames[1])
    color_at = recording.frames[2].offset
    path.write_bytes(whole[:color_at] + b"\0" * 20 + whole[color_at + 20 :])
    with pytest.raises(ValueError, match="frame 2 has no readable colour"):
        recording.load(recording.frames[2])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, struct.pack("<I", 3), "version 3 of the .sens format, expected 4"),
        (4, struct.pack("<Q", 1 << 40), "no .sens file"),
        (27 + 256, struct.pack("<2i", 2, 2), "depth compression 2"),
        (27 + 64 + 12, struct.pack("<f", 0.05), "camera are at two places"),
    ],
)
def test_sens_files_of_other_kinds_are_refused(tmp_path, frames, offset, value, message):
    path = write_sens(tmp_path / "scene" / "scene.sens", frames[:1])
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=message):
        read(path)
    path.write_bytes(bytes(content[:20]))
    with pytest.raises(ValueError, match="version 3|no .sens file|ends within the header"):
        read(path)


def test_lists_give_the_split_and_a_damaged_scene_fails_alone(tmp_path, capsys):
    raw, root = write_release(tmp_path / "raw"), tmp_path / "out"
    (raw / "scans" / "scene0001_00").mkdir()
    (raw / "scans" / "scene0000_00" / "scene0000_00.sens").write_bytes(b"a broken download")
    arguments = ["--scannet_dir", str(raw), "--output_dir", str(root), "--num_workers", "1"]
    assert main(arguments) == 0
    index = read_metadata(root)
    assert index.scenes.tolist() == ["scene0000_01", "scene0707_00"]
    assert index.splits.tolist() == ["train", "test"]
    failed = json.loads((root / "preprocess.json").read_text())["failed"]
    assert "neither a .sens file nor" in failed["scene0001_00"]
    assert "scene0000_00.sens" in failed["scene0000_00"]
    assert "official split" not in capsys.readouterr().out

    for name in ("train", "val", "test"):
        (raw / f"scannetv2_{name}.txt").unlink()
    assert main(arguments) == 0
    assert "warning: no scannetv2_train.txt" in capsys.readouterr().out
    assert main([*arguments, "--splits_dir", str(raw)]) == 1
    assert "has no scannetv2_train.txt" in capsys.readouterr().err
