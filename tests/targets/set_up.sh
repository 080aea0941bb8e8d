#!/usr/bin/env bash
# Make .venv-emit with the programs that emitted jobs are for, and install kubectl on Debian as root; elsewhere the
# tests report what is missing.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
pins=$here/docker/requirements-emit.txt
made=$here/.venv-emit
if ! cmp -s "$pins" "$made/pins.txt"; then
    "${PYTHON:-python3}" -m venv --clear "$made"
    "$made/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$pins"
    cp "$pins" "$made/pins.txt"
fi
command -v kubectl > /dev/null || bash "$here/tests/support/install.sh" emit kubernetes-client
