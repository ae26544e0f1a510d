"Files of cells: each cause its own sentence, parts that do not fit, tables no file holds, places that are not ours."
import datetime, errno, gzip, os, shutil, subprocess, sys, warnings
from pathlib import Path
import anndata as ad, h5py, numpy as np, pandas as pd, pytest, zarr
from anndata.io import read_elem, write_elem
from hypothesis import given, settings, strategies as st
from scipy import sparse
from perturbench.cli import main
from perturbench.core import InputError
from perturbench.data import h5ad
from perturbench.data.blocks import Blocks, to_csr
from perturbench.data.frames import as_text, tidy, tidy_obsm, tidy_uns
from perturbench.data.h5ad import read_card, read_h5ad, write_frames, writing
from perturbench.data.structure import matrix_faults

LABELS = np.repeat(['control', 'p1', 'p2'], 20)

def toy(form=sparse.csr_matrix):
    "A small screen of counts."
    X = np.random.default_rng(0).poisson(2., (60, 12)).astype(np.float32)
    obs = pd.DataFrame({'what': LABELS}, index=[f'c{i}' for i in range(60)])
    return ad.AnnData(form(X), obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(12)]))

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def refused(path, *says, **options):
    "Reading `path` is refused, in memory and in the file, with one message that says all of `says`."
    for backed in (False, True):
        with pytest.raises(InputError) as e: read_h5ad(path, backed, **options)
        for o in says: assert o in str(e.value), str(e.value)
        assert str(path) in str(e.value)

# What is no h5ad

CONTENT = {
    'empty.h5ad': (b'', 'it is empty'),
    'page.h5ad': (b'\n  <HTML><body>403</body>', 'page of the web'),
    'error.h5ad': (b'{"message": "no such file"}', 'is JSON'),
    'lfs.h5ad': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    'table.h5ad': (b'cell\tgene\nc0\t1\n', 'such as a table'),
    'packed.h5ad.gz': (gzip.compress(b'\x89HDF\r\n\x1a\n' + bytes(99)), 'gunzip'),
    'seurat.rds': (gzip.compress(b'X\n\0\0\0\3'), 'an object of R'),
    'plain.rds': (b'X\n\0\0\0\3\0\4', 'an object of R'),
    'matrix.mtx': (b'%%MatrixMarket matrix coordinate', 'read_10x_mtx'),
    'matrix.mtx.gz': (gzip.compress(b'%%MatrixMarket matrix'), 'read_10x_mtx'),
    'a.zip': (b'PK\3\4' + bytes(30), 'zip archive'),
    'a.parquet': (b'PAR1' + bytes(30), 'Parquet'),
    'a.pkl': (b'\x80\4\x95' + bytes(30), 'pickle'),
    'noise.h5ad': (bytes(range(128, 256)), 'of another kind, or damaged'),
    'broken.h5ad': (b'\x89HDF\r\n\x1a\n' + bytes(200), 'damaged')}

@pytest.mark.parametrize('name', CONTENT)
def test_what_a_file_is_is_seen_in_it(at, name):
    content, says = CONTENT[name]
    Path(name).write_bytes(content)
    refused(name, 'cannot be read as h5ad', says)
    with pytest.raises(InputError, match='cannot be read as h5ad'): read_card(name)

def groups(*names, **attributes):
    def make(path):
        with h5py.File(path, 'w') as f:
            f.attrs.update(attributes)
            for k in names: f.create_group(k)
    return make

@pytest.mark.parametrize('make, says', [
    (groups('mod/prot', 'mod/atac', 'obs', 'var'), "['mod/atac']).write_h5ad('atac.h5ad')"),
    (groups('matrix', 'row_attrs', 'col_attrs', 'layers'), 'read_loom'),
    (groups('matrix/features', 'matrix/barcodes'), 'read_10x_h5'),
    (groups('GRCh38/barcodes', 'GRCh38/indptr'), 'read_10x_h5'),
    (groups('assays/RNA'), 'SeuratDisk'),
    (groups('obs'), 'it has no var'),
    (groups(), 'it has no obs and no var')])
def test_other_kinds_of_hdf5(at, make, says):
    make('x.h5ad')
    refused('x.h5ad', says)

