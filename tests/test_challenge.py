"The measures of the Virtual Cell Challenge by plain loops with scipy, and what must and must not change them."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse, stats
from scipy.spatial.distance import cosine
from perturbench.core import InputError
from perturbench.metrics.challenge import (
    BY_CALLS, MEASURES, Bulk, Calls, as_counts, bulk_of, calls_of, challenge_scores, challenge_total, combined,
    compare, controls_of, counts_of, de_jaccard, direction_fidelity, direction_reach, discrimination, halves, lfc_nmae,
    mean_response, replicate_scores, seen_of, squared_error)

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
COLUMNS = ['pds_cosine', 'mse_error', 'mse_effect', 'direction_fidelity', 'direction_reach', 'de_jaccard', 'lfc_nmae']

class Panel:
    "Predicted and measured cells of some perturbations, of different numbers of cells; gene 0 is too rare to test."
    def __init__(self, seed, n=5, n_genes=40, effect=.8):
        r = np.random.default_rng(seed)
        self.targets = np.zeros((n, n_genes), bool)
        self.targets[np.arange(n - 1), 1 + np.arange(n - 1)] = True  # the last acts on no gene
        self.targets[1, 20] = True                                   # the second on two
        base = r.gamma(1., size=n_genes) + .05
        base[0] = 1e-7
        self.control = self.cells(r, base, 90)
        change = np.exp(effect*r.normal(size=(n, n_genes))*(r.random((n, n_genes)) < .6))
        self.true = [self.cells(r, base*o, r.integers(15, 60)) for o in change]
        wrong = np.exp(.4*r.normal(size=(n, n_genes)))
        self.pred = [self.cells(r, base*o, r.integers(15, 60)) for o in change*wrong]

    @staticmethod
    def cells(r, share, n):
        depth = r.lognormal(6.5, .5, (n, 1))
        return r.poisson(depth*share/share.sum()*r.gamma(3, 1/3, (n, len(share)))).astype(float)

    def scores(self, pred=None, true=None, control=None, targets=None):
        given_or_own = (o if o is not None else own for o, own in
                        ((pred, self.pred), (true, self.true), (control, self.control), (targets, self.targets)))
        return challenge_scores(*given_or_own)

# Independent loops, written from the formulae

def profile(cells):
    total = cells.sum()
    return np.array([np.log1p(5e4*x.sum()/total) for x in cells.T])

def jackknife(cells):
    n = len(cells)
    without = np.array([profile(np.delete(cells, i, axis=0)) for i in range(n)])
    return (n - 1)/n*sum(((v - v.mean())**2).sum() for v in without.T)

def differential(cells, control):
    "P-value, significance and fold change of each gene; missing where it is not tested."
    cpm, ref = (1e6*x/x.sum(1, keepdims=True) for x in (cells, control))
    tested = ref.mean(0) > 5
    p, called, lfc = (np.full(len(tested), np.nan) for _ in range(3))
    for g in np.flatnonzero(tested):
        constant = np.ptp(np.append(cpm[:, g], ref[:, g])) == 0
        p[g] = 1 if constant else stats.mannwhitneyu(cpm[:, g], ref[:, g], method='asymptotic').pvalue
        lfc[g] = np.log2((cpm[:, g].mean() + 1e-9)/(ref[:, g].mean() + 1e-9))
    called[tested] = stats.false_discovery_control(p[tested]) < .05
    return p, called == 1, lfc

def discrimination_by_loop(pred, true, panel):
    out, n = [], len(true)
    for p in range(n):
        distance = [cosine(pred[p][~panel], true[q][~panel]) for q in range(n)]
        place = stats.rankdata(distance)[p] - 1
        out.append(1 - place/(n - 1))
    return out

def errors_by_loop(pred, true, control, targets):
    n, n_genes = targets.shape
    b_hat, b = ([profile(x) for x in o] for o in (pred, true))
    c_hat, c = ([jackknife(x) for x in o] for o in (pred, true))
    counted = [n_genes - own.sum() for own in targets]
    claimed = sum(min(c_hat[p], c[p])/counted[p] for p in range(n))
    spread = 0.
    for g in range(n_genes):
        with_g = [p for p in range(n) if not targets[p, g]]
        weights = [1/counted[p] for p in with_g]
        mean = np.average([b_hat[p][g] for p in with_g], weights=weights)
        spread += sum(w*(b_hat[p][g] - mean)**2 for p, w in zip(with_g, weights))
    rho = min(1, spread/claimed)
    b_control, c_control = profile(control), jackknife(control)
    error, effect = [], []
    for p in range(n):
        kept = ~targets[p]
        plain, size = ((b_hat[p] - b[p])[kept]**2).sum(), ((b[p] - b_control)[kept]**2).sum()
        error.append((plain - rho*min(c_hat[p], c[p]) - c[p])/counted[p])
        effect.append((size - c[p] - c_control)/counted[p])
    return error, effect, rho

