"Batches of runs: whatever is killed, interrupted or broken, the same command ends with the same files."
import json, multiprocessing, multiprocessing.util, os, shutil, signal, sys, time
from pathlib import Path
import nbformat, pandas as pd, pytest
from conftest import leave_undrawn, score_quickly
from perturbench.bench.workers import end_workers
from perturbench.core import part_name

MODELS = ['control_mean', 'perturbed_mean', 'linear', 'latent_additive']
BUDGET = '{max_epochs: 3, batch_size: 64}'

# Each command runs in a process of its own, forked from one that has the imports behind it, and in its own group.
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload([
    'pytest', 'perturbench.bench.batch', 'perturbench.bench.leaderboard', 'perturbench.trainer', 'papermill',
    'matplotlib.pyplot', 'IPython'])

def command(args, folder, log, prepare, draw):
    os.setsid()
    os.chdir(folder)
    for stream in (1, 2): os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (os.fdopen(fd, 'w', buffering=1, closefd=False) for fd in (1, 2))
    if not draw: leave_undrawn()
    score_quickly()
    if prepare: prepare()
    from perturbench.cli import main
    sys.exit(main(args))

def keep_each_epoch():
    import perturbench.train
    *first, _, watch = perturbench.train.fit.__defaults__
    perturbench.train.fit.__defaults__ = (*first, 0., watch)

def fork_workers():
    "Workers that fork take no seconds to import; the process that starts them is as warm as they need."
    from joblib.externals.loky.backend.context import set_start_method
    set_start_method('fork')
    multiprocessing.util.Finalize(None, end_workers, exitpriority=100)  # such a process has no other exit of its own

class Command:
    "`perturbench` with `args`, started in `folder`."
    def __init__(self, folder, *args, prepare=None, draw=False):
        self.log = folder/f'log{len(list(folder.glob("log*")))}'
        words = [str(a) for a in args]
        self.process = FORKS.Process(target=command, args=(words, str(folder), str(self.log), prepare, draw))
        self.process.start()

    @property
    def text(self): return self.log.read_text()

    def status(self, timeout=240):
        self.process.join(timeout)
        assert not self.process.is_alive(), self.text
        return self.process.exitcode

    def until(self, condition, timeout=60):
        "Wait for `condition`, which has to come while the command runs."
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.text
            time.sleep(.005)

    def send(self, number, group=True): (os.killpg if group else os.kill)(self.process.pid, number)

    def is_gone(self, timeout=20):
        "Whether nothing of the process group is left."
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try: self.send(0)
            except ProcessLookupError: return True
            time.sleep(.02)
        return False

@pytest.fixture
def start(place):
    started = []
    def _start(*args, **kw):
        started.append(Command(place, *args, **kw))
        return started[-1]
    yield _start
    for c in started:
        try: c.send(signal.SIGKILL)
        except ProcessLookupError: pass

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a small screen and a grid on it."
    from perturbench.data.simulate import Parameters, simulate
    folder = tmp_path_factory.mktemp('batch')
    par = Parameters(n_genes=120, n_perturbations=12, n_programmes=6, cells=16, controls=48, panel=1, library=2000)
    simulate(par, seed=1).screen.write(folder/'small.h5ad', name='small')
    write_grid(folder/'grid.yaml')
    return folder

@pytest.fixture(scope='module')
def undisturbed(place):
    "The results of the grid, one run at a time."
    done = Command(place, 'run', 'grid.yaml', '-o', 'undisturbed', draw=True)
    assert done.status() == 0, done.text
    return place/'undisturbed'

@pytest.fixture
def out(place, undisturbed, request):
    "A folder of results in which the task is opened already."
    folder = place/request.node.name
    shutil.copytree(undisturbed/'tasks', folder/'tasks')
    return folder

def write_grid(path, models=MODELS, tasks='[small.h5ad]', budget=BUDGET):
    path.write_text(f"tasks: {tasks}\nmodels: [{', '.join(models)}]\nbudget: {budget}\n", encoding='utf-8')

