"""Families read as methods: their names, their needs, and levels that are uniform if true."""

import pytest
import torch
from scipy.stats import kstest

from dust3r.evaluation.methods import DEPTH, POINT, Method, parse_methods
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.points import NormalInverseWishart, PointGaussian

SIDE = 60


def maps(*shape):
    return torch.rand(1, *shape, SIDE, SIDE)


@pytest.fixture
def predictions():
    torch.manual_seed(0)
    nig = {f"depth_{key}": value for key, value in
           zip(("gamma", "nu", "alpha", "beta"), (maps(1), maps(1) + 0.5, maps(1) + 3, maps(1)),
               strict=True)}  # fmt: skip
    lower = maps(6) - 0.5
    lower[:, [0, 2, 5]] += 1
    points = {
        "xyz_niw_m": maps(3), "xyz_niw_kappa": maps(1) + 1, "xyz_niw_nu": maps(1) + 6,
        "xyz_niw_L": lower, "xyz_mu": maps(3), "xyz_logvar": maps(3),
        "xyz_gamma": maps(3), "xyz_nu": maps(3) + 0.5, "xyz_alpha": maps(3) + 3,
        "xyz_beta": maps(3),
    }  # fmt: skip
    mean = {"depth_mu": nig["depth_gamma"], "depth_var": maps(1)}
    return nig | mean | points | {"pts3d": torch.rand(1, SIDE, SIDE, 3), "conf": 1 + maps()}


@pytest.mark.parametrize("family", ["geom", "niw", "xyz", "hetero"])
def test_levels_of_what_a_distribution_draws_are_uniform(predictions, family):
    torch.manual_seed(1)
    reading = Method(family, family).read(predictions)
    said = {
        "geom": lambda: NormalInverseGamma.from_prediction(predictions),
        "niw": lambda: NormalInverseWishart.from_prediction(predictions),
        "hetero": lambda: PointGaussian.from_prediction(predictions),
        "xyz": lambda: NormalInverseGamma(
            *(predictions[f"xyz_{key}"] for key in ("gamma", "nu", "alpha", "beta"))
        ),
    }[family]()
    truth = said.predictive().sample()
    truth = {"geom": lambda t: t[:, 0], "xyz": lambda t: t.movedim(1, -1)}.get(family, lambda t: t)(
        truth
    )
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, ::3] = False
    levels = reading.level(truth, mask)
    assert len(levels) == mask.sum() * (3 if family == "xyz" else 1)
    assert kstest(levels, "uniform").pvalue > 1e-3
    assert reading.nll(truth).shape == (1, SIDE, SIDE) and reading.unit == "m"


def test_families_say_what_their_uncertainty_is_ranked_against(predictions):
    assert Method("a", "conf").targets == (POINT,)
    assert Method("a", "geom").targets == (POINT, DEPTH)
    reading = Method("a", "conf").read(predictions)
    assert reading.unit == "" and reading.nll is None and reading.depth is None
    torch.testing.assert_close(reading.total, 1 / predictions["conf"])
    depth = Method("a", "geom").read(predictions).depth
    torch.testing.assert_close(depth, predictions["depth_mu"][:, 0])


def test_labels_and_families_are_parsed():
    found = parse_methods("conf, feat ,second:feat")
    assert [(m.label, m.family) for m in found] == [
        ("conf", "conf"), ("feat", "feat"), ("second", "feat")
    ]  # fmt: skip
    for text, message in (
        ("confs", r"unknown family 'confs'; did you mean 'conf'\?"),
        ("conf,conf", "'conf' comes twice"),
        ("a/b:conf", "'a/b' comes twice or has more than letters"),
        (" , ", "names none; give some of"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_methods(text)
    with pytest.raises(ValueError, match="known are pointmap, geom, feat"):
        parse_methods("niw", depths=True)


def test_a_checkpoint_of_another_family_is_refused():
    with pytest.raises(ValueError, match=r"model.pth cannot be read as 'geom'.*read as conf"):
        Method("mine", "geom").check({"pts3d", "conf"}, "model.pth")
    Method("mine", "conf").check({"pts3d", "conf"}, "model.pth")


def test_nan_stays_nan(predictions):
    predictions["conf"][0, 3, 4] = torch.nan
    total = Method("a", "conf").read(predictions).total
    assert total[0, 3, 4].isnan() and total.isnan().sum() == 1
