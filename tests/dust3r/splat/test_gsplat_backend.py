"""How gsplat is called, with a module in its place that has the signatures of version 1.5.3."""

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dust3r.splat import gsplat_backend
from dust3r.splat.gaussians import Gaussians, initialise
from dust3r.splat.gsplat_backend import GsplatDensifier, GsplatRasteriser, require_gsplat
from dust3r.splat.rasterise import Camera, make_rasteriser
from dust3r.splat.reference import render
from dust3r.splat.train import Run, Settings, Shot, make_optimisers, means_rate, train


def rasterization(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=0.01,
    far_plane=1e10, radius_clip=0.0, eps2d=0.3, sh_degree=None, packed=True, tile_size=16,
    backgrounds=None, render_mode="RGB",
):  # fmt: skip
    """As documented: a batch of cameras, pixels whose first has its corner at (0, 0)."""
    (count, terms, channels), (cameras, *square) = colors.shape, viewmats.shape
    assert means.shape == scales.shape == (count, 3) and quats.shape == (count, 4)
    assert opacities.shape == (count,) and channels == 3 and (sh_degree + 1) ** 2 <= terms
    assert Ks.shape == (cameras, 3, 3) and square == [4, 4]
    intrinsics = Ks[0].clone()
    intrinsics[:2, 2] -= 0.5
    shown = render(
        Gaussians(means, quats, scales, opacities, colors),
        Camera(viewmats[0], intrinsics, (width, height)),
        sh_degree=sh_degree,
        near=near_plane,
    )
    assert not packed
    return shown.image[None], shown.opacity[None, ..., None], shown.info


@dataclass
class DefaultStrategy:
    """Never resets opacities, as version 1.5.3 does not."""

    prune_opa: float = 0.005
    refine_stop_iter: int = 15_000
    reset_every: int = 3000

    def initialize_state(self, scene_scale=1.0):
        return {"scene_scale": scene_scale, "calls": []}

    def check_sanity(self, params, optimizers):
        assert set(params) == set(optimizers)

    def step_pre_backward(self, params, optimizers, state, step, info):
        info["means2d"].retain_grad()

    def step_post_backward(self, params, optimizers, state, step, info, packed=False):
        grads = info["means2d"].grad
        seen = (info["radii"] > 0).all(dim=-1)
        assert grads.shape == (1, len(params["means"]), 2) and seen.shape == grads.shape[:2]
        assert not packed
        state["calls"].append((step, torch.rand(1).item()))


@dataclass
class MCMCStrategy:
    cap_max: int = 1_000_000
    refine_stop_iter: int = 25_000

    def initialize_state(self):
        return {"rates": []}

    def check_sanity(self, params, optimizers):
        assert set(params) == set(optimizers)

    def step_pre_backward(self, *args, **kwargs):
        pass

    def step_post_backward(self, params, optimizers, state, step, info, lr):
        state["rates"].append(lr)


FAKE = SimpleNamespace(
    rasterization=rasterization, DefaultStrategy=DefaultStrategy, MCMCStrategy=MCMCStrategy
)
CAMERA = Camera(
    torch.tensor([[0.0, 0, -1, 0.2], [0, 1, 0, 0.1], [1, 0, 0, 2.5], [0, 0, 0, 1]]),
    torch.tensor([[20.0, 0, 9.2], [0, 22, 6.9], [0, 0, 1]]),
    (20, 16),
)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (30, 3)).astype(np.uint8)
    return initialise(rng.normal(size=(30, 3)) / 2, colours, 1)


def test_what_gsplat_is_given_draws_the_image_of_the_reference(params):
    gaussians = Gaussians.of(params)
    expected = render(gaussians, CAMERA, sh_degree=1, near=0.3)
    shown = GsplatRasteriser(FAKE)(gaussians, CAMERA, sh_degree=1, near=0.3)
    assert expected.opacity.max() > 0.2
    assert torch.allclose(shown.image, expected.image, atol=1e-6)
    assert shown.opacity.shape == (16, 20)
    other = render(gaussians, replace(CAMERA, size=(20, 16)), sh_degree=1, near=2.6)
    assert not torch.allclose(shown.image, other.image, atol=1e-3)


def test_strategies_see_gradients_and_draw_by_the_step_alone(params):
    calls = []
    for _ in range(2):
        optimisers = make_optimisers(params)
        densifier = GsplatDensifier(FAKE, "default", 100, 1000, seed=3)
        torch.rand(1)
        for step in (1, 2):
            shown = render(Gaussians.of(params), CAMERA, sh_degree=1)
            densifier.before_backward(params, optimisers, step, shown.info)
            shown.image.mean().backward()
            before = torch.random.get_rng_state()
            densifier.after_step(params, optimisers, step, shown.info)
            assert torch.equal(before, torch.random.get_rng_state())
        calls.append(densifier.state["calls"])
    assert calls[0] == calls[1] and calls[0][0][1] != calls[0][1][1]


def test_opacities_are_reset_although_the_strategy_forgets_it(params):
    densifier = GsplatDensifier(FAKE, "default", 20_000, 1000, seed=0)
    optimisers = make_optimisers(params)
    for step, most in ((2999, 0.1), (3000, 0.01)):
        shown = render(Gaussians.of(params), CAMERA, sh_degree=1)
        densifier.before_backward(params, optimisers, step, shown.info)
        shown.image.mean().backward()
        params["opacities"].grad = torch.ones(30)
        if step == 2999:
            with torch.no_grad():
                before = params["opacities"].clone()
            optimisers["opacities"].step()
            with torch.no_grad():
                params["opacities"].copy_(before)
        densifier.after_step(params, optimisers, step, shown.info)
        assert torch.allclose(params["opacities"].sigmoid().max(), torch.tensor(most))
        state = optimisers["opacities"].state[params["opacities"]]
        assert (state["exp_avg"].abs().max() > 0) == (step == 2999)


def test_mcmc_moves_means_by_their_learning_rate(params):
    settings = Settings(steps=3, sh_degree=1, strategy="mcmc")
    densifier = GsplatDensifier(FAKE, "mcmc", 3, 500, seed=0)
    shot = Shot("one", CAMERA, np.zeros((16, 20, 3), np.uint8))
    train(Run.of(params), [shot], settings, render, densifier, progress=False)
    assert np.allclose(densifier.state["rates"], [means_rate(step, 3) for step in (1, 2, 3)])


def test_without_a_gpu_the_message_says_what_to_do():
    with pytest.raises(ValueError, match="needs a CUDA device.*--rasteriser reference"):
        require_gsplat(torch.device("cpu"))
    assert make_rasteriser("reference", torch.device("cpu")) is render


def test_without_gsplat_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(ValueError, match="not installed.*pip install gsplat"):
        require_gsplat(torch.device("cuda"))


def test_code_that_does_not_compile_is_found_before_training(monkeypatch):
    def broken(*_):
        raise AttributeError("'NoneType' object has no attribute 'quat_scale_to_covar_preci_fwd'")

    module = SimpleNamespace(quat_scale_to_covar_preci=broken)
    monkeypatch.setattr(gsplat_backend.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(*shape))
    with pytest.raises(ValueError, match="CUDA code does not run.*toolkit"):
        require_gsplat(torch.device("cuda"))