def runs(out): return sorted(out.glob('runs/*/*/[!.]*/run.json'))
def scores(out): return {str(p.relative_to(out)): p.read_bytes() for p in out.glob('runs/*/*/[!.]*/scores.parquet')}

def board(out):
    "The leaderboard as it is written, less the columns that a clock decides."
    table = pd.read_csv(out/'leaderboard.csv', dtype=str, keep_default_na=False)
    return table.loc[:, [not c.endswith(('_seconds', '_memory')) for c in table]].to_csv()

def leftovers(out): return [p for p in out.rglob('.*') if p != out/'.lock'] + list(out.glob('checkpoints/*'))
def left_by(command, path):
    "A part of `path` as `command`, which has ended, would leave it when it is killed."
    name = part_name(path).name
    return path.with_name(name.replace(f'-{os.getpid()}-', f'-{command.process.pid}-'))

def state(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob('*')}

def assert_undisturbed(out, undisturbed):
    assert scores(out) == scores(undisturbed)
    assert board(out) == board(undisturbed)
    assert leftovers(out) == []

def test_a_second_start_does_only_what_is_missing(start, undisturbed):
    first, expected = scores(undisturbed), board(undisturbed)
    assert len(first) == len(MODELS) and leftovers(undisturbed) == []
    gone, *kept = runs(undisturbed)
    when = {p: p.stat().st_mtime_ns for p in kept}
    shutil.rmtree(gone.parent)
    (undisturbed/'leaderboard.csv').unlink()
    again = start('run', 'grid.yaml', '-o', 'undisturbed')
    assert again.status() == 0 and '1 runs done, 3 were done before, 0 failed' in again.text
    assert {p: p.stat().st_mtime_ns for p in kept} == when
    assert scores(undisturbed) == first and board(undisturbed) == expected
    for p in (undisturbed/'leaderboard.csv', undisturbed/'figures'/'small.png', gone.parent): left_by(again, p).touch()
    foreign = [undisturbed/'.leaderboard.0123abcd.csv', undisturbed/'figures'/'.small.0123abcd.png']
    for p in foreign: p.touch()
    again = start('run', 'grid.yaml', '-o', 'undisturbed')
    assert again.status() == 0 and '0 runs done, 4 were done before, 0 failed' in again.text
    assert scores(undisturbed) == first and board(undisturbed) == expected
    assert sorted(leftovers(undisturbed)) == sorted(foreign)
    for p in foreign: p.unlink()

def test_a_dry_run_writes_nothing(start, place, undisturbed):
    before = state(undisturbed)
    dry = start('run', 'grid.yaml', '-o', 'undisturbed', '--dry-run')
    assert dry.status() == 0 and dry.text.count(' done') == len(MODELS)
    assert state(undisturbed) == before
    dry = start('run', 'grid.yaml', '-o', 'nowhere', '--dry-run')
    assert dry.status() == 0 and dry.text.count(' to do') == len(MODELS)
    assert not (place/'nowhere').exists()

def test_the_notebook_of_a_run_shows_it(undisturbed):
    shown = {}
    for model in ('latent_additive', 'control_mean'):
        path, = undisturbed.glob(f'runs/*/{model}/*/notebook.ipynb')
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']
        outputs = [(c.source, o) for c in cells for o in c.outputs]
        assert all(o.output_type != 'error' for _, o in outputs)
        asked = ('picture()', 'plot_history', "scores.groupby('metric'", 'plot_conditions')
        shown[model] = {k: [o.data for s, o in outputs if k in s and 'data' in o] for k in asked}
    for k in ('picture()', 'plot_history', 'plot_conditions'):
        assert len(shown['latent_additive'][k][-1]['image/png']) > 1000, k
    assert 'rmse_average' in shown['latent_additive']["scores.groupby('metric'"][0]['text/plain']
    assert 'closed form' in shown['control_mean']['plot_history'][-1]['text/plain']

