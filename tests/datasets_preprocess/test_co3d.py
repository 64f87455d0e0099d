"""CO3D's release, whole and damaged, to the published layout."""

import errno
import gzip
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from raw.co3d import WIDE, write_co3d, write_set_list

from datasets_preprocess import object_sequences, preprocess_co3d
from datasets_preprocess.object_sequences import choose
from datasets_preprocess.preprocess_co3d import decode_depth, main, pixel_camera


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """The contract's test draws the sheet; it takes longer than all the rest."""
    monkeypatch.setattr("datasets_preprocess.check.check_written", lambda *args: [])


def preprocess(raw: Path, out: Path, *more: str) -> int:
    return main(["--co3d_dir", str(raw), "--output_dir", str(out), *more])


def report(out: Path) -> dict:
    return json.loads((out / "preprocess.json").read_text())


def listed(out: Path, split: str) -> dict:
    return json.loads((out / f"selected_seqs_{split}.json").read_text())


def edit_annotations(raw: Path, change) -> None:
    """``change(frame)`` edits the annotations of every frame."""
    path = raw / "ball" / "frame_annotations.jgz"
    with gzip.open(path) as file:
        frames = json.load(file)
    for frame in frames:
        change(frame)
    with gzip.open(path, "wt") as file:
        json.dump(frames, file)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_layout(tmp_path):
    raw = write_co3d(tmp_path / "raw", {"1_2_3": WIDE, "4_5_6": WIDE}, numbers=(1, 4))
    assert preprocess(raw, tmp_path / "out") == 0
    folder = tmp_path / "out" / "ball" / "1_2_3"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert written == {
        "preprocess.json",
        *(f"images/frame00000{n}.{kind}" for n in (1, 4) for kind in ("jpg", "npz")),
        *(f"depths/frame00000{n}.jpg.geometric.png" for n in (1, 4)),
        *(f"masks/frame00000{n}.png" for n in (1, 4)),
    }
    depth = cv2.imread(
        str(folder / "depths" / "frame000001.jpg.geometric.png"), cv2.IMREAD_UNCHANGED
    )
    camera = np.load(folder / "images" / "frame000001.npz")
    assert depth.dtype == np.uint16 and depth.max() == 65535 and (depth[:8, :8] == 0).all()
    assert set(camera) == {"camera_pose", "camera_intrinsics", "maximum_depth"}
    assert 1 < camera["maximum_depth"] < 2
    assert listed(tmp_path / "out", "train") == {"ball": {"1_2_3": [1, 4]}}
    assert listed(tmp_path / "out", "test") == {"ball": {"4_5_6": [1, 4]}}


def test_damaged_frames_are_left_out_and_named(tmp_path, capsys):
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=range(1, 9))
    folder = raw / "ball" / "a"
    (folder / "images" / "frame000001.jpg").unlink()
    jpeg = folder / "images" / "frame000002.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:900])
    zero = np.zeros(WIDE[::-1], np.uint16)
    assert cv2.imwrite(str(folder / "depths" / "frame000003.jpg.geometric.png"), zero)
    assert cv2.imwrite(str(folder / "masks" / "frame000004.png"), zero.astype(np.uint8))

    def change(frame: dict) -> None:
        key = (frame["sequence_name"], frame["frame_number"])
        if key == ("a", 5):
            frame["viewpoint"] = None
        if key == ("a", 6):
            frame["viewpoint"]["T"][1] = np.nan
        if key == ("b", 8):
            frame["viewpoint"]["R"][0] = [0, 0, 0]

    edit_annotations(raw, change)
    assert preprocess(raw, tmp_path / "out") == 0
    scenes = report(tmp_path / "out")["scenes"]
    skipped = scenes["ball/a"]["skipped"]
    assert skipped == {
        "missing file": 1,
        "cannot be read": 1,
        "no pixel has a depth": 1,
        "the object covers less than 1%": 1,
        "no viewpoint in the annotations": 1,
        "pose or intrinsics are not finite": 1,
    }
    assert "frame000002.jpg" in scenes["ball/a"]["examples"]["cannot be read"]
    assert scenes["ball/b"]["skipped"] == {"the pose holds no rotation": 1}
    assert listed(tmp_path / "out", "train")["ball"]["a"] == [7, 8]
    told = capsys.readouterr().out
    assert "left out 1: missing file (first: ball/a: frame 1" in told


