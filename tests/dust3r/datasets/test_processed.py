"""What the processed layout may say of its scenes: an official split, a unit of depth."""

import numpy as np
import pytest

import dust3r.datasets  # noqa: F401  (registers the names used in specification strings)
from dust3r.datasets.processed import ProcessedPairs, read_metadata
from dust3r.datasets.scannetpp import ScanNetpp

FRAMES = {"attic": 3, "barn": 3, "cellar": 3, "deck": 3}
SPLITS = np.array(["test", "train", "", "train"])


def scenes_of(data: ProcessedPairs) -> set[str]:
    return {str(data.scenes[data.sceneids[image]]) for image in data.pairs.ravel()}


def test_an_official_split_is_followed(write_tree):
    root = write_tree(FRAMES, splits=SPLITS)
    found = {
        split: scenes_of(ScanNetpp(split=split, ROOT=root, resolution=(64, 48)))
        for split in ("train", "test", "all")
    }
    assert found == {"train": {"barn", "deck"}, "test": {"attic"}, "all": set(FRAMES)}
    with pytest.raises(ValueError, match=r"scenes are of test, train\).*split='val'"):
        ScanNetpp(split="val", ROOT=root, resolution=(64, 48))


def test_depth_is_read_in_the_unit_of_its_scene(write_tree):
    millimetres = write_tree(FRAMES)
    usual = ScanNetpp(split="all", ROOT=millimetres, resolution=(64, 48), seed=1)
    before = [usual[index][0]["depthmap"] for index in (0, 2)]
    units = np.array([1000.0, 256.0, 1000.0, 1000.0])
    data = ScanNetpp(
        split="all", ROOT=write_tree(FRAMES, depth_unit=units), resolution=(64, 48), seed=1
    )
    after = [data[index][0]["depthmap"] for index in (0, 2)]
    assert data[2][0]["label"].startswith("barn/")
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1], before[1] * 1000 / 256, rtol=1e-6)
    path = data.root / "barn" / "depth" / "barn_0000.png"
    assert data.read_depth(path, 0).max() == pytest.approx(4 * data.read_depth(path, 0, 1024).max())


def test_files_without_the_optional_arrays_read_as_before(write_tree):
    stored = read_metadata(write_tree(FRAMES))
    assert stored["depth_unit"].tolist() == [1000.0] * 4 and stored["splits"].tolist() == [""] * 4


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ({"depth_unit": np.array([1000.0])}, r"'depth_unit' has shape \(1,\).*4 scenes need"),
        ({"depth_unit": np.array([1000.0, 0, 1, 1])}, "'depth_unit' is steps a metre, above 0"),
        ({"splits": np.array(["train"])}, r"'splits' has shape \(1,\)"),
    ],
)
def test_inconsistent_arrays_are_named(write_tree, array, message):
    with pytest.raises(ValueError, match=message):
        ScanNetpp(split="all", ROOT=write_tree(FRAMES, **array), resolution=(64, 48))
