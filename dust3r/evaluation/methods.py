"""What each uncertainty family says of a view, in the one form that the protocol measures.

The families are those of ``dust3r.uncertainty.families``; a new one there is a method here. What
its uncertainty is ranked against follows from what it is about:

- ``point``, for every family and hence the fair comparison: distance of the model's points to the
  true ones after a similarity for each image;
- ``depth``, for families about depth as well: difference of the family's own depth from the true
  one after a scale for each image, since this is what it learnt to doubt.

Likelihood and calibration are of the stated distribution, aligned to nothing; of points without a
scale, in the unit that they are in (see ``measure.metres_of_unit``).
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dust3r.evaluation.levels import levels_of
from dust3r.uncertainty import families
from dust3r.uncertainty.estimates import POINTMAP
from dust3r.uncertainty.evidential import NormalInverseGamma

Prediction = Mapping[str, Tensor]

POINT, DEPTH = "point", "depth"

# Families about a view's own depth: where their depth is, and the suffix of their evidence.
_DEPTHS = {"geom": ("depth_mu", ""), "feat": ("depth_mean_feat", "_feat")}


@dataclass(frozen=True)
class Reading:
    """A family's word on one view of B pairs, float32.

    Attributes:
        total: (B, H, W), higher is worse.
        unit: of ``total``: ``'m'`` for a standard deviation, '' where only its order means
            something.
        depth: (B, H, W), of families about depth, in the view's own camera.
        nll: negative log-likelihood (B, H, W), in nats, of what is true: depths (B, H, W) for
            families about depth, else points (B, H, W, 3) in camera 1's frame; None without a
            distribution.
        level: probability of the central region that the truth is on the rim of, for a selection
            of pixels: (truth, mask (B, H, W)) -> (n,) in [0, 1], uniform where calibrated. One for
            each coordinate where a family states these apart.
    """

    total: Tensor
    unit: str = ""
    depth: Tensor | None = None
    nll: Callable[[Tensor], Tensor] | None = None
    level: Callable[[Tensor, Tensor], np.ndarray] | None = None


@dataclass(frozen=True)
class Method:
    """A row of the tables: a label and the family that it is read as."""

    label: str
    family: str

    @property
    def targets(self) -> tuple[str, ...]:
        """What its uncertainty is ranked against."""
        return (POINT, DEPTH) if self.family in _DEPTHS else (POINT,)

    @property
    def on_points(self) -> bool:
        """Whether it states a distribution of points, in the unit that these are in."""
        return self.family != POINTMAP and families.FAMILIES[self.family].points is not None

    def read(self, prediction: Prediction) -> Reading:
        """What the family says; raises ``ValueError`` where the prediction is of another."""
        found = families.uncertainty(prediction, self.family)
        total, unit = found.total, ""
        if found.unit == families.SQUARE_METRES:
            total, unit = total.sqrt(), "m"
        if self.family in _DEPTHS:
            evidence = NormalInverseGamma.from_prediction(prediction, _DEPTHS[self.family][1])
            return Reading(
                total,
                unit,
                own_depth_of(prediction, self.family),
                lambda truth: evidence.nll(truth[:, None])[:, 0],
                lambda truth, mask: levels_of(evidence, truth[..., None], mask),
            )
        points = families.FAMILIES[self.family].points
        if points is None:
            return Reading(total, unit)
        said = points(prediction)
        return Reading(
            total,
            unit,
            None,
            lambda truth: families.point_nll(prediction, truth, self.family),
            lambda truth, mask: levels_of(said, truth, mask),
        )

    def check(self, keys: Iterable[str], source: str) -> None:
        """Raises ``ValueError`` where a prediction with ``keys``, of ``source``, is of another
        family."""
        if self.family == POINTMAP:
            return
        family, keys = families.FAMILIES[self.family], set(keys)
        needed = {*family.keys, *_DEPTHS.get(self.family, ())[:1]}
        missing = sorted(needed - keys)
        if missing:
            fitting = [name for name, one in families.FAMILIES.items() if not set(one.keys) - keys]
            raise ValueError(
                f"{source} cannot be read as {self.family!r}: its predictions lack "
                f"{', '.join(missing)}. Give {family.from_what}; this one can be read as "
                f"{', '.join(fitting) or 'none of the families'}"
            )


def own_depth_of(prediction: Prediction, family: str) -> Tensor:
    """Depth (B, H, W) of a family about depth."""
    return prediction[_DEPTHS[family][0]].float()[:, 0]


def parse_methods(text: str, depths: bool = False) -> list[Method]:
    """Of ``"conf,feat,second:feat"``: families by their names, or a label of one's own before.

    Args:
        depths: what states a depth in place of the families: ``pointmap``, and those about depth.

    Raises:
        ValueError: an unknown family, nothing, or a label that comes twice.
    """
    names = (POINTMAP, *_DEPTHS) if depths else tuple(families.FAMILIES)
    methods: dict[str, Method] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        label, _, family = part.rpartition(":")
        label, family = label.strip() or family.strip(), family.strip()
        if family not in names:
            near = difflib.get_close_matches(family, names, 1)
            known = ", ".join(names)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"--methods: unknown family {family!r}; {hint}known are "
                f"{known}, "
                "with a label in front where one comes twice: first:feat,second:feat"
            )
        if label in methods or not label.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"--methods: the label {label!r} comes twice or has more than letters, digits, - "
                "and _; give each method a label of its own, such as first:feat,second:feat"
            )
        methods[label] = Method(label, family)
    if not methods:
        raise ValueError(f"--methods names none; give some of {', '.join(names)}, by commas")
    return list(methods.values())
