# make demo: the whole pipeline on the built-in images, with a report.   make test: all checks and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/python -m pipeline.demo

test: $(VENV)/.ready lint
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest tests --timeout=900 --durations=15

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# the environment is made anew when pyproject.toml changes
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
