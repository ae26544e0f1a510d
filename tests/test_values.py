"""Scores of fixed inputs, through the command line, against the tables in reference/.

A change that is meant to change values makes the tables anew, all or some of them:
    python tests/test_values.py --write [SCENARIO ...]
"""
import contextlib, os, sys
from itertools import product
from pathlib import Path
from typing import NamedTuple
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # --write is no test, whose GPU tests/conftest.py hides
import anndata as ad, numpy as np, pandas as pd, pytest
from scipy import sparse
from perturbench.bench import leaderboard
from perturbench.cli import main
from perturbench.plots import Picture
from perturbench.scoring.profiles import WITHOUT

REFERENCE = Path(__file__).parent/'reference'
TOLERANCE = 1e-9 # Relative or absolute: sums in another order stay far within it, another definition does not
SINGLE_TOLERANCE = 1e-5 # Of products in float32 and what is made of them: two threads, or processors, differ by 1e-6
P_TOLERANCE = 1e-7 # Of p-values: models that differ by roundings of float32 alone leave few digits of a difference
FROM_COUNTS = ('published', 'run') # Their values are logarithms in float32, whose last bits differ between processors
SINGLE = ('energy_pca', 'energy_unbiased_pca', 'dispersion_pca', 'mmd_rbf_pca', 'mmd_published', 'cell_cov')

# Cells: all that is drawn are uniform numbers, which are the same bits everywhere

GENES = [f'g{i}' for i in range(40)]
ABSENT, CONSTANT = 38, 39 # Genes: one that no cell has, one of the same value in all cells
TARGET_SUM, HELD = 10_000, 500 # What a cell sums to, and what of it the constant gene takes

def generator(*seed):
    "A generator of its own for each key."
    return np.random.Generator(np.random.PCG64([ord(c) for o in seed for c in f'{o},']))

def effect(perturbation, strength):
    "The factor of each gene: a quarter of the genes change, the parts of a combination multiply."
    factor = np.ones(len(GENES))
    for part in perturbation.split('+'):
        if part == 'control': continue
        r = generator('effect', part)
        changes, by = r.random(len(GENES)) < .25, 4*r.random(len(GENES))
        factor = factor*np.where(changes, np.maximum(1 + strength*(by - 1), .1), 1)
    return factor

def counts(seed, obs, strength=1., depth=12.):
    "Counts of the cells of `obs`, more than half of them 0; an effect grows with the column dose."
    r, base = generator('cells', seed), generator('base').random(len(GENES)) + .2
    of_state = {s: generator('state', s).random(len(GENES)) + .5 for s in obs.line.unique()}
    of_batch = {b: 1 + .3*generator('batch', b).random(len(GENES)) for b in obs.plate.unique()}
    doses = obs.dose.to_numpy() if 'dose' in obs else np.ones(len(obs))
    mean = np.stack([base*of_state[s]*of_batch[b]*effect(p, strength*d)
                     for s, b, p, d in zip(obs.line, obs.plate, obs.perturbation, doses)])
    u = r.random(mean.shape)
    found = np.floor(depth*(.5 + r.random((len(obs), 1)))*mean*u*u*u)
    found[:, 0] += 1
    found[:, ABSENT] = 0
    return found

def log_normalised(found):
    "log1p of shares of the target sum; the constant gene has the same share of each cell."
    found = found.copy()
    found[:, CONSTANT] = 0
    shares = found/found.sum(1, keepdims=True)*(TARGET_SUM - HELD)
    shares[:, CONSTANT] = HELD
    return np.log1p(shares)

def cells(seed, groups, values=log_normalised, **how):
    "An AnnData of `groups`: mappings of columns of obs, each with its number of cells n."
    rows = [{k: v for k, v in g.items() if k != 'n'} for g in groups for _ in range(g['n'])]
    obs = pd.DataFrame(rows, index=[f'{seed}{i}' for i in range(len(rows))])
    if 'plate' not in obs: obs['plate'] = [f'p{i % 3}' for i in range(len(obs))]
    obs['donor'] = [f'd{i*7 % 5 % 3}' for i in range(len(obs))]
    x = sparse.csr_matrix(values(counts(seed, obs, **how)).astype(np.float32))
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))

def groups(lines, perturbations, n, n_controls, first=0):
    "A group for each line and perturbation, of `n` to `n` + 4 cells, and the controls of each line."
    named = [dict(line=l, perturbation=p, n=n + (first + 3*i) % 5)
             for i, (l, p) in enumerate(product(lines, perturbations))]
    return named + [dict(line=l, perturbation='control', n=n_controls) for l in lines if n_controls]

