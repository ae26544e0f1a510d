"A store holds what scipy holds, and batches visit it fairly: any matrix, any sizes, from memory or from disk."
import os, subprocess, sys, weakref
from copy import copy
from importlib import import_module
from pkgutil import walk_packages
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from numba.core.dispatcher import Dispatcher
from scipy import sparse, stats
import perturbench
from perturbench import core
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.loaders.batches import Batches, Matched, entropic_plan
from perturbench.loaders.disk import DiskBatches, FileStore
from perturbench.loaders.store import CellStore, upload
from perturbench.metrics.effects import moments
from perturbench.models.baselines import within_variance

few = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

def matrix(r, n, g, counts):
    """A compressed matrix as files bring it.

    Unsorted, with explicit zeros and entries in two pieces, empty rows and columns, of any type."""
    density = r.choice([0, .1, .5, 1.])
    rows, columns = np.nonzero(r.random((n, g)) < density)
    values = r.integers(1, 9, len(rows)) if counts else r.random(len(rows))*3
    extra = r.random(len(rows)) < .2
    rows, columns, values = (np.r_[o, o[extra]] for o in (rows, columns, values))
    values[r.random(len(values)) < .1] = 0
    order = r.permutation(len(rows))
    order = order[np.argsort(rows[order], kind='stable')]
    indptr = np.r_[0, np.cumsum(np.bincount(rows, minlength=n))]
    X = sparse.csr_matrix((values[order], columns[order], indptr), shape=(n, g))
    return [X, X.astype(np.float32), X.tocsc(), X.toarray(), sparse.csr_array(X)][r.integers(5)]

def make(seed):
    "A random screen with its matrices, dense."
    r = np.random.default_rng(seed)
    n, g, lines = int(r.integers(12, 60)), int(r.integers(1, 30)), ['A', 'B', 'C_c'][:r.integers(1, 4)]
    columns = dict(
        what=r.choice(['control', 'x', 'y', 'x+y', 'β/,'], n),
        line=r.choice(lines, n),
        lane=r.choice(['1', '2'], n))
    obs = pd.DataFrame(columns, index=[f'c{i}' for i in range(n)])
    obs.loc[obs.index[:len(lines)], ['what', 'line']] = [('control', o) for o in lines]
    obs.loc[obs.index[-1], 'what'] = 'x'
    X, counts = matrix(r, n, g, False), matrix(r, n, g, True) if r.random() < .6 else None
    layers = {} if counts is None else {'counts': counts}
    a = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(g)]), layers=layers)
    matrices = [o.toarray() if sparse.issparse(o) else o for o in (X, counts) if o is not None]
    dense = [np.asarray(o).astype(np.float32) for o in matrices]
    return r, Screen(a, 'what', 'line', batch_key='lane'), *dense, *([] if len(dense) == 2 else [None])

screens = st.integers(0, 2**32 - 1).map(make)

def subset(r, n): return r.permutation(n)[:r.integers(1, n + 1)]

@few
@given(screens, st.booleans())
def test_a_store_holds_what_scipy_holds(tmp_path, made, from_disk):
    r, screen, X, counts = made
    genes = subset(r, screen.n_genes) if r.random() < .7 else None  # some, in another order
    store = CellStore.from_screen(screen, None if genes is None else [screen.genes[i] for i in genes])
    if from_disk:
        store.save(tmp_path/'store')
        store = CellStore.load(tmp_path/'store')
    columns, rows = slice(None) if genes is None else genes, r.integers(0, screen.n_cells, r.integers(0, 40))
    at = store.order[rows]
    np.testing.assert_array_equal(store.dense(rows).numpy(), X[at][:, columns])
    parts, shape = (store.values, store.indices, store.indptr), (screen.n_cells, store.n_genes)
    np.testing.assert_array_equal(sparse.csr_matrix(parts, shape).toarray(), X[store.order][:, columns])
    if counts is not None:
        np.testing.assert_array_equal(store.dense(rows, layer='counts').numpy(), counts[at][:, columns])
        np.testing.assert_array_equal(store.library, counts.sum(1)[store.order])  # over all genes
    obs = screen.adata.obs.iloc[store.order]
    assert list(store.cells) == list(obs.index) and (np.diff(store.codes) >= 0).all()
    c = screen.conditions.loc[store.codes]
    assert (c.perturbation.to_numpy() == obs.what.to_numpy()).all() and (c.line.to_numpy() == obs.line.to_numpy()).all()
    assert (np.array(store.batches)[store.batch] == obs.lane.to_numpy()).all()
    # sums of any selection of cells
    mask = r.random(screen.n_cells) < .6
    cells, chosen = store.select(mask), X[store.order][mask][:, columns].astype(float)
    means = pd.DataFrame(chosen).groupby(store.codes[mask]).mean().reindex(range(len(screen.conditions)))
    np.testing.assert_allclose(cells.means(), means, atol=1e-12)
    assert list(cells.n) == np.bincount(store.codes[mask], minlength=len(means)).tolist()

