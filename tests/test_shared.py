"Several processes on one folder, limits of runs, and clusters: the same board, and no run twice."
import os, random, shutil, signal, time
from pathlib import Path
import pandas as pd, pytest
from test_batch import MODELS, assert_undisturbed, board, fork_workers, out, place, runs, scores, start, undisturbed
from test_batch import write_grid
from perturbench.bench import batch
from perturbench.bench.claims import Owner, _home, _put
from perturbench.bench.leaderboard import write_report
from perturbench.cli import main
from perturbench.core import Lock, this_machine

def counted(*commands):
    "How often each run was said to be done, by any of the commands."
    said = [line for one in commands for line in one.text.splitlines() if line.startswith('done: ')]
    return pd.Series(said).value_counts()

def test_two_commands_share_a_folder_and_do_no_run_twice(start, out, undisturbed, undrawn):
    first = start('run', 'grid.yaml', '-o', out.name)
    first.until(first.log.exists)  # the second is given a log of its own
    second = start('run', 'grid.yaml', '-o', out.name)
    assert first.status() == second.status() == 0, first.text + second.text
    assert len(counted(first, second)) == len(MODELS) and (counted(first, second) == 1).all()
    write_report(out)
    assert scores(out) == scores(undisturbed) and board(out) == board(undisturbed)
    assert not (out/'claims').exists()

def test_what_a_killed_command_had_is_done_by_the_other(start, out, undisturbed, undrawn):
    first = start('run', 'grid.yaml', '-o', out.name)
    first.until(lambda: list(out.glob('runs/*/*/.*/notebook.ipynb')))
    first.send(signal.SIGSTOP)
    second = start('run', 'grid.yaml', '-o', out.name)
    second.until(lambda: len(runs(out)) == len(MODELS) - 1)
    first.send(signal.SIGKILL)
    assert second.status() == 0, second.text
    assert first.status() == -signal.SIGKILL
    assert scores(out) == scores(undisturbed)

def test_who_wants_the_folder_alone_is_kept_out(out):
    with Lock(out, shared=True), Lock(out, shared=True):
        assert main(['runs', str(out), '--remove', '--seed', '0']) == 2

HUNGRY = '''
import threading
from perturbench.models.baselines import ControlMean

class Hangs(ControlMean):
    def predict(self, batch): threading.Event().wait()

class Hungry(ControlMean):
    def predict(self, batch):
        self.kept = bytearray(2**30)
        threading.Event().wait()
'''

def test_a_run_that_breaks_a_limit_is_tried_twice_and_the_others_end(start, place, out, undisturbed, undrawn):
    (place/'hungry.py').write_text(HUNGRY)
    write_grid(place/'hungry.yaml', ['control_mean', 'hungry:Hangs', 'hungry:Hungry', 'perturbed_mean'])
    run = start('run', 'hungry.yaml', '-o', out.name, '--time-limit', '12s', '--memory-limit', '1.2GB', '--jobs', 2,
                prepare=fork_workers)
    assert run.status() == 1, run.text
    assert '2 runs done, 0 were done before, 2 failed' in run.text and 'Traceback' not in run.text
    assert run.text.count('it is tried once more') == 2
    said = {path.parts[-3]: path.read_text() for path in out.glob('failed/*/*/*/log')}
    assert 'longer than its limit of 12 s' in said['Hangs'] and 'tried twice' in said['Hangs']
    assert 'its limit is 1,229 MB' in said['Hungry']
    assert {name: found for name, found in scores(undisturbed).items() if '_mean/' in name} == scores(out)

@pytest.mark.parametrize('option, said', [
    (['--time-limit', 'soon'], 'such as 90s'), (['--memory-limit', '900TB'], 'this machine has'),
    (['--memory-limit', '3MB'], 'before a run begins'), (['--gpus', '77'], 'torch sees'),
    (['--address', 'tcp://127.0.0.1:1'], 'give --backend too'), (['--gpus', '1', '--backend', 'dask'], 'loky or ray'),
    (['--gpus', '1', '--backend', 'slurm'], 'under `cluster`')])