# Scenarios: files and the command that scores them

SINGLES = [*GENES[1:8], 'A', 'B', 'C', 'D', 'E'] # Some are genes, which are then what they act on
DOUBLES = ['A+B', 'A+C', 'B+C', 'C+D', 'g1+A', 'g2+B', 'D+E', 'g3+g4']
BY_LINE = ['--covariate-keys', 'line']

class Scenario(NamedTuple):
    "What one command scores."
    files:dict # Name -> AnnData
    options:list # Of `evaluate`, beside the files
    models:list # Names of the files with predictions

def two_lines():
    "Predicted controls and none, conditions without a prediction, a baseline in each line, ranks among more than ten."
    def both(x, y, *sizes): return groups(['x'], x, *sizes) + groups(['y'], y, *sizes)
    files = dict(truth=cells('t', both(SINGLES[:11], SINGLES[1:4], 8, 21)),
                 train=cells('a', both(SINGLES[4:], [*SINGLES[2:4], 'F'], 7, 20)),
                 near=cells('n', both(SINGLES[:11], SINGLES[1:4], 6, 9, 1)),
                 far=cells('f', both(SINGLES[2:11], SINGLES[2:4], 4, 0, 2), strength=.2))
    return Scenario(files, [*BY_LINE, '--train', 'train.h5ad'], ['near', 'far'])

def doubles():
    "Combinations, some with parts that were measured alone."
    parts = [p for p in SINGLES if p != 'E']
    files = dict(truth=cells('t', groups(['x'], [*parts, *DOUBLES], 9, 30)),
                 train=cells('a', groups(['x'], [*parts, 'A+D', 'g1+B'], 8, 24)),
                 mine=cells('m', groups(['x'], [*parts, *DOUBLES], 7, 12), strength=.8))
    return Scenario(files, [*BY_LINE, '--train', 'train.h5ad'], ['mine'])

def replicates():
    "Halves of whole donors."
    lines = ['x', 'y']
    files = dict(truth=cells('t', groups(lines, SINGLES[3:9], 15, 30)),
                 train=cells('a', groups(lines, SINGLES[5:], 9, 18)),
                 mine=cells('m', groups(lines, SINGLES[3:9], 9, 12)))
    options = ['--replicate-key', 'donor', '--batch-key', 'plate', '--train', 'train.h5ad']
    return Scenario(files, [*BY_LINE, *options], ['mine'])

def batches():
    "Halves of whole batches, where controls lack one of them."
    truth = cells('t', groups(['x'], SINGLES[:6], 14, 24))
    truth = truth[~((truth.obs.perturbation == 'control') & (truth.obs.plate == 'p2')).to_numpy()].copy()
    files = dict(truth=truth, mine=cells('m', groups(['x'], SINGLES[:6], 8, 0)))
    return Scenario(files, [*BY_LINE, '--batch-key', 'plate'], ['mine'])

def doses():
    "Conditions that differ by dose."
    def dosed(n, n_controls, levels=(.5, 1., 2.)):
        named = [dict(line='x', perturbation=p, dose=d, n=n + 2*i) for p in 'ABC' for i, d in enumerate(levels)]
        return named + [dict(line='x', perturbation='control', dose=0., n=n_controls)]
    files = dict(truth=cells('t', dosed(7, 24)), train=cells('a', dosed(6, 18, (.5, 2.))), mine=cells('m', dosed(5, 9)))
    return Scenario(files, [*BY_LINE, '--dose-key', 'dose', '--train', 'train.h5ad'], ['mine'])

def means():
    "Predictions of one row a condition."
    one = [g | dict(n=1) for g in groups(['x'], SINGLES[:7], 1, 0)]
    files = dict(truth=cells('t', groups(['x'], SINGLES[:7], 8, 16)),
                 train=cells('a', groups(['x'], SINGLES[2:10], 6, 16)),
                 near=cells('n', one), flat=cells('f', one, strength=.1))
    return Scenario(files, [*BY_LINE, '--predicted', 'means', '--train', 'train.h5ad'], ['near', 'flat'])

def tied(found):
    "Values that many cells of a gene share; each gene has its own, as rounding would break ties of the means of genes."
    return np.log1p(np.minimum(found, 4)*(1 + np.arange(len(GENES))/64))

