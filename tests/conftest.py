"""A small processed data set of a known scene: a slanted plane seen from a walk along it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

NORMAL = np.array([0.2, 0.1, -1.0]) / np.linalg.norm([0.2, 0.1, -1.0])
OFFSET = -2.5
EXTENT = 4.0


@dataclass(frozen=True)
class PlaneScene:
    """Frames of the plane ``NORMAL . X = OFFSET``; colours (R, G) encode the world's (x, y)."""

    width: int
    height: int
    focal: float

    @property
    def intrinsics(self) -> np.ndarray:
        cx, cy = 0.49 * self.width, 0.52 * self.height
        return np.array([[self.focal, 0, cx], [0, 1.02 * self.focal, cy], [0, 0, 1]])

    def pose(self, number: int) -> np.ndarray:
        turn = cv2.Rodrigues(np.array([0.02, 0.05 * np.sin(number), 0.01 * number]))[0]
        pose = np.eye(4)
        pose[:3, :3] = turn
        pose[:3, 3] = 0.05 * number, -0.03 * number, 0.02 * number
        return pose

    def render(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """RGB (H, W, 3) uint8 and exact depth (H, W) in metres."""
        pose = self.pose(number)
        v, u = np.mgrid[: self.height, : self.width]
        pixels = np.stack([u, v, np.ones_like(u)], -1)
        rays = pixels @ np.linalg.inv(self.intrinsics).T @ pose[:3, :3].T
        depth = (OFFSET - NORMAL @ pose[:3, 3]) / (rays @ NORMAL)
        world = pose[:3, 3] + rays * depth[..., None]
        rgb = np.full((self.height, self.width, 3), 128, np.uint8)
        rgb[..., :2] = np.clip((world[..., :2] / EXTENT + 0.5) * 255, 0, 255).round()
        return rgb, depth


def decode_world_xy(image: np.ndarray) -> np.ndarray:
    """World (x, y) (..., 2) of network inputs (..., 2 or more channels last) in [-1, 1]."""
    return image[..., :2] * EXTENT / 2


@pytest.fixture
def plane() -> dict[str, object]:
    """Normal and offset of the plane, and the reader of its colours."""
    return {"normal": NORMAL, "offset": OFFSET, "decode_world_xy": decode_world_xy}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that tests start: sums in another order differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def write_tree(tmp_path: Path) -> Callable[..., Path]:
    """Writer of a processed tree: ``write_tree(frames={"scene": 3}, size=(w, h), **metadata)``.

    Every image is paired with the next one of its scene. Keywords other than ``frames`` and
    ``size`` replace (or, where None, remove) an array of the metadata.
    """

    def write(
        frames: dict[str, int] | None = None, size: tuple[int, int] = (96, 72), **replaced
    ) -> Path:
        root = tmp_path / "processed"
        frames = {"desk": 12} if frames is None else frames
        scene = PlaneScene(*size, focal=float(max(size)))
        images, sceneids, poses, pairs = [], [], [], []
        for sceneid, (name, count) in enumerate(frames.items()):
            for number in range(count):
                if number:
                    pairs.append((len(images) - 1, len(images), 0.7))
                images.append(f"{name}_{number:04d}")
                sceneids.append(sceneid)
                poses.append(scene.pose(number))
                _write_frame(root / name, images[-1], *scene.render(number))
        metadata = {
            "scenes": np.array(list(frames)),
            "sceneids": np.array(sceneids),
            "images": np.array(images),
            "intrinsics": np.tile(scene.intrinsics, (len(images), 1, 1)).astype(np.float32),
            "trajectories": np.array(poses, np.float32),
            "pairs": np.array(pairs),
        } | replaced
        np.savez(
            root / "all_metadata.npz",
            **{key: value for key, value in metadata.items() if value is not None},
        )
        return root

    return write


def _write_frame(folder: Path, name: str, rgb: np.ndarray, depth: np.ndarray) -> None:
    for kind in ("images", "depth"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / "images" / f"{name}.jpg", quality=100, subsampling=0)
    steps = (depth * 1000).round().astype(np.uint16)
    cv2.imwrite(str(folder / "depth" / f"{name}.png"), steps)


class ColourNetwork(nn.Module):
    """Descriptors are the first channels of colours, which tell the place in the world."""

    patch_size = 16
    landscape_only = False

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(1))

    def encode_image(self, image, true_shape):
        return image, torch.zeros(len(image), 1)

    def predict(self, features1, shape1, features2, shape2):
        images = [
            features[0].permute(0, 2, 3, 1)[..., : self.channels]
            for features in (features1, features2)
        ]
        return tuple(
            {
                "desc": F.normalize(F.pad(image, (0, 1), value=1.0), dim=-1),
                "desc_conf": torch.ones(image.shape[:-1]),
            }
            for image in images
        )


@pytest.fixture
def colour_network() -> Callable[..., nn.Module]:
    """Makes networks that match pixels by their colours."""
    return lambda channels=3: ColourNetwork(channels)
