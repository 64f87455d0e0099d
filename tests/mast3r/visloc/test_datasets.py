"""Small trees of every layout, whose points must lie where their images show them."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import scipy.io

from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv
from mast3r.visloc.datasets import READERS, read_scenes
from mast3r.visloc.datasets.nvm import Nvm
from mast3r.visloc.scene import LocalisationScene, MapImage
from tests.mast3r.visloc.dataset_trees import (
    INTRINSICS,
    RADIAL,
    SIZE,
    WRITERS,
    numbers,
    write_image,
    write_text,
)

OPTIONS = {"colmap": {"queries": "queries.txt"}}
TOLERANCE = 1e-3  # pixels


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str], Path]:
    def write(layout: str) -> Path:
        root = tmp_path / layout
        root.mkdir()
        WRITERS[layout](root, np.random.default_rng(0))
        return root

    return write


def read(layout: str, root: Path, **options: object) -> LocalisationScene:
    return read_scenes(layout, root, **(OPTIONS.get(layout, {}) | options))[0]


def reprojection(image: MapImage, pixels: np.ndarray, points: np.ndarray) -> float:
    """Largest distance in pixels between where points are seen and where they project."""
    return np.abs(image.camera.project(geotrf(inv(image.pose), points)) - pixels).max()


def test_every_layout_has_its_reader_and_a_tree_here() -> None:
    assert set(READERS) == set(WRITERS)


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_names_are_unique_and_their_files_exist(layout, tree) -> None:
    scene = read(layout, tree(layout))
    for items in (scene.images, scene.queries):
        assert len({item.name for item in items}) == len(items) > 0
        assert all(item.path.is_file() for item in items)
    assert not {image.name for image in scene.images} & {query.name for query in scene.queries}
    for image in scene.images:
        assert [image.depth, image.landmarks, image.points].count(None) == 2
        assert image.pose.dtype == np.float64


@pytest.mark.parametrize("layout", ["aachen", "cambridge", "colmap"])
def test_landmarks_project_to_their_pixels(layout, tree) -> None:
    for image in read(layout, tree(layout)).images:
        landmarks = image.landmarks()
        assert landmarks.pixels.shape == (7, 2) and landmarks.points.shape == (7, 3)
        assert reprojection(image, landmarks.pixels, landmarks.points) < TOLERANCE


@pytest.mark.parametrize("layout", ["generic", "seven_scenes"])
def test_depth_is_in_metres_of_the_pinhole_camera(layout, tree) -> None:
    for image in read(layout, tree(layout)).images:
        depth = image.depth()
        assert depth.dtype == np.float32 and depth.shape == SIZE[::-1] and depth.max() < 9
        points = depthmap_to_pts3d(depth.astype(float), INTRINSICS, image.pose)
        pixels = np.stack(np.meshgrid(*map(np.arange, SIZE)), -1)
        seen = depth > 0
        assert reprojection(image, pixels[seen], points[seen]) < TOLERANCE
        assert np.allclose(image.camera.rays(pixels[seen]) * depth[seen][:, None],
                           geotrf(inv(image.pose), points[seen]), atol=1e-6)  # fmt: skip


def test_seven_scenes_takes_splits_no_depth_and_sixteen_bits_for_none(tree) -> None:
    root = tree("seven_scenes")
    scene = read("seven_scenes", root, map_every=2)
    names = [image.name for image in scene.images]
    assert names == [f"seq-0{s}/frame-00000{f}.color.png" for s in (1, 3) for f in (0, 2)]
    assert {query.path.parent.name for query in scene.queries} == {"seq-02"}
    depth = scene.images[0].depth()
    assert depth[0, 0] == depth[0, 1] == 0
    stored = cv2.imread(str(root / "seq-01/frame-000000.depth.png"), cv2.IMREAD_UNCHANGED)
    assert np.allclose(depth[1:], stored[1:] / 1000)
    pose = np.loadtxt(root / "seq-02/frame-000001.pose.txt")
    assert np.array_equal(scene.queries[1].pose, pose)


def test_seven_scenes_reads_several_scenes_and_bare_folders(tree, tmp_path) -> None:
    root = tree("seven_scenes")
    assert [scene.name for scene in read_scenes("seven_scenes", tmp_path)] == ["seven_scenes"]
    bare = read("seven_scenes", root, map_folders=["seq-01", "seq-02"], query_folders="seq-02")
    assert {image.path.parent.name for image in bare.images} == {"seq-01"}
    given = read("seven_scenes", root, intrinsics=[40, 41, 30, 20])
    assert np.allclose(given.queries[0].camera.model.params, [40, 41, 30.5, 20.5])


def test_seven_scenes_leaves_out_lost_frames_and_reads_queries_without_pose(tree, caplog) -> None:
    root = tree("seven_scenes")
    write_text(root / "seq-01/frame-000001.pose.txt", *["nan -inf 0 1"] * 4)
    (root / "seq-02/frame-000002.pose.txt").unlink()
    with caplog.at_level(logging.WARNING):
        scene = read("seven_scenes", root)
    assert "seq-01/frame-000001" in caplog.text and len(scene.images) == 5
    assert [query.pose is None for query in scene.queries] == [False, False, True]


def test_seven_scenes_states_its_own_camera_only_for_its_own_size(tree) -> None:
    root = tree("seven_scenes")
    (root / "camera-intrinsics.txt").unlink()
    with pytest.raises(FileNotFoundError, match="camera-intrinsics.txt.*64x48"):
        read("seven_scenes", root)
    write_image(root / "seq-02/frame-000000.color.png", (640, 480))
    for folder in ("seq-01", "seq-03"):
        write_text(root / folder / "camera-intrinsics.txt", *map(numbers, INTRINSICS))
    camera = read("seven_scenes", root).queries[0].camera.model
    assert np.allclose(camera.params, [585, 585, 320.5, 240.5])


def test_generic_holds_out_or_takes_scenes_and_lists(tree, tmp_path) -> None:
    root = tree("generic")
    kitchen, hall = read_scenes("generic", root, hold_out=3)
    assert [query.name for query in hall.queries] == ["hall/frame_0", "hall/frame_3"]
    assert len(kitchen.images) == 3
    write_text(tmp_path / "list.txt", "kitchen/frame_4", "hall/frame_2")
    scene = read("generic", root, map_images=["kitchen"], query_images=tmp_path / "list.txt")
    assert len(scene.images) == 4 and len(scene.queries) == 2
    poses = np.load(root / "all_metadata.npz")["trajectories"]
    assert np.array_equal(scene.queries[1].pose, poses[7])
    write_text(tmp_path / "list.txt", "kitchen/frame_9")
    with pytest.raises(ValueError, match="list.txt, line 1: no such image"):
        read("generic", root, map_images="hall", query_images=str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="no scene 'attic'; it has kitchen, hall"):
        read("generic", root, scenes="attic")
    for option, value in {"hold_out": 1, "map_every": 0, "query_every": 1.5}.items():
        with pytest.raises(ValueError, match=f"{option} must be a whole number"):
            read("generic", root, **{option: value})


def test_cambridge_queries_have_pose_and_distorted_camera(tree, caplog) -> None:
    root = tree("cambridge")
    scene = read("cambridge", root)
    assert [query.name for query in scene.queries] == ["seq1/frame00004.png", "seq2/frame00005.png"]
    model = Nvm(root / "reconstruction.nvm")
    for query in scene.queries:
        stated = model.cameras[query.name.removesuffix(".png")]
        assert np.allclose(query.pose, stated.pose, atol=1e-12)
        landmarks = model.landmarks(stated, SIZE)
        seen = query.camera.project(geotrf(inv(query.pose), landmarks.points))
        assert np.abs(seen - landmarks.pixels).max() < TOLERANCE
        rays = query.camera.rays(landmarks.pixels)
        assert np.abs(query.camera.project(rays) - landmarks.pixels).max() < TOLERANCE


def test_cambridge_warns_of_images_the_model_lacks(tree, caplog) -> None:
    root = tree("cambridge")
    path = root / "reconstruction.nvm"
    path.write_text(path.read_text().replace("frame00000", "x").replace("frame00005", "y"))
    scene = read("cambridge", root)
    assert len(scene.images) == 3 and scene.queries[1].camera is None
    assert "lacks 2 images: seq1/frame00000.png, seq2/frame00005.png" in caplog.text


def test_aachen_has_groups_pairs_and_names_for_the_server(tree) -> None:
    root = tree("aachen")
    day, night = "query/day/milestone/a.jpg", "query/night/nexus5x/b.jpg"
    lines = f"{day} db/10.jpg", f"{day} db/1.jpg", f"{night} db/2.jpg", f"{night} db/77.jpg"
    write_text(root / "pairs.txt", *lines)
    scene = read("aachen", root, pairs="pairs.txt")
    assert [(query.name, query.group, query.pose) for query in scene.queries] == [
        (day, "day", None),
        (night, "night", None),
    ]
    assert scene.pairs == {day: ["db/10.jpg", "db/1.jpg"], night: ["db/2.jpg"]}
    assert scene.result_name == {day: "a.jpg", night: "b.jpg"}
    assert list(scene.queries[0].camera.model.params) == [50, 31.5, 24.5, -0.05]
    assert len(read("aachen", root, map_every=2).images) == 2


def test_colmap_queries_come_from_a_list_a_folder_or_the_truth(tree) -> None:
    root = tree("colmap")
    scene = read("colmap", root)
    assert len(scene.images) == 4 and scene.queries[0].pose is None
    truth = read("colmap", root, queries=None, truth="truth")
    assert [query.name for query in truth.queries] == ["left/4.jpg"]
    stored = pycolmap.Reconstruction(root / "truth").find_image_with_name("left/4.jpg")
    world_to_camera = np.vstack([stored.cam_from_world().matrix(), [0, 0, 0, 1]])
    assert np.allclose(truth.queries[0].pose @ world_to_camera, np.eye(4))
    for name in ("near/a.jpg", "far.png"):
        write_image(root / "asked" / name)
    asked = read("colmap", root, queries="asked", query_camera=RADIAL)
    assert [query.name for query in asked.queries] == ["far.png", "near/a.jpg"]
    assert asked.queries[0].camera.size == SIZE
    assert read("colmap", root, queries="asked").queries[0].camera is None


def test_colmap_map_leaves_out_what_is_a_query(tree) -> None:
    root = tree("colmap")
    write_text(root / "queries.txt", "left/3.jpg", "left/1.jpg")
    scene = read("colmap", root, truth="sparse/0")
    assert [image.name for image in scene.images] == ["left/0.jpg", "left/2.jpg"]
    assert all(query.camera and query.pose is not None for query in scene.queries)


def test_colmap_refuses_an_image_that_is_not_of_its_cameras_size(tree) -> None:
    root = tree("colmap")
    write_image(root / "images/left/2.jpg", orientation=8)
    with pytest.raises(ValueError, match="2.jpg has 48x64 pixels.*64x48.*EXIF"):
        read("colmap", root)


def test_inloc_points_are_in_the_building(tree) -> None:
    root = tree("inloc")
    scene = read("inloc", root)
    image = scene.images[0]
    world = image.points()
    assert world.dtype == np.float32 and world.shape == (*SIZE[::-1], 3)
    assert np.isnan(world[0, :2]).all() and np.isfinite(world[0, 2:]).all()
    text = (root / "database/alignments/DUC1/transformations/DUC_trans_001.txt").read_text()
    last = np.array(text.split("after")[1].split(), float).reshape(4, 4)
    local = np.arange(1.0, 1 + SIZE[0] * SIZE[1] * 3).reshape(*SIZE[::-1], 3)
    assert np.allclose(world[1:], geotrf(last, local)[1:], rtol=1e-6, atol=1e-3)
    assert np.array_equal(image.pose, last) and image.camera is None


def test_inloc_queries_are_upright_with_the_phones_focal_length(tree) -> None:
    scene = read("inloc", tree("inloc"), buildings="DUC1")
    for query in scene.queries:
        assert query.camera.size == SIZE
        assert np.allclose(query.camera.model.params, [64 * 28 / 36, 32, 24])
    assert scene.result_name["query/iphone7/IMG_0731.JPG"] == "IMG_0731.JPG"


def edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def written(*lines: str) -> Callable[[Path], None]:
    return lambda path: write_text(path, *lines)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 6 // 10)


HEAD = ("a", "b", "c")
POSE = "0 0 0 1 0 0 0"
DAMAGES = [
    ("seven_scenes", "TrainSplit.txt", written("sequence1", "../x"), "TrainSplit.txt, line 2"),
    ("seven_scenes", "seq-01/frame-000000.pose.txt", written("1 0 0"), "4x4 numbers, got 3"),
    ("seven_scenes", "seq-01/frame-000000.pose.txt", written("1 0 zero 0"), "pose.txt, line 1"),
    ("seven_scenes", "seq-01/frame-000000.pose.txt", written(*["2 0 0 0"] * 4), "not rigid"),
    ("seven_scenes", "seq-02/frame-000000.pose.txt", written("1 " * 99), "at most 4x4"),
    ("seven_scenes", "camera-intrinsics.txt", written("0 0 0", "0 0 0", "0 0 1"), "intrinsics"),
    ("seven_scenes", "seq-02/frame-000000.color.png", cut, "cannot read the image"),
    ("cambridge", "dataset_train.txt", written(*HEAD, f"../a.png {POSE}"), "train.txt, line 4"),
    ("cambridge", "dataset_train.txt", written(*HEAD, f"/etc/a.png {POSE}"), "does not lie below"),
    ("cambridge", "dataset_test.txt", written(*HEAD, "a.png 0 0 nan 1 0 0 0"), "must be finite"),
    ("cambridge", "dataset_test.txt", written(*HEAD, "a.png 0 0 0 2 0 0 0"), "length 1"),
    ("cambridge", "dataset_test.txt", written(*HEAD, "a.png 0 0 0"), "test.txt, line 4"),
    ("cambridge", "dataset_test.txt", written(*HEAD), "lists no image"),
    ("cambridge", "reconstruction.nvm", written("NVM_V2"), "begins with NVM_V3"),
    ("cambridge", "reconstruction.nvm", written("NVM_V3 FixedK 1 2 3 4 0", "0"), "FixedK"),
    ("cambridge", "reconstruction.nvm", written("NVM_V3", "9" * 18), "from 0 to 1000000"),
    ("cambridge", "reconstruction.nvm", written("NVM_V3", "2"), "ends before camera 1 of 2"),
    ("cambridge", "reconstruction.nvm", edited(".jpg\t50.0", ".jpg\t-5.0"), "line 4: the focal"),
    ("colmap", "queries.txt", written("../a.jpg"), "queries.txt, line 1"),
    ("colmap", "queries.txt", written("a.jpg PINHOL 64 48 50 50 32 24"), "SIMPLE_RADIAL"),
    ("colmap", "queries.txt", written("a.jpg PINHOLE 64 48 50 50 32"), "fx, fy, cx, cy, got 3"),
    ("colmap", "queries.txt", written("a.jpg PINHOLE 64 -48 50 50 32 24"), "whole number"),
    ("colmap", "queries.txt", written("a.jpg PINHOLE 99999 99999 50 50 32 24"), "usable camera"),
    ("colmap", "queries.txt", written("a.jpg PINHOLE 64 48 inf 50 32 24"), "must be finite"),
    ("colmap", "queries.txt", written("left/4.jpg", "left/4.jpg"), "line 2: .*second time"),
    ("colmap", "queries.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a text file"),
    ("colmap", "sparse/0/cameras.bin", cut, "cameras.bin is damaged"),
    ("colmap", "sparse/0/images.bin", cut, "images.bin is damaged"),
    ("colmap", "sparse/0/points3D.bin", cut, "points3D.bin is damaged"),
    ("colmap", "sparse/0/frames.bin", lambda p: p.write_bytes(b"\0" * 4), "frames.bin is damaged"),
    ("colmap", "sparse/0/rigs.bin", lambda p: p.write_bytes(b"\1" * 99), "rigs.bin is damaged"),
    ("colmap", "sparse/0/points3D.bin", Path.unlink, "lacks files of a COLMAP model"),
    ("colmap", "images/left/0.jpg", Path.unlink, "no image file .*left/0.jpg"),
    ("aachen", "3D-models/aachen_v_1_1/cameras.bin", Path.unlink, "nvm files are not read"),
    ("aachen", "queries/day_time_queries_with_intrinsics.txt", written("a.jpg A"), "line 1"),
    ("inloc", "database/cutouts/DUC1/001/DUC_cutout_001_0_0.jpg.mat", Path.unlink, "no file"),
    ("inloc", "database/alignments/DUC1/transformations/DUC_trans_001.txt", cut, "lines 8 to 11"),
    ("generic", "kitchen/images/frame_1.jpg", Path.unlink, "no file .*frame_1.jpg; expected"),
    ("generic", "all_metadata.npz", cut, "all_metadata.npz is damaged"),
]


@pytest.mark.parametrize(
    ("layout", "file", "damage", "message"), DAMAGES, ids=lambda value: str(value)[:40]
)
def test_damaged_files_are_named(layout, file, damage, message, tree) -> None:
    root = tree(layout)
    damage(root / file)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read(layout, root)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_a_folder_of_something_else_says_what_was_expected(layout, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="expected|written by"):
        read_scenes(layout, tmp_path)
    with pytest.raises(FileNotFoundError):
        read_scenes(layout, tmp_path / "nowhere")


def test_unknown_layouts_and_options_name_the_known_ones(tmp_path) -> None:
    with pytest.raises(ValueError, match="no layout 'scannet'; there are aachen, cambridge"):
        read_scenes("scannet", tmp_path)
    with pytest.raises(ValueError, match="no option step; it has map_every, query_every"):
        read_scenes("cambridge", tmp_path, step=2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0 0 1 9 9 9 1 0 0 3 nan"], "line 5: a point's line must be finite"),
        (["0 0 1 9 9 9 1 6 0 3 4"], "line 5: images are counted from 0 to 0"),
        (["0 0 1 9 9 9 2 0 0 3 4"], "line 5: expected 'x y z r g b'"),
        (["0 0"], "line 5: expected 'x y z r g b'"),
        ([], "ends before point 1 of 1"),
    ],
)
def test_damaged_points_are_named_once_landmarks_are_asked_for(lines, message, tmp_path) -> None:
    path = tmp_path / "model.nvm"
    write_text(path, "NVM_V3", "1", "a b.jpg 50 1 0 0 0 0 0 0 0 0", "1", *lines)
    model = Nvm(path)
    with pytest.raises(ValueError, match=message):
        model.landmarks(model.cameras["a b"], SIZE)


def test_points_that_a_model_lacks_are_named_once_landmarks_are_asked_for(tree) -> None:
    root = tree("colmap")
    (root / "sparse/0/points3D.bin").write_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match="image left/0.jpg: the model lacks its point 1"):
        read("colmap", root).images[0].landmarks()


@pytest.mark.parametrize(
    "content", [{}, {"XYZcut": np.zeros((4, 5))}, {"XYZcut": np.zeros((4, 5, 3))}, b"\0" * 300]
)
def test_damaged_scans_are_named_once_points_are_asked_for(content, tree) -> None:
    root = tree("inloc")
    path = root / "database/cutouts/DUC1/001/DUC_cutout_001_0_0.jpg.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(ValueError, match="DUC_cutout_001_0_0.jpg.mat"):
        read("inloc", root).images[0].points()
