"""MASt3R's criteria: golden numbers, limits, invariances, empty and broken inputs."""

import math

import numpy as np
import pytest
import torch
from golden_losses import GOLDEN, assert_agrees, cases_of
from torch.nn import functional as F

import mast3r.losses
from dust3r.utils.spec import LOSSES, build
from mast3r.losses import (
    L21,
    APLoss,
    ConfLoss,
    ConfMatchingLoss,
    InfoNCE,
    MatchingLoss,
    Regr3D,
    at,
)

CASES = cases_of("mast3r")
CRITERIA = [
    *(InfoNCE(mode=mode, temperature=0.05) for mode in InfoNCE.MODES),
    APLoss(nq=20, min=-1),
    APLoss(nq=20, min=-1, euc=True),
    APLoss(),
]


@pytest.fixture
def golden():
    """view1, view2, pred1, pred2 of the golden cases."""
    with np.load(GOLDEN / "losses.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    views, preds = [], []
    for i, points in ((1, "pts3d"), (2, "pts3d_in_other_view")):
        view = {
            key: arrays[f"view{i}.{key}"]
            for key in ("camera_pose", "pts3d", "valid_mask", "sky_mask", "corres")
        }
        views.append(view | {key: arrays[key] for key in ("is_metric_scale", "valid_corres")})
        pred = {key: arrays[f"pred{i}.{key}"] for key in ("conf", "desc", "desc_conf")}
        pred |= {points: arrays[f"pred{i}.pts"]}
        preds.append({key: value.requires_grad_() for key, value in pred.items()})
    return *views, *preds


def descriptors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, 24, generator=generator), dim=-1)


def matched(maps1, maps2, valid=None, conf=1.0):
    """A batch whose pixel n of one image matches pixel n of the other, in reading order."""
    batch, height, width, _ = maps1.shape
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    corres = torch.stack([u, v], -1).reshape(1, -1, 2).int().expand(batch, -1, -1)
    valid = torch.ones(corres.shape[:2], dtype=torch.bool) if valid is None else valid
    view = {"corres": corres, "valid_corres": valid}
    confidence = torch.full(maps1.shape[:3], conf)
    preds = [{"desc": maps, "desc_conf": confidence.clone()} for maps in (maps1, maps2)]
    return view, dict(view), *preds


def test_golden_file_has_the_five_cases():
    assert len(CASES) == 5


@pytest.mark.parametrize("text", CASES)
def test_agrees_with_the_published_numbers(golden, text):
    assert_agrees(text, CASES[text], golden)


def test_one_language_serves_both_packages():
    import dust3r.losses

    assert mast3r.losses.Regr3D is dust3r.losses.Regr3D is LOSSES.get("Regr3D")
    # Pre-training and DELTAS register their own, which these modules do not know.
    others = ("dust3r.training.pretrain", "deltas.")
    names = [name for name in LOSSES if not LOSSES.get(name).__module__.startswith(others)]
    assert names and all(hasattr(mast3r.losses, name) for name in names)


@pytest.mark.parametrize("text", CASES)
def test_a_criterion_says_what_it_is(text):
    criterion = build(text, LOSSES)
    assert repr(build(repr(criterion), LOSSES)) == repr(criterion)


