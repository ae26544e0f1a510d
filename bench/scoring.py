"""Time and memory of scoring: `evaluate`, the scoring of runs, the references, `report`, and the start of the command.

`python bench/scoring.py` prints the figures of this tree; `--against PATH` times the checkout in PATH beside it, in
turn, and prints ratios. Each step is a process of its own on one thread. CPU is user and system time of the process
and of those that it waited for, peak the largest resident size of one of them, and all are medians of rounds after
a small evaluation that compiles what is kept compiled. Inputs are drawn from fixed seeds: files in a folder that is
removed at the end (--at says where).
"""
import argparse, importlib.util, json, os, shutil, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
import h5py, numpy as np, pandas as pd
from anndata.io import write_elem
from scipy import sparse
from perturbench.core import rng
from perturbench.data.h5ad import RowWriter
from _common import machine, table

class Shape(NamedTuple):
    "Cells of a file of an evaluation."
    conditions:int
    cells:int # Of each condition
    controls:int
    genes:int

EVALUATE, BIG, SMALL = Shape(100, 50, 1_000, 4_000), Shape(300, 400, 10_000, 18_533), Shape(3, 12, 60, 200)

class Norman(NamedTuple):
    "A screen of the size of Norman et al. 2019: 89,176 cells."
    cells:int = 330 # Of each perturbation
    controls:int = 13_276
    genes:int = 5_000
    singles:int = 99
    doubles:int = 131 # A fraction of .7 is held out, half of which is tested: 46

GRID = """
tasks:
  - {screen: screen.h5ad, name: norman, genes: {hvg: %d, de: 25}, split: {kind: combination, fraction: .7, seed: 42}}
models: [control_mean, perturbed_mean, additive]
"""
# Logarithms: of the counts of a gene, and how these differ between genes, and cells between each other
MEAN, SPREAD, DEPTH = -2.9, 1.5, .35

# Files

def base_of(genes): return np.exp(rng(0, 'bench genes').normal(MEAN, SPREAD, genes))

def mean_of(name, genes):
    "Counts of each gene in cells of a condition: each of its parts changes a twentieth of them."
    mean = base_of(genes)
    for part in name.split('+'):
        r = rng(0, 'bench effect', part)
        changed = r.random(genes) < (.05 if part != 'control' else 0)
        mean = mean*np.where(changed, np.exp(r.normal(0, 1, genes)), 1)
    return mean

def drawn(r, name, n, genes, counts):
    "Some cells of a condition: counts, or log-normalised to 10,000."
    x = r.poisson(np.exp(r.normal(0, DEPTH, (n, 1)))*mean_of(name, genes)).astype(np.float64)
    x[:, 0] += 1
    if not counts: x = np.log1p(1e4*x/x.sum(1, keepdims=True))
    return sparse.csr_matrix(x.astype(np.float32))

def write_cells(path, sizes, genes, seed, counts=False):
    "An h5ad of `sizes`, condition -> cells, written block by block; the share of its values that are not 0."
    r, names = rng(seed, 'bench cells'), np.repeat(list(sizes), list(sizes.values()))
    cells = [f'{seed}_{i}' for i in range(len(names))]
    obs = pd.DataFrame({'what': pd.Categorical(names), 'line': 'K562'}, index=cells)
    with h5py.File(path, 'w') as f:
        f.attrs.update({'encoding-type': 'anndata', 'encoding-version': '0.1.0'})
        out = RowWriter(f, 'X', genes)
        for name, n in sizes.items():
            for a in range(0, n, 1_000): out.add(drawn(r, name, min(1_000, n - a), genes, counts))
        out.close()
        write_elem(f, 'obs', obs)
        write_elem(f, 'var', pd.DataFrame(index=[f'G{i}' for i in range(genes)]))
        return out.n/len(names)/genes

def evaluation_files(folder, s:Shape):
    "Truth, predictions and training cells of other conditions; the share of values of the truth that are not 0."
    folder.mkdir()
    named = lambda first: {f'G{i}': s.cells for i in range(first, first + s.conditions)}
    write_cells(folder/'mine.h5ad', named(0), s.genes, 1)
    write_cells(folder/'train.h5ad', named(s.conditions) | {'control': s.controls}, s.genes, 2)
    return write_cells(folder/'truth.h5ad', named(0) | {'control': s.controls}, s.genes, 0)

def norman_files(folder, o:Norman):
    "Counts of singles and doubles, and a grid."
    folder.mkdir()
    pairs = [f'G{i}+G{j}' for d in range(1, o.singles) for i in range(o.singles - d) for j in [i + d]]
    chosen = rng(0, 'bench doubles').permutation(len(pairs))[:o.doubles]
    names = [f'G{i}' for i in range(o.singles)] + [pairs[k] for k in chosen]
    (folder/'grid.yaml').write_text(GRID % o.genes)
    sizes = {k: o.cells for k in names} | {'control': o.controls}
    return write_cells(folder/'raw.h5ad', sizes, o.genes, 3, counts=True)

