"Differential expression against scipy and scanpy; its scores against their definitions in sets and scikit-learn."
import math, warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import anndata as ad, numpy as np, pandas as pd, pytest, scanpy as sc
from hypothesis import given, settings, strategies as st
from scipy import sparse, stats
from sklearn.metrics import average_precision_score
from perturbench.core import InputError
from perturbench.metrics import de
from perturbench.metrics.accuracy import METRICS
from perturbench.metrics.de import (Reference, benjamini_hochberg, de_weights, down_sample, enough_variance,
                                    false_positives, t_test, top, wilcoxon)

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
DE = [m for _, m in METRICS.items() if m.kind == 'de']
FIELDS = ('p', 'fdr', 'lfc', 'statistic', 't', 'n')

def expression(r, n, n_genes, wild=False):
    "Log counts with ties; `wild`: genes silent, constant, of a single cell, with values below 0, without ties."
    x = np.log1p(r.negative_binomial(.5, .5/(.5 + r.gamma(1., 1., n_genes)), (n, n_genes)))
    if wild:
        x[:, :3] = [0, 2, 0]
        x[r.integers(n), 2] = 1
        x[:, 3], x[:, 4] = r.integers(-2, 3, n), r.normal(size=n)
    return x

def case(seed, wild=True, n_groups=3, n_genes=12):
    "Cells, their conditions, and reference cells."
    r = np.random.default_rng(seed)
    n, m = r.integers(12, 120), r.integers(2, 80)
    x = expression(r, n + m, n_genes, wild)
    codes = np.append(np.arange(n_groups), r.integers(-1, n_groups, n - n_groups))
    return x[:n], codes, x[n:]

def by_scipy(x, codes, y, n_groups=3):
    "P-values of each condition, conditions x genes."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        tests = [stats.mannwhitneyu(x[codes == g], y, method='asymptotic', axis=0) for g in range(n_groups)]
    return np.nan_to_num([o.pvalue for o in tests], nan=1)

def by_pairs(x, y):
    "Normal score and p-value of one gene, from all pairs of cells and the counts of all values."
    n, m, both = len(x), len(y), len(x) + len(y)
    u = ((y < x[:, None]) + (y == x[:, None])/2).sum()
    t = np.unique(np.append(x, y), return_counts=True)[1].astype(float)
    spread = 1 - (t**3 - t).sum()/(both**3 - both)
    above = u - n*m/2
    if above == 0 or spread < 1e-9: return 0, 1
    z = (above - .5*np.sign(above))/np.sqrt(n*m*(both + 1)/12*spread)
    return z, math.erfc(abs(z)/2**.5)

@few
@given(seeds, st.integers(1, 30), st.integers(1, 60), st.booleans())
def test_a_reference_tests_as_all_pairs_do(seed, n, m, few_values):
    r = np.random.default_rng(seed)
    def draw(k): return r.integers(-2, 3, (k, 8))/2 if few_values else r.normal(size=(k, 8))*r.integers(0, 2, (k, 8))
    x, y = draw(n), draw(m)
    x[:, 0] = y[:, 0] = r.choice([-1, 0, 1])
    known = np.array([by_pairs(a, b) for a, b in zip(x.T, y.T)]).T
    for layout in (np.asarray, sparse.csr_array):
        tests = Reference(layout(y)).test(layout(x))
        assert tests.statistic == pytest.approx(known[0], rel=1e-13) and tests.p == pytest.approx(known[1], rel=1e-13)
        assert (tests.n, tests.n_reference) == (n, m)

def test_a_reference_is_what_wilcoxon_takes_and_each_condition_stands_alone():
    x, codes, y = case(4)
    tests, reference = wilcoxon(x, codes, 3, y), Reference(y)
    assert reference.n_cells == len(y)
    for name in FIELDS:
        assert (getattr(wilcoxon(x, codes, 3, reference), name) == getattr(tests, name)).all()
        for g in range(3): assert (getattr(reference.test(x[codes == g]), name) == getattr(tests[g], name)).all()

