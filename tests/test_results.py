"Folders of results: whole or said so, only ours is removed, and a place that takes no more ends with one message."
import errno, json, os, resource, shutil, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from conftest import ROOT, one_pixel
from hypothesis import given, settings, strategies as st
from test_start import REFUSES
from perturbench.bench.batch import NoRoom, dry_runs, expand, read_grid, run_grid, to_do, to_report
from perturbench.bench import batch as batch_room, leaderboard as board_room
from perturbench.bench.leaderboard import read_results, write_report
from perturbench.bench.rescore import rescore
from perturbench.bench.runs import read_run, seal, survey
from perturbench.cli import main
from perturbench.core import InputError, part_name
from perturbench.plots import Picture
from perturbench.scoring.profiles import QUICK

GRID = 'tasks: [small.h5ad]\nmodels: [control_mean, linear]\nbudget: {max_epochs: 2, batch_size: 64}\n'

DRAW = Picture.savefig

@pytest.fixture(scope='module', autouse=True)
def figures_of_one_pixel(quick):
    "That they are written is of interest here, and that scores are."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Picture, 'savefig', one_pixel)
        yield

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a small screen, a grid on it and its results."
    from perturbench.data.simulate import Parameters, simulate
    folder = tmp_path_factory.mktemp('results')
    par = Parameters(n_genes=80, n_perturbations=12, n_programmes=6, cells=12, controls=40, panel=1, library=2000)
    simulate(par, seed=1).screen.write(folder/'small.h5ad', name='small')
    (folder/'grid.yaml').write_text(GRID, encoding='utf-8')
    outcome = run_grid(folder/'grid.yaml', folder/'first')
    assert outcome.done == 2
    write_report(folder/'first')
    return folder

@pytest.fixture
def out(place, tmp_path):
    "A copy of the results."
    shutil.copytree(place/'first', tmp_path/'out')
    for name in ('grid.yaml', 'small.h5ad'): shutil.copy(place/name, tmp_path)
    return tmp_path/'out'

@pytest.fixture
def opened(place, tmp_path):
    "A folder of results in which only the task is opened."
    shutil.copytree(place/'first'/'tasks', tmp_path/'opened'/'tasks')
    return tmp_path/'opened'

def home(out, label='linear'):
    found, = (out/'runs'/'small'/label).glob('[0-9a-f]*')
    return found

def grid(place, *models):
    return read_grid(dict(tasks=['small.h5ad'], models=list(models), budget=dict(max_epochs=2, batch_size=64)), place)

@pytest.fixture(scope='module')
def specs(place): return expand(read_grid(place/'grid.yaml'), place/'first')

def change(path, edit):
    "Replace what run.json at `path` says by what `edit` makes of it."
    path.write_text(json.dumps(edit(json.loads(path.read_text(encoding='utf-8')))), encoding='utf-8')

def without(*keys): return lambda about: {k: v for k, v in about.items() if k not in keys}
def without_categories(table): return table.astype(dict.fromkeys(table.select_dtypes('category'), object))
def with_(**kw): return lambda about: about | kw
def cut(path, n): path.write_bytes(path.read_bytes()[:n])
def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << at % 8
    path.write_bytes(content)