def test_a_modality_is_written_as_the_message_says(at):
    with h5py.File('x.h5mu', 'w') as f:
        for k in ('rna', 'hto'): write_elem(f, f'mod/{k}', toy())
        for k in ('obs', 'var'): write_elem(f, k, toy().obs)
    with pytest.raises(InputError, match='MuData with hto, rna') as e: read_h5ad('x.h5mu')
    line = str(e.value).split('as h5ad: ')[-1]
    eval(line, dict(anndata=__import__('anndata.io') and ad, h5py=h5py))
    assert read_h5ad('rna.h5ad').shape == (60, 12)

def test_places_where_no_file_is(at):
    Path('loop').symlink_to('loop')
    Path('gone.h5ad').symlink_to('nowhere')
    Path('folder').mkdir()
    Path('tenx').mkdir()
    Path('tenx/matrix.mtx.gz').touch()
    Path('file').touch(); os.mkfifo('pipe')
    for path, says in {
            'loop': 'leads back to itself',
            'gone.h5ad': 'a link to a file that is not there',
            'folder': 'no zarr store',
            'tenx': "read_10x_mtx('tenx')",
            'file/x.h5ad': 'a part of its path is a file',
            'pipe': 'no file that can be read twice',
            'n'*300: 'name is too long',
            'none.h5ad': 'does not exist',
            'https://x.org/a.h5ad': 'is an address'}.items():
        refused(path, says)
    with pytest.raises(InputError, match='is no path'): read_h5ad('a\0b')

@pytest.mark.parametrize('code, says', [
    (errno.EACCES, 'no permission'),
    (errno.EIO, 'disk reports an error'),
    (errno.ESTALE, 'file server'),
    (errno.EMFILE, 'ulimit'),
    (errno.ENOMEM, 'too little memory')])
def test_the_systems_own_reason(at, monkeypatch, code, says):
    toy().write_h5ad('a.h5ad')
    def fail(path): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(h5ad, '_open_h5', fail)
    refused('a.h5ad', says)
    with pytest.raises(InputError, match=says): read_card('a.h5ad')

def test_a_disk_that_fails_in_the_middle(at):
    toy().write_h5ad('a.h5ad')
    X = read_h5ad('a.h5ad', backed=True).X
    blocks = Blocks(X)
    class Failing:
        file, shape, dtype = X.group.file, X.group['data'].shape, np.dtype('f4')
        def __getitem__(self, at):
            raise OSError("Can't read data (file read failed: errno = 5, error message = 'Input/output error')")
    blocks.source.data = Failing()
    with pytest.raises(InputError, match='a.h5ad cannot be read, the disk reports an error'): list(blocks)

