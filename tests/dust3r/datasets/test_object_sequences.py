"""Which pairs walks around an object give, by which lists, and what masks do to them."""

import json
from pathlib import Path

import numpy as np
import pytest
from raw.co3d import TALL, WIDE, write_co3d

import dust3r.datasets  # noqa: F401  (registers the names used in specification strings)
from datasets_preprocess import preprocess_co3d
from dust3r.datasets import SampleError
from dust3r.datasets.co3d import Co3d
from dust3r.datasets.wildrgbd import WildRGBD
from dust3r.utils.spec import DATASETS, SpecError, build


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Path:
    """Two sequences to train on, of which one is upright, and one to test on."""
    folder = tmp_path_factory.mktemp("co3d")
    raw = write_co3d(folder / "raw", {"a": WIDE, "b": TALL, "c": WIDE}, numbers=range(1, 6))
    out = folder / "processed"
    with pytest.MonkeyPatch.context() as patch:
        # The contract's test draws the sheet; it takes longer than all the rest.
        patch.setattr("datasets_preprocess.check.check_written", lambda *args: [])
        assert preprocess_co3d.main(["--co3d_dir", str(raw), "--output_dir", str(out)]) == 0
    return out


def lists(root: Path, **splits: dict) -> Path:
    """A data set of lists alone: {category: {sequence: frames}} for each split."""
    root.mkdir(exist_ok=True)
    for split in ("train", "test"):
        content = json.dumps(splits.get(split, {}))
        (root / f"selected_seqs_{split}.json").write_text(content)
    return root


def offsets(root: Path, **options: object) -> list[tuple[int, int]]:
    """Frame numbers of all pairs."""
    dataset = Co3d("train", root, 224, **options)
    paths = [dataset.sample_paths(index) for index in range(len(dataset))]
    return [tuple(int(path.stem.removeprefix("frame")) for path in pair) for pair in paths]


def test_pairs_are_multiples_of_a_twentieth_of_the_turn_apart(tmp_path):
    root = lists(tmp_path, train={"apple": {"s": list(range(100))}})
    pairs = offsets(root)
    assert len(set(pairs)) == len(pairs) == sum(100 - k for k in range(5, 51, 5))
    assert {second - first for first, second in pairs} == set(range(5, 51, 5))
    assert {frame for pair in pairs for frame in pair} == set(range(100))
    near = offsets(root, max_angle=60)
    assert {second - first for first, second in near} == {5, 10, 15}


def test_frames_are_counted_by_their_place_and_not_their_number(tmp_path):
    root = lists(tmp_path, train={"apple": {"s": [3, 10, 40], "t": [7], "u": [1, 9]}})
    assert offsets(root) == [(3, 10), (10, 40), (1, 9)]


def test_splits(tmp_path):
    root = lists(tmp_path, train={"apple": {"s": [1, 2]}}, test={"apple": {"s": [3], "t": [5, 6]}})

    def frames(split: str) -> dict[tuple[str, str], list[int]]:
        dataset = Co3d(split, root, 224)
        return dict(zip(dataset.sequences, map(np.ndarray.tolist, dataset.frames), strict=True))

    assert frames("train") == {("apple", "s"): [1, 2]}
    assert frames("val") == frames("test") == {("apple", "s"): [3], ("apple", "t"): [5, 6]}
    assert frames("all") == {("apple", "s"): [1, 2, 3], ("apple", "t"): [5, 6]}


def test_files_are_those_of_the_published_layouts(tmp_path):
    root = lists(tmp_path, train={"apple": {"scenes/scene_007": [12, 13]}})
    folder = root / "apple" / "scenes" / "scene_007"
    assert Co3d("train", root, 224).sample_paths(0)[0] == folder / "images" / "frame000012.jpg"
    assert WildRGBD("train", root, 224).sample_paths(0)[1] == folder / "rgb" / "00013.jpg"


