"""The solids that rooms are made of, in the world frame: metres, z up, the floor at z = 0."""

from dataclasses import dataclass
from enum import Enum

import numpy as np


class Kind(Enum):
    """What a primitive's unit shape is, before its half sizes stretch it."""

    BOX = "box"
    CYLINDER = "cylinder"  # along its own z axis, with caps
    SPHERE = "sphere"
    SHELL = "shell"  # a box seen from the inside: the room itself


@dataclass(frozen=True, eq=False)
class Primitive:
    """One solid: a unit shape stretched by ``half``, rotated and moved into the world.

    ``centre`` (3,) metres; ``rotation`` (3, 3) object-to-world, orthonormal; ``half`` (3,) half
    sizes along the object's axes in metres (a sphere's radius three times; unequal values make an
    ellipsoid or an elliptic cylinder). ``materials`` holds one material index, or for a shell six:
    -x, +x, -y, +y walls, floor, ceiling.
    """

    kind: Kind
    centre: np.ndarray
    rotation: np.ndarray
    half: np.ndarray
    materials: tuple[int, ...] = (0,)
    casts_shadow: bool = True

    def corners(self) -> np.ndarray:
        """(8, 3) world corners of the bounding box along the object's own axes."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
        return self.centre + (self.rotation @ (signs * self.half[:, None])).T

    def distance(self, points: np.ndarray) -> np.ndarray:
        """(n,) metres from points (n, 3) to the surface, negative inside the matter.

        Exact outside boxes, round cylinders and spheres; a lower bound for stretched ones. For a
        shell the matter is what lies outside the room.
        """
        local = (np.asarray(points) - self.centre) @ self.rotation
        if self.kind is Kind.SPHERE:
            return (np.linalg.norm(local / self.half, axis=-1) - 1) * self.half.min()
        if self.kind is Kind.CYLINDER:
            radial = np.linalg.norm(local[:, :2] / self.half[:2], axis=-1) - 1
            beyond = np.stack(
                [radial * self.half[:2].min(), np.abs(local[:, 2]) - self.half[2]], axis=-1
            )
        else:
            beyond = np.abs(local) - self.half
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
        distance = outside + np.minimum(beyond.max(axis=-1), 0)
        return -distance if self.kind is Kind.SHELL else distance


def turn(angle: float) -> np.ndarray:
    """(3, 3) rotation by ``angle`` radians about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def tilt(angle: float) -> np.ndarray:
    """(3, 3) rotation by ``angle`` radians about the x axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
