"""Training: the loss falls, a killed run goes on, and the unit of a scene does not matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from splat_scene import SIZE, reconstruct

from dust3r.splat.gaussians import Gaussians, Normalisation, initialise
from dust3r.splat.rasterise import Camera, FixedNumber
from dust3r.splat.reference import render
from dust3r.splat.train import (
    LAST,
    MEANS_LR,
    Run,
    Settings,
    Shot,
    fingerprint_of,
    means_rate,
    photometric_loss,
    shot_of_step,
    train,
)
from dust3r.training.checkpoint import CheckpointError

SETTINGS = Settings(steps=20, sh_degree=1, sh_every=10, strategy="none")


def prepared(unit: float = 1.0) -> tuple[list[Shot], Run, Normalisation]:
    """Views of the scene, and splats that start from 100 of its points."""
    scene = reconstruct(unit)
    xyz = np.concatenate([scene.pts3d(n)[::6, ::4].reshape(-1, 3) for n in range(3)])
    rgb = np.concatenate([scene.images[n][::6, ::4].reshape(-1, 3) for n in range(3)])
    world = Normalisation.of(scene.poses[:, :3, 3], xyz)
    shots = [
        Shot(
            f"{number}",
            Camera.of(world.pose(scene.poses[number]), scene.intrinsics[number], SIZE),
            (255 * scene.images[number]).astype(np.uint8),
        )
        for number in range(4)
    ]
    params = initialise(world.points(xyz), (255 * rgb).astype(np.uint8), SETTINGS.sh_degree)
    return shots, Run.of(params), world


def trained(run: Run, shots: list[Shot], settings: Settings = SETTINGS, **further) -> list[float]:
    return train(run, shots, settings, render, FixedNumber(), progress=False, **further)


def test_the_loss_falls_and_every_parameter_is_fitted():
    shots, run, _ = prepared()
    before = {name: value.detach().clone() for name, value in run.params.items()}
    losses = trained(run, shots, replace(SETTINGS, steps=40))
    assert len(losses) == 40
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    for name, value in run.params.items():
        assert not torch.equal(value, before[name]), name


def test_the_unit_of_the_scene_does_not_matter():
    metres, millimetres = prepared(), prepared(1000.0)
    losses = [trained(run, shots) for shots, run, _ in (metres, millimetres)]
    assert np.allclose(*losses, rtol=1e-3)
    assert np.isclose(millimetres[2].unit, 1000 * metres[2].unit)
    means = [world.undone(run.params)["means"].detach() for _, run, world in (metres, millimetres)]
    assert torch.allclose(1000 * means[0], means[1], rtol=1e-3, atol=1.0)


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    shots, whole, _ = prepared()
    losses = trained(whole, shots)

    class Killed(FixedNumber):
        def after_step(self, params, optimisers, step, info):
            if step == 13:
                raise KeyboardInterrupt

    _, run, _ = prepared()
    with pytest.raises(KeyboardInterrupt):
        train(run, shots, SETTINGS, render, Killed(), folder=tmp_path, save_every=8, progress=False)
    _, again, _ = prepared()
    rest = trained(again, shots, folder=tmp_path)
    assert len(rest) == 12 and rest == losses[8:]
    for name, value in whole.params.items():
        assert torch.equal(value, again.params[name]), name
    assert trained(prepared()[1], shots, folder=tmp_path) == []


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    shots, run, _ = prepared()
    mark = fingerprint_of(shots, run.params)
    trained(run, shots, replace(SETTINGS, steps=2), folder=tmp_path, fingerprint=mark)
    with pytest.raises(ValueError, match="steps 2, now 20.*another --output_dir"):
        trained(run, shots, folder=tmp_path, fingerprint=mark)
    dark = [replace(shots[0], photograph=shots[0].photograph // 2), *shots[1:]]
    other = fingerprint_of(dark, prepared()[1].params)
    with pytest.raises(ValueError, match="other photographs"):
        trained(run, shots, replace(SETTINGS, steps=2), folder=tmp_path, fingerprint=other)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:500])
    with pytest.raises(CheckpointError):
        trained(run, shots, replace(SETTINGS, steps=2), folder=tmp_path, fingerprint=mark)


def test_mcmc_pays_for_opacity_and_size():
    sums = {}
    for strategy in ("none", "mcmc"):
        shots, run, _ = prepared()
        trained(run, shots, replace(SETTINGS, steps=5, strategy=strategy))
        gaussians = Gaussians.of(run.params)
        sums[strategy] = gaussians.opacities.sum().item(), gaussians.scales.sum().item()
    assert sums["mcmc"][0] < sums["none"][0] and sums["mcmc"][1] < sums["none"][1]


def test_a_loss_that_is_not_finite_ends_the_run():
    shots, run, _ = prepared()
    with torch.no_grad():
        run.params["sh0"][:] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        trained(run, shots)


def test_views_take_turns():
    order = [shot_of_step(step, 5, seed=0) for step in range(1, 21)]
    for start in range(0, 20, 5):
        assert sorted(order[start : start + 5]) == list(range(5))
    assert order[:5] != order[5:10] or order[5:10] != order[10:15]


def test_rates_of_means_and_degrees_follow_the_paper():
    assert np.isclose(means_rate(1, 100), MEANS_LR[0])
    assert np.isclose(means_rate(100, 100), MEANS_LR[1])
    assert np.isclose(means_rate(50, 99), np.sqrt(MEANS_LR[0] * MEANS_LR[1]))
    degrees = []

    def watched(gaussians: Gaussians, camera: Camera, *, sh_degree: int, near: float):
        degrees.append(sh_degree)
        return render(gaussians, camera, sh_degree=sh_degree, near=near)

    shots, run, _ = prepared()
    settings = replace(SETTINGS, steps=6, sh_every=2)
    train(run, shots, settings, watched, FixedNumber(), progress=False)
    assert degrees == [0, 0, 1, 1, 1, 1]


def test_the_loss_is_nothing_for_the_photograph_itself():
    image = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
    assert photometric_loss(image, image, 0.2).abs() < 1e-6
    brighter = photometric_loss(image + 0.1, image, 0.0)
    assert torch.isclose(brighter, torch.tensor(0.1))
    assert photometric_loss(image.flip(0), image, 1.0) > 0.5
