# Everything here needs only Python 3.11 or newer and make; the rest is installed into $(VENV) when pyproject.toml changes.
#   make test ARGS="-k settings"      one part of the tests
#   make test PYTHON=python3.12 VENV=.cache/venvs/3.12

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes the tests are spread over.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slow faults soak faults check format format-check lint types contracts docs docs-serve bench bench-embedded bench-redis bench-postgres clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

define install
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
		python="$(PYTHON)"; [ -n "$$python" ] || python=$$(sh .ci/pythons newest) || exit 1; \
		echo "$$python -m venv $(VENV)"; "$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'
	@touch $@
endef

$(VENV)/.installed-test: pyproject.toml
	$(call install,test)

$(VENV)/.installed-dev: pyproject.toml
	$(call install,dev)
	@touch $(VENV)/.installed-test

$(VENV)/.installed-docs: pyproject.toml
	$(call install,docs)

demo: $(VENV)/.installed-test ## run the example application on a fresh SQLite file
	@rm -rf .cache/demo && mkdir -p .cache/demo
	QUEUE_URL=sqlite:///.cache/demo/jobs.db $(BIN)/python -m example_app $(ARGS)

test: $(VENV)/.installed-test ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-all: ## run the tests under every Python found
	@pythons=$$(sh .ci/pythons) || exit 1; \
	echo "Found:"; echo "$$pythons" | sed 's/^/  /'; \
	for python in $$pythons; do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
		echo "== Python $$version: $$python"; \
		$(MAKE) --no-print-directory test PYTHON="$$python" VENV=".cache/venvs/$$version" || exit 1; \
	done

test-slow: $(VENV)/.installed-test ## run the long tests, which "test" leaves out
	WORKERS_TEST_FULL=1 $(BIN)/python -m pytest -m slow $(ARGS)
	WORKERS_TEST_FULL=1 $(BIN)/python -m pytest tests/store/test_property.py $(ARGS)

# Seeds of the fault tests; a failure names the one to repeat.
SEEDS ?= 1 2 3

faults: $(VENV)/.installed-test ## kill, freeze and cut off servers and workers, at full size (SEEDS="1 2 3")
	WORKERS_TEST_FAULT_SEEDS="$(SEEDS)" $(BIN)/python -m pytest tests/faults $(ARGS)

soak: test-slow

check: format-check lint types contracts ## all checks that run no test

format: $(VENV)/.installed-dev ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix-only --quiet

format-check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check --quiet --diff

lint: $(VENV)/.installed-dev ## ruff
	$(BIN)/ruff check --quiet

types: $(VENV)/.installed-dev ## mypy and pyright, both strict
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(VENV)/.installed-dev ## which way imports may run
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-docs ## build the documentation into build/site; a broken link fails
	$(BIN)/python -m tools.reference docs/reference
	@# What --clean would do, but for .cache, which it deletes as a whole: environments lie there too.
	@mkdir -p .cache && find .cache -maxdepth 1 -type f -delete && rm -rf build/site
	$(BIN)/zensical build --strict

docs-serve: $(VENV)/.installed-docs ## show the documentation, and changes to it as they are made
	$(BIN)/python -m tools.reference docs/reference
	$(BIN)/zensical serve

# Peers have virtual environments of their own; ARGS go to the runner (--rounds 5, -n 50000).
PEERS := cd benchmarks/peers && BENCH_HOME=$(abspath .cache/bench)

bench: bench-embedded bench-redis bench-postgres ## measure what a job costs here, and beside other libraries

bench-embedded: $(VENV)/.installed-test ## the part of "bench" that needs no server: memory and SQLite
	$(BIN)/python benchmarks/micro.py
	$(PEERS) BENCH_PYTHON=$(abspath $(BIN))/python ./setup.sh ours sqliteq huey taskiq
	$(PEERS) ../../$(BIN)/python run_peers.py workers_sqlite workers_sqlite_normal litequeue_ huey_sqlite --measures drain,enqueue \
		--rounds 5 $(ARGS) -o $(abspath .cache/bench)/sqlite.json
	$(PEERS) ../../$(BIN)/python run_peers.py workers_memory taskiq_memory plain_asyncio --measures drain \
		--rounds 5 -n 50000 $(ARGS) -o $(abspath .cache/bench)/memory.json
	$(BIN)/python benchmarks/peers/table.py .cache/bench/sqlite.json .cache/bench/memory.json

bench-redis: $(VENV)/.installed-test ## the part of "bench" on Redis, beside Node.js (needs redis-server, redis-benchmark, node, npm)
	$(PEERS) BENCH_PYTHON=$(abspath $(BIN))/python ./setup.sh ours saq taskiq streaq bullmq_py arq dramatiq celery rq node
	$(PEERS) ../../$(BIN)/python run_peers.py workers_redis bullmq_node bullmq_py saq_redis taskiq_redis_ streaq_ \
		--measures drain,enqueue --rounds 5 --concurrency 100,10 $(ARGS) -o $(abspath .cache/bench)/redis.json
	$(PEERS) ../../$(BIN)/python run_peers.py workers_redis bullmq_node \
		--measures latency,idle,delayed --rounds 5 $(ARGS) -o $(abspath .cache/bench)/redis-waiting.json
	$(PEERS) ../../$(BIN)/python run_peers.py arq_ dramatiq_ celery_ rq_ \
		--measures drain,enqueue --rounds 3 $(ARGS) -o $(abspath .cache/bench)/redis-more.json
	$(BIN)/python benchmarks/peers/table.py .cache/bench/redis.json .cache/bench/redis-waiting.json .cache/bench/redis-more.json

bench-postgres: $(VENV)/.installed-test ## the same on Postgres (needs its server's programs)
	$(PEERS) BENCH_PYTHON=$(abspath $(BIN))/python ./setup.sh ours pgqueuer oban procrastinate
	$(PEERS) ../../$(BIN)/python run_peers.py workers_postgres pgqueuer_ oban_ procrastinate_ --measures drain,enqueue,delayed \
		--rounds 5 $(ARGS) -o $(abspath .cache/bench)/postgres.json
	$(PEERS) ./pg.sh start
	$(BIN)/python benchmarks/steps.py postgresql://bench@127.0.0.1:$(or $(BENCH_PG_PORT),7432)/postgres; \
		status=$$?; $(PEERS) ./pg.sh stop; exit $$status
	$(BIN)/python benchmarks/peers/table.py .cache/bench/postgres.json

clean: ## remove what was made, except for .venv
	rm -rf .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
