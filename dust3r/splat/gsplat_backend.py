"""The one place that calls gsplat (Ye et al., 2024); its API of versions 1.4 and 1.5.

https://docs.gsplat.studio: ``rasterization``, ``DefaultStrategy``, ``MCMCStrategy``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from dust3r.export.colmap import HALF_PIXEL
from dust3r.splat.gaussians import Gaussians
from dust3r.splat.rasterise import Camera, Rendered

INSTALL = (
    "pip install gsplat (it compiles its CUDA code at the first run, which needs nvcc of the CUDA "
    "toolkit; https://docs.gsplat.studio/whl has compiled ones for some versions of PyTorch)"
)
_ELSEWHERE = (
    "train on a machine with an NVIDIA GPU (an export is one folder that can be copied there), or "
    "for tiny scenes give --rasteriser reference --strategy none"
)
# A strategy resets opacities to twice what it prunes.
_RESET_FACTOR = 2.0


def require_gsplat(device: torch.device) -> ModuleType:
    """The module, once it is sure to run on ``device``.

    Raises ValueError that says what is missing and how to get it.
    """
    if device.type != "cuda":
        found = "and none is used" if torch.cuda.is_available() else "and PyTorch finds none"
        raise ValueError(f"gsplat needs a CUDA device, {found}; {_ELSEWHERE}")
    gsplat = _import()
    try:
        # Compiles where nothing is compiled yet, and fails here rather than after an hour.
        one = torch.ones(1, 4, device=device)
        gsplat.quat_scale_to_covar_preci(one, one[:, :3])
    except Exception as error:
        # Compilers, loaders and absent modules raise whatever they like.
        raise ValueError(
            f"gsplat is installed and its CUDA code does not run ({error!r}); install the CUDA "
            f"toolkit {torch.version.cuda} that this PyTorch is of, or a compiled wheel: {INSTALL}"
        ) from error
    return gsplat


class GsplatRasteriser:
    """``Rasteriser`` by ``gsplat.rasterization``."""

    def __init__(self, gsplat: ModuleType):
        self._rasterization = gsplat.rasterization

    def __call__(
        self, gaussians: Gaussians, camera: Camera, *, sh_degree: int, near: float = 0.01
    ) -> Rendered:
        width, height = camera.size
        intrinsics = camera.intrinsics.clone()
        intrinsics[:2, 2] += HALF_PIXEL
        images, opacities, info = self._rasterization(
            means=gaussians.means,
            quats=gaussians.quats,
            scales=gaussians.scales,
            opacities=gaussians.opacities,
            colors=gaussians.sh,
            viewmats=camera.world_to_camera[None],
            Ks=intrinsics[None],
            width=width,
            height=height,
            near_plane=near,
            sh_degree=sh_degree,
            packed=False,
        )
        return Rendered(images[0], opacities[0, ..., 0], info)


class GsplatDensifier:
    """``Densifier`` by gsplat's strategies, in a world as ``Normalisation`` makes it.

    Args:
        gsplat: the module.
        name: ``'default'``, clone, split and prune as Kerbl et al. (2023), until half of the steps;
            ``'mcmc'``, Kheradmand et al. (2024), until five sixths of them.
        steps: of the whole run; the published numbers are of 30 000.
        max_splats: most Gaussians of ``'mcmc'``; ``'default'`` has no limit.
        seed: of what is drawn at random.
    """

    def __init__(
        self,
        gsplat: ModuleType,
        name: Literal["default", "mcmc"],
        steps: int,
        max_splats: int,
        seed: int,
    ):
        self._seed = seed
        self._is_default = name == "default"
        if self._is_default:
            self._strategy = gsplat.DefaultStrategy(refine_stop_iter=steps // 2)
            self._state = self._strategy.initialize_state(scene_scale=1.0)
        else:
            self._strategy = gsplat.MCMCStrategy(
                cap_max=max_splats, refine_stop_iter=5 * steps // 6
            )
            self._state = self._strategy.initialize_state()

    @property
    def state(self) -> Mapping[str, Any]:
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)

    def before_backward(
        self,
        params: nn.ParameterDict,
        optimisers: dict[str, torch.optim.Optimizer],
        step: int,
        info: dict[str, Any],
    ) -> None:
        if step == 1:
            self._strategy.check_sanity(params, optimisers)
        self._strategy.step_pre_backward(params, optimisers, self._state, step, info)

    def after_step(
        self,
        params: nn.ParameterDict,
        optimisers: dict[str, torch.optim.Optimizer],
        step: int,
        info: dict[str, Any],
    ) -> None:
        device = params["means"].device
        # Draws depend on the step alone, so that a resumed run draws the same.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed + step)
            if self._is_default:
                self._strategy.step_post_backward(
                    params, optimisers, self._state, step, info, packed=False
                )
                self._reset_opacities(params, optimisers, step)
            else:
                (group,) = optimisers["means"].param_groups
                self._strategy.step_post_backward(
                    params, optimisers, self._state, step, info, lr=group["lr"]
                )

    def _reset_opacities(
        self, params: nn.ParameterDict, optimisers: dict[str, torch.optim.Optimizer], step: int
    ) -> None:
        """Again, as the strategy should have done; gsplat 1.5.3 never does.

        Its condition, ``step % reset_every == 0 & step > 0``, is false at every step.
        """
        if step % self._strategy.reset_every or step >= self._strategy.refine_stop_iter:
            return
        limit = torch.tensor(_RESET_FACTOR * self._strategy.prune_opa).logit().item()
        opacities = params["opacities"]
        with torch.no_grad():
            opacities.clamp_(max=limit)
        for value in optimisers["opacities"].state.get(opacities, {}).values():
            if torch.is_tensor(value) and value.shape == opacities.shape:
                value.zero_()


def _import() -> ModuleType:
    try:
        return importlib.import_module("gsplat")
    except ImportError as error:
        raise ValueError(
            f"gsplat is not installed ({error}): {INSTALL}; or {_ELSEWHERE}"
        ) from error
