"""Heads that state distributions of points: outputs, refinement, training, weights."""

import json
import math

import pytest
import torch

import mast3r.model  # noqa: F401  (registers what specifications name)
from dust3r.heads import HEADS
from dust3r.training import checkpoint
from dust3r.training.cli import main
from dust3r.training.stages import LossWeights, StageRun
from dust3r.uncertainty.families import uncertainty
from dust3r.uncertainty.sampling import MonteCarloDropout
from dust3r.utils.spec import LOSSES, MODELS, build
from mast3r.heads.residual_gated import ResidualGated

WIDTHS = (
    "enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, "
    "dec_num_heads=2, dpt_dim=16, desc_mlp_ratio=1"
)
FAMILIES = {"evi": "xyz", "niw": "niw", "hetero": "hetero"}
GATES = ("", "+residual_gated", "+residual_gated_bilinear")
CRITERION = "ConfLoss(Regr3D(L21, norm_mode='?avg_dis'), alpha=0.2)"


def spec(kind="niw", gate="", more=""):
    return (
        f"AsymmetricMASt3R(head_type='catmlp+dpt+xyz_{kind}_dpt{gate}', "
        f"output_mode='pts3d+desc8', two_confs=True, img_size=(32, 32), {WIDTHS}{more})"
    )


def model(kind="niw", gate=""):
    torch.manual_seed(0)
    return build(spec(kind, gate), MODELS)


