#!/usr/bin/env bash
# Install SLURM for the cluster tests, on Debian as root; elsewhere the tests report what is missing.
set -eu

needed=()
command -v slurmctld > /dev/null || needed+=(slurmctld)
command -v slurmd > /dev/null || needed+=(slurmd)
command -v sbatch > /dev/null || needed+=(slurm-client)
command -v munged > /dev/null || needed+=(munge)
command -v ip > /dev/null || needed+=(iproute2)
if [ ${#needed[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! grep -qs '^ID=debian' /etc/os-release; then
    echo "cluster tests: ${needed[*]} not found; they are installed only on Debian and as root" >&2
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
apt-get install -qq --yes --no-install-recommends "${needed[@]}" > /dev/null
