"""Training of splats: a view a step, L1 and SSIM, a checkpoint that a killed run goes on from."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from tqdm import tqdm

from dust3r.splat.gaussians import Gaussians, make_parameters
from dust3r.splat.rasterise import Camera, Densifier, Rasteriser, Rendered, StrategyName
from dust3r.training import checkpoint

log = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"

# Kerbl et al. (2023) and their code: means in units of the cameras' extent, from the first step
# to the last; the others do not change.
MEANS_LR = (1.6e-4, 1.6e-6)
LEARNING_RATES = {
    "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 2.5e-3 / 20,
}  # fmt: skip
ADAM_EPSILON = 1e-15

# Kheradmand et al. (2024): MCMC pays for opacity and for size.
_MCMC_WEIGHT = 0.01
_PROGRESS_EVERY = 10


@dataclass(frozen=True)
class Settings:
    """What a run is trained with; a checkpoint of other settings is refused.

    Attributes:
        steps: in all, a view each.
        sh_degree: of the colours.
        sh_every: steps between one more degree of harmonics and the next.
        ssim_weight: of 1 - SSIM; L1 has the rest.
        strategy: how Gaussians are added and removed.
        max_splats: most of them with ``'mcmc'``.
        seed: of the order of views.
    """

    steps: int = 30_000
    sh_degree: int = 3
    sh_every: int = 1000
    ssim_weight: float = 0.2
    strategy: StrategyName = "default"
    max_splats: int = 1_000_000
    seed: int = 0


@dataclass(frozen=True)
class Shot:
    """A photograph (H, W, 3) uint8 and its camera in the normalised world."""

    name: str
    camera: Camera
    photograph: np.ndarray

    def target(self) -> Tensor:
        """RGB (H, W, 3) in [0, 1] where the camera is."""
        return torch.tensor(self.photograph, device=self.camera.intrinsics.device).float() / 255


@dataclass
class Run:
    """What changes while splats are trained.

    Attributes:
        params: of the Gaussians.
        optimisers: one of each parameter.
        step: steps that are done.
        seconds: that they took, over all processes.
    """

    params: nn.ParameterDict
    optimisers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, params: nn.ParameterDict) -> Run:
        return cls(params, make_optimisers(params))


def train(
    run: Run,
    shots: Sequence[Shot],
    settings: Settings,
    rasteriser: Rasteriser,
    densifier: Densifier,
    *,
    near: float = 0.01,
    folder: Path | None = None,
    fingerprint: str = "",
    save_every: int = 1000,
    progress: bool = True,
) -> list[float]:
    """Train up to ``settings.steps``, in place, from the run's step or the folder's checkpoint.

    Args:
        run: its parameters are replaced where there is a checkpoint.
        shots: views to train on.
        near: nearest depth that is drawn.
        folder: ``checkpoint-last.pth`` is written there every ``save_every`` steps and at the end;
            None writes nothing.
        fingerprint: of the data; a checkpoint of another is refused.
        progress: show a bar.

    Returns:
        the loss of each step of this call.

    Raises:
        ValueError: the checkpoint is of other settings or data, or the loss is no longer finite.
        dust3r.training.checkpoint.CheckpointError: it is damaged.
    """
    if folder is not None and (folder / LAST).is_file():
        _restore(run, densifier, folder / LAST, settings, fingerprint)
    losses: list[float] = []
    waiting: list[Tensor] = []
    started, before = time.monotonic(), run.seconds
    bar = tqdm(
        total=settings.steps, initial=run.step, unit="step", disable=None if progress else True
    )
    with bar:
        while run.step < settings.steps:
            run.step += 1
            waiting.append(_one_step(run, shots, settings, rasteriser, densifier, near))
            done = run.step == settings.steps
            saves = folder is not None and (done or run.step % save_every == 0)
            if done or saves or run.step % _PROGRESS_EVERY == 0:
                # Reading a loss waits for the GPU, which each step should not.
                losses += torch.stack(waiting).tolist()
                _check_finite(losses[-len(waiting) :], run.step)
                bar.update(len(waiting))
                bar.set_postfix(loss=f"{losses[-1]:.4f}", splats=len(run.params["means"]))
                waiting.clear()
                run.seconds = before + time.monotonic() - started
            if saves:
                _save(run, densifier, folder / LAST, settings, fingerprint)
                splats = len(run.params["means"])
                log.info("step %d, loss %.4f, %d splats", run.step, losses[-1], splats)
    return losses


def photometric_loss(rendered: Tensor, photograph: Tensor, ssim_weight: float) -> Tensor:
    """(1 - w) L1 + w (1 - SSIM) of images (H, W, 3) in [0, 1]; Kerbl et al. (2023), eq. 7."""
    l1 = (rendered - photograph).abs().mean()
    structure = ssim(_batch(rendered), _batch(photograph), data_range=1.0)
    return (1 - ssim_weight) * l1 + ssim_weight * (1 - structure)


def make_optimisers(params: nn.ParameterDict) -> dict[str, torch.optim.Optimizer]:
    """Adam for each parameter alone, as gsplat's strategies ask for."""
    rates = {"means": MEANS_LR[0], **LEARNING_RATES}
    return {
        name: torch.optim.Adam([value], lr=rates[name], eps=ADAM_EPSILON)
        for name, value in params.items()
    }


