"What a model states of how far off its mean effects may be: that of `perturbed_mean`, how a model is asked, scores."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from dataclasses import replace
from scipy import stats
from perturbench.bench.leaderboard import STATUSES, leaderboard, page, text_table
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.loaders.batches import Batch
from perturbench.loaders.store import CellStore
from perturbench.metrics.accuracy import METRICS
from perturbench.metrics.uncertainty import Uncertain, area, area_random, crps, reached, risk_coverage, risks
from perturbench.models.base import ModelInfo, build_model, load_model, save_model
from perturbench.models.baselines import group_means, variance_of_average, within_variance
from perturbench.models.zoo import MODELS
from perturbench.predict import Prediction, predict_task
from perturbench.scoring.asked import file_task
from perturbench.scoring.evaluation import Evaluation, evaluate_task
from perturbench.scoring.measured import HALVES
from perturbench.scoring.references import null_predictions, references
from perturbench.scoring.uncertainty import stated_effects
from perturbench.tasks import open_task
from perturbench.train import fit, model_info

N_GENES, TAU, BETWEEN, WITHIN = 20_000, 1., .3, .8 # Each gene is a simulation of its own

def measured(n_cells, n_controls, seed=0):
    """Trained effects of states, and one new true effect of each.

    `n_cells` has the cells of each trained perturbation of each state, `n_controls` the controls of each state."""
    r = np.random.default_rng(seed)
    def normal(variance): return r.normal(0, np.sqrt(variance), N_GENES)
    effects, new = [], []
    for cells, controls in zip(n_cells, n_controls):
        common, control = normal(BETWEEN), normal(WITHIN/controls)
        effects += [common + normal(TAU) + normal(WITHIN/n) - control for n in cells]
        new.append(common + normal(TAU))
    state = np.repeat(np.arange(len(n_cells)), [len(c) for c in n_cells])
    n = np.concatenate([np.asarray(c, float) for c in n_cells])
    within = np.full((len(n_cells), N_GENES), WITHIN)
    return np.array(new), np.array(effects), state, n, within, np.array(n_controls)

@pytest.mark.parametrize('n_cells', [([20, 5, 40, 8, 20, 20],), ([2, 3]*5, [10]*3), ([20]*6, [20]*4)])
def test_the_variance_is_the_mean_squared_error(n_cells):
    new, effects, state, *rest = measured(n_cells, [30]*len(n_cells))
    stated = variance_of_average(effects, state, *rest).mean(1)
    error = ((new - group_means(effects, state, len(n_cells)))**2).mean(1)
    np.testing.assert_allclose(stated, error, rtol=.04)

def test_a_state_with_one_trained_perturbation():
    new, effects, state, *rest = measured(([20]*6, [20]*6, [20]), [30]*3)
    stated = variance_of_average(effects, state, *rest)[2].mean()
    np.testing.assert_allclose(stated, ((new[2] - effects[-1])**2).mean(), rtol=.04)

def test_a_state_without_trained_perturbations():
    "The variance of the averages about their mean holds their own noise once more than it should: a share of 1/k."
    new, effects, state, *rest = measured(([20]*10, [20]*10, [20]*10, [20]*10, []), [200]*5)
    stated = variance_of_average(effects, state, *rest)[4].mean()
    average = group_means(effects, state, 5)[:4].mean(0)
    error = ((new[4] - average)**2).mean()
    assert error*.97 < stated < error*1.15

def test_nothing_is_stated_where_nothing_is_known():
    _, effects, state, *rest = measured(([20], [20]), [30]*2)
    assert np.isnan(variance_of_average(effects, state, *rest)).all()
    _, effects, state, *rest = measured(([20]*3, []), [30]*2)
    assert np.isnan(variance_of_average(effects, state, *rest)).all(1).tolist() == [False, True]

def test_noise_alone_is_no_spread():
    "Effects that are one and the same, measured with noise: what is left beside the error of the average is small."
    r = np.random.default_rng(0)
    effects = 2 + r.normal(0, np.sqrt(WITHIN/20), (30, N_GENES))
    n, within = np.full(30, 20.), np.full((1, N_GENES), WITHIN)
    stated = variance_of_average(effects, np.zeros(30, int), n, within, np.array([1e9]))
    raw = effects.var(0, ddof=1)*(1 + 1/30)
    assert stated.mean() < .2*raw.mean() and (stated >= 0).all()