def tiny():
    "Conditions of one row, controls of two cells, values with ties, models that predict nothing and that never vary."
    sizes = dict(A=1, B=2, C=3, D=4, E=9, g1=6, g2=1)
    def some(n, n_controls):
        named = [dict(line=l, perturbation=p, n=n(l, k)) for l, (p, k) in product('xyz', sizes.items())]
        return named + [dict(line=l, perturbation='control', n=k) for l, k in n_controls.items()]
    zero, constant = (cells(k, some(lambda l, n: n + 1, {}), tied) for k in 'zc')
    zero.X = sparse.csr_matrix(zero.shape, dtype=np.float32)
    constant.X = sparse.csr_matrix(np.repeat(constant.X[:1].toarray(), constant.n_obs, 0))
    single = cells('s', some(lambda l, n: 1, {}), tied)
    truth = cells('t', some(lambda l, n: n + (l == 'y')*n, dict(x=2, y=3, z=12)), tied)
    files = dict(truth=truth, zero=zero, constant=constant, single=single,
                 mine=cells('m', some(lambda l, n: 5, dict(x=5)), tied))
    return Scenario(files, BY_LINE, ['zero', 'constant', 'single', 'mine'])

def published():
    "Counts, the published protocol, gene sets, named targets, two names of controls, conditions that all have."
    lines = ['x', 'y']
    whole = dict(values=lambda found: found, depth=20.)
    truth = cells('t', groups(lines, [*SINGLES[:5], 'NT-1', 'NT-2'], 9, 0), **whole)
    files = dict(truth=truth, train=cells('a', groups(lines, [*SINGLES[2:7], 'NT-1'], 8, 0), **whole),
                 near=cells('n', groups(lines, SINGLES[:4], 7, 0), **whole),
                 far=cells('f', groups(lines, SINGLES[1:5], 6, 0), strength=.3, **whole))
    options = ['--control', 'NT-*', '--values', 'counts', '--protocol', 'perturbench', '--gene-sets', 'sets.gmt',
               '--targets', 'targets.csv', '--intersection', '--train', 'train.h5ad']
    return Scenario(files, [*BY_LINE, *options], ['near', 'far'])

def many_cells():
    "More cells than samples are drawn from, and models with fewer and more cells than were measured."
    names = ['A', 'B', 'C', 'g1']
    files = dict(truth=cells('t', groups(['x'], names, 620, 900)),
                 train=cells('a', groups(['x'], [*names, 'D'], 250, 300)),
                 less=cells('l', groups(['x'], names, 70, 40)),
                 more=cells('m', groups(['x'], names, 800, 0), strength=.9))
    return Scenario(files, [*BY_LINE, '--train', 'train.h5ad'], ['less', 'more'])

ALL = (two_lines, doubles, replicates, batches, doses, means, tiny, published, many_cells)
SCENARIOS = {f.__name__: f for f in ALL}

# Runs: baselines on several splits of one screen

GRID = """
tasks:
  - {name: states, screen: screen.h5ad, split: {kind: transfer, fraction: .5, seed: 1}}
  - {name: folds, screen: screen.h5ad, split: {kind: combination, folds: 3, seed: 2}}
  - {name: few, screen: screen.h5ad, split: {kind: few_shot, n: 1, cells: 3, seed: 4}}
models: [perturbed_mean, additive]
"""

def screen():
    "Counts of single and double perturbations in three lines."
    mine = groups('xyz', [*SINGLES[:2], *'ABCDE', *DOUBLES[:4]], 12, 40)
    return cells('r', mine, lambda found: found, depth=30.)

# What the commands write

TABLES = ('leaderboard.csv', 'comparisons.csv', 'strata.csv')
VOLATILE = ('task_id', 'run_id', # Hashes of bits
            'fit_seconds', 'predict_seconds', 'peak_memory')

def ran(*args):
    "A command that succeeds; what it prints is not shown."
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        assert main([str(a) for a in args]) == 0, args

def evaluated(name, folder):
    "The tables of a scenario, by name."
    files, options, models = SCENARIOS[name]()
    for k, adata in files.items(): adata.write_h5ad(folder/f'{k}.h5ad')
    (folder/'sets.gmt').write_text(f"one\t\t{chr(9).join(GENES[:9])}\ntwo\t\t{chr(9).join(GENES[5:25:2])}\n")
    (folder/'targets.csv').write_text('perturbation,gene\nA,g5\nA,g6\nB,g7\ng1,g1\ng2,g9\n')
    options = [folder/o if o.endswith(('.h5ad', '.gmt', '.csv')) else o for o in options]
    paths = [folder/f'{k}.h5ad' for k in models]
    ran('evaluate', folder/'truth.h5ad', *paths, '-o', folder/'out', '--perturbation-key', 'perturbation', *options)
    return tables(folder/'out', pd.read_parquet(folder/'out'/'scores.parquet'))

