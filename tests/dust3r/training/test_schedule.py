"""Learning rates and parameter groups."""

import argparse

import pytest
from torch import nn

from dust3r.training.cli import make_schedule
from dust3r.training.schedule import Schedule, absolute_rate, make_optimizer


def test_linear_then_half_a_cosine():
    schedule = Schedule(peak=1.0, floor=0.1, warmup_steps=10, total_steps=110)
    assert schedule.learning_rate(0) == 0
    assert schedule.learning_rate(5) == pytest.approx(0.5)
    assert schedule.learning_rate(10) == pytest.approx(1.0)
    assert schedule.learning_rate(60) == pytest.approx(0.55)
    assert schedule.learning_rate(110) == schedule.learning_rate(500) == pytest.approx(0.1)
    rates = [schedule.learning_rate(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def asked(**kwargs):
    defaults = {
        "epochs": 20,
        "max_steps": None,
        "batch_size": 8,
        "accum_iter": 2,
        "lr": None,
        "blr": 1e-4,
        "min_lr": 0.0,
        "warmup_epochs": None,
    }
    return argparse.Namespace(**(defaults | kwargs))


def test_rate_grows_with_the_effective_batch():
    assert make_schedule(asked(), 10, 4).peak == pytest.approx(1e-4 * 64 / 256)
    assert make_schedule(asked(lr=3e-3), 10, 4).peak == 3e-3
    assert absolute_rate(1.5e-4, 256) == 1.5e-4


def test_warm_up_is_a_twentieth_unless_told():
    assert make_schedule(asked(epochs=800), 10, 1).warmup_steps == 40 * 10
    assert make_schedule(asked(), 10, 1).warmup_steps == 10
    assert make_schedule(asked(warmup_epochs=2.5), 10, 1).warmup_steps == 25
    assert make_schedule(asked(warmup_epochs=40), 10, 1).warmup_steps == 200
    assert make_schedule(asked(max_steps=40), 10, 1).total_steps == 40


def test_vectors_do_not_decay():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[2].requires_grad_(False)
    optimizer = make_optimizer(net, 0.05)
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays[net[0].weight] == 0.05
    assert all(decays[p] == 0 for p in (net[0].bias, net[1].weight, net[1].bias))
    assert net[2].weight not in decays
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_uncertainty_heads_may_learn_faster():
    net = nn.ModuleDict({"depth_evi_head": nn.Linear(2, 2), "dpt": nn.Linear(2, 2)})
    optimizer = make_optimizer(net, 0.05, uq_lr_scale=10)
    scales = {p: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert scales[net["depth_evi_head"].weight] == scales[net["depth_evi_head"].bias] == 10
    assert scales[net["dpt"].weight] == scales[net["dpt"].bias] == 1


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="nothing in the model trains"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), 0.05)
