"""One smooth walk of a camera through all rooms of a house and back to where it began."""

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from datasets_preprocess.rooms.house_layout import HALF_WALL, Cell, Doorway, Layout
from datasets_preprocess.rooms.walk import camera_poses

MAX_TURN = np.radians(12)
OFF_WALLS, OFF_JAMBS = 0.45, 0.33
EYE_LEVEL = (1.4, 1.65)
_STRAIGHT = 0.45
_LEAST_STEP, _ROUNDED = 0.9, 0.25
_DEEP_INSIDE = 2
_ATTEMPTS = 120
_ENOUGH = 12
_CALMER = (1.0, 1.4, 2.0, 2.8)
_LOOK_CLEARANCE = 1.3
_FINE = 40


def house_walk(rng: np.random.Generator, layout: Layout, count: int) -> np.ndarray:
    """Camera-to-world poses (count, 4, 4) of a round through the rooms, evenly spaced.

    The last pose is one step before the first. Cameras stay 0.45 m off the walls and 0.33 m off the
    jambs of doorways, at eye level, and turn by 12 degrees or less from frame to frame. They look
    along the way and to either side in turn. Of several random walks, the one that looks least at
    walls from near by.

    Raises:
        ValueError: so few frames that they cannot turn slowly enough.
    """
    best, best_cost, found, slowest = None, np.inf, 0, np.inf
    for _ in range(_ATTEMPTS):
        path = _path(rng, layout, count)
        if path is None:
            continue
        seed = int(rng.integers(2**32))
        for calm in _CALMER:
            poses = _look(np.random.default_rng(seed), path, calm)
            turn = _largest_turn(poses)
            if turn <= MAX_TURN:
                break
        slowest = min(slowest, turn)
        if turn > MAX_TURN:
            continue
        cost = float(np.mean(_free_ahead(layout, poses) < _LOOK_CLEARANCE))
        found += 1
        if cost < best_cost:
            best, best_cost = poses, cost
        if found == _ENOUGH:
            break
    if best is None:
        raise ValueError(
            f"{count} frames are too few for a smooth walk through {len(layout.cells)} rooms (it "
            f"would turn by {np.degrees(slowest):.0f} degrees from one to the next, and 12 are the "
            f"most): take {30 * len(layout.cells)} or more, or fewer rooms"
        )
    return best


def on_free_ground(layout: Layout, points: np.ndarray) -> np.ndarray:
    """Which points (n, 2 or 3) are in a room off its walls, or in a doorway off its jambs: (n,)."""
    free = np.zeros(len(points), bool)
    for cell in layout.cells:
        free |= cell.holds(points, OFF_WALLS)
    for doorway in layout.doorways:
        through = np.abs(points[:, doorway.axis] - doorway.place) < HALF_WALL + OFF_WALLS + 1e-6
        free |= through & (doorway.distance_beside(points) > OFF_JAMBS)
    return free


def _path(rng: np.random.Generator, layout: Layout, count: int) -> np.ndarray | None:
    """(count, 2) even places of a closed walk; None where it meets a wall or bends back."""
    knots = []
    for room, cell in enumerate(layout.cells):
        entry, leaving = layout.doorways[room - 1], layout.doorways[room]
        start, end = _before(cell, entry), _before(cell, leaving)
        knots += [entry.centre, start, *_stops(rng, cell, start, end), end]
    # From the middle of the first room on, where a walk would begin.
    knots = np.array([*knots[_DEEP_INSIDE:], *knots[: _DEEP_INSIDE + 1]])
    lengths = np.linalg.norm(np.diff(knots, axis=0), axis=1)
    # Centripetal spacing keeps the spline from swinging out at short legs.
    spline = CubicSpline(np.cumsum([0, *lengths**0.5]), knots, bc_type="periodic")
    rough = spline(np.linspace(0, spline.x[-1], _FINE * len(knots) + 1))
    # Short legs make hairpins, which are rounded off.
    fine, length = _evenly(rough, _FINE * len(knots))
    fine = gaussian_filter1d(fine, _ROUNDED / length * len(fine), axis=0, mode="wrap")
    path, length = _evenly(np.concatenate([fine, fine[:1]]), count)
    steps = np.linalg.norm(np.roll(path, -1, 0) - path, axis=1)
    bends_sharply = steps.min() < _LEAST_STEP * length / count
    return path if on_free_ground(layout, fine).all() and not bends_sharply else None


