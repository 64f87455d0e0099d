"""Rankings over all images: those of all pixels at once, in memory that more images leave alone."""

import tracemalloc

import numpy as np
import pytest
import torch

from dust3r.evaluation import pooled as module
from dust3r.evaluation.measure import COUNTS, ImageMeasure
from dust3r.evaluation.pooled import pooled
from dust3r.evaluation.rankings import ExactRanking, Ordered, ranking_of_pixels
from dust3r.evaluation.records import PairRecord, RecordStore
from dust3r.training.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
ERROR, OWN = ("m", "point"), ("m", "own")
PIXELS = 400


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(module, "SLICE", 1000)
    monkeypatch.setattr(module, "_SAMPLED", 8)
    monkeypatch.setattr(module, "_IMAGES", 2)


def images(kind, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        error = rng.random(PIXELS).astype(np.float32) ** 2
        noise = rng.random(PIXELS).astype(np.float32)
        yield (
            error,
            {
                "plain": error + noise - 1,
                "ties": (9 * (error + noise)).round(),
                "constant": np.ones_like(error),
                "floor": np.maximum(1, error + noise),
            }[kind],
        )


def stored(folder, kind, count):
    """Columns of a record for each image."""
    store, columns = RecordStore(folder), {ERROR: [], OWN: []}
    for n, (error, uncertainty) in enumerate(images(kind, count)):
        measure = ImageMeasure("a", 1, dict.fromkeys(COUNTS, PIXELS))
        measure.pixels = {"point": Ordered.of(error), "own": Ordered.of(uncertainty)}
        store.write("Walls", n, PairRecord({"m": [measure]}))
        (read,) = store.read("Walls", n).measures["m"]
        columns[ERROR].append(read.pixels["point"])
        columns[OWN].append(read.pixels["own"])
    return columns


def found(columns, folder, workers=0):
    part = pooled(columns, [(ERROR, OWN)], folder / "ranks", ALONE, workers)[ERROR, OWN]
    metric = ExactRanking()
    metric.update(part.sums, part.groups, part.total)
    return metric.compute()


@pytest.mark.parametrize("kind", ["plain", "ties", "constant", "floor"])
def test_numbers_are_those_of_all_pixels_at_once(tmp_path, kind):
    expected = ranking_of_pixels(
        *(np.concatenate(part) for part in zip(*images(kind, 13), strict=True))
    )
    numbers = found(stored(tmp_path, kind, 13), tmp_path)
    for key in ("pixels", "aurc", "ause", "rho", "aurc_bound"):
        assert numbers[key] == pytest.approx(expected[key], rel=1e-7, abs=1e-8, nan_ok=True)
    for key in ("risk", "oracle_risk"):
        np.testing.assert_allclose(numbers[key], expected[key], rtol=1e-9)
    assert not list((tmp_path / "ranks").iterdir())


def test_workers_do_not_change_a_digit(tmp_path):
    columns = stored(tmp_path, "ties", 13)
    alone, shared = found(columns, tmp_path), found(columns, tmp_path, workers=2)
    np.testing.assert_equal(shared, alone)


@pytest.mark.parametrize("kind", ["plain", "constant"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 8000)
    peaks = []
    for count in (40, 160):
        columns = stored(tmp_path / str(count), kind, count)
        found(columns, tmp_path)
        tracemalloc.start()
        found(columns, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The 120 images more have 384 kB of errors and uncertainties; samples and places of these grow.
    assert peaks[1] < peaks[0] + 60_000


def test_records_that_are_cut_short_are_named(tmp_path):
    columns = stored(tmp_path, "plain", 3)
    path = tmp_path / "Walls/0000001.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="0000001.safetensors is cut short"):
        found(columns, tmp_path)
    with pytest.raises(ValueError, match="missing or damaged .it is cut short"):
        RecordStore(tmp_path).read("Walls", 1)
    assert not list((tmp_path / "ranks").iterdir())


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 1000)
    with pytest.raises(ValueError, match="1,000 pixels at most, not 1,200.*--streaming"):
        found(stored(tmp_path, "plain", 3), tmp_path)