def test_sequences_that_cannot_be_used_are_named(tmp_path, capsys):
    raw = write_co3d(
        tmp_path / "raw",
        {"good": WIDE, "poor": WIDE, "unrated": WIDE, "empty": WIDE, "gone": WIDE, "test": WIDE},
        numbers=(1, 2),
        quality={"poor": 0.3, "unrated": None},
    )
    for path in (raw / "ball" / "empty" / "images").iterdir():
        path.unlink()
    (raw / "ball" / "gone").rename(tmp_path / "elsewhere")
    assert preprocess(raw, tmp_path / "out") == 0
    failed = report(tmp_path / "out")["failed"]
    assert set(failed) == {"ball/poor", "ball/unrated", "ball/empty", "ball/gone"}
    assert "viewpoint quality 0.3, below 0.5" in failed["ball/poor"]
    assert "0 usable frame(s) of 2" in failed["ball/empty"]
    assert "not downloaded" in failed["ball/gone"]
    assert set(listed(tmp_path / "out", "train")["ball"]) == {"good"}
    assert "ball/poor: viewpoint quality 0.3" in capsys.readouterr().out
    assert preprocess(raw, tmp_path / "low", "--min_quality", "0.2") == 0
    assert set(listed(tmp_path / "low", "train")["ball"]) == {"good", "poor"}


def test_the_single_sequence_subset(tmp_path):
    """Sequences of the many-view lists, whose frames are split; others are not there."""
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=range(1, 7))
    folder = raw / "ball"
    write_set_list(folder, "fewview_dev", {"train": [["absent", 1, ""]], "test": []})
    for place, name in enumerate("ab"):
        entries = [[name, number, ""] for number in range(1, 7)]
        many = {"train": entries[:3], "val": entries[3:4], "test": entries[4:]}
        write_set_list(folder, f"manyview_dev_{place}", many)
    options = ("--single_sequence_subset", "--category", "ball")
    assert preprocess(raw, tmp_path / "out", *options) == 0
    assert listed(tmp_path / "out", "train") == {"ball": {"a": [1, 2, 3], "b": [1, 2, 3]}}
    assert listed(tmp_path / "out", "test") == {"ball": {"a": [5, 6], "b": [5, 6]}}
    assert report(tmp_path / "out")["failed"] == {}
    assert not (tmp_path / "out/ball/a/images/frame000004.jpg").exists()


def test_a_subset_with_the_usual_lists(tmp_path):
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=(1, 2))
    lists = raw / "ball" / "set_lists" / "set_lists_fewview_dev.json"
    content = json.loads(lists.read_text())
    content["train"].append(["absent", 1, "ball/absent/images/frame000001.jpg"])
    lists.write_text(json.dumps(content))
    assert preprocess(raw, tmp_path / "out", "--single_sequence_subset") == 0
    assert listed(tmp_path / "out", "train") == {"ball": {"a": [1, 2]}}
    assert report(tmp_path / "out")["failed"] == {}


def test_a_full_disk_and_resuming(tmp_path, monkeypatch, capsys):
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE, "c": WIDE}, numbers=(1, 2, 3))
    assert preprocess(raw, tmp_path / "whole") == 0
    real, written = preprocess_co3d.write_depth, []

    def full(path: Path, *args: object) -> None:
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args)

    monkeypatch.setattr(preprocess_co3d, "write_depth", full)
    assert preprocess(raw, tmp_path / "out") == 1
    assert "disk is full" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out" / "ball").iterdir() if path.is_dir()} == {"a"}
    assert not list((tmp_path / "out").glob(".unfinished"))
    assert listed(tmp_path / "out", "train") == {"ball": {"a": [1, 2, 3]}}
    monkeypatch.undo()
    monkeypatch.setattr("datasets_preprocess.check.check_written", lambda *args: [])
    assert preprocess(raw, tmp_path / "out") == 0
    assert "3 scenes (1 finished before)" in capsys.readouterr().out
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_damaged_category_leaves_the_others(tmp_path, capsys):
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=(1, 2))
    write_co3d(tmp_path / "raw", {"c": WIDE, "d": WIDE}, numbers=(1, 2), category="cup")
    annotations = raw / "ball" / "frame_annotations.jgz"
    annotations.write_bytes(annotations.read_bytes()[:200])
    assert preprocess(raw, tmp_path / "out") == 0
    assert "category left out: ball: EOFError" in capsys.readouterr().out
    assert set(listed(tmp_path / "out", "train")) == {"cup"}
    assert preprocess(raw, tmp_path / "none", "--category", "ball") == 1
    assert "no sequence can be used" in capsys.readouterr().err


