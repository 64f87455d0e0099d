"""Sparse depth images, doubling of maps, folding of batch norms."""

import pytest
import torch
import torch.nn.functional as F
from deltas_scenes import images, small_model
from torch import nn

from deltas.densify import Densification, conv_spread, sparse_depth
from deltas.folding import fold_batch_norms


def test_sparse_depth_is_at_the_pixels():
    points = torch.tensor([[[3.0, 1.0], [0.0, 2.0], [4.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    image = sparse_depth(points, torch.tensor([[2.0, 3.0, 4.0]]), valid, (3, 5))
    expected = torch.zeros(1, 1, 3, 5)
    expected[0, 0, 1, 3], expected[0, 0, 2, 0] = 2, 3
    assert torch.equal(image, expected)


def test_nearest_of_one_pixel_whatever_the_order():
    points = torch.tensor([[[1.0, 1.0]] * 3])
    valid = torch.tensor([[True, True, False]])
    for z in ([5.0, 2.0, 1.0], [2.0, 5.0, 1.0]):
        assert sparse_depth(points, torch.tensor([z]), valid, (3, 3))[0, 0, 1, 1] == 2


def test_sparse_depth_carries_derivatives_of_valid_points_alone():
    z = torch.tensor([[2.0, torch.nan]], requires_grad=True)
    points = torch.tensor([[[1.0, 0.0], [2.0, 2.0]]])
    image = sparse_depth(points, z, torch.tensor([[True, False]]), (3, 3))
    image.sum().backward()
    assert z.grad.tolist() == [[1, 0]]


@pytest.mark.parametrize("bias", [True, False])
def test_convolution_of_spread_values(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 5, padding=2, bias=bias)
    x = torch.randn(2, 3, 5, 6)
    spread = torch.zeros(2, 3, 10, 12)
    spread[..., ::2, ::2] = x
    assert torch.allclose(conv_spread(x, conv), conv(spread), atol=1e-6)


def test_width_must_divide_by_four():
    with pytest.raises(ValueError, match="multiple of 4"):
        Densification(width=10)


@torch.no_grad()
def test_folded_batch_norms_change_nothing():
    model, frames = small_model(), images((48, 64)).flatten(0, 1)
    maps = model.interest.encode(frames)
    sparse = F.relu(frames[:, :1])
    before = model.interest.detect(maps), model.interest.describe(maps)
    before += model.densification(sparse, maps)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    # All but the two of the matching, which follow no convolution of the network.
    assert model.fold_batch_norms() == norms - 2
    maps = model.interest.encode(frames)
    after = model.interest.detect(maps), model.interest.describe(maps)
    after += model.densification(sparse, maps)
    for old, new in zip(before, after, strict=True):
        assert (old - new).abs().max() <= 1e-4 * old.abs().max()


def test_no_folding_in_training():
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(Densification(width=4, depths=(1, 1, 1, 1)))
