"""Terms of the uncertainty stages: golden numbers, masks, gradients, failures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.losses import (
    EvidentialTerm,
    MeanToDepth,
    MeanToTeacher,
    VarianceToTeacher,
    average_over_views,
)

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = json.loads((GOLDEN / "uq.json").read_text())
PARAMETERS = ("gamma", "nu", "alpha", "beta")
STAGES = {
    "stage1 geom lambda_uq=1 lambda_evi=1e-3": (EvidentialTerm("", 1e-3),),
    "stage2 feat phase1 mean_gt=1 mean_distill=0.1": (MeanToDepth(), MeanToTeacher()),
    "stage3 feat phase2 evi=0.1 gt=1 md=1 vd=0.1": (
        EvidentialTerm("_feat", 1e-3),
        MeanToDepth(),
        MeanToTeacher(),
        VarianceToTeacher("linear"),
    ),
}
TERMS = (*STAGES["stage3 feat phase2 evi=0.1 gt=1 md=1 vd=0.1"], EvidentialTerm("", 0.1))
TERMS += (VarianceToTeacher("log"),)


@pytest.fixture
def golden():
    """The view of the golden stages and its prediction, every map a leaf."""
    with np.load(GOLDEN / "uq.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    pred = {"depth_mean_feat": arrays["mean_feat"]}
    for suffix in ("", "_feat"):
        nig = NormalInverseGamma(*(arrays[name + suffix] for name in PARAMETERS))
        pred |= {f"depth_{name}{suffix}": getattr(nig, name) for name in PARAMETERS}
        pred |= {f"depth_mu{suffix}": nig.mean, f"depth_var{suffix}": nig.variance}
    pred = {name: value.clone().requires_grad_() for name, value in pred.items()}
    return {"depthmap": arrays["y"][:, 0], "valid_mask": arrays["mask"]}, pred


@pytest.mark.parametrize("stage", STAGES)
def test_stages_agree_with_the_published_numbers(golden, stage):
    view, pred = golden
    got = {
        term.name: average_over_views(term, (view, view), (pred, pred)).item()
        for term in STAGES[stage]
    }
    assert got == pytest.approx(PUBLISHED[stage], rel=1e-4)


def test_views_weigh_the_same_however_many_pixels_are_valid(golden):
    view, pred = golden
    term = MeanToDepth()
    few = view | {"valid_mask": torch.zeros_like(view["valid_mask"])}
    few["valid_mask"][0, 3, 4] = True
    expected = (term(view, pred) + term(few, pred)) / 2
    assert average_over_views(term, (view, few), (pred, pred)) == expected
    error = (pred["depth_mean_feat"][0, 0, 3, 4] - view["depthmap"][0, 3, 4]).item()
    assert term(few, pred).item() == pytest.approx(error**2)


@pytest.mark.parametrize("term", TERMS)
def test_no_valid_pixel_gives_zero_with_zero_gradients(golden, term):
    view, pred = golden
    nothing = {"depthmap": view["depthmap"], "valid_mask": torch.zeros_like(view["valid_mask"])}
    value = term(nothing, pred)
    value.backward()
    assert value.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in pred.values())


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_depth_that_is_not_finite_counts_as_invalid(golden, term, bad):
    view, pred = golden
    depth, mask = view["depthmap"].clone(), view["valid_mask"].clone()
    depth[:, :5], mask[:, :5] = bad, False
    value = term(view | {"depthmap": depth}, pred)
    assert value == term(view | {"valid_mask": mask}, pred)
    value.backward()
    grads = [p.grad for p in pred.values() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    ("term", "trained"),
    [
        (EvidentialTerm("", 0.1), {f"depth_{p}" for p in PARAMETERS}),
        (EvidentialTerm("_feat", 0.1), {f"depth_{p}_feat" for p in PARAMETERS}),
        (MeanToDepth(), {"depth_mean_feat"}),
        (MeanToTeacher(), {"depth_mean_feat"}),
        (VarianceToTeacher("linear"), {"depth_var_feat"}),
        (VarianceToTeacher("log"), {"depth_var_feat"}),
    ],
)
def test_only_the_student_learns(golden, term, trained):
    view, pred = golden
    term(view, pred).backward()
    assert {name for name, value in pred.items() if value.grad is not None} == trained


def test_log_space_compares_ratios_of_variances(golden):
    view, pred = golden
    term = VarianceToTeacher("log")
    scaled = {**pred, "depth_var_feat": pred["depth_var"] * 100}
    assert term(view, scaled).item() == pytest.approx(np.log(100), rel=1e-5)
    units = {name: pred[name] * 1e6 for name in ("depth_var", "depth_var_feat")}
    assert term(view, pred | units).item() == pytest.approx(term(view, pred).item(), rel=1e-4)


def test_bf16_predictions_are_widened(golden):
    view, pred = golden
    half = {name: value.bfloat16() for name, value in pred.items()}
    for term in TERMS:
        with torch.autocast("cpu", torch.bfloat16):
            value = term(view, half)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(term(view, pred).item(), rel=0.05)


def test_names_tell_the_two_evidences_apart():
    assert EvidentialTerm("", 0).name == "loss_uq_geom"
    assert EvidentialTerm("_feat", 0).name == "loss_uq_feat"


def test_wrong_choices_are_explained():
    with pytest.raises(ValueError, match="suffix is 'feat'; use '' for GeoUQ, '_feat'"):
        EvidentialTerm("feat", 0.1)
    with pytest.raises(ValueError, match="'linear' or 'log', not 'sqrt'"):
        VarianceToTeacher("sqrt")


@pytest.mark.parametrize(
    ("term", "key"),
    [
        (EvidentialTerm("_feat", 0.1), "depth_alpha_feat"),
        (MeanToTeacher(), "depth_mu"),
        (VarianceToTeacher(), "depth_var_feat"),
    ],
)
def test_a_missing_map_is_named(golden, term, key):
    view, pred = golden
    del pred[key]
    with pytest.raises(ValueError, match=key):
        term(view, pred)


def test_a_map_of_another_shape_is_explained(golden):
    view, pred = golden
    pred["depth_mean_feat"] = pred["depth_mean_feat"][:, 0]
    with pytest.raises(ValueError, match=r"depth_mean_feat is \(2, 16, 20\).* \(2, 1, 16, 20\)"):
        MeanToDepth()(view, pred)
