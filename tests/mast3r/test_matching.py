"""Matches in pixels of photographs, and ``match.py``: its files and what it refuses."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

import match
from dust3r.inference import inference
from dust3r.training import checkpoint
from dust3r.utils.image import load_images
from dust3r.utils.spec import MODELS, build
from mast3r.fast_nn import fast_reciprocal_NNs
from mast3r.matching import Matches, draw_matches, match_views, save_matches

SMALL = (
    "enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, "
    "dec_num_heads=2, dpt_dim=16, landscape_only=False, img_size=(64, 64)"
)
DESCRIPTORS = "head_type='catmlp+dpt', output_mode='pts3d+desc24', two_confs=True"


def make_spec(head=DESCRIPTORS):
    return f"AsymmetricMASt3R({head}, {SMALL})"


def make_model(head=DESCRIPTORS):
    torch.manual_seed(0)
    return build(make_spec(head), MODELS).eval()


def photographs(shift=(0, 0), size=(128, 96)):
    """Two random images (H, W, 3), the second showing what lies ``shift`` (x, y) further on."""
    width, height = size
    across, down = shift
    world = np.random.default_rng(0).integers(
        0, 256, (height + down, width + across, 3), dtype=np.uint8
    )
    return world[:height, :width], world[down:, across:]


@pytest.fixture
def files(tmp_path):
    """Two photographs, a checkpoint with descriptors, one without."""
    paths = []
    for name, image in zip("ab", photographs(), strict=True):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(image).save(paths[-1])
    for name, head in (("with", DESCRIPTORS), ("without", "head_type='dpt'")):
        state = {
            "model": make_model(head).state_dict(),
            "args": argparse.Namespace(model=make_spec(head)),
            "epoch": 0,
        }
        checkpoint.save(tmp_path / f"{name}.pth", state)
    return tmp_path


def run(files, *more, weights="with"):
    given = ["--images", files / "a.png", files / "b.png", "--output_dir", files / "out"]
    given += ["--weights", files / f"{weights}.pth", "--image_size", "64", "--device", "cpu"]
    return match.main([str(part) for part in (*given, *more, "--silent")])


def test_the_published_script_runs_as_it_is():
    model, device = make_model(), "cpu"
    images = load_images([Image.fromarray(part) for part in photographs()], size=64, verbose=False)
    output = inference([tuple(images)], model, device, batch_size=1, verbose=False)
    desc1 = output["pred1"]["desc"].squeeze(0).detach()
    desc2 = output["pred2"]["desc"].squeeze(0).detach()
    matches_im0, matches_im1 = fast_reciprocal_NNs(
        desc1, desc2, subsample_or_initxy1=8, device=device, dist="dot", block_size=2**13
    )
    assert matches_im0.shape == matches_im1.shape and len(matches_im0)
    found = match_views(model, *images)
    np.testing.assert_array_equal(found.pixels1, matches_im0)
    np.testing.assert_array_equal(found.pixels2, matches_im1)
    conf = [output[f"pred{n}"]["desc_conf"][0].numpy() for n in (1, 2)]
    pairs = zip(conf, (matches_im0, matches_im1), strict=True)
    first, second = (values[xy[:, 1], xy[:, 0]] for values, xy in pairs)
    np.testing.assert_allclose(found.confidence, np.sqrt(first * second), rtol=1e-5)


def test_matches_are_in_pixels_of_the_originals(colour_model):
    images = photographs(shift=(16, 8))
    views = load_images(list(images), 64, verbose=False)
    found = match_views(colour_model, *views, subsample_or_initxy1=4, min_confidence=5)
    assert len(found) > 50 and (found.confidence == 9).all()
    # Half the resolution: the middle of two pixels.
    np.testing.assert_allclose(found.xy1, 2 * found.pixels1 + 0.5)
    np.testing.assert_allclose(found.xy2, 2 * found.pixels2 + 0.5)
    np.testing.assert_array_equal(found.xy1 - found.xy2, np.tile([16, 8], (len(found), 1)))


def test_masked_parts_of_a_view_do_not_match(colour_model):
    mask = np.zeros((96, 128), bool)
    mask[:40, 64:] = True
    views = load_images(list(photographs()), 64, masks=[mask, None], verbose=False)
    found = match_views(colour_model, *views, subsample_or_initxy1=2)
    assert len(found) == 16 * 10
    assert (found.xy1[:, 0] >= 64).all() and (found.xy1[:, 1] < 40).all()


def test_models_and_masks_that_cannot_match_are_refused(colour_model):
    images = list(photographs())
    views = load_images(images, 64, verbose=False)
    with pytest.raises(ValueError, match="no descriptors.*head_type='catmlp\\+dpt'"):
        match_views(make_model("head_type='dpt'"), *views)
    views = load_images(images, 64, masks=[None, np.zeros((96, 128))], verbose=False)
    with pytest.raises(ValueError, match="mask of image_001.png leaves nothing"):
        match_views(colour_model, *views)
    assert not colour_model.shapes, "refused before the network runs"


def test_a_selection_keeps_rows_together(tmp_path):
    matches = Matches(np.arange(6.0).reshape(3, 2), np.ones((3, 2)), np.float32([3, 1, 2]))
    kept = matches.select(matches.confidence > 1)
    assert len(kept) == 2 and kept.xy1.tolist() == [[0, 1], [4, 5]]
    stored = np.load(save_matches(tmp_path / "deep" / "m.npz", kept, size1=np.array([9, 8])))
    np.testing.assert_array_equal(stored["xy1"], kept.xy1)
    assert sorted(stored) == ["confidence", "size1", "xy1", "xy2"]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_dots_of_a_match_have_one_colour_in_both_images(tmp_path, count):
    rng = np.random.default_rng(0)
    grey = np.full((100, 150, 3), 128, np.uint8)
    xy = rng.uniform(0, 99, (count, 2))
    matches = Matches(xy, xy[:, ::-1], np.ones(count, np.float32))
    path = draw_matches(tmp_path / "m.png", grey, grey[:, :50], matches, lines=0, title="a $ b")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    coloured = np.ptp(picture, axis=-1) > 60
    left = coloured[:, : picture.shape[1] // 2].any()
    right = coloured[:, -300:].any()
    assert left == right == (count > 0)
    if count == 1:
        wanted = (xy[0] + 0.5) * 6.4 + (0, picture.shape[0] - 640)
        rows, columns = coloured[:, :960].nonzero()
        np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), wanted, atol=1)


def test_the_script_writes_a_picture_and_arrays(files, capsys):
    assert run(files, "--subsample", "4") == 0
    written = capsys.readouterr().out.split()
    assert written == [str(files / "out" / name) for name in ("matches.npz", "matches.png")]
    stored = np.load(files / "out" / "matches.npz")
    assert len(stored["xy1"]) == len(stored["xy2"]) == len(stored["confidence"]) > 0
    np.testing.assert_allclose(stored["xy1"], 2 * stored["pixels1"] + 0.5)
    assert stored["size1"].tolist() == [128, 96]
    assert Image.open(files / "out" / "matches.png").size[0] > 1000


def test_the_script_matches_windows_of_the_full_resolution(files):
    assert run(files, "--coarse_to_fine", "--max_matches", "5") == 0
    stored = np.load(files / "out" / "matches.npz")
    assert 0 < len(stored["xy1"]) <= 5
    assert (stored["xy1"] == stored["xy1"].round()).all()


def test_what_the_script_cannot_do_is_said(files, caplog):
    Image.new("L", (128, 96)).save(files / "black.png")
    for more, weights, message in (
        ((), "without", "head_type='catmlp+dpt'"),
        ((), "missing", "no weights file"),
        (("--mask1", files / "black.png"), "with", "the mask of a.png leaves nothing"),
        (("--mask2", files / "a.jpg"), "with", "no image file"),
        (("--min_conf", "1e9"), "with", "no pixel of"),
        (("--max_image_size", "90"), "with", "--coarse_to_fine only"),
        (("--subsample", "0"), "with", "subsample=0"),
    ):
        caplog.clear()
        assert run(files, *more, weights=weights) == 2
        assert message in caplog.text
    assert not (files / "out").exists()
