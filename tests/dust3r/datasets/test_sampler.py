from itertools import chain

import pytest

from dust3r.datasets.sampler import AspectRatioBatchSampler


def batches(num_samples=103, num_aspects=4, batch_size=4, epoch=0, start_batch=0, **options):
    sampler = AspectRatioBatchSampler(num_samples, num_aspects, batch_size, **options)
    sampler.set_epoch(epoch, start_batch)
    return list(sampler)


def indices(of_batches) -> list[int]:
    return [draw.index for draw in chain.from_iterable(of_batches)]


def test_one_aspect_ratio_per_batch_and_all_of_them_drawn():
    drawn = batches()
    assert all(len({draw.aspect for draw in batch}) == 1 for batch in drawn)
    assert {batch[0].aspect for batch in drawn} == {0, 1, 2, 3}


def test_an_epoch_is_a_function_of_seed_and_number():
    assert batches(epoch=2, seed=5) == batches(epoch=2, seed=5)
    assert indices(batches(epoch=2, seed=5)) != indices(batches(epoch=3, seed=5))
    assert indices(batches(epoch=2, seed=5)) != indices(batches(epoch=2, seed=6))
    assert {draw.key for batch in batches(epoch=2, seed=5) for draw in batch} == {(5, 2)}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_out_the_samples_of_each_step(world_size):
    ranks = [batches(world_size=world_size, rank=rank) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {103 // (4 * world_size)}
    assert {len(batch) for rank in ranks for batch in rank} == {4}
    everything = indices(chain.from_iterable(ranks))
    assert len(set(everything)) == len(everything)
    for step in zip(*ranks, strict=True):
        assert len({batch[0].aspect for batch in step}) == 1


def test_two_ranks_see_what_one_of_twice_the_batch_sees():
    one = batches(batch_size=8)
    two = [batches(batch_size=4, world_size=2, rank=rank) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        assert sorted(whole) == sorted(parts[0] + parts[1])


@pytest.mark.parametrize("start_batch", [0, 7, 25])
def test_a_resumed_epoch_continues_where_it_stopped(start_batch):
    assert batches(start_batch=start_batch) == batches()[start_batch:]


def test_the_length_is_that_of_a_whole_epoch():
    sampler = AspectRatioBatchSampler(103, 1, 4)
    sampler.set_epoch(0, start_batch=20)
    assert len(sampler) == 25 and len(list(sampler)) == 5
    sampler.set_epoch(1)
    assert len(list(sampler)) == 25


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_without_drop_last_every_sample_is_drawn(world_size):
    options = {"drop_last": False, "shuffle": False, "world_size": world_size}
    ranks = [batches(rank=rank, **options) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert len({tuple(map(len, rank)) for rank in ranks}) == 1
    everything = indices(chain.from_iterable(ranks))
    assert set(everything) == set(range(103))
    assert len(everything) - 103 < world_size
    assert sum(map(len, ranks[0])) == -(-103 // world_size)


def test_in_order_without_shuffling():
    assert indices(batches(shuffle=False, drop_last=False)) == list(range(103))
    aspects = [
        [batch[0].aspect for batch in batches(shuffle=False, epoch=epoch)] for epoch in range(2)
    ]
    assert aspects[0] == aspects[1]


def test_refuses_more_processes_than_the_data_can_feed():
    with pytest.raises(ValueError) as error:
        AspectRatioBatchSampler(15, 1, 8, world_size=2)
    message = str(error.value)
    assert "15 samples" in message and "batch of 8" in message and "2 processes" in message
    assert "--nproc_per_node" in message and "'16 @ dataset'" in message


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_samples": 0}, "empty"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"seed": -1}, "seed=-1"),
        ({"start_batch": 26}, "start_batch=26: an epoch has 25 batches"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(**arguments)
