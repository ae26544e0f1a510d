"Scores of stated uncertainty against scipy, numerical integrals, plain loops, and what must not change them."
import math
from itertools import permutations
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.integrate import quad
from perturbench.core import InputError
from perturbench.metrics.accuracy import METRICS
from perturbench.metrics.uncertainty import (
    CLASSES, NOMINAL, Uncertain, area, area_random, coverage, coverage_by_noise, crps, noise_of, of_draws, reached,
    risk_coverage, risks, sharpness, uncertainty_summary, uncertainty_table)

few = settings(max_examples=40, deadline=None, derandomize=True)
SCORES = (lambda *case: coverage(*case, .8), crps, risks, sharpness)

def make(seed):
    "A prediction, observed effects and their noise: 1 to 8 conditions, 1 to 6 genes, some without variance or noise."
    r = np.random.default_rng(seed)
    shape = r.integers(1, 9), r.integers(1, 7)
    scale = 10**r.uniform(-3, 3)
    mean, observed = scale*r.normal(size=(2, *shape))
    variance, noise = (scale**2*r.exponential(size=shape)*(r.random(shape) < .8) for _ in range(2))
    return Uncertain(mean, variance), observed, noise

cases = st.integers(0, 2**32 - 1).map(make)

def genes_of(case):
    "Mean, variance, observed effect and noise of each gene, condition by condition."
    pred, observed, noise = case
    return [list(zip(*rows)) for rows in zip(pred.mean, pred.variance, observed, noise)]

def by_loop(case, score):
    "The mean over genes of a score of one gene, condition by condition."
    return [math.fsum(score(*gene) for gene in genes)/len(genes) for genes in genes_of(case)]

@few
@given(cases, st.floats(.01, .99))
def test_coverage_is_that_of_scipys_intervals(case, level):
    def inside(m, u, d, v):
        if u + v == 0: return d == m
        lo, hi = stats.norm(m, math.sqrt(u + v)).interval(level)
        return lo <= d <= hi
    np.testing.assert_allclose(coverage(*case, level), by_loop(case, inside))

def integrated(m, u, d, v):
    "The CRPS by its definition: the squared distance of the distribution function from a step at `d`."
    if u + v == 0: return abs(d - m)
    sd = math.sqrt(u + v)
    cdf = stats.norm(m, sd).cdf
    ends = min(m - 12*sd, d), max(m + 12*sd, d)
    below = quad(lambda x: cdf(x)**2, ends[0], d, points=[min(m, d)], limit=200, epsabs=0)[0]
    above = quad(lambda x: (1 - cdf(x))**2, d, ends[1], points=[max(m, d)], limit=200, epsabs=0)[0]
    return below + above

@pytest.mark.parametrize('seed', range(6))
def test_crps_is_the_integral(seed):
    np.testing.assert_allclose(crps(*make(seed)), by_loop(make(seed), integrated), rtol=1e-6)

def test_crps_is_that_of_an_ensemble():
    "E|X - d| - E|X - X'|/2, over the quantiles of a fine grid."
    x = stats.norm(.3, 2).ppf((np.arange(4000) + .5)/4000)
    spread = 2*np.sum(x*(2*np.arange(4000) - 3999))/4000**2
    found = crps(Uncertain([[.3]], [[3.]]), [[1.7]], [[1.]])
    assert found == pytest.approx(np.abs(x - 1.7).mean() - spread/2, abs=1e-3)

def test_crps_is_proper():
    "No other mean or width has a lower expected score than the true one."
    observed = stats.norm(1, 2).ppf((np.arange(2000) + .5)/2000)[None]
    def expected(mean, variance):
        pred = Uncertain(np.full(observed.shape, mean), np.full(observed.shape, variance))
        return crps(pred, observed, np.ones(observed.shape)).item()
    best = expected(1, 3)
    assert all(best < expected(m, u) for m, u in [(1, 2.5), (1, 3.5), (1, 0), (1, 30), (.8, 3), (1.2, 3)])

