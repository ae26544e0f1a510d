"What differential expression takes beside the rank tests of illico alone, and how long its scores take."
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # all is timed on the host; read when torch is imported
from itertools import product
import anndata as ad, numpy as np, pandas as pd
from scipy import sparse
from perturbench.core import progress, rng
from perturbench.metrics.accuracy import METRICS
from perturbench.metrics.de import Tests, wilcoxon
from _common import header, in_turn, options, random_values, ratio, report, set_threads, table

SIZES = dict(cells=15_000, genes=2_000, conditions=100, threads=[1, 2], rounds=5)
GOAL = 1.5
LAYOUTS = {'sparse': sparse.csr_array, 'dense': lambda o: o.toarray()}

def expression(o):
    "Cells of equal conditions, the condition of each, and the sixth of all cells that they are compared with; a tenth of the values is not 0."
    starts, columns, values = random_values(o.cells, o.genes, .1)
    x, n = sparse.csr_array((values, columns, starts), (o.cells, o.genes)), o.cells//6
    return x[n:], np.arange(o.cells - n) % o.conditions, x[:n]

def alone(cells, codes, reference, n_threads):
    "A call of illico on cells that lie in an AnnData already."
    from illico import asymptotic_wilcoxon
    stack = sparse.vstack if sparse.issparse(cells) else np.vstack
    both, label = stack([cells, reference]), np.r_[codes, np.full(reference.shape[0], codes.max() + 1)]
    a = ad.AnnData(both, obs=pd.DataFrame({'group': label}, index=np.arange(len(label)).astype(str)))
    return lambda: asymptotic_wilcoxon(a, is_log1p=True, group_keys='group', reference=label.max(), n_threads=n_threads, precompile=False)

def rank_tests(o):
    "Goals and table of the tests."
    cells, codes, reference = expression(o)
    rows, lines = [], []
    for (name, layout), n in progress(list(product(LAYOUTS.items(), o.threads)), 'tests'):
        set_threads(n)
        x, y = layout(cells), layout(reference)
        t = in_turn({'wilcoxon': lambda: wilcoxon(x, codes, o.conditions, y), 'illico': alone(x, codes, y, n)}, o.rounds)
        q = t['wilcoxon']/t['illico']
        lines.append(f"{name}, {n} thread{'s'[:n - 1]}: at most {GOAL} wanted -> {np.median(q):.3f}, the median of {len(q)} rounds, half of them from "
                     f"{np.quantile(q, .25):.3f} to {np.quantile(q, .75):.3f}")
        rows.append([name, f'{n}', *(f'{np.median(s):.3f}' for s in t.values()), f"{ratio(t['wilcoxon'], t['illico']):.3f}"])
    return [*lines, '', *table(['cells', 'threads', 'wilcoxon, s', 'illico, s', 'ratio'], rows)]

def some_tests(o, name):
    "Tests of which some 30 % are significant."
    r, shape = rng(0, 'bench', name), (o.conditions, o.genes)
    p = r.random(shape)*np.where(r.random(shape) < .3, 1e-4, 1)
    fdr = np.where(p < 1e-4, p, np.maximum(p, .05))
    return Tests(p, fdr, r.normal(size=shape), r.normal(size=shape), r.normal(size=shape), np.full(o.conditions, 100), 1_000)

def scores(o):
    "Lines on the scores."
    set_threads(1)
    pred, true = some_tests(o, 'pred'), some_tests(o, 'true')
    known = {k: m for k, m in METRICS.items() if (m.kind, m.space) == ('de', 'de')}
    all_of = lambda f: lambda: [f(pred[i], true[i]) for i in range(o.conditions)]
    t = {k: np.median(s) for k, s in in_turn({k: all_of(m) for k, m in known.items()}, o.rounds).items()}
    return [f'All {len(t)} scores of {o.conditions} conditions: {sum(t.values()):.3f} s', '', *table(['score', 'ms a condition'], [[k, f'{1e3*s/o.conditions:.3f}'] for k, s in t.items()])]

def main():
    o = options(**SIZES)
    report([*header(o, 'numpy', 'numba', 'illico'), 'Rank tests of all conditions against one reference, over the call of illico alone:', *rank_tests(o), '', *scores(o), '',
            'wilcoxon puts cells and reference together, takes the moments, makes one call of illico, and corrects p-values; illico alone starts from an AnnData that holds',
            'all cells. Its own fold changes, which are not used, are taken in both. Scores are taken from tests of which 30 % of the genes are significant. Times are medians.'], o, SIZES)

if __name__ == '__main__': main()