def by_calls(pred, true, control, own):
    "Fidelity, reach, Jaccard index and error of fold changes, from sets and lists of genes."
    (p_hat, called_hat, l_hat), (_, called, l) = (differential(x, control) for x in (pred, true))
    genes = [g for g in range(len(own)) if not own[g]]
    a, b = ({g for g in genes if o[g]} for o in (called_hat, called))
    asked = [g for g in a if l[g] != 0]
    most = max(len(asked), len(b))
    fidelity = sum(np.sign(l_hat[g]) == np.sign(l[g]) for g in asked)/most if most else np.nan
    ordered = sorted((g for g in b if l[g] != 0), key=lambda g: (p_hat[g], -abs(l_hat[g]), g))
    right, depth = 0, 0
    for k, g in enumerate(ordered, 1):
        right += np.sign(l_hat[g]) == np.sign(l[g])
        if 10*right >= 9*k: depth = k
    reach = depth/len(b) if b else np.nan
    jaccard = len(a & b)/len(a | b) if a | b else 1
    few = len(b) < 10
    nmae = np.nan if few else sum(abs(l_hat[g] - l[g]) for g in b)/sum(abs(l[g]) for g in b)
    return fidelity, reach, jaccard, nmae

@pytest.mark.parametrize('seed', range(4))
def test_all_measures_are_those_of_plain_loops(seed):
    panel = Panel(seed)
    table = panel.scores()
    assert list(table) == COLUMNS
    effects = [[profile(x) - profile(panel.control) for x in o] for o in (panel.pred, panel.true)]
    assert list(table['pds_cosine']) == discrimination_by_loop(*effects, panel.targets.any(0))
    error, effect, _ = errors_by_loop(panel.pred, panel.true, panel.control, panel.targets)
    assert list(table['mse_error']) == pytest.approx(error, rel=1e-9)
    assert list(table['mse_effect']) == pytest.approx(effect, rel=1e-9)
    known = [by_calls(*o[:2], panel.control, o[2]) for o in zip(panel.pred, panel.true, panel.targets)]
    assert table[list(BY_CALLS)].to_numpy() == pytest.approx(np.array(known), rel=1e-12, nan_ok=True)
    assert np.isfinite(known).any(0).all()
    six = combined(table)
    assert list(six.index) == list(MEASURES)
    assert six['expr_mse_capped'] == pytest.approx(sum(error)/sum(effect), rel=1e-9)
    for name in ('pds_cosine', *BY_CALLS): assert six[name] == pytest.approx(np.nanmean(table[name]), rel=1e-12)

def test_a_spread_that_binds_is_that_of_the_loop():
    panel = Panel(7)
    r = np.random.default_rng(0)
    same = [r.permutation(panel.control)[:60] for _ in panel.true]
    error, effect, rho = errors_by_loop(same, panel.true, panel.control, panel.targets)
    table = panel.scores(pred=same)
    assert 0 < rho < 1
    assert list(table['mse_error']) == pytest.approx(error, rel=1e-9)
    assert list(table['mse_effect']) == pytest.approx(effect, rel=1e-9)

@few
@given(seeds, st.integers(1, 70), st.booleans())
def test_a_pseudobulk_and_its_noise_are_those_of_leaving_cells_out(seed, n, whole):
    r = np.random.default_rng(seed)
    cells = r.poisson(r.gamma(.3, 20, (n, 12))).astype(float)*(1 if whole else .37)
    cells[0, 0] = 1
    for layout in (np.asarray, sparse.csr_array, sparse.csc_array):
        bulk = bulk_of(layout(cells))
        assert bulk.profile == pytest.approx(profile(cells), rel=1e-12)
        if n > 1 and (cells.sum() - cells.sum(1) > 0).all():
            assert bulk.variance == pytest.approx(jackknife(cells), rel=1e-9, abs=1e-9)
    assert n > 1 or bulk.variance == 0

