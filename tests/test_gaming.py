"Right cells of a simulated screen, changed without adding knowledge: what each metric may see, and what it must not."
import anndata as ad, numpy as np, pandas as pd, pytest
from types import SimpleNamespace
from scipy import sparse
from perturbench.bench.runs import set_threads
from perturbench.core import rng
from perturbench.data.simulate import PRESETS
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.files import evaluate_files
from perturbench.metrics.accuracy import METRICS, OWN as OWN_SPACES
from perturbench.predict import Prediction
from perturbench.tasks import open_task

SPLIT = dict(kind='transfer', fraction=.3, seed=42)
LINES = dict(name='two-lines', screen='sim-transfer', where={'cell_type': ['line1', 'line2']}, split=SPLIT)
N = 60 # Predicted cells
BLIND = ('constant', 'noisy', 'calm', 'shuffled', 'twice') # Leave the mean of each gene as it is
OF_OWN = [m for m in METRICS if METRICS[m].space in OWN_SPACES] # Effects from the model's own controls
ALL = [m for m in METRICS if METRICS[m].kind != 'uncertainty'] # No prediction here states a variance
INTERACTION = [m for m in ALL if METRICS[m].space == 'interaction' and m not in OF_OWN]
OTHERS = [m for m in ALL if METRICS[m].space != 'interaction' and m not in OF_OWN]
def named(**about): return [m for m in OTHERS if all(getattr(METRICS[m], k) in v for k, v in about.items())]
RANKS, CELLS, TESTS, CONTROL = (named(kind=(k,), judged=(True,)) for k in ('rank', 'distribution', 'de', 'control'))
UNJUDGED = named(judged=(False,))
OWN = [m for m in TESTS if m.endswith('_own')]
# See nothing but the mean of predicted cells
MEANS = named(kind=('accuracy', 'rank'), space=('average', 'delta', 'logfc', 'centred', 'sets'))
# Errors and r2
ERRORS = [m for m in named(kind=('accuracy',)) if METRICS[m].limits[1] == np.inf or METRICS[m].limits[0] == -np.inf]
ERRORS = [m for m in ERRORS if METRICS[m].space != 'variance']
UNBIASED = [m for m in CELLS if m != 'mmd_published']
REPLICATE = [m for m in CELLS if 'n_half' in METRICS[m].needs] # On the scale of a replicate
ANGLES = {f'{k}_{v}' for k in ('cosine', 'pearson', 'spearman') for v in ('delta', 'sets')}
SCALELESS = [m for m in OTHERS if m.startswith('discrimination_cosine_delta') or m in ANGLES]

def opened(spec, preset, folder, metrics):
    "A task that is opened, what scores it, given controls by state, and cells drawn anew for each tested condition."
    task, simulation = open_task(spec, folder), PRESETS[preset]()
    sets = [f'set {i}' for i in range(20)], sparse.csr_array(np.kron(np.eye(20), np.full((1, 20), 1/20)))
    e, given, state = Evaluation(task, metrics, sets), task.given(), task.design.state
    simulated = simulation.screen.conditions[['cell_type', 'perturbation']].astype(str).to_numpy()
    row = {tuple(o): i for i, o in enumerate(simulated)}
    names = task.conditions.loc[e.measured.condition, ['cell_type', 'perturbation']].astype(str).to_numpy()
    code = [row[tuple(o)] for o in names]
    in_state = lambda g: given.rows[state[given.codes] == g]
    controls = {g: task.store.dense(in_state(g)).numpy().astype(float) for g in np.unique(e.measured.state)}
    right = [simulation.truth.cells(c, N, seed=1).toarray().astype(float) for c in code]
    return SimpleNamespace(
        task=task, e=e, simulation=simulation, controls=controls, code=code, names=names, right=right)