def test_many_cells_of_many_genes_are_turned_in_several_goes():
    r = np.random.default_rng(0)
    x, y = expression(r, 3_000, 400, wild=True), expression(r, 2_000, 400, wild=True)
    dense, compressed = Reference(y).test(x), Reference(sparse.csr_array(y)).test(sparse.csr_array(x))
    assert (dense.p == compressed.p).all() and (dense.statistic == compressed.statistic).all()
    assert dense.p == pytest.approx(by_scipy(x, np.zeros(3_000), y, 1)[0], abs=1e-12)

def test_values_are_compared_in_the_finer_precision():
    x, y = np.full((9, 1), .1, np.float32), np.full((9, 1), .1)
    assert Reference(y).test(x).statistic > 3 and Reference(x).test(y).statistic < -3
    assert Reference(x).test(y.astype(np.float32)).p == 1

@few
@given(seeds)
def test_wilcoxon_is_that_of_scipy_in_every_layout(seed):
    x, codes, y = case(seed)
    x, y = x.astype(np.float32), y.astype(np.float32)
    known = by_scipy(x.astype(float), codes, y.astype(float))
    first = wilcoxon(x, codes, 3, y)
    for layout in (np.asarray, np.asfortranarray, sparse.csr_matrix, sparse.csr_array, sparse.csc_array):
        for dtype in (np.float32, np.float64):
            tests = wilcoxon(layout(x.astype(dtype)), codes, 3, layout(y.astype(dtype)))
            assert tests.p == pytest.approx(known, abs=1e-12)
            assert (tests.p == first.p).all() and (tests.statistic == first.statistic).all()
            assert tests.lfc == pytest.approx(first.lfc, abs=1e-12)
            assert tests.t == pytest.approx(first.t, rel=1e-6, abs=1e-9)
    assert tests.fdr == pytest.approx(stats.false_discovery_control(known, axis=1), abs=1e-12)
    higher = np.array([[np.mean(np.sign(a[:, None] - b)) for a, b in zip(x[codes == g].T, y.T)] for g in range(3)])
    assert (tests.statistic*higher >= 0).all()
    level = lambda o: np.log2(np.expm1(o.astype(float)).mean(0) + 1)
    assert tests.lfc == pytest.approx(np.stack([level(x[codes == g]) - level(y) for g in range(3)]), abs=1e-9)

@few
@given(seeds)
def test_wilcoxon_does_not_depend_on_the_order_of_cells_genes_and_conditions(seed):
    x, codes, y = case(seed)
    r, tests = np.random.default_rng(seed), wilcoxon(x, codes, 3, y)
    rows, others = r.permutation(len(x)), r.permutation(len(y))
    genes, names = r.permutation(x.shape[1]), r.permutation(3)
    turned = wilcoxon(x[rows][:, genes], codes[rows], 3, y[others][:, genes])
    assert (turned.p == tests.p[:, genes]).all() and turned.lfc == pytest.approx(tests.lfc[:, genes], abs=1e-12)
    renamed = wilcoxon(x, np.where(codes >= 0, names[codes], -1), 3, y)
    for name in FIELDS: assert (getattr(renamed, name)[names] == getattr(tests, name)).all()
    alone = wilcoxon(x[codes == 1], np.zeros((codes == 1).sum(), int), 1, y)[0]
    assert (alone.p == tests[1].p).all() and (alone.fdr == tests[1].fdr).all() and alone.n == tests[1].n

def test_wilcoxon_takes_stored_zeros_for_zeros_and_leaves_its_input_alone():
    x, codes, y = case(1)
    tests, m = wilcoxon(x, codes, 3, y), sparse.csr_array(np.where(x == 0, 9, x))
    m.data[m.data == 9] = 0
    before = m.nnz, m.data.copy()
    assert (wilcoxon(m, codes, 3, sparse.csr_array(y)).p == tests.p).all()
    assert m.nnz == before[0] and (m.data == before[1]).all()
    order = np.concatenate([s + np.random.default_rng(0).permutation(e - s) for s, e in zip(m.indptr, m.indptr[1:])])
    jumbled = sparse.csr_array((m.data[order], m.indices[order], m.indptr), m.shape)
    assert (wilcoxon(jumbled, codes, 3, sparse.csr_array(y)).p == tests.p).all()

