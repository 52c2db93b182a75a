PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# two files at a time, in the order of their names: by default the files of few tests, which here are the long ones, come
# last, and one of them by itself keeps the other process waiting for ten minutes
TWO_FILES := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-lowest check fix docs

# the pinned install happens once; after that the stamp is newer than what it was made from
$(VENV)/installed: pyproject.toml constraints.txt
	@echo 'installing into $(VENV), once: some minutes, 2.4 GB and more'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/kyon-pl fit --config configs/demo.yaml

test: $(VENV)/installed
	$(BIN)/python -m pytest $(TWO_FILES)

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(TWO_FILES)

# the oldest versions that pyproject.toml admits; of torch there is no small build of them: 6 GB
$(VENV)-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

test-lowest: $(VENV)-lowest/installed
	$(VENV)-lowest/bin/python -m pytest $(TWO_FILES)

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TWO_FILES)

fix: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what is generated from the code
docs: $(VENV)/installed
	$(BIN)/python docs/configuration.py
