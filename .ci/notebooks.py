"""`nbdev_test`, in processes that begin with what most notebooks import.

Each of them would import it for itself, which takes seconds, and look for garbage among it again and again."""
import atexit, gc, multiprocessing
gc.set_threshold(50_000, 20, 20)
atexit.register(gc.unfreeze)
import IPython, matplotlib.pyplot, papermill, scanpy
import perturbench.bench.leaderboard, perturbench.cli, perturbench.trainer
from nbdev.test import nbdev_test

gc.freeze()
multiprocessing.set_start_method('fork')
nbdev_test()
