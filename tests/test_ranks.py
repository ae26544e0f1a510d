"Ranks by plain loops, tables of distances against scipy, and what must not change them."
import os, subprocess, sys
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist
from perturbench.metrics.accuracy import METRICS, RESOLUTION
from perturbench.metrics.ranks import (
    DISTANCES, Between, Pairs, Sides, View, alike, cosine_rank, discrimination_cosine, discrimination_l1,
    discrimination_l2, ranks, rank_strict, rmse_rank)

few = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
SCIPY = dict(l1='cityblock', l2='sqeuclidean', cosine='cosine')
EXACT = 1e-12 # Ranks are counts divided by P - 1: all that float64 leaves of them
CLOSE = 1e-9 # Distances, in parts of the largest: cancellation takes some of float64's sixteen digits

def by_loop(distance, rounding, relative, same, ties):
    "The rank by its definition, a pair at a time."
    n, weight = len(distance), dict(half=.5, full=1.)[ties]
    out = []
    for i in range(n):
        total, own = 0., distance[i, i]
        for j in set(range(n)) - {i}:
            off = rounding.true[i] + max(rounding.pred[i], rounding.pred[j])
            floor = relative*max(abs(distance[i, j]), abs(own)) + off
            tie = same[i, j] or abs(distance[i, j] - own) <= floor
            total += weight if tie else float(distance[i, j] < own)
        out.append(total/(n - 1))
    return out

@few
@given(seeds, st.sampled_from(['half', 'full']))
def test_a_rank_counts_what_is_closer_and_what_ties(seed, ties):
    r = np.random.default_rng(seed)
    n = r.integers(2, 9)
    distance, rounding = r.integers(0, 6, (n, n)).astype(float), Sides(*r.choice([0., .5, 1.5], (2, n)))
    same = np.eye(n, dtype=bool) | (r.random((n, n)) < .2)
    relative = r.choice([1e-9, .3])
    between = Between(distance, rounding, relative, Sides(False, same))
    assert ranks(between, ties) == pytest.approx(by_loop(distance, rounding, relative, same, ties), abs=EXACT)
    turned = Between(distance, rounding, relative, Sides(same.T, False)).T
    by_truths = by_loop(distance.T, Sides(*rounding[::-1]), relative, same.T, ties)
    assert ranks(turned, ties) == pytest.approx(by_truths, abs=EXACT)

def euclidean(pred, true): return np.sqrt(np.mean((pred - true)**2))

def angle(pred, true):
    if not (pred.any() and true.any()): return 1.
    return 1 - pred @ true/(np.linalg.norm(pred)*np.linalg.norm(true))

@few
@given(seeds)
def test_ranks_of_predictions_of_every_quality_are_those_of_a_loop(seed):
    r = np.random.default_rng(seed)
    true = r.normal(size=(20, 50)) + 5
    pred = true + r.normal(size=true.shape)*10.**r.integers(-8, 2, (20, 1))
    true[3], pred[5], pred[8], pred[9], true[11] = true[2], pred[4], pred[7], 0, 0
    exact = Sides(np.full(20, 1e-12), np.zeros(20))
    for rank, distance in ((rmse_rank, euclidean), (cosine_rank, angle)):
        table = np.array([[distance(p, t) for p in pred] for t in true])
        expected = by_loop(table, exact, 1e-9, np.zeros((20, 20), bool), 'half')
        assert rank(pred, true) == pytest.approx(expected, abs=EXACT)

def lookalikes(r, n, n_genes):
    "Rows of which some are others, up to less or to more than what float32 tells apart."
    rows = r.choice([0, 5])*np.ones((n, n_genes)) + r.choice([1e-6, 1e-3, 1])*r.normal(size=(n, n_genes))
    of = r.integers(r.choice([1, 2, n]), size=n)
    which = r.random(n) < r.choice([.1, .9])
    change = r.choice([1e-8, 1e-2], (n, 1))*r.normal(size=rows.shape)
    rows[which] = (rows[of] + change)[which]
    return rows

@few
@given(seeds)
def test_rows_are_alike_by_their_distance_over_genes_that_count(seed):
    r = np.random.default_rng(seed)
    n, n_genes = r.integers(1, 60), r.integers(2, 40)
    rows, without = lookalikes(r, n, n_genes), r.integers(n_genes, size=r.integers(3))
    counted = np.delete(rows, without, 1)
    root_mean_square = cdist(counted, counted)/max(1, counted.shape[1])**.5
    clear = np.abs(root_mean_square - RESOLUTION) > .01*RESOLUTION  # others may fall either way
    found = alike(rows, without)
    if found is False: found = np.eye(n, dtype=bool)
    assert (found == (root_mean_square <= RESOLUTION))[clear].all()

@pytest.mark.parametrize('n', [1, 2, 30, 300])
def test_views_and_what_is_left_without_some_genes_are_those_of_scipy(n):
    r = np.random.default_rng(n)
    n_genes, hit = 1300, np.array([0, 872, 873, 1299])  # two pieces for 300 rows
    true, pred = 2 + r.normal(size=(2, n, n_genes))
    a, b = r.normal(size=(2, n_genes))
    views = dict(average=View(), delta=View(a, b, l1=True), true=View(a, None), pred=View(None, b))
    over = lambda genes: Pairs(lambda some: true[:, some], lambda some: pred[:, some], views, genes)
    every, hits = over(n_genes), over(hit)
    keep = np.delete(np.arange(n_genes), hit)
    for pairs, genes in ((every, slice(None)), (hits, hit), (every.less(hits), keep)):
        for space, view in views.items():
            t, p = true - (0 if view.true is None else a), pred - (0 if view.pred is None else b)
            for kind in SCIPY if view.l1 else ('l2', 'cosine'):
                expected = cdist(t[:, genes], p[:, genes], SCIPY[kind])
                found = pairs.between(space, kind).distance
                np.testing.assert_allclose(found, expected, rtol=CLOSE, atol=CLOSE, err_msg=f'{space} {kind}')

