#!/usr/bin/env bash
# Measure the speed of one GPU in one call under 9 minutes: one technique at a time, batch sizes, Stable Diffusion 2, LoRA,
# and the example script of diffusers, each next to what was predicted.
#   speed.sh [PART …]   ladder, peer, batches, sd2, lora; without PART: all
# Everything ends within 520 seconds (--seconds): a row starts only if the longest of its kind would end in time. A second
# call goes on where the first ended. Needs no network.
# Without a GPU it is a dry run with a tiny model. Results: benchmarks/results/ (RESULTS moves them).
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="project:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True} OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu/speed.py --output "${RESULTS:-benchmarks/results}" "$@"
