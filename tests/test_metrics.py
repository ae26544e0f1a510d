"Moments and metrics against exact arithmetic, numpy and scipy, what they cannot be fooled by, and the null simulation."
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import product
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from numba import get_num_threads, set_num_threads
from scipy import sparse, stats
from scipy.spatial import distance
import perturbench.models.zoo
from perturbench.scoring.evaluation import evaluate_task
from perturbench.scoring.profiles import score
from perturbench.metrics.accuracy import METRICS, TOP, cosine, mae, pearson, pearson_top, rmse, rmse_top, spearman
from perturbench.scoring.intervals import bootstrap_interval
from perturbench.metrics.effects import MOMENTS, Profiles, log_fold_change, moments
from perturbench.metrics.ranks import cosine_rank, rmse_rank
from perturbench.models.base import build_model
from perturbench.predict import Prediction, predict_task
from perturbench.tasks import open_task
from perturbench.train import fit, model_info

few = settings(max_examples=50, deadline=None, derandomize=True)

def profiles(seed):
    "Predictions and truth of 2 to 14 conditions in whole numbers, with duplicates, zero rows and constant rows."
    r = np.random.default_rng(seed)
    n, g, most = r.integers(2, 15), r.integers(1, 9), r.choice([1, 3, 9])
    true = r.integers(-most, most + 1, (n, g))
    pred = [r.integers(-most, most + 1, (n, g)), true + r.integers(-1, 2, (n, g)), r.choice([-2, 1, 3])*true,
            true[r.permutation(n)]][r.integers(4)]
    for x in (pred, true):
        for i in range(n):
            kind = r.integers(8)
            if kind < 3: x[i] = [x[r.integers(n)], 0, r.integers(-most, most + 1)][kind]
    return pred, true

cases = st.integers(0, 2**32 - 1).map(profiles)

def squared_error(p, t): return sum((int(a) - int(b))**2 for a, b in zip(p, t))

def angle(p, t):
    "A number that orders predictions as the cosine distance to `t` does, exactly; 0 where the cosine is taken to be 0."
    dot, size = sum(int(a)*int(b) for a, b in zip(p, t)), sum(int(a)**2 for a in p)
    return -Fraction(dot*abs(dot), size) if size and any(t) else Fraction(0)

def by_loop(pred, true, dist, ties):
    "The rank by its definition: all pairs, in exact arithmetic."
    out, share = [], Fraction(1, 2 if ties == 'half' else 1)
    for i, t in enumerate(true):
        d = [dist(p, t) for p in pred]
        others = [j for j in range(len(pred)) if j != i]
        out.append((sum(d[j] < d[i] for j in others) + share*sum(d[j] == d[i] for j in others))/len(others))
    return [float(o) for o in out]

@few
@given(cases, st.sampled_from([0, 2**4, -2**12, 2**20]), st.sampled_from([2**-8, 1, 2**6]),
       st.sampled_from(['half', 'full']))
def test_ranks_are_those_of_a_loop_in_exact_arithmetic(case, offset, scale, ties):
    pred, true = case
    if abs(offset) > 2**12: scale = max(scale, 1)  # float64 itself does not tell smaller steps apart to one in 1e9
    by_error = rmse_rank(scale*(pred + float(offset)), scale*(true + float(offset)), ties=ties)
    assert by_error.tolist() == pytest.approx(by_loop(pred, true, squared_error, ties), abs=1e-12)
    by_angle = cosine_rank(scale*pred, 3.*true, ties=ties)
    assert by_angle.tolist() == pytest.approx(by_loop(pred, true, angle, ties), abs=1e-12)

@few
@given(cases, st.integers(0, 99))
def test_ranks_do_not_depend_on_the_order_of_genes_and_conditions_or_on_a_constant_gene(case, seed):
    pred, true = case
    r = np.random.default_rng(seed)
    genes, rows, n = r.permutation(pred.shape[1]), r.permutation(len(pred)), len(pred)
    for f in (rmse_rank, cosine_rank):
        whole = f(pred, true)
        assert (f(pred[:, genes], true[:, genes]) == whole).all()
        assert (f(pred[rows], true[rows]) == whole[rows]).all()
        silent = [np.hstack([x, np.zeros((n, 2))]) for x in (pred, true)]
        assert (f(*silent) == whole).all()
        assert ((whole >= 0) & (whole <= 1)).all()
    level = [np.hstack([x, np.full((n, 1), 1e3)]) for x in (pred, true)]
    assert (rmse_rank(*level) == rmse_rank(pred, true)).all()
    turn = np.linalg.qr(r.normal(size=(pred.shape[1],)*2))[0]  # nor on a rotation of the gene space
    for f in (rmse_rank, cosine_rank): assert f(pred @ turn, true @ turn) == pytest.approx(f(pred, true), abs=1e-12)

