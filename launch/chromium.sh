#!/usr/bin/env bash
# Makes sure that there is a Chromium, in which the tests try the studio. Prints its path.
set -euo pipefail

find_chromium() {
  local name
  for name in chromium chromium-browser google-chrome; do
    if command -v "$name"; then
      return
    fi
  done
  return 1
}

die() {
  printf 'chromium.sh: %s\n' "$1" >&2
  exit 1
}

if find_chromium; then
  exit
fi
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  die 'found no Chromium, in which the tests try the studio; install one: as root on
Debian, apt-get install chromium; elsewhere, any of chromium, chromium-browser and
google-chrome on the PATH.'
fi
printf 'Installing chromium with apt-get, for a minute or more.\n' >&2
export DEBIAN_FRONTEND=noninteractive
{
  apt-get update -qq &&
    apt-get install -qq --yes --no-install-recommends chromium
} >&2 || die 'apt-get cannot install chromium; install it by hand.'
find_chromium || die 'apt-get has installed chromium, but it is not on the PATH.'
