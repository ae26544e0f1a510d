"Distances between samples of cells against double loops and other libraries, and what must not change them."
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics.pairwise import rbf_kernel
from perturbench.core import InputError
from perturbench.metrics import distributions
from perturbench.metrics.accuracy import METRICS, SPACES
from perturbench.metrics.distributions import (
    FUNCTIONS, MeasuredPairs, cell_covariance, dispersion, energy_distance, energy_to_truth, median_distance,
    mmd_published, mmd_rbf, pair_sums)

few = settings(max_examples=40, deadline=None, derandomize=True)
BANDWIDTHS = (1/4, 1/2, 1, 2, 4)

@pytest.fixture(autouse=True, scope='module', params=[distributions.FEW, 0], ids=['one by one', 'by products'])
def way(request):
    "Each of the two ways in which distances are added."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributions, 'FEW', request.param)
        yield

def samples(seed, least=1):
    """Two samples of 1 to 12 cells in 1 to 6 dimensions: with repeated cells, constant, of whole numbers, shared,
    or far away from each other and the origin."""
    r = np.random.default_rng(seed)
    n, m, d = r.integers(least, 13), r.integers(least, 13), r.choice([1, 2, 6])
    x, y = (r.choice([1e-2, 1, 30])*r.normal(size=(k, d)) for k in (n, m))
    for o in (x, y):
        kind = r.integers(6)
        if kind == 0: o[:] = o[0]
        elif kind == 1: o[:] = o[r.integers(len(o), size=len(o))]
        elif kind == 2: o[:] = np.round(o)
        elif kind == 3: o[0] += 1e3
    if r.integers(3) == 0: y[:min(n, m)] = x[:min(n, m)]
    return x + r.choice([0, 1e3]), y + r.choice([0, 1e3])

cases, pairs = (st.integers(0, 2**32 - 1).map(lambda seed, least=least: samples(seed, least)) for least in (1, 2))

def by_loop(f, x, y, selves=False):
    "Means of `f` of the distance: between two samples, within the first and within the second, by their definition."
    def within(o):
        values = [f(math.dist(a, b)) for i, a in enumerate(o) for j, b in enumerate(o) if selves or i != j]
        return math.fsum(values)/len(values)
    return math.fsum(f(math.dist(a, b)) for a in x for b in y)/(len(x)*len(y)), within(x), within(y)

def kernel(distance, scale): return sum(math.exp(-distance**2/(2*(c*scale)**2)) for c in BANDWIDTHS)/5

def about(value, terms, share=1e-6):
    "`value`, give or take a `share` of the largest of `terms`."
    return pytest.approx(value, rel=0, abs=share*max(map(abs, terms)))

@few
@given(pairs)
def test_energy_distance_is_that_of_a_loop(case):
    between, x, y = by_loop(float, *case)
    assert energy_distance(*case) == about(2*between - x - y, (2*between, x, y))

@few
@given(pairs, st.sampled_from([.05, .5, 3., 200.]))
def test_mmd_is_that_of_a_loop(case, scale):
    between, x, y = by_loop(lambda d: kernel(d, scale), *case)
    found = mmd_rbf(*case, scale=scale)
    # a product of coordinates of 1e3 leaves 1e-9 in a squared distance, and a bandwidth of .0125 makes 3e-6 of that
    assert found == about(x + y - 2*between, (2*between, x, y), 1e-5)
    assert -1 - 1e-12 <= found <= 2 + 1e-12

@few
@given(cases)
def test_published_mmd_is_that_of_a_loop_and_of_scipy(case):
    n = min(map(len, case))
    x, y = (o[:n] for o in case)
    between, within_x, within_y = by_loop(float, x, y, selves=True)
    terms = between, within_x/2, within_y/2
    assert mmd_published(x, y) == about(between - within_x/2 - within_y/2, terms)
    assert mmd_published(x, y) >= -1e-6*max(terms)
    a, b = x[:, 0], y[:, 0]
    terms = by_loop(float, a[:, None], b[:, None], selves=True)
    assert mmd_published(a[:, None], b[:, None]) == about(stats.energy_distance(a, b)**2/2, terms)