@pytest.fixture(scope='module')
def small():
    "A screen of 3 lines x 6 perturbations, of 1 to 7 cells each, and 5 controls in each line."
    r = np.random.default_rng(3)
    rows = []
    for line in 'xyz':
        names = [f'p{k}' for k in range(6) for _ in range(r.integers(1, 8))]
        rows += [(line, what) for what in ['control']*5 + names]
    obs = pd.DataFrame(rows, columns=['line', 'what'])
    obs.index = obs.index.map(str)
    X = (r.gamma(2., 1., (len(obs), 9))*(r.random((len(obs), 9)) < .6)).astype(np.float32)
    return Screen(ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f'g{j}' for j in range(9)])), 'what', 'line')

def fitted(screen, name='perturbed_mean', where=None, **options):
    store = CellStore.from_screen(screen)
    cells = store.select(np.ones(store.n_cells, bool))
    if where is not None: cells = cells.where(where)
    return build_model(name, ModelInfo(screen.genes, screen.design, cells.n), **options).fit(cells), cells

def states_variance(model, design, state):
    "What `model` states for a perturbation in a state."
    k = torch.tensor(design.covariate[np.flatnonzero(design.state == state)[0]])[None]
    x, p = torch.zeros(1, model.info.n_genes), torch.ones(1, 6)
    return model.effect_variance(Batch(controls=x, perturbation=p, covariates=k))

def test_within_variance_is_that_of_a_plain_loop(small):
    model, cells = fitted(small)
    X, obs, design = small.adata.X.toarray().astype(float), small.adata.obs, small.design
    found = within_variance(cells, cells.means(), design.state, 4)
    total = np.zeros((3, 9)), np.zeros(3)
    for (line, what), mine in obs.groupby(['line', 'what']).indices.items():
        s = small.conditions.state[(small.conditions.line == line)].iloc[0]
        total[0][s] += ((X[mine] - X[mine].mean(0))**2).sum(0)
        total[1][s] += len(mine) - 1
    np.testing.assert_allclose(found[:3], total[0]/total[1][:, None], rtol=1e-6)
    np.testing.assert_allclose(found[3], total[0].sum(0)/total[1].sum(), rtol=1e-6)

def test_the_model_states_what_a_plain_loop_finds(small):
    model, cells = fitted(small)
    X, obs, design = small.adata.X.toarray().astype(float), small.adata.obs, small.design
    for s, line in small.conditions.groupby('state').line.first().items():
        cells_of = lambda what: X[((obs.line == line) & (obs.what == what)).to_numpy()]
        here = {w: cells_of(w) for w in ['control', *[f'p{k}' for k in range(6)]]}
        squares = sum(((x - x.mean(0))**2).sum(0) for x in here.values())
        within = squares/sum(len(x) - 1 for x in here.values())
        control = here.pop('control')
        effects = np.array([x.mean(0) - control.mean(0) for x in here.values()])
        noise = within*np.mean([1/len(x) for x in here.values()])
        tau = np.maximum(effects.var(0, ddof=1) - noise, 0)
        expected = tau + (tau + noise)/6 + within/5
        np.testing.assert_allclose(states_variance(model, design, s).numpy(), expected, rtol=1e-5)

def test_what_is_stated_does_not_depend_on_the_order_of_cells_and_is_saved(small, tmp_path):
    model, _ = fitted(small)
    order = np.random.default_rng(0).permutation(small.n_cells)
    other, _ = fitted(Screen(small.adata[order].copy(), 'what', 'line'))
    save_model(model, tmp_path/'model.ckpt')
    back = load_model(tmp_path/'model.ckpt')
    for s in range(3):
        torch.testing.assert_close(states_variance(other, small.design, s), states_variance(model, small.design, s))
        assert torch.equal(states_variance(back, small.design, s), states_variance(model, small.design, s))

def test_a_line_of_the_screen_without_training_states_more(small):
    away = small.conditions.line.eq('z') & ~small.conditions.is_control
    model, _ = fitted(small, where=~away.to_numpy())
    stated = [states_variance(model, small.design, s) for s in range(3)]
    assert all(v.isfinite().all() for v in stated)
    assert model.status(np.ones(6), small.design.covariate[np.flatnonzero(away)[0]]) == 'unseen_part'
    one_line = small.conditions.line.eq('x') | small.conditions.is_control
    model, _ = fitted(small, where=one_line.to_numpy())
    at = dict(small.conditions.groupby('line').state.first())
    assert states_variance(model, small.design, at['x']) is not None
    assert states_variance(model, small.design, at['z']) is None

