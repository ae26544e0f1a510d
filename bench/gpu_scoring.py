"""What a GPU saves of scoring: distances among cells and tables of all pairs of profiles, there and on the host.

Each is made in both places and compared before it is timed."""
from functools import partial
import numba, numpy as np, torch
from perturbench.core import rng
from perturbench.metrics import ranks
from perturbench.metrics.distributions import pair_sums
from _common import header, in_turn, options, ratio, report, table

SIZES = dict(cells=256, profiles=300, genes=18_533, conditions=20, rounds=5)
NEAR = 1e-4 # Of a value: what the two places may differ by

def cells_of(where, drawn):
    "Distances between the predicted and the measured cells of each condition, and among the predicted ones."
    tensors = [torch.as_tensor(o, device=where) for o in drawn]
    return np.array([pair_sums(['root'], None, pred, y).sum() for pred, true in tensors for y in (true, None)])

def profiles_of(where, pred, true):
    "All distances of predicted profiles to true ones, of the three kinds."
    before, ranks.device = ranks.device, lambda: where
    try: return np.concatenate([ranks.DISTANCES[kind](pred, true).distance.ravel() for kind in ranks.DISTANCES])
    finally: ranks.device = before

def largest_difference(found, expected):
    "In parts of a value that is over 1."
    return np.max(np.abs(found - expected)/np.maximum(1, np.abs(expected)))

def main():
    o = options(**SIZES)
    if not torch.cuda.is_available(): return print('this benchmark needs a CUDA device, and there is none')
    r = rng(0, 'gpu scoring')
    drawn = r.random((o.conditions, 2, o.cells, o.genes), np.float32)
    pred, true = r.random((2, o.profiles, o.genes))
    tasks = {'cells': partial(cells_of, drawn=drawn), 'profiles': partial(profiles_of, pred=pred, true=true)}
    rows, goals = [], []
    for name, made in tasks.items():
        off = largest_difference(made('cuda'), made('cpu'))
        assert off < NEAR, f'{name} differ by {off}'
        goals.append(f'{name}: at most {NEAR} of a value between the two places wanted -> {off:.1e}')
        t = in_turn({where: partial(made, where) for where in ('cpu', 'cuda')}, o.rounds)
        rows.append([name, *(f'{np.median(t[where]):.3f}' for where in t), f'{ratio(t["cpu"], t["cuda"]):.1f}'])
    report([
        f'Device: {torch.cuda.get_device_name()}', *header(o, 'numpy', 'numba', 'torch'),
        f'on the host numba has {numba.get_num_threads()} threads, torch {torch.get_num_threads()}', '', *goals, '',
        *table(['of', 'host, s', 'device, s', 'times as fast'], rows), '',
        f'cells: distances between {o.cells} predicted and {o.cells} measured cells of {o.conditions} conditions, and',
        f'among the predicted ones. profiles: Euclidean, cosine and absolute distances of {o.profiles} predictions to',
        f'as many truths. Both of random numbers in {o.genes:,} genes, the way to the device included. Times are',
        'medians, ratios medians of those of a round.'], o, SIZES)

if __name__ == '__main__': main()
