"Preparing screens, selecting genes: the same on disk and in memory, the same as scanpy, bounded, whole or not at all."
import errno, os
from types import SimpleNamespace
import anndata as ad, numpy as np, pandas as pd, pytest, scanpy as sc
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import sparse
from perturbench.core import InputError
from perturbench.cli import main
from perturbench.data import blocks, h5ad, preprocess, screen as screens
from perturbench.data.preprocess import changed_genes, prepare, select_genes, variable_genes
from perturbench.data.blocks import Blocks, in_file
from perturbench.data.h5ad import read_card, read_h5ad
from perturbench.data.screen import Screen, read_screen
from perturbench.loaders.store import CellStore
from perturbench.tasks import _content, open_task

def raw(n=240, n_genes=150, seed=0, names=('control', 'KLF1', 'BAK1', 'KLF1+BAK1')):
    "Counts of two lines; every perturbation changes some genes."
    r = np.random.default_rng(seed)
    what, line = r.choice(names, n), r.choice(['A', 'B'], n)
    mean = r.gamma(.5, 3, n_genes)*np.where(np.arange(n_genes)[None] % 7 == pd.factorize(what)[0][:, None], 4, 1)
    obs = pd.DataFrame(dict(what=what, line=line), index=[f'c{i}' for i in range(n)])
    var = pd.DataFrame(index=['KLF1', 'BAK1', *(f'g{i}' for i in range(n_genes - 2))])
    return ad.AnnData(sparse.csr_matrix(r.poisson(mean).astype(np.float32)), obs=obs, var=var)

def same(a, b):
    "Whether two screens hold the same cells, values and counts to the bit."
    assert a.genes == b.genes and list(a.adata.obs_names) == list(b.adata.obs_names) and (a.codes == b.codes).all()
    for layer in (None, 'counts'):
        x, y = (np.concatenate([np.asarray(o, float) for o in s.blocks(layer).flat()]) for s in (a, b))
        assert np.array_equal(x, y)
    return True

def in_small_blocks(monkeypatch): monkeypatch.setattr(blocks, 'BLOCK', 700)

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.mark.parametrize('kind', [
    'csr', 'csc', 'dense', 'integers', 'double', 'unsorted', 'csr in file', 'csc in file', 'dense in file',
    'anndata backed'])
def test_every_kind_of_matrix_gives_the_same_screen(at, monkeypatch, kind):
    a, whole = raw(), prepare(raw(), 'what', 'line', min_cells=30)
    X = a.X
    if 'csc' in kind: a.X = sparse.csc_matrix(X)
    if 'dense' in kind: a.X = X.toarray()
    if kind == 'integers': a.X = X.astype(np.int64)
    if kind == 'double': a.X = X.astype(float)
    if kind == 'unsorted':
        a.X = sparse.csr_matrix((X.data[::-1].copy(), X.indices[::-1].copy(), X.nnz - X.indptr[::-1]), X.shape)[::-1]
    in_small_blocks(monkeypatch)
    if 'in file' in kind or kind == 'anndata backed':
        a.write_h5ad('a.h5ad')
        a = ad.read_h5ad('a.h5ad', backed='r') if kind == 'anndata backed' else read_h5ad('a.h5ad', backed=True)
        assert kind == 'anndata backed' or in_file(a.X)
    assert same(prepare(a, 'what', 'line', min_cells=30), whole)
    written = prepare(a, 'what', 'line', min_cells=30, out='b.h5ad')
    assert same(written, whole) and written.card == whole.card

@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(1, 400), st.booleans(), st.booleans())
def test_the_size_of_blocks_and_masks_do_not_matter(seed, size, cells, genes):
    a, r = raw(60, 40, seed), np.random.default_rng(seed)
    a.obs.iloc[:2] = [['control', 'A'], ['control', 'B']]  # few cells may have no control in a line
    cells, genes = (r.random(n) < .8 if on else np.ones(n, bool) for on, n in ((cells, 60), (genes, 40)))
    cells[a.obs.what.to_numpy() == 'control'] = True
    old, blocks.BLOCK = blocks.BLOCK, 2**22
    try:
        whole = prepare(a[cells][:, genes].copy(), 'what', 'line', min_cells=8)
        blocks.BLOCK = size
        assert same(prepare(a, 'what', 'line', min_cells=8, cells=cells, genes=genes), whole)
        train = r.random(whole.n_cells) < .7
        small = changed_genes(whole, train, 4), _content(whole)
        blocks.BLOCK = 2**22
        assert (small[0] == changed_genes(whole, train, 4)).all() and small[1] == _content(whole)
    finally: blocks.BLOCK = old

def test_a_screen_in_a_file_is_the_screen_in_memory(at, monkeypatch):
    prepare(raw(), 'what', 'line', out='a.h5ad', card=dict(split=dict(kind='transfer')))
    near, far = read_screen('a.h5ad', backed=False), read_screen('a.h5ad', backed=True)
    assert in_file(far.adata.X) and not in_file(near.adata.X) and same(near, far)
    assert near.card == far.card and near.card['split'] == dict(kind='transfer')
    in_small_blocks(monkeypatch)
    train = np.random.default_rng(0).random(near.n_cells) < .7
    for choose, n in ((variable_genes, 20), (changed_genes, 5)):
        assert (choose(near, train, n) == choose(far, train, n)).all()
    assert _content(near) == _content(far)
    where = dict(line=['B'])
    near, far = near.subset(where).subset_genes(near.genes[::-2]), far.subset(where).subset_genes(far.genes[::-2])
    assert same(near, far) and (near.adata.X != far.adata.X).nnz == 0
    a, b = CellStore.from_screen(near, near.genes[5:2:-1]), CellStore.from_screen(far, near.genes[5:2:-1], 'store')
    for k in ('indptr', 'indices', 'values', 'counts', 'library', 'codes', 'order', 'cells'):
        assert np.array_equal(getattr(a, k), getattr(b, k)), k

def test_a_subset_of_a_screen_in_a_file_reads_no_values(at, monkeypatch):
    far = read_screen((prepare(raw(), 'what', 'line', out='a.h5ad'), 'a.h5ad')[1], backed=True)
    def refused(*args): raise AssertionError('values were read')
    monkeypatch.setattr(Blocks, '_read', refused)
    monkeypatch.setattr(type(far.adata.X), '__getitem__', refused)
    monkeypatch.setattr(type(far.adata.X), 'to_memory', refused)
    assert far.subset(dict(line=['B'])).n_cells == (far.adata.obs.line == 'B').sum()

def test_large_files_stay_on_disk_and_give_the_same_task(at, monkeypatch):
    prepare(raw(), 'what', 'line', out='a.h5ad')
    options = dict(screen='a.h5ad', split=dict(kind='combination', fraction=1., seed=1), genes=dict(hvg=30, de=3))
    near = open_task(options, 'near')
    monkeypatch.setattr(screens, 'IN_MEMORY', 0); in_small_blocks(monkeypatch)
    assert in_file(read_screen('a.h5ad').adata.X)
    far = open_task(options, 'far')
    assert near.task_id == far.task_id
    for k in ('indptr', 'indices', 'values', 'counts', 'library'):
        assert np.array_equal(getattr(near.store, k), getattr(far.store, k)), k

def test_a_screen_in_a_file_can_be_written(at):
    far = read_screen((prepare(raw(), 'what', 'line', out='a.h5ad'), 'a.h5ad')[1], backed=True)
    far.subset(dict(line=['B'])).write('b.h5ad', name='half'); far.write('a.h5ad')
    assert same(read_screen('b.h5ad'), far.subset(dict(line=['B']))) and same(read_screen('a.h5ad'), far)
    assert (sc.read_h5ad('b.h5ad').X != far.adata[far.adata.obs.line == 'B'].X).nnz == 0  # other tools read it

def test_values_are_checked_wherever_they_lie(at, monkeypatch):
    in_small_blocks(monkeypatch)
    for value, says in [(np.nan, 'NaN'), (-1, 'negative'), (.5, 'holds fractions such as 0.5')]:
        a = raw(); a.X[-1, -1] = value
        a.write_h5ad(f'{says}.h5ad')
        for o in (a, read_h5ad(f'{says}.h5ad', backed=True)):
            with pytest.raises(InputError, match=says): prepare(o, 'what', 'line', out='b.h5ad')
    raw().write_h5ad('a.h5ad')
    with pytest.raises(InputError, match='raw counts'):
        prepare(read_h5ad('a.h5ad', backed=True), 'what', 'line', values='lognorm')
    with pytest.raises(InputError, match='raw counts'): Screen(read_h5ad('a.h5ad', backed=True), 'what', 'line')
    assert not os.path.exists('b.h5ad')

def test_log_normalised_values_pass_through_a_file(at):
    a = prepare(raw(), 'what', 'line').adata
    a.write_h5ad('a.h5ad')
    for o in (a, read_h5ad('a.h5ad', backed=True)):
        b = prepare(o, 'what', 'line', values='lognorm', genes=np.arange(a.n_vars) > 9, out='b.h5ad')
        assert (b.adata.X != a.X[:, 10:]).nnz == 0 and (b.adata.layers['counts'] != a.layers['counts'][:, 10:]).nnz == 0
        assert b.card['target_sum'] is None and b.card['median_total'] is None