def _evenly(line: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """(count, 2) places at even distances on a closed line (n, 2), its first point also its last;
    and its length."""
    travelled = np.cumsum([0, *np.linalg.norm(np.diff(line, axis=0), axis=1)])
    even = np.arange(count) / count * travelled[-1]
    places = np.stack([np.interp(even, travelled, line[:, k]) for k in (0, 1)], 1)
    return places, float(travelled[-1])


def _before(cell: Cell, doorway: Doorway) -> np.ndarray:
    """(2,) in the room, straight before a doorway."""
    place = doorway.centre
    inward = np.sign(cell.centre[doorway.axis] - place[doorway.axis])
    place[doorway.axis] += inward * (HALF_WALL + OFF_WALLS + _STRAIGHT)
    return place


def _stops(
    rng: np.random.Generator, cell: Cell, start: np.ndarray, end: np.ndarray
) -> list[np.ndarray]:
    """Two places (2,) on the far side of the room, seen from the straight way through it."""
    middle, way = cell.centre[:2], end - start
    across = np.array([-way[1], way[0]]) / max(np.linalg.norm(way), 1e-6)
    aside = across * (np.sign((middle - (start + end) / 2) @ across) or 1.0)
    reach = (cell.high - cell.low) / 2 - OFF_WALLS - 0.15
    bulge = rng.uniform(0.2, 0.9)
    stops = []
    for share in (0.3, 0.7):
        place = start + share * way + aside * bulge * reach.min() + rng.normal(0, 0.2, 2)
        stops.append(np.clip(place, middle - reach, middle + reach))
    return stops


def _look(rng: np.random.Generator, path: np.ndarray, calm: float) -> np.ndarray:
    """Poses (n, 4, 4) on a closed path (n, 2): along it, and to the sides in turn.

    A ``calm`` above 1 turns more slowly, less along the way and less to the sides.
    """
    count = len(path)
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    heading = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    closing = (ahead[0] * ahead[-1]).sum(), ahead[-1, 0] * ahead[0, 1] - ahead[-1, 1] * ahead[0, 0]
    once_round = heading[-1] - heading[0] + np.arctan2(closing[1], closing[0])
    phase = 2 * np.pi * np.arange(count) / count
    drift = once_round * np.arange(count) / count
    width = calm * rng.uniform(0.012, 0.022) * count
    yaw = gaussian_filter1d(heading - drift, width, mode="wrap") + drift
    # Whole numbers of swings, so that the end joins the beginning.
    swings = int(rng.integers(4, 8))
    yaw += np.radians(rng.uniform(25, 55) / calm) * np.sin(
        swings * phase + rng.uniform(0, 2 * np.pi)
    )
    pitch = np.radians(rng.uniform(-14, -7) + rng.uniform(2, 5) * np.sin(9 * phase + 1.0))
    roll = np.radians(rng.uniform(0, 1.5)) * np.sin(13 * phase)
    level = rng.uniform(*EYE_LEVEL) + 0.04 * np.sin(11 * phase)
    return camera_poses(np.column_stack([path, level]), yaw, pitch, roll)


def _largest_turn(poses: np.ndarray) -> float:
    """Radians from a pose to the next, the first after the last."""
    rotations = poses[:, :3, :3]
    traces = np.einsum("nij,nij->n", rotations, np.roll(rotations, -1, 0))
    return float(np.arccos(np.clip((traces - 1) / 2, -1, 1)).max())


def _free_ahead(layout: Layout, poses: np.ndarray) -> np.ndarray:
    """Horizontal metres (n,) from each camera to the wall before it, doorways being open."""
    origin, heading = poses[:, :2, 3], poses[:, :2, 2]
    heading = heading / np.linalg.norm(heading, axis=1, keepdims=True)
    heading = np.where(np.abs(heading) < 1e-9, 1e-9, heading)
    nearest = np.full(len(poses), np.inf)
    for slab in layout.slabs():
        if slab.low[2] > EYE_LEVEL[1] or slab.high[2] < EYE_LEVEL[0]:
            continue
        first, second = ((edge[:2] - origin) / heading for edge in (slab.low, slab.high))
        enter, leave = np.minimum(first, second).max(1), np.maximum(first, second).min(1)
        met = (enter <= leave) & (enter > 0)
        nearest[met] = np.minimum(nearest, enter)[met]
    return nearest