def test_the_built_in_models_that_state_a_variance(small):
    assert [name for name in MODELS if hasattr(MODELS[name], 'effect_variance')] == ['perturbed_mean', 'blup']
    assert states_variance(fitted(small, form='mean')[0], small.design, 0) is None

def test_predictions_carry_it_and_their_cells_stay(task):
    model = build_model('perturbed_mean', model_info(task))
    fit(model, task)
    silent = build_model('perturbed_mean', model_info(task), form='mean')
    fit(silent, task)
    found, again = (list(predict_task(model, task, controls=True)) for _ in range(2))
    for p, q in zip(found, again):
        is_control = task.design.is_control[p.condition]
        assert (p.variance is None) == is_control and (is_control or (p.variance == q.variance).all())
        assert (p.cells == q.cells).all()
        if not is_control: assert p.variance.dtype == np.float64 and p.variance.shape == (task.store.n_genes,)
    assert {p.variance for p in predict_task(silent, task)} == {None}

def test_draws_of_a_variance_are_keyed_by_seed_and_condition(task):
    model = build_model('control_mean', model_info(task))
    fit(model, task)
    cells = [p.cells for p in predict_task(model, task)]
    n_given = []
    def drawn(batch):
        n_given.append(len(batch.controls))
        return torch.randn(5, batch.controls.shape[1]).var(0)
    model.effect_variance = drawn
    found = list(predict_task(model, task))
    assert n_given == [len(p.cells) for p in found]
    assert all((a == p.cells).all() for a, p in zip(cells, found))
    for seed, same in ((0, True), (1, False)):
        torch.manual_seed(7)
        for p, q in zip(found, predict_task(model, task, seed=seed)): assert (p.variance == q.variance).all() == same
    assert len({p.variance.tobytes() for p in found}) == len(found)
    model.effect_variance = lambda batch: None
    assert {p.variance for p in predict_task(model, task)} == {None}

# Scores of what is stated

class Normal:
    "Two lines whose effects, their noise and the errors of a prediction are normal; what is true is known."
    variance, within, n_genes, train, test = .3**2, 1., 200, 40, 12

    def __init__(self, seed=0):
        r = np.random.default_rng(seed)
        names = [f'p{k}' for k in range(self.train + self.test)]
        self.effect = {(line, p): r.normal(0, np.sqrt(self.variance), self.n_genes) for line in 'xy' for p in names}
        level = {line: r.uniform(5, 7, self.n_genes) for line in 'xy'}
        def cells(line, p, n):
            return r.normal(level[line] + self.effect.get((line, p), 0), np.sqrt(self.within), (n, self.n_genes))
        def part(numbers):
            rows = [(line, p) for line in 'xy' for p, n in numbers.items() for _ in range(n)]
            X = np.concatenate([cells(line, p, n) for line in 'xy' for p, n in numbers.items()]).astype(np.float32)
            obs = pd.DataFrame(rows, columns=['line', 'gene'], index=[f'{len(X)} {i}' for i in range(len(X))])
            return ad.AnnData(X, obs, pd.DataFrame(index=[f'g{j}' for j in range(self.n_genes)]))
        truth = part(dict(control=120) | {p: int(r.integers(20, 60)) for p in names[self.train:]})
        train = part(dict(control=200) | {p: 40 for p in names[:self.train]})
        self.task = file_task('normal', Screen(ad.concat([truth, train]), 'gene', 'line'), truth.n_obs, 'default')

    def predictions(self, stated=1., seed=1):
        "Predictions that err with `variance`, and state it times `stated`."
        r, task = np.random.default_rng(seed), self.task
        given = task.controls('test', half=0)
        for code in task.test_conditions():
            line, p = task.conditions.loc[code, ['line', 'perturbation']]
            controls = task.store.dense(given.rows[task.design.state[given.codes] == task.design.state[code]]).numpy()
            error = r.normal(0, np.sqrt(self.variance), self.n_genes)
            cells = (controls + self.effect[line, p] + error).astype(np.float32)
            yield Prediction(int(code), cells, variance=np.full(self.n_genes, stated*self.variance))

STATED = [m for m in METRICS if METRICS[m].kind == 'uncertainty']