def test_what_cannot_be_had_is_refused(place, undisturbed, tmp_path, capfd, option, said):
    assert main(['run', str(place/'grid.yaml'), '-o', str(tmp_path/'out'), *option]) == 2
    assert said in capfd.readouterr().err and not (tmp_path/'out'/'runs').exists()

def test_a_run_whose_processes_died_twice_is_not_tried_a_third_time(place, undisturbed, tmp_path):
    out = tmp_path/'out'
    shutil.copytree(undisturbed/'tasks', out/'tasks')
    spec = batch.expand(batch.read_grid(place/'grid.yaml'), out)[0]
    far = Owner(batch._claim_on(spec), this_machine(), 2**22 + 1, 'theirs', 1)  # a process that cannot be
    _put(_home(out, far.what), far)
    assert batch.take_on(spec, batch.How(str(out))) == 'failed'
    log, = out.glob('failed/*/*/*/log')
    assert 'ended during this run, 2 times' in log.read_text()

def test_boards_of_several_folders(place, undisturbed, tmp_path, undrawn, capsys):
    "The same task meets, whatever it is called; the board is that of one folder that has all runs."
    parts = []
    for number, models in enumerate((MODELS[:2], MODELS[1:])):
        parts.append(tmp_path/f'part{number}')
        shutil.copytree(undisturbed/'tasks', parts[-1]/'tasks')
        for model in models: shutil.copytree(undisturbed/'runs'/'small'/model, parts[-1]/'runs'/'small'/model)
    assert main(['report', *map(str, parts), '-o', str(tmp_path/'both'), '--long']) == 0
    said = capsys.readouterr().out
    assert board(tmp_path/'both') == board(undisturbed) and not (parts[0]/'leaderboard.csv').exists()
    table = pd.read_csv(undisturbed/'leaderboard.csv')
    assert sum(line.startswith('small ') for line in said.splitlines()) == len(table)
    assert main(['report', *map(str, parts)]) == 0
    assert board(parts[0]) == board(undisturbed)

def test_folders_whose_tasks_differ_are_refused(start, place, undisturbed, capsys):
    task = '{name: small, screen: small.h5ad, split: {kind: transfer, seed: 9}}'
    write_grid(place/'other.yaml', ['control_mean'], f'[{task}]')
    other = start('run', 'other.yaml', '-o', 'other')
    assert other.status() == 0, other.text
    assert main(['report', str(undisturbed), str(place/'other')]) == 2
    said = capsys.readouterr().err
    assert 'screens, splits or genes differ' in said and str(place/'other') in said

def by_backend(place, out, backend, grid='grid.yaml', **how):
    "What became of the grid."
    os.chdir(place)
    return batch.run_grid(place/grid, out, jobs=2, backend=backend, **how)

@pytest.fixture
def killing(place, monkeypatch):
    "A grid with a model that kills its process the first time."
    (place/'once.py').write_text(f'''
import os, signal
from pathlib import Path
from perturbench.models.baselines import ControlMean
class Once(ControlMean):
    def predict(self, batch):
        first = Path({str(place)!r})/f'killed-{{os.environ["KILLED"]}}'
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(batch)
''')
    write_grid(place/'once.yaml', [*MODELS, 'once:Once'])
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    monkeypatch.setenv('PYTHONPATH', f'{place}:{os.environ.get("PYTHONPATH", "")}')
    return 'once.yaml'

def assert_as_by_loky(place, out, undisturbed, grid):
    "The board of `out` is that of the usual backend, but for the run that was killed; each with all metrics."
    mine, calm = [path.parent.name for path in runs(undisturbed)], place/f'calm-{out.name}'
    write_report(out, mine)
    shutil.copytree(undisturbed/'tasks', calm/'tasks')
    by_backend(place, calm, 'loky', grid)
    write_report(calm, mine)
    assert board(out) == board(calm)

