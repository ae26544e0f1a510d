"Batches from files are those of memory in another order, whatever the file looks like; a file that changes is noticed."
import json, os, shutil, warnings
import anndata as ad, h5py, numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from scipy import sparse, stats
from test_loaders import few, screens, some_controls, subset
from perturbench import train, trainer
from perturbench.core import InputError
from perturbench.data.h5ad import CARD, resting as left_in_file
from perturbench.data.screen import OPTIONS, Screen, read_screen
from perturbench.loaders import disk
from perturbench.loaders.disk import DiskBatches, FileStore, some_of_each
from perturbench.loaders.store import CellStore, upload
from perturbench.models.zoo import build_model

FORMS = ['memory', 'h5ad', 'by columns', 'dense', 'dense zarr', 'zarr', 'wide', 'shuffled', 'part', 'store']

def resting(screen, form, folder, r):
    "The screen with its matrices in a file of some form."
    a = screen.adata.copy()
    if form == 'memory': return screen
    turn = {'by columns': sparse.csc_matrix, 'dense': to_dense, 'dense zarr': to_dense}.get(form, sparse.csr_matrix)
    a.X, a.layers = turn(a.X), {k: turn(v) for k, v in a.layers.items()}
    path = folder/f'{r.integers(2**40)}'
    if 'zarr' in form: a.write_zarr(path)
    else: a.write_h5ad(path)
    if form == 'wide':  # as matrices with more than 2^31 non-zeros have them
        with h5py.File(path, 'r+') as f:
            for k in ('indices', 'indptr'):
                numbers = f[f'X/{k}'][:].astype(np.int64)
                del f[f'X/{k}']
                f[f'X/{k}'] = numbers
    new = Screen(left_in_file(path), **{k: getattr(screen, k) for k in OPTIONS})
    if form == 'shuffled':
        disk.shuffle_file(new, f'{path}.h5ad', seed=int(r.integers(9)))
        return read_screen(f'{path}.h5ad', backed=True)
    return new

def to_dense(X): return X.toarray() if sparse.issparse(X) else np.asarray(X)

@few
@pytest.mark.filterwarnings('ignore:.*(is dense|kept by columns)', 'ignore::zarr.errors.ZarrUserWarning')
@given(screens, st.sampled_from(FORMS))
def test_a_file_gives_what_memory_gives(tmp_path, made, form):
    r, screen, X, counts = made
    there = resting(screen, form, tmp_path, r)
    at = screen.adata.obs_names.get_indexer(there.adata.obs_names)
    if form == 'part':
        mask = r.random(len(at)) < .7
        mask[[*np.flatnonzero(screen.adata.obs.what == 'control'), -1]] = True  # still a screen
        there, at = there._part(rows=mask), at[mask]
    genes = subset(r, screen.n_genes) if r.random() < .7 and form != 'store' else np.arange(screen.n_genes)
    store = FileStore.from_screen(there, [screen.genes[i] for i in genes])
    if form == 'store':
        near = CellStore.from_screen(there)
        near.save(tmp_path/'store')
        store, at = FileStore.from_store(CellStore.load(tmp_path/'store')), at[near.order]
    rows = r.integers(0, store.n_cells, r.integers(0, 40))
    np.testing.assert_array_equal(store.dense(rows).numpy(), X[at[rows]][:, genes])
    if counts is not None:
        np.testing.assert_array_equal(store.dense(rows, layer='counts').numpy(), counts[at[rows]][:, genes])
        np.testing.assert_array_equal(store.library, counts.sum(1)[at])
    assert (np.array(store.batches)[store.batch] == screen.adata.obs.lane.to_numpy()[at]).all()
    assert [store.design.perturbations, store.n_genes] == [screen.perturbations, len(genes)]

@few
@given(
    screens,
    st.sampled_from(['disentangling', 'matched', 'ot', 'sets']),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from(['uniform', 'condition', 'state']),
    st.integers(1, 3))
