"""Gradients in buckets: accumulated over passes, summed over ranks, zero where a parameter is not used."""

import pytest
import torch
from torch import nn

from sdtrain.strategies import exchange, flat
from sdtrain.strategies.exchange import Gradients
from sdtrain.strategies.flat import Flat
from tests.support import trials

NAMES = "abcd"


def collected(ranks: int = 1, dtype: torch.dtype = torch.float32):
    """Four parameters in a bucket each."""
    parameters = {name: nn.Parameter(torch.ones(8, 8)) for name in NAMES}
    of = Flat(parameters, torch.float32)
    return parameters, of, Gradients([of], ranks=ranks, dtype=dtype)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(flat, "_BUCKET", 1)


@pytest.mark.parametrize("in_place", [True, False])
def test_passes_add_up_and_an_unused_parameter_has_a_gradient_of_zero(monkeypatch, in_place):
    monkeypatch.setattr(exchange, "IN_PLACE", ("cpu",) if in_place else ())
    parameters, _, gradients = collected()
    for factor, used in ((1.0, "ab"), (2.0, "abc")):
        with gradients.accumulating(last=factor == 2.0):
            sum(factor * parameters[name].sum() for name in used).backward()
            gradients.end_pass()
    summed = gradients.summed()
    for p, bucket in zip(parameters.values(), summed, strict=True):  # without a second gradient of its size
        assert p.grad.data_ptr() == bucket.data_ptr() if in_place else p.grad is None
    found = [bucket.max().item() for bucket in summed]
    assert found == [3.0, 3.0, 2.0, 0.0]
    gradients.reset()
    parameters["d"].sum().backward()
    gradients.end_pass()
    assert [bucket.max().item() for bucket in gradients.summed()] == [0.0, 0.0, 0.0, 1.0]


def work(dtype: str) -> dict[str, object]:
    """Two steps of two ranks that complete the buckets in different orders and use different parameters."""
    rank = torch.distributed.get_rank()
    flat._BUCKET = 1
    parameters, _, gradients = collected(2, getattr(torch, dtype))
    sums, orders = [], []
    for step in range(2):
        for last in (False, True):
            order = "abc" if rank == 0 else "dab"
            value = torch.ones(())
            for name in order:  # each one's gradient depends on those after it
                value = value + parameters[name].sum() * (step + 1.5)
            with gradients.accumulating(last):
                value.backward()
                gradients.end_pass()
        sums.append([bucket.max().item() for bucket in gradients.summed()])
        orders.append(list(gradients._order))
        gradients.reset()
    everywhere = [None, None]
    torch.distributed.all_gather_object(everywhere, (sums, orders))
    return {"ranks": everywhere}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_over_ranks_are_the_same_whatever_the_order_of_the_gradients(tmp_path, dtype):
    (sums, orders), other = trials.in_ranks(2, work, dtype, folder=tmp_path)["ranks"]
    assert (sums, orders) == other
    assert sums == [[6.0, 6.0, 3.0, 3.0], [10.0, 10.0, 5.0, 5.0]]
    assert sorted(orders[0]) == [0, 1, 2, 3]
