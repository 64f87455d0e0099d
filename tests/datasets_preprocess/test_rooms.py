"""Synthetic rooms: exact depth, agreement between views, reproducible files in the layout."""

import cv2
import numpy as np
import pytest

from datasets_preprocess.layout import depth_path, image_path, read_depth, read_metadata
from datasets_preprocess.make_rooms import main, make_rooms
from datasets_preprocess.rooms import textures
from datasets_preprocess.rooms.lighting import SOFTEST_DISTANCE, bake_shadows, irradiance
from datasets_preprocess.rooms.materials import Palette
from datasets_preprocess.rooms.produce import Recipe, plan_scene
from datasets_preprocess.rooms.raycast import RayGrid, Solids, cast
from datasets_preprocess.rooms.render import Renderer
from datasets_preprocess.rooms.scene import CLEARANCE, FEWEST_THINGS, MOST_THINGS, Light, Room
from datasets_preprocess.rooms.shapes import Kind, Primitive, tilt, turn
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project

SIDE = 65
CENTRE = (SIDE - 1) // 2
INTRINSICS = np.array([[60.0, 0, CENTRE], [0, 60.0, CENTRE], [0, 0, 1]])
SMALL = Recipe(images_per_scene=3, resolution=(48, 32), seed=3)


def looking_along_x(origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    """A camera in a z-up world: forward is +x, right is -y, down is -z."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:3, 3] = origin
    return pose


def depth_of(*primitives: Primitive, pose=None) -> np.ndarray:
    pose = looking_along_x() if pose is None else pose
    grid = RayGrid.of_pixels(INTRINSICS, pose, SIDE, SIDE)
    return cast(Solids(primitives), grid).depth


def solid(kind: Kind, centre, half, rotation=None) -> Primitive:
    rotation = np.eye(3) if rotation is None else rotation
    return Primitive(kind, np.array(centre, float), rotation, np.array(half, float))


def rays() -> np.ndarray:
    """(SIDE, SIDE, 3) camera rays with z = 1."""
    return depthmap_to_pts3d(np.ones((SIDE, SIDE)), INTRINSICS)


def test_wall_is_a_plane_of_constant_depth():
    shell = solid(Kind.SHELL, (0, 0, 0), (3.25, 9.0, 9.0))
    np.testing.assert_allclose(depth_of(shell), 3.25, rtol=1e-6)


def test_floor_depth_follows_from_camera_height():
    shell = solid(Kind.SHELL, (0, 0, 8.5), (50.0, 50.0, 10.0))
    below = np.arange(CENTRE + 10, SIDE)
    expected = 1.5 * 60 / (below - CENTRE)
    np.testing.assert_allclose(depth_of(shell)[below, CENTRE], expected, rtol=1e-5)


def test_box_shows_its_near_face_and_its_exact_outline():
    depth = depth_of(solid(Kind.BOX, (2.5, 0, 0), (0.5, 0.31, 0.52)))
    offset = np.abs(rays()[..., :2]) * 2.0
    inside = (offset[..., 0] < 0.31) & (offset[..., 1] < 0.52)
    np.testing.assert_array_equal(np.isfinite(depth), inside)
    np.testing.assert_allclose(depth[inside], 2.0, rtol=1e-6)


def test_turned_box_shows_its_edge():
    depth = depth_of(solid(Kind.BOX, (3, 0, 0), (0.5, 0.5, 0.5), turn(np.pi / 4)))
    np.testing.assert_allclose(depth[CENTRE, CENTRE], 3 - np.sqrt(0.5), rtol=1e-6)
    # Both faces recede at 45 degrees from the edge.
    slope = np.abs(rays()[CENTRE, CENTRE - 8 : CENTRE + 9, 0])
    expected = (3 - np.sqrt(0.5)) / (1 - slope)
    np.testing.assert_allclose(depth[CENTRE, CENTRE - 8 : CENTRE + 9], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "kind, rotation, axes",
    [
        (Kind.SPHERE, None, (0, 1, 2)),
        (Kind.CYLINDER, None, (0, 2)),
        (Kind.CYLINDER, turn(0.4) @ tilt(0.0), (0, 2)),
    ],
)
def test_round_shapes_solve_their_quadratic(kind, rotation, axes):
    radius, away = 0.7, 2.6
    half = (radius, radius, radius if kind is Kind.SPHERE else 30.0)
    depth = depth_of(solid(kind, (away, 0, 0), half, rotation))
    # In the camera's frame the centre is (0, 0, away); a cylinder stands along the camera's y.
    direction = rays()[..., list(axes)]
    squared = (direction**2).sum(-1)
    discriminant = away**2 - squared * (away**2 - radius**2)
    hit = discriminant > 1e-9
    expected = (away - np.sqrt(np.where(hit, discriminant, 0))) / squared
    np.testing.assert_array_equal(np.isfinite(depth), hit)
    np.testing.assert_allclose(depth[hit], expected[hit], rtol=2e-5)


def test_cylinder_cap_is_flat_and_seen_along_the_axis():
    lying = tilt(np.pi / 2)
    cylinder = solid(Kind.CYLINDER, (2, 0, 0), (0.41, 0.41, 0.5), turn(np.pi / 2) @ lying)
    depth = depth_of(cylinder)
    inside = np.hypot(*np.moveaxis(rays()[..., :2], -1, 0)) * 1.5 < 0.41
    np.testing.assert_array_equal(np.isfinite(depth), inside)
    np.testing.assert_allclose(depth[inside], 1.5, rtol=1e-6)


def test_thin_pole_keeps_its_precision_at_a_distance():
    depth = depth_of(solid(Kind.CYLINDER, (6, 0, 0), (0.01, 0.01, 30)))
    np.testing.assert_allclose(depth[CENTRE, CENTRE], 5.99, rtol=1e-6)


def test_nearest_solid_wins_whatever_the_order():
    near, far = (solid(Kind.BOX, (x, 0, 0), (0.1, 5, 5)) for x in (1.0, 4.0))
    np.testing.assert_array_equal(depth_of(near, far), depth_of(far, near))
    np.testing.assert_allclose(depth_of(far, near), 0.9, rtol=1e-6)


def test_solids_behind_the_camera_are_not_seen_and_those_beside_it_are_cut_right():
    assert np.isinf(depth_of(solid(Kind.BOX, (-2, 0, 0), (1, 1, 1)))).all()
    beside = solid(Kind.BOX, (0, 1.0, 0), (8, 0.2, 0.5))
    cut = solid(Kind.BOX, (4, 1.0, 0), (4.0001, 0.2, 0.5))
    np.testing.assert_allclose(depth_of(beside), depth_of(cut), rtol=1e-4)
    assert np.isfinite(depth_of(beside)).any()


def test_distance_is_exact_around_the_shapes():
    box = solid(Kind.BOX, (0, 0, 0), (1, 2, 3), turn(0.3))
    outside = turn(0.3) @ np.array([4.0, 6.0, 0])
    np.testing.assert_allclose(box.distance(np.array([outside, np.zeros(3)])), [5.0, -1.0])
    ball = solid(Kind.SPHERE, (1, 0, 0), (0.5, 0.5, 0.5))
    np.testing.assert_allclose(ball.distance(np.array([[3.0, 0, 0]])), 1.5)
    pole = solid(Kind.CYLINDER, (0, 0, 0), (1, 1, 2))
    np.testing.assert_allclose(pole.distance(np.array([[4.0, 0, 6.0], [0.5, 0, 0]])), [5, -0.5])
    room = solid(Kind.SHELL, (0, 0, 0), (2, 3, 4))
    np.testing.assert_allclose(room.distance(np.array([[1.5, 0, 0]])), 0.5)


def test_light_obeys_lambert_and_falloff_and_stops_at_objects():
    palette = Palette(np.random.default_rng(0))
    looks = tuple(palette.pick("wall") for _ in range(6))
    size = np.array([4.0, 4.0, 3.0])
    shell = Primitive(Kind.SHELL, np.array([0, 0, 1.5]), np.eye(3), size / 2, looks)
    box = solid(Kind.BOX, (0, 0, 1), (0.3, 0.3, 0.1))
    lamp = Light(np.tile([0, 0, 2.5], (4, 1)), np.array([2.0, 1.0, 1.0]))
    room = Room(size, (shell, box), palette.materials(), (lamp,), np.zeros(3), 1)
    # Below the box, on its upper side, in the open; four times each for the light's four points.
    spots = np.array([[0.05, 0, 0], [0.0, 0, 1.1], [1.5, 0, 0]])
    points = np.repeat(np.repeat(spots.T[:, None], 2, axis=1), 2, axis=2).astype(np.float32)
    normals = np.zeros_like(points)
    normals[2] = 1
    red, green, _ = irradiance(room, bake_shadows(room), points, normals)
    np.testing.assert_allclose(red, 2 * green)
    np.testing.assert_array_equal(green[:, :2], 0)
    softened = SOFTEST_DISTANCE**2
    np.testing.assert_allclose(green[:, 2:4], 1 / (1.4**2 + softened), rtol=1e-5)
    away = 1.5**2 + 2.5**2
    np.testing.assert_allclose(green[:, 4:], 2.5 / np.sqrt(away) / (away + softened), rtol=1e-5)


def test_colours_line_up_with_depth(views):
    _, _, rendered = views
    image, depth = rendered[0]
    edges = [
        np.abs(cv2.Laplacian(x.astype(np.float32), cv2.CV_32F)) for x in (image.mean(-1), 1 / depth)
    ]
    colour_edges, depth_edges = edges[0], edges[1] > 0.05
    at = {
        (dy, dx): colour_edges[np.roll(depth_edges, (dy, dx), (0, 1))].mean()
        for dy in (-4, 0, 4)
        for dx in (-4, 0, 4)
    }
    assert depth_edges.sum() > 50
    assert max(at, key=at.get) == (0, 0)


@pytest.fixture(scope="module")
def views():
    """Scene 1 of a recipe: (shoot, depths) of four frames, pairs of which overlap."""
    recipe = Recipe(images_per_scene=12, resolution=(112, 80), seed=11)
    shoot = plan_scene(recipe, 1)
    renderer = Renderer(shoot.room, shoot.sensor)
    rng = np.random.default_rng(0)
    rendered = [renderer.render(shoot.intrinsics, p, 112, 80, rng) for p in shoot.poses[::4]]
    return shoot, shoot.poses[::4], rendered


def test_every_pixel_has_depth_and_images_have_contrast(views):
    shoot, _, rendered = views
    for image, depth in rendered:
        assert image.shape == (80, 112, 3) and image.dtype == np.uint8
        assert depth.shape == (80, 112) and np.isfinite(depth).all()
        assert 0.1 < depth.min() and depth.max() < np.linalg.norm(shoot.room.size)
        assert image.std() > 15 and 40 < image.mean() < 215


def test_views_agree_under_reprojection(views):
    shoot, poses, rendered = views
    solids = Solids(shoot.room.primitives)
    rng = np.random.default_rng(0)
    for i, j in [(0, 1), (1, 2), (2, 0)]:
        depth = rendered[i][1].astype(np.float64)
        points = depthmap_to_pts3d(depth, shoot.intrinsics, poses[i]).reshape(-1, 3)
        points = points[rng.choice(len(points), 400, replace=False)]
        pixels, expected = project(geotrf(inv(poses[j]), points), shoot.intrinsics)
        inside = (expected > 0.1) & (np.abs(pixels - [55.5, 39.5]) < [56, 40]).all(-1)
        # A ray of view j through exactly that point, so that nothing is interpolated.
        hits = [
            cast(solids, RayGrid.of_camera(shoot.intrinsics, poses[j], [u], [v]))
            for u, v in pixels[inside]
        ]
        ratio = np.array([hit.depth.item() for hit in hits]) / expected[inside]
        on_shell = np.array([hit.index.item() == 0 for hit in hits])
        assert inside.sum() > 50 and on_shell.sum() > 20
        assert (ratio < 1 + 1e-4).all(), "view j sees through what view i saw"
        # Nothing lies behind the room's walls: what view j sees there, view i saw at that depth.
        np.testing.assert_allclose(ratio[on_shell], 1, atol=1e-4)
        # Elsewhere something nearer may hide the point, but most are seen by both.
        assert (np.abs(ratio - 1) < 1e-4).mean() > 0.5


def test_room_keeps_its_promises():
    for number in range(6):
        shoot = plan_scene(Recipe(seed=5, images_per_scene=15), number)
        room, eyes = shoot.room, shoot.poses[:, :3, 3]
        assert (room.size >= [3, 3, 2.3]).all() and (room.size <= [7, 7, 3.2]).all()
        assert FEWEST_THINGS <= room.number_of_things <= MOST_THINGS
        assert 1 <= len(room.lights) <= 3
        assert min(p.distance(eyes).min() for p in room.primitives) > CLEARANCE
        assert (eyes[:, 2] > 1.2).all() and (eyes[:, 2] < 1.8).all()
        rotations = shoot.poses[:, :3, :3]
        np.testing.assert_allclose(
            rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(rotations), 1)
        # Image down must point down in the world, whose z is up.
        assert (rotations[:, 2, 1] < -0.5).all()
        fov = 2 * np.degrees(np.arctan(112 / shoot.intrinsics[0, 0]))
        assert 50 <= fov <= 75 and shoot.intrinsics[0, 2] == 111.5


@pytest.mark.parametrize(
    "pattern",
    sorted({*textures.FLOORS, *textures.WALLS, *textures.PATTERNS}, key=lambda p: p.__name__),
)
def test_textures_tile_and_are_not_blank(pattern):
    texture = pattern(np.random.default_rng(4), 64)
    assert texture.shape == (64, 64, 3) and texture.dtype == np.float32
    assert texture.min() >= 0 and texture.max() <= 1 and texture.std(axis=(0, 1)).max() > 3e-3


def test_noise_continues_over_its_borders():
    noise = textures.noise(np.random.default_rng(0), 128, 4, 3)
    within, across = np.abs(np.diff(noise, axis=0)).max(), np.abs(noise[0] - noise[-1]).max()
    assert across <= 1.5 * within


def test_distant_textures_keep_their_mean_light():
    palette = Palette(np.random.default_rng(1))
    palette.pick("floor")
    materials = palette.materials()
    texture, count = materials.texture[0], 4096
    place = np.random.default_rng(0).random((2, count)).astype(np.float32)
    still = np.zeros((2, count), np.float32)
    near, far = (
        materials.atlas.sample(np.full(count, texture), place, np.full(count, level), still).mean(0)
        for level in (0, 99)
    )
    np.testing.assert_allclose(near, far, atol=0.02)


def test_layout_is_complete(tmp_path):
    make_rooms(tmp_path, 2, SMALL, num_workers=1, contact_sheets=1)
    data = read_metadata(tmp_path)
    assert data.scenes.tolist() == ["room_3_00000", "room_3_00001"]
    assert data.sceneids.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.intrinsics.shape == (6, 3, 3) and data.intrinsics.dtype == np.float32
    assert data.trajectories.shape == (6, 4, 4) and data.trajectories.dtype == np.float32
    assert data.pairs.ndim == 2 and data.pairs.shape[1] == 3 and len(data.pairs) > 0
    same_scene = data.pairs[:, :2].astype(int) // 3
    assert (same_scene[:, 0] == same_scene[:, 1]).all()
    assert (data.pairs[:, 2] >= 0.2).all() and (data.pairs[:, 2] <= 0.9).all()
    assert len(list(tmp_path.glob("contact_sheet_*.png"))) == 1
    for index, name in enumerate(data.images):
        scene = data.scenes[data.sceneids[index]]
        assert cv2.imread(str(image_path(tmp_path, scene, name))).shape == (32, 48, 3)
        depth = read_depth(depth_path(tmp_path, scene, name))
        assert depth.shape == (32, 48) and (depth > 0).all()


def test_files_do_not_depend_on_workers_or_on_the_number_of_scenes(tmp_path):
    make_rooms(tmp_path / "one", 1, SMALL, num_workers=1, contact_sheets=0)
    make_rooms(tmp_path / "two", 2, SMALL, num_workers=2, contact_sheets=0)
    files = sorted(p for p in (tmp_path / "one").rglob("room_*/**/*.*g") if p.is_file())
    assert len(files) == 3 * 2
    for file in files:
        twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == twin.read_bytes(), file.name
    one, two = read_metadata(tmp_path / "one"), read_metadata(tmp_path / "two")
    np.testing.assert_array_equal(one.trajectories, two.trajectories[:3])
    np.testing.assert_array_equal(one.pairs, two.pairs[: len(one.pairs)])
    assert not np.array_equal(two.trajectories[:3], two.trajectories[3:])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num_scenes", "0"], "num_scenes must be 1 or more, got 0"),
        (["--resolution", "100"], "multiples of 16"),
        (["--resolution", "224", "100"], "224 x 96 is near"),
        (["--resolution", "0"], "multiples of 16"),
        (["--resolution", "32", "32", "32"], "one or two values, got 3"),
        (["--images_per_scene", "1"], "images_per_scene must be 2 or more"),
        (["--fov", "75", "50"], "the smaller first"),
        (["--fov", "190"], "fov must be degrees from 20 to 120"),
        (["--max_pairs", "0"], "max_pairs must be 1 or more"),
        (["--num_workers", "0"], "num_workers must be 1 or more"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--contact_sheets", "-1"], "contact_sheets must be 0 or more"),
    ],
)
def test_bad_arguments_say_what_to_change(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path / "rooms"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "rooms").exists()


def test_plain_walls_lose_their_texture_and_nothing_else_changes():
    textured, plain = (
        plan_scene(Recipe(images_per_scene=3, resolution=(48, 32), seed=3, plain_walls=said), 0)
        for said in (False, True)
    )
    np.testing.assert_array_equal(textured.poses, plain.poses)
    np.testing.assert_array_equal(textured.intrinsics, plain.intrinsics)
    first, second = textured.room, plain.room
    for one, other in zip(first.primitives, second.primitives, strict=True):
        np.testing.assert_array_equal(one.centre, other.centre)
        np.testing.assert_array_equal(one.half, other.half)
    for key in ("texture", "scale", "offset", "tint", "glow"):
        np.testing.assert_array_equal(getattr(first.materials, key), getattr(second.materials, key))

    def colours(shoot, face: int) -> np.ndarray:
        """Linear colours of the shell's face, walls first, floor and ceiling last."""
        material = shoot.room.primitives[0].materials[face]
        place = np.random.default_rng(0).random((2, 500))
        texture = np.full(500, shoot.room.materials.texture[material])
        nothing = np.zeros(500, np.int32)
        return shoot.room.materials.atlas.sample(texture, place, nothing, np.zeros((2, 500)))

    for face in (0, 1, 2, 3, 5):
        assert np.ptp(colours(plain, face), axis=0).max() == 0
        # As bright as before.
        mean = colours(textured, face).mean(0)
        np.testing.assert_allclose(colours(plain, face)[0], mean, rtol=0.15, atol=0.02)
    np.testing.assert_array_equal(colours(plain, 4), colours(textured, 4))
