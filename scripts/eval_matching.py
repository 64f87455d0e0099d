"""How many matches of a model are right, by how many pixels, beside SIFT's.

python scripts/eval_matching.py --ckpt CKPT --root ROOT [ROOT ...] --output output/matching

Pairs are drawn from those of processed data sets, whose depth and poses tell where the point of a
pixel of image 1 lies in image 2. Where it lies behind another surface (depths differ by more than
5%) or outside of the image, a match of it cannot be right: such *hidden* ones count as wrong in one
table and are left out in the other. Matches are not judged where a sensor gave no depth, at either
end. Rows:

- model: mutual nearest descriptors from seeds every 8 pixels, and the most confident 50 and 25% of
  them, of all pairs together;
- SIFT: of the same pixels, mutual nearest neighbours with Lowe's ratio below 0.8 both ways, and the
  half of the lowest ratios;
- same pixel: what one gets by saying that nothing moved; random: a random pixel.

Columns: matches, and those right to 5 pixels, per pair; pairs without any match; coverage: share of
cells of 16 pixels, of those that image 2 sees, with a match right to 5 pixels; then the share of
matches right to 1, 2, 3, ... pixels. ``--output`` is the stem of a .json, a .md and a .png.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from tqdm import tqdm

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.datasets.correspondences import DEPTH_TOLERANCE
from dust3r.datasets.scannetpp import METADATA, ScanNetpp
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.reconstruction import Source
from dust3r.utils.device import chosen_device
from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import geotrf, inv, project
from dust3r.utils.image import rgb
from dust3r.utils.npz import load_arrays
from dust3r.utils.plots import Block, Chart, save_png, sheet
from mast3r.matching import Matches, match_views

LIMITS = (1, 2, 3, 5, 8, 12, 20, 32, 50)
RIGHT = 5
SHARES = {"model": (1.0, 0.5, 0.25), "SIFT": (1.0, 0.5), "same pixel": (1.0,), "random": (1.0,)}
BANDS = (0.0, 0.4, 0.6, 0.8, 1.0)
SEEN, HIDDEN, UNKNOWN = range(3)

_CELL = 16
_LEAST_SEEN = 0.25
_RATIO = 0.8
_COLOURS = {"model": "tab:blue", "SIFT": "tab:orange", "same pixel": "0.4", "random": "0.7"}
_CURVE = np.linspace(0.05, 1, 20)

View = dict[str, Any]
Matcher = Callable[[View, View], Matches]


@dataclass(frozen=True)
class Judged:
    """What the truth says of K matches.

    Attributes:
        state: (K,) SEEN, HIDDEN (the point of pixel 1 is not to be seen in image 2), UNKNOWN.
        error: (K,) pixels in image 2 from where that point truly is; infinite unless SEEN.
        confidence: (K,) of the matcher.
    """

    state: np.ndarray
    error: np.ndarray
    confidence: np.ndarray

    def precision(self, limit: float, hidden: bool) -> float | None:
        """Share with an error up to ``limit``; ``hidden`` ones are wrong, or left out."""
        judged = np.isin(self.state, (SEEN, HIDDEN) if hidden else SEEN)
        return float((self.error[judged] <= limit).mean()) if judged.any() else None

    def surest(self, share: float) -> "Judged":
        """The most confident ones."""
        count = round(share * len(self.confidence))
        chosen = np.sort(np.argsort(-self.confidence, kind="stable")[:count])
        return Judged(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class PairResult:
    """One matcher on one pair: its judged matches and the share of seen cells that they cover."""

    judged: Judged
    coverage: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="of a model with descriptors")
    parser.add_argument("--root", type=Path, nargs="+", required=True, help="processed data sets")
    parser.add_argument("--output", type=Path, required=True, help="stem of .json, .md and .png")
    parser.add_argument("--num_pairs", type=int, default=200, help="of each data set")
    parser.add_argument("--size", type=int, default=224, help="side of the square images, pixels")
    parser.add_argument("--subsample", type=int, default=8, help="pixels between seeds")
    parser.add_argument("--min_overlap", type=float, default=0.0, help="of pairs")
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load_model(args.ckpt, chosen_device(args.device), verbose=False)
    matchers = {
        "model": network_matcher(model, args.subsample),
        "SIFT": sift_matches,
        "same pixel": same_pixel,
        "random": random_matcher(args.seed),
    }
    found, text, blocks = {}, [], []
    for root in args.root:
        dataset = ScanNetpp("all", root, args.size, seed=args.seed)
        chosen, overlaps = choose_pairs(dataset, args.num_pairs, args.min_overlap, args.seed)
        results = evaluate(dataset, chosen, matchers)
        called = "/".join(root.absolute().parts[-2:])
        title = f"{len(chosen)} pairs of {called} at {args.size} pixels, {args.ckpt.name}"
        found[called] = report(results, overlaps)
        text += [f"## {title}", *tables(found[called]), ""]
        blocks.append(charts(results, title))
    with atomic_path(args.output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    with atomic_path(args.output.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(text))
    save_png(sheet(blocks), args.output.with_suffix(".png"))
    print("\n".join(text))


def choose_pairs(
    dataset: ScanNetpp, count: int, min_overlap: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of ``count`` pairs of a data set, rising, and their overlaps (NaN if not stated).

    Raises:
        ValueError: no pair overlaps so much.
    """
    stated = load_arrays(dataset.root / METADATA, ("pairs",))["pairs"]
    overlaps = stated[:, 2] if stated.shape[1] > 2 else np.full(len(stated), np.nan)
    usable = np.flatnonzero(~(overlaps < min_overlap))
    if not len(usable):
        raise ValueError(f"{dataset.root} has no pair that overlaps by {min_overlap}; lower it")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(usable, min(count, len(usable)), replace=False))
    return chosen, overlaps[chosen]


