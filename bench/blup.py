"What fitting and predicting of BLUP costs on a screen of the size of Norman et al., and what its closed form costs by conditions."
import time
import numpy as np, torch
from perturbench.core import progress
from perturbench.data.lookalikes import lookalike
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model
from perturbench.models.blup import noise_of_effects, total_kernel, weights_of, Conditions, KERNELS, FEW_GENES, FEW_ROWS
from perturbench.models.mixed import fit_mixed
import perturbench.models.zoo
from _common import header, options, report, set_threads, table

SIZES = dict(cells=91_168, genes=5_000, rounds=3, given=1_000, conditions=[150, 600, 1_500, 6_500], perturbations=60)
GOAL = 10.

def cpu(f):
    "Seconds of processor that a call takes, and what it gives."
    start = time.process_time()
    out = f()
    return time.process_time() - start, out

def norman(o):
    "The cells of a look-alike and what a model is told of them."
    screen = lookalike('norman19', o.cells/91_168, genes=o.genes).screen
    store = CellStore.from_screen(screen)
    cells = store.select(np.ones(store.n_cells, bool))
    return cells, ModelInfo(screen.genes, screen.design, cells.n, cells=cells)

def fits(cells, info, o):
    "Seconds of each fit, after one that compiles; the last model."
    build_model('blup', info).fit(cells)
    found = [cpu(lambda: build_model('blup', info).fit(cells)) for _ in progress(range(o.rounds), 'fits')]
    return [seconds for seconds, _ in found], found[-1][1]

def main():
    o = options(**SIZES)
    set_threads(1)
    cells, info = norman(o)
    seconds, model = fits(cells, info, o)
    print(seconds, float(model.gamma))

if __name__ == '__main__': main()
