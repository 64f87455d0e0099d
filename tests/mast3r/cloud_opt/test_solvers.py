"""Derivatives and unknowns of both stages."""

from dataclasses import replace

import pytest
import torch

from dust3r.cloud_opt.similarity import exponential
from mast3r.cloud_opt.bundle import SLOTS, Spread
from mast3r.cloud_opt.minimise import Equations, Unknowns, damped_step, minimise
from mast3r.cloud_opt.sparse_ga import SparseScene


@pytest.fixture(scope="module")
def refined(results):
    """A bundle a little away from its best state."""
    scene = SparseScene(results(0.03, 0.5, edges=[(0, 1), (1, 2), (0, 2)]), verbose=False)
    scene.compute_global_alignment(niter2=2)
    bundle, state = scene._bundle, scene._state
    generator = torch.Generator().manual_seed(0)
    update = 1e-3 * torch.randn(3, SLOTS, generator=generator, dtype=torch.float64)
    return bundle, bundle._moved(state, update, {})


def test_equations_are_the_slope_of_the_cost(refined):
    bundle, state = refined
    spread = Spread(1.0, 0.05)
    unknowns = Unknowns.of(torch.ones(3, SLOTS, dtype=torch.bool))
    gradient = bundle._equations(state, spread, unknowns, opt_depth=False).gradient
    step = 1e-6
    for slot in range(3 * SLOTS):
        slopes = []
        for sign in (1, -1):
            update = torch.zeros(unknowns.count, dtype=torch.float64)
            update[slot] = sign * step
            moved = bundle._moved(state, unknowns.expand(update).view(3, SLOTS), {})
            slopes.append(sign * bundle._cost(moved, spread))
        # The cost is a sum of squares, the equations those of half of it.
        measured = sum(slopes) / (2 * step) / 2
        assert gradient[slot] == pytest.approx(measured, rel=1e-4, abs=1e-3)


def test_a_step_solves_for_anchors_and_cameras_at_once(refined):
    """Eliminating anchors gives what solving for everything together gives."""
    bundle, state = refined
    spread = Spread(1.0, 0.05)
    unknowns = Unknowns.of(torch.ones(3, SLOTS, dtype=torch.bool))
    with_depth = bundle._equations(state, spread, unknowns, opt_depth=True)
    bare = bundle._equations(state, spread, unknowns, opt_depth=False)
    anchors = [with_depth.extra[n] for n in range(3)]
    count, cells = unknowns.count, len(anchors[0].information)
    whole = torch.zeros(count + 3 * cells, count + 3 * cells, dtype=torch.float64)
    right = torch.zeros(count + 3 * cells, dtype=torch.float64)
    whole[:count, :count], right[:count] = bare.hessian, bare.gradient
    for n, one in enumerate(anchors):
        place = slice(count + n * cells, count + (n + 1) * cells)
        images = torch.cat([torch.tensor([n]), bundle.hosts[n].others])
        slots = (SLOTS * images[:, None] + torch.arange(SLOTS)).flatten()
        slots = unknowns.place[slots]
        block = torch.zeros(cells, count, dtype=torch.float64)
        block[:, slots] = one.coupling.flatten(1)
        whole[place, :count], whole[:count, place] = block, block.T
        whole[place, place] = torch.diag(one.information)
        right[place] = one.slope
    # The world's own freedom makes the equations singular: a little damping, the same in both.
    damping = 1e-3 * torch.eye(count, dtype=torch.float64)
    whole[:count, :count] += damping
    together = torch.linalg.solve(whole, -right)
    alone = torch.linalg.solve(with_depth.hessian + damping, -with_depth.gradient)
    assert torch.allclose(alone, together[:count], rtol=1e-5, atol=1e-8)
    before = [one.clone() for one in state.corrections]
    moved = bundle._moved(state, unknowns.expand(alone).view(3, SLOTS), with_depth.extra)
    for n in range(3):
        place = slice(count + n * cells, count + (n + 1) * cells)
        change = moved.corrections[n] - before[n]
        assert torch.allclose(change, together[place], rtol=1e-4, atol=1e-8)


def test_scale_of_the_world_does_not_matter(refined):
    bundle, state = refined
    spread = Spread(1.0, 0.05)
    tangent = torch.tensor([0.2, -0.1, 0.3, 1.0, 2.0, -1.0, 0.7]).double()
    moved = replace(state, cameras=exponential(tangent) @ state.cameras)
    assert bundle._cost(moved, spread) == pytest.approx(bundle._cost(state, spread), rel=1e-9)


def test_shared_and_fixed_unknowns():
    free = torch.tensor([[True, False, True], [True, True, True]])
    shared = torch.tensor([False, False, True])
    unknowns = Unknowns.of(free, shared)
    assert unknowns.count == 4
    step = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert unknowns.expand(step).view(2, 3).tolist() == [[1.0, 0.0, 4.0], [2.0, 3.0, 4.0]]
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T
    hessian, gradient = unknowns.reduce(matrix, matrix[0])
    basis = torch.stack([unknowns.expand(one) for one in torch.eye(4)], 1)
    assert torch.allclose(hessian, basis.T @ matrix @ basis, atol=1e-5)
    assert torch.allclose(gradient, basis.T @ matrix[0], atol=1e-5)


def test_minimise_finds_the_least_of_a_curved_valley():
    """Rosenbrock's, as least squares."""

    def residuals(x):
        return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    def linearise(x):
        jacobian = torch.autograd.functional.jacobian(residuals, x)
        r = residuals(x)
        return Equations(jacobian.T @ jacobian, jacobian.T @ r, float(r @ r), None)

    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    end = minimise(
        start,
        linearise,
        lambda x, step, _: x + step,
        lambda x: float(residuals(x) @ residuals(x)),
        200,
        tolerance=1e-12,
    )
    assert torch.allclose(end, torch.ones(2).double(), atol=1e-4)


def test_a_step_of_equations_that_say_nothing_is_finite():
    flat = Equations(torch.zeros(3, 3).double(), torch.zeros(3).double(), 0.0, None)
    assert damped_step(flat, 1e-4).isfinite().all()
