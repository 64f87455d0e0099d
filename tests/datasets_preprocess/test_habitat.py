"""Habitat: keys and pairs, splits, views that are not whole, rendering from lists of cameras."""

import errno
import json

import numpy as np
import pytest
from raw.habitat import CAMERA, SIZE, camera, central_first, write_key, write_views
from world import World

import datasets_preprocess.preprocess_habitat as module
from datasets_preprocess.preprocess_habitat import ViewList, find_views, main, render_list
from datasets_preprocess.scenes import SceneError, preprocess_scenes
from dust3r.datasets.habitat import Habitat, read_camera_params


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_views(tmp_path_factory.mktemp("habitat"))
    assert main(["--output_dir", str(root)]) == 0
    return root


def test_every_pair_has_the_central_view_first(root):
    dataset = Habitat(split="all", ROOT=root, resolution=64)
    assert len(dataset) == 8
    names = [[path.name for path in dataset._get_paths(index)] for index in range(4)]
    key = names[0][0].rpartition("_")[0]
    assert names == [[f"{key}_1.jpeg", f"{key}_{view}.jpeg"] for view in (2, 3, 4, 5)]


def test_published_command_syntax_and_splits(root):
    train = Habitat(1, split="train", ROOT=root, resolution=64)
    held_out = Habitat(split="test", ROOT=root, resolution=64)
    assert len(train) == len(held_out) == 4
    assert train.keys != held_out.keys
    with pytest.raises(FileNotFoundError, match="Habitat_1000000_scenes_train.txt"):
        Habitat(1_000_000, split="train", ROOT=root, resolution=64)


def test_views_may_count_from_zero(tmp_path):
    write_key(tmp_path / "train" / "a", "07", central_first(World().poses(5)), first=0)
    assert main(["--output_dir", str(tmp_path)]) == 0
    dataset = Habitat(split="train", ROOT=tmp_path, resolution=64, seed=0)
    assert [path.name for path in dataset._get_paths(0)] == ["07_0.jpeg", "07_1.jpeg"]
    assert dataset[3][1]["label"] == "train/a/07_4"


def test_views_that_are_not_whole_are_named(tmp_path, capsys):
    poses = central_first(World().poses(5))
    for key in ("good", "few", "noimage", "empty", "camera"):
        write_key(tmp_path / "val" / "a", key, poses)
    folder = tmp_path / "val" / "a"
    (folder / "few_4_camera_params.json").unlink()
    (folder / "noimage_2.jpeg").unlink()
    (folder / "empty_2_depth.exr").write_bytes(b"")
    (folder / "camera_3_camera_params.json").write_text('{"camera_intrinsics": [1]}')
    found, report = find_views(tmp_path)
    assert found == {"val/a": ["val/a/good"]}
    assert report.skipped == {
        "not 5 views": 1,
        "missing or empty image or depth map": 2,
        "damaged camera file": 1,
    }
    assert main(["--output_dir", str(tmp_path)]) == 0
    assert "val/a/few" in capsys.readouterr().out
    assert (tmp_path / "Habitat_1_scenes_val.txt").read_text() == "val/a/good\n"
    with pytest.raises(ValueError, match="camera_3_camera_params.json"):
        read_camera_params(folder / "camera_3_camera_params.json")


class WorldRenderer:
    """In the place of habitat-sim."""

    def __init__(self, scene, size, focal, config=None):
        self.size = size
        assert scene.is_file() and focal == CAMERA[0, 0]

    def render(self, pose):
        rgb, depth = World().render(pose, CAMERA, self.size)
        return rgb, depth * (pose[2, 3] > 0)

    def close(self):
        pass


def write_list(root, **replaced):
    poses = central_first(World().poses(5))
    buried = [pose - np.diag([0, 0, 0, 0]) for pose in poses]
    for pose in buried:
        pose[2, 3] = -1
    stored = {
        "scene": "hm3d/a.glb",
        "resolution": SIZE,
        "multiviews": {
            "000": [camera(pose) for pose in poses],
            "001": [camera(pose) for pose in poses[:3]],
            "002": [camera(pose) for pose in buried],
        },
    } | replaced
    (root / "lists" / "a").mkdir(parents=True)
    (root / "scenes" / "hm3d").mkdir(parents=True)
    (root / "scenes" / "hm3d" / "a.glb").write_bytes(b"glTF")
    path = root / "lists" / "a" / "metadata.json"
    path.write_text(json.dumps(stored))
    return ViewList("a", path, root / "scenes")


def test_rendered_views_are_read_back(tmp_path):
    item, out = write_list(tmp_path), tmp_path / "out" / "a"
    out.mkdir(parents=True)
    report = render_list(item, out, renderer=WorldRenderer)
    assert report.frames == 5 and report.pairs == 4
    assert report.examples == {"not 5 cameras": "001", "a view with less than 20% of depth": "002"}
    assert main(["--output_dir", str(tmp_path / "out")]) == 0
    dataset = Habitat(split="all", ROOT=tmp_path / "out", resolution=SIZE[0], seed=0)
    assert len(dataset) == 4
    view = dataset[0][0]
    pose, intrinsics = (view[key].astype(float) for key in ("camera_pose", "camera_intrinsics"))
    height, width = view["depthmap"].shape
    _, depth = World().render(pose, intrinsics, (width, height))
    assert np.median(np.abs(view["depthmap"] - depth) / depth) < 1e-5


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"scene": "gone.glb"}, "gone.glb"),
        ({"multiviews": {}}, "lists no camera"),
        ({"resolution": [640, 480]}, "principal point in the middle"),
    ],
)
def test_lists_that_cannot_be_rendered(tmp_path, replaced, message):
    with pytest.raises(SceneError, match=message):
        render_list(write_list(tmp_path, **replaced), tmp_path, renderer=WorldRenderer)


def test_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_exr_depth", full)
    convert = module.partial(render_list, renderer=WorldRenderer)
    with pytest.raises(OSError, match="disk is full"):
        preprocess_scenes(
            [write_list(tmp_path)], convert, tmp_path / "out", name=lambda item: item.name
        )
    assert not (tmp_path / "out" / "a").exists()


def test_without_habitat_sim_the_message_says_what_to_do(tmp_path, monkeypatch, capsys):
    write_list(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = ["--metadata_dir", str(tmp_path / "lists"), "--scenes_dir", str(tmp_path / "scenes")]
    assert main(["--output_dir", str(tmp_path / "out"), *options]) == 1
    assert "conda install habitat-sim" in capsys.readouterr().err
    assert main(["--output_dir", str(tmp_path / "out"), *options[:2]]) == 1
    assert "--scenes_dir" in capsys.readouterr().err
