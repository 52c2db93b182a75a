PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

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
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

# the oldest versions that pyproject.toml admits; of torch there is no small build of them: 6 GB
$(VENV)-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

test-lowest: $(VENV)-lowest/installed
	$(VENV)-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

fix: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what is generated from the code
docs: $(VENV)/installed
	$(BIN)/python docs/configuration.py
