"""Procedural textures that tile, and their atlas of mip levels.

A texture is (size, size, 3) float32 in [0, 1], gamma encoded, and continues over its borders.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np
from scipy.spatial import cKDTree

Pattern = Callable[[np.random.Generator, int], np.ndarray]


class Atlas:
    """All textures of a room with their mip levels in one flat array, for lookups by the million.

    Every texture is square with a power of two as its size. Colours come out linear (encoded with
    a gamma of 2), so that light adds up.
    """

    def __init__(self, textures: Sequence[np.ndarray]):
        levels, self._offsets, start = [], [], 0
        self._log2 = np.array([int(np.log2(len(t))) for t in textures], np.int32)
        for texture in textures:
            mip, offsets = texture.astype(np.float32), []
            while True:
                offsets.append(start)
                levels.append(_packed(mip))
                start += len(mip) ** 2
                if len(mip) == 1:
                    break
                # Averaging light, not its encoding, keeps the brightness of far patterns.
                squares = mip**2
                mip = np.sqrt(
                    (
                        squares[::2, ::2]
                        + squares[1::2, ::2]
                        + squares[::2, 1::2]
                        + squares[1::2, 1::2]
                    )
                    / 4
                )
            self._offsets.append(offsets)
        depth = max(map(len, self._offsets))
        self._offsets = np.array([o + o[-1:] * (depth - len(o)) for o in self._offsets], np.int32)
        self._texels = np.concatenate(levels)

    def sizes(self) -> np.ndarray:
        """(T,) edge of each texture in texels."""
        return 2**self._log2

    def sample(
        self, texture: np.ndarray, place: np.ndarray, level: np.ndarray, jitter: np.ndarray
    ) -> np.ndarray:
        """(n, 3) linear colours of the nearest texels.

        ``texture`` (n,) indices; ``place`` (2, n) column and row in tiles (1 is one repetition);
        ``level`` (n,) integer mip level, clipped to those that exist; ``jitter`` (2, n) is added to
        the place, in texels of that level.
        """
        log2 = self._log2[texture]
        level = np.minimum(np.maximum(level, 0), log2)
        size = np.left_shift(1, log2 - level)
        column = np.floor(place[0] * size + jitter[0]).astype(np.int32) & (size - 1)
        row = np.floor(place[1] * size + jitter[1]).astype(np.int32) & (size - 1)
        texel = np.take(self._texels, self._offsets[texture, level] + row * size + column)
        return _TO_LINEAR[texel.view(np.uint8).reshape(-1, 4)[:, :3]]


_TO_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** 2


def _packed(texture: np.ndarray) -> np.ndarray:
    rgba = np.zeros((*texture.shape[:2], 4), np.uint8)
    rgba[..., :3] = np.clip(texture * 255 + 0.5, 0, 255)
    return rgba.view(np.uint32).ravel()


def random_colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """(3,) rgb in [0, 1] of a random hue: warm ones often, purples seldom, as indoors."""
    hue = rng.uniform(10, 60) if rng.random() < 0.4 else rng.uniform(0, 360)
    if 250 < hue < 345 and rng.random() < 0.6:
        hue -= 180
    hsv = np.array([[[hue, rng.uniform(*saturation), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)[0, 0]


def noise(
    rng: np.random.Generator, size: int, cells: int, octaves: int = 4, stretch: int = 1
) -> np.ndarray:
    """Value noise (size, size) in [0, 1] with ``cells`` knots across in its coarsest octave.

    ``stretch`` is how many times longer its blobs are along x than along y.
    """
    total, weight = np.zeros((size, size), np.float32), 0.0
    for octave in range(octaves):
        rows = min(cells * 2**octave, size)
        cols = max(1, rows // stretch)
        knots = rng.random((rows, cols), dtype=np.float32)
        blurred = _spline(size, rows) @ knots @ _spline(size, cols).T
        total += 0.55**octave * blurred
        weight += 0.55**octave
    total = total / weight
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-6)


@lru_cache(maxsize=64)
def _spline(size: int, knots: int) -> np.ndarray:
    """(size, knots) weights of a periodic cubic B-spline at the texels' centres."""
    place = (np.arange(size) + 0.5) * knots / size
    weights = np.zeros((size, knots), np.float32)
    for offset in range(-2, 3):
        knot = np.floor(place).astype(int) + offset
        far = np.abs(place - knot)
        near = 2 / 3 - far**2 * (1 - far / 2)
        value = np.where(far < 1, near, np.clip(2 - far, 0, None) ** 3 / 6)
        np.add.at(weights, (np.arange(size), knot % knots), value)
    return weights