DAMAGE = {
    'cut': (lambda f: cut(f/'run.json', 100), 'is cut or was altered'),
    'empty': (lambda f: cut(f/'run.json', 0), 'is cut or was altered'),
    'number': (lambda f: (f/'run.json').write_text('3'), 'lacks entries'),
    'null': (lambda f: (f/'run.json').write_text('null'), 'lacks entries'),
    'deep': (lambda f: (f/'run.json').write_text('['*100000), 'is cut or was altered'),
    'latin': (lambda f: (f/'run.json').write_bytes('{"é"'.encode('latin-1')), 'is cut or was altered'),
    'utf-16': (
        lambda f: (f/'run.json').write_text((f/'run.json').read_text(encoding='utf-8'), encoding='utf-16'),
        'is cut or was altered'),
    'no run.json': (lambda f: (f/'run.json').unlink(), 'has no run.json'),
    'folder': (lambda f: ((f/'run.json').unlink(), (f/'run.json').mkdir()), 'is a folder'),
    'nothing left': (lambda f: [p.unlink() for p in f.iterdir()], 'has no run.json'),
    'seed': (lambda f: change(f/'run.json', with_(seed=7)), 'was altered after it was written'),
    'model': (lambda f: change(f/'run.json', with_(name='additive')), 'was altered after it was written'),
    'seed as text': (lambda f: change(f/'run.json', with_(seed='0')), 'lacks entries'),
    'true seed': (lambda f: change(f/'run.json', with_(seed=False)), 'lacks entries'),
    'key lost': (lambda f: change(f/'run.json', without('task_id')), 'lacks entries'),
    'digest lost': (lambda f: change(f/'run.json', without('digest')), 'lacks entries'),
    'earlier version': (lambda f: change(f/'run.json', without('digest', 'files')), 'kept no check sums'),
    'scores lost': (lambda f: (f/'scores.parquet').unlink(), 'scores.parquet is lost'),
    'scores cut': (lambda f: cut(f/'scores.parquet', 500), 'scores.parquet has 500 bytes'),
    'scores of another': (
        lambda f: shutil.copy(home(f.parents[3], 'control_mean')/'scores.parquet', f), 'scores.parquet'),
    'rows lost': (lambda f: pd.read_parquet(f/'scores.parquet')[3:].to_parquet(f/'scores.parquet'), 'scores.parquet'),
    'weights lost': (lambda f: (f/'model.ckpt').unlink(), 'model.ckpt is lost'),
    'weights longer': (lambda f: (f/'model.ckpt').write_bytes((f/'model.ckpt').read_bytes() + b' '), 'model.ckpt has'),
    'notebook lost': (lambda f: (f/'notebook.ipynb').unlink(), 'notebook.ipynb is lost'),
    'log cut': (lambda f: cut(f/'log', 1), 'log has 1 bytes')}

@pytest.mark.parametrize('damage', DAMAGE)
def test_a_run_that_is_not_whole_is_named(specs, out, damage, capsys):
    spoil, says = DAMAGE[damage]
    spoil(home(out))
    (fault,), name = survey(out).faults, str(home(out))
    assert name in fault and says in fault and '; ' in fault
    with pytest.raises(InputError, match='not all runs'): read_results(out)
    kept = (out/'leaderboard.csv').read_bytes()
    assert main(['report', str(out)]) == 2 and name in capsys.readouterr().err
    assert (out/'leaderboard.csv').read_bytes() == kept
    assert [s.label for s in to_do(specs, out)] == ['linear']
    assert damage == 'nothing left' or name in capsys.readouterr().err

@pytest.mark.parametrize('damage', DAMAGE)
def test_what_was_found_whole_and_has_changed_is_read_again(specs, out, damage, monkeypatch):
    "However it is spoilt, and where its time of change is set back, too."
    monkeypatch.setattr(batch_room, '_SETTLED', 0)
    assert to_do(specs, out) == [] and len(json.loads((out/'seen.json').read_text())['runs']) == 2
    times = {path: path.stat() for path in home(out).iterdir()}
    DAMAGE[damage][0](home(out))
    for path, was in times.items():
        if path.exists(): os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert [spec.label for spec in to_do(specs, out)] == ['linear']
    states = [row['state'] for row in dry_runs(read_grid(out.parent/'grid.yaml'), out)]
    assert states == ['done', 'to do' if damage == 'nothing left' else 'not whole']

