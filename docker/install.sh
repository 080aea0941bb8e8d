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
    # The CPU build of torch is in PyTorch's own index, and its mirrors, only.
    [ "$file" = requirements-torch.txt ] && index="${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" || index=
    "$python" -m pip install --no-cache-dir --no-compile --no-deps --require-hashes \
        ${index:+"--extra-index-url=$index"} --requirement "$file"
done
# PyTorch's own test programs, 80 MB of them.
rm -rf /opt/venv/lib/python3*/site-packages/torch/test
# Byte code once, at the end, and never checked against the sources: they are in the same layer. Tests stay without.
"$python" -m compileall -q -j 0 -x '/tests/|/_internal/' --invalidation-mode unchecked-hash /opt/venv/lib
