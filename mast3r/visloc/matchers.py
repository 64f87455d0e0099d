"""What the network does for localisation: rank the images of a map, match a query to some."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dust3r.utils.image import load_images
from dust3r.utils.pixels import read_upright
from mast3r.coarse_to_fine import match_coarse_to_fine
from mast3r.matching import Matches, View, match_pairs
from mast3r.model import AsymmetricMASt3R
from mast3r.retrieval import Retrieval

# Views of map images to keep in memory, since neighbouring queries see the same ones; 300 MB of
# 512x384 pixels.
_KEPT_VIEWS = 128
_KEPT_PHOTOGRAPHS = 16


class Matcher(Protocol):
    """Finds what a query shares with images of a map."""

    def match(self, query: Path, images: Sequence[Path]) -> list[Matches]:
        """One ``Matches`` for each image; ``xy1`` is of the query, ``xy2`` of the image."""

    def size(self, image: Path) -> tuple[int, int]:
        """(width, height) of an upright original."""


class Ranking(Protocol):
    """Knows which images of a map look like a query."""

    def similarity(self, queries: Sequence[Path]) -> np.ndarray:
        """(Q, N) float32 of the queries and the map's images; the larger, the more alike."""


class NetworkMatcher:
    """Descriptors of a model, in one look at each pair."""

    def __init__(
        self,
        model: AsymmetricMASt3R,
        size: int,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        min_confidence: float = 0.0,
        **search: Any,
    ):
        """
        Args:
            model: with descriptors.
            size: of the network's images, as for ``dust3r.utils.image.load_images``.
            device: of the network and the search; the model's own where None.
            batch_size: pairs at a time.
            min_confidence: least confidence of a match.
            search: of ``mast3r.fast_nn.fast_reciprocal_NNs``, such as ``subsample_or_initxy1``.
        """
        self.model, self.image_size, self.batch_size = model, size, batch_size
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        self.search = {"device": self.device, "min_confidence": min_confidence, **search}
        self._view = lru_cache(_KEPT_VIEWS)(self._load)

    def match(self, query: Path, images: Sequence[Path]) -> list[Matches]:
        """As of ``Matcher``; the query is encoded once."""
        seen = self._view(query)
        pairs = [(seen, self._view(path)) for path in images]
        return match_pairs(self.model, pairs, batch_size=self.batch_size, **self.search)

    def size(self, image: Path) -> tuple[int, int]:
        return self._view(image)["source"].size

    def _load(self, path: Path) -> View:
        return _Views([path], self.image_size, self.model.patch_size)[0]


class CoarseToFineMatcher:
    """Descriptors of a model on windows of full resolution where coarse matches say to look."""

    def __init__(self, model: AsymmetricMASt3R, size: int, **arguments: Any):
        """``arguments`` are those of ``mast3r.coarse_to_fine.match_coarse_to_fine``."""
        self.model, self.arguments = model, {"size": size, **arguments}
        self._photograph = lru_cache(_KEPT_PHOTOGRAPHS)(_read)

    def match(self, query: Path, images: Sequence[Path]) -> list[Matches]:
        seen = self._photograph(query)
        return [
            match_coarse_to_fine(self.model, seen, self._photograph(path), **self.arguments)
            for path in images
        ]

    def size(self, image: Path) -> tuple[int, int]:
        return self._photograph(image).shape[1::-1]


class NetworkRanking:
    """Images by what the encoder makes of them."""

    def __init__(
        self,
        model: AsymmetricMASt3R,
        size: int,
        images: Sequence[Path],
        *,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        verbose: bool = False,
    ):
        """Describe the ``images`` of the map; other arguments as of ``NetworkMatcher``."""
        self._load = partial(_Views, size=size, patch_size=model.patch_size)
        self._described = Retrieval.build(model, self._load(images), device, batch_size, verbose)

    def similarity(self, queries: Sequence[Path]) -> np.ndarray:
        """As of ``Ranking``."""
        return self._described.query(self._load(queries))


class _Views(Sequence):
    """Views of files, each loaded when it is asked for: maps of thousands exceed the memory."""

    def __init__(self, files: Sequence[Path], size: int, patch_size: int):
        self.files, self.size, self.patch_size = files, size, patch_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> View:
        chosen = [self.files[place]]
        return load_images(chosen, self.size, patch_size=self.patch_size, verbose=False)[0]


def _read(path: Path) -> np.ndarray:
    return np.asarray(read_upright(path)[0])
