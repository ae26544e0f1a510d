"""Odd predictions, and odd numbers of cells: what a score is then, what is said of it, and what must not move it.

Own controls are what a model predicts for control cells. Each expected value is computed here by other means."""
import resource
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from dataclasses import replace
from types import SimpleNamespace
from hypothesis import given, settings, strategies as st
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist
from perturbench.bench.runs import set_threads
from perturbench.cli import main
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.metrics.accuracy import METRICS, OWN
from perturbench.predict import Prediction
from perturbench.scoring import collect as collecting, profiles
from perturbench.scoring.asked import file_task
from perturbench.scoring.cells import MOST, MOST_AXES
from perturbench.scoring.evaluation import Evaluation, evaluate_task
from perturbench.scoring.files import evaluate_files
from perturbench.scoring.measured import HALVES

few = settings(max_examples=6, deadline=None, derandomize=True)
N_GENES = 30
TRUTH = dict(control=120, g1=24, g2=30, g3=17, g4=8) | {'g1+g2': 20}
TRAINING = dict(control=30, g1=10, g5=12)
OWN_EFFECTS = [m for m in METRICS if METRICS[m].space in OWN]
OWN_TESTS = [m for m in METRICS if METRICS[m].space == 'de_own']
OF_CONTROLS = [m for m in METRICS if METRICS[m].kind == 'control']
OF_OWN = [*OWN_EFFECTS, *OWN_TESTS, *OF_CONTROLS]
DISTANCES = [m for m in METRICS if METRICS[m].kind == 'distribution']
TESTS = [m for m in METRICS if METRICS[m].space == 'de' and METRICS[m].kind == 'de']
ALL = [m for m in METRICS if METRICS[m].kind != 'uncertainty'] # No prediction here states a variance
SETS = [f'set {k}' for k in range(3)], sparse.csr_array(np.kron(np.eye(3), np.full((1, 10), 1/10)))

# Screens, tasks and predictions

def cells_of(r, name, n, n_genes=N_GENES):
    "Log-normalised cells of a perturbation; its parts move genes up and down, and cells differ in depth."
    parts = [] if name == 'control' else [int(part[1:]) for part in name.split('+')]
    effect = sum((.5*np.sin(np.arange(n_genes)*part + part) for part in parts), np.zeros(n_genes))
    return np.log1p(1.7*r.poisson(2*np.exp(effect)*r.gamma(4, .25, (n, 1)))).astype(np.float32)

def screen(numbers, seed=0, lines='xy', n_genes=N_GENES):
    "Cells of each perturbation in each line, as many as `numbers` says."
    r = np.random.default_rng(seed)
    names = [(line, p) for line in lines for p, n in numbers.items() for _ in range(n)]
    obs = pd.DataFrame(names, columns=['line', 'gene'])
    obs.index = [f'{seed} {i}' for i in range(len(obs))]
    X = np.concatenate([cells_of(r, p, n, n_genes) for _ in lines for p, n in numbers.items()])
    return ad.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(n_genes)]))

def task_of(truth, train=None):
    "A task that tests all cells of `truth`."
    cells = truth if train is None else ad.concat([truth, train])
    return file_task('odd', Screen(cells, 'gene', 'line'), truth.n_obs, 'default')

def controls_of(task, state, half=0):
    "Control cells of a state: those that are given to models, or (1) those that are held out."
    cells = task.controls('test', half=half)
    return task.store.dense(cells.rows[task.design.state[cells.codes] == state]).numpy()

def control_code(task, state): return int(np.flatnonzero(task.design.is_control & (task.design.state == state))[0])

def stream(task, cells, own=None):
    "Predictions of `cells` (code -> cells), state by state, after `own` controls (state -> cells)."
    tested = task.test_conditions()
    for state in np.unique(task.design.state[tested]):
        if own is not None and state in own: yield Prediction(control_code(task, state), own[state])
        for code in tested[task.design.state[tested] == state]: yield Prediction(int(code), cells[code])

def plain(task, numbers, seed=1):
    "Ordinary predicted cells of each condition: between controls and the truth."
    r, names = np.random.default_rng(seed), task.conditions.perturbation.astype(str)
    numbers = dict(zip(task.test_conditions(), numbers))
    return {c: cells_of(r, names[c], n, len(task.genes)) + np.float32(.2)*r.random((n, 1), np.float32)
            for c, n in numbers.items()}

