#!/bin/sh
# Installs files of pins with hashes into /opt/venv while an image is built: install.sh requirements.txt …
# From /wheels alone if something was mounted there, else from the package indices.
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
# Byte code once, at the end, and never checked against the sources: they are in the same layer. Tests stay without.
"$python" -m compileall -q -j 0 -x '/tests/|/_internal/' --invalidation-mode unchecked-hash /opt/venv/lib
