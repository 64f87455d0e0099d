"""A random room: its shell, things on the floor, on each other and on the walls, and its lights."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from datasets_preprocess.rooms import furniture, trinkets, wall_things
from datasets_preprocess.rooms.materials import Materials, Palette
from datasets_preprocess.rooms.shapes import Kind, Primitive
from datasets_preprocess.rooms.thing import Thing, Top

CLEARANCE = 0.35
FEWEST_THINGS, MOST_THINGS = 8, 25
_ATTEMPTS = 400


@dataclass(frozen=True, eq=False)
class Light:
    """An area light as four points, metres: ``points`` (4, 3), ``colour`` (3,) linear radiance at a
    metre, ``facing`` (3,) the way it shines, or None for all ways."""

    points: np.ndarray
    colour: np.ndarray
    facing: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Room:
    """Everything a picture is made from. ``size`` (3,) metres: the room spans [-size/2, size/2] in
    x and y and [0, size] in z. The first primitive is the shell. ``ambient`` (3,) linear."""

    size: np.ndarray
    primitives: tuple[Primitive, ...]
    materials: Materials
    lights: tuple[Light, ...]
    ambient: np.ndarray
    number_of_things: int

    def cells(self, points: np.ndarray) -> np.ndarray | None:
        """Which cell of a building each of the ``points`` (3, h, w) is in; None: it is one room."""
        return None

    def bounds(self, cells: np.ndarray | None) -> tuple[list[ArrayLike], list[ArrayLike]]:
        """Lowest and highest x, y, z of the room around points in ``cells``."""
        x, y, z = self.size
        return [-x / 2, -y / 2, 0.0], [x / 2, y / 2, z]

    def reached(
        self, light: int, number: int, points: np.ndarray, cells: np.ndarray | None
    ) -> np.ndarray | None:
        """Which ``points`` (3, h, w) no wall hides from point ``number`` of a light: (h, w) bool.

        None for all of them: light never leaves a convex room.
        """
        return None


def random_size(rng: np.random.Generator) -> np.ndarray:
    """(3,) metres: 3 to 7 wide and deep, 2.3 to 3.2 high."""
    return np.array([rng.uniform(3, 7), rng.uniform(3, 7), rng.uniform(2.3, 3.2)])


def make_room(
    rng: np.random.Generator, size: np.ndarray, poses: np.ndarray, plain: Collection[str] = ()
) -> Room:
    """Furnish a room of ``size`` (3,) around a camera walk ``poses`` (n, 4, 4) camera-to-world.

    No surface comes nearer than 0.35 m to a camera, nor into the metre before its lens. Surfaces
    of the roles in ``plain``, such as walls, have no texture.
    """
    builder = RoomBuilder(rng, size, poses, plain)
    builder.furnish()
    lights, ambient = builder.light()
    return Room(
        size,
        tuple(builder.primitives),
        builder.palette.materials(),
        lights,
        ambient,
        len(builder.prisms),
    )


@dataclass(frozen=True, eq=False)
class Prism:
    """The room that a thing takes: an oriented rectangle (4, 2) and its lowest and highest z."""

    corners: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, thing: Thing, position: np.ndarray, yaw: float) -> "Prism":
        axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        corners = position[:2] + (signs * thing.half) @ axes
        return cls(corners, position[2], position[2] + thing.height)

    def meets(self, other: "Prism") -> bool:
        """Whether the two overlap; they may touch."""
        touch = 1e-6
        if self.high <= other.low + touch or other.high <= self.low + touch:
            return False
        for corners in (self.corners, other.corners):
            edges = np.diff(corners[:3], axis=0)
            for axis in edges / np.linalg.norm(edges, axis=1, keepdims=True):
                mine, theirs = self.corners @ axis, other.corners @ axis
                if mine.max() <= theirs.min() + touch or theirs.max() <= mine.min() + touch:
                    return False
        return True


class RoomBuilder:
    """A room while it is being furnished."""

    def __init__(
        self,
        rng: np.random.Generator,
        size: np.ndarray,
        poses: np.ndarray,
        plain: Collection[str] = (),
    ):
        self.rng, self.size = rng, size
        self.palette = Palette(rng, plain)
        self.prisms: list[Prism] = []
        self.tops: list[Top] = []
        self.windows: list[tuple[np.ndarray, np.ndarray]] = []
        self.lamp = np.array([0, 0, size[2] - 0.3])
        eyes, ahead = poses[:, :3, 3], poses[:, :3, 2]
        self._eyes = eyes
        self._sight = np.concatenate([eyes + 0.5 * ahead, eyes + 0.9 * ahead])
        wall, other = self.palette.pick("wall"), self.palette.pick("wall")
        walls = [other if rng.random() < 0.3 else wall for _ in range(4)]
        faces = (*walls, self.palette.pick("floor"), self.palette.pick("ceiling"))
        centre = np.array([0, 0, size[2] / 2])
        self.primitives = [Primitive(Kind.SHELL, centre, np.eye(3), size / 2, tuple(faces))]

    def furnish(self) -> None:
        """Fill the room with 8 to 25 things, as far as they fit."""
        rng = self.rng
        roomy = FEWEST_THINGS + int(0.25 * self.size[0] * self.size[1])
        target = rng.integers(roomy, MOST_THINGS + 1)
        self._skirting()
        if rng.random() < 0.3:
            self._try_corner(furniture.partition(rng, self.palette))
        for builder in wall_things.openings(rng):
            for _ in range(4):
                if self._try_wall(builder(rng, self.palette)):
                    break
        self._ceiling_lamp()
        if rng.random() < 0.4:
            self._rug()
        # Walls first, then the middle, then what stands on top: each needs the former's places.
        on_floor = len(self.prisms) + max(4, int(0.6 * (target - len(self.prisms))))
        for attempt in range(_ATTEMPTS):
            if len(self.prisms) >= target:
                break
            if len(self.prisms) < on_floor and attempt < _ATTEMPTS // 2:
                self._try_floor()
            elif self.tops and rng.random() < 0.7:
                self._try_top()
            else:
                self._try_wall(wall_things.hanging(rng, self.palette))

    def light(self) -> tuple[tuple[Light, ...], np.ndarray]:
        """A window, a lamp or both, and a faint wide light; the ambient light."""
        rng = self.rng
        warmth = rng.uniform(0, 1)
        lamp = np.array([1.0, 0.93 - 0.13 * warmth, 0.85 - 0.35 * warmth])
        sky = np.array([0.85, 0.95, 1.1])
        lights = []
        for centre, facing in self.windows[:1]:
            across = np.cross([0, 0, 1], facing)
            spread = rng.uniform(0.1, 0.35)
            offsets = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
            points = [centre + spread * (a * across + [0, 0, b]) for a, b in offsets]
            lights.append(Light(np.array(points), sky * rng.uniform(3.0, 8.0), facing))
        if not lights or rng.random() < 0.5:
            points = self.lamp + rng.uniform(0.02, 0.12) * _TETRAHEDRON * [1, 1, 0.3]
            lights.append(Light(points, lamp * rng.uniform(1.5, 4.0)))
        wide = _TETRAHEDRON[:, :2] * self.size[:2] * rng.uniform(0.15, 0.3)
        high = np.column_stack([wide, np.full(4, 0.8 * self.size[2])])
        tone = (lamp + sky) / 2
        lights.append(Light(high, tone * rng.uniform(0.2, 0.6)))
        return tuple(lights), tone * rng.uniform(0.04, 0.14)

    def _fits(self, thing: Thing, position: np.ndarray, yaw: float) -> bool:
        prism = Prism.of(thing, position, yaw)
        if (np.abs(prism.corners) > self.size[:2] / 2 + 1e-6).any():
            return False
        if any(prism.meets(other) for other in self.prisms):
            return False
        return all(
            part.distance(self._eyes).min() > CLEARANCE
            and part.distance(self._sight).min() > CLEARANCE / 2
            for part in thing.placed(tuple(position), yaw)
        )

    def _try(self, thing: Thing, position: Sequence[float], yaw: float) -> bool:
        position = np.asarray(position, float)
        if not self._fits(thing, position, yaw):
            return False
        placed = thing.placed(tuple(position), yaw)
        self.primitives += placed
        self.prisms.append(Prism.of(thing, position, yaw))
        c, s = np.cos(yaw), np.sin(yaw)
        for top in thing.tops:
            x, y, z = top.centre
            centre = position + [c * x - s * y, s * x + c * y, z]
            # Turned tops are kept as the upright square inside them.
            self.tops.append(Top(tuple(centre), (min(top.half),) * 2))
        return True

    def _against_wall(self, thing: Thing, gap: float) -> tuple[np.ndarray, float, np.ndarray]:
        """Position (x, y), yaw and inward normal (2,) with the thing's back at a random wall."""
        axis, sign = self.rng.integers(2), self.rng.choice([-1.0, 1.0])
        reach = self.size[:2] / 2
        position = np.zeros(2)
        position[axis] = sign * (reach[axis] - thing.half[1] - gap)
        free = max(0.0, reach[1 - axis] - thing.half[0])
        position[1 - axis] = self.rng.uniform(-free, free)
        outward = np.eye(2)[axis] * sign
        return position, float(np.arctan2(-outward[0], outward[1])), -outward

    def _try_floor(self) -> bool:
        rng = self.rng
        if rng.random() < 0.55:
            builders = furniture.AGAINST_WALL
            thing = builders[rng.integers(len(builders))](rng, self.palette)
            position, yaw, _ = self._against_wall(thing, rng.choice([0.015, rng.uniform(0, 0.1)]))
        else:
            builders = furniture.FREE_STANDING
            thing = builders[rng.integers(len(builders))](rng, self.palette)
            position = rng.uniform(-1, 1, 2) * (self.size[:2] / 2 - min(thing.half))
            yaw = rng.uniform(0, 2 * np.pi)
        return self._try(thing, [*position, 0.0], yaw)

    def _try_top(self) -> bool:
        rng = self.rng
        top = self.tops[rng.integers(len(self.tops))]
        thing = trinkets.ON_TOP[rng.integers(len(trinkets.ON_TOP))](rng, self.palette)
        free = np.array(top.half) - np.hypot(*thing.half)
        if (free < 0).any() or top.centre[2] + thing.height > self.size[2]:
            return False
        x, y = np.array(top.centre[:2]) + rng.uniform(-1, 1, 2) * free
        return self._try(thing, [x, y, top.centre[2]], rng.uniform(0, 2 * np.pi))

    def _try_wall(self, mounted: wall_things.Mounted) -> bool:
        thing = mounted.thing
        if mounted.low + thing.height > self.size[2] - 0.05:
            return False
        position, yaw, inward = self._against_wall(thing, 0.0)
        if not self._try(thing, [*position, mounted.low], yaw):
            return False
        if mounted.is_window:
            middle = [*(position + 0.12 * inward), mounted.low + thing.height / 2]
            self.windows.append((np.array(middle), np.array([*inward, 0.0])))
        return True

    def _try_corner(self, thing: Thing) -> bool:
        corner = self.rng.choice([-1.0, 1.0], 2) * (self.size[:2] / 2 - thing.half)
        thing.height = self.size[2]
        return self._try(thing, [*corner, 0.0], 0.0)

    def _rug(self) -> None:
        rng = self.rng
        x, y = rng.uniform(0.2, 0.45, 2) * self.size[:2] / 2 + 0.2
        # Thin enough to stand on: it takes no room from the furniture.
        rug = Thing((x, y), 0.0)
        rug.box((0, 0, 0.004), (x, y, 0.004), self.palette.pick("fabric", "pattern"))
        self.primitives += rug.placed((*rng.uniform(-0.15, 0.15, 2) * self.size[:2], 0.0), 0.0)

    def _skirting(self) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            return
        look, (x, y, _) = self.palette.pick("paint", "wood"), self.size / 2
        high, thick = rng.uniform(0.04, 0.13), 0.008
        thing = Thing((x, y), high)
        for side in (-1, 1):
            thing.box((side * (x - thick), 0, high / 2), (thick, y, high / 2), look)
            thing.box((0, side * (y - thick), high / 2), (x, thick, high / 2), look)
        self.primitives += thing.placed((0, 0, 0), 0.0)

    def _ceiling_lamp(self) -> None:
        rng = self.rng
        lamp = wall_things.ceiling_lamp(rng, self.palette)
        for _ in range(10):
            x, y = rng.uniform(-0.3, 0.3, 2) * self.size[:2]
            if self._try(lamp, [x, y, self.size[2] - lamp.height], 0.0):
                self.lamp = np.array([x, y, self.size[2] - lamp.height - 0.05])
                return


_TETRAHEDRON = np.array([[1, 0.3, 0.5], [-0.3, 1, -0.5], [-1, -0.3, 0.5], [0.3, -1, -0.5]])
