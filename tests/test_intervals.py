"Intervals, comparisons, calibrated scores: enumeration, independent formulae, invariances, simulated coverage."
import itertools, math, warnings
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from threadpoolctl import threadpool_limits
from perturbench.core import InputError
from perturbench.scoring.intervals import (Resamples, bent, bootstrap_interval, calibrated, collapse, compare_models,
                                           holm, limit, paired_difference, smallest_difference, spearman_brown,
                                           squared_trace)

few = settings(max_examples=40, deadline=None, derandomize=True)
seeded = st.integers(0, 2**32 - 1).map(np.random.default_rng)

def near(a, b, eps=1e-10): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=eps, atol=eps)

def covered(x, mean=0., perturbation=None, state=None, **kwargs):
    "Share of the columns of conditions x seeds x screens whose interval holds `mean`."
    found = Resamples(range(len(x)) if perturbation is None else perturbation, state, x.shape[1]).interval(x, **kwargs)
    return np.mean((found.lo <= mean) & (mean <= found.hi))

def within(share, n, lo=.93, hi=.97, sds=3):
    "Whether `share` of `n` screens can come from a coverage of `lo` to `hi`."
    return lo - sds*(lo*(1 - lo)/n)**.5 <= share <= hi + sds*(hi*(1 - hi)/n)**.5

# what is drawn

def test_means_have_the_distribution_that_full_enumeration_gives():
    "Three perturbations of unequal size and two seeds: 27 x 4 outcomes, each with its probability."
    r, p = np.random.default_rng(0), np.array([0, 0, 1, 2, 2, 2])
    x = r.normal(size=(6, 2))
    exact = []
    for draw, seeds in itertools.product(itertools.product(range(3), repeat=3), itertools.product(range(2), repeat=2)):
        rows = np.concatenate([x[p == k] for k in draw])
        exact.append(rows[:, list(seeds)].mean())
    found = Resamples(p, n_seeds=2, n=40_000).means(x)
    assert set(np.round(found, 9)) == set(np.round(exact, 9))
    se = np.std(exact)/200
    assert abs(found.mean() - np.mean(exact)) < 5*se
    for q in np.unique(np.round(exact, 9))[::7] + 1e-9:
        assert abs((found <= q).mean() - (np.array(exact) <= q).mean()) < 5*.5/200

def test_spread_and_skewness_are_those_of_all_resamples():
    "One score a condition: the closed forms against all 5^5 resamples."
    x = np.array([.1, .4, .2, 2., .3])
    means = np.array([x[list(draw)].mean() for draw in itertools.product(range(5), repeat=5)])
    error = Resamples(range(5)).error(x)
    near(error.se**2, means.var()*5/4)
    near(error.skew, stats.skew(means)*(4/5)**1.5)
    near(error.df, 4)

def test_states_are_drawn_from_eight_on_and_it_says_so():
    seven, eight = (Resamples(np.repeat(range(5), n), np.tile(range(n), 5)) for n in (7, 8))
    assert seven.scope == 'over 5 perturbations, given these 7 states and this training seed'
    assert eight.scope == 'over 5 perturbations and 8 states, given this training seed'
    assert Resamples(range(5), ['x']*5, 3).scope == 'over 5 perturbations and 3 seeds, given this state'
    p, s = np.repeat(range(5), 8), np.tile(range(8), 5)
    by_state = np.arange(8.)[s]
    assert Resamples(p).error(by_state).se < 1e-12
    near(Resamples(p, s).error(by_state).se, np.arange(8.).std(ddof=1)/8**.5)
    assert np.ptp(Resamples(p, s, n=100).means(by_state)) > 0

def test_draws_are_shared_and_bits_repeat():
    x = np.random.default_rng(0).normal(size=(30, 3, 4))
    one, two = (Resamples(range(30), n_seeds=3, n=200) for _ in range(2))
    other = Resamples(range(30), n_seeds=3, n=200, seed=1)
    assert np.array_equal(one.means(x), two.means(x)) and not np.array_equal(one.means(x), other.means(x))
    near(one.means(x[..., 0] - x[..., 1]), one.means(x)[:, 0] - one.means(x)[:, 1])
    near(one.means(x.reshape(30, 3, 2, 2)).reshape(200, 4), one.means(x))

