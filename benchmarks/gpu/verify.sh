#!/usr/bin/env bash
# Test the strategies on the devices of this machine in one call under 9 minutes: losses, gradients, resuming, exports,
# attention, speed, memory.
#   verify.sh [PART …]   strategies (or one plugin's name), attention, speed; without PART: all
# Everything ends within 500 seconds (--seconds): a case starts only if the longest so far would end in time. Each is written
# at once, and a second call goes on where the first ended. Needs no network.
# Without a GPU it is a dry run on the CPU. Results: benchmarks/results/ (RESULTS moves them).
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="project:." PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error OMP_NUM_THREADS=1
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu/verify.py --output "${RESULTS:-benchmarks/results}" "$@"
