# Every command sets up what it needs in .venv; only python3 (3.11 or newer) and make must be there.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
UV_VERSION := 0.13.9

.PHONY: setup demo study miniature-base test serve bench lint lock clean

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml clients/python/pyproject.toml
	test -x $(BIN)/uv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable clients/python --editable .
	touch $@

demo: setup
	$(BIN)/python -m examples.miniature $(if $(SEEDS),--seeds $(SEEDS))

# Carries out the studies of docs/study, or the one that STUDY names; what was done before is kept.
study: setup
	$(BIN)/python -m examples.miniature.study $(or $(STUDY),all)

# Trains the demo's base anew.
miniature-base: setup
	$(BIN)/python -m examples.miniature.pretrain examples/miniature/base

test: setup
	$(BIN)/python -m pytest tests/unit tests/integration tests/e2e

serve: setup
	@PORT=$(PORT) exec $(BIN)/python -m service

bench: setup
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.adaptive
	$(BIN)/python -m benchmarks.finetuning

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes requirements.lock anew: names and versions only.
lock:
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-header --no-annotate --extra datasets --extra demo \
		--extra eval --extra gs --extra hf --extra https --extra postgres --extra s3 --group dev --no-emit-package taumerge --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .taumerge
