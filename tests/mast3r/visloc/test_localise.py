"""World points of a map's pixels, exact on planes, silent at edges; queries localised by them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv
from dust3r.utils.image import load_images
from mast3r.matching import Matches, match_views
from mast3r.visloc.localise import lift, localise, localise_query, retrieve
from mast3r.visloc.matchers import NetworkMatcher, _Views
from mast3r.visloc.metrics import pose_error
from mast3r.visloc.scene import Camera, Landmarks, LocalisationScene, MapImage, Query
from mast3r.visloc.sift import SiftMatcher, SiftRanking

SIZE = 160, 120
INTRINSICS = np.array([[150.0, 0, 80], [0, 152, 58], [0, 0, 1]])
CAMERA = Camera.pinhole(INTRINSICS, SIZE)
NORMAL, OFFSET = np.array([0.3, -0.2, -1.0]), -3.0  # of the plane NORMAL . X = OFFSET


def view(number):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.05 * number, -0.1, 0.02 * number]).as_matrix()
    pose[:3, 3] = 0.2 * number, -0.1, 0.05 * number
    return pose


def plane_depth(pose, shape, intrinsics):
    v, u = np.mgrid[: shape[0], : shape[1]]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T
    depth = (OFFSET - NORMAL @ pose[:3, 3]) / (rays @ pose[:3, :3].T @ NORMAL)
    return depth.astype(np.float32)


def scaled(factor):
    """Intrinsics of a depth map of ``factor`` times the image's size."""
    matrix = np.diag([factor, factor, 1.0]) @ INTRINSICS
    matrix[:2, 2] += (factor - 1) / 2
    return matrix


def map_image(number=1, depth=None, **more):
    pose = view(number)
    if depth is None and not more.keys() & {"landmarks", "points"}:
        depth = plane_depth(pose, SIZE[::-1], INTRINSICS)
    camera = more.pop("camera", CAMERA)
    get = None if depth is None else lambda: depth
    return MapImage(f"map{number}", Path(f"map{number}.png"), pose, camera, get, **more)


def some_pixels(count=200, seed=0):
    return np.random.default_rng(seed).uniform((0, 0), np.array(SIZE) - 1, (count, 2))


def assert_on_plane(image, pixels, points, tolerance):
    """On the plane, and projecting to the pixels."""
    np.testing.assert_allclose(points @ NORMAL, OFFSET, atol=tolerance)
    projected = CAMERA.project(geotrf(inv(image.pose), points))
    np.testing.assert_allclose(projected, pixels, atol=1e-3)


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_depth_of_any_size_is_exact_on_a_plane(factor):
    shape = int(SIZE[1] * factor), int(SIZE[0] * factor)
    image = map_image(depth=plane_depth(view(1), shape, scaled(factor)))
    pixels = some_pixels()
    points, known = lift(image, pixels)
    # Half a pixel along the rim of a smaller depth map lies outside of its centres.
    inner = ((pixels > 1) & (pixels < np.array(SIZE) - 2)).all(1)
    assert known[inner].all()
    assert_on_plane(image, pixels[inner], points[inner], 1e-5)


def test_distortion_is_undone():
    params = [150, 152, 80.5, 58.5, -0.2, 0.05, 0.001, 0]
    model = pycolmap.Camera(model="OPENCV", width=SIZE[0], height=SIZE[1], params=params)
    image = map_image(depth=np.full(SIZE[::-1], 2.0), camera=Camera(model))
    points, known = lift(image, some_pixels())
    assert known.all()
    projected = image.camera.project(geotrf(inv(image.pose), points))
    np.testing.assert_allclose(projected, some_pixels(), atol=1e-3)


def test_edges_of_depth_do_not_bleed():
    depth = np.full(SIZE[::-1], 1.5, np.float32)
    depth[:, 80:] = 3.0
    pixels = np.array([[79.0, 50], [79.4, 50], [79.9, 50], [80.0, 50], [40.3, 20.7]])
    points, known = lift(map_image(depth=depth), pixels)
    assert known.tolist() == [False, False, False, True, True]
    z = geotrf(inv(view(1)), points)[:, 2]
    np.testing.assert_allclose(z[known], [3.0, 1.5], rtol=1e-6)
    assert np.isnan(points[~known]).all()


def test_what_has_no_depth_or_lies_outside_is_not_known():
    depth = plane_depth(view(1), SIZE[::-1], INTRINSICS)
    depth[30:40, 30:40] = 0
    depth[50, 50] = np.nan
    pixels = np.array([[35.0, 35], [29.5, 35], [50.2, 50], [-5, 9], [9, 300], [np.nan, 3], [9, 9]])
    known = lift(map_image(depth=depth), pixels)[1]
    assert known.tolist() == [False] * 6 + [True]


