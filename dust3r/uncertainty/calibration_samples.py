"""Errors and stated deviations of many images, thinned so that memory stays bounded."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PER_IMAGE = 4096
MAX_PIXELS = 8_000_000


@dataclass(frozen=True)
class ErrorSamples:
    """Pixels of K images, flat; each image counts the same, however many pixels it has.

    Attributes:
        errors: (N,) float64: signed errors of depth (prediction - truth), or lengths of the errors
            of points. Finite, as everything else here.
        sigmas: (N,) above 0, what was stated; see ``dust3r.uncertainty.stated``.
        images: (N,) number of the image that a pixel is of, 0 to K - 1, in order.
        df: (N,) degrees of freedom, above 2, or None.
        depths: (N,) predicted depth or distance, above 0, or None.
        left_out: pixels that were not finite, or stated no positive sigma: they are in no average.
    """

    errors: np.ndarray
    sigmas: np.ndarray
    images: np.ndarray
    df: np.ndarray | None = None
    depths: np.ndarray | None = None
    left_out: int = 0

    @classmethod
    def from_arrays(
        cls,
        errors: ArrayLike | Sequence[ArrayLike],
        sigmas: ArrayLike | Sequence[ArrayLike],
        *,
        df: ArrayLike | Sequence[ArrayLike] | None = None,
        depths: ArrayLike | Sequence[ArrayLike] | None = None,
        per_image: int = PER_IMAGE,
    ) -> ErrorSamples:
        """Of arrays (K, ...) or lists of K arrays, whose first axis counts images.

        Pixels (K,) alone are thus K images of one pixel each, which is right only where they are
        independent. Of ``sigmas``, ``df`` and ``depths`` each has the shape of ``errors``.

        Raises:
            ValueError: shapes differ.
        """
        wholes = [errors, sigmas, df, depths]
        if not isinstance(errors, list | tuple) and np.ndim(errors) == 1:
            flat = [None if one is None else _flat_numbers(one) for one in wholes]
            _check_shapes(flat)
            usable = _usable(*flat)
            kept = [None if one is None else one[usable] for one in flat]
            images, left_out = np.arange(usable.sum()), int((~usable).sum())
            return cls(kept[0], kept[1], images, kept[2], kept[3], left_out)
        collector = ErrorCollector(per_image=per_image)
        lengths = {len(one) for one in wholes if one is not None}
        if len(lengths) > 1:
            raise ValueError(
                f"errors, sigmas, df and depths are of {sorted(lengths)} images; give as many of "
                "each"
            )
        for index in range(len(errors)):
            parts = [None if one is None else one[index] for one in wholes]
            collector.add(parts[0], parts[1], str(index), df=parts[2], depths=parts[3])
        return collector.samples()

    def __len__(self) -> int:
        return len(self.errors)

    @property
    def count(self) -> int:
        """K, the images that have a pixel here."""
        return int(self.images[-1]) + 1 if len(self) else 0

    @property
    def weights(self) -> np.ndarray:
        """(N,), which sum to 1 / K over each image."""
        sizes = np.bincount(self.images, minlength=self.count)
        return 1 / (self.count * sizes[self.images]) if len(self) else np.zeros(0)

    @property
    def ratios(self) -> np.ndarray:
        """(N,) |error| / sigma."""
        return np.abs(self.errors) / self.sigmas

    def only(self, chosen: np.ndarray) -> ErrorSamples:
        """The pixels of a mask (N,); images without any are no longer counted."""
        parts = [
            None if one is None else one[chosen]
            for one in (self.errors, self.sigmas, self.images, self.df, self.depths)
        ]
        parts[2] = np.unique(parts[2], return_inverse=True)[1]
        return ErrorSamples(*parts)


class ErrorCollector:
    """Gathers the pixels of one image after another.

    Of each image at most ``per_image`` pixels are kept, a random choice that the image's name and
    ``seed`` decide, so that neither the order of images nor the number of processes matters. Where
    all together would exceed ``max_pixels``, every image keeps half as many, and so on.

    Args:
        per_image: pixels to keep of an image, from 1.
        max_pixels: pixels to keep of all, from 1.
        seed: of the choice.
    """

    def __init__(
        self, *, per_image: int = PER_IMAGE, max_pixels: int = MAX_PIXELS, seed: int = 0
    ) -> None:
        if per_image < 1 or max_pixels < 1:
            raise ValueError(
                f"per_image={per_image} and max_pixels={max_pixels} must be 1 or more: without "
                "pixels there is nothing to calibrate with"
            )
        self._per_image, self._max_pixels, self._seed = per_image, max_pixels, seed
        self._kept: dict[str, np.ndarray] = {}
        self._columns: tuple[bool, bool] | None = None
        self._total = 0
        self.left_out = 0

    def add(
        self,
        errors: ArrayLike,
        sigmas: ArrayLike,
        image: str,
        *,
        df: ArrayLike | None = None,
        depths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> None:
        """Add one image.

        Args:
            errors: any shape, signed errors of depth or lengths of the errors of points.
            sigmas: same shape, what was stated; see ``dust3r.uncertainty.stated``.
            image: its name, such as its label. What is dependent shares a name, which may thus be
                that of a pair or of a scene.
            df: same shape, degrees of freedom of Student-t predictives.
            depths: same shape, predicted depth or distance, for groups of relative sigma.
            mask: same shape, bool: pixels with a truth. What it leaves out is not counted.

        Raises:
            ValueError: shapes differ, the name was used before, or ``df`` or ``depths`` were given
                for some images alone.
        """
        arrays = [None if one is None else _flat_numbers(one) for one in (errors, sigmas, df)]
        arrays.append(None if depths is None else _flat_numbers(depths))
        _check_shapes(arrays if mask is None else [*arrays, np.asarray(mask).ravel()])
        if image in self._kept:
            raise ValueError(
                f"image {image!r} was added before; give all its pixels at once, or another name"
            )
        columns = df is not None, depths is not None
        if self._columns not in (None, columns):
            raise ValueError(
                "df and depths must be given for all images or for none; they were not for "
                f"{image!r}"
            )
        self._columns = columns
        if mask is not None:
            truth = np.asarray(mask).ravel().astype(bool)
            arrays = [None if one is None else one[truth] for one in arrays]
        usable = np.flatnonzero(_usable(*arrays))
        self.left_out += len(arrays[0]) - len(usable)
        if not len(usable):
            return
        generator = np.random.default_rng([self._seed, zlib.crc32(image.encode())])
        # In random order, so that the first of them are a random choice as well.
        chosen = generator.permutation(usable)[: self._per_image]
        self._kept[image] = np.stack([one[chosen] for one in arrays if one is not None])
        self._total += len(chosen)
        while self._total > self._max_pixels and self._per_image > 1:
            self._thin(self._per_image // 2)

    def gathered(self, gather: Callable[[Any], list[Any]]) -> ErrorCollector:
        """All images of several processes, as if one had seen them all; the same on each.

        Args:
            gather: gives what every process passed to it, as ``World.gather``.
        """
        self._thin(min(gather(self._per_image)))
        while sum(gather(self._total)) > self._max_pixels and self._per_image > 1:
            self._thin(self._per_image // 2)
        whole = ErrorCollector(
            per_image=self._per_image, max_pixels=self._max_pixels, seed=self._seed
        )
        for kept, columns, left_out in gather((self._kept, self._columns, self.left_out)):
            whole._kept |= kept
            whole._columns = columns or whole._columns
            whole.left_out += left_out
        whole._total = sum(one.shape[1] for one in whole._kept.values())
        return whole

    def _thin(self, per_image: int) -> None:
        if per_image == self._per_image:
            return
        self._per_image = per_image
        # Copied, because a view would keep the whole array alive.
        self._kept = {k: one[:, :per_image].copy() for k, one in self._kept.items()}
        self._total = sum(one.shape[1] for one in self._kept.values())

    def samples(self) -> ErrorSamples:
        """All that was kept, images in the order of their names."""
        if not self._kept:
            return ErrorSamples(*np.zeros((2, 0)), np.zeros(0, int), left_out=self.left_out)
        parts = [self._kept[name] for name in sorted(self._kept)]
        rows = list(np.concatenate(parts, axis=1))
        images = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
        has_df, has_depths = self._columns
        errors, sigmas = rows[:2]
        df = rows[2] if has_df else None
        depths = rows[-1] if has_depths else None
        return ErrorSamples(errors, sigmas, images, df, depths, self.left_out)


def weighted_quantile(
    values: np.ndarray, weights: np.ndarray, levels: Sequence[float]
) -> np.ndarray:
    """The least of ``values`` (N,) that a share of at least each level (L,) does not exceed.

    ``weights`` (N,) sum to 1 or to less: what is missing lies at infinity, and so does a quantile
    that falls there.
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    # A sum of many weights misses its value by rounding.
    place = np.searchsorted(reached, np.asarray(levels) - 1e-9)
    return np.append(values[order], np.inf)[place]


def _flat_numbers(values: ArrayLike) -> np.ndarray:
    # Tensors of a graph or a GPU have no view as an array.
    values = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(values, np.float64).ravel()


def _check_shapes(arrays: Sequence[np.ndarray | None]) -> None:
    sizes = {one.size for one in arrays if one is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"errors, sigmas, df, depths and mask have {sorted(sizes)} pixels; they must have one "
            "shape"
        )


def _usable(
    errors: np.ndarray, sigmas: np.ndarray, df: np.ndarray | None, depths: np.ndarray | None
) -> np.ndarray:
    usable = np.isfinite(errors) & np.isfinite(sigmas) & (sigmas > 0)
    if df is not None:
        usable &= np.isfinite(df) & (df > 2)
    if depths is not None:
        usable &= np.isfinite(depths) & (depths > 0)
    return usable
