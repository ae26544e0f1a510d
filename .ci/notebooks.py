"""Test all notebooks as `nbdev_test --path nbs` does, on two processes.

What most of them import is imported once, before the processes part, and garbage is looked for less often. Figures are
made and not drawn: `make slow` draws them and compares what is stored. Rooms of this library are left to the notebooks,
since some register what their cells define."""
import gc, multiprocessing, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
import anndata, lightning, numba, optuna, papermill, sklearn.linear_model # noqa: F401
from nbdev.test import nbdev_test
from conftest import leave_undrawn

if __name__ == '__main__':
    multiprocessing.set_start_method('fork') # A process that starts anew shares nothing
    leave_undrawn()
    gc.set_threshold(50_000, 20, 20)
    gc.freeze()
    nbdev_test(path='nbs', n_workers=2, do_print=True)
