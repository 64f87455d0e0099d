"""The processed layout: where its files lie, how they are written, what its metadata says.

``ROOT/all_metadata.npz`` indexes every scene; a scene is a folder ``ROOT/<scene>`` with
``images/<basename>.jpg``, ``depth/<basename>.png`` (uint16 millimetres, 0 = none) and
``scene.npz``, the scene's own part of the metadata, from which the index is rebuilt when scenes are
added. Poses are camera-to-world in OpenCV's axes and metres, intrinsics in pixels with the centre
of the first pixel at (0, 0).

Two arrays of the metadata are optional, (S,) each: ``depth_unit``, the steps a metre of a scene's
depth files where that is not 1000 (streets are deeper than the 65.5 m that millimetres hold), and
``splits``, the part of the official split that a scene belongs to ('train', 'val', 'test', or ''
for a scene of none).
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dust3r.utils.files import atomic_path
from dust3r.utils.npz import load_arrays

METADATA_NAME = "all_metadata.npz"
SCENE_FILE = "scene.npz"
DEPTH_UNIT = 1000.0
_MAX_STEPS = 65535
_METADATA_KEYS = ("scenes", "sceneids", "images", "intrinsics", "trajectories", "pairs")
_SCENE_KEYS = ("images", "intrinsics", "poses", "pairs")
_OPTIONAL_KEYS = ("depth_unit", "splits")
_SPLITS = ("", "train", "val", "test")


@dataclass
class SceneData:
    """One scene: N frames and the P pairs among them worth learning from.

    ``images`` are N basenames without suffix, ``intrinsics`` (N, 3, 3) in pixels, ``poses``
    (N, 4, 4) camera-to-world in metres, ``pairs`` (P, 3) rows of [i, j, overlap], i and j counting
    this scene's frames from 0. ``depth_unit`` is steps a metre of the depth files, ``split`` the
    part of the official split, '' for none. Arrays are converted and checked: ValueError says what
    is wrong.
    """

    name: str
    images: list[str]
    intrinsics: np.ndarray
    poses: np.ndarray
    pairs: np.ndarray
    depth_unit: float = DEPTH_UNIT
    split: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name, "a scene's name")
        if not 0 < self.depth_unit < np.inf:
            raise ValueError(
                f"scene {self.name}: depth_unit is steps a metre, above 0; got {self.depth_unit}"
            )
        if self.split not in _SPLITS:
            raise ValueError(
                f"scene {self.name}: split must be train, val, test or empty, got {self.split!r}"
            )
        self.images = [str(image) for image in self.images]
        for image in self.images:
            _check_name(image, f"an image's basename (scene {self.name})")
        if len(set(self.images)) != len(self.images):
            twice = sorted({image for image in self.images if self.images.count(image) > 1})
            raise ValueError(f"scene {self.name}: images named twice: {', '.join(twice[:5])}")
        count = len(self.images)
        self.intrinsics = self._stack(self.intrinsics, "intrinsics", (count, 3, 3))
        self.poses = self._stack(self.poses, "poses", (count, 4, 4))
        self.pairs = np.asarray(self.pairs, np.float64).reshape(-1, 3)
        first, second = self.pairs[:, 0], self.pairs[:, 1]
        whole = (self.pairs[:, :2] % 1 == 0).all()
        if not (whole and (self.pairs[:, :2] >= 0).all() and (self.pairs[:, :2] < count).all()):
            raise ValueError(
                f"scene {self.name}: pairs must hold frame indices 0 to {count - 1} in their first "
                "two columns; they count the scene's own frames, not those of all scenes"
            )
        if (first == second).any():
            same = int(first[first == second][0])
            raise ValueError(f"scene {self.name}: frame {same} is paired with itself")

    def _stack(self, array: np.ndarray, what: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(array, np.float64)
        if array.shape != shape:
            raise ValueError(
                f"scene {self.name}: {what} of {shape[0]} images must be {shape}, got {array.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))
        if len(bad):
            raise ValueError(
                f"scene {self.name}: {what} of {len(bad)} image(s) not finite, first "
                f"{self.images[bad[0]]}; leave those frames out"
            )
        return array


@dataclass(frozen=True)
class Metadata:
    """The content of ``all_metadata.npz`` over S scenes, N images and P pairs.

    ``scenes`` (S,) and ``images`` (N,) are strings, ``sceneids`` (N,) counts into ``scenes``,
    ``intrinsics`` (N, 3, 3) and ``trajectories`` (N, 4, 4) are float32, ``pairs`` (P, 2 or more)
    float64 with two image indices first and, where there is a third column, the overlap.
    ``depth_unit`` (S,) is steps a metre, ``splits`` (S,) strings.
    """

    scenes: np.ndarray
    sceneids: np.ndarray
    images: np.ndarray
    intrinsics: np.ndarray
    trajectories: np.ndarray
    pairs: np.ndarray
    depth_unit: np.ndarray
    splits: np.ndarray


def image_path(root: str | Path, scene: str, basename: str) -> Path:
    """Where the colour image of a frame lies: ``ROOT/<scene>/images/<basename>.jpg``."""
    return Path(root) / scene / "images" / f"{basename}.jpg"


def depth_path(root: str | Path, scene: str, basename: str) -> Path:
    """Where the depth map of a frame lies: ``ROOT/<scene>/depth/<basename>.png``."""
    return Path(root) / scene / "depth" / f"{basename}.png"


def write_image(path: str | Path, rgb: np.ndarray, quality: int = 95) -> None:
    """Write an RGB image (H, W, 3) uint8, whole or not at all; ``quality`` is JPEG's, 0 to 100."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"{path}: an RGB image is (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    _imwrite(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def write_depth(path: str | Path, depth_m: np.ndarray, unit: float = DEPTH_UNIT) -> None:
    """Write a depth map (H, W), z in metres, as a uint16 PNG, whole or not at all.

    ``unit`` is steps a metre, by default millimetres. What is not finite, not positive or beyond
    65535 steps, the most 16 bits hold, becomes 0 (none).
    """
    if depth_m.ndim != 2:
        raise ValueError(f"{path}: a depth map is (H, W), got {depth_m.shape}")
    steps = np.round(np.asarray(depth_m, np.float64) * unit)
    storable = (steps > 0) & (steps <= _MAX_STEPS)
    _imwrite(path, np.where(storable, steps, 0).astype(np.uint16))


