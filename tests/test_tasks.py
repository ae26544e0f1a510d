"""A task folder is whole or it is not: whatever is changed in it is found or does no harm.

What an entry of a grid holds is looked at before it is used."""
import datetime, errno, json, multiprocessing, os, resource, shutil
from dataclasses import asdict
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from perturbench import tasks
from perturbench.core import InputError, digest, file_sha256
from perturbench.data.simulate import Parameters, simulate
from perturbench.loaders.store import Cells, CellStore, check_store
from perturbench.tasks import TASKS, load_task, open_task, read_task

few = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "A small screen with lanes, donors and an embedding, as an entry of a grid."
    folder = tmp_path_factory.mktemp('screen')
    parameters = Parameters(n_genes=60, n_perturbations=6, n_states=3, cells=12, controls=24, n_programmes=4)
    screen = simulate(parameters, 0).screen
    r = np.random.default_rng(0)
    screen.adata.obs['donor'] = r.choice(['α', 'β'], screen.n_cells)
    screen.adata.obsm['X_two'] = r.normal(size=(screen.n_cells, 2))
    screen.replicate_key = 'donor'
    screen.write(folder/'small.h5ad')
    return dict(screen=str(folder/'small.h5ad'), split=dict(kind='transfer', seed=1), genes=dict(hvg=40))

@pytest.fixture(scope='module')
def whole(asked, tmp_path_factory): return open_task(asked, tmp_path_factory.mktemp('whole')).folder

@pytest.fixture
def folder(whole, tmp_path): return shutil.copytree(whole, tmp_path/'tasks'/whole.name)

def content(task):
    "All numbers of a task."
    s = task.store
    arrays = [
        s.dense(np.arange(s.n_cells)).numpy(), s.codes, s.order, s.cells, s.counts, s.library, task.parts, task.half,
        task.replicate, *s.embeddings.values()]
    return [np.asarray(a).tobytes() for a in arrays] + [
        task.genes, asdict(task.spec), task.naming, task.conditions.to_csv()]

def flipped(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)

def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())

def test_the_folder_keeps_a_hash_of_every_file(whole):
    about = json.loads((whole/'task.json').read_text(encoding='utf-8'))
    assert set(about['files']) == set(files(whole)) - {'task.json', 'stamp.json'}
    assert {'store/indices.npy', 'replicate.npy', 'split.csv.json'} < set(about['files'])
    for k, (size, known) in about['files'].items():
        assert ((whole/k).stat().st_size, file_sha256(whole/k)) == (size, known)

@pytest.fixture(scope='module')
def spoilt(whole, tmp_path_factory): return shutil.copytree(whole, tmp_path_factory.mktemp('spoilt')/whole.name)

@few
@given(st.data())
def test_a_flipped_bit_of_any_file_is_found_or_harmless(whole, spoilt, data):
    name = data.draw(st.sampled_from(files(whole)))
    kept = (spoilt/name).read_bytes()
    flipped(spoilt/name, data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 7)))
    try: assert content(load_task(spoilt)) == content(load_task(whole)) and name in ('task.json', 'stamp.json')
    except InputError as e: assert str(spoilt) in str(e) and 'perturbench run' in str(e)
    finally: (spoilt/name).write_bytes(kept)