def test_batches_of_a_file_visit_each_cell_with_a_control_of_its_state(
        tmp_path, made, strategy, batch_size, shuffle, sampler, world):
    r, screen, X, counts = made
    store = FileStore.from_screen(resting(screen, 'h5ad', tmp_path, r))
    state, is_control = (t[store.codes] for t in (store.design.state, store.design.is_control))
    mask, pool = r.random(store.n_cells) < .7, some_controls(r, store)[0]
    mask[-1] = True
    size = int(r.integers(1, 9)) if strategy == 'sets' else None
    name = dict(name=strategy) | (dict(size=size) if size else {})
    fields = ['batch'] + ['counts', 'library']*(counts is not None)
    readings = dict(
        block=int(r.integers(1, 20)), ahead=int(r.integers(1, 100)), n_controls=int(r.integers(1, 20)))
    options = dict(
        strategy=name, batch_size=batch_size, seed=1, shuffle=shuffle, fields=fields, sampler=sampler, **readings)
    cells = store.select(mask)
    alone = DiskBatches(cells, store.select(pool), **options)
    if alone.total < world: return
    ranks = [DiskBatches(cells, store.select(pool), rank=i, world=world, **options) for i in range(world)]
    batches = [list(b) for b in ranks]
    assert [len(b) for b in batches] == [len(b) for b in ranks] and (not shuffle or len(set(map(len, ranks))) == 1)
    choice = {s: {x.tobytes() for x in X[pool & (state == s)]} for s in set(state)}
    for b in (b for mine in batches for b in mine):
        at = b.cell.numpy()
        np.testing.assert_array_equal(b.expression.numpy(), X[at])
        np.testing.assert_array_equal(b.condition.numpy(), store.codes[at])
        np.testing.assert_array_equal(b.batch.numpy(), store.batch[at])
        np.testing.assert_array_equal(b.perturbation.numpy(), store.design.perturbation[store.codes[at]])
        if counts is not None:
            np.testing.assert_array_equal(b.counts.numpy(), counts[at])
            np.testing.assert_array_equal(b.library.numpy(), counts.sum(1)[at])
        if strategy == 'disentangling': assert b.controls is None
        else: assert all(x.tobytes() in choice[state[i]] for x, i in zip(b.controls.flatten(0, -2).numpy(), at.ravel()))
    seen = [torch.cat([b.cell for b in mine]).numpy() for mine in batches]
    if size: assert all((np.ptp(store.codes[s], axis=1) == 0).all() for s in seen)
    elif sampler == 'uniform' or not shuffle:
        every = np.concatenate(seen)
        assert len(np.unique(every)) == len(every) == (len(cells) - len(cells) % world if shuffle else len(cells))
        assert np.isin(every, cells.rows).all()

def test_each_control_comes_into_the_pool_equally_often():
    group = np.repeat([0, 1], [30, 200])
    chosen = (some_of_each(np.arange(230), group, 60, np.random.default_rng(i)) for i in range(2000))
    n = sum(np.bincount(rows, minlength=230) for rows in chosen)
    assert (n[:30] == 2000).all() and n[30:].sum() == 2000*30
    assert stats.chisquare(n[30:]).statistic < stats.chi2.ppf(.999, 199)

@pytest.fixture
def small(tmp_path):
    "A screen of 600 cells, its path and its values."
    r = np.random.default_rng(0)
    X = sparse.random(600, 50, .2, 'csr', np.float32, random_state=r)
    obs = pd.DataFrame({'what': np.resize(['control', 'x', 'y'], 600)}, index=[f'c{i}' for i in range(600)])
    return Screen(ad.AnnData(X, obs, pd.DataFrame(index=[f'g{i}' for i in range(50)])), 'what'), tmp_path