@pytest.fixture(scope='module')
def normal(): return Normal()

def means(table, column='value'): return table.groupby('metric')[column].mean()

def test_a_right_variance_covers_what_it_should(normal):
    """Errors are independent, but for the noise of held-out controls, which the conditions of a line share.

    That noise is 1/60 of .09 + 1/60 + 1/40: the standard deviation of the mean coverage of 24 conditions x 200 genes
    is about that of independent draws."""
    found = means(evaluate_task(normal.task, normal.predictions(), STATED))
    sd = np.sqrt(.9*.1/(24*200))
    assert abs(found.coverage_90_delta - .9) < 5*sd
    assert found.sharpness_delta == pytest.approx(.3) and found.crps_delta < found.crps_silent_delta

@pytest.mark.parametrize('stated, low, high', [(1/16, .6, .75), (16, .999, 1), (0, .5, .7)])
def test_a_wrong_variance_shows_in_its_direction(normal, stated, low, high):
    wrong = evaluate_task(normal.task, normal.predictions(stated), STATED)
    right = means(evaluate_task(normal.task, normal.predictions(), STATED))
    found = means(wrong)
    assert low <= found.coverage_90_delta <= high
    assert found.crps_delta > right.crps_delta and found.crps_silent_delta == pytest.approx(right.crps_silent_delta)
    if stated == 0: assert found.crps_delta == found.crps_silent_delta

def test_scores_are_those_of_a_plain_loop(normal):
    table = evaluate_task(normal.task, normal.predictions(), STATED).set_index(['line', 'perturbation', 'metric'])
    task, given, held_out = normal.task, *(normal.task.controls('test', half=half) for half in (0, 1))
    for p in normal.predictions():
        def dense(rows): return task.store.dense(rows).numpy().astype(float)
        a, b = (dense(c.rows[task.design.state[c.codes] == task.design.state[p.condition]]) for c in (given, held_out))
        cells = dense(task.cells('test').of(p.condition))
        sd = np.sqrt(p.variance + cells.var(0, ddof=1)/len(cells) + b.var(0, ddof=1)/len(b))
        mean, observed = p.cells.astype(float).mean(0) - a.mean(0), cells.mean(0) - b.mean(0)
        lo, hi = stats.norm(mean, sd).interval(.9)
        mine = table.loc[tuple(task.conditions.loc[p.condition, ['line', 'perturbation']])]
        assert mine.value.coverage_90_delta == pytest.approx(((lo <= observed) & (observed <= hi)).mean())
        assert mine.value.sharpness_delta == pytest.approx(np.sqrt(p.variance).mean())
        x = np.linspace(-4, 4, 8001)[:, None]
        cdf = stats.norm(mean, sd).cdf(x)
        integral = np.trapezoid((cdf - (x >= observed))**2, x, axis=0).mean()
        assert mine.value.crps_delta == pytest.approx(integral, rel=1e-3)
    assert (table.status == 'ok').all() and table.value_half.notna().all() and (table.n_candidates == 12).all()

def test_halves_are_scored_with_the_noise_of_halves(normal):
    table = evaluate_task(normal.task, normal.predictions(), STATED)
    halves, whole = means(table, 'value_half'), means(table)
    assert abs(halves.coverage_90_delta - .9) < .02 and halves.crps_delta > whole.crps_delta
    assert halves.sharpness_delta == pytest.approx(whole.sharpness_delta)

def test_other_scores_do_not_change_and_others_have_no_rows(normal):
    "A table of a model that states nothing has no row of these metrics, and stating something changes no other row."
    names = ['rmse_average', 'cosine_delta', 'rmse_rank_average', 'energy_pca', *STATED]
    with_variance = evaluate_task(normal.task, normal.predictions(), names)
    silent = evaluate_task(normal.task, (replace(p, variance=None) for p in normal.predictions()), names)
    assert set(with_variance.metric) == set(names) and set(silent.metric) == set(names) - set(STATED)
    others = with_variance[~with_variance.metric.isin(STATED)].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, silent, check_exact=True)
    assert evaluate_task(normal.task, (replace(p, variance=None) for p in normal.predictions()), STATED).empty

def test_statuses(normal):
    predictions = list(normal.predictions())
    some = [replace(predictions[0], variance=None), replace(predictions[1], status='unseen_part'), *predictions[3:]]
    found = Evaluation(normal.task, STATED).score(some, partial=True)
    codes = [p.condition for p in predictions[:4]]
    names = [tuple(normal.task.conditions.loc[c, ['line', 'perturbation']]) for c in codes]
    status = found.groupby(['line', 'perturbation']).status.unique().map(list)
    assert [status[n] for n in names] == [['no_variance'], ['unseen_part'], ['not_predicted'], ['ok']]
    undefined = found.value.isna().groupby(found.status).all().to_dict()
    assert undefined == dict(no_variance=True, not_predicted=True, ok=False, unseen_part=False)
    assert {'no_variance', 'few_cells'} <= set(STATUSES)

def test_one_cell_has_no_noise_that_is_known():
    r = np.random.default_rng(0)
    def cells(n): return r.normal(5, 1, (n, 6))
    names = ['control']*80 + ['a'] + ['b']*9
    obs, var = pd.DataFrame(dict(gene=names), index=map(str, range(90))), pd.DataFrame(index=list('uvwxyz'))
    truth = ad.AnnData(cells(90).astype(np.float32), obs, var)
    task = file_task('few', Screen(truth, 'gene'), 90, 'default')
    predict = lambda c: Prediction(int(c), cells(20).astype(np.float32), variance=np.ones(6))
    predictions = [predict(c) for c in task.test_conditions()]
    found = evaluate_task(task, predictions, STATED).set_index(['perturbation', 'metric'])
    assert set(found.loc['a'].status) == {'few_cells'} and set(found.loc['b'].status) == {'ok'}
    assert found.loc['a'].value.isna().all() and found.loc['b'].value.notna().all()

def test_the_order_of_predictions_and_threads_change_nothing(normal):
    evaluation, predictions = Evaluation(normal.task, STATED), list(normal.predictions())
    first = evaluation.score(predictions)
    state = [normal.task.design.state[p.condition] for p in predictions]
    turned = [predictions[i] for i in np.lexsort((-np.arange(len(state)), -np.array(state)))]
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    second = evaluation.score(turned)
    torch.set_num_threads(n)
    pd.testing.assert_frame_equal(first, second, check_exact=True)

def test_the_area_under_the_curve_of_an_oracle_and_of_its_opposite(normal):
    "The model errs more in some conditions, and states it, states the opposite, or states the same for all."
    r, task = np.random.default_rng(0), normal.task
    evaluation = Evaluation(task, STATED)
    scale = dict(zip(task.test_conditions(), r.permutation(np.linspace(.2, 3, len(task.test_conditions())))))
    def predictions(stated):
        for p in normal.predictions():
            line, name = task.conditions.loc[p.condition, ['line', 'perturbation']]
            given = task.controls('test', half=0)
            here = task.design.state[given.codes] == task.design.state[p.condition]
            controls = task.store.dense(given.rows[here]).numpy()
            error = (p.cells.astype(float).mean(0) - controls.astype(float).mean(0) - normal.effect[line, name])
            off = (scale[p.condition] - 1)*error
            yield replace(p, cells=(p.cells + off).astype(np.float32), variance=p.variance*stated(scale[p.condition]))
    found = {name: stated_effects(evaluation.measured, evaluation.collect(predictions(stated))) for name, stated in
             dict(right=lambda s: s**2, opposite=lambda s: 1/s, same=lambda s: 1).items()}
    areas = {name: area(risk_coverage(*case)) for name, case in found.items()}
    end = area_random(risk_coverage(*found['right']))
    assert areas['right'] < areas['same'] < areas['opposite'] and areas['same'] == pytest.approx(end)
    best = risk_coverage(*found['right'], by=risks(*found['right']))
    assert .9 < reached(risk_coverage(*found['right']), best) <= 1
    true_risk = np.mean([s**2*normal.variance for s in scale.values()])
    assert end == pytest.approx(true_risk, rel=.15)

@pytest.mark.parametrize('variance, why', [
    (np.ones(3), 'one number for each'),
    (np.full(200, -1.), 'negative or not finite'),
    (np.full(200, np.nan), 'negative or not finite')])
def test_what_is_no_variance_is_refused(normal, variance, why):
    predictions = [replace(p, variance=variance) for p in normal.predictions()]
    with pytest.raises(InputError, match=why): evaluate_task(normal.task, predictions, STATED)
    silent = Evaluation(normal.task, STATED)
    compared = silent.collect(replace(p, variance=None) for p in normal.predictions())
    with pytest.raises(InputError, match='no prediction states a variance'): stated_effects(silent.measured, compared)