def test_wilcoxon_takes_numbers_of_any_kind():
    x, y = np.random.default_rng(0).poisson(1, (50, 5)), np.random.default_rng(1).poisson(2, (20, 5))
    tests = wilcoxon(x.astype(float), np.zeros(50, int), 1, y.astype(float))
    for a, b in [(np.int64, np.int64), (np.float16, np.float32), (np.uint8, np.float64), (np.float64, np.float32)]:
        for layout in (np.asarray, sparse.csr_array):
            if layout is sparse.csr_array and np.float16 in (a, b): continue  # scipy has no such sparse matrix
            assert (wilcoxon(layout(x.astype(a)), np.zeros(50, int), 1, layout(y.astype(b))).p == tests.p).all()

def test_tests_leave_columns_and_dense_rows_alone():
    x, _, y = case(1)
    for layout in (sparse.csc_array, np.asfortranarray, np.asarray):
        cells, reference = layout(x), layout(y)
        Reference(reference).test(cells)
        for o, known in ((cells, x), (reference, y)): assert ((o.toarray() if sparse.issparse(o) else o) == known).all()

@pytest.mark.parametrize('layout', [np.asarray, sparse.csr_array])
def test_tests_give_the_same_on_several_threads_at_a_time_and_say_nothing(layout, capfd):
    r = np.random.default_rng(0)
    conditions = [layout(expression(r, n, 700)) for n in r.integers(20, 60, 16)]
    reference = Reference(layout(expression(r, 60, 700)))
    one_by_one = [reference.test(o) for o in conditions]
    with ThreadPoolExecutor(4) as pool: at_a_time = list(pool.map(reference.test, conditions))
    for a, b in zip(one_by_one, at_a_time):
        for name in FIELDS: assert np.all(getattr(a, name) == getattr(b, name))
    assert capfd.readouterr() == ('', '')

def test_a_gene_in_perfect_balance_says_nothing():
    for x, y in [([1., 4.], [2., 3.]), ([0., 1.], [0., 1.]), ([0., 0., 1., 2.], [0., 0.5])]:
        x, y = np.array(x)[:, None], np.array(y)[:, None]
        for layout in (np.asarray, sparse.csr_array):
            tests = wilcoxon(layout(x), np.zeros(len(x), int), 1, layout(y))
            assert tests.p == pytest.approx(by_scipy(x, np.zeros(len(x), int), y, 1), abs=1e-12)
    assert wilcoxon(np.array([[1.], [4.]]), [0, 0], 1, np.array([[2.], [3.]])).statistic == 0

def test_wilcoxon_of_many_zeros():
    r = np.random.default_rng(0)
    x = np.log1p(r.poisson([.001, .05], (60_000, 2)))
    codes = np.where(np.arange(60_000) < 500, 0, -1)
    tests = wilcoxon(sparse.csr_array(x), codes, 1, sparse.csr_array(x[500:]))
    assert tests.p == pytest.approx(by_scipy(x, codes, x[500:], 1), abs=1e-12) and tests.n_reference == 59_500

def test_wilcoxon_of_empty_and_single_cells():
    x, codes, y = case(2)
    tests = wilcoxon(x, np.where(codes == 1, -1, codes), 5, y)
    assert np.isnan(tests.p[[1, 3, 4]]).all() and np.isnan(tests.lfc[1]).all() and np.isnan(tests.t[1]).all()
    assert tests.n_significant[1] == 0
    assert (tests.p[0] == wilcoxon(x, codes, 3, y).p[0]).all()
    lone = wilcoxon(x[:1], [0], 1, y[:1])
    assert lone.p == pytest.approx(by_scipy(x[:1], np.array([0]), y[:1], 1), abs=1e-12) and (lone.t == 0).all()
    none = wilcoxon(x, np.full(len(x), -1), 2, y)
    assert none.p.shape == (2, 12) and np.isnan(none.fdr).all() and (none.n == 0).all()

