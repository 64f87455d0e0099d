"""Three posed frames around known points, and a small network, for the tests of DELTAS."""

import torch

from deltas.epipolar import back_project
from deltas.model import Deltas
from tests.golden.fill import fill_state_dict

SIZE = 48, 64
INTRINSICS = torch.tensor([[60.0, 0.0, 31.0], [0.0, 58.0, 24.5], [0.0, 0.0, 1.0]])


def small_model(**options) -> Deltas:
    """A network of every part, with weights and batch norms that are no unit matrices."""
    model = Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1), **options)
    fill_state_dict(model)
    return model.eval()


def camera_poses() -> torch.Tensor:
    """(1, 3, 4, 4) camera-to-world, the anchor not at the world's origin."""
    world = _turn(0.4, (3.0, -2.0, 5.0))
    return torch.stack(
        [world, world @ _turn(0.03, (0.1, 0.02, -0.02))]
        + [world @ _turn(-0.04, (-0.12, 0.03, 0.01))]
    )[None]


def anchor_to_view() -> torch.Tensor:
    """(1, 2, 4, 4), of ``camera_poses``."""
    poses = camera_poses()
    return poses[:, 1:].inverse() @ poses[:, :1]


def scene_points(depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (1, N, 2) of the anchor, and their points (1, N, 3) at the depths (N,)."""
    g = torch.Generator().manual_seed(0)
    pixels = (torch.rand(1, len(depth), 2, generator=g) * torch.tensor([63.0, 47.0])).round()
    return pixels, back_project(pixels, depth[None], INTRINSICS[None])


def images(size: tuple[int, int] = SIZE, batch: int = 1) -> torch.Tensor:
    """(B, 3, 3, H, W) in [-1, 1]."""
    g = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, 3, *size, generator=g) * 2 - 1


def _turn(angle: float, centre: tuple[float, float, float]) -> torch.Tensor:
    angle = torch.tensor(angle)
    pose = torch.eye(4)
    pose[0, 0] = pose[2, 2] = angle.cos()
    pose[0, 2], pose[2, 0] = angle.sin(), -angle.sin()
    pose[:3, 3] = torch.tensor(centre)
    return pose
