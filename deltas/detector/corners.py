"""Drawn shapes whose corners are known, to train a detector of interest points with.

DeTone, Malisiewicz and Rabinovich, SuperPoint, 2018, section 4: synthetic pre-training. Pixels are
(x, y), the first one's centre at (0, 0).
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deltas.detector.superpoint import cell_labels
from deltas.interest import CELL

# Shapes are drawn this many times larger and averaged, so that edges lie between pixels as well.
_FINE = 2
# Bits of a pixel's fraction in OpenCV's coordinates.
_SHIFT = 4
_CONTRAST = 30
_FLAT = np.cos(np.deg2rad(150))


class SyntheticCorners(Dataset):
    """Grey images of shapes, and where their corners are; sample i is a function of (seed, i).

    Polygons, stars, lines, ellipses and cubes in several, checkerboards and stripes in
    perspective, and images of noise without a corner; blurred, lit unevenly, and noisy.

    A sample is a dict of ``image`` (1, H, W) in [0, 1], ``labels`` (H/8, W/8) int64 as
    ``superpoint.cell_labels`` gives them (of several corners in a cell, one by chance).

    Args:
        length: number of samples.
        size: (width, height) of the images, multiples of 8.
        seed: whole number; different ones have nothing in common.

    Raises:
        ValueError: sizes that are no multiples of 8 or less than 64, or a negative seed.
    """

    def __init__(self, length: int, size: tuple[int, int] = (160, 120), seed: int = 0):
        if any(side % CELL or side < 64 for side in size):
            raise ValueError(f"size={size} is (width, height), expected multiples of 8 from 64 on")
        if seed < 0 or length < 1:
            raise ValueError(f"seed={seed} and length={length}: expected at least 0 and 1")
        self.length, self.size, self.seed = length, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        image, corners = self.draw(index)
        rng = np.random.default_rng((self.seed, index, 1))
        return {
            "image": torch.from_numpy(image)[None],
            "labels": corner_labels(corners, self.size, rng),
        }

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample ``index`` as image (H, W) float32 in [0, 1] and corners (N, 2), (x, y)."""
        return draw_shapes(self.size, np.random.default_rng((self.seed, index, 0)))


def corner_labels(
    corners: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None = None
) -> Tensor:
    """Classes (H/8, W/8) of cells of an image with corners (N, 2), of which each is rounded.

    Args:
        corners: (x, y) in pixels.
        size: (width, height).
        rng: chooses among the corners of one cell; else the first one counts.
    """
    width, height = size
    priority = np.arange(len(corners), 0, -1) if rng is None else 1 + rng.permutation(len(corners))
    scores = torch.zeros(1, height, width)
    for (x, y), score in zip(np.floor(corners + 0.5).astype(int), priority, strict=True):
        if 0 <= x < width and 0 <= y < height:
            scores[0, y, x] = float(score)
    return cell_labels(scores, 0)[0]


