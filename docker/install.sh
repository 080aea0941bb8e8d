#!/bin/sh
# Install hashed pins into /opt/venv during an image build: install.sh requirements.txt …
# Only from /wheels if something is mounted there, otherwise from the package indices.
set -eu
cd "$(dirname "$0")"

python=/opt/venv/bin/python
if [ -n "$(ls /wheels)" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_PROGRESS_BAR=off
for file in "$@"; do
    index=
    if [ "$file" = requirements-torch.txt ]; then
        index=${TORCH_CPU_INDEX:-}
    fi
    if ! "$python" -m pip install --no-cache-dir --no-compile --no-deps --require-hashes \
        ${index:+"--extra-index-url=$index"} --requirement "$file"; then
        if [ "$file" = requirements-torch.txt ] && [ -z "$index" ]; then
            echo "torch: the pinned CPU build was not found" >&2
            echo "    → --build-arg TORCH_CPU_INDEX=… (an index with CPU builds of PyTorch), or --build-context wheels=…" >&2
        fi
        exit 69
    fi
done
# PyTorch's own test programs, 80 MB of them.
rm -rf /opt/venv/lib/python3*/site-packages/torch/test
# Byte code, once at the end, never checked against the sources, which are in the same layer. Not of tests.
"$python" -m compileall -q -j 0 -x '/tests/|/_internal/' --invalidation-mode unchecked-hash /opt/venv/lib
