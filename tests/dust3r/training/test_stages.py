"""Stages: what trains, on which terms, and the published numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.training.stages import STAGES, LossWeights, StageRun, stage_name

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = {
    "enc_embed_dim": 24,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 4,
    "dec_num_heads": 2,
    "dpt_dim": 16,
}


def no_criterion(view1, view2, pred1, pred2):
    return torch.zeros(()), {}


def model(head_type="dpt_uq_feat", **kwargs):
    return AsymmetricCroCo3DStereo(head_type=head_type, **SMALL, **kwargs)


def trained_parts(net):
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    return {part for name in names for part in name.split(".") if part.startswith("depth_")}, names


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("feat", 1), {"depth_mean_head"}),
        (("feat", 2), {"depth_mean_head", "depth_evi_head_feat"}),
        (("geom", None, True), {"depth_evi_head"}),
    ],
)
def test_stages_train_their_heads_alone(arguments, parts):
    net = model()
    StageRun(stage_name(*arguments), net, no_criterion, LossWeights())
    found, names = trained_parts(net)
    assert found == parts
    assert all(set(name.split(".")) & parts for name in names)


def test_geometry_stage_trains_what_the_model_does_not_freeze():
    net = model("dpt_uq", freeze="encoder")
    StageRun("geom", net, no_criterion, LossWeights())
    _, names = trained_parts(net)
    assert not any(name.startswith(("enc_", "patch_embed")) for name in names)
    assert any(name.startswith("dec_blocks2") for name in names)
    assert any("depth_evi_head" in name for name in names)


def test_frozen_parts_are_in_eval_mode_and_have_no_graph():
    net = model()
    run = StageRun("feat, phase 1", net, no_criterion, LossWeights())
    run.train_mode(net)
    assert net.downstream_head1.depth_mean_head.training
    assert not net.enc_blocks[0].training and not net.downstream_head1.dpt.training
    view = {"img": torch.zeros(1, 3, 32, 32), "true_shape": torch.tensor([[32, 32]])}
    prediction, _ = net(view, view)
    assert not prediction["pts3d"].requires_grad and not prediction["depth_var_feat"].requires_grad
    assert prediction["depth_mean_feat"].requires_grad


def test_published_numbers_of_all_stages():
    numbers = json.loads((GOLDEN / "uq.json").read_text())
    maps = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "uq.npz").items()}
    view = {"depthmap": maps["y"][:, 0], "valid_mask": maps["mask"]}
    prediction = {"depth_mean_feat": maps["mean_feat"]}
    for suffix in ("", "_feat"):
        for name in ("gamma", "nu", "alpha", "beta"):
            prediction[f"depth_{name}{suffix}"] = maps[f"{name}{suffix}"]
        nu, alpha, beta = (prediction[f"depth_{n}{suffix}"] for n in ("nu", "alpha", "beta"))
        prediction[f"depth_mu{suffix}"] = prediction[f"depth_gamma{suffix}"]
        prediction[f"depth_var{suffix}"] = beta * (1 + nu) / (nu * (alpha - 1))
    cases = {
        "stage1 geom lambda_uq=1 lambda_evi=1e-3": ("geom", LossWeights(uq=1, evi=1e-3)),
        "stage2 feat phase1 mean_gt=1 mean_distill=0.1": (
            "feat, phase 1",
            LossWeights(mean_gt=1, mean_distill=0.1),
        ),
        "stage3 feat phase2 evi=0.1 gt=1 md=1 vd=0.1": (
            "feat, phase 2",
            LossWeights(evi_feat=0.1, mean_gt=1, mean_distill=1, var_distill=0.1),
        ),
    }
    for case, (stage, weights) in cases.items():
        run = StageRun(stage, model(), no_criterion, weights)
        total, details = run.loss((view, view), (prediction, prediction))
        assert {k: v.item() for k, v in details.items()} == pytest.approx(numbers[case], rel=1e-4)
        expected = sum(w * details[t.name].item() for w, t in run.terms)
        assert total.item() == pytest.approx(expected, rel=1e-5)


def test_criterion_is_for_the_log_alone_when_features_train():
    net = model()
    image = torch.rand(1, 3, 32, 32)
    view = {"img": image, "true_shape": torch.tensor([[32, 32]])}
    view |= {"depthmap": torch.ones(1, 32, 32), "valid_mask": torch.ones(1, 32, 32).bool()}

    def criterion(view1, view2, pred1, pred2):
        value = pred1["depth_mean_feat"].square().mean() + 100
        return value, {"geometry": value.detach()}

    run = StageRun("feat, phase 1", net, criterion, LossWeights(mean_gt=1, mean_distill=0))
    total, details = run.loss((view, view), net(view, view))
    assert total.item() == pytest.approx(details["loss_mean_gt"].item())
    assert details["geometry"] > 99


def test_batch_without_a_valid_pixel_has_zero_terms_and_zero_gradients():
    net = model()
    view = {"img": torch.rand(1, 3, 32, 32), "true_shape": torch.tensor([[32, 32]])}
    view |= {"depthmap": torch.zeros(1, 32, 32), "valid_mask": torch.zeros(1, 32, 32).bool()}
    weights = LossWeights(evi_feat=0.1, mean_gt=1, mean_distill=1, var_distill=0.1)
    run = StageRun("feat, phase 2", net, no_criterion, weights)
    total, _ = run.loss((view, view), net(view, view))
    total.backward()
    assert total.item() == 0
    grads = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(g is not None and (g == 0).all() for g in grads)


@pytest.mark.parametrize("arguments", [("feat", 3), ("other", None), ("feat", 0), ("xyz", 2)])
def test_unknown_stage_lists_the_known_ones(arguments):
    with pytest.raises(ValueError, match="--uq_mode feat --phase 2"):
        stage_name(*arguments)


def test_what_a_model_keeps_frozen_stays_frozen():
    net = model(freeze="encoder")
    net.downstream_head1.depth_mean_head[0].bias.requires_grad_(False)
    StageRun("feat, phase 1", net, no_criterion, LossWeights())
    assert not net.downstream_head1.depth_mean_head[0].bias.requires_grad
    assert net.downstream_head2.depth_mean_head[0].bias.requires_grad


def test_missing_head_names_the_head_type_to_use():
    with pytest.raises(ValueError, match="depth_mean_head.*head_type='dpt_uq_feat'"):
        StageRun("feat, phase 1", model("dpt_uq"), no_criterion, LossWeights())
    with pytest.raises(ValueError, match="head_type='dpt_uq' or 'dpt_uq_feat'"):
        StageRun("geom", model("dpt"), no_criterion, LossWeights())


def test_uncertainty_heads_without_a_stage_are_an_error():
    with pytest.raises(ValueError, match="--uq_mode geom or --uq_mode feat"):
        StageRun("plain", model("dpt_uq"), no_criterion, LossWeights())


def test_all_weights_zero_is_an_error():
    run = StageRun("feat, phase 1", model(), no_criterion, LossWeights(mean_gt=0, mean_distill=0))
    with pytest.raises(ValueError, match="--lambda_"):
        run.loss(({}, {}), ({}, {}))


def test_every_stage_of_the_table_is_reachable():
    asked = [(None, None), ("geom", None), ("geom", None, True), ("feat", 1), ("feat", 2)]
    asked += [("xyz", None), ("hetero_xyz", None)]
    asked += [("xyz", None, False, True), ("hetero_xyz", 1, False, True)]
    assert {stage_name(*a) for a in asked} == set(STAGES)
