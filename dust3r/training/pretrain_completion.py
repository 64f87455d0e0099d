"""Cross-view completion in terms of the training loop: views in, a criterion, pictures.

Weinzaepfel et al., "CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View
Completion", 2022, and "CroCo v2", 2023.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from croco.croco import CroCoNet
from dust3r.criterion import Criterion, Details, need
from dust3r.training import checkpoint
from dust3r.training.logging import PANEL_SAMPLES
from dust3r.utils.image import rgb
from dust3r.utils.plots import Block, Map, save_png, sheet
from dust3r.utils.spec import LOSSES
from dust3r.utils.view import View

# What the published CroCo weights were trained with; the pairwise models take [-1, 1] instead.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Below the contrast of one grey level in a patch, so that even patches do not divide by zero.
_EPS = 1e-6
_EVALUATION_SEED = 0
_PANEL_INCHES = 2.4


@LOSSES.register()
class MaskedMSE(Criterion):
    """Mean squared error of the hidden patches, the loss of cross-view completion.

    With ``norm_pix_loss`` the values of each true patch are brought to zero mean and unit variance
    over its pixels and channels (He et al., "Masked Autoencoders", 2022, section 3): what is left
    to predict is structure, and a network that knows nothing has a loss of 1. Without it the unit
    is that of ImageNet-normalised pixels, squared.

    The prediction of view 1 is that of ``take_views``; the second one is not used.
    """

    def __init__(self, norm_pix_loss: bool = True) -> None:
        super().__init__()
        self.norm_pix_loss = bool(norm_pix_loss)

    def compute(
        self, view1: View, view2: View, pred1: Mapping[str, Tensor], pred2: Mapping[str, Tensor]
    ) -> tuple[Tensor, Details]:
        completed, target, hidden = (
            need(pred1, key, "the prediction") for key in ("completed", "target", "hidden")
        )
        target = target.float()
        if self.norm_pix_loss:
            target = F.layer_norm(target, target.shape[-1:], eps=_EPS)
        value = F.mse_loss(completed.float()[hidden], target[hidden])
        return value, {"masked_mse": value.detach()}

    def __repr__(self) -> str:
        return f"MaskedMSE(norm_pix_loss={self.norm_pix_loss})"


def take_views(net: CroCoNet) -> None:
    """Make ``net(view1, view2)`` take and give what the training loop passes around (DESIGN 2).

    Views hold ``img`` (B, 3, H, W) in [-1, 1], which is brought to ImageNet's mean and deviation.
    The prediction of view 1 is a dict of ``completed`` and ``target`` (B, N, 3 * patch_size^2)
    and ``hidden`` (B, N) bool, as ``CroCoNet.forward`` gives them; that of view 2 is empty. In
    eval mode the masks are the same in every pass over the data, so that losses compare.

    Names and weights stay as they are: both are hooks.
    """
    net.register_forward_pre_hook(_images_of_views)
    net.register_forward_hook(_predictions)


def normalise(image: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [-1, 1] to those with ImageNet's mean and deviation."""
    mean, std = _statistics(image)
    return (image * 0.5 + 0.5 - mean) / std


def denormalise(image: Tensor) -> Tensor:
    """Inverse of ``normalise``."""
    mean, std = _statistics(image)
    return ((image * std + mean) - 0.5) / 0.5


def load_croco(path: str | Path) -> CroCoNet:
    """The network of a CroCo file, published or of pre-training, in eval mode on the CPU.

    Raises:
        FileNotFoundError, dust3r.training.checkpoint.CheckpointError: see ``checkpoint.load_file``;
            or its ``croco_kwargs`` and weights do not fit each other.
    """
    loaded = checkpoint.load_file(path)
    try:
        net = CroCoNet(**loaded.get("croco_kwargs", {}))
    except TypeError as error:
        raise checkpoint.CheckpointError(
            f"{path}: its croco_kwargs are not arguments of CroCoNet ({error})"
        ) from error
    checkpoint.load_state_dict(net, loaded["model"])
    return net.eval()


@dataclass(frozen=True)
class CompletionFigures:
    """What a run's panels show: completions; a PNG has the last ones.

    Attributes:
        net: for the size and order of patches.
        norm_pix_loss: see ``MaskedMSE``.
        output_dir: where ``completion_<group>.png`` goes.
    """

    net: CroCoNet
    norm_pix_loss: bool
    output_dir: Path

    def __call__(
        self,
        views: tuple[View, View],
        predictions: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        step: int,
        group: str,
    ) -> Iterator[tuple[str, Figure]]:
        """What was seen, the second view, the completion and the truth, of the first samples."""
        samples = range(min(PANEL_SAMPLES, len(views[0]["img"])))
        figure = completion_figure(
            self.net, views, predictions[0], samples, self.norm_pix_loss, f"batch {step}"
        )
        # Written first: figures that TensorBoard takes are closed.
        save_png(figure, self.output_dir / f"completion_{group}.png")
        yield "completion", figure


def completion_figure(
    net: CroCoNet,
    views: tuple[View, View],
    prediction: Mapping[str, Tensor],
    samples: range,
    norm_pix_loss: bool,
    title: str = "",
) -> Figure:
    """A row for each sample: first view with its mask, second view, completion, truth.

    With ``norm_pix_loss`` the network does not say the mean and contrast of a hidden patch: the
    picture lends it those of the true one, as the papers' do.
    """
    blocks = []
    for index in samples:
        images = _completed_images(net, views, prediction, index, norm_pix_loss)
        height, width = next(iter(images.values())).shape[:2]
        panel = (_PANEL_INCHES * width / height, _PANEL_INCHES)
        maps = [Map(name, image) for name, image in images.items()]
        heading = " from ".join(str(view["label"][index]) for view in views)
        blocks.append(Block([maps], panel, heading))
    return sheet(blocks, title)


def _completed_images(
    net: CroCoNet,
    views: tuple[View, View],
    prediction: Mapping[str, Tensor],
    index: int,
    norm_pix_loss: bool,
) -> dict[str, np.ndarray]:
    completed, target, hidden = (
        prediction[key][index].detach().float().cpu() for key in ("completed", "target", "hidden")
    )
    if norm_pix_loss:
        deviation = (target.var(-1, keepdim=True, correction=0) + _EPS).sqrt()
        completed = completed * deviation + target.mean(-1, keepdim=True)
    hidden = hidden.bool()[:, None]
    first, second = (view["img"][index].float().cpu() for view in views)
    height, width = first.shape[-2:]

    def picture(patches: Tensor) -> np.ndarray:
        return rgb(denormalise(net.unpatchify(patches[None], height, width)[0]))

    return {
        "first view, as seen": picture(torch.where(hidden, 0.0, target)),
        "second view": rgb(second),
        "completion": picture(torch.where(hidden, completed, target)),
        "truth": rgb(first),
    }


def _images_of_views(net: CroCoNet, views: tuple[View, View]) -> tuple[Tensor | None, ...]:
    images = tuple(normalise(view["img"]) for view in views)
    if net.training:
        return images
    height, width = images[0].shape[-2:]
    count = (height // net.patch_size) * (width // net.patch_size)
    # On the CPU, whose random numbers are the same everywhere, and whose state is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_EVALUATION_SEED)
        hidden = net.mask_generator(len(images[0]), count, torch.device("cpu"))
    return *images, hidden.to(images[0].device)


def _predictions(
    net: CroCoNet, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    completed, hidden, target = outputs
    return {"completed": completed, "hidden": hidden, "target": target}, {}


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (
        image.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, std
