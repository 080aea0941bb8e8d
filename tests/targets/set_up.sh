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
if command -v kubectl > /dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! grep -qs '^ID=debian' /etc/os-release; then
    echo "emit tests: kubectl not found; it is installed only on Debian and as root" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends kubernetes-client > /dev/null
