#!/usr/bin/env bash
# Install SLURM for the cluster tests, on Debian as root; elsewhere the tests report what is missing.
set -eu

needed=()
command -v slurmctld > /dev/null || needed+=(slurmctld)
command -v slurmd > /dev/null || needed+=(slurmd)
command -v sbatch > /dev/null || needed+=(slurm-client)
command -v munged > /dev/null || needed+=(munge)
command -v ip > /dev/null || needed+=(iproute2)
bash "$(dirname "$0")/../support/install.sh" cluster ${needed[@]+"${needed[@]}"}
