# Everything lives in .venv; delete it to start anew. PYTHON names another interpreter (3.10 to 3.12).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check benchmark clean

demo: .venv/ready
	$(BIN)/python -m accelerando.recipes.demo

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

benchmark: .venv/ready
	$(BIN)/python benchmarks/speedups.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