DEADLY = '''
import os, signal, time
from pathlib import Path
from perturbench.models.baselines import ControlMean

def wait_for(name):
    end = time.monotonic() + 60
    while not Path(name).exists() and time.monotonic() < end: time.sleep(.01)

class Bystander(ControlMean):
    "Is at work when `Deadly` ends."
    def predict(self, batch):
        Path('bystander').touch()
        wait_for('deadly')
        return super().predict(batch)

class Deadly(ControlMean):
    "Kills the process it runs in, not before `Bystander` is at work."
    def predict(self, batch):
        wait_for('bystander')
        Path('deadly').touch()
        os.kill(os.getpid(), signal.SIGKILL)
'''

def test_two_jobs_give_the_same_bits_and_survive_a_killed_worker(start, place, out, undisturbed, undrawn):
    from perturbench.bench.leaderboard import write_report
    (place/'deadly.py').write_text(DEADLY)
    write_grid(place/'deadly.yaml', [*MODELS, 'deadly:Bystander', 'deadly:Deadly'])
    run = start('run', 'deadly.yaml', '-o', out.name, '--jobs', 2, prepare=fork_workers)
    assert run.status() == 1
    assert 'Traceback' not in run.text and '5 runs done, 0 were done before, 1 failed' in run.text
    log, = out.glob('failed/small/Deadly/*/log')
    assert 'worker process was killed' in log.read_text()
    assert f'failed: small / Deadly / seed 0: see {log.relative_to(place)}' in run.text
    assert 'failed: small / Bystander' not in run.text
    assert run.text.count('lost: ') == run.text.count('lost: small / Deadly') == 1
    got = scores(out)
    assert {k: got[k] for k in scores(undisturbed)} == scores(undisturbed)
    assert leftovers(out) == []
    assert set(pd.read_csv(out/'leaderboard.csv').model) == {*MODELS, 'Bystander'}
    write_report(out, [p.parent.name for p in runs(undisturbed)])
    assert board(out) == board(undisturbed)

BROKEN = '''
from perturbench.models.baselines import ControlMean
class Broken(ControlMean):
    def predict(self, batch): raise RuntimeError('a fault of this model')
'''

def test_a_run_that_fails_is_reported_and_done_when_it_is_mended(start, place, out):
    (place/'mine.py').write_text(BROKEN)
    write_grid(place/'mine.yaml', ['control_mean', 'mine:Broken', 'perturbed_mean'])
    run = start('run', 'mine.yaml', '-o', out.name)
    assert run.status() == 1 and '2 runs done, 0 were done before, 1 failed' in run.text
    log, = out.glob('failed/small/Broken/*/log')
    assert f'failed: small / Broken / seed 0: see {log.relative_to(place)}' in run.text
    assert 'Traceback' in log.read_text() and 'RuntimeError: a fault of this model' in log.read_text()
    notebook = nbformat.read(log.with_name('notebook.ipynb'), as_version=4)
    assert 'error' in [o.output_type for c in notebook.cells for o in c.get('outputs', [])]
    assert set(pd.read_csv(out/'leaderboard.csv').model) == {'control_mean', 'perturbed_mean'}
    mended = BROKEN.replace("raise RuntimeError('a fault of this model')", 'return super().predict(batch)')
    (place/'mine.py').write_text(mended)
    run = start('run', 'mine.yaml', '-o', out.name)
    assert run.status() == 0 and '1 runs done, 2 were done before, 0 failed' in run.text
    assert set(pd.read_csv(out/'leaderboard.csv').model) == {'control_mean', 'perturbed_mean', 'Broken'}
    assert not (out/'failed').exists() and leftovers(out) == []

