"""Training from a file larger than memory: how fast cells come from it, and in how much memory.

A simulated block of cells is tiled, with its conditions permuted each time, into one prepared h5ad after another, which
is shuffled, trained from and removed. `python bench/disk.py` needs some 40 GB of disk beside this file. Each step is a
process of its own; its peak is what the system counts as resident.
"""
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from _common import header, in_turn, options, ratio, report, set_threads, table
from perturbench.core import rng
from perturbench.data.h5ad import RowWriter, write_frames, writing
from perturbench.data.screen import OPTIONS, read_screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.loaders.batches import Batches
from perturbench.loaders.disk import DiskBatches, FileStore, shuffle_file
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo
from perturbench.models.zoo import build_model
from perturbench.trainer import fit_batches

SIZES = dict(cells=[500_000, 5_000_000], block=50_000, genes=4_000, threads=2, rounds=3)

def block_of_cells(n, n_genes):
    "A simulated screen of about `n` cells: three lines, 200 perturbations, a fifth of controls."
    sizes = dict(n_genes=n_genes, n_perturbations=200, cells=n*.8/600, controls=int(n*.2/3))
    return simulate(Parameters(**sizes, cells_sd=0., library=11_000)).screen

def make(path, n, block, n_genes):
    "A prepared file of `n` cells, not compressed; returns its number of non-zeros."
    screen, r = block_of_cells(block, n_genes), rng('tiles')
    X, obs, key = screen.adata.X, screen.adata.obs, screen.perturbation_key
    names, is_control = obs[key].astype(str).to_numpy(), screen.design.is_control[screen.codes]
    treated, tiles = np.unique(names[~is_control]), []
    rows = [min(X.shape[0], n - i) for i in range(0, n, X.shape[0])]
    with writing(path) as f:
        out = RowWriter(f, 'X', n_genes, n=sum(int(X.indptr[m]) for m in rows))
        for m in rows:
            order = r.permutation(X.shape[0]) if m == X.shape[0] else np.arange(m)
            renamed = dict(zip(treated, r.permutation(treated)))
            tiles.append(obs.iloc[order].assign(**{key: [renamed.get(o, o) for o in names[order]]}))
            out.add(X[order])
        out.close()
        table = pd.concat(tiles).set_axis([f'cell{i}' for i in range(n)])
        for k in table.columns:
            table[k] = table[k].astype('category') if k in (key, *screen.covariate_keys) else table[k]
        screen.adata.uns.clear()
        whole = type(screen.adata)(obs=table[[key, *screen.covariate_keys]], var=screen.adata.var)
        card = {k: getattr(screen, k) for k in OPTIONS}
        write_frames(f, whole, card | dict(batch_key=None, replicate_key=None, targets=None))
        return out.n

def cells_of(path):
    store = FileStore.from_screen(read_screen(path, backed=True, check_values=False))
    return store.select(np.ones(store.n_cells, bool))

def epoch(batches):
    for _ in batches: pass

def rates(path, o):
    "Seconds of an epoch of matched batches from memory and from the file, in turn."
    near, far = CellStore.from_screen(read_screen(path, backed=False, check_values=False)), cells_of(path)
    near = near.select(np.ones(near.n_cells, bool))
    def way(kind, cells, size):
        batches = kind(cells, batch_size=size)
        return lambda: epoch(batches)
    kinds = ((Batches, near), (DiskBatches, far))
    ways = {f'{kind.__name__} {size}': way(kind, cells, size) for size in (512, 4000) for kind, cells in kinds}
    return {k: v.tolist() for k, v in in_turn(ways, o.rounds).items()}

