"""WildRGB-D's release, whole and damaged, to the published layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from raw.wildrgbd import TALL, WIDE, write_wildrgbd

from datasets_preprocess.preprocess_wildrgbd import main


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """The contract's test draws the sheet; it takes longer than all the rest."""
    monkeypatch.setattr("datasets_preprocess.check.check_written", lambda *args: [])


def preprocess(raw: Path, out: Path, *more: str) -> int:
    return main(["--wildrgbd_dir", str(raw), "--output_dir", str(out), *more])


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_layout(tmp_path):
    raw = write_wildrgbd(
        tmp_path / "raw", {"scene_000": TALL, "scene_001": WIDE}, numbers=(0, 3), held_out=()
    )
    assert preprocess(raw, tmp_path / "out") == 0
    folder = tmp_path / "out" / "ball" / "scenes" / "scene_000"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert written == {
        "preprocess.json",
        *(f"rgb/0000{n}.jpg" for n in (0, 3)),
        *(f"{kind}/0000{n}.png" for kind in ("depth", "masks") for n in (0, 3)),
        *(f"metadata/0000{n}.npz" for n in (0, 3)),
    }
    depth = cv2.imread(str(folder / "depth" / "00003.png"), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16 and 1000 < np.median(depth) < 4000
    assert set(np.load(folder / "metadata" / "00003.npz")) == {"camera_pose", "camera_intrinsics"}
    scenes = {"scenes/scene_000": [0, 3], "scenes/scene_001": [0, 3]}
    assert read(tmp_path / "out" / "selected_seqs_train.json") == {"ball": scenes}
    assert read(tmp_path / "out" / "selected_seqs_test.json") == {"ball": {}}


def test_the_releases_split_and_one_by_names(tmp_path):
    scenes = {f"scene_{n:03d}": TALL for n in range(3)}
    raw = write_wildrgbd(tmp_path / "raw", scenes, numbers=(0, 1), held_out=["scene_001"])
    assert preprocess(raw, tmp_path / "out") == 0
    assert set(read(tmp_path / "out" / "selected_seqs_test.json")["ball"]) == {"scenes/scene_001"}
    (raw / "ball" / "camera_eval_list.json").unlink()
    assert preprocess(raw, tmp_path / "named") == 0
    train, test = (
        set(read(tmp_path / "named" / f"selected_seqs_{split}.json")["ball"])
        for split in ("train", "test")
    )
    assert train and test and train | test == {f"scenes/{name}" for name in scenes}
    assert not train & test


def test_damaged_sources_are_named(tmp_path, capsys):
    scenes = {f"scene_00{n}": WIDE for n in range(4)}
    raw = write_wildrgbd(tmp_path / "raw", scenes, numbers=range(5), held_out=())
    folder = raw / "ball" / "scenes"
    (folder / "scene_000" / "depth" / "00000.png").unlink()
    (folder / "scene_000" / "rgb" / "00001.png").write_bytes(b"\x89PNG")
    zero = np.zeros(WIDE[::-1], np.uint16)
    assert cv2.imwrite(str(folder / "scene_000" / "depth" / "00002.png"), zero)
    (folder / "scene_001" / "cam_poses.txt").unlink()
    (folder / "scene_002" / "metadata").write_text('{"w": 99, "h": 7, "K": [1,0,0,0,1,0,0,0,1]}')
    (folder / "scene_003" / "metadata").write_text("{}")
    assert preprocess(raw, tmp_path / "out") == 0
    told = read(tmp_path / "out" / "preprocess.json")
    assert told["scenes"]["ball/scenes/scene_000"]["skipped"] == {
        "missing file": 1,
        "cannot be read": 1,
        "depth on the object covers less than 1%": 1,
    }
    failed = told["failed"]
    assert set(failed) == {f"ball/scenes/scene_00{n}" for n in (1, 2, 3)}
    assert "cam_poses.txt" in failed["ball/scenes/scene_001"]
    assert "metadata's size 99x7" in failed["ball/scenes/scene_002"]
    assert "KeyError" in failed["ball/scenes/scene_003"]
    assert set(read(tmp_path / "out" / "selected_seqs_train.json")["ball"]) == {"scenes/scene_000"}
    assert "scene left out: ball/scenes/scene_001" in capsys.readouterr().out
