"""A furnished house: rooms joined by doorways, their light, and a walk through all of them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from datasets_preprocess.rooms.house_layout import (
    FEWEST_ROOMS,
    HALF_WALL,
    MOST_ROOMS,
    Cell,
    Doorway,
    Layout,
    random_layout,
)
from datasets_preprocess.rooms.house_walk import house_walk
from datasets_preprocess.rooms.materials import joined_materials
from datasets_preprocess.rooms.produce import Recipe, Shoot, random_intrinsics
from datasets_preprocess.rooms.render import Sensor
from datasets_preprocess.rooms.scene import Prism, Room, RoomBuilder
from datasets_preprocess.rooms.shapes import Kind, Primitive
from datasets_preprocess.rooms.thing import Thing
from datasets_preprocess.rooms.wall_things import Mounted

BODY_CLEARANCE = 0.22
_BODY_LEVELS = (0.25, 0.6, 0.95)
_BEFORE_DOOR = 0.8
_NEAR_ROOM = 1.2
_CASING, _INTO_OPENING, _OFF_WALL = 0.07, 0.012, 0.015


@dataclass(frozen=True)
class HouseRecipe(Recipe):
    """A house of ``rooms`` rooms, and a walk of ``images_per_scene`` frames; see ``Recipe``."""

    images_per_scene: int = 200
    resolution: tuple[int, int] = (224, 176)
    fov: tuple[float, float] = (60.0, 72.0)
    rooms: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not FEWEST_ROOMS <= self.rooms <= MOST_ROOMS:
            raise ValueError(f"rooms must be {FEWEST_ROOMS} to {MOST_ROOMS}, got {self.rooms}")

    def scene_name(self, number: int) -> str:
        return f"house_{self.seed}_{number:05d}"


@dataclass(frozen=True, eq=False)
class House(Room):
    """Rooms of a layout as one: nothing is a shell, and lights have the room that they hang in."""

    layout: Layout
    light_rooms: tuple[int, ...]

    def cells(self, points: np.ndarray) -> np.ndarray:
        """(h, w) int8: number of the room that the points are in, with its half of the walls."""
        found = np.zeros(points.shape[1:], np.int8)
        for room, cell in enumerate(self.layout.cells):
            low, high = cell.low - HALF_WALL, cell.high + HALF_WALL
            inside = (points[0] >= low[0]) & (points[0] <= high[0])
            found[inside & (points[1] >= low[1]) & (points[1] <= high[1])] = room
        return found

    def bounds(self, cells: np.ndarray | None) -> tuple[list[ArrayLike], list[ArrayLike]]:
        lowest = np.float32([[*cell.low, 0.0] for cell in self.layout.cells])
        highest = np.float32([[*cell.high, cell.height] for cell in self.layout.cells])
        return [lowest[cells, k] for k in range(3)], [highest[cells, k] for k in range(3)]

    def reached(
        self, light: int, number: int, points: np.ndarray, cells: np.ndarray | None
    ) -> np.ndarray:
        """Which points (h, w) are in the light's room, or seen from it through one doorway."""
        room = self.light_rooms[light]
        source = self.lights[light].points[number].astype(np.float32)
        found = cells == room
        for doorway in self.layout.doorways_of(room):
            beyond = doorway.rooms[1 - doorway.rooms.index(room)]
            there = np.nonzero(cells == beyond)
            if len(there[0]):
                found[there] = _through(doorway, source, points[(slice(None), *there)])
        return found


def plan_house(recipe: HouseRecipe, number: int = 0) -> Shoot:
    """Draw everything about house ``number``; nothing is rendered yet. ``Shoot.room`` is a House.

    Raises:
        ValueError: too few frames for a smooth walk.
    """
    seeds = np.random.SeedSequence([recipe.seed, number, recipe.rooms]).spawn(4)
    walk_rng, room_rng, camera_rng = map(np.random.default_rng, seeds[:3])
    layout = random_layout(walk_rng, recipe.rooms)
    poses = house_walk(walk_rng, layout, recipe.images_per_scene)
    intrinsics = random_intrinsics(camera_rng, recipe)
    house = build_house(room_rng, layout, poses)
    noise_seeds = tuple(seeds[3].spawn(len(poses)))
    return Shoot(house, Sensor.random(camera_rng), intrinsics, poses, noise_seeds)


