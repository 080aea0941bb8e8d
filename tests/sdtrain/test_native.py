"""The native strategy: what of a checkpoint is taken back where the precision has changed."""

import torch

from sdtrain.strategies.base import OptimSpec
from sdtrain.strategies.native import Native

OPTIM = OptimSpec(learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0, epsilon=1e-8, max_grad_norm=1.0)
CPU = torch.device("cpu")


def prepared(precision: str) -> Native:
    strategy = Native(precision, CPU, world_size=1)
    strategy.prepare(torch.nn.Linear(2, 1), OPTIM)
    return strategy


def test_a_checkpoint_without_a_scaler_is_resumed_in_fp16(tmp_path):
    saved = prepared("bf16")
    saved.save(tmp_path, rank=0)
    other = prepared("fp16")
    other.load(tmp_path)
    assert other.full_state().keys() == saved.full_state().keys()
    for name, weight in saved.full_state().items():
        torch.testing.assert_close(other.full_state()[name], weight, rtol=0, atol=0)


def test_the_scaler_of_an_fp16_run_is_taken_back(tmp_path):
    saved = prepared("fp16")
    saved._scaler.load_state_dict({**saved._scaler.state_dict(), "scale": 128.0})
    saved.save(tmp_path, rank=0)
    other = prepared("fp16")
    other.load(tmp_path)
    assert other._scaler.state_dict()["scale"] == 128.0
