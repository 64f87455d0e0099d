"""What the network said of ordered pairs, kept on disk under what it was made from.

A file is named by the content of both images and of the weights, so that it is found again from any
folder, under any image name, and in any other scene; and never for other images or weights.
"""

import errno
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dust3r.utils.files import atomic_path

log = logging.getLogger(__name__)

# Counted up whenever the content of files changes.
_VERSION = 1
_NAME_LENGTH = 32
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CacheError(OSError):
    """The folder of forward results cannot be written."""


@dataclass(frozen=True)
class DirectedMatches:
    """The matches of one pass; attributes as of ``ForwardResult``."""

    pixels: Tensor
    match_confidence: Tensor


@dataclass(frozen=True)
class ForwardResult:
    """What one pass of the network said of its first image, and the matches of the pair.

    Attributes:
        points: (H, W, 3) float32, the first image's points in its own frame.
        confidence: (H, W) float32.
        pixels: (K, 4) int64, matched pixels (x1, y1, x2, y2) of both images.
        match_confidence: (K,) float32.
    """

    points: Tensor
    confidence: Tensor
    pixels: Tensor
    match_confidence: Tensor

    @property
    def matches(self) -> DirectedMatches:
        """The small part of it, to keep once the points have been used."""
        return DirectedMatches(self.pixels, self.match_confidence)

    def packed(self) -> dict[str, Tensor]:
        """As stored: half precision, the points in units of their median distance.

        Points beyond what this holds are stored as infinite, which is what counts as unknown.
        """
        size = self.points.norm(dim=-1)
        good = size.isfinite() & (size > 0)
        unit = size[good].median() if good.any() else torch.tensor(1.0)
        most = torch.finfo(torch.float16).max
        confidence = self.confidence.clamp(-most, most)
        return {
            "points": (self.points / unit).half(),
            "unit": unit.float().reshape(1),
            "confidence": torch.where(self.confidence.isinf(), torch.inf, confidence).half(),
            "pixels": self.pixels.to(torch.int16),
            "match_confidence": self.match_confidence.float(),
        }

    @classmethod
    def unpacked(cls, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> "ForwardResult":
        """Of ``packed`` for a first image (H, W).

        Raises:
            ValueError: it is not that of such an image.
        """
        try:
            points, confidence = stored["points"], stored["confidence"]
            pixels, match_confidence = stored["pixels"], stored["match_confidence"]
            unit = stored["unit"]
        except KeyError as missing:
            raise ValueError(f"there is no {missing}") from None
        if (
            points.shape != (*shape, 3)
            or confidence.shape != shape
            or pixels.shape != (len(match_confidence), 4)
            or match_confidence.ndim != 1
            or unit.shape != (1,)
        ):
            raise ValueError("its arrays have unexpected shapes")
        pixels = pixels.long()
        limit = torch.tensor(shape[::-1])
        if len(pixels) and not ((pixels[:, :2] >= 0) & (pixels[:, :2] < limit)).all():
            raise ValueError("its matches lie outside of the image")
        return cls(points.float() * unit.float(), confidence.float(), pixels, match_confidence)


class ForwardCache:
    """A folder of forward results. Files are written whole or not at all.

    Args:
        folder: made where missing.
        model: whose results are stored.
        settings: what else decides on the content, such as the spacing of seeds.

    Raises:
        CacheError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, model: nn.Module, settings: Mapping[str, Any]):
        described = {"version": _VERSION, **_plain_settings(model), **settings}
        name = _digest(chain([repr(sorted(described.items())).encode()], _weights(model)))
        self.folder = Path(folder) / name
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, first: str, second: str) -> Path:
        """File of the pass with the images of these keys, as of ``image_key``."""
        return self.folder / first / f"{second}.safetensors"

    def has(self, first: str, second: str) -> bool:
        """Whether there is a whole file; what is in it is not looked at."""
        path = self.path(first, second)
        if not path.is_file():
            return False
        try:
            # The header says how long the file is to be.
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged and is made again: %s", path, error)
            return False

    def get(self, first: str, second: str, shape: tuple[int, int]) -> ForwardResult:
        """The result for a first image of (H, W).

        Raises:
            ValueError: the file is not there any more, or holds something else.
        """
        path = self.path(first, second)
        try:
            return ForwardResult.unpacked(load_file(path), shape)
        except (SafetensorError, ValueError, OSError) as error:
            raise ValueError(
                f"the forward result {path} cannot be used ({error}): delete it and run again"
            ) from error

    def put(self, first: str, second: str, result: ForwardResult) -> None:
        """Store a result.

        Raises:
            CacheError: there is no space, no right, or another reason not to write.
        """
        packed = {name: values.cpu().contiguous() for name, values in result.packed().items()}
        path = self.path(first, second)
        with _explained(path), atomic_path(path) as temporary:
            save_file(packed, temporary)


def image_key(view: Mapping[str, Any]) -> str:
    """Name of an image's content as the network sees it, its mask included."""
    parts = [str(tuple(view["img"].shape)).encode(), _bytes(view["img"])]
    mask = view.get("mask")
    if mask is not None:
        parts.append(_bytes(torch.as_tensor(mask).bool()))
    return _digest(parts)


class _explained:
    """Turns errors of the file system into one that says what to do."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CacheError) or not isinstance(error, OSError | SafetensorError):
            return
        number = getattr(error, "errno", None)
        # safetensors hides the number in its message.
        if number in _SPACE or "No space left" in str(error):
            why = "there is no space left: free some, or choose a cache folder on another disk"
        else:
            why = f"{error}: choose a cache folder that you may write to"
        folder = self.path.parent
        raise CacheError(f"forward results cannot be stored in {folder}: {why}") from error


def _plain_settings(model: nn.Module) -> dict[str, Any]:
    """What of a model decides on its results and is no weight, such as ``depth_mode``."""
    plain = (bool, int, float, str, tuple, type(None))
    return {
        f"{place}.{name}": value
        for place, module in model.named_modules()
        for name, value in [("class", type(module).__name__), *vars(module).items()]
        if not name.startswith("_") and name != "training" and isinstance(value, plain)
    }


def _weights(model: nn.Module) -> Iterator[bytes | memoryview]:
    """One by one: all weights of a GPU at once may not fit into the host."""
    for name, tensor in sorted(model.state_dict().items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield _bytes(tensor)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:_NAME_LENGTH]
