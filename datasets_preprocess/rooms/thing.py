"""A thing: primitives put together in a frame of their own.

In a thing's frame z is up, it rests on z = 0 and its back is towards +y; metres.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from datasets_preprocess.rooms.shapes import Kind, Primitive, turn

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Top:
    """A horizontal rectangle that carries things: its centre and half sizes in x and y."""

    centre: Point
    half: tuple[float, float]


@dataclass(eq=False)
class Thing:
    """Primitives in the thing's frame, the half sizes of its footprint, its height, its tops."""

    half: tuple[float, float]
    height: float
    parts: list[Primitive] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)

    def box(
        self, centre: Point, half: Point, material: int, rotation: np.ndarray | None = None
    ) -> None:
        """Add a box; ``rotation`` (3, 3) in the thing's frame."""
        self._add(Kind.BOX, centre, half, material, rotation)

    def block(self, low: Point, high: Point, material: int) -> None:
        """Add an upright box from its lowest to its highest corner."""
        corners = np.array([low, high], float)
        self._add(Kind.BOX, corners.mean(axis=0), np.diff(corners, axis=0)[0] / 2, material)

    def cylinder(
        self,
        centre: Point,
        radius: float,
        half: float,
        material: int,
        rotation: np.ndarray | None = None,
        casts_shadow: bool = True,
    ) -> None:
        """Add a cylinder along z of half length ``half``, or along the z axis of ``rotation``."""
        shape = (radius, radius, half)
        self._add(Kind.CYLINDER, centre, shape, material, rotation, casts_shadow)

    def sphere(
        self, centre: Point, half: Point | float, material: int, casts_shadow: bool = True
    ) -> None:
        """Add a ball, or an ellipsoid if ``half`` has three values."""
        shape = tuple(np.broadcast_to(half, 3))
        self._add(Kind.SPHERE, centre, shape, material, None, casts_shadow)

    def placed(self, position: Point, yaw: float) -> list[Primitive]:
        """The parts in the world, with the thing's origin at ``position`` and turned by ``yaw``."""
        rotation = turn(yaw)
        return [
            replace(
                part,
                centre=rotation @ part.centre + np.asarray(position),
                rotation=rotation @ part.rotation,
            )
            for part in self.parts
        ]

    def include(self, other: "Thing", position: Point, yaw: float) -> None:
        """Add another thing's parts."""
        self.parts += other.placed(position, yaw)

    def _add(
        self,
        kind: Kind,
        centre: Point,
        half: Point,
        material: int,
        rotation: np.ndarray | None = None,
        casts_shadow: bool = True,
    ) -> None:
        rotation = np.eye(3) if rotation is None else rotation
        centre, half = np.array(centre, float), np.array(half, float)
        self.parts.append(Primitive(kind, centre, rotation, half, (material,), casts_shadow))
