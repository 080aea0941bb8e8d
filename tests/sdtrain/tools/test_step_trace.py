"""What a traced step costs, and the preflight's estimate of memory against its peak.

Tests of step_trace and benchmarks/gpu/memory.py.
"""

import pytest

from benchmarks.gpu import memory
from benchmarks.gpu.memory import CASES, TOLERANCE, Case

QUICK = (Case("sd14", 0, False, 4),)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_the_estimate_is_near_the_peak_of_a_traced_step(case):
    assert abs(memory.measured(case)["off"]) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK], ids=str)
def test_the_estimate_is_near_the_peak_for_every_model(case):
    assert abs(memory.measured(case)["off"]) <= TOLERANCE