def test_what_is_as_it_was_is_not_read(specs, out, monkeypatch):
    "And what cannot be read of that list counts as nothing; what was written just now is not in it."
    read, kept = [], out/'seen.json'
    def reader(folder, **how): read.append(folder.parent.name); return read_run(folder, **how)
    monkeypatch.setattr(batch_room, 'read_run', reader)
    assert to_do(specs, out) == [] and not kept.exists()
    monkeypatch.setattr(batch_room, '_SETTLED', 0)
    for text in ('', '[3]', '{"version": "0", "runs": {}}', None):
        if text is not None: kept.write_text(text)
        read.clear()
        assert to_do(specs, out) == [] and len(read) == (0 if text is None else 2)
    (home(out)/'my notes.txt').write_text('mine')
    assert to_do(specs, out) == [] and read == ['linear']

@settings(derandomize=True, deadline=None, max_examples=60)
@given(name=st.sampled_from(['run.json', 'scores.parquet', 'model.ckpt', 'notebook.ipynb']), at=st.integers(0, 10**6))
def test_any_bit_of_any_file_counts(place, name, at):
    folder = home(place/'first')
    path, about = folder/name, read_run(folder)
    content = path.read_bytes()
    flip(path, at)
    try: assert read_run(folder, hashed=['*']) == about and name == 'run.json'  # white space of run.json
    except InputError as e: assert name in str(e)
    finally: path.write_bytes(content)

def test_what_is_not_whole_is_run_again(place, out, capsys):
    board = (out/'leaderboard.csv').read_bytes()
    scores = {label: (home(out, label)/'scores.parquet').read_bytes() for label in ('control_mean', 'linear')}
    flip(home(out, 'linear')/'scores.parquet', 1000)
    (home(out, 'linear')/'my notes.txt').write_text('mine', encoding='utf-8')
    outcome = run_grid(place/'grid.yaml', out)
    assert (outcome.done, outcome.skipped) == (1, 1)
    assert 'run again: ' in capsys.readouterr().err
    assert {label: (home(out, label)/'scores.parquet').read_bytes() for label in scores} == scores
    assert (home(out, 'linear')/'my notes.txt').read_text(encoding='utf-8') == 'mine'
    table = write_report(out, to_report(out, outcome.specs))[0]
    clock = [c for c in table if c.endswith(('_seconds', '_memory'))]
    (out/'before.csv').write_bytes(board)
    before = pd.read_csv(out/'before.csv', float_precision='round_trip')
    table, before = table.drop(columns=clock), before.drop(columns=clock)
    pd.testing.assert_frame_equal(table, before, check_exact=True, check_dtype=False)

def copied(out, *parts):
    "The run `linear`, copied to another place under runs."
    goal = out.joinpath('runs', *parts)
    shutil.copytree(home(out), goal)
    return goal

@pytest.mark.parametrize('parts', [
    ('small', 'linear', 'x (copy)'),
    ('small', 'linear', 'x.bak'),
    ('small', 'other', 'KEEP'),
    ('twin', 'linear', 'KEEP')])
def test_a_copy_is_said_so(out, parts):
    goal = copied(out, *(home(out).name if p == 'KEEP' else p for p in parts))
    fault, = survey(out).faults
    assert str(goal) in fault and 'copied or renamed' in fault and 'small/linear/' in fault
    with pytest.raises(InputError, match='copied or renamed'): write_report(out)
    if parts[-1] == 'KEEP': return
    board, _ = write_report(out, [r['run_id'] for r in survey(out).runs])
    note, = board.attrs['folder_notes']
    assert note.startswith('left out: ') and str(goal) in note
    assert str(goal) in (out/'leaderboard.html').read_text(encoding='utf-8')

def as_version(folder, version):
    about = json.loads((folder/'run.json').read_text(encoding='utf-8'))
    seal(folder, about | {'versions': about['versions'] | {'perturbench': version}})

def test_two_versions_never_meet(specs, out):
    as_version(home(out, 'control_mean'), '0.0.1')
    with pytest.raises(InputError, match=r'different versions of perturbench, 0\.0\.1 \(1 run\) and'): write_report(out)
    chosen = to_report(out, [s for s in specs if s.label == 'linear'])
    board, _ = write_report(out, chosen)
    assert set(board.model) == {'linear'}
    assert 'runs of other versions of perturbench, 0.0.1' in board.attrs['folder_notes'][0]
    as_version(home(out, 'linear'), '0.0.1')
    assert 'the runs are of perturbench 0.0.1' in write_report(out)[0].attrs['folder_notes'][0]