@pytest.mark.slow
@pytest.mark.parametrize('backend', ['dask', 'ray', 'slurm'])
def test_a_cluster_gives_the_same_board_and_outlives_a_worker(place, out, undisturbed, killing, monkeypatch, backend):
    pytest.importorskip(dict(dask='distributed', slurm='submitit').get(backend, backend), reason='an extra')
    monkeypatch.setenv('KILLED', backend)
    if backend == 'slurm':
        with (place/killing).open('a') as file: file.write('cluster: {executor: local, memory: 2GB, time: 10m}\n')
    outcome = by_backend(place, out, backend, killing)
    assert (outcome.done + outcome.elsewhere, outcome.failed) == (len(MODELS) + 1, [])
    assert (place/f'killed-{backend}').exists()
    assert_as_by_loky(place, out, undisturbed, killing)

@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes(place, out, undisturbed, killing, monkeypatch):
    ray = pytest.importorskip('ray', reason='an extra')
    from ray.cluster_utils import Cluster
    monkeypatch.setenv('KILLED', 'nodes')
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
    try:
        cluster.add_node(num_cpus=1)
        outcome = by_backend(place, out, 'ray', killing, address=cluster.address)
    finally: cluster.shutdown()
    assert (outcome.done, outcome.failed) == (len(MODELS) + 1, [])
    assert_as_by_loky(place, out, undisturbed, killing)

def in_group(path, group):
    try: return os.getpgid(int(path.name)) == group
    except OSError: return False

def kill_any(run, draw):
    "Kill a process of a command, the first or a worker, at a random moment, and wait for its end."
    end = time.monotonic() + draw.uniform(0, 4)
    while time.monotonic() < end and run.process.is_alive(): run.process.join(.05)
    family = [int(path.name) for path in Path('/proc').glob('[0-9]*') if in_group(path, run.process.pid)]
    victim = draw.choice(family) if family else None
    if victim: os.kill(victim, signal.SIGKILL)
    if victim == run.process.pid: assert run.is_gone()
    else: run.status()

@pytest.mark.slow
def test_fifty_kills_of_a_grid(start, place, undisturbed):
    "The last start ends as if undisturbed. When all is done, a run is taken away for the next kill."
    out, draw = place/'fifty', random.Random(0)
    shutil.copytree(undisturbed/'tasks', out/'tasks')
    for _ in range(50):
        kill_any(start('run', 'grid.yaml', '-o', out.name, '--jobs', 2, prepare=fork_workers), draw)
        if len(runs(out)) == len(MODELS): shutil.rmtree(draw.choice(runs(out)).parent)
    last = start('run', 'grid.yaml', '-o', out.name)
    assert last.status() == 0, last.text
    assert_undisturbed(out, undisturbed)

@pytest.mark.slow
def test_fifty_kills_of_a_search(start, place, undisturbed):
    "When the search is done, one of its trials and its end are taken away for the next kill."
    grid, out, calm, draw = place/'fifty.yaml', place/'fifty-search', place/'calm-search', random.Random(1)
    write_grid(grid, ['{name: latent_additive, encoder_width: 16, latent_dim: 8, n_layers: 1}'])
    with grid.open('a') as file: file.write('tune: {trials: 6, objective: rmse_average}\n')
    for folder in (out, calm): shutil.copytree(undisturbed/'tasks', folder/'tasks')
    assert start('run', grid, '-o', calm).status() == 0
    def trials(folder): return pd.read_csv(next(folder.glob('tuning/*/*/trials.csv'))).drop(columns='seconds').to_csv()
    for _ in range(50):
        kill_any(start('run', grid, '-o', out, '--jobs', 2, prepare=fork_workers), draw)
        for end in out.glob('tuning/*/*/tuned.json'):
            end.unlink()
            draw.choice(sorted(end.parent.glob('trials/*.json'))).unlink()
    last = start('run', grid, '-o', out)
    assert last.status() == 0, last.text
    assert trials(out) == trials(calm)
    assert_undisturbed(out, calm)
