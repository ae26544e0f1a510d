"What a model states of how far off its mean effects may be: the variance of `perturbed_mean`, and how a model is asked."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from perturbench.data.screen import Screen
from perturbench.loaders.batches import Batch
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model, load_model, save_model
from perturbench.models.baselines import group_means, variance_of_average, within_variance
from perturbench.models.zoo import MODELS
from perturbench.predict import predict_task
from perturbench.train import fit, model_info

N_GENES, TAU, BETWEEN, WITHIN = 20_000, 1., .3, .8 # Each gene is a simulation of its own

def measured(n_cells, n_controls, seed=0):
    """Trained effects of states, and one new true effect of each. `n_cells` has the cells of each trained perturbation of
    each state, `n_controls` the controls of each state."""
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
    stated = variance_of_average(effects, np.zeros(30, int), np.full(30, 20.), np.full((1, N_GENES), WITHIN), np.array([1e9]))
    raw = effects.var(0, ddof=1)*(1 + 1/30)
    assert stated.mean() < .2*raw.mean() and (stated >= 0).all()

@pytest.fixture(scope='module')
def small():
    "A screen of 3 lines x 6 perturbations, of 1 to 7 cells each, and 5 controls in each line."
    r = np.random.default_rng(3)
    rows = [(line, what) for line in 'xyz' for what in ['control']*5 + [f'p{k}' for k in range(6) for _ in range(r.integers(1, 8))]]
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
    return model.effect_variance(Batch(controls=torch.zeros(1, model.info.n_genes), perturbation=torch.ones(1, 6), covariates=k))

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
        here = {w: X[((obs.line == line) & (obs.what == w)).to_numpy()] for w in ['control', *[f'p{k}' for k in range(6)]]}
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
    assert states_variance(model, small.design, at['x']) is not None and states_variance(model, small.design, at['z']) is None

def test_only_one_built_in_model_states_a_variance(small):
    assert [name for name in MODELS if hasattr(MODELS[name], 'effect_variance')] == ['perturbed_mean']
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
