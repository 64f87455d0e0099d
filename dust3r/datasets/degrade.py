"""Pictures made worse on purpose, as cameras make them: out of focus, shaken, noisy, underexposed.

A degradation is a callable ``(image, rng) -> image`` on (H, W, 3) uint8 sRGB. All act on linear
light, where optics and sensors work, at the resolution that the network sees; geometry stays as it
is. All chance comes from ``rng``, so that a sample is a function of its seed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from dust3r.utils.spec import DATASETS

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# The stream of chance that is a degradation's own: crops and jitter are those of the clean sample.
STREAM = 0xD39


@DATASETS.register()
@dataclass(frozen=True)
class Blur:
    """Out of focus and shaken: a disc, then a straight line of a random direction.

    Args:
        defocus: radius of the disc as a share of the longer side; 0.01 is 2.2 pixels of 224.
        motion: length of the line as a share of the longer side; 0.04 is 9 pixels of 224.

    Raises:
        ValueError: a negative strength, or one above 0.5.
    """

    defocus: float = 0.01
    motion: float = 0.04

    def __post_init__(self) -> None:
        if not (0 <= self.defocus <= 0.5 and 0 <= self.motion <= 0.5):
            raise ValueError(f"{self}: strengths are shares of the longer side, from 0 to 0.5")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        longest = max(image.shape[:2])
        angle = rng.uniform(0, np.pi)
        light = to_light(image)
        for kernel in (_disc(self.defocus * longest), _line(self.motion * longest, angle)):
            light = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        return to_bytes(light)


@DATASETS.register()
@dataclass(frozen=True)
class Noise:
    """A small sensor at a high gain: photons arrive by chance (Poisson), reading adds its own.

    Args:
        electrons: that white collects. 400 gives white a deviation of 5% and mid grey, which gets a
            fifth of the light, one of 12% of its own.
        read: standard deviation of the read-out, in electrons.

    Raises:
        ValueError: no electrons, or a negative deviation.
    """

    electrons: float = 400.0
    read: float = 5.0

    def __post_init__(self) -> None:
        _check_sensor(self.electrons, self.read)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return to_bytes(_sensed(to_light(image), self.electrons, self.read, rng))


@DATASETS.register()
@dataclass(frozen=True)
class Dark:
    """Exposed too short, and not brightened afterwards: little light, its noise, few of 8 bits.

    Args:
        stops: each halves the light; after 4, white is 70 of 255 and mid grey 30.
        electrons: that white would collect in a full exposure.
        read: as of ``Noise``.

    Raises:
        ValueError: a negative number of stops or deviation, or no electrons.
    """

    stops: float = 4.0
    electrons: float = 4000.0
    read: float = 5.0

    def __post_init__(self) -> None:
        if self.stops < 0:
            raise ValueError(f"{self}: stops take light away; give 0 or more")
        _check_sensor(self.electrons, self.read)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        light = to_light(image) * np.float32(0.5**self.stops)
        return to_bytes(_sensed(light, self.electrons, self.read, rng))


DEGRADATIONS: dict[str, type[Degradation]] = {"blur": Blur, "noise": Noise, "dark": Dark}


def degradation_of(chosen: str | Degradation | type[Degradation] | None) -> Degradation | None:
    """A name of ``DEGRADATIONS``, a class of these or one of its objects as a callable; or None.

    Raises:
        ValueError: it is nothing of these.
    """
    if isinstance(chosen, str) and chosen in DEGRADATIONS:
        chosen = DEGRADATIONS[chosen]
    chosen = chosen() if isinstance(chosen, type) else chosen
    if chosen is not None and not callable(chosen):
        raise ValueError(
            f"degrade={chosen!r} is unknown; choose one of {', '.join(DEGRADATIONS)}, or give "
            "Blur(motion=...), Noise(electrons=...) or Dark(stops=...)"
        )
    return chosen


def to_light(image: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1], float32, of sRGB bytes (IEC 61966-2-1)."""
    return _LIGHT_OF_BYTE[image]


def to_bytes(light: np.ndarray) -> np.ndarray:
    """sRGB bytes of linear light, which is cut to [0, 1]."""
    light = np.clip(light, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def _light_of_byte() -> np.ndarray:
    encoded = np.arange(256) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


_LIGHT_OF_BYTE = _light_of_byte()


def _sensed(
    light: np.ndarray, electrons: float, read: float, rng: np.random.Generator
) -> np.ndarray:
    counted = rng.poisson(light * electrons) + read * rng.standard_normal(light.shape)
    return (counted / electrons).astype(np.float32)


def _check_sensor(electrons: float, read: float) -> None:
    if not (electrons > 0 and read >= 0):
        raise ValueError(
            f"electrons={electrons}, read={read}: white collects more than no electron, and the "
            "read-out's deviation is not negative"
        )


def _disc(radius: float) -> np.ndarray:
    """Kernel of a disc, its rim smooth over a pixel."""
    reach = int(np.ceil(radius))
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    return _normalised(np.clip(radius + 0.5 - away, 0, 1))


def _line(length: float, angle: float) -> np.ndarray:
    """Kernel of a straight line through the centre, sampled densely and shared out bilinearly."""
    reach = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * reach + 1,) * 2)
    along = np.linspace(-length / 2, length / 2, 8 * reach + 1)
    for x, y in zip(reach + along * np.cos(angle), reach + along * np.sin(angle), strict=True):
        column, row = int(x), int(y)
        right, down = x - column, y - row
        kernel[row : row + 2, column : column + 2] += np.outer((1 - down, down), (1 - right, right))
    return _normalised(kernel)


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)
