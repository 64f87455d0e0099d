"""Pictures of rooms: what each ray sees, how it is lit, and what a small camera makes of it.

Rays are cast on a grid of half-pixel spacing. Those through the pixel centres give the exact depth;
a 3x3 tent over all of them gives the colour. Neighbouring rays use different points of an area
light and slightly different texels: since the tent weighs each of the four kinds equally, shadows
come out soft and textures smooth at the price of one sample.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from datasets_preprocess.rooms.lighting import TURNS, ShadowMap, bake_shadows, irradiance
from datasets_preprocess.rooms.raycast import Hits, RayGrid, Solids, cast
from datasets_preprocess.rooms.scene import Room
from datasets_preprocess.rooms.shapes import Kind, Primitive


@dataclass(frozen=True)
class Sensor:
    """A camera's manners: target brightness, gamma of its curve, per-channel gain (3,), noise
    (standard deviation at mid-grey), darkening towards the corners."""

    exposure: float
    gamma: float
    white_balance: tuple[float, float, float]
    noise: float
    vignetting: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Sensor":
        """One camera of the usual kind."""
        return cls(
            exposure=rng.uniform(0.16, 0.34),
            gamma=rng.uniform(1.9, 2.4),
            white_balance=tuple(rng.uniform(0.92, 1.08, 3)),
            noise=rng.uniform(0.002, 0.015),
            vignetting=rng.uniform(0, 0.25),
        )

    def develop(self, light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Linear light (H, W, 3) to an image (H, W, 3) uint8, with automatic exposure."""
        height, width = light.shape[:2]
        # Exposing for the mean of roots keeps a bright window from turning the room black.
        level = float(np.sqrt(light).mean()) ** 2
        gain = self.exposure / max(level, 1e-4) * np.array(self.white_balance, np.float32)
        y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        falloff = (1 - self.vignetting * (x * x + y * y) / 2)[..., None]
        exposed = (light * gain * falloff).astype(np.float32)
        # A shoulder instead of clipping: 0.9 and 3 remain apart.
        exposed = exposed * (1 + exposed / 9) / (1 + exposed)
        exposed *= 1.6
        spread = self.noise * np.sqrt(exposed + 0.02)
        noisy = exposed + spread * rng.standard_normal(exposed.shape, dtype=np.float32)
        encoded = np.clip(noisy, 0, 1) ** np.float32(1 / self.gamma)
        return (encoded * 255 + 0.5).astype(np.uint8)