def test_bits_do_not_depend_on_threads():
    r = np.random.default_rng(0)
    x = r.normal(size=(100, 3, 90))
    null, duplicate, halves = r.normal(3, 1, (100, 1, 90)), r.normal(-3, 1, (100, 1, 90)), r.normal(size=(2, 64, 2000))
    found = []
    for threads in (1, 2, 4):
        resamples = Resamples(range(100), n_seeds=3)
        with threadpool_limits(threads):
            scores = calibrated(null, x, duplicate, resamples)[:3]
            spread = collapse(halves[0], *(halves + halves[0]))[:3]
            results = [*scores, resamples.means(x), resamples.error(x), resamples.interval(x), spread]
        found.append([np.asarray(v).tobytes() for v in results])
    assert found[0] == found[1] == found[2]

def test_missing_scores_have_no_weight():
    "Resampled sums and counts are those of the scores that are there, in whole columns and in columns with gaps."
    r = np.random.default_rng(0)
    x = r.normal(size=(12, 2, 3))
    x[r.random((12, 2)) < .3, 1], x[..., 2] = np.nan, np.nan
    resamples = Resamples(np.arange(12)//2, n_seeds=2, n=60)
    times = resamples.weights.toarray().reshape(60, 2, 6).transpose(0, 2, 1).repeat(2, axis=1)
    near(resamples.counts(x), np.einsum('bcs,csk->bk', times, np.isfinite(x)))
    near(resamples.totals(x), np.einsum('bcs,csk->bk', times, np.nan_to_num(x)))
    near(resamples.means(x)[:, 0], resamples.totals(x)[:, 0]/24)
    assert np.isnan(resamples.means(x)[:, 2]).all() and np.isnan(resamples.mean(x)[2])

# standard errors and intervals

@few
@given(seeded, st.integers(2, 9), st.integers(2, 5))
def test_crossed_variance_is_that_of_the_analysis_of_variance(r, n, s):
    x = r.normal(size=(n, 1)) + r.normal(size=s) + r.normal(size=(n, s))
    rows, cols = x.mean(1), x.mean(0)
    rest = ((x - rows[:, None] - cols + x.mean())**2).sum()/((n - 1)*(s - 1))/(n*s)
    parts = np.array([rows.var(ddof=1)/n, cols.var(ddof=1)/s, rest])
    total, found = parts @ [1, 1, -1], Resamples(range(n), n_seeds=s).error(x)
    near(found.mean, x.mean())
    near(found.se**2, max(total, parts[0]))
    satterthwaite = max(1, total**2/(parts**2 @ [1/(n - 1), 1/(s - 1), 1/((n - 1)*(s - 1))]))
    near(found.df, satterthwaite if total >= parts[0] else n - 1)

def test_three_factors_are_unbiased():
    "With all interactions, the mean of the squared standard errors is the variance of the mean."
    r, k, n, t, s = np.random.default_rng(1), 4000, 8, 9, 3
    g = r.normal
    x = g(size=(n, 1, 1, k)) + g(size=(1, t, 1, k)) + g(size=(1, 1, s, k))
    x = x + g(size=(n, t, 1, k)) + g(size=(n, 1, s, k)) + g(size=(1, t, s, k)) + g(size=(n, t, s, k))
    true = 1/n + 1/t + 1/s + 1/(n*t) + 1/(n*s) + 1/(t*s) + 1/(n*t*s)
    found = Resamples(np.repeat(range(n), t), np.tile(range(t), n), s).error(x.reshape(n*t, s, k)).se**2
    assert abs(found.mean()/true - 1) < 4*found.std()/true/k**.5 + .01

@few
@given(seeded)
def test_order_and_names_do_not_matter(r):
    n, s = 40, 3
    x, p, t = r.gamma(1, size=(n, s, 2)), r.integers(6, size=n), r.integers(9, size=n)
    x[r.random(x.shape) < .1] = np.nan
    base, order = Resamples(p, t, s).interval(x), r.permutation(n)
    near(Resamples(p[order], t[order], s).interval(x[order][:, ::-1]), base)
    near(Resamples([f'gene {10 - v}' for v in p], t, s).interval(x), base)
    near([v[1] for v in base], Resamples(p, t, s).interval(x[..., 1]))
    near(Resamples(p, t, s).interval(3*x + 1), 3*np.array(base) + 1)
    lean = Resamples(p, t, s).interval(-x)
    near((lean.mean, lean.hi, lean.lo), -np.array(base))

@few
@given(seeded, st.integers(2, 30))
def test_missing_conditions_are_as_if_they_were_not_there(r, n):
    x = r.gamma(1, size=n)
    holes, at = np.insert(x, r.integers(n), np.nan), np.arange(n)
    near(bootstrap_interval(holes), bootstrap_interval(x))
    groups = at//2
    gone = np.concatenate([x, [np.nan]*3])
    near(bootstrap_interval(gone, np.concatenate([groups, [900, 900, 901]])), bootstrap_interval(x, groups))
    near(Resamples(range(n + 3), n=300).error(gone)[:3], Resamples(range(n), n=300).error(x)[:3])
    assert np.isfinite(Resamples(range(n + 3), n=300).means(gone)).sum() >= 250

def test_what_has_no_spread_or_one_cluster():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for value in (.1, 0., -3., 1e9):
            lo, hi = bootstrap_interval([value]*7)
            assert lo == hi == pytest.approx(value, rel=1e-15)
        for x in ([.3], [], [np.nan]*4): assert np.isnan(bootstrap_interval(x)).all()
        for x, groups in (([1., 2., 3.], ['a']*3), ([1., np.nan, 2.], ['a', 'b', 'a'])):
            assert np.isnan(bootstrap_interval(x, groups)).all()
        same = Resamples(range(6), n_seeds=3).interval(np.tile(np.arange(6.)[:, None], 3))
        near(same, (2.5, *bootstrap_interval(np.arange(6.))))
        one_seed = np.full((6, 3), np.nan)
        one_seed[:, 1] = np.arange(6.)
        near(Resamples(range(6), n_seeds=3).interval(one_seed), same)
    with pytest.raises(InputError, match='conditions x 2 seeds where 6 x 3'):
        Resamples(range(6), n_seeds=3).interval(np.zeros((6, 2)))

@pytest.mark.parametrize('skew', [-.4, -.1, -1e-7, 0., 1e-7, .3, .4])
def test_bent_quantiles_invert_halls_cubic(skew):
    t = np.linspace(-4, 4, 17)
    h = bent(t, np.full(17, skew))
    near(h + skew*h**2/3 + skew**2*h**3/27 + skew/6, t, 1e-8)
    assert (np.diff(h) > 0).all()

# coverage

KINDS = {'normal': (lambda r, s: r.normal(size=s), 0), 'exponential': (lambda r, s: r.exponential(size=s), 1),
         'ranks at 0': (lambda r, s: r.beta(.4, 2, s), .4/2.4),
         'log-normal': (lambda r, s: r.lognormal(0, .5, s), math.exp(.125))}
MIXTURES = [(1, 0, .1), (1, 0, 1), (1, .3, .5), (1, .1, .3), (.5, 1, .5), (1, 1, 1)]

def seeds_screens(r, n, s, shares, k):
    "Scores with standard deviations `shares` of conditions, of seeds, and of a seed on a condition."
    conditions, seeds = shares[0]*r.normal(size=(n, 1, k)), shares[1]*r.normal(size=(1, s, k))
    return conditions + seeds + shares[2]*r.normal(size=(n, s, k))

@pytest.mark.parametrize('n', [10, 20, 60])
@pytest.mark.parametrize('kind', KINDS)
def test_coverage_of_independent_conditions(kind, n):
    draw, mean = KINDS[kind]
    assert within(covered(draw(np.random.default_rng(n), (n, 1, 2000)), mean), 2000)

@pytest.mark.parametrize('n, s', [(10, 3), (20, 3), (60, 3), (10, 5), (20, 5), (60, 5)])
@pytest.mark.parametrize('shares', MIXTURES)
def test_coverage_crossed_with_seeds(n, s, shares):
    assert within(covered(seeds_screens(np.random.default_rng(n*s), n, s, shares, 2000)), 2000)

def state_screens(r, n, t, shares, k, draw):
    p, s = np.repeat(np.arange(n), t), np.tile(np.arange(t), n)
    return (shares[0]*draw(r, (n, k))[p] + shares[1]*draw(r, (t, k))[s] + shares[2]*draw(r, (n*t, k)))[:, None], p, s

@pytest.mark.parametrize('kind', ['normal', 'exponential'])
@pytest.mark.parametrize('n, t, shares', [(10, 3, (1, 0, .5)), (20, 3, (1, 0, .5)), (60, 3, (1, 0, .5)),
                                          (20, 10, (1, 1, 1)), (20, 10, (.3, 1, .3)), (30, 10, (1, .3, .3))])
def test_coverage_of_clusters_and_states(kind, n, t, shares):
    draw, mean = KINDS[kind]
    x, p, s = state_screens(np.random.default_rng(n), n, t, shares, 1500, draw)
    assert within(covered(x, mean*(shares[0] + shares[1] + shares[2]), p, s), 1500)
    assert covered(x, mean*(shares[0] + shares[1] + shares[2])) < .9

def test_where_coverage_cannot_be_had():
    "Two seeds that matter, a mean made by rare values, five skewed conditions: not worse than the notebook states."
    r = np.random.default_rng(3)
    assert .86 < covered(seeds_screens(r, 20, 2, (.5, 1, .5), 2000)) < .93
    assert .885 < covered(r.lognormal(0, 1, (10, 1, 2000)), math.exp(.5)) < .93
    assert .86 < covered(r.exponential(size=(5, 1, 2000)), 1) < .94
    assert .955 < covered(seeds_screens(r, 20, 3, (0, 0, 1), 2000)) < .985
    assert covered(seeds_screens(r, 20, 3, (.5, 1, .5), 2000).mean(1, keepdims=True)) < .5

@pytest.mark.slow
def test_coverage_in_many_screens():
    r = np.random.default_rng(0)
    for n in (10, 20, 60):
        for draw, mean in KINDS.values():
            for s in (1, 3, 5):
                x = draw(r, (n, 1, 8000))
                if s > 1: x = x + .2*r.normal(size=(1, s, 8000)) + .5*r.normal(size=(n, s, 8000))
                assert within(covered(x, mean), 8000, lo=.925), (n, mean, s)
        for s in (3, 5):
            for shares in MIXTURES: assert within(covered(seeds_screens(r, n, s, shares, 8000)), 8000), (n, s, shares)

# comparisons

@few
@given(seeded, st.integers(2, 30))
def test_pairs_are_the_paired_t_test(r, n):
    x = pd.DataFrame(r.normal(size=(n, 3)), columns=list('abc'))
    for better, sign in (('higher', 1), ('lower', -1)):
        table = compare_models(x, better)
        assert len(table) == 3 and (table.difference >= 0).all()
        for row in table.itertuples():
            theirs = stats.ttest_rel(sign*x[row.a], sign*x[row.b])
            near((row.p, row.lo, row.hi), (theirs.pvalue, *theirs.confidence_interval()), 1e-8)
            near(paired_difference(sign*x[row.a], sign*x[row.b]), (row.difference, row.lo, row.hi, n), 1e-8)
            near(row.detectable, smallest_difference(x[row.a], x[row.b]))
            assert (f'{row.a} is better than {row.b} by' in row.text) == (row.p_holm < .05)

@few
@given(seeded, st.integers(0, 12))
def test_holm_rejects_what_stepping_down_rejects(r, m):
    p = np.round(r.random(m)**3, 2)
    adjusted = holm(np.append(p, np.nan))
    assert np.isnan(adjusted[-1]) and len(adjusted) == m + 1
    for level in (.01, .05, .2):
        rejected = set()
        for k, i in enumerate(sorted(range(m), key=lambda i: p[i])):
            if p[i]*(m - k) >= level: break
            rejected.add(i)
        assert rejected == {i for i in range(m) if adjusted[i] < level}

def test_comparisons_at_the_edge():
    same = compare_models(np.tile(np.arange(5.)[:, None], 2), 'lower', names=['x', 'y'])
    assert (same.p[0], same.difference[0], same.lo[0], same.hi[0]) == (1, 0, 0, 0) and 'no difference' in same.text[0]
    ahead = compare_models(np.arange(5.)[:, None] + [0., 1.], 'higher', names=['x', 'y'])
    assert (ahead.a[0], ahead.p[0], ahead.lo[0]) == ('y', 0, 1)
    few_left = compare_models([[1., np.nan], [np.nan, 2.], [3., 4.]], 'lower')
    assert np.isnan(few_left.p[0]) and few_left.n[0] == 1 and 'too few conditions' in few_left.text[0]
    assert len(compare_models(np.zeros((4, 1)), 'lower')) == 0
    with pytest.raises(InputError, match="not 'best'"): compare_models(np.zeros((4, 2)), 'best')

@pytest.mark.parametrize('draw', [lambda r: r.normal(size=(20, 1, 5)), lambda r: r.lognormal(size=(20, 1, 5)),
                                  lambda r: r.standard_t(3, size=(20, 1, 5)),
                                  lambda r: seeds_screens(r, 20, 3, (1, .5, 1), 5)])
def test_five_equal_models_are_seldom_told_apart(draw):
    r, tables = np.random.default_rng(5), 300
    rate = np.mean([(compare_models(draw(r), 'lower').p_holm < .05).any() for _ in range(tables)])
    assert rate <= .05 + 2.5*(.05*.95/tables)**.5, rate

@pytest.mark.parametrize('n, s', [(10, 1), (60, 1), (20, 3), (20, 5)])
def test_the_smallest_difference_is_found_four_times_in_five(n, s):
    x = seeds_screens(np.random.default_rng(n + s), n, s, (1, .1*(s > 1), .5), 4000)
    resamples = Resamples(range(n), n_seeds=s)
    size = np.median(smallest_difference(x, np.zeros_like(x), resamples))
    assert abs(np.mean(resamples.interval(x + size, skewed=False).lo > 0) - .8) < .04

# calibrated scores and limits

def halfway(r, n, s, k):
    difficulty, reach = r.normal(.5, .1, (n, 1, k)), r.gamma(4, .025, (n, 1, k))
    model = difficulty - .5*reach + r.normal(0, .03, (n, s, k)) + (0 if s == 1 else r.normal(0, .01, (1, s, k)))
    return difficulty, model, difficulty - reach + r.normal(0, .05, (n, 1, k))

@pytest.mark.parametrize('n, s', [(10, 1), (20, 1), (60, 1), (20, 3), (60, 5)])
def test_coverage_of_the_calibrated_score(n, s):
    found = calibrated(*halfway(np.random.default_rng(n), n, s, 1500))
    ok = found.status == 'ok'
    assert ok.mean() > .95 and abs(np.nanmedian(found.value) - .5) < .02
    assert within(np.mean((found.lo <= .5) & (.5 <= found.hi))/ok.mean(), 1500)

@few
@given(seeded)
def test_calibrated_scores_do_not_depend_on_scale_or_direction(r):
    null, model, duplicate = halfway(r, 30, 3, 4)
    model[r.random(model.shape) < .1] = np.nan
    base = calibrated(null, model, duplicate)
    for a, b in ((-1, 1), (7, -2)): near(calibrated(a*null + b, a*model + b, a*duplicate + b)[:3], base[:3], 1e-8)
    both = np.isfinite(model)
    near(base.value, np.where(both, null - model, 0).sum((0, 1))/np.where(both, null - duplicate, 0).sum((0, 1)))
    near(calibrated(null, null, duplicate)[:3], np.zeros((3, 4)))
    near(calibrated(null, duplicate, duplicate)[:3], np.ones((3, 4)))
    near(calibrated(null, 2*duplicate - null, duplicate)[:3], np.full((3, 4), 2))
    assert (base.lo <= base.value).all() and (base.value <= base.hi).all()

def test_no_range_where_the_duplicate_is_no_better_than_the_null():
    r = np.random.default_rng(0)
    null = r.normal(size=(40, 1, 500))
    found = calibrated(null, null - 1, null + r.normal(0, .5, (40, 1, 500)))
    lost = found.status == 'no_range'
    assert .93 < lost.mean() < .975 and np.isnan([found.value[lost], found.lo[lost], found.hi[lost]]).all()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for case in (([1.], [.5], [0.]), ([1., 1.], [0., .5], [1., 1.]), ([np.nan]*3, [1., 2., 3.], [0., 0., 0.])):
            assert np.all(calibrated(*case).status == 'no_range')

def test_halves_foretell_what_the_truth_reaches():
    near(spearman_brown([-1, -.2, 0, .5, 1]), [0, 0, 0, 2/3, 1])
    near(limit([-1, 0, 1/7, 1]), [0, 0, .5, 1])
    assert np.isnan(limit(np.nan)) and limit(.5) == (2/3)**.5
    r, truth = np.random.default_rng(0), np.random.default_rng(1).normal(size=(60, 3000))
    def corr(a, b): return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)])
    for noise in (.3, 1, 3):
        a, b, c, d = (truth + noise*r.normal(size=truth.shape) for _ in range(4))
        assert abs(limit(corr(a, b)) - corr(truth, (a + b)/2)) < .015
        assert abs(spearman_brown(corr(a, b)) - corr((a + b)/2, (c + d)/2)) < .01