def build_house(rng: np.random.Generator, layout: Layout, poses: np.ndarray) -> House:
    """Furnish the rooms of a layout around a walk ``poses`` (n, 4, 4) camera-to-world."""
    builders = []
    for room, cell in enumerate(layout.cells):
        near = Cell(cell.low - _NEAR_ROOM, cell.high + _NEAR_ROOM, cell.height)
        local = poses[near.holds(poses[:, :3, 3])].copy()
        local[:, :3, 3] -= cell.centre
        builder = _RoomOfHouse(rng, layout, room, local)
        builder.furnish()
        builders.append(builder)
    lit = [builder.light() for builder in builders]
    starts = np.cumsum([0, *(len(builder.palette) for builder in builders[:-1])])
    lights, light_rooms, primitives = [], [], []
    for room, (builder, (own, _)) in enumerate(zip(builders, lit, strict=True)):
        centre = layout.cells[room].centre
        lights += [replace(light, points=light.points + centre) for light in own]
        light_rooms += [room] * len(own)
        primitives += [
            replace(
                part,
                centre=part.centre + centre,
                materials=tuple(int(starts[room]) + look for look in part.materials),
            )
            for part in builder.primitives
        ]
    return House(
        layout.size,
        tuple(primitives),
        joined_materials([builder.palette for builder in builders]),
        tuple(lights),
        np.mean([ambient for _, ambient in lit], 0),
        sum(len(builder.prisms) for builder in builders),
        layout,
        tuple(light_rooms),
    )