@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1., 1e3]), st.sampled_from([1e-3, 1., 50.]))
def test_accuracy_is_that_of_scipy(seed, a, b):
    r = np.random.default_rng(seed)
    n, g = r.integers(1, 6), r.integers(3, 40)
    pred, true = r.normal(size=(n, g)) + r.normal(), (r.random((n, g)) < .5)*r.normal(size=(n, g))
    true[:, 0] += 1
    for x, y in [(pred, true), (a*pred, b*true)]:
        assert cosine(x, y) == pytest.approx([1 - distance.cosine(p, t) for p, t in zip(pred, true)], abs=1e-9)
        assert pearson(x, y) == pytest.approx([stats.pearsonr(p, t)[0] for p, t in zip(pred, true)], abs=1e-9)
    assert pearson(3*pred + 7, -true) == pytest.approx(-pearson(pred, true), abs=1e-9)
    for f, order in ((rmse, 2), (mae, 1)):
        norms = [np.linalg.norm(p - t, order)/g**(1/order) for p, t in zip(pred, true)]
        assert f(pred, true) == pytest.approx(norms, rel=1e-12)
        assert f(-a*pred, -a*true) == pytest.approx(a*f(pred, true), rel=1e-9)

CELLS = dict(expression=lambda r, shape: r.gamma(.5, 2, shape)*(r.random(shape) < .4), # None beyond 16 but a few
             far=lambda r, shape: 30*r.normal(size=shape), tiny=lambda r, shape: 1e-9*r.normal(size=shape))

@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(CELLS)), st.sampled_from([np.float32, np.float64]))
def test_moments_are_those_of_numpy(seed, kind, dtype):
    r = np.random.default_rng(seed)
    n, g = r.integers(1, 9), r.choice([1, 7, 1024, 1025, 3000])
    cells = CELLS[kind](r, (n, g)).astype(dtype)
    found, x = moments(cells, np.zeros(n, int), 1), cells.astype(float)
    near, linear = np.testing.assert_allclose, np.expm1(x)
    near(found.mean[0], x.mean(0), rtol=0, atol=1e-12*np.abs(x).max())
    near(found.linear[0], linear.mean(0), rtol=0, atol=1e-12*np.abs(linear).max())
    assert (found.zeros[0] == 1 - (x != 0).mean(0)).all()
    if n > 1: near(found.var[0], x.var(0, ddof=1), rtol=0, atol=1e-12*np.square(x).max())

def test_moments_have_the_same_bits_dense_or_sparse_and_with_any_threads():
    r = np.random.default_rng(0)
    cells = (r.gamma(.5, 3, (300, 1500))*(r.random((300, 1500)) < .3)).astype(np.float32)
    codes, rows, threads = r.integers(-1, 9, 200), r.permutation(300)[:200], get_num_threads()
    def bits(matrix):
        found = moments(matrix, codes, 10, rows=rows)
        return [getattr(found, k).tobytes() for k in MOMENTS]
    expected = bits(cells)
    try:
        for matrix, n in product((cells, np.asfortranarray(cells), sparse.csr_array(cells)), {1, threads}):
            set_num_threads(n)
            assert bits(matrix) == expected
    finally: set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:  # threads of the caller's own
        assert list(pool.map(lambda _: bits(cells), range(8))) == [expected]*8

def ties(r, shape):
    "Numbers of either sign and of many sizes, some of them equal, some of them 0 or -0."
    x = r.choice([-3., -.5, -0., 0., 2e-3, 7., 1e9], shape)
    return np.where(r.random(shape) < .5, x, r.normal(size=shape)*10.**r.integers(-3, 9, shape))