@pytest.mark.parametrize('n, d', [(2, 1), (40, 3), (300, 50), (64, 500)])
def test_published_mmd_is_that_of_geomloss(n, d):
    r = np.random.default_rng(n)
    x, y = r.normal(size=(n, d)), r.normal(.3, 1.5, (n, d))
    geomloss = pytest.importorskip('geomloss', reason='a development dependency that a GPU machine may lack')
    theirs = geomloss.SamplesLoss('energy')(torch.tensor(x), torch.tensor(y)).item()
    floor = 1e-4  # what geomloss takes for the distance of a cell to itself, the only pairs that are as close here
    assert min(pdist(x).min(), pdist(y).min(), cdist(x, y).min()) > floor
    assert mmd_published(x, y) == pytest.approx(theirs + floor/n, rel=0, abs=1e-11)

def test_on_samples_of_many_blocks_means_are_those_of_scipy_and_scikit_learn():
    r = np.random.default_rng(0)
    x, y = (np.vstack([o, o[:100]]) for o in (r.gamma(1., 1., (700, 30)), r.gamma(1.2, 1., (533, 30))))
    terms = 2*cdist(x, y).mean(), pdist(x).mean(), pdist(y).mean()
    assert energy_distance(x, y) == about(terms[0] - terms[1] - terms[2], terms, 1e-12)
    s = median_distance(y)
    def mean(a, b=None):
        k = np.mean([rbf_kernel(a, b, 1/(2*(c*s)**2)) for c in BANDWIDTHS], axis=0)
        return k.mean() if b is not None else (k.sum() - np.trace(k))/(len(k)*(len(k) - 1))
    assert mmd_rbf(x, y, s) == pytest.approx(mean(x) + mean(y) - 2*mean(x, y), rel=0, abs=1e-12)

def all_of(scale): return energy_distance, mmd_published, lambda x, y: mmd_rbf(x, y, scale)

@few
@given(pairs, st.integers(0, 99))
def test_rotation_translation_order_and_sides_do_not_matter(case, seed):
    n, r = min(map(len, case)), np.random.default_rng(seed)
    x, y = (o[:n] for o in case)
    turn, rows = np.linalg.qr(r.normal(size=(x.shape[1],)*2))[0], r.permutation(n)
    size = max(1, *by_loop(float, x, y))
    for f in all_of(5.):
        same = pytest.approx(f(x, y), rel=0, abs=1e-6*size)
        assert f(y, x) == same
        assert f(x @ turn, y @ turn) == same
        assert f(x + 50, y + 50) == same
        assert f(x[rows], y[rows[::-1]]) == same

@few
@given(pairs, st.sampled_from([1e-3, 8., 1e5]))
def test_scale_of_the_cells(case, c):
    x, y = case
    terms = by_loop(float, x, y)
    assert energy_distance(c*x, c*y)/c == about(energy_distance(x, y), terms)
    s = median_distance(y)
    if s > 1e-3*max(terms):
        assert mmd_rbf(c*x, c*y, median_distance(c*y)) == pytest.approx(mmd_rbf(x, y, s), rel=0, abs=1e-6)

