# Everything lives in .venv and its likes; delete them to start anew. PYTHON names another interpreter (3.10 to 3.12),
# INSTALL= installs the built wheel in place of the checkout, TORCH=latest brings today's torch in place of Composer's.
PYTHON ?= python3
INSTALL ?= --editable
VENV := .venv$(TORCH:%=-%)
BIN := $(VENV)/bin

.PHONY: demo test test-programs test-hosts test-llm-foundry check reference benchmark benchmark-gpu constraints clean

# One thread: beside other programs two of them wait for each other, and distort the times that are compared.
demo: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/composer -n 1 -m accelerando.recipes.study digits/tradeoff.yaml \
		run_name=demo study.tradeoff.seeds=[17,18] max_duration=16ep

test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --ignore tests/hosts

# What starts many programs: the pages' commands, and studies as jobs of SLURM, for which it needs root, and Debian's
# packages slurm-wlm and munge.
test-programs: $(VENV)/ready
	$(BIN)/python -m pytest -m programs

# What needs no Composer, where there is none: loops of one's own, Lightning, Hugging Face, on the newest torch.
test-hosts: .venv-hosts/ready test-llm-foundry
	.venv-hosts/bin/python -m pytest --numprocesses 2 --dist loadgroup --ignore tests/hosts/test_llm_foundry.py \
		tests/hosts tests/test_package.py tests/algorithms/test_progress.py

# llm-foundry pins what nothing else here bears, down to the version of fsspec.
test-llm-foundry: .venv-llmfoundry/ready
	.venv-llmfoundry/bin/python -m pytest tests/hosts/test_llm_foundry.py

# The documentation's site, in build/site. The packages lie in build/docs as they are imported, for their docstrings, which are
# read without importing anything; PYTHONPATH might name the packages a second time.
.PHONY: docs
docs: .venv-docs/ready
	mkdir -p build/docs/accelerando
	for package in algorithms recipes yamls; do ln -sfn ../../../$$package build/docs/accelerando/$$package; done
	PYTHONPATH= NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types && ln -sfn ../.. build/types/accelerando
	$(BIN)/pyright --pythonpath $(BIN)/python

# What a recipe and a study may say, from the signatures and docstrings: docs/reference, yamls/schema.json.
reference: $(VENV)/ready
	$(BIN)/python -m accelerando.recipes.reference

benchmark: $(VENV)/ready
	$(BIN)/python benchmarks/speedups.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/connectivity.py
	$(BIN)/python benchmarks/examples.py
	$(BIN)/python benchmarks/scaling_law.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/loop.py

# Eight minutes on one GPU; what it finds is in benchmarks/gpu.NAME.txt.
benchmark-gpu: $(VENV)/ready
	$(BIN)/python benchmarks/gpu.py

.venv/ready: WHAT = --constraint constraints/composer.txt $(INSTALL) '.[dev]'
# Nothing is pinned here: this tells what a user gets today. The overrides are what Composer's metadata do not allow.
.venv-latest/ready: WHAT = $(OVERRIDES:%=--override %) $(INSTALL) '.[dev]'
.venv-hosts/ready: WHAT = --constraint constraints/hosts.txt $(INSTALL) '.[lightning,transformers,tests]'
.venv-llmfoundry/ready: WHAT = --constraint constraints/llmfoundry.txt --override $(firstword $(OVERRIDES)) \
	$(INSTALL) '.[llmfoundry,tests]'
# The site needs nothing of this project's but its text.
.venv-docs/ready: WHAT = --group docs
OVERRIDES := constraints/overrides/torch.txt constraints/overrides/transformers.txt

.venv/ready: constraints/composer.txt
.venv-latest/ready: $(OVERRIDES)
.venv-hosts/ready: constraints/hosts.txt
.venv-llmfoundry/ready: constraints/llmfoundry.txt $(OVERRIDES)
# Where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process would compile Composer anew: 11 seconds.
.venv/ready .venv-latest/ready .venv-hosts/ready .venv-llmfoundry/ready .venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python $(WHAT)
	touch $@

# Pins the newest of everything again, for every Python.
constraints: FLAGS = --quiet --upgrade --universal --python-version 3.10 --no-header --no-annotate
constraints: COMPILE = $(BIN)/uv pip compile $(FLAGS) pyproject.toml
constraints: $(VENV)/ready
	$(COMPILE) --extra dev --output-file constraints/composer.txt
	$(COMPILE) --extra lightning --extra transformers --extra tests --output-file constraints/hosts.txt
	$(COMPILE) --extra llmfoundry --extra tests --override $(firstword $(OVERRIDES)) \
		--output-file constraints/llmfoundry.txt

clean:
	rm -rf .venv .venv-* build *.egg-info
