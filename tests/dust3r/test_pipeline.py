"""Photographs to a reconstruction with the weights that the project ships."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dust3r.model import load_model
from dust3r.pipeline import reconstruct
from dust3r.utils.image import load_images

ROOT = Path(__file__).parents[2]
ROOM = sorted((ROOT / "docs" / "images" / "example_room").glob("*.jpg"))


@pytest.fixture(scope="module")
def model():
    return load_model(str(ROOT / "checkpoints" / "rooms_small.safetensors"), device="cpu")


def views(*images, **options):
    return load_images([*map(str, ROOM), *images], 224, verbose=False, **options)


def elsewhere(folder):
    """A picture with plenty of texture, of another place."""
    cells = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    path = folder / "elsewhere.png"
    Image.fromarray(cells).resize((320, 320), Image.Resampling.BICUBIC).save(path)
    return str(path)


def resized(mask, path):
    """A mask in the size of an image file."""
    with Image.open(path) as image:
        return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


@pytest.fixture(scope="module")
def with_progress(model):
    steps = []

    def progress(what, fraction):
        steps.append((what, fraction))

    return reconstruct(model, views(), verbose=False, progress=progress), steps


def test_three_photographs(with_progress):
    scene, _ = with_progress
    assert len(scene) == 3
    assert [source.name for source in scene.sources] == ["room_1.jpg", "room_2.jpg", "room_3.jpg"]
    assert scene.poses.shape == (3, 4, 4) and np.isfinite(scene.poses).all()
    assert scene.intrinsics.shape == (3, 3, 3) and np.isfinite(scene.intrinsics).all()
    assert (scene.intrinsics[:, 0, 0] > 50).all()
    for n in range(3):
        assert scene.images[n].shape == (224, 224, 3)
        assert np.isfinite(scene.depthmaps[n]).all() and np.isfinite(scene.pts3d(n)).all()
        assert scene.valid[n].mean() > 0.5
        assert (scene.confidences[n][scene.valid[n]] >= 1).all()
    centres = scene.poses[:, :3, 3]
    assert np.linalg.norm(centres[0] - centres[2]) > 0
    assert scene.deviations is None and scene.notes == ()


def test_progress_rises_from_nothing_to_everything_and_says_what(with_progress):
    _, steps = with_progress
    names, fractions = zip(*steps, strict=True)
    assert fractions[0] == 0 and fractions[-1] == 1
    assert list(fractions) == sorted(fractions)
    assert list(dict.fromkeys(names)) == [
        "looking at pairs",
        "aligning",
        "fusing depth maps",
        "done",
    ]
    assert len(set(fractions)) > 5


def test_an_image_of_elsewhere_is_left_out_and_named(model, tmp_path):
    scene = reconstruct(model, views(elsewhere(tmp_path)), verbose=False)
    assert [source.name for source in scene.sources] == ["room_1.jpg", "room_2.jpg", "room_3.jpg"]
    assert len(scene.notes) == 1
    assert "part 2: elsewhere.png" in scene.notes[0]


def test_the_check_can_be_switched_off(model, tmp_path):
    given = views(elsewhere(tmp_path))
    scene = reconstruct(
        model, given, scene_graph="oneref", check_overlap=False, niter=2, verbose=False
    )
    assert len(scene) == 4 and scene.notes == ()


def test_where_nothing_overlaps_all_is_reconstructed_with_a_warning(model, tmp_path):
    given = views(elsewhere(tmp_path))[2:]
    scene = reconstruct(model, given, niter=2, verbose=False)
    assert len(scene) == 2
    assert "no matches confirm" in scene.notes[0]


def test_masked_pixels_are_no_points(model):
    masks = [np.ones((224, 224), np.uint8) for _ in ROOM]
    masks[1][:100] = 0
    masks = [resized(mask, path) for mask, path in zip(masks, ROOM, strict=True)]
    scene = reconstruct(model, views(masks=masks), niter=5, verbose=False)
    assert not scene.valid[1][:95].any()
    assert scene.valid[1][105:].mean() > 0.5


def test_one_image_is_too_few(model):
    with pytest.raises(ValueError, match="two images or more, and there is 1"):
        reconstruct(model, views()[:1], verbose=False)


def test_weights_that_the_model_cannot_give(model):
    with pytest.raises(ValueError, match="needs a model that states a variance"):
        reconstruct(model, views()[:2], weights="uncertainty", verbose=False)
    with pytest.raises(ValueError, match="weights='hope' is neither"):
        reconstruct(model, views()[:2], weights="hope", verbose=False)
    with pytest.raises(ValueError, match="scene_graph='compete' is unknown"):
        reconstruct(model, views(), scene_graph="compete", verbose=False)