def some_controls(r, store):
    "A mask over some controls of a store, at least one of each state."
    is_control, state = store.design.is_control[store.codes], store.design.state[store.codes]
    pool = is_control & (r.random(store.n_cells) < .5)
    for s in set(store.design.state): pool[np.flatnonzero(is_control & (state == s))[0]] = True
    return pool, state

def as_tensors(store):
    "The store with its rows as tensors, made dense by plain tensor operations."
    store = copy(store)
    store.resident = upload(store, 'cpu')
    return store

def check(b, store, X, counts):
    "Every entry of a batch belongs to its cells."
    at = store.order[b.cell.numpy()]
    np.testing.assert_array_equal(b.expression.numpy(), X[at])
    np.testing.assert_array_equal(b.covariates.numpy(), store.design.covariate[store.codes[b.cell.numpy()]])
    np.testing.assert_array_equal(b.perturbation.numpy(), store.design.perturbation[store.codes[b.cell.numpy()]])
    if counts is not None: np.testing.assert_array_equal(b.counts.numpy(), counts[at])

@few
@given(
    screens,
    st.sampled_from(['disentangling', 'matched', 'ot', 'sets']),
    st.integers(1, 70),
    st.booleans(),
    st.booleans())
def test_batches_visit_each_cell_with_a_control_of_its_state(tmp_path, made, strategy, batch_size, shuffle, same_batch):
    r, screen, X, counts = made
    store = CellStore.from_screen(screen)
    pool, state = some_controls(r, store)
    mask = r.random(screen.n_cells) < .7
    mask[-1] = True
    fields = ['batch'] + ['counts', 'library']*(counts is not None)
    store.save(tmp_path/'store')
    stores = store, CellStore.load(tmp_path/'store'), as_tensors(store)
    name = dict(name=strategy)
    if strategy != 'disentangling': name['same_batch'] = same_batch
    if strategy == 'sets': name['size'] = int(r.integers(1, 9))
    options = dict(strategy=name, batch_size=batch_size, seed=int(r.integers(9)), shuffle=shuffle, fields=fields)
    ours, *theirs = (Batches(s.select(mask), s.select(pool), **options) for s in stores)
    choice = {s: {x.tobytes() for x in X[store.order[pool & (state == s)]]} for s in set(state)}
    for epoch in (0, 3):
        for b in (ours, *theirs): b.set_epoch(epoch)
        batches = list(ours)
        assert len(batches) == len(ours)
        cells = torch.cat([b.cell for b in batches]).numpy()
        if strategy == 'sets':
            assert set(cells.ravel()) == set(np.flatnonzero(mask)) and (np.ptp(store.codes[cells], axis=1) == 0).all()
        else:
            assert sorted(cells) == list(np.flatnonzero(mask))
            assert shuffle or list(cells) == sorted(cells)
            assert len(batches) == -(-mask.sum()//batch_size)
        for a, *others in zip(batches, *theirs):
            for b in others:
                for k, v in vars(a).items():
                    assert (v is None) == (getattr(b, k) is None) and (v is None or torch.equal(v, getattr(b, k)))
            check(a, store, X, counts)
            if strategy == 'disentangling': assert a.controls is None and a.cell_features is a.expression
            else:
                assert a.cell_features is a.controls
                drawn = zip(a.controls.flatten(0, -2).numpy(), a.cell.ravel().numpy())
                assert all(x.tobytes() in choice[state[i]] for x, i in drawn)

@few
@given(screens, st.integers(1, 5), st.sampled_from(['uniform', 'condition', 'state']), st.sampled_from([None, 3]))
def test_processes_share_an_epoch(made, world, sampler, size):
    r, screen, X, _ = made
    store = CellStore.from_screen(screen)
    cells = store.select(np.ones(screen.n_cells, bool))
    strategy = 'matched' if size is None else {'name': 'sets', 'size': size}
    options = dict(strategy=strategy, batch_size=7, sampler=sampler, seed=1)
    alone = Batches(cells, **options)
    if alone.total < world: return
    ranks = [Batches(cells, rank=i, world=world, **options) for i in range(world)]
    parts, whole = [[p for p in b.plan()] for b in ranks], alone.plan()
    for k in (0, 1):
        dealt = np.stack([p[k] for p in parts], 1).reshape(-1, *whole[k].shape[1:])
        np.testing.assert_array_equal(dealt, whole[k][:len(whole[k])//world*world])
    assert len({len(b) for b in ranks}) == 1 == len({len(list(b)) for b in ranks})
    if sampler == 'uniform' and size is None:
        assert len(set(np.concatenate([p[0] for p in parts]))) == len(cells)//world*world

def test_matching_within_a_batch_falls_back_to_the_state(task):
    screen = simulate(Parameters(n_genes=20, n_states=2, n_perturbations=3, cells=30, controls=40)).screen
    obs = screen.adata.obs
    obs['lane'] = [str(i % 3) for i in range(len(obs))]
    keys = screen.perturbation_key, screen.covariate_keys
    screen = Screen(screen.adata, *keys, control=screen.control, batch_key='lane')
    store = CellStore.from_screen(screen)
    is_control, state = store.design.is_control[store.codes], store.design.state[store.codes]
    pool = is_control & ~((store.batch == 2) & (state == 1))
    cells, matched = store.select(~is_control), Matched(store.select(~is_control), store.select(pool), same_batch=True)
    drawn = np.stack([matched.draw(np.random.default_rng(i), cells.rows) for i in range(50)])
    same = store.batch[drawn] == store.batch[cells.rows]
    bare = (store.batch[cells.rows] == 2) & (state[cells.rows] == 1)
    assert (state[drawn] == state[cells.rows]).all() and same[:, ~bare].all() and not same[:, bare].any() and bare.any()
    # of the whole state, not of one lane
    for i in np.flatnonzero(bare)[:3]: assert set(store.batch[drawn[:, i]]) == {0, 1}

@few
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.sampled_from([.05, .5]))
def test_a_plan_has_its_margins_whatever_the_scale_and_the_offsets(n, m, seed, epsilon):
    r = np.random.default_rng(seed)
    C = torch.tensor(r.random((n, m))**2)
    plan = entropic_plan(C, epsilon, 2000)
    np.testing.assert_allclose(plan.sum(1), np.full(n, 1/n), rtol=1e-9)
    np.testing.assert_allclose(plan.sum(0), np.full(m, 1/m), rtol=1e-3)
    begun, scaled = (entropic_plan(c, epsilon, 100) for c in (C, C*1e6))
    np.testing.assert_allclose(scaled, begun, rtol=1e-6, atol=1e-12)
    assert (plan*C).sum() <= C.mean()*(1 + 1e-9)  # no dearer than pairing at random

def test_a_set_of_a_condition_is_a_slice_of_it(task):
    train, r = task.cells('train'), np.random.default_rng(0)
    c = int(train.n.argmax())
    times = np.zeros(task.store.n_cells)
    for i in range(3000): times[train.draw(c, 5, r)] += 1
    n = train.n[c]
    assert times.sum() == 15000 == times[train.of(c)].sum()
    expected = 15000/n
    # each cell equally often
    assert ((times[train.of(c)] - expected)**2/(expected*(1 - 5/n))).sum() < stats.chi2.ppf(.999, n - 1)
    with pytest.raises(InputError, match='has no cell'): train.where(np.arange(len(train.n)) != c).draw(c, 5, r)

def test_the_same_cells_and_controls_whatever_the_size_of_batches(task):
    train, controls = (task.cells('train'), task.controls('train'))
    found = []
    for size in (1, 7, len(train) - 1, len(train), 10*len(train)):
        batches = Batches(train, controls, batch_size=size, seed=4)
        batches.set_epoch(2)
        some = [b for i, b in zip(range(200 if size == 1 else 30), batches)]
        fields = ('cell', 'condition', 'perturbation', 'controls')
        found.append([torch.cat([getattr(b, k) for b in some])[:200] for k in fields])
        if size == len(train) - 1: assert len(list(batches)[-1]) == 1
    for other in found[1:]:
        for a, b in zip(found[0], other): assert torch.equal(a, b)

def test_each_control_of_a_state_is_drawn_and_pairs_change_from_epoch_to_epoch(task):
    train, controls = task.cells('train').where(~task.design.is_control), task.controls('train')
    batches, seen, pairs = Batches(train, controls, batch_size=len(train), seed=0), set(), []
    rows = {x.tobytes(): i for i, x in zip(controls.rows, task.store.dense(controls.rows).numpy())}
    for epoch in range(3):
        batches.set_epoch(epoch)
        b = next(iter(batches))
        drawn = [rows[x.tobytes()] for x in b.controls.numpy()]
        seen |= set(drawn)
        pairs.append(dict(zip(b.cell.tolist(), drawn)))
    assert seen == set(controls.rows)
    assert np.mean([pairs[0][c] == pairs[1][c] for c in pairs[0]]) < .05

def test_a_screen_of_300_genes():
    screen = simulate(Parameters(n_genes=300, n_states=2, n_perturbations=4, cells=9, controls=12)).screen
    X, genes = screen.adata.X.toarray(), list(np.random.default_rng(0).permutation(screen.genes)[:123])
    for names in (None, genes):
        store = CellStore.from_screen(screen, names)
        every = np.ones(screen.n_cells, bool)
        for b in Batches(store.select(every), batch_size=50):
            rows, columns = store.order[b.cell.numpy()], screen.adata.var_names.get_indexer(store.genes)
            np.testing.assert_array_equal(b.expression.numpy(), X[rows][:, columns])
        assert store.n_genes == (300 if names is None else 123)

def test_a_store_leaves_its_screen_as_it_was():
    values = np.array([1.5, .5, 0., 2.], np.float32)
    X = sparse.csr_matrix((values, np.array([2, 0, 1, 1]), np.array([0, 2, 4])), shape=(2, 3))
    before = [o.copy() for o in (X.data, X.indices, X.indptr)]
    obs = pd.DataFrame({'what': ['x', 'control']}, index=['a', 'b'])
    screen = Screen(ad.AnnData(X, obs=obs, var=pd.DataFrame(index=['g', 'h', 'i'])), 'what')
    store = CellStore.from_screen(screen)
    for a, b in zip(before, (X.data, X.indices, X.indptr)): np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(store.dense([0, 1]).numpy(), [[0, 2, 0], [.5, 0, 1.5]])
    with pytest.raises(ValueError): store.values[0] = 1

@pytest.mark.parametrize('strategy', [
    'disentangling',
    'matched',
    {'name': 'ot', 'n_components': 3},
    {'name': 'sets', 'size': 4}])
@pytest.mark.parametrize('kind', [Batches, DiskBatches])
def test_an_embedding_is_that_of_the_cell_that_a_model_reads(strategy, kind, tmp_path):
    "Whatever order and draws: the embedding holds two sums of the expression, which tell a cell from any other."
    screen = simulate(Parameters(n_genes=60, n_perturbations=4, n_states=2, cells=15, controls=20), 0).screen
    X = screen.adata.X.toarray()
    of = lambda x: np.stack([x.sum(-1), x @ np.arange(x.shape[-1])/50], -1)
    screen.adata.obsm['X_sums'] = of(X)
    store = CellStore.from_screen(screen, folder=tmp_path/'store')
    assert list(CellStore.load(tmp_path/'store').embeddings) == ['X_sums']
    store = FileStore.from_store(store) if kind is DiskBatches else store
    cells, design = store.select(np.ones(store.n_cells, bool)), store.design
    mine = cells if strategy == 'disentangling' else cells.where(~design.is_control)
    batches = kind(mine, cells.where(design.is_control), strategy, 32, features='X_sums')
    for batch in batches:
        read = batch.expression if batch.controls is None else batch.controls
        np.testing.assert_allclose(batch.cell_features, of(read.numpy()), rtol=1e-4)
    with pytest.raises(InputError, match="the cells have no embedding 'X_sum'; did you mean 'X_sums'"):
        kind(cells, features='X_sum')

# Kernels

@pytest.mark.parametrize('n', (1, 7, 500))
def test_passes_over_files_give_the_same_bits(task, monkeypatch, n):
    "Where cells lie in files they are read `n` at a time, and groups are cut."
    cells, design, store = task.cells('train'), task.design, task.store
    def found():
        means = cells.means()
        of_states = moments(store, design.state[store.codes], len(task.conditions.state.unique()))
        of_one = moments(store, np.zeros(store.n_cells, int), 1)
        states = design.state.max() + 1
        return [means, of_states.mean, of_states.var, of_one.linear, of_one.zeros,
                within_variance(cells, means, design.state, states)]
    whole = found()
    left = []
    monkeypatch.setattr(core, 'PASSED', n)
    monkeypatch.setattr(core, 'leave_files', lambda: left.append(True))
    monkeypatch.setattr(core, '_rooms', lambda: ['a file'])
    for a, b in zip(found(), whole): np.testing.assert_array_equal(a, b)
    assert len(left) >= 3*len(cells.rows)//n

def test_no_python_runs_where_a_file_is_let_go(monkeypatch):
    "An interrupt that came in a callback would be lost."
    monkeypatch.setattr(core, 'LARGE', 1)
    held = core.room_for(10, np.int8)
    for room in core._rooms():
        assert weakref.getweakrefs(room)
        assert all(reference.__callback__ is None for reference in weakref.getweakrefs(room))
    assert len(held) == 10

def test_no_kernel_starts_threads_of_numba():
    "They take one caller at a time, or set the number of those of PyTorch."
    found = walk_packages(perturbench.__path__, 'perturbench.')
    rooms = [room.name for room in found if '__main__' not in room.name]
    kernels = [thing for room in rooms for thing in vars(import_module(room)).values() if isinstance(thing, Dispatcher)]
    assert len(kernels) > 30
    assert not any(kernel.targetoptions.get('parallel') for kernel in kernels)

AT_ONCE = """
import os, signal, numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from perturbench.loaders.store import densify
torch.set_num_threads(2)
X = np.random.default_rng(0).random((400, 4000), np.float32)
parts = np.arange(0, X.size + 1, 4000), np.tile(np.arange(4000, dtype=np.int32), 400), X.ravel()
def is_right(n):
    out = np.empty_like(X[:n])
    densify(*parts, np.arange(n), out)
    return np.array_equal(out, X[:n])
with ThreadPoolExecutor(4) as pool: assert all(pool.map(is_right, [200, 400]*50))
assert torch.get_num_threads() == 2
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if is_right(200) and is_right(400) else 1)
print(os.waitpid(child, 0)[1])
"""

def test_any_thread_and_a_forked_process_may_share_kernels_out():
    run = [sys.executable, '-W', 'ignore::DeprecationWarning', '-c', AT_ONCE]
    done = subprocess.run(run, env=os.environ | dict(NUMBA_NUM_THREADS='3'), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, '0'), done.stderr
