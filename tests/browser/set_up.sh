#!/usr/bin/env bash
# Install Chromium, on Debian as root; elsewhere the tests report what is missing.
set -eu

needed=()
command -v chromium > /dev/null || needed+=(chromium)
command -v chromedriver > /dev/null || needed+=(chromium-driver)
if [ ${#needed[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! grep -qs '^ID=debian' /etc/os-release; then
    echo "browser tests: ${needed[*]} not found; they are installed only on Debian and as root" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${needed[@]}" > /dev/null
