"""A picture of a house from above: walls, furniture, and where the camera goes and looks."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Polygon

from datasets_preprocess.rooms.house import House
from datasets_preprocess.rooms.shapes import Kind, Primitive
from dust3r.utils.files import atomic_path

_LOOK, _DPI = 0.35, 110


def draw_plan(path: str | Path, house: House, poses: np.ndarray) -> Path:
    """Write a PNG of a house and a walk ``poses`` (n, 4, 4) through it, dark to bright; its path.

    Walls are black, things grey by how high they reach.
    """
    path = Path(path)
    figure = Figure(figsize=tuple(1.1 * house.size[:2] + 0.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    walls = [slab for slab in house.layout.slabs() if slab.side < 4 and slab.low[2] < 1]
    things = sorted(
        (part for part in house.primitives if part.casts_shadow), key=lambda part: part.centre[2]
    )
    for part in things:
        if part.corners()[:, 2].max() > 0.03:
            axes.add_patch(_outline(part))
    for slab in walls:
        (x0, y0), (x1, y1) = slab.low[:2], slab.high[:2]
        axes.add_patch(Polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color="black", lw=0))
    colours = colormaps["plasma"](np.linspace(0, 0.95, len(poses)))
    eyes, ahead = poses[:, :2, 3], poses[:, :2, 2]
    axes.quiver(*eyes.T, *(_LOOK * ahead).T, color=colours, angles="xy", scale_units="xy", scale=1,
                width=0.0022)  # fmt: skip
    axes.scatter(*eyes.T, s=5, c=colours)
    for number in range(0, len(poses), 20):
        axes.annotate(str(number), eyes[number], fontsize=7)
    half = house.size[:2] / 2 + 0.1
    axes.set(xlim=(-half[0], half[0]), ylim=(-half[1], half[1]), aspect="equal")
    axes.set(xlabel="x (m)", ylabel="y (m)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path


def _outline(part: Primitive) -> Polygon | Ellipse:
    top = float(part.corners()[:, 2].max())
    shade = str(np.clip(0.92 - 0.2 * top, 0.3, 0.92))
    style = {"facecolor": shade, "edgecolor": "0.4", "linewidth": 0.3}
    if part.kind is Kind.BOX or abs(part.rotation[2, 2]) < 0.9:
        corners = part.corners()[:, :2]
        order = np.argsort(np.arctan2(*(corners - corners.mean(0)).T))
        return Polygon(corners[order], **style)
    return Ellipse(part.centre[:2], 2 * part.half[0], 2 * part.half[1], **style)
