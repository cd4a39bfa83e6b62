# Two commands do everything: `make tour` and `make test`. Both set up .venv on their first call.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CORPUS ?=
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup tour test test-all notebooks export lab clean

help:  ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("tokenlab needs Python 3.11 or newer, this is %s: make PYTHON=python3.12 ..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up .venv (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY)  ## Create .venv and install everything, pinned

tour: $(READY)  ## Train a tokenizer and a model on real text, write tour/report.html (CORPUS=path for your own)
	@$(BIN)/tokenlab tour $(if $(CORPUS),--corpus "$(CORPUS)") --out tour

test: $(READY)  ## Export in step, notebooks clean, every notebook runs, pytest
	$(BIN)/python tools/notebooks.py check
	$(BIN)/python tools/notebooks.py test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --durations=8

test-all: $(READY)  ## As `test`, slow (and, where there is a GPU, cuda) cells and tests included
	$(BIN)/python tools/notebooks.py check
	$(BIN)/python tools/notebooks.py test --flags "slow $$($(BIN)/python -c 'import torch; print("cuda" * torch.cuda.is_available())')"
	$(BIN)/python -m pytest -q -n 2 --durations=8 --slow

notebooks: $(READY)  ## Run every notebook in place, slow cells included, and store its outputs (NB=path for one)
	$(BIN)/python tools/notebooks.py refresh $(NB)
	$(BIN)/python tools/notebooks.py export

export: $(READY)  ## Notebooks -> package
	$(BIN)/python tools/notebooks.py export

lab: $(READY)  ## Open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

clean:  ## Remove the environment and everything built
	rm -rf .venv build dist _docs _proc tour *.egg-info
