"""CroCo's layers: rotary embeddings, masks, the masked forward pass."""

import copy
import math
import pickle

import pytest
import torch

from croco.blocks import Attention, PatchEmbed, rope_base
from croco.croco import CroCoNet
from croco.masking import RandomMask
from croco.packing import can_pack, pack_linear_layers
from croco.pos_embed import RoPE2D, grid_positions, sincos_embedding_2d

TINY = {
    "enc_embed_dim": 32,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 16,
    "dec_depth": 2,
    "dec_num_heads": 2,
}


def test_rope_scores_depend_on_relative_positions_alone():
    rope = RoPE2D(16)
    q, k = torch.randn(2, 1, 1, 16).unbind()

    def score(q_at, k_at):
        turned_q, turned_k = (rope(torch.tensor([[at]])) for at in (q_at, k_at))
        return (turned_q.apply(q) * turned_k.apply(k)).sum().item()

    assert score((3, 5), (1, 9)) == pytest.approx(score((13, 25), (11, 29)), abs=1e-4)
    assert score((3, 5), (1, 9)) != pytest.approx(score((3, 5), (9, 1)), abs=1e-3)


def test_rope_keeps_lengths_and_types():
    rotation = RoPE2D(32)(grid_positions(2, 3, 4, torch.device("cpu")))
    x = torch.randn(2, 12, 5, 32)
    assert torch.allclose(rotation.apply(x).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert rotation.apply(x.bfloat16()).dtype == torch.bfloat16


def test_attention_with_rope_does_not_care_for_the_order_of_tokens():
    attention = Attention(32, 2)
    positions = grid_positions(1, 3, 3, torch.device("cpu"))
    x, order = torch.randn(1, 9, 32), torch.randperm(9)
    rope = RoPE2D(16)
    straight = attention(x, rope(positions))[:, order]
    assert torch.allclose(straight, attention(x[:, order], rope(positions[:, order])), atol=1e-5)


def test_sincos_embedding_tells_positions_apart():
    table = sincos_embedding_2d(16, 4, 5)
    assert table.shape == (20, 16)
    assert torch.cdist(table, table).add(torch.eye(20) * 9).min() > 0.1
    assert table[0, 0] == 0 and table[0, 4] == 1  # sine and cosine of column 0
    assert table[1, 0] == pytest.approx(math.sin(1)) and table[1, 8] == 0


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_masks_hide_the_same_share_everywhere(ratio):
    mask = RandomMask(ratio)(4, 50, torch.device("cpu"))
    assert (mask.sum(1) == int(ratio * 50)).all()
    if ratio:
        assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize("pos_embed", ["cosine", "RoPE100"])
def test_masked_forward(pos_embed):
    net = CroCoNet(img_size=64, pos_embed=pos_embed, **TINY)
    img1, img2 = torch.rand(2, 2, 3, 64, 64).unbind()
    prediction, mask, target = net(img1, img2)
    assert prediction.shape == target.shape == (2, 16, 768) and mask.sum(1).tolist() == [14, 14]
    assert torch.equal(net.unpatchify(target, 64, 64), img1)
    ((prediction - target)[mask] ** 2).mean().backward()
    assert net.mask_token.grad.abs().sum() > 0


def test_hidden_patches_are_not_seen():
    net = CroCoNet(img_size=64, pos_embed="RoPE100", **TINY).eval()
    img1, img2 = torch.rand(2, 1, 3, 64, 64).unbind()
    mask = torch.ones(1, 16).bool()
    mask[0, :2] = False
    changed = net.patchify(img1).clone()
    changed[mask] = 0
    completed = net(img1, img2, mask)[0]
    again = net(net.unpatchify(changed, 64, 64), img2, mask)[0]
    assert torch.allclose(completed, again)
    assert not torch.allclose(completed, net(img1, 1 - img2, mask)[0])


def test_completion_can_be_learnt():
    torch.manual_seed(0)
    net = CroCoNet(img_size=32, mask_ratio=0.5, pos_embed="RoPE100", **TINY)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    image = torch.rand(4, 3, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    losses = []
    for _ in range(60):
        prediction, mask, target = net(image, image)
        loss = ((prediction - target)[mask] ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CroCoNet(img_size=100), "multiples of 16"),
        (lambda: CroCoNet(pos_embed="learnt"), "'RoPE100'"),
        (lambda: Attention(10, 3), "3 heads"),
        (lambda: RandomMask(1.0), r"\[0, 1\)"),
        (lambda: PatchEmbed((32, 32), 16, 8)(torch.zeros(1, 3, 30, 32)), "30x32"),
        (lambda: RoPE2D(10), "4 divides"),
        (lambda: sincos_embedding_2d(10, 2, 2), "4 divides"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cosine_embedding_names_the_size_it_is_tied_to():
    net = CroCoNet(img_size=32, pos_embed="cosine", **TINY)
    with pytest.raises(ValueError, match="32x32"):
        net(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


def test_rope_base():
    assert rope_base("RoPE100") == 100 and rope_base("cosine") is None


def packed_pair():
    torch.manual_seed(0)
    plain = Attention(32, 2).eval()
    packed = copy.deepcopy(plain)
    assert pack_linear_layers(packed) == 2
    return plain, packed


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
)


@needs_onednn
def test_packed_layers_compute_the_same_under_the_same_names():
    plain, packed = packed_pair()
    x = torch.randn(2, 7, 32)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(packed(x), plain(x))
    assert packed.state_dict().keys() == plain.state_dict().keys()
    packed(x).sum().backward()
    assert packed.qkv.weight.grad.abs().sum() > 0


@needs_onednn
def test_packed_in_bf16_serves_autocast_alone():
    plain, packed = packed_pair()
    # A processor without bf16 instructions packs nothing, and computes as before.
    assert pack_linear_layers(packed, torch.bfloat16) == (2 if can_pack(torch.bfloat16) else 0)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packed.qkv(x).dtype == torch.bfloat16
            torch.testing.assert_close(packed(x), plain(x), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match=r"not torch.float16"):
        pack_linear_layers(packed, torch.float16)


@needs_onednn
def test_what_the_processor_does_not_know_is_not_packed(monkeypatch):
    plain, _ = packed_pair()
    monkeypatch.setattr("croco.packing.can_pack", lambda dtype: dtype != torch.bfloat16)
    assert pack_linear_layers(plain, torch.bfloat16) == 0
    assert type(plain.qkv) is torch.nn.Linear
    assert pack_linear_layers(plain) == 2


@needs_onednn
def test_packed_layers_use_the_copy_until_their_weights_change():
    plain, packed = packed_pair()
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        packed.qkv.packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(96, 32), None)
        assert torch.equal(packed.qkv(x), packed.qkv.bias.expand(2, 7, 96))
        packed.load_state_dict(plain.state_dict())
        torch.testing.assert_close(packed(x), plain(x))
        torch.testing.assert_close(copy.deepcopy(packed)(x), plain(x))
        pickle.dumps(packed)
        assert packed.double()(x.double()).dtype == torch.float64
