"""Pairwise models: loading, symmetrised and mixed batches, freezing, heads."""

import argparse
import json

import pytest
import torch

import mast3r.model
from croco.croco import CroCoNet
from dust3r.model import AsymmetricCroCo3DStereo, is_symmetrised, load_model
from dust3r.training import checkpoint
from dust3r.utils.view import symmetrise

SMALL = {
    "enc_embed_dim": 24,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 4,
    "dec_num_heads": 2,
    "dpt_dim": 16,
}
WIDTHS = ", ".join(f"{k}={v}" for k, v in SMALL.items())
SPEC = (
    "AsymmetricCroCo3DStereo(patch_embed_cls='ManyAR_PatchEmbed', head_type='dpt_uq_feat', "
    f"{WIDTHS})"
)


def views(batch=2, height=32, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        {
            "img": torch.rand(batch, 3, height, width, generator=generator) * 2 - 1,
            "true_shape": torch.tensor([[height, width]] * batch),
            "instance": [f"{k}-{i}" for i in range(batch)],
        }
        for k in (0, 1)
    )


def model(cls=AsymmetricCroCo3DStereo, **kwargs):
    torch.manual_seed(0)
    return cls(**({"head_type": "dpt_uq_feat"} | SMALL | kwargs)).eval()


def assert_close(first, second, atol=1e-5):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=1e-3)


@torch.no_grad()
def test_symmetrised_batch_encodes_each_image_once(monkeypatch):
    net = model()
    pair = symmetrise(*views(batch=3))
    assert is_symmetrised(*pair) and not is_symmetrised(*views(batch=2))
    seen = []
    encode = net.encode_image
    monkeypatch.setattr(net, "encode_image", lambda i, s: seen.append(len(i)) or encode(i, s))
    symmetric = net(*pair)
    assert sum(seen) == 6
    for view in pair:
        view["instance"] = [str(i) for i in range(6)]
    seen.clear()
    plain = net(*pair)
    assert sum(seen) == 12
    for a, b in zip(symmetric, plain, strict=True):
        assert_close(a, b)


def test_one_file_in_two_crops_is_not_taken_for_a_symmetrised_batch():
    view1, view2 = symmetrise(*views(batch=1))
    view2["img"] = view2["img"].flip(-1)
    assert not is_symmetrised(view1, view2)


