"""Retrieval: what looks alike is found, from one image to many, whatever the shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.image_pairs import make_pairs
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.utils.image import load_images
from mast3r.retrieval import TOKENS_PER_IMAGE, Retrieval, Vocabulary

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "rooms_small.safetensors"
SMALL = {
    "enc_embed_dim": 24,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 1,
    "dec_num_heads": 2,
    "head_type": "linear",
    "landscape_only": False,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AsymmetricCroCo3DStereo(**SMALL).eval()


@pytest.fixture(scope="module")
def shipped():
    if not SHIPPED.is_file():
        pytest.skip("the small model is not here")
    return load_model(SHIPPED, verbose=False)


def noise(count, seed=0, size=(64, 48)):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(count)]


def views_of(arrays, **kwargs):
    return load_images(arrays, 64, verbose=False, **kwargs)


def build(model, views, **kwargs):
    return Retrieval.build(model, views, verbose=False, **kwargs)


def places(count, seed=3, side=700):
    """Smooth coloured pictures, one a place, to cut overlapping views from."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        rough = [rng.uniform(0, 255, (n, n, 3)) for n in (5, 19, 67)]
        grown = [np.kron(r, np.ones((-(-side // len(r)),) * 2 + (1,)))[:side, :side] for r in rough]
        pictures.append(np.clip(sum(grown) / 3, 0, 255).astype(np.uint8))
    return pictures


def test_views_of_a_place_are_more_alike_than_those_of_others(shipped):
    cuts = [
        place[y : y + 224, x : x + 224]
        for place in places(4)
        for x, y in ((0, 0), (32, 0), (64, 16))
    ]
    retrieval = build(shipped, load_images(cuts, 224, verbose=False))
    label = np.repeat(np.arange(4), 3)
    order = np.argsort(-retrieval.similarity, axis=1)
    assert (label[order[:, :3]] == label[:, None]).all()
    # Further views of the places, not seen when the vocabulary was learned.
    asked = load_images([place[8:232, 48:272] for place in places(4)], 224, verbose=False)
    assert label[retrieval.query(asked).argmax(1)].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_any_number_of_images_has_cosines(model, count):
    retrieval = build(model, views_of(noise(count)))
    descriptors, similarity = retrieval.descriptors, retrieval.similarity
    assert descriptors.dtype == similarity.dtype == np.float32
    assert similarity.shape == (count, count) and len(descriptors) == count
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(similarity, descriptors @ descriptors.T, atol=1e-5)
    assert (np.diag(similarity) == 1).all() and (similarity == similarity.T).all()
    assert np.abs(similarity).max() <= 1


def test_a_photograph_finds_itself_and_its_copies(model):
    arrays = noise(9)
    views = views_of([*arrays, arrays[4]])
    retrieval = build(model, views)
    assert retrieval.similarity[4, 9] > 0.9999
    others = retrieval.similarity[~np.eye(10, dtype=bool)]
    assert np.sort(others)[-3] < 0.99
    np.testing.assert_allclose(retrieval.query(views), retrieval.similarity, atol=1e-3)


def test_batches_shapes_and_order_do_not_matter(model):
    sizes = [(64, 48), (48, 64), (64, 48), (64, 32), (48, 64), (64, 48)]
    arrays = [noise(1, seed, size)[0] for seed, size in enumerate(sizes)]
    views = views_of(arrays)
    retrieval = build(model, views, batch_size=1)
    again = build(model, views, batch_size=4)
    np.testing.assert_allclose(again.similarity, retrieval.similarity, atol=2e-2)
    np.testing.assert_array_equal(build(model, views, batch_size=4).similarity, again.similarity)


def test_images_are_encoded_once_each_and_the_mode_stays(model, monkeypatch):
    seen, encode = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda i, s: seen.append(len(i)) or encode(i, s))
    model.train()
    retrieval = build(model, views_of(noise(5)), batch_size=2)
    assert model.training and seen == [2, 2, 1]
    model.eval()
    assert retrieval.similarity is retrieval.similarity and seen == [2, 2, 1]


def test_batches_are_halved_where_memory_ends(model, monkeypatch):
    views, encode = views_of(noise(5)), model.encode_image
    expected = build(model, views, batch_size=1).similarity

    def small(images, shapes):
        if len(images) > 2:
            raise RuntimeError("CUDA out of memory")
        return encode(images, shapes)

    monkeypatch.setattr(model, "encode_image", small)
    np.testing.assert_array_equal(build(model, views, batch_size=5).similarity, expected)


def test_blank_images_are_alike(model):
    blank = np.full((48, 64, 3), 128, np.uint8)
    retrieval = build(model, views_of([blank, blank, blank]))
    assert np.isfinite(retrieval.descriptors).all()
    np.testing.assert_allclose(retrieval.similarity, 1, atol=1e-3)
    assert np.isfinite(build(model, views_of([blank, *noise(3)])).similarity).all()


def test_what_a_mask_leaves_out_is_not_described(model):
    whole, other = noise(2)
    mixed = whole.copy()
    mixed[:, 32:] = other[:, 32:]
    left = np.zeros((48, 64), bool)
    left[:, :32] = True
    none = np.zeros((48, 64), bool)

    def descriptors(masks):
        views = views_of([whole, mixed, *noise(3, seed=5)], masks=masks, masked="black")
        return build(model, views).similarity

    masked, unmasked = descriptors([left, left, None, None, None]), descriptors(None)
    assert masked[0, 1] > 0.999 > unmasked[0, 1]
    assert np.isfinite(descriptors([none, left, None, None, None])).all()


def test_arrays_are_saved_and_restored(model, tmp_path):
    views = views_of(noise(6))
    retrieval = build(model, views)
    path = retrieval.save(tmp_path / "deep" / "house.npz")
    with np.load(path, allow_pickle=False) as stored:
        assert set(stored) == {"descriptors", "mean", "projection", "centres"}
    loaded = Retrieval.load(path, model)
    np.testing.assert_array_equal(loaded.similarity, retrieval.similarity)
    asked = views_of(noise(2, seed=9))
    np.testing.assert_array_equal(loaded.query(asked), retrieval.query(asked))
    assert Retrieval.load(path).similarity.shape == (6, 6)
    with pytest.raises(ValueError, match=r"without the model.*Retrieval\.load\(path, model\)"):
        Retrieval.load(path).query(asked)
    wide = AsymmetricCroCo3DStereo(**(SMALL | {"enc_embed_dim": 48})).eval()
    with pytest.raises(ValueError, match="48 channels.*of 24"):
        Retrieval.load(path, wide).query(asked)


def test_wide_tokens_of_few_images_keep_their_likeness():
    """Channels outnumber tokens, as with a large model: whitening must not bring up noise."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(30, 1024, generator=generator)

    def image(first):
        picked = torch.randint(first, first + 8, (TOKENS_PER_IMAGE // 3,), generator=generator)
        return kinds[picked] + 0.1 * torch.randn(len(picked), 1024, generator=generator)

    tokens = [image(0), image(0), image(20), image(20)]
    vocabulary = Vocabulary.learn(tokens)
    descriptors = torch.stack([vocabulary.describe(one) for one in tokens])
    similarity = descriptors @ descriptors.T
    assert similarity[0, 1] > 0.5 and similarity[2, 3] > 0.5
    assert similarity[:2, 2:].max() < 0


def test_similarities_choose_the_pairs(model):
    views = views_of(noise(12))
    pairs = make_pairs(views, "retrieval-3-2", sim_mat=build(model, views).similarity)
    assert {view["idx"] for pair in pairs for view in pair} == set(range(12))


def test_mistakes_are_named(model, tmp_path):
    with pytest.raises(ValueError, match="no images.*load_images"):
        build(model, [])
    with pytest.raises(ValueError, match="batch_size=0"):
        build(model, views_of(noise(2)), batch_size=0)
    view = views_of(noise(1))[0]
    double = view | {
        "img": view["img"].repeat(2, 1, 1, 1),
        "true_shape": view["true_shape"][[0, 0]],
    }
    with pytest.raises(ValueError, match=r"one upright image .*\(2, 3, 48, 64\)"):
        build(model, [double])
    with pytest.raises(FileNotFoundError):
        Retrieval.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", something=1)
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} .*; Retrieval.save writes such files"):
            Retrieval.load(tmp_path / name)
