PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/[a-z]*.py))

.PHONY: help setup demo demo-full browser test chaos chaos-serve check bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## .venv with everything, and the small models (a second call does nothing)
	@$(PYTHON) tools/setup.py

demo: setup  ## the whole method on a generated task with small models; report in runs/demo
	@$(BIN)/symoe run task=demo pool=demo --run demo

demo-full: setup  ## the same with more questions and three seeds; report in runs/demo-full
	@$(BIN)/symoe run task=demo pool=demo task.demo.validation=360 task.demo.test=360 'seeds=[0,1,2]' --run demo-full

browser: setup  ## a Chromium for the tests of pages, where there is none
	@$(BIN)/python tools/browser.py

test: setup  ## all tests; the last line is a JSON object of counts
	@$(BIN)/python -m pytest

chaos: setup  ## 100 faults in runs with fake engines, 10 with real ones; 20 to 40 minutes
	@$(BIN)/python -m benchmarks.chaos --faults 100 --real-faults 10

chaos-serve: setup  ## two minutes of 200 impatient clients while engines are killed
	@SYMOE_CHAOS_SECONDS=120 SYMOE_CHAOS_CLIENTS=200 $(BIN)/python -m pytest tests/serve/test_chaos.py -s

check: setup  ## linter, formatter, type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy symoe_ray actors pipelines

bench: setup  ## every benchmark; each ends with one JSON line
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

clean:  ## remove .venv, caches and build results (runs/ and the models stay)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