def test_perturbed_mean_is_right_where_effects_are_alike(normal):
    "Each gene and line has 40 trained effects; the average is off for all tested conditions of a line together."
    model = build_model('perturbed_mean', model_info(normal.task))
    fit(model, normal.task)
    table = evaluate_task(normal.task, predict_task(model, normal.task, controls=True))
    assert abs(means(table).coverage_90_delta - .9) < .02
    assert means(table).crps_delta < means(table).crps_silent_delta
    assert set(STATED) <= set(table.metric)

def test_folds_have_models_of_their_own(tmp_path):
    spec = dict(name='folds', screen='sim-combination', split=dict(kind='combination', folds=3, seed=1))
    task = open_task(spec, tmp_path)
    def predictions():
        for fold in range(task.n_folds):
            model = build_model('perturbed_mean', model_info(task, fold))
            fit(model, task, fold)
            yield from predict_task(model, task, fold, controls=True)
    evaluation = Evaluation(task, STATED)
    compared = evaluation.collect(predictions())
    by_fold = [np.unique(compared.variance[compared.fold == fold], axis=0) for fold in range(task.n_folds)]
    assert task.n_folds > 1
    states = [set(compared.pred.own.at[compared.fold == f]) for f in range(task.n_folds)]
    assert [len(rows) for rows in by_fold] == [len(o) for o in states]
    assert len(np.unique(np.concatenate(by_fold), axis=0)) == sum(map(len, by_fold))
    table = evaluation.table(compared)
    assert set(table.status) <= {'ok', 'unseen_part', 'few_controls'} and table.value.notna().all()
    pd.testing.assert_frame_equal(table, Evaluation(task, STATED).score(predictions()), check_exact=True)

def test_a_null_states_what_the_average_does_and_a_replicate_its_noise(normal):
    task, evaluation = normal.task, Evaluation(normal.task, STATED)
    assert {p.variance for p in null_predictions(task, 'null_control')} == {None}
    model = build_model('perturbed_mean', model_info(task))
    fit(model, task)
    stated = {p.condition: p.variance for p in predict_task(model, task, controls=True)}
    for p in null_predictions(task, 'null_mean'): np.testing.assert_array_equal(p.variance, stated[p.condition])
    table = references(evaluation)
    assert set(table.model[table.value.notna()]) == {'null_mean', 'duplicate'}
    assert set(table.metric[table.model == 'duplicate']) == {'crps_delta'}
    measured = evaluation.measured
    cells = [task.store.dense(measured.cells(0, half)).numpy().astype(float) for half in HALVES]
    rows = lambda half: measured.control_rows(0, measured.state[0], half)
    controls = [task.store.dense(rows(half)).numpy().astype(float) for half in (0, 1)]
    def effect(k, half): return cells[k].mean(0) - controls[half].mean(0)
    def noise(k, half): return cells[k].var(0, ddof=1)/len(cells[k]) + controls[half].var(0, ddof=1)/len(controls[half])
    by_hand = [crps(Uncertain([effect(k, 0)], [noise(k, 0)]), [effect(1 - k, 1)], [noise(1 - k, 1)])[0] for k in (0, 1)]
    first = table[(table.model == 'duplicate') & (table.metric == 'crps_delta')].value.iloc[0]
    assert first == pytest.approx(np.mean(by_hand), rel=1e-6)

def test_a_board_has_the_metrics_of_those_that_state_something(normal):
    names = ['rmse_average', *STATED]
    def scored(name, predictions): return evaluate_task(normal.task, predictions, names).assign(model=name)
    tables = [scored(f'times {stated}', normal.predictions(stated)) for stated in (1, 16)]
    silent = scored('silent', (replace(p, variance=None) for p in normal.predictions()))
    board = leaderboard(pd.concat([*tables, silent], ignore_index=True))
    crps = board[board.metric == 'crps_delta']
    assert list(crps.model) == ['times 1', 'times 16'] and list(crps.best) == [True, False]
    assert not board[board.metric.isin([m for m in STATED if not METRICS[m].judged])].best.any()
    assert set(board.model[board.metric == 'rmse_average']) == {'times 1', 'times 16', 'silent'}
    assert 'Stated uncertainty: all 4 metrics' in page(board) and 'rmse_average' in text_table(board, 'evaluation')
