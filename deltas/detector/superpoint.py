"""SuperPoint's detector, which teaches DELTAS where interest points are.

DeTone, Malisiewicz and Rabinovich, SuperPoint: Self-Supervised Interest Point Detection and
Description, CVPR workshops 2018, sections 3.1 and 3.2. Pixels are (x, y), the first one's centre
at (0, 0).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.folding import fold_batch_norms
from deltas.interest import CELL
from deltas.resnet import initialise
from dust3r.training import checkpoint
from dust3r.training.checkpoint import CheckpointError

log = logging.getLogger(__name__)

NO_POINT = CELL**2
PUBLISHED_WIDTH = 64

_DESCRIPTOR = ("convDa", "convDb")
# Rec. 601, which is what OpenCV makes grey images by.
_LUMA = (0.299, 0.587, 0.114)


class SuperPoint(nn.Module):
    """The detector: a VGG-like encoder to 1/8 of the size, and 65 channels for a cell's pixels.

    Parameters have the published names, without those of the descriptors.

    Args:
        width: channels of the first layers; all others follow it. 64 is published.
        batch_norms: after all convolutions but the last, to train with. ``folded`` makes the
            published form of it.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH, batch_norms: bool = False):
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} is a number of channels, expected 1 or more")
        self.width = width
        channels = 1
        for name, out in (
            *((f"{n}{half}", width) for n in "12" for half in "ab"),
            *((f"{n}{half}", 2 * width) for n in "34" for half in "ab"),
            ("Pa", 4 * width),
        ):
            self.add_module(f"conv{name}", nn.Conv2d(channels, out, 3, padding=1))
            self.add_module(f"bn{name}", nn.BatchNorm2d(out) if batch_norms else nn.Identity())
            channels = out
        self.convPb = nn.Conv2d(channels, NO_POINT + 1, 1)
        initialise(self)

    def forward(self, grey: Tensor) -> Tensor:
        """Logits (B, 65, H/8, W/8), rounded up: a cell's pixels row by row, and that none is one.

        ``deltas.interest.point_scores`` turns them into probabilities of pixels.

        Args:
            grey: (B, 1, H, W) in [0, 1], see ``grey_of``.

        Raises:
            ValueError: another shape.
        """
        if grey.ndim != 4 or grey.shape[1] != 1:
            raise ValueError(
                f"images are {tuple(grey.shape)}, expected grey ones (B, 1, H, W) in [0, 1]: "
                "deltas.detector.superpoint.grey_of makes them of colours"
            )
        below, right = (-side % CELL for side in grey.shape[-2:])
        x = F.pad(grey, (0, right, 0, below), mode="replicate") if below or right else grey
        for scale in "1234":
            x = self._layer(scale + "b", self._layer(scale + "a", x))
            if scale != "4":
                x = F.max_pool2d(x, 2)
        return self.convPb(self._layer("Pa", x))

    def folded(self) -> "SuperPoint":
        """The same detector in eval mode without batch norms, as it is stored and published."""
        plain = SuperPoint(self.width, any(isinstance(m, nn.BatchNorm2d) for m in self.modules()))
        plain.load_state_dict(self.state_dict())
        fold_batch_norms(plain.eval())
        return plain

    def _layer(self, name: str, x: Tensor) -> Tensor:
        x = self.get_submodule(f"conv{name}")(x)
        return F.relu(self.get_submodule(f"bn{name}")(x), inplace=True)


def grey_of(images: Tensor) -> Tensor:
    """Grey (B, 1, H, W) in [0, 1] of RGB (B, 3, H, W) in [-1, 1], which all networks here take."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {tuple(images.shape)}, expected (B, 3, H, W) in [-1, 1]")
    weights = images.new_tensor(_LUMA).view(3, 1, 1)
    return ((images + 1) / 2 * weights).sum(1, keepdim=True)


def cell_labels(scores: Tensor, threshold: float) -> Tensor:
    """The pixel of each cell with its highest score, as classes of ``SuperPoint``'s channels.

    Args:
        scores: (B, H, W).
        threshold: cells without a score above have no point.

    Returns:
        (B, H/8, W/8), rounded up, int64: 8 row + column within the cell, or 64 for no point.
    """
    below, right = (-side % CELL for side in scores.shape[-2:])
    padded = F.pad(scores, (0, right, 0, below), value=-torch.inf)
    best, places = F.pixel_unshuffle(padded[:, None], CELL).max(1)
    return torch.where(best > threshold, places, NO_POINT)


def load_detector(path: str | Path, device: str | torch.device = "cpu") -> SuperPoint:
    """The detector of a file, in eval mode; of the width that its tensors have.

    Published weights (a state dict in a ``.pth``) and those of ``deltas.detector.train``
    (safetensors, or a checkpoint of its runs) load; descriptors among them are left out.

    Raises:
        FileNotFoundError: no such file; names those in the folder.
        CheckpointError: the file is damaged, would run code, or is of another network.
    """
    path = Path(path)
    detector = _detector_of(path, checkpoint.load_file(path))
    return detector.eval().to(device)


def _detector_of(path: Path, content: Mapping[str, Any]) -> SuperPoint:
    weights = {
        name: tensor.float()
        for name, tensor in content["model"].items()
        if name.split(".")[0] not in _DESCRIPTOR
    }
    first = weights.get("conv1a.weight")
    if first is None or first.ndim != 4:
        raise CheckpointError(
            f"{path} holds {', '.join(list(content['model'])[:6])}, expected SuperPoint's detector "
            "(conv1a.weight, conv1a.bias, ..., convPb.bias): superpoint_v1.pth, or what "
            "python -m deltas.detector.train writes"
        )
    detector = SuperPoint(len(first), any(name.startswith("bn") for name in weights))
    try:
        report = checkpoint.load_state_dict(detector, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if report.missing or report.unexpected:
        raise CheckpointError(
            f"{path} is not SuperPoint's detector alone or with descriptors:\n{report}"
        )
    log.info("%s: SuperPoint of width %d", path, detector.width)
    return detector.eval().folded()
