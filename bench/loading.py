"""How fast cells become batches: `python bench/loading.py` prints the figures and writes them to loading.txt beside this file.

One million rows a second of 4,000 genes, 11 % of them non-zero, is the target of the kernel on two cores.
"""
import os, platform, time
from pathlib import Path
import numba, numpy as np, scipy, torch
from numba import njit, prange
from scipy import sparse
from perturbench.core import rng
from perturbench.data.screen import Design
from perturbench.loaders.batches import Batches
from perturbench.loaders.store import CellStore

N, G, DENSITY, BATCH, N_CONDITIONS = 100_000, 4_000, .11, 512, 400

def random_store():
    "Cells at random, the first tenth of them controls."
    r = rng(0, 'bench')
    n = r.binomial(G, DENSITY, N)
    indptr = np.r_[0, np.cumsum(n)]
    indices = np.concatenate([np.sort(r.choice(G, k, replace=False, shuffle=False)) for k in n]).astype(np.int32)
    codes = np.maximum(0, np.arange(N) * N_CONDITIONS // N - N_CONDITIONS // 10)
    codes = np.unique(codes, return_inverse=True)[1]
    C = codes.max() + 1
    design = Design([f'p{i}' for i in range(1, C)], {}, np.eye(C, dtype=np.float32)[:, 1:], np.zeros((C, 0), np.float32),
                    np.zeros(C, np.int64), np.arange(C) == 0)
    values, cells = r.random(indptr[-1], np.float32) + .5, np.arange(N)
    return CellStore(indptr, indices, values, codes, cells, cells.astype(str), [f'g{i}' for i in range(G)], design)

@njit(parallel=True, nogil=True)
def zeros(out):
    "The least that any way of making a dense batch has to do."
    for i in prange(len(out)): out[i, :] = 0

def rates(ways, rows, n_rounds=15):
    "Rows a second of each way over all of `rows`, in turn so that a busy moment hits all alike: the median and the best round."
    seconds = {k: [] for k in ways}
    for f in ways.values(): f(rows[0])
    for _ in range(n_rounds):
        for k, f in ways.items():
            start = time.perf_counter()
            for x in rows: f(x)
            seconds[k].append(time.perf_counter() - start)
    total = sum(map(len, rows))
    return {k: (total / np.median(s), total / min(s)) for k, s in seconds.items()}

def machine():
    "Cores, model and memory."
    info = Path('/proc/cpuinfo')
    model = next((l.split(':')[1].strip() for l in info.read_text().splitlines() if l.startswith('model name')), '') if info.exists() else platform.processor()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30 if hasattr(os, 'sysconf') else 0
    return f'{os.cpu_count()} cores, {model or platform.machine()}, {memory:.0f} GB of memory'

def seconds(f, n=5):
    "The median of `n` times."
    f()
    t = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        t.append(time.perf_counter() - start)
    return np.median(t)

def epoch(batches):
    "Go through the batches of one epoch."
    for _ in batches: pass

def main():
    store = random_store()
    X = sparse.csr_matrix((store.values, store.indices, store.indptr), shape=(N, G))
    rows, out = [rng(1, i).integers(N, size=BATCH) for i in range(40)], torch.empty(BATCH, G)
    assert (store.dense(rows[0], out).numpy() == X[rows[0]].toarray()).all()
    cells, most = store.select(np.ones(N, bool)), numba.config.NUMBA_NUM_THREADS
    threads = sorted({1, min(2, most), most})
    lines = [f'Machine: {machine()}',
             f'Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, numba {numba.__version__}, torch {torch.__version__}',
             f'Cells: {N:,} x {G:,} genes, {DENSITY:.0%} non-zero; batches of {BATCH} random rows; rows a second, median (best) of 15 rounds', '',
             f"{'threads':>8}{'CellStore.dense':>24}{'scipy X[rows].toarray()':>26}{'ratio':>8}{'zeros alone':>24}{'of zeros':>10}{'cells in cache':>24}"]
    ways = {'dense': lambda x: store.dense(x, out), 'scipy': lambda x: X[x].toarray(), 'zeros': lambda x: zeros(out.numpy()),
            'cached': lambda x: store.dense(x % 1000, out)}
    for n in threads:
        numba.set_num_threads(n)
        r = rates(ways, rows)
        show = {k: f'{m:,.0f} ({b:,.0f})' for k, (m, b) in r.items()}
        lines.append(f"{n:>8}{show['dense']:>24}{show['scipy']:>26}{r['dense'][0] / r['scipy'][0]:>8.1f}{show['zeros']:>24}"
                     f"{r['dense'][0] / r['zeros'][0]:>10.0%}{show['cached']:>24}")
    lines += ['', 'Ratio and share of zeros are of medians. scipy has one thread and makes new memory each time. Filling the same buffer with zeros is the',
              'least that a dense batch needs. "Cells in cache": all rows are among the same 1,000 cells, so nothing is read from main memory.', '',
              f"{'threads':>8}{'matched, cells/s':>24}{'disentangling, cells/s':>26}{'means of all conditions':>26}"]
    for n in threads:
        numba.set_num_threads(n)
        matched, plain = (Batches(cells, strategy=s, batch_size=BATCH) for s in ('matched', 'disentangling'))
        lines.append(f"{n:>8}{N / seconds(lambda: epoch(matched)):>24,.0f}{N / seconds(lambda: epoch(plain)):>26,.0f}{seconds(cells.means):>24.2f} s")
    lines += ['', 'Whole epochs of `Batches`, look-ups included; matched makes two dense rows a cell.', '']
    print(text := '\n'.join(lines))
    (Path(__file__).parent/'loading.txt').write_text(text)

if __name__ == '__main__': main()
