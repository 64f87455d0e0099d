"""What a prediction says of its own error, family by family, in one form.

``uncertainty(prediction)`` gives a number per pixel, higher where the geometry is likelier to be
wrong. A family is recognised by the keys that its head, or its sampling, leaves in a prediction.
Nothing is clipped or filled: where a prediction is not finite, so is its uncertainty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.points import (
    NormalInverseWishart,
    PointDistribution,
    PointGaussian,
    nig_of_points,
)
from dust3r.utils.view import points_key

Prediction = Mapping[str, Tensor]
SQUARE_METRES = "m^2"


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of the pixels of a batch of views, float32, higher where worse.

    Attributes:
        family: a name of ``FAMILIES``.
        total: (B,H,W).
        aleatoric: (B,H,W), what is noise in the data, or None where the family does not tell.
        epistemic: (B,H,W), what more or other data could have taught, or None.
        unit: of all three. ``'m^2'`` is that of the predicted points squared, metres for a metric
            model: a variance of depth (geom, feat), or the sum of the variances of the three
            coordinates, the expected squared distance from the true point. ``'1/confidence'`` has
            no unit and ranks only.
    """

    family: str
    total: Tensor
    aleatoric: Tensor | None
    epistemic: Tensor | None
    unit: str


@dataclass(frozen=True)
class Family:
    """How one kind of uncertainty is read from a prediction.

    Attributes:
        keys: what a prediction of this family has.
        read: from a prediction to total, aleatoric and epistemic, each (B,H,W) or None.
        unit: see ``Uncertainty``.
        from_what: what to use to get such predictions, for messages.
        points: from a prediction to its distribution of points; None where there is none.
    """

    keys: tuple[str, ...]
    read: Callable[[Prediction], tuple[Tensor, Tensor | None, Tensor | None]]
    unit: str
    from_what: str
    points: Callable[[Prediction], PointDistribution] | None = None


def uncertainty(prediction: Prediction, family: str | None = None) -> Uncertainty:
    """The uncertainty of one view's prediction.

    Args:
        prediction: of one view, of view 1 or of view 2.
        family: a name of ``FAMILIES``; None for ``family_of(prediction)``.

    Raises:
        ValueError: no such family, or the prediction is of another.
    """
    name = family_of(prediction) if family is None else family
    found = _family(name, prediction)
    parts = found.read(prediction)
    total, aleatoric, epistemic = (None if part is None else part.float() for part in parts)
    return Uncertainty(name, total, aleatoric, epistemic, found.unit)


def family_of(prediction: Prediction) -> str:
    """The first of ``FAMILIES`` that a prediction has the keys of; the confidence comes last.

    Raises:
        ValueError: it has those of none.
    """
    for name, family in FAMILIES.items():
        if all(key in prediction for key in family.keys):
            return name
    raise ValueError(
        f"the prediction states no uncertainty; it has {', '.join(prediction)}. Use a model with "
        "conf_mode, or with one of the uncertainty heads"
    )


def family_of_head(head_type: str) -> str | None:
    """The family that predictions of a model with this ``head_type`` are read as, in alignments.

    FeatUQ where there is its teacher too; None of heads that state points and confidences alone.
    """
    parts = head_type.split("+")
    return next((name for name, part in HEAD_PARTS.items() if part in parts), None)


def point_nll(prediction: Prediction, points: Tensor, family: str | None = None) -> Tensor | None:
    """Negative log-likelihood of true points under a prediction, in nats per point.

    Of all three coordinates together, whatever the family. Nothing is aligned: ``points`` are in
    the prediction's frame and unit, camera 1's.

    Args:
        prediction: of one view.
        points: (B,H,W,3).
        family: as of ``uncertainty``.

    Returns:
        (B,H,W), or None for families without a distribution of points (conf, feat, geom).
    """
    name = family_of(prediction) if family is None else family
    distribution = _family(name, prediction).points
    if distribution is None:
        return None
    return distribution(prediction).nll(points.movedim(-1, 1)).sum(dim=1)


def point_distribution(prediction: Prediction) -> PointDistribution | None:
    """What a prediction of one view states about its points; None where it states nothing.

    The first of ``FAMILIES`` that has a distribution, whatever else the prediction holds.
    """
    for family in FAMILIES.values():
        if family.points is not None and all(key in prediction for key in family.keys):
            return family.points(prediction)
    return None


def sampled_keys(family: str) -> tuple[str, str]:
    """Keys (B,3,H,W) of sampled predictions: variance between samples, mean variance within."""
    return f"xyz_var_between_{family}", f"xyz_var_within_{family}"


