"""What surfaces look like: textures with a scale, a tint and, for lamps and windows, a glow."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from datasets_preprocess.rooms import textures
from datasets_preprocess.rooms.textures import Atlas

LARGE_TEXELS, SMALL_TEXELS = 512, 256

# By role: patterns to choose from, how many of them a room has, metres that one tile spans.
_ROLES: dict[str, tuple[tuple[textures.Pattern, ...], int, tuple[float, float]]] = {
    "wall": (textures.WALLS, 2, (0.8, 2.5)),
    "floor": (textures.FLOORS, 1, (0.9, 2.4)),
    "ceiling": (textures.CEILINGS, 1, (1.2, 3.0)),
    "wood": (textures.WOODS, 2, (0.6, 1.4)),
    "fabric": (textures.FABRICS, 3, (0.25, 0.9)),
    "paint": (textures.PAINTS, 2, (0.4, 1.5)),
    "pattern": (textures.PATTERNS, 4, (0.2, 1.0)),
    "picture": ((textures.painting,), 3, (0.9, 1.8)),
}


@dataclass(frozen=True, eq=False)
class Materials:
    """M materials as arrays: ``texture`` (M,) indices into ``atlas``, ``scale`` (M,) metres a tile,
    ``offset`` (M, 2) tiles, ``tint`` (M, 3) factors on linear colour, ``glow`` (M, 3) light
    from within, seen through the texture like a lampshade's."""

    atlas: Atlas
    texture: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    tint: np.ndarray
    glow: np.ndarray


class Palette:
    """A room's choice of textures, from which materials are drawn.

    Args:
        rng: source of all chance.
        plain: roles whose textures become one colour each, their mean; all else stays the same.
    """

    def __init__(self, rng: np.random.Generator, plain: Collection[str] = ()):
        self._rng = rng
        self._textures: list[np.ndarray] = []
        self._by_role: dict[str, list[int]] = {}
        self._rows: list[tuple[int, float, np.ndarray, np.ndarray, np.ndarray]] = []
        for role, (patterns, count, _) in _ROLES.items():
            texels = LARGE_TEXELS if role in ("wall", "floor", "ceiling") else SMALL_TEXELS
            self._by_role[role] = list(range(len(self._textures), len(self._textures) + count))
            for pattern in rng.choice(len(patterns), count, replace=count > len(patterns)):
                texture = patterns[pattern](rng, texels)
                self._textures.append(textures.flat(texture) if role in plain else texture)

    def pick(self, *roles: str) -> int:
        """Index of a new material of one of the roles, with its own scale, offset and tint."""
        rng = self._rng
        role = roles[rng.integers(len(roles))]
        brightness = {"ceiling": (0.85, 1.1), "wall": (0.6, 1.1)}.get(role, (0.45, 1.15))
        tint = rng.uniform(*brightness) * rng.uniform(0.88, 1.08, 3)
        return self._add(role, rng.uniform(*_ROLES[role][2]), tint, np.zeros(3))

    def glowing(self, role: str, colour: tuple[float, float, float], strength: float) -> int:
        """Index of a new material of a role that shines through its texture in ``colour``."""
        glow = strength * np.array(colour)
        return self._add(role, self._rng.uniform(*_ROLES[role][2]), np.ones(3), glow)

    def shifted(self, material: int, metres: Sequence[float]) -> int:
        """Index of the same material with its texture moved by (across, along) ``metres``."""
        texture, scale, offset, tint, glow = self._rows[material]
        self._rows.append((texture, scale, offset + np.asarray(metres) / scale, tint, glow))
        return len(self._rows) - 1

    def materials(self) -> Materials:
        """All materials drawn so far."""
        return joined_materials([self])

    def __len__(self) -> int:
        return len(self._rows)

    def _add(self, role: str, scale: float, tint: np.ndarray, glow: np.ndarray) -> int:
        texture = self._by_role[role][self._rng.integers(len(self._by_role[role]))]
        self._rows.append((texture, scale, self._rng.random(2), tint, glow))
        return len(self._rows) - 1


def joined_materials(palettes: Sequence[Palette]) -> Materials:
    """All materials of several palettes, those of the first one first."""
    textures: list[np.ndarray] = []
    rows = []
    for palette in palettes:
        rows += [(row[0] + len(textures), *row[1:]) for row in palette._rows]
        textures += palette._textures
    texture, scale, offset, tint, glow = zip(*rows, strict=True)
    return Materials(
        Atlas(textures),
        np.array(texture, np.int32),
        np.array(scale, np.float32),
        np.array(offset, np.float32),
        np.array(tint, np.float32),
        np.array(glow, np.float32),
    )
