# make demo: the whole pipeline on the built-in images, with a report.   make test: all checks and tests.
# make test-slow: the long ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint browser clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/python -m pipeline.demo

test: $(VENV)/.ready lint browser
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest tests --timeout=900 --durations=15

# more cases than `make test` has time for; the counts go to results/fuzz.json
test-slow: $(VENV)/.ready
	HF_HUB_OFFLINE=1 WANDB_MODE=offline FUZZ_RESULTS=results/fuzz.json $(BIN)/python -m pytest tests -m slow --timeout=3600

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# the report is tested in a real browser; where none can be installed that test is skipped and says why
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } >/dev/null 2>&1 || \
	  echo "no Chromium: install it to test the report in a browser"

# the environment is made anew when pyproject.toml changes
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
