# `make benchmark` and `make test` do all their own set-up; they need Python 3.11 or newer with pip and venv.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= results
JOBS ?= 2
# Empty: the newest versions that settings.ini allows
CONSTRAINTS ?= constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: benchmark test slow docs readme bench clean
.DELETE_ON_ERROR:

.venv/done: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "PerturBench needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@$(BIN)/pip install -q $(CONSTRAINTS:%=-c %) torch
	@$(BIN)/pip install -q $(CONSTRAINTS:%=-c %) 'setuptools>=77' wheel
	@$(BIN)/pip install -q $(CONSTRAINTS:%=-c %) --no-build-isolation -e '.[dev]'
	@touch $@

benchmark: .venv/done  ## run the built-in grid and print its leaderboard
	@$(BIN)/perturbench run -o $(OUT) --jobs $(JOBS)

test slow: export OMP_NUM_THREADS = 1
test slow: export OMP_WAIT_POLICY = PASSIVE
test slow: export NUMBA_NUM_THREADS = 1
test: .venv/done  ## notebooks, then pytest
	$(BIN)/python .ci/notebooks.py
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: .venv/done  ## what takes minutes: stored outputs equal what execution gives
	$(BIN)/nbdev_test --n_workers 2 --path nbs --flags slow
	$(BIN)/python -m pytest -m slow

# nbdev_docs would write README.md anew, in a way of its own, were it older than the index
docs: .venv/done readme  ## the web site, in _docs; needs Quarto
	@command -v quarto >/dev/null || { echo "make docs needs Quarto, see https://quarto.org" >&2; exit 1; }
	rm -rf _proc
	$(BIN)/python .ci/docs.py
	$(BIN)/nbdev_docs

readme: .venv/done  ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

bench: .venv/done  ## speed benchmarks; each prints ratios measured in one run
	@for f in bench/[a-z]*.py; do $(BIN)/python $$f; done

clean:
	rm -rf .venv build dist _proc _docs perturbench.egg-info