def test_a_cell_that_holds_everything_leaves_an_empty_profile():
    cells = np.array([[3., 5], [0, 0]])
    full, none = profile(cells), np.zeros(2)
    assert bulk_of(cells).variance == pytest.approx((((full - none)/2)**2).sum())
    assert bulk_of(np.zeros((3, 2))) == (pytest.approx([0, 0]), 0)

@few
@given(seeds)
def test_tests_are_scipys_and_do_not_see_the_depth_of_a_cell(seed):
    r = np.random.default_rng(seed)
    share = r.gamma(.5, size=15) + 1e-3
    cells, control = Panel.cells(r, share*np.exp(r.normal(size=15)), 25), Panel.cells(r, share, 40)
    cells[:, 3], control[:, 3] = 0, 0
    cells, control = (o[o.sum(1) > 0] for o in (cells, control))
    p, called, lfc = differential(cells, control)
    found, tested = calls_of(cells, controls_of(control)), np.isfinite(p)
    assert found.p[tested] == pytest.approx(p[tested], rel=1e-9) and (found.p[~tested] == 1).all()
    assert (found.called == called).all()
    assert found.lfc[tested] == pytest.approx(lfc[tested], abs=1e-9) and (found.lfc[~tested] == 0).all()
    def rescaled(cells): return cells*r.lognormal(0, 1, (len(cells), 1))
    deeper = calls_of(rescaled(cells), controls_of(rescaled(control)))
    assert (deeper.p == found.p).all() and (deeper.called == found.called).all()
    assert deeper.lfc == pytest.approx(found.lfc, abs=1e-9)

def test_a_gene_is_tested_by_what_controls_have_of_it_alone():
    control, cells = np.full((20, 3), 1000.), np.full((20, 3), 1000.)
    control[:, 2], cells[:, 2] = 0, 5000
    calls = calls_of(cells, controls_of(control))
    assert not calls.called[2] and calls.p[2] == 1 and calls.lfc[2] == 0

def test_a_copy_is_perfect():
    panel = Panel(3)
    six = combined(panel.scores(pred=panel.true))
    assert list(six.drop('expr_mse_capped')) == [1, 1, 1, 1, 0]
    noise = np.array([jackknife(x) for x in panel.true])
    genes = 40 - panel.targets.sum(1)
    assert list(panel.scores(pred=panel.true)['mse_error']) == pytest.approx(-2*noise/genes)

@few
@given(seeds)
def test_the_order_of_perturbations_of_genes_and_of_cells_does_not_matter(seed):
    panel, r = Panel(2), np.random.default_rng(seed)
    known, order, genes = panel.scores(), r.permutation(5), r.permutation(40)
    def shuffled(cells): return r.permutation(cells)[:, genes]
    table = panel.scores([shuffled(panel.pred[i]) for i in order], [shuffled(panel.true[i]) for i in order],
                         shuffled(panel.control), panel.targets[order][:, genes])
    assert table.to_numpy() == pytest.approx(known.iloc[order].to_numpy(), rel=1e-9, nan_ok=True)

def test_a_part_of_the_panel_has_the_same_calls_and_another_rank():
    panel = Panel(1)
    some = panel.scores(panel.pred[:3], panel.true[:3], targets=panel.targets[:3])
    assert some[list(BY_CALLS)].equals(panel.scores().iloc[:3][list(BY_CALLS)])

def test_layouts_and_steps_give_the_same_scores():
    panel = Panel(5)
    known = panel.scores()
    compressed = panel.scores(*([sparse.csr_array(x) for x in o] for o in (panel.pred, panel.true)),
                              sparse.csr_matrix(panel.control))
    assert compressed.equals(known)
    controls = controls_of(panel.control)
    seen = [[seen_of(x, controls) for x in o] for o in (panel.pred, panel.true)]
    assert compare(*seen, controls, panel.targets).equals(known)

def test_inputs_are_left_as_they_are():
    cells = sparse.csr_array((np.array([1., 2, 0]), np.array([1, 1, 0]), np.array([0, 2, 3])), (2, 2))
    assert counts_of(cells).toarray().tolist() == [[0, 3], [0, 0]]
    assert cells.data.tolist() == [1, 2, 0] and cells.nnz == 3

