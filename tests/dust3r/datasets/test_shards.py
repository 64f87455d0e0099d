import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from datasets_preprocess.make_shards import make_shards
from dust3r.datasets import SampleError, get_data_loader
from dust3r.datasets import shards as shards_module
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.datasets.shards import Shards
from dust3r.utils.spec import DATASETS, build

NUM_SAMPLES, SHARD_SIZE = 29, 3


@pytest.fixture
def packed(write_tree, tmp_path) -> Path:
    """Shards of 3 samples, of 30 frames in a chain."""
    root = write_tree(frames={"desk": NUM_SAMPLES + 1}, size=(48, 36))
    out = tmp_path / "shards"
    make_shards(f"ScanNetpp(split='all', ROOT='{root}', resolution=32)", out, SHARD_SIZE)
    return out


def shards(root: object, **options: object) -> Shards:
    return Shards(**{"ROOT": root, "split": "all", "resolution": 32, "window": 2} | options)


def drawn(dataset, epoch: int = 0, start_batch: int = 0, **options: object) -> list[list[int]]:
    """The samples of each batch, as numbers in ``dataset``."""
    loader = get_data_loader(dataset, num_workers=0, **{"batch_size": 2} | options)
    loader.set_epoch(epoch, start_batch)
    return [[draw.index for draw in batch] for batch in loader.batch_sampler]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.fixture
def in_memory(packed) -> str:
    files = fsspec.filesystem("memory")
    files.put(str(packed / "all"), "/bucket/set/all", recursive=True)
    yield "memory://bucket/set"
    files.rm("/bucket", recursive=True)


