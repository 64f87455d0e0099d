"""Damped Gauss-Newton steps (Levenberg-Marquardt) on cameras, for both stages of alignment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")
Extra = TypeVar("Extra")

_MOST_DAMPING = 1e8
_ROUND_OFF = 1e-12


@dataclass(frozen=True)
class Equations(Generic[Extra]):
    """Normal equations of R unknowns: (R, R), (R,), the cost, and what a step needs besides."""

    hessian: Tensor
    gradient: Tensor
    cost: float
    extra: Extra


def minimise(
    state: State,
    linearise: Callable[[State], Equations],
    moved: Callable[[State, Tensor, Equations], State],
    cost: Callable[[State], float],
    niter: int,
    tolerance: float = 1e-4,
    progress: Callable[[int, float], None] | None = None,
) -> State:
    """Minimise a robust cost whose kernel may change from round to round.

    Args:
        linearise: equations at a state, their kernel fitted there.
        moved: the state after a step (R,).
        cost: of a state under the kernel of the last linearisation.
        niter: most rounds.
        tolerance: stop when a round changes the cost by less than this fraction.
        progress: called with the number of rounds done and the cost.
    """
    damping = 1e-4
    equations = linearise(state)
    for done in range(niter):
        step = damped_step(equations, damping)
        proposed = moved(state, step, equations)
        reached = cost(proposed)
        if not reached <= equations.cost * (1 + 1e-9):
            damping *= 10
            if damping > _MOST_DAMPING:
                break
            continue
        gain = equations.cost - reached
        state, before = proposed, equations.cost
        damping = max(damping / 10, 1e-9)
        if progress is not None:
            progress(done + 1, reached)
        if gain < tolerance * before + _ROUND_OFF:
            break
        equations = linearise(state)
    return state


def damped_step(equations: Equations, damping: float) -> Tensor:
    """(R,) solution of the equations, their diagonal made larger by the fraction ``damping``."""
    hessian = equations.hessian
    diagonal = hessian.diagonal()
    floor = 1e-12 * diagonal.max().clamp_min(1e-12)
    damped = hessian + torch.diag(damping * diagonal + floor)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return torch.linalg.lstsq(damped, -equations.gradient[:, None]).solution[:, 0]
    return torch.cholesky_solve(-equations.gradient[:, None], factor)[:, 0]


@dataclass(frozen=True)
class Unknowns:
    """Which of the slots of all images are unknown, and which share one.

    Attributes:
        place: (slots,) int64, the unknown of each slot; -1 where it is known.
        count: of unknowns.
    """

    place: Tensor
    count: int

    @classmethod
    def of(cls, free: Tensor, shared: Tensor | None = None) -> "Unknowns":
        """Of ``free`` (N, D) bool; ``shared`` (D,) bool: one unknown for all images."""
        count, place = 0, torch.full(free.shape, -1)
        for column in range(free.shape[1]):
            chosen = free[:, column]
            if shared is not None and shared[column]:
                place[chosen, column] = count
                count += int(chosen.any())
            else:
                place[chosen, column] = count + torch.arange(int(chosen.sum()))
                count += int(chosen.sum())
        return cls(place.flatten(), count)

    def reduce(self, hessian: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Equations of the unknowns from those of all slots."""
        kept = self.place >= 0
        place = self.place[kept]
        rows = hessian.new_zeros(self.count, int(kept.sum()))
        rows.index_add_(0, place, hessian[kept][:, kept])
        reduced = hessian.new_zeros(self.count, self.count).index_add_(1, place, rows)
        return reduced, gradient.new_zeros(self.count).index_add_(0, place, gradient[kept])

    def reduce_rows(self, rows: Tensor) -> Tensor:
        """Derivatives (K, R) by the unknowns from those by all slots (K, slots)."""
        kept = self.place >= 0
        reduced = rows.new_zeros(len(rows), self.count)
        return reduced.index_add_(1, self.place[kept], rows[:, kept])

    def expand(self, step: Tensor) -> Tensor:
        """Values (slots,) of unknowns (R,); 0 where a slot is known."""
        full = step.new_zeros(len(self.place))
        kept = self.place >= 0
        full[kept] = step[self.place[kept]]
        return full