@few
@given(cases)
def test_crps_is_between_nothing_and_the_absolute_error_with_spread(case):
    pred, observed, noise = case
    error, sd = np.abs(observed - pred.mean), np.sqrt(pred.variance + noise)
    found, slack = crps(*case), 1e-9*(error + sd).mean(1)
    assert (found >= -slack).all() and (found <= (error + sd*math.sqrt(2/math.pi)).mean(1) + slack).all()
    assert (found >= (error - sd/math.sqrt(math.pi)).mean(1) - slack).all()

@few
@given(cases)
def test_risks_are_those_of_a_loop(case):
    scale = max(1e-9, np.abs(case[1]).max(), np.abs(case[0].mean).max())**2
    np.testing.assert_allclose(risks(*case), by_loop(case, lambda m, u, d, v: (d - m)**2 - v), atol=1e-9*scale)

@few
@given(cases)
def test_sharpness_is_that_of_a_loop(case):
    np.testing.assert_allclose(sharpness(*case), by_loop(case, lambda m, u, d, v: math.sqrt(u)))

def test_risks_are_unbiased():
    r = np.random.default_rng(0)
    shape = 20_000, 5
    pred = Uncertain(np.full(shape, 1.), np.zeros(shape))
    found = risks(pred, .4 + 2*r.normal(size=shape), np.full(shape, 4.))
    assert abs(found.mean() - .36) < 4*stats.sem(found)

def test_a_model_that_is_right_is_covered():
    r = np.random.default_rng(1)
    shape = 100, 1000
    variance, noise = r.exponential(size=(2, *shape))
    truth = r.normal(size=shape)
    pred = Uncertain(truth + np.sqrt(variance)*r.normal(size=shape), variance)
    observed = truth + np.sqrt(noise)*r.normal(size=shape)
    for level in NOMINAL: assert coverage(pred, observed, noise, level).mean() == pytest.approx(level, abs=.006)
    by_class = coverage_by_noise(pred, observed, noise)
    np.testing.assert_allclose(by_class[[f'coverage_{100*level:.0f}' for level in NOMINAL]], [NOMINAL]*3, atol=.012)
    assert by_class.genes.sum() == 100_000

@few
@given(cases)
def test_coverage_by_noise_is_that_of_a_loop(case):
    held = {name: [] for name in CLASSES}
    for m, u, d, v in (gene for genes in genes_of(case) for gene in genes):
        share = v/(u + v) if u + v else 0
        held[CLASSES[int(share >= 1/3) + int(share >= 2/3)]].append(abs(d - m) <= stats.norm.ppf(.9)*math.sqrt(u + v))
    found = coverage_by_noise(*case)
    assert list(found.index) == list(CLASSES) and found.genes.tolist() == [len(x) for x in held.values()]
    np.testing.assert_allclose(found.coverage_80, [np.mean(x) if x else np.nan for x in held.values()])

@few
@given(cases, st.integers(0, 2**32 - 1))
def test_the_order_of_genes_and_conditions_is_nothing(case, seed):
    r = np.random.default_rng(seed)
    rows, genes = (r.permutation(n) for n in case[1].shape)
    moved = Uncertain(*(x[rows][:, genes] for x in case[0])), *(x[rows][:, genes] for x in case[1:])
    pd.testing.assert_frame_equal(uncertainty_table(*moved), uncertainty_table(*case).iloc[rows].reset_index(drop=True))
    pd.testing.assert_series_equal(uncertainty_summary(*moved), uncertainty_summary(*case), rtol=1e-6)

@few
@given(cases, st.floats(.01, 100))
def test_units(case, k):
    "In another unit, coverage and what is reached are the same; CRPS and sharpness scale, risks by the square."
    pred, observed, noise = case
    scaled = Uncertain(k*pred.mean, k**2*pred.variance), k*observed, k**2*noise
    np.testing.assert_allclose(crps(*scaled), k*crps(*case), rtol=1e-7)
    np.testing.assert_allclose(sharpness(*scaled), k*sharpness(*case))
    np.testing.assert_allclose(risks(*scaled), k**2*risks(*case), rtol=1e-6, atol=1e-9*k**2*(observed**2).max())

@few
@given(cases)
def test_a_common_shift_and_a_sign_are_nothing(case):
    pred, observed, noise = case
    for score in SCORES:
        np.testing.assert_allclose(score(Uncertain(-pred.mean, pred.variance), -observed, noise), score(*case))