def scored(s, cells, own=None, e=None):
    "Value and status of each condition and metric."
    e = e or s.e
    def stream():
        for g, controls in s.controls.items():
            shift = own[g] if isinstance(own, dict) else own
            if own is not None:
                control = np.flatnonzero(s.task.design.is_control & (s.task.design.state == g))[0]
                yield Prediction(int(control), (controls + shift).astype(np.float32))
            for i in np.flatnonzero(e.measured.state == g):
                yield Prediction(int(e.measured.condition[i]), np.asarray(cells[i], np.float32))
    table = e.score(stream())
    wide = lambda k: table.pivot(index=['cell_type', 'perturbation'], columns='metric', values=k)
    return SimpleNamespace(value=wide('value'), status=wide('status'))

def changes(s):
    "Changed predictions, by name."
    mean, start = [c.mean(0) for c in s.right], [s.controls[g].mean(0) for g in s.e.measured.state]
    def scaled(k): return [c + (k - 1)*(m - b) for c, m, b in zip(s.right, mean, start)]
    def following(i):
        at = np.flatnonzero(s.e.measured.state == s.e.measured.state[i])
        return at[(at.searchsorted(i) + 1) % len(at)]
    def noise(i):
        x = .5*rng('gaming', i).normal(size=s.right[i].shape)
        return x - x.mean(0)
    n, targets = range(len(mean)), s.e.measured.targets
    centre = {g: np.mean([mean[i] for i in np.flatnonzero(s.e.measured.state == g)], axis=0) for g in s.controls}
    moved = s.right if targets is None else [
        s.controls[g] + t*(m - b) for g, t, m, b in zip(s.e.measured.state, targets, mean, start)]
    return {
        'tripled': scaled(3),
        'third': scaled(.3),
        'flipped': scaled(-1),
        'permuted': [s.right[following(i)] for i in n],
        'targets': moved,
        'profile': [np.tile(centre[g], (N, 1)) for g in s.e.measured.state],
        'constant': [np.tile(m, (N, 1)) for m in mean],
        'noisy': [c + noise(i) for i, c in enumerate(s.right)],
        'calm': [m + .5*(c - m) for c, m in zip(s.right, mean)],
        'shuffled': [rng('gaming', i).permuted(c, axis=0) for i, c in enumerate(s.right)],
        'twice': [np.concatenate([c, c]) for c in s.right]}

@pytest.fixture(scope='module')
def case(tmp_path_factory):
    set_threads(1)
    s = opened(LINES, 'sim-transfer', tmp_path_factory.mktemp('gaming'), OTHERS + OF_OWN)
    s.scores = {
        'right': scored(s, s.right, 0),
        **{k: scored(s, cells) for k, cells in changes(s).items()},
        'own moved': scored(s, s.right, 3)}
    return s

@pytest.fixture(scope='module')
def doubles(tmp_path_factory):
    set_threads(1)
    s = opened('sim-combination', 'sim-combination', tmp_path_factory.mktemp('doubles'), INTERACTION)
    s.scores = {'right': scored(s, s.right)} | {k: scored(s, cells) for k, cells in changes(s).items() if k in BLIND}
    return s

def pair(s, change, m): return s.scores['right'].value[m].to_numpy(), s.scores[change].value[m].to_numpy()
def cost(m, x): return x if METRICS[m].better == 'lower' else -x
def worse(s, change, m):
    "By how much the mean over conditions that have both values is worse."
    a, b = pair(s, change, m)
    return np.nanmean(cost(m, b - a))
def unchanged(s, change, m, atol=2e-6):
    a, b = pair(s, change, m)
    np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-4 if m.startswith('spearman') else atol)

def test_every_metric_is_looked_at(case, doubles):
    assert set(case.scores['right'].value) | set(doubles.scores['right'].value) == set(ALL)
    assert case.scores['right'].value.notna().any().all() and doubles.scores['right'].value.notna().all(axis=None)

@pytest.mark.parametrize('m', MEANS)
def test_what_sees_means_sees_nothing_of_cells(case, m):
    "A constant, noise without a mean, less spread, genes shuffled among cells, each cell twice."
    for change in BLIND: unchanged(case, change, m)

