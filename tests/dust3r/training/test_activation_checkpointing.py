"""Blocks computed again give the same gradients, and keep fewer activations."""

import copy

import pytest
import torch
import torch.nn.functional as F

from croco.blocks import Block
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.training.recompute import recompute_blocks


def network(**options):
    torch.manual_seed(0)
    widths = {"enc_embed_dim": 32, "enc_depth": 3, "enc_num_heads": 2}
    widths |= {"dec_embed_dim": 32, "dec_depth": 4, "dec_num_heads": 2}
    return AsymmetricCroCo3DStereo(**widths, **options)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    shape = torch.tensor([[32, 48]])
    return [
        {"img": torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1, "true_shape": shape}
        for _ in range(2)
    ]


def gradients(model, views, dtype=None):
    """Of a loss on everything predicted, and the bytes that were kept for them."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    enabled = dtype is not None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=enabled),
    ):
        predictions = model(*views)
    sum(value.float().square().mean() for p in predictions for value in p.values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_gradients_are_the_same_to_the_bit(views, dtype, freeze):
    plain = network(freeze=freeze)
    again = copy.deepcopy(plain)
    assert recompute_blocks(again) == 3 + 2 * 4
    assert list(again.state_dict()) == list(plain.state_dict())
    expected, all_kept = gradients(plain, views, dtype)
    found, kept = gradients(again, views, dtype)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        assert gradient is None or torch.equal(gradient, found[name]), name
    assert kept < 0.6 * all_kept


class Noisy(Block):
    def forward(self, x, rotation=None):
        return F.dropout(super().forward(x, rotation), 0.5)


def test_chance_is_drawn_again_from_the_same_state():
    torch.manual_seed(0)
    plain = Noisy(16, 2)
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    x = torch.randn(2, 5, 16)
    results = []
    for block in (plain, again):
        torch.manual_seed(3)
        block(x).square().sum().backward()
        results.append([p.grad for p in block.parameters()])
        after = torch.rand(1)
    torch.manual_seed(3)
    F.dropout(torch.ones(2, 5, 16), 0.5)
    assert torch.equal(after, torch.rand(1))
    assert all(map(torch.equal, *results))


def test_without_gradients_nothing_changes(views):
    plain = network().eval()
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    with torch.no_grad():
        for expected, found in zip(plain(*views), again(*views), strict=True):
            assert all(torch.equal(expected[name], found[name]) for name in expected)
