# Each target sets up what it needs in a virtual environment of its own, by any Python from 3.10 (or PYTHON=...).
PYTHON ?=
VENV   ?= .venv
BIN     = $(VENV)/bin
ARGS   ?=

.PHONY: demo test quick nightly lint wheel pages release compat bench clean

# A small pretrained ViT made sparse: a table and a picture under demo_out/. `make demo ARGS=--pretrain`: DINO from nothing.
demo: $(VENV)/.demo
	$(BIN)/attn-plugins demo $(ARGS)

# One thread a worker: two workers with two threads each would wait for each other on two cores. Files go in their order:
# reordered, those with few tests, which are the longest, would come last and leave a worker idle.
RUN = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	$(RUN) $(ARGS)

# What a change is tried with every few minutes, and everything there is.
quick: $(VENV)/.test
	$(RUN) -m "not slow and not nightly" $(ARGS)

nightly: $(VENV)/.test
	$(RUN) -m "" --hypothesis-profile explore $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The source distribution, the wheel that is built from it, and whether that works where nothing of this folder is.
wheel: $(VENV)/.test
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist . >/dev/null
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$$folder/installed" build/dist/*.whl && \
	  cp tests/smoke.py "$$folder" && cd "$$folder" && \
	  PYTHONPATH=installed $(abspath $(BIN))/python smoke.py $(abspath build/dist)

# The pages of docs/, strictly, in build/site.
pages: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# To the index that twine is set up for. First: the version in attn_plugins/__init__.py, CHANGELOG.md, a tag.
release: wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check twine
	$(BIN)/python -m twine check --strict build/dist/*
	$(BIN)/python -m twine upload $(ARGS) build/dist/*

# The environments of .ci/compat.json, one after another, each made and removed; `make compat ARGS=floor` for one.
compat: $(VENV)/.venv
	$(BIN)/python .ci/compat.py $(ARGS)

bench: $(VENV)/.test
	$(BIN)/attn-plugins bench attention $(ARGS)

$(VENV)/.venv:
	python="$(PYTHON)"; python="$${python:-$$(.ci/find-python)}" && "$$python" -m venv $(VENV) && \
	  echo "$(VENV) has $$("$$python" --version) of $$python"
	touch $@

# The stamp carries the extra's name: make installs again when the requirements change.
# Some of the pins are not to be had for Python 3.10, which takes the newest that there are instead.
$(VENV)/.%: $(VENV)/.venv pyproject.toml constraints.txt
	pins=$$($(BIN)/python -c 'import os, sys; print("constraints.txt" if sys.version_info >= (3, 11) else os.devnull)') && \
	  pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $$pins" && \
	  $$pip torch torchvision && $$pip -e ".[$*]" && .ci/load-opencv $(BIN)/python
	touch $@

clean:
	rm -rf $(VENV) demo_out build