@pytest.mark.parametrize('change, says', [
    (dict(codes=[0]), '1 codes for'),
    (dict(n_groups=2), 'not one of 2 conditions'),
    (dict(reference=np.ones((3, 5))), '5 of the reference'),
    (dict(reference=np.ones((0, 12))), 'no reference cell'),
    (dict(reference=np.full((3, 12), np.nan)), 'not finite'),
    (dict(reference=np.full((3, 12), np.inf)), 'not finite'),
    (dict(reference=sparse.csr_array(np.full((3, 12), -np.inf))), 'not finite')])
def test_wilcoxon_says_what_is_wrong(change, says):
    x, codes, y = case(3)
    given = dict(cells=x, codes=codes, n_groups=3, reference=y)
    with pytest.raises(InputError, match=says): wilcoxon(**(given | change))

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e3])
def test_cells_that_are_not_finite_are_refused(value):
    x, _, y = case(3)
    x[-1, -1] = value
    for layout in (np.asarray, sparse.csr_array):
        with pytest.raises(InputError, match='not finite'): Reference(y).test(layout(x))

@few
@given(seeds)
def test_false_discovery_rates_are_those_of_scipy(seed):
    r = np.random.default_rng(seed)
    p = r.choice([r.random((5, 40))**4, r.integers(0, 5, (5, 40))/4])
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p, axis=1), abs=1e-15)
    assert (benjamini_hochberg(p) == np.stack([benjamini_hochberg(o) for o in p])).all()

