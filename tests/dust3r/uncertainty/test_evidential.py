"""The Normal-Inverse-Gamma distribution: golden numbers, identities, extremes, failures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import gammaln

from dust3r.uncertainty.evidential import EPSILON, NormalInverseGamma

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = json.loads((GOLDEN / "uq.json").read_text())
PARAMETERS = ("gamma", "nu", "alpha", "beta")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "uq.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def random_nig(seed, dtype=torch.float64, size=(2, 1, 16, 16)):
    """Parameters over many orders of magnitude, and targets near and far."""
    random = torch.Generator().manual_seed(seed)

    def spread(low, high):
        exponent = torch.rand(size, generator=random, dtype=torch.float64) * (high - low) + low
        return 10**exponent

    gamma = torch.randn(size, generator=random, dtype=torch.float64) * 5
    nig = NormalInverseGamma(
        gamma.to(dtype), *(p.to(dtype) for p in (spread(-6, 3), 1 + spread(-6, 3), spread(-6, 3)))
    )
    sign = torch.randn(size, generator=random, dtype=torch.float64).sign()
    return nig, (gamma + sign * spread(-3, 4)).to(dtype)


def test_nll_agrees_with_the_published_number(golden):
    nig = NormalInverseGamma(*(golden[name] for name in PARAMETERS))
    nll = nig.nll(golden["y"]).mean().item()
    assert nll == pytest.approx(PUBLISHED["nig_nll_mean_all"], rel=1e-4)


@pytest.mark.parametrize("weight", ["1e-3", "0.1"])
def test_penalty_agrees_with_the_published_number(golden, weight):
    nig = NormalInverseGamma(*(golden[name] for name in PARAMETERS))
    loss = nig.nll(golden["y"]) + float(weight) * nig.evidence_penalty(golden["y"])
    expected = PUBLISHED[f"evidential_nig_loss(lambda={weight}, masked)"]
    assert loss[golden["mask"][:, None]].mean().item() == pytest.approx(expected, rel=1e-4)


def test_variance_agrees_with_the_published_number(golden):
    nig = NormalInverseGamma(*(golden[name] for name in PARAMETERS))
    variance = nig.variance[golden["mask"][:, None]].mean().item()
    assert variance == pytest.approx(PUBLISHED["predictive_variance_mean"], rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_nll_is_that_of_the_predictive_student_t(seed):
    nig, y = random_nig(seed)
    torch.testing.assert_close(nig.nll(y), -nig.predictive().log_prob(y), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_float32_keeps_five_digits_at_every_magnitude(seed):
    exact, y = random_nig(seed)
    single, y32 = random_nig(seed, dtype=torch.float32)
    widened = NormalInverseGamma(*(getattr(single, name).double() for name in PARAMETERS))
    expected = -widened.predictive().log_prob(y32.double())
    torch.testing.assert_close(single.nll(y32).double(), expected, rtol=1e-5, atol=1e-5)


def test_gamma_ratio_keeps_its_digits_for_large_alpha():
    alpha = torch.logspace(0, 6, 200).float()
    one = torch.ones_like(alpha)
    nig = NormalInverseGamma(0 * one, one, alpha, one)
    a = alpha.double().numpy()
    # At y = gamma and w = 4 only the ratio of the Gammas depends on alpha.
    expected = 0.5 * np.log(4 * np.pi) - (gammaln(a + 0.5) - gammaln(a))
    np.testing.assert_allclose(nig.nll(0 * one).numpy(), expected, rtol=1e-5, atol=2e-6)


def test_much_evidence_makes_a_gaussian():
    y = torch.linspace(-3, 3, 7, dtype=torch.float64)
    one = torch.ones_like(y)
    nig = NormalInverseGamma(0 * y, 1e9 * one, 1e7 * one, 1e7 * one)
    gaussian = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(nig.nll(y), -gaussian.log_prob(y), rtol=1e-5, atol=1e-5)


def test_the_likelihood_is_a_density():
    y = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    nig = NormalInverseGamma(*(torch.full_like(y, v) for v in (0.7, 0.4, 2.5, 1.3)))
    assert torch.trapezoid((-nig.nll(y)).exp(), y).item() == pytest.approx(1, abs=1e-5)


def test_variance_splits_into_aleatoric_and_epistemic():
    shape = (2, 1, 8, 8)
    random = torch.Generator().manual_seed(3)
    raw = torch.randn(shape[0], 4, *shape[2:], generator=random)
    nig = NormalInverseGamma.from_raw(raw)
    torch.testing.assert_close(nig.variance, nig.aleatoric + nig.epistemic, rtol=1e-4, atol=0)
    torch.testing.assert_close(nig.variance, nig.predictive().variance, rtol=1e-4, atol=0)
    assert nig.mean is nig.gamma


def test_from_raw_orders_and_bounds_the_channels():
    raw = torch.tensor([-7.0, -200.0, -200.0, 30.0]).reshape(1, 4, 1, 1)
    nig = NormalInverseGamma.from_raw(raw)
    assert nig.gamma.item() == -7
    assert nig.nu.item() == pytest.approx(EPSILON, rel=1e-5)
    assert nig.alpha.item() - 1 == pytest.approx(EPSILON, rel=0.1)
    assert nig.beta.item() == pytest.approx(30)
    assert nig.beta.shape == (1, 1, 1, 1)


@pytest.mark.parametrize("raw_evidence", [-200.0, -14.0, 0.0, 50.0, 1e4])
@pytest.mark.parametrize("raw_beta", [-200.0, 0.0, 1e4])
@pytest.mark.parametrize("error", [0.0, 1e-4, 1.0, 1e4])
def test_extremes_have_finite_values_and_gradients(raw_evidence, raw_beta, error):
    raw = torch.tensor([3.0, raw_evidence, raw_evidence, raw_beta]).reshape(1, 4, 1, 1)
    raw.requires_grad_()
    nig = NormalInverseGamma.from_raw(raw)
    y = torch.full((1, 1, 1, 1), 3.0 + error)
    outputs = (nig.nll(y), nig.evidence_penalty(y), nig.variance, nig.aleatoric, nig.epistemic)
    for output in outputs:
        (gradient,) = torch.autograd.grad(output.sum(), raw, retain_graph=True)
        assert output.isfinite().all() and gradient.isfinite().all()


def test_an_alpha_rounded_to_one_still_has_a_variance():
    one = torch.ones(1, 1, 2, 2)
    nig = NormalInverseGamma(one, one, one, one)
    for variance in (nig.variance, nig.aleatoric, nig.epistemic):
        assert (variance > 1e5).all() and variance.isfinite().all()


def test_gradients_are_those_of_the_student_t():
    nig, y = random_nig(7)
    leaves = [getattr(nig, name).requires_grad_() for name in PARAMETERS]
    ours = torch.autograd.grad(nig.nll(y).sum(), leaves)
    theirs = torch.autograd.grad(-nig.predictive().log_prob(y).sum(), leaves)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)


def test_half_precision_is_widened_under_autocast_too():
    raw = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.ones(1, 1, 4, 4)
    expected = NormalInverseGamma.from_raw(raw.float()).nll(y)
    with torch.autocast("cpu", torch.bfloat16):
        nig = NormalInverseGamma.from_raw(raw)
        nll = nig.nll(y.bfloat16())
    assert nll.dtype == nig.alpha.dtype == torch.float32 and (nig.alpha > 1).all()
    torch.testing.assert_close(nll, expected)
    direct = NormalInverseGamma(*(p.bfloat16() for p in (y, y, 1 + y, y)))
    assert direct.nu.dtype == torch.float32


def test_detach_cuts_the_graph_and_keeps_the_numbers():
    raw = torch.zeros(1, 4, 2, 2, requires_grad=True)
    nig = NormalInverseGamma.from_raw(raw)
    cut = nig.detach()
    for name in PARAMETERS:
        assert getattr(nig, name).requires_grad and not getattr(cut, name).requires_grad
        assert torch.equal(getattr(nig, name), getattr(cut, name))


@pytest.mark.parametrize("suffix", ["", "_feat"])
def test_from_prediction_reads_the_maps_of_its_suffix(suffix):
    pred = {
        f"depth_{name}{s}": torch.full((1, 1, 2, 2), i + (100.0 if s == suffix else 0.0))
        for s in ("", "_feat")
        for i, name in enumerate(PARAMETERS)
    }
    nig = NormalInverseGamma.from_prediction(pred, suffix)
    assert [getattr(nig, name).mean().item() for name in PARAMETERS] == [100, 101, 102, 103]


def test_a_model_without_the_head_is_named():
    pred = {f"depth_{name}": torch.ones(1, 1, 2, 2) for name in PARAMETERS}
    with pytest.raises(ValueError, match="no depth_gamma_feat.*head_type is dpt_uq_feat$"):
        NormalInverseGamma.from_prediction(pred, "_feat")


def test_wrong_shapes_are_explained():
    with pytest.raises(ValueError, match=r"gamma, nu, alpha and beta; these are \(1, 3, 2, 2\)"):
        NormalInverseGamma.from_raw(torch.zeros(1, 3, 2, 2))
    nig = NormalInverseGamma.from_raw(torch.zeros(5, 4, 2, 2))
    with pytest.raises(ValueError, match=r"target has shape \(5, 2, 2\).*depth\[:, None\]"):
        nig.nll(torch.zeros(5, 2, 2))
