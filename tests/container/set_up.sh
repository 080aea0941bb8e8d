#!/usr/bin/env bash
# Install the programs that the container tests need, on Debian as root; elsewhere the tests report what is missing.
set -eu

works() { command -v "$1" > /dev/null && "$1" info > /dev/null 2>&1; }

needed=()
works podman || works docker || needed+=(podman runc catatonit)
command -v debootstrap > /dev/null || needed+=(debootstrap)
command -v ip > /dev/null || needed+=(iproute2)
bash "$(dirname "$0")/../support/install.sh" container ${needed[@]+"${needed[@]}"}
