"""The GPU kernel, its stand-in and the CPU kernel: one matrix, also beyond 2^31 non-zeros.

Batches are the same wherever rows are."""
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import sparse
from perturbench.data.screen import Design
from perturbench.loaders.batches import Batches
from perturbench.loaders.disk import DiskBatches, FileStore
from perturbench.loaders.gpu import gather
from perturbench.loaders.store import Cells, CellStore, aligned, densify, plain_gather, travel

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'  # the kernel is interpreted where there is no GPU
GPU, BUSY = 'cuda', 4000

def on(device, parts): return [p.to(device) for p in parts]

def by_kernel(parts, rows, n_genes, dtype=torch.float32):
    out = aligned(len(rows), n_genes, dtype, DEVICE).fill_(torch.nan)
    gather(*on(DEVICE, parts), rows.to(DEVICE), out)
    return out.cpu()

def by_torch(parts, rows, n_genes, dtype=torch.float32):
    out = torch.full((len(rows), n_genes), torch.nan, dtype=dtype, device=DEVICE)
    plain_gather(*on(DEVICE, parts), rows.to(DEVICE), out, int(parts[0].diff().max()))
    return out.cpu()

def by_numba(parts, rows, n_genes):
    out = torch.full((len(rows), n_genes), torch.nan)
    densify(*[p.numpy() for p in parts], rows.numpy(), out.numpy())
    return out

def by_stores_past_the_cache(parts, rows, n_genes, first=1):
    "Into memory that begins anywhere."
    whole = np.full(len(rows)*n_genes + first + 9, np.nan, np.float32)
    out = whole[first:first + len(rows)*n_genes].reshape(len(rows), n_genes)
    with pytest.MonkeyPatch.context() as m:
        m.setattr('perturbench.loaders.store.IN_CACHE', 0)
        densify(*[p.numpy() for p in parts], rows.numpy(), out)
    assert np.isnan(whole[:first]).all() and np.isnan(whole[first + out.size:]).all()
    return torch.from_numpy(out)

WAYS = [by_kernel, by_torch, by_numba, by_stores_past_the_cache]
few = settings(max_examples=15, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(1, 9), st.integers(1, 2100), st.sampled_from([0, .02, .3, 1.]), st.integers(0, 2**31),
    st.integers(0, 9))

def made(n, g, density, seed, n_rows):
    "A matrix, its parts as tensors, and some of its rows, repeated or not."
    r = np.random.default_rng(seed)
    X = sparse.random(n, g, density, 'csr', np.float32, random_state=r)
    parts = [torch.tensor(o) for o in (X.indptr.astype(np.int64), X.indices.astype(np.int32), X.data)]
    return X, parts, torch.tensor(r.integers(0, n, n_rows)), int(r.integers(0, 17))

@few
@given(shapes)
def test_all_give_what_scipy_gives(shape):
    X, parts, rows, first = made(*shape)
    expected = X[rows.numpy()].toarray()
    np.testing.assert_array_equal(by_stores_past_the_cache(parts, rows, shape[1], first).numpy(), expected)
    for way in WAYS: np.testing.assert_array_equal(way(parts, rows, shape[1]).numpy(), expected)

@few
@given(shapes)
def test_in_bfloat16_each_number_is_rounded_once(shape):
    X, parts, rows, _ = made(*shape)
    rounded = torch.from_numpy(X[rows.numpy()].toarray()).bfloat16()
    # interpreted, the kernel cuts off
    for way in WAYS[DEVICE == 'cpu':2]: assert torch.equal(way(parts, rows, shape[1], torch.bfloat16), rounded)

@pytest.fixture(scope='module')
def huge(tmp_path_factory):
    "Three cells behind 2^31 numbers that are never read: files with holes take no room."
    folder, start = tmp_path_factory.mktemp('huge'), 2**31 + 7
    made = lambda name, dtype: np.memmap(folder/name, dtype, 'w+', shape=start + 6)
    indices, values = made('i', np.int32), made('v', np.float32)
    indices[start:], values[start:] = [1, 4, 0, 2, 3, 4], [1, 2, 3, 4, 5, 6]
    return np.array([0, 0, start, start + 2, start + 2, start + 6]), indices, values