def train(path, o):
    "One epoch of a Latent Additive model of width 16 with matched batches of 4,000, and the time of the loading alone."
    cells = cells_of(path)
    start = time.perf_counter()
    epoch(DiskBatches(cells, batch_size=4000))
    alone = time.perf_counter() - start
    torch.manual_seed(0)
    store = cells.store
    info = ModelInfo(store.genes, store.design, cells.n)
    model = build_model('latent_additive', info, encoder_width=16, latent_dim=16)
    few = store.select(rng('validation').random(store.n_cells) < 4000/store.n_cells)
    controls = cells.where(store.design.is_control)
    start = time.perf_counter()
    val = DiskBatches(few, controls, batch_size=4000, shuffle=False)
    loaders = [DiskBatches(cells, batch_size=4000), val]
    history = fit_batches(model, loaders, dict(max_epochs=1, min_epochs=1))
    return dict(cells=len(cells), alone=alone, trained=time.perf_counter() - start, loss=history.val_loss.iloc[-1])

def step(name, path, o):
    "Do one step in this process and print what it found."
    set_threads(o.threads)
    start = time.perf_counter()
    if name == 'make': found = dict(nnz=make(path, o.cells[0], o.block, o.genes))
    if name == 'shuffle':
        found = shuffle_file(read_screen(path, backed=True, check_values=False), f'{path}.shuffled.h5ad') or {}
    if name == 'rates': found = rates(path, o)
    if name == 'train': found = train(path, o)
    peak = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))
    print(json.dumps(dict(found, seconds=time.perf_counter() - start, peak=peak*1024/1e9)))

def in_process(name, path, o, n):
    "A step in a process of its own."
    given = [str(a) for k, v in vars(o).items() if k != 'cells' for a in (f'--{k}', v)]
    command = [sys.executable, __file__, *given, '--cells', str(n)]
    env = os.environ | dict(STEP=name, FILE=str(path))
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{name} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])

def main():
    o = options(**SIZES)
    if 'STEP' in os.environ: return step(os.environ['STEP'], os.environ['FILE'], o)
    rows, first = [], None
    for n in o.cells:
        folder = Path(tempfile.mkdtemp(prefix='.disk', dir=Path(__file__).parent))
        try:
            path = folder/'screen.h5ad'
            made = in_process('make', path, o, n)
            shuffled = in_process('shuffle', path, o, n)
            path.unlink()
            path = f'{path}.shuffled.h5ad'
            if first is None: first = in_process('rates', path, o, n)
            t = in_process('train', path, o, n)
        finally: shutil.rmtree(folder)
        rows.append([
            f'{n:,}', f"{8*made['nnz']/1e9:.1f}", f"{shuffled['seconds']:.0f}", f"{shuffled['peak']:.2f}",
            f"{t['cells']/t['alone']:,.0f}", f"{t['cells']/t['trained']:,.0f}", f"{t['peak']:.2f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    lines = header(o, 'numpy', 'numba', 'torch', 'lightning', 'h5py', 'anndata')
    lines += table(['cells', 'GB', 'shuffle, s', 'peak, GB', 'loaded, cells/s', 'trained, cells/s', 'peak, GB'], rows)
    growth = float(rows[-1][-1])/float(rows[0][-1])
    lines += [
        '',
        f'Peak of training, largest file over smallest: {growth:.2f}x '
        '(1 means that memory does not grow with the file)']
    for size in (512, 4000):
        a, b = (np.array(first[f'{k} {size}']) for k in ('Batches', 'DiskBatches'))
        near, far = o.cells[0]/np.median(a), o.cells[0]/np.median(b)
        lines.append(
            f'Batches of {size:,}, {o.cells[0]:,} cells: from the file {far:,.0f} cells/s, from memory {near:,.0f}; '
            f'share, at least 40% wanted -> {ratio(a, b):.0%}')
    lines += [
        '',
        'Files are what `shuffle_file` writes, read with a warm cache where it holds them. Loaded: an epoch of',
        'matched batches of 4,000. Trained: with a Latent Additive model of width 16. Resident memory holds the',
        'interpreter and its libraries too.', '']
    report(lines, o, SIZES)

if __name__ == '__main__': main()