# Processes

class Spent(NamedTuple):
    "What a process took."
    cpu:float # s
    wall:float # s
    peak:float # GB

ONE_THREAD = {k: '1' for k in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}

# A process starts with the peak of the one that starts it, so a small one stands between
LAUNCH = """
import json, os, resource, subprocess, sys
status = subprocess.call([sys.executable, *sys.argv[1:]])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open('usage', 'w') as f: json.dump(dict(cpu=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss), f)
sys.exit(status)
"""

def spent(args, code=None, folder=None, status=0):
    "Run Python with `args`, with the perturbench of the checkout `code`; what it printed stands in folder/log."
    env = os.environ | ONE_THREAD | {'OMP_WAIT_POLICY': 'PASSIVE', 'CUDA_VISIBLE_DEVICES': ''}
    if code: env['PYTHONPATH'] = str(code)
    with open(Path(folder)/'log', 'w') as log:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, '-S', '-c', LAUNCH, *map(str, args)], cwd=folder, env=env,
                                   stdout=log, stderr=log)
        process.wait()
        wall = time.perf_counter() - start
    said = (Path(folder)/'log').read_text()[-3000:]
    if process.returncode != status: sys.exit(f'{args} ended with {process.returncode}:\n{said}')
    usage = json.loads((Path(folder)/'usage').read_text())
    unit = 1 if sys.platform == 'darwin' else 1024 # Bytes
    return Spent(usage['cpu'], wall, usage['peak']*unit/1e9)

def middle(some): return Spent(*np.median(np.array(some), axis=0))

KEYS = ['--perturbation-key', 'what', '--covariate-keys', 'line']

def evaluate(folder, code):
    "One `evaluate` with all metrics."
    shutil.rmtree(folder/'out', ignore_errors=True)
    files = ['truth.h5ad', 'mine.h5ad', '--train', 'train.h5ad']
    return spent(['-m', 'perturbench', 'evaluate', *files, '-o', 'out', *KEYS], code, folder)

# A run counts what it takes to predict and to score; cells that are predicted and thrown away leave the scoring
SHARE = """
import json, sys, time
from perturbench.bench.runs import open_run
from perturbench.bench.batch import read_grid
spec, found = read_grid('grid.yaml').tasks[0], {}
def step(name, f):
    start = time.process_time()
    f()
    found[name] = time.process_time() - start
def predict():
    for p in run.predict(): pass
for model in ('control_mean', 'additive'):
    run = open_run(spec, model, out='out')
    step(model + ': fit', run.train)
    step(model + ': predict', predict)
    step(model + ': predict and score', run.score)
print(json.dumps(found))
"""

def norman(folder, code):
    "step -> Spent of a grid and its report, which makes the references again where they are removed."
    shutil.rmtree(folder/'out', ignore_errors=True)
    found = {'run, with the report': spent(['-m', 'perturbench', 'run', 'grid.yaml', '-o', 'out'], code, folder)}
    report = ['-m', 'perturbench', 'report', 'out']
    for path in (folder/'out').glob('tasks/*/references.*'): path.unlink()
    found['report, with references'] = spent(report, code, folder)
    found['report again'] = spent(report, code, folder)
    a, b = found['report, with references'], found['report again']
    found['references (the difference)'] = Spent(a.cpu - b.cpu, a.wall - b.wall, a.peak)
    shares = spent(['-c', SHARE], code, folder)
    steps = json.loads((folder/'log').read_text().splitlines()[-1])
    for model in ('control_mean', 'additive'):
        alone = steps[f'{model}: predict and score'] - steps[f'{model}: predict']
        found[f'scoring of {model} alone'] = Spent(alone, np.nan, shares.peak)
        found[f'predicting with {model}'] = Spent(steps[f'{model}: predict'], np.nan, shares.peak)
    return found

REFUSED = ['evaluate', 'none.h5ad', 'none.h5ad', '-o', 'out_none', *KEYS] # There are no such files
STARTS = {'perturbench --help': (['-m', 'perturbench', '--help'], 0),
          'import perturbench.bench.leaderboard': (['-c', 'import perturbench.bench.leaderboard'], 0),
          'evaluate, refused at once': (['-m', 'perturbench', *REFUSED], 2)}

def starts(folder, code):
    "step -> Spent of what does nothing."
    return {k: spent(args, code, folder, status) for k, (args, status) in STARTS.items()}

# Peers: the rank tests of the truth alone, from its file

