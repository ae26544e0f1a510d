"`perturbench check`: what it says is what `prepare` then does, it writes nothing, and odd outputs end in one message."
import os, subprocess, sys
from pathlib import Path
import anndata as ad, numpy as np, pandas as pd, pytest
from scipy import sparse
from perturbench.check import split_counts
from perturbench.cli import main, read_targets
from perturbench.core import InputError, Lock, atomic_path, part_name
from perturbench.data.h5ad import read_card
from perturbench.data.screen import read_screen

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def counts(labels, lines=('A', 'B', 'C'), n=15, n_genes=40, **columns):
    "Cells of each label in each line, as sparse counts."
    rows = [(line, label) for line in lines for label in labels for _ in range(n)]
    obs = pd.DataFrame(rows, columns=['line', 'what'], index=[f'c{i}' for i in range(len(rows))]).assign(**columns)
    X = np.random.default_rng(0).poisson(2, (len(rows), n_genes)).astype(np.float32)
    X[:, -1] = 0  # a gene that nobody shows
    return ad.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(n_genes)]))

LABELS = ['scramble_1', 'scramble_2', 'p1', 'p2', 'p3', 'p1+p2', 'p2+p3', 'Unassigned']
KEYS = ['--perturbation-key', 'what', '--covariate-keys', 'line', '--control', 'scramble_*']

def test_what_is_said_is_what_prepare_does(at, capsys):
    counts(LABELS).write_h5ad('a.h5ad')
    before = sorted(p.name for p in at.rglob('*'))
    assert main(['check', 'a.h5ad', *KEYS]) == 0
    said = capsys.readouterr().out
    assert sorted(p.name for p in at.rglob('*')) == before
    parts = [
        '360 cells x 40 genes', 'raw counts', '5 in', '3 single, 2 combined', "3 of line: 'A', 'B', 'C'",
        "'scramble_1' (45 cells), 'scramble_2' (45 cells)", "45 cells called 'Unassigned'",
        '1 genes that fewer than 4 cells show', 'kind: transfer']
    for text in parts: assert text in said, text
    command = next(line for line in said.splitlines() if line.startswith('to prepare it')).split('perturbench ')[1]
    printed = subprocess.run(['bash', '-c', f'printf "%s\\n" {command}'], capture_output=True, text=True)
    words = printed.stdout.splitlines()
    assert main(words) == 0
    screen = read_screen('a_prepared.h5ad')
    assert screen.perturbations == ['p1', 'p2', 'p3'] and screen.n_genes == 39 and screen.n_cells == 315
    assert screen.card['controls'] == {'scramble_1': 45, 'scramble_2': 45}
    tested = split_counts(screen).tested.tolist()
    assert tested == split_counts(read_screen('a_prepared.h5ad')).tested.tolist() and tested[0] > 0
    capsys.readouterr()
    assert main(['check', 'a_prepared.h5ad']) == 0  # its card has the keys
    again = capsys.readouterr().out
    assert ', prepared' in again and 'to prepare it' not in again
    assert '3 single, 2 combined' in again
    assert 'log-normalised: each cell sums to 10,000' in again

def test_without_keys_the_columns_are_listed(at, capsys):
    counts(LABELS[:3], umi=3.5).write_h5ad('a.h5ad')
    assert main(['check', 'a.h5ad']) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any('what' in row and 'scramble_1, scramble_2' in row for row in rows) and any('line' in row for row in rows)

def test_faults_are_those_of_prepare_and_status_is_2(at, capsys):
    counts(LABELS[2:]).write_h5ad('a.h5ad')
    for command in (['check', 'a.h5ad'], ['prepare', 'a.h5ad', '-o', 'b.h5ad']):
        assert main([*command, '--perturbation-key', 'what', '--covariate-keys', 'lien']) == 2
        err = capsys.readouterr().err
        assert "'lien' is not a column of obs; did you mean 'line'?" in err and 'Traceback' not in err, err
    assert 'perturbench check a.h5ad' in err and not Path('b.h5ad').exists()
    assert main(['check', 'nowhere.h5ad']) == 2 and 'does not exist' in capsys.readouterr().err

def test_values_that_are_no_log_normalised_ones_are_named(at, capsys):
    a = counts(LABELS[:4])
    a.X = sparse.csr_matrix(np.log1p(np.log1p(1e4*a.X.toarray()/a.X.sum(1))).astype(np.float32))
    a.write_h5ad('a.h5ad')
    assert main(['check', 'a.h5ad', *KEYS]) == 2
    said = capsys.readouterr()
    assert 'log1p taken twice' in said.out and 'a.X = np.expm1(a.X)' in said.err

def test_targets_come_from_a_table(at):
    counts(['control', 'nutlin', 'dmog']).write_h5ad('a.h5ad')
    Path('t.csv').write_bytes('\ufeffperturbation,gene\r\nnutlin,g1\r\nnutlin,g2\r\n'.encode())
    assert main(['prepare', 'a.h5ad', '--perturbation-key', 'what', '--targets', 't.csv', '-o', 'b.h5ad']) == 0
    assert read_card('b.h5ad')['targets'] == {'nutlin': ['g1', 'g2']}
    Path('u.csv').write_text('drug,gene\nnutlin,g1\n')
    with pytest.raises(InputError, match='has no column perturbation'): read_targets('u.csv')