def evaluate(
    dataset: ScanNetpp, chosen: Sequence[int], matchers: Mapping[str, Matcher]
) -> dict[str, list[PairResult]]:
    """Results of every matcher on every chosen pair."""
    results: dict[str, list[PairResult]] = {name: [] for name in matchers}
    for number in tqdm(chosen, "pairs"):
        view1, view2 = dataset[int(number)]
        seen = seen_pixels(view1, view2)
        for name, matcher in matchers.items():
            matches = matcher(view1, view2)
            judged = judge(view1, view2, matches)
            right = matches.xy1[judged.error <= RIGHT]
            results[name].append(PairResult(judged, coverage(right, seen)))
    return results


def judge(view1: View, view2: View, matches: Matches) -> Judged:
    """How far the second ends of matches are from where the points of the first ones truly lie.

    Args:
        view1: with depth and camera, as of a data set, one image upright.
        matches: in pixels of the views.
    """
    column, row = np.floor(matches.xy1 + 0.5).astype(int).T
    depth = view1["depthmap"][row, column].astype(np.float64)
    known = view1["valid_mask"][row, column]
    flat = np.concatenate([matches.xy1, np.ones((len(matches), 1))], 1)
    rays = flat @ np.linalg.inv(view1["camera_intrinsics"].astype(np.float64)).T
    world = geotrf(view1["camera_pose"].astype(np.float64), rays * depth[:, None])
    local = geotrf(inv(view2["camera_pose"].astype(np.float64)), world)
    there, z = project(local, view2["camera_intrinsics"].astype(np.float64))
    height, width = view2["valid_mask"].shape
    inside = (z > 0) & ((there >= -0.5) & (there < (width - 0.5, height - 0.5))).all(1)
    column, row = np.floor(np.where(inside[:, None], there, 0) + 0.5).astype(int).T
    surface = view2["depthmap"][row, column]
    agrees = np.abs(z - surface) <= DEPTH_TOLERANCE * surface
    state = np.where(inside & agrees, SEEN, HIDDEN)
    state[~known | (inside & ~view2["valid_mask"][row, column])] = UNKNOWN
    error = np.where(state == SEEN, np.linalg.norm(there - matches.xy2, axis=1), np.inf)
    return Judged(state, error, np.asarray(matches.confidence))


def seen_pixels(view1: View, view2: View) -> np.ndarray:
    """Which pixels of view 1 show what view 2 shows too, (H, W) bool."""
    height, width = view1["valid_mask"].shape
    xy = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2).astype(float)
    everywhere = Matches(xy, xy, np.ones(len(xy), np.float32))
    return (judge(view1, view2, everywhere).state == SEEN).reshape(height, width)