def test_what_happens_to_a_target_counts_for_nothing():
    panel = Panel(4)
    known = panel.scores()
    own = panel.targets.copy()
    def moved(cells, genes):  # counts go from one target to another; those of the cell stay
        cells = cells.copy()
        here, there = np.flatnonzero(genes)
        cells[:, here], cells[:, there] = cells[:, here] + cells[:, there], 0
        return cells
    pred = [moved(x, own[1]) if i == 1 else x for i, x in enumerate(panel.pred)]
    table = panel.scores(pred=pred)
    assert table['pds_cosine'].equals(known['pds_cosine'])
    assert list(table.loc[1, ['direction_reach', 'lfc_nmae']]) == list(known.loc[1, ['direction_reach', 'lfc_nmae']])
    assert table.drop(index=1)[list(BY_CALLS)].equals(known.drop(index=1)[list(BY_CALLS)])

@few
@given(seeds, st.floats(.1, 10))
def test_discrimination_sees_directions_and_counts_ties_as_half(seed, size):
    r = np.random.default_rng(seed)
    true = r.normal(size=(8, 20))
    pred, panel = true + r.normal(size=true.shape), np.arange(20) < 4
    known = discrimination(pred, true, panel)
    assert (discrimination(size*pred, true*r.uniform(.1, 10, (8, 1)), panel) == known).all()
    spiked = pred + 100*r.normal(size=pred.shape)*panel
    assert (discrimination(spiked, true, panel) == known).all()
    assert (discrimination(0*pred, true, panel) == .5).all()
    true[1] = true[0]
    assert discrimination(true, true, panel)[:2] == pytest.approx([1 - .5/7]*2)
    constant = discrimination(np.tile(pred[:1], (8, 1)), r.normal(size=true.shape), panel)
    assert sorted(constant) == pytest.approx(np.arange(8)/7)

def test_knowing_the_targets_only_is_worth_nothing():
    r = np.random.default_rng(0)
    n, n_genes = 30, 300
    targets = np.eye(n, n_genes, dtype=bool)
    true = .3*r.normal(size=(n, n_genes)) - 2*targets
    attack = targets.any(0) - 1.*targets
    assert (discrimination(attack, true, targets.any(0)) == .5).all()
    def without_own(p): return [cosine(*(np.delete(o, p) for o in (attack[p], t))) for t in true]
    row_wise = [1 - (stats.rankdata(without_own(p))[p] - 1)/(n - 1) for p in range(n)]
    assert np.mean(row_wise) > .7

@few
@given(seeds, st.floats(0, 3))
def test_differences_that_are_put_in_never_pay(seed, size):
    "Centred differences between predictions, where the truth has none, cost what they unlock at least."
    r = np.random.default_rng(seed)
    n, n_genes = 6, 30
    true = Bulk(np.tile(r.normal(size=n_genes), (n, 1)), np.full(n, 2.))
    own = np.zeros((n, n_genes), bool)
    put_in = r.normal(size=(n, n_genes))
    put_in *= size/n_genes**.5
    put_in -= put_in.mean(0)
    control = Bulk(np.zeros(n_genes), 1.)
    def total(profiles): return squared_error(Bulk(profiles, np.full(n, 9.)), true, control, own).error.sum()
    assert total(true.profile + put_in) >= total(true.profile) - 1e-9

@few
@given(seeds)
def test_claims_above_the_truth_and_above_the_spread_are_not_paid(seed):
    r = np.random.default_rng(seed)
    true, pred = r.normal(size=(4, 9)), r.normal(size=(4, 9))
    own, noise = np.eye(4, 9, dtype=bool), r.uniform(.1, .5, 4)
    def error(claims): return squared_error(Bulk(pred, claims), Bulk(true, noise), Bulk(np.zeros(9), 1.), own).error
    assert error(noise + r.uniform(0, 99, 4)) == pytest.approx(error(noise))
    assert (error(noise) <= error(noise/2) + 1e-12).all()
    assert error(np.zeros(4)) == pytest.approx((((pred - true)**2*~own).sum(1) - noise)/8)

def test_the_error_of_the_right_cells_is_near_0_and_that_of_controls_near_1():
    r = np.random.default_rng(0)
    n, n_genes = 40, 60
    base = r.gamma(2., size=n_genes)
    shares = base*np.exp(.3*r.normal(size=(n, n_genes)))
    control = Panel.cells(r, base, 2000)
    true, again, none = ([Panel.cells(r, s, 60) for s in o] for o in (shares, shares, np.tile(base, (n, 1))))
    bulks = [[bulk_of(x) for x in o] for o in (true, again, none)]
    truth, same, nothing = (Bulk(np.array([o.profile for o in b]), np.array([o.variance for o in b])) for b in bulks)
    own = np.zeros((n, n_genes), bool)
    def score(pred):
        parts = squared_error(pred, truth, bulk_of(control), own)
        return parts.error.sum()/parts.effect.sum()
    assert score(same) == pytest.approx(0, abs=.05)
    assert score(nothing) == pytest.approx(1, abs=.05)

