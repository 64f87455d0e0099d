"""A data set's report names the convention that is wrong, and what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from world import World

from datasets_preprocess.layout import SceneData, depth_path, image_path, write_depth, write_image
from datasets_preprocess.layout import write_metadata as index_scenes
from dust3r.datasets.inspect import inspect, main

SIZE = (96, 64)
INTRINSICS = np.array([[80.0, 0, 47.5], [0, 80, 31.5], [0, 0, 1]])
OPENGL = np.diag([1.0, -1, -1, 1])


def write_room(root: Path, change_pose=lambda pose: pose, depth_factor=1.0) -> Path:
    """A processed data set of one room, with poses and depths as somebody might get them wrong."""
    world = World(seed=0)
    poses = world.poses(6)
    for number, pose in enumerate(poses):
        colours, depth = world.render(pose, INTRINSICS, SIZE)
        write_image(image_path(root, "room", f"{number}"), colours)
        write_depth(depth_path(root, "room", f"{number}"), depth_factor * depth)
    pairs = [(n, n + 1, 0.5) for n in range(5)]
    wrong = np.stack([change_pose(pose) for pose in poses])
    names = [f"{n}" for n in range(6)]
    index_scenes(root, [SceneData("room", names, np.stack([INTRINSICS] * 6), wrong, pairs)])
    return root


def spec(root: Path, options: str = "resolution=(96, 64)") -> str:
    return f"ScanNetpp('all', ROOT='{root}', {options})"


def test_right_data_has_nothing_to_warn_of(tmp_path, capsys):
    root = write_room(tmp_path / "right")
    assert main([spec(root), "--output_dir", str(tmp_path / "page")]) == 0
    told = capsys.readouterr().out
    assert "5 pairs an epoch at 96x64" in told and "warning" not in told
    page = (tmp_path / "page" / "inspect.html").read_text()
    assert page.count("data:image/png") == 1 + 5 and "http" not in page


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"change_pose": np.linalg.inv}, "inverting the poses"),
        ({"change_pose": lambda pose: pose @ OPENGL}, "axes of OpenGL"),
        ({"depth_factor": 1e-3}, "depth 1000 times as large"),
    ],
)
def test_the_convention_that_would_be_right_is_named(tmp_path, capsys, wrong, said):
    root = write_room(tmp_path / "wrong", **wrong)
    assert main([spec(root), "--output_dir", str(tmp_path / "page")]) == 2
    assert f"{said}" in capsys.readouterr().out.split("warning:")[1].split("would explain")[0]
    assert said in (tmp_path / "page" / "inspect.html").read_text()


def test_mixtures_are_reported_by_their_parts(tmp_path):
    right, small = write_room(tmp_path / "right"), write_room(tmp_path / "small", depth_factor=1e-3)
    both = f"40 @ {spec(right)} + 20 @ {spec(small)}"
    found = inspect(both, num_pairs=12, num_shown=3)
    assert {name: len(part.overlaps) for name, part in found.parts.items()} == {
        "right": 8,
        "small": 4,
    }
    assert len(found.shown) == 3 and found.samples == 60
    assert found.parts["right"].median_depth == pytest.approx(
        1000 * found.parts["small"].median_depth, rel=0.2
    )


def test_upright_views_are_shown_upright(tmp_path):
    root = write_room(tmp_path / "right")
    found = inspect(spec(root, "resolution=[(64, 48), (64, 64)]"), num_pairs=5)
    assert set(found.parts["right"].sizes) == {(64, 48), (64, 64)}
    for pair in found.shown:
        assert pair.first.rgb.shape[:2] == pair.first.depth.shape


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    root = write_room(tmp_path / "right")
    image_path(root, "room", "0").unlink()
    assert main([spec(root), "--output_dir", str(tmp_path / "page")]) == 2
    told = capsys.readouterr().out
    assert "1 of 5 sampled pairs cannot be read" in told and "0.jpg" in told
    for path in (root / "room" / "images").iterdir():
        path.unlink()
    assert main([spec(root), "--output_dir", str(tmp_path / "page")]) == 2
    assert "5 of 5 sampled pairs cannot be read" in capsys.readouterr().out


def test_wrong_specifications_are_told(tmp_path, capsys):
    assert main(["ScanNetp('all', ROOT='nowhere', resolution=64)"]) == 1
    assert "ScanNetpp" in capsys.readouterr().err
    assert main([spec(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["ColorJitter"]) == 1
    assert "data set" in capsys.readouterr().err
