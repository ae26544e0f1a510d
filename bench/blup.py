"What BLUP costs on a screen of the size of Norman et al., and what its algebra costs by the number of conditions."
import time
import numpy as np
import perturbench.models.zoo
from perturbench.core import progress, rng
from perturbench.data.lookalikes import lookalike
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model
from perturbench.models.blup import FEW_GENES, FEW_ROWS, Conditions, _spaced, noise_of_effects, total_kernel, weights_of
from perturbench.models.mixed import fit_mixed
from perturbench.predict import effect_variance, predict_cells
from _common import header, options, report, set_threads, table

SIZES = dict(cells=91_168, genes=5_000, rounds=3, given=1_000, conditions=[150, 600, 1_500, 6_500], traits=1_000)
GOAL = 10

def cpu(f):
    "Seconds of a processor that a call takes; what it gives."
    start = time.process_time()
    found = f()
    return time.process_time() - start, found

def norman(o):
    "All cells of a look-alike, and what a model is told of them."
    screen = lookalike('norman19', o.cells/91_168, genes=o.genes).screen
    store = CellStore.from_screen(screen)
    cells = store.select(np.ones(store.n_cells, bool))
    return cells, ModelInfo(screen.genes, screen.design, cells.n, cells=cells)

def whole(cells, info, o):
    "Seconds of fits, of predicted conditions and of stated variances [rounds each], after one of each that compiles."
    design, store = info.design, cells.store
    controls = store.dense(cells.where(design.is_control).rows[:o.given])
    codes = np.flatnonzero(~design.is_control)[:o.rounds + 1]
    found = dict(fit=[], predict=[], variance=[])
    for code in progress(codes, 'rounds'):
        asked = controls, design.perturbation[code], design.covariate[code], 0, int(code)
        seconds, model = cpu(lambda: build_model('blup', info).fit(cells))
        found['fit'].append(seconds)
        found['predict'].append(cpu(lambda: predict_cells(model, *asked))[0])
        found['variance'].append(cpu(lambda: effect_variance(model, *asked))[0])
    return {name: seconds[1:] for name, seconds in found.items()}

def transfer(n, n_traits):
    "Conditions of three states, their noise, and traits that share half of their variance over states."
    random, n_parts = rng(0, 'blup', n), n//3
    part, state = np.repeat(np.arange(n_parts), 3), np.tile(np.arange(3.), n_parts)
    present = np.equal.outer(part, np.arange(n_parts)).astype(float)
    rows = Conditions(present, 0*present, state, np.zeros((len(part), 0)))
    noise = noise_of_effects(random.integers(20, 100, len(part)), state.astype(int), np.full(3, 500))
    shared, own = random.normal(size=(n_parts, n_traits))[part], random.normal(size=(len(part), n_traits))
    traits = (shared + own)*random.gamma(.5, .2, n_traits)**.5
    return rows, noise, traits + random.normal(size=traits.shape)*noise.diagonal()[:, None]**.5

def algebra(n, o):
    "Seconds of the weights of the kernels and of the posterior of all traits."
    rows, noise, traits = transfer(n, o.traits)
    some, genes = _spaced(len(traits), FEW_ROWS), _spaced(o.traits, FEW_GENES)
    weighing = lambda: weights_of(rows.some(some), noise[np.ix_(some, some)], traits[np.ix_(some, genes)])
    seconds, weights = cpu(weighing)
    return seconds, cpu(lambda: fit_mixed(total_kernel(weights, rows, rows), noise, traits))[0]

def main():
    o = options(**SIZES)
    set_threads(1)
    cells, info = norman(o)
    times = whole(cells, info, o)
    fit = np.median(times['fit'])
    rows = [[f'{n:,}', *(f'{seconds:.2f}' for seconds in algebra(n, o))] for n in progress(o.conditions, 'algebra')]
    n_conditions = int((~info.design.is_control).sum())
    report([
        *header(o, 'numpy', 'scipy', 'torch'),
        f'A look-alike of Norman19, {len(cells):,} cells, {info.n_genes:,} genes, {n_conditions} perturbed conditions:',
        f'a fit: under {GOAL} s wanted -> {fit:.2f} s, the median of {o.rounds}',
        f"{o.given:,} cells of a condition: {np.median(times['predict']):.2f} s; "
        f"its variance: {np.median(times['variance']):.3f} s",
        '',
        *table(['conditions', 'weights, s', 'posterior, s'], rows),
        '',
        'Seconds of one processor with one thread. A fit has means and variances of all cells, weights of the kernels,',
        'the posterior of all genes, gamma and levels. In the table, conditions are of three states, without cells:',
        f'weights come from {FEW_ROWS:,} conditions and {FEW_GENES} traits at most, the posterior of all {o.traits:,}',
        'traits takes one eigendecomposition of the kernel.'], o, SIZES)

if __name__ == '__main__': main()