class TestMetricScale:
    @staticmethod
    def scaled(golden, factor):
        pred1, pred2 = (
            {k: v * factor if k.startswith("pts3d") else v for k, v in p.items()}
            for p in golden[2:]
        )
        return *golden[:2], pred1, pred2

    def loss(self, golden, is_metric, factor=1.0, **options):
        views = [v | {"is_metric_scale": torch.full((2,), is_metric)} for v in golden[:2]]
        criterion = Regr3D(L21, norm_mode="?avg_dis", **options)
        return criterion(*self.scaled((*views, *golden[2:]), factor))[0].item()

    def test_the_scale_of_a_prediction_matters_for_metric_data_alone(self, golden):
        assert self.loss(golden, False, 3.0) == pytest.approx(self.loss(golden, False), rel=1e-5)
        assert self.loss(golden, True, 3.0) > 1.5 * self.loss(golden, True)

    def test_scenes_too_large_are_not_taken_as_metric(self, golden):
        plain = self.loss(golden, False, 3.0)
        assert self.loss(golden, True, 3.0, max_metric_scale=0.1) == pytest.approx(plain, rel=1e-6)
        far = self.loss(golden, True, 3.0, max_metric_scale=1e6)
        assert far == pytest.approx(self.loss(golden, True, 3.0), rel=1e-6)

    def test_errors_of_metric_data_are_in_metres_with_gt_scale(self, golden):
        views = [v | {"is_metric_scale": torch.tensor([True, True])} for v in golden[:2]]
        views = [{k: v for k, v in view.items() if k != "sky_mask"} for view in views]
        metres = Regr3D(L21, norm_mode="?avg_dis", gt_scale=True)(*views, *golden[2:])[0]
        plain = Regr3D(L21, norm_mode=None)(*views, *golden[2:])[0]
        assert metres.item() == pytest.approx(plain.item(), rel=1e-5)

    def test_views_that_do_not_tell_are_explained(self, golden):
        views = [{k: v for k, v in g.items() if k != "is_metric_scale"} for g in golden[:2]]
        with pytest.raises(ValueError, match="needs 'is_metric_scale' in view 1"):
            Regr3D(L21, norm_mode="?avg_dis")(*views, *golden[2:])

    def test_a_fitted_scale_is_the_best_one(self, golden):
        fitted = self.loss(golden, False, opt_fit_gt=True)
        assert fitted < self.loss(golden, False)
        assert self.loss(golden, False, 7.0, opt_fit_gt=True) == pytest.approx(fitted, rel=1e-4)


class TestSky:
    def test_it_costs_its_value_wherever_it_is_and_lowers_confidence(self, golden):
        view, other = (v | {"valid_mask": torch.zeros_like(v["valid_mask"])} for v in golden[:2])
        for pred in golden[2:]:
            pred["conf"] = torch.full_like(pred["conf"], 5.0).requires_grad_()
        criterion = ConfLoss(Regr3D(L21, sky_loss_value=3.0), alpha=0.2)
        value, details = criterion(view, other, *golden[2:])
        assert details["Regr3D_pts3d_1"] == pytest.approx(3.0)
        value.backward()
        sky = view["sky_mask"]
        assert (golden[2]["conf"].grad[sky] > 0).all() and sky.any()
        assert (golden[2]["conf"].grad[~sky] == 0).all()
        assert not golden[2]["pts3d"].grad.any()

    def test_zero_leaves_it_out(self, golden):
        without = [{k: v for k, v in g.items() if k != "sky_mask"} for g in golden[:2]]
        value = Regr3D(L21, sky_loss_value=0)(*golden)[0].item()
        assert value == Regr3D(L21)(*without, *golden[2:])[0].item()


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
class TestEveryMatchingCriterion:
    def test_perfect_descriptors_cost_nothing_and_random_ones_much(self, criterion):
        # In 24 dimensions 24 pixels can be told apart exactly, with neighbours at right angles.
        perfect = torch.eye(24).reshape(1, 4, 6, 24)
        loss, _ = MatchingLoss(criterion)(*matched(perfect, perfect))
        floor = math.log(24) if getattr(criterion, "mode", None) == "all" else 0
        assert loss.item() == pytest.approx(floor, abs=1e-4)
        random, _ = MatchingLoss(criterion)(*matched(perfect, descriptors(1, 4, 6)))
        assert random > loss + 0.3

    def test_the_order_of_correspondences_does_not_matter(self, criterion):
        batch = matched(descriptors(2, 4, 6), descriptors(2, 4, 6, seed=1))
        batch[0]["valid_corres"][:, ::3] = False
        order = torch.randperm(24)
        shuffled = [{k: v[:, order] for k, v in view.items()} for view in batch[:2]]
        value = MatchingLoss(criterion)(*batch)[0].item()
        other = MatchingLoss(criterion)(*shuffled, *batch[2:])[0].item()
        assert other == pytest.approx(value, rel=1e-5)

    def test_nothing_valid_gives_zero_with_zero_gradients(self, criterion):
        maps = [descriptors(2, 4, 6, seed=s).requires_grad_() for s in (0, 1)]
        batch = matched(*maps, valid=torch.zeros(2, 24, dtype=torch.bool))
        value, details = ConfMatchingLoss(MatchingLoss(criterion), alpha=10.0)(*batch)
        assert value.item() == 0 and details["MatchingLoss"] == 0
        if value.requires_grad:
            value.backward()
            assert all(m.grad is None or not m.grad.any() for m in maps)

    def test_distractors_make_it_harder(self, criterion):
        torch.manual_seed(0)
        batch = matched(descriptors(1, 16, 24), descriptors(1, 16, 24))
        few = [{k: v[:, :8] for k, v in view.items()} for view in batch[:2]]
        noisy = {"desc": F.normalize(batch[3]["desc"] + 0.3 * torch.randn(1, 16, 24, 24), dim=-1)}
        alone = MatchingLoss(criterion)(*few, batch[2], noisy)[0]
        padded = MatchingLoss(criterion, negatives_padding=300)(*few, batch[2], noisy)[0]
        assert padded > alone


