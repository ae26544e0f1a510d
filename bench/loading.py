"""How fast cells become batches, beside a naive loader and beside filling the same memory with zeros.

The naive loader works as the original PerturBench loader does: a torch `Dataset` over compressed matrices draws a
control for each cell in a loop, from the array of controls that a table has for its covariates, makes both dense by
scipy, and fits encoders to the names of each batch.
"""
import numpy as np, torch
from numba import njit, prange
from scipy import sparse
from sklearn.preprocessing import MultiLabelBinarizer, OneHotEncoder
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from perturbench.core import rng
from perturbench.loaders.batches import Batches
from _common import header, in_turn, options, random_store, ratio, report, set_threads, table

SIZES = dict(cells=50_000, genes=4_000, batches=[512, 4_000], threads=[1, 2], rounds=7)

class NaiveCells(Dataset):
    "Perturbed cells, each with a random control of the same covariates."
    def __init__(self, X, perturbation, covariates, is_control, names):
        self.cells, self.X, self.controls_X = np.flatnonzero(~is_control), X[~is_control], X[is_control]
        self.controls = {}
        values = {k: v[is_control] for k, v in covariates.items()}
        for i in range(is_control.sum()): self.controls.setdefault(self.key(values, i), []).append(i)
        self.controls = {k: np.array(v) for k, v in self.controls.items()}
        self.covariates = {k: v[self.cells] for k, v in covariates.items()}
        self.perturbations = [p.split('+') for p in perturbation[self.cells]]
        self.names = [names[i] for i in self.cells]
        self.multi_hot = MultiLabelBinarizer(classes=sorted({p for parts in self.perturbations for p in parts}))
        encoder = lambda values: OneHotEncoder(categories=[sorted(set(values))], sparse_output=False)
        self.one_hot = {k: encoder(v) for k, v in covariates.items()}

    def key(self, values, i): return frozenset({k: v[i] for k, v in values.items()}.items())
    def __len__(self): return len(self.cells)

    def __getitems__(self, rows):
        values = {k: v[rows] for k, v in self.covariates.items()}
        controls = [np.random.choice(self.controls[self.key(values, i)], size=1)[0] for i in range(len(rows))]
        perturbation = self.multi_hot.fit_transform([self.perturbations[i] for i in rows])
        found = dict(
            names=[self.names[i] for i in rows],
            expression=torch.Tensor(self.X[rows].toarray()),
            controls=torch.Tensor(self.controls_X[controls].toarray()),
            perturbation=torch.Tensor(perturbation))
        return found | {k: torch.Tensor(self.one_hot[k].fit_transform(v[:, None])) for k, v in values.items()}

def naive_loader(store, X, batch_size):
    "Shuffled batches of the perturbed cells of `store`, which are rows of `X`."
    design, code = store.design, store.codes
    which = np.where(design.is_control, 0, design.perturbation.argmax(1) + 1)
    name = np.array(['control', *design.perturbations], object)[which][code]
    line = np.array(design.covariates['line'], object)[design.state][code]
    data = NaiveCells(X, name, {'line': line}, design.is_control[code], np.arange(len(code)).astype(str))
    batches = BatchSampler(RandomSampler(data), batch_size, drop_last=False)
    return DataLoader(data, batch_sampler=batches, collate_fn=lambda batch: batch, num_workers=0)

@njit(parallel=True, nogil=True)
def zeros(out):
    "The least that any way of making a dense batch has to do."
    for i in prange(len(out)): out[i, :] = 0

def fill(batches):
    "Fill the buffers of `batches` with zeros as often as an epoch fills them with cells and controls."
    memory = [array for array, _ in batches.buffers['cells'].memory]
    for i in range(len(batches)): zeros(memory[i % len(memory)][:2*min(batches.n, batches.total - i*batches.n)])

def epoch(batches):
    "Go through the batches of one epoch."
    for _ in batches: pass