@pytest.fixture(scope='module')
def case():
    "A task, what scores it, predictions of unequal numbers of cells, given controls, and the scores of all of that."
    set_threads(1)
    task = task_of(screen(TRUTH), screen(TRAINING, seed=9))
    evaluation, pred = Evaluation(task, gene_sets=SETS), plain(task, [40, 25, 60, 33, 21, 50, 28, 45, 37, 30])
    own = {state: controls_of(task, state) for state in (0, 1)}
    scores = by_condition(evaluation.score(stream(task, pred, own)))
    return SimpleNamespace(task=task, evaluation=evaluation, pred=pred, own=own, scores=scores)

KEYS, RESULT = ['line', 'perturbation', 'metric'], ['value', 'value_half', 'status', 'n_true', 'n_pred', 'n_candidates']
def by_condition(table): return table.set_index(KEYS)[RESULT].sort_index()
def only(table, names): return table[table.index.get_level_values('metric').isin(names)]
def without(table, names): return table[~table.index.get_level_values('metric').isin(names)]
def value(table, metric): return table.value.xs(metric, level='metric').to_numpy()
def status(table, names): return set(only(table, names).status)
def same(a, b): pd.testing.assert_frame_equal(a, b, check_exact=True)
def rms(x): return np.sqrt(np.mean(np.square(np.asarray(x, float))))

def scored(case, cells=None, own=None, evaluation=None):
    "The scores of some predictions of the task."
    cells = case.pred if cells is None else cells
    return by_condition((evaluation or case.evaluation).score(stream(case.task, cells, own)))

def conditions(case):
    "The code and measured cells of each condition, in the order of `by_condition`."
    task, tested = case.task, case.task.test_conditions()
    names = task.conditions.loc[tested, ['line', 'perturbation']].astype(str)
    order = names.reset_index().sort_values(['line', 'perturbation'])['index']
    return [(code, task.store.dense(task.cells('test').of(code)).numpy().astype(float)) for code in order]

def test_the_case_has_a_score_of_every_metric(case):
    assert set(case.scores.index.get_level_values('metric')) == set(ALL)
    assert case.scores.value.groupby('metric').count().min() > 0

# Distances against scipy

def by_scipy(pred, true):
    "Unbiased energy distance, that of a replicate, and dispersion, from all pairs of cells."
    between, within_pred, within_true = cdist(pred, true).mean(), pdist(pred).mean(), pdist(true).mean()
    unbiased, n_half = 2*between - within_pred - within_true, len(true)//2
    return dict(energy_unbiased_genes=unbiased, energy_genes=unbiased + within_pred/n_half,
                dispersion_genes=within_pred/within_true)

