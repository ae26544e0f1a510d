"""How long transport plans take: ours, all problems at once, beside POT's, to the same tolerance."""
import warnings
import numpy as np, ot, torch
from perturbench.models.transport import sinkhorn, squared_distances
from _common import header, in_turn, options, ratio, report, set_threads, table

SIZES = dict(problems=[1, 16], cells=[64, 256, 512], dimensions=50, epsilon_percent=[5, 50], tolerance_power=9,
             turns=1_000, threads=1, rounds=5)
GOAL, NEAR = 1, 1e-4
POTS = {
    'ot.sinkhorn': dict(method='sinkhorn'),
    'ot.sinkhorn, in logarithms': dict(method='sinkhorn_log')}

def costs(n_problems, n, d):
    "Squared distances of two clouds in each problem, over their mean: `epsilon` is in mean costs."
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n_problems, n, d, generator=g, dtype=torch.float64) + shift for shift in (0, .5))
    cost = squared_distances(x, y)
    return cost/cost.mean((1, 2), keepdim=True)

def ways(cost, epsilon, o):
    "Ours and POT's ways to the plans of all problems, by name."
    tolerance, n = 10.**-o.tolerance_power, cost.shape[-1]
    weights, each = np.full(n, 1/n), cost.numpy()
    def theirs(how):
        more = dict(numItermax=o.turns, stopThr=tolerance, warn=False, **how)
        return lambda: np.stack([ot.sinkhorn(weights, weights, c, epsilon, **more) for c in each])
    def ours(): return sinkhorn(cost, epsilon, relative=False, n_turns=o.turns, tolerance=tolerance).plan.numpy()
    def batched(): return ot.solve_batch(cost, epsilon, max_iter=o.turns, tol=tolerance, method='sinkhorn',
                                         reg_type='entropy').plan.numpy()
    found = {'ours': ours} | {name: theirs(how) for name, how in POTS.items()}
    return found | ({'ot.solve_batch': batched} if len(cost) > 1 else {})

def main():
    o = options(**SIZES)
    warnings.filterwarnings('ignore', module='ot')
    set_threads(o.threads)
    rows, ratios, furthest = [], [], 0.
    for p in o.problems:
        for n in o.cells:
            for percent in o.epsilon_percent:
                some = ways(costs(p, n, o.dimensions), percent/100, o)
                plans = {name: way() for name, way in some.items()}
                far = max(abs(plans['ours'] - plans[name]).max()*n for name in POTS)
                t = in_turn(some, o.rounds)
                fastest = min((name for name in t if name != 'ours'), key=lambda name: np.median(t[name]))
                ratios.append(ratio(t[fastest], t['ours']))
                furthest = max(furthest, far)
                shown = [f'{1e3*np.median(t[k]):.1f}' if k in t else '-' for k in ('ours', *POTS, 'ot.solve_batch')]
                rows.append([f'{p}', f'{n:,}', f'{percent/100:g}', *shown, f'{ratios[-1]:.2f}', f'{far:.0e}'])
    report([
        *header(o, 'numpy', 'torch', 'POT'),
        f'difference from the plans of POT: below {NEAR:.0e} of a weight wanted -> {furthest:.0e} at most',
        f"time of POT's fastest way over ours: at least {GOAL} wanted -> {min(ratios):.2f} to {max(ratios):.2f}, "
        f'the median {np.median(ratios):.2f}', '',
        *table(['problems', 'cells', 'epsilon', 'ours, ms', *(f'{k}, ms' for k in POTS), 'ot.solve_batch, ms',
                'fastest / ours', 'difference'], rows),
        '',
        'Each problem is of two clouds of as many points; epsilon is in mean costs. All end at the same tolerance,',
        'or after as many turns; ot.sinkhorn is called once for each problem, ours and ot.solve_batch once for all.',
        'ot.sinkhorn works on a kernel that a small epsilon empties; ours and that in logarithms do not mind.',
        'Differences of plans are in weights of a row, 1/cells, the largest of any entry and of either of ot.sinkhorn.',
        'Times are medians of rounds in which each way is taken in turn.'], o, SIZES)

if __name__ == '__main__': main()
