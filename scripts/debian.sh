#!/usr/bin/env bash
# Install the Debian packages that some tests use: Chromium, to look at the pages as a person does; Orthanc, a PACS;
# DCMTK and dicom3tools, whose commands speak and check DICOM; a C compiler, to keep Orthanc on loopback; Node, unless
# there is one. Debian would start Orthanc, open to the network, at once: no service is started here, and none at the
# next boot. With the word `lint`, what `make lint` needs instead: Node and npm.
# As root it installs them; for others it prints the command. Tests that need what is absent are skipped with the reason.
set -euo pipefail

what=${1:-tests} lack="some are skipped" missing=()
packages=(chromium orthanc orthanc-dicomweb dcmtk dicom3tools gcc libc6-dev)
[ "$what" != lint ] || { lack="it stops" packages=(); }
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
command -v node >/dev/null || missing+=(nodejs) # often there from elsewhere, with npm
[ "$what" != lint ] || command -v npm >/dev/null || missing+=(npm)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "$what: no apt-get here; without ${missing[*]} $lack"
elif [ "$(id -u)" -ne 0 ]; then
  echo "$what: $lack without ${missing[*]}; to install: sudo apt-get install --no-install-recommends ${missing[*]}"
else
  echo "$what: installing ${missing[*]}"
  apt-get update -qq
  quiet=/usr/sbin/policy-rc.d # Debian's way to say: start nothing (exit status 101)
  [ -e "$quiet" ] || { printf '#!/bin/sh\nexit 101\n' >"$quiet"; chmod +x "$quiet"; trap 'rm -f "$quiet"' EXIT; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  [[ " ${missing[*]} " == *" orthanc "* ]] && command -v systemctl >/dev/null && systemctl --quiet disable orthanc || true
fi