def test_killed_at_one_moment_after_another_it_ends_as_if_undisturbed(start, place, undisturbed):
    out = place/'killed'
    moments = {'a task is being opened': lambda: list(out.glob('tasks/.*')),
               'a run has begun': lambda: list(out.glob('runs/*/*/.*/notebook.ipynb')),
               'a run is whole': lambda: len(runs(out)) == 1,
               'a training has a checkpoint': lambda: list(out.glob('checkpoints/*/*/last.ckpt')),
               'another training has one': lambda: len(runs(out)) == 3 and list(out.glob('checkpoints/*/*/last.ckpt'))}
    for moment, condition in moments.items():
        run = start('run', 'grid.yaml', '-o', 'killed', prepare=keep_each_epoch)
        run.until(condition)
        run.send(signal.SIGKILL)
        assert run.status() == -signal.SIGKILL, moment
        assert len(runs(out)) < len(MODELS), moment
    run = start('run', 'grid.yaml', '-o', 'killed')
    assert run.status() == 0, run.text
    assert_undisturbed(out, undisturbed)

def test_workers_end_with_the_process_that_started_them(start, out):
    run = start('run', 'grid.yaml', '-o', out.name, '--jobs', 2, prepare=fork_workers)
    run.until(lambda: list(out.glob('runs/*/*/.*/notebook.ipynb')))
    run.send(signal.SIGKILL, group=False)
    assert run.status() == -signal.SIGKILL
    assert run.is_gone()

def interrupted(run):
    "Whether `run` ended as it should at control-C."
    assert run.status() == 130, run.text
    assert 'interrupted; what was finished is kept' in run.text and 'Traceback' not in run.text, run.text
    return run.is_gone()

def test_control_c_in_a_training_keeps_what_is_finished(start, out, undisturbed):
    run = start('run', 'grid.yaml', '-o', out.name, prepare=keep_each_epoch)
    run.until(lambda: list(out.glob('checkpoints/*/*/last.ckpt')))
    kept = {p: p.stat().st_mtime_ns for p in runs(out)}
    assert len(kept) >= 2
    run.send(signal.SIGINT, group=False)
    assert interrupted(run)
    assert list(out.glob('runs/*/*/.*')) == []
    run = start('run', 'grid.yaml', '-o', out.name)
    assert run.status() == 0, run.text
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert_undisturbed(out, undisturbed)

def test_an_impatient_control_c(start, out):
    run = start('run', 'grid.yaml', '-o', out.name, '--jobs', 2, prepare=fork_workers)
    run.until(lambda: list(out.glob('runs/*/*/.*/notebook.ipynb')))
    while run.process.is_alive() and 'interrupted' not in run.text:
        run.send(signal.SIGINT)
        run.process.join(.02)
    assert interrupted(run)
    assert list(out.glob('runs/*/*/.*')) == [] and 'leaked' not in run.text, run.text

def test_control_c_at_a_terminal_keeps_what_workers_have_finished(start, out):
    run = start('run', 'grid.yaml', '-o', out.name, '--jobs', 2, prepare=fork_workers)
    run.until(lambda: runs(out))
    run.send(signal.SIGINT)
    assert interrupted(run)
    assert 1 <= len(runs(out)) < len(MODELS)
    assert list(out.glob('runs/*/*/.*')) == []
    for p in runs(out):
        files = {f.name for f in p.parent.iterdir()}
        assert files == {'run.json', 'scores.parquet', 'genes.parquet', 'notebook.ipynb', 'model.ckpt', 'log'}

def importing(group):
    "The workers of a process group that have got as far as to import numpy."
    def counts(p):
        try:
            if os.getpgid(int(p.name)) != group: return False
            return 'LokyProcess' in (p/'cmdline').read_text() and 'numpy' in (p/'maps').read_text()
        except OSError: return False
    return [p.name for p in Path('/proc').glob('[0-9]*') if counts(p)]

@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='looks into /proc')
@pytest.mark.parametrize('group', [True, False], ids=['terminal', 'process'])
def test_control_c_while_workers_start(start, out, group):
    run = start('run', 'grid.yaml', '-o', out.name, '--jobs', 2)
    run.until(lambda: importing(run.process.pid))
    run.send(signal.SIGINT, group)
    assert interrupted(run)
    assert runs(out) == [] and list(out.glob('runs/*/*/.*')) == []