def test_cut_files_say_how_much_is_there(at):
    toy().write_h5ad('a.h5ad')
    whole = Path('a.h5ad').read_bytes()
    for n in (40, 1000, len(whole)//2, len(whole) - 1):
        Path('cut.h5ad').write_bytes(whole[:n])
        refused('cut.h5ad', 'write or download it again')
    refused('cut.h5ad', f'{len(whole) - 1:,} of {len(whole):,} bytes')

def test_a_file_that_is_open_for_writing_elsewhere(at):
    toy().write_h5ad('a.h5ad')
    holds = "import h5py, sys; f = h5py.File('a.h5ad', 'r+'); print(1, flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, '-c', holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        refused('a.h5ad', 'is open for writing elsewhere', 'HDF5_USE_FILE_LOCKING=FALSE')
        with pytest.raises(InputError, match='open for writing elsewhere'): read_card('a.h5ad')
    finally: other.communicate()
    assert read_h5ad('a.h5ad').n_obs == 60

def test_a_file_system_without_locks(at, monkeypatch):
    toy().write_h5ad('a.h5ad')
    real, asked = h5py.File, []
    class File(real):
        def __init__(self, path, mode='r', **kw):
            asked.append(kw)
            if kw.get('locking', True):
                raise OSError(f"unable to lock file, errno = {errno.ENOLCK}, error message = 'No locks available'")
            super().__init__(path, mode, **kw)
    monkeypatch.setattr(h5py, 'File', File)
    assert h5ad._open_h5('a.h5ad')['X'] is not None and asked == [{}, {'locking': False}]

# What nobody needs cannot stop a file

def newer(element): element.attrs.update({'encoding-type': 'of-a-later-version', 'encoding-version': '9.9.9'})

def latin(f, name):
    f['obs'].create_dataset(name, data=np.array(['S\xe9zary'.encode('latin1')]*60), dtype=h5py.string_dtype())
    f[f'obs/{name}'].attrs.update({'encoding-type': 'string-array', 'encoding-version': '0.2.0'})
    f['obs'].attrs['column-order'] = np.array(['what', name], dtype=h5py.string_dtype())

def rich():
    "A screen with all that an AnnData may have."
    a = toy()
    a.raw, a.layers['other'], a.varm['w'], a.obsp['d'] = a, a.X.copy(), np.ones((12, 2)), sparse.eye(60, format='csr')
    a.obsm['X_pca'], a.uns['text'], a.obs['n'] = np.ones((60, 2)), 'here', 1
    a.write_h5ad('a.h5ad')

@pytest.mark.parametrize('name, told', [
    ('uns/text', "uns['text']"),
    ('obsm/X_pca', "obsm['X_pca']"),
    ('layers/other', ''),
    ('varm/w', ''),
    ('obsp/d', ''),
    ('raw/X', ''),
    ('obs/n', "the column 'n' of obs")])
def test_an_element_of_a_later_anndata_is_left_out(at, name, told):
    rich()
    with h5py.File('a.h5ad', 'r+') as f: newer(f[name])
    for backed in (False, True):
        notes = []
        a = read_h5ad('a.h5ad', backed, notes=notes)
        assert a.shape == (60, 12) and list(a.obs.what) == list(LABELS)
        if told:
            assert len(notes) == 1 and told in notes[0]
            assert 'of-a-later-version 9.9.9' in notes[0]
            assert 'update anndata' in notes[0]
        else: assert notes == []
        a.file.close()

@pytest.mark.parametrize('name, says', [
    ('X', 'X'),
    ('obs/what', "the column 'what' of obs"),
    ('obs/_index', 'the index of obs')])
def test_an_element_of_a_later_anndata_that_is_needed(at, name, says):
    toy().write_h5ad('a.h5ad')
    with h5py.File('a.h5ad', 'r+') as f: newer(f[name])
    refused('a.h5ad', says, 'of-a-later-version', keys=['what'])

def test_text_that_is_not_utf8(at):
    toy().write_h5ad('a.h5ad')
    with h5py.File('a.h5ad', 'r+') as f: latin(f, 'who')
    with pytest.warns(UserWarning, match="the column 'who' of obs holds text that is not UTF-8"):
        assert list(read_h5ad('a.h5ad').obs) == ['what']
    refused('a.h5ad', "the column 'who' of obs holds text that is not UTF-8", keys=['who'])

@pytest.mark.parametrize('card', ['no json', '[1]', '3', 'null'])
def test_a_card_that_is_none(at, card):
    a = toy()
    a.uns['perturbench'] = card
    a.write_h5ad('a.h5ad')
    assert read_card('a.h5ad') == {} and read_h5ad('a.h5ad').n_obs == 60

# Parts that do not fit

def put(f, name, values):
    "Replace an array of a file."
    parent, key = f[name.rsplit('/', 1)[0]], name.rsplit('/', 1)[1]
    attributes = dict(parent[key].attrs)
    del parent[key]
    if isinstance(f, h5py.File): parent[key] = values
    else: parent.create_array(key, data=np.asarray(values))
    parent[key].attrs.update(attributes)

def change(name, edit): return lambda f: put(f, name, edit(f[name][:]))
def replace_at(i, value): return lambda o: np.r_[o[:i], np.array([value], o.dtype), o[i + 1:]]

LIES = {
    'starts late': (change('X/indptr', lambda o: o + 1), 'indptr begins at 1'),
    'falls': (change('X/indptr', replace_at(5, 0)), 'indptr falls at'),
    'ends beyond': (change('X/indptr', replace_at(60, 10**7)), 'indptr ends at 10,000,000'),
    'ends before': (change('X/indptr', replace_at(60, 3)), 'indptr ends at 3'),
    'short indptr': (change('X/indptr', lambda o: o[:-1]), 'indptr has 60 entries'),
    'long indptr': (change('X/indptr', lambda o: np.r_[o, o[-1]]), 'indptr has 62 entries'),
    'negative column': (change('X/indices', replace_at(9, -7)), 'reach from -7'),
    'far column': (change('X/indices', replace_at(9, 2**31 - 1)), 'to 2,147,483,647'),
    'next column': (change('X/indices', replace_at(9, 12)), 'to 12'),
    'short data': (change('X/data', lambda o: o[:-2]), 'values and'),
    'complex': (change('X/data', lambda o: o.astype('c8')), 'complex numbers'),
    'fractions': (change('X/indices', lambda o: o + .5), 'whole numbers'),
    'two dimensions': (change('X/data', lambda o: o[:, None]), 'one dimension')}

ALONG = {'rows': sparse.csr_matrix, 'columns': sparse.csc_matrix}

@pytest.fixture(scope='module')
def unspoilt(tmp_path_factory):
    "Files that nothing is wrong with."
    folder = tmp_path_factory.mktemp('unspoilt')
    for along, form in ALONG.items():
        toy(form).write_h5ad(folder/f'{along}.h5ad')
        toy(form).write_zarr(folder/f'{along}.zarr')
    return folder

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('store', ['h5ad', 'zarr'])
@pytest.mark.parametrize('along', ALONG)
@pytest.mark.parametrize('kind', LIES)
def test_compressed_parts_that_do_not_fit(at, unspoilt, kind, along, store):
    edit, says = LIES[kind]
    of_columns = {
        'ends beyond': ('10,000,000', change('X/indptr', replace_at(12, 10**7))),
        'ends before': ('ends at 3', change('X/indptr', replace_at(12, 3))),
        'short indptr': ('has 12 entries', edit),
        'long indptr': ('has 14 entries', edit),
        'next column': ('to 60', change('X/indices', replace_at(9, 60)))}
    if along == 'columns' and kind in of_columns: says, edit = of_columns[kind]
    copy = shutil.copy if store == 'h5ad' else shutil.copytree
    copy(unspoilt/f'{along}.{store}', f'a.{store}')
    f = h5py.File('a.h5ad', 'r+') if store == 'h5ad' else zarr.open_group('a.zarr', mode='r+', use_consolidated=False)
    edit(f)
    if store == 'h5ad': f.close()
    refused(f'a.{store}', 'X', says, 'it is damaged', 'write or download it again')
    assert main(['prepare', f'a.{store}', '--perturbation-key', 'what', '-o', 'out.h5ad']) == 2
    assert not Path('out.h5ad').exists()

def drop(name):
    def edit(f): del f[name]
    return edit

def shape(*n):
    def edit(f): f['X'].attrs['shape'] = np.array(n)
    return edit

def no_shape(f): del f['X'].attrs['shape']

@pytest.mark.parametrize('edit, says', [
    (drop('X/indptr'), 'X lacks indptr'),
    (drop('X/data'), 'X lacks data'),
    (shape(60, 13), 'X is 60 x 13'),
    (shape(12, 60), 'X is 12 x 60'),
    (shape(60), 'does not say its shape'),
    (no_shape, 'does not say its shape'),
    (drop('X'), 'it has no X'),
    (drop('var'), 'it has no var'),
    (drop('obs/_index'), 'obs has no index'),
    (change('obs/what/codes', replace_at(3, 9)), "the column 'what' of obs points at categories"),
    (change('obs/what/codes', replace_at(3, -2)), 'that there are none of, in 1 rows'),
    (change('obs/what/codes', lambda o: o[:-5]), 'has 55 entries, and there are 60 rows'),
    (change('var/_index', lambda o: o[:-1]), '60 cells and 11 genes')])
def test_a_file_that_contradicts_itself(at, edit, says):
    toy().write_h5ad('a.h5ad')
    with h5py.File('a.h5ad', 'r+') as f: edit(f)
    refused('a.h5ad', says)

@pytest.mark.parametrize('X, says', [
    (np.zeros(60), 'X is 60, but'),
    (np.zeros((60, 12, 2)), 'X is 60 x 12 x 2'),
    (np.zeros((60, 11)), 'X is 60 x 11'),
    (np.zeros((60, 12), complex), 'complex numbers'),
    (np.full((60, 12), 'a', object), 'holds texts')])
def test_dense_values_that_do_not_fit(at, X, says):
    toy(np.asarray).write_h5ad('a.h5ad')
    with h5py.File('a.h5ad', 'r+') as f:
        del f['X']
        write_elem(f, 'X', X)
    refused('a.h5ad', says)

def test_counts_beside_the_values_are_looked_at_too_and_all_faults_are_told(at):
    a = toy()
    a.layers['counts'] = a.X.copy()
    a.write_h5ad('a.h5ad')
    with h5py.File('a.h5ad', 'r+') as f:
        change('layers/counts/indptr', replace_at(2, 10**6))(f)
        change('X/indices', replace_at(2, -1))(f)
    with pytest.raises(InputError) as e: read_h5ad('a.h5ad', backed=True)
    assert "layers['counts']: indptr falls" in str(e.value) and 'X: its column numbers reach from -1' in str(e.value)

@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(['indptr', 'indices', 'data']),
    st.integers(0, 40),
    st.one_of(st.integers(-2**31, 2**31 - 1), st.integers(-3, 30)))
def test_a_changed_matrix_in_memory_is_refused_or_harmless(part, at, value):
    X = sparse.random_array((9, 8), density=.6, format='csr', rng=np.random.default_rng(1), dtype=np.float32)
    getattr(X, part)[at % len(getattr(X, part))] = value
    n = np.diff(X.indptr)
    rows_fit = (n >= 0).all() and X.indptr[0] == 0 and X.indptr[-1] == len(X.data)
    is_fine = rows_fit and X.indices.min() >= 0 and X.indices.max() < 8
    assert (matrix_faults(X) == []) == is_fine
    for use in (to_csr, lambda o: list(Blocks(o))):
        if is_fine: use(X)
        else:
            with pytest.raises(InputError): use(X)

def test_a_lost_piece_of_a_zarr_store_is_no_zero(at):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        toy().write_zarr('a.zarr')
    is_piece = lambda p: p.is_file() and not p.name.startswith('.') and p.name != 'zarr.json'
    next(p for p in Path('a.zarr/X/data').rglob('*') if is_piece(p)).unlink()
    refused('a.zarr', '1 of 1 pieces of its values are not in the store')

# Tables that no file holds

TEXT = st.one_of(st.text(max_size=3), st.sampled_from(['a/b', '_index', '', '.', 'nan', 'a\0', '\ud800', '1']))
NUMBER = st.one_of(st.integers(-2**70, 2**70), st.integers(-3, 3), st.floats(), st.booleans())
ODD = st.sampled_from([
    None, np.nan, pd.NA, pd.NaT, b'a\xff', (1, 2), [1], {'a': 1}, datetime.date(2024, 1, 31),
    pd.Timestamp('2024', tz='UTC'), pd.Timedelta('1s'), pd.Interval(0, 1), 1j, np.str_('q'), object])
CELLS = st.one_of(*[st.lists(o, min_size=4, max_size=4) for o in (
    TEXT, NUMBER, ODD, TEXT | NUMBER | ODD, TEXT | st.none(), st.none() | st.booleans(),
    st.none() | st.integers(0, 3))])
KINDS = st.sampled_from([
    'object', 'category', 'Int64', 'Float64', 'boolean', 'string', 'string[pyarrow]', 'int64[pyarrow]', 'float16',
    'complex128', 'Sparse[float]', 'datetime64[ns]', 'timedelta64[ns]'])

def column(values, kind):
    made = pd.Series(values, dtype=object)
    try: return made.astype(kind)
    except Exception: return made

def is_missing(o):
    try: return bool(pd.isna(o))
    except ValueError: return False

def same(was, now):
    if is_missing(was): return is_missing(now)
    return now == as_text(was) if isinstance(now, str) else now == was or np.isclose(float(now), float(was))

@pytest.mark.filterwarnings('ignore')
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(TEXT | st.integers(0, 3) | st.none(), CELLS, KINDS), max_size=3),
    st.lists(TEXT | st.integers(0, 9) | st.none(), min_size=4, max_size=4),
    TEXT | st.none())
def test_any_table_is_refused_or_written_as_it_is(columns, index, name):
    if columns: frame = pd.concat([column(values, kind) for _, values, kind in columns], axis=1)
    else: frame = pd.DataFrame(index=range(4))
    frame.columns = pd.Index([k for k, *_ in columns], dtype=object)
    frame.index = pd.Index(index, dtype=object, name=name)
    tidied = tidy(frame, 'obs')
    class Screen: obs, var, obsm, uns = frame, pd.DataFrame(index=['g0']), {}, {}
    with h5py.File('memory', 'w', driver='core', backing_store=False) as f:
        f.filename_, writes = '.', lambda: write_frames(f, Screen, {'name': 'toy'})
        if tidied.faults:
            with pytest.raises(InputError, match='cannot be written'): writes()
            return
        writes()
        names = h5ad._card(f['uns/perturbench'][()]).get('names', {})
        back = h5ad._own_names(read_elem(f['obs']), names.get('obs'))
    assert list(back.index) == [as_text(o) for o in index] and list(back) == list(tidied.frame)
    for k, values, kind in columns:
        if [str(o) for o, *_ in columns].count(str(k)) == 1 and type(k) is str and as_text(k) == k:
            assert all(map(same, frame[k], back[k])), (list(frame[k]), list(back[k]))
    assert tidy(tidied.frame, 'obs').notes == []