@pytest.mark.parametrize('spoil', [
    lambda p: flip(p, 3000),
    lambda p: cut(p, 40),
    lambda p: p.with_suffix('.stamp').unlink()])
def test_references_that_changed_are_computed_again(out, spoil):
    board = (out/'leaderboard.csv').read_bytes()
    path, = out.glob('tasks/*/references.parquet')
    kept = path.read_bytes()
    spoil(path)
    write_report(out)
    assert (out/'leaderboard.csv').read_bytes() == board and path.read_bytes() == kept

def test_a_task_that_is_lost_is_said(out):
    shutil.rmtree(out/'tasks')
    board, _ = write_report(out)
    assert "of the task 'small' is lost" in board.attrs['folder_notes'][0]

def test_weights_are_looked_at_before_they_predict(out, tmp_path, capsys):
    conditions = tmp_path/'conditions.csv'
    pd.read_parquet(next(out.glob('tasks/*/conditions.parquet'))).query('not is_control')[:1].to_csv(conditions)
    args = ['predict', str(home(out)), str(conditions), '-o', str(tmp_path/'predicted.h5ad')]
    assert main(args) == 0
    (tmp_path/'predicted.h5ad').unlink()
    flip(home(out)/'model.ckpt', 9000)
    assert main(args) == 2 and 'model.ckpt was altered' in capsys.readouterr().err
    assert not (tmp_path/'predicted.h5ad').exists()

# What is not ours

FOREIGN = [
    '.git/HEAD', '.env', '.gitkeep', '.DS_Store', '.nfs000000000123', '.ipynb_checkpoints/a.ipynb', '.small.0123abcd',
    '.small.0123abcd.png', 'notes.txt']
PLACES = [
    '', 'runs', 'runs/small', 'runs/small/linear', 'runs/mine/x/y', 'tasks', 'figures', 'failed',
    'failed/small/linear', 'checkpoints', 'checkpoints/mine/0']

def test_only_what_is_ours_is_removed(place, out):
    kept = [out/folder/name for folder in PLACES for name in FOREIGN]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('mine', encoding='utf-8')
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    ours = home(out), out/'tasks'/'0123456789ab', out/'figures'/'small.png', out/'leaderboard.csv'
    def of_process(path, pid): return path.with_name(part_name(path).name.replace(f'-{os.getpid()}-', f'-{pid}-'))
    def parts_of(pid): return [of_process(path, pid) for path in ours]
    dead, living = parts_of(ended.pid), parts_of(os.getppid())
    for path in dead + living: path.mkdir()
    outcome = run_grid(place/'grid.yaml', out, force=True)
    assert outcome.done == 2
    assert [p for p in kept if not p.is_file()] == []
    assert [p for p in dead if p.exists()] == [] and all(p.exists() for p in living)
    for path in living: path.rmdir()
    write_report(out)
    assert [p for p in kept if not p.is_file()] == []

EXITS = (
    'import sys\n'
    'from perturbench.models.baselines import ControlMean\n'
    'class Model(ControlMean):\n'
    '    def predict(self, batch): sys.exit(0)\n')

