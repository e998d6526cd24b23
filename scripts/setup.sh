#!/usr/bin/env bash
# Make the project's environment: .venv with the packages of requirements.txt and the project itself; with the word
# `tools`, those of requirements-dev.txt too, and with `docs` those of requirements-docs.txt. A second call starts at once.
set -euo pipefail
cd "$(dirname "$0")/.."

lists=(requirements.txt)
[[ " $* " != *" tools "* ]] || lists+=(requirements-dev.txt)
[[ " $* " != *" docs "* ]] || lists+=(requirements-docs.txt)
stamps=()
for list in "${lists[@]}"; do
  stamps+=(".venv/.ready-$list-$(cat "$list" pyproject.toml | sha256sum | cut -c1-16)")
done
ls "${stamps[@]}" >/dev/null 2>&1 && exit 0

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "setup: Python 3.11 is needed, since MONAI Label 0.8.5 imports what 3.12 no longer has; $python is $("$python" --version 2>&1): install it, or run make with PYTHON=/path/to/python3.11" >&2
  exit 2
}
"$python" -c 'import ensurepip' 2>/dev/null || {
  echo "setup: $python has no ensurepip: install Debian's python3.11-venv, or another Python 3.11" >&2
  exit 2
}
echo "setup: filling .venv; the packages are about 7 GB and take some minutes the first time"
"$python" -m venv .venv
pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check)
# The lists are whole, and a package that is in none is not wanted: nothing is looked for (--no-deps), and what is
# built is built by the setuptools of the list. It comes first, since one package has no wheel.
install=("${pip[@]}" install --no-deps --no-build-isolation --require-hashes)
"${install[@]}" -r <(sed -n '/^setuptools==/,/^ *#/p' requirements.txt)
"${install[@]}" "${lists[@]/#/-r}"
"${pip[@]}" install --no-deps --no-build-isolation -e .

# What an older list brought, and none of these does, goes.
listed=$(sed -n 's/^\([[:alnum:]._-]*\)==.*/\1/p' requirements.txt requirements-dev.txt requirements-docs.txt)
mapfile -t old < <("${pip[@]}" list --format freeze | sed 's/==.*//' | tr 'A-Z_.' 'a-z--' |
  grep -vxFf <(printf '%s\n' pip iopfl "$listed" | tr 'A-Z_.' 'a-z--'))
[ ${#old[@]} -eq 0 ] || "${pip[@]}" uninstall --yes "${old[@]}"
for list in "${lists[@]}"; do rm -f ".venv/.ready-$list-"*; done
touch "${stamps[@]}"