def test_an_epoch_has_every_sample_once_window_by_window(packed):
    order = flat(drawn(shards(packed), batch_size=1))
    assert sorted(order) == list(range(NUM_SAMPLES))
    windows = [order[start : start + 6] for start in range(0, NUM_SAMPLES, 6)]
    of_shards = [{index // SHARD_SIZE for index in window} for window in windows[:-1]]
    # The last shard has two samples, so that windows after it begin one sample early.
    assert all(len(found) <= 3 for found in of_shards)
    assert np.mean([len(found) for found in of_shards]) < 2.6
    assert any(window != sorted(window) for window in windows)


def test_the_order_is_another_each_epoch(packed):
    epochs = [drawn(shards(packed), epoch) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]


def test_ranks_share_out_the_samples_and_resume_anywhere(packed):
    options = {"world_size": 2, "seed": 5}
    ranks = [drawn(shards(packed), epoch=3, rank=rank, **options) for rank in (0, 1)]
    everything = flat(ranks[0]) + flat(ranks[1])
    assert len(set(everything)) == len(everything) == NUM_SAMPLES // 4 * 4
    resumed = drawn(shards(packed), epoch=3, start_batch=4, rank=1, **options)
    assert resumed == ranks[1][4:]


def test_batches_do_not_depend_on_workers(packed):
    def labels(num_workers: int) -> list[tuple[str, ...]]:
        loader = get_data_loader(shards(packed), batch_size=4, num_workers=num_workers)
        return [tuple(second["label"]) for _, second in loader]

    assert labels(2) == labels(0)


@pytest.mark.parametrize("count", [20, 75])
def test_a_number_of_samples_keeps_shards_together(packed, count):
    """``N @``: each sample as often as another, or once more; what is read, still by shards."""
    resized = count @ shards(packed, window=1)
    loader = get_data_loader(resized, batch_size=1, num_workers=0)
    draws = [batch[0] for batch in loader.batch_sampler]
    assert sorted(draw.index for draw in draws) == list(range(count))
    chosen = [resized.route(draw)[1].index for draw in draws]
    times = np.bincount(chosen, minlength=NUM_SAMPLES)
    assert times.min() == count // NUM_SAMPLES and times.max() == times.min() + 1
    if count == 20:
        # Two of three samples of a shard are chosen: every other step stays within one. By chance
        # an eighth of them would.
        assert (np.abs(np.diff(chosen)) < SHARD_SIZE).mean() > 0.4
        other = [resized.route(draw._replace(key=(0, 1)))[1].index for draw in draws]
        assert set(other) != set(chosen)


def test_sums_mix_evenly_with_what_lies_in_folders(packed):
    """A part's samples are spread over the epoch, however its own order is."""
    mixture = shards(packed) + shards(packed, seed=1) + 2 * shards(packed)
    order = flat(drawn(mixture, batch_size=1))
    assert sorted(order) == list(range(4 * NUM_SAMPLES))
    second = np.array([index // NUM_SAMPLES == 1 for index in order])
    halves = second[: len(second) // 2].sum(), second[len(second) // 2 :].sum()
    assert min(halves) > 0.2 * NUM_SAMPLES
    of_first = [index // SHARD_SIZE for index in order if index < NUM_SAMPLES]
    assert max(len(set(of_first[i : i + 6])) for i in range(0, 24, 6)) <= 3


def test_other_data_sets_are_shuffled_as_ever(write_tree):
    dataset = ScanNetpp(split="all", ROOT=write_tree(size=(48, 36)), resolution=32)
    rng = np.random.default_rng((0, 0))
    rng.integers(1, size=22 // 2)
    assert flat(drawn(dataset + dataset)) == rng.permutation(22).tolist()


def test_reads_urls(packed, in_memory):
    local, remote = shards(packed, seed=0)[4], shards(in_memory, seed=0)[4]
    for view, other in zip(local, remote, strict=True):
        np.testing.assert_array_equal(view["img"], other["img"])
        np.testing.assert_array_equal(view["pts3d"], other["pts3d"])


def test_a_cache_fetches_a_shard_once(in_memory, tmp_path, monkeypatch):
    fetched = []
    fetch = shards_module._fetch
    monkeypatch.setattr(
        shards_module, "_fetch", lambda *args: fetched.append(args[0]) or fetch(*args)
    )
    dataset = shards(in_memory, cache_dir=tmp_path / "cache", seed=0)
    views = [dataset[index] for index in (0, 1, 2, 4)]
    assert len(fetched) == 2 and fetched[0].endswith("shard-000000/views.tar")
    again = shards(in_memory, cache_dir=tmp_path / "cache", seed=0)
    np.testing.assert_array_equal(again[1][0]["img"], views[1][0]["img"])
    assert len(fetched) == 2
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_a_shard_cut_short_in_the_store_is_not_cached(in_memory, tmp_path):
    files = fsspec.filesystem("memory")
    path = "/bucket/set/all/shard-000000/views.tar"
    files.pipe(path, files.cat(path)[:-600])
    with pytest.raises(SampleError, match="bytes, but its index says"):
        shards(in_memory, cache_dir=tmp_path)[0]
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "ends before byte"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "no whole view"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_damaged_shards_are_bad_samples(packed, spoil, message):
    path = packed / "all" / "shard-000002" / "views.tar"
    spoil(path)
    with pytest.raises(SampleError, match=message) as caught:
        shards(packed)[7]
    assert str(path) in str(caught.value) and caught.value.index == 7


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("index.json", b"{}", "index.json cannot be used: it is no index"),
        ("index.npz", b"PK", "index.npz is damaged"),
    ],
)
def test_a_damaged_index_is_named(packed, name, content, message):
    (packed / "all" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        shards(packed)


def test_says_what_a_url_needs(monkeypatch):
    with pytest.raises(ValueError, match="fsspec reads no nowhere://"):
        shards("nowhere://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match="s3fs.*install it, or copy the shards"):
        shards("s3://bucket/set")


def test_specifications_name_it(packed):
    text = f"20 @ Shards(ROOT='{packed}', split='all', resolution=[(64, 48), (64, 32)], window=4)"
    dataset = build(text, DATASETS)
    assert len(dataset) == 20 and dataset[(3, 1)][0]["depthmap"].shape == (32, 64)
    with pytest.raises(ValueError, match="window=0"):
        shards(packed, window=0)
