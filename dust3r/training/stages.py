"""What trains in each stage, and on what: the one table, and what applies it to a model."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from dust3r.criterion import Criterion, Details
from dust3r.uncertainty.losses import (
    EvidentialTerm,
    MeanToDepth,
    MeanToTeacher,
    Term,
    VarianceToTeacher,
    average_over_views,
)
from dust3r.uncertainty.point_losses import (
    GATE_PART,
    GateVariation,
    PointEvidence,
    PointLikelihood,
    Ramp,
    add_aligned_targets,
    add_point_targets,
    regression_of,
)

log = logging.getLogger(__name__)

EVERYTHING = "*"

Views = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]

# Parts of the uncertainty heads, and the head types that have them.
UQ_HEADS = {
    "depth_evi_head": "'dpt_uq' or 'dpt_uq_feat'",
    "depth_mean_head": "'dpt_uq_feat'",
    "depth_evi_head_feat": "'dpt_uq_feat'",
    "dpt_xyz_evi": "'catmlp+dpt+xyz_evi_dpt'",
    "dpt_xyz_niw": "'catmlp+dpt+xyz_niw_dpt'",
    "dpt_xyz_logvar": "'catmlp+dpt+xyz_hetero_dpt'",
    "gate_mlp": "one that ends in '+residual_gated'",
    "delta_mlp": "one that ends in '+residual_gated'",
    GATE_PART: "one that ends in '+residual_gated'",
}
GATE = ("gate_mlp", "delta_mlp", GATE_PART)
DESCRIPTORS = "head_local_features"


def lies_in(parameter_name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of these parts of the model, at whatever depth."""
    return not set(parts).isdisjoint(parameter_name.split("."))


# What ``--uq_align`` takes out of the errors that distributions of points learn.
TARGETS = {"none": add_point_targets, "sim3": add_aligned_targets}


@dataclass(frozen=True)
class LossWeights:
    """``--lambda_*``, ``--hetero_beta``, ``--var_distill`` and ``--uq_align``; defaults
    as published."""

    uq: float = 1.0
    evi: float = 1e-3
    evi_feat: float = 0.0
    mean_gt: float = 1.0
    mean_distill: float = 0.0
    var_distill: float = 0.0
    var_distill_space: str = "linear"
    uq_xyz: float = 1.0
    evi_xyz: float = 1e-3
    hetero_xyz: float = 1.0
    hetero_beta: float = 0.0
    gate_tv: float = 0.0
    gate_tv_warmup_steps: int = 0
    align: str = "none"


