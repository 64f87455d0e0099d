"""What localisation gets without a network: OpenCV's SIFT, to match by and to rank by.

Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", 2004; descriptors compared by
their square roots (Arandjelovic and Zisserman, 2012), images by VLAD (Jegou et al., 2010).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from dust3r.utils.pixels import read_upright
from mast3r.matching import Matches

_KEPT_IMAGES = 512  # 2 MB each at the most features
_WORDS, _SAMPLES = 64, 40_000


@dataclass(frozen=True)
class Features:
    """Keypoints of an image.

    Attributes:
        pixels: (K, 2) float64 of the upright original, first centre at (0, 0).
        descriptors: (K, 128) float32 of unit norm.
        size: (width, height) of the upright original.
    """

    pixels: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]


class SiftMatcher:
    """Nearest descriptors of each other that pass the ratio test.

    Args:
        ratio: distance to the nearest over that to the second nearest, at most; both ways.
        max_features: of an image, the strongest.
        max_size: longer side in pixels that larger images are resized to.
    """

    def __init__(self, ratio: float = 0.8, max_features: int = 4096, max_size: int = 1600):
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio} must be in (0, 1]; 0.8 is usual")
        self.ratio, self.max_size = ratio, max_size
        # What moved every keypoint by a quarter of a pixel was an error once, and is the default.
        self._sift = cv2.SIFT_create(max_features, enable_precise_upscale=True)
        self.features = lru_cache(_KEPT_IMAGES)(self._detect)

    def match(self, query: Path, images: Sequence[Path]) -> list[Matches]:
        """As of ``mast3r.visloc.matchers.Matcher``; confidence is 1 - ratio of the distances."""
        seen = self.features(query)
        return [self._match(seen, self.features(path)) for path in images]

    def size(self, image: Path) -> tuple[int, int]:
        return self.features(image).size

    def _match(self, one: Features, other: Features) -> Matches:
        if min(len(one.pixels), len(other.pixels)) < 2:
            return Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, np.float32))
        alike = torch.from_numpy(one.descriptors) @ torch.from_numpy(other.descriptors).T
        forth, ratio = _nearest(alike)
        back, ratio_back = _nearest(alike.T)
        ratio = np.maximum(ratio, ratio_back[forth])
        kept = np.flatnonzero((back[forth] == np.arange(len(forth))) & (ratio <= self.ratio))
        confidence = (1 - ratio[kept]).astype(np.float32)
        return Matches(one.pixels[kept], other.pixels[forth[kept]], confidence)

    def _detect(self, path: Path) -> Features:
        photograph = read_upright(path)[0]
        grey = photograph.convert("L")
        scale = min(1.0, self.max_size / max(grey.size))
        if scale < 1:
            smaller = tuple(max(1, round(side * scale)) for side in grey.size)
            grey = grey.resize(smaller, Image.Resampling.LANCZOS)
        keypoints, descriptors = self._sift.detectAndCompute(np.asarray(grey), None)
        if descriptors is None:
            return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32), photograph.size)
        ratio = np.array(photograph.size) / grey.size
        pixels = (np.array([point.pt for point in keypoints]) + 0.5) * ratio - 0.5
        descriptors /= np.maximum(descriptors.sum(1, keepdims=True), 1e-12)
        return Features(pixels, np.sqrt(descriptors), photograph.size)


class SiftRanking:
    """Images by the sums of their descriptors' differences from common words (VLAD)."""

    def __init__(self, images: Sequence[Path], matcher: SiftMatcher):
        """Words are made from ``images`` of the map; features come from ``matcher``."""
        self.matcher = matcher
        few = -(-_SAMPLES // max(1, len(images)))
        rng = np.random.default_rng(0)
        samples = [
            rng.permutation(matcher.features(path).descriptors)[:few].astype(np.float32)
            for path in images
        ]
        sample = np.concatenate(samples) if samples else np.zeros((0, 128), np.float32)
        if len(sample) < _WORDS:
            raise ValueError(
                f"the {len(images)} map images have {len(sample)} SIFT features together, too few "
                "to rank them by: check that they are photographs, or rank by a network (--weights)"
            )
        cv2.setRNGSeed(0)
        stop = cv2.TERM_CRITERIA_COUNT, 15, 0.0
        self.words = cv2.kmeans(sample, _WORDS, None, stop, 1, cv2.KMEANS_PP_CENTERS)[2]
        self.vectors = np.stack([self._vector(path) for path in images])

    def similarity(self, queries: Sequence[Path]) -> np.ndarray:
        """As of ``mast3r.visloc.matchers.Ranking``."""
        return np.stack([self._vector(path) for path in queries]) @ self.vectors.T

    def _vector(self, path: Path) -> np.ndarray:
        """(words * 128,) of unit norm, or 0 where the image has no feature."""
        descriptors = self.matcher.features(path).descriptors
        distances = (self.words**2).sum(1) - 2 * descriptors @ self.words.T
        sums = np.zeros_like(self.words)
        words = distances.argmin(1) if len(descriptors) else np.zeros(0, int)
        np.add.at(sums, words, descriptors - self.words[words])
        # Each word counts the same, that repeated structure does not drown the rest.
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        return (sums / max(np.linalg.norm(sums), 1e-12)).ravel()


def _nearest(alike: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Place of the nearest (K,), and its distance over the second's, of scalar products (K, N)."""
    values, places = alike.topk(2, dim=1)
    distances = (2 - 2 * values).clamp(min=1e-12).sqrt()
    return places[:, 0].numpy(), (distances[:, 0] / distances[:, 1]).numpy()
