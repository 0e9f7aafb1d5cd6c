# `make demo` and `make test` do all the set-up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint type bench wheel-test clean

$(VENV)/.zoo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[zoo]'
	touch $@

$(VENV)/.dev: $(VENV)/.zoo
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(INSTALL) -e '.[bench]'
	touch $@

demo: $(VENV)/.zoo  ## train clip PPO on the Roboschool humanoid in two or three minutes; curve, film and model in demo/
	$(VENV)/bin/ppo-variants demo

test: $(VENV)/.dev  ## the fast tests
	$(RUN) pytest -n 2

test-slow: $(VENV)/.dev  ## the tests that train for minutes
	$(RUN) pytest -m slow

lint: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .

type: $(VENV)/.dev
	$(RUN) mypy

BENCHMARKS := update_throughput env_throughput train_throughput render_rate vec_env_overhead many_throughput tuning_overhead

bench: $(VENV)/.bench  ## the speed claims of README and docs/scaling.md, beside their peers
	for name in $(BENCHMARKS); do echo "== $$name"; $(VENV)/bin/python -u benchmarks/$$name.py || exit 1; done

wheel-test: $(VENV)/.dev  ## install the built wheel in an empty environment and use it in an empty folder
	PYTHON=$(abspath $(VENV))/bin/python bash tests/wheel_test.sh

clean:
	rm -rf $(VENV) build dist