def draw_shapes(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W) float32 in [0, 1] of one of the kinds, and its corners (N, 2), (x, y)."""
    names = list(_KINDS)
    share = np.array([_KINDS[name][1] for name in names], float)
    scene = _Scene(size, rng)
    _KINDS[names[rng.choice(len(names), p=share / share.sum())]][0](scene)
    return _photographed(scene.canvas, size, rng), scene.corners()


class _Scene:
    """A canvas at ``_FINE`` times the size; all coordinates given are the final image's."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator):
        self.size, self.rng = size, rng
        width, height = size
        self.unit = min(size)
        self.canvas = _background((_FINE * width, _FINE * height), rng)
        self.taken = np.zeros_like(self.canvas)
        self._corners: list[np.ndarray] = []

    def corners(self) -> np.ndarray:
        """(N, 2) of those in the image."""
        found = np.concatenate([np.zeros((0, 2)), *self._corners])
        pixels = np.floor(found + 0.5)
        return found[((pixels >= 0) & (pixels < self.size)).all(1)]

    def mark(self, corners: np.ndarray) -> None:
        self._corners.append(np.asarray(corners, float).reshape(-1, 2))

    def free(self, outline: np.ndarray, margin: float = 4.0) -> bool:
        """Take the place of a shape with these vertices (N, 2), unless it is taken."""
        hull = cv2.convexHull(_fixed(outline))
        place = np.zeros_like(self.taken)
        cv2.fillConvexPoly(place, hull, 255, shift=_SHIFT)
        cv2.polylines(place, [hull], True, 255, int(2 * margin * _FINE), shift=_SHIFT)
        if (place & self.taken).any():
            return False
        self.taken |= place
        return True

    def fill(self, outline: np.ndarray, colour: int) -> None:
        vertices = _fixed(outline)
        # fillPoly moves level edges by half a pixel; its convex sister does not.
        fill = cv2.fillConvexPoly if cv2.isContourConvex(vertices) else _fill_any
        fill(self.canvas, vertices, int(colour), cv2.LINE_AA, _SHIFT)

    def line(self, start: np.ndarray, end: np.ndarray, colour: int, width: float) -> None:
        a, b = _fixed(np.stack([start, end]))
        width = max(1, round(width * _FINE))
        cv2.line(self.canvas, a.tolist(), b.tolist(), int(colour), width, cv2.LINE_AA, _SHIFT)

    def colour(self, beside: np.ndarray | float) -> int:
        """A grey value with some contrast to ``beside``, or to what is around an outline (N, 2)."""
        return int(self._level(beside) + self.rng.uniform(_CONTRAST, 256 - _CONTRAST)) % 256

    def three_colours(self, outline: np.ndarray) -> np.ndarray:
        """Grey values with some contrast to each other and to what is around an outline."""
        steps = self.rng.permutation([64, 128, 192]) + self.rng.integers(-17, 18, 3)
        return (self._level(outline) + steps).astype(int) % 256

    def _level(self, beside: np.ndarray | float) -> float:
        if np.ndim(beside) == 0:
            return float(beside)
        low = np.clip(_FINE * beside.min(0).astype(int), 0, np.array(self.canvas.shape[::-1]) - 1)
        high = np.maximum(_FINE * np.ceil(beside.max(0)).astype(int), low + 1)
        return float(self.canvas[low[1] : high[1], low[0] : high[0]].mean())

    def somewhere(self) -> np.ndarray:
        """A place (2,) in the image."""
        return self.rng.uniform(0, self.size)


def _fill_any(canvas: np.ndarray, vertices: np.ndarray, *how: int) -> None:
    cv2.fillPoly(canvas, [vertices], *how)