def by_scanpy(x, labels, reference='rest'):
    "Scores and p-values, genes in order, of each group that scanpy tests."
    a = ad.AnnData(x, obs=pd.DataFrame({'group': pd.Categorical(labels)}, index=np.arange(len(x)).astype(str)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sc.tl.rank_genes_groups(a, 'group', method='t-test_overestim_var', reference=reference)
        groups = a.uns['rank_genes_groups']['names'].dtype.names
        found = {g: sc.get.rank_genes_groups_df(a, g).set_index('names') for g in groups}
    return {g: (o.scores.loc[a.var_names].to_numpy(), o.pvals.loc[a.var_names].to_numpy()) for g, o in found.items()}

def moments(x): return x.mean(0), x.var(0, ddof=1), len(x)

@pytest.mark.parametrize('seed', range(3))
def test_t_test_is_that_of_scanpy_against_a_reference_and_against_the_rest(seed):
    r = np.random.default_rng(seed)
    x, labels = expression(r, 300, 40), r.choice(['a', 'b', 'c', 'd'], 300, p=[.1, .2, .3, .4])
    x[:, 0] = 0
    for reference in ('d', 'rest'):
        for g, (t, p) in by_scanpy(x, labels, reference).items():
            other = x[labels != g] if reference == 'rest' else x[labels == reference]
            ours = t_test(*moments(x[labels == g]), *moments(other)[:2])
            assert ours[0] == pytest.approx(t, rel=1e-5, abs=1e-6) and ours[1] == pytest.approx(p, rel=1e-6, abs=1e-12)
    tests = wilcoxon(x, np.array([list('abc-').index(o) if o != 'd' else -1 for o in labels]), 3, x[labels == 'd'])
    for i, (t, _) in enumerate(by_scanpy(x, labels, 'd').values()):
        assert tests.t[i] == pytest.approx(t, rel=1e-5, abs=1e-6)

@pytest.mark.parametrize('seed', range(3))
def test_weights_are_those_of_scanpy_against_the_rest(seed):
    r = np.random.default_rng(seed)
    x, labels = expression(r, 400, 40), r.choice(list('abcde'), 400, p=[.05, .1, .2, .25, .4])
    x[labels == 'b', 5:10] += .5
    x[:, 0] = 0
    t = np.abs(np.stack([o[0] for o in by_scanpy(x, labels).values()]))
    low, high = t.min(1, keepdims=True), t.max(1, keepdims=True)
    mean, var, n = zip(*(moments(x[labels == g]) for g in 'abcde'))
    w = de_weights(mean, var, n)
    assert w == pytest.approx(((t - low)/(high - low))**2, rel=1e-5, abs=1e-6)
    order = r.permutation(5)
    turned = [np.array(o)[order] for o in (mean, var, n)]
    assert de_weights(*turned) == pytest.approx(w[order], abs=1e-9)
    far = de_weights(np.array(mean) + 100, var, n)  # no cancellation far from 0
    assert far == pytest.approx(w, rel=1e-4, abs=1e-6)

def test_weights_without_information():
    assert (de_weights(np.ones((1, 5)), np.ones((1, 5)), [9]) == 1).all()
    assert (de_weights(np.ones((3, 5)), np.zeros((3, 5)), [9, 8, 7]) == 1).all()
    mean, var = np.array([[1., 2, 3], [1, 1, 1], [2, 2, 2]]), np.array([[1., 1, 1], [1, 1, 1], [np.nan]*3])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        w = de_weights(mean, var, [10, 10, 1])
        empty = de_weights(np.vstack([mean[:2], [[np.nan]*3]]), var, [10, 10, 0])
    assert np.isfinite(w).all() and (w[2] == 1).all() and (empty[2] == 1).all()
    assert empty[:2] == pytest.approx(de_weights(mean[:2], var[:2], [10, 10]))
    constant = de_weights([[5., 1, 2], [1, 1, 1]], [[0., 1, 1], [0, 1, 1]], [9, 9])  # a gene of infinite t counts as 0
    assert constant[0].tolist() == [0, 0, 1]

def made(r, n_genes, share=.3, levels=None, ties=False):
    "Tests of one condition with p-values and fold changes of any kind; a `share` of genes is significant."
    fdr = np.where(r.random(n_genes) < share, r.uniform(0, .05, n_genes), r.uniform(.05, 1, n_genes))
    p, lfc = fdr*r.uniform(.2, 1), r.normal(size=n_genes)
    if ties: p, fdr, lfc = np.ceil(p*20)/20, fdr, np.round(lfc*2)/2
    return de.Tests(p, fdr, lfc, np.sign(lfc), r.normal(size=n_genes)*4, np.array(50), 80)

def in_order(tests):
    "Significant genes, the largest fold change first."
    return sorted(np.flatnonzero(tests.fdr < .05).tolist(), key=lambda g: -abs(tests.lfc[g]))

def naive(pred, true):
    "All scores from their definitions, by sets and loops."
    S, P = in_order(true), in_order(pred)
    best = lambda o, k: set(o[:k])
    out = {}
    for name in ('N', '50', '100', '200'):
        most = 10**9 if name == 'N' else int(name)
        k, q = min(most, len(S)), min(most, len(P))
        out[f'overlap_at_{name}'] = len(best(S, k) & best(P, k))/k if k else np.nan
        out[f'precision_at_{name}'] = len(best(S, q) & best(P, q))/q if q else np.nan
    out['de_recall'] = len(set(S) & set(P))/len(S) if S else np.nan
    out['de_direction'] = sum(true.lfc[g]*pred.lfc[g] > 0 for g in S)/len(S) if S else np.nan
    flat = len(S) < 2 or len(set(pred.lfc[S])) == 1 or len(set(true.lfc[S])) == 1
    out['de_spearman'] = np.nan if flat else stats.spearmanr(pred.lfc[S], true.lfc[S]).statistic
    out['de_auprc'] = average_precision_score(true.fdr < .05, -np.log10(pred.p)) if S else np.nan
    others = set(range(len(pred.fdr))) - set(S)
    out['de_false_calls'] = len(others & set(P))/len(others) if others else np.nan
    out['de_count_error'] = abs(np.log2(1 + len(P)) - np.log2(1 + len(S)))
    by_t = lambda o: set(sorted(range(len(o.t)), key=lambda g: -abs(o.t[g]))[:20])
    out['deg_recall_published'] = len(by_t(pred) & by_t(true))/min(20, len(true.t))
    return out

@few
@given(seeds, st.sampled_from([0, .01, .1, .6, 1]), st.sampled_from([0, .05, .5, 1]), st.booleans())
def test_scores_are_those_of_loops_over_sets(seed, a, b, ties):
    r = np.random.default_rng(seed)
    n = int(r.choice([5, 60, 400]))
    pred, true = made(r, n, a, ties=ties), made(r, n, b, ties=ties)
    known = naive(pred, true)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = {m.name: m(pred, true) for m in DE}
    for name, value in found.items():
        assert value == pytest.approx(known[name.removesuffix('_own')], abs=1e-12, nan_ok=True), name
        low, high = METRICS[name].limits
        assert np.isnan(value) or low <= value <= high, name
    assert set(known) == {m.name for m in DE if m.space == 'de'}

@few
@given(seeds)
def test_scores_do_not_depend_on_the_order_of_genes(seed):
    r = np.random.default_rng(seed)
    pred, true = made(r, 300), made(r, 300)
    genes = r.permutation(300)
    turn = lambda o: replace(o, **{k: getattr(o, k)[genes] for k in FIELDS if k != 'n'})
    for m in DE: assert m(turn(pred), turn(true)) == pytest.approx(m(pred, true), abs=1e-12), m.name

def test_equal_fold_changes_stand_in_the_order_of_genes():
    none, fdr, lfc = np.zeros(6), np.array([0, 0, .5, 0, 0, 0]), np.array([1., -2, 9, 2, -1, 2])
    tests = de.Tests(none, fdr, lfc, none, none, np.array(5), 5)
    assert [top(tests, k).tolist() for k in (9, 2, 0)] == [[1, 3, 5, 0, 4], [1, 3], []]
    assert tests.place.tolist() == [3, 0, 6, 1, 4, 2]

def test_a_perfect_prediction_has_the_best_score_and_an_opposite_one_does_not():
    r = np.random.default_rng(0)
    x, y = expression(r, 500, 60), expression(np.random.default_rng(1), 400, 60)
    codes = r.integers(0, 3, 500)
    tests = wilcoxon(x, codes, 3, y)
    assert (tests.n_significant >= 2).all()
    for i in range(3):
        for m in DE: assert m(tests[i], tests[i]) == pytest.approx(m.best, abs=1e-12), m.name
    turned = replace(tests[0], lfc=-tests[0].lfc)
    assert METRICS['de_direction'](turned, tests[0]) == 0
    assert METRICS['de_spearman'](turned, tests[0]) == pytest.approx(-1)

def test_each_score_is_registered_against_real_and_against_own_controls():
    for m in DE:
        own = m.name.endswith('_own')
        assert m.space == ('de_own' if own else 'de') and m.limits[0] <= m.best <= m.limits[1]
        assert m.better == ('lower' if m.best == 0 else 'higher')
        assert ('predicted control' in m.text) == own and m.needs == ()
    plain, own = ({m.name.removesuffix('_own') for m in DE if m.space == s} for s in ('de', 'de_own'))
    assert plain - own == {'deg_recall_published'} and own < plain

def test_what_is_undefined_is_missing():
    r = np.random.default_rng(0)
    some, none = made(r, 100), made(r, 100, 0)
    missing = lambda pred, true: {m.name for m in DE if m.space == 'de' and np.isnan(m(pred, true))}
    overlap, precision = ({f'{what}_at_{k}' for k in ('N', '50', '100', '200')} for what in ('overlap', 'precision'))
    both = overlap | {'de_recall', 'de_direction', 'de_spearman', 'de_auprc'}
    assert missing(some, some) == set()
    assert missing(some, none) == both and all(METRICS[m](some, none) == 0 for m in precision)
    assert missing(none, some) == precision and METRICS['de_recall'](none, some) == 0
    assert missing(none, none) == both | precision and METRICS['de_count_error'](none, none) == 0

def test_a_prediction_without_change_has_no_direction_and_no_order():
    r = np.random.default_rng(0)
    true = made(r, 100)
    for rounding in (0, 1e-8):
        flat = replace(made(r, 100, 0), lfc=rounding*r.normal(size=100))
        assert METRICS['de_direction'](flat, true) == 0 and np.isnan(METRICS['de_spearman'](flat, true))
    same = replace(true, p=np.ones(100))
    assert METRICS['de_auprc'](same, true) == pytest.approx(true.significant().mean())

def test_published_recall_is_that_of_scanpys_lists():
    r = np.random.default_rng(3)
    x, labels = expression(r, 400, 120), np.repeat(['control', 'true', 'pred'], [200, 100, 100])
    x[200:, :30] += r.gamma(1., .3, 30)
    tests = wilcoxon(x[200:], np.repeat([0, 1], 100), 2, x[:200])
    found = by_scanpy(x, labels, 'control')
    lists = [set(np.argsort(-abs(found[g][0]))[:20]) for g in ('true', 'pred')]
    value = METRICS['deg_recall_published'](tests[1], tests[0])
    assert 0 < value < 1 and value == len(lists[0] & lists[1])/20

def test_published_recall_counts_infinite_scores_as_none():
    tests = made(np.random.default_rng(0), 60)
    wild = replace(tests, t=np.where(np.arange(60) < 20, np.inf, tests.t))
    tame = replace(tests, t=np.where(np.arange(60) < 20, 0, tests.t))
    score = METRICS['deg_recall_published']
    assert score(wild, tests) == score(tame, tests) < 1 and score(tests, wild) == score(tests, tame)
    assert np.isnan(score(replace(tests, t=np.full(60, -np.inf)), tests))

def test_significance_has_a_level_and_conditions_an_index():
    x, codes, y = case(5)
    tests = wilcoxon(x, codes, 3, y)
    assert (tests.significant(.2) == (tests.fdr < .2)).all() and (tests.n_significant == (tests.fdr < .05).sum(1)).all()
    assert tests[1].p.shape == (12,) and tests[1].n == tests.n[1] and tests[1].n_reference == len(y)
    assert (tests[[2, 0]].lfc == tests.lfc[[2, 0]]).all() and (tests.called == tests.significant()).all()

@few
@given(seeds, st.integers(0, 60), st.integers(0, 60))
def test_down_sampling_keeps_what_it_is_asked_for(seed, size, n):
    rows = np.sort(np.random.default_rng(seed).permutation(200)[:size])
    kept = down_sample(rows, n, seed, 'pred')
    assert len(kept) == min(size, n) and np.isin(kept, rows).all() and (np.diff(kept) > 0).all()
    assert (kept == down_sample(rows, n, seed, 'pred')).all()
    assert (rows[down_sample(size, n, seed, 'pred')] == kept).all()
    assert set(down_sample(rows, n//2, seed, 'pred')) <= set(kept)

def test_down_sampling_is_even_and_depends_on_its_keys():
    times = sum(np.isin(np.arange(20), down_sample(20, 5, 'evenly', i)) for i in range(2000))
    assert stats.chisquare(times).pvalue > .001
    assert len({tuple(down_sample(100, 10, 0, 'pred', i)) for i in range(50)}) == 50

def test_guards():
    assert enough_variance([.05, .05], [1, 0]) and not enough_variance([.05, .04], [1, 0])
    y = expression(np.random.default_rng(7), 200, 100)
    assert false_positives(y[:100], y[100:]) <= .02
    assert false_positives(y[:100] + .3, y[100:]) > .9 and false_positives(np.tile(y.mean(0), (100, 1)), y) > .7
