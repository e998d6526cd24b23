#!/usr/bin/env bash
# Install the Debian packages that some tests use: Chromium, to look at the pages as a person does; Orthanc, a PACS;
# DCMTK and dicom3tools, whose commands speak and check DICOM; a C compiler, to keep Orthanc on loopback. Debian would start Orthanc, open to the network, at once:
# no service is started here, and none at the next boot.
# As root it installs them; for others it prints the command. Tests that need what is absent are skipped with the reason.
set -euo pipefail

packages=(chromium orthanc orthanc-dicomweb dcmtk dicom3tools gcc libc6-dev)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "tests: no apt-get here; without ${missing[*]} some tests are skipped"
elif [ "$(id -u)" -ne 0 ]; then
  echo "tests: some are skipped without ${missing[*]}; to install: sudo apt-get install --no-install-recommends ${missing[*]}"
else
  echo "tests: installing ${missing[*]}"
  apt-get update -qq
  quiet=/usr/sbin/policy-rc.d # Debian's way to say: start nothing (exit status 101)
  [ -e "$quiet" ] || { printf '#!/bin/sh\nexit 101\n' >"$quiet"; chmod +x "$quiet"; trap 'rm -f "$quiet"' EXIT; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  [[ " ${missing[*]} " == *" orthanc "* ]] && command -v systemctl >/dev/null && systemctl --quiet disable orthanc || true
fi