def random_calls(r, n=30):
    p = r.choice([0., .001, .01, .2, .9], n)
    return Calls(p, p < .05, r.choice([-2., -1, 0, .5, 1], n)*r.choice([1, 1, 3.], n))

@few
@given(seeds)
def test_scores_of_calls_stay_in_their_range_and_answer_to_a_change_of_sign(seed):
    r = np.random.default_rng(seed)
    pred, true = random_calls(r), random_calls(r)
    flipped = [o._replace(lfc=-o.lfc) for o in (pred, true)]
    for measure in BY_CALLS.values():
        value = measure(pred, true)
        assert value >= 0 and (measure is lfc_nmae or value <= 1)
        assert measure(*flipped) == pytest.approx(value)
    assert de_jaccard(pred, true) == de_jaccard(true, pred)
    some = true.lfc[true.called] != 0
    assert direction_fidelity(true, true) == some.mean() and direction_reach(true, true) == some.mean()
    assert lfc_nmae(true._replace(lfc=0*true.lfc), true) == 1
    assert direction_fidelity(pred._replace(lfc=-true.lfc), true) == 0
    assert direction_reach(pred._replace(lfc=-true.lfc), true) == 0

def test_a_call_of_a_gene_that_the_truth_does_not_call_is_judged_by_its_true_direction():
    true = Calls(np.array([.001, .9, .9]), np.array([True, False, False]), np.array([1., .3, -.3]))
    pred = Calls(np.full(3, .001), np.ones(3, bool), np.ones(3))
    assert direction_fidelity(pred, true) == 2/3

def test_equal_p_values_are_ordered_by_the_size_of_the_change():
    true = Calls(np.zeros(4), np.ones(4, bool), np.ones(4))
    pred = Calls(np.full(4, .01), np.ones(4, bool), np.array([1., -5, 3, 2]))
    assert direction_reach(pred, true) == 0
    assert direction_reach(pred._replace(p=np.array([.01, .02, .01, .01])), true) == 3/4

@few
@given(seeds)
def test_log_normalised_cells_are_scored_as_the_counts_they_come_from(seed):
    "Where all measured cells have one depth, nothing was lost."
    panel = Panel(seed)
    def even(cells): return 1000*cells/cells.sum(1, keepdims=True)
    def logged(cells): return np.log1p(10*even(cells))
    known = panel.scores([even(x) for x in panel.pred], [even(x) for x in panel.true], even(panel.control))
    back = panel.scores([as_counts(logged(x)) for x in panel.pred], [even(x) for x in panel.true], even(panel.control))
    assert back.to_numpy() == pytest.approx(known.to_numpy(), rel=1e-6, abs=1e-9, nan_ok=True)
    below = np.random.default_rng(seed).normal(size=(4, 3))
    assert (as_counts(below) >= 0).all() and (as_counts(sparse.csr_array(below)).toarray() == as_counts(below)).all()

def test_mean_response_has_the_mean_that_it_is_asked_for_and_the_spread_of_controls():
    r = np.random.default_rng(0)
    control = Panel.cells(r, r.gamma(1., size=20), 200)
    wanted = control.mean(0)*r.uniform(.5, 2, 20)
    cells = mean_response(wanted, control, 20_000, 'a')
    assert cells.mean(0) == pytest.approx(wanted, rel=.05)
    share = cells.toarray()[:5]/np.where(control.mean(0) > 0, wanted/control.mean(0), 1)
    assert all((np.abs(control - row).max(1) < 1e-9).any() for row in share)
    again, other = mean_response(wanted, control, 20_000, 'a'), mean_response(wanted, control, 20_000, 'b')
    assert (again.toarray() == cells.toarray()).all()
    assert (again.toarray() != other.toarray()).any()

def test_halves_share_no_cell():
    cells = np.arange(1, 12)[:, None]*np.ones((1, 3))
    one, other = (set(o.toarray()[:, 0]) for o in halves(cells, 0))
    assert len(one) == len(other) == 5 and not one & other