@pytest.mark.parametrize('m', INTERACTION)
def test_interactions_see_means_only(doubles, m):
    for change in BLIND: unchanged(doubles, change, m)

@pytest.mark.parametrize('m', CELLS)
def test_a_constant_is_further_from_all_cells(case, m):
    "For each condition, also where the constant is the right mean; no spread less than the right one is better."
    for change in ('constant', 'profile', 'calm'):
        a, b = pair(case, change, m)
        assert (b > a).all()

@pytest.mark.parametrize('m', UNBIASED)
def test_unbiased_distances_see_what_means_do_not(case, m):
    for change in ('noisy', 'shuffled'):
        # less spread costs less there
        assert worse(case, change, m) > (-.01 if m in REPLICATE and change == 'shuffled' else 0)
    a, b = pair(case, 'twice', m)
    assert (b > a).all()

@pytest.mark.parametrize('m', (
    'mae_variance', 'mae_zeros', 'rmse_foldchange', 'mae_foldchange', 'cosine_foldchange', 'pearson_foldchange',
    'r2_foldchange'))
def test_scores_of_single_genes_do_not_see_which_genes_go_together(case, m): unchanged(case, 'shuffled', m)

@pytest.mark.parametrize('m', ('mae_variance', 'mae_zeros'))
def test_what_is_wrong_with_cells_is_said(case, m):
    for change in ('constant', 'profile', 'noisy', 'calm'): assert worse(case, change, m) > .1

@pytest.mark.parametrize('m', [*[m for m in TESTS if m not in OWN], *named(space=('foldchange',))])
def test_cells_without_variance_are_not_tested(case, m):
    for change in ('constant', 'profile'):
        assert case.scores[change].value[m].isna().all() and set(case.scores[change].status[m]) == {'little_variance'}

@pytest.mark.parametrize('m', SCALELESS)
def test_directions_do_not_see_a_factor(case, m):
    for change in ('tripled', 'third'): unchanged(case, change, m)

@pytest.mark.parametrize('m', SCALELESS)
def test_directions_see_a_sign(case, m):
    a, b = pair(case, 'flipped', m)
    np.testing.assert_allclose(b, 1 - a if METRICS[m].kind == 'rank' else -a, atol=1e-5)

@pytest.mark.parametrize('m', [*ERRORS, *CELLS])
def test_three_times_the_effect_is_an_error(case, m): assert worse(case, 'tripled', m) > 0

@pytest.mark.parametrize('m', [m for m in ERRORS if METRICS[m].space in ('average', 'centred')])
def test_errors_that_need_no_controls_see_too_small_an_effect(case, m): assert worse(case, 'third', m) > 0

@pytest.mark.parametrize('m', RANKS)
def test_one_profile_for_all_ranks_in_the_middle(case, m):
    for g in case.scores['profile'].value[m].groupby('cell_type', observed=True):
        assert g[1].mean() == pytest.approx(1 if m == 'rank_strict' else .5, abs=1e-9)

@pytest.mark.parametrize('m', [m for m in RANKS if 'offtarget' in METRICS[m].needs])
def test_targets_alone_rank_in_the_middle_without_targets(case, m):
    assert case.scores['targets'].value[m].mean() == pytest.approx(.5, abs=1e-9)

SPACES = ('average', 'delta', 'logfc', 'centred', 'sets', 'foldchange')
@pytest.mark.parametrize('m', [*RANKS, *ERRORS, *named(kind=('accuracy',), better=('higher',), space=SPACES)])
def test_permuted_names_are_worse(case, m): assert worse(case, 'permuted', m) > 0

@pytest.mark.parametrize('m', RANKS)
def test_permuted_names_rank_no_better_than_chance(case, m):
    assert cost(m, case.scores['permuted'].value[m].mean() - .5) > -.05