@pytest.mark.parametrize('spoil', [
    lambda p: p.unlink(),
    lambda p: p.write_bytes(b''),
    lambda p: os.truncate(p, p.stat().st_size//2),
    lambda p: p.write_bytes(p.read_bytes() + b'\0')])
def test_a_file_that_is_cut_lost_or_longer_is_found(whole, folder, spoil):
    for name in files(folder):
        if name == 'stamp.json': continue
        spoil(folder/name)
        with pytest.raises(InputError, match='perturbench run'): load_task(folder)
        shutil.copy2(whole/name, folder/name)
    assert content(load_task(folder)) == content(load_task(whole))

@pytest.mark.parametrize('text', [
    b'', b'[]', b'null', b'7', b'{"digest": 3}', b'{', b'\xff\xfe{', b'[' * 100_000,
    '{"name": "α"}'.encode('latin-1', 'replace')])
def test_what_is_no_card_of_a_task_is_one_message(folder, text):
    (folder/'task.json').write_bytes(text)
    with pytest.raises(InputError, match='perturbench run'): load_task(folder)

def forge(folder, **changed):
    "Change `task.json` as somebody would who knows how it is made."
    about = json.loads((folder/'task.json').read_text(encoding='utf-8'))
    about = {k: v for k, v in (about | changed).items() if v is not ... and k != 'digest'}
    if 'files' not in changed:
        about['files'] = {k: [(folder/k).stat().st_size, file_sha256(folder/k)] for k in about['files']}
    text = json.dumps(about | dict(digest=digest(about)), ensure_ascii=False)
    (folder/'task.json').write_text(text, encoding='utf-8')

@pytest.mark.parametrize('changed', [
    dict(spec={'new': 1}), dict(spec=3), dict(naming=...), dict(covariate_keys=7), dict(files=7), dict(files={}),
    dict(files={'a': 1}), dict(task_id='0'*12), dict(protocol=...)])
def test_a_card_of_another_version_is_one_message(folder, changed):
    forge(folder, **changed)
    (folder/'stamp.json').unlink()
    with pytest.raises(InputError, match='perturbench run'): load_task(folder)

ALTERED = {
    'store/indices': [(0, 60), (5, -1), (-1, 2**31 - 1)],
    'store/indptr': [(0, 1), (3, 10**12), (-1, 10**15), (7, -5)],
    'store/codes': [(0, 10**6), (-1, -1), (0, 3)],
    'store/order': [(0, 1), (4, -1)],
    'store/values': [(9, np.nan), (2, np.inf)],
    'store/counts': [(0, -np.inf)],
    'store/library': [(1, np.nan)],
    'parts': [((0, 0), 9), ((0, 1), -1)],
    'half': [(0, 5)],
    'replicate': [(0, -2)],
    'store/design_state': [(0, 99)]}

@pytest.mark.parametrize('name, at, number', [(k, at, v) for k, changes in ALTERED.items() for at, v in changes])
def test_numbers_that_lead_astray_are_refused_even_with_a_forged_hash(folder, name, at, number):
    a = np.load(folder/f'{name}.npy')
    a[at] = number
    np.save(folder/f'{name}.npy', a)
    forge(folder)
    with pytest.raises(InputError): load_task(folder)
    if name.startswith('store/'):
        with pytest.raises(InputError, match='no whole store'): CellStore.load(folder/'store')

@pytest.mark.parametrize('name, make', [
    ('store/values', lambda a: a[1:]),
    ('store/values', lambda a: a.astype(complex)),
    ('store/indices', lambda a: a.astype('U9')),
    ('store/indptr', lambda a: a[:-3]),
    ('parts', lambda a: a[:, 1:]),
    ('store/codes', lambda a: np.stack([a, a])),
    ('half', lambda a: a.astype(float)),
    ('store/cells', lambda a: a[:4]),
    ('store/indices', lambda a: a.astype(np.int64) + 2**32)])
def test_arrays_of_another_kind_are_refused(folder, name, make):
    np.save(folder/f'{name}.npy', make(np.load(folder/f'{name}.npy')))
    forge(folder)
    with pytest.raises(InputError): load_task(folder)

def test_an_array_that_does_not_belong_to_it_is_refused(folder):
    np.save(folder/'store'/'embedding_7.npy', np.zeros(3))
    with pytest.raises(InputError, match='embedding_7.npy does not belong to it'): load_task(folder)

def test_files_are_hashed_once_after_they_changed(folder, monkeypatch):
    hashed = []
    monkeypatch.setattr(tasks, 'file_sha256', lambda p: hashed.append(p) or file_sha256(p))
    for n in (1, 0, 0): load_task(folder); assert (len(hashed) > 0) == n; hashed.clear()
    os.utime(folder/'store'/'indices.npy', ns=(1, 1))
    for n in (1, 0): load_task(folder); assert (len(hashed) > 0) == n; hashed.clear()
    (folder/'stamp.json').write_text('[3', encoding='utf-8')
    for n in (1, 0): load_task(folder); assert (len(hashed) > 0) == n; hashed.clear()
    monkeypatch.setattr(tasks, 'atomic_path', no_place)  # a folder that cannot be written
    (folder/'stamp.json').unlink()
    for n in (1, 1): load_task(folder); assert (len(hashed) > 0) == n; hashed.clear()

def no_place(path, **_): raise InputError('read-only')

@pytest.mark.parametrize('name', [
    'store/values.npy', 'task.json', 'store/store.json', 'half.npy', 'split.csv', 'conditions.parquet'])
@pytest.mark.parametrize('how', ['lost', 'changed', 'emptied'])
def test_a_damaged_task_is_opened_anew_and_it_is_said(asked, whole, folder, capsys, name, how):
    if how == 'lost': (folder/name).unlink()
    elif how == 'changed': flipped(folder/name, 40, 3)
    else: (folder/name).write_bytes(b'')
    task = open_task(asked, folder.parents[1])
    said = capsys.readouterr().err.splitlines()
    if (name, how) != ('task.json', 'lost'):
        assert [l for l in said if l.startswith('note:') and 'it is opened anew' in l and str(folder) in l] == said[:1]
    assert content(task) == content(load_task(whole))
    assert task.folder == folder
    assert content(load_task(folder)) == content(task)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]