def test_what_a_failure_left_goes_and_notes_on_it_stay(place, opened, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path/'ends_early.py').write_text(EXITS, encoding='utf-8')
    outcome = run_grid(grid(place, 'ends_early:Model', 'linear'), opened)
    (spec, log), = outcome.failed
    assert outcome.done == 1 and 'the process was asked to end, SystemExit(0)' in log.read_text(encoding='utf-8')
    notes = [log.with_name('why.txt'), log.parents[1]/'why.txt', log.parents[1]/'ideas'/'log']
    notes[-1].parent.mkdir()
    for path in notes: path.write_text('mine', encoding='utf-8')
    run_grid(grid(place, {'name': 'control_mean', 'as': 'Model'}), opened)
    left = [p for p in (opened/'failed').rglob('*')]
    assert [p for p in left if p.is_file()] == sorted(notes, key=left.index)
    shutil.rmtree(notes[-1].parent)
    for path in notes[:2]: path.unlink()
    run_grid(grid(place, {'name': 'control_mean', 'as': 'Model'}), opened)
    assert not (opened/'failed').exists()

@pytest.mark.parametrize('file', [
    'runs', 'figures', 'failed', 'checkpoints', 'runs/small', 'runs/small/linear', 'failed/small'])
def test_a_file_where_a_folder_shall_be(place, opened, file):
    (opened/file).parent.mkdir(parents=True, exist_ok=True)
    (opened/file).write_text('mine', encoding='utf-8')
    with pytest.raises(InputError, match='a file stands where a folder of results shall be'):
        run_grid(place/'grid.yaml', opened)
    assert (opened/file).read_text(encoding='utf-8') == 'mine' and not list(opened.glob('runs/*/*/*'))

def test_a_folder_where_a_file_shall_be(place, out):
    (home(out)/'scores.parquet').unlink()
    (home(out)/'scores.parquet').mkdir()
    outcome = run_grid(place/'grid.yaml', out)
    (_, log), = outcome.failed
    assert 'is a folder where a file of a run shall be' in log.read_text(encoding='utf-8')
    assert (home(out)/'model.ckpt').exists()

# No room, no right

def failing(code, when):
    "A method that fails as the system does where `when` holds for its path."
    def wrapped(method):
        def _method(self, *args, **kw):
            paths = [str(a) for a in (self, *args) if isinstance(a, (str, Path))]
            if any(when(p) for p in paths): raise OSError(code, os.strerror(code), paths[0])
            return method(self, *args, **kw)
        return _method
    return wrapped

@pytest.mark.parametrize('code, owner, name, file', [
    (errno.ENOSPC, pd.DataFrame, 'to_parquet', 'scores.parquet'),
    (errno.EDQUOT, Path, 'write_text', 'run.json'),
    (errno.EROFS, Path, 'write_text', 'log'),
    (errno.EROFS, Path, 'mkdir', '.pb-'),
    (errno.ENOSPC, Path, 'rename', 'runs')])
def test_a_full_disk_ends_a_batch_with_one_message(place, opened, monkeypatch, code, owner, name, file):
    with monkeypatch.context() as m:
        m.setattr(owner, name, failing(code, lambda p: file in p and 'linear' in p)(getattr(owner, name)))
        with pytest.raises(NoRoom, match='what was finished is kept, and the same command goes on'):
            run_grid(grid(place, 'control_mean', 'linear'), opened)
    assert [r['model'] for r in survey(opened).runs] == ['control_mean']
    assert [p for p in opened.rglob('.*')] == [] and not (opened/'failed').exists()
    if file != 'log': return
    outcome = run_grid(place/'grid.yaml', opened)
    assert (outcome.done, outcome.skipped) == (1, 1)

def test_what_concerns_one_run_fails_one_run(place, opened, monkeypatch):
    monkeypatch.setattr(Path, 'mkdir', failing(errno.EACCES, lambda p: 'runs/small/linear' in p)(Path.mkdir))
    outcome = run_grid(grid(place, 'linear', 'control_mean'), opened)
    (spec, log), = outcome.failed
    assert outcome.done == 1 and spec.label == 'linear'
    assert 'no permission' in log.read_text(encoding='utf-8').lower().replace('permission denied', 'no permission')

@pytest.mark.parametrize('code, file', [
    (errno.EROFS, 'leaderboard'),
    (errno.EACCES, 'figures'),
    (errno.ENOSPC, 'references')])