def epochs(cells, controls, X, o):
    "A table of whole epochs, and the ratios with the most threads."
    rows, goals = [], []
    for n in o.threads:
        set_threads(n)
        for size in o.batches:
            batches, naive = Batches(cells, controls, 'matched', size), naive_loader(cells.store, X, size)
            t = in_turn({
                'batches': lambda: epoch(batches),
                'naive': lambda: epoch(naive),
                'zeros': lambda: fill(batches)}, o.rounds)
            faster, share = ratio(t['naive'], t['batches']), ratio(t['zeros'], t['batches'])
            rows.append([
                f'{n}', f'{size:,}', *(f'{np.median(s):.4f}' for s in t.values()), f'{faster:.1f}', f'{share:.0%}',
                *(f"{len(cells)/np.median(t[k]):,.0f}" for k in ('batches', 'naive'))])
            if n == max(o.threads):
                goals.append((f'batch {size:,}, threads {n}', faster, share, ratio(t['naive'], t['zeros'])))
    lines = table([
        'threads', 'batch', 'Batches, s', 'naive loader, s', 'zeros, s', 'faster', 'share of zeros',
        'Batches, cells/s', 'naive, cells/s'], rows)
    beside_naive = [
        f'epoch of Batches over the naive loader, {k}: at least 15x wanted -> {x:.1f}x; '
        f'filling with zeros alone {z:.1f}x' for k, x, _, z in goals]
    beside_zeros = [f'share of zero filling, {k}: at least 50% wanted -> {x:.0%}' for k, _, x, _ in goals]
    return lines, beside_naive + beside_zeros

def kernels(cells, X, o):
    "A table of what batches are made of."
    rows, store = [], cells.store
    asked = [rng(1, i).integers(store.n_cells, size=512) for i in range(40)]
    out, alone = torch.empty(512, store.n_genes), Batches(cells, strategy='disentangling')
    assert (store.dense(asked[0], out).numpy() == X[asked[0]].toarray()).all()
    def each(f): return lambda: [f(x) for x in asked]
    for n in o.threads:
        set_threads(n)
        t = in_turn({'dense': each(lambda x: store.dense(x, out)), 'scipy': each(lambda x: X[x].toarray()),
                     'alone': lambda: epoch(alone), 'means': cells.means}, o.rounds)
        n_rows = {'dense': 512*len(asked), 'scipy': 512*len(asked), 'alone': len(cells)}
        rate = {k: f'{size/np.median(t[k]):,.0f}' for k, size in n_rows.items()}
        rows.append([
            f'{n}',
            rate['dense'],
            rate['scipy'],
            f"{ratio(t['scipy'], t['dense']):.1f}",
            rate['alone'],
            f"{np.median(t['means']):.3f}"])
    return table([
        'threads', 'CellStore.dense, rows/s', 'scipy X[rows].toarray(), rows/s', 'ratio', 'disentangling, cells/s',
        'means, s'], rows)

def main():
    o = options(**SIZES)
    store = random_store(o.cells, o.genes)
    X = sparse.csr_matrix((store.values, store.indices, store.indptr), shape=(o.cells, o.genes))
    cells, is_control = store.select(np.ones(o.cells, bool)), store.design.is_control
    whole, goals = epochs(cells.where(~is_control), cells.where(is_control), X, o)
    report([
        *header(o, 'numpy', 'scipy', 'numba', 'torch', 'scikit-learn'),
        f'{store}, {is_control[store.codes].mean():.0%} of the cells controls', '', *goals, '', *whole, '',
        'Whole epochs of the perturbed cells, with a control for each: the time of Batches, of the naive loader, and',
        'of filling the buffers of Batches with zeros as often. The naive loader has one process, and scipy one',
        'thread. Times are medians, ratios medians of those of a round.',
        '', *kernels(cells, X, o), '',
        'Rows made dense in batches of 512 random ones; whole epochs of all cells without controls; the means of all',
        'conditions.'], o, SIZES)

if __name__ == '__main__': main()
