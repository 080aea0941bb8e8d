#!/usr/bin/env bash
# Install Chromium, on Debian as root; elsewhere the tests report what is missing.
set -eu

needed=()
command -v chromium > /dev/null || needed+=(chromium)
command -v chromedriver > /dev/null || needed+=(chromium-driver)
bash "$(dirname "$0")/../support/install.sh" browser ${needed[@]+"${needed[@]}"}
