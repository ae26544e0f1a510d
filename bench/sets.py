"""How long it takes to draw a set of cells of one condition, out of small stores and large ones."""
import numpy as np
from perturbench.core import rng
from _common import header, in_turn, options, random_store, ratio, report, set_threads, table

SIZES = dict(
    cells=[20_000, 200_000, 2_000_000], genes=4_000, conditions=1_000, size=256, draws=200, threads=2, rounds=15)

def main():
    o = options(**SIZES)
    set_threads(o.threads)
    stores = {n: random_store(n, o.genes, 8/o.genes, o.conditions - 1, 1) for n in o.cells}
    cells, r = {n: s.select(np.ones(n, bool)) for n, s in stores.items()}, rng(0, 'sets')
    def drawing(n): return lambda: [cells[n].draw(0, o.size, r) for _ in range(o.draws)]
    def dense(n): return lambda: [stores[n].dense(cells[n].draw(0, o.size, r)) for _ in range(o.draws)]
    t, d = (in_turn({n: way(n) for n in o.cells}, o.rounds) for way in (drawing, dense))
    few, many = min(o.cells), max(o.cells)
    per_draw = lambda s: f'{np.median(s)/o.draws*1e6:.1f}'
    rows = [[f'{n:,}', f'{cells[n].n[0]:,}', per_draw(t[n]), per_draw(d[n])] for n in o.cells]
    report([
        *header(o, 'numpy', 'numba', 'torch'),
        f'a draw out of {many:,} cells over one out of {few:,}: about 1 wanted -> {ratio(t[many], t[few]):.2f}', '',
        *table(['cells', 'of the condition', 'draw, microseconds', 'draw and make dense, microseconds'], rows),
        '',
        f'Sets of {o.size} cells of a condition that has a tenth of all cells; the others share the rest. A cell has 8',
        'non-zeros on average, so that the largest store is small too. Times are medians, the ratio is the median of',
        'those of a round.'], o, SIZES)

if __name__ == '__main__': main()
