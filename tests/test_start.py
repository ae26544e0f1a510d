"What trains nothing imports neither Lightning, which takes seconds, nor PyTorch's compiler, Scanpy or what draws."
import json, os, subprocess, sys
import anndata as ad, numpy as np, pandas as pd, pytest
from conftest import ROOT

# Read by each Python that starts: it refuses to import what trains (the workers of a batch: test_results.py)
REFUSES = '''
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ('lightning', 'torch._dynamo'): raise AssertionError(f'{name} is imported')
sys.meta_path.insert(0, Refuse())
'''
# All is asked of one Python, since each takes seconds to start
SCRIPT = '''
import importlib, json, sys
import perturbench.bench.leaderboard, perturbench.bench.batch, perturbench.scoring.files
from perturbench.cli import main
found = {name: name in sys.modules for name in ('matplotlib', 'scanpy')}
import conftest
conftest.leave_undrawn()
for step, arguments in json.loads(sys.argv[1]).items():
    found[step] = main(arguments)
    conftest.score_quickly()  # once all metrics were asked for
for name in ('perturbench.trainer', 'torch._dynamo'):
    try: importlib.import_module(name)
    except AssertionError as e: found[name] = str(e)
with open('found.json', 'w') as file: json.dump(found, file)
'''
KEYS = ['--perturbation-key', 'what', '--covariate-keys', 'line', '--train', 'train.h5ad']
STEPS = {
    'evaluate': ['evaluate', 'truth.h5ad', 'mine.h5ad', *KEYS, '-o', 'scores'],
    'run': ['run', 'grid.yaml', '-o', 'out'],
    'report': ['report', 'out']}

def write_files(folder):
    "Write the files that the steps take: three of cells to evaluate, a screen and a grid on it."
    from perturbench.data.simulate import Parameters, simulate
    what = np.repeat(['control', 'a', 'b', 'c'], 12)
    obs = pd.DataFrame(dict(what=what, line='x'), index=[f'c{i}' for i in range(48)])
    for seed, name in enumerate(('truth.h5ad', 'mine.h5ad', 'train.h5ad')):
        values = np.log1p(np.random.default_rng(seed).poisson(3, (48, 30))*1.3).astype('f4')
        ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(30)])).write_h5ad(folder/name)
    par = Parameters(n_genes=60, n_perturbations=8, n_programmes=4, cells=12, controls=40, panel=1, library=2000)
    simulate(par, seed=1).screen.write(folder/'small.h5ad', name='small')
    (folder/'grid.yaml').write_text('tasks: [small.h5ad]\nmodels: [control_mean, additive]\nseeds: [0]\n')

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "What the script finds, in a folder of its own, where training cannot be imported."
    folder = tmp_path_factory.mktemp('start')
    (folder/'site').mkdir()
    (folder/'site'/'sitecustomize.py').write_text(REFUSES)
    write_files(folder)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(folder/'site'), str(ROOT), str(ROOT/'tests')]))
    command = [sys.executable, '-c', SCRIPT, json.dumps(STEPS)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    return json.loads((folder/'found.json').read_text()) | dict(said=said, runs=list(folder.glob('out/runs/*/*/*')))

def test_training_is_refused_here(found):
    "The tests below would see it."
    assert found['perturbench.trainer'] == 'lightning is imported'
    assert found['torch._dynamo'] == 'torch._dynamo is imported'

def test_the_rooms_of_scoring_start_without_what_trains_or_draws(found):
    assert not found['matplotlib'] and not found['scanpy']

def test_files_are_scored_without_what_trains(found): assert found['evaluate'] == 0, found['said']

def test_baselines_are_run_and_reported_without_what_trains(found):
    assert (found['run'], found['report']) == (0, 0), found['said']
    assert sorted(run.parent.name for run in found['runs']) == ['additive', 'control_mean']