def test_a_task_of_an_earlier_version_is_opened_anew(asked, whole, folder, capsys):
    about = json.loads((folder/'task.json').read_text(encoding='utf-8'))
    old = {k: v for k, v in about.items() if k not in ('digest', 'files', 'version')}
    (folder/'task.json').write_text(json.dumps(old), encoding='utf-8')
    with pytest.raises(InputError, match='earlier version'): load_task(folder)
    assert content(open_task(asked, folder.parents[1])) == content(load_task(whole))
    assert 'earlier version' in capsys.readouterr().err

def test_what_is_not_ours_in_the_place_of_a_task_stays(asked, folder):
    (folder/'task.json').unlink()
    (folder/'my notes.txt').write_text('mine', encoding='utf-8')
    with pytest.raises(InputError, match='other things'): open_task(asked, folder.parents[1])
    assert (folder/'my notes.txt').read_text(encoding='utf-8') == 'mine' and (folder/'store').is_dir()

def test_a_task_under_the_name_of_another_is_refused(folder):
    with pytest.raises(InputError, match='under the name of another'):
        load_task(folder.rename(folder.with_name('0123456789ab')))

@pytest.mark.parametrize('raised', [
    OSError(errno.ENOSPC, 'No space left on device'),
    OSError(errno.EDQUOT, 'quota'),
    OSError(errno.EROFS, 'Read-only'),
    OSError('12 requested and 0 written')])
@pytest.mark.parametrize('where', ['np.save', 'posix_fallocate', 'to_parquet'])
def test_a_disk_that_fills_up_is_one_message_and_nothing_is_left(asked, tmp_path, monkeypatch, raised, where):
    def fail(*_, **__): raise raised
    if raised.errno is None and where != 'np.save': return
    if where == 'np.save': monkeypatch.setattr(np, 'save', fail)
    elif where == 'to_parquet': monkeypatch.setattr(pd.DataFrame, 'to_parquet', fail)
    elif hasattr(os, where): monkeypatch.setattr(os, where, fail)
    with pytest.raises(InputError, match='cannot be written'): open_task(asked, tmp_path/'out')
    assert list((tmp_path/'out'/'tasks').iterdir()) == []

def test_a_real_limit_of_size_is_one_message(asked, tmp_path):
    "Python ignores the signal that the system sends with it."
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match='cannot be written'): open_task(asked, tmp_path/'out')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path/'out'/'tasks').iterdir()) == []

def open_at_once(entry, out, meet, said):
    "In a process: open the task when the other one does, too."
    meet.wait(60)
    said.put(float(open_task(entry, out).store.values.sum()))

def test_two_at_once_open_one_task(asked, tmp_path):
    fork = multiprocessing.get_context('fork')
    meet, said = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=open_at_once, args=(asked, tmp_path, meet, said)) for _ in range(2)]
    for p in both: p.start()
    sums = [said.get(timeout=60) for _ in both]
    for p in both: p.join()
    assert [p.exitcode for p in both] == [0, 0] and sums[0] == sums[1]
    assert len(list((tmp_path/'tasks').iterdir())) == 1

@pytest.mark.parametrize('is_damaged', [False, True])
def test_the_first_of_two_stays(asked, tmp_path, monkeypatch, is_damaged):
    "A task that another process wrote meanwhile may be in use already."
    if is_damaged: (open_task(asked, tmp_path).folder/'half.npy').unlink()
    seal, others = tasks._seal, []
    def meanwhile(folder, about):
        seal(folder, about)
        monkeypatch.setattr(tasks, '_seal', seal)
        others.append(open_task(asked, tmp_path).folder.stat().st_ino)
    monkeypatch.setattr(tasks, '_seal', meanwhile)
    ours = open_task(asked, tmp_path).folder
    assert ours.stat().st_ino == others[0] and list(ours.parent.iterdir()) == [ours]

