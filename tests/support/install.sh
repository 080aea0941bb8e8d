#!/usr/bin/env bash
# `install.sh TESTS PACKAGE…`: install packages on Debian as root; elsewhere say that these tests lack them.
set -eu

tests=$1
shift
if [ $# -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! grep -qs '^ID=debian' /etc/os-release; then
    echo "$tests tests: $* not found; they are installed only on Debian and as root" >&2
    exit 0
fi
# The tests start the daemons themselves: those of the packages must not run.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "$@" > /dev/null
