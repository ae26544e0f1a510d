"""Time and memory of `perturbench prepare` and of opening a task.

`python bench/prepare.py [CELLS ...]` prints the figures and writes them to results/prepare.txt beside this file, where
CELLS has at least the defaults. The screens are raw counts of 20,000 genes, some 10 % of them non-zero, in three lines
with 200 perturbations, made as h5ad files in a folder that is removed at the end (--at says where; 1,000,000 cells need
some 20 GB there). Each step is a process of its own; its peak is what the system counts as resident, mapped files
included.
"""
import argparse, json, platform, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import h5py, numpy as np, pandas as pd
from importlib.metadata import version
from anndata.io import write_elem
from scipy import sparse
from perturbench.core import rng
from perturbench.data.h5ad import RowWriter
from _common import machine

CELLS, GENES, POOL, BLOCK = [100_000, 250_000, 500_000], 20_000, 4_000, 10_000

def pool():
    "Cells to draw from: genes of very different means, cells of different depths."
    r = rng(0, 'bench')
    mean = np.exp(r.normal(-3.5, 1.8, GENES))
    some = lambda: sparse.csr_matrix(r.poisson(np.outer(np.exp(r.normal(0, .4, 500)), mean)).astype(np.float32))
    return sparse.vstack([some() for _ in range(POOL//500)], 'csr')

def write_raw(path, n, cells):
    "A raw screen of `n` cells that are drawn from `cells` block by block; returns its number of non-zeros."
    r = rng(n, 'bench')
    line, what = r.choice(['A549', 'K562', 'MCF7'], n), r.choice(['control', *(f'G{i}' for i in range(200))], n)
    obs = pd.DataFrame(dict(line=pd.Categorical(line), what=pd.Categorical(what)), index=[f'cell{i}' for i in range(n)])
    with h5py.File(path, 'w') as f:
        f.attrs.update({'encoding-type': 'anndata', 'encoding-version': '0.1.0'})
        out = RowWriter(f, 'X', GENES)
        for a in range(0, n, BLOCK): out.add(cells[r.integers(POOL, size=min(BLOCK, n - a))])
        out.close()
        for k, v in dict(obs=obs, var=pd.DataFrame(index=[f'G{i}' for i in range(GENES)])).items(): write_elem(f, k, v)
        return out.n

def step(name, folder):
    "Do one step in this process and print what it took."
    start = time.perf_counter()
    if name == 'prepare':
        from perturbench.cli import main
        keys = ['--perturbation-key', 'what', '--covariate-keys', 'line']
        assert main(['prepare', f'{folder}/raw.h5ad', *keys, '-o', f'{folder}/screen.h5ad']) == 0
    if name == 'open':
        from perturbench.tasks import open_task
        split = dict(kind='transfer', fraction=.3, seed=42)
        print(open_task(dict(screen=f'{folder}/screen.h5ad', split=split), f'{folder}/out'))
    peak = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))
    print(json.dumps(dict(seconds=time.perf_counter() - start, peak=peak*1024)))

def in_process(name, folder):
    "A step in a process of its own."
    command = [sys.executable, __file__, '--step', name, '--at', str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{name} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])

def main():
    p = argparse.ArgumentParser()
    p.add_argument('cells', nargs='*', type=int, default=CELLS)
    p.add_argument('--at', default=None)
    p.add_argument('--step')
    o = p.parse_args()
    if o.step: return step(o.step, o.at)
    cells = pool()
    lines = [
        f'Machine: {machine()}',
        f'Python {platform.python_version()}, numpy {np.__version__}, anndata {version("anndata")}, '
        f'h5py {h5py.__version__}',
        f'Screens of {GENES:,} genes, {cells.nnz/POOL/GENES:.0%} non-zero; 3 lines x 200 perturbations; one run each',
        '',
        f"{'cells':>10}{'in memory, GB':>16}{'file, GB':>12}{'prepare, s':>14}{'peak, GB':>12}"
        f"{'open task, s':>16}{'peak, GB':>12}"]
    print('\n'.join(lines))
    for n in o.cells:
        folder = Path(tempfile.mkdtemp(dir=o.at))
        try:
            nnz = write_raw(folder/'raw.h5ad', n, cells)
            size = (folder/'raw.h5ad').stat().st_size
            a, b = in_process('prepare', folder), in_process('open', folder)
        finally: shutil.rmtree(folder)
        lines.append(
            f"{n:>10,}{8*nnz/1e9:>16.1f}{size/1e9:>12.1f}{a['seconds']:>14.0f}{a['peak']/1e9:>12.2f}"
            f"{b['seconds']:>16.0f}{b['peak']/1e9:>12.2f}")
        print(lines[-1], flush=True)
    lines += [
        '',
        '"In memory" is the raw matrix alone as compressed sparse rows (8 bytes a non-zero). Opening a task checks',
        'the values, splits, chooses 4,000 variable genes and the 25 most changed ones of each training condition,',
        'hashes the cells and writes the store.',
        '']
    if set(CELLS) <= set(o.cells): (Path(__file__).parent/'results'/'prepare.txt').write_text('\n'.join(lines))

if __name__ == '__main__': main()
