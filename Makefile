# `make check` is quick, `make test` checks everything, `make book` builds the book, `make gpu` measures; all from a bare
# checkout.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS ?= book,test
# Chapters and tests run JOBS at a time, on one thread each: a number does not depend on the number of cores.
JOBS   ?= 2
# A module is one worker's, which makes its fixtures once.
WORKERS := -n $(JOBS) --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(WORKERS) --nbmake

export OMP_NUM_THREADS = 1
# A chapter that passed is not run again while its cells, the package, the results and the versions are the same.
export DASVIT_REUSE = 1
export PYTHONHASHSEED = 0
export PYDEVD_DISABLE_FILE_VALIDATION = 1
export JUPYTER_PREFER_ENV_PATH = 1
export IPYTHONDIR = $(CURDIR)/_build/.ipython
export MPLCONFIGDIR = $(CURDIR)/_build/.mpl

# The GPU evidence, see benchmarks/gpu/README.md: each step saves its state after some minutes; run again to go on. All
# steps know the same GPU_FLAGS; book, whose chapters are small and mostly the CPU's, is run if it is named.
STEPS     ?= gate memory speed search landscape retrain darts
GPU_FLAGS ?=

OLDEST := .venv-oldest
NEWEST := .venv-newest

.PHONY: book readme pdf check test oldest newest fuzz soak gpu lint format clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

book: $(VENV)/.stamp
	rm -rf _build/html
	$(PYTEST) book/
	$(BIN)/jupyter-book build -W -n --keep-going --all .
	@echo "Open $(CURDIR)/_build/html/index.html"

# The findings and the picture in the README, after a result is recorded anew.
readme: $(VENV)/.stamp
	$(BIN)/python book/_ext/readme.py

# The same on paper: all pages in one, printed by Chromium.
pdf: $(VENV)/.stamp
	$(BIN)/jupyter-book build -n --all --builder singlehtml .
	$(BIN)/python book/_ext/pdf.py _build/singlehtml/index.html _build/dasvit.pdf
	@echo "Open $(CURDIR)/_build/dasvit.pdf"

# After every change: style, types, and the tests that do not take long.
check: lint
	$(PYTEST) -q -m "not long" tests/

test: $(VENV)/.stamp
	$(PYTEST) book/ tests/

# The oldest torch that is allowed: what is quick, and what it could compute otherwise.
oldest: $(OLDEST)/.stamp
	$(OLDEST)/bin/python -m pytest $(WORKERS) -q -m "not long or torch" tests/

# The newest torch that there is, or with PIP_PRE=1 its next one; of all else, the tested set.
newest: $(NEWEST)/.stamp
	$(NEWEST)/bin/python -m pytest $(WORKERS) -q -m "not long or torch" tests/

# The long ones, each with a result in book/results: 100,000 inputs for each reader, an hour of interrupted searches.
fuzz: $(VENV)/.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python benchmarks/fuzz.py

soak: $(VENV)/.stamp
	$(BIN)/python benchmarks/soak.py --minutes 60

gpu: $(addprefix gpu-,$(STEPS))

gpu-darts: $(VENV)/.stamp
	$(BIN)/python benchmarks/gpu/search.py --method darts $(GPU_FLAGS)

gpu-%: $(VENV)/.stamp
	$(BIN)/python benchmarks/gpu/$*.py $(GPU_FLAGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# What pyproject.toml allows at least, of torch and torchvision; of all else, the tested set.
$(OLDEST)/.stamp: pyproject.toml constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	grep -v '^torch' constraints.txt > $(OLDEST)/constraints.txt
	sed -nE 's/^ *"(torch|torchvision)>=([0-9.]+)",/\1==\2/p' pyproject.toml >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e '.[$(EXTRAS)]'
	touch $@

$(NEWEST)/.stamp: pyproject.toml constraints.txt
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	grep -v '^torch' constraints.txt > $(NEWEST)/constraints.txt
	$(NEWEST)/bin/python -m pip install --quiet --upgrade -c $(NEWEST)/constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
