"""Evaluations of several seeds in one table: means, spreads, ratios to the reference."""

import json
import math

import pytest

from dust3r.evaluation.seed_figures import ratios_figure
from dust3r.evaluation.seeds import (
    Spread,
    over_seeds,
    overview,
    plain_rows,
    read_results,
    tables,
)


def ranked(aurc, ause, rho):
    """Over all pixels together, and within images a tenth of it."""
    pooled = {"aurc": aurc, "ause": ause, "rho": rho}
    return pooled | {f"{name}_image": value / 10 for name, value in pooled.items()}


def found(method, ause, benchmark="rooms", mae=0.2, depth=None, **more):
    ranking = ranked(2 * ause, ause, 0.5)
    targets = {"point": {"mae": mae, "rmse": mae, "own": ranking}}
    if depth is not None:
        against, own = ranked(1.0, 0.5, 0.1), ranked(1.0, depth, 0.5)
        targets["depth"] = {"mae": mae, "rmse": mae, "own": own, "conf": against}
    return {"benchmark": benchmark, "method": method, "targets": targets, **more}


RUNS = [
    [found("conf", 0.1), found("niw", 0.05, nll=1.0, calibration_error=0.2)],
    [found("niw", 0.07, nll=2.0, calibration_error=None)],
]


def row(rows, method, target="point", benchmark="rooms"):
    (one,) = (r for r in rows if (r.method, r.target, r.benchmark) == (method, target, benchmark))
    return one


def test_spread_is_the_sample_deviation_and_a_single_seed_has_none():
    assert Spread.of([1.0, 3.0]) == Spread(2.0, math.sqrt(2), 2)
    single = Spread.of([4.0])
    assert (single.mean, single.count) == (4.0, 1) and math.isnan(single.deviation)
    assert str(single) == "4" and str(Spread.of([1.0, 3.0])) == "2 ± 1.4"


def test_ratios_are_to_the_reference_even_where_only_the_first_seed_has_it():
    rows = over_seeds(RUNS, "conf")
    niw = row(rows, "niw")
    assert niw["ause"].mean == pytest.approx(0.06) and niw["ause"].count == 2
    assert niw["ause_ratio"].mean == pytest.approx(0.6)
    assert niw["ause_ratio"].deviation == pytest.approx(math.sqrt(2) / 10)
    assert niw["aurc_ratio"].mean == pytest.approx(0.6) and niw["mae_ratio"].mean == 1
    assert row(rows, "conf")["ause_ratio"].mean == 1


def test_rankings_within_images_are_divided_by_those_within_images():
    niw = row(over_seeds(RUNS, "conf"), "niw")
    assert niw["ause_image"].mean == pytest.approx(0.006)
    assert niw["ause_image_ratio"].mean == pytest.approx(0.6)
    assert niw["rho_image"].mean == pytest.approx(0.05)


def test_numbers_that_are_not_finite_count_for_no_seed():
    niw = row(over_seeds(RUNS, "conf"), "niw")
    assert niw["nll"].count == 2
    assert niw["calibration_error"] == Spread.of([0.2]) or niw["calibration_error"].count == 1
    assert row(over_seeds(RUNS, "conf"), "conf")["nll"] is None


def test_own_depth_is_compared_with_confidence_on_the_same_errors():
    rows = over_seeds([[found("conf", 0.1), found("feat", 0.2, depth=0.25)]], "conf")
    assert row(rows, "feat", "depth")["ause_ratio"].mean == pytest.approx(0.5)
    assert row(rows, "feat")["ause_ratio"].mean == pytest.approx(2.0)


def test_a_missing_reference_is_named():
    with pytest.raises(ValueError, match="'conf' on rooms"):
        over_seeds([[found("niw", 0.1)]], "conf")


def test_tables_have_every_method_and_an_empty_cell_for_what_is_not_there():
    runs = [[*RUNS[0], found("conf", 0.2, "kitchen")], RUNS[1]]
    rows = over_seeds(runs, "conf")
    text = tables(rows)
    assert text.index("## rooms") < text.index("## kitchen")
    assert "0.06 ± 0.014" in text and "1.5 ± 0.71" in text
    lines = overview(rows, "ause_ratio").splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["method", "rooms", "kitchen"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["niw", "0.6 ± 0.14", ""]
    nested = plain_rows(rows)
    assert nested[1]["ause"]["count"] == 2 and nested[1]["method"] == "niw"


def test_results_come_from_folders_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(json.dumps({"results": RUNS[0]}))
    assert read_results([tmp_path / "a"]) == [RUNS[0]]
    with pytest.raises(FileNotFoundError, match="no results.json"):
        read_results([tmp_path / "b"])


def test_bars_stand_at_the_ratios():
    axes = ratios_figure(over_seeds(RUNS, "conf"), "ause_ratio", "AUSE").axes[0]
    assert sorted(round(bar.get_height(), 3) for bar in axes.patches) == [0.6, 1.0]