@few
@given(st.lists(st.tuples(st.integers(2, 30), st.integers(2, 40)), min_size=1, max_size=4), st.integers(0, 99))
def test_unequal_numbers_of_cells_are_all_compared_up_to_eight_times_a_half(sizes, seed):
    "With no more genes than axes, a space of axes is that of genes."
    measured = {f'g{k + 1}': n for k, (n, _) in enumerate(sizes)}
    task = task_of(screen(dict(control=60) | measured, seed, lines='x'))
    cells = plain(task, [min(n_pred, 8*(n//2)) for n, n_pred in sizes], seed)
    names = [m for m in DISTANCES if m.startswith(('energy', 'dispersion'))]
    table = by_condition(evaluate_task(task, stream(task, cells), names))
    for code, n, k in zip(task.test_conditions(), measured.values(), range(len(sizes))):
        true = task.store.dense(task.cells('test').of(code)).numpy()
        for m, expected in by_scipy(cells[code], true).items():
            for name in (m, m.replace('genes', 'pca')):
                found = table.loc[('x', f'g{k + 1}', name)]
                assert found.value == pytest.approx(expected, abs=1e-4), name
                assert (found.n_true, found.n_pred, found.status) == (n, len(cells[code]), 'ok')
                assert np.isfinite(found.value_half) == (n >= 4)  # a half of two or three cells has no pair of each

def test_two_predicted_cells_are_enough_for_a_distance(case):
    two = {c: x[:2] for c, x in case.pred.items()}
    table = scored(case, two)
    for k, (code, true) in enumerate(conditions(case)):
        for m, expected in by_scipy(two[code], true).items():
            assert value(table, m)[k] == pytest.approx(expected, rel=1e-5), m
    assert table.value_half[only(table, DISTANCES).index].notna().all()
    assert (table.n_pred == 2).all()

def test_one_predicted_cell_has_a_profile_and_no_distribution(case):
    one = {c: x[:1] for c, x in case.pred.items()}
    table = scored(case, one)
    lone = [m for m in DISTANCES if m != 'mmd_published']
    assert only(table, lone).value.isna().all() and status(table, lone) == {'few_cells'}
    assert only(table, TESTS).value.isna().all() and status(table, TESTS) == {'few_cells'}
    assert only(table, ['mae_variance']).value.isna().all() and status(table, ['mae_variance']) == {'few_cells'}
    fold_changes = [m for m in METRICS if METRICS[m].space == 'foldchange']
    assert only(table, fold_changes).value.isna().all() and status(table, fold_changes) == {'little_variance'}
    for k, (code, true) in enumerate(conditions(case)):
        assert value(table, 'rmse_average')[k] == pytest.approx(rms(one[code][0] - true.mean(0)), rel=1e-6)
        assert value(table, 'mae_zeros')[k] == pytest.approx(np.abs((one[code][0] == 0) - (true == 0).mean(0)).mean())

def test_cells_without_any_variance(case):
    "All cells of a condition are the mean of ordinary ones: means are as they were, and cells are at 2B - W."
    flat = {c: np.tile(x.mean(0, dtype=float).astype(np.float32), (12, 1)) for c, x in case.pred.items()}
    table = scored(case, flat)
    for k, (code, true) in enumerate(conditions(case)):
        expected = 2*cdist(flat[code][:1], true).mean() - pdist(true).mean()
        for m in ('energy_genes', 'energy_unbiased_genes', 'energy_pca', 'energy_unbiased_pca'):
            assert value(table, m)[k] == pytest.approx(expected, rel=1e-5), m
        assert value(table, 'mae_variance')[k] == pytest.approx(true.var(0, ddof=1).mean(), abs=1e-6)
    apart = ['dispersion_genes', 'dispersion_pca']
    assert (only(table, apart).value == 0).all()
    distances = [*apart, *(m for m in DISTANCES if m.startswith(('energy', 'mmd_rbf')))]
    assert status(table, distances) == {'little_variance'} and only(table, distances).value.notna().all()
    assert only(table, ['cell_cov']).value.isna().all()
    assert only(table, TESTS).value.isna().all() and status(table, TESTS) == {'little_variance'}
    for m in ('rmse_average', 'cosine_delta', 'pearson_centred', 'cosine_rank_logfc'):
        assert value(table, m) == pytest.approx(value(case.scores, m), abs=1e-5), m

def test_one_constant_for_all_conditions_of_a_state_ranks_in_the_middle(case):
    flat = {c: np.tile(case.own[case.task.design.state[c]].mean(0) + np.float32(.3), (5, 1)) for c in case.pred}
    table = scored(case, flat)
    for line in 'xy': assert value(table.loc[[line]], 'rmse_rank_average').mean() == pytest.approx(.5)

def test_a_prediction_that_is_the_truth(case):
    "The copy pairs cells with themselves: the unbiased distance is -2 W/n, that of a replicate 0 for an even number."
    table = scored(case, {code: true.astype(np.float32) for code, true in conditions(case)})
    for k, (code, true) in enumerate(conditions(case)):
        n, within = len(true), pdist(true).mean()
        for space in ('genes', 'pca'):
            assert value(table, f'energy_unbiased_{space}')[k] == pytest.approx(-2*within/n, rel=1e-4)
            assert value(table, f'energy_{space}')[k] == pytest.approx(within*(1/(n//2) - 2/n), abs=1e-4)
    for m in ('rmse_average', 'mae_variance', 'mae_zeros', 'mmd_published', 'rmse_rank_average', 'rmse_centred'):
        assert value(table, m) == pytest.approx(0, abs=1e-5), m
    for m in ('dispersion_genes', 'dispersion_pca', 'cell_cov', 'r2_average'):
        assert value(table, m) == pytest.approx(1, abs=1e-5), m

def test_cells_that_are_far_off_are_at_about_twice_the_distance(case):
    "A shift of 40 in each of 30 genes: the energy distance tends to twice its length."
    table = scored(case, {c: x + np.float32(40) for c, x in case.pred.items()})
    length = 40*np.sqrt(N_GENES)
    for m in ('energy_genes', 'energy_unbiased_genes', 'energy_pca'):
        assert value(table, m) == pytest.approx(2*length, rel=.05), m
    assert value(table, 'rmse_average') == pytest.approx(40, rel=.02) and value(table, 'mae_zeros').max() <= 1
    assert value(table, 'dispersion_genes') == pytest.approx(value(case.scores, 'dispersion_genes'), rel=1e-5)
    assert np.isfinite(table.value[table.status == 'ok']).all() and not np.isinf(table.value).any()

# A model's own controls

def test_without_own_controls_nothing_else_is_missing(case):
    table = scored(case)
    assert only(table, OF_OWN).value.isna().all() and only(table, OF_OWN).value_half.isna().all()
    assert status(table, OF_OWN) == {'no_own_control'}
    same(without(table, OF_OWN), without(case.scores, OF_OWN))

def test_own_controls_of_one_state_only(case):
    table = scored(case, own={1: case.own[1]})
    assert set(only(table, OF_OWN).loc['x'].status) == {'no_own_control'}
    same(table.loc[['y']], case.scores.loc[['y']])

def test_the_given_controls_as_own_ones(case):
    "Effects from them are those from given controls; both halves are as far from each other as they are."
    for m in [*OWN_EFFECTS, *OWN_TESTS]:
        own, plain = only(case.scores, [m]), only(case.scores, [m.replace('_own', '')])
        np.testing.assert_allclose(own.value, plain.value, atol=1e-6, err_msg=m)
        np.testing.assert_allclose(own.value_half, plain.value_half, atol=1e-6, err_msg=m)
        assert own.status.tolist() == plain.status.tolist(), m
    for state, line in enumerate('xy'):
        given, held_out = (controls_of(case.task, state, half).mean(0, dtype=float) for half in (0, 1))
        assert value(case.scores.loc[[line]], 'rmse_control') == pytest.approx(rms(given - held_out), rel=1e-5)

@pytest.mark.parametrize('times', [2, 5])
def test_own_controls_of_another_number_with_the_same_mean(case, times):
    table = scored(case, own={state: np.tile(x, (times, 1)) for state, x in case.own.items()})
    for m in [*OWN_EFFECTS, 'rmse_control']:
        assert value(table, m) == pytest.approx(value(case.scores, m), abs=1e-6, nan_ok=True), m
    assert status(table, OWN_EFFECTS) == status(case.scores, OWN_EFFECTS)
    same(without(table, OF_OWN), without(case.scores, OF_OWN))

def is_off(own, given, held_out):
    "Whether held-out cells are nearer to the given mean than to the own one, by a t test of scipy."
    own, given = own.mean(0, dtype=float), given.mean(0, dtype=float)
    nearer = np.square(own - held_out).sum(1) - np.square(given - held_out).sum(1)
    return stats.ttest_1samp(nearer, 0, alternative='greater').pvalue < .025

@settings(few, max_examples=40)
@given(st.integers(20, 60), st.floats(0, .12), st.integers(0, 999))
def test_own_controls_count_where_a_test_does_not_find_them_farther_off(case, n, shift, seed):
    "Some of the given controls, moved by a shift of each gene."
    r = np.random.default_rng(seed)
    def moved(x): return x[r.permutation(len(x))[:n]] + shift*r.normal(size=N_GENES).astype(np.float32)
    own = {state: moved(x) for state, x in case.own.items()}
    names = ['cosine_delta_own', 'rmse_delta_own', 'rmse_control', 'de_false_positives']
    table = scored(case, own=own, evaluation=Evaluation(case.task, names))
    for state, line in enumerate('xy'):
        held_out, mine = controls_of(case.task, state, 1).astype(float), table.loc[line]
        off = is_off(own[state], case.own[state], held_out)
        effects = mine[mine.index.get_level_values('metric').isin(names[:2])]
        assert set(effects.status) == {'control_off' if off else 'ok'} and effects.value.isna().all() == off
        expected = rms(own[state].mean(0, dtype=float) - held_out.mean(0))
        assert mine.value.xs('rmse_control', level='metric').to_numpy() == pytest.approx(expected, rel=1e-5)
        called = mine.value.xs('de_false_positives', level='metric')
        assert called.nunique() == 1 and 0 <= called.iloc[0] <= 1

def test_constant_own_controls_have_effects_and_no_fold_changes(case):
    "All of them are the mean of the given ones."
    flat = {state: np.tile(x.mean(0, dtype=float).astype(np.float32), (9, 1)) for state, x in case.own.items()}
    table = scored(case, own=flat)
    fold_changes = [m for m in OWN_EFFECTS if METRICS[m].space == 'foldchange_own']
    assert only(table, fold_changes).value.isna().all() and status(table, fold_changes) == {'little_variance'}
    for m in [*(m for m in OWN_EFFECTS if m not in fold_changes), 'rmse_control']:
        assert value(table, m) == pytest.approx(value(case.scores, m), abs=1e-5, nan_ok=True), m
    same(without(table, OF_OWN), without(case.scores, OF_OWN))

def test_own_controls_that_are_far_off_cost_the_effects_from_them_alone(case):
    table = scored(case, own={state: x + np.float32(30) for state, x in case.own.items()})
    assert only(table, OWN_EFFECTS)[['value', 'value_half']].isna().all(axis=None)
    assert status(table, OWN_EFFECTS) == {'control_off'} and (value(table, 'de_false_positives') == 1).all()
    assert value(table, 'rmse_control') == pytest.approx(30, rel=.01)
    same(without(table, OF_OWN), without(case.scores, OF_OWN))

@pytest.mark.parametrize('n', [2, 3])
def test_a_state_with_one_held_out_control(n):
    "True effects are taken against it. Nothing says how sure it is, so own controls are never called off."
    task = task_of(screen(dict(control=n, g1=12, g2=9), lines='x'))
    cells, held_out = plain(task, [20, 20]), controls_of(task, 0, 1).astype(float)
    own = {0: controls_of(task, 0) + np.float32(2)}
    table = by_condition(evaluate_task(task, stream(task, cells, own)))
    assert len(held_out) == 1 and len(own[0]) == n - 1
    for k, code in enumerate(task.test_conditions()):
        true = task.store.dense(task.cells('test').of(code)).numpy().mean(0, dtype=float) - held_out[0]
        for m, control in (('rmse_delta', controls_of(task, 0)), ('rmse_delta_own', own[0])):
            effect = cells[code].mean(0, dtype=float) - control.mean(0, dtype=float)
            assert value(table, m)[k] == pytest.approx(rms(effect - true), rel=1e-5), m
    assert value(table, 'rmse_control') == pytest.approx(rms(own[0].mean(0) - held_out[0]), rel=1e-5)
    assert 'control_off' not in set(table.status) and not np.isinf(table.value).any()
    assert only(table, DISTANCES).value.notna().all() and status(table, DISTANCES) == {'ok'}

# What no score depends on

@pytest.mark.parametrize('m', ALL)
def test_a_metric_alone_is_as_among_all(case, m):
    table = scored(case, own=case.own, evaluation=Evaluation(case.task, m, SETS))
    same(table, only(case.scores, [m]))

@pytest.mark.parametrize('m', DISTANCES)
def test_a_distribution_alone_has_the_same_value_where_cells_are_odd(case, m):
    "Cells in a clump, one cell, two of them, and many."
    def clump(x): return x[:1] + x[:9]*np.float32(.01)
    ways = clump, lambda x: x[:1], lambda x: x[:2], lambda x: np.tile(x, (7, 1))
    cells = {c: ways[k % 4](x) for k, (c, x) in enumerate(case.pred.items())}
    whole = scored(case, cells, evaluation=Evaluation(case.task, DISTANCES))
    alone = scored(case, cells, evaluation=Evaluation(case.task, m))
    same(alone[['value', 'value_half']], only(whole, [m])[['value', 'value_half']])

@few
@given(st.randoms(use_true_random=False))
def test_neither_the_order_of_cells_nor_that_of_conditions_and_states_matters(case, random):
    names = [*DISTANCES, *OF_CONTROLS, 'rmse_average', 'mae_variance', 'cosine_delta_own', 'cosine_foldchange_own',
             'de_auprc', 'de_count_error_own', 'rmse_rank_average', 'wmse_average']
    blocks = {}
    for p in stream(case.task, case.pred, case.own):
        rows = random.sample(range(len(p.cells)), len(p.cells))
        blocks.setdefault(int(case.task.design.state[p.condition]), []).append(replace(p, cells=p.cells[rows]))
    states = random.sample(list(blocks), len(blocks))
    shuffled = [p for s in states for p in (blocks[s][0], *random.sample(blocks[s][1:], len(blocks[s]) - 1))]
    same(by_condition(evaluate_task(case.task, shuffled, names)), only(case.scores, names))

@pytest.mark.parametrize('small', [profiles.SMALL, 0])
def test_one_thread_and_three_give_the_same_bits(case, monkeypatch, small):
    "Also where the rounds of a table are shared out, as those of a large one are."
    monkeypatch.setattr(profiles, 'SMALL', small)
    cells = dict(case.pred)
    ways = (lambda x: x[:1], lambda x: x[:2], lambda x: np.tile(x[:1], (7, 1)), lambda x: np.tile(x, (9, 1)))
    for c, way in zip(cells, ways): cells[c] = way(cells[c])
    n, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(evaluate_task(case.task, stream(case.task, cells, case.own)))
            assert torch.get_num_threads() == threads
    finally: torch.set_num_threads(n)
    same(*found)

# Files

FILE_KEYS = dict(perturbation_key='gene', covariate_keys='line')

def predicted_file(numbers, seed=3, change=lambda x: x):
    "A file of predicted cells."
    a = screen(numbers, seed)
    a.X = sparse.csr_matrix(change(a.X.toarray()*np.float32(1.07)))
    return a

def of_model(scores, model):
    "The scores of one model."
    return by_condition(scores[scores.model == model])

PERTURBED = {name: n for name, n in TRUTH.items() if name != 'control'}

@pytest.fixture(scope='module')
def files(unreferenced):
    "A truth, ordinary predictions, and their scores when they are alone."
    set_threads(1)
    truth, mine = screen(TRUTH), predicted_file({name: n + 5 for name, n in PERTURBED.items()})
    alone = evaluate_files(truth, {'mine': mine}, **FILE_KEYS)
    return SimpleNamespace(truth=truth, mine=mine, alone=of_model(alone.scores, 'mine'),
                           baseline=of_model(alone.scores, 'control_mean'))

def test_scores_do_not_depend_on_which_other_models_are_in_the_command(files):
    "Beside one with a constant, one with single cells, and one that is refused, in either order."
    flat = predicted_file(PERTURBED, 4, lambda x: np.tile(x[:1], (len(x), 1)))
    single = predicted_file(dict.fromkeys(PERTURBED, 1), 5)
    stolen = files.truth[files.truth.obs.gene != 'control'].copy()
    stolen.obs_names = [f'stolen {i}' for i in range(stolen.n_obs)]
    others = dict(flat=flat, single=single, stolen=stolen)
    for sources in ({'mine': files.mine, **others}, {**others, 'mine': files.mine}):
        found = evaluate_files(files.truth, sources, **FILE_KEYS)
        same(of_model(found.scores, 'mine'), files.alone)
        same(of_model(found.scores, 'control_mean'), files.baseline)
        assert list(found.refused) == ['stolen'] and of_model(found.scores, 'stolen').value.isna().all()
        assert status(of_model(found.scores, 'flat'), ['energy_genes']) == {'little_variance'}
        assert status(of_model(found.scores, 'single'), ['energy_genes']) == {'few_cells'}

def test_a_file_with_rows_in_another_order_has_the_same_scores_to_the_bit(files):
    orders = {f'order {seed}': np.random.default_rng(seed).permutation(files.mine.n_obs) for seed in range(3)}
    found = evaluate_files(files.truth, {k: files.mine[rows].copy() for k, rows in orders.items()}, **FILE_KEYS)
    for k in orders: same(of_model(found.scores, k), files.alone)

def test_a_file_with_conditions_in_another_order_has_the_same_scores_to_the_bit(files):
    "Blocks of a condition stay together; names are categories in another order."
    order = files.mine.obs.reset_index().sort_values(['gene', 'line'], ascending=False, kind='stable').index
    other = files.mine[order].copy()
    other.obs['gene'] = pd.Categorical(other.obs.gene, categories=[*reversed(list(PERTURBED))])
    same(of_model(evaluate_files(files.truth, {'mine': other}, **FILE_KEYS).scores, 'mine'), files.alone)

def test_the_command_gives_the_scores_of_the_function(files, unreferenced, undrawn, tmp_path, monkeypatch, capsys):
    "Two models in one command, with rows shuffled and controls that are far off, against one model alone."
    for name, f in unreferenced.items(): monkeypatch.setattr(f'perturbench.scoring.files.{name}', f)
    monkeypatch.chdir(tmp_path)
    wild = ad.concat([files.mine, predicted_file(dict(control=7), 6, lambda x: x + np.float32(2))])
    wild.obs_names_make_unique()
    rows = np.random.default_rng(0).permutation(wild.n_obs)
    files.truth.copy().write_h5ad('truth.h5ad')
    wild[rows].copy().write_h5ad('mine.h5ad')
    predicted_file(dict.fromkeys(PERTURBED, 2), 5).write_h5ad('two.h5ad')
    keys = ['--perturbation-key', 'gene', '--covariate-keys', 'line']
    assert main(['evaluate', 'truth.h5ad', 'two.h5ad', 'mine.h5ad', *keys, '-o', 'out']) == 0
    assert 'mine: 14 control cells are taken for what the model predicts' in capsys.readouterr().out
    found = pd.read_parquet('out/scores.parquet')
    same(without(of_model(found, 'mine'), OF_OWN), without(files.alone, OF_OWN))
    assert status(of_model(found, 'mine'), OWN_EFFECTS) == {'control_off'}
    two = of_model(found, 'two')
    assert (two.n_pred == 2).all() and two.value.xs('energy_genes', level='metric').notna().all()

# Many genes, many cells

def test_twenty_thousand_genes_in_few_cells_need_little_memory():
    "A matrix of genes by genes would take 1.6 GB in float32."
    r, numbers = np.random.default_rng(0), dict(control=60, g1=20, g2=15, g3=12)
    n_genes, n_cells = 20_000, sum(numbers.values())
    dense = np.where(r.random((n_cells, n_genes)) < .05, np.log1p(1.7*r.integers(1, 6, (n_cells, n_genes))), 0)
    obs = pd.DataFrame(dict(line='x', gene=np.repeat(list(numbers), list(numbers.values()))))
    truth = ad.AnnData(sparse.csr_matrix(dense.astype(np.float32)), obs=obs.set_index('c' + obs.index.astype(str)),
                       var=pd.DataFrame(index=[f'g{i}' for i in range(n_genes)]))
    task, before = task_of(truth), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    controls = controls_of(task, 0)
    cells = {c: controls*np.float32(1 + .05*k) for k, c in enumerate(task.test_conditions())}
    table = by_condition(evaluate_task(task, stream(task, cells, {0: controls})))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**20 < .6  # GB
    assert only(table, DISTANCES).value.notna().all() and not np.isinf(table.value).any()
    true = task.store.dense(task.cells('test').of(task.test_conditions()[0])).numpy()
    assert value(table, 'energy_genes')[0] == pytest.approx(by_scipy(controls, true)['energy_genes'], rel=1e-4)

@pytest.fixture(scope='module')
def crowd():
    "A condition with 30,000 measured cells beside one with 20."
    set_threads(1)
    return task_of(screen(dict(control=60, g1=30_000, g2=20), lines='x', n_genes=6))

def test_of_many_measured_cells_a_bounded_number_is_compared(crowd):
    first, again = (Evaluation(crowd, DISTANCES).cells for _ in range(2))
    for space in ('genes', 'pca', 'pca_truth'):
        most = MOST.get(space, MOST_AXES)
        for i, n in ((0, most), (1, 10)):
            halves = first.compared(i, space)
            assert list(map(len, halves)) == [n, n] and first.n_half(i, space) == n
            assert not np.intersect1d(*halves).size
            for rows, half, other in zip(halves, HALVES, again.compared(i, space)):
                assert np.isin(rows, first.measured.cells(i, half)).all()
                np.testing.assert_array_equal(rows, other)  # drawn by the name of the condition
    assert (MOST['genes'], MOST_AXES) == (256, 512)

def sizes_of_pairs(monkeypatch):
    "The list to which each set of points is added whose distances are taken."
    seen, points_of = [], collecting.points_of
    def noted(cells, *args):
        seen.append(tuple(cells.shape))
        return points_of(cells, *args)
    monkeypatch.setattr(collecting, 'points_of', noted)
    return seen

def test_of_many_predicted_cells_a_bounded_number_is_compared(monkeypatch):
    "For 40 measured cells 8 times 20, which are the first of 256 that are drawn; for 600 the bound of the space."
    task = task_of(screen(dict(control=60, g1=40, g2=600), lines='x', n_genes=6))
    cells, seen = plain(task, [30_000, 30_000]), sizes_of_pairs(monkeypatch)
    table = by_condition(evaluate_task(task, stream(task, cells), ['energy_genes', 'energy_pca', 'rmse_average']))
    assert sorted(n for n, _ in seen) == [256, 256, 256, MOST_AXES]
    assert (table.n_pred == 30_000).all() and set(table.status) == {'ok'}
    for k, code in enumerate(task.test_conditions()):  # all cells make up the profile
        true = task.store.dense(task.cells('test').of(code)).numpy().mean(0, dtype=float)
        assert value(table, 'rmse_average')[k] == pytest.approx(rms(cells[code].mean(0, dtype=float) - true), rel=1e-5)

def test_the_right_cells_are_at_the_distance_of_a_replicate_of_as_many_as_are_compared(crowd, monkeypatch):
    "A sample of the right cells is at W/n* of the cells that are compared, and at 0 without bias."
    task, seen = crowd, sizes_of_pairs(monkeypatch)
    right = cells_of(np.random.default_rng(7), 'g1', 3000, 6)
    table = evaluate_task(task, [Prediction(int(c), right) for c in task.test_conditions()])
    found = table[table.perturbation == 'g1'].set_index('metric').value
    assert max(n for n, _ in seen) == MOST_AXES
    within = pdist(task.store.dense(task.cells('test').of(task.test_conditions()[0])[:2000]).numpy()).mean()
    for space, most in (('genes', 256), ('pca', 512)):
        assert abs(found[f'energy_unbiased_{space}']) < .02*within
        assert found[f'energy_{space}'] - found[f'energy_unbiased_{space}'] == pytest.approx(within/most, rel=.1)
        assert found[f'dispersion_{space}'] == pytest.approx(1, abs=.1)

def test_rows_in_another_order_where_different_cells_have_the_same_wave():
    "cos(0) and cos(710) are both 1 in float32."
    task = task_of(screen(dict(control=60, g1=12), lines='x', n_genes=711))
    code, cells = int(task.test_conditions()[0]), np.zeros((100, 711), np.float32)
    cells[:50, 0] = cells[50:, 710] = 2
    tables = [evaluate_task(task, [Prediction(code, x)], ['energy_genes', 'mmd_published', 'cell_cov'])
              for x in (cells, cells[::-1].copy())]
    pd.testing.assert_frame_equal(*tables, check_exact=True)

@pytest.mark.parametrize('m', ['mmd_rbf_pca', 'mmd_rbf_genes', 'cell_cov'])
def test_what_is_said_of_a_clump_does_not_depend_on_other_metrics(m):
    task = task_of(screen(dict(control=60, g1=12), lines='x'))
    x = cells_of(np.random.default_rng(0), 'g1', 9)
    clump = [Prediction(int(task.test_conditions()[0]), x[:1] + x*np.float32(.01))]
    found = lambda names: by_condition(evaluate_task(task, clump, names))
    alone, beside = found([m]), found([m, 'energy_genes', 'energy_pca'])
    same(alone, only(beside, [m]))

@pytest.mark.parametrize('m', ['cosine_interaction', 'rmse_rank_average_offtarget'])
def test_a_metric_that_no_condition_has(m):
    a = screen(dict(control=60, g1=12), lines='x')
    a.obs['gene'] = a.obs.gene.replace('g1', 'drug')
    task = task_of(a)
    cells = {int(c): cells_of(np.random.default_rng(0), 'g1', 9) for c in task.test_conditions()}
    assert not len(evaluate_task(task, stream(task, cells), m))

def test_own_controls_that_vary_have_fold_changes_beside_one_held_out_control():
    task = task_of(screen(dict(control=3, g1=12), lines='x'))
    table = by_condition(evaluate_task(task, stream(task, plain(task, [20]), {0: controls_of(task, 0)}),
                                       ['rmse_foldchange', 'rmse_foldchange_own']))
    assert np.isfinite(value(table, 'rmse_foldchange')) and np.isfinite(value(table, 'rmse_foldchange_own'))

@pytest.mark.parametrize('order, said', [((0, 0, 1), 'is predicted twice'), ((1, 0), 'after conditions of its state')])
def test_own_controls_come_once_and_before_conditions(order, said):
    task = task_of(screen(TRUTH, lines='x'))
    cells = plain(task, [10]*len(task.test_conditions()))
    code = int(task.test_conditions()[0])
    both = [Prediction(control_code(task, 0), controls_of(task, 0)), Prediction(code, cells[code])]
    with pytest.raises(InputError, match=said):
        Evaluation(task, ['rmse_control']).collect([both[k] for k in order], partial=True)
