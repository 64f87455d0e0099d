"""Runs: which exports and points splats are trained from, and what becomes of each."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dust3r.export.frames import IMAGES
from dust3r.splat import clouds, report
from dust3r.splat.clouds import Cloud
from dust3r.splat.evaluate import Perceptual, mean_score, score
from dust3r.splat.exports import Export, open_export
from dust3r.splat.gaussians import Normalisation, initialise
from dust3r.splat.ply import write_splats
from dust3r.splat.rasterise import Camera, Rasteriser, make_densifier
from dust3r.splat.train import Run, Settings, Shot, fingerprint_of, train
from dust3r.splat.views import View

log = logging.getLogger(__name__)

SPLATS = "splats.ply"

# Kheradmand et al. (2024) start more opaque and smaller, as nothing is split by its gradient.
_START = {"mcmc": {"opacity": 0.5, "scale": 0.1}}


@dataclass(frozen=True)
class Plan:
    """One run: an export with some of its points."""

    name: str
    export: Export
    cloud: Cloud
    points: str


@dataclass(frozen=True)
class Choice:
    """Which points to start from.

    Attributes:
        source: of ``clouds.read_cloud``.
        most: number of points.
        seed: of the random choice of so many.
        keep: share of the most certain, for a further run; None for none.
        max_radius: most of ``radius90``, in scene units, instead; None for none.
    """

    source: clouds.Source
    most: int
    seed: int
    keep: float | None = None
    max_radius: float | None = None

    @property
    def is_filtered(self) -> bool:
        return self.keep is not None or self.max_radius is not None


@dataclass(frozen=True)
class Tools:
    """What all runs are trained and judged with."""

    settings: Settings
    rasteriser: Rasteriser
    perceptual: Perceptual | None
    device: torch.device
    save_every: int
    progress: bool


def open_all(
    path: Path, others: Sequence[Path], images: Path | None, image_size: int
) -> list[Export]:
    """An export, and others of the same photographs, with views of at most so many pixels a side.

    Args:
        images: photographs of models that have none beside them; those of the first where None.

    Raises ValueError and FileNotFoundError as ``open_export`` and ``View.resized``.
    """
    first = open_export(path, images)
    images = images or first.root / IMAGES
    exports = [first, *(open_export(other, images) for other in others)]
    return [
        replace(one, views=tuple(view.resized(image_size) for view in one.views)) for one in exports
    ]


def make_plans(exports: Sequence[Export], held_out: frozenset[str], choice: Choice) -> list[Plan]:
    """A run of each export with all its points, and of the first with the certain ones.

    Points are drawn once they are chosen, so that the runs start from as many where there are
    enough.

    Raises ValueError and FileNotFoundError as ``read_cloud``, ``most_certain`` and ``within``.
    """
    plans, taken = [], set()
    for number, export in enumerate(exports):
        name = _unique(_slug(export.root), taken)
        # Another program's export has only its model's points, whatever is asked of the first one.
        has_others = number > 0 and choice.source not in clouds.available(export)
        cloud = clouds.read_cloud(export, "auto" if has_others else choice.source, held_out)
        every = clouds.thinned(cloud, choice.most, choice.seed)
        plans.append(Plan(name, export, every, f"{cloud.source}, all"))
        if number == 0 and choice.is_filtered:
            certain, how = _certain(cloud, export, choice)
            certain = clouds.thinned(certain, choice.most, choice.seed)
            name = _unique(f"{name}-certain", taken)
            plans.append(Plan(name, export, certain, f"{cloud.source}, {how}"))
    return plans


def train_and_judge(
    plan: Plan, held_out: frozenset[str], folder: Path, tools: Tools
) -> tuple[report.Result, list[np.ndarray]]:
    """Train (or go on), write ``splats.ply``; the result, and renderings of held-out views.

    Raises ValueError as ``train`` does.
    """
    settings = tools.settings
    views = plan.export.views
    trained = [view for view in views if view.key not in held_out]
    tested = views_to_test(plan.export, held_out)
    world = Normalisation.of(np.stack([view.pose[:3, 3] for view in trained]), plan.cloud.xyz)

    def shots(chosen: Sequence[View]) -> list[Shot]:
        return [
            Shot(
                view.name,
                Camera.of(world.pose(view.pose), view.intrinsics, view.size, tools.device),
                view.read(),
            )
            for view in chosen
        ]

    start = _START.get(settings.strategy, {})
    params = initialise(world.points(plan.cloud.xyz), plan.cloud.rgb, settings.sh_degree, **start)
    training = shots(trained)
    log.info(
        "%s: %d views, %d points, %d views held out",
        plan.name, len(training), len(plan.cloud), len(tested),
    )  # fmt: skip
    going = Run.of(params.to(tools.device))
    densifier = make_densifier(
        settings.strategy, settings.steps, settings.max_splats, settings.seed, tools.device
    )
    train(
        going, training, settings, tools.rasteriser, densifier, near=world.near, folder=folder,
        fingerprint=fingerprint_of(training, params), save_every=tools.save_every,
        progress=tools.progress,
    )  # fmt: skip
    write_splats(world.undone(going.params), folder / SPLATS)
    scores, pictures = score(
        going.params, shots(tested), tools.rasteriser, sh_degree=settings.sh_degree,
        near=world.near, perceptual=tools.perceptual,
    )  # fmt: skip
    log.info("%s: %.2f dB in held-out views", plan.name, mean_score(scores).psnr)
    result = report.Result(
        name=plan.name,
        poses=f"{plan.export.root.resolve().name}/{plan.export.model_name}",
        points=plan.points,
        started_from=len(plan.cloud),
        splats=len(going.params["means"]),
        trained_on=len(training),
        seconds=going.seconds,
        scores=tuple(scores),
    )
    return result, pictures


def views_to_test(export: Export, held_out: frozenset[str]) -> list[View]:
    """The held-out views, in one order for all exports."""
    return sorted((view for view in export.views if view.key in held_out), key=lambda v: v.key)


def write_pictures(
    folder: Path,
    tested: Sequence[View],
    results: Sequence[report.Result],
    renderings: Sequence[Sequence[np.ndarray]],
) -> list[Path]:
    """``folder/views/NAME.png`` of each held-out view: photograph, renderings, errors."""
    paths = []
    for number, view in enumerate(tested):
        titled = [
            (f"{result.name}: {result.scores[number].psnr:.2f} dB", pictures[number])
            for result, pictures in zip(results, renderings, strict=True)
        ]
        path = folder / report.PICTURES / f"{view.key}.png"
        paths.append(report.write_picture(path, view.read(), titled, view.name))
    return paths


def _certain(cloud: Cloud, export: Export, choice: Choice) -> tuple[Cloud, str]:
    if choice.max_radius is not None:
        return clouds.within(cloud, choice.max_radius), f"radius90 <= {choice.max_radius:g}"
    centres = np.stack([view.pose[:3, 3] for view in export.views])
    return clouds.most_certain(cloud, choice.keep, centres), f"keep {choice.keep:g}"


def _slug(root: Path) -> str:
    name = root.resolve().name
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_") or "export"


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
