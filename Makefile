# make quickstart   set everything up here and watch a GPT learn
# make test         lint, types and all quick tests; make test-slow: the soak tests and long drills
# make bench        the figures of the README; make drill: prove recovery on this machine
# make docs         the documentation as a site, in site/; broken links are errors
# make upgrade-check  try the newest Prefect 3 in a scratch environment, and print what breaks
# make screenshots  the pictures of docs/images that show sample records, of the running server, with Chromium
# make clean        remove what these made, the installed environment included

VENV := .venv
BIN := $(VENV)/bin
# pip would compile what it installs on one core, and also what nobody imports. setuptools would warn of what an editable
# installation always is.
INSTALL := PYTHONWARNINGS=ignore::UserWarning $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# uv takes seconds where pip takes a minute, but does not read pip's configuration: where it fails, pip installs.
WITH_UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
# An earlier version's crucible.egg-info would hide workers that came since from programs started in this folder.
install = rm -rf crucible.egg-info && { $(WITH_UV) $(1) 2>/dev/null || $(INSTALL) $(1); }
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(VENV)/lib
# Many of the long tests wait for other processes, so four at once pay even on two cores.
PYTEST := $(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15
BENCHMARKS := training_step checkpoint_stall orchestration preprocess_memory estimate_accuracy modal_first_step sweeps

# Set in many images of containers: each process would compile this project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow lint bench drill docs upgrade-check screenshots clean

quickstart: $(VENV)/installed
	@$(BIN)/crucible quickstart

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-slow
	$(PYTEST) -m slow --timeout 3600

# mypy uses one core. What else there is to do, compiling what was installed above all, the other core does meanwhile.
lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & mypy=$$!; \
	$(BIN)/lint-imports --no-logo && $(BIN)/python -m tests.compile_all; others=$$?; \
	[ -e $(VENV)/compiled ] || { $(COMPILE); touch $(VENV)/compiled; }; \
	wait $$mypy && exit $$others

bench: $(VENV)/installed-dev
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

drill: $(VENV)/installed-dev
	$(BIN)/crucible drill

docs: $(VENV)/installed
	@$(call install,--editable '.[docs]')
	$(BIN)/zensical build --clean --strict

screenshots: $(VENV)/installed-dev
	$(BIN)/crucible up
	$(BIN)/python -m scripts.screenshots --sample

upgrade-check: $(VENV)/installed-dev
	$(BIN)/python -m scripts.upgrade_check

clean:
	rm -rf $(VENV) build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Torch comes first and alone: it is by far the largest download, and stays installed when a later step fails.
$(VENV)/torch: constraints.txt | $(VENV)/made
	@$(INSTALL) pip
	@echo "Installing torch (large; once) ..."
	@$(INSTALL) torch uv
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/torch
	@echo "Installing Crucible ..."
	@$(call install,--editable .)
	@$(COMPILE) || true # templates and examples in some packages are no valid Python
	@touch $@ $(VENV)/compiled

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/torch
	@echo "Installing Crucible with everything its tests use ..."
	@$(call install,--editable '.[dev]')
	@rm -f $(VENV)/compiled && touch $@ $(VENV)/installed

$(VENV)/installed-slow: $(VENV)/installed-dev
	@echo "Installing what only slow tests use ..."
	@$(call install,--editable '.[slow]')
	@touch $@

# The first of these that is a Python this project runs on makes the environment; PYTHON=… puts another one first.
$(VENV)/made:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	        $$python -m venv $(VENV) && touch $@ && exit 0; \
	        echo "error: $$python cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; \
	    fi; \
	done; \
	echo "error: no Python 3.11, 3.12 or 3.13 here (python3 is: $$(python3 --version 2>&1)); install one, or name it:" \
	     "make quickstart PYTHON=/path/to/python3.12" >&2; exit 1
