"""Distributions of points: golden numbers, densities, extremes, failures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from dust3r.criterion import masked_mean
from dust3r.uncertainty.evidential import EPSILON, NormalInverseGamma
from dust3r.uncertainty.points import (
    LOG_VARIANCE_LIMITS,
    NormalInverseWishart,
    PointGaussian,
    evidence_of_points,
    nig_of_points,
)

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = json.loads((GOLDEN / "uq.json").read_text())
CHANNELS = {NormalInverseGamma: 9, NormalInverseWishart: 8, PointGaussian: 3}
EXTREMES = [-200.0, -14.0, 0.0, 50.0]


@pytest.fixture(scope="module")
def maps():
    with np.load(GOLDEN / "uq.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


@pytest.fixture(scope="module")
def niw(maps):
    return NormalInverseWishart(maps["m_xyz"], maps["kappa"], maps["nu_niw"], maps["L"])


def from_raw(kind, mean, raw):
    if kind is NormalInverseGamma:
        return kind.from_evidence(mean, raw)
    return kind.from_raw(mean, raw)


def random_one(kind, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    mean, y = torch.randn(2, 2, 3, 4, 5, generator=random, dtype=dtype)
    raw = torch.randn(2, CHANNELS[kind], 4, 5, generator=random, dtype=dtype)
    return from_raw(kind, mean, raw), y


def test_published_loss_of_each_coordinates_evidence(maps):
    nig = NormalInverseGamma(maps["m_xyz"], maps["nu_xyz"], maps["alpha_xyz"], maps["beta_xyz"])
    loss = nig.nll(maps["y_xyz"]) + 1e-3 * nig.evidence_penalty(maps["y_xyz"])
    mean = masked_mean(loss, maps["mask"][:, None].expand_as(loss))
    assert mean.item() == pytest.approx(PUBLISHED["nig3d(lambda=1e-3, masked)"], rel=1e-5)


@pytest.mark.parametrize("weight", [0, 1e-3])
def test_published_loss_of_the_whole_points_evidence(maps, niw, weight):
    loss = niw.nll(maps["y_xyz"]) + weight * niw.evidence_penalty(maps["y_xyz"])
    written = "0" if weight == 0 else "1e-3"
    expected = PUBLISHED[f"niw3d(lambda={written}, masked)"]
    assert masked_mean(loss, maps["mask"][:, None]).item() == pytest.approx(expected, rel=1e-5)


def test_published_loss_of_the_gaussian(maps):
    loss = PointGaussian(maps["m_xyz"], maps["logvar_xyz"]).nll(maps["y_xyz"])
    expected = PUBLISHED["hetero_gaussian_nll(masked)"]
    assert masked_mean(loss, maps["mask"][:, None]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [NormalInverseWishart, PointGaussian])
def test_nll_is_that_of_the_predictive(kind):
    said, y = random_one(kind)
    predictive = said.predictive()
    expected = -predictive.log_prob(y.movedim(1, -1))
    torch.testing.assert_close(said.nll(y)[:, 0], expected)
    torch.testing.assert_close(predictive.mean.movedim(-1, 1), said.mean)


def test_nll_of_each_coordinate_is_that_of_the_predictive():
    said, y = random_one(NormalInverseGamma)
    torch.testing.assert_close(said.nll(y), -said.predictive().log_prob(y))


@pytest.mark.parametrize("kind", CHANNELS)
def test_the_total_is_the_variance_of_the_predictive(kind):
    said, _ = random_one(kind)
    variance = said.predictive().variance
    if kind is not NormalInverseGamma:
        variance = variance.movedim(-1, 1)
    torch.testing.assert_close(said.total, variance, rtol=1e-4, atol=0)
    parts = said.aleatoric if said.epistemic is None else said.aleatoric + said.epistemic
    torch.testing.assert_close(said.total, parts, rtol=1e-4, atol=0)


def test_wishart_is_a_gaussian_where_evidence_is_ample():
    """kappa and nu without end leave a Gaussian of covariance Psi / nu; in float32, too."""
    y = torch.linspace(-3, 3, 60).reshape(1, 3, 4, 5)
    one = torch.ones(1, 1, 4, 5)
    lower = torch.tensor([1.0, 0.5, 2.0, -0.3, 0.8, 1.5])
    nu = 1e7
    said = NormalInverseWishart(
        0 * y, 1e9 * one, nu * one, (nu**0.5 * lower)[None, :, None, None].expand(1, 6, 4, 5)
    )
    matrix = torch.zeros(3, 3)
    matrix[torch.tril_indices(3, 3).unbind()] = lower
    expected = -MultivariateNormal(torch.zeros(3), scale_tril=matrix).log_prob(y.movedim(1, -1))
    torch.testing.assert_close(said.nll(y)[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_wishart_of_a_scaled_scene_is_scaled():
    """NLL of points k times as far apart is more by 3 log k, the penalty as much."""
    said, y = random_one(NormalInverseWishart)
    larger = NormalInverseWishart(10 * said.m, said.kappa, said.nu, 10 * said.L)
    torch.testing.assert_close(larger.nll(10 * y), said.nll(y) + 3 * np.log(10))
    torch.testing.assert_close(larger.evidence_penalty(10 * y), said.evidence_penalty(y))
    torch.testing.assert_close(larger.total, 100 * said.total)


def test_penalty_is_the_whitened_error_times_the_evidence():
    said, y = random_one(NormalInverseWishart)
    lower = torch.zeros(2, 4, 5, 3, 3, dtype=torch.float64)
    rows, columns = torch.tril_indices(3, 3)
    lower[..., rows, columns] = said.L.movedim(1, -1)
    whitened = torch.linalg.solve(lower, (y - said.m).movedim(1, -1)[..., None])[..., 0]
    expected = whitened.norm(dim=-1) * (said.kappa + said.nu)[:, 0]
    torch.testing.assert_close(said.evidence_penalty(y)[:, 0], expected)
    psi = (lower @ lower.mT).diagonal(dim1=-2, dim2=-1).movedim(-1, 1)
    torch.testing.assert_close(said.psi_diagonal, psi)
    torch.testing.assert_close(said.epistemic, psi / (said.kappa * (said.nu - 4)))


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("evidence", EXTREMES)
@pytest.mark.parametrize("rest", EXTREMES)
@pytest.mark.parametrize("error", [0.0, 1e-4, 1.0, 1e4])
def test_extremes_have_finite_values_and_gradients(kind, evidence, rest, error):
    raw = torch.full((1, CHANNELS[kind], 1, 1), rest)
    raw[:, : CHANNELS[kind] // 4] = evidence
    raw.requires_grad_()
    mean = torch.tensor([1.0, -2.0, 3.0]).reshape(1, 3, 1, 1).requires_grad_()
    said = from_raw(kind, mean, raw)
    y = mean.detach() + error
    losses = [said.nll(y)]
    if kind is not PointGaussian:
        losses.append(said.evidence_penalty(y))
    for loss in losses:
        gradients = torch.autograd.grad(loss.sum(), (mean, raw), retain_graph=True)
        assert loss.isfinite().all() and all(g.isfinite().all() for g in gradients)
    assert said.total.isfinite().all() and (said.total > 0).all()


def test_raw_channels_have_the_published_order():
    raw = torch.arange(1.0, 9.0).reshape(1, 8, 1, 1)
    said = NormalInverseWishart.from_raw(torch.zeros(1, 3, 1, 1), raw)
    softplus = [
        torch.nn.functional.softplus(torch.tensor(float(v))).item() + EPSILON for v in range(9)
    ]
    assert said.kappa.item() == pytest.approx(softplus[1])
    assert said.nu.item() == pytest.approx(4 + softplus[2])
    expected = [softplus[3], 4, softplus[5], 6, 7, softplus[8]]
    assert said.L.flatten().tolist() == pytest.approx(expected)
    nig = NormalInverseGamma.from_evidence(
        torch.zeros(1, 3, 1, 1), torch.arange(9.0).reshape(1, 9, 1, 1)
    )
    assert nig.nu.flatten().tolist() == pytest.approx(softplus[:3])
    assert nig.alpha.flatten().tolist() == pytest.approx([1 + v for v in softplus[3:6]])
    assert nig.beta.flatten().tolist() == pytest.approx(softplus[6:])


def test_log_variances_stay_where_float32_holds_them():
    raw = torch.tensor([-1e4, 0.0, 1e4]).reshape(1, 3, 1, 1)
    said = PointGaussian.from_raw(torch.zeros(1, 3, 1, 1), raw)
    assert said.log_variance.flatten().tolist() == [LOG_VARIANCE_LIMITS[0], 0, 20]


def test_half_precision_is_widened():
    said, y = random_one(NormalInverseWishart, dtype=torch.float32)
    raw = torch.zeros(2, 8, 4, 5, dtype=torch.bfloat16)
    said = NormalInverseWishart.from_raw(y.bfloat16(), raw)
    assert said.nu.dtype == said.m.dtype == said.L.dtype == torch.float32
    assert (said.nu > 4).all() and said.nll(y).dtype == torch.float32


def test_not_a_number_stays_not_a_number():
    for kind in CHANNELS:
        said, y = random_one(kind)
        bad = from_raw(kind, said.mean, torch.full((2, CHANNELS[kind], 4, 5), torch.nan))
        assert bad.nll(y).isnan().all() and bad.total.isnan().all()


def test_evidence_is_read_by_its_keys():
    said, _ = random_one(NormalInverseWishart)
    pred = {f"xyz_niw_{name}": getattr(said, name) for name in ("m", "kappa", "nu", "L")}
    assert torch.equal(evidence_of_points(pred).L, said.L)
    nig, _ = random_one(NormalInverseGamma)
    pred = {f"xyz_{name}": getattr(nig, name) for name in ("gamma", "nu", "alpha", "beta")}
    assert torch.equal(evidence_of_points(pred).beta, nig.beta)


@pytest.mark.parametrize(
    ("read", "head_type"),
    [
        (nig_of_points, "catmlp.dpt.xyz_evi_dpt"),
        (NormalInverseWishart.from_prediction, "catmlp.dpt.xyz_niw_dpt"),
        (PointGaussian.from_prediction, "catmlp.dpt.xyz_hetero_dpt"),
        (evidence_of_points, "xyz_niw_dpt or catmlp.dpt.xyz_evi_dpt"),
    ],
)
def test_a_model_without_the_head_is_named(read, head_type):
    with pytest.raises(ValueError, match=f"it has pts3d, conf.*{head_type}$"):
        read({"pts3d": torch.ones(1, 2, 2, 3), "conf": torch.ones(1, 2, 2)})


def test_wrong_shapes_are_explained():
    mean = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"six of L; these are .* \(1, 9, 2, 2\)"):
        NormalInverseWishart.from_raw(mean, torch.zeros(1, 9, 2, 2))
    with pytest.raises(ValueError, match=r"three channels for each .* \(1, 8, 2, 2\)"):
        NormalInverseGamma.from_evidence(mean, torch.zeros(1, 8, 2, 2))
    with pytest.raises(ValueError, match="log variances of that shape"):
        PointGaussian.from_raw(mean, torch.zeros(1, 1, 2, 2))
    said = PointGaussian(mean, mean)
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 3\).*points.movedim\(-1, 1\)"):
        said.nll(torch.zeros(1, 2, 2, 3))
