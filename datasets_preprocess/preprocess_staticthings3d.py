"""StaticThings3D to the layout that ``StaticThings3D`` reads.

    python -m datasets_preprocess.preprocess_staticthings3d --StaticThings3D_dir DIR \
        --output_dir ROOT

DIR holds the release's five archives, unpacked beside each other
(https://github.com/lmb-freiburg/robustmvd, rmvd/data/README.md; Schroeppel et al., 3DV 2022):

    frames_cleanpass/TRAIN/<A|B|C>/<sequence>/<left|right>/<frame>.png, and frames_finalpass
    depths/TRAIN/<A|B|C>/<sequence>/<left|right>/<frame>.float3     (H, W), z
    poses/TRAIN/<A|B|C>/<sequence>/<left|right>/<frame>.float3      (4, 4), world-to-camera
    intrinsics/TRAIN/<A|B|C>/<sequence>/<frame>.float3              (3, 3), of both cameras

A ``.float3`` file is the line "float", the number of dimensions and each of them, the fastest one
first, in lines of their own, then little-endian 32-bit floats. What the release does not say is
where in its first pixel intrinsics have their origin: they are taken as ours, in its centre. The
index of pairs knows no other part of the release than TRAIN. FlyingThings3D's own files
(camera_data.txt, disparities) are not read: its things move.
"""

import argparse
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from datasets_preprocess.indexed_pairs import (
    NamedPair,
    PairRange,
    ScenePart,
    SceneSource,
    SceneWriter,
    SourceView,
    add_pair_options,
    convert_all,
    listed_folder,
    pair_range,
)
from datasets_preprocess.scenes import SceneReport, run_command
from dust3r.datasets.indexed_pairs import load_records
from dust3r.datasets.staticthings3d import (
    CAMERAS,
    PAIRS,
    StaticThings3D,
    sequence_name,
    view_name,
)
from dust3r.utils.files import atomic_path
from dust3r.utils.image import read_rgb

_PASSES = {"_clean": "frames_cleanpass", "_final": "frames_finalpass"}
_FOLDERS = (*_PASSES.values(), "depths", "poses", "intrinsics")


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def read_float3(path: Path) -> np.ndarray:
    """The array of a ``.float3`` file, float32, slowest dimension first.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged.
    """
    with path.open("rb") as file:
        word = file.readline().strip()
        if word != b"float":
            raise ValueError(f"{path} is no .float3 file: it begins with {word[:20]!r}")
        try:
            shape = [int(file.readline()) for _ in range(int(file.readline()))][::-1]
        except ValueError as error:
            raise ValueError(f"{path} has a damaged header ({error})") from error
        values = np.frombuffer(file.read(), "<f4")
    if min(shape, default=0) < 1 or len(values) != np.prod(shape):
        raise ValueError(f"{path} is damaged: {len(values)} numbers for the shape {shape}")
    return values.reshape(shape)


def _run(options: argparse.Namespace) -> str:
    return convert_all(
        _sources(options.StaticThings3D_dir, options.precomputed_pairs),
        partial(_convert, root=options.StaticThings3D_dir, wanted=pair_range(options)),
        _write_index,
        lambda root: StaticThings3D(ROOT=root, resolution=(512, 288), mask_bg=False, seed=0),
        options,
        "StaticThings3D",
    )


def _sources(root: Path, pairs_file: Path | None) -> list[SceneSource]:
    listed_folder(root, "--StaticThings3D_dir")
    missing = [name for name in _FOLDERS if not (root / name / "TRAIN").is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{root} has no {', '.join(f'{name}/TRAIN' for name in missing)}; it should hold the "
            f"release's archives, unpacked: {', '.join(_FOLDERS)}"
        )
    clean = root / _FOLDERS[0]
    names = [path.relative_to(clean).as_posix() for path in sorted(clean.glob("TRAIN/?/*"))]
    if pairs_file is None:
        return [SceneSource(name, clean / name) for name in names]
    listed = _listed_pairs(pairs_file)
    sources = [SceneSource(name, clean / name, listed[name]) for name in names if name in listed]
    if not sources:
        raise ValueError(f"{pairs_file} has no pair of the {len(names)} sequences in {clean}")
    return sources


def _listed_pairs(path: Path) -> dict[str, tuple[NamedPair, ...]]:
    listed = defaultdict(list)
    for scene, seq, cam1, im1, cam2, im2 in load_records(path, PAIRS.names)[
        list(PAIRS.names)
    ].tolist():
        names = view_name(cam1, im1), view_name(cam2, im2)
        listed[sequence_name(scene, seq)].append((*names, 1.0))
    return {sequence: tuple(pairs) for sequence, pairs in listed.items()}


def _convert(source: SceneSource, folder: Path, *, root: Path, wanted: PairRange) -> SceneReport:
    writer = SceneWriter(folder)
    for camera in CAMERAS.values():
        for image in sorted((source.path / camera).glob("[0-9]*.png")):
            name = f"{camera}/{int(image.stem):04d}"
            if source.wants(name):
                writer.take(name, partial(_read_view, root, source.name, camera, image.stem, name))
    return writer.finish(source, wanted)


def _read_view(root: Path, sequence: str, camera: str, frame: str, name: str) -> SourceView:
    def stored(kind: str, *inner: str) -> Path:
        return root.joinpath(kind, sequence, *inner)

    return SourceView(
        name,
        {
            suffix: read_rgb(stored(folder, camera, f"{frame}.png"))
            for suffix, folder in _PASSES.items()
        },
        _matrix(stored("depths", camera, f"{frame}.float3")),
        _matrix(stored("intrinsics", f"{frame}.float3"), (3, 3)),
        np.linalg.inv(_matrix(stored("poses", camera, f"{frame}.float3"), (4, 4)).astype(float)),
    )


def _matrix(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    values = read_float3(path)
    if values.ndim != 2 or shape not in (None, values.shape):
        raise ValueError(f"{path} has the shape {values.shape}, expected {shape or '(H, W)'}")
    return values


def _write_index(root: Path, parts: list[ScenePart]) -> None:
    records = []
    for part in parts:
        _, scene, seq = part.scene.split("/")
        views = [(name[0], int(name.split("/")[1])) for name in part.names]
        records += [
            (scene, int(seq), *views[i], *views[j]) for i, j in part.pairs[:, :2].astype(int)
        ]
    with atomic_path(root / StaticThings3D.INDEX) as temporary:
        np.save(temporary, np.array(records, PAIRS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="StaticThings3D to the layout that the data set StaticThings3D reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--StaticThings3D_dir", type=Path, required=True, help="folder of the unpacked archives"
    )
    add_pair_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
