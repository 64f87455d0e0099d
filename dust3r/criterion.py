"""What a training criterion is, and the algebra of criteria.

A criterion is called with two views and two predictions and gives a scalar and its details:

    value, details = criterion(view1, view2, pred1, pred2)

``details`` maps names to detached 0-d tensors. They stay on their device until the one who logs
them calls ``float``, so that computing a loss never waits for the device. Criteria add up and take
weights, ``a + 0.075 * b``.
"""

from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor, nn

Views = Mapping[str, Tensor]
Details = dict[str, Tensor]


class Criterion(nn.Module):
    """What compares the predictions of a pair with its views; subclasses implement ``compute``."""

    def forward(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        """Loss (scalar tensor) and details of a batch of pairs, in fp32 even under autocast.

        ``view1`` and ``view2`` follow the view contract, ``pred1`` and ``pred2`` that of
        predictions: pointmaps (B,H,W,3) in camera 1's frame, confidences (B,H,W).

        Raises:
            ValueError: a key is missing or shapes do not match.
        """
        device = next(iter(pred1.values())).device.type
        with torch.autocast(device, enabled=False):
            return self.compute(view1, view2, pred1, pred2)

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        raise NotImplementedError

    def __add__(self, other: object) -> "Criterion":
        return _Sum(self, other) if isinstance(other, Criterion) else NotImplemented

    def __mul__(self, weight: object) -> "Criterion":
        return _Weighted(float(weight), self) if isinstance(weight, Real) else NotImplemented

    __rmul__ = __mul__


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` where ``valid`` (bool, same shape); 0 with a graph when nowhere."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


class MissingInput(ValueError):
    """A loss needs what the data set or the model does not give."""


def need(source: Views, key: str, owner: str) -> Tensor:
    """``source[key]``.

    Raises:
        MissingInput: it is not there; the message says what ``owner`` (its name for people) has.
    """
    if key not in source:
        raise MissingInput(f"the loss needs {key!r} in {owner}, which has {', '.join(source)}")
    return source[key]


class _Sum(Criterion):
    def __init__(self, *terms: Criterion) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        values, merged = [], {}
        for term in self.terms:
            value, details = term(view1, view2, pred1, pred2)
            values.append(value)
            for name, detail in details.items():
                merged[_unused(name, merged)] = detail
        return sum(values), merged

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))


class _Weighted(Criterion):
    """``details`` stay unweighted, so that logs of runs with other weights compare."""

    def __init__(self, weight: float, term: Criterion) -> None:
        super().__init__()
        self.weight = weight
        self.term = term

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        value, details = self.term(view1, view2, pred1, pred2)
        return self.weight * value, details

    def __repr__(self) -> str:
        inner = f"({self.term!r})" if isinstance(self.term, _Sum) else repr(self.term)
        return f"{self.weight:g} * {inner}"


def _unused(name: str, taken: Details) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name} ({count})"
    return candidate
