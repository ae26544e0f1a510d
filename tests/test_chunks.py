"What is unpacked here is what HDF5 reads."
from unittest.mock import patch
import anndata as ad, h5py, hypothesis.strategies as st, numpy as np, pytest
from anndata.io import sparse_dataset
from hypothesis import given, settings
from scipy import sparse
from perturbench.core import InputError, rng
from perturbench.data import chunks
from perturbench.data.blocks import Blocks
from perturbench.data.chunks import can_unpack, read_part
from perturbench.data.copies import keys_of
from perturbench.data.h5ad import read_h5ad

KINDS = ['u1', 'i1', '<u2', '>i2', '<f2', '<i4', '>i4', '<f4', '>f4', '<i8', '>f8']

@pytest.fixture
def two_threads():
    "On a machine of one thread, too."
    with patch('numba.get_num_threads', return_value=2): yield

@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.sampled_from(KINDS), st.booleans(), st.integers(0, 9), st.data())
def test_a_part_is_what_hdf5_reads(n, size, kind, shuffle, level, data):
    values = rng(n).integers(0, 100, n).astype(kind)
    a = data.draw(st.integers(0, n))
    b = data.draw(st.integers(0, n + 5))
    with h5py.File('none', 'w', driver='core', backing_store=False) as f:
        packed = f.create_dataset('x', data=values, chunks=(min(size, n),), compression=level, shuffle=shuffle)
        assert can_unpack(packed)
        with patch('numba.get_num_threads', return_value=2), patch.object(h5py.Dataset, '__getitem__', None):
            found = read_part(packed, a, b)  # HDF5 cannot be asked
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values[a:b])

@pytest.mark.parametrize('options', [
    dict(), dict(chunks=(4,)), dict(chunks=(4,), compression='lzf'), dict(compression='gzip', fletcher32=True),
    dict(chunks=(4,), scaleoffset=0)])
def test_what_is_packed_otherwise_is_left_to_hdf5(tmp_path, two_threads, options):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        x = f.create_dataset('x', data=np.arange(30, dtype='i4'), **options)
        assert not can_unpack(x)
        np.testing.assert_array_equal(read_part(x, 3, 17), np.arange(3, 17))

@pytest.mark.parametrize('kind', ['c8', bool, h5py.string_dtype()])
def test_what_is_no_number_is_left_to_hdf5(tmp_path, kind):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        assert not can_unpack(f.create_dataset('x', (30,), kind, chunks=(4,), compression='gzip'))

@pytest.fixture
def screen_file(tmp_path):
    "A small screen as a compressed file."
    X = sparse.random(400, 50, .3, 'csr', np.float32, rng(0), data_rvs=lambda n: np.log1p(rng(1).poisson(3, n) + 1))
    ad.AnnData(X).write_h5ad(tmp_path/'a.h5ad', compression='gzip')
    return tmp_path/'a.h5ad', X

def test_all_who_go_through_a_file_see_the_same(screen_file, two_threads):
    path, X = screen_file
    with h5py.File(path) as f:
        in_file = sparse_dataset(f['X'])
        assert can_unpack(f['X/data']) and can_unpack(f['X/indices'])
        found = sparse.vstack([block for _, block in Blocks(in_file, size=37)])
        assert (found != X).nnz == 0
        by_blocks, at_once = keys_of(Blocks(in_file, size=37)), keys_of(X)
    for mine, other in zip(by_blocks, at_once): np.testing.assert_array_equal(mine, other)

def test_a_chunk_that_is_damaged_is_refused_as_with_one_thread(screen_file, tmp_path):
    path, _ = screen_file
    with h5py.File(path) as f: at = f['X/data'].id.get_chunk_info(0).byte_offset
    with open(path, 'r+b') as f:
        f.seek(at + 20)
        f.write(bytes(40))
    said = []
    for n in (1, 2):
        with patch('numba.get_num_threads', return_value=n), pytest.raises(InputError) as e:
            read_h5ad(path)
        said.append(str(e.value))
    assert said[0] == said[1]

def test_hdf5_is_asked_where_a_chunk_cannot_be_unpacked(screen_file, two_threads):
    path, X = screen_file
    no_stream = chunks.zlib.error('this is no stream')
    with h5py.File(path) as f, patch.object(chunks.zlib, 'decompress', side_effect=no_stream):
        np.testing.assert_array_equal(read_part(f['X/data'], 5, 900), X.data[5:900])
