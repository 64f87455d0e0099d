"""What the benchmarks share: the yardstick, medians, the models they time."""

import statistics
import time
from collections.abc import Callable

import torch

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)

HEADS = {
    "dpt": "head_type='dpt'",
    "dpt_uq": "head_type='dpt_uq'",
    "dpt_uq_feat": "head_type='dpt_uq_feat'",
    "catmlp+dpt": "head_type='catmlp+dpt', output_mode='pts3d+desc24', two_confs=True",
}


def matrix_rate(n: int = 2048, repeats: int = 10, dtype: torch.dtype = torch.float32) -> float:
    """Best rate of this machine's matrix product of ``n`` x ``n`` right now, in FLOP/s."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2, n, n, device=device).to(dtype).unbind()
    best = min(seconds(lambda: a @ b) for _ in range(repeats + 1))
    return 2 * n**3 / best


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, to the end of what it put on the GPU."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median over ``repeats`` calls, after one that is not counted."""
    run()
    return statistics.median(seconds(run) for _ in range(repeats))


def random_views(batch: int, height: int, width: int, device: str = "cpu") -> tuple[dict, dict]:
    """Two views (DESIGN 2) of random pixels, a plausible depth and one camera."""
    generator = torch.Generator().manual_seed(0)
    focal = 0.9 * width
    views = []
    for number in (0, 1):
        depth = 1 + 2 * torch.rand(batch, height, width, generator=generator)
        v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        rays = torch.stack(
            [(u - width / 2) / focal, (v - height / 2) / focal, torch.ones(u.shape)], -1
        )
        view = {
            "img": torch.rand(batch, 3, height, width, generator=generator) * 2 - 1,
            "depthmap": depth,
            "valid_mask": torch.ones(batch, height, width, dtype=torch.bool),
            "pts3d": depth[..., None] * rays,
            "camera_pose": torch.eye(4).expand(batch, 4, 4),
        }
        view = {key: value.to(device) for key, value in view.items()}
        view["true_shape"] = torch.tensor([[height, width]] * batch)
        view["instance"] = [f"{number}-{i}" for i in range(batch)]
        views.append(view)
    return tuple(views)
