"""Light in a room: area lights with shadow maps, ambient light, darker corners.

A light shines from four points; each has a cube of depth maps, made once a room by the same ray
caster. Rays take turns at the four points, and a tent over neighbouring rays averages them.
"""

from dataclasses import dataclass

import numpy as np

from datasets_preprocess.rooms.raycast import RayGrid, Solids, cast
from datasets_preprocess.rooms.scene import Light, Room
from datasets_preprocess.rooms.shapes import Kind

SHADOW_TEXELS = 192
SOFTEST_DISTANCE = 0.6
CORNER_REACH, CORNER_DEPTH = 0.16, 0.55
TURNS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""First row and column of the rays, every second of them, that take each turn."""


@dataclass(frozen=True, eq=False)
class ShadowMap:
    """``depth`` (4 points, 6 faces, n, n) float32: metres along the face's axis to the first thing
    that casts a shadow, inf where there is none. Faces are -x, -y, -z, +x, +y, +z."""

    depth: np.ndarray


def bake_shadows(room: Room) -> list[ShadowMap]:
    """One shadow map a light. Walls cast none: ``Room.reached`` knows what they hide."""
    casters = Solids([p for p in room.primitives if p.casts_shadow and p.kind is not Kind.SHELL])
    cells = (np.arange(SHADOW_TEXELS) + 0.5) / SHADOW_TEXELS * 2 - 1
    maps = []
    for light in room.lights:
        depth = [
            cast(casters, RayGrid(point, *_face_axes(face), cells, cells)).depth
            for point in light.points
            for face in range(6)
        ]
        stacked = np.reshape(depth, (4, 6, SHADOW_TEXELS, SHADOW_TEXELS))
        maps.append(ShadowMap(stacked))
    return maps


def irradiance(
    room: Room, shadows: list[ShadowMap], points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Light (3, h, w) that falls on surfaces: ``points``, ``normals`` (3, h, w) in the world."""
    total = np.empty(points.shape, np.float32)
    for k, (row, col) in enumerate(TURNS):
        turn = (slice(None), slice(row, None, 2), slice(col, None, 2))
        near, facing = np.ascontiguousarray(points[turn]), np.ascontiguousarray(normals[turn])
        # Light from above is bounced by a bright ceiling, light from below by a darker floor.
        cells = room.cells(near)
        ambient = (0.8 + 0.2 * facing[2]) * _openness(room, near, facing, cells)
        light_in = room.ambient.astype(np.float32)[:, None, None] * ambient
        for number, (light, shadow) in enumerate(zip(room.lights, shadows, strict=True)):
            colour, depth = light.colour.astype(np.float32), shadow.depth[k]
            reached = room.reached(number, k, near, cells)
            if reached is None:
                strength = _from_point(light, k, depth, near, facing)
                light_in += colour[:, None, None] * strength
            elif reached.any():
                strength = _from_point(light, k, depth, near[:, reached], facing[:, reached])
                light_in[:, reached] += colour[:, None] * strength
        total[turn] = light_in
    return total


def _from_point(
    light: Light, number: int, depth: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Lambert's law, falloff and shadow of one of a light's points: as ``points`` (3, ...)."""
    source = light.points[number].astype(np.float32)
    way = [source[k] - points[k] for k in range(3)]
    squared = way[0] ** 2 + way[1] ** 2 + way[2] ** 2
    inverse = 1 / np.sqrt(squared + 1e-12)
    cosine = sum(n * w for n, w in zip(normals, way, strict=True)) * inverse
    strength = np.maximum(cosine, 0) / (squared + np.float32(SOFTEST_DISTANCE**2))
    if light.facing is not None:
        out = -sum(np.float32(f) * w for f, w in zip(light.facing, way, strict=True)) * inverse
        strength = strength * np.maximum(out, 0)
    return strength * _unshadowed(source, depth, points, normals)


def _unshadowed(
    source: np.ndarray, depth: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Share of light that arrives, in [0, 1]: four texels of the map, bilinearly."""
    # Comparing a point lifted off its surface keeps surfaces from shadowing themselves.
    x, y, z = (points[k] + np.float32(0.025) * normals[k] - source[k] for k in range(3))
    ax, ay, az = np.abs(x), np.abs(y), np.abs(z)
    on_x, on_z = (ax >= ay) & (ax >= az), (az > ax) & (az > ay)
    major = np.maximum(np.maximum(ax, ay), az)
    positive = np.where(on_x, x, np.where(on_z, z, y)) > 0
    face = np.where(on_x, 0, np.where(on_z, 2, 1)) + 3 * positive
    scale = np.float32(SHADOW_TEXELS / 2) / np.maximum(major, np.float32(1e-6))
    limit = np.float32(SHADOW_TEXELS - 1)
    u = np.clip(np.where(on_x, y, x) * scale + limit / 2, 0, limit)
    v = np.clip(np.where(on_z, y, z) * scale + limit / 2, 0, limit)
    left = np.minimum(u.astype(np.int32), SHADOW_TEXELS - 2)
    top = np.minimum(v.astype(np.int32), SHADOW_TEXELS - 2)
    fu, fv = u - left, v - top
    flat = (face * SHADOW_TEXELS + top) * SHADOW_TEXELS + left
    texels, behind = depth.reshape(-1), major - np.float32(0.015)
    lit = [
        np.take(texels, flat + offset) > behind
        for offset in (0, 1, SHADOW_TEXELS, SHADOW_TEXELS + 1)
    ]
    upper = lit[0] + fu * (lit[1].astype(np.float32) - lit[0])
    lower = lit[2] + fu * (lit[3].astype(np.float32) - lit[2])
    return upper + fv * (lower - upper)


def _face_axes(face: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, down and forward (3,) of a cube face: the two other axes in order, then its own."""
    axis, sign = face % 3, 2.0 * (face // 3) - 1
    others = [k for k in range(3) if k != axis]
    identity = np.eye(3)
    return identity[others[0]], identity[others[1]], sign * identity[axis]


def _openness(
    room: Room, points: np.ndarray, normals: np.ndarray, cells: np.ndarray | None
) -> np.ndarray:
    """Darkening towards the room's walls, floor and ceiling, (h, w), 1 in the open.

    A stand-in for ambient occlusion: a plane darkens what is near it and does not face its way.
    """
    low, high = room.bounds(cells)
    openness = np.ones(points.shape[1:], np.float32)
    squared = np.float32(CORNER_REACH**2)
    for axis in range(3):
        across = 1 - np.abs(normals[axis])
        for plane in (low[axis], high[axis]):
            distance = points[axis] - np.float32(plane)
            near = squared / (squared + distance * distance)
            openness *= 1 - np.float32(CORNER_DEPTH) * near * across
    return openness
