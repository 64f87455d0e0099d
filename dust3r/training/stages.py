"""What trains in each stage, and on what: the one table, and what applies it to a model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

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

EVERYTHING = "*"

Views = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]

# Parts of the uncertainty heads, and the head types that have them.
UQ_HEADS = {
    "depth_evi_head": "'dpt_uq' or 'dpt_uq_feat'",
    "depth_mean_head": "'dpt_uq_feat'",
    "depth_evi_head_feat": "'dpt_uq_feat'",
}


def lies_in(parameter_name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of these parts of the model, at whatever depth."""
    return not set(parts).isdisjoint(parameter_name.split("."))


@dataclass(frozen=True)
class LossWeights:
    """The ``--lambda_*`` arguments and ``--var_distill``; defaults as published."""

    uq: float = 1.0
    evi: float = 1e-3
    evi_feat: float = 0.0
    mean_gt: float = 1.0
    mean_distill: float = 0.0
    var_distill: float = 0.0
    var_distill_space: str = "linear"


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        trains: names of the parts of the heads that train, or ``EVERYTHING`` that the model does
            not freeze itself.
        needs: parts that the model's heads must have.
        terms: the weighted uncertainty terms of the loss, made from the weights.
        with_criterion: whether the criterion is part of the loss, or computed for the log alone.
    """

    trains: tuple[str, ...]
    needs: tuple[str, ...] = ()
    terms: Callable[[LossWeights], tuple[tuple[float, Term], ...]] = lambda weights: ()
    with_criterion: bool = True


def _geometry_terms(w: LossWeights) -> tuple[tuple[float, Term], ...]:
    return ((w.uq, EvidentialTerm("", w.evi)),)


def _mean_terms(w: LossWeights) -> tuple[tuple[float, Term], ...]:
    return ((w.mean_gt, MeanToDepth()), (w.mean_distill, MeanToTeacher()))


def _variance_terms(w: LossWeights) -> tuple[tuple[float, Term], ...]:
    return (
        *_mean_terms(w),
        (w.evi_feat, EvidentialTerm("_feat", w.evi)),
        (w.var_distill, VarianceToTeacher(w.var_distill_space)),
    )


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
}


def stage_name(uq_mode: str | None, phase: int | None, freeze_geom: bool = False) -> str:
    """The row that ``--uq_mode``, ``--phase`` and ``--freeze_geom_for_uq`` ask for.

    Raises:
        ValueError: the combination is none of the table's.
    """
    if uq_mode in (None, "none"):
        name = "plain"
    elif uq_mode == "geom":
        name = "geom, geometry frozen" if freeze_geom else "geom"
    else:
        name = f"{uq_mode}, phase {1 if phase is None else phase}"
    if name not in STAGES:
        raise ValueError(
            f"--uq_mode {uq_mode} --phase {phase} is no stage of training: there are '--uq_mode "
            "geom' (geometry and its evidence), '--uq_mode feat --phase 1' (depth mean from "
            "features) and '--uq_mode feat --phase 2' (its variance)"
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
        self.terms = self.stage.terms(weights)
        self._check_heads(model)
        if EVERYTHING not in self.stage.trains:
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(lies_in(parameter_name, self.stage.trains))

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
        for weight, term in self.terms:
            # A term of weight zero is left out, not multiplied: it may be infinite.
            if weight:
                value = average_over_views(term, views, predictions)
                total = total + weight * value
                details[term.name] = value.detach()
        if not isinstance(total, Tensor):
            raise ValueError(f"stage '{self.name}': all of its weights (--lambda_...) are zero")
        return total, details

    def _check_heads(self, model: nn.Module) -> None:
        present = {part for name, _ in model.named_modules() for part in name.split(".")}
        for part in self.stage.needs:
            if part not in present:
                raise ValueError(
                    f"stage '{self.name}' trains or reads {part}, which this model "
                    f"(head_type={model.head_type!r}) does not have: use "
                    f"head_type={UQ_HEADS[part]} in --model"
                )
        if self.name == "plain" and not present.isdisjoint(UQ_HEADS):
            raise ValueError(
                f"the model (head_type={model.head_type!r}) has uncertainty heads and no "
                "--uq_mode says how they train: give --uq_mode geom or --uq_mode feat, or a "
                "head_type without uncertainty, 'dpt'"
            )