@pytest.mark.parametrize(
    "content, error",
    [
        (None, FileNotFoundError),
        ("{", ValueError),
        ('{"apple": ["s"]}', ValueError),
        ('{"apple": {"s": ["1", "2"]}}', ValueError),
        ('{"apple": {"s": [1]}}', ValueError),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, error):
    if content is not None:
        (tmp_path / "selected_seqs_train.json").write_text(content)
    with pytest.raises(error, match="preprocess|selected_seqs_train.json"):
        Co3d("train", tmp_path, 224)


def test_arguments_are_checked(tmp_path):
    root = lists(tmp_path, train={"apple": {"s": [1, 2]}})
    with pytest.raises(FileNotFoundError, match="not a folder"):
        Co3d("train", tmp_path / "none", 224)
    with pytest.raises(ValueError, match="mask_bg='sometimes'"):
        Co3d("train", root, 224, mask_bg="sometimes")
    with pytest.raises(ValueError, match="max_angle=0"):
        Co3d("train", root, 224, max_angle=0)
    with pytest.raises(SpecError, match="mask_bg"):
        build(f"Co3d(split='train', ROOT='{root}', resolution=224, mask_gb=True)", DATASETS)


def test_scales(tmp_path):
    root = lists(tmp_path, train={"apple": {"s": [1, 2]}})
    assert not Co3d("train", root, 224).is_metric_scale
    assert WildRGBD("train", root, 224).is_metric_scale
    assert Co3d("train", root, 224, is_metric_scale=True).is_metric_scale


def shares(processed: Path, **options: object) -> np.ndarray:
    """Share of pixels with a depth, of both views of every pair (P, 2)."""
    dataset = Co3d("train", processed, (96, 64), seed=0, **options)
    return np.array(
        [[view["valid_mask"].mean() for view in dataset[index]] for index in range(len(dataset))]
    )


def test_masks_leave_the_object(processed):
    whole, masked = shares(processed, mask_bg=False), shares(processed)
    assert (whole > 0.9).all()
    assert (masked > 0.05).all() and (masked < 0.5).all()
    by_chance = shares(processed, mask_bg="rand")
    chosen = by_chance == masked
    # One coin for both views of a pair.
    assert (chosen[:, 0] == chosen[:, 1]).all()
    assert (chosen | (by_chance == whole)).all()
    assert 0 < chosen.mean() < 1


def test_masks_do_not_touch_colours(processed):
    for masked, whole in zip(
        Co3d("train", processed, (96, 64))[0],
        Co3d("train", processed, (96, 64), mask_bg=False)[0],
        strict=True,
    ):
        assert (masked["img"] == whole["img"]).all()
        shown = masked["valid_mask"]
        assert (masked["depthmap"][shown] == whole["depthmap"][shown]).all()


def test_missing_and_damaged_files_are_named(processed, tmp_path):
    dataset = Co3d("train", processed, (96, 64), seed=0)
    image = dataset.sample_paths(0)[0]
    folder, name = image.parent.parent, image.stem
    camera = np.load(image.with_suffix(".npz"))
    for path, content in [
        (folder / "masks" / f"{name}.png", b""),
        (folder / "depths" / f"{name}.jpg.geometric.png", b"no image"),
        (image.with_suffix(".npz"), b"no archive"),
    ]:
        kept = path.read_bytes()
        try:
            path.unlink()
            with pytest.raises(SampleError, match=path.name):
                dataset[0]
            path.write_bytes(content)
            with pytest.raises(SampleError, match=path.name):
                dataset[0]
        finally:
            path.write_bytes(kept)
    path = image.with_suffix(".npz")
    kept = path.read_bytes()
    try:
        np.savez(path, **{**camera, "maximum_depth": np.nan})
        with pytest.raises(SampleError, match="maximum_depth is nan"):
            dataset[0]
    finally:
        path.write_bytes(kept)
    # Without masking, masks are not needed.
    mask = folder / "masks" / f"{name}.png"
    hidden = mask.rename(tmp_path / "mask.png")
    try:
        assert len(Co3d("train", processed, (96, 64), mask_bg=False)[0]) == 2
    finally:
        hidden.rename(mask)


def test_published_specifications(processed):
    text = (
        f"1000 @ Co3d(split='train', ROOT='{processed}', aug_crop=16, mask_bg='rand', "
        "resolution=224, transform=ColorJitter)"
    )
    dataset = build(text, DATASETS)
    assert len(dataset) == 1000
    assert dataset[999][1]["img"].shape == (3, 224, 224)
    sizes = [(512, 384), (512, 336), (512, 288), (512, 256), (512, 160)]
    large = build(f"Co3d(split='train', ROOT='{processed}', resolution={sizes})", DATASETS)
    assert large.resolutions == tuple(sizes)
    assert large[(len(large) - 1, 4)][0]["true_shape"].tolist() == [512, 160]
    test = build(
        f"100 @ Co3d(split='test', ROOT='{processed}', resolution=224, seed=777)", DATASETS
    )
    assert len(test) == 100 and "/c/" in test[0][0]["instance"]
