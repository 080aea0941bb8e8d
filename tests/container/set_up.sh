#!/usr/bin/env bash
# Install the programs that the container tests need, on Debian as root; elsewhere the tests report what is missing.
set -eu

works() { command -v "$1" > /dev/null && "$1" info > /dev/null 2>&1; }

needed=()
works podman || works docker || needed+=(podman runc catatonit)
command -v debootstrap > /dev/null || needed+=(debootstrap)
command -v ip > /dev/null || needed+=(iproute2)
if [ ${#needed[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! grep -qs '^ID=debian' /etc/os-release; then
    echo "container tests: ${needed[*]} not found; they are installed only on Debian and as root" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${needed[@]}" > /dev/null