@few
@given(cases)
def test_a_wider_variance_covers_no_less(case):
    pred, observed, noise = case
    wider = Uncertain(pred.mean, 2*pred.variance + 1)
    assert (coverage(wider, observed, noise, .8) >= coverage(*case, .8)).all()
    assert (coverage(*case, .9) >= coverage(*case, .5)).all()

def test_the_curve_is_the_mean_over_all_orders_of_ties():
    risk, doubt = np.array([3., -1., 4., 8., 2.]), [2., 2., 1., 2., 5.]
    pred, observed = Uncertain(np.zeros((5, 1)), np.zeros((5, 1))), np.sqrt(risk + 10)[:, None]
    orders = [o for o in permutations(range(5)) if sorted(doubt) == [doubt[i] for i in o]]
    assert len(orders) == 6
    expected = np.mean([np.cumsum(risk[list(o)])/np.arange(1, 6) for o in orders], axis=0)
    curve = risk_coverage(pred, observed, np.full((5, 1), 10.), by=doubt)
    np.testing.assert_allclose(curve.risk, expected)
    np.testing.assert_allclose(curve.coverage, [.2, .4, .6, .8, 1])

@few
@given(cases)
def test_no_order_is_better_than_that_of_the_judged_risks(case):
    pred, observed, noise = case
    lowest = risk_coverage(*case, by=risks(*case))
    highest = risk_coverage(*case, by=-risks(*case))
    slack = 1e-5*np.abs(lowest.risk).max()  # ties are those of float32
    for by in ('variance', 'size'):
        curve = risk_coverage(*case, by)
        assert (curve.risk >= lowest.risk - slack).all() and (curve.risk <= highest.risk + slack).all()
        np.testing.assert_allclose(curve.risk[-1], risks(*case).mean(), atol=slack)

@few
@given(cases, st.floats(.1, 10))
def test_the_order_is_that_of_the_variances_whatever_their_scale(case, k):
    pred, observed, noise = case
    scaled = Uncertain(pred.mean, k*pred.variance)
    found, was = risk_coverage(scaled, observed, noise), risk_coverage(*case)
    np.testing.assert_allclose(found.risk, was.risk, atol=1e-9*np.abs(was.risk).max())

@few
@given(cases)
def test_equal_variances_order_nothing(case):
    pred, observed, noise = case
    curve = risk_coverage(Uncertain(pred.mean, np.full(observed.shape, .1)), observed, noise)
    np.testing.assert_allclose(curve.risk, area_random(curve), atol=1e-9*np.abs(risks(*case)).max())

def test_equal_variances_order_nothing_where_genes_are_missing():
    r = np.random.default_rng(0)
    observed = np.where(r.random((50, 70)) < .6, r.normal(size=(50, 70)), np.nan)
    curve = risk_coverage(Uncertain(np.zeros((50, 70)), np.full((50, 70), .1)), observed, np.zeros((50, 70)))
    np.testing.assert_allclose(curve.risk, curve.risk[-1], rtol=1e-12)

def test_a_random_order_has_the_area_of_all():
    pred, observed, noise = make(5)
    r = np.random.default_rng(0)
    curves = [risk_coverage(pred, observed, noise, by=r.permutation(len(observed))) for _ in range(4000)]
    areas = np.array([area(c) for c in curves])
    assert len(observed) > 2 and abs(areas.mean() - area_random(curves[0])) < 4*stats.sem(areas)

def test_the_two_oracles_bracket_what_is_reached():
    r = np.random.default_rng(0)
    found = []
    for _ in range(50):
        doubt = r.uniform(.2, 1, (60, 1))
        truth, noise = r.normal(size=(60, 40)), np.ones((60, 40))
        pred = Uncertain(truth + doubt*r.normal(size=truth.shape), np.broadcast_to(doubt**2, truth.shape))
        halves = [truth + r.normal(size=truth.shape) for _ in range(2)]
        orders = risks(pred, halves[1], noise), ((pred.mean - truth)**2).mean(1), risks(pred, halves[0], noise)
        curve = risk_coverage(pred, halves[1], noise)
        found.append([reached(curve, risk_coverage(pred, halves[1], noise, by=by)) for by in orders])
    own, true, other = np.median(found, axis=0)
    assert own < true < other

