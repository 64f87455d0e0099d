"""Writes scenes whose views are a JPEG, an EXR depth map and an NPZ of the camera, and their pairs.

``dust3r.datasets.indexed_pairs`` says what the files are. Beside its views each scene's folder
holds ``pairs.npz``, ``names`` (N,) of its views and ``pairs`` (P, 3) of two of them and a score,
from which a data set's index over all scenes is made anew whenever scenes are added.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets_preprocess.check import check_written
from datasets_preprocess.layout import write_image
from datasets_preprocess.overlap import score_pairs, select_pairs
from datasets_preprocess.scenes import SceneError, SceneReport, preprocess_scenes
from dust3r.datasets.base import BaseStereoViewDataset
from dust3r.datasets.indexed_pairs import load_scene_pairs
from dust3r.utils.exr import write_exr_depth
from dust3r.utils.files import atomic_path
from dust3r.utils.npz import load_arrays

PAIRS_FILE = "pairs.npz"

NamedPair = tuple[str, str, float]

_SMALL = (48, 64)
_SPARSE_SMALL = (32, 48)
_TOLERANCE, _SPARSE_TOLERANCE = 0.05, 0.1
_MIN_VALID = 0.01


@dataclass(frozen=True)
class PairRange:
    """Which pairs of a scene to keep where no list of pairs is given."""

    min_overlap: float = 0.2
    max_overlap: float = 0.9
    max_pairs: int | None = None


@dataclass(frozen=True)
class SceneSource:
    """A scene to convert: its ``name`` in the output, its raw ``path``.

    ``pairs`` are names of two views and a score where a list of pairs was given, else None.
    """

    name: str
    path: Path
    pairs: tuple[NamedPair, ...] | None = None

    def wants(self, view: str) -> bool:
        """Whether the view of this name is in some pair; always, where none are given."""
        return self.pairs is None or view in self.views()

    def views(self) -> set[str]:
        """Names of the views in the pairs that were given."""
        return {name for first, second, _ in self.pairs or () for name in (first, second)}


@dataclass(frozen=True)
class SourceView:
    """One view, read from the release.

    ``images`` maps what follows the view's name in a file's name, often nothing, to RGB
    (H, W, 3) uint8; ``depth`` (H, W) z, 0 or not finite = none; ``intrinsics`` (3, 3), first
    pixel's centre at (0, 0); ``pose`` (4, 4) camera-to-world, OpenCV's axes.
    """

    name: str
    images: Mapping[str, np.ndarray]
    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray


@dataclass
class SceneWriter:
    """Writes the views of one scene into ``folder``, counts what cannot be used, chooses pairs.

    ``sparse`` depth (lidar's) is compared in blocks of pixels; ``min_valid`` is the least share of
    pixels with depth that a view needs; ``separate_pose`` writes ``R_cam2world`` and
    ``t_cam2world`` in place of ``cam2world``.
    """

    folder: Path
    sparse: bool = False
    min_valid: float = _MIN_VALID
    separate_pose: bool = False
    report: SceneReport = field(default_factory=SceneReport)
    _names: list[str] = field(default_factory=list)
    _depths: list[np.ndarray] = field(default_factory=list)
    _intrinsics: list[np.ndarray] = field(default_factory=list)
    _poses: list[np.ndarray] = field(default_factory=list)

    def take(self, name: str, read: Callable[[], SourceView]) -> None:
        """Write the view that ``read`` gives, or count it as left out and why.

        Files that are missing or damaged are the release's fault. An error with a number is the
        system's, such as a full disk, and goes on.
        """
        try:
            view = read()
        except FileNotFoundError as error:
            self.report.skip("missing file", f"{name} ({error.filename or error})")
        except (ValueError, KeyError, EOFError) as error:
            self.report.skip("unreadable file", f"{name} ({error})")
        else:
            self._write(view)

    def finish(self, source: SceneSource, wanted: PairRange) -> SceneReport:
        """Choose pairs, write ``pairs.npz``; SceneError where there are none."""
        if len(self._names) < 2:
            raise SceneError(f"{len(self._names)} usable view(s), 2 are needed{self._left_out()}")
        if source.pairs is None:
            pairs = self._overlapping(wanted)
        else:
            pairs = self._listed(source)
        if not len(pairs):
            what = "overlap as wanted" if source.pairs is None else "are in the list of pairs"
            raise SceneError(f"no two of {len(self._names)} views {what}{self._left_out()}")
        with atomic_path(self.folder / PAIRS_FILE) as temporary:
            np.savez_compressed(temporary, names=np.array(self._names, np.str_), pairs=pairs)
        self.report.frames, self.report.pairs = len(self._names), len(pairs)
        return self.report

    def _write(self, view: SourceView) -> None:
        depth = np.where(np.isfinite(view.depth) & (view.depth > 0), view.depth, 0)
        depth = depth.astype(np.float32)
        problem = self._problem(view, depth)
        if problem:
            self.report.skip(problem, view.name)
            return
        for suffix, rgb in view.images.items():
            write_image(self.folder / f"{view.name}{suffix}.jpg", rgb)
        write_exr_depth(self.folder / f"{view.name}.exr", depth)
        with atomic_path(self.folder / f"{view.name}.npz") as temporary:
            np.savez(temporary, intrinsics=view.intrinsics.astype(np.float32), **self._pose(view))
        small, intrinsics = _small(depth, view.intrinsics, self.sparse)
        self._names.append(view.name)
        self._depths.append(small)
        self._intrinsics.append(intrinsics)
        self._poses.append(view.pose)

    def _problem(self, view: SourceView, depth: np.ndarray) -> str | None:
        sizes = {rgb.shape[:2] for rgb in view.images.values()}
        if sizes != {depth.shape}:
            return "image and depth of different sizes"
        if not (np.isfinite(view.pose).all() and np.isfinite(view.intrinsics).all()):
            return "camera is not finite"
        turn = view.pose[:3, :3]
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) or np.linalg.det(turn) < 0:
            return "camera's rotation is none"
        height, width = depth.shape
        focals, centre = np.diag(view.intrinsics)[:2], view.intrinsics[:2, 2]
        if not (focals > 0).all() or not ((centre > 0) & (centre < (width - 1, height - 1))).all():
            return "intrinsics do not belong to the image"
        if (depth > 0).mean() < self.min_valid:
            return f"less than {self.min_valid:.1%} with depth"
        return None

    def _pose(self, view: SourceView) -> dict[str, np.ndarray]:
        pose = view.pose.astype(np.float32)
        if self.separate_pose:
            return {"R_cam2world": pose[:3, :3], "t_cam2world": pose[:3, 3]}
        return {"cam2world": pose}

    def _overlapping(self, wanted: PairRange) -> np.ndarray:
        scored = score_pairs(
            np.stack(self._depths),
            np.stack(self._intrinsics),
            np.stack(self._poses),
            min_overlap=wanted.min_overlap,
            tolerance=_SPARSE_TOLERANCE if self.sparse else _TOLERANCE,
        )
        return select_pairs(
            scored,
            len(self._names),
            min_overlap=wanted.min_overlap,
            max_overlap=wanted.max_overlap,
            max_pairs=wanted.max_pairs,
        )

    def _listed(self, source: SceneSource) -> np.ndarray:
        place = {name: number for number, name in enumerate(self._names)}
        rows = []
        for first, second, score in source.pairs:
            if first in place and second in place:
                rows.append((place[first], place[second], score))
            else:
                self.report.skip("listed pair of a view that is not there", f"{first}, {second}")
        return np.array(rows, np.float64).reshape(-1, 3)

    def _left_out(self) -> str:
        reasons = [
            f"{count} {reason} (first: {self.report.examples[reason]})"
            for reason, count in self.report.skipped.items()
        ]
        return f"; left out: {', '.join(reasons)}" if reasons else ""


@dataclass(frozen=True)
class ScenePart:
    """What ``pairs.npz`` of a finished scene says: its name, its views, its pairs (P, 3)."""

    scene: str
    names: list[str]
    pairs: np.ndarray


def convert_all(
    sources: Sequence[SceneSource],
    convert: Callable[[SceneSource, Path], SceneReport],
    write_index: Callable[[Path, list[ScenePart]], None],
    open_dataset: Callable[[Path], BaseStereoViewDataset],
    options: argparse.Namespace,
    title: str,
) -> str:
    """Run a script over its scenes, write the index of all finished ones, look at the result.

    ``write_index(root, parts)`` writes what the reader needs, ``open_dataset(root)`` opens it;
    ``options`` are those of ``add_pair_options``. Returns the text to print. Raises ValueError
    where no scene could be made.
    """
    root = options.output_dir
    report = preprocess_scenes(
        sources,
        convert,
        root,
        name=lambda source: source.name,
        num_workers=options.num_workers,
        description=title,
    )
    parts = [_finished(root, scene) for scene in report.scenes]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise ValueError(f"no scene could be made. {report.summary()}")
    write_index(root, parts)
    warnings = check_written(open_dataset(root), root, title)
    return "\n".join([report.summary(), *(f"warning: {warning}" for warning in warnings)])


def write_scene_index(
    path: Path,
    parts: Sequence[ScenePart],
    *,
    scene_names: Sequence[str],
    images_key: str = "images",
) -> None:
    """Write the NPZ that ``ScenePairs`` reads: scenes, images, pairs (P, 3) of numbers, scores."""
    starts = np.cumsum([0, *(len(part.names) for part in parts)])[:-1]
    pairs = [
        np.column_stack([np.full(len(part.pairs), scene), part.pairs[:, :2].astype(int) + start])
        for scene, (part, start) in enumerate(zip(parts, starts, strict=True))
    ]
    arrays = {
        "scenes": np.array(scene_names, np.str_),
        images_key: np.array([name for part in parts for name in part.names], np.str_),
        "pairs": np.concatenate(pairs).astype(np.int64),
        "scores": np.concatenate([part.pairs[:, 2] for part in parts]).astype(np.float32),
    }
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def listed_pairs(path: Path, images_key: str = "images") -> dict[str, tuple[NamedPair, ...]]:
    """The pairs of views of each scene, by their names, in an index that ``ScenePairs`` reads."""
    scenes, images, pairs, scores = load_scene_pairs(path, images_key)
    listed = defaultdict(list)
    for (scene, first, second), score in zip(pairs.tolist(), scores.tolist(), strict=True):
        listed[str(scenes[scene])].append((str(images[first]), str(images[second]), score))
    return {scene: tuple(named) for scene, named in listed.items()}


def add_pair_options(parser: argparse.ArgumentParser, max_pairs: int | None = None) -> None:
    """Options of all scripts: the list of pairs, the range of overlaps, processes."""
    parser.add_argument(
        "--precomputed_pairs",
        type=Path,
        help="index with the pairs to use, such as those published for DUSt3R; without it pairs "
        "are chosen by measured overlap",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="ROOT of the data set")
    parser.add_argument("--min_overlap", type=float, default=0.2, help="least overlap of a pair")
    parser.add_argument("--max_overlap", type=float, default=0.9, help="greatest overlap of a pair")
    parser.add_argument("--max_pairs", type=int, default=max_pairs, help="most pairs of a scene")
    parser.add_argument("--num_workers", type=int, default=1, help="processes")


def pair_range(options: argparse.Namespace) -> PairRange:
    """The range of overlaps that ``add_pair_options`` parsed."""
    return PairRange(options.min_overlap, options.max_overlap, options.max_pairs)


def listed_folder(path: Path, what: str) -> Path:
    """``path`` itself; FileNotFoundError where it is no folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{what}={str(path)!r} is not a folder")
    return path


def _finished(root: Path, scene: str) -> ScenePart | None:
    """A finished scene's part of the index; None where another program made the folder."""
    path = root / scene / PAIRS_FILE
    if not path.is_file():
        return None
    stored = load_arrays(path, ("names", "pairs"))
    return ScenePart(scene, stored["names"].tolist(), stored["pairs"])


def _small(
    depth: np.ndarray, intrinsics: np.ndarray, sparse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Depth on a grid that is the same for all views, and the grid's intrinsics.

    Depths are picked at the centres of the grid's cells; of sparse ones it is a cell's median.
    """
    height, width = depth.shape
    rows, columns = _SPARSE_SMALL if sparse else _SMALL
    scale = np.array([columns / width, rows / height])
    small = intrinsics.astype(np.float64).copy()
    small[:2, :2] *= scale[:, None]
    small[:2, 2] = (small[:2, 2] + 0.5) * scale - 0.5
    if sparse:
        return _cell_medians(depth, rows, columns), small
    y = ((np.arange(rows) + 0.5) / scale[1]).astype(int)
    x = ((np.arange(columns) + 0.5) / scale[0]).astype(int)
    return depth[y[:, None], x], small


def _cell_medians(depth: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Median (rows, columns) of the depths in each cell of a grid over the image, 0 where none."""
    height, width = depth.shape
    y, x = np.nonzero(depth)
    cell = (y * rows // height) * columns + x * columns // width
    values = depth[y, x]
    order = np.lexsort((values, cell))
    cell, values = cell[order], values[order]
    filled, start, count = np.unique(cell, return_index=True, return_counts=True)
    medians = np.zeros(rows * columns, np.float32)
    medians[filled] = values[start + count // 2]
    return medians.reshape(rows, columns)