def flat(texture: np.ndarray) -> np.ndarray:
    """One colour, which sends out as much light as the texture does on the whole."""
    light = np.square(texture, dtype=np.float64).mean(axis=(0, 1))
    return np.broadcast_to(np.sqrt(light).astype(np.float32), texture.shape)


def plaster(rng: np.random.Generator, size: int) -> np.ndarray:
    """Plain paint with faint stains."""
    colour = random_colour(rng, (0.02, 0.4), (0.5, 0.95))
    roller = 0.03 * (noise(rng, size, size // 4, 2)[..., None] - 0.5)
    return _worn(rng, colour * (1 + roller), rng.uniform(0.02, 0.09))


def checker(rng: np.random.Generator, size: int) -> np.ndarray:
    """Squares of two colours."""
    cells = 2 * rng.integers(1, 5)
    index = np.arange(size) * cells // size
    return _worn(rng, _two_tone(rng, (index[:, None] + index) % 2), 0.12)


def stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Vertical, horizontal or diagonal stripes of three colours and uneven widths."""
    count = rng.integers(2, 8)
    edges = np.sort(rng.random(2))
    x = np.arange(size) / size
    slope_x, slope_y = [(1, 0), (0, 1), (1, 1)][rng.integers(3)]
    phase = (count * (slope_x * x + slope_y * x[:, None])) % 1
    return _worn(rng, _palette(rng, 3)[np.digitize(phase, edges)], 0.1)


def plaid(rng: np.random.Generator, size: int) -> np.ndarray:
    """Woven bands: the mean of stripes in both directions, with a thread pattern."""
    count = rng.integers(1, 5)
    palette = _palette(rng, 4)
    edges = np.sort(rng.random(3))
    band = palette[np.digitize((count * np.arange(size) / size) % 1, edges)]
    thread = 0.06 * ((np.arange(size)[:, None] // 2 + np.arange(size) // 2) % 2)[..., None]
    return _worn(rng, (band[:, None] + band) / 2 - thread, 0.08)


def bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Running bond with mortar; every brick has its own tone."""
    across, courses = rng.integers(3, 6), 2 * rng.integers(3, 7)
    return _blocks(rng, size, across, courses, shift=0.5, gap=rng.uniform(0.05, 0.1), spread=0.3)


def tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Square or oblong tiles with grout, some with a second colour."""
    across, courses = rng.integers(2, 8, 2)
    return _blocks(rng, size, across, courses, shift=0.0, gap=rng.uniform(0.02, 0.07), spread=0.15)


def planks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Boards with wood grain, their ends staggered."""
    boards = rng.integers(3, 9)
    row = np.arange(size) * boards // size
    shift = rng.random(boards)[row][:, None]
    along = (np.arange(size)[None] / size + shift) % 1
    tone = rng.uniform(0.72, 1.08, boards)[row][:, None] * np.where(along < 0.5, 1.0, 0.9)
    within = (np.arange(size) * boards / size) % 1
    gap = (within[:, None] < 0.03) | (np.abs(along - 0.5) < 0.004)
    texture = _grain(rng, size) * tone[..., None]
    return _worn(rng, np.where(gap[..., None], texture * 0.4, texture), 0.08)


def wood(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wood grain without joints."""
    return _worn(rng, _grain(rng, size), 0.05)


def marble(rng: np.random.Generator, size: int) -> np.ndarray:
    """Veins: a sine bent by noise."""
    x = np.arange(size) / size
    waves = rng.integers(1, 4) * x + rng.integers(0, 4) * x[:, None]
    vein = np.abs(np.sin(np.pi * 2 * waves + rng.uniform(4, 12) * noise(rng, size, 4)))
    return _worn(rng, _two_tone(rng, vein ** rng.uniform(0.4, 1.5)), 0.1)


def clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two colours mixed by multi-octave noise, at random contrast."""
    mix = noise(rng, size, int(rng.integers(2, 12)), 5)
    return _two_tone(rng, np.clip((mix - 0.5) * rng.uniform(1, 4) + 0.5, 0, 1))


def terrazzo(rng: np.random.Generator, size: int) -> np.ndarray:
    """Chips: cells of a random mosaic, a part of them coloured."""
    cell, edge = _voronoi(rng, size, int(rng.integers(120, 600)))
    palette = _palette(rng, 4)
    colours = palette[rng.choice(4, cell.max() + 1, p=[0.55, 0.15, 0.15, 0.15])]
    return _worn(rng, np.where((edge > 0.0025)[..., None], colours[cell], palette[0]), 0.08)


def mosaic(rng: np.random.Generator, size: int) -> np.ndarray:
    """Large irregular stones with joints."""
    cell, edge = _voronoi(rng, size, int(rng.integers(15, 80)))
    base, joint = _palette(rng, 2)
    tone = rng.uniform(0.55, 1.15, (cell.max() + 1, 1)) * base
    return _worn(rng, np.where((edge > 0.006)[..., None], tone[cell], joint), 0.15)


def speckle(rng: np.random.Generator, size: int) -> np.ndarray:
    """Carpet: fine grains of a few tones over slow stains."""
    grains = noise(rng, size, int(rng.choice([64, 128])), 2)
    stains = noise(rng, size, 3, 3)
    return _two_tone(rng, np.clip(0.5 + (grains - 0.5) * 1.2 + 0.5 * (stains - 0.5), 0, 1))


def dots(rng: np.random.Generator, size: int) -> np.ndarray:
    """Discs or rings on a staggered lattice, as on wallpaper."""
    count = 2 * rng.integers(2, 7)
    y, x = np.meshgrid(*[count * (np.arange(size) + 0.5) / size] * 2, indexing="ij")
    x = x + 0.5 * (np.floor(y) % 2)
    distance = np.hypot(x % 1 - 0.5, y % 1 - 0.5)
    radius = rng.uniform(0.15, 0.42)
    inside = distance < radius
    if rng.random() < 0.5:
        inside &= distance > radius * rng.uniform(0.3, 0.7)
    return _worn(rng, _two_tone(rng, inside), 0.1)


def zigzag(rng: np.random.Generator, size: int) -> np.ndarray:
    """Herringbone-like zigzag bands."""
    count, teeth = rng.integers(2, 7), rng.integers(2, 7)
    x = np.arange(size) / size
    saw = np.abs((teeth * x) % 1 - 0.5) * rng.uniform(0.6, 2)
    phase = (count * x[:, None] + saw) % 1
    return _worn(rng, _palette(rng, 3)[np.digitize(phase, [0.35, 0.7])], 0.1)


def painting(rng: np.random.Generator, size: int) -> np.ndarray:
    """An abstract picture: overlapping discs, boxes and strokes on a sky of noise."""
    canvas = np.ascontiguousarray(clouds(rng, size))
    for _ in range(rng.integers(5, 18)):
        colour = tuple(float(c) for c in random_colour(rng, (0.2, 0.95), (0.1, 1.0)))
        a, b = rng.integers(0, size, (2, 2)).tolist()
        extent = int(rng.integers(size // 24, size // 5))
        shape = rng.integers(3)
        if shape == 0:
            cv2.circle(canvas, a, extent, colour, -1, cv2.LINE_AA)
        elif shape == 1:
            cv2.rectangle(canvas, a, (a[0] + extent, a[1] + int(extent * 1.5)), colour, -1)
        else:
            cv2.line(canvas, a, b, colour, max(1, extent // 4), cv2.LINE_AA)
    return _worn(rng, canvas, 0.08)


FLOORS: tuple[Pattern, ...] = (planks, tiles, checker, terrazzo, speckle, mosaic, marble, plaid)
WALLS: tuple[Pattern, ...] = (plaster, plaster, stripes, bricks, dots, zigzag, clouds, tiles)
CEILINGS: tuple[Pattern, ...] = (plaster, plaster, tiles, planks, clouds)
WOODS: tuple[Pattern, ...] = (wood, wood, planks)
FABRICS: tuple[Pattern, ...] = (speckle, plaid, stripes, dots, zigzag, clouds)
PAINTS: tuple[Pattern, ...] = (plaster, clouds, marble)
PATTERNS: tuple[Pattern, ...] = (
    checker,
    stripes,
    plaid,
    bricks,
    tiles,
    marble,
    clouds,
    terrazzo,
    mosaic,
    dots,
    zigzag,
    wood,
)


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) colours: a muted pair of tones first, any others freer."""
    colours = [random_colour(rng, (0.03, 0.4), (0.5, 0.95))]
    loud = 0.8 if rng.random() < 0.2 else 0.5
    colours += [random_colour(rng, (0.05, loud), (0.15, 0.85)) for _ in range(count - 1)]
    return np.stack(colours)


def _two_tone(rng: np.random.Generator, mix: np.ndarray) -> np.ndarray:
    first, second = _palette(rng, 2)
    # Two shades of one colour are as common indoors as two colours.
    if rng.random() < 0.5:
        second = first * rng.uniform(0.3, 0.75)
    mix = mix[..., None].astype(np.float32)
    return (first + (second - first) * mix).astype(np.float32)


def _worn(rng: np.random.Generator, texture: np.ndarray, amount: float) -> np.ndarray:
    """Stains and grain over a texture, so that nothing is perfectly flat."""
    size = len(texture)
    stain = noise(rng, size, int(rng.integers(3, 9)), 5)[..., None]
    return np.clip(texture * (1 + 2 * amount * (stain - 0.5)), 0, 1).astype(np.float32)


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    dark = random_colour(rng, (0.3, 0.75), (0.2, 0.5)) * 0.4 + np.array([0.3, 0.17, 0.07])
    light = dark * rng.uniform(1.4, 2.2) + 0.05
    rings = noise(rng, size, 16, 2, stretch=8)
    lines = 0.5 + 0.5 * np.sin(2 * np.pi * rings * rng.uniform(3, 8))
    mix = 0.6 * lines + 0.4 * noise(rng, size, 64, 2, stretch=16)
    return np.clip(dark + (light - dark) * mix[..., None], 0, 1).astype(np.float32)


def _blocks(
    rng: np.random.Generator,
    size: int,
    across: int,
    courses: int,
    shift: float,
    gap: float,
    spread: float,
) -> np.ndarray:
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    row = np.floor(y * courses).astype(int)
    along = x * across + shift * (row % 2)
    column = np.floor(along).astype(int) % across
    base, joint, other = _palette(rng, 3)
    tones = rng.uniform(1 - spread, 1 + spread / 2, (courses, across, 1)) * base
    if rng.random() < 0.35:
        tones = np.where(rng.random((courses, across, 1)) < 0.25, other, tones)
    aspect = across / courses
    is_joint = (along % 1 < gap * min(1, aspect)) | (y * courses % 1 < gap * min(1, 1 / aspect))
    return _worn(rng, np.where(is_joint[..., None], joint, tones[row, column]), 0.1)


def _voronoi(rng: np.random.Generator, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell index and distance to the cell's border, in tiles, (size, size) each."""
    tree = cKDTree(rng.random((count, 2)), boxsize=1.0)
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
    distance, cell = tree.query(np.stack([x.ravel(), y.ravel()], axis=1), k=2)
    border = (distance[:, 1] - distance[:, 0]) / 2
    return cell[:, 0].reshape(size, size), border.reshape(size, size)