def _fixed(points: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point coordinates on the canvas, of pixels of the image."""
    fine = (np.asarray(points, float) + 0.5) * _FINE - 0.5
    return np.rint(fine * 2**_SHIFT).astype(np.int32)


def _background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth grey values (H, W) uint8 that leave room for contrast."""
    level = rng.uniform(20, 235)
    image = np.full(size[::-1], level, np.float32)
    if rng.random() < 0.7:
        image += _cloud(size, rng, int(rng.integers(2, 9))) * rng.uniform(0, 40)
    return image.clip(0, 255).astype(np.uint8)


def _cloud(size: tuple[int, int], rng: np.random.Generator, grid: int) -> np.ndarray:
    """Smooth noise (H, W) of about unit size; ``grid`` bumps in a row."""
    coarse = rng.standard_normal((max(2, grid * size[1] // size[0]), grid)).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def _polygon(
    centre: np.ndarray, radius: float, number: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Vertices (N, 2) around a centre, without flat angles; None where chance brought some."""
    gap = 2 * np.pi / number
    angles = rng.uniform(0, 2 * np.pi) + gap * (
        np.arange(number) + rng.uniform(-0.35, 0.35, number)
    )
    reach = radius * rng.uniform(0.7, 1.0, number)
    vertices = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    stretch, turn = rng.uniform(0.35, 1), _rotation(rng.uniform(0, np.pi))
    vertices = centre + (vertices - centre) @ (turn * [stretch, 1]) @ turn.T
    back, ahead = np.roll(vertices, 1, 0) - vertices, np.roll(vertices, -1, 0) - vertices
    cosines = (back * ahead).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(ahead, axis=1)
    return None if (cosines < _FLAT).any() else vertices


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _several(scene: _Scene) -> None:
    """Shapes of all sorts beside each other."""
    parts = (_place_polygon, _place_polygon, _place_cube, _place_star, _place_lines, _place_ellipse)
    for _ in range(scene.rng.integers(2, 10)):
        parts[scene.rng.integers(len(parts))](scene)


def _place_polygon(scene: _Scene) -> None:
    rng = scene.rng
    radius = scene.unit * rng.uniform(0.06, 0.4)
    vertices = _polygon(scene.somewhere(), radius, int(rng.integers(3, 7)), rng)
    if vertices is None or not scene.free(vertices):
        return
    colour = scene.colour(vertices)
    if rng.random() < 0.8:
        scene.fill(vertices, colour)
    else:
        width = rng.uniform(1, 3)
        for start, end in zip(vertices, np.roll(vertices, 1, 0), strict=True):
            scene.line(start, end, colour, width)
    scene.mark(vertices)


def _place_star(scene: _Scene) -> None:
    rng = scene.rng
    number = int(rng.integers(3, 7))
    centre, radius = scene.somewhere(), scene.unit * rng.uniform(0.1, 0.4)
    gap = 2 * np.pi / number
    angles = gap * (np.arange(number) + rng.uniform(-0.3, 0.3, number)) + rng.uniform(0, 7)
    reach = radius * rng.uniform(0.5, 1, number)
    ends = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    if scene.free(ends):
        colour, width = scene.colour(ends), rng.uniform(1, 4)
        for end in ends:
            scene.line(centre, end, colour, width)
        scene.mark([centre, *ends])


def _place_lines(scene: _Scene) -> None:
    """Up to four lines with their ends, and with the places where they cross."""
    rng = scene.rng
    centre, radius = scene.somewhere(), scene.unit * rng.uniform(0.1, 0.5)
    ends = centre + rng.uniform(-radius, radius, (int(rng.integers(1, 5)), 2, 2))
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    if (lengths < 10).any() or not scene.free(ends.reshape(-1, 2)):
        return
    colour, width = scene.colour(ends.reshape(-1, 2)), rng.uniform(1, 3)
    for start, end in ends:
        scene.line(start, end, colour, width)
    scene.mark(ends)
    for number, first in enumerate(ends):
        for second in ends[:number]:
            scene.mark(_crossing(first, second))


def _crossing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where two segments (2, 2) cross, (1, 2), or nothing, (0, 2)."""
    a, b = first[1] - first[0], second[1] - second[0]
    matrix = np.stack([a, -b], 1)
    if abs(np.linalg.det(matrix)) < 0.2 * np.linalg.norm(a) * np.linalg.norm(b):
        return np.zeros((0, 2))
    along = np.linalg.solve(matrix, second[0] - first[0])
    return (first[0] + along[0] * a)[None][: int(((along >= 0) & (along <= 1)).all())]


def _place_ellipse(scene: _Scene) -> None:
    rng = scene.rng
    axes = scene.unit * rng.uniform(0.04, 0.25, 2)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * axes @ _rotation(rng.uniform(0, np.pi)).T
    ring = ring + scene.somewhere()
    if scene.free(ring):
        scene.fill(ring, scene.colour(ring))


def _place_cube(scene: _Scene) -> None:
    """A box seen from a corner: three faces with shared edges, seven corners."""
    rng = scene.rng
    origin, size = scene.somewhere(), scene.unit * rng.uniform(0.1, 0.35)
    angles = rng.uniform(0, 2 * np.pi) + np.array([0, 2, 4]) * np.pi / 3 + rng.uniform(-0.3, 0.3, 3)
    edges = size * rng.uniform(0.5, 1, (3, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    a, b, c = edges
    faces = [origin + np.array([0 * a, x, x + y, y]) for x, y in ((a, b), (b, c), (c, a))]
    vertices = origin + np.array([0 * a, a, b, c, a + b, b + c, c + a])
    if not scene.free(vertices):
        return
    for face, colour in zip(faces, scene.three_colours(vertices), strict=True):
        scene.fill(face, colour)
    scene.mark(vertices)


def _checkerboard(scene: _Scene) -> None:
    rng = scene.rng
    columns, rows = (int(n) for n in rng.integers(3, 9, 2))
    nodes = _in_perspective(scene, columns, rows)
    colours = scene.three_colours(nodes.reshape(-1, 2))
    for row in range(rows):
        for column in range(columns):
            corners = nodes[[row, row, row + 1, row + 1], [column, column + 1, column + 1, column]]
            colour = colours[(row + column) % 2] + rng.integers(-8, 9)
            scene.fill(corners, int(np.clip(colour, 0, 255)))
    scene.mark(nodes)


def _stripes(scene: _Scene) -> None:
    rng = scene.rng
    columns = int(rng.integers(3, 11))
    nodes = _in_perspective(scene, columns, 1)
    colours = scene.three_colours(nodes.reshape(-1, 2))
    for column in range(columns):
        stripe = nodes[[0, 0, 1, 1], [column, column + 1, column + 1, column]]
        scene.fill(stripe, colours[column % 3])
    scene.mark(nodes)


def _in_perspective(scene: _Scene, columns: int, rows: int) -> np.ndarray:
    """Nodes (rows + 1, columns + 1, 2) of a grid on a plane seen askew."""
    rng, size = scene.rng, np.array(scene.size)
    square = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    corners = (square + rng.uniform(-0.45, 0.45, (4, 2))) * rng.uniform(0.3, 0.65) * size
    target = corners @ _rotation(rng.uniform(0, 2 * np.pi)).T + size * rng.uniform(0.3, 0.7, 2)
    homography = cv2.getPerspectiveTransform(square.astype(np.float32), target.astype(np.float32))
    x, y = np.meshgrid(np.linspace(-1, 1, columns + 1), np.linspace(-1, 1, rows + 1))
    grid = np.stack([x, y], -1).reshape(1, -1, 2)
    return cv2.perspectiveTransform(grid, homography).reshape(rows + 1, columns + 1, 2)


def _noise(scene: _Scene) -> None:
    """Blobs of one of several sizes, and nothing in them to be found."""
    rng = scene.rng
    size = scene.canvas.shape[::-1]
    grid = int(size[0] / rng.choice([2, 4, 8, 32]))
    image = scene.canvas + _cloud(size, rng, grid) * rng.uniform(3, 40)
    scene.canvas = image.clip(0, 255).astype(np.uint8)


def _photographed(
    canvas: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """The canvas at its final size, blurred, lit unevenly and noisy, (H, W) float32 in [0, 1]."""
    image = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.7:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    middle = image.mean()
    image = middle + (image - middle) * rng.uniform(0.4, 1.2)
    if rng.random() < 0.4:
        image *= 1 + 0.15 * _cloud(size, rng, 3)
    image += rng.uniform(-30, 30)
    noise = rng.standard_normal(image.shape, np.float32)
    image += noise * rng.choice([0, rng.uniform(0, 4), rng.uniform(0, 9)])
    if rng.random() < 0.2:
        speckle = rng.random(image.shape, np.float32) < rng.uniform(0, 0.005)
        image[speckle] = rng.choice([0, 255], np.count_nonzero(speckle))
    return image.clip(0, 255) / np.float32(255)


# How to draw each kind of image, and its share.
_KINDS: dict[str, tuple[Callable[[_Scene], None], float]] = {
    "several": (_several, 6),
    "polygon": (_place_polygon, 1),
    "checkerboard": (_checkerboard, 2),
    "stripes": (_stripes, 1),
    "noise": (_noise, 1),
}