def _family(name: str, prediction: Prediction) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is none of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    missing = [key for key in family.keys if key not in prediction]
    if missing:
        raise ValueError(
            f"the prediction is not of family {name!r}: it has no {', '.join(missing)}, but "
            f"{', '.join(prediction)}. Use {family.from_what}"
        )
    return family


def _sum_of_variances(variance: Tensor | None) -> Tensor | None:
    """Of coordinates (B,3,H,W): (B,H,W)."""
    return None if variance is None else variance.sum(dim=1)


def _of_points(
    read: Callable[[Prediction], PointDistribution], head_type: str, keys: tuple[str, ...]
) -> Family:
    def parts(prediction: Prediction) -> tuple[Tensor, Tensor | None, Tensor | None]:
        said = read(prediction)
        return tuple(map(_sum_of_variances, (said.total, said.aleatoric, said.epistemic)))

    return Family(keys, parts, SQUARE_METRES, f"a model whose head_type is {head_type}", read)


def _of_depth(suffix: str, head_type: str) -> Family:
    def parts(prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        nig = NormalInverseGamma.from_prediction(prediction, suffix)
        return tuple(part[:, 0] for part in (nig.total, nig.aleatoric, nig.epistemic))

    keys = tuple(f"depth_{name}{suffix}" for name in ("gamma", "nu", "alpha", "beta"))
    return Family(keys, parts, SQUARE_METRES, f"a model whose head_type is {head_type}")


def _sampled(name: str, from_what: str) -> Family:
    between, within = sampled_keys(name)

    def variances(prediction: Prediction) -> tuple[Tensor, Tensor | None]:
        return prediction[between].float(), prediction.get(within)

    def parts(prediction: Prediction) -> tuple[Tensor, Tensor | None, Tensor]:
        epistemic, aleatoric = variances(prediction)
        total = epistemic if aleatoric is None else epistemic + aleatoric
        return tuple(map(_sum_of_variances, (total, aleatoric, epistemic)))

    def gaussian(prediction: Prediction) -> PointGaussian:
        """With the mean and the variance of the samples, as Lakshminarayanan et al., 2017."""
        epistemic, aleatoric = variances(prediction)
        total = epistemic if aleatoric is None else epistemic + aleatoric
        tiny = torch.finfo(total.dtype).tiny
        # Kept from 0, where all samples agree; NaN stays NaN.
        return PointGaussian(
            prediction[points_key(prediction)].movedim(-1, 1), total.clamp(min=tiny).log()
        )

    return Family((between,), parts, SQUARE_METRES, from_what, gaussian)


def _confidence(prediction: Prediction) -> tuple[Tensor, None, None]:
    return 1 / prediction["conf"].float(), None, None


def _spread(prediction: Prediction) -> tuple[Tensor, None, None]:
    return _sum_of_variances(NormalInverseWishart.from_prediction(prediction).spread), None, None


_WISHART_KEYS = ("xyz_niw_m", "xyz_niw_kappa", "xyz_niw_nu", "xyz_niw_L")
_WISHART_HEAD = "catmlp+dpt+xyz_niw_dpt"

# The part of a head_type that states a family's distribution.
HEAD_PARTS = {
    "feat": "dpt_uq_feat",
    "geom": "dpt_uq",
    "niw": "xyz_niw_dpt",
    "xyz": "xyz_evi_dpt",
    "hetero": "xyz_hetero_dpt",
}

# In order of precedence: a sampled prediction may hold what one of its samples said as well, and
# almost every prediction has a confidence.
FAMILIES: dict[str, Family] = {
    "ensemble": _sampled("ensemble", "dust3r.uncertainty.sampling.DeepEnsemble"),
    "mcd": _sampled("mcd", "dust3r.uncertainty.sampling.MonteCarloDropout"),
    "niw": _of_points(NormalInverseWishart.from_prediction, _WISHART_HEAD, _WISHART_KEYS),
    "xyz": _of_points(
        nig_of_points,
        "catmlp+dpt+xyz_evi_dpt",
        ("xyz_gamma", "xyz_nu", "xyz_alpha", "xyz_beta"),
    ),
    "hetero": _of_points(
        PointGaussian.from_prediction, "catmlp+dpt+xyz_hetero_dpt", ("xyz_mu", "xyz_logvar")
    ),
    "feat": _of_depth("_feat", "dpt_uq_feat"),
    "geom": _of_depth("", "dpt_uq or dpt_uq_feat"),
    # The width of niw's Student-t instead of its variance, which heavy tails blow up.
    "niw_spread": Family(
        _WISHART_KEYS,
        _spread,
        SQUARE_METRES,
        f"a model whose head_type is {_WISHART_HEAD}",
        NormalInverseWishart.from_prediction,
    ),
    "conf": Family(("conf",), _confidence, "1/confidence", "a model with a conf_mode"),
}
