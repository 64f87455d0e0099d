"""Depth of a triangle mesh as a pinhole camera sees it, without a display or a graphics card.

Every pixel's depth is that of the ray through its centre: the nearest intersection with a triangle,
computed in double precision, so that no triangle is clipped, none is too small or too large, and
two triangles with a common edge leave no gap between them. Triangles are seen from both sides: a
scan has surfaces that were recorded from one side only, and the back of one is where the surface
is, while what lies behind it is not what the camera saw.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

_CHUNK = 1 << 18
_BATCH = 1 << 20
_SLACK = 1e-6


class MeshDepth:
    """A mesh to render from many cameras.

    Args:
        vertices: (V, 3) positions in the world.
        faces: (F, 3) integers, vertices of each triangle.

    Memory is about 24 bytes a vertex and 12 a face, twice that of the vertices while rendering, and
    under 200 MB besides, whatever the mesh; images beyond a million pixels add some 100 bytes a
    pixel where one triangle fills them.

    Raises:
        ValueError: the arrays are no mesh.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(
                "a mesh has vertices (V, 3) and triangles (F, 3), got "
                f"{vertices.shape} and {faces.shape}"
            )
        if not len(faces):
            raise ValueError(f"the mesh has no triangle, only {len(vertices)} vertices")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError(
                f"triangles name vertices {faces.min()} to {faces.max()}, of which there are "
                f"{len(vertices)}"
            )
        if not np.isfinite(vertices).all():
            raise ValueError("the mesh has vertices that are not finite")
        self._vertices = np.ascontiguousarray(vertices.T)
        self._faces = np.ascontiguousarray(faces.T, np.int32)

    @classmethod
    def from_file(cls, path: str | Path) -> "MeshDepth":
        """The mesh of a file that trimesh reads (.ply, .obj, .glb); a scene's parts are joined.

        Raises FileNotFoundError, or ValueError where the file is no mesh.
        """
        # Loading the library takes a moment that processes which render nothing need not pay.
        import trimesh

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such mesh")
        try:
            mesh = trimesh.load(path, process=False, force="mesh")
            return cls(mesh.vertices, mesh.faces)
        except Exception as error:  # trimesh raises many kinds for damaged files
            raise ValueError(f"{path}: not a readable triangle mesh ({error})") from error

    def render(
        self,
        intrinsics: np.ndarray,
        pose: np.ndarray,
        size: tuple[int, int],
        *,
        near: float = 0.05,
    ) -> np.ndarray:
        """Depth (H, W) float32, z in the mesh's unit, 0 where a ray meets nothing.

        Args:
            intrinsics: (3, 3) pixels, the centre of the first one at (0, 0).
            pose: (4, 4) camera-to-world, OpenCV's axes.
            size: (width, height).
            near: what is closer than this is not seen, as if the camera's body hid it.
        """
        width, height = size
        to_camera = np.linalg.inv(np.asarray(pose, np.float64))
        camera = to_camera[:3, :3] @ self._vertices + to_camera[:3, 3:]
        # From here on space is that of homogeneous pixels (u z, v z, z): rays are (u, v, 1), and
        # depth is the factor by which a ray must be stretched to meet a triangle.
        camera = np.asarray(intrinsics, np.float64) @ camera
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = camera[:2] / camera[2]
        depth = np.full(height * width, np.inf)
        for faces in self._chunks():
            corners = camera[:, faces]
            windows = _windows(corners, pixels[:, faces], size, near)
            seen = (windows[2] > 0) & (windows[3] > 0)
            _draw(depth, width, corners[:, :, seen], windows[:, seen], near)
        return np.where(np.isfinite(depth), depth, 0).reshape(height, width).astype(np.float32)

    def _chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, self._faces.shape[1], _CHUNK):
            yield self._faces[:, start : start + _CHUNK]


def _windows(
    corners: np.ndarray, pixels: np.ndarray, size: tuple[int, int], near: float
) -> np.ndarray:
    """Pixels whose centres a triangle may cover: (4, F) first column, first row, columns, rows.

    ``corners`` (3, 3, F) are homogeneous pixels and ``pixels`` (2, 3, F) what they divide to, both
    [coordinate, vertex, triangle].
    """
    z = corners[2]
    front = z > near
    lowest, highest = pixels.min(1), pixels.max(1)
    crossing = np.flatnonzero(front.any(0) & ~front.all(0))
    if len(crossing):
        lowest[:, crossing], highest[:, crossing] = _clipped_bounds(corners[:, :, crossing], near)
    lowest[:, ~front.any(0)] = np.inf
    limit = np.array(size)[:, None] - 1
    # The slack makes up for rounding here; pixels too many are sorted out by the exact test.
    first = np.clip(np.ceil(lowest - _SLACK), 0, limit + 1)
    last = np.clip(np.floor(highest + _SLACK), -1, limit)
    return np.concatenate([first, np.maximum(last - first + 1, 0)]).astype(np.int64)


def _clipped_bounds(corners: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest pixel (2, F) of the parts in front of ``near`` of triangles that cross."""
    heads = np.roll(corners, -1, axis=1)
    front = corners[2] > near
    cut = front != np.roll(front, -1, axis=0)
    rise = np.where(cut, heads[2] - corners[2], 1)
    at_near = corners + (near - corners[2]) / rise * (heads - corners)
    points = np.concatenate([corners, at_near], axis=1)
    seen = np.concatenate([front, cut])
    pixels = points[:2] / np.where(seen, points[2], 1)
    return np.where(seen, pixels, np.inf).min(1), np.where(seen, pixels, -np.inf).max(1)


def _draw(
    depth: np.ndarray, width: int, corners: np.ndarray, windows: np.ndarray, near: float
) -> None:
    """Lower ``depth`` (H W,) to the triangles (3, 3, F) at the pixels of their windows (4, F)."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    # A ray r meets the triangle where it is on one side of the three planes through the eye and an
    # edge: r . (b x c), r . (c x a), r . (a x b) have one sign. An edge's plane is the same number,
    # negated, in the triangle beyond it, bit by bit: no ray slips through between the two.
    planes = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)])
    volume = (a * planes[0]).sum(0)
    counts = windows[2] * windows[3]
    for part in _batches(counts):
        triangle = np.repeat(np.arange(part.start, part.stop), counts[part])
        ends = np.cumsum(counts[part])
        place = np.arange(ends[-1]) - np.repeat(ends - counts[part], counts[part])
        row, column = np.divmod(place, windows[2, triangle])
        column += windows[0, triangle]
        row += windows[1, triangle]
        sides = [
            plane[0][triangle] * column + plane[1][triangle] * row + plane[2][triangle]
            for plane in planes
        ]
        inside = (np.minimum(np.minimum(*sides[:2]), sides[2]) >= 0) | (
            np.maximum(np.maximum(*sides[:2]), sides[2]) <= 0
        )
        total = (sides[0] + sides[1] + sides[2])[inside]
        with np.errstate(divide="ignore", invalid="ignore"):
            hit = volume[triangle[inside]] / total
        # A triangle seen exactly edge on has no depth of its own: its neighbours have it.
        good = (hit > near) & np.isfinite(hit)
        pixel = (row[inside] * width + column[inside])[good]
        np.minimum.at(depth, pixel, hit[good])


def _batches(counts: np.ndarray) -> Iterator[slice]:
    """Runs of triangles that cover at most ``_BATCH`` pixels together, or are a single one."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BATCH, side="right")))
        yield slice(start, stop)
        start = stop


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )
