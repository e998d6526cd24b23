# Everything sets itself up: `make demo` and `make test` work from a bare clone on Linux with Python 3.11.
.DEFAULT_GOAL := help
.PHONY: help env tools demo test test-long lint docs lock sbom

DATA ?=
TASK ?=
OUTSIDE ?=
ROUNDS ?=
DEMO ?= demo

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

env: ## .venv with all that runs
	@scripts/setup.sh

tools: ## the same, and the tools of the targets below
	@scripts/setup.sh tools

demo: env ## a federation, its bank and a label server at an outside site; DATA=folder TASK=task OUTSIDE=site ROUNDS=n
	@.venv/bin/python -m scripts.demo --folder "$(DEMO)" --data "$(DATA)" --task "$(TASK)" --outside "$(OUTSIDE)" --rounds "$(ROUNDS)"

test: tools ## all tests of ordinary length, 15 minutes at most
	@scripts/debian.sh
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

test-long: ## faults, kills, the tutorials, the site, and the demo from a bare clone
	@scripts/setup.sh tools docs
	@scripts/debian.sh
	@.venv/bin/python -m pytest -m long --timeout 3600

lint: tools node_modules/.package-lock.json ## ruff and mypy; Prettier, ESLint and tsc
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@npm run --silent lint

node_modules/.package-lock.json: package-lock.json
	@scripts/debian.sh lint
	@npm ci --silent
	@touch $@

docs: ## these documents and the Python API as a site: build/site/docs/index.html
	@scripts/setup.sh docs
	@.venv/bin/python -m sphinx -q -W --keep-going -c docs . build/site
	@echo "build/site/docs/index.html"

lock: tools ## the lists requirements*.txt anew, of pyproject.toml; versions there stay
	@scripts/lock.sh

sbom: tools ## sbom.json, a CycloneDX list of what runs
	@.venv/bin/cyclonedx-py requirements requirements.txt --output-reproducible --output-file sbom.json