@few
@given(st.data())
def test_whatever_numbers_a_store_is_made_of_kernels_read_nothing_else(whole, data):
    s = load_task(whole).store
    arrays = {k: np.array(getattr(s, k)) for k in ('indptr', 'indices', 'values', 'codes', 'order')}
    name = data.draw(st.sampled_from(['indptr', 'indices', 'codes', 'order']))
    for _ in range(data.draw(st.integers(1, 4))):
        number = data.draw(st.sampled_from([-2**31, -1, 0, 1, 39, 40, 2**31 - 1]) | st.integers(0, 400))
        arrays[name][data.draw(st.integers(0, len(arrays[name]) - 1))] = number
    try: made = CellStore(**arrays, cells=None, genes=s.genes, design=s.design)
    except InputError: return
    assert np.isfinite(made.dense(np.arange(s.n_cells)).numpy()).all()
    Cells(made, np.arange(s.n_cells)).means()

def test_rows_and_codes_beyond_a_store_are_refused(whole):
    s = load_task(whole).store
    for rows in ([s.n_cells], [-1], [2**40]):
        with pytest.raises(InputError, match='rows go from 0'): Cells(s, rows)
        with pytest.raises(InputError, match='rows go from 0'): s.dense(rows)
    check_store(s)

def nested(depth):
    value = []
    for _ in range(depth): value = [value]
    return value

itself = {}
itself['again'] = itself

@pytest.mark.parametrize('changed, words', [
    (dict(where={'day': datetime.date(2024, 1, 1)}), 'where.day is a date; put quotes'),
    (dict(where={'day': [datetime.datetime(2024, 1, 1)]}), 'where.day[0] is a time'),
    (dict(where={'a': {1, 2}}), 'is a set'),
    (dict(where={'a': b'x'}), 'is binary'),
    (dict(where={7: ['a']}), 'a key that is a number'),
    (dict(where={None: ['a']}), 'a key that is empty'),
    (dict(where={'a': None}), 'give it a value'),
    (dict(where={'a': []}), 'empty list'),
    (dict(where={'a': [['b']]}), 'or one list'),
    (dict(where={'a': {'b': 1}}), 'or one list'),
    (dict(where={'a': float('nan')}), 'is nan'),
    (dict(where={'a': [float('-inf')]}), 'is -inf'),
    (dict(where=['a']), 'is a mapping, such as'),
    (dict(where=itself), 'too deep'),
    (dict(split=dict(kind='states', states=nested(3000))), 'too deep'),
    (dict(where={'a': 10**5000}), '64 bits'),
    (dict(where={'a': 'x\0'}), 'characters that are none'),
    (dict(split=dict(kind='file', file=None)), 'the task.split.file is empty'),
    (dict(split=dict(kind='file', file=7)), "'file' of a split is a number"),
    (dict(split=dict(kind='file', file=['a.csv'])), "'file' of a split is a list"),
    (dict(split=dict(kind='file', file='.')), 'is a folder'),
    (dict(split=dict(kind='file', file='no.csv')), 'does not exist'),
    (dict(split=dict(kind='file', file='x'*300)), 'too long'),
    (dict(split=dict(kind='file')), 'one field more'),
    (dict(split=dict(kind='file', file='a.csv', seed=1)), 'one field more'),
    (dict(split=dict(kind='loops')), "'loops' is not known"),
    (dict(split=dict(kind=3)), 'with a `kind`'),
    (dict(split=dict(fraction=.3)), 'with a `kind`'),
    (dict(split='transfer'), 'is a mapping'),
    (dict(split=dict(kind='transfer', fraction=float('nan'))), 'is nan'),
    (dict(split=dict(kind='transfer', fraction=float('inf'))), 'is inf'),
    (dict(split=dict(kind='transfer', fraction='a')), "is 'a'; give a number"),
    (dict(split=dict(kind='transfer', fraction=2)), 'from 0 to 1'),
    (dict(split=dict(kind='transfer', fraction=True)), 'is True'),
    (dict(split=dict(kind='transfer', seed=1.5)), 'is 1.5; give a whole'),
    (dict(split=dict(kind='transfer', seed=-1)), 'is -1'),
    (dict(split=dict(kind='transfer', folds=0)), 'is 0; give a whole'),
    (dict(split=dict(kind='transfer', folds=True)), 'is True; give a whole'),
    (dict(split=dict(kind='transfer', folds=3, fold='1')), "is '1'"),
    (dict(split=dict(kind='released', name=3)), "'name' of a split is a number"),
    (dict(genes=dict(hvg=-1)), "'hvg' of `genes` is -1"),
    (dict(genes=dict(hvg=True)), 'is True'),
    (dict(genes=dict(cells=['train'])), '`cells` of `genes`'),
    (dict(genes=dict(hvgs=3)), "did you mean 'hvg'"),
    (dict(genes=3), 'is a mapping'),
    (dict(name=''), 'empty name'),
    (dict(name='  '), 'empty name'),
    (dict(name='a/b'), "holds a '/'"),
    (dict(name='.'), "begins with a '.'"),
    (dict(name='..'), "begins with a '.'"),
    (dict(name='.hidden'), "begins with a '.'"),
    (dict(name='a\nb'), 'cannot be printed'),
    (dict(name='a\0'), 'characters that are none'),
    (dict(name='\udc80'), 'characters that are none'),
    (dict(name='ä'*101), 'at most 200'),
    (dict(name=3), '`name` of a task is a number; put quotes'),
    (dict(name=True), 'put quotes'),
    (dict(name=['a']), 'put quotes'),
    (dict(screen=3), '`screen` of a task is a number'),
    (dict(screen=None), 'the task.screen is empty'),
    (dict(screen=''), 'needs `screen`'),
    (dict(screen='a\0.h5ad'), 'characters that are none'),
    (dict(screen='x'*5000), 'too long'),
    (dict(screen='no/such.h5ad'), 'neither a file'),
    (dict(spilt={}), "did you mean 'split'"),
    ({3: 4}, 'a key that is a number')])