def test_a_report_that_cannot_be_written(out, monkeypatch, capsys, code, file):
    for path in out.glob('tasks/*/references.*'): path.unlink()
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    replace = os.replace
    def refuse(source, goal, **kw):
        if file in str(goal): raise OSError(code, os.strerror(code), str(goal))
        return replace(source, goal, **kw)
    monkeypatch.setattr(os, 'replace', refuse)
    assert main(['report', str(out)]) == 2
    err = capsys.readouterr().err
    assert 'cannot be written' in err and 'Traceback' not in err
    assert [p for p in out.rglob('.*')] == [] and all(p.exists() for p in before)

def test_files_that_the_system_cuts_short(place, opened, capsys):
    "Python ignores the signal that the system sends with it."
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try: status = main(['run', str(place/'grid.yaml'), '-o', str(opened)])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert status in (1, 2) and 'Traceback' not in said
    assert 'there is no room for it' in said and 'the same command goes on' in said
    assert [p for p in opened.rglob('.*')] == [] and survey(opened) == ([], [])

# Places and processes

@pytest.mark.parametrize('name', ['{x} {0} %s', 'Größe µ }\n\\n "$HOME\''])
def test_folders_of_any_name(place, tmp_path, name, monkeypatch):
    monkeypatch.setattr(Picture, 'savefig', DRAW)  # the name is in figures
    out = tmp_path/name
    shutil.copytree(place/'first'/'tasks', out/'tasks')
    outcome = run_grid(grid(place, {'name': 'control_mean', 'as': name.replace('\n', ' ')}), out)
    assert outcome.done == 1, outcome.failed
    assert read_results(out).runs.model.tolist() == [name.replace('\n', ' ')]

ELSEWHERE = '''
import os
from perturbench.models.baselines import ControlMean
os.chdir('/')
class Model(ControlMean):
    def predict(self, batch):
        os.chdir('/')
        print('Δ \\ud800')
        return super().predict(batch)
'''
SCRIPT = '''
import asyncio, multiprocessing
async def work():
    import conftest
    from perturbench.bench.batch import run_grid
    conftest.leave_undrawn(), conftest.score_quickly()
    for jobs, models in {1: ['elsewhere:Model', 'control_mean'], 2: ['elsewhere:Model']}.items():
        budget = {'max_epochs': 2, 'batch_size': 64}
        outcome = run_grid(dict(tasks=['small.h5ad'], models=models, budget=budget), f'out{jobs}', jobs)
        print(outcome.done, [open(log, encoding='utf-8').read() for _, log in outcome.failed])
if __name__ == '__main__':
    from perturbench.bench.batch import read_grid
    try: read_grid(dict(tasks=['small.h5ad'], models=[{'name': 'linear', 'as': 'Ω'}]))
    except ValueError as e: print('this locale' in str(e))
    multiprocessing.set_start_method('spawn')
    asyncio.run(work())
'''

def test_a_running_loop_spawned_workers_another_folder_and_a_plain_locale(place, tmp_path):
    "Neither the script nor its workers import what trains: nothing here is trained."
    shutil.copy(place/'small.h5ad', tmp_path)
    for jobs in (1, 2): shutil.copytree(place/'first'/'tasks', tmp_path/f'out{jobs}'/'tasks')
    for name, text in {'elsewhere.py': ELSEWHERE, 'script.py': SCRIPT, 'sitecustomize.py': REFUSES}.items():
        (tmp_path/name).write_text(text, encoding='utf-8')
    plain = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONIOENCODING='ascii', PYTHONCOERCECLOCALE='0')
    environment = os.environ | plain | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT/'tests')]))
    done = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'True\n2 []\n1 []\n', done.stdout
    def scores(out, model):
        found = read_results(out).scores
        found = without_categories(found[(found.model == model) & found.metric.isin(QUICK)])
        return found.sort_values(['perturbation', 'cell_type', 'metric'], ignore_index=True)
    for one, other, model in (('out1', tmp_path/'out2', 'Model'), ('out1', place/'first', 'control_mean')):
        pd.testing.assert_frame_equal(scores(tmp_path/one, model), scores(other, model), check_exact=True)

