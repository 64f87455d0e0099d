"""The contract of a view (DESIGN 2), checked once where a batch enters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Key: shape after the batch dimension, in terms of the image's height H and width W.
INPUT_KEYS = {"img": (3, "H", "W"), "true_shape": (2,)}
TRUTH_KEYS = {
    "depthmap": ("H", "W"),
    "valid_mask": ("H", "W"),
    "pts3d": ("H", "W", 3),
    "camera_pose": (4, 4),
    "camera_intrinsics": (3, 3),
}

View = dict[str, Any]


def points_key(prediction: Mapping[str, Any]) -> str:
    """Where the points (B,H,W,3) of a prediction are, of view 1 or of view 2."""
    return "pts3d" if "pts3d" in prediction else "pts3d_in_other_view"


def check_view(view: View, with_truth: bool = True) -> None:
    """Check a batched view's keys and shapes.

    Raises:
        ValueError: a key is missing or a shape is not that of the contract.
    """
    expected = INPUT_KEYS | (TRUTH_KEYS if with_truth else {})
    missing = [key for key in expected if key not in view]
    if missing:
        raise ValueError(
            f"a view lacks {', '.join(missing)}; it has {', '.join(sorted(view))}. A view for "
            f"{'training' if with_truth else 'inference'} needs {', '.join(expected)}"
        )
    if view["img"].ndim != 4:
        raise ValueError(f"img is (B, 3, H, W), not {tuple(view['img'].shape)}")
    batch, _, height, width = view["img"].shape
    for key, shape in expected.items():
        wanted = (batch, *({"H": height, "W": width}.get(n, n) for n in shape))
        if tuple(view[key].shape) != wanted:
            raise ValueError(
                f"{key} of a view has the shape {tuple(view[key].shape)}, and {wanted} is expected "
                f"with images of {height}x{width} (height x width) in a batch of {batch}"
            )


def symmetrise(view1: View, view2: View) -> tuple[View, View]:
    """(a, b), (c, d), ... to (a, b), (b, a), (c, d), (d, c), ...: twice the batch."""
    return _interleave(view1, view2), _interleave(view2, view1)


def own_depth(points: Tensor, pose1: Tensor, pose2: Tensor) -> Tensor:
    """Depth (B, H, W) in camera 2 of points (B, H, W, 3) given in camera 1's frame.

    Poses (B, 4, 4) are camera-to-world; the result is in the unit of points and poses, which
    must be one.
    """
    second_from_first = torch.linalg.inv(pose2) @ pose1
    row = second_from_first[:, 2]
    return torch.einsum("bhwc,bc->bhw", points, row[:, :3]) + row[:, 3, None, None]


def _interleave(first: View, second: View) -> View:
    return {key: _interleave_values(value, second[key]) for key, value in first.items()}


def _interleave_values(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.stack([first, second], dim=1).flatten(0, 1)
    if isinstance(first, (list, tuple)) and first and isinstance(first[0], Tensor):
        # Collated tuples such as idx: one tensor per entry.
        return [_interleave_values(a, b) for a, b in zip(first, second, strict=True)]
    return [value for pair in zip(first, second, strict=True) for value in pair]
