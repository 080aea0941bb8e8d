#!/usr/bin/env bash
# `environment.sh NAME`: make .venv-NAME with docker/requirements-NAME.txt, which brings dozens of packages that nothing
# else needs.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
pins=$here/docker/requirements-$1.txt
made=$here/.venv-$1
if ! cmp -s "$pins" "$made/pins.txt"; then
    "${PYTHON:-python3}" -m venv --clear "$made"
    "$made/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$pins"
    cp "$pins" "$made/pins.txt"
fi