def test_normalised_values_are_those_of_scanpy():
    s = prepare(raw(), 'what', 'line')
    a = ad.AnnData(s.adata.layers['counts'].copy())
    sc.pp.normalize_total(a, target_sum=1e4); sc.pp.log1p(a)
    assert np.allclose(s.adata.X.toarray(), a.X.toarray(), rtol=1e-6)

@pytest.mark.parametrize('seed', range(3))
def test_variable_genes_are_those_of_scanpy(seed):
    s = prepare(raw(600, 400, seed), 'what', 'line')
    train = np.random.default_rng(seed).random(s.n_cells) < .7
    options = dict(flavor='seurat_v3', layer='counts', batch_key='line', n_top_genes=60, inplace=False)
    theirs = sc.pp.highly_variable_genes(s.adata[train], **options)
    assert (variable_genes(s, train, 60) == theirs.highly_variable.to_numpy()).all()
    del s.adata.layers['counts']
    one = train & (s.adata.obs.line == 'A').to_numpy()
    theirs = sc.pp.highly_variable_genes(s.adata[one], flavor='seurat', n_top_genes=60, inplace=False)
    assert (variable_genes(s, one, 60) == theirs.highly_variable.to_numpy()).all()

def test_changed_genes_are_those_of_scanpy():
    s, best = prepare(raw(600, 400), 'what', 'line'), set()
    for line in ('A', 'B'):
        a = s.adata[s.adata.obs.line == line].copy()
        sc.tl.rank_genes_groups(a, 'what', reference='control', method='t-test', rankby_abs=True)
        for p in ('KLF1', 'BAK1', 'KLF1+BAK1'): best |= set(sc.get.rank_genes_groups_df(a, p).names[:10])
    assert {g for g, c in zip(s.genes, changed_genes(s, np.ones(600, bool), 10)) if c} == best

def test_sums_of_many_conditions_are_made_in_several_passes(monkeypatch):
    s = prepare(raw(), 'what', 'line')
    whole = changed_genes(s, np.ones(240, bool), 5)
    monkeypatch.setattr(preprocess, 'SUMS', 1)
    # a control and one other condition at a time
    assert [[len(part) for part in chunk] for chunk in preprocess._chunks(s)] == [[2]]*6
    assert (changed_genes(s, np.ones(240, bool), 5) == whole).all()

def test_the_order_of_rows_changes_no_genes():
    a = raw(400, 200)
    order = np.random.default_rng(5).permutation(400)
    s, t = prepare(a, 'what', 'line'), prepare(a[order].copy(), 'what', 'line')
    train = np.random.default_rng(1).random(400) < .6
    assert select_genes(s, train, hvg=40, de=6) == select_genes(t, train[order], hvg=40, de=6)

def test_genes_of_all_cells_are_another_option():
    s = prepare(raw(400, 200), 'what', 'line')
    train = np.arange(400) < 150
    own, whole = (select_genes(s, o, hvg=20, de=3) for o in (train, np.ones(400, bool)))
    assert select_genes(s, train, hvg=20, de=3, cells='all') == whole != own
    with pytest.raises(InputError, match="'test' are not known"): select_genes(s, train, cells='test')

def test_the_published_protocol_scales_to_the_median(at):
    s = prepare(raw(), 'what', 'line', out='a.h5ad')
    options = dict(screen='a.h5ad', split=dict(kind='combination', fraction=1., seed=1))
    task, a = open_task(options, 'out', protocol='perturbench'), ad.AnnData(s.adata.layers['counts'].copy())
    sc.pp.normalize_total(a); sc.pp.log1p(a)
    assert task.genes == s.genes
    assert np.abs(task.store.dense(np.arange(240)).numpy() - a.X[task.store.order].toarray()).max() < 2e-6
    known = {p: open_task(options, 'out', protocol=p).folder/'task.json' for p in ('default', 'perturbench')}
    assert [float(pd.read_json(f, typ='series').target_sum) for f in known.values()] == [1e4, s.card['median_total']]
    default = open_task(options, 'out')
    assert np.array_equal(default.store.dense(np.arange(240)).numpy(), s.adata.X[default.store.order].toarray())

def test_without_known_counts_the_published_protocol_keeps_the_scale(at):
    a = prepare(raw(), 'what', 'line').adata
    del a.layers['counts']
    s = prepare(a, 'what', 'line', values='lognorm', out='a.h5ad')
    question = dict(screen='a.h5ad', split=dict(kind='combination', fraction=1., seed=1))
    task = open_task(question, 'out', protocol='perturbench')
    assert np.array_equal(task.store.dense(np.arange(240)).numpy(), s.adata.X[task.store.order].toarray())
    assert pd.read_json(task.folder/'task.json', typ='series').target_sum is None

class Stop(BaseException): "An interruption."