def test_a_scan_gives_its_points_with_or_without_a_camera():
    pose = view(1)
    depth = plane_depth(pose, SIZE[::-1], INTRINSICS).astype(float)
    scan = depthmap_to_pts3d(depth, INTRINSICS, pose)
    scan[60:, 100:] = np.nan
    pixels = some_pixels()
    for camera in (CAMERA, None):
        points, known = lift(map_image(points=lambda: scan, camera=camera), pixels)
        np.testing.assert_array_equal(known, ~((pixels >= (99, 59)).all(1)))
        np.testing.assert_allclose(points[known] @ NORMAL, OFFSET, atol=1e-9)


def test_landmarks_lend_their_depth_to_pixels_beside_them():
    pose = view(1)
    pixels = some_pixels(50)
    depth = plane_depth(pose, SIZE[::-1], INTRINSICS)
    points, known = lift(map_image(depth=depth), pixels)
    image = map_image(landmarks=lambda: Landmarks(pixels[known], points[known]))
    near = pixels[known] + (0.4, -0.3)
    found, close = lift(image, near)
    assert close.all()
    # Sideways they move with the pixel, in depth by the slope of the plane alone.
    np.testing.assert_allclose(CAMERA.project(geotrf(inv(pose), found)), near, atol=1e-6)
    assert np.abs(found @ NORMAL - OFFSET).max() < 0.02
    assert not lift(image, np.full((1, 2), -40.0))[1].any()
    nothing = map_image(landmarks=lambda: Landmarks(np.zeros((0, 2)), np.zeros((0, 3))))
    assert not lift(nothing, near)[1].any()


def test_a_map_image_without_points_or_intrinsics_is_refused():
    with pytest.raises(ValueError, match="map1 has no intrinsics"):
        lift(map_image(camera=None), some_pixels())
    with pytest.raises(ValueError, match="neither depth, landmarks nor a scan"):
        lift(replace(map_image(), depth=None), some_pixels())
    with pytest.raises(ValueError, match=r"shape \(3, 4, 1\), not"):
        lift(map_image(depth=np.ones((3, 4, 1))), some_pixels())


class ExactMatcher:
    """Knows the plane and all poses; a tenth of its matches is wrong."""

    def __init__(self, scene, size=SIZE):
        self.scene, self._size, self.calls = scene, size, []

    def match(self, query, images):
        self.calls.append(len(images))
        rng = np.random.default_rng(0)
        pose = next(one.pose for one in self.scene.queries if one.path == query)
        found = []
        for path in images:
            image = next(one for one in self.scene.images if one.path == path)
            pixels = some_pixels(100, 1)
            points, known = lift(image, pixels)
            seen = CAMERA.project(geotrf(inv(pose), points))
            wrong = rng.random(len(seen)) < 0.1
            seen[wrong] = some_pixels(wrong.sum(), 2)
            found.append(Matches(seen[known], pixels[known], np.ones(known.sum(), np.float32)))
        return found

    def size(self, image):
        if image.name == "gone.png":
            raise FileNotFoundError(f"no image {image}")
        return self._size


def scene_of(*queries, **more):
    return LocalisationScene("room", (map_image(0), map_image(1), map_image(2)), queries, **more)


def query(name="q", camera=CAMERA):
    return Query(name, Path(f"{name}.png"), camera, view(1.5))


def test_a_query_is_localised_with_all_its_images_in_one_call():
    scene = scene_of(query())
    matcher = ExactMatcher(scene)
    found = localise_query(scene.queries[0], scene, matcher, [2, 0])
    error = pose_error(found.pose, scene.queries[0].pose)
    assert error.position < 1e-3 and error.rotation < 0.05 and found.reason == ""
    assert matcher.calls == [2] and found.images == ("map2", "map0")
    assert 0.8 * found.matches < found.inliers < found.matches <= 200
    assert found.covariance.shape == (6, 6) and found.seconds > 0
    position, rotation = found.standard_deviations()
    assert 0 < position < 0.05 and 0 < rotation < 1


def test_the_most_confident_matches_are_kept():
    scene = scene_of(query())
    found = localise_query(query(), scene, ExactMatcher(scene), [0, 1], max_matches=60)
    assert found.matches == 60


@pytest.mark.parametrize(
    ("lost", "size", "reason"),
    [
        (query(camera=None), SIZE, "intrinsics of q are not known; --focal"),
        (query("gone"), SIZE, "no image gone.png"),
        (query(), (120, 160), "q has 120x160 pixels .* intrinsics are of 160x120"),
    ],
)
def test_what_is_wrong_with_a_query_is_its_reason_and_the_run_goes_on(lost, size, reason):
    scene = scene_of(lost, query("fine"))
    matcher = ExactMatcher(scene, size)
    first, second = localise(scene, matcher, {lost.name: [0, 1], "fine": [0]}, verbose=False)
    assert first.pose is None and first.covariance is None and first.standard_deviations() is None
    assert re.search(reason, first.reason)
    assert (second.pose is None) == (size != SIZE)