def run(name, folder):
    "The tables of a grid."
    screen().write_h5ad(folder/'raw.h5ad')
    (folder/'grid.yaml').write_text(GRID)
    ran('prepare', folder/'raw.h5ad', '--perturbation-key', 'perturbation', *BY_LINE, '-o', folder/'screen.h5ad')
    ran('run', folder/'grid.yaml', '-o', folder/'out')
    paths = sorted((folder/'out').glob('runs/*/*/*/scores.parquet'), key=lambda p: p.parts[-4:-2])
    return tables(folder/'out', pd.concat(map(pd.read_parquet, paths), ignore_index=True))

def tables(out, scores):
    "Scores and what is made of them, less what differs from one time to the next."
    found = {'scores': scores}
    for k in TABLES: found[Path(k).stem] = pd.read_csv(out/k, keep_default_na=False, na_values=[''])
    return {k: t.drop(columns=[c for c in VOLATILE if c in t]) for k, t in found.items()}

MADE = {k: evaluated for k in SCENARIOS} | {'run': run}

# Comparison

# All other columns of scores name the row
SCORED = ('value', 'value_half', 'n_true', 'n_pred', 'n_candidates', 'status', 'state', 'definitions', *WITHOUT)
KEYS = {'leaderboard': ['task', 'model', 'metric'], 'comparisons': ['task', 'metric', 'a', 'b'],
        'strata': ['task', 'model', 'metric', 'stratum', 'level']}

def keys_of(name, table):
    "The columns that name a row."
    return [c for c in table if c not in SCORED] if name == 'scores' else KEYS[name]

def texts(column): return column.astype(object).where(column.notna(), '').astype(str)

def apart(column, found, kept, metric, least=TOLERANCE):
    "Whether numbers differ by more than the tolerance of their column and metrics; missing is equal to missing."
    if column in ('p', 'p_holm'): least = max(least, P_TOLERANCE)
    tolerance = np.where(np.isin(metric, SINGLE), SINGLE_TOLERANCE, least)
    far = np.abs(found - kept) > tolerance*np.maximum(1, np.abs(kept))
    return far | (np.isnan(found) != np.isnan(kept))

def differences(name, found, kept, least=TOLERANCE):
    "A line for each row of `kept` that `found` lacks or has otherwise."
    keys = keys_of(name, kept)
    a, b = (t.set_index([texts(t[k]) for k in keys]).sort_index() for t in (found, kept))
    assert a.index.is_unique and b.index.is_unique, name
    if not a.index.equals(b.index):
        lost, new = (list(x.index.difference(y.index)[:5]) for x, y in ((b, a), (a, b)))
        return [f'{name}: {lost} are lost, {new} are new']
    lines = []
    for c in (c for c in kept if c not in keys):
        if pd.api.types.is_float_dtype(b[c]):
            differ = apart(c, a[c].to_numpy(float), b[c].to_numpy(float), b.metric, least)
        else:
            differ = (texts(a[c]) != texts(b[c])).to_numpy()
        changed = zip(b.index[differ], a[c][differ], b[c][differ])
        lines += [f'{name}: {row}: {c} is {x!r} and was {y!r}' for row, x, y in changed]
    return lines

def stored(scenario, name): return REFERENCE/f'{scenario}.{name}.parquet'

@pytest.mark.parametrize('scenario', MADE)
def test_values_are_those_that_were_kept(scenario, tmp_path, undrawn, monkeypatch):
    "Of pages and figures, which are not compared, those of two scenarios are made."
    if scenario not in ('tiny', 'run'):
        monkeypatch.setattr(leaderboard, 'page', lambda *args: '')
        monkeypatch.setattr(leaderboard, 'plot_board', lambda *args: Picture())
    lines, least = [], SINGLE_TOLERANCE if scenario in FROM_COUNTS else TOLERANCE
    for name, found in MADE[scenario](scenario, tmp_path).items():
        lines += differences(name, found, pd.read_parquet(stored(scenario, name)), least)
    assert not lines, '\n'.join([f'{len(lines)} differences', *lines[:20]])

def write(scenario):
    "Keep the tables of `scenario`."
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        for name, table in MADE[scenario](scenario, Path(folder)).items():
            table.to_parquet(stored(scenario, name), index=False, compression='zstd', compression_level=19)

if __name__ == '__main__':
    assert sys.argv[1:2] == ['--write'], __doc__
    for scenario in sys.argv[2:] or MADE: write(scenario)