def test_reached_needs_the_same_observations():
    case = make(5)
    curve = risk_coverage(*case)
    assert reached(curve, risk_coverage(*case, by=risks(*case))) <= 1
    with pytest.raises(InputError, match='same conditions'):
        reached(curve, risk_coverage(case[0], case[1] + 1, case[2], by=risks(*case)))
    with pytest.raises(InputError, match='same conditions'): reached(curve, risk_coverage(*make(6)))

def test_an_unmeasured_gene_is_left_out():
    pred, observed, noise = make(5)
    for gap in (np.nan, np.inf):
        for which in range(2):
            measured = [observed.copy(), noise.copy()]
            measured[which][:, 0] = gap
            rest = Uncertain(*(x[:, 1:] for x in pred)), observed[:, 1:], noise[:, 1:]
            for score in SCORES: np.testing.assert_allclose(score(pred, *measured), score(*rest))
            pd.testing.assert_frame_equal(coverage_by_noise(pred, *measured), coverage_by_noise(*rest))

@pytest.mark.parametrize('which', (0, 1))
@pytest.mark.parametrize('gap', (np.nan, np.inf))
def test_a_model_cannot_leave_out_a_gene(which, gap):
    pred, observed, noise = make(5)
    given_ = [x.copy() for x in pred]
    given_[which][1, 0] = gap
    rest = [i for i in range(len(observed)) if i != 1]
    kept = Uncertain(*(x[rest] for x in pred)), observed[rest], noise[rest]
    for score in SCORES:
        found = score(Uncertain(*given_), observed, noise)
        assert np.isnan(found[1])
        np.testing.assert_allclose(found[rest], score(*kept))
    pd.testing.assert_frame_equal(coverage_by_noise(Uncertain(*given_), observed, noise), coverage_by_noise(*kept))
    curve = risk_coverage(Uncertain(*given_), observed, noise)
    np.testing.assert_allclose(curve.risk, risk_coverage(*kept).risk)
    pd.testing.assert_series_equal(uncertainty_summary(Uncertain(*given_), observed, noise), uncertainty_summary(*kept))

def test_nothing_measured():
    pred, observed, noise = make(5)
    nothing = np.full(observed.shape, np.nan)
    assert uncertainty_summary(pred, nothing, noise).isna().all()
    assert uncertainty_table(pred, nothing, noise).isna().all(axis=None)
    empty = risk_coverage(pred, nothing, noise)
    assert len(empty.risk) == len(empty.coverage) == 0 and math.isnan(reached(empty, empty))
    assert coverage_by_noise(pred, nothing, noise).genes.tolist() == [0, 0, 0]

def test_no_variance_and_no_noise():
    zero = np.zeros((2, 2))
    pred, observed = Uncertain(np.array([[1., 2.], [3., 4.]]), zero), np.array([[1., 2.], [3., 6.]])
    table = uncertainty_table(pred, observed, zero)
    assert table.filter(like='coverage').to_numpy().tolist() == [[1]*4, [.5]*4]
    assert table.crps.tolist() == table.crps_silent.tolist() == [0, 1] and table.sharpness.tolist() == [0, 0]
    assert coverage_by_noise(pred, observed, zero).genes.tolist() == [4, 0, 0]

def test_inputs_stay_as_they_are():
    case = make(5)
    before = [x.copy() for x in (*case[0], *case[1:])]
    uncertainty_summary(*case)
    assert all((a == b).all() for a, b in zip(before, (*case[0], *case[1:])))

def test_the_table_is_its_functions():
    case = make(5)
    table = uncertainty_table(*case)
    assert list(table) == [
        'coverage_50', 'coverage_80', 'coverage_90', 'coverage_95', 'crps', 'crps_silent', 'sharpness']
    np.testing.assert_array_equal(table.coverage_95, coverage(*case, .95))
    silent = Uncertain(case[0].mean, 0*case[0].variance)
    np.testing.assert_array_equal(table.crps_silent, crps(silent, *case[1:]))
    summary = uncertainty_summary(*case)
    assert list(summary.index) == [*table, 'area_variance', 'area_size', 'area_random']
    np.testing.assert_allclose(summary[list(table)], table.mean())

