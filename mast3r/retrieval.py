"""Which images look alike: one descriptor an image from the encoder, without looking at pairs.

Tokens of the encoder are whitened and shortened, and summed up per cluster (VLAD, Jegou et al.,
2010), the hard-assigned linear form of the ASMK kernel that MASt3R-SfM (Duisterhof et al., 2024)
retrieves by. Whitening and clusters are learned from the very images, so nothing is trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from dust3r.inference import for_each_image
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.files import atomic_path
from dust3r.utils.npz import load_arrays

View = dict[str, Any]

# Measured with scripts/eval_retrieval.py. Clusters beyond half as many as images tell places apart
# by chance, and beyond 64 they gain little.
DIMENSION = 128
MOST_CLUSTERS, CLUSTERS_PER_IMAGE = 64, 0.5
TOKENS_PER_IMAGE = 300
_SAMPLE = 2**15
_ROUNDS = 15

# Of the mean variance. Directions with next to none, as with few images, would else become noise
# of full strength.
_LEAST_VARIANCE = 0.1
# Part of its centre that is taken from what lies in a cluster. VLAD takes all of it, which sets two
# images that are a cluster's only members against each other, however alike they are.
_CENTRED = 0.5


@dataclass(frozen=True)
class Vocabulary:
    """What a collection's tokens of D channels are described by: whitening to d, K clusters.

    Attributes:
        mean: (D,) float32.
        projection: (D, d) float32, onto the principal axes with about unit variance along each.
        centres: (K, d) float32, of whitened tokens of unit length.
    """

    mean: Tensor
    projection: Tensor
    centres: Tensor

    @classmethod
    def learn(cls, tokens: Sequence[Tensor]) -> Vocabulary:
        """The vocabulary of images' tokens, (T_i, D) each; the same tokens give the same one."""
        share = max(1, _SAMPLE // len(tokens))
        sample = torch.cat([_some(one, share, n) for n, one in enumerate(tokens[:_SAMPLE])]).float()
        mean = sample.mean(0)
        centred = sample - mean
        covariance = (centred.T @ centred).double() / len(sample)
        variances, axes = torch.linalg.eigh(covariance)
        kept = min(DIMENSION, len(variances))
        variances, axes = variances.flip(0)[:kept].clamp(min=0), axes.flip(1)[:, :kept]
        # The second floor is for tokens that are all the same but for rounding.
        floor = _LEAST_VARIANCE * covariance.trace() / len(covariance)
        floor = floor + 1e-6 * mean.double().square().mean() + 1e-12
        projection = (axes * (variances + floor).rsqrt()).float()
        whitened = F.normalize(centred @ projection, dim=1).numpy()
        clusters = int(np.clip(CLUSTERS_PER_IMAGE * len(tokens), 1, MOST_CLUSTERS))
        with warnings.catch_warnings():
            # Of a cluster that lost its members, which keeps its centre and does no harm.
            warnings.simplefilter("ignore", UserWarning)
            count = min(clusters, len(whitened))
            centres, _ = kmeans2(whitened, count, _ROUNDS, minit="points", seed=0)
        return cls(mean, projection, torch.from_numpy(centres.astype(np.float32)))

    def describe(self, tokens: Tensor) -> Tensor:
        """The descriptor (K * d,) of unit norm of one image's tokens (T, D)."""
        whitened = F.normalize((tokens.float() - self.mean) @ self.projection, dim=1)
        nearest = torch.cdist(whitened, self.centres).argmin(1)
        members = F.one_hot(nearest, len(self.centres)).float()
        residuals = members.T @ whitened - _CENTRED * members.sum(0)[:, None] * self.centres
        # Each cluster counts once, however much of the image it covers: a wall is one thing.
        descriptor = F.normalize(residuals, dim=1).flatten()
        norm = descriptor.norm()
        # Images without any difference to the mean, such as a collection of blank ones, are alike.
        return (
            descriptor / norm if norm > 0 else F.one_hot(torch.tensor(0), len(descriptor)).float()
        )


@dataclass(frozen=True)
class Retrieval:
    """Descriptors of N images, and what it takes to describe others likewise.

    Attributes:
        descriptors: (N, D) float32 of unit norm.
        vocabulary: what they were made with.
        model: whose encoder describes images that are asked for; None: only what is here.
        device: of the encoder, None: where the model is.
        batch_size: images at a time.
    """

    descriptors: np.ndarray
    vocabulary: Vocabulary = field(repr=False)
    model: AsymmetricCroCo3DStereo | None = field(default=None, repr=False)
    device: str | torch.device | None = None
    batch_size: int = 8

    @classmethod
    def build(
        cls,
        model: AsymmetricCroCo3DStereo,
        views: Sequence[View],
        device: str | torch.device | None = None,
        batch_size: int = 8,
        verbose: bool = True,
    ) -> Retrieval:
        """Describe a collection of images, each of which the encoder sees once.

        Args:
            model: any pairwise model of ``dust3r.model.load_model``; runs in eval mode.
            views: one or more of ``dust3r.utils.image.load_images``; shapes may differ, and what
                their masks leave out is not described.
            device: where the encoder runs, and the model is moved to; its own where None.
            batch_size: images at a time.
            verbose: show a progress bar.

        Raises:
            ValueError: no views, a view that is not one image, or ``batch_size`` below 1.
        """
        tokens = encode(model, views, device, batch_size, verbose)
        vocabulary = Vocabulary.learn(tokens)
        descriptors = torch.stack([vocabulary.describe(one) for one in tokens]).numpy()
        return cls(descriptors, vocabulary, model, device, batch_size)

    @cached_property
    def similarity(self) -> np.ndarray:
        """(N, N) float32 in [-1, 1], symmetric with ones on the diagonal: cosines."""
        cosines = _cosines(self.descriptors, self.descriptors)
        cosines = (cosines + cosines.T) / 2
        np.fill_diagonal(cosines, 1)
        return cosines

    def query(self, views: Sequence[View], verbose: bool = False) -> np.ndarray:
        """Similarities (Q, N) float32 in [-1, 1] of Q further images to those described.

        Raises:
            ValueError: as of ``build``; or there is no model.
        """
        if self.model is None:
            raise ValueError(
                "these descriptors were loaded without the model that made them, which further "
                "images have to go through: Retrieval.load(path, model)"
            )
        tokens = encode(self.model, views, self.device, self.batch_size, verbose)
        width = len(self.vocabulary.mean)
        if tokens[0].shape[1] != width:
            raise ValueError(
                f"this model's tokens have {tokens[0].shape[1]} channels and the descriptors were "
                f"made of {width}: give the model that made them"
            )
        described = torch.stack([self.vocabulary.describe(one) for one in tokens]).numpy()
        return _cosines(described, self.descriptors)

    def save(self, path: str | Path) -> Path:
        """Write the arrays, without the model, to an NPZ; its path."""
        path = Path(path)
        arrays = {name: value.numpy() for name, value in vars(self.vocabulary).items()}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, descriptors=self.descriptors, **arrays)
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: AsymmetricCroCo3DStereo | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 8,
    ) -> Retrieval:
        """What ``save`` wrote; ``query`` needs the ``model`` that made it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        names = ("descriptors", "mean", "projection", "centres")
        descriptors, *rest = load_arrays(
            path, names, mend="Retrieval.save writes such files"
        ).values()
        return cls(descriptors, Vocabulary(*map(torch.from_numpy, rest)), model, device, batch_size)


def encode(
    model: AsymmetricCroCo3DStereo,
    views: Sequence[View],
    device: str | torch.device | None = None,
    batch_size: int = 8,
    verbose: bool = False,
) -> list[Tensor]:
    """Tokens (T_i, D) float16 of each image, at most 300 evenly drawn ones, on the CPU.

    Arguments and errors as of ``Retrieval.build``.
    """
    found: list[Tensor] = [torch.empty(0)] * len(views)

    def keep(batch: Sequence[int], tokens: Tensor, _: Tensor) -> None:
        # Half precision, because thousands of images wait for the last one.
        for n, one in zip(batch, tokens, strict=True):
            seen = one[_used(views[n], model.patch_size).to(one.device)]
            found[n] = _some(seen, TOKENS_PER_IMAGE, 0).half().cpu()

    for_each_image(views, model, keep, device, batch_size, verbose)
    return found


def _used(view: View, patch_size: int) -> Tensor:
    """Which patches (T,), row by row, the mask leaves at least half of; all, if that is none."""
    height, width = view["img"].shape[-2:]
    mask = view.get("mask")
    if mask is None:
        return torch.ones(height // patch_size * (width // patch_size), dtype=torch.bool)
    used = F.avg_pool2d(mask[None].float(), patch_size).flatten() >= 0.5
    return used if used.any() else torch.ones_like(used)


def _some(tokens: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of the rows, drawn evenly."""
    if len(tokens) <= most:
        return tokens
    chosen = np.random.default_rng(seed).permutation(len(tokens))[:most]
    return tokens[torch.from_numpy(np.sort(chosen)).to(tokens.device)]


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.clip(first @ second.T, -1, 1).astype(np.float32, copy=False)
