"Metrics against exact arithmetic and scipy, what they cannot be fooled by, and the null simulation."
from fractions import Fraction
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.spatial import distance
import perturbench.models.zoo
from perturbench.scoring.evaluation import evaluate_task, score
from perturbench.metrics.accuracy import METRICS, cosine, mae, pearson, rmse
from perturbench.scoring.intervals import bootstrap_interval
from perturbench.metrics.effects import Profiles, log_fold_change
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
    pred = [r.integers(-most, most + 1, (n, g)), true + r.integers(-1, 2, (n, g)), r.choice([-2, 1, 3])*true, true[r.permutation(n)]][r.integers(4)]
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
    out = []
    for i, t in enumerate(true):
        d = [dist(p, t) for p in pred]
        others = [j for j in range(len(pred)) if j != i]
        out.append((sum(d[j] < d[i] for j in others) + Fraction(1, 2 if ties == 'half' else 1)*sum(d[j] == d[i] for j in others))/len(others))
    return [float(o) for o in out]

@few
@given(cases, st.sampled_from([0, 2**4, -2**12, 2**20]), st.sampled_from([2**-8, 1, 2**6]), st.sampled_from(['half', 'full']))
def test_ranks_are_those_of_a_loop_in_exact_arithmetic(case, offset, scale, ties):
    pred, true = case
    if abs(offset) > 2**12: scale = max(scale, 1)  # float64 itself does not tell smaller steps apart to one in 1e9
    assert rmse_rank(scale*(pred + float(offset)), scale*(true + float(offset)), ties=ties).tolist() == pytest.approx(by_loop(pred, true, squared_error, ties), abs=1e-12)
    assert cosine_rank(scale*pred, 3.*true, ties=ties).tolist() == pytest.approx(by_loop(pred, true, angle, ties), abs=1e-12)

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
        assert f(pred, true) == pytest.approx([np.linalg.norm(p - t, order)/g**(1/order) for p, t in zip(pred, true)], rel=1e-12)
        assert f(-a*pred, -a*true) == pytest.approx(a*f(pred, true), rel=1e-9)

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
    n = len(true)
    assert (wide(score(Profiles(true, base), Profiles(true, base), groups), n)[RANKS] == 0).all(axis=None)
    assert (wide(score(Profiles(true, base), Profiles(true, base), groups, protocol='perturbench'), n)[RANKS] == 0).all(axis=None)
    level = np.stack([pred[groups == s].mean(0) for s in groups])  # one profile a state
    assert (wide(score(Profiles(level, base), Profiles(true, base), groups), n)[RANKS] == .5).all(axis=None)
    assert (wide(score(Profiles(level, base), Profiles(true, base), groups, protocol='perturbench'), n)[RANKS] == 1).all(axis=None)
    assert (wide(score(Profiles(base, base), Profiles(true, base), groups), n)[RANKS] == .5).all(axis=None)
    effects = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 12)))[0].T  # all of one length, at right angles
    for f in (rmse_rank, cosine_rank): assert f(-.5*effects, effects).tolist() == [1.]*12 and f(.5*effects, effects).tolist() == [0.]*12
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
        pd.testing.assert_frame_equal(alone.assign(row=i[alone.row]), whole[whole.row.isin(i)].reset_index(drop=True), atol=1e-12)
    have = np.isfinite(pred).all(1)
    assert (whole.status.eq('not_predicted') == ~have[whole.row]).all() and (whole.value.notna() == have[whole.row]).all()
    assert (whole.n_candidates == pd.Series(groups[have]).value_counts()[groups[whole.row]].to_numpy()).all()
    few_there = whole.metric.isin([m for m in METRICS if METRICS[m].kind == 'rank']) & (whole.n_candidates < 10) & have[whole.row]
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
    assert (found.min()['cosine_logfc'] > 1 - 1e-9) == (protocol == 'perturbench')  # by default the halves of the controls differ

@pytest.mark.parametrize('name, options', [('perturbed_mean', dict(form='mean')), ('decoder_only', {})])
def test_where_nothing_happens_a_level_is_worth_nothing(null_tasks, name, options):
    "25 test controls a state: with halves the cosine is 0 but for a bias of .02, with one reference it looks like a discovery."
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