def test_a_kernel_of_its_own_gives_the_same_scores(start, place, undisturbed):
    write_grid(place/'mean.yaml', ['control_mean'])
    out = place/"a kernel's {0} {x}"
    shutil.copytree(undisturbed/'tasks', out/'tasks')
    run = start('run', 'mean.yaml', '-o', out.name, '--isolate')
    assert run.status() == 0, run.text
    name, = scores(out)
    found, expected = pd.read_parquet(out/name), pd.read_parquet(undisturbed/name)  # of all metrics, and of some
    by = ['perturbation', 'cell_type', 'metric']
    found, expected = (t.sort_values(by, ignore_index=True) for t in (found, expected))
    some = found[found.metric.isin(expected.metric)].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected, check_exact=True)

def test_scores_of_different_questions_never_meet(start, place):
    out = place/'questions'
    def ask(name, seed, budget):
        "The leaderboard, which has to be of the run that is new and of no other."
        split = f'{{kind: transfer, fraction: .3, seed: {seed}}}'
        write_grid(place/name, ['control_mean'], f'[{{name: mine, screen: small.h5ad, split: {split}}}]', budget)
        before, run = set(runs(out)), start('run', name, '-o', out.name)
        assert run.status() == 0, run.text
        new, = set(runs(out)) - before
        table, about = pd.read_csv(out/'leaderboard.csv', float_precision='round_trip'), json.loads(new.read_text())
        assert set(table.task_id) == {about['task_id']} and set(table.n_seeds) == {1}
        assert set(table.fit_seconds) == {about['fit_seconds']}
        return about
    first, other_split = ask('a.yaml', 1, BUDGET), ask('b.yaml', 2, BUDGET)
    assert first['task_id'] != other_split['task_id']
    report = start('report', out.name)
    assert report.status() == 2 and 'cannot be compared' in report.text
    other_budget = ask('c.yaml', 2, '{max_epochs: 1, batch_size: 64}')
    assert other_budget['task_id'] == other_split['task_id'] and len(runs(out)) == 3

def test_names_with_spaces_and_unicode(start, place, out):
    task, label = 'Übung 1, α+β_γ', 'naïve Mittel «ε»'
    models = [f'{{name: control_mean, as: {label}}}']
    write_grid(place/'names.yaml', models, f"[{{name: '{task}', screen: small.h5ad}}]")
    run = start('run', 'names.yaml', '-o', out.name, draw=True)
    assert run.status() == 0, run.text
    table = pd.read_csv(out/'leaderboard.csv')
    assert set(table.task) == {task} and set(table.model) == {label}
    page = (out/'leaderboard.html').read_text(encoding='utf-8')
    assert task in page and label in page and label in run.text
    assert len(list((out/'figures').glob('*.png'))) == 1 and (out/'runs'/task/label).is_dir()

def test_a_search_that_is_killed_again_and_again(start, out, place):
    "Killed at any moment, with its workers; the last start ends with the trials and the board of an undisturbed one."
    grid = place/'search.yaml'
    write_grid(grid, ['{name: latent_additive, encoder_width: 16, latent_dim: 8, n_layers: 1}'])
    with grid.open('a') as file: file.write('tune: {trials: 6, objective: rmse_average}\n')
    def trials(folder):
        return pd.read_csv(next(folder.glob('tuning/*/*/trials.csv'))).drop(columns='seconds').to_csv()
    calm = place/'calm_search'
    shutil.copytree(out/'tasks', calm/'tasks')
    first = start('run', grid, '-o', calm)
    assert first.status() == 0, first.text
    for n in (1, 3, 5, 8):
        killed = start('run', grid, '-o', out, '--jobs', 2, prepare=fork_workers)
        killed.until(lambda: len(list(out.glob('tuning/*/*/*/*.json'))) >= n)
        killed.send(signal.SIGKILL)
        assert killed.is_gone()
    last = start('run', grid, '-o', out, '--jobs', 2, prepare=fork_workers)
    assert last.status() == 0, last.text
    assert trials(out) == trials(calm)
    assert_undisturbed(out, calm)