@pytest.mark.parametrize('fault, says', [
    (OSError(errno.ENOSPC, 'No space left on device'), 'no room'),
    (None, 'no room'),
    (Stop(), None),
    (OSError("Can't write data (No space left on device)"), 'no room')])
def test_a_full_disk_or_an_interruption_leaves_nothing(at, monkeypatch, fault, says):
    in_small_blocks(monkeypatch)
    raw().write_h5ad('a.h5ad')
    before, add, n = set(os.listdir()), h5ad.RowWriter.add, []
    def fails(self, block):
        n.append(1)
        if len(n) > 5: raise fault
        add(self, block)
    if fault is None: monkeypatch.setattr(h5ad.shutil, 'disk_usage', lambda path: SimpleNamespace(free=2**20))
    else: monkeypatch.setattr(h5ad.RowWriter, 'add', fails)
    with pytest.raises(InputError if says else Stop, match=says):
        prepare(read_h5ad('a.h5ad', backed=True), 'what', 'line', out='b.h5ad')
    assert set(os.listdir()) == before

def test_an_old_file_survives_a_failed_attempt(at, monkeypatch):
    kept = prepare(raw(), 'what', 'line', out='b.h5ad')
    monkeypatch.setattr(h5ad.shutil, 'disk_usage', lambda path: SimpleNamespace(free=0))
    with pytest.raises(InputError, match='no room'): prepare(raw(seed=1), 'what', 'line', out='b.h5ad')
    assert same(read_screen('b.h5ad'), kept)

def test_controls_in_other_letters_are_pointed_out_and_not_merged(at, capsys):
    a = raw(names=('control', 'Control', 'CTRL ', 'KLF1', 'klf1', 'KLF1+ctrl'))
    a.write_h5ad('a.h5ad')
    s = prepare(a, 'what', 'line')
    assert {'Control', 'CTRL ', 'klf1'} <= set(s.conditions.perturbation) and len(s.card['notes']) == 4
    assert main(['prepare', 'a.h5ad', '--perturbation-key', 'what', '--covariate-keys', 'line', '-o', 'b.h5ad']) == 0
    out = capsys.readouterr().out
    for name in ('Control', 'CTRL ', 'klf1', 'ctrl'): assert f"'{name}'" in out
    assert read_card('b.h5ad')['notes'] == s.card['notes']
    assert not prepare(raw(), 'what', 'line').card['notes']

def test_odd_names_and_smiles_are_kept(at):
    names = ['C[S+](C)[O-]', 'CC(=O)N1CC[N+]1', 'TGF-β_1, 2/3', 'Control drug']
    a = raw(names=names)
    s = prepare(a, 'what', 'line', control=names[0], sep=None, out='Schirm β_+, 1.h5ad')
    assert s.perturbations == sorted(names[1:]) and s.conditions.n_perturbations.max() == 1 and not s.card['notes']
    conditions = s.card['conditions']
    by_column = dict(zip(conditions['columns'], zip(*conditions['rows'])))
    assert by_column['n_cells'] == tuple(s.conditions.n_cells)
    assert sorted(set(s.adata.obs.what)) == sorted(names)

def test_columns_of_mixed_kinds_are_written_as_text(at):
    a = raw()
    a.obs['mixed'] = [i if i % 2 else None if i == 4 else str(i) for i in range(240)]
    kept = prepare(a, 'what', 'line', out='a.h5ad').adata.obs.mixed.dropna()
    assert list(kept) == [str(i) for i in range(240) if i != 4]

def test_the_card_counts_what_was_kept(at):
    a = raw(); a.X[7] = 0
    masks, why = dict(cells=np.arange(240) > 4, genes=np.arange(150) != 3), [dict(n=1, what='gene', why='a double')]
    s = prepare(a, 'what', 'line', min_cells=3, out='a.h5ad', card=dict(dropped=why), **masks)
    asked = ('left_out_cells', 'left_out_genes', 'dropped_cells', 'n_cells', 'dropped')
    assert [s.card[k] for k in asked] == [5, 1, 1, 234, why]
    assert s.n_cells == 234 and s.card['median_total'] == np.median(np.asarray(s.adata.layers['counts'].sum(1)))
    assert read_card('a.h5ad')['median_total'] == s.card['median_total']
    assert sum(r[-1] for r in s.card['conditions']['rows']) == 234
    for bad in (np.ones(3, bool), np.ones(240)):
        with pytest.raises(InputError, match='`cells` has to be a bool'): prepare(a, 'what', 'line', cells=bad)

def test_all_cells_empty_or_left_out_is_an_error():
    a = raw(); a.X = a.X*0
    for o, kw in ((a, {}), (raw(), dict(cells=np.zeros(240, bool)))):
        with pytest.raises(InputError, match='at least one of each'): prepare(o, 'what', 'line', **kw)
