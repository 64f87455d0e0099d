"""Dropout and ensembles: what is shared, what varies, in which form it comes out."""

import argparse

import pytest
import torch

from dust3r.inference import inference
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.uncertainty.families import sampled_keys, uncertainty
from dust3r.uncertainty.sampling import DeepEnsemble, Moments, MonteCarloDropout

SMALL = {
    "enc_embed_dim": 24,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 4,
    "dec_num_heads": 2,
    "dpt_dim": 16,
    "landscape_only": False,
}


def model(head_type="dpt", seed=0):
    torch.manual_seed(seed)
    return AsymmetricCroCo3DStereo(head_type=head_type, **SMALL).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def views():
    images = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return [{"img": image} for image in images]


@pytest.mark.parametrize("head_type", ["dpt", "linear", "dpt_uq_feat"])
def test_dropout_gives_a_variance_per_pixel(views, head_type):
    net = model(head_type)
    plain = net(*views)
    first, second = MonteCarloDropout(net, samples=3, rate=0.2)(*views)
    for prediction, key in ((first, "pts3d"), (second, "pts3d_in_other_view")):
        assert prediction[key].shape == (2, 32, 48, 3)
        said = uncertainty(prediction)
        assert said.family == "mcd" and said.total.shape == (2, 32, 48) and said.unit == "m^2"
        assert (said.total > 0).all() and said.aleatoric is None
    assert torch.equal(first["conf"], plain[0]["conf"])
    assert not torch.equal(first["pts3d"], plain[0]["pts3d"])


def test_the_trunk_runs_once_and_is_left_as_it_was(views):
    net = model()
    calls = []
    for part in (net.enc_norm, net.dec_norm):
        part.register_forward_hook(lambda *_: calls.append(1))
    before = net(*views)
    once = len(calls)
    calls.clear()
    sampled = MonteCarloDropout(net, samples=5, rate=0.5)
    sampled(*views)
    assert len(calls) <= once + 1
    after = net(*views)
    assert torch.equal(before[0]["pts3d"], after[0]["pts3d"])


def test_more_dropout_is_more_variance(views):
    net = model()
    totals = [
        uncertainty(MonteCarloDropout(net, samples=6, rate=rate)(*views)[0]).total.mean()
        for rate in (0.01, 0.1, 0.5)
    ]
    assert totals == sorted(totals)


def test_a_seed_repeats_and_leaves_torchs_state_alone(views):
    sampled = MonteCarloDropout(model(), samples=2, rate=0.3, seed=5)
    before = torch.get_rng_state()
    first, again = sampled(*views)[0]["pts3d"], sampled(*views)[0]["pts3d"]
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    free = MonteCarloDropout(model(), samples=2, rate=0.3, seed=None)
    assert not torch.equal(free(*views)[0]["pts3d"], free(*views)[0]["pts3d"])


def test_both_stand_in_for_a_model_in_inference():
    images = [
        {"img": torch.rand(1, 3, 32, 48) * 2 - 1, "true_shape": torch.tensor([[32, 48]])}
        | {"idx": i, "instance": str(i)}
        for i in range(2)
    ]
    pairs = [(images[0], images[1]), (images[1], images[0])]
    for sampled in (MonteCarloDropout(model(), samples=2), DeepEnsemble([model(), model(seed=1)])):
        made = inference(pairs, sampled, "cpu", batch_size=1, verbose=False)
        assert uncertainty(made["pred1"]).total.shape == (2, 32, 48)


def test_an_ensemble_is_mean_and_variance_of_its_members(views):
    members = [model(seed=seed) for seed in range(3)]
    said, _ = DeepEnsemble(members)(*views)
    each = torch.stack([member(*views)[0]["pts3d"] for member in members])
    torch.testing.assert_close(said["pts3d"], each.mean(0))
    between, within = sampled_keys("ensemble")
    torch.testing.assert_close(said[between], each.var(0).movedim(-1, 1))
    assert within not in said
    confidence = torch.stack([member(*views)[0]["conf"] for member in members]).mean(0)
    torch.testing.assert_close(said["conf"], confidence)
    assert uncertainty(said).family == "ensemble"


def gaussian_prediction(mean, log_variance, key="pts3d"):
    points = torch.full((1, 2, 2, 3), mean)
    maps = {"xyz_mu": points.movedim(-1, 1)}
    return {key: points, **maps, "xyz_logvar": torch.full((1, 3, 2, 2), log_variance)}


def test_what_members_say_of_noise_is_kept_apart():
    moments = Moments("ensemble")
    for mean in (1.0, 3.0):
        moments.add(
            (gaussian_prediction(mean, 0.0), gaussian_prediction(mean, 0.0, "pts3d_in_other_view"))
        )
    said = uncertainty(moments.predictions()[0])
    torch.testing.assert_close(said.aleatoric, torch.full((1, 2, 2), 3.0))
    torch.testing.assert_close(said.epistemic, torch.full((1, 2, 2), 3 * 2.0))


@pytest.mark.parametrize("same_scale", [True, False])
def test_samples_of_another_scale_agree_if_told_so(same_scale):
    moments = Moments("ensemble", same_scale)
    points = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 2.0, 5.0):
        moments.add(({"pts3d": scale * points}, {"pts3d_in_other_view": scale * points}))
    total = uncertainty(moments.predictions()[0]).total
    assert (total < 1e-9).all() == same_scale


def test_one_bad_sample_shows_where_it_is():
    moments = Moments("mcd")
    for number in range(3):
        points = torch.rand(1, 4, 4, 3)
        if number == 1:
            points[0, 2, 3] = torch.nan
        moments.add(({"pts3d": points}, {"pts3d_in_other_view": points}))
    total = uncertainty(moments.predictions()[0]).total
    assert total[0, 2, 3].isnan() and total.isnan().sum() == 1


def write_checkpoint(path, seed):
    spec = "AsymmetricCroCo3DStereo(" + ", ".join(f"{k}={v!r}" for k, v in SMALL.items()) + ")"
    net = AsymmetricCroCo3DStereo(**SMALL)
    torch.manual_seed(seed)
    for weight in net.parameters():
        weight.copy_(torch.randn_like(weight) * 0.05)
    torch.save({"model": net.state_dict(), "args": argparse.Namespace(model=spec)}, path)
    return path


def test_members_come_from_checkpoints(views, tmp_path):
    paths = [write_checkpoint(tmp_path / f"{seed}.pth", seed) for seed in range(2)]
    said, _ = DeepEnsemble.from_checkpoints(paths)(*views)
    assert (uncertainty(said).total > 0).all()


def test_ensembles_of_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two members or more, and this one has 1"):
        DeepEnsemble([model()])
    with pytest.raises(ValueError, match="two members or more, and this one has 1"):
        DeepEnsemble.from_checkpoints([tmp_path / "a.pth"])
    with pytest.raises(ValueError, match="a.pth is a member more than once"):
        DeepEnsemble.from_checkpoints([tmp_path / "a.pth"] * 2)
    with pytest.raises(ValueError, match="members of an ensemble are of one kind"):
        DeepEnsemble([model(), model("linear")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"samples": 1}, "samples=1: .* 2 samples"), ({"rate": 0.0}, "rate=0"), ({"rate": 1}, "rate")],
)
def test_dropout_that_cannot_vary_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MonteCarloDropout(model(), **arguments)