def test_a_query_without_map_images_fails():
    scene = scene_of(query())
    found = localise_query(query(), scene, ExactMatcher(scene), [])
    assert found.pose is None and "no image of the map" in found.reason


class Ranking:
    def similarity(self, queries):
        if queries[0].name == "gone.png":
            raise FileNotFoundError("no image")
        return np.array([[0.1, 0.7, 0.3]], np.float32)


def test_images_are_ranked_or_given_as_pairs():
    scene = scene_of(query("a"), query("gone"), pairs={"a": ["map2", "map0", "map1"]})
    assert retrieve(scene, 2, Ranking()) == {"a": [1, 2], "gone": []}
    assert retrieve(scene, 2) == {"a": [2, 0], "gone": []}
    with pytest.raises(ValueError, match="topk=0 must be 1 or more"):
        retrieve(scene, 0)
    with pytest.raises(ValueError, match="gives no pairs"):
        retrieve(replace(scene, pairs=None), 2)
    with pytest.raises(ValueError, match="names? 'map9'"):
        retrieve(replace(scene, pairs={"a": ["map9"]}), 2)


@pytest.fixture
def photographs(tmp_path):
    """Files: two views of one texture, 20 pixels apart, one of another, and a blank one."""
    rng = np.random.default_rng(0)
    worlds = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((340, 240))
        )
        for _ in range(2)
    ]
    images = {
        "a": worlds[0][:, :320],
        "b": worlds[0][:, 20:],
        "other": worlds[1][:, :320],
        "blank": np.full((240, 320, 3), 90, np.uint8),
    }
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in images}


@pytest.mark.parametrize("max_size", [1600, 240])
def test_sift_matches_are_in_pixels_of_the_originals(photographs, max_size):
    matcher = SiftMatcher(max_size=max_size)
    given = [photographs[name] for name in ("b", "a", "other", "blank")]
    shifted, same, other, blank = matcher.match(photographs["a"], given)
    assert len(shifted) > 100
    offsets = shifted.xy1 - shifted.xy2
    np.testing.assert_allclose(np.median(offsets, 0), (20, 0), atol=0.05)
    assert np.mean(np.abs(offsets - (20, 0)).max(1) < 1) > 0.95
    np.testing.assert_allclose(same.xy1, same.xy2)
    assert len(other) < 0.05 * len(shifted) and len(blank) == 0
    assert matcher.size(photographs["blank"]) == (320, 240)
    for xy in (shifted.xy1, shifted.xy2):
        assert (xy > -0.5).all() and (xy < (319.5, 239.5)).all()


def test_sift_ranks_the_same_place_first(photographs):
    matcher = SiftMatcher()
    paths = [photographs[name] for name in ("other", "blank", "b")]
    ranking = SiftRanking(paths, matcher)
    alike = ranking.similarity([photographs["a"], photographs["blank"]])
    assert alike.shape == (2, 3) and alike[0].argmax() == 2 and not alike[1].any()
    with pytest.raises(ValueError, match="too few to rank"):
        SiftRanking([photographs["blank"]], matcher)
    with pytest.raises(ValueError, match="ratio=0 must be in"):
        SiftMatcher(ratio=0)


def test_views_of_files_load_when_asked_for(photographs):
    views = _Views([photographs["a"], Path("gone.png")], 64, 16)
    assert len(views) == 2 and views[0]["img"].shape == (1, 3, 48, 64)
    with pytest.raises(FileNotFoundError):
        views[1]


def test_a_network_sees_all_pairs_of_a_query_as_it_sees_each(photographs, colour_model):
    matcher = NetworkMatcher(colour_model, 64, min_confidence=5, subsample_or_initxy1=4)
    given = [photographs[name] for name in ("b", "a", "other")]
    found = matcher.match(photographs["a"], given)
    # Each image once: the query, "b" and "other"; "a" is the query itself.
    assert sum(shape[0] for shape in colour_model.shapes) == 3
    views = load_images([photographs["a"], *given], 64, verbose=False)
    for matches, view in zip(found, views[1:], strict=True):
        alone = match_views(colour_model, views[0], view, min_confidence=5, subsample_or_initxy1=4)
        np.testing.assert_array_equal(matches.xy1, alone.xy1)
        np.testing.assert_array_equal(matches.xy2, alone.xy2)
    assert len(found[1]) > 100 and matcher.size(given[0]) == (320, 240)
