import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.datasets import SampleError, SkipBadSamples, get_data_loader
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.datasets.transforms import ColorJitter


@pytest.fixture
def dataset(write_tree) -> ScanNetpp:
    root = write_tree(size=(48, 36))
    return ScanNetpp(
        split="all", ROOT=root, resolution=[(32, 32), (32, 16)], aug_crop=8, transform=ColorJitter
    )


def spoil(dataset: ScanNetpp, *numbers: int) -> list[Path]:
    paths = [dataset.root / "desk" / "depth" / f"desk_{number:04d}.png" for number in numbers]
    for path in paths:
        path.write_bytes(b"")
    return paths


def epoch_images(loader, epoch: int, start_batch: int = 0) -> list[torch.Tensor]:
    loader.set_epoch(epoch, start_batch)
    return [torch.cat([view["img"] for view in views]) for views in loader]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_batches_hold_two_views_of_one_shape(dataset):
    loader = get_data_loader(20 @ dataset, batch_size=4, num_workers=0)
    assert len(loader) == 5
    shapes = set()
    for first, second in loader:
        shapes.add(tuple(first["img"].shape))
        assert first["img"].shape == second["img"].shape
        assert first["pts3d"].shape == (4, *first["img"].shape[2:], 3)
        assert first["valid_mask"].dtype == torch.bool
        assert first["true_shape"].shape == (4, 2)
        assert len(first["instance"]) == 4 and Path(first["instance"][0]).is_file()
    assert shapes == {(4, 3, 32, 32), (4, 3, 16, 32)}


def test_the_epoch_reaches_persistent_workers(dataset):
    """Two workers give, epoch after epoch, what one process gives; the epochs differ."""
    selected = 8 @ dataset
    workers = get_data_loader(selected, batch_size=2, num_workers=2, seed=7)
    alone = get_data_loader(selected, batch_size=2, num_workers=0, seed=7)
    epochs = [epoch_images(workers, epoch) for epoch in range(3)]
    for epoch, images in enumerate(epochs):
        assert_same(images, epoch_images(alone, epoch))
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_a_resumed_loader_continues_the_epoch(dataset):
    whole = epoch_images(get_data_loader(dataset, batch_size=2, num_workers=0, seed=3), epoch=4)
    resumed = get_data_loader(dataset, batch_size=2, num_workers=2, seed=3)
    assert_same(epoch_images(resumed, 4, start_batch=3), whole[3:])


def test_samples_left_out_on_resuming_are_not_loaded(dataset, monkeypatch):
    loaded = []
    load = ScanNetpp.load
    monkeypatch.setattr(
        ScanNetpp, "load", lambda self, draw: loaded.append(draw) or load(self, draw)
    )
    loader = get_data_loader(dataset, batch_size=2, num_workers=0)
    epoch_images(loader, 0, start_batch=4)
    assert len(loaded) == 2


def test_global_generators_stay_as_they_are(dataset):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    epoch_images(get_data_loader(dataset, batch_size=4, num_workers=2), 0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_the_seed_changes_order_and_chance(dataset):
    first, second = (
        epoch_images(get_data_loader(dataset, batch_size=4, num_workers=0, seed=seed), 0)
        for seed in (0, 1)
    )
    assert not torch.equal(first[0], second[0])


def test_ranks_partition_the_samples(dataset):
    seen = []
    for rank in range(2):
        loader = get_data_loader(dataset, batch_size=2, num_workers=0, rank=rank, world_size=2)
        seen += [path for views in loader for path in views[0]["instance"]]
    assert len(seen) == len(set(seen)) == 8


def test_builds_from_a_specification(dataset):
    text = f"6 @ ScanNetpp(split='train', ROOT='{dataset.root}', resolution=32)"
    assert len(get_data_loader(text, batch_size=2, num_workers=0)) == 3
    with pytest.raises(ValueError, match=r"expected a dataset.*\[None\]"):
        get_data_loader("[None]", batch_size=2)


def test_refuses_more_processes_than_the_data_can_feed(dataset):
    with pytest.raises(ValueError, match="11 samples.*4 on each of 3 processes"):
        get_data_loader(dataset, batch_size=4, num_workers=0, world_size=3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_sample_stops_the_epoch_with_its_file(dataset, num_workers):
    (path,) = spoil(dataset, 0)
    loader = get_data_loader(dataset, batch_size=1, num_workers=num_workers, shuffle=False)
    with pytest.raises(SampleError, match=str(path)) as error:
        next(iter(loader))
    assert "sample 0 " in str(error.value)


def test_a_process_that_still_holds_workers_ends(dataset):
    """Its exit terminates them and waits: they must heed their parent's SIGTERM."""
    script = f"""
from dust3r.datasets import get_data_loader
text = "ScanNetpp(split='train', ROOT={str(dataset.root)!r}, resolution=32)"
batches = iter(get_data_loader(text, batch_size=2, num_workers=1))
next(batches)
import builtins
builtins.held = batches
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=30, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_skipping_counts_over_workers_and_epochs(dataset):
    spoil(dataset, 4)
    loader = get_data_loader(dataset, batch_size=1, num_workers=2, skip_bad_samples=True)
    for epoch in range(2):
        assert len(epoch_images(loader, epoch)) == 11
    # Frame 4 stands in the pairs (3, 4) and (4, 5); pair 3 is replaced by 4, which is bad as well.
    assert loader.num_skipped == 2 * 3


def test_skipping_gives_the_next_good_sample_and_reports_files_once(dataset, caplog):
    first, second = spoil(dataset, 4, 8)
    skipping = SkipBadSamples(dataset)
    with caplog.at_level(logging.WARNING):
        indices = [skipping[i][0]["idx"][0] for i in range(len(skipping))]
    assert indices == [0, 1, 2, 5, 5, 5, 6, 9, 9, 9, 10]
    assert skipping.num_skipped == 6
    reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == 2
    assert str(first) in reports[0] and str(second) in reports[1]


def test_a_selection_is_asked_for_another_of_its_samples(dataset):
    spoil(dataset, 4)
    skipping = SkipBadSamples(22 @ dataset)
    indices = [skipping[i][0]["idx"][0] for i in range(22)]
    assert not {3, 4} & set(indices)


def test_gives_up_when_the_data_is_at_fault(dataset):
    spoil(dataset, *range(6))
    with pytest.raises(SampleError, match="3 bad samples in a row from sample 1 on.*desk_0003.png"):
        SkipBadSamples(dataset, max_tries=3)[1]
    spoil(dataset, *range(12))
    with pytest.raises(SampleError, match="11 bad samples in a row"):
        SkipBadSamples(dataset)[0]


def test_no_skipping_by_default(dataset):
    assert get_data_loader(dataset, batch_size=2, num_workers=0).num_skipped == 0
