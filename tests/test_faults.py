"Wrong input: each is one message that names the fault and the remedy, status 2, and nothing half-written."
import subprocess, sys
from pathlib import Path
import anndata as ad, numpy as np, pandas as pd, pytest
from perturbench.cli import main

KEYS = ['--perturbation-key', 'condition', '--covariate-keys', 'line']

def toy(counts=False, n=12, lines=('A', 'B', 'C'), perturbations=('control', 'p1', 'p2', 'p3', 'p4')):
    "A small screen, log-normalised or as counts."
    rows = [(l, p) for l in lines for p in perturbations for _ in range(n)]
    obs = pd.DataFrame(rows, columns=['line', 'condition'], index=[f'c{i}' for i in range(len(rows))])
    X = np.random.default_rng(0).poisson(2., (len(rows), 40)).astype(np.float32)
    return ad.AnnData(X if counts else np.log1p(X * 1.3), obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(40)]))

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def refused(capsys, *args, says=(), leaves=()):
    "Run a command that has to be refused; return its message."
    before = set(Path('.').rglob('*'))
    assert main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert 'Traceback' not in err and err.startswith('perturbench: ')
    for s in says: assert s in err, err
    new = {p for p in set(Path('.').rglob('*')) - before if p.is_file() and p.name != '.lock'}
    assert new == set(map(Path, leaves)), f'left behind: {new}'
    return err

def write(adata, path): adata.write_h5ad(path); return path

def test_prepare_names_a_control_that_is_not_there(at, capsys):
    write(toy(counts=True), 'a.h5ad')
    says = ["no cell is called 'ctrl' in 'condition'; did you mean 'control'?"]
    refused(capsys, 'prepare', 'a.h5ad', *KEYS, '--control', 'ctrl', '-o', 'b.h5ad', says=says)

def spoil(kind):
    "A screen of counts with one fault."
    a = toy(counts=True)
    if kind == 'missing values': a.obs.loc['c3', 'line'] = None
    if kind == 'state without controls': a = a[~((a.obs.line == 'B') & (a.obs.condition == 'control'))].copy()
    if kind == 'repeated genes': a.var_names = ['g0'] * a.n_vars
    if kind == 'repeated cells': a.obs_names = ['c0'] * a.n_obs
    if kind == 'NaN': a.X[3, 4] = np.nan
    if kind == 'infinite': a.X[3, 4] = np.inf
    if kind == 'negative': a.X[3, 4] = -1
    if kind == 'lognorm as counts': a.X = np.log1p(a.X * 1.3)
    return a

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind, says', [
    ('missing values', ["'line' has no value in 1 of 180 cells"]),
    ('state without controls', ['these states have no control cells: B']),
    ('repeated genes', ['gene names occur more than once']),
    ('repeated cells', ['cell names occur more than once']),
    ('NaN', ['NaN or infinite']),
    ('infinite', ['NaN or infinite']),
    ('negative', ['negative']),
    ('lognorm as counts', ['--values lognorm']),
])
def test_prepare_refuses(at, capsys, kind, says):
    write(spoil(kind), 'a.h5ad')
    refused(capsys, 'prepare', 'a.h5ad', *KEYS, '-o', 'b.h5ad', says=says)

def test_prepare_refuses_counts_called_lognorm(at, capsys):
    write(toy(counts=True), 'a.h5ad')
    refused(capsys, 'prepare', 'a.h5ad', *KEYS, '--values', 'lognorm', '-o', 'b.h5ad', says=['raw counts'])

def test_prepare_reports_all_faults_at_once(at, capsys):
    a = toy(counts=True)
    a.X[0, 0], a.obs['model'] = np.nan, 'x'
    write(a, 'a.h5ad')
    refused(capsys, 'prepare', 'a.h5ad', *KEYS, '--covariate-keys', 'model', '--covariate-keys', 'lien', '-o', 'b.h5ad',
            says=['NaN', "'lien' is not a column of obs; did you mean 'line'?", '`perturbench check a.h5ad` shows'])

@pytest.mark.parametrize('name, content, says', [
    ('nowhere.h5ad', None, 'does not exist'),
    ('text.h5ad', b'cell,gene\n', 'cannot be read as h5ad'),
    ('half.h5ad', 'half', 'cannot be read as h5ad')])
def test_files_that_are_no_h5ad(at, capsys, name, content, says):
    if content == 'half':
        write(toy(), 'whole.h5ad')
        content = Path('whole.h5ad').read_bytes()[:20000]
    if content is not None: Path(name).write_bytes(content)
    refused(capsys, 'prepare', name, *KEYS, '-o', 'b.h5ad', says=[says])
    refused(capsys, 'evaluate', name, name, *KEYS, '-o', 'out', says=[says])
    Path('grid.yaml').write_text(f'tasks: [{name}]\nmodels: [control_mean]\n')
    refused(capsys, 'run', 'grid.yaml', '-o', 'out', says=['is neither a file' if content is None else says])

def with_a_gene(a):
    extra = ad.AnnData(np.ones((a.n_obs, 1), np.float32), obs=a.obs, var=pd.DataFrame(index=['extra']))
    return ad.concat([a, extra], axis=1, merge='same')

@pytest.mark.parametrize('change, says', [
    (lambda a: a[:, :30], ['g30']),
    (with_a_gene, ['extra']),
    (lambda a: a[a.obs.condition != 'control'].copy(), None)], ids=['missing genes', 'extra genes', 'fine'])
