"The GPU kernel in Triton's interpreter, its stand-in and the CPU kernel: one matrix, also beyond 2^31 non-zeros."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import sparse
from perturbench.data.screen import Design
from perturbench.loaders.gpu import gather
from perturbench.loaders.store import CellStore, aligned, densify, plain_gather, travel

def by_kernel(parts, rows, n_genes):
    out = aligned(len(rows), n_genes, torch.float32, 'cpu').fill_(torch.nan)
    gather(*parts, rows, out)
    return out

def by_torch(parts, rows, n_genes):
    out = torch.full((len(rows), n_genes), torch.nan)
    plain_gather(*parts, rows, out, int(parts[0].diff().max()))
    return out

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

@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 2100), st.sampled_from([0, .02, .3, 1.]), st.integers(0, 2**31), st.integers(0, 9))
def test_all_give_what_scipy_gives(n, g, density, seed, n_rows):
    r = np.random.default_rng(seed)
    X = sparse.random(n, g, density, 'csr', np.float32, random_state=r)
    rows = r.integers(0, n, n_rows)
    parts = [torch.tensor(o) for o in (X.indptr.astype(np.int64), X.indices.astype(np.int32), X.data)]
    np.testing.assert_array_equal(by_stores_past_the_cache(parts, torch.tensor(rows), g, int(r.integers(0, 17))).numpy(), X[rows].toarray())
    for way in WAYS: np.testing.assert_array_equal(way(parts, torch.tensor(rows), g).numpy(), X[rows].toarray())

@pytest.fixture(scope='module')
def huge(tmp_path_factory):
    "Three cells behind 2^31 numbers that are never read: files with holes take no room."
    folder, start = tmp_path_factory.mktemp('huge'), 2**31 + 7
    indices, values = (np.memmap(folder/k, dtype, 'w+', shape=start + 6) for k, dtype in (('i', np.int32), ('v', np.float32)))
    indices[start:], values[start:] = [1, 4, 0, 2, 3, 4], [1, 2, 3, 4, 5, 6]
    return np.array([0, 0, start, start + 2, start + 2, start + 6]), indices, values

EXPECTED = [[0, 0, 0, 0, 0], [3, 0, 4, 5, 6], [0, 0, 0, 0, 0], [0, 1, 0, 0, 2]]  # of the rows 0, 4, 3, 2

@pytest.mark.parametrize('way', WAYS)
def test_positions_beyond_31_bits(huge, way):
    parts = [torch.from_numpy(o) for o in huge]
    if way is by_torch: parts[0] = parts[0].clone(); out = torch.full((4, 5), torch.nan); plain_gather(*parts, torch.tensor([0, 4, 3, 2]), out, 4)
    else: out = way(parts, torch.tensor([0, 4, 3, 2]), 5)
    assert out.tolist() == EXPECTED

def test_a_store_beyond_31_bits(huge):
    design = Design(['x'], {}, np.array([[0], [1]], np.float32), np.zeros((2, 0), np.float32), np.zeros(2, np.int64), np.array([True, False]))
    store = CellStore(*huge, np.array([0, 0, 1, 1, 1]), np.arange(5), np.array(list('abcde')), list('ABCDE'), design)
    assert store.dense([0, 4, 3, 2]).tolist() == EXPECTED and store.nbytes > 2**34
    indptr, indices, values = travel(store, np.array([4, 2]), 'values', torch.device('cpu'))
    assert (indptr.tolist(), indices.tolist(), values.tolist()) == ([0, 4, 6], [0, 2, 3, 4, 1, 4], [3, 4, 5, 6, 1, 2])
    np.testing.assert_array_equal(store.select(np.array([False, False, True, True, True])).means()[1], np.array([3, 1, 4, 5, 8])/3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_a_gpu_gives_the_same(task):
    far, rows = task.store.to('cuda'), np.random.default_rng(0).integers(0, task.store.n_cells, 200)
    assert torch.equal(far.dense(rows).cpu(), task.store.dense(rows))
    assert torch.equal(far.dense(rows, dtype=torch.bfloat16).cpu(), task.store.dense(rows).bfloat16())
