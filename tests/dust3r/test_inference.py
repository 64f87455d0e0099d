"""Inference over pairs: that of each pair alone, images encoded once, memory that ends."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.image_pairs import make_pairs
from dust3r.inference import check_if_same_size, inference
from dust3r.model import AsymmetricCroCo3DStereo, for_upright_images, load_model
from dust3r.utils.device import to_cpu, to_numpy
from dust3r.utils.image import load_images
from mast3r.model import AsymmetricMASt3R

SMALL = {
    "enc_embed_dim": 24,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 2,
    "dec_num_heads": 2,
    "dpt_dim": 16,
    "head_type": "linear",
}
MIXED = [(64, 48), (48, 64), (64, 48), (64, 32)]
SHIPPED = Path(__file__).parents[2] / "checkpoints" / "rooms_small.safetensors"


def make_model(cls=AsymmetricCroCo3DStereo, **kwargs):
    torch.manual_seed(0)
    return cls(**(SMALL | {"landscape_only": False} | kwargs)).eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


def load(sizes, **kwargs):
    """Views of random images of (width, height), loaded at size 64."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in sizes]
    return load_images(arrays, 64, verbose=False, **kwargs)


def run(pairs, model, **kwargs):
    return inference(pairs, model, verbose=False, **kwargs)


def count_images(monkeypatch, model):
    """Sizes of the batches that the encoder gets from now on."""
    seen, encode = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda i, s: seen.append(len(i)) or encode(i, s))
    return seen


def limit_memory(monkeypatch, model, most, error):
    """Make pairs beyond ``most`` at a time fail; returns the sizes of the attempts."""
    seen, predict = [], model.predict

    def limited(features1, *rest):
        seen.append(len(features1[0]))
        if seen[-1] > most:
            raise error
        return predict(features1, *rest)

    monkeypatch.setattr(model, "predict", limited)
    return seen