def test_categories_one_after_the_other(tmp_path):
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=(1, 2))
    write_co3d(tmp_path / "raw", {"c": WIDE, "d": WIDE}, numbers=(1, 2), category="cup")
    for category in ("cup", "ball"):
        assert preprocess(raw, tmp_path / "out", "--category", category) == 0
    assert listed(tmp_path / "out", "train") == {"ball": {"a": [1, 2]}, "cup": {"c": [1, 2]}}
    assert set(report(tmp_path / "out")["scenes"]) == {"ball/a", "ball/b", "cup/c", "cup/d"}
    # A category of another program, which has no list of its own, stays listed.
    (tmp_path / "out" / "cup" / "selected_seqs_train.json").unlink()
    assert preprocess(raw, tmp_path / "out", "--category", "ball") == 0
    assert set(listed(tmp_path / "out", "train")) == {"ball", "cup"}


def test_wrong_folders(tmp_path, capsys):
    assert preprocess(tmp_path / "none", tmp_path / "out") == 1
    assert "is not a folder" in capsys.readouterr().err
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=(1, 2))
    assert preprocess(raw, tmp_path / "out", "--category", "bal") == 1
    assert "no bal: expected <category>/frame_annotations.jgz; found ball" in (
        capsys.readouterr().err
    )
    assert preprocess(raw, tmp_path / "out", "--img_size", "8") == 1
    assert "--img_size must be at least 32" in capsys.readouterr().err


def test_work_can_go_to_other_processes(tmp_path, monkeypatch):
    """Scenes are pickled for them; the runner's own tests start them."""
    raw = write_co3d(tmp_path / "raw", {"a": WIDE, "b": WIDE}, numbers=(1, 2))
    passed = object_sequences.preprocess_scenes

    def pickled(items, convert, output_dir, **options):
        items, convert = pickle.loads(pickle.dumps((items, convert)))
        return passed(items, convert, output_dir, **options)

    monkeypatch.setattr(object_sequences, "preprocess_scenes", pickled)
    assert preprocess(raw, tmp_path / "out") == 0


def test_depth_is_the_bits_of_half_floats():
    stored = np.array([[1.5, np.inf, np.nan, -2, 0, 0.25]], np.float16).view(np.uint16)
    np.testing.assert_array_equal(decode_depth(stored, 2.0), [[3, 0, 0, 0, 0, 0.5]])


def test_cameras_by_hand():
    """A point on the axis of a camera that looks along the world's z, 2 to the left of it."""
    viewpoint = {
        "R": np.eye(3).tolist(),
        "T": [2.0, 0.0, 0.0],
        "focal_length": [2.0, 3.0],
        "principal_point": [0.5, -0.25],
        "intrinsics_format": "ndc_isotropic",
    }
    intrinsics, pose = pixel_camera(viewpoint, (400, 200))
    np.testing.assert_allclose(intrinsics, [[200, 0, 149.5], [0, 300, 124.5], [0, 0, 1]])
    # The camera's centre is at world x = -2 with x to the left: axes x and y change sign.
    np.testing.assert_allclose(pose[:3, 3], [-2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(pose[:3, :3], np.diag([-1, -1, 1]))
    viewpoint["intrinsics_format"] = "ndc_norm_image_bounds"
    intrinsics, _ = pixel_camera(viewpoint, (400, 200))
    np.testing.assert_allclose(intrinsics, [[400, 0, 99.5], [0, 300, 124.5], [0, 0, 1]])
    with pytest.raises(ValueError, match="intrinsics_format='pixels'"):
        pixel_camera({**viewpoint, "intrinsics_format": "pixels"}, (400, 200))


def test_a_larger_choice_holds_a_smaller_one():
    names = [f"s{n}" for n in range(30)]
    few, more = choose(names, 5, 1), choose(reversed(names), 12, 1)
    assert len(few) == 5 and len(more) == 12 and set(few) < set(more)
    assert choose(names, 0, 1) == sorted(names) and choose(names, 5, 2) != few