def test_evaluate_aligns_genes_by_name_or_refuses(at, undrawn, capsys, change, says):
    write(toy(), 'truth.h5ad'); write(change(toy()), 'pred.h5ad')
    if says: refused(capsys, 'evaluate', 'truth.h5ad', 'pred.h5ad', *KEYS, '-o', 'out', says=says)
    else: assert main(['evaluate', 'truth.h5ad', 'pred.h5ad', *KEYS, '--profile', 'quick', '-o', 'out']) == 0

def test_evaluate_refuses_conditions_that_are_not_in_the_truth(at, capsys):
    write(toy(), 'truth.h5ad'); write(toy(perturbations=('control', 'p1', 'p9')), 'pred.h5ad')
    refused(capsys, 'evaluate', 'truth.h5ad', 'pred.h5ad', *KEYS, '-o', 'out', says=['p9'])

def test_evaluate_refuses_counts_and_a_missing_column(at, capsys):
    write(toy(), 'truth.h5ad'); write(toy(counts=True), 'pred.h5ad')
    refused(capsys, 'evaluate', 'truth.h5ad', 'pred.h5ad', *KEYS, '-o', 'out', says=['raw counts'])
    files, says = ['truth.h5ad', 'truth.h5ad'], ["did you mean 'condition'?"]
    refused(capsys, 'evaluate', *files, '--perturbation-key', 'conditoin', '-o', 'out', says=says)

GRID = 'tasks: [sim-transfer]\nmodels: [control_mean]\n'

@pytest.mark.parametrize('grid, says', [
    (GRID.replace('control_mean', 'control_maen'), "did you mean 'control_mean'?"),
    (GRID.replace('sim-transfer', 'sim-tranfer'), "did you mean 'sim-transfer'?"),
    (GRID + 'sedes: [0]\n', "did you mean 'seeds'?"),
    ('tasks: [sim-transfer\nmodels: [control_mean]\n', 'not valid YAML at line'),
    (GRID.replace('[sim-transfer]', '[sim-transfer, sim-transfer]'), "the task 'sim-transfer' occurs 2 times"),
    (GRID.replace('[control_mean]', '[control_mean, {name: additive, as: control_mean}]'),
     "the model label 'control_mean' occurs 2 times"),
    (GRID.replace('[control_mean]', '[{name: linear, rate: 1}]'), 'rate'),
    (GRID + 'budget: quik\n', "did you mean 'quick'?"),
    (GRID + 'protocol: perturbnech\n', "did you mean 'perturbench'?"),
    (GRID + 'seeds: [one]\n', "the seed 'one' is not a whole number"),
    ('just text\n', 'a grid is a mapping'),
    (GRID.replace('[sim-transfer]', '[3]'), 'a task is a name'),
    (GRID.replace('[sim-transfer]', '[{screen: sim-transfer, genes: {hgv: 3}}]'), "did you mean 'hvg'?"),
    (GRID.replace('[sim-transfer]', '[{screen: sim-transfer, genes: {hvg: x}}]'), 'a whole number'),
    (GRID.replace('[sim-transfer]', '[{screen: sim-transfer, genes: {hvg: -1}}]'), 'a whole number'),
    (GRID.replace('[sim-transfer]', '[{screen: sim-transfer, split: {kind: [a]}}]'), 'a split is a recipe'),
    (GRID + 'budget: {max_epochs: true}\n', 'a whole number')])
def test_run_refuses_a_grid(at, capsys, grid, says):
    Path('grid.yaml').write_text(grid)
    refused(capsys, 'run', 'grid.yaml', '-o', 'out', says=[says])

def test_run_refuses_a_folder_that_cannot_be_written(at, capsys):
    Path('grid.yaml').write_text(GRID)
    Path('out').write_text('a file stands where the folder should be')
    refused(capsys, 'run', 'grid.yaml', '-o', 'out', says=['cannot be written'])
    refused(capsys, 'run', 'grid.yaml', '-o', '/proc/perturbench', says=['cannot be written'])

def test_a_split_that_leaves_nothing_to_test_says_what_would_work(at, capsys):
    write(toy(counts=True, perturbations=('control', 'drug')), 'a.h5ad')
    assert main(['prepare', 'a.h5ad', *KEYS, '-o', 'drug.h5ad']) == 0
    capsys.readouterr()
    task = '{screen: drug.h5ad, split: {kind: transfer, fraction: .3}}'
    Path('grid.yaml').write_text(f'tasks: [{task}]\nmodels: [control_mean]\n')
    refused(capsys, 'run', 'grid.yaml', '-o', 'out', says=['folds'])

@pytest.mark.parametrize('args', [
    ['run', '--frobnicate'],
    ['frobnicate'],
    ['run', '-o', 'out', '--jobs', '0'],
    ['run', '-o', 'out', '--backend', 'lokky']])
def test_wrong_options(at, capsys, args):
    refused(capsys, *args)

def test_a_metric_that_is_not_known():
    from perturbench.core import InputError
    from perturbench.scoring.profiles import score
    from perturbench.metrics.effects import Profiles
    x = np.zeros((2, 3))
    with pytest.raises(InputError, match="did you mean 'rmse_average'"):
        score(Profiles(x, x), Profiles(x, x), np.zeros(2, int), metrics=['rmse_avrage'])

def test_no_traceback_from_a_shell(at):
    command = [Path(sys.executable).parent/'perturbench', 'check', 'nowhere.h5ad']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr and 'nowhere' in done.stderr