def assert_as_alone(out, pairs, model):
    """Every entry is what the model gives for the pair by itself."""
    for p, pair in enumerate(pairs):
        with torch.no_grad():
            alone = model(*({**v, "true_shape": torch.tensor(v["true_shape"])} for v in pair))
        for side in (1, 2):
            prediction = out[f"pred{side}"]
            assert prediction.keys() == alone[side - 1].keys()
            for name, value in alone[side - 1].items():
                torch.testing.assert_close(prediction[name][p], value[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(out[f"view{side}"]["img"][p], pair[side - 1]["img"][0])
            assert out[f"view{side}"]["true_shape"][p].tolist() == [*value.shape[1:3]]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_one_shape_gives_stacked_tensors_that_each_pair_gives_alone(model, batch_size):
    pairs = make_pairs(load([(64, 48)] * 4))
    assert check_if_same_size(pairs)
    out = run(pairs, model, batch_size=batch_size)
    assert out.keys() == {"view1", "view2", "pred1", "pred2", "loss"} and out["loss"] is None
    assert out["pred1"]["pts3d"].shape == (12, 48, 64, 3)
    assert out["pred2"]["pts3d_in_other_view"].shape == (12, 48, 64, 3)
    assert out["pred1"]["conf"].shape == (12, 48, 64)
    assert out["view1"]["img"].shape == (12, 3, 48, 64)
    assert out["view1"]["true_shape"].shape == (12, 2)
    assert out["view1"]["idx"] == [a["idx"] for a, _ in pairs]
    assert out["view2"]["instance"] == [b["instance"] for _, b in pairs]
    assert out["view2"]["source"][0] is pairs[0][1]["source"]
    assert_as_alone(out, pairs, model)


def test_mixed_shapes_give_lists_that_each_pair_gives_alone(model):
    pairs = make_pairs(load(MIXED))
    assert not check_if_same_size(pairs)
    out = run(pairs, model, batch_size=2)
    for value in (out["view1"]["img"], out["pred1"]["pts3d"], out["pred2"]["conf"]):
        assert isinstance(value, list) and len(value) == 12
    assert all(points.is_contiguous() for points in out["pred1"]["pts3d"])
    assert out["view2"]["true_shape"].shape == (12, 2)
    assert_as_alone(out, pairs, model)


def test_two_shapes_that_do_not_mix_are_stacked(model):
    tall, wide, other = load([(48, 64), (64, 48), (64, 48)])
    pairs = [(tall, wide), (tall, other)]
    out = run(pairs, model)
    assert out["pred1"]["pts3d"].shape == (2, 64, 48, 3)
    assert out["pred2"]["conf"].shape == (2, 48, 64)
    assert_as_alone(out, pairs, model)


@pytest.mark.parametrize("head_type", ["dpt", "dpt_uq_feat", "catmlp+dpt"])
def test_every_output_of_a_head_is_there(head_type):
    extra = {"output_mode": "pts3d+desc24", "two_confs": True} if "catmlp" in head_type else {}
    model = make_model(AsymmetricMASt3R, head_type=head_type, dec_depth=4, **extra)
    for sizes in ([(64, 48)] * 2, [(64, 48), (48, 64)]):
        pairs = make_pairs(load(sizes))
        out = run(pairs, model)
        with torch.no_grad():
            a, b = ({**v, "true_shape": torch.tensor(v["true_shape"])} for v in pairs[0])
            alone = model(a, b)
        for prediction, expected in zip((out["pred1"], out["pred2"]), alone, strict=True):
            assert prediction.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(
                    prediction[name][0], expected[name][0], atol=1e-5, rtol=1e-4
                )


def test_each_image_is_encoded_once(monkeypatch):
    model = make_model()
    seen = count_images(monkeypatch, model)
    run(make_pairs(load([(64, 48)] * 5)), model, batch_size=3)
    assert seen == [3, 2]
    seen.clear()
    run(make_pairs(load(MIXED)), model, batch_size=3)
    assert sorted(seen) == [1, 1, 2]


def test_copies_of_a_view_count_once_and_equal_labels_do_not_mix_images(monkeypatch):
    model = make_model()
    seen = count_images(monkeypatch, model)
    a, b = load([(64, 48)] * 2)
    copies = [{**view, "img": view["img"].clone()} for view in (a, b)]
    run([(a, b), (copies[1], copies[0])], model)
    assert sum(seen) == 2
    seen.clear()
    relabelled = {**b, "idx": a["idx"], "instance": a["instance"]}
    pairs = [(a, relabelled), (relabelled, a)]
    out = run(pairs, model)
    assert sum(seen) == 2
    assert_as_alone(out, pairs, model)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_batches_are_halved_where_memory_ends_and_stay_small(monkeypatch, caplog, error):
    model = make_model()
    pairs = make_pairs(load([(64, 48)] * 3))
    seen = limit_memory(monkeypatch, model, 2, error)
    with caplog.at_level(logging.WARNING):
        out = run(pairs, model, batch_size=8)
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "out of memory with batches of 6, going on with 3" in caplog.text
    monkeypatch.undo()
    assert_as_alone(out, pairs, model)


def test_memory_that_one_pair_exceeds_is_an_error_that_says_what_to_do(monkeypatch):
    model = make_model()
    limit_memory(monkeypatch, model, 0, RuntimeError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError, match="smaller size.*fewer pairs.*device='cpu'"):
        run(make_pairs(load([(64, 48)] * 2)), model)


def test_other_errors_of_the_model_pass_through(monkeypatch):
    model = make_model()
    seen = limit_memory(monkeypatch, model, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(make_pairs(load([(64, 48)] * 2)), model)
    assert len(seen) == 1


@pytest.mark.parametrize("sizes", [[(64, 48)] * 4, MIXED])
def test_progress_rises_to_one(model, sizes):
    told = []
    run(make_pairs(load(sizes)), model, batch_size=2, progress=told.append)
    assert told[-1] == 1 and all(a < b for a, b in zip([0, *told], told, strict=False))


def test_the_bar_is_shown_only_where_wanted(model, capsys):
    pairs = make_pairs(load([(64, 48)] * 2))
    inference(pairs, model, "cpu", 1)
    assert "4/4" in capsys.readouterr().err
    run(pairs, model)
    assert not any(capsys.readouterr())


def test_the_model_keeps_its_modes_and_results_can_be_optimised_on():
    model = make_model().train()
    model.enc_blocks.eval()
    out = run(make_pairs(load([(64, 48)] * 2)), model)
    assert model.training and model.dec_blocks.training and not model.enc_blocks[0].training
    scale = torch.ones(1, requires_grad=True)
    (out["pred1"]["pts3d"] * scale).sum().backward()
    assert scale.grad.isfinite()


def test_modes_are_restored_after_an_error(monkeypatch):
    model = make_model().train()
    limit_memory(monkeypatch, model, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError):
        run(make_pairs(load([(64, 48)] * 2)), model)
    assert model.training


def test_masks_are_stacked_where_every_image_has_one(model):
    mask = np.ones((48, 64), bool)
    pairs = make_pairs(load([(64, 48)] * 2, masks=[mask, mask]))
    assert run(pairs, model)["view1"]["mask"].shape == (2, 48, 64)
    pairs = make_pairs(load([(64, 48)] * 2, masks=[mask, None]))
    masks = run(pairs, model)["view1"]["mask"]
    assert masks[0].shape == (48, 64) and masks[1] is None
    pairs = make_pairs(load([(64, 48), (48, 64)], masks=[mask, mask.T]))
    assert [m.shape for m in run(pairs, model)["view1"]["mask"]] == [(48, 64), (64, 48)]


def test_a_landscape_model_takes_landscape_images_and_refuses_portrait_ones():
    model = make_model(landscape_only=True, patch_embed_cls="ManyAR_PatchEmbed")
    pairs = make_pairs(load([(64, 48), (64, 32)]))
    assert_as_alone(run(pairs, model), pairs, model)
    pairs = make_pairs(load([(64, 48), (48, 64)]))
    with pytest.raises(ValueError, match=r"landscape.*64x48.*for_upright_images"):
        run(pairs, model)
    for_upright_images(model)
    assert_as_alone(run(pairs, model), pairs, model)


def test_impossible_input_is_refused(model):
    pairs = make_pairs(load([(64, 48)] * 2))
    with pytest.raises(ValueError, match="no pairs.*make_pairs"):
        run([], model)
    with pytest.raises(ValueError, match="batch_size=0"):
        run(pairs, model, batch_size=0)
    view = pairs[0][0]
    with pytest.raises(ValueError, match="lacks img"):
        run([(view, {"true_shape": view["true_shape"]})], model)
    turned = {**view, "img": view["img"].transpose(2, 3).contiguous()}
    with pytest.raises(ValueError, match=r"one upright image.*true_shape \(48, 64\)"):
        run([(view, turned)], model)
    two = {
        "img": view["img"].repeat(2, 1, 1, 1),
        "true_shape": np.repeat(view["true_shape"], 2, 0),
    }
    with pytest.raises(ValueError, match="one upright image"):
        run([(view, two)], model)


def test_the_shipped_model_finds_finite_points():
    model = load_model(SHIPPED, verbose=False)
    pairs = make_pairs(load(MIXED[:2]))
    out = run(pairs, model)
    assert all(points.isfinite().all() for points in out["pred1"]["pts3d"])
    assert all((conf >= 1).all() for conf in out["pred2"]["conf"])
    assert_as_alone(out, pairs, model)


def test_nested_tensors_become_arrays_or_go_to_the_cpu():
    nested = {"a": [torch.ones(2, requires_grad=True), "name"], "b": (torch.ones(1).bfloat16(), 3)}
    arrays = to_numpy(nested)
    assert isinstance(arrays["a"][0], np.ndarray) and arrays["a"][1] == "name"
    assert arrays["b"][0].dtype == np.float32 and arrays["b"][1] == 3
    moved = to_cpu(nested)
    assert moved["a"][0].device.type == "cpu" and not moved["a"][0].requires_grad
    assert math.isclose(float(moved["b"][0]), 1)
