"""The command works where little is set.

Another locale, no home, nothing on standard input, a package that cannot be written, a folder of our name where it
starts."""
import os, shutil, subprocess, sys
import anndata as ad, numpy as np, pandas as pd, pytest
from conftest import ROOT

GRID = (
    'tasks: [{name: %s, screen: screen.h5ad, where: {line: [Zürich, K562]}, split: {kind: transfer, fraction: .5}}]\n'
    'models: [{name: control_mean, as: %s}]\n')

@pytest.fixture
def here(tmp_path):
    "A folder with counts, a grid and a table of conditions, whose names and labels are those of many countries."
    r = np.random.default_rng(0)
    what, line = np.tile(np.repeat(['control', 'Πα', 'Πβ', 'ген'], 40), 2), np.repeat(['K562', 'Zürich'], 160)
    obs = pd.DataFrame(dict(what=what, line=line), index=[f'ç{i}' for i in range(320)])
    genes = pd.DataFrame(index=[f'Gα{i}' for i in range(40)])
    ad.AnnData(r.poisson(3, (320, 40)).astype('f4'), obs=obs, var=genes).write_h5ad(tmp_path/'raw.h5ad')
    (tmp_path/'grid.yaml').write_text(GRID % ('mine', 'mean'), encoding='utf-8')
    (tmp_path/'greek.yaml').write_text(GRID % ('"δοκιμή"', '"μ"'), encoding='utf-8')
    (tmp_path/'asked.csv').write_text('perturbation,line\nΠα,Zürich\nген,K562\n', encoding='utf-8-sig')
    return tmp_path

STEPS = '''
import sys
from pathlib import Path
from perturbench.cli import main
here, grid, out = Path(sys.argv[1]), *sys.argv[2:]
def step(*args):
    if status := main([str(o) for o in args]): sys.exit(f'{args[0]} ended with {status}')
step('prepare', here/'raw.h5ad', '--perturbation-key', 'what', '--covariate-keys', 'line', '-o', here/'screen.h5ad')
if not grid: sys.exit()
sys.path.append(TESTS)
import conftest
conftest.score_quickly()
step('run', here/grid, '-o', here/out)
run, = (here/out/'runs').glob('*/*/*')
conftest.leave_undrawn()  # the figures of the report were drawn in the run
step('report', here/out)
step('predict', run, here/'asked.csv', '-o', here/'predicted.h5ad')
'''

# Greek names in a question and in the path
OPEN = '''
import shutil
from perturbench.tasks import load_task, open_task
screen, = here.glob("*_2.h5ad")
shutil.copy(here/"screen.h5ad", screen)
task = open_task(dict(screen=str(screen), name="\\u03b1", split=dict(kind="transfer")), here/out)
assert load_task(task.folder).name == "\\u03b1" and set(task.leaks().status) and task.picture()
'''

def steps(here, *args, python=(sys.executable,), cwd=None, more='', **options):
    "Prepare, and with a grid run, report and predict, and do `more`, in a process of its own."
    command = [*python, '-c', STEPS.replace('TESTS', repr(str(ROOT/'tests'))) + more, str(here), *args]
    options |= dict(capture_output=True, text=True, encoding='utf-8', errors='replace')
    done = subprocess.run(command, cwd=cwd or here, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    assert set(ad.read_h5ad(here/'screen.h5ad').obs.what) == {'control', 'Πα', 'Πβ', 'ген'}
    if not args[0]: return
    predicted = ad.read_h5ad(here/'predicted.h5ad')
    assert set(predicted.obs.perturbation) == {'Πα', 'ген'} and set(predicted.obs.line) == {'Zürich', 'K562'}

PLAIN = dict(LC_ALL='C', LANG='C', PYTHONIOENCODING='ascii', PYTHONCOERCECLOCALE='0')

def test_names_of_many_countries_in_the_plainest_locale(here):
    steps(here, 'greek.yaml', 'aus_ö', env={k: v for k, v in os.environ.items() if k != 'PYTHONUTF8'} | PLAIN)
    assert (here/'aus_ö'/'runs'/'δοκιμή'/'μ').is_dir()
    assert 'μ' in (here/'aus_ö'/'leaderboard.csv').read_text(encoding='utf-8')

def test_nothing_is_set_texts_are_ascii_and_nobody_types(here):
    """No home, no place for settings or temporary files, standard input closed, a folder of our name where it starts.

    A task with Greek names is opened there, too."""
    source, no_caches = ROOT/'perturbench', shutil.ignore_patterns('__pycache__')
    shutil.copytree(source, here/'start'/'perturbench'/'perturbench', ignore=no_caches)
    kept = {k: v for k, v in os.environ.items() if k in ('PATH', 'OMP_NUM_THREADS', 'NUMBA_NUM_THREADS')}
    env = kept | PLAIN | dict(PYTHONUTF8='0')
    (here/'δοκιμή_2.h5ad').touch()
    steps(here, 'grid.yaml', 'out', env=env, cwd=here/'start', more=OPEN, preexec_fn=lambda: os.close(0))

def test_a_package_that_cannot_be_written_and_no_home(here):
    shutil.copytree(ROOT/'perturbench', here/'site'/'perturbench', ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run(['chmod', '-R', 'a-w', here/'site'], check=True)
    allowed = '--bounding-set=-dac_override,-dac_read_search', '--inh-caps=-dac_override,-dac_read_search'
    if os.getuid() == 0 and not shutil.which('setpriv'): pytest.skip('root writes everywhere')
    less = ['setpriv', *allowed] if os.getuid() == 0 else []
    env = {k: v for k, v in os.environ.items() if k not in ('NUMBA_CACHE_DIR', 'XDG_CACHE_HOME', 'MPLCONFIGDIR')}
    try:
        env |= dict(HOME='/proc/none', PYTHONPATH=str(here/'site'))
        steps(here, '', '', python=[*less, sys.executable], env=env)
    finally: subprocess.run(['chmod', '-R', 'u+w', here/'site'], check=True)