@pytest.fixture
def views():
    images = torch.rand(2, 1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return [{"img": image} for image in images]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("gate", GATES)
def test_every_head_predicts_its_family_around_its_points(views, kind, gate):
    with torch.no_grad():
        first, second = model(kind, gate)(*views)
    for prediction, key in ((first, "pts3d"), (second, "pts3d_in_other_view")):
        assert torch.equal(prediction["xyz_mu"].movedim(1, -1), prediction[key])
        assert prediction["xyz_var"].shape == (1, 3, 32, 48)
        said = uncertainty(prediction)
        assert said.family == FAMILIES[kind] and (said.total > 0).all()
        assert ("rg_gate" in prediction) == bool(gate)
        assert prediction["desc"].shape == (1, 32, 48, 8)


@pytest.mark.parametrize("gate", GATES[1:])
def test_refinement_starts_as_none_and_is_gate_times_delta(views, gate):
    net = model(gate=gate).eval()
    with torch.no_grad():
        prediction, _ = net(*views)
        assert torch.equal(prediction["pts3d"], prediction["pts3d_raw"])
        torch.nn.init.normal_(net.downstream_head1.delta_mlp.fc2.weight)
        prediction, _ = net(*views)
    assert prediction["rg_gate"].shape == (1, 1, 32, 48)
    assert prediction["rg_delta"].shape == (1, 3, 32, 48)
    step = (prediction["rg_gate_logits"].sigmoid() * prediction["rg_delta"]).movedim(1, -1)
    assert step.abs().max() > 0
    torch.testing.assert_close(prediction["pts3d"], prediction["pts3d_raw"] + step)
    assert torch.equal(prediction["pts3d"], prediction["pts3d_refined"])


def test_portrait_images_of_a_mixed_batch_are_transposed():
    net = build(spec("niw", "+residual_gated", ", patch_embed_cls='ManyAR_PatchEmbed'"), MODELS)
    shapes = torch.tensor([[32, 48], [48, 32]])
    view = {"img": torch.rand(2, 3, 32, 48), "true_shape": shapes}
    with torch.no_grad():
        prediction, _ = net(view, view)
    assert prediction["xyz_niw_L"].shape == (2, 6, 32, 48)
    torch.testing.assert_close(prediction["xyz_mu"].movedim(1, -1), prediction["pts3d"])


def test_a_gate_of_the_bilinear_mode_is_one_value_per_token():
    gated = ResidualGated("bilinear", patch_size=4)
    for post in (gated.gate_post, gated.delta_post):
        torch.nn.init.dirac_(post.weight, groups=post.groups)
        torch.nn.init.zeros_(post.bias)
    points = torch.zeros(1, 8, 12, 3)
    tokens = torch.full((1, 6, 1), 0.5)
    deltas = torch.tensor([1.0, 2.0, 3.0]).expand(1, 6, 3)
    made = gated(points, tokens, deltas, (2, 3))
    expected = (torch.tensor(0.5).sigmoid() * torch.tensor([1.0, 2.0, 3.0])).expand(1, 8, 12, 3)
    torch.testing.assert_close(made["pts3d"].detach(), expected)
    assert gated.values_per_token == 1 and gated.gate_post.weight.requires_grad


def test_unused_weights_are_kept_and_frozen():
    gated = ResidualGated("pixel_shuffle", patch_size=16)
    assert gated.values_per_token == 256
    assert not any(p.requires_grad for p in gated.parameters())
    with pytest.raises(ValueError, match="pixel_shuffle, bilinear, not 'nearest'"):
        ResidualGated("nearest", 16)


def test_heads_on_points_are_registered_with_and_without_a_gate():
    for kind in FAMILIES:
        for gate in GATES:
            assert f"catmlp+dpt+xyz_{kind}_dpt{gate}" in HEADS


def test_dropout_keeps_what_the_head_says_of_noise(views):
    with torch.no_grad():
        prediction, _ = MonteCarloDropout(model("hetero").eval(), samples=3, rate=0.2)(*views)
    said = uncertainty(prediction)
    assert said.family == "mcd" and (said.aleatoric > 0).all() and (said.epistemic > 0).all()


@pytest.mark.parametrize("align", ["none", "sim3"])
@pytest.mark.parametrize(("kind", "stage"), [("niw", "xyz"), ("hetero", "hetero_xyz")])
def test_geometry_too_trains_all_that_the_loss_reaches(kind, stage, align):
    net = model(kind)
    weights = LossWeights(align=align)
    run = StageRun(f"{stage}, geometry too", net, build(CRITERION, LOSSES), weights)
    total, _ = run.loss(*pair_of(net))
    total.backward()
    for name, parameter in net.named_parameters():
        if "head_local_features" in name:
            assert not parameter.requires_grad
        elif parameter.requires_grad:
            # Processes wait for the gradient of all that trains.
            assert parameter.grad is not None, name
    assert net.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "stage", "parts"),
    [
        ("evi", "xyz", {"dpt_xyz_evi", "gate_mlp", "delta_mlp"}),
        ("niw", "xyz", {"dpt_xyz_niw", "gate_mlp", "delta_mlp"}),
        ("hetero", "hetero_xyz", {"dpt_xyz_logvar", "gate_mlp", "delta_mlp"}),
    ],
)
def test_only_the_heads_of_the_stage_train_and_all_of_them_do(kind, stage, parts):
    net = model(kind, "+residual_gated")
    run = StageRun(stage, net, build(CRITERION, LOSSES), LossWeights(gate_tv=0.1))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trained} == parts
    total, details = run.loss(*pair_of(net))
    total.backward()
    # The MLP of the deltas has none behind its last layer, which starts at zero.
    behind = {name for name in trained if "delta_mlp.fc1" in name or "gate_mlp.fc" in name}
    for name, parameter in net.named_parameters():
        if name in trained:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert name in behind or parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None
    assert {"loss_gate_tv", "conf_loss_1"} <= details.keys()


def pair_of(net):
    """Views with ground truth and the predictions of a network in training."""
    random = torch.Generator().manual_seed(1)
    views = []
    for _ in range(2):
        view = {"img": torch.rand(1, 3, 32, 48, generator=random) * 2 - 1}
        view |= {"pts3d": torch.rand(1, 32, 48, 3, generator=random) + 1}
        view |= {"camera_pose": torch.eye(4)[None], "is_metric_scale": torch.tensor([True])}
        views.append(view | {"valid_mask": torch.ones(1, 32, 48, dtype=torch.bool)})
    return tuple(views), net(*views)


