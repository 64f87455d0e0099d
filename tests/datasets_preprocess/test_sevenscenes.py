"""7-Scenes: the official split, and what damaged sequences and a full disk leave."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from raw.sevenscenes import write_release, write_sequence
from rgbd_raw import CAMERA, SIZE, rendered, spoil, write_image, write_matrix
from world import World

from datasets_preprocess.layout import complete_scenes, read_metadata
from datasets_preprocess.preprocess_7scenes import main
from datasets_preprocess.rgbd import convert
from dust3r.datasets.sevenscenes import SevenScenes


def run(raw: Path, root: Path, *options: str) -> int:
    arguments = ["--sevenscenes_dir", str(raw), "--output_dir", str(root), "--num_workers", "1"]
    return main([*arguments, *options])


def write_two(folder: Path) -> Path:
    """Two sequences of three frames, the second one to test on."""
    frames = rendered(World(), 4)
    write_sequence(folder / "fire" / "seq-01", frames[:3])
    write_sequence(folder / "fire" / "seq-02", frames[1:])
    write_matrix(folder / "fire" / "camera-intrinsics.txt", CAMERA)
    (folder / "fire" / "TrainSplit.txt").write_text("sequence1\n")
    (folder / "fire" / "TestSplit.txt").write_text("sequence2\n")
    return folder


def test_splits_are_the_official_ones(tmp_path):
    root = tmp_path / "out"
    assert run(write_release(tmp_path / "raw"), root, "--frame_step", "2") == 0
    index = read_metadata(root)
    assert index.scenes.tolist() == ["chess_seq-01", "chess_seq-02", "chess_seq-03"]
    assert index.splits.tolist() == ["train", "test", "train"]

    def scenes(split: str) -> set[str]:
        data = SevenScenes(split=split, ROOT=root, resolution=(96, 64))
        return {str(data.scenes[data.sceneids[i]]) for i in data.pairs.ravel()}

    assert scenes("train") == {"chess_seq-01", "chess_seq-03"} and scenes("test") == {
        "chess_seq-02"
    }
    assert scenes("all") == scenes("train") | scenes("test")
    with pytest.raises(ValueError, match="its scenes are of test, train.*split='val'"):
        scenes("val")


def test_bad_frames_are_counted_and_bad_sequences_left_out(tmp_path, capsys):
    raw, root = write_two(tmp_path / "raw"), tmp_path / "out"
    first, second = raw / "fire" / "seq-01", raw / "fire" / "seq-02"
    frames = rendered(World(), 6)
    write_sequence(first, frames)
    (first / "frame-000000.depth.png").unlink()
    write_image(first / "frame-000001.depth.png", np.zeros(SIZE[::-1], np.uint16))
    spoil(first / "frame-000002.color.png")
    for image in second.glob("*.color.png"):
        spoil(image)
    assert run(raw, root) == 0
    assert complete_scenes(root) == ["fire_seq-01"]
    assert not [path.name for path in root.iterdir() if path.name.startswith(".")]
    report = json.loads((root / "preprocess.json").read_text())
    assert report["scenes"]["fire_seq-01"]["skipped"] == {
        "no depth file": 1,
        "less than 1% with depth": 1,
        "unreadable colour or depth": 1,
    }
    unreadable = report["scenes"]["fire_seq-01"]["examples"]["unreadable colour or depth"]
    assert "frame-000002.color.png" in unreadable
    assert "0 usable frame(s)" in report["failed"]["fire_seq-02"]
    printed = capsys.readouterr().out
    assert "1 scenes: 3 frames" in printed and "scene left out: fire_seq-02" in printed


def test_a_full_disk_leaves_whole_scenes_and_the_next_run_goes_on(tmp_path, monkeypatch, capsys):
    raw, root = write_two(tmp_path / "raw"), tmp_path / "out"
    write, written = convert.write_depth, []

    def until_full(path: Path, *rest: object) -> None:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(convert, "write_depth", until_full)
    assert run(raw, root) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert complete_scenes(root) == ["fire_seq-01"]
    assert sorted(path.name for path in root.iterdir()) == ["fire_seq-01", "preprocess.json"]
    monkeypatch.undo()
    stamp = (root / "fire_seq-01" / "scene.npz").stat().st_mtime_ns
    assert run(raw, root) == 0
    assert read_metadata(root).scenes.tolist() == ["fire_seq-01", "fire_seq-02"]
    assert (root / "fire_seq-01" / "scene.npz").stat().st_mtime_ns == stamp


def test_sequences_still_packed_are_named(tmp_path, capsys):
    raw = tmp_path / "raw"
    (raw / "heads" / "seq-01").mkdir(parents=True)
    (raw / "heads" / "TestSplit.txt").write_text("sequence1\nsequence2\n")
    assert run(raw, tmp_path / "out") == 1
    assert "heads has no seq-02, which its split names; unpack" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "nowhere is no folder; expected one with chess" in capsys.readouterr().err