@settings(few, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_spearman_is_that_of_scipy_and_rounding_is_no_order(seed):
    r = np.random.default_rng(seed)
    n, g = r.integers(1, 6), r.integers(3, 600)
    pred, true = ties(r, (n, g)), ties(r, (n, g))
    def above(x): return np.where(np.abs(x) > 1e-6*np.maximum(1, rmse(x, 0*x))[:, None], x, 0)
    p, t = above(pred), above(true)
    expected = [stats.spearmanr(*o)[0] if np.ptp(o, axis=1).all() else np.nan for o in zip(p, t)]
    assert spearman(pred, true) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert spearman(-pred, true) == pytest.approx(-spearman(pred, true), abs=1e-12, nan_ok=True)

@few
@given(st.integers(0, 2**32 - 1))
def test_the_genes_of_a_subset_are_the_first_of_the_heaviest(seed):
    r = np.random.default_rng(seed)
    n, g = r.integers(1, 6), r.integers(1, 200)
    pred, true = r.normal(size=(n, g)), r.normal(size=(n, g))
    weights = r.integers(0, r.choice([2, 9, 999]), (n, g)).astype(float)
    weights[r.random((n, g)) < r.choice([0, .5])] = np.nan  # these count least
    at = np.argsort(-weights, axis=1, kind='stable')[:, :TOP]
    p, t = (np.take_along_axis(o, at, 1) for o in (pred, true))
    assert rmse_top(pred, true, weights) == pytest.approx(rmse(p, t), rel=1e-12)
    assert pearson_top(pred, true, weights) == pytest.approx(pearson(p, t), abs=1e-12, nan_ok=True)

def wide(table, n): return table.pivot(index='row', columns='metric', values='value').loc[range(n)]

def screenful(seed, states=(14, 11, 10)):
    "Profiles of conditions in some states, a control mean for each and what a fair predictor makes of them."
    r = np.random.default_rng(seed)
    groups = np.repeat([f'state {i}' for i in range(len(states))], states)
    base = r.gamma(.5, 1., (len(states), 60))[np.repeat(range(len(states)), states)]
    true = base*np.exp(.4*r.normal(size=base.shape))
    return true, base, groups, true*np.exp(.3*r.normal(size=base.shape))

RANKS = ['rmse_rank_average', 'cosine_rank_logfc']

def test_who_deserves_which_rank():
    true, base, groups, pred = screenful(0)
    def found(pred, protocol):
        return wide(score(Profiles(pred, base), Profiles(true, base), groups, protocol=protocol), len(true))[RANKS]
    level = np.stack([pred[groups == s].mean(0) for s in groups])  # one profile a state
    for protocol, tied in (('default', .5), ('perturbench', 1)):
        assert (found(true, protocol) == 0).all(axis=None)
        assert (found(level, protocol) == tied).all(axis=None)
    assert (found(base, 'default') == .5).all(axis=None)
    effects = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 12)))[0].T  # all of one length, at right angles
    for f in (rmse_rank, cosine_rank):
        assert f(-.5*effects, effects).tolist() == [1.]*12
        assert f(.5*effects, effects).tolist() == [0.]*12
    r = np.random.default_rng(2)
    for m in RANKS:
        many = [METRICS[m](r.normal(size=(12, 30)), r.normal(size=(12, 30))).mean() for _ in range(200)]
        assert abs(np.mean(many) - .5) < 3*stats.sem(many) < .05, m

@settings(few, max_examples=25)
@given(st.integers(0, 999), st.sampled_from(['default', 'perturbench']))
def test_scores_know_rows_by_their_state_and_by_nothing_else(seed, protocol):
    true, base, groups, pred = screenful(seed)
    r = np.random.default_rng(seed)
    a, b = base*np.exp(.1*r.normal(size=base.shape)), base*np.exp(.1*r.normal(size=base.shape))
    pred[r.choice(len(pred), 3, replace=False)] = np.nan
    pred[4], true[5] = pred[3], true[6]
    whole = score(Profiles(pred, a), Profiles(true, b), groups, protocol=protocol)
    rows = r.permutation(len(true))
    again = score(Profiles(pred[rows], a[rows]), Profiles(true[rows], b[rows]), groups[rows], protocol=protocol)
    again = again.assign(row=rows[again.row]).sort_values(['row'], kind='stable', ignore_index=True)
    pd.testing.assert_frame_equal(again, whole, atol=1e-12)
    for s in np.unique(groups):
        i = np.flatnonzero(groups == s)
        alone = score(Profiles(pred[i], a[i]), Profiles(true[i], b[i]), [0]*len(i), protocol=protocol)
        mine = whole[whole.row.isin(i)].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone.assign(row=i[alone.row]), mine, atol=1e-12)
    have = np.isfinite(pred).all(1)
    assert (whole.status.eq('not_predicted') == ~have[whole.row]).all()
    assert (whole.value.notna() == have[whole.row]).all()
    assert (whole.n_candidates == pd.Series(groups[have]).value_counts()[groups[whole.row]].to_numpy()).all()
    ranked = whole.metric.isin([m for m in METRICS if METRICS[m].kind == 'rank'])
    few_there = ranked & (whole.n_candidates < 10) & have[whole.row]
    assert (whole.status.eq('few_candidates') == few_there).all()

