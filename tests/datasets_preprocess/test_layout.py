"""The processed layout: what is written is what DESIGN 2 says, whole or not at all."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from datasets_preprocess.contact_sheet import Frame, FramePair, carried_over, contact_sheet
from datasets_preprocess.layout import (
    METADATA_NAME,
    SceneData,
    complete_scenes,
    depth_path,
    image_path,
    load_scene,
    new_scene,
    read_depth,
    read_metadata,
    rebuild_metadata,
    save_scene,
    write_depth,
    write_image,
    write_metadata,
)


def scene(name: str, count: int = 3, pairs=((0, 1, 0.5), (1, 2, 0.25))) -> SceneData:
    intrinsics = np.tile(np.diag([100.0, 100.0, 1.0]), (count, 1, 1))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = np.arange(count)
    return SceneData(name, [f"{name}-{k}" for k in range(count)], intrinsics, poses, pairs)


def test_metadata_has_the_arrays_of_the_processed_layout(tmp_path):
    path = write_metadata(tmp_path, [scene("kitchen"), scene("attic", 4)])
    assert path == tmp_path / METADATA_NAME
    with np.load(path, allow_pickle=False) as stored:
        assert set(stored) == {
            "scenes",
            "sceneids",
            "images",
            "intrinsics",
            "trajectories",
            "pairs",
        }
        assert stored["scenes"].tolist() == ["kitchen", "attic"]
        assert stored["sceneids"].tolist() == [0] * 3 + [1] * 4
        assert np.issubdtype(stored["sceneids"].dtype, np.integer)
        assert stored["images"].tolist()[2:4] == ["kitchen-2", "attic-0"]
        assert stored["images"].dtype.kind == stored["scenes"].dtype.kind == "U"
        assert stored["intrinsics"].dtype == stored["trajectories"].dtype == np.float32
        assert stored["intrinsics"].shape == (7, 3, 3)
        assert stored["trajectories"].shape == (7, 4, 4)
        assert stored["pairs"].dtype == np.float64
        expected = [[0, 1, 0.5], [1, 2, 0.25], [3, 4, 0.5], [4, 5, 0.25]]
        assert stored["pairs"].tolist() == expected


def test_read_metadata_gives_back_what_was_written(tmp_path):
    write_metadata(tmp_path, [scene("kitchen")])
    index = read_metadata(tmp_path)
    assert index.images.tolist() == ["kitchen-0", "kitchen-1", "kitchen-2"]
    np.testing.assert_array_equal(index.trajectories[:, 0, 3], [0, 1, 2])


def test_missing_or_broken_metadata_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="not in the processed layout"):
        read_metadata(tmp_path)
    path = write_metadata(tmp_path, [scene("kitchen")])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or no .npz file"):
        read_metadata(tmp_path)
    np.savez(path, images=np.array(["a"]))
    with pytest.raises(ValueError, match="lacks scenes, sceneids, intrinsics.*it has images"):
        read_metadata(tmp_path)


def test_depth_is_millimetres_and_what_does_not_fit_is_none(tmp_path):
    depth = np.array([[1.2344, 1.2346, 0.0004], [65.535, 65.536, 1e9], [np.nan, -np.inf, -1.0]])
    path = depth_path(tmp_path, "room", "000001")
    write_depth(path, depth)
    assert path == tmp_path / "room" / "depth" / "000001.png"
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[1234, 1235, 0], [65535, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(read_depth(path)[0], [1.234, 1.235, 0], rtol=1e-6)


def test_depth_of_another_unit_reaches_farther(tmp_path):
    path = depth_path(tmp_path, "street", "000001")
    write_depth(path, np.array([[81.25, 255.9, 256.5]]), 256)
    np.testing.assert_allclose(read_depth(path, 256), [[81.25, 255.8984, 0]], rtol=1e-6)
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[0, 0] == 81.25 * 256


def test_units_and_splits_are_written_where_they_say_something(tmp_path):
    street = replace(scene("street"), depth_unit=256, split="val")
    with new_scene(tmp_path, "street") as folder:
        save_scene(folder, street)
    with new_scene(tmp_path, "kitchen") as folder:
        save_scene(folder, scene("kitchen"))
    assert load_scene(tmp_path / "street").depth_unit == 256
    assert load_scene(tmp_path / "street").split == "val"
    index = rebuild_metadata(tmp_path)
    assert index.scenes.tolist() == ["kitchen", "street"]
    assert index.depth_unit.tolist() == [1000, 256] and index.splits.tolist() == ["", "val"]
    with np.load(tmp_path / "kitchen" / "scene.npz") as stored:
        assert set(stored) == {"images", "intrinsics", "poses", "pairs"}
    write_metadata(tmp_path, [scene("kitchen")])
    index = read_metadata(tmp_path)
    assert index.depth_unit.tolist() == [1000] and index.splits.tolist() == [""]
    with pytest.raises(ValueError, match="depth_unit is steps a metre, above 0; got 0"):
        replace(street, depth_unit=0)
    with pytest.raises(ValueError, match="must be train, val, test or empty, got 'dev'"):
        replace(street, split="dev")


def test_images_keep_the_order_of_their_channels(tmp_path):
    path = image_path(tmp_path, "room", "000001")
    write_image(path, np.full((16, 16, 3), (250, 120, 10), np.uint8))
    assert path == tmp_path / "room" / "images" / "000001.jpg"
    blue, green, red = cv2.imread(str(path))[8, 8].astype(int)
    assert abs(red - 250) < 4 and abs(green - 120) < 4 and abs(blue - 10) < 4
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8, got \(4, 4\) float64"):
        write_image(path, np.zeros((4, 4)))


def test_read_depth_refuses_other_images(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="16-bit"):
        read_depth(tmp_path / "grey.png")


def test_a_scene_is_there_only_once_it_is_whole(tmp_path):
    data = scene("kitchen")
    with new_scene(tmp_path, "kitchen") as folder:
        write_depth(depth_path(folder.parent, folder.name, "kitchen-0"), np.ones((2, 2)))
        save_scene(folder, data)
        assert complete_scenes(tmp_path) == []
    assert complete_scenes(tmp_path) == ["kitchen"]
    assert depth_path(tmp_path, "kitchen", "kitchen-0").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["kitchen"]
    back = load_scene(tmp_path / "kitchen")
    assert back.name == "kitchen" and back.images == data.images
    np.testing.assert_array_equal(back.poses, data.poses)
    np.testing.assert_array_equal(back.pairs, data.pairs)


def test_a_failure_leaves_the_scene_that_was_there(tmp_path):
    with new_scene(tmp_path, "kitchen") as folder:
        save_scene(folder, scene("kitchen", 3))
    with pytest.raises(OSError, match="disk full"), new_scene(tmp_path, "kitchen") as folder:
        save_scene(folder, scene("kitchen", 5))
        raise OSError("disk full")
    assert len(load_scene(tmp_path / "kitchen").images) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["kitchen"]


def test_a_scene_is_replaced_and_leftovers_of_a_kill_are_cleared(tmp_path):
    with new_scene(tmp_path, "kitchen") as folder:
        save_scene(folder, scene("kitchen", 3))
    (tmp_path / ".kitchen.tmp").mkdir()
    (tmp_path / ".kitchen.tmp" / "half.jpg").touch()
    with new_scene(tmp_path, "kitchen") as folder:
        save_scene(folder, scene("kitchen", 5))
    assert len(load_scene(tmp_path / "kitchen").images) == 5
    assert [path.name for path in (tmp_path / "kitchen").iterdir()] == ["scene.npz"]
    assert [path.name for path in tmp_path.iterdir()] == ["kitchen"]


def test_a_scene_without_its_metadata_is_not_accepted(tmp_path):
    with (
        pytest.raises(RuntimeError, match="call save_scene last"),
        new_scene(tmp_path, "kitchen"),
    ):
        pass
    assert complete_scenes(tmp_path) == []


def test_the_index_is_rebuilt_from_all_scenes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete scene"):
        rebuild_metadata(tmp_path)
    for name in ("kitchen", "attic"):
        with new_scene(tmp_path, name) as folder:
            save_scene(folder, scene(name))
        rebuild_metadata(tmp_path)
    index = read_metadata(tmp_path)
    assert index.scenes.tolist() == ["attic", "kitchen"]
    assert index.pairs[:, 0].tolist() == [0, 1, 3, 4]


def test_scenes_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frame indices 0 to 2"):
        scene("kitchen", pairs=[(0, 3, 0.5)])
    with pytest.raises(ValueError, match="frame 1 is paired with itself"):
        scene("kitchen", pairs=[(1, 1, 1.0)])
    with pytest.raises(ValueError, match="a plain file name"):
        scene("../kitchen")
    good = scene("kitchen")
    with pytest.raises(ValueError, match=r"poses of 3 images must be \(3, 4, 4\), got \(2, 4, 4\)"):
        SceneData("kitchen", good.images, good.intrinsics, good.poses[:2], good.pairs)
    with pytest.raises(ValueError, match="images named twice: a"):
        SceneData("kitchen", ["a", "a", "b"], good.intrinsics, good.poses, good.pairs)
    good.poses[1] = -np.inf
    with pytest.raises(ValueError, match="1 image.s. not finite, first kitchen-1"):
        SceneData("kitchen", good.images, good.intrinsics, good.poses, good.pairs)
    with pytest.raises(ValueError, match="scene names used twice: attic"):
        write_metadata(tmp_path, [scene("attic"), scene("attic")])
    with pytest.raises(ValueError, match="no scene to write"):
        write_metadata(tmp_path, [])


def frame(name: str, x: float = 0.0, fill: int = 100) -> Frame:
    """A view of a wall 2 m away whose colour grows from left to right in the world."""
    intrinsics = np.array([[64.0, 0, 31.5], [0, 64.0, 23.5], [0, 0, 1]])
    pose = np.eye(4)
    pose[0, 3] = x
    world_x = (np.arange(64) - 31.5) / 64 * 2 + x
    rgb = np.full((48, 64, 3), fill, np.uint8)
    rgb[..., 0] = np.clip(128 + 40 * world_x, 0, 255).round()
    return Frame(name, rgb, np.full((48, 64), 2.0), intrinsics, pose)


def test_carried_over_colours_are_those_of_the_same_surface():
    first, second = frame("a"), frame("b", x=0.5)
    colours, seen = carried_over(first, second)
    assert seen[:, 16:].all() and not seen[:, :15].any()
    difference = colours[seen].astype(int) - first.rgb[seen]
    assert abs(difference).max() <= 1


def test_contact_sheet_is_a_picture_that_grows_with_its_content(tmp_path):
    first, second = frame("a"), frame("b", x=0.5)
    contact_sheet(tmp_path / "one.png", "wall", [first, second])
    contact_sheet(
        tmp_path / "two.png",
        "wall",
        [first] * 7,
        [FramePair(first, second, 0.5)],
        caption="7 views",
    )
    small, large = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("one", "two"))
    assert large.shape[0] > small.shape[0] and large.shape[1] > small.shape[1]
    assert small.std() > 10
    assert len(list(tmp_path.iterdir())) == 2


def test_contact_sheet_draws_frames_without_depth_or_camera(tmp_path):
    bare = Frame("a", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)))
    contact_sheet(tmp_path / "sheet.png", "nothing", [bare], [FramePair(bare, bare, 0.0)])
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


def test_contact_sheet_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet(tmp_path / "sheet.png", "nothing", [])
    uneven = Frame("a", np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"frame a has an image of \(8, 8\) and depth of \(4, 4\)"):
        contact_sheet(tmp_path / "sheet.png", "nothing", [uneven])
