# Everything lives in .venv; delete it to start anew. PYTHON names another interpreter (3.10 to 3.12), INSTALL=
# installs the built wheel in place of the checkout.
PYTHON ?= python3
INSTALL ?= --editable
BIN := .venv/bin

.PHONY: demo test test-programs check benchmark clean

# One thread: beside other programs two of them wait for each other, and distort the times that are compared.
demo: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/composer -n 1 -m accelerando.recipes.study digits/tradeoff.yaml \
		run_name=demo study.tradeoff.seeds=[17,18] max_duration=16ep

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

# What starts many programs, such as studies as jobs of SLURM; needs root, and Debian's packages slurm-wlm and munge.
test-programs: .venv/ready
	$(BIN)/python -m pytest -m programs

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types && ln -sfn ../.. build/types/accelerando
	$(BIN)/pyright --pythonpath $(BIN)/python

benchmark: .venv/ready
	$(BIN)/python benchmarks/speedups.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/pruning.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt $(INSTALL) '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