def test_the_weight_of_the_variation_warms_up():
    net = model("niw", "+residual_gated")
    weights = LossWeights(gate_tv=100.0, gate_tv_warmup_steps=10)
    run = StageRun("xyz", net, build(CRITERION, LOSSES), weights)
    views, predictions = pair_of(net)

    class Progress:
        step = 0

    progress = Progress()
    run.follow(progress)
    totals = {}
    for progress.step in (0, 1, 10, 50):
        totals[progress.step], details = run.loss(views, predictions)
    variation = details["loss_gate_tv"]
    torch.testing.assert_close(totals[1] - totals[0], 10 * variation, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(totals[10] - totals[0], 100 * variation, rtol=1e-3, atol=1e-4)
    assert totals[50] == totals[10]


def test_the_evidence_penalty_adds_to_the_loss():
    net = model("niw")
    views, predictions = pair_of(net)
    criterion = build(CRITERION, LOSSES)
    losses = [
        StageRun("xyz", net, criterion, LossWeights(evi_xyz=w)).loss(views, predictions)[0]
        for w in (0.0, 1.0)
    ]
    assert losses[1] > losses[0]


@pytest.mark.parametrize(
    ("stage", "kind", "message"),
    [
        ("xyz", "hetero", r"dpt_xyz_evi or dpt_xyz_niw.*xyz_evi_dpt' or 'catmlp.dpt.xyz_niw_dpt'"),
        ("hetero_xyz", "niw", "dpt_xyz_logvar.*head_type='catmlp.dpt.xyz_hetero_dpt'"),
        ("plain", "niw", "--uq_mode xyz or --uq_mode hetero_xyz"),
    ],
)
def test_a_stage_without_its_head_names_the_head_type(stage, kind, message):
    with pytest.raises(ValueError, match=message):
        StageRun(stage, model(kind), build(CRITERION, LOSSES), LossWeights())


def test_a_criterion_that_says_nothing_of_scale_is_told():
    with pytest.raises(ValueError, match="has none: add one to --train_criterion"):
        StageRun("xyz", model(), torch.nn.Identity(), LossWeights())


@pytest.mark.usefixtures("offline", "one_thread")
@pytest.mark.parametrize(
    ("kind", "mode", "term"),
    [("niw", "xyz", "loss_uq_xyz"), ("evi", "xyz", "loss_uq_xyz")]
    + [("hetero", "hetero_xyz", "loss_hetero_xyz")],
)
def test_training_from_plain_weights(write_tree, tmp_path, kind, mode, term):
    tree = write_tree(frames={"a": 7, "b": 5})
    gate = "+residual_gated"
    torch.manual_seed(0)
    plain = spec(kind).replace(f"+xyz_{kind}_dpt", "")
    start = tmp_path / "plain.pth"
    torch.save({"model": build(plain, MODELS).state_dict()}, start)
    status = main(
        [
            "--train_dataset", f"8 @ ScanNetpp(split='train', ROOT='{tree}', resolution=32)",
            "--train_criterion", CRITERION,
            "--model", spec(kind, gate, ", patch_embed_cls='ManyAR_PatchEmbed'"),
            "--pretrained", str(start),
            "--uq_mode", mode,
            "--lambda_gate_tv", "0.1", "--gate_tv_warmup_steps", "2", "--lambda_evi_xyz", "0.01",
            "--batch_size", "2", "--epochs", "1", "--max_steps", "3", "--num_workers", "0",
            "--lr", "1e-3", "--output_dir", str(tmp_path / "o"),
        ]
    )  # fmt: skip
    assert status == 0
    (entry,) = (json.loads(line) for line in (tmp_path / "o/log.txt").read_text().splitlines())
    assert entry["skipped_updates"] == 0 and entry["step"] == 3
    assert all(math.isfinite(entry[f"train_{n}"]) for n in (term, "loss_gate_tv", "conf_loss_1"))
    before = checkpoint.load_file(start)["model"]
    after = checkpoint.load_file(tmp_path / "o/checkpoint-final.pth")["model"]
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert any("delta_mlp" in n and w.abs().max() > 0 for n, w in after.items() if "fc2" in n)