@pytest.mark.parametrize('m', [m for m in TESTS if m not in OWN])
def test_lists_of_genes_and_their_guards(case, m):
    """Three times the effect calls nearly all genes: recall grows, precision and the number called give it away.

    Signs are the business of de_direction."""
    right, tripled, flipped = (case.scores[k].value[m].mean() for k in ('right', 'tripled', 'flipped'))
    if m == 'de_recall': assert tripled > .95 > right
    if m.startswith('precision_at') or m == 'de_auprc': assert tripled < .2*right
    if m == 'de_count_error': assert tripled > right + 5
    if m == 'de_direction': assert right > .9 and flipped < .1
    if m == 'de_spearman': assert flipped < -.5 < .5 < right
    if m.startswith('overlap_at') or m in ('de_recall', 'deg_recall_published'): assert flipped > .7*right

@pytest.mark.parametrize('m', OTHERS)
def test_a_predicted_control_concerns_its_own_tests_only(case, m):
    a, b = pair(case, 'own moved', m)
    if m not in [*OWN, *CONTROL]: np.testing.assert_array_equal(a, b)
    elif m in OWN and m not in ('de_spearman_own', 'de_recall_own'): assert np.nanmean(cost(m, b - a)) > 0

@pytest.mark.parametrize('m', OWN)
def test_a_predicted_control_that_is_the_given_one_is_no_other_reference(case, m):
    value, status = case.scores['right'].value, case.scores['twice'].status
    np.testing.assert_array_equal(value[m], value[m.removesuffix('_own')])
    assert set(status[m]) == {'no_own_control'}  # without one, its own tests are missing

def test_a_moved_control_buys_recall_and_pays_for_it(case):
    right, moved = (case.scores[k].value.mean() for k in ('right', 'own moved'))
    assert moved.de_recall_own > .95 > right.de_recall_own
    assert moved.precision_at_N_own < .1*right.precision_at_N_own
    assert moved.de_count_error_own > 5
    assert moved.de_false_positives > .9 and right.de_false_positives < .05

@pytest.mark.parametrize('m', OF_OWN)
def test_effects_from_the_own_controls_are_those_from_given_ones_where_these_are_the_same(case, m):
    value, status = case.scores['right'].value, case.scores['right'].status
    np.testing.assert_allclose(value[m], value[m.replace('_own', '')], atol=1e-6)
    assert (status[m] == status[m.replace('_own', '')]).all()
    assert set(case.scores['twice'].status[m]) == {'no_own_control'} and case.scores['twice'].value[m].isna().all()
    moved = case.scores['own moved']
    assert set(moved.status[m]) == {'control_off'} and moved.value[m].isna().all()

def test_a_level_that_is_known_better_costs_no_effect_from_the_own_controls(case):
    "One model starts from eight of the given controls, the other from the mean of all; both add the same effects."
    names = ['rmse_average', 'cosine_delta', 'cosine_delta_own', 'rmse_control']
    e = Evaluation(case.task, names)
    few = {g: controls[:8] for g, controls in case.controls.items()}
    sharper = {g: case.controls[g].mean(0) - few[g].mean(0) for g in few}
    states = e.measured.state
    effect = [c.mean(0) - case.controls[g].mean(0) for c, g in zip(case.right, states)]
    plain = [few[g] + x for g, x in zip(states, effect)]
    level = [few[g] + sharper[g] + x for g, x in zip(states, effect)]
    a, b = (scored(SimpleNamespace(**{**vars(case), 'controls': few}), cells, own, e)
            for cells, own in ((plain, 0), (level, sharper)))
    mean = b.value.mean()
    assert mean.rmse_average < a.value.rmse_average.mean() and mean.rmse_control < a.value.rmse_control.mean()
    assert set(a.status.cosine_delta_own) == {'control_off'} and set(b.status.cosine_delta_own) == {'ok'}
    assert mean.cosine_delta_own == pytest.approx(case.scores['right'].value.cosine_delta.mean(), abs=1e-4)