@pytest.mark.parametrize("criterion", CRITERIA[:-1], ids=repr)
def test_training_lowers_the_loss_of_random_descriptors(criterion):
    raw = [descriptors(1, 4, 6, seed=s).requires_grad_() for s in (0, 1)]
    optimizer = torch.optim.Adam(raw, lr=0.05)
    losses = []
    for _ in range(60):
        maps = [F.normalize(r, dim=-1) for r in raw]
        loss = MatchingLoss(criterion)(*matched(*maps))[0]
        optimizer.zero_grad()
        loss.backward()
        assert all(r.grad.isfinite().all() for r in raw)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_blocks_are_taken_among_themselves_and_cover_all():
    first, second = descriptors(2, 4, 6), descriptors(2, 4, 6, seed=1)
    valid = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)) > 0.3
    batch = matched(first, second, valid)
    loss = MatchingLoss(InfoNCE(mode="proper"), blocksize=10)
    value = loss(*batch)[0].item()
    one, other = first.flatten(1, 2), second.flatten(1, 2)
    parts = [InfoNCE(mode="proper")(one[:, i::3], other[:, i::3], 8) for i in range(3)]
    expected = torch.stack(parts, dim=2).flatten(1)[valid].mean().item()
    assert value == pytest.approx(expected, rel=1e-5)
    whole = MatchingLoss(InfoNCE(mode="proper"), blocksize=24)(*batch)[0].item()
    assert value < whole


def test_infonce_is_the_cross_entropy_of_both_directions():
    one, other = descriptors(1, 12), descriptors(1, 12, seed=1)
    similarity = (one @ other.mT)[0] / 0.5
    expected = sum(
        F.cross_entropy(s, torch.arange(12), reduction="none") for s in (similarity, similarity.T)
    )
    for mode in ("proper", "dual"):
        got = InfoNCE(temperature=0.5, mode=mode)(one, other, 12)[0]
        torch.testing.assert_close(got, expected)


def test_average_precision_of_one_right_answer_is_one_over_its_rank():
    one, other = descriptors(1, 9), descriptors(1, 9, seed=1)
    similarity = (one @ other.mT)[0]
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(1)
    torch.testing.assert_close(APLoss()(one, other, 9)[0], 1 - 1 / ranks)
    fine = APLoss(nq=4001, min=-1, max=1)(one, other, 9)[0]
    # Fine bins tell all similarities apart, but the right one is itself shared by two of them.
    torch.testing.assert_close(fine, 1 - 1 / ranks, atol=0.1, rtol=0)