ROWS = [0, 4, 3, 2]
EXPECTED = [[0, 0, 0, 0, 0], [3, 0, 4, 5, 6], [0, 0, 0, 0, 0], [0, 1, 0, 0, 2]]  # of these rows

@pytest.mark.parametrize('way', WAYS)
def test_positions_beyond_31_bits(huge, way, monkeypatch):
    monkeypatch.setitem(globals(), 'DEVICE', 'cpu')
    if way is by_kernel and torch.cuda.is_available(): pytest.skip('the kernel is not interpreted where there is a GPU')
    parts = [torch.from_numpy(o) for o in huge]
    if way is by_torch:
        out = torch.full((4, 5), torch.nan)
        plain_gather(*parts, torch.tensor(ROWS), out, 4)
    else: out = way(parts, torch.tensor(ROWS), 5)
    assert out.tolist() == EXPECTED

def test_a_store_beyond_31_bits(huge):
    p, k = np.array([[0], [1]], np.float32), np.zeros((2, 0), np.float32)
    design = Design(['x'], {}, p, k, np.zeros(2, np.int64), np.array([True, False]))
    store = CellStore(*huge, np.array([0, 0, 1, 1, 1]), np.arange(5), np.array(list('abcde')), list('ABCDE'), design)
    assert store.dense(ROWS).tolist() == EXPECTED and store.nbytes > 2**34
    indptr, indices, values = travel(store, np.array([4, 2]), 'values', torch.device('cpu'))
    assert (indptr.tolist(), indices.tolist(), values.tolist()) == ([0, 4, 6], [0, 2, 3, 4, 1, 4], [3, 4, 5, 6, 1, 2])
    last = store.select(np.array([False, False, True, True, True]))
    np.testing.assert_array_equal(last.means()[1], np.array([3, 1, 4, 5, 8])/3)

def room(n_bytes):
    "Do without where the device has less memory left than this."
    if GPU != 'cpu' and torch.cuda.mem_get_info()[0] < n_bytes:
        pytest.skip(f'the device has less than {n_bytes/1e9:.0f} GB left')

@pytest.mark.gpu
def test_positions_beyond_31_bits_on_a_gpu():
    "As `huge`, in the memory of the device: numbers before the last six are never written or read."
    room(2**31*8 + 2**30)
    start = 2**31 + 7
    indptr = torch.tensor([0, 0, start, start + 2, start + 2, start + 6], device=GPU)
    indices, values = (torch.empty(start + 6, dtype=dtype, device=GPU) for dtype in (torch.int32, torch.float32))
    indices[start:] = torch.tensor([1, 4, 0, 2, 3, 4], dtype=torch.int32, device=GPU)
    values[start:] = torch.arange(1., 7., device=GPU)
    rows, out, plain = torch.tensor(ROWS, device=GPU), aligned(4, 5, torch.float32, GPU), torch.empty(4, 5, device=GPU)
    gather(indptr, indices, values, rows, out)
    plain_gather(indptr, indices, values, rows, plain, 4)
    assert out.tolist() == plain.tolist() == EXPECTED

@pytest.mark.gpu
def test_a_dense_matrix_beyond_31_bits_on_a_gpu():
    n_rows, n_genes = 2**21 + 5, 1000
    room(n_rows*1024*2 + 2**30)
    X, parts, _, _ = made(7, n_genes, .1, 0, 0)
    rows = torch.arange(n_rows, device=GPU) % 7
    out = aligned(n_rows, n_genes, torch.bfloat16, GPU)
    gather(*on(GPU, parts), rows, out)
    assert torch.equal(out[-9:].cpu(), torch.from_numpy(X[rows[-9:].cpu().numpy()].toarray()).bfloat16())