def test_matrices_of_another_form_are_said_once(small):
    screen, folder = small
    r = np.random.default_rng(0)
    for form, says in (('by columns', 'kept by columns'), ('dense', 'is dense')):
        there = resting(screen, form, folder, r)
        with pytest.warns(UserWarning, match=says) as said: store = FileStore.from_screen(there)
        with pytest.warns(UserWarning, match=says) as too: near = CellStore.from_screen(there)
        np.testing.assert_array_equal(near.dense(np.arange(600)).numpy(), screen.adata.X[near.order].toarray())
        assert sum(says in str(w.message) for w in too) == 1
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            for _ in DiskBatches(store.select(store.codes >= 0), batch_size=50): pass
        assert sum(says in str(w.message) for w in said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        FileStore.from_screen(resting(screen, 'h5ad', folder, r)), CellStore.from_screen(screen)

def test_a_column_that_does_not_exist_is_refused_and_not_written_to(small):
    screen, folder = small
    path = folder/'screen.h5ad'
    disk.shuffle_file(screen, path)
    with h5py.File(path, 'r+') as f: f['X/indices'][7] = 50
    with pytest.raises(InputError, match='is damaged'):
        FileStore.from_screen(read_screen(path, backed=True, check_values=False)).dense(np.arange(600))

def test_columns_out_of_order_in_a_file_of_ours_are_damage(small):
    screen, folder = small
    path = folder/'screen.h5ad'
    disk.shuffle_file(screen, path)
    with h5py.File(path, 'r+') as f: f['X/indices'][:9] = 0
    with pytest.raises(InputError, match='is damaged'):
        FileStore.from_screen(read_screen(path, backed=True, check_values=False)).dense(np.arange(600))

@pytest.mark.filterwarnings('ignore::zarr.errors.ZarrUserWarning')
def test_a_chunk_that_vanishes_is_noticed(small):
    screen, folder = small
    screen.adata.uns[CARD] = json.dumps({k: getattr(screen, k) for k in OPTIONS})
    screen.adata.write_zarr(folder/'screen.zarr')
    there = read_screen(folder/'screen.zarr', backed=True)
    store = FileStore.from_screen(there)
    np.testing.assert_array_equal(store.dense(np.arange(600)).numpy(), screen.adata.X.toarray())
    is_piece = lambda p: p.is_file() and not p.name.startswith('.') and p.name != 'zarr.json'
    chunk = next(p for p in (folder/'screen.zarr'/'X'/'data').rglob('*') if is_piece(p))
    chunk.unlink()
    with pytest.raises(InputError, match='was changed while it was read'): store.dense(np.arange(600))

def test_a_file_that_shrinks_under_a_training_is_one_message(task, monkeypatch, tmp_path):
    "A mapped file would end the process."
    shutil.copytree(task.folder, tmp_path/'task')
    from perturbench.tasks import load_task
    mine = load_task(tmp_path/'task')
    monkeypatch.setattr(train, 'IN_MEMORY', 0)
    step = trainer.Module.training_step
    def cut(self, batch, i):
        if self.current_epoch == 1: os.truncate(tmp_path/'task'/'store'/'values.npy', 1000)
        return step(self, batch, i)
    monkeypatch.setattr(trainer.Module, 'training_step', cut)
    with pytest.raises(InputError, match='values.npy was changed while it was read|cannot be read any more'):
        train.fit(build_model('linear', train.model_info(mine)), mine, budget=dict(max_epochs=3, batch_size=500))

def test_a_large_task_trains_from_its_files(task, monkeypatch):
    "With all cells read ahead an epoch is as random as in memory, and the model as good."
    def trained():
        torch.manual_seed(0)
        model = build_model('latent_additive', train.model_info(task))
        return train.fit(model, task, budget=dict(max_epochs=4, batch_size=256)), model.state_dict()
    near = trained()[0]
    monkeypatch.setattr(train, 'IN_MEMORY', 0)
    model = build_model('linear', train.model_info(task))
    kind = train.batches(model, task, 'train', 0, 100, 0, train.placed(task.store, 'cpu'))
    assert isinstance(kind, DiskBatches)
    (far, weights), (again, same) = trained(), trained()
    assert far.equals(again) and all(torch.equal(weights[k], same[k]) for k in weights)
    assert abs(far.val_loss.iloc[-1] - near.val_loss.iloc[-1]) < .02*near.val_loss.iloc[-1] and not far.equals(near)

def test_shuffling_in_many_parts(small, monkeypatch):
    screen, folder = small
    monkeypatch.setattr(disk, 'PART', 8000)
    monkeypatch.setattr('perturbench.data.blocks.BLOCK', 500)
    monkeypatch.setattr(disk, 'BLOCK', 500)
    disk.shuffle_file(screen, folder/'a.h5ad', seed=1)
    a = read_screen(folder/'a.h5ad').adata
    at = screen.adata.obs_names.get_indexer(a.obs_names)
    np.testing.assert_array_equal(a.X.toarray(), screen.adata.X.toarray()[at])
    assert (a.obs.what.to_numpy() == screen.adata.obs.what.to_numpy()[at]).all() and len(set(at)) == 600
    assert (a.obs.what[:200] == 'control').all() and abs(np.corrcoef(np.arange(600), at)[0, 1]) < .2
    assert sorted(os.listdir(folder)) == ['a.h5ad']
    disk.shuffle_file(screen, folder/'b.h5ad', seed=2)
    assert list(read_screen(folder/'b.h5ad').adata.obs_names) != list(a.obs_names)

@pytest.mark.parametrize('strategy', ['disentangling', 'matched', 'ot', {'name': 'sets', 'size': 7}])
def test_readings_on_a_device_give_the_same_batches(task, monkeypatch, strategy):
    "The device is the CPU, with rows as tensors there; of every second reading it has no room for."
    store, rooms = FileStore.from_store(task.store), []
    cells = store.select(store.codes >= 0)
    options = dict(block=50, ahead=3000, n_controls=200, fields=['counts', 'library', 'batch'])
    batches = lambda: list(DiskBatches(cells, strategy=strategy, batch_size=500, **options))
    plain, stays = batches(), CellStore.to
    def to(self, device):
        new = stays(self, device)
        rooms.append(len(rooms) % 2 == 0)
        new.resident = upload(self, 'cpu') if rooms[-1] else None
        return new
    monkeypatch.setattr(CellStore, 'to', to)
    for a, b in zip(plain, batches(), strict=True):
        for k, v in vars(a).items():
            assert (v is None) == (getattr(b, k) is None) and (v is None or torch.equal(v, getattr(b, k))), k
    assert set(rooms) == {True, False}
