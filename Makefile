# make demo: the main job.   make test: everything that must hold.   The README lists the plain commands.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lab notebooks site bench lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/hsic-lab demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4

lab: $(VENV)/installed
	$(BIN)/jupyter lab notebooks

notebooks: $(VENV)/installed-dev
	$(BIN)/python notebooks/build.py

site: $(VENV)/installed-dev
	$(BIN)/python notebooks/build_site.py

bench: $(VENV)/installed-dev
	for script in $(filter-out %_cifar10.py %/gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs site build *.egg-info