# controls

def jackknifed(values):
    "Variance of what `values` would be with all groups, from what they are without each."
    n = len(values)
    return (n - 1)/n*((values - values.mean())**2).sum()

def with_redraws(r, n, s, states, groups):
    "Scores, the same without each group (what a state shares, and noise), perturbations and states."
    x, state, perturbation = r.normal(size=(n, s)), r.integers(states, size=n), r.integers(max(2, n//2), size=n)
    shared = r.normal(size=(states, 1, groups))[state]
    return x, x[..., None] + .3*shared + .1*r.normal(size=(n, s, groups)), perturbation, state

@few
@given(seeded, st.integers(3, 14), st.integers(1, 4), st.integers(1, 5), st.integers(2, 11))
def test_controls_add_their_jackknife_less_what_is_crossed(r, n, s, states, groups):
    "Loops over states and perturbations, from the formulae."
    x, redrawn, perturbation, state = with_redraws(r, n, s, states, groups)
    resamples = Resamples(perturbation, state, s)
    given_controls, found = resamples.error(x), resamples.error(x, redrawn)
    alone = crossed = doubt = 0
    for t in set(state):
        parts = [redrawn[(state == t) & (perturbation == p)].sum((0, 1))/x.size for p in set(perturbation[state == t])]
        k, total = len(parts), sum(parts)
        mine = jackknifed(total)
        rest = k/(k - 1)*sum(jackknifed(part - total/k) for part in parts) if k > 1 else 0
        alone, crossed = alone + mine, crossed + rest
        doubt += (mine**2 + rest**2/max(1, k - 1))/((groups - 1)/2)
    variance = given_controls.se**2 + max(0, alone - crossed)
    near((found.mean, found.se**2), (x.mean(), variance))
    if np.isnan(found.se): return # One perturbation
    near(found.df, max(1, variance**2/(given_controls.se**4/given_controls.df + doubt)))

@few
@given(seeded, st.integers(2, 40))
def test_a_score_that_is_a_control_mean_has_the_textbooks_variance(r, n):
    cells, level = r.gamma(1, size=n), r.normal(size=8)
    without = (cells.sum() - cells)/(n - 1)
    found = Resamples(range(8)).error(level - cells.mean(), (level[:, None] - without)[:, None])
    near(found.se**2, level.var(ddof=1)/8 + cells.var(ddof=1)/n)

@few
@given(seeded)
def test_order_scale_and_a_shift_of_all_redraws_do_not_matter(r):
    x, redrawn, perturbation, state = with_redraws(r, 20, 2, 3, 6)
    base, order, groups = Resamples(perturbation, state, 2).error(x, redrawn), r.permutation(20), r.permutation(6)
    near(Resamples(perturbation[order], state[order], 2).error(x[order], redrawn[order][..., groups]), base)
    near(Resamples(perturbation, state, 2).error(x, redrawn + r.normal(size=(20, 2, 1))), base)
    tripled = Resamples(perturbation, state, 2).error(1 - 3*x, 1 - 3*redrawn)
    near((tripled.se, tripled.df, tripled.skew), (3*base.se, base.df, -base.skew))
    both = Resamples(perturbation, state, 2).error(np.stack([x, -x], -1), np.stack([redrawn, -redrawn], 2))
    near([v[0] for v in both], base)
    assert base.se >= Resamples(perturbation, state, 2).error(x).se

def test_redraws_that_change_nothing_add_nothing():
    r = np.random.default_rng(0)
    x = r.normal(size=(12, 3, 2))
    x[3, 1, 0] = np.nan
    for states in (1, 3, 12):
        resamples = Resamples(range(12), np.arange(12) % states, 3)
        near(resamples.error(x, np.repeat(x[..., None], 10, -1)), resamples.error(x))
        near(resamples.interval(x, redrawn=np.repeat(x[..., None], 10, -1)), resamples.interval(x))
    base = Resamples(range(12), n_seeds=3)
    some = np.repeat(x[..., None], 10, -1)
    some[5, :, :, 2] = np.nan
    near(base.error(x, some), base.error(x))

def test_what_was_not_redrawn_is_not_judged():
    r = np.random.default_rng(0)
    x = r.normal(size=(12, 1, 2))
    redrawn = x[..., None] + .1*r.normal(size=5)
    redrawn[4, 0, 1] = np.nan
    for states in (3, 12):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            found = Resamples(range(12), np.arange(12) % states).interval(x, redrawn=redrawn)
        assert np.isfinite(found).tolist() == [[True, True], [True, False], [True, False]]
    table = compare_models(x, 'higher', redrawn=redrawn)
    assert np.isnan(table.p[0]) and 'too few conditions or controls' in table.text[0]
    null, model, again, model_again = x[..., :1], x[..., 1:], redrawn[:, :, :1], redrawn[:, :, 1:]
    gone = calibrated(null, model, null - 5, redrawn=(again, model_again, again - 5))
    assert gone.status[0] == 'few_controls' and np.isnan([gone.value[0], gone.lo[0], gone.hi[0]]).all()
    for wrong in (redrawn[..., :1], redrawn[:, :, :1], redrawn[..., 0]):
        with pytest.raises(InputError, match='two groups or more'): Resamples(range(12)).error(x, wrong)

def test_states_that_are_drawn_bring_their_controls():
    "Scores move with controls of their state: drawn states and redrawn controls find the same variance."
    r, k = np.random.default_rng(2), 2000
    n, states, groups = 6, 10, 8
    perturbation, state = np.repeat(range(n), states), np.tile(range(states), n)
    pulls = r.normal(0, groups**.5, (states, 1, k, groups))
    x = (r.normal(size=(n*states, 1, k)) + pulls.mean(-1)[state])
    redrawn = x[..., None] - pulls.mean(-1)[state][..., None] + ((pulls.sum(-1)[..., None] - pulls)/(groups - 1))[state]
    drawn = Resamples(perturbation, state)
    near(drawn.error(x, redrawn), drawn.error(x))
    by_name = drawn.scope_with_controls('drawn')
    assert by_name == 'over 6 perturbations and 10 states with their controls, given this training seed'
    by_controls = sum(jackknifed(redrawn[state == t, 0, 0].sum(0)/x.shape[0]) for t in range(states))
    assert .02 < by_controls < .5
    true = 1/(n*states) + 1/states
    assert abs((drawn.error(x).se**2).mean()/true - 1) < .1
    few_states = state < 5
    some = Resamples(perturbation[few_states], state[few_states]).error(x[few_states], redrawn[few_states])
    assert abs((some.se**2).mean()/(1/(n*5) + 1/5) - 1) < .05

def test_the_scope_names_the_controls():
    one, few_states = Resamples(range(5), ['x']*5), Resamples(range(6), list('xyz')*2, 3)
    says = {('one', 'given'): 'over 5 perturbations, given this state, these control cells and this training seed',
            ('one', 'drawn'): 'over 5 perturbations and control cells, given this state and this training seed',
            ('few', 'drawn'): 'over 6 perturbations, 3 seeds and control cells, given these 3 states'}
    for (name, how), text in says.items():
        assert {'one': one, 'few': few_states}[name].scope_with_controls(how) == text
    assert few_states.scope == 'over 6 perturbations and 3 seeds, given these 3 states'

def shared_controls(r, n, states, groups, size, k):
    "Scores of screens whose controls move all conditions of a state by `size`: values, redrawn, state."
    state, pulls = np.arange(n) % states, r.normal(0, size*groups**.5, (states, 1, k, groups))
    own = r.normal(size=(n, 1, k))
    without = (pulls.sum(-1, keepdims=True) - pulls)/(groups - 1)
    return own + pulls.mean(-1)[state], own[..., None] + without[state], state

@pytest.mark.parametrize('n, states, size', [(20, 1, .1), (20, 1, .3), (40, 1, 1), (40, 3, .3), (40, 3, 1)])
def test_intervals_with_controls_cover(n, states, size):
    x, redrawn, state = shared_controls(np.random.default_rng(n + states), n, states, 10, size, 2000)
    found = Resamples(range(n), state).interval(x, redrawn=redrawn)
    held = np.mean((found.lo <= 0) & (0 <= found.hi))
    assert within(held, 2000, hi=.985), held
    assert covered(x, 0, range(n), state) < held

def test_calibrated_scores_cover_with_controls_that_move_null_model_and_duplicate():
    r, k, n, groups = np.random.default_rng(4), 1500, 40, 10
    null, model, duplicate = halfway(r, n, 1, k)
    pulls = r.normal(0, .01*groups**.5, (3, 1, 1, k, groups))
    without = (pulls.sum(-1, keepdims=True) - pulls)/(groups - 1)
    scores = [x + pull.mean(-1) for x, pull in zip((null, model, duplicate), pulls)]
    redrawn = [x[..., None] + pull for x, pull in zip((null, model, duplicate), without)]
    given_controls, drawn = calibrated(*scores), calibrated(*scores, redrawn=redrawn)
    assert (drawn.status == 'ok').mean() > .95
    near(drawn.value, np.where(drawn.status == 'ok', given_controls.value, np.nan))
    held = [np.mean(((v.lo <= .5) & (.5 <= v.hi))[v.status == 'ok']) for v in (given_controls, drawn)]
    assert held[0] < .91 and within(held[1], 1500, hi=.98), held

def test_pairs_have_the_difference_of_redraws():
    r = np.random.default_rng(0)
    x = r.normal(size=(15, 2, 3))
    redrawn, resamples = x[..., None] + .2*r.normal(size=(3, 10)), Resamples(range(15), n_seeds=2)
    table = compare_models(x, 'lower', resamples, list('abc'), redrawn=redrawn)
    for pair in table.itertuples():
        a, b = 'abc'.index(pair.a), 'abc'.index(pair.b)
        found = resamples.interval(x[..., b] - x[..., a], skewed=False, redrawn=redrawn[:, :, b] - redrawn[:, :, a])
        near((pair.difference, pair.lo, pair.hi), found)
        again = redrawn[:, :, a] - redrawn[:, :, b]
        near(pair.detectable, smallest_difference(x[..., a], x[..., b], resamples, redrawn=again))
    near(compare_models(x, 'higher', resamples, list('abc'), redrawn=redrawn).p.sort_values(), table.p.sort_values())

# collapse

def screen(r, n=40, genes=2000, rank=8, noise=2.):
    truth = r.normal(size=(n, rank)) @ r.normal(size=(rank, genes))/rank**.5 + 3*r.normal(size=genes)
    return truth, *(truth + noise*r.normal(size=truth.shape) for _ in range(2))

def test_traces_are_unbiased_with_many_genes_and_much_noise():
    "Means over 400 screens of 12 conditions, 300 genes, noise of four times the variance of the effects."
    r = np.random.default_rng(0)
    loadings = r.normal(size=(3, 300))
    gram, total, square = loadings @ loadings.T, [], []
    for _ in range(400):
        truth = r.normal(size=(12, 3)) @ loadings + 5
        a, b = (truth + 2*r.normal(size=truth.shape) for _ in range(2))
        total.append(np.trace((a - a.mean(0)) @ (b - b.mean(0)).T)/11)
        square.append(squared_trace((a - a.mean(0)) @ (b - b.mean(0)).T))
    for found, true in ((total, np.trace(gram)), (square, (gram**2).sum())):
        assert abs(np.mean(found) - true) < 4*np.std(found)/20

@few
@given(seeded, st.integers(4, 7))
def test_squared_trace_is_the_mean_over_four_different_conditions(r, n):
    a, b = r.normal(size=(2, n, 3))
    loop = [((a[i] - a[k]) @ (b[j] - b[l]))*((b[i] - b[k]) @ (a[j] - a[l]))/4
            for i, j, k, l in itertools.permutations(range(n), 4)]
    near(squared_trace(a @ b.T), np.mean(loop), 1e-8)

@pytest.mark.parametrize('name, spread, collapsed', [('mean', 0, True), ('mean and noise', .01, True),
                                                     ('line', 1, True), ('half', .25, False),
                                                     ('truth', 1, False), ('double', 4, False)])
def test_collapse_knows_its_cases(name, spread, collapsed):
    for seed in range(8):
        r = np.random.default_rng(seed)
        truth, one, two = screen(r)
        mean, size = truth.mean(0), (truth - truth.mean(0)).var()**.5
        pred = {'mean': np.tile(mean, (40, 1)), 'mean and noise': mean + .1*size*r.normal(size=truth.shape),
                'line': mean + size*r.choice([-1, 1], (40, 1))*r.choice([-1, 1], truth.shape[1]),
                'half': mean + .5*(truth - mean), 'truth': truth, 'double': mean + 2*(truth - mean)}[name]
        found = collapse(pred, one, two)
        assert found.status == 'ok' and found.collapsed == collapsed, found
        assert abs(found.spread - spread) < .15*spread + 1e-9, found
        if name in ('half', 'truth', 'double'): assert abs(found.rank_pred/found.rank_true - 1) < .15
        if name == 'mean': assert found.rank_pred == 0
        if name == 'line': assert found.rank_pred < 1.2

def test_collapse_ignores_gene_order_and_what_is_common():
    r = np.random.default_rng(0)
    truth, one, two = screen(r, genes=300)
    pred = truth + r.normal(size=truth.shape)
    base, genes, rows = collapse(pred, one, two), r.permutation(300), r.permutation(40)
    shifted = pred + r.normal(size=300), one + 4, two - 50*r.normal(size=300)
    other_genes, other_rows = [x[:, genes] for x in (pred, one, two)], [x[rows] for x in (pred, one, two)]
    for case in (other_genes, other_rows, shifted, (pred, two, one)):
        near(collapse(*case)[:3], base[:3], 1e-8)
    gaps = [np.vstack([x, np.full((1, 300), np.nan)]) for x in (pred, one, two)]
    near(collapse(*gaps)[:3], base[:3])

def test_collapse_gives_no_verdict_without_a_truth():
    r, lost = np.random.default_rng(0), 0
    for _ in range(200):
        one, two = r.normal(size=(2, 20, 100)) + 3
        lost += collapse(np.zeros((20, 100)), one, two).status == 'no_spread'
    assert 185 <= lost <= 200
    one_strong = np.zeros((30, 500))
    one_strong[3] = 2
    assert collapse(one_strong, *(one_strong + r.normal(size=(2, 30, 500)))).status == 'ok'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = collapse(*np.zeros((3, 6, 10)))
        assert (found.status, found.collapsed) == ('no_spread', False) and np.isnan(found.spread)
        assert collapse(*np.zeros((3, 3, 10))).status == 'few_conditions'
    with pytest.raises(InputError, match='differ'): collapse(np.zeros((5, 2)), np.zeros((5, 3)), np.zeros((5, 3)))