def test_the_published_rank_counts_ties_in_full():
    true, base, groups, pred = screenful(3)
    pred[:6] = pred[0]
    found = wide(score(Profiles(pred, base), Profiles(true, base), groups, protocol='perturbench'), len(true))
    spaces = dict(rmse_rank_average=(pred, true, lambda p, t: np.sqrt(np.mean((p - t)**2))),
                  cosine_rank_logfc=(log_fold_change(pred, base), log_fold_change(true, base), distance.cosine))
    for m, (p, t, dist) in spaces.items():
        for i, s in enumerate(groups):
            d = {j: dist(p[j], t[i]) for j in np.flatnonzero(groups == s)}
            tie = lambda j: i < 6 and j < 6 or d[j] <= d[i]
            assert found[m][i] == pytest.approx(sum(tie(j) for j in d if j != i)/(len(d) - 1)), (m, i)

def measured(task):
    "A predictor that returns the truth."
    for c in task.test_conditions(): yield Prediction(int(c), task.store.dense(task.cells('test').of(c)).numpy())

@pytest.mark.parametrize('protocol', ['default', 'perturbench'])
def test_the_truth_has_rank_0_and_no_error(tmp_path, protocol):
    task = open_task('sim-combination', tmp_path, protocol)
    found = evaluate_task(task, measured(task)).groupby('metric').value
    assert (found.max()[RANKS] == 0).all() and found.max()['rmse_average'] < 1e-6
    same_controls = protocol == 'perturbench'  # by default the halves of the controls differ
    assert (found.min()['cosine_logfc'] > 1 - 1e-9) == same_controls

@pytest.mark.parametrize('name, options', [('perturbed_mean', dict(form='mean')), ('decoder_only', {})])
def test_where_nothing_happens_a_level_is_worth_nothing(null_tasks, name, options):
    "25 test controls a state: with halves the cosine is 0 but for a bias of .02, with one reference a discovery."
    for protocol, task in null_tasks.items():
        torch.manual_seed(0)
        model = build_model(name, model_info(task), **options)
        fit(model, task, budget=dict(max_epochs=12, batch_size=256))
        scores = evaluate_task(task, predict_task(model, task), ['cosine_logfc', 'pearson_logfc'])
        for m, mine in scores.groupby('metric'):
            assert mine.value.notna().all() and mine.cell_type.nunique() == 16
            lo, hi = bootstrap_interval(mine.value, mine.cell_type)
            if protocol == 'default': assert lo - .02 < 0 < hi + .02 and hi - lo < .15, (m, lo, hi)
            else: assert lo > .3, (m, lo, hi)

@pytest.fixture(scope='module')
def null_tasks(tmp_path_factory):
    "Three or four tested conditions in each of the 16 states of sim-null, by either protocol."
    out = tmp_path_factory.mktemp('null')
    spec = dict(screen='sim-null', split=dict(kind='transfer', fraction=.6, max_heldout_covariates=16))
    tasks = {p: open_task(spec, out, p) for p in ('default', 'perturbench')}
    controls = tasks['default'].controls('test').n
    assert set(controls[controls > 0]) == {25}
    return tasks

def test_an_effect_model_gains_nothing_from_shared_controls(null_tasks):
    "Controls plus a shift: the noise of the reference cancels, so either protocol scores it near 0."
    for task in null_tasks.values():
        model = build_model('perturbed_mean', model_info(task))
        fit(model, task)
        found = evaluate_task(task, predict_task(model, task), 'cosine_logfc')
        assert abs(found.value.mean()) < .1
