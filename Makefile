PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# two files at a time, in the order of their names: by default the files of few tests, which here are the long ones, come
# last, and one of them by itself keeps the other process waiting for ten minutes
TWO_FILES := --numprocesses 2 --dist loadfile --no-loadscope-reorder

CPU_BUILD := $(shell grep --only-matching '^torch[^ ]*' requirements/torch-cpu.lock)
BY_HASH := --quiet --disable-pip-version-check --require-hashes --no-deps

.PHONY: demo test test-slow test-lowest check fix docs site lock audit build

# the pinned install happens once; after that the stamp is newer than what it was made from
# each file is compared with the hash of its lock; where pip finds torch's CPU build, which is small, it is taken
$(VENV)/installed: pyproject.toml requirements/test.lock requirements/torch-cpu.lock requirements/torch-cuda.lock
	@echo 'installing into $(VENV), once: some minutes, 2.4 GB and more'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(BY_HASH) --requirement requirements/test.lock
	if $(BIN)/pip install --quiet --dry-run --no-deps $(CPU_BUILD) 2>/dev/null; then build=cpu; else build=cuda; fi; \
	$(BIN)/pip install $(BY_HASH) --requirement requirements/torch-$$build.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
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
	$(BIN)/python docs/messages.py

$(VENV)-site/installed: requirements/site.lock
	$(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/pip install $(BY_HASH) --requirement requirements/site.lock
	touch $@

# the documentation as pages, in site/; a link that leads nowhere is an error
site: $(VENV)-site/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-site/bin/mkdocs build --quiet --site-dir site

# the versions of constraints.txt with the hashes of their files; needs uv
lock:
	$(PYTHON) requirements/lock.py

$(VENV)-audit/installed: requirements/audit.lock
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install $(BY_HASH) --requirement requirements/audit.lock
	touch $@

# known vulnerabilities and licences of what is installed, and the workflows of GitHub
audit: $(VENV)/installed $(VENV)-audit/installed
	$(VENV)-audit/bin/python requirements/audit.py $(filter-out %/torch-cpu.lock,$(wildcard requirements/*.lock)) --python $(BIN)/python
	$(VENV)-audit/bin/zizmor --offline --quiet .github/workflows

# sdist and wheel, the same bytes for the same commit, and what they were tested with
build: $(VENV)/installed $(VENV)-audit/installed
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation --outdir dist
	cat requirements/test.lock requirements/torch-cuda.lock | \
	$(VENV)-audit/bin/cyclonedx-py requirements --output-reproducible --output-file dist/sbom.cdx.json -
