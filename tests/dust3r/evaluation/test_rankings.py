"""Exact rankings and sketches: golden numbers, bounds that hold, parts that add up, limit cases."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.evaluation.measure import spread_doubt
from dust3r.evaluation.rankings import Columns, ranking_of_pixels
from dust3r.evaluation.sketch import BINS, COVERAGES, RankingSketch, bins_of
from dust3r.uncertainty.metrics import aurc, ause, sparsification_curve, spearman

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = json.loads((GOLDEN / "uq.json").read_text())
NUMBERS = {"aurc": "AURC", "ause": "AUSE", "rho": "spearman"}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "uq.npz") as stored:
        return stored["metric_err"], stored["metric_unc"]


KINDS = ("plain", "ties", "constant", "floor")


def made(kind, pixels, seed=0):
    """Errors and uncertainties (pixels,) of which some or all are equal."""
    rng = np.random.default_rng(seed)
    error = rng.random(pixels).astype(np.float32)
    uncertainty = {
        "plain": error + rng.random(pixels) - 1,
        "ties": rng.integers(0, 9, pixels),
        "constant": np.ones(pixels),
        "floor": np.maximum(1, error + rng.random(pixels)),
    }[kind].astype(np.float32)
    return error, uncertainty


def sketched(error, uncertainty, parts=1):
    metric = RankingSketch()
    for part in np.array_split(np.arange(len(error)), parts):
        metric.update_pixels(torch.from_numpy(error[part]), torch.from_numpy(uncertainty[part]))
    return metric.compute()


def test_exact_rankings_are_the_published_numbers(golden):
    found = ranking_of_pixels(*golden)
    for key, name in NUMBERS.items():
        assert found[key] == pytest.approx(PUBLISHED[name], rel=1e-6)
    columns = Columns()
    error, uncertainty = (columns.ordered(values) for values in golden)
    numbers = columns.numbers(error, uncertainty)
    assert numbers == pytest.approx({key: found[key] for key in NUMBERS}, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_rankings_share_ties_as_the_metrics_do(kind):
    error, uncertainty = made(kind, 500)
    found = ranking_of_pixels(error, uncertainty)
    tensors = torch.from_numpy(error), torch.from_numpy(uncertainty)
    for key, function in (("aurc", aurc), ("ause", ause), ("rho", spearman)):
        expected = float(function(*tensors))
        assert found[key] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    curve = sparsification_curve(*tensors, n_bins=100)[1].flip(0)
    np.testing.assert_allclose(found["risk"], curve, rtol=1e-5)


def test_equal_columns_of_an_image_are_sorted_once():
    columns = Columns()
    error, uncertainty = made("plain", 50)
    assert columns.ordered(error) is columns.ordered(error.copy())
    assert columns.ordered(error) is not columns.ordered(uncertainty)
    np.testing.assert_array_equal(columns.ordered(-error).values, np.sort(-error))


def test_sketches_are_within_their_stated_bounds_of_the_published_numbers(golden):
    found = sketched(*golden)
    for key, name in NUMBERS.items():
        assert abs(found[key] - PUBLISHED[name]) <= found[f"{key}_bound"]
    # Far closer than what can be promised.
    assert found["aurc"] == pytest.approx(PUBLISHED["AURC"], rel=1e-4)
    assert found["ause"] == pytest.approx(PUBLISHED["AUSE"], rel=1e-3)
    assert found["rho"] == pytest.approx(PUBLISHED["spearman"], abs=1e-3)
    assert found["aurc_bound"] < 0.005 * PUBLISHED["AURC"]
    assert found["ause_bound"] < 0.05 * PUBLISHED["AUSE"]
    assert found["rho_bound"] < 0.02


@pytest.mark.parametrize("kind", ["wide", "narrow", "ordered", "signed", "against"])
def test_bounds_hold_whatever_the_distribution(kind):
    rng = np.random.default_rng(1)
    error = np.exp(rng.normal(0, 1.5, 3000)).astype(np.float32)
    uncertainty = {
        "wide": error * np.exp(rng.normal(0, 4, 3000)),
        "narrow": 1 + 1e-4 * error,
        "ordered": error,
        "signed": rng.normal(0, 1, 3000) - 1 / error,
        "against": 1 / error,
    }[kind].astype(np.float32)
    exact, found = ranking_of_pixels(error, uncertainty), sketched(error, uncertainty)
    for key in NUMBERS:
        assert abs(found[key] - exact[key]) <= found[f"{key}_bound"] + 1e-6


def test_parts_add_up_and_units_do_not_matter(golden):
    error, uncertainty = golden
    whole, parts = sketched(error, uncertainty), sketched(error, uncertainty, parts=7)
    scaled = sketched(error, 16 * uncertainty)
    for key in NUMBERS:
        assert parts[key] == pytest.approx(whole[key], rel=1e-12)
        assert scaled[key] == pytest.approx(whole[key], rel=1e-12)


def test_curves_of_both_agree_and_begin_and_end_right(golden):
    exact, found = ranking_of_pixels(*golden), sketched(*golden)
    np.testing.assert_allclose(found["risk"], exact["risk"], rtol=5e-3)
    np.testing.assert_allclose(found["oracle_risk"], exact["oracle_risk"], rtol=5e-3)
    assert exact["risk"][-1] == pytest.approx(golden[0].mean(), rel=1e-6)
    ordered = golden[0][np.argsort(golden[1])][: round(COVERAGES[9] * len(golden[0]))]
    assert exact["risk"][9] == pytest.approx(ordered.mean(dtype=float), rel=1e-6)
    assert (np.diff(exact["oracle_risk"]) > 0).all()


def test_bins_have_the_order_of_their_values():
    values = np.array([-np.inf, -3, -1e-30, -0.0, 0.0, 1e-30, 0.5, 0.51, 3, np.inf], np.float32)
    places = bins_of(values)
    assert (np.diff(places) >= 0).all() and places.min() >= 0 and places.max() < BINS
    assert places[3] == places[4] and places[6] < places[7]


def test_confidences_just_above_one_are_told_apart():
    confidence = torch.tensor([0.5, 1.0, 1 + 2**-23, 1 + 2**-20, 1.001, 1.002, 30.0])
    doubt = spread_doubt(confidence)
    assert (doubt.diff() < 0).all()
    assert len(set(bins_of(doubt.numpy()))) == len(doubt)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_pixels_or_without_order():
    empty = RankingSketch().compute()
    assert empty["pixels"] == 0 and np.isnan([empty["aurc"], empty["ause"], empty["rho"]]).all()
    constant = sketched(np.linspace(0.1, 1, 50, dtype=np.float32), np.ones(50, np.float32))
    assert constant["aurc"] == pytest.approx(0.55, rel=1e-6) and np.isnan(constant["rho"])
