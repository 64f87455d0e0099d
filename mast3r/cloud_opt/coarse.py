"""First cameras from matched 3-D points: along a spanning tree, then all pairs together.

Duisterhof et al., "MASt3R-SfM", 2024, section 4.2: canonical pointmaps, rigid but for scale, are
moved until matched points coincide. Here by second-order steps, with residuals relative to depth
and measured in the frame of the image they are in, so that the scene cannot shrink.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from dust3r.cloud_opt.residuals import Kernel, accumulate, robust_cost, tangent, whitened
from dust3r.cloud_opt.similarity import apply, exponential, register
from mast3r.cloud_opt.matched import PairMatches
from mast3r.cloud_opt.minimise import Equations, Unknowns, minimise

_MOST_SAMPLES = 256


class Coarse:
    """3-D points of matches: M of each of 2 P ordered pairs, both orders of all pairs.

    Args:
        matches: of the pairs.
        points: (H, W, 3) float32 of every image, in its own frame; matched ones have z > 0.
    """

    def __init__(self, matches: Sequence[PairMatches], points: Sequence[Tensor]):
        size = min(_MOST_SAMPLES, max(len(pair) for pair in matches))
        count = len(matches)
        self.edges = torch.tensor([pair.edge for pair in matches])
        self.edges = torch.cat([self.edges, self.edges.flip(1)])
        first, second = torch.zeros(count, size, 3), torch.zeros(count, size, 3)
        votes = torch.zeros(count, size)
        for n, pair in enumerate(matches):
            chosen = torch.linspace(0, len(pair) - 1, min(size, len(pair))).long()
            x1, y1, x2, y2 = pair.pixels[chosen].unbind(1)
            first[n, : len(chosen)] = points[pair.edge[0]][y1, x1]
            second[n, : len(chosen)] = points[pair.edge[1]][y2, x2]
            votes[n, : len(chosen)] = pair.confidence[chosen].clamp_min(1e-3)
        # A pair counts by how many matches it has, up to the number of samples.
        votes = votes / votes[votes > 0].median()
        self.source, self.target = torch.cat([first, second]), torch.cat([second, first])
        self.votes = votes.repeat(2, 1)

    def spanning_tree(self, scores: Tensor) -> tuple[Tensor, int]:
        """Cameras (N, 4, 4), similarities to the world, along the tree of the best scores (P,).

        Also the root, whose frame is the world's.
        """
        count, n_images = len(scores), int(self.edges.max()) + 1
        cost = (1 / scores.double().clamp_min(1e-9)).numpy()
        rows, columns = self.edges[:count].T.numpy()
        tree = minimum_spanning_tree(coo_matrix((cost, (rows, columns)), (n_images, n_images)))
        strength = np.bincount(np.r_[rows, columns], np.tile(scores.numpy(), 2), n_images)
        root = int(strength.argmax())
        order, parents = breadth_first_order(tree, root, directed=False)
        number = {tuple(edge): n for n, edge in enumerate(self.edges.tolist())}
        cameras = torch.eye(4).double().repeat(n_images, 1, 1)
        chosen = torch.tensor([number[child, int(parents[child])] for child in order[1:].tolist()])
        if len(chosen):
            steps = register(self.source[chosen], self.target[chosen], self.votes[chosen])
            for child, step in zip(order[1:].tolist(), steps, strict=True):
                cameras[child] = cameras[int(parents[child])] @ step
        return cameras, root

    def align(
        self,
        cameras: Tensor,
        free: Tensor,
        niter: int,
        progress: Callable[[int, float], None] | None = None,
    ) -> tuple[Tensor, Kernel]:
        """Cameras (N, 4, 4) at which all matched points agree best, and how well they do.

        Args:
            free: (N, 7) bool: what of rotation, translation and log-scale may change.
            niter: most steps.
        """
        unknowns = Unknowns.of(free)
        kernel = self._kernel(cameras)

        def linearise(cameras: Tensor) -> Equations:
            nonlocal kernel
            kernel = self._kernel(cameras)
            return self._equations(cameras, kernel, unknowns)

        def moved(cameras: Tensor, step: Tensor, _: Equations) -> Tensor:
            return cameras @ exponential(unknowns.expand(step).view(-1, 7))

        def cost(cameras: Tensor) -> float:
            residual, rays, _ = self._residuals(cameras)
            return robust_cost(whitened(residual, rays, kernel), self.votes, kernel)[0]

        cameras = minimise(cameras, linearise, moved, cost, niter, progress=progress)
        return cameras, self._kernel(cameras)

    def _residuals(self, cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(target - moved) / depth and rays, (2 P, M, 3), and the moved points."""
        first, second = self.edges.unbind(1)
        between = torch.linalg.inv(cameras[second]) @ cameras[first]
        moved = apply(between, self.source)
        depth = self.target[..., 2:].clamp_min(1e-9)
        residual = torch.where(self.votes[..., None] > 0, (self.target - moved) / depth, 0.0)
        return residual, torch.nn.functional.normalize(self.target, dim=-1), moved

    def _kernel(self, cameras: Tensor) -> Kernel:
        residual, rays, _ = self._residuals(cameras)
        used = self.votes > 0
        along = (residual * rays).sum(-1)
        across = (residual - along[..., None] * rays).norm(dim=-1)
        return Kernel.of(across[used], along[used].abs())

    def _equations(self, cameras: Tensor, kernel: Kernel, unknowns: Unknowns) -> Equations:
        residual, rays, moved = self._residuals(cameras)
        first, second = self.edges.unbind(1)
        linear = (torch.linalg.inv(cameras[second]) @ cameras[first])[:, None, :3, :3].float()
        depth = self.target[..., 2:, None].clamp_min(1e-9)
        jacobian = torch.cat([-linear @ tangent(self.source), tangent(moved)], -1) / depth
        blocks, slopes, total, _ = accumulate(jacobian, residual, rays, self.votes, kernel)
        n_images = len(cameras)
        hessian = torch.zeros(n_images * n_images, 7, 7, dtype=torch.float64)
        gradient = torch.zeros(n_images, 7, dtype=torch.float64)
        for a, row in ((first, slice(0, 7)), (second, slice(7, 14))):
            gradient.index_add_(0, a, slopes[:, row])
            for b, column in ((first, slice(0, 7)), (second, slice(7, 14))):
                hessian.index_add_(0, a * n_images + b, blocks[:, row, column])
        hessian = hessian.view(n_images, n_images, 7, 7).transpose(1, 2)
        whole = hessian.reshape(7 * n_images, 7 * n_images)
        return Equations(*unknowns.reduce(whole, gradient.flatten()), total, None)