def test_an_entry_that_cannot_be_is_one_message(asked, changed, words, tmp_path):
    with pytest.raises(InputError) as e: read_task(asked | changed, tmp_path)
    assert words in str(e.value) and len(str(e.value)) < 6000

@pytest.mark.parametrize('entry', [
    None, 7, 1.5, True, [], ['sim-null'], {'sim-null'}, datetime.date(2024, 1, 1), b'sim-null', [10**5000],
    nested(3000)], ids=lambda o: type(o).__name__)
def test_what_is_no_task_is_one_message(entry):
    with pytest.raises(InputError, match='a task is a name, the path of an h5ad or a mapping'): read_task(entry)

def test_all_faults_of_an_entry_are_named(asked):
    with pytest.raises(InputError) as e:
        read_task(asked | dict(name=3, genes=dict(hvg=-1), split=dict(kind='transfer', seed='x', folds=0), extra=1))
    assert str(e.value).count('\n- ') == 5

def nest(o):
    "Lists and mappings of what `o` draws."
    return st.lists(o, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers() | st.none(), o, max_size=3)

words = st.text(max_size=5) | st.binary(max_size=3) | st.dates()
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | words, nest, max_leaves=6)
entries = st.fixed_dictionaries({}, optional={k: plain for k in ('name', 'where', 'split', 'genes', 'more')})

@settings(max_examples=300, deadline=None, derandomize=True)
@given(entries | plain, st.sampled_from(['sim-null', None]))
def test_any_entry_is_a_task_or_one_message(entry, screen):
    if isinstance(entry, dict) and screen: entry['screen'] = screen
    try: spec = read_task(entry)
    except InputError: return
    assert json.dumps(asdict(spec)) and read_task(asdict(spec)) == spec  # as a run is handed it

def test_built_in_tasks_are_what_they_say():
    for name, spec in TASKS.items(): assert read_task(name) is spec and tasks._entry_faults(asdict(spec)) == []

def test_what_the_system_says_of_a_path_is_said(asked, tmp_path, monkeypatch):
    loop = tmp_path/'loop.h5ad'
    loop.symlink_to(loop)
    with pytest.raises(InputError, match='leads back to itself'): read_task(str(loop))
    with pytest.raises(InputError, match='leads back to itself'):
        read_task(asked | dict(split=dict(kind='file', file=str(loop))))
    with pytest.raises(InputError, match='is a file and no folder'): read_task(str(Path(asked['screen'])/'deeper.h5ad'))
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with pytest.raises(InputError, match='no permission'): read_task(asked['screen'])
