#!/usr/bin/env bash
# Make .venv-emit with the programs that emitted jobs are for, and install kubectl on Debian as root; elsewhere the
# tests report what is missing.
set -eu

support=$(dirname "$0")/../support
bash "$support/environment.sh" emit
command -v kubectl > /dev/null || bash "$support/install.sh" emit kubernetes-client
