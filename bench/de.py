"What tests of differential expression take beside illico and scanpy, and how long the scores of a condition take."
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # all is timed on the host; read when torch is imported
os.environ['TQDM_DISABLE'] = '1'  # the bar of illico
import time, warnings
from dataclasses import replace
from importlib.util import find_spec
import anndata as ad, numpy as np, pandas as pd, scanpy as sc
from scipy import sparse
from perturbench.core import rng
from perturbench.metrics.accuracy import METRICS
from perturbench.metrics.de import Tests, wilcoxon
from _common import header, in_turn, options, random_values, report, set_threads, table

SIZES = dict(conditions=100, cells=50, reference=500, genes=4_000, rounds=5)
DENSITY = .1 # The share of values of sparse cells that is not 0
GOALS = dict(sparse=.5, dense=1., scores=2.) # CPU seconds of all conditions; milliseconds of one condition

def cpu(f):
    "CPU seconds of one call."
    start = time.process_time()
    f()
    return time.process_time() - start

def drawn(o, name, n):
    "Cells, compressed or with no value that is 0."
    if name == 'dense': return rng(0, 'bench', n).random((n, o.genes), np.float32) + .5
    starts, columns, values = random_values(n, o.genes, DENSITY)
    return sparse.csr_array((values, columns, starts), (n, o.genes))

def together(cells, codes, reference):
    "One AnnData of both, in which the last group is the reference; as others take it."
    stack = (lambda o: sparse.csr_matrix(sparse.vstack(o))) if sparse.issparse(cells) else np.vstack
    group = [f'{g:05}' for g in np.append(codes, np.full(reference.shape[0], codes.max() + 1))]
    names = np.arange(len(group)).astype(str)
    return ad.AnnData(stack([cells, reference]), obs=pd.DataFrame({'group': pd.Categorical(group)}, index=names))

def by_illico(both):
    "P-values, conditions x genes."
    from illico import asymptotic_wilcoxon
    from loguru import logger
    logger.disable('illico')
    found = asymptotic_wilcoxon(both, is_log1p=True, group_keys='group', reference=both.obs.group.iloc[-1], n_threads=1,
                                precompile=False)
    return found.p_value.to_numpy().reshape(-1, both.n_vars)[:-1]

def by_scanpy(both):
    "Tests of all conditions, kept in `both`."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sc.tl.rank_genes_groups(both, 'group', method='wilcoxon', reference=both.obs.group.iloc[-1], tie_correct=True)

def ways(o, name):
    "The ways to test all conditions against one reference."
    cells, codes = drawn(o, name, o.conditions*o.cells), np.repeat(np.arange(o.conditions), o.cells)
    reference = drawn(o, name, o.reference)
    both = together(cells, codes, reference)
    found = {'wilcoxon': lambda: wilcoxon(cells, codes, o.conditions, reference).p}
    if find_spec('illico'): found['illico'] = lambda: by_illico(both)
    return found | {'scanpy': lambda: by_scanpy(both)}

def rank_tests(o):
    "Goals and table of the tests."
    lines, rows = [], []
    for name in ('sparse', 'dense'):
        quick = ways(o, name)
        slow = quick.pop('scanpy')
        times = {k: np.median(s) for k, s in in_turn(quick, o.rounds, cpu).items()} | {'scanpy': cpu(slow)}
        lines.append(f"{name}: at most {GOALS[name]} s wanted -> {times['wilcoxon']:.3f} s")
        if 'illico' in quick:
            own = quick['wilcoxon']()
            apart = np.abs(own - quick['illico']())[own < 1].max()
            lines.append(f'{name}: p-values are those of illico to {apart:.0e}, but where they are 1')
        rows += [[name, k, f'{s:.3f}', f"{s/times['wilcoxon']:.2f}"] for k, s in times.items()]
    return [*lines, '', *table(['cells', 'way', 'CPU, s', 'over wilcoxon'], rows)]

def some_tests(o, name):
    "Tests of one condition, of which some 30 % are significant."
    r = rng(0, 'bench', name)
    p = r.random(o.genes)*np.where(r.random(o.genes) < .3, 1e-4, 1)
    fdr = np.where(p < 1e-4, p, np.maximum(p, .05))
    lfc, statistic, t = r.normal(size=(3, o.genes))
    return Tests(p, fdr, lfc, statistic, t, 100, 1_000)

def scores(o):
    "The goal and a table of the scores of one condition."
    pred, true = some_tests(o, 'pred'), some_tests(o, 'true')
    known = {k: m for k, m in METRICS.items() if m.kind == 'de'}
    def all_of():
        plain, own, truth = replace(pred), replace(pred), replace(true) # With nothing in them that is kept
        return [m(plain if m.space == 'de' else own, truth) for m in known.values()]
    alone = {k: lambda m=m: m(replace(pred), replace(true)) for k, m in known.items() if m.space == 'de'}
    times = {k: 1e3*np.median(s) for k, s in in_turn({'all': all_of} | alone, 20, cpu).items()}
    rows = [[k, f'{times[k]:.3f}'] for k in alone]
    return [f"{len(known)} scores of a condition: at most {GOALS['scores']} ms wanted -> {times['all']:.2f} ms", '',
            *table(['score, alone', 'ms'], rows)]

def main():
    o = options(**SIZES)
    set_threads(1)
    peers = ['illico'] if find_spec('illico') else []
    report([*header(o, 'numpy', 'numba', 'scanpy', *peers),
            'Rank tests of all conditions against one reference, on one thread:', *rank_tests(o), '', *scores(o), '',
            'cells is the number of each condition. Of sparse cells a tenth of the values is not 0, of dense ones',
            'all. wilcoxon sorts the reference, tests, takes moments and corrects p-values. The others start from an',
            'AnnData of all cells; their fold changes, which are of other kinds, are taken too. illico returns a',
            'little less than 1 where condition and reference are in balance. Times are medians of rounds; scanpy is',
            'timed once. 30 % of the genes are significant where scores are timed.'], o, SIZES)

if __name__ == '__main__': main()
