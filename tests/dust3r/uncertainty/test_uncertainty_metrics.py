"""Depth and uncertainty metrics: golden numbers, limit cases, batches, ranks, failures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.stats import spearmanr

from dust3r.uncertainty.metrics import (
    AURC,
    AUSE,
    DepthRMSE,
    PredictiveNLL,
    Spearman,
    aurc,
    ause,
    gaussian_nll,
    sparsification_curve,
    spearman,
)

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = json.loads((GOLDEN / "uq.json").read_text())
FUNCTIONS = {"AURC": aurc, "AUSE": ause, "spearman": spearman}
METRICS = {"AURC": AURC, "AUSE": AUSE, "spearman": Spearman}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "uq.npz") as stored:
        return torch.from_numpy(stored["metric_err"]), torch.from_numpy(stored["metric_unc"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_agree_with_the_published_numbers(golden, name):
    assert FUNCTIONS[name](*golden).item() == pytest.approx(PUBLISHED[name], rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_do_not_depend_on_how_pixels_are_batched(golden, name):
    metric = METRICS[name]()
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))
    for part in order.split(6_001):
        metric.update(golden[0][part], golden[1][part])
    assert metric.compute().item() == pytest.approx(PUBLISHED[name], rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_masks_leave_pixels_out_and_errors_have_no_sign(golden, name):
    error, uncertainty = (x.clone().reshape(2, 1, 100, 100) for x in golden)
    mask = torch.rand(error.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    expected = FUNCTIONS[name](error[mask], uncertainty[mask])
    error[~mask] = torch.nan
    error[:, :, ::2] *= -1
    metric = METRICS[name]()
    metric.update(error, uncertainty, mask)
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_the_order_of_the_uncertainty_counts(golden, name):
    error, uncertainty = golden
    transformed = 3 * uncertainty.double().log() - 7
    assert FUNCTIONS[name](error, transformed).item() == pytest.approx(PUBLISHED[name], rel=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pixels_of_equal_uncertainty_have_no_order(golden, name):
    error = golden[0]
    uncertainty = golden[1].mul(4).round()
    backwards = FUNCTIONS[name](error.flip(0), uncertainty.flip(0))
    assert FUNCTIONS[name](error, uncertainty).item() == pytest.approx(backwards.item(), rel=1e-6)
    random = torch.Generator().manual_seed(0)
    shuffled = [uncertainty + 1e-3 * torch.rand(20_000, generator=random) for _ in range(20)]
    average = torch.stack([FUNCTIONS[name](error, u) for u in shuffled]).mean().item()
    assert FUNCTIONS[name](error, uncertainty).item() == pytest.approx(average, rel=0.02)


def test_perfect_useless_and_inverted_rankings(golden):
    error = golden[0]
    assert ause(error, error).item() == 0
    assert spearman(error, error.square()).item() == pytest.approx(1)
    assert spearman(error, -error).item() == pytest.approx(-1)
    useless = torch.ones_like(error)
    assert aurc(error, useless).item() == pytest.approx(error.mean().item(), rel=1e-6)
    assert ause(error, -error) > ause(error, useless) > ause(*golden) > 0
    assert spearman(error, useless).isnan()


def test_constant_error_is_its_own_area():
    uncertainty = torch.tensor([3.0, 1.0, 2.0])
    assert aurc(torch.full((3,), 0.25), uncertainty).item() == 0.25
    assert aurc(torch.tensor([0.5]), torch.tensor([9.0])).item() == 0.5


def test_a_curve_worked_by_hand():
    error, uncertainty = torch.tensor([4.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 3.0])
    # Risks 0, 2, 2 at coverages 1/3, 2/3, 1; the oracle's are 0, 1, 2.
    assert aurc(error, uncertainty).item() == pytest.approx((1 + 2) / 3)
    assert ause(error, uncertainty).item() == pytest.approx((1 + 2) / 3 - (0.5 + 1.5) / 3)
    removed, risk = sparsification_curve(error, uncertainty, n_bins=3)
    assert removed.tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert risk.tolist() == pytest.approx([2, 2, 0])


def test_spearman_shares_ranks_as_scipy_does():
    random = torch.Generator().manual_seed(0)
    error = torch.randint(0, 9, (500,), generator=random).float()
    uncertainty = error + torch.randint(0, 9, (500,), generator=random)
    expected = spearmanr(error.numpy(), uncertainty.numpy()).statistic
    assert spearman(error, uncertainty).item() == pytest.approx(expected, rel=1e-6)


def test_sparsification_starts_at_the_mean_and_the_oracle_is_below(golden):
    removed, risk = sparsification_curve(*golden, n_bins=50)
    _, oracle = sparsification_curve(golden[0], golden[0], n_bins=50)
    assert risk.shape == removed.shape == (50,)
    assert risk[0].item() == pytest.approx(golden[0].mean().item(), rel=1e-6)
    assert (oracle <= risk).all() and (oracle.diff() < 0).all()
    area = torch.trapezoid(risk - oracle, removed).item()
    assert area == pytest.approx(PUBLISHED["AUSE"], rel=0.05)


def test_more_bins_than_pixels_and_wrong_numbers_of_bins():
    error = torch.tensor([1.0, 3.0])
    _, risk = sparsification_curve(error, error, n_bins=5)
    assert risk.tolist() == [2, 2, 2, 1, 1]
    with pytest.raises(ValueError, match="at least one point, not n_bins=0"):
        sparsification_curve(error, error, n_bins=0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_pixels_everything_is_nan():
    nothing = torch.empty(0)
    assert all(f(nothing, nothing).isnan() for f in FUNCTIONS.values())
    assert sparsification_curve(nothing, nothing, 4)[1].isnan().all()
    for make in (*METRICS.values(), DepthRMSE, PredictiveNLL):
        assert make().compute().isnan()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nan_shows(golden, name):
    for spoilt in (0, 1):
        pixels = [x.clone() for x in golden]
        pixels[spoilt][77] = torch.nan
        assert FUNCTIONS[name](*pixels).isnan()


def test_means_are_over_pixels_not_batches():
    rmse, nll = DepthRMSE(), PredictiveNLL()
    first, second = torch.full((1, 1, 2, 2), 3.0), torch.tensor([-1.0, 1.0, torch.nan])
    mask = torch.tensor([True, True, False])
    for metric in (rmse, nll):
        metric.update(first)
        metric.update(second, mask)
    assert rmse.compute().item() == pytest.approx(np.sqrt((4 * 9 + 2) / 6))
    assert nll.compute().item() == pytest.approx(12 / 6)
    rmse.reset()
    rmse.update(second, mask)
    assert rmse.compute().item() == 1


def test_sums_keep_their_digits_over_many_pixels():
    metric = DepthRMSE()
    metric.update(torch.full((1,), 1e4))
    for _ in range(100):
        metric.update(torch.full((1000,), 1e-2))
    assert metric.compute().item() == pytest.approx(np.sqrt((1e8 + 10) / 100_001), rel=1e-7)


def test_gaussian_nll_is_that_of_the_distribution():
    y, mean, var = torch.tensor([0.3, -2.0]), torch.tensor([1.0, -2.5]), torch.tensor(0.49)
    expected = -torch.distributions.Normal(mean, 0.7).log_prob(y)
    torch.testing.assert_close(gaussian_nll(y, mean, var), expected)


def test_shapes_that_differ_are_explained():
    with pytest.raises(ValueError, match=r"must have one shape, not .*mask\[:, None\]"):
        DepthRMSE().update(torch.zeros(2, 1, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must have one shape"):
        AUSE().update(torch.zeros(2, 1, 3, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="must have one shape"):
        aurc(torch.zeros(3), torch.zeros(4))


def _one_rank(rank, store, pixels, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    metrics = {name: make() for name, make in METRICS.items()} | {"rmse": DepthRMSE()}
    error, uncertainty = pixels
    # Rank 2 has seen nothing, as happens when the held-out set is small.
    share = [slice(0, 5000), slice(5000, None), slice(0, 0)][rank]
    if rank < 2:
        for name in METRICS:
            metrics[name].update(error[share], uncertainty[share])
        metrics["rmse"].update(error[share])
    computed = {name: metric.compute().item() for name, metric in metrics.items()}
    Path(results, f"{rank}.json").write_text(json.dumps(computed))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_every_rank_gets_the_metrics_of_all_ranks(golden, tmp_path):
    torch.multiprocessing.start_processes(
        _one_rank, (tmp_path / "store", golden, tmp_path), nprocs=3, start_method="fork"
    )
    expected = {name: PUBLISHED[name] for name in METRICS}
    expected["rmse"] = golden[0].double().square().mean().sqrt().item()
    for rank in range(3):
        computed = json.loads((tmp_path / f"{rank}.json").read_text())
        assert computed == pytest.approx(expected, rel=1e-6)