def coverage(xy: np.ndarray, seen: np.ndarray) -> float | None:
    """Share of the cells of which image 2 sees a quarter that hold one of the pixels (K, 2)."""
    height, width = (side // _CELL * _CELL for side in seen.shape)
    cells = seen[:height, :width].reshape(height // _CELL, _CELL, width // _CELL, _CELL)
    wanted = cells.mean((1, 3)) >= _LEAST_SEEN
    held = np.zeros_like(wanted)
    column, row = np.floor((xy + 0.5) / _CELL).astype(int).T
    inside = (row < held.shape[0]) & (column < held.shape[1])
    held[row[inside], column[inside]] = True
    return float(held[wanted].mean()) if wanted.any() else None


def network_matcher(model: AsymmetricCroCo3DStereo, subsample: int) -> Matcher:
    """Mutual nearest descriptors of a model."""

    def matcher(view1: View, view2: View) -> Matches:
        given = (as_loaded(view, number) for number, view in enumerate((view1, view2)))
        return match_views(model, *given, subsample_or_initxy1=subsample)

    return matcher


def as_loaded(view: View, number: int) -> View:
    """A data set's view as ``dust3r.utils.image.load_images`` gives it: a batch of one."""
    return {
        "img": view["img"][None],
        "true_shape": view["true_shape"][None],
        "idx": number,
        "instance": str(number),
        "source": Source(f"{number}.png", None, tuple(view["img"].shape[:-3:-1]), np.eye(3)),
    }


def sift_matches(view1: View, view2: View) -> Matches:
    """SIFT with the ratio test both ways; confidence is 1 - ratio."""
    sift = cv2.SIFT_create()
    greys = (
        cv2.cvtColor((rgb(view["img"]) * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
        for view in (view1, view2)
    )
    (points1, first), (points2, second) = (sift.detectAndCompute(grey, None) for grey in greys)
    if first is None or second is None or min(len(first), len(second)) < 2:
        return Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, np.float32))
    there, back = _distinct(first, second), _distinct(second, first)
    pairs = [
        (i, j, max(r, back[j][1])) for i, (j, r) in there.items() if back.get(j, (-1,))[0] == i
    ]
    return Matches(
        np.array([points1[i].pt for i, _, _ in pairs], float).reshape(-1, 2),
        np.array([points2[j].pt for _, j, _ in pairs], float).reshape(-1, 2),
        1 - np.array([ratio for *_, ratio in pairs], np.float32),
    )


def _distinct(first: np.ndarray, second: np.ndarray) -> dict[int, tuple[int, float]]:
    """Nearest neighbour and ratio of the descriptors that pass the ratio test."""
    nearest = cv2.BFMatcher().knnMatch(first, second, 2)
    ratios = ((a, a.distance / max(b.distance, 1e-9)) for a, b in nearest)
    return {a.queryIdx: (a.trainIdx, ratio) for a, ratio in ratios if ratio < _RATIO}


def same_pixel(view1: View, view2: View) -> Matches:
    """Every eighth pixel with the same one of the other image."""
    height, width = view1["valid_mask"].shape
    xy = np.stack(np.meshgrid(np.arange(4, width, 8), np.arange(4, height, 8)), -1).reshape(-1, 2)
    return Matches(xy.astype(float), xy.astype(float), np.ones(len(xy), np.float32))


def random_matcher(seed: int) -> Matcher:
    """Every eighth pixel with a random one."""
    rng = np.random.default_rng(seed)

    def matcher(view1: View, view2: View) -> Matches:
        xy, _, confidence = vars(same_pixel(view1, view2)).values()
        height, width = view2["valid_mask"].shape
        return Matches(xy, rng.integers(0, (width, height), xy.shape).astype(float), confidence)

    return matcher


def report(results: Mapping[str, list[PairResult]], overlaps: np.ndarray) -> dict[str, Any]:
    """All numbers: ``rows`` by name, ``bands`` of overlap, ``curves`` over the share kept."""
    rows, curves, bands = {}, {}, {}
    for name, pairs in results.items():
        pooled = pool(pairs)
        for share in SHARES.get(name, (1.0,)):
            called = name if share == 1 else f"{name}, surest {share:.0%}"
            rows[called] = numbers(pooled.surest(share), len(pairs))
        covered = [pair.coverage for pair in pairs if pair.coverage is not None]
        rows[name] |= {
            "coverage": float(np.mean(covered)) if covered else None,
            "without": sum(not len(pair.judged.state) for pair in pairs),
        }
        curves[name] = [pooled.surest(share).precision(RIGHT, True) for share in _CURVE]
        for low, high in zip(BANDS, BANDS[1:], strict=False):
            inside = np.flatnonzero((overlaps >= low) & (overlaps < high))
            if len(inside):
                band = bands.setdefault(f"{low:g} to {high:g}", {"pairs": len(inside)})
                band[name] = numbers(pool([pairs[n] for n in inside]), len(inside))
    return {"pairs": len(overlaps), "rows": rows, "bands": bands, "curves": curves}


def pool(pairs: Sequence[PairResult]) -> Judged:
    """The matches of all pairs."""
    parts = [[getattr(pair.judged, field.name) for pair in pairs] for field in fields(Judged)]
    return Judged(*map(np.concatenate, parts))


def numbers(judged: Judged, pairs: int) -> dict[str, Any]:
    """Of the matches of some pairs."""
    return {
        "matches": len(judged.state) / pairs,
        "right": float((judged.error <= RIGHT).sum()) / pairs,
        "unknown": float((judged.state == UNKNOWN).mean()) if len(judged.state) else None,
        "hidden": float((judged.state == HIDDEN).mean()) if len(judged.state) else None,
        "hidden is wrong": {str(limit): judged.precision(limit, True) for limit in LIMITS},
        "hidden left out": {str(limit): judged.precision(limit, False) for limit in LIMITS},
    }


def tables(told: Mapping[str, Any]) -> list[str]:
    """Lines of markdown."""
    lines = []
    titles = ("matches", "right", "without", "coverage (%)", "hidden (%)", "not judged (%)")
    for kind in ("hidden is wrong", "hidden left out"):
        heads = [f"right to, px; {kind}", *titles, *map(str, LIMITS)]
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, row in told["rows"].items():
            cells = [f"{row['matches']:.0f}", f"{row['right']:.0f}", str(row.get("without", "-"))]
            shares = [row.get("coverage"), row["hidden"], row["unknown"], *row[kind].values()]
            lines.append(f"| {' | '.join([name, *cells, *map(percent, shares)])} |")
    names = [name for name in ("model", "SIFT") if name in told["rows"]]
    heads = ["overlap", "pairs", *(f"{n}: {what}" for n in names for what in ("matches", "right"))]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, band in told["bands"].items():
        cells = [f"{band[n][what]:.0f}" for n in names for what in ("matches", "right")]
        lines.append(f"| {' | '.join([name, str(band['pairs']), *cells])} |")
    return lines


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def charts(results: Mapping[str, list[PairResult]], title: str) -> Block:
    """Precision over the limit, both ways, and over the share kept."""
    pooled = {name: pool(pairs) for name, pairs in results.items()}
    limits = np.geomspace(1, 64, 40)

    def over_limits(hidden: bool) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for name, judged in pooled.items():
                for share, style in zip(SHARES.get(name, (1.0,)), ("-", "--", ":"), strict=False):
                    values = [judged.surest(share).precision(limit, hidden) for limit in limits]
                    label = name if share == 1 else f"{name}, surest {share:.0%}"
                    _line(axes, limits, values, style, name, label)
            axes.set(xscale="log", xlim=(1, 64), ylim=(0, 1))
            axes.xaxis.set_major_locator(FixedLocator((1, 2, 5, 10, 20, 50)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("pixels off, at most", fontsize=7.5)

        return draw

    def over_shares(axes: Axes) -> None:
        for name in ("model", "SIFT"):
            if name in pooled:
                values = [pooled[name].surest(share).precision(RIGHT, True) for share in _CURVE]
                _line(axes, _CURVE, values, "-", name, name)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel("share of matches, the surest first", fontsize=7.5)

    def legend(axes: Axes) -> None:
        over_limits(True)(axes)
        entries = axes.get_legend_handles_labels()
        axes.clear()
        axes.set_axis_off()
        axes.legend(*entries, fontsize=7, loc="upper left", frameon=False)

    panels = [
        Chart("share right; hidden points count as wrong", over_limits(True)),
        Chart("share right; hidden points left out", over_limits(False)),
        Chart(f"share right to {RIGHT} pixels, hidden is wrong", over_shares),
        Chart("", legend),
    ]
    return Block([panels], (3.0, 2.6), title)


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float | None], style: str, name: str, label: str
) -> None:
    values = np.array([np.nan if value is None else value for value in y])
    axes.plot(x, values, style, color=_COLOURS.get(name), lw=1.2, label=label)


if __name__ == "__main__":
    main()