def test_values_are_taken_at_columns_and_rows():
    maps = torch.arange(12.0).reshape(1, 3, 4, 1)
    assert at(maps, torch.tensor([[[3, 0], [0, 2]]]))[0, :, 0].tolist() == [3, 8]


@pytest.mark.parametrize(("mode", "conf"), [("prod", 6.0), ("mean", 2.5)])
def test_the_confidence_of_a_match_is_that_of_its_pixels(mode, conf):
    batch = matched(descriptors(1, 4, 6), descriptors(1, 4, 6, seed=1))
    batch[2]["desc_conf"][:], batch[3]["desc_conf"][:] = 2.0, 3.0
    loss = MatchingLoss(InfoNCE(mode="proper"))
    plain = loss(*batch)[0].item()
    value, details = ConfMatchingLoss(loss, alpha=10.0, confmode=mode)(*batch)
    assert value.item() == pytest.approx(conf * plain - 10 * math.log(conf), rel=1e-5)
    assert details["MatchingLoss"].item() == pytest.approx(plain, rel=1e-6)


def test_confidence_of_pixels_that_match_nothing_is_lowered_on_demand():
    valid = torch.arange(24)[None] % 2 == 0
    gradients = []
    for quantile in (False, 0.9):
        batch = matched(descriptors(1, 4, 6), descriptors(1, 4, 6, seed=1), valid, conf=4.0)
        conf = batch[2]["desc_conf"].requires_grad_()
        loss = MatchingLoss(InfoNCE(mode="proper"))
        ConfMatchingLoss(loss, 1.0, neg_conf_loss_quantile=quantile)(*batch)[0].backward()
        gradients.append(conf.grad.flatten()[~valid[0]])
    assert not gradients[0].any() and (gradients[1] > 0).all()


def test_bf16_predictions_and_autocast_are_widened(golden):
    criterion = build(list(CASES)[-1], LOSSES)
    with torch.autocast("cpu", torch.bfloat16):
        assert criterion(*golden)[0].item() == criterion(*golden)[0].item()
        value = criterion(*golden)[0]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(CASES[list(CASES)[-1]]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InfoNCE(mode="best"), "mode of InfoNCE is 'best'; use one of all, proper, dual"),
        (lambda: InfoNCE(temperature=0), "temperature > 0"),
        (lambda: APLoss(nq=1), "nq of APLoss is 1"),
        (lambda: APLoss(min=1, max=0), "min < max"),
        (lambda: MatchingLoss(L21()), r"InfoNCE\(mode='proper'\), not L21"),
        (lambda: MatchingLoss(InfoNCE(), blocksize=0), "blocksize >= 2"),
        (lambda: ConfMatchingLoss(InfoNCE()), "weights a MatchingLoss"),
        (lambda: ConfMatchingLoss(MatchingLoss(InfoNCE()), alpha=0), "must be above 0, and is 0"),
        (lambda: ConfMatchingLoss(MatchingLoss(InfoNCE()), confmode="max"), "one of prod, mean"),
        (
            lambda: ConfMatchingLoss(MatchingLoss(InfoNCE()), neg_conf_loss_quantile=2),
            "between 0 and 1",
        ),
        (lambda: Regr3D(L21, sky_loss_value=-1), "sky_loss_value is -1"),
    ],
)
def test_wrong_arguments_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        (1, "corres", "'corres' in view 2.*n_corres=1024"),
        (0, "valid_corres", "'valid_corres' in view 1.*n_corres=1024"),
        (3, "desc", "'desc' in prediction 2"),
        (2, "desc_conf", "'desc_conf' in prediction 1"),
    ],
)
def test_a_missing_key_is_named(golden, part, key, message):
    broken = list(golden)
    broken[part] = {k: v for k, v in broken[part].items() if k != key}
    with pytest.raises(ValueError, match=message):
        ConfMatchingLoss(MatchingLoss(InfoNCE()))(*broken)
