"""Localisation data sets, each read from the layout it is distributed in."""

import inspect
from collections.abc import Callable
from pathlib import Path

from mast3r.visloc.datasets import aachen, cambridge, colmap, generic, inloc, seven_scenes
from mast3r.visloc.scene import LocalisationScene

READERS: dict[str, Callable[..., list[LocalisationScene]]] = {
    "aachen": aachen.read,
    "cambridge": cambridge.read,
    "colmap": colmap.read,
    "generic": generic.read,
    "inloc": inloc.read,
    "seven_scenes": seven_scenes.read,
}


def read_scenes(layout: str, root: str | Path, **options: object) -> list[LocalisationScene]:
    """The scenes of a data set: their maps, and the queries to localise in them.

    Images, depth maps and points are read when they are asked for, not here.

    Args:
        layout: one of ``READERS``.
        root: folder of the data set.
        options: of the reader, as its docstring says.

    Raises:
        FileNotFoundError: a file that the layout has is not there.
        ValueError: the layout or an option is unknown, or a file is damaged.
    """
    if layout not in READERS:
        raise ValueError(f"no layout {layout!r}; there are {', '.join(sorted(READERS))}")
    reader = READERS[layout]
    known = [name for name in inspect.signature(reader).parameters if name != "root"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"the layout {layout} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return reader(root, **options)