class _RoomOfHouse(RoomBuilder):
    """A room while it is being furnished, about its own middle: openings and the way stay free."""

    def __init__(self, rng: np.random.Generator, layout: Layout, room: int, poses: np.ndarray):
        cell = layout.cells[room]
        super().__init__(rng, cell.size, poses)
        self._outer = [divmod(side, 2) for side in layout.outer_sides(room)]
        self._only_outer = False
        self._doorways = [
            replace(
                doorway,
                place=doorway.place - cell.centre[doorway.axis],
                middle=doorway.middle - cell.centre[1 - doorway.axis],
            )
            for doorway in layout.doorways_of(room)
        ]
        eyes = poses[:, :3, 3]
        self._bodies = np.concatenate(
            [np.column_stack([eyes[:, :2], np.full(len(eyes), z)]) for z in _BODY_LEVELS]
        )
        shell = self.primitives.pop()
        for slab in layout.slabs():
            if slab.room == room:
                low, high = slab.low - cell.centre, slab.high - cell.centre
                self.primitives.append(self._masonry(low, high, slab.side, shell.materials))
        for doorway in self._doorways:
            self.prisms.append(self._free_before(doorway))
            # One of the two rooms has the casing, which is in the wall of both.
            if doorway.rooms[0] == room:
                self.primitives += self._casing(doorway)

    def _masonry(
        self, low: np.ndarray, high: np.ndarray, side: int, looks: tuple[int, ...]
    ) -> Primitive:
        """A slab whose texture goes on where the wall does, on the other side of an opening."""
        centre, across = (low + high) / 2, (1, 1, 0, 0, 0, 0)[side]
        along = 2 if side < 4 else 1
        look = self.palette.shifted(looks[side], centre[[across, along]])
        # Cast no shadow: what walls hide is known exactly.
        return Primitive(Kind.BOX, centre, np.eye(3), (high - low) / 2, (look,), False)

    def _free_before(self, doorway: Doorway) -> Prism:
        """Where nothing may stand or hang, on this side of a doorway."""
        low, high = np.zeros(2), np.zeros(2)
        low[1 - doorway.axis] = doorway.middle - doorway.half - _CASING
        high[1 - doorway.axis] = doorway.middle + doorway.half + _CASING
        low[doorway.axis] = doorway.place - HALF_WALL - _BEFORE_DOOR
        high[doorway.axis] = doorway.place + HALF_WALL + _BEFORE_DOOR
        corners = [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]
        return Prism(np.array(corners), 0.0, self.size[2])

    def _casing(self, doorway: Doorway) -> list[Primitive]:
        """Lining of jambs and head, and a threshold: they hide where two rooms' masonry meets."""
        look = self.palette.pick("wood", "paint")
        thing = Thing((doorway.half, HALF_WALL), doorway.height)
        wide, deep = doorway.half + _CASING, HALF_WALL + _OFF_WALL
        clear, high = doorway.half - _INTO_OPENING, doorway.height
        for sign in (-1, 1):
            edges = sorted((sign * clear, sign * wide))
            thing.block((edges[0], -deep, 0), (edges[1], deep, high - _INTO_OPENING), look)
        thing.block((-wide, -deep, high - _INTO_OPENING), (wide, deep, high + _CASING), look)
        thing.block((-clear, -deep, -0.01), (clear, deep, 0.006), look)
        x, y = doorway.centre
        return thing.placed((x, y, 0.0), np.pi / 2 if doorway.axis == 0 else 0.0)

    def _fits(self, thing: Thing, position: np.ndarray, yaw: float) -> bool:
        return super()._fits(thing, position, yaw) and all(
            part.distance(self._bodies).min() > BODY_CLEARANCE
            for part in thing.placed(tuple(position), yaw)
        )

    def _try_wall(self, mounted: Mounted) -> bool:
        # A window onto the next room would shine as if the sky were there.
        self._only_outer = mounted.is_window
        try:
            return super()._try_wall(mounted)
        finally:
            self._only_outer = False

    def _against_wall(self, thing: Thing, gap: float) -> tuple[np.ndarray, float, np.ndarray]:
        while True:
            position, yaw, inward = super()._against_wall(thing, gap)
            axis = int(np.abs(inward).argmax())
            if not self._only_outer or (axis, int(inward[axis] < 0)) in self._outer:
                return position, yaw, inward

    def _skirting(self) -> None:
        rng = self.rng
        look, (x, y, _) = self.palette.pick("paint", "wood"), self.size / 2
        high, thick = rng.uniform(0.04, 0.13), 0.008
        thing = Thing((x, y), high)
        for axis, reach, length in ((0, x, y), (1, y, x)):
            for sign in (-1, 1):
                doorways = [d for d in self._doorways if d.axis == axis and sign * d.place > 0]
                edges = sorted((d.middle - d.half, d.middle + d.half) for d in doorways)
                ends = [*(edge[0] - _CASING for edge in edges), length]
                starts = [-length, *(edge[1] + _CASING for edge in edges)]
                across = sorted((sign * reach, sign * (reach - 2 * thick)))
                for start, end in zip(starts, ends, strict=True):
                    low, top = [across[0], start], [across[1], end]
                    thing.block((*low[:: 1 - 2 * axis], 0), (*top[:: 1 - 2 * axis], high), look)
        self.primitives += thing.placed((0, 0, 0), 0.0)


def _through(doorway: Doorway, source: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (3, n) beyond a doorway see ``source`` (3,), before it, through the opening."""
    way = points - source[:, None]
    axis, along = doorway.axis, 1 - doorway.axis
    seen = np.ones(points.shape[1], bool)
    for plane in (doorway.place - HALF_WALL, doorway.place + HALF_WALL):
        # A point in the opening itself has not got as far as the farther face of the wall.
        share = np.clip((np.float32(plane) - source[axis]) / way[axis], 0, 1)
        beside = np.abs(source[along] + share * way[along] - doorway.middle)
        seen &= (beside < doorway.half) & (source[2] + share * way[2] < doorway.height)
    return seen