# Places that are not ours.

def test_a_folder_and_a_loop_are_no_output(at, capsys):
    counts(LABELS).write_h5ad('a.h5ad')
    (at/'mine.h5ad').mkdir()
    (at/'mine.h5ad'/'notes').write_text('mine')
    (at/'loop.h5ad').symlink_to(at/'loop.h5ad')
    for place, says in (
            ('mine.h5ad', 'is a folder'),
            ('loop.h5ad', 'leads back to itself'),
            ('/proc/x.h5ad', 'cannot be written'),
            ('n'*300 + '.h5ad', 'too long')):
        assert main(['prepare', 'a.h5ad', *KEYS, '-o', place]) == 2
        err = capsys.readouterr().err
        assert says in err and 'Traceback' not in err, err
    assert (at/'mine.h5ad'/'notes').read_text() == 'mine'

def test_a_link_is_followed(at):
    counts(LABELS).write_h5ad('a.h5ad')
    (at/'store').mkdir()
    (at/'b.h5ad').symlink_to(at/'store'/'far.h5ad')
    assert main(['prepare', 'a.h5ad', *KEYS, '-o', 'b.h5ad']) == 0
    assert (at/'b.h5ad').is_symlink() and read_card(at/'store'/'far.h5ad')['perturbation_key'] == 'what'

def test_an_evaluation_writes_only_what_is_its_own(at, capsys):
    a = counts(['control', 'p1', 'p2'])
    a.X = sparse.csr_matrix(np.log1p(1e4*a.X.toarray()/a.X.sum(1)).astype(np.float32))
    a[:, :-1].copy().write_h5ad('truth.h5ad')
    b = a[a.obs.what != 'control', :-1].copy()
    b.X = sparse.csr_matrix(b.X.toarray()[np.random.default_rng(1).permutation(b.n_obs)])
    b.obs_names = [f'm{i}' for i in range(b.n_obs)]
    mine = {at/'out'/'notes.txt', at/'out'/'.env', at/'out'/'figures'/'.gitkeep'}
    for p in mine: p.parent.mkdir(parents=True, exist_ok=True); p.write_text('mine')
    keys = ['--perturbation-key', 'what', '--covariate-keys', 'line']
    (at/'out'/'controls.csv').mkdir()
    assert main(['evaluate', 'truth.h5ad', 'truth.h5ad', *keys, '-o', 'out']) == 2  # before the work begins
    assert 'controls.csv is a folder' in capsys.readouterr().err
    (at/'out'/'controls.csv').rmdir()
    assert main(['evaluate', 'truth.h5ad', 'truth.h5ad', *keys, '-o', 'out']) == 0
    assert all(p.read_text() == 'mine' for p in mine) and not (at/'out'/'.lock').exists()
    assert main(['evaluate', 'truth.h5ad', 'nowhere.h5ad', *keys, '-o', 'new/out']) == 2
    assert not (at/'new').exists()

def test_what_a_killed_process_left_is_swept_by_the_next(at):
    counts(LABELS).write_h5ad('a.h5ad')
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    left = at/part_name(at/'b.h5ad').name.replace(f'-{os.getpid()}-', f'-{ended.pid}-')
    others = [at/'.b.0123abcd.h5ad', at/'.gitkeep', part_name(at/'b.h5ad')]  # of others, and of a process that lives
    for p in (left, *others): p.write_text('half')
    assert main(['prepare', 'a.h5ad', *KEYS, '-o', 'b.h5ad']) == 0
    assert not left.exists() and all(p.exists() for p in others)

def test_a_file_system_without_locks(at, capsys, monkeypatch):
    import errno, fcntl
    def flock(*_): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', flock)
    with Lock(at/'out'): pass
    assert 'knows no locks' in capsys.readouterr().err and not (at/'out').exists()

# Where the output goes.

def shell(command, **kw):
    return subprocess.run(['bash', '-c', command], capture_output=True, text=True, **kw)

def test_outputs_that_are_closed_or_full():
    run = f'{sys.executable} -m perturbench --version'
    shortened = f'{sys.executable} -m perturbench datasets | head -1; exit ${{PIPESTATUS[0]}}'
    for command, status in (
            (shortened, (0, 1)),
            (f'{run} >&-', (0,)),
            (f'{run} >&- 2>&-', (0,)),
            (f'{run} >/dev/full', (2,))):
        done = shell(command)
        assert done.returncode in status, (command, done)
        assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr, (command, done)
    assert 'no room' in done.stderr

def test_an_error_of_the_system_is_a_message(at, capsys, monkeypatch):
    import errno
    for code, says in (
            (errno.EROFS, 'read-only'),
            (errno.EDQUOT, 'no room'),
            (errno.EIO, 'disk reports an error'),
            (errno.ESTALE, 'file server')):
        def fail(*_, **__): raise OSError(code, os.strerror(code), 'b.h5ad')
        with pytest.raises(InputError, match=says):
            with atomic_path(at/'b.h5ad'): fail()
        assert list(at.iterdir()) == []
