"""The synthetic house: closed walls, a walk that keeps clear of everything, depth that agrees."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from datasets_preprocess.layout import depth_path, image_path, read_depth, read_metadata
from datasets_preprocess.make_house import main, make_house
from datasets_preprocess.rooms import lighting
from datasets_preprocess.rooms.house import BODY_CLEARANCE, HouseRecipe, plan_house
from datasets_preprocess.rooms.house_layout import HALF_WALL, random_layout
from datasets_preprocess.rooms.house_walk import MAX_TURN, house_walk, on_free_ground
from datasets_preprocess.rooms.raycast import RayGrid, Solids, cast
from datasets_preprocess.rooms.render import Renderer
from datasets_preprocess.rooms.scene import CLEARANCE
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project
from dust3r.utils.reprojection import overlap

WIDTH, HEIGHT = 96, 64
RECIPE = HouseRecipe(images_per_scene=130, resolution=(WIDTH, HEIGHT), seed=1, rooms=4)


@pytest.fixture(scope="module")
def shoot():
    return plan_house(RECIPE)


@pytest.fixture(scope="module")
def depths(shoot):
    """(n, HEIGHT, WIDTH) of all frames."""
    solids = Solids(shoot.room.primitives)
    return np.stack(
        [
            cast(solids, RayGrid.of_pixels(shoot.intrinsics, pose, WIDTH, HEIGHT)).depth
            for pose in shoot.poses
        ]
    )


def angles(first, second):
    traces = np.einsum("nij,nij->n", first[:, :3, :3], second[:, :3, :3])
    return np.arccos(np.clip((traces - 1) / 2, -1, 1))


@pytest.mark.parametrize("rooms", [4, 5, 6, 8])
def test_rooms_and_walls_fill_the_house_without_a_gap(rooms):
    layout = random_layout(np.random.default_rng(rooms), rooms)
    half = layout.size[:2] / 2
    points = np.random.default_rng(0).uniform(-1, 1, (20000, 3)) * [*half, 1] + [0, 0, 1]
    matter = np.zeros(len(points), bool)
    for slab in layout.slabs():
        matter |= ((points >= slab.low) & (points <= slab.high)).all(1)
    inside = np.zeros(len(points), bool)
    for cell in layout.cells:
        assert (cell.size > [2.5, 2.5, 2.3]).all()
        inside |= cell.holds(points)
    opening = np.zeros(len(points), bool)
    for doorway in layout.doorways:
        across = np.abs(points[:, doorway.axis] - doorway.place) <= HALF_WALL
        beside = doorway.distance_beside(points) > 0
        opening |= across & beside & (points[:, 2] < doorway.height)
    np.testing.assert_array_equal(matter, ~(inside | opening))


def test_seeds_differ():
    first, second = (random_layout(np.random.default_rng(seed), 5) for seed in (0, 1))
    assert not np.allclose(first.size, second.size)


@pytest.mark.parametrize("rooms", [4, 5, 6, 8])
def test_walks_go_through_all_rooms_and_doorways_and_come_back(rooms):
    layout = random_layout(np.random.default_rng(rooms), rooms)
    poses = house_walk(np.random.default_rng(rooms), layout, 30 * rooms)
    eyes, after = poses[:, :3, 3], np.roll(poses, -1, 0)
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2) - np.eye(3), 0, atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1)
    np.testing.assert_array_equal(poses[:, 3], np.tile([0, 0, 0, 1.0], (len(poses), 1)))
    assert on_free_ground(layout, eyes).all()
    assert angles(poses, after).max() <= MAX_TURN
    steps = np.linalg.norm(after[:, :3, 3] - eyes, axis=1)
    assert steps.max() < 1.12 * steps.min() and steps.max() < 0.4
    assert ((eyes[:, 2] > 1.3) & (eyes[:, 2] < 1.75)).all()
    order = [room for pose in eyes for room, c in enumerate(layout.cells) if c.holds(pose[None])[0]]
    changes = [a for a, b in zip(order, order[1:], strict=False) if a != b]
    assert changes + order[-1:] == [*range(rooms), 0]


def test_cameras_and_their_bodies_touch_nothing(shoot):
    eyes = shoot.poses[:, :3, 3]
    walls = {id(p) for p in shoot.room.primitives if not p.casts_shadow}
    things = [p for p in shoot.room.primitives if id(p) not in walls]
    assert len(things) > 100
    assert min(part.distance(eyes).min() for part in shoot.room.primitives) > 0.3
    standing = [p for p in things if p.centre[2] - p.half.min() > 0.05 or p.half[2] > 0.1]
    furniture = [p for p in standing if min(p.distance(eyes)) > CLEARANCE]
    body = eyes * [1, 1, 0] + [0, 0, 0.6]
    assert min(part.distance(body).min() for part in furniture) > BODY_CLEARANCE - 1e-9


def test_things_lie_in_their_room_and_out_of_the_doorways(shoot):
    layout = shoot.room.layout
    for part in shoot.room.primitives:
        if part.casts_shadow:
            corners = part.corners()
            home = [cell.holds(corners, -0.1).all() for cell in layout.cells]
            casing = [
                np.abs(part.centre[:2] - d.centre).max() < d.half + 0.1 for d in layout.doorways
            ]
            assert any(home) or any(casing)
    for doorway in layout.doorways:
        offsets = np.linspace(-0.5, 0.5, 11)[:, None] * np.eye(2)[doorway.axis]
        way = np.column_stack([doorway.centre + offsets, np.full(11, 1.0)])
        assert min(part.distance(way).min() for part in shoot.room.primitives) > 0.3


def test_no_ray_leaves_the_house(shoot, depths):
    assert np.isfinite(depths).all()
    points = depthmap_to_pts3d(
        depths.astype(float), np.tile(shoot.intrinsics, (len(depths), 1, 1)), shoot.poses
    )
    low = np.array([*(-shoot.room.size[:2] / 2 + HALF_WALL), 0.0])
    high = np.array([*(shoot.room.size[:2] / 2 - HALF_WALL), shoot.room.layout.top])
    # Less than a wall's own thickness beyond the inner faces of the outermost walls: not at all.
    assert (points >= low - 2e-3).all() and (points <= high + 2e-3).all()
    # Looked at in all directions from places all over the house, and from the doorways.
    solids, layout = Solids(shoot.room.primitives), shoot.room.layout
    rng = np.random.default_rng(0)
    places = [*(d.centre for d in layout.doorways)]
    places += [c.centre[:2] + rng.uniform(-0.4, 0.4, 2) * c.size[:2] for c in layout.cells]
    cells = np.linspace(-1, 1, 64)
    for place in places:
        for axis in range(3):
            for sign in (-1.0, 1.0):
                others = [np.eye(3)[k] for k in range(3) if k != axis]
                origin = np.array([*place, 1.5])
                grid = RayGrid(origin, *others, sign * np.eye(3)[axis], cells, cells)
                assert np.isfinite(cast(solids, grid).depth).all()


def test_every_frame_sees_something_and_half_of_the_next(shoot, depths):
    assert depths.min() > 0.2
    assert np.median(depths, axis=(1, 2)).min() > 0.8
    for n in range(len(depths)):
        first, second = (
            (depths[k], shoot.intrinsics, shoot.poses[k]) for k in (n, (n + 1) % len(depths))
        )
        assert overlap(*first, *second, stride=4) >= 0.5


def test_depth_of_neighbouring_frames_agrees(shoot, depths):
    for n in range(0, len(depths) - 2, 7):
        world = depthmap_to_pts3d(depths[n].astype(float), shoot.intrinsics, shoot.poses[n])
        pixels, z = project(geotrf(inv(shoot.poses[n + 2]), world), shoot.intrinsics)
        other = depths[n + 2]
        # Where the other frame's surface is flat, inverse depth between its pixels is known.
        inverse = 1 / other
        bent = np.abs(cv2.blur(inverse, (3, 3)) - inverse) / inverse
        flat = cv2.dilate(bent, np.ones((3, 3))) < 0.003
        with np.errstate(invalid="ignore"):
            column, row = np.moveaxis(np.nan_to_num(pixels, nan=-1e6).clip(-1e6, 1e6), -1, 0)
        inside = (
            (z > 0.1) & (column >= 1) & (column <= WIDTH - 2) & (row >= 1) & (row <= HEIGHT - 2)
        )
        column, row, z = column[inside], row[inside], z[inside]
        flat = flat[row.round().astype(int), column.round().astype(int)]
        sampled = (
            1
            / cv2.remap(
                inverse,
                column.astype(np.float32)[None],
                row.astype(np.float32)[None],
                cv2.INTER_LINEAR,
            )[0]
        )
        # What is in front of the carried point hides it; nothing may be seen through it.
        visible = flat & (sampled > 0.99 * z)
        assert visible.mean() > 0.3
        assert (np.abs(sampled - z) < 0.01 * z)[visible].all()


def test_light_goes_through_doorways_and_not_through_walls(shoot):
    house = shoot.room
    doorway = house.layout.doorways[0]
    room = doorway.rooms[0]
    light = house.light_rooms.index(room)
    source = np.array([*doorway.centre, 1.2])
    source[doorway.axis] -= 1.0
    lit = replace(
        house,
        lights=tuple(
            replace(one, points=np.tile(source, (4, 1))) if k == light else one
            for k, one in enumerate(house.lights)
        ),
    )
    # A line of points beyond the wall, as far from it as the light is.
    aside = np.linspace(-3, 3, 61)
    points = np.tile(source[:, None, None], (1, 1, 61)).astype(np.float32)
    points[doorway.axis] += 2.0
    points[1 - doorway.axis] += aside[None].astype(np.float32)
    cells = lit.cells(points)
    reached = lit.reached(light, 0, points, cells)[0]
    beyond = cells[0] == doorway.rooms[1]
    through = np.abs(aside) / 2 * (1.0 + HALF_WALL) < doorway.half
    assert reached[beyond].any() and not reached[beyond].all()
    np.testing.assert_array_equal(reached[beyond], through[beyond])
    # A room without a doorway to the light's room stays dark.
    joined = {n for d in house.layout.doorways_of(room) for n in d.rooms}
    for other in set(range(4)) - joined:
        far = house.layout.cells[other].centre[:, None, None].astype(np.float32)
        assert not lit.reached(light, 0, far, lit.cells(far)).any()


def test_files_are_complete(shoot, tmp_path, monkeypatch):
    chosen = range(0, 130, 10)
    part = replace(
        shoot,
        room=replace(shoot.room, lights=shoot.room.lights[:2]),
        poses=shoot.poses[chosen],
        noise_seeds=shoot.noise_seeds[: len(chosen)],
    )
    monkeypatch.setattr(lighting, "SHADOW_TEXELS", 16)
    monkeypatch.setattr("datasets_preprocess.make_house.plan_house", lambda recipe: part)
    make_house(tmp_path, RECIPE, progress=False)
    data = read_metadata(tmp_path)
    assert data.scenes.tolist() == ["house_1_00000"] and len(data.images) == len(chosen)
    np.testing.assert_allclose(data.trajectories, part.poses, atol=1e-6)
    # The end of the walk sees what its beginning saw.
    assert [0, len(chosen) - 1] in data.pairs[:, :2].astype(int).tolist()
    for image in data.images:
        depth = read_depth(depth_path(tmp_path, data.scenes[0], image))
        picture = cv2.imread(str(image_path(tmp_path, data.scenes[0], image)))
        assert depth.shape == (HEIGHT, WIDTH) and (depth > 0).all()
        assert picture.shape == (HEIGHT, WIDTH, 3) and picture.std() > 4
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "contact_sheet_house_1_00000.png",
        "plan_house_1_00000.png",
    }


def test_a_seed_gives_the_same_house_again(shoot):
    again = plan_house(RECIPE)
    np.testing.assert_array_equal(again.poses, shoot.poses)
    assert len(again.room.primitives) == len(shoot.room.primitives)
    for first, second in zip(again.room.primitives, shoot.room.primitives, strict=True):
        assert first.kind is second.kind and first.materials == second.materials
        np.testing.assert_array_equal(first.corners(), second.corners())
    pose, random = shoot.poses[5], np.random.default_rng
    camera = shoot.intrinsics, pose, WIDTH, HEIGHT
    dark = replace(shoot.room, lights=()), replace(again.room, lights=())
    images = [Renderer(house, shoot.sensor).render(*camera, random(0))[0] for house in dark]
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rooms", "3"], "rooms must be 4 to 8, got 3"),
        (["--rooms", "9"], "rooms must be 4 to 8, got 9"),
        (["--num_frames", "20"], "20 frames are too few for a smooth walk through 5 rooms.*150"),
        (["--num_frames", "1"], "images_per_scene must be 2 or more"),
        (["--resolution", "224", "168"], "multiples of 16"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path / "house"), *arguments])
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "house").exists()