def test_more_cells_do_not_move_unbiased_distances(case):
    "Copies of ten cells do, and they deceive a test."
    e = Evaluation(case.task, [*UNBIASED, 'rmse_average', 'de_recall', 'precision_at_N', 'de_count_error'])
    ways = {
        'many': [case.simulation.truth.cells(c, 400, seed=2).toarray() for c in case.code],
        'few': [c[:10] for c in case.right],
        'copies': [np.repeat(c[:10], N//10, axis=0) for c in case.right]}
    found = {k: scored(case, cells, e=e).value.mean() for k, cells in ways.items()}
    found['right'] = case.scores['right'].value.mean()
    null = case.scores['permuted'].value.mean()
    for m in UNBIASED:
        level = found['right'][m] if m in REPLICATE else 0
        assert max(abs(found[k][m] - level) for k in ('many', 'few', 'right')) < .2*(null[m] - level)
        assert found['copies'][m] - level > .4*(null[m] - level)
    assert found['many'].rmse_average < found['right'].rmse_average < found['few'].rmse_average
    assert found['few'].rmse_average == pytest.approx(found['copies'].rmse_average, rel=1e-6)
    assert found['copies'].de_recall > found['few'].de_recall + .1
    assert found['copies'].precision_at_N < .5*found['few'].precision_at_N
    assert found['copies'].de_count_error > found['few'].de_count_error + 1

def test_silence_raises_a_mean_and_shows_as_undefined(case):
    "The given controls where the least is predicted: directions are undefined there, and what needs no effect falls."
    changed = [c.mean(0) - case.controls[g].mean(0) for c, g in zip(case.right, case.e.measured.state)]
    size = np.array([np.sqrt(np.mean(o**2)) for o in changed])
    silent = size < np.median(size)
    e = Evaluation(case.task, [
        'cosine_delta', 'pearson_delta', 'cosine_centred', 'rmse_average', 'discrimination_cosine_delta'])
    cells = [case.controls[g] if k else c for c, g, k in zip(case.right, case.e.measured.state, silent)]
    found = scored(case, cells, e=e)
    right = case.scores['right'].value.mean()
    for m in ('cosine_delta', 'pearson_delta'):
        assert found.value[m].mean() > 1.5*right[m] and found.value[m].isna().sum() == silent.sum()
        assert set(found.status[m][found.value[m].isna()]) == {'no_signal'}
    for m in ('cosine_centred', 'rmse_average', 'discrimination_cosine_delta'):
        assert cost(m, found.value[m].mean() - right[m]) > 0 and found.value[m].notna().all()

def test_controls_in_a_file_move_no_metric_but_those_that_look_at_them(case):
    screen, mine = case.simulation.screen.adata, case.names[:, 0] == 'line1'
    wanted = screen.obs.perturbation.isin([*case.names[mine, 1], 'control'])
    truth = screen[(screen.obs.cell_type == 'line1') & wanted].copy()
    cells = {n: np.float32(case.right[i]) for i, n in zip(np.flatnonzero(mine), case.names[mine, 1])}
    def file(cells):
        names = np.repeat(list(cells), [len(x) for x in cells.values()])
        obs = pd.DataFrame({'cell_type': 'line1', 'perturbation': names})
        obs.index = 'p' + obs.index.astype(str)
        return ad.AnnData(np.concatenate(list(cells.values())), obs=obs, var=truth.var[[]])
    wild = {'control': np.random.default_rng(0).gamma(1., 3., (40, truth.n_vars)).astype(np.float32)}
    found = evaluate_files(truth, {'plain': file(cells), 'wild': file(cells | wild)}, 'perturbation', 'cell_type')
    of_model = lambda k: found.scores[found.scores.model == k].drop(columns=['model', 'run_id']).reset_index(drop=True)
    plain, moved = of_model('plain'), of_model('wild')
    of_control = plain.metric.isin([*OWN, *CONTROL, *OF_OWN])
    pd.testing.assert_frame_equal(plain[~of_control], moved[~of_control])
    assert set(plain.status[of_control]) == {'no_own_control'}
    assert set(moved.status[moved.metric.isin(OF_OWN)]) == {'control_off'}
    assert any('wild: 40 control cells are taken for what the model predicts' in o for o in found.notes)
    assert set(TESTS) | set(CELLS) <= set(plain.metric)
