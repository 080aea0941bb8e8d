#!/usr/bin/env bash
# Make .venv-s3 with s3fs and a server that behaves like S3. In an environment of its own, since both bring dozens of
# packages that nothing else needs.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
pins=$here/docker/requirements-s3.txt
made=$here/.venv-s3
if ! cmp -s "$pins" "$made/pins.txt"; then
    "${PYTHON:-python3}" -m venv --clear "$made"
    "$made/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$pins"
    cp "$pins" "$made/pins.txt"
fi