class Renderer:
    """Renders one room; shadows are computed once, here."""

    def __init__(self, room: Room, sensor: Sensor):
        self._room, self._sensor = room, sensor
        self._solids = Solids(room.primitives)
        self._shadows: list[ShadowMap] = bake_shadows(room)

    def render(
        self,
        intrinsics: np.ndarray,
        pose: np.ndarray,
        width: int,
        height: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image (height, width, 3) uint8 and depth (height, width) float32, z in metres.

        ``intrinsics`` (3, 3) in pixels, ``pose`` (4, 4) camera-to-world; ``rng`` draws the noise.
        """
        cols = np.arange(2 * width + 1) / 2 - 0.5
        rows = np.arange(2 * height + 1) / 2 - 0.5
        grid = RayGrid.of_camera(intrinsics, pose, cols, rows)
        hits = cast(self._solids, grid)
        surfaces = _surfaces(self._room, grid, hits)
        light = irradiance(self._room, self._shadows, surfaces.points, surfaces.normals)
        light += surfaces.glow
        light *= surfaces.colour
        image = self._sensor.develop(_tent(np.moveaxis(light, 0, -1)), rng)
        return image, hits.depth[1::2, 1::2].copy()


@dataclass(frozen=True, eq=False)
class _Surfaces:
    """Per ray: world ``points`` and ``normals``, linear ``colour`` and ``glow``, all (3, h, w)."""

    points: np.ndarray
    normals: np.ndarray
    colour: np.ndarray
    glow: np.ndarray


def _surfaces(room: Room, grid: RayGrid, hits: Hits) -> _Surfaces:
    shape = hits.depth.shape
    normals, tiles = np.empty((3, *shape), np.float32), np.empty((2, *shape), np.float32)
    material = np.zeros(shape, np.int32)
    flat_normals, flat_tiles = normals.reshape(3, -1), tiles.reshape(2, -1)
    flat_material, flat_depth = material.reshape(-1), hits.depth.reshape(-1)
    index = hits.index.reshape(-1)
    flat_u, flat_v = np.tile(grid.cols, shape[0]), np.repeat(grid.rows, shape[1])
    order = np.argsort(index, kind="stable")
    bounds = np.searchsorted(index, np.arange(len(room.primitives) + 1), sorter=order)
    for number, primitive in enumerate(room.primitives):
        rays = order[bounds[number] : bounds[number + 1]]
        if not len(rays):
            continue
        origin, vectors = grid.in_frame(primitive)
        depth, u, v = flat_depth[rays], flat_u[rays], flat_v[rays]
        unit = [
            origin[k] + depth * (vectors[k, 2] + u * vectors[k, 0] + v * vectors[k, 1])
            for k in range(3)
        ]
        normal, place, looks = _SURFACE[primitive.kind](primitive, unit, room.materials.scale)
        rotation = primitive.rotation.astype(np.float32)
        for k in range(3):
            flat_normals[k, rays] = sum(rotation[k, m] * normal[m] for m in range(3))
        flat_material[rays] = looks
        offset = room.materials.offset[primitive.materials[0]]
        flat_tiles[0, rays], flat_tiles[1, rays] = place[0] + offset[0], place[1] + offset[1]
    directions = [
        grid.rows[:, None] * np.float32(grid.along_v[k])
        + (grid.cols * np.float32(grid.along_u[k]) + np.float32(grid.forward[k]))
        for k in range(3)
    ]
    points = np.stack([np.float32(grid.origin[k]) + hits.depth * directions[k] for k in range(3)])
    facing = -sum(n * d for n, d in zip(normals, directions, strict=True))
    colour = _colours(room, grid, hits.depth, facing, material, tiles)
    glow = np.moveaxis(room.materials.glow[material], -1, 0)
    return _Surfaces(points, normals, colour, glow)


def _colours(
    room: Room,
    grid: RayGrid,
    depth: np.ndarray,
    facing: np.ndarray,
    material: np.ndarray,
    tiles: np.ndarray,
) -> np.ndarray:
    """Linear colour (3, h, w), the mip level chosen by how many texels a ray's footprint covers."""
    materials = room.materials
    texture = materials.texture[material]
    texels_per_metre = (materials.atlas.sizes()[materials.texture] / materials.scale)[material]
    spacing = np.float32(np.linalg.norm(grid.along_u) * (grid.cols[1] - grid.cols[0]))
    dither, jitter = _turns_pattern(depth.shape)
    # The footprint is long at grazing angles; the geometric mean of its axes is a compromise
    # between blur and sparkle.
    texels = depth * texels_per_metre.astype(np.float32) * (spacing * dither)
    texels /= np.sqrt(np.maximum(facing, np.float32(0.05)))
    level = np.frexp(texels)[1].astype(np.int32) - 1
    sampled = materials.atlas.sample(
        texture.ravel(), tiles.reshape(2, -1), level.ravel(), jitter.reshape(2, -1)
    )
    sampled *= materials.tint[material.ravel()]
    return np.ascontiguousarray(sampled.T).reshape(3, *depth.shape)


@lru_cache(maxsize=4)
def _turns_pattern(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What differs between neighbouring rays: a factor (h, w) on their footprints, which mixes two
    mip levels, and a shift (2, h, w) of a quarter texel each way, which mixes four texels."""
    factor, shift = np.empty(shape, np.float32), np.empty((2, *shape), np.float32)
    for k, (row, col) in enumerate(TURNS):
        factor[row::2, col::2] = 2 ** (0.25 * k + 0.125)
        shift[0, row::2, col::2] = col / 2 - 0.25
        shift[1, row::2, col::2] = row / 2 - 0.25
    return factor, shift


def _box_surface(
    primitive: Primitive, unit: list[np.ndarray], scale: np.ndarray
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Normals (3 x (n,)) in the object's frame, texture tiles (2 x (n,)), materials (n,)."""
    x, y, z = map(np.abs, unit)
    on_x, on_z = (x >= y) & (x >= z), (z > x) & (z > y)
    on_y = ~(on_x | on_z)
    inward = -1 if primitive.kind is Kind.SHELL else 1
    normal = [
        np.where(on, np.copysign(np.float32(inward), inward * p), np.float32(0))
        for on, p in zip((on_x, on_y, on_z), unit, strict=True)
    ]
    if primitive.kind is Kind.SHELL:
        axis = on_y + 2 * on_z.astype(np.int32)
        side = np.where(on_x, unit[0], np.where(on_y, unit[1], unit[2])) > 0
        looks = np.array(primitive.materials, np.int32)[2 * axis + side]
    else:
        looks = np.full(len(x), primitive.materials[0], np.int32)
    half, size = primitive.half.astype(np.float32), scale[looks]
    across = np.where(on_x, unit[1] * half[1], unit[0] * half[0])
    along = np.where(on_z, unit[1] * half[1], unit[2] * half[2])
    return normal, (across / size, along / size), looks


def _cylinder_surface(
    primitive: Primitive, unit: list[np.ndarray], scale: np.ndarray
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    x, y, z = unit
    half, size = primitive.half.astype(np.float32), scale[primitive.materials[0]]
    side = x * x + y * y >= z * z
    length = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2)
    normal = [
        np.where(side, x / half[0] / length, np.float32(0)),
        np.where(side, y / half[1] / length, np.float32(0)),
        np.where(side, np.float32(0), np.sign(z)),
    ]
    around = _turns(x, y, half[0], size)
    across = np.where(side, around, x * half[0] / size)
    along = np.where(side, z * half[2], y * half[1]) / size
    return normal, (across, along), np.full(len(x), primitive.materials[0], np.int32)


def _sphere_surface(
    primitive: Primitive, unit: list[np.ndarray], scale: np.ndarray
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    half, size = primitive.half.astype(np.float32), scale[primitive.materials[0]]
    normal = [p / h for p, h in zip(unit, half, strict=True)]
    length = np.sqrt(sum(n * n for n in normal))
    latitude = np.arcsin(np.clip(unit[2], -1, 1)) * half[2] / size
    around = _turns(unit[0], unit[1], half[0], size)
    looks = np.full(len(length), primitive.materials[0], np.int32)
    return [n / length for n in normal], (around, latitude), looks


def _turns(x: np.ndarray, y: np.ndarray, radius: float, size: float) -> np.ndarray:
    """Tiles around an axis: a whole number, so that the texture meets itself."""
    return np.arctan2(y, x) / (2 * np.pi) * max(1, round(2 * np.pi * radius / size))


_SURFACE = {
    Kind.BOX: _box_surface,
    Kind.SHELL: _box_surface,
    Kind.CYLINDER: _cylinder_surface,
    Kind.SPHERE: _sphere_surface,
}


def _tent(light: np.ndarray) -> np.ndarray:
    """(2h+1, 2w+1, 3) half-pixel samples to (h, w, 3): weights 1/4, 1/2, 1/4 both ways."""
    kernel = np.array([0.25, 0.5, 0.25], np.float32)
    filtered = cv2.sepFilter2D(np.ascontiguousarray(light, np.float32), -1, kernel, kernel)
    return filtered[1::2, 1::2]
