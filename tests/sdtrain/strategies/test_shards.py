"""Ranges of flattened tensors, and weights that are replaced for a while."""

import pytest
import torch

from sdtrain.strategies.shards import Range, replaced, whole

SHAPE = torch.Size([2, 3])


def test_a_range_selects_its_values_of_a_whole_tensor():
    tensor = torch.arange(6).view(SHAPE)
    assert Range(SHAPE, 2, 3).of(tensor).tolist() == [2, 3, 4]
    assert Range(SHAPE, 6, 0).of(tensor).tolist() == []
    assert whole(SHAPE).of(tensor).tolist() == list(range(6))
    Range(SHAPE, 1, 2).of(tensor).fill_(9)  # a view
    assert tensor.tolist() == [[0, 9, 9], [3, 4, 5]]


def test_replaced_masters_are_restored_and_the_working_weights_with_them():
    masters = {"w": torch.tensor([1.0, 2.0])}
    working = []
    with (
        pytest.raises(KeyError),
        replaced(lambda: masters, {"w": torch.zeros(2)}, lambda: working.append(masters["w"].tolist())),
    ):
        raise KeyError
    assert working == [[0.0, 0.0], [1.0, 2.0]]
    with replaced(lambda: masters, None, lambda: working.append("refreshed")):
        assert masters["w"].tolist() == [1.0, 2.0]
    assert "refreshed" not in working