def test_draws_have_the_moments_of_numpy():
    draws = np.random.default_rng(0).normal(size=(7, 3, 4))
    found = of_draws(draws)
    np.testing.assert_allclose(found.mean, sum(draws)/7)
    np.testing.assert_allclose(found.variance, sum((d - found.mean)**2 for d in draws)/6)
    assert np.isnan(of_draws([[[1., np.nan]], [[2., 3.]]]).variance).tolist() == [[False, True]]

def test_noise_is_the_variance_of_a_difference_of_means():
    r = np.random.default_rng(0)
    cells, controls = (r.exponential(size=(20_000, n, 2)) for n in (6, 15))
    spread = (cells.mean(1) - controls.mean(1)).var(0)
    found = [noise_of([c.var(0, ddof=1)], [6], b.var(0, ddof=1), 15)[0] for c, b in zip(cells[:4000], controls)]
    np.testing.assert_allclose(np.mean(found, axis=0), spread, rtol=.05)

def test_noise_of_shapes():
    r = np.random.default_rng(0)
    var, control = r.random((3, 2)), r.random(2)
    found = noise_of(var, [2, 3, 4], control, 5)
    np.testing.assert_allclose(found, [[var[i, g]/n + control[g]/5 for g in range(2)] for i, n in enumerate((2, 3, 4))])
    np.testing.assert_array_equal(noise_of(var, [2, 3, 4], np.tile(control, (3, 1)), [5, 5, 5]), found)
    assert np.isnan(noise_of(var, [2, 0, 4], control, 5)).tolist() == [[False]*2, [True]*2, [False]*2]
    assert np.isnan(noise_of(var, 2, control, 0)).all()

@pytest.mark.parametrize('wrong', [
    (np.ones((3, 2)), [2, 3], np.ones(2), 5),
    (np.ones((3, 2)), 2, np.ones(3), 5),
    (np.ones(2), 2, np.ones(2), 5),
    (np.ones((3, 2)), 2, np.ones(2), [5, 5]),
    (-np.ones((3, 2)), 2, np.ones(2), 5),
    (np.ones((3, 2)), -2, np.ones(2), 5),
    (np.ones((3, 2)), 2, -np.ones(2), 5),
    (np.ones((3, 2)), 2, np.ones((1, 2)), 5)])
def test_noise_that_does_not_fit(wrong):
    with pytest.raises(InputError): noise_of(*wrong)

@pytest.mark.parametrize('score', [*SCORES, coverage_by_noise, risk_coverage, uncertainty_table, uncertainty_summary])
def test_input_that_does_not_fit(score):
    ones = np.ones((2, 3))
    wrong = [(Uncertain(ones, ones[:, :2]), ones, ones), (Uncertain(ones, ones), ones[:1], ones),
             (Uncertain(ones, ones), ones, ones[:, :1]), (Uncertain(ones, 0.), ones, ones),
             (Uncertain(ones[0], ones[0]), ones[0], ones[0]),
             (Uncertain(ones, -ones), ones, ones), (Uncertain(ones, ones), ones, -ones)]
    for case in wrong:
        with pytest.raises(InputError): score(*case)

@pytest.mark.parametrize('level', (0, 1, -.5, 95, math.nan))
def test_a_level_is_a_share(level):
    with pytest.raises(InputError, match='level'): coverage(*make(0), level)

def test_an_order_has_a_name_or_a_number_a_condition():
    case = make(5)
    with pytest.raises(InputError, match="did you mean 'variance'"): risk_coverage(*case, by='Variance')
    with pytest.raises(InputError, match='one number each'): risk_coverage(*case, by=[1.])

def test_the_metrics_of_the_registry():
    mine = [m for m in METRICS if METRICS[m].kind == 'uncertainty']
    assert mine == ['coverage_90_delta', 'crps_delta', 'crps_silent_delta', 'sharpness_delta']
    assert [m for m in mine if METRICS[m].judged] == ['crps_delta'] and {METRICS[m].needs for m in mine} == {('noise',)}
