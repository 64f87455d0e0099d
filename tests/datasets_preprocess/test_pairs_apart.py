"""Pairs without an overlap: measured both ways, of one scene, the same every time."""

import numpy as np
import pytest

from datasets_preprocess.layout import (
    SceneData,
    depth_path,
    read_metadata,
    write_depth,
    write_metadata,
)
from datasets_preprocess.pairs_apart import NAME, main, write_pairs_apart

SIDE = 32
# Looking along +z, along -z, and along +z through a lens of a third of the field.
FORWARD, BACK, CLOSE, BLIND = range(4)


@pytest.fixture
def root(tmp_path):
    """Two scenes of four views between two walls, 2 m before and behind; the last has no depth."""
    intrinsics = np.array([[SIDE, 0, (SIDE - 1) / 2], [0, SIDE, (SIDE - 1) / 2], [0, 0, 1.0]])
    tele = intrinsics * [[3, 1, 1], [1, 3, 1], [1, 1, 1]]
    turned = np.diag([-1.0, 1, -1, 1])
    names = ["forward", "back", "close", "blind"]
    scenes = []
    for name in ("hall", "yard"):
        depths = [np.full((SIDE, SIDE), 2.0)] * 3 + [np.zeros((SIDE, SIDE))]
        for basename, depth in zip(names, depths, strict=True):
            path = depth_path(tmp_path, name, basename)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_depth(path, depth)
        poses = np.stack([np.eye(4), turned, np.eye(4), np.eye(4)])
        scenes.append(
            SceneData(
                name,
                names,
                np.stack([intrinsics, intrinsics, tele, intrinsics]),
                poses,
                np.array([[0, 2, 0.3]]),
            )
        )
    write_metadata(tmp_path, scenes)
    return tmp_path


def test_pairs_show_nothing_in_common_and_lie_in_one_scene(root):
    assert write_pairs_apart(root) == root / NAME
    stored = dict(np.load(root / NAME))
    assert stored["pairs"].tolist() == [[0, 1, 0], [1, 2, 0], [4, 5, 0], [5, 6, 0]]
    untouched = read_metadata(root)
    for key in ("scenes", "images", "sceneids", "intrinsics", "trajectories"):
        np.testing.assert_array_equal(stored[key], getattr(untouched, key))


def test_a_close_up_within_a_wide_view_overlaps_it(root):
    # Of the wide view it is a ninth; of itself it is all.
    pairs = np.load(write_pairs_apart(root, max_overlap=0.5))["pairs"]
    assert [FORWARD, CLOSE] not in pairs[:, :2].tolist()


def test_images_without_depth_are_in_no_pair(root):
    pairs = np.load(write_pairs_apart(root, max_overlap=0.99))["pairs"][:, :2] % 4
    assert BLIND not in pairs and FORWARD in pairs


def test_a_limit_takes_a_subset_that_the_seed_decides(root):
    chosen = [np.load(write_pairs_apart(root, 1, seed=seed))["pairs"] for seed in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert all(len(pairs) == 2 for pairs in chosen)
    assert len({pairs.tobytes() for pairs in chosen}) > 1


def test_says_what_is_wrong(root, tmp_path, capsys):
    with pytest.raises(ValueError, match="max_pairs"):
        write_pairs_apart(root, 0)
    with pytest.raises(SystemExit):
        main(["--root", str(tmp_path / "nowhere")])
    assert "not in the processed layout" in capsys.readouterr().err
    alone = SceneData("one", ["a", "b"], np.stack([np.eye(3)] * 2), np.stack([np.eye(4)] * 2), [])
    for basename in alone.images:
        path = depth_path(tmp_path / "same", "one", basename)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_depth(path, np.ones((8, 8)))
    write_metadata(tmp_path / "same", [alone])
    with pytest.raises(ValueError, match="no two images"):
        write_pairs_apart(tmp_path / "same")