def put(folder, place, change=lambda table: table):
    "A run as another one, with a changed table."
    shutil.copytree(place, folder)
    about = json.loads((folder/'run.json').read_text(encoding='utf-8'))
    task, model, run_id = folder.parts[-3:]
    change(pd.read_parquet(folder/'scores.parquet')).to_parquet(folder/'scores.parquet')
    seal(folder, about | dict(task=task, model=model, run_id=run_id, task_id=task))

@pytest.mark.parametrize('dose', (None, .5, 'high'), ids=str)
def test_scores_are_read_as_they_were_written(out, monkeypatch, dose):
    "In pieces, of tasks with other covariates, which are text in one and numbers in another: as pandas stacks them."
    first = home(out)
    if dose is not None:
        put(out/'runs'/'dosed'/'linear'/('b'*12), first, lambda table: table[::2].assign(cell_type=dose))
    put(out/'runs'/'other'/'linear'/('a'*12), first, lambda table: table.drop(columns='cell_type').assign(line='A'))
    monkeypatch.setattr(board_room, '_AT_A_TIME', 2)
    found = read_results(out).scores
    files = [run.home/'scores.parquet' for run in read_results(out).runs.itertuples()]
    tables = [pd.read_parquet(file).reset_index(drop=True) for file in files]
    own = ['task', 'task_id', 'model', 'seed', 'run_id']
    wanted = pd.concat(tables, ignore_index=True).drop(columns=own)
    pd.testing.assert_frame_equal(without_categories(found)[list(wanted)], wanted, check_exact=True)
    assert list(found.run_id.unique()) == [file.parent.name for file in files]

def as_definitions(folder, definitions):
    "A run as a version with other definitions of metrics would have left it."
    about = json.loads((folder/'run.json').read_text(encoding='utf-8'))
    table = pd.read_parquet(folder/'scores.parquet')
    table.assign(value=table.value + 1, definitions=definitions).to_parquet(folder/'scores.parquet', index=False)
    seal(folder, about | dict(definitions=definitions))

def test_scores_of_two_definitions_never_meet_and_are_made_anew_from_the_weights(out):
    board, kept = (out/'leaderboard.csv').read_bytes(), (home(out)/'scores.parquet').read_bytes()
    weights = (home(out)/'model.ckpt').read_bytes()
    as_definitions(home(out), 1)
    with pytest.raises(InputError, match='definitions 1 of the metrics.*`perturbench rescore OUT`'): write_report(out)
    assert (out/'leaderboard.csv').read_bytes() == board
    assert [o if isinstance(o, int) else o['model'] for o in rescore(out)] == [1, 'linear']
    assert (home(out)/'scores.parquet').read_bytes() == kept and (home(out)/'model.ckpt').read_bytes() == weights
    write_report(out)
    assert (out/'leaderboard.csv').read_bytes() == board

def test_what_cannot_be_scored_anew_is_said(out):
    as_definitions(home(out), 1)
    flip(home(out)/'model.ckpt', 9000)
    with pytest.raises(InputError, match='model.ckpt was altered'): list(rescore(out))

def test_the_command_scores_anew_and_reports(out, capsys):
    board, kept = (out/'leaderboard.csv').read_bytes(), (home(out)/'scores.parquet').read_bytes()
    as_definitions(home(out), 1)
    assert main(['report', str(out)]) == 2 and 'perturbench rescore' in capsys.readouterr().err
    assert main(['rescore', str(out)]) == 0
    said = capsys.readouterr().out
    assert '1 runs to score' in said and 'scored: small / linear / seed 0' in said
    assert (home(out)/'scores.parquet').read_bytes() == kept and (out/'leaderboard.csv').read_bytes() == board
    assert main(['rescore', str(out/'nothing')]) == 2 and 'there is no finished run' in capsys.readouterr().err
