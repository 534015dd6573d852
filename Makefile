# make demo: the main job.   make test: everything that must hold.   The README lists the plain commands.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test soak lab notebooks docs bench lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/hsic-lab demo

test: $(VENV)/installed-all
	$(BIN)/python -m pytest -n auto --maxprocesses 4

SECONDS := 120
soak: $(VENV)/installed-all  # attacks on run folders at random; make soak SECONDS=600
	$(BIN)/python tests/training/test_robustness.py $(SECONDS)

lab: $(VENV)/installed  # shows the notebooks in order, without their sources
	$(BIN)/jupyter lab --ContentsManager.hide_globs="['*.py', '__pycache__']" notebooks/00_quickstart.ipynb

notebooks: $(VENV)/installed-all
	$(BIN)/python notebooks/execute.py

docs: $(VENV)/installed-all
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: $(VENV)/installed-all
	for script in $(filter-out %_cifar10.py %/cpu_speedrun.py %/gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

lint: $(VENV)/installed-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab]"
	touch $@

$(VENV)/installed-all: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@

clean:
	rm -rf $(VENV) runs docs/_build docs/course build dist *.egg-info
