"""Batches that cut no pair in two."""

from itertools import chain

import pytest
from data_cases import water, write_xyz

from fpmace.data.dataset import make_loader, open_dataset
from fpmace.data.loader import EpochSampler
from fpmace.data.packing import BatchSampler, pack
from fpmace.errors import ConfigError

PAIRS = {0: 5, 1: 5, 4: 6, 9: 6, 8: 7, 12: 7}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    frames = [water(seed=k) for k in range(13)]
    for index, number in PAIRS.items():
        frames[index].info["pair_id"] = number
    return open_dataset(write_xyz(tmp_path_factory.mktemp("pairs") / "a.xyz", frames), 3.0)


@pytest.mark.parametrize("batch_size", [2, 3, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_pair_is_whole_in_every_epoch(dataset, batch_size, shuffle):
    loader = make_loader(dataset, batch_size, shuffle=shuffle, seed=3, keep_pairs=True)
    orders = []
    for epoch in (0, 1, 2):
        loader.set_epoch(epoch)
        batches = [batch.index.tolist() for batch in loader]
        assert len(batches) == len(loader)
        assert sorted(chain(*batches)) == list(range(13))
        assert max(map(len, batches)) <= batch_size
        for number in set(PAIRS.values()):
            members = {index for index, value in PAIRS.items() if value == number}
            assert sum(members <= set(batch) for batch in batches) == 1
        orders.append(batches)
    assert (orders[0] == orders[1]) != shuffle
    loader.set_epoch(1)
    assert [batch.index.tolist() for batch in loader] == orders[1]


def test_a_pair_that_fits_in_no_batch_is_refused(dataset):
    with pytest.raises(
        ConfigError, match=r"batch_size.*2 configurations of pair_id 5.*batch of 1"
    ):
        make_loader(dataset, 1, keep_pairs=True)


def test_singles_fill_the_gaps_that_pairs_leave():
    assert pack([[0, 1], [2, 3], [4], [5, 6]], 3) == [[0, 1, 4], [2, 3], [5, 6]]
    assert pack([[0, 1], [2, 3], [4], [5, 6]], 4) == [[0, 1, 2, 3], [4, 5, 6]]


def test_processes_share_the_pairs(dataset):
    ids = dataset.pair_ids()
    found = []
    for rank in (0, 1):
        order = EpochSampler(13, shuffle=True, seed=3)
        sampler = BatchSampler(order, 4, pair_ids=ids, rank=rank, world_size=2)
        found += sampler.batches()
    assert sorted(chain(*found)) == list(range(13))
    for number in set(PAIRS.values()):
        members = {index for index, value in PAIRS.items() if value == number}
        assert sum(members <= set(batch) for batch in found) == 1
