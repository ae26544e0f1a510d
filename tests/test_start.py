"What trains nothing imports neither Lightning, which takes seconds, nor the compiler of PyTorch, nor what only draws."
import os, subprocess, sys
import anndata as ad, numpy as np, pandas as pd, pytest
from conftest import ROOT

# Read by each Python that starts, workers too: it refuses to import what trains
REFUSES = '''
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ('lightning', 'torch._dynamo'): raise AssertionError(f'{name} is imported')
sys.meta_path.insert(0, Refuse())
'''
COMMAND = 'import sys; from perturbench.cli import main; sys.exit(main(sys.argv[1:]))'

@pytest.fixture
def python(tmp_path):
    "Runs code, in a folder of its own, where training cannot be imported."
    (tmp_path/'site').mkdir()
    (tmp_path/'site'/'sitecustomize.py').write_text(REFUSES)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path/'site'), str(ROOT)]))
    def run(code, *args):
        command = [sys.executable, '-c', code, *args]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    return run

def succeeds(done): assert done.returncode == 0, done.stdout + done.stderr

def test_training_is_refused_here(python):
    "The tests below would see it."
    for name in ('perturbench.trainer', 'torch._dynamo'):
        assert 'is imported' in python(f'import {name}').stderr

def test_the_rooms_of_scoring_start_without_what_trains_or_draws(python):
    done = python(
        'import perturbench.bench.leaderboard, perturbench.bench.batch, perturbench.scoring.files, perturbench.cli\n'
        'import sys\n'
        'print("matplotlib" in sys.modules)')
    succeeds(done)
    assert done.stdout == 'False\n'

def test_files_are_scored_without_what_trains(python, tmp_path):
    what = np.repeat(['control', 'a', 'b', 'c'], 12)
    obs = pd.DataFrame(dict(what=what, line='x'), index=[f'c{i}' for i in range(48)])
    for seed, name in enumerate(('truth.h5ad', 'mine.h5ad', 'train.h5ad')):
        values = np.log1p(np.random.default_rng(seed).poisson(3, (48, 30))*1.3).astype('f4')
        ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(30)])).write_h5ad(tmp_path/name)
    keys = ['--perturbation-key', 'what', '--covariate-keys', 'line', '--train', 'train.h5ad']
    succeeds(python(COMMAND, 'evaluate', 'truth.h5ad', 'mine.h5ad', *keys, '-o', 'scores'))

@pytest.mark.parametrize('jobs', [1, 2])
def test_baselines_are_run_and_reported_without_what_trains(python, tmp_path, jobs):
    (tmp_path/'grid.yaml').write_text('tasks: [sim-transfer]\nmodels: [control_mean, additive]\nseeds: [0]\n')
    succeeds(python(COMMAND, 'run', 'grid.yaml', '-o', 'out', '--jobs', str(jobs)))
    succeeds(python(COMMAND, 'report', 'out'))
    assert len(list(tmp_path.glob('out/runs/*/*/*/run.json'))) == 2
