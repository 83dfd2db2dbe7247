# Every word works on a fresh clone: it makes .venv and builds what it needs first.
#   make demo    the story, on PostgreSQL servers of its own      make bench    against PgBouncer and a direct connection
#   make test    every test                                       make check    style, types, imports

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(if $(shell \
	$(python) -c 'import sys; print("usable" if sys.version_info >= (3, 11) else "")' 2>/dev/null),$(python))))
BIN := .venv/bin
RUN := PYTHONUNBUFFERED=1 $(BIN)/python
# -P keeps the repository's root off the path: `import proxy` would be a second copy of pgshunt.proxy.
PYTEST := $(BIN)/python -P -m pytest

SOURCES := $(wildcard $(addsuffix /*.pyx,protocol routing proxy) $(addsuffix /*.pxd,protocol routing proxy) \
	$(addsuffix /*.pxi,protocol routing proxy) $(addsuffix /*/*.pxi,protocol routing proxy))

.PHONY: setup build test check bench bench-tools demo parity faults fuzz drivers suites corpus clean

setup: .make/setup
build: .make/build

demo: build
	@$(BIN)/pgshunt demo $(ARGS)

test: build
	@$(PYTEST) $(ARGS)

# 500 scripts for one database and 500 for two, some 400,000 messages: for half an hour; in `make test` for 50 seconds.
parity: build
	@PARITY_SEEDS=$${PARITY_SEEDS:-500} $(PYTEST) tests/parity $(ARGS)

faults: build
	@$(PYTEST) tests/faults $(ARGS)

# Every parser on wrong input, for half an hour; in `make test` for some seconds.
fuzz: build
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(PYTEST) tests/fuzz --timeout 0 $(ARGS)

# Programmes in Go, Rust, Java and JavaScript too: fetches and builds their drivers where the toolchains are.
drivers: build
	@$(RUN) -P tests/drivers/foreign.py
	@$(PYTEST) tests/drivers $(ARGS)

# A driver's own suite, of a checkout that is there: make suites ARGS="psycopg /path/to/checkout --python /path/to/python"
suites: build
	@$(RUN) -P tests/suites/run.py $(ARGS)

# Every statement of PostgreSQL's own regression scripts: is it classified as PostgreSQL runs it? Needs psql and a
# PostgreSQL 15; its source comes by apt-get, or is there already: make corpus ARGS=/path/to/src/test/regress
corpus: build
	@$(RUN) -P tests/corpus/regress.py $(ARGS)

check: build
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/mypy bench
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint protocol routing proxy
	@$(BIN)/lint-imports --no-logo

bench: build
	@$(RUN) bench/run.py $(ARGS)

# What the benchmark compares with; the only word that installs something outside .venv.
bench-tools:
	@command -v pgbouncer >/dev/null || $(MAKE) --no-print-directory .apt-pgbouncer
	@command -v pgbench >/dev/null || $(MAKE) --no-print-directory .apt-postgresql

.apt-%:
	@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { echo "install $* with your package manager, then run make bench again" >&2; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $*

clean:
	@rm -rf .venv .make build dist src/pgshunt.egg-info
	@rm -f $(addsuffix /*.so,protocol routing proxy)
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.make/setup: pyproject.toml
	@$(if $(PYTHON),,echo "Python 3.11 or newer is needed: install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1)
	@command -v $${CC:-cc} >/dev/null || { echo "a C compiler is needed (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) makes no environments (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
		{ echo "$(PYTHON) lacks its headers (Debian: apt-get install python3-dev)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "installing what pgshunt needs into .venv"
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'setuptools>=80' 'Cython>=3.1'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev,demo]'
	@mkdir -p .make && touch $@

.make/build: .make/setup setup.py $(SOURCES)
	@echo "compiling the hot path"
	@$(BIN)/python setup.py -q build_ext --inplace --parallel 2
	@touch $@