def means_rate(step: int, steps: int) -> float:
    """Learning rate of means in step 1 to ``steps``, on a straight line of its logarithm."""
    done = (step - 1) / max(1, steps - 1)
    first, last = (math.log(rate) for rate in MEANS_LR)
    return math.exp(first + done * (last - first))


def shot_of_step(step: int, count: int, seed: int) -> int:
    """The view of a step, from 1: each once in every ``count`` steps, in an order of the seed."""
    turn, place = divmod(step - 1, count)
    return int(np.random.default_rng((seed, turn)).permutation(count)[place])


def fingerprint_of(shots: Sequence[Shot], params: nn.ParameterDict) -> str:
    """A digest of photographs, cameras and what splats start from."""
    digest = hashlib.sha256()
    for shot in shots:
        digest.update(shot.name.encode())
        digest.update(shot.photograph.tobytes())
        digest.update(shot.camera.world_to_camera.cpu().numpy().tobytes())
        digest.update(shot.camera.intrinsics.cpu().numpy().tobytes())
    for value in params.values():
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _one_step(
    run: Run,
    shots: Sequence[Shot],
    settings: Settings,
    rasteriser: Rasteriser,
    densifier: Densifier,
    near: float,
) -> Tensor:
    """The loss, detached."""
    shot = shots[shot_of_step(run.step, len(shots), settings.seed)]
    for group in run.optimisers["means"].param_groups:
        group["lr"] = means_rate(run.step, settings.steps)
    degree = min(settings.sh_degree, (run.step - 1) // settings.sh_every)
    rendered: Rendered = rasteriser(
        Gaussians.of(run.params), shot.camera, sh_degree=degree, near=near
    )
    loss = photometric_loss(rendered.image, shot.target(), settings.ssim_weight)
    if settings.strategy == "mcmc":
        loss = loss + _MCMC_WEIGHT * run.params["opacities"].sigmoid().mean()
        loss = loss + _MCMC_WEIGHT * run.params["scales"].exp().mean()
    densifier.before_backward(run.params, run.optimisers, run.step, rendered.info)
    loss.backward()
    for optimiser in run.optimisers.values():
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    densifier.after_step(run.params, run.optimisers, run.step, rendered.info)
    return loss.detach()


def _check_finite(losses: Sequence[float], step: int) -> None:
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError(
            f"the loss is not finite near step {step}: look whether poses and points fit the "
            "images (few --steps draw them), and start anew with another --output_dir"
        )


def _batch(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)[None]


def _save(run: Run, densifier: Densifier, path: Path, settings: Settings, fingerprint: str) -> None:
    state: dict[str, Any] = {
        "model": {name: value.detach() for name, value in run.params.items()},
        "optimizer": {name: one.state_dict() for name, one in run.optimisers.items()},
        "densifier": dict(densifier.state),
        "step": run.step,
        "seconds": run.seconds,
        "settings": asdict(settings),
        "fingerprint": fingerprint,
    }
    checkpoint.save(path, state)


def _restore(
    run: Run, densifier: Densifier, path: Path, settings: Settings, fingerprint: str
) -> None:
    device = run.params["means"].device
    state = checkpoint.load_file(path, map_location=device)
    old, new = state.get("settings", {}), asdict(settings)
    other = [
        f"{name} {old.get(name)}, now {new[name]}" for name in new if old.get(name) != new[name]
    ]
    if state.get("fingerprint") != fingerprint:
        other.append("other photographs, cameras or points")
    if other:
        raise ValueError(
            f"{path} is of another run ({'; '.join(other)}); go on with the same ones, or give "
            "another --output_dir"
        )
    params = make_parameters(**state["model"]).to(device)
    run.params, run.optimisers = params, make_optimisers(params)
    for name, optimiser in run.optimisers.items():
        optimiser.load_state_dict(state["optimizer"][name])
    densifier.restore(state["densifier"])
    run.step, run.seconds = state["step"], state["seconds"]
    log.info("going on from step %d of %s", run.step, path)