PEERS = {'scanpy': "sc.tl.rank_genes_groups(a, 'what', reference='control', method='wilcoxon')",
         'illico': "asymptotic_wilcoxon(a, is_log1p=True, group_keys='what', reference='control', n_threads=1)"}
IMPORTS = {'scanpy': 'import scanpy as sc', 'illico': 'from illico import asymptotic_wilcoxon'}

def peers(folder):
    "peer -> Spent, of those that are installed."
    found = {}
    read = "a = ad.read_h5ad('truth.h5ad')\na.X.indptr = a.X.indptr.astype(a.X.indices.dtype)" # scipy wants one type
    for k in (k for k in PEERS if importlib.util.find_spec(k)):
        code = '\n'.join(['import anndata as ad', IMPORTS[k], read, PEERS[k]])
        found[f'{k}, rank tests of the truth'] = spent(['-c', code], None, folder)
    return found

# Figures

def measured(step, codes, n_rounds):
    "code -> step -> Spent: the codes in turn in each round."
    rounds = {c: [] for c in codes}
    for _ in range(n_rounds):
        for c, path in codes.items(): rounds[c].append(step(path))
    return {c: {k: middle([o[k] for o in some]) for k in some[0]} for c, some in rounds.items()}

def shown(value, digits): return '' if np.isnan(value) else f'{value:.{digits}f}'

def figures(found):
    "A table of what `measured` gives; with two codes, the ratio of this one to the other."
    rows = [[k, c, *(shown(v, 2) for v in s)] for c, steps in found.items() for k, s in steps.items()]
    lines = table(['step', 'code', 'CPU, s', 'wall, s', 'peak, GB'], rows)
    if len(found) < 2: return lines
    new, old = found.values()
    ratios = [[k, *(shown(x/y, 3) for x, y in zip(new[k], old[k]))] for k in new]
    return [*lines, '', *table(['this over the other', 'CPU', 'wall', 'peak'], ratios)]

def scaled(sizes, share):
    "Sizes with fewer cells and conditions."
    least = dict(conditions=3, cells=12, controls=60, genes=200, singles=12, doubles=12)
    return type(sizes)(*(max(least[k], round(v*share)) for k, v in sizes._asdict().items()))

def asked():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--against', type=Path, help='a checkout whose code is timed beside this one')
    parts = ['evaluate', 'norman', 'start']
    p.add_argument('--only', nargs='+', choices=parts, default=parts)
    p.add_argument('--big', action='store_true', help='300 conditions x 400 cells x 18,533 genes, too')
    p.add_argument('--scale', type=float, default=1., help='the share of all sizes, for a smoke try')
    p.add_argument('--rounds', type=int, default=1)
    p.add_argument('--at', help='where the folder of the inputs stands')
    return p.parse_args()

def say(*lines): print(*lines, sep='\n', flush=True)

def evaluations(o, codes, folder):
    "Say what `evaluate` takes, and the peers."
    shapes = {'evaluate': EVALUATE} if 'evaluate' in o.only else {}
    if o.big: shapes['big'] = BIG
    for name, shape in shapes.items():
        shape, place = scaled(shape, o.scale), folder/name
        density = evaluation_files(place, shape)
        found = measured(lambda code: {name: evaluate(place, code)}, codes, o.rounds)
        say(f'evaluate: {shape}, {density:.0%} not 0', *figures(found), '')
        others = peers(place) if name == 'evaluate' else {}
        if others: say(*figures({'peer': others}), '')
        shutil.rmtree(place)

def runs(o, codes, folder):
    "Say what a grid and its report take."
    sizes = scaled(Norman(), o.scale)
    density = norman_files(folder, sizes)
    spent(['-m', 'perturbench', 'prepare', 'raw.h5ad', *KEYS, '-o', 'screen.h5ad'], None, folder)
    found = measured(lambda code: norman(folder, code), codes, o.rounds)
    say(f'run: {sizes}, {density:.0%} not 0', *figures(found), '')

STARTED = 3 # Rounds of what takes a second, at least

def main():
    o = asked()
    codes = {'this': Path(__file__).parents[1]} | ({'other': o.against.resolve()} if o.against else {})
    versions = ', '.join(f'{k} {version(k)}' for k in ('numpy', 'torch', 'numba'))
    say(f'Machine: {machine()}', f'{versions}; scale {o.scale:g}', '')
    folder = Path(tempfile.mkdtemp(dir=o.at))
    try:
        evaluation_files(folder/'small', SMALL)
        for path in codes.values(): evaluate(folder/'small', path)
        if 'start' in o.only:
            found = measured(lambda code: starts(folder, code), codes, max(o.rounds, STARTED))
            say('start', *figures(found), '')
        evaluations(o, codes, folder)
        if 'norman' in o.only: runs(o, codes, folder/'norman')
    finally: shutil.rmtree(folder)

if __name__ == '__main__': main()
