#!/usr/bin/env bash
# Write requirements.txt (what runs), requirements-dev.txt (the group `dev`) and requirements-docs.txt (`docs`) of what
# pyproject.toml declares: every package and all it needs, with the hashes of its files. A version that is listed stays:
# to renew one, delete its lines first; to renew all, the files.
set -euo pipefail
cd "$(dirname "$0")/.."

export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile=(.venv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11)
"${compile[@]}" pyproject.toml --output-file requirements.txt
tools=("${compile[@]}" --no-config --constraints requirements.txt)
"${tools[@]}" --group dev --output-file requirements-dev.txt
"${tools[@]}" --group docs --constraints requirements-dev.txt --output-file requirements-docs.txt
