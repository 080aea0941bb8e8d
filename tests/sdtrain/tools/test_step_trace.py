"""What a traced step costs, and the preflight's estimate of memory against its peak.

Tests of step_trace and benchmarks/gpu/memory.py.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from benchmarks.gpu import memory
from benchmarks.gpu.memory import CASES, TOLERANCE, Case
from sdtrain.tools.step_trace import PASSES, Kernels, trace

QUICK = Case("sd14", 0, False, 64, "bf16")


@pytest.fixture(scope="module")
def found():
    """In a process of its own: what other tests import, such as Colossal-AI, adds operations to a step."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(trace, QUICK.spec, QUICK.model, cached=False).result()


def test_the_estimate_is_near_the_peak_of_a_traced_step(found):
    row = memory.compared(QUICK, found)
    assert abs(row["off"]) <= TOLERANCE
    assert found.static < found.static + found.saved < found.peak


def test_a_step_of_stable_diffusion_1_stays_within_its_budgets(found):
    """Before compiling, for each image of a batch of 64. Collecting gradients in flat tensors is counted apart: it
    replaces kernels of the update."""
    images = QUICK.train_batch_size
    passes = found.total(*PASSES)
    collecting = sum(
        (each for kind, each in found.kernels.items() if kind.name in ("zeros", "_foreach_copy_")), Kernels()
    )
    update = found.total("update")
    assert passes.flops == pytest.approx(images * 2.470e12, rel=1e-3)
    assert passes.count - collecting.count <= 1_850
    assert (passes.moved - collecting.moved) / images <= 7.7e9
    assert found.saved / images <= 0.95e9
    assert update.count <= 100  # a CPU has more and smaller buckets than a GPU
    assert (update.moved + collecting.moved) / 859_520_964 <= 68  # bytes for each parameter


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_estimate_is_near_the_peak_for_every_model(case):
    assert abs(memory.compared(case, memory.traced(case))["off"]) <= TOLERANCE