class Counter(Protocol):
    """What knows how many batches a run has begun."""

    step: int


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        trains: names of the parts of the heads that train, or ``EVERYTHING`` that the model does
            not freeze itself.
        keeps: parts that stay as they are where everything trains.
        needs: parts that the model's heads must have.
        needs_one: parts of which they must have one.
        terms: the weighted uncertainty terms of the loss, made from the weights.
        with_criterion: whether the criterion is part of the loss, or computed for the log alone.
        on_points: whether the terms are on points, whose scale is that of the criterion.
    """

    trains: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    needs_one: tuple[str, ...] = ()
    terms: Callable[[LossWeights], "WeightedTerms"] = lambda weights: ()
    with_criterion: bool = True
    on_points: bool = False


WeightedTerms = tuple[tuple[float | Ramp, Term], ...]


def _geometry_terms(w: LossWeights) -> WeightedTerms:
    return ((w.uq, EvidentialTerm("", w.evi)),)


def _mean_terms(w: LossWeights) -> WeightedTerms:
    return ((w.mean_gt, MeanToDepth()), (w.mean_distill, MeanToTeacher()))


def _variance_terms(w: LossWeights) -> WeightedTerms:
    return (
        *_mean_terms(w),
        (w.evi_feat, EvidentialTerm("_feat", w.evi)),
        (w.var_distill, VarianceToTeacher(w.var_distill_space)),
    )


def _gate_terms(w: LossWeights) -> WeightedTerms:
    return ((Ramp(w.gate_tv, w.gate_tv_warmup_steps), GateVariation()),)


def _point_terms(w: LossWeights) -> WeightedTerms:
    return ((w.uq_xyz, PointEvidence(w.evi_xyz)), *_gate_terms(w))


def _gaussian_terms(w: LossWeights) -> WeightedTerms:
    return ((w.hetero_xyz, PointLikelihood(w.hetero_beta)), *_gate_terms(w))


STAGES = {
    "plain": Stage(trains=(EVERYTHING,)),
    "geom": Stage(trains=(EVERYTHING,), needs=("depth_evi_head",), terms=_geometry_terms),
    "geom, geometry frozen": Stage(
        trains=("depth_evi_head",), needs=("depth_evi_head",), terms=_geometry_terms
    ),
    "feat, phase 1": Stage(
        trains=("depth_mean_head",),
        needs=("depth_evi_head", "depth_mean_head"),
        terms=_mean_terms,
        with_criterion=False,
    ),
    "feat, phase 2": Stage(
        trains=("depth_mean_head", "depth_evi_head_feat"),
        needs=("depth_evi_head", "depth_mean_head", "depth_evi_head_feat"),
        terms=_variance_terms,
        with_criterion=False,
    ),
    "xyz": Stage(
        trains=("dpt_xyz_evi", "dpt_xyz_niw", *GATE),
        needs_one=("dpt_xyz_evi", "dpt_xyz_niw"),
        terms=_point_terms,
        on_points=True,
    ),
    "hetero_xyz": Stage(
        trains=("dpt_xyz_logvar", *GATE),
        needs=("dpt_xyz_logvar",),
        terms=_gaussian_terms,
        on_points=True,
    ),
}
# The same rows with the geometry training, too: errors of shape shrink while they are learnt.
for _name in ("xyz", "hetero_xyz"):
    STAGES[f"{_name}, geometry too"] = replace(
        STAGES[_name], trains=(EVERYTHING,), keeps=(DESCRIPTORS,)
    )


def stage_name(
    uq_mode: str | None, phase: int | None, freeze_geom: bool = False, train_geom: bool = False
) -> str:
    """The row that ``--uq_mode``, ``--phase``, ``--freeze_geom_for_uq`` and
    ``--train_geom_for_uq`` ask for.

    Raises:
        ValueError: the combination is none of the table's.
    """
    if uq_mode in (None, "none"):
        name = "plain"
    elif uq_mode == "geom":
        name = "geom, geometry frozen" if freeze_geom else "geom"
    elif uq_mode in ("xyz", "hetero_xyz") and phase in (None, 1):
        name = f"{uq_mode}, geometry too" if train_geom else uq_mode
    else:
        name = f"{uq_mode}, phase {1 if phase is None else phase}"
    if name not in STAGES:
        raise ValueError(
            f"--uq_mode {uq_mode} --phase {phase} is no stage of training: there are '--uq_mode "
            "geom' (geometry and its evidence), '--uq_mode feat --phase 1' (depth mean from "
            "features), '--uq_mode feat --phase 2' (its variance), '--uq_mode xyz' (evidence "
            "about points) and '--uq_mode hetero_xyz' (a Gaussian of points)"
        )
    return name


class StageRun:
    """A stage applied to a model: freezes, chooses the mode, and gives the loss.

    Raises:
        ValueError: the model lacks a head that the stage trains, or has uncertainty heads that no
            stage was chosen for.
    """

    def __init__(self, name: str, model: nn.Module, criterion: Criterion, weights: LossWeights):
        self.name = name
        self.stage = STAGES[name]
        self.criterion = criterion
        present = {part for part_name, _ in model.named_modules() for part in part_name.split(".")}
        self._check_heads(model, present)
        self.terms = self._terms_for(present, weights)
        self.regression = regression_of(criterion) if self.stage.on_points else None
        self.add_targets = TARGETS[weights.align]
        self.progress: Counter | None = None
        everything = EVERYTHING in self.stage.trains
        for parameter_name, parameter in model.named_parameters():
            # What the model froze itself, as weights kept for their names, stays frozen.
            trains = everything or lies_in(parameter_name, self.stage.trains)
            if not trains or lies_in(parameter_name, self.stage.keeps):
                parameter.requires_grad_(False)

    def follow(self, progress: Counter) -> None:
        """Take the number of batches for weights that warm up from ``progress``; else all is 1."""
        self.progress = progress

    def train_mode(self, model: nn.Module) -> None:
        """Train mode for what trains; a module without a trained parameter is in eval mode."""
        model.train()
        for module in model.modules():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def loss(
        self, views: Views, predictions: Views, criterion: Criterion | None = None
    ) -> tuple[Tensor, Details]:
        """The loss of a batch (scalar), and every term of it, unweighted, by name.

        Args:
            criterion: instead of the training criterion, as on a test set.
        """
        criterion = criterion or self.criterion
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage.with_criterion):
            value, details = criterion(*views, *predictions)
        total = value if self.stage.with_criterion else 0.0
        if self.regression is not None:
            views = self.add_targets(views, predictions, self.regression)
        for weight, term in self.terms:
            if isinstance(weight, Ramp):
                weight = weight.at(self.progress.step) if self.progress else weight.weight
            # A term of weight zero is left out, not multiplied: it may be infinite.
            if weight:
                value = average_over_views(term, views, predictions)
                total = total + weight * value
                details[term.name] = value.detach()
        if not isinstance(total, Tensor):
            raise ValueError(f"stage '{self.name}': all of its weights (--lambda_...) are zero")
        return total, details

    def _terms_for(self, present: set[str], weights: LossWeights) -> WeightedTerms:
        terms = self.stage.terms(weights)
        if GATE_PART in present:
            return terms
        return tuple(pair for pair in terms if not isinstance(pair[1], GateVariation))

    def _check_heads(self, model: nn.Module, present: set[str]) -> None:
        wanted = [(part,) for part in self.stage.needs]
        if self.stage.needs_one:
            wanted.append(self.stage.needs_one)
        for parts in wanted:
            if present.isdisjoint(parts):
                head_types = " or ".join(UQ_HEADS[part] for part in parts)
                raise ValueError(
                    f"stage '{self.name}' trains or reads {' or '.join(parts)}, which this model "
                    f"(head_type={model.head_type!r}) does not have: use head_type={head_types} "
                    "in --model"
                )
        if self.name == "plain" and not present.isdisjoint(UQ_HEADS):
            raise ValueError(
                f"the model (head_type={model.head_type!r}) has uncertainty heads and no "
                "--uq_mode says how they train: give --uq_mode geom or --uq_mode feat, for heads "
                "on points --uq_mode xyz or --uq_mode hetero_xyz, or a head_type without "
                "uncertainty, 'dpt'"
            )