def test_pairs_over_all_genes_stay_what_they_are_where_some_are_left_out():
    true, pred = np.random.default_rng(0).normal(size=(2, 5, 20))
    over = lambda genes: Pairs(lambda some: true[:, some], lambda some: pred[:, some], {'': View(l1=True)}, genes)
    pairs, some = over(20), over(np.array([3]))
    before = [pairs.between('', kind).distance.copy() for kind in SCIPY]
    pairs.less(some)
    assert all((pairs.between('', kind).distance == old).all() for kind, old in zip(SCIPY, before))

@pytest.mark.parametrize('kind', SCIPY)
def test_float32_profiles_are_summed_in_float64(kind):
    true, pred = np.random.default_rng(1).normal(size=(2, 6, 30)).astype(np.float32)
    pairs = Pairs(lambda s: true[:, s], lambda s: pred[:, s], {'': View(l1=True)}, 30)
    expected = cdist(true.astype(float), pred.astype(float), SCIPY[kind])
    for found in (pairs.between('', kind), DISTANCES[kind](pred, true)):
        np.testing.assert_allclose(found.distance, expected, rtol=CLOSE, atol=CLOSE)

def test_missing_rows_tie_with_nothing_and_are_like_nothing():
    true, pred = np.random.default_rng(2).normal(size=(2, 6, 30))
    pred[2] = np.nan
    assert not np.any(alike(pred))
    without = np.array([0, 1, 3, 4, 5])
    for rank in (rmse_rank, cosine_rank):
        alone = rank(pred[without], true[without])
        assert rank(pred, true)[without] == pytest.approx(alone*4/5, abs=EXACT)

def test_each_rank_is_there_over_all_genes_and_without_targets():
    once = dict(rmse_rank_average=rmse_rank, cosine_rank_logfc=cosine_rank, discrimination_l1_delta=discrimination_l1,
                discrimination_l2_delta=discrimination_l2, discrimination_cosine_delta=discrimination_cosine,
                discrimination_cosine_centred=discrimination_cosine)
    once |= {f'{name}_own': func for name, func in once.items() if name.endswith(('delta', 'logfc'))}
    for name, func in once.items():
        everywhere, elsewhere = METRICS[name], METRICS[f'{name}_offtarget']
        assert everywhere.func is elsewhere.func is func
        assert elsewhere.needs == (*everywhere.needs, 'offtarget') and set(everywhere.needs) < set(DISTANCES)
        assert elsewhere.text == f'{everywhere.text}, without targets' and elsewhere.best == everywhere.best
    assert METRICS['rank_strict'].func is rank_strict
    assert sum(m.kind == 'rank' for m in map(METRICS.__getitem__, METRICS)) == 2*len(once) + 1

# What threads may not change; a process of its own takes seconds to import, so one for each number of threads does all

HASHED = """
import hashlib, numpy as np
from perturbench.metrics.ranks import DISTANCES, ranks
true, pred = np.random.default_rng(0).normal(size=(2, 70, 900))
distances = {kind: between(pred, true) for kind, between in DISTANCES.items()}
bits = [distances['l1'].distance] + [ranks(side) for o in distances.values() for side in (o, o.T)]
print(hashlib.sha256(b''.join(o.tobytes() for o in bits)).hexdigest())
"""

MULTIPLIED = """
import hashlib, numpy as np, torch
from types import SimpleNamespace
from perturbench.loaders.batches import principal_axes
from perturbench.scoring.collect import Workers, one_thread
from perturbench.metrics.effects import pseudobulk
r, found = np.random.default_rng(0), {}
X = r.random((300, 4000), np.float32)
axes = torch.from_numpy(r.normal(size=(4000, 50)).astype(np.float32))
def multiply(n):
    pseudobulk(X[:3], [0, 0, 1], 2) # Its kernel starts threads
    found[n] = (torch.from_numpy(X[:n]) @ axes).numpy()
store = SimpleNamespace(dense=lambda rows: torch.from_numpy(X[rows]))
with one_thread() as n_threads, Workers(n_threads) as workers:
    for n in (1, 25, 64, 128, 300): workers.do(multiply, n)
    cells = SimpleNamespace(store=store, rows=np.arange(300))
    workers.do(lambda: found.update(axes=principal_axes(cells, 100).numpy()))
print(hashlib.sha256(b''.join(found[key].tobytes() for key in (1, 25, 64, 128, 300, 'axes'))).hexdigest())
"""

WITH_THREADS = """
import numba, torch
from threadpoolctl import threadpool_limits
for n in (1, 3):
    numba.set_num_threads(n)
    torch.set_num_threads(n)
    with threadpool_limits(n):
        for program in (HASHED, MULTIPLIED): exec(program)
"""

@pytest.fixture(scope='module')
def hashes():
    "For one thread and three: what each of the programs above prints, in a process that may start three."
    threads = dict.fromkeys(('NUMBA_NUM_THREADS', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '3')
    run = [sys.executable, '-c', f'HASHED, MULTIPLIED = {HASHED!r}, {MULTIPLIED!r}{WITH_THREADS}']
    said = subprocess.run(run, env=os.environ | threads, capture_output=True, text=True, check=True).stdout.split()
    return [said[:2], said[2:]]

def test_threads_change_no_bit_of_sums_of_absolute_differences_and_of_ranks(hashes):
    assert len({ranked for ranked, _ in hashes}) == 1

def test_threads_change_no_bit_of_what_cells_are_multiplied_with(hashes):
    assert len({multiplied for _, multiplied in hashes}) == 1
