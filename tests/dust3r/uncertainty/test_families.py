"""One interface to every family: shapes, units, what is what, NaN, failures."""

import pytest
import torch

from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.families import (
    FAMILIES,
    family_of,
    family_of_head,
    point_distribution,
    point_nll,
    sampled_keys,
    uncertainty,
)
from dust3r.uncertainty.points import NormalInverseWishart, PointGaussian

B, H, W = 2, 3, 4


def prediction(family):
    """What a model of ``family`` predicts, as far as its uncertainty goes."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(B, H, W, 3, generator=random)
    made = {"pts3d": points, "conf": 1 + torch.rand(B, H, W, generator=random)}
    mean = points.movedim(-1, 1)
    if family in ("geom", "feat"):
        nig = NormalInverseGamma.from_raw(torch.randn(B, 4, H, W, generator=random))
        suffix = "_feat" if family == "feat" else ""
        made |= {f"depth_{n}{suffix}": getattr(nig, n) for n in ("gamma", "nu", "alpha", "beta")}
    elif family == "xyz":
        raw = torch.randn(B, 9, H, W, generator=random)
        nig = NormalInverseGamma.from_evidence(mean, raw)
        made |= {f"xyz_{n}": getattr(nig, n) for n in ("gamma", "nu", "alpha", "beta")}
    elif family.startswith("niw"):
        niw = NormalInverseWishart.from_raw(mean, torch.randn(B, 8, H, W, generator=random))
        made |= {f"xyz_niw_{n}": getattr(niw, n) for n in ("m", "kappa", "nu", "L")}
    elif family == "hetero":
        made |= {"xyz_mu": mean, "xyz_logvar": torch.randn(B, 3, H, W, generator=random)}
    elif family in ("mcd", "ensemble"):
        between, within = sampled_keys(family)
        made |= {key: torch.rand(B, 3, H, W, generator=random) for key in (between, within)}
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_positive_maps_with_a_unit(family):
    said = uncertainty(prediction(family), family)
    assert said.family == family
    for part in (said.total, said.aleatoric, said.epistemic):
        if part is not None:
            assert part.shape == (B, H, W) and part.dtype == torch.float32
            assert (part > 0).all() and part.isfinite().all()
    assert said.unit == ("1/confidence" if family == "conf" else "m^2")
    if said.aleatoric is not None and said.epistemic is not None:
        both = said.aleatoric + said.epistemic
        torch.testing.assert_close(said.total, both, rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "niw_spread"])
def test_families_are_recognised_by_their_keys(family):
    assert family_of(prediction(family)) == family
    assert uncertainty(prediction(family)).family == family


def test_who_tells_what():
    parts = {f: uncertainty(prediction(f), f) for f in FAMILIES}
    assert {f for f, u in parts.items() if u.aleatoric is None} == {"conf", "niw_spread"}
    assert {f for f, u in parts.items() if u.epistemic is None} == {"conf", "niw_spread", "hetero"}


def test_features_come_before_the_geometry_that_teaches_them():
    both = prediction("geom") | prediction("feat")
    assert family_of(both) == "feat"
    assert not torch.equal(uncertainty(both, "geom").total, uncertainty(both, "feat").total + 1)


def test_confidence_is_inverted():
    said = uncertainty({"conf": torch.tensor([[[1.0, 2.0, 4.0]]])})
    assert said.total.flatten().tolist() == [1, 0.5, 0.25]


def test_scaling_a_scene_scales_its_variances():
    small, large = prediction("niw"), prediction("niw")
    large["xyz_niw_L"] = 10 * large["xyz_niw_L"]
    for family in ("niw", "niw_spread"):
        torch.testing.assert_close(
            uncertainty(large, family).total, 100 * uncertainty(small, family).total
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_not_a_number_stays_where_it_is(family):
    said = prediction(family)
    for name, value in said.items():
        if name not in ("pts3d", "xyz_mu"):
            value[0, ..., 1, 2] = torch.nan
    total = uncertainty(said, family).total
    assert total[0, 1, 2].isnan() and total.isnan().sum() == 1


def test_likelihood_is_of_whole_points():
    said = prediction("hetero")
    truth = said["pts3d"] + 0.1
    expected = PointGaussian.from_prediction(said).predictive().log_prob(truth)
    torch.testing.assert_close(point_nll(said, truth), -expected)
    nig = prediction("xyz")
    each = NormalInverseGamma(*(nig[f"xyz_{n}"] for n in ("gamma", "nu", "alpha", "beta")))
    expected = each.nll(truth.movedim(-1, 1)).sum(1)
    torch.testing.assert_close(point_nll(nig, truth), expected)
    assert point_nll(prediction("niw"), truth).shape == (B, H, W)
    for family in ("conf", "feat", "geom"):
        assert point_nll(prediction(family), truth) is None


def test_samples_are_scored_as_a_gaussian():
    said = prediction("mcd")
    truth = said["pts3d"] + 0.1
    between, within = sampled_keys("mcd")
    variance = (said[between] + said[within]).movedim(1, -1)
    normal = torch.distributions.Normal(said["pts3d"], variance.sqrt())
    torch.testing.assert_close(point_nll(said, truth), -normal.log_prob(truth).sum(-1))
    del said[within]
    assert uncertainty(said).aleatoric is None
    said["pts3d_in_other_view"] = said.pop("pts3d")
    assert point_nll(said, truth).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prediction_of_another_family_is_told(family):
    with pytest.raises(ValueError, match=f"not of family '{family}': it has no .* Use "):
        uncertainty({"pts3d": torch.zeros(B, H, W, 3)}, family)


def test_nothing_to_read_and_nothing_of_the_name():
    with pytest.raises(ValueError, match="states no uncertainty; it has pts3d"):
        uncertainty({"pts3d": torch.zeros(B, H, W, 3)})
    with pytest.raises(ValueError, match="'nwi' is none of .*niw"):
        uncertainty(prediction("niw"), "nwi")


def test_a_distribution_of_points_is_found_whatever_else_there_is():
    for family, found in FAMILIES.items():
        said = point_distribution(prediction(family))
        assert (said is None) == (found.points is None)
        if said is not None:
            assert said.total.shape == (B, 3, H, W)
    both = prediction("geom") | prediction("hetero")
    assert isinstance(point_distribution(both), PointGaussian)


@pytest.mark.parametrize(
    ("head_type", "family"),
    [
        ("linear", None),
        ("dpt", None),
        ("catmlp+dpt", None),
        ("dpt_uq", "geom"),
        ("dpt_uq_feat", "feat"),
        ("catmlp+dpt+xyz_evi_dpt", "xyz"),
        ("catmlp+dpt+xyz_niw_dpt+residual_gated", "niw"),
        ("catmlp+dpt+xyz_hetero_dpt", "hetero"),
    ],
)
def test_the_head_type_tells_the_family(head_type, family):
    assert family_of_head(head_type) == family
