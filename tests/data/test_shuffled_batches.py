"""The order of training slices, and how processes share it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import ShuffledBatches


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9))
@settings(deadline=None)
def test_processes_share_the_batches(slices, batch, processes, epoch, skip):
    """Every slice counts once in an epoch and as much as any other, in the order of one process, from any step on."""
    batch = max(batch, processes)
    dataset = range(slices)
    alone = ShuffledBatches(dataset, batch, 3)
    alone.begin(epoch)
    steps = list(alone)
    assert sorted(index for step in steps for index in step) == list(dataset)
    assert [len(step) for step in steps[:-1]] == [batch] * (len(steps) - 1)
    shares = [ShuffledBatches(dataset, batch, 3, k, processes) for k in range(processes)]
    start = min(skip, len(steps))
    for part in shares:
        part.begin(epoch, start)
    parts = [list(part) for part in shares]
    assert [len(part) for part in parts] == [len(steps) - start] * processes
    for step in range(start, len(steps)):
        counted: dict[int, float] = {}
        for part, own in zip(shares, parts, strict=True):
            indices = own[step - start]
            for index in indices:  # DistributedDataParallel takes the mean over the processes of the means over slices
                counted[index] = counted.get(index, 0) + part.weight(step) / processes / len(indices)
        counted = {index: weight for index, weight in counted.items() if weight}
        assert counted == pytest.approx(dict.fromkeys(steps[step], 1 / len(steps[step])))


def test_order_differs_between_epochs_and_seeds():
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            batches = ShuffledBatches(range(50), 50, seed)
            batches.begin(epoch)
            orders.add(tuple(next(iter(batches))))
    assert len(orders) == 4