def read_depth(path: str | Path, unit: float = DEPTH_UNIT) -> np.ndarray:
    """Depth map (H, W) float32, z in metres, 0 = none, of a PNG that ``write_depth`` wrote."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
        raise ValueError(f"{path}: not a readable 16-bit single-channel depth PNG")
    return stored.astype(np.float32) / np.float32(unit)


@contextmanager
def new_scene(root: str | Path, name: str) -> Iterator[Path]:
    """A temporary scene folder that becomes ``ROOT/<name>`` once the block ends without error.

    The block writes into the folder yielded (``image_path(folder.parent, folder.name, basename)``
    names its files) and ends with ``save_scene(folder, scene)``. An existing scene of that name is
    replaced only then; on an error the temporary folder goes and the existing scene stays. What a
    killed process left is cleared by the next one that makes the same scene.
    """
    _check_name(name, "a scene's name")
    final = Path(root) / name
    folder, aside = Path(root) / f".{name}.tmp", Path(root) / f".{name}.old"
    for leftover in (folder, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if not (folder / SCENE_FILE).is_file():
            raise RuntimeError(f"scene {name}: {SCENE_FILE} was not written; call save_scene last")
        # A folder cannot be renamed over a full one: the old one steps aside first.
        if final.exists():
            final.rename(aside)
        folder.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def save_scene(folder: str | Path, scene: SceneData) -> None:
    """Write ``scene.npz``, the scene's part of the metadata, into the scene's folder."""
    with atomic_path(Path(folder) / SCENE_FILE) as temporary:
        np.savez_compressed(
            temporary,
            images=np.array(scene.images, np.str_),
            intrinsics=scene.intrinsics,
            poses=scene.poses,
            pairs=scene.pairs,
            **_optional([scene]),
        )


def load_scene(folder: str | Path) -> SceneData:
    """The scene in a complete folder; FileNotFoundError if it has no ``scene.npz``."""
    folder = Path(folder)
    stored = _read_part(folder / SCENE_FILE, _SCENE_KEYS)
    return SceneData(
        folder.name,
        stored["images"].tolist(),
        *(stored[key] for key in _SCENE_KEYS[1:]),
        depth_unit=float(stored.get("depth_unit", [DEPTH_UNIT])[0]),
        split=str(stored.get("splits", [""])[0]),
    )


def complete_scenes(root: str | Path) -> list[str]:
    """Names, sorted, of the scene folders in ROOT that are whole."""
    folders = (file.parent.name for file in Path(root).glob(f"*/{SCENE_FILE}"))
    return sorted(name for name in folders if not name.startswith("."))


def rebuild_metadata(root: str | Path) -> Metadata:
    """Write ``all_metadata.npz`` anew from every complete scene in ROOT, and return it.

    Raises FileNotFoundError where there is none.
    """
    names = complete_scenes(root)
    if not names:
        raise FileNotFoundError(f"{root}: no complete scene (a folder with {SCENE_FILE}) to index")
    write_metadata(root, [load_scene(Path(root) / name) for name in names])
    return read_metadata(root)


def write_metadata(root: str | Path, scenes: Sequence[SceneData]) -> Path:
    """Write ``ROOT/all_metadata.npz`` for these scenes, whole or not at all; return its path.

    Pairs become indices over all images. Raises ValueError for no scene or a name used twice.
    """
    names = [scene.name for scene in scenes]
    if not names:
        raise ValueError("no scene to write: give at least one SceneData")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"scene names used twice: {', '.join(twice)}; every scene needs its own")
    counts = [len(scene.images) for scene in scenes]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    pairs = [scene.pairs + [start, start, 0] for scene, start in zip(scenes, starts, strict=True)]
    path = Path(root) / METADATA_NAME
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            scenes=np.array(names, np.str_),
            sceneids=np.repeat(np.arange(len(scenes)), counts),
            images=np.array([image for scene in scenes for image in scene.images], np.str_),
            intrinsics=np.concatenate([scene.intrinsics for scene in scenes]).astype(np.float32),
            trajectories=np.concatenate([scene.poses for scene in scenes]).astype(np.float32),
            pairs=np.concatenate(pairs),
            **_optional(scenes),
        )
    return path


def read_metadata(root: str | Path) -> Metadata:
    """Read ``ROOT/all_metadata.npz``.

    Raises FileNotFoundError where it is missing, ValueError where it lacks an array or is no npz.
    """
    stored = _read_part(Path(root) / METADATA_NAME, _METADATA_KEYS)
    count = len(stored["scenes"])
    stored.setdefault("depth_unit", np.full(count, DEPTH_UNIT))
    stored.setdefault("splits", np.full(count, "", np.str_))
    return Metadata(**stored)


def _optional(scenes: Sequence[SceneData]) -> dict[str, np.ndarray]:
    """The arrays that are written only where they say something."""
    arrays = {}
    if any(scene.depth_unit != DEPTH_UNIT for scene in scenes):
        arrays["depth_unit"] = np.array([scene.depth_unit for scene in scenes], np.float64)
    if any(scene.split for scene in scenes):
        arrays["splits"] = np.array([scene.split for scene in scenes], np.str_)
    return arrays


def _read_part(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: {path.parent} is not in the processed layout; "
            "make it with datasets_preprocess/preprocess_rgbd.py or make_rooms.py"
        )
    return load_arrays(path, keys, _OPTIONAL_KEYS)


def _imwrite(path: str | Path, pixels: np.ndarray, options: Sequence[int] = ()) -> None:
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), pixels, list(options)):
            raise OSError(f"{path}: the image could not be written")


def _check_name(name: str, what: str) -> None:
    # Names become parts of paths: no separators, no way out of ROOT, nothing hidden.
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise ValueError(f"{what} must be a plain file name, no / and no leading dot; got {name!r}")
