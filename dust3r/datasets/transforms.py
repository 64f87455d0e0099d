"""What turns the pixels of a training image into the network's input.

A transform is a callable ``(image, rng) -> tensor`` from (H, W, 3) uint8 RGB to (3, H, W) float32
in [-1, 1]. All its chance comes from ``rng``, so that a sample is a function of its seed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from dust3r.utils.image import ImgNorm, Pixels
from dust3r.utils.spec import DATASETS

Transform = Callable[[Pixels, np.random.Generator], Tensor]

DATASETS.register("ImgNorm")(ImgNorm)


@DATASETS.register()
@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue in a random order, then ``ImgNorm``.

    The defaults are the strengths DUSt3R is trained with. The two views of a pair are jittered
    independently.

    Args:
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - x), 1 + x].
        hue: shift as a fraction of the colour circle, uniform in [-x, x], at most 0.5.

    Raises:
        ValueError: a negative strength, or a hue above 0.5.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(
                f"{self}: strengths must not be negative, and the hue's must not exceed 0.5"
            )

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Tensor:
        steps = [
            (tvf.adjust_brightness, _factor(self.brightness, rng)),
            (tvf.adjust_contrast, _factor(self.contrast, rng)),
            (tvf.adjust_saturation, _factor(self.saturation, rng)),
            (tvf.adjust_hue, rng.uniform(-self.hue, self.hue)),
        ]
        jittered = image if isinstance(image, Image.Image) else Image.fromarray(image)
        for step in rng.permutation(len(steps)):
            adjust, amount = steps[step]
            jittered = adjust(jittered, amount)
        return ImgNorm(jittered)


def _factor(strength: float, rng: np.random.Generator) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)
