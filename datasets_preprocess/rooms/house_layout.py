"""The ground plan of a house: rooms in two rows, joined by doorways into one round.

Rooms are numbered the way the round goes: along one row and back along the other. Every room owns
half of each wall around it, so that the cells of the rooms tile the plan without a gap. Metres; the
middle of the house is the origin, the floor is at z = 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FEWEST_ROOMS, MOST_ROOMS = 4, 8
HALF_WALL = 0.08
ABOVE_CEILING, BELOW_FLOOR = 0.2, 0.1
_HALF_DOOR, _BESIDE_DOOR = (0.44, 0.52), 0.35


@dataclass(frozen=True, eq=False)
class Doorway:
    """An opening in the wall across ``axis`` (0 or 1), at ``place`` on that axis (mid-wall).

    It spans [middle - half, middle + half] along the other axis and [0, height] in z. ``rooms`` are
    the two that it joins, the one on the lower side first.
    """

    rooms: tuple[int, int]
    axis: int
    place: float
    middle: float
    half: float
    height: float

    @property
    def centre(self) -> np.ndarray:
        """(2,) in the middle of the wall."""
        return np.array([self.place, self.middle] if self.axis == 0 else [self.middle, self.place])

    def distance_beside(self, points: np.ndarray) -> np.ndarray:
        """(n,) metres of points (n, 2) from the nearer jamb's plane, positive in the opening."""
        return self.half - np.abs(points[:, 1 - self.axis] - self.middle)


@dataclass(frozen=True, eq=False)
class Cell:
    """A room: ``low`` and ``high`` (2,) of its free space between the walls; its ``height``."""

    low: np.ndarray
    high: np.ndarray
    height: float

    @property
    def centre(self) -> np.ndarray:
        """(3,) on the floor."""
        return np.array([*(self.low + self.high) / 2, 0.0])

    @property
    def size(self) -> np.ndarray:
        """(3,) wide, deep and high."""
        return np.array([*(self.high - self.low), self.height])

    def holds(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Which points (n, 2 or 3) are inside, ``margin`` or more from its walls: (n,) bool."""
        xy = points[:, :2]
        return ((xy >= self.low + margin) & (xy <= self.high - margin)).all(1)


@dataclass(frozen=True, eq=False)
class Slab:
    """A block of masonry, ``low`` to ``high`` (3,). ``side`` is the face of its room that it makes:
    0 to 3 for the walls towards -x, +x, -y, +y, 4 for the floor and 5 for the ceiling."""

    room: int
    side: int
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """Rooms in the order of the round; doorway i leads from room i to the next."""

    cells: tuple[Cell, ...]
    doorways: tuple[Doorway, ...]

    @property
    def size(self) -> np.ndarray:
        """(3,) metres of the whole house, its outer walls included."""
        low = np.min([cell.low for cell in self.cells], 0) - HALF_WALL
        high = np.max([cell.high for cell in self.cells], 0) + HALF_WALL
        return np.array([*(high - low), self.top])

    @property
    def top(self) -> float:
        """Height of the walls, above every ceiling."""
        return max(cell.height for cell in self.cells) + ABOVE_CEILING

    def doorways_of(self, room: int) -> list[Doorway]:
        return [doorway for doorway in self.doorways if room in doorway.rooms]

    def outer_sides(self, room: int) -> list[int]:
        """Sides (see ``Slab``) of the room with nothing behind them."""
        cell, half = self.cells[room], self.size[:2] / 2
        gaps = [*np.stack([cell.low + half, half - cell.high], 1).ravel()]
        return [side for side, gap in enumerate(gaps) if gap < 2 * HALF_WALL]

    def slabs(self) -> Iterator[Slab]:
        """Walls with their openings, floors and ceilings."""
        for room, cell in enumerate(self.cells):
            low, high = cell.low - HALF_WALL, cell.high + HALF_WALL
            yield Slab(room, 4, np.array([*low, -BELOW_FLOOR]), np.array([*high, 0.0]))
            yield Slab(room, 5, np.array([*low, cell.height]), np.array([*high, self.top]))
            for side in range(4):
                axis, outer = divmod(side, 2)
                first = np.array([*low, -BELOW_FLOOR])
                last = np.array([*high, self.top])
                (first if outer else last)[axis] = (cell.high if outer else cell.low)[axis]
                openings = [
                    doorway
                    for doorway in self.doorways_of(room)
                    if doorway.axis == axis and doorway.rooms[1 - outer] == room
                ]
                for piece in _around(first, last, 1 - axis, openings):
                    yield Slab(room, side, *piece)


def random_layout(rng: np.random.Generator, rooms: int) -> Layout:
    """Rooms of about 3 to 6 metres, in two rows.

    Raises:
        ValueError: fewer rooms than 4 or more than 8.
    """
    if not FEWEST_ROOMS <= rooms <= MOST_ROOMS:
        raise ValueError(f"a house has {FEWEST_ROOMS} to {MOST_ROOMS} rooms, not {rooms}")
    counts = rooms // 2, rooms - rooms // 2
    width = counts[1] * rng.uniform(3.7, 4.5)
    depths = rng.uniform(3.6, 4.8, 2)
    levels = np.cumsum([0, *depths]) - depths.sum() / 2
    splits = [_split(rng, width, count) for count in counts]
    # Along the lower row and back along the upper one.
    places = [(0, k) for k in range(counts[0])] + [(1, k) for k in reversed(range(counts[1]))]
    cells = tuple(
        Cell(
            np.array([splits[row][k], levels[row]]) + HALF_WALL,
            np.array([splits[row][k + 1], levels[row + 1]]) - HALF_WALL,
            rng.uniform(2.4, 2.9),
        )
        for row, k in places
    )
    return Layout(cells, tuple(_doorway(rng, cells, n, (n + 1) % rooms) for n in range(rooms)))


def _split(rng: np.random.Generator, width: float, count: int) -> np.ndarray:
    """(count + 1,) places of the walls across a row."""
    even = np.linspace(-width / 2, width / 2, count + 1)
    even[1:-1] += rng.uniform(-0.45, 0.45, count - 1)
    return even


def _doorway(rng: np.random.Generator, cells: tuple[Cell, ...], a: int, b: int) -> Doorway:
    first, second = cells[a], cells[b]
    gaps = [max(second.low[k] - first.high[k], first.low[k] - second.high[k]) for k in (0, 1)]
    axis = int(np.argmax(gaps))
    if first.low[axis] > second.low[axis]:
        a, b, first, second = b, a, second, first
    half = rng.uniform(*_HALF_DOOR)
    along = 1 - axis
    low = max(first.low[along], second.low[along]) + half + _BESIDE_DOOR
    high = min(first.high[along], second.high[along]) - half - _BESIDE_DOOR
    place = (first.high[axis] + second.low[axis]) / 2
    return Doorway((a, b), axis, place, rng.uniform(low, high), half, rng.uniform(2.0, 2.1))


def _around(
    low: np.ndarray, high: np.ndarray, along: int, openings: list[Doorway]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boxes that a wall from ``low`` to ``high`` (3,) along an axis is left with."""
    start = low.copy()
    for doorway in sorted(openings, key=lambda one: one.middle):
        end = high.copy()
        end[along] = doorway.middle - doorway.half
        yield start, end
        lintel, beyond = low.copy(), high.copy()
        lintel[along], lintel[2] = doorway.middle - doorway.half, doorway.height
        beyond[along] = doorway.middle + doorway.half
        yield lintel, beyond
        start = low.copy()
        start[along] = doorway.middle + doorway.half
    yield start, high.copy()