@pytest.mark.gpu
@pytest.mark.parametrize('resident', [True, False])
@pytest.mark.parametrize('layer', ['values', 'counts'])
def test_a_store_on_a_gpu_gives_the_same(task, resident, layer):
    far, rows = task.store.to(GPU, resident), np.random.default_rng(0).integers(0, task.store.n_cells, 200)
    for some in (rows, rows[:1], rows[:0], np.repeat(rows[:3], 50)):
        near = task.store.dense(some, layer=layer)
        assert torch.equal(far.dense(some, layer=layer).cpu(), near)
        assert torch.equal(far.dense(some, layer=layer, dtype=torch.bfloat16).cpu(), near.bfloat16())

STRATEGIES = ['disentangling', 'matched', {'name': 'matched', 'same_batch': True}, {'name': 'sets', 'size': 16}]

def on_host(batch): return {k: v.cpu() for k, v in vars(batch).items() if v is not None}

def same_batches(some, others):
    "Whether two loaders give the same batches; those of the second are looked at late, when later ones were asked for."
    others, n = [on_host(b) for b in list(others)], 0
    for a, b in zip(some, others, strict=True):
        a, n = on_host(a), n + 1
        assert a.keys() == b.keys()
        for k in a: assert torch.equal(a[k], b[k]), (n, k)
    return n > 2

def loader(store, task, strategy, kind=Batches, **options):
    cells, controls = (Cells(store, o.rows) for o in (task.cells('train'), task.controls('train')))
    cells = cells if strategy == 'disentangling' else cells.where(~task.design.is_control)
    return kind(cells, controls, strategy, 500, 3, fields=('counts', 'library', 'batch'), **options)

@pytest.mark.gpu
@pytest.mark.parametrize('strategy', STRATEGIES, ids=str)
@pytest.mark.parametrize('resident', [True, False])
def test_batches_are_those_of_the_host_wherever_rows_are(task, strategy, resident):
    "Rows on the host are made dense on a stream of their own while the device is busy with something else."
    near, far = (loader(s, task, strategy) for s in (task.store, task.store.to(GPU, resident)))
    for epoch in (0, 5):
        near.set_epoch(epoch), far.set_epoch(epoch)
        busy = torch.randn(BUSY, BUSY, device=GPU)
        for _ in range(20): busy = busy @ busy / 64
        assert same_batches(near, far)

@pytest.mark.gpu
@pytest.mark.parametrize('resident', [True, False])
def test_transport_pairs_cells_with_controls_of_their_state(task, resident):
    "Draws are the device's own, so pairs are not those of the host; each control is one that was drawn."
    batches = loader(task.store.to(GPU, resident), task, {'name': 'ot', 'n_components': 5})
    again = loader(task.store.to(GPU, not resident), task, {'name': 'ot', 'n_components': 5})
    rows, drawn = batches.plan()
    for i, (batch, other) in enumerate(zip(batches, again)):
        candidates = task.store.dense(drawn[i*500:(i + 1)*500]).to(GPU)
        assert all((candidates == c).all(1).any() for c in batch.controls[::25])
        assert torch.equal(batch.expression, other.expression)
        assert (batch.controls == other.controls).all(1).float().mean() > .95

@pytest.mark.gpu
@pytest.mark.parametrize('strategy', STRATEGIES, ids=str)
def test_batches_of_files_go_to_a_gpu(task, strategy):
    store, options = FileStore.from_store(task.store), dict(kind=DiskBatches, ahead=1000, n_controls=300)
    assert same_batches(loader(store, task, strategy, **options), loader(store.to(GPU), task, strategy, **options))

@pytest.mark.gpu
def test_bfloat16_batches_are_those_of_the_host_rounded(task):
    near, far = (loader(s, task, 'matched', dtype=torch.bfloat16) for s in (task.store, task.store.to(GPU)))
    assert same_batches(near, far)