@torch.no_grad()
@pytest.mark.parametrize("head_type", ["linear", "dpt_uq_feat", "catmlp+dpt"])
def test_mixed_batch_gives_what_each_image_gives_alone(head_type):
    """A portrait image travels transposed; its prediction is that of the upright image."""
    extra = {"output_mode": "pts3d+desc24", "two_confs": True} if "catmlp" in head_type else {}
    cls = mast3r.model.AsymmetricMASt3R
    net = model(cls, head_type=head_type, patch_embed_cls="ManyAR_PatchEmbed", **extra)
    view1, view2 = views(batch=2)
    view1["true_shape"][1] = torch.tensor([48, 32])
    mixed = net(view1, view2)[0]

    alone = model(cls, head_type=head_type, landscape_only=False, **extra)
    alone.load_state_dict(net.state_dict())
    for i in (0, 1):
        one, two = ({k: v[i : i + 1] for k, v in view.items()} for view in (view1, view2))
        if i == 1:
            one["img"] = one["img"].transpose(2, 3)
        upright = alone(one, two)[0]
        for name, value in upright.items():
            if i == 1:
                value = value.transpose(1, 2) if value.shape[1] == 48 else value.transpose(2, 3)
            torch.testing.assert_close(mixed[name][i : i + 1], value, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_views_of_two_shapes():
    net = model(landscape_only=False)
    first, second = views(height=32)[0], views(height=64)[1]
    pred1, pred2 = net(first, second)
    assert pred1["pts3d"].shape == (2, 32, 48, 3)
    assert pred2["pts3d_in_other_view"].shape == (2, 64, 48, 3)


def test_one_decoder_of_a_croco_file_serves_both():
    croco = CroCoNet(pos_embed="RoPE100", **{k: v for k, v in SMALL.items() if k != "dpt_dim"})
    net = model(head_type="linear")
    report = checkpoint.load_state_dict(net, croco.state_dict())
    assert torch.equal(net.dec_blocks2[3].mlp.fc1.weight, croco.dec_blocks[3].mlp.fc1.weight)
    assert all("downstream_head" in name for name in report.missing)
    assert any("prediction_head" in name for name in report.unexpected)


@pytest.mark.parametrize(
    ("freeze", "frozen"), [("none", ()), ("encoder", ("enc_blocks", "enc_norm", "patch_embed"))]
)
def test_freeze(freeze, frozen):
    names = [n for n, p in model(freeze=freeze).named_parameters() if not p.requires_grad]
    always = ("mask_token", "refinenet4.resConfUnit1")
    assert all(any(part in n for part in (*always, *frozen)) for n in names)
    assert all(any(part in n for n in names) for part in frozen)


def test_every_trained_parameter_gets_a_gradient():
    """DDP waits for all of them."""
    net = model().train()
    predictions = net(*views())
    sum(p.float().mean() for pred in predictions for p in pred.values()).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def save(tmp_path, name="checkpoint.pth"):
    net = model(patch_embed_cls="ManyAR_PatchEmbed")
    args = argparse.Namespace(model=SPEC)
    checkpoint.save(tmp_path / name, {"model": net.state_dict(), "args": args, "epoch": 1})
    return net


@torch.no_grad()
def test_load_model_takes_upright_images(tmp_path):
    trained = save(tmp_path)
    loaded = load_model(tmp_path / "checkpoint.pth")
    assert not loaded.training and not loaded.landscape_only
    pair = views()
    for a, b in zip(loaded(*pair), trained(*pair), strict=True):
        assert_close(a, b)
    portrait = views(height=48, width=32)
    assert loaded(*portrait)[0]["pts3d"].shape == (2, 48, 32, 3)


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint-best.pth", None])
def test_from_pretrained_takes_files_and_folders(tmp_path, name):
    net = save(tmp_path, name or "checkpoint-best.pth")
    source = tmp_path / name if name == "checkpoint.pth" else tmp_path
    loaded = AsymmetricCroCo3DStereo.from_pretrained(source)
    assert torch.equal(loaded.dec_norm.weight, net.dec_norm.weight)


@torch.no_grad()
def test_saved_for_the_hub_and_back(tmp_path):
    net = model(landscape_only=False)
    torch.nn.init.normal_(net.dec_norm.bias)
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["head_type"] == "dpt_uq_feat" and config["enc_embed_dim"] == 24
    loaded = AsymmetricCroCo3DStereo.from_pretrained(tmp_path).eval()
    pair = views()
    for a, b in zip(loaded(*pair), net(*pair), strict=True):
        assert_close(a, b)


def test_hub_config_as_published_is_understood(tmp_path):
    """Lists for tuples, Infinity, explicit defaults, as in config.json of published models."""
    net = model(landscape_only=False)
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"conf_mode": ["exp", 1, float("inf")], "freeze": "none", "img_size": [512, 512]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AsymmetricCroCo3DStereo.from_pretrained(tmp_path).conf_mode == ("exp", 1, float("inf"))


def test_unknown_name_says_neither_file_nor_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing.*no file here.*hub"):
        AsymmetricCroCo3DStereo.from_pretrained("nobody/nothing")


def test_checkpoint_without_a_model_name(tmp_path):
    checkpoint.save(tmp_path / "bare.pth", {"model": model().state_dict()})
    with pytest.raises(checkpoint.CheckpointError, match="args.model"):
        load_model(tmp_path / "bare.pth")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"head_type": "dtp"}, "none of"),
        ({"head_type": "catmlp+dpt_typo"}, "AsymmetricMASt3R"),
        ({"patch_embed_cls": "PatchEmbed"}, "ManyAR_PatchEmbed"),
        ({"freeze": "decoder"}, "encoder"),
        ({"output_mode": "pts3d+desc24"}, "AsymmetricMASt3R"),
        ({"depth_mode": ("log", -torch.inf, torch.inf)}, "'exp', 'square', 'linear'"),
        ({"dec_depth": 2}, "head_type='linear'"),
        ({"conf_mode": None}, "conf_mode"),
        ({"dpt_dim": 20}, "multiple of 8"),
    ],
)
def test_mistakes_are_explained(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)(*views())


def test_shapes_that_do_not_fit_are_explained():
    with pytest.raises(ValueError, match="landscape"):
        portrait = views(height=48, width=32)
        model(patch_embed_cls="ManyAR_PatchEmbed")(*portrait)
    mixed = views()
    mixed[0]["true_shape"] = torch.tensor([[32, 48], [48, 32]])
    with pytest.raises(ValueError, match="one upright shape"):
        model(landscape_only=False)(*mixed)


def test_descriptors_and_output_mode_must_agree():
    make = mast3r.model.AsymmetricMASt3R
    with pytest.raises(ValueError, match="pts3d\\+desc24"):
        make(head_type="catmlp+dpt", **SMALL)
    with pytest.raises(ValueError, match="'catmlp\\+dpt'"):
        make(head_type="dpt", output_mode="pts3d+desc24", **SMALL)


@torch.no_grad()
def test_bf16_stays_near_fp32():
    net = model(head_type="dpt")
    exact = net(*views())[0]["pts3d"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(*views())[0]["pts3d"]
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.02 * exact.norm()


def test_compiled_layers_keep_names():
    net = model()
    names = list(net.state_dict())
    net.compile_layers()
    assert list(net.state_dict()) == names


@torch.no_grad()
def test_packed_weights_predict_the_same():
    net = model()
    names, plain = list(net.state_dict()), net(*views())
    packed = net.pack_weights()
    assert packed == sum(isinstance(m, torch.nn.Linear) for m in net.modules()) or packed == 0
    assert list(net.state_dict()) == names
    for before, after in zip(plain, net(*views()), strict=True):
        assert_close(after, before)
