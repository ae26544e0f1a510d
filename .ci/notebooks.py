"""Test all notebooks as `nbdev_test --path nbs` does, on two processes.

Libraries that most of them import are imported once, before the processes part; rooms of this library are left to the
notebooks, since some register what their cells define. Figures are made and not drawn: `make slow` draws them and
compares what is stored. Garbage is looked for as seldom as tests/conftest.py says."""
import gc, multiprocessing, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
import anndata, lightning, numba, optuna, papermill, sklearn.linear_model
from nbdev.test import nbdev_test
from conftest import leave_undrawn

if __name__ == '__main__':
    multiprocessing.set_start_method('fork') # A process that starts anew shares nothing
    leave_undrawn()
    gc.freeze() # What is imported is no garbage
    nbdev_test(path='nbs', n_workers=2, do_print=True)