def test_a_replicate_takes_its_fold_changes_at_the_genes_of_all_cells():
    panel = Panel(8, n=4)
    found = replicate_scores(panel.true, panel.control, panel.targets)
    controls = controls_of(panel.control)
    whole = [calls_of(x, controls) for x in panel.true]
    splits = []
    for split in range(5):
        ends = [controls_of(o) for o in halves(panel.control, split, 'control')]
        pairs = [halves(x, split, i) for i, x in enumerate(panel.true)]
        first, second = ([seen_of(pair[k], ends[k]) for pair in pairs] for k in (0, 1))
        six = combined(compare(second, first, ends[0], panel.targets, ends[1]))
        gate = [w.called & ~own for w, own in zip(whole, panel.targets)]
        nmae = [np.abs(b.calls.lfc - a.calls.lfc)[g].sum()/np.abs(w.lfc[g]).sum() if g.sum() >= 10 else np.nan
                for a, b, w, g in zip(first, second, whole, gate)]
        six['lfc_nmae'] = np.nanmean(nmae)
        splits.append(six)
    assert list(found) == pytest.approx(list(pd.DataFrame(splits).mean()), rel=1e-12)
    single = [x[:1] for x in panel.true]
    with pytest.raises(InputError, match='one cell'): replicate_scores(single, panel.control, panel.targets)

def six(*values): return pd.Series(values, MEASURES)

def test_the_score_is_linear_between_its_ends_and_cut_where_it_is_said_to_be():
    base, replicate = six(.5, .99, .51, .07, .03, 1.), six(.95, .04, .81, .97, .40, .40)
    assert list(challenge_total(base, base, replicate)) == [0]*7
    assert list(challenge_total(replicate, base, replicate)) == pytest.approx([1]*7)
    for share in (.3, .8):
        value = (1 - share)*base + share*replicate
        assert list(challenge_total(value, base, replicate)) == pytest.approx([share]*7)
    copy = challenge_total(six(1., -.1, 1., 1., 1., 0.), base, replicate)
    assert 2.5 < copy['de_jaccard'] < 2.9 and copy['expr_mse_capped'] == 1 and copy['lfc_nmae'] == pytest.approx(1/.6)
    bad = challenge_total(six(.1, 5., .2, 0., 0., 99.), base, replicate)
    assert bad['pds_cosine'] < 0 and bad['expr_mse_capped'] == 0 and bad['lfc_nmae'] == -6
    assert bad['total'] == pytest.approx(bad.drop('total').mean())

def test_a_missing_value_is_the_worst_and_a_scale_without_ends_gives_no_score():
    base, replicate = six(.5, .99, .51, .07, .03, 1.), six(.95, .04, .81, .97, .40, .40)
    missing = challenge_total(six(*[np.nan]*6), base, replicate)
    assert list(missing) == pytest.approx(list(challenge_total(six(0, 1e9, 0, 0, 0, 1e9), base, replicate)))
    turned = challenge_total(base, replicate, base)
    assert turned.isna().all()
    replicate['de_jaccard'] = np.nan
    scores = challenge_total(base, base, replicate)
    assert np.isnan(scores['total']) and scores.isna().sum() == 2

def test_a_panel_of_one_has_no_rank_and_one_without_effect_no_error():
    panel = Panel(0, n=2)
    alone = panel.scores(panel.pred[:1], panel.true[:1], targets=panel.targets[:1])
    assert alone['pds_cosine'].isna().all()
    none = panel.scores([panel.control]*2, [panel.control]*2)
    assert np.isnan(combined(none)['expr_mse_capped']) and none['direction_fidelity'].isna().all()
    assert (none['de_jaccard'] == 1).all()

@pytest.mark.parametrize('change, says', [
    (dict(pred=[np.ones((3, 40))]), '1 predictions, 5 truths'),
    (dict(pred=[np.ones((3, 39))]*5), '39 genes of cells, 40 of controls'),
    (dict(pred=[-np.ones((3, 40))]*5), 'negative or not finite'),
    (dict(true=[np.full((3, 40), np.inf)]*5), 'negative or not finite'),
    (dict(pred=[np.ones((0, 40))]*5), 'no cell'),
    (dict(control=np.zeros((3, 40))), 'no gene has more than'),
    (dict(targets=np.ones(40, bool)), 'targets have the shape'),
    (dict(targets=np.ones((5, 40), bool)), 'every gene is a target'),
])
def test_what_does_not_fit_is_refused_with_a_remedy(change, says):
    with pytest.raises(InputError, match=says): Panel(0).scores(**change)
