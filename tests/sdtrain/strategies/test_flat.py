"""Parameters in flat tensors: their layout, their views and the norm."""

import pytest
import torch
from torch import nn

from sdtrain.strategies.flat import ROW, Flat, layout, norm_of


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        "conv": nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)),
        "bias": nn.Parameter(torch.randn(8)),
        "linear": nn.Parameter(torch.randn(40, 70)),
    }


def test_a_parameter_keeps_its_values_and_strides_and_is_a_view_of_the_masters():
    found = parameters()
    before = {name: (p.detach().clone(), p.stride()) for name, p in found.items()}
    flat = Flat(found, torch.float32)
    for name, (values, strides) in before.items():
        assert torch.equal(found[name], values)
        assert found[name].stride() == strides
        assert found[name].data_ptr() % 64 == 0
    flat.master.fill_(3.0)
    assert all(bool((p == 3.0).all()) for p in found.values())
    assert flat.working is flat.master


def test_buckets_are_whole_parameters_in_whole_rows():
    buckets = layout({name: torch.empty(3000) for name in "abcde"}, bucket_size=5000)
    assert [[slot.name for slot in bucket.slots] for bucket in buckets] == [["a", "b"], ["c", "d"], ["e"]]
    assert [bucket.start for bucket in buckets] == [0, 2 * ROW, 4 * ROW]
    assert [bucket.stop for bucket in buckets] == [2 * ROW, 4 * ROW, 5 * ROW]


def test_other_values_are_used_without_a_copy_and_the_masters_stay():
    found = parameters()
    flat = Flat(found, torch.float32)
    other, before = flat.master + 1, flat.master.clone()
    flat.use(other)
    assert found["bias"].data_ptr() == flat.named(other)["bias"].data_ptr()
    assert torch.equal(flat.master, before)
    flat.use(flat.master)
    assert found["conv"].data_ptr() == flat.master.data_ptr()


def test_a_working_copy_in_bf16_follows_the_masters():
    found = parameters()
    exact = {name: p.detach().clone() for name, p in found.items()}
    flat = Flat(found, torch.bfloat16)
    assert {p.dtype for p in found.values()} == {torch.bfloat16}
    assert all(torch.equal(view, exact[name]) for name, view in flat.named(flat.master).items())
    flat.master.add_(1)
    flat.refresh()
    assert all(torch.equal(p, (exact[name] + 1).bfloat16()) for name, p in found.items())
    flat.use(flat.master * 2)
    assert torch.equal(found["bias"], ((exact["bias"] + 1) * 2).bfloat16())


def test_the_norm_of_many_values_is_exact():
    """At 10^7 equal values PyTorch's norm of one fp32 tensor on a CPU is off by more than this."""
    values = torch.full((2500 * ROW,), 1e-3)
    assert norm_of([values[: 500 * ROW], values[500 * ROW :]]).item() == pytest.approx(
        1e-3 * (2500 * ROW) ** 0.5, rel=1e-5
    )
