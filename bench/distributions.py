"What the energy distance and the MMD of all conditions of a screen take, beside the same by scipy's distances."
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # all is timed on the host; read when torch is imported
import numpy as np
from scipy.spatial.distance import cdist
from perturbench.core import rng
from perturbench.metrics.distributions import energy_distance, median_distance, mmd_rbf
from _common import header, in_turn, options, ratio, report, set_threads, table

SIZES = dict(conditions=500, cells=500, components=50, threads=[1, 2], rounds=3, scipy_conditions=50)
GOAL = 30

def within(k): return (k.sum() - np.trace(k))/(len(k)*(len(k) - 1))

def energy_by_scipy(x, y): return 2*cdist(x, y).mean() - within(cdist(x, x)) - within(cdist(y, y))

def mmd_by_scipy(x, y, scale):
    def kernel(a, b):
        squared = cdist(a, b, 'sqeuclidean')
        return sum(np.exp(-squared/(2*(c*scale)**2)) for c in (1/4, 1/2, 1, 2, 4))/5
    return within(kernel(x, x)) + within(kernel(y, y)) - 2*kernel(x, y).mean()

def check(x, y, scale):
    "Both ways give the same numbers."
    ours, theirs = [energy_distance(x, y), mmd_rbf(x, y, scale)], [energy_by_scipy(x, y), mmd_by_scipy(x, y, scale)]
    assert np.allclose(ours, theirs, rtol=0, atol=1e-10)

def main():
    o, rows, lines = options(**SIZES), [], []
    r = rng(0, 'distributions')
    spread = 3/np.arange(1, o.components + 1)**.5
    shape = o.conditions, o.cells, o.components
    true, pred = ((spread*r.normal(shift, 1, shape)).astype(np.float32) for shift in (0, .1))
    scale = median_distance(true[0])
    check(pred[0], true[0], scale)
    for n_threads in o.threads:
        set_threads(n_threads)
        part = lambda f, n, *more: lambda: [f(p, t, *more) for p, t in zip(pred[:n], true[:n])]
        t = in_turn({'energy': part(energy_distance, o.conditions),
                     'mmd': part(mmd_rbf, o.conditions, scale),
                     'energy by scipy': part(energy_by_scipy, o.scipy_conditions),
                     'mmd by scipy': part(mmd_by_scipy, o.scipy_conditions, scale)}, o.rounds)
        whole = np.add(t['energy'], t['mmd'])
        ours, theirs = whole/o.conditions, np.add(t['energy by scipy'], t['mmd by scipy'])/o.scipy_conditions
        lines.append(f'threads {n_threads}: both for {o.conditions} conditions in under {GOAL} s wanted -> '
                     f'{np.median(whole):.1f} s, from {whole.min():.1f} to {whole.max():.1f} in {o.rounds} rounds; '
                     f'by scipy {ratio(theirs, ours):.1f} times as long')
        each = [1e3*np.median(v)/(o.scipy_conditions if 'scipy' in k else o.conditions) for k, v in t.items()]
        rows.append([f'{n_threads}', *(f'{ms:.2f}' for ms in each), f'{ratio(theirs, ours):.1f}'])
    report([*header(o, 'numpy', 'scipy', 'torch'), *lines, '',
            *table(['threads', 'energy, ms', 'mmd, ms', 'energy by scipy, ms', 'mmd by scipy, ms', 'ratio'], rows), '',
            'Milliseconds for a condition with as many predicted as measured cells, float32, each score on its own:',
            'three sets of distances each. By scipy: cdist in float64, five exponentials for each pair, whole',
            f'matrices; timed on {o.scipy_conditions} conditions and scaled; cdist uses one thread. Before anything is',
            'timed both ways are compared. Times are medians, ratios medians of those of a round.'], o, SIZES)

if __name__ == '__main__': main()
