"""Matches to cameras through COLMAP: a known scene is found; what cannot be mapped is said."""

from dataclasses import dataclass

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from PIL import ExifTags, Image

from dust3r.image_pairs import make_pairs
from dust3r.utils.geometry import geotrf, inv, project
from dust3r.utils.image import load_images
from mast3r.matching import Matches, match_views
from mast3r.sfm import (
    ImagePairMatches,
    Summary,
    guessed_camera,
    map_images,
    match_both_orders,
    pinhole_camera,
    verify,
    write_database,
)

SIZE = 640, 480
INTRINSICS = np.array([[560.0, 0, 319.5], [0, 560, 239.5], [0, 0, 1]])


@dataclass(frozen=True)
class Problem:
    """Cameras on an arc about 700 points, their noisy pixels, a fifth of the matches wrong."""

    poses: np.ndarray
    pixels: np.ndarray
    pair_matches: list[ImagePairMatches]

    @property
    def images(self):
        return [(f"image {n}.jpg", SIZE) for n in range(len(self.poses))]


def make_problem(count=6, noise=0.3, outliers=0.2):
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -1.5, 3], [2, 1.5, 6], (700, 3))
    poses = np.tile(np.eye(4), (count, 1, 1))
    for n, aside in enumerate(np.arange(count) - (count - 1) / 2):
        poses[n, :3, :3] = cv2.Rodrigues(np.array([0.03 * n, -0.16 * aside, 0.02 * n]))[0]
        poses[n, :3, 3] = 0.7 * aside, 0.1 * n, 0.05 * n * n
    pixels = np.stack([project(geotrf(inv(pose), points), INTRINSICS)[0] for pose in poses])
    pixels += rng.normal(0, noise, pixels.shape)
    inside = ((pixels >= 0) & (pixels <= np.array(SIZE) - 1)).all(-1)
    pairs = []
    for i in range(count):
        for j in range(i + 1, count):
            both = inside[i] & inside[j]
            xy1, xy2 = pixels[i, both], pixels[j, both].copy()
            wrong = rng.random(len(xy2)) < outliers
            xy2[wrong] = rng.uniform(0, np.array(SIZE) - 1, (wrong.sum(), 2))
            pairs.append(ImagePairMatches(i, j, Matches(xy1, xy2, np.ones(len(xy1), np.float32))))
    return Problem(poses, pixels, pairs)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(pycolmap.logging, "minloglevel", int(pycolmap.logging.Level.ERROR))


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def camera_errors(model, poses):
    """Degrees of relative rotations and, after a similarity, centres over the extent; the worst."""
    found = np.stack(
        [
            np.vstack([model.image(n + 1).cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
            for n in range(len(poses))
        ]
    )
    turns = [inv(found[:1]) @ found, inv(poses[:1]) @ poses]
    traces = np.einsum("nij,nij->n", *(turn[:, :3, :3] for turn in turns))
    angles = np.degrees(np.arccos(((traces - 1) / 2).clip(-1, 1)))
    centres = found[:, :3, 3], poses[:, :3, 3]
    similarity = pycolmap.estimate_sim3d(*centres)
    moved = np.stack([similarity * centre for centre in centres[0]])
    extent = np.linalg.norm(np.ptp(centres[1], axis=0))
    return angles.max(), np.linalg.norm(moved - centres[1], axis=1).max() / extent


def solve(problem, folder, cameras, **options):
    database = write_database(folder / "database.db", problem.images, problem.pair_matches, cameras)
    return verify(database), map_images(database, None, folder / "sparse", **options)


@pytest.mark.parametrize("mapper", ["incremental", "global"])
@pytest.mark.parametrize("known", [True, False])
def test_cameras_of_a_known_scene_are_found(problem, tmp_path, mapper, known):
    camera = pinhole_camera(INTRINSICS, SIZE) if known else guessed_camera(SIZE, model="PINHOLE")
    verified, models = solve(problem, tmp_path, [camera], mapper=mapper, refine_focal=not known)
    assert len(verified) == 15 and len(models) == 1
    angle, centre = camera_errors(models[0], problem.poses)
    told = Summary.of(models[0])
    assert angle < 0.2 and centre < 0.01
    assert told.registered == 6 and told.points > 600 and told.track_length > 5
    assert 0.2 < told.error < 0.6
    mapped = models[0].cameras[1].params
    assert np.allclose(mapped[:2], 560, rtol=1e-9 if known else 0.02)
    written = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert written.num_points3D() == told.points


def test_inliers_are_the_right_matches_and_the_seed_is_followed(problem, tmp_path):
    database = write_database(tmp_path / "a.db", problem.images, problem.pair_matches)
    verified = verify(database)
    for pair in problem.pair_matches:
        assert 0.7 < verified[pair.i, pair.j] / len(pair.matches) < 0.9
    assert verify(database) == verified
    first, second = (map_images(database, None, tmp_path / name)[0] for name in "ab")
    errors = [camera_errors(model, problem.poses) for model in (first, second)]
    # Degrees and per cent; COLMAP's threads add up in another order each time.
    np.testing.assert_allclose(*errors, atol=5e-3)


def test_keypoints_are_half_a_pixel_on_and_rows_name_them(problem, tmp_path):
    path = write_database(tmp_path / "a.db", problem.images, problem.pair_matches)
    pair = problem.pair_matches[1]
    database = pycolmap.Database.open(path)
    rows = database.read_matches(pair.i + 1, pair.j + 1)
    ends = [
        database.read_keypoints(n + 1)[rows[:, side]] for side, n in enumerate((pair.i, pair.j))
    ]
    database.close()
    order = np.lexsort(ends[0].T)
    given = np.lexsort(pair.matches.xy1.T)
    np.testing.assert_allclose(ends[0][order], pair.matches.xy1[given] + 0.5, atol=1e-3)
    np.testing.assert_allclose(ends[1][order], pair.matches.xy2[given] + 0.5, atol=1e-3)


def test_exact_matches_and_a_known_camera_leave_no_error(tmp_path):
    exact = make_problem(noise=0, outliers=0)
    _, models = solve(exact, tmp_path, [pinhole_camera(INTRINSICS, SIZE)], refine_focal=False)
    assert models[0].cameras[1].params.tolist() == [560, 560, 320, 240]
    assert Summary.of(models[0]).error < 1e-3
    assert max(camera_errors(models[0], exact.poses)) < 1e-3


def test_two_images_are_enough(tmp_path):
    pair = make_problem(2, outliers=0.1)
    _, models = solve(pair, tmp_path, [pinhole_camera(INTRINSICS, SIZE)], refine_focal=False)
    turns = [
        models[0].image(2).cam_from_world() * models[0].image(1).cam_from_world().inverse(),
        pycolmap.Rigid3d((inv(pair.poses[1]) @ pair.poses[0])[:3]),
    ]
    assert np.degrees((turns[0] * turns[1].inverse()).rotation.angle()) < 0.2
    directions = [turn.translation / np.linalg.norm(turn.translation) for turn in turns]
    assert np.dot(*directions) > np.cos(np.radians(1))


def test_pairs_in_both_orders_are_joined_and_cells_merge(tmp_path):
    size = 100, 80

    def some(xy1, xy2, confidence):
        return Matches(*(np.array(part, float) for part in (xy1, xy2, confidence)))

    pairs = [
        ImagePairMatches(0, 1, some([[10, 10], [30, 30]], [[11, 10], [31, 30]], [1, 5])),
        ImagePairMatches(1, 0, some([[11, 10.5], [70, 70]], [[10.5, 10], [30, 31]], [3, 1])),
        ImagePairMatches(1, 2, some([[11, 10]], [[12, 10]], [1])),
        ImagePairMatches(0, 2, some(np.zeros((0, 2)), np.zeros((0, 2)), [])),
    ]
    images = [(f"{n}.png", size) for n in range(3)]
    database = pycolmap.Database.open(write_database(tmp_path / "a.db", images, pairs, merge=2))
    keypoints = [database.read_keypoints(n + 1) - 0.5 for n in range(3)]
    rows = database.read_matches(1, 2), database.read_matches(2, 3)
    assert not database.exists_matches(1, 3)
    database.close()
    # (10, 10) and (10.5, 10) are one, and of two matches of (30, 30) the surer one stays.
    np.testing.assert_allclose(keypoints[0], [[10.25, 10], [30, 30.5]], atol=1e-5)
    np.testing.assert_allclose(keypoints[1], [[11, 30.5 / 3], [31, 30], [70, 70]], atol=1e-4)
    assert sorted(map(tuple, rows[0])) == [(0, 0), (1, 1)]
    assert rows[1].tolist() == [[0, 0]]


def test_noise_of_its_own_in_every_pair_is_bridged_by_merging(tmp_path):
    rng = np.random.default_rng(1)
    exact = make_problem(noise=0, outliers=0)
    pairs = [
        ImagePairMatches(
            pair.i,
            pair.j,
            Matches(
                *(
                    (xy + rng.normal(0, 0.2, xy.shape)).clip(0, np.array(SIZE) - 1)
                    for xy in (pair.matches.xy1, pair.matches.xy2)
                ),
                pair.matches.confidence,
            ),
        )
        for pair in exact.pair_matches
    ]
    for name, merge in (("a", 0.0), ("b", 2.0)):
        database = tmp_path / f"{name}.db"
        camera = pinhole_camera(INTRINSICS, SIZE)
        write_database(database, exact.images, pairs, [camera], merge=merge)
        assert len(verify(database)) == 15
    parts = map_images(tmp_path / "a.db", None, tmp_path / "a", refine_focal=False)
    assert {Summary.of(part).registered for part in parts} == {2}
    (model,) = map_images(database, None, tmp_path / "b", refine_focal=False)
    angle, centre = camera_errors(model, exact.poses)
    assert angle < 0.2 and centre < 0.01 and Summary.of(model).track_length > 4


def test_a_pair_and_an_image_without_matches_do_not_stop_the_run(problem, tmp_path):
    nothing = problem.pair_matches[0].matches.select(slice(0, 0))
    given = [
        ImagePairMatches(0, 1, nothing),
        *problem.pair_matches[1:],
        ImagePairMatches(0, 6, nothing),
        ImagePairMatches(5, 6, problem.pair_matches[0].matches.select(slice(0, 5))),
    ]
    images = [*problem.images, ("lonely.jpg", SIZE)]
    camera = pinhole_camera(INTRINSICS, SIZE)
    database = write_database(tmp_path / "a.db", images, given, [camera])
    verified = verify(database)
    assert len(verified) == 14 and not any(6 in pair for pair in verified)
    models = map_images(database, None, tmp_path / "sparse", refine_focal=False)
    assert Summary.of(models[0]).registered == 6
    assert camera_errors(models[0], problem.poses)[1] < 0.01


def test_places_apart_are_models_apart_the_largest_first(problem, tmp_path):
    small = make_problem(3)
    moved = [ImagePairMatches(p.i, p.j, p.matches) for p in small.pair_matches]
    moved += [ImagePairMatches(p.i + 3, p.j + 3, p.matches) for p in problem.pair_matches]
    images = [(f"{n}.jpg", SIZE) for n in range(9)]
    database = write_database(tmp_path / "a.db", images, moved, [pinhole_camera(INTRINSICS, SIZE)])
    verify(database)
    models = map_images(database, None, tmp_path / "sparse", refine_focal=False)
    assert [model.num_reg_images() for model in models] == [6, 3]
    assert sorted(path.name for path in (tmp_path / "sparse").iterdir()) == ["0", "1"]
    with pytest.raises(FileExistsError, match="holds models already"):
        map_images(database, None, tmp_path / "sparse")
    models = map_images(
        database, None, tmp_path / "sparse", refine_focal=False, min_images=4, overwrite=True
    )
    assert [path.name for path in (tmp_path / "sparse").iterdir()] == ["0"]
    (tmp_path / "sparse" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other files"):
        map_images(database, None, tmp_path / "sparse", refine_focal=False, overwrite=True)
    assert (tmp_path / "sparse" / "0" / "images.bin").is_file()


def test_what_cannot_be_written_is_refused_and_nothing_is_left(problem, tmp_path):
    path = tmp_path / "a.db"
    images, pairs = problem.images, problem.pair_matches
    nothing = [ImagePairMatches(0, 1, pairs[0].matches.select(slice(0, 0)))]
    for given, cameras, message in (
        ((images[:1], []), None, "two images or more, and there is 1"),
        ((images, nothing), None, "none of the 6 images has a match"),
        ((images, [ImagePairMatches(0, 6, pairs[0].matches)]), None, "numbered from 0"),
        ((images, [ImagePairMatches(2, 2, pairs[0].matches)]), None, "two different ones"),
        (([(name, (64, 48)) for name, _ in images], pairs), None, "outside of an image of 64x48"),
        (([("a.jpg", SIZE)] * 6, pairs), None, "called a.jpg"),
        (([("../a.jpg", SIZE), *images[1:]], pairs), None, "cannot be the name"),
        ((images, pairs), [guessed_camera(SIZE)] * 2, "2 cameras for 6 images"),
        ((images, pairs), [guessed_camera((480, 640))], "480x640 pixels cannot have taken"),
    ):
        with pytest.raises(ValueError, match=message):
            write_database(path, *given, cameras)
    with pytest.raises(ValueError, match="merge=-1"):
        write_database(path, images, pairs, merge=-1)
    assert not list(tmp_path.iterdir())
    write_database(path, images, pairs)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        write_database(path, images, pairs)
    with pytest.raises(ValueError, match="none of"):
        write_database(path, images, nothing, overwrite=True)
    assert path.read_bytes() == before


def test_what_nothing_verifies_is_said(problem, tmp_path):
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 470, (2, 40, 2))
    chance = [ImagePairMatches(0, 1, Matches(*xy, np.ones(40, np.float32)))]
    database = write_database(tmp_path / "a.db", problem.images, chance)
    before = database.read_bytes()
    with pytest.raises(ValueError, match="of 1 pairs with matches none has 15"):
        verify(database, max_error=1)
    assert database.read_bytes() == before
    with pytest.raises(ValueError, match="no two images could be placed"):
        map_images(database, None, tmp_path / "sparse")
    assert not (tmp_path / "sparse").exists()
    with pytest.raises(FileNotFoundError, match="no database"):
        verify(tmp_path / "b.db")
    with pytest.raises(ValueError, match="'incremental', 'global'"):
        map_images(database, None, tmp_path / "sparse", mapper="gradual")
    with pytest.raises(ValueError, match="focal of -3"):
        guessed_camera(SIZE, focal=-3)
    with pytest.raises(ValueError, match="SIMPLE_RADIAL"):
        guessed_camera(SIZE, model="ROUND")


def test_guesses_of_a_focal_are_marked_as_such():
    assert guessed_camera(SIZE).mean_focal_length() == 1.2 * 640
    assert guessed_camera(SIZE[::-1]).mean_focal_length() == 1.2 * 640
    assert not guessed_camera(SIZE).has_prior_focal_length
    assert guessed_camera(SIZE, focal=500.0).has_prior_focal_length


@pytest.mark.parametrize("turned", [False, True])
def test_the_focal_of_a_photograph_is_read_from_its_exif_data(tmp_path, turned):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if turned else 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 27
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", SIZE).save(tmp_path / "plain.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    size = SIZE[::-1] if turned else SIZE
    camera = guessed_camera(size, photograph=tmp_path / "a.jpg")
    assert camera.has_prior_focal_length and (camera.width, camera.height) == size
    # A film of 35 mm has a diagonal of 43.3 mm.
    np.testing.assert_allclose(camera.mean_focal_length(), 27 / 43.27 * 800, rtol=0.05)
    for name in ("plain.jpg", "broken.jpg", "gone.jpg"):
        camera = guessed_camera(size, photograph=tmp_path / name)
        assert camera.mean_focal_length() == 1.2 * 640 and not camera.has_prior_focal_length


def test_pairs_in_both_orders_are_those_of_one_by_one(colour_model):
    rng = np.random.default_rng(0)
    world = rng.integers(0, 256, (96, 200, 3), dtype=np.uint8)
    images = [world[:, start : start + 128] for start in (0, 16, 32, 48, 64)]
    views = load_images(images, 64, verbose=False)
    views[3]["mask"] = torch.zeros(1, 48, 64, dtype=torch.bool)
    pairs = make_pairs(views, symmetrize=False)
    found = {}
    for pair in match_both_orders(colour_model, pairs, batch_size=3):
        assert (pair.i, pair.j) not in found
        found[pair.i, pair.j] = pair.matches
    left = {0, 1, 2, 4}
    assert set(found) == {(i, j) for i in left for j in left if i != j}
    encoded = [shape[0] for shape in colour_model.shapes]
    assert max(encoded) <= 3 and sum(encoded) == 4, "each image once"
    for (i, j), matches in found.items():
        alone = match_views(colour_model, views[i], views[j])
        np.testing.assert_array_equal(matches.xy1, alone.xy1)
        np.testing.assert_array_equal(matches.xy2, alone.xy2)
