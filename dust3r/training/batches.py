"""What a batch of a loader is to the training loop: what a model is called with, and its files."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dust3r.utils.view import check_view, symmetrise

Inputs = tuple[Mapping[str, Any], ...]


class Batches(Protocol):
    """How batches of one kind go through the loop; a model is called with the inputs of one.

    The first input has ``img``, with the samples along its first axis.
    """

    def inputs(self, batch: Any) -> Inputs:
        """Of a batch to test on; ValueError where it breaks the contract of its kind."""
        ...

    def training_inputs(self, batch: Any) -> Inputs:
        """Of a batch to train on; likewise."""
        ...

    def files(self, inputs: Inputs) -> list[tuple[str, ...]]:
        """The images that each sample of ``training_inputs`` is of."""
        ...


class PairBatches:
    """Two views (DESIGN 2), trained on in both orders."""

    def inputs(self, batch: Sequence[dict[str, Any]]) -> Inputs:
        for view in batch:
            check_view(view)
        return tuple(batch)

    def training_inputs(self, batch: Sequence[dict[str, Any]]) -> Inputs:
        return symmetrise(*self.inputs(batch))

    def files(self, inputs: Inputs) -> list[tuple[str, ...]]:
        first, second = inputs
        return list(zip(first["instance"][::2], second["instance"][::2], strict=True))