@pytest.mark.parametrize('repeats', [1, 4])
def test_blocks_change_nothing_and_are_all_that_is_held(monkeypatch, repeats):
    r, squared, seen = np.random.default_rng(1), distributions._squared, []
    x, y = (np.repeat(1e3 + r.normal(size=(k//repeats, 7)), repeats, axis=0) for k in (44, 32))
    def noted(a, b):
        seen.append(squared(a, b))
        return seen[-1]
    monkeypatch.setattr(distributions, '_squared', noted)
    monkeypatch.setattr(distributions, 'FEW', 0)
    found = {}
    for block in (1, 7, 100, 2**30):
        monkeypatch.setattr(distributions, 'BLOCK', block)
        seen.clear()
        found[block] = [f(x, y) for f in all_of(3.)]
        assert max(o.numel() for o in seen) <= block
        assert len(seen) == 9 or block < 2**30
    for value in found.values():
        assert value == pytest.approx(found[1], rel=0, abs=1e-12*cdist(x, y).mean())

def test_a_block_is_smaller_than_all_distances_of_a_condition():
    assert distributions.BLOCK < 500**2

@few
@given(st.integers(0, 2**32 - 1))
def test_the_mean_over_all_ways_to_halve_a_sample_is_zero(seed):
    cells = samples(seed, 6)[0][:6]
    halves = [(cells[list(s)], np.delete(cells, s, 0)) for s in combinations(range(6), 3)]
    size = pdist(cells).mean()
    assert np.mean([energy_distance(*h) for h in halves]) == pytest.approx(0, abs=1e-6*size + 1e-300)
    assert np.mean([mmd_rbf(*h, 2.) for h in halves]) == pytest.approx(0, abs=1e-6)
    # a third of the pairs within a half are of a cell with itself
    assert np.mean([mmd_published(*h) for h in halves]) == pytest.approx(size/3, rel=1e-5)

def test_types_of_numbers_and_of_arrays():
    r = np.random.default_rng(2)
    x, y = r.integers(-9, 10, (30, 4)), r.integers(-9, 10, (20, 4))
    known = [f(x.astype(float), y.astype(float)) for f in all_of(4.)]
    half = lambda o: torch.tensor(o, dtype=torch.bfloat16)
    readonly = x.astype(float)
    readonly.flags.writeable = False
    for a, b in [(x, y), (x.astype(np.float16), y.astype(np.float32)), (x.tolist(), y.astype(np.int8)),
                 (half(x), torch.tensor(y)), (readonly, np.asfortranarray(y)), (np.ascontiguousarray(x[::-1])[::-1], y),
                 (torch.tensor(x, dtype=torch.float32, requires_grad=True), y)]:
        found = [f(a, b) for f in all_of(4.)]
        assert found == pytest.approx(known, rel=0, abs=1e-13)
        assert all(type(o) is float for o in [*found, median_distance(a)])

def test_half_precision_is_read_exactly_and_left_as_it_was():
    x, y = (torch.randn(50, 20, generator=torch.Generator().manual_seed(k)).half() for k in (0, 1))
    before = x.clone()
    for f in all_of(6.): assert f(x, y) == f(x.double(), y.double())
    assert (x == before).all() and x.dtype is torch.float16
    a = np.random.default_rng(0).normal(size=(9, 3))
    kept = a.copy()
    for f in all_of(6.): f(a, a)
    assert (a == kept).all()

@pytest.mark.parametrize('f', [*all_of(1.), lambda x, y: median_distance(x)])
def test_what_is_no_matrix_of_cells_is_refused(f):
    good = np.zeros((3, 2))
    for bad in (sparse.csr_matrix(good), sparse.csr_array(good), torch.zeros(3, 2).to_sparse()):
        with pytest.raises(InputError, match='sparse matrix; give a dense one'): f(bad, good)
    for bad in (np.zeros(3), np.zeros((3, 2, 1)), 1.):
        with pytest.raises(InputError, match='cells x dimensions'): f(bad, good)

def test_samples_of_other_spaces_are_refused():
    for f in all_of(1.):
        with pytest.raises(InputError, match='2 dimensions, measured ones 5; give both in the same space'):
            f(np.zeros((3, 2)), np.zeros((3, 5)))

def test_without_pairs_it_is_missing():
    one, two, none = np.zeros((1, 3)), np.array([[0., 0, 0], [3, 4, 0]]), np.zeros((0, 3))
    energy, published, mmd = all_of(1.)
    for a, b in [(one, two), (two, one), (one, one), (none, two), (two, none), (none, none)]:
        assert np.isnan(energy(a, b)) and np.isnan(mmd(a, b))
        assert np.isnan(published(a, b)) == (min(len(a), len(b)) == 0)
    assert energy(two, two) == pytest.approx(2*2.5 - 5 - 5)
    assert published(one, two[1:]) == pytest.approx(5)
    assert np.isnan([median_distance(one), median_distance(none)]).all() and median_distance(two) == pytest.approx(5)
    assert np.isnan([mmd_rbf(two, two, s) for s in (0., np.nan, -1.)]).all()

def test_a_missing_number_makes_it_missing():
    x, y = np.ones((4, 3)), np.zeros((5, 3))
    for bad in (np.nan, np.inf):
        x[1, 1] = bad
        for f in all_of(1.): assert np.isnan(f(x, y)) and np.isnan(f(y, x))

def test_constant_samples():
    x, y = np.tile([3., 4e3, 0], (40, 1)), np.tile([0., 0, 0], (30, 1))
    distance = math.hypot(3, 4e3)
    assert energy_distance(x, y) == pytest.approx(2*distance, rel=1e-14)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert mmd_published(x, y) == pytest.approx(distance, rel=1e-14)
    assert mmd_rbf(x, y, 1.) == pytest.approx(2) and mmd_rbf(x, x, 1.) == pytest.approx(0, abs=1e-15)

def test_a_repeated_cell_is_at_zero_from_itself():
    r = np.random.default_rng(3)
    for d in (1, 2, 50, 2000):
        x = torch.tensor(r.gamma(.5, 1., (64, d)))
        squared = distributions._squared(distributions.points_of(x), distributions.points_of(x.clone()))
        assert (squared.diagonal() == 0).all()
        others = ~torch.eye(64, dtype=torch.bool)
        # two cells that nearly meet: their distance is a small difference of squares, which processors round otherwise
        assert squared.sqrt()[others].numpy() == pytest.approx(cdist(x, x)[others], rel=1e-9, abs=1e-10)

def test_published_mmd_takes_as_many_cells_of_each_side():
    r = np.random.default_rng(4)
    x, y = r.normal(size=(9, 2)), r.normal(size=(5, 2))
    chosen = [mmd_published(x[list(s)], y) for s in combinations(range(9), 5)]
    found = [mmd_published(x, y, seed) for seed in range(40)]
    assert all(np.isclose(chosen, o, rtol=0, atol=1e-12).any() for o in found)
    assert len(set(np.round(found, 12))) > 20
    assert found == [mmd_published(x, y, seed) for seed in range(40)]
    assert mmd_published(y, x) == pytest.approx(found[0], abs=1e-12)
    torch.manual_seed(5); np.random.seed(5)
    assert mmd_published(x, y) == found[0]

def test_median_distance_is_that_of_all_pairs_of_a_sample():
    r = np.random.default_rng(5)
    x = 1e3 + r.gamma(1., 1., (301, 12))
    assert median_distance(x) == pytest.approx(np.median(pdist(x)), rel=1e-12)
    sample = [median_distance(x, 40, seed) for seed in range(30)]
    assert sample == [median_distance(x, 40, seed) for seed in range(30)]
    assert len(set(sample)) == 30
    assert np.mean(sample) == pytest.approx(np.median(pdist(x)), rel=.03)
    assert median_distance(np.ones((5, 2))) == 0

def test_what_is_registered():
    known = {
        'energy_pca': 'pca',
        'energy_genes': 'genes',
        'energy_unbiased_pca': 'pca',
        'energy_unbiased_genes': 'genes',
        'mmd_rbf_pca': 'pca',
        'mmd_rbf_genes': 'genes',
        'mmd_published': 'pca_truth'}
    r = np.random.default_rng(6)
    x, y = r.normal(size=(20, 3)), r.normal(1, 1, (20, 3))
    for name, space in known.items():
        m = METRICS[name]
        assert (m.space, m.kind, m.better, m.best) == (space, 'distribution', 'lower', 0)
        assert SPACES[space] in m.text and m.source
        needs = {'mmd_rbf': ('scale', 'kernel'), 'energy': ('root', 'n_half'), 'energy_unbiased': ('root',)}
        assert m.needs == needs.get(name.rsplit('_', 1)[0], ()) and m.judged
        scale = {'scale': 2.} if 'scale' in m.needs else {}
        assert m.limits[0] <= m(x, y, **scale) <= m.limits[1]
        assert m(x, y, **scale) > m(x, x + 1e-3, **scale)
    for space in ('variance', 'zeros'):
        m = METRICS[f'mae_{space}']
        assert (m.space, m.kind, m.text) == (space, 'accuracy', f'mean absolute error of {SPACES[space]}')
        assert m([[.5, 0.], [1, 1]], [[0., 1], [1, 1]]).tolist() == [.75, 0]

# Sums over pairs, and what is made of them

def same_sums(found, known, n):
    "The sums over the pairs of `n` cells agree: relatively, or in the mean over pairs."
    assert found == pytest.approx(known, rel=1e-9, abs=1e-9*n*n)

@few
@given(cases, st.sampled_from([.05, 3., 200.]))
def test_sums_over_pairs_are_those_of_a_loop(case, scale):
    x, y = case
    most = max(1, *(math.dist(a, b) for a in (*x, *y) for b in y))
    def both(d): return np.array([d, kernel(d, scale)])
    between = sum(both(math.dist(a, b)) for a in x for b in y)
    within = sum((both(math.dist(a, b)) for a, b in combinations(x, 2)), np.zeros(2))
    to_y, to_x = pair_sums(['root', 'kernel'], scale, x, y), pair_sums(['root', 'kernel'], scale, x)
    assert to_y.shape == to_x.shape == (2, len(x))
    assert to_y.sum(1) == pytest.approx(between, rel=1e-6, abs=1e-6*most*len(x)*len(y))
    assert to_x.sum(1) == pytest.approx(2*within, rel=1e-6, abs=1e-6*most*len(x)**2)

@few
@given(st.integers(1, 400), st.integers(1, 400))
def test_the_sums_of_the_first_cells_are_those_of_these_cells(n, first):
    x = np.random.default_rng(n).normal(size=(n, 4))
    first = min(n, first)
    known = pair_sums(FUNCTIONS, 2., x[:first]).sum(1)
    assert pair_sums(FUNCTIONS, 2., x)[:, :first].sum(1) == pytest.approx(known, rel=1e-12)

def test_functions_come_in_the_order_that_they_are_asked_for():
    x = np.random.default_rng(7).normal(size=(200, 5))
    one, two = (pair_sums([k], 2., x)[0] for k in ('root', 'kernel'))
    assert pair_sums(['root', 'kernel'], 2., x).tolist() == [one.tolist(), two.tolist()]
    assert pair_sums(['kernel', 'root'], 2., x).tolist() == [two.tolist(), one.tolist()]
    assert pair_sums([], 2., x).shape == pair_sums([], 2., x, x).shape == (0, 200)

@few
@given(cases, st.sampled_from([.05, 3., 200.]), st.integers(0, 99))
def test_measured_pairs_give_what_the_cells_give(case, scale, seed):
    x, y = case
    half = np.random.default_rng(seed).integers(2, size=len(y))
    halves = [torch.tensor(y[half == k]) for k in (0, 1)]
    pairs = MeasuredPairs.of(['root', 'kernel'], scale, halves)
    found = pairs.means(x, halves, pair_sums(['root', 'kernel'], scale, x))
    size = max(1, np.abs(cdist(x, y)).max())
    def as_of_cells(means, pred, true):
        known = [energy_distance(pred, true), mmd_rbf(pred, true, scale)]
        mine = [energy_distance(None, None, means['root']), mmd_rbf(None, None, scale, means['kernel'])]
        assert mine == pytest.approx(known, rel=0, abs=1e-6*size, nan_ok=True)
    n = len(y)//2
    for means, pred, true in zip(found, (x, x[:n], x[:n]), (y, *halves)): as_of_cells(means, pred, true)
    for means, pred, true in zip(pairs.replicate(), halves[::-1], halves): as_of_cells(means, pred, true)

def test_a_measured_cell_that_is_not_finite_makes_missing_what_it_belongs_to():
    r = np.random.default_rng(8)
    for bad in (np.nan, np.inf, -np.inf):
        x, y = r.normal(size=(9, 3)), r.normal(size=(8, 3))
        y[0, 0] = bad
        halves = torch.tensor(y[:4]), torch.tensor(y[4:])
        pairs = MeasuredPairs.of(['root', 'kernel'], 1., halves)
        whole, first, second = pairs.means(x, halves, pair_sums(['root', 'kernel'], 1., x))
        for name in ('root', 'kernel'):
            assert np.isnan([whole[name].between, first[name].between]).all() and np.isfinite(second[name]).all()

def test_worker_threads_change_no_bit():
    r = np.random.default_rng(9)
    cells = [torch.tensor(r.normal(size=(n, 300)), dtype=torch.float32) for n in (20, 150, 200, 400)]*2
    def sums(x): return [o.tolist() for o in (pair_sums(FUNCTIONS, 20., x), pair_sums(FUNCTIONS, 20., x, cells[0]))]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        known = [sums(x) for x in cells]
        for workers in (1, 2, 4):
            with ThreadPoolExecutor(workers) as pool: assert list(pool.map(sums, cells)) == known
    finally: torch.set_num_threads(before)

# The scale of a replicate

@few
@given(cases, st.integers(1, 50))
def test_energy_to_truth_is_that_of_a_loop(case, n_half):
    x, y = case
    between = np.mean([math.dist(a, b) for a in x for b in y])
    def within(z): return np.mean([math.dist(a, b) for a, b in combinations(z, 2)]) if len(z) > 1 else np.nan
    terms = 2*between, within(x), within(y)
    known = terms[0] - (1 - 1/n_half)*terms[1] - terms[2]
    if np.isnan(known): assert np.isnan(energy_to_truth(x, y, n_half))
    else: assert energy_to_truth(x, y, n_half) == about(known, terms)

def test_cells_that_are_drawn_have_the_energy_of_a_replicate_whatever_their_number():
    r = np.random.default_rng(0)
    cells, mean = r.normal(size=(9, 3)), []
    spread = pdist(cells).mean()
    for m in (2, 5):
        found = [energy_to_truth(cells[list(p)], np.delete(cells, p, 0), n_half=4) for p in combinations(range(9), m)]
        assert np.mean(found) == pytest.approx(spread/4, abs=1e-12)

def test_setting_the_mean_of_many_cells_gains_an_eighth_of_a_replicates_chance():
    r, n = np.random.default_rng(1), 25
    def drawn(m): return r.normal(size=(m, 30))
    def set_mean(m): return (lambda x: x - x.mean(0))(drawn(m))
    truth = [drawn(2*n) for _ in range(300)]
    free, few, many = (np.mean([energy_to_truth(f(m), y, n) for y in truth])
                       for f, m in ((drawn, n), (set_mean, n), (set_mean, 8*n)))
    assert free > many > few > 0
    assert (free - many)/(free - few) == pytest.approx(1/8, abs=.03)

def test_dispersion_and_covariance_know_scaled_turned_and_permuted_cells():
    r = np.random.default_rng(2)
    x = r.normal(size=(40, 5)) @ r.normal(size=(5, 5))
    turn = np.linalg.qr(r.normal(size=(5, 5)))[0]
    assert dispersion(3*x + 1, x) == pytest.approx(3)
    assert dispersion(x @ turn, x) == pytest.approx(1)
    assert cell_covariance(3*x[::-1] + 1, x) == pytest.approx(1)
    y = r.normal(size=(60, 5))
    assert cell_covariance(x @ turn, y @ turn) == pytest.approx(cell_covariance(x, y))
    a, b = np.cov(x.T), np.cov(y.T)
    assert cell_covariance(x, y) == pytest.approx(np.trace(a @ b)/(np.linalg.norm(a)*np.linalg.norm(b)))
