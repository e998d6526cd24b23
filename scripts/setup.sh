#!/usr/bin/env bash
# Make the project's environment: .venv with the pinned packages and the project itself. A second call starts at once.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.ready-$(cat requirements.txt setup.py | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "setup: Python 3.11 is needed, $python is $("$python" --version 2>&1): install it, or run make with PYTHON=/path/to/python3.11" >&2
  exit 2
}
"$python" -c 'import ensurepip' 2>/dev/null || {
  echo "setup: $python has no ensurepip: install Debian's python3.11-venv, or another Python 3.11" >&2
  exit 2
}
echo "setup: making .venv; the packages are about 8 GB and take some minutes the first time"
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
rm -f .venv/.ready-*
touch "$stamp"
