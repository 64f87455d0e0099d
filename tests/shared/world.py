"""A textured room of exact depth, to write raw data sets of known geometry from."""

import numpy as np
import trimesh

from datasets_preprocess.rooms.shapes import Kind, Primitive, turn
from dust3r.utils.geometry import depthmap_to_pts3d

_ROOM = np.array([5.0, 4.4, 2.8])
_MIDDLE = np.array([0.0, 0.0, 1.0])
_STEP_DEG = 8.0
_SUBDIVISIONS = 5


class World:
    """A closed room (z up, metres, origin in the floor's middle) with a ball and boxes in it.

    The ball in the middle is the object of data sets that show one. ``seed`` chooses the boxes'
    places and the texture's phase.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ball = Primitive(Kind.SPHERE, _MIDDLE, np.eye(3), np.full(3, 0.45))
        self.room = Primitive(Kind.SHELL, np.array([0, 0, _ROOM[2] / 2]), np.eye(3), _ROOM / 2)
        self.primitives = [self.ball, self.room]
        for number in range(5):
            angle = 2 * np.pi * (number + 0.5 * rng.random()) / 5
            half = rng.uniform([0.12, 0.12, 0.2], [0.25, 0.25, 0.4])
            centre = np.array([np.cos(angle), np.sin(angle), half[2]])
            self.primitives.append(Primitive(Kind.BOX, centre, turn(rng.uniform(0, np.pi)), half))
        self._phases = rng.uniform(0, 2 * np.pi, 3)

    def render(
        self, pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """RGB (H, W, 3) uint8 and exact depth z (H, W) float32 metres at the pixels' centres.

        ``pose`` (4, 4) camera-to-world, OpenCV axes; ``intrinsics`` (3, 3), the first pixel's
        centre at (0, 0); ``size`` (width, height).
        """
        rays = _pinhole_rays(pose, intrinsics, size)
        depth, index = self._nearest(pose[:3, 3], rays)
        colours = self._paint(pose[:3, 3] + rays * depth[..., None], index)
        return colours, depth.astype(np.float32)

    def object_mask(
        self, pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Where (H, W) bool the ball in the middle is seen; arguments as for ``render``."""
        return self._nearest(pose[:3, 3], _pinhole_rays(pose, intrinsics, size))[1] == 0

    def render_rays(self, pose: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
        """As ``render`` for any camera model: colours (..., 3) uint8 and lengths (...) float32.

        ``directions`` (..., 3) are rays in the camera's frame; a length counts them: with unit
        vectors it is the distance in metres, with z = 1 the depth.
        """
        rays = directions @ pose[:3, :3].T
        length, index = self._nearest(pose[:3, 3], rays)
        colours = self._paint(pose[:3, 3] + rays * length[..., None], index)
        return colours, length.astype(np.float32)

    def poses(self, n: int, step_deg: float = _STEP_DEG) -> np.ndarray:
        """Camera-to-world (n, 4, 4), OpenCV axes, of a walk around the middle that looks at it.

        Neighbours are ``step_deg`` apart, less where n of them would not fit in a circle, and see
        mostly the same. Heights, distances and roll vary.
        """
        step = np.radians(min(step_deg, 360 / n))
        return np.stack([_looking(step * number, number) for number in range(n)])

    def mesh(self) -> trimesh.Trimesh:
        """The same surfaces in triangles, the ball's to a tenth of a millimetre; colours too."""
        parts = []
        for index, primitive in enumerate(self.primitives):
            if primitive.kind is Kind.SPHERE:
                part = trimesh.creation.icosphere(subdivisions=_SUBDIVISIONS)
            else:
                part = trimesh.creation.box(extents=(2, 2, 2))
            points = part.vertices * primitive.half @ primitive.rotation.T + primitive.centre
            part = trimesh.Trimesh(points, part.faces, process=False)
            colours = self._paint(points, np.full(len(points), index))
            part.visual.vertex_colors = colours
            parts.append(part)
        return trimesh.util.concatenate(parts)

    def _nearest(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Length (...) in units of ``rays`` (..., 3) to what they meet first, and its index."""
        lengths = np.stack([_length(primitive, origin, rays) for primitive in self.primitives])
        index = lengths.argmin(0)
        return np.take_along_axis(lengths, index[None], 0)[0], index

    def _paint(self, points: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Colours of world points: waves of 35 to 60 cm, brighter the higher the index."""
        x, y, z = np.moveaxis(points, -1, 0)
        a, b, c = self._phases
        waves = [np.sin(13 * x + 3 * y + a), np.sin(11 * y + 8 * z + b), np.sin(12 * z + 9 * x + c)]
        base = 80 + 15 * (np.asarray(index) % 6)[..., None]
        return (base + 60 * np.stack(waves, -1)).round().astype(np.uint8)


def _pinhole_rays(pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rays (H, W, 3) in the world, of depth 1."""
    width, height = size
    rays = depthmap_to_pts3d(np.ones((height, width)), np.asarray(intrinsics, np.float64))
    return rays @ np.asarray(pose, np.float64)[:3, :3].T


def _length(primitive: Primitive, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Length of rays (..., 3) to a primitive's surface, inf where they miss."""
    start = (origin - primitive.centre) @ primitive.rotation / primitive.half
    rays = rays @ primitive.rotation / primitive.half
    if primitive.kind is Kind.SPHERE:
        squared, along = (rays**2).sum(-1), rays @ start
        inside = along**2 - squared * (start @ start - 1)
        enter = (-along - np.sqrt(np.maximum(inside, 0))) / squared
        return np.where((inside > 0) & (enter > 0), enter, np.inf)
    rays = np.where(rays == 0, 1e-12, rays)
    enter = ((-np.sign(rays) - start) / rays).max(-1)
    leave = ((np.sign(rays) - start) / rays).min(-1)
    if primitive.kind is Kind.SHELL:
        return leave
    return np.where((enter < leave) & (enter > 0), enter, np.inf)


def _looking(angle: float, number: int) -> np.ndarray:
    """Pose (4, 4) of the walk's camera at an angle about the middle."""
    radius, height = 1.75 + 0.1 * np.sin(1.3 * number), 1.35 + 0.15 * np.cos(0.9 * number)
    centre = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
    forward = _MIDDLE + [0, 0, 0.1 * np.sin(number)] - centre
    forward /= np.linalg.norm(forward)
    roll = 0.05 * np.sin(0.7 * number + 0.4)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    turned = np.cos(roll) * right + np.sin(roll) * down
    pose = np.eye(4)
    pose[:3, :3] = np.stack([turned, np.cross(forward, turned), forward], 1)
    pose[:3, 3] = centre
    return pose