def test_what_differs_under_one_name_is_refused_and_what_does_not_is_kept_once():
    frame = pd.DataFrame([[1, 1, 'a'], [2, 2, 'b']], columns=['n', 'n', 'x'])
    assert list(tidy(frame, 'obs').frame) == ['n', 'x'] and 'kept once' in tidy(frame, 'obs').notes[0]
    assert 'different values' in tidy(frame.set_axis(['x', 'n', 'x'], axis=1), 'var').faults[0]
    levels = frame.set_index(pd.MultiIndex.from_tuples([('a', 1), ('b', 2)]))
    assert 'has 2 levels' in tidy(levels, 'obs').faults[0]

@pytest.mark.parametrize('what', ['obs', 'var'])
@pytest.mark.parametrize('same', [True, False])
def test_an_index_with_the_name_of_a_column(at, what, same):
    a = toy()
    table = getattr(a, what)
    table['name'] = list(table.index) if same else 'other'
    table.index.name = 'name'
    if same: a.write_h5ad('a.h5ad')
    notes = tidy(table, what).notes
    assert (notes == []) == same
    with writing('b.h5ad') as f:
        write_elem(f, 'X', a.X)
        write_frames(f, a, {})
    b = ad.read_h5ad('b.h5ad')
    assert getattr(b, what).index.name is None and list(getattr(b, what)['name']) == list(table['name'])
    if same: assert main(['prepare', 'a.h5ad', '--perturbation-key', 'what', '-o', 'c.h5ad']) == 0

def test_columns_keep_their_names_where_a_file_cannot(at):
    a = toy()
    for k in ('dose/uM', '_index', 'dose_uM', '', '__x'): a.obs[k] = 1.5
    with writing('a.h5ad') as f:
        write_elem(f, 'X', a.X)
        write_frames(f, a, {'name': 'toy'})
    assert not any('/' in k for k in ad.read_h5ad('a.h5ad').obs)
    assert list(read_h5ad('a.h5ad').obs) == list(a.obs) and read_card('a.h5ad')['name'] == 'toy'

def test_uns_and_obsm_keep_what_they_can():
    uns = tidy_uns({
        'fine': {'deep': [1, 2]},
        'bad': {'deep': {len}},
        None: 1,
        'a/b': 'x',
        'table': pd.DataFrame({'day': [pd.Timestamp('2024-01-31')]}),
        'text': '\ud800',
        'bytes': b'\xff'})
    assert uns.frame['fine'] == {'deep': [1, 2]}
    assert uns.frame['bad'] == {} and uns.frame['None'] == 1 and uns.frame['a_b'] == 'x'
    assert uns.frame['text'] == '\\ud800'
    assert 'bytes' not in uns.frame and any("uns['bad']['deep']" in o for o in uns.notes)
    obsm = tidy_obsm({
        'flat': np.ones(2),
        'rows': sparse.eye(2, format='csr'),
        'odd': np.array([[len], [1]], object),
        'x/y': np.ones((2, 1))}, ['a', 'b'])
    assert {k: v.shape for k, v in obsm.frame.items()} == {'flat': (2, 1), 'rows': (2, 2), 'x_y': (2, 1)}
    assert len(obsm.notes) == 2

# Places

def test_an_output_is_written_where_a_link_leads_and_never_over_a_folder(at):
    toy().write_h5ad('a.h5ad')
    Path('place').mkdir()
    Path('link.h5ad').symlink_to('place/real.h5ad')
    Path('store.h5ad').mkdir()
    Path('store.h5ad/mine').write_text('mine')
    assert main(['prepare', 'a.h5ad', '--perturbation-key', 'what', '-o', 'link.h5ad']) == 0
    assert Path('link.h5ad').is_symlink() and read_card('place/real.h5ad')['n_cells'] == 60
    assert main(['prepare', 'a.h5ad', '--perturbation-key', 'what', '-o', 'store.h5ad']) == 2
    assert Path('store.h5ad/mine').read_text() == 'mine'

@pytest.mark.parametrize('error, says', [
    (OSError(errno.ENOSPC, 'full'), 'no room'),
    (OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"), 'no room'),
    (OSError(errno.EROFS, 'ro'), 'read-only'),
    (OSError(errno.EDQUOT, 'quota'), 'no room')])
def test_a_disk_that_ends_while_it_is_written(at, error, says):
    with pytest.raises(InputError, match=says):
        with writing('a.h5ad'): raise error
    assert not any(Path('.').iterdir())
