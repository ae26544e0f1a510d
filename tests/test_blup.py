"BLUP: predictions and variances by dense algebra, coverage where all is known, invariances, doses, tables, cells."
import itertools
import anndata as ad, nbformat, numpy as np, pandas as pd, pytest, torch
from conftest import ROOT
from scipy.optimize import minimize
import perturbench.models.zoo
import perturbench.models.blup as blup
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.loaders.batches import Batch
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model, check_options, load_model, save_model
from perturbench.models.blup import KERNELS, kernel, quantile_head, total_kernel
from perturbench.models.mixed import SIGNALS, fit_shares, loss_of_shares, scale_of, spectrum
from perturbench.predict import effect_variance, predict_cells
from test_tutorials import execute

class Normal:
    "Lines x perturbations with doubles; effects and noise are normal, and known."
    n_genes, own, part, line, pair = 60, .05, .3, .1, .1

    def __init__(self, seed=0, lines='xyz', parts=12, doubles=8, hide=.3, n_genes=None):
        r = self.random = np.random.default_rng(seed)
        G = self.n_genes = n_genes or self.n_genes
        names = [f'p{i:02d}' for i in range(parts)]
        pairs = ['+'.join(sorted(r.choice(names, 2, replace=False))) for _ in range(doubles)]
        size = r.gamma(.5, 2, G)**.5
        def normal(variance): return r.normal(0, variance**.5, G)*size
        of_part, of_pair = {p: normal(self.part) for p in names}, {p: normal(self.pair) for p in pairs}
        of_line = {(l, p): normal(self.line) for l in lines for p in names}
        level = {l: r.uniform(20, 25, G) for l in lines}
        def effect(l, name):
            one = sum(of_part[p] + of_line[l, p] for p in name.split('+'))
            return one + of_pair.get(name, 0)
        self.effect = {(l, p): effect(l, p) for l in lines for p in [*names, *dict.fromkeys(pairs)]}
        numbers = {(l, 'control'): 50 for l in lines} | {c: int(r.integers(6, 40)) for c in self.effect}
        rows = [c for c, n in numbers.items() for _ in range(n)]
        X = np.concatenate([
            level[l] + self.effect.get((l, p), 0) + r.normal(size=(n, G)) for (l, p), n in numbers.items()])
        obs = pd.DataFrame(rows, columns=['line', 'what']).rename(index=str)
        self.level, self.screen = level, Screen(ad.AnnData(X.astype(np.float32), obs=obs), 'what', 'line')
        store = CellStore.from_screen(self.screen)
        cells, design = store.select(np.ones(store.n_cells, bool)), store.design
        self.hidden = ~design.is_control & (r.random(len(design.state)) < hide)
        self.cells = cells.where(~self.hidden)
        self.info = ModelInfo(self.screen.genes, design, self.cells.n)

    def fitted(self, **options): return build_model('blup', self.info, **options).fit(self.cells)

    def asked(self, model, codes):
        "What the model sees of some conditions."
        design = self.info.design
        return model.conditions(torch.tensor(design.perturbation[codes]), torch.tensor(design.state[codes]))

    def truth(self, code):
        return self.effect[tuple(self.screen.conditions.loc[code, ['line', 'perturbation']])]

    def batch(self, code, n=40, seed=0):
        line = self.screen.conditions.line[code]
        controls = self.level[line] + np.random.default_rng(seed).normal(size=(n, self.n_genes))
        design = self.info.design
        def rows(v): return torch.tensor(v[code]).expand(n, -1)
        return Batch(controls=torch.tensor(controls, dtype=torch.float32), perturbation=rows(design.perturbation),
                     covariates=rows(design.covariate))

@pytest.fixture(scope='module')
def normal(): return Normal()

@pytest.fixture(scope='module')
def model(normal): return normal.fitted()

def dense(normal, model, code, r, gene):
    """Level and effect by generalised least squares of means of cells, levels fixed; the covariance of their errors.

    What it is told: weights of the kernels, a signal, the unit of a gene."""
    design, cells, unit = normal.info.design, normal.cells, float(model.unit[gene])
    there = np.flatnonzero(cells.n)
    y = cells.means()[there, gene]/unit
    alike = np.zeros((len(there) + 1,)*2)
    treated = np.append(~design.is_control[there], True)
    of = normal.asked(model, [*there, code])
    alike = r*total_kernel(model.weights, of, of).numpy().astype(float)*np.outer(treated, treated)
    V = alike[:-1, :-1] + np.diag(1/cells.n[there])
    X = np.eye(design.state.max() + 1)[design.state[there]]
    inverse = np.linalg.inv(V)
    errors_of_levels = np.linalg.inv(X.T @ inverse @ X)
    levels = errors_of_levels @ X.T @ inverse @ y
    c = alike[-1, :-1]
    effect = c @ inverse @ (y - X @ levels)
    state = design.state[code]
    a, b = -(c @ inverse @ X), np.eye(len(levels))[state] - c @ inverse @ X
    left = alike[-1, -1] - c @ inverse @ c
    return levels[state]*unit, effect*unit, *(unit**2*(left + v @ errors_of_levels @ v) for v in (a, b))

def test_it_is_dense_generalised_least_squares_of_means(normal, model):
    """Levels are fixed effects, so its REML is that of means. Predictions and variances average those of all signals.

    Its level, effect, and the variance of the effect and of effect and level together."""
    for code in np.flatnonzero(normal.hidden)[:4]:
        of = normal.asked(model, [code])
        fitted, state = model.fitted(), int(of.state)
        cross, own = (total_kernel(model.weights, of, o)[0].double().numpy() for o in (model.trained, of))
        noise = model._control_noise(state)
        apart = fitted.predict_row(cross, own[0])
        together = fitted.predict_row(cross, own[0], noise, 1/float(model.n_controls[state]))
        for gene in (0, 7, 30):
            p = fitted.posterior[gene]
            likely = np.flatnonzero(p > 1e-9)
            found = np.array([dense(normal, model, code, SIGNALS[m], gene) for m in likely])
            level, effect = p[likely] @ found[:, :2]/p[likely].sum()
            unit = float(model.unit[gene])
            assert float(model.level[state, gene]) == pytest.approx(level, abs=2e-4)
            assert float(model.by_blup(of)[0, gene]) == pytest.approx(effect, abs=2e-4)
            spread = p[likely] @ (found[:, 1] - effect)**2
            assert unit**2*apart.variance[gene] == pytest.approx(p[likely] @ found[:, 2] + spread, rel=2e-3)
            total = found[:, 0] + found[:, 1]
            spread = p[likely] @ (total - p[likely] @ total)**2
            assert unit**2*together.variance[gene] == pytest.approx(p[likely] @ found[:, 3] + spread, rel=2e-3)

def test_shares_are_those_of_a_dense_likelihood(normal):
    "With one signal the loss is that of the normal distribution, and its optimum that of a search without gradients."
    r = np.random.default_rng(1)
    part, state = np.repeat(np.arange(10), 3), np.tile(np.arange(3), 10)
    kernels = [np.equal.outer(part, part)*1., np.eye(30), np.equal.outer(state, state)*1.]
    noise = np.diag(1/r.integers(5, 30, 30)) + np.equal.outer(state, state)/40
    kernels = np.stack([K/scale_of(K, noise) for K in kernels])
    y = np.linalg.cholesky(20*np.tensordot([.6, .3, .1], kernels, 1) + noise) @ r.normal(size=(30, 40))
    def dense_loss(logits):
        shares = np.exp(logits - logits.max())/np.exp(logits - logits.max()).sum()
        V = 20*np.tensordot(shares, kernels, 1) + noise
        return .5*(40*np.linalg.slogdet(V)[1] + (y*np.linalg.solve(V, y)).sum()) + .5*((logits/3)**2).sum()
    losses = [(loss_of_shares(x, kernels, noise, y, [20.])[0], dense_loss(x)) for x in r.normal(size=(5, 3))]
    np.testing.assert_allclose(np.diff(losses, axis=0)[:, 0], np.diff(losses, axis=0)[:, 1], rtol=1e-8)
    mine = minimize(lambda x: loss_of_shares(x, kernels, noise, y, [20.]), np.zeros(3), jac=True, method='L-BFGS-B').x
    options = dict(maxiter=2000, xatol=1e-5, fatol=1e-9)
    plain = minimize(dense_loss, np.zeros(3), method='Nelder-Mead', options=options).x
    np.testing.assert_allclose(mine, plain, atol=5e-3)

def test_the_shares_of_a_screen_are_found(normal):
    "Variances of .3, .1 and .1 for a part, a part in a line and a pair, each on its own scale."
    big = Normal(3, parts=40, doubles=30, n_genes=200)
    found = dict(zip(KERNELS, big.fitted().weights.numpy()))
    total = sum(found[k] for k in ('part', 'part in state', 'combination'))
    shares = {k: found[k]/total for k in ('part', 'part in state', 'combination')}
    assert shares['part'] == pytest.approx(.6, abs=.08) and shares['part in state'] == pytest.approx(.2, abs=.06)
    assert shares['combination'] == pytest.approx(.2, abs=.08)
    assert found['common'] < .05*found['part'] and found['state'] < .05*found['part'] and found['dose'] == 0

@pytest.mark.parametrize('options', [{}, dict(denoise=False), dict(gamma=.5), dict(form='mean')])
def test_stated_variances_are_those_of_errors(options):
    "Errors of predicted effects against the given controls, the controls new for each; 60 genes, two screens."
    z = []
    for seed in (5, 6):
        here = Normal(seed)
        model = here.fitted(**{'form': 'cell'} | options)
        for i, code in enumerate(np.flatnonzero(here.hidden)):
            batch = here.batch(code, n=30, seed=1000*seed + i)
            predicted = (model.predict(batch).mean(0) - batch.controls.mean(0)).numpy()
            z.append((predicted - here.truth(code))/model.effect_variance(batch).numpy()**.5)
    z = np.stack(z)
    assert len(z) > 15 and np.mean(z**2) == pytest.approx(1, abs=.25)
    assert np.mean(np.abs(z) < 1.645) == pytest.approx(.9, abs=.05)

def test_doubles_are_covered_as_they_should():
    """Sums of two singles that have a few cells each, in one line: the noise of both counts once.

    With twice the variance .98 would be inside."""
    inside = []
    for seed in (7, 8):
        here = Normal(seed, lines='x', parts=16, doubles=40, hide=.5, n_genes=200)
        model = here.fitted(form='cell')
        doubles = here.hidden & ((here.info.design.perturbation != 0).sum(1) == 2)
        for i, code in enumerate(np.flatnonzero(doubles)):
            batch = here.batch(code, n=30, seed=1000*seed + i)
            error = (model.predict(batch).mean(0) - batch.controls.mean(0)).numpy() - here.truth(code)
            inside.append(np.abs(error) < 1.645*model.effect_variance(batch).numpy()**.5)
    assert len(inside) > 25 and np.mean(inside) == pytest.approx(.9, abs=.02)

def test_errors_are_smaller_than_those_of_additive_and_levels_than_those_of_means(normal, model):
    additive, plain = build_model('additive', normal.info).fit(normal.cells), normal.fitted(form='cell', denoise=False)
    found = {}
    for name, m in dict(additive=additive, plain=plain).items():
        shift = [(m.predict(b) - b.controls)[0].numpy() for b in map(normal.batch, np.flatnonzero(normal.hidden))]
        found[name] = np.mean((shift - np.stack([normal.truth(c) for c in np.flatnonzero(normal.hidden)]))**2)
    assert found['plain'] < .9*found['additive']
    true = np.stack([normal.level[l] for l in 'xyz'])
    mended, measured = (np.mean((t[:3].numpy() - true)**2) for t in (model.level, model.control))
    assert mended < measured
    np.testing.assert_allclose(model.level_variance[:3].mean(), mended, rtol=.35)

def test_gamma_is_the_best_of_a_grid_over_left_out_conditions(normal):
    r = np.random.default_rng(0)
    truth, mine, plain = r.normal(size=(3, 20, 30))
    truth += .5*mine + .4*plain
    state = np.arange(20) % 3
    def centred(x): return x - np.stack([x[state == s].mean(0) for s in range(3)])[state]
    def error(g): return ((centred(truth - g*mine - (1 - g)*plain))**2).sum()
    grid = np.linspace(0, 1, 1001)
    best = grid[np.argmin([error(g) for g in grid])]
    assert blup.best_gamma(truth, mine, plain, state) == pytest.approx(best, abs=1e-3)
    assert 0 <= float(normal.fitted().gamma) <= 1 and float(normal.fitted(gamma=.3).gamma) == pytest.approx(.3)

def test_units_do_not_matter_and_neither_does_the_order_of_cells(normal, model):
    "Expression in other units gives effects in these; cells in another order give the same."
    def made(X, obs):
        store = CellStore.from_screen(Screen(ad.AnnData(X, obs=obs), 'what', 'line'))
        cells = store.select(np.ones(store.n_cells, bool)).where(~normal.hidden)
        return build_model('blup', ModelInfo(normal.screen.genes, store.design, cells.n)).fit(cells)
    a, order = normal.screen.adata, np.random.default_rng(0).permutation(normal.screen.n_cells)
    X, obs = np.asarray(a.X.todense() if hasattr(a.X, 'todense') else a.X), a.obs[['line', 'what']].astype(str)
    of = normal.asked(model, normal.hidden)
    expected = model.effects(of)
    torch.testing.assert_close(made(3*X, obs).effects(of), 3*expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(made(X[order], obs.iloc[order]).effects(of), expected, rtol=2e-3, atol=2e-3)

def test_some_genes_and_conditions_decide_nearly_as_all(monkeypatch):
    big = Normal(4, parts=30, doubles=20, n_genes=150)
    whole = big.fitted()
    monkeypatch.setattr(blup, 'FEW_ROWS', 60)
    monkeypatch.setattr(blup, 'FEW_GENES', 75)
    part = big.fitted()
    of = big.asked(whole, big.hidden)
    a, b = whole.effects(of), part.effects(of)
    assert ((a - b)**2).mean() < .03*(a**2).mean()

def test_an_effect_follows_the_dose_between_and_beyond_doses():
    "Effects proportional to the logarithm of the dose; the middle dose of three was not trained."
    r, rows, X = np.random.default_rng(0), [], []
    slope = {p: r.normal(size=40) for p in 'ABCDEFGH'}
    for p in [None, *slope]:
        for dose in ([0.] if p is None else [1., 10., 100.]):
            rows += [('control' if p is None else p, dose)]*40
            X.append(20 + (0 if p is None else slope[p]*(1 + np.log10(dose))/3) + .5*r.normal(size=(40, 40)))
    obs = pd.DataFrame(rows, columns=['what', 'dose']).rename(index=str)
    screen = Screen(ad.AnnData(np.concatenate(X).astype(np.float32), obs=obs), 'what', dose_key='dose')
    store = CellStore.from_screen(screen)
    cells = store.select(np.ones(store.n_cells, bool))
    hidden = (screen.design.perturbation == 10).any(1)
    cells = cells.where(~hidden)
    model = build_model('blup', ModelInfo(screen.genes, screen.design, cells.n), gamma=1.).fit(cells)
    assert model.weights[KERNELS.index('dose')] > 0
    for i, p in enumerate(slope):
        for dose, times in ((10., 2/3), (30., (1 + np.log10(30))/3)):
            asked = torch.zeros(1, 8)
            asked[0, i] = dose
            found = model.effects(model.conditions(asked, torch.tensor([0])))[0].numpy()
            assert np.corrcoef(found, slope[p])[0, 1] > .95
            assert (found @ slope[p])/(slope[p] @ slope[p]) == pytest.approx(times, abs=.1)

def test_the_quantile_head_keeps_means_zeros_and_programmes():
    "Two groups of genes vary with two hidden factors; the mean of all genes doubles."
    r = np.random.default_rng(0)
    factor = np.repeat(r.gamma(2, .5, (600, 2)), 30, axis=1)
    def counts(times): return torch.tensor(np.log1p(r.poisson(.3*times*factor)), dtype=torch.float32)
    cells, truth = counts(1), counts(2)
    axes = torch.tensor(blup.factors_of((cells - cells.mean(0)).numpy()), dtype=torch.float32)
    torch.manual_seed(0)
    moved = quantile_head(cells, truth.mean(0), blup.zero_slope(cells.numpy()), torch.ones(60), axes)
    torch.testing.assert_close(moved.mean(0), truth.mean(0), rtol=1e-4, atol=1e-5)
    shares = [(x == 0).float().mean().item() for x in (cells, truth, moved)]
    assert abs(shares[2] - shares[1]) < .25*(shares[0] - shares[1])
    def together(x):
        R = torch.corrcoef(x.T)
        return R[:30, :30].mean().item(), R[:30, 30:].mean().item()
    (within, between), (true, _), (before, _) = together(moved), together(truth), together(cells)
    assert .8*before < within < 1.3*true and abs(between) < .05

def test_cells_do_not_depend_on_who_else_is_asked_for(normal, model):
    "A batch of two conditions, whose controls are moved together; draws differ, means do not."
    a, b = np.flatnonzero(normal.hidden)[:2]
    one, two = normal.batch(a), normal.batch(b, seed=1)
    def join(k): return torch.cat([getattr(one, k), getattr(two, k)])
    both = model.predict(Batch(**{k: join(k) for k in ('controls', 'perturbation', 'covariates')}))
    torch.testing.assert_close(both[:40].mean(0), model.predict(one).mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[40:].mean(0), model.predict(two).mean(0), rtol=1e-4, atol=1e-4)

def test_draws_are_keyed_by_seed_and_condition(normal, model):
    code, other = np.flatnonzero(normal.hidden)[:2].tolist()
    sparse = torch.tensor(np.random.default_rng(0).poisson(.7, (50, normal.n_genes)), dtype=torch.float32)
    design = normal.info.design
    def cells(*keys): return predict_cells(model, sparse, design.perturbation[code], design.covariate[code], *keys)
    np.testing.assert_array_equal(cells(0, code), cells(0, code))
    assert (cells(0, code) != cells(1, code)).any() and (cells(0, code) != cells(0, other)).any()
    variance = effect_variance(model, sparse, design.perturbation[code], design.covariate[code], 0, code)
    assert variance.shape == (normal.n_genes,) and (variance > 0).all()

def test_a_singular_kernel_and_a_table_that_says_the_same_twice(normal, tmp_path):
    "Perturbations with the same features, in columns that repeat each other."
    names = normal.info.design.perturbations
    twice = np.repeat((np.arange(len(names)) % 2)[:, None], 3, axis=1)
    pd.DataFrame(twice, index=names, columns=list('abc')).to_csv(tmp_path/'table.csv')
    info = ModelInfo(normal.screen.genes, normal.info.design, normal.cells.n)
    model = build_model('blup', info, features=f'table:{tmp_path}/table.csv').fit(normal.cells)
    K = kernel('features', model.trained, model.trained)
    assert np.linalg.matrix_rank(K.numpy()) <= 1
    assert model.effects(model.trained).isfinite().all()
    save_model(model, tmp_path/'model.ckpt')
    (tmp_path/'table.csv').unlink()
    back = load_model(tmp_path/'model.ckpt')
    assert torch.equal(back.effects(back.trained), model.effects(model.trained))

def test_what_a_table_says_reaches_what_was_never_seen(tmp_path):
    "Effects are sums of two hidden features, which the table has; a fifth of the perturbations is never trained."
    r = np.random.default_rng(0)
    names, hidden = [f'p{i:02d}' for i in range(40)], r.normal(size=(40, 2))
    pattern, rows, X = r.normal(size=(2, 50)), [], []
    for i, p in enumerate(['control', *names]):
        rows += [p]*(200 if i == 0 else 25)
        X.append(20 + (hidden[i - 1] @ pattern if i else 0) + r.normal(size=(rows.count(p), 50)))
    pd.DataFrame(hidden, index=names, columns=['f', 'g']).to_csv(tmp_path/'table.csv')
    obs = pd.DataFrame(dict(what=rows)).rename(index=str)
    screen = Screen(ad.AnnData(np.concatenate(X).astype(np.float32), obs=obs), 'what')
    store = CellStore.from_screen(screen)
    unseen = (screen.design.perturbation[:, -8:] != 0).any(1)
    cells = store.select(np.ones(store.n_cells, bool)).where(~unseen)
    info = ModelInfo(screen.genes, screen.design, cells.n)
    model = build_model('blup', info, features=f'table:{tmp_path}/table.csv', form='cell').fit(cells)
    blind = build_model('blup', ModelInfo(screen.genes, screen.design, cells.n), form='cell').fit(cells)
    true = hidden[-8:] @ pattern
    def off(m):
        asked = m.conditions(torch.tensor(screen.design.perturbation[unseen]), torch.zeros(8, dtype=torch.int64))
        return ((m.effects(asked).numpy() - true)**2).mean()/(true**2).mean()
    assert off(model) < .1 < .8 < off(blind) < 1.1
    p, k = screen.design.perturbation[unseen][0], screen.design.covariate[unseen][0]
    assert (model.status(p, k), blind.status(p, k)) == ('ok', 'unseen_part')

@pytest.mark.parametrize('options, why', [
    (dict(form='shift'), 'give one of quantile, cell, mean'),
    (dict(gamma=-.1), 'from 0 to 1'),
    (dict(gama=1), 'gamma')])
def test_options_that_cannot_be(normal, options, why):
    with pytest.raises(InputError, match=why): build_model('blup', normal.info, **options)

def test_what_a_search_suggests_are_options():
    class Trial:
        def suggest_float(self, name, low, high, **_): return high
        def suggest_categorical(self, name, choices): return choices[-1]
    found = blup.BLUP.search_space(Trial())
    assert check_options('blup', found).items() >= found.items()

def test_noise_has_to_be_there():
    with pytest.raises(InputError, match='not positive definite'): spectrum(np.eye(2), np.zeros((2, 2)))
    assert not fit_shares([np.zeros((3, 3))], np.eye(3), np.ones((3, 2))).any()

def test_left_out_effects_are_those_of_the_others(normal, model):
    "Dense, with the weights, signals and gamma of all."
    from perturbench.models.blup import noise_of_effects
    found, fitted, rows = model.left_out(), model.fitted(), model.rows
    state = normal.info.design.state[rows]
    noise = noise_of_effects(normal.cells.n[rows], state, model.n_controls.numpy())
    K = total_kernel(model.weights, model.trained, model.trained).double().numpy()
    y = np.linalg.solve(fitted.axes.T, fitted.z)
    present = normal.info.design.perturbation[rows] != 0
    for i, gene in ((0, 0), (5, 7), (len(rows) - 1, 30)):
        others, mine = np.arange(len(rows)) != i, 0.
        for r, p in zip(SIGNALS, fitted.posterior[gene]):
            C = (r*K + noise)[np.ix_(others, others)]
            mine += p*r*K[i, others] @ np.linalg.solve(C, y[others, gene])
        alone = [others & present[:, k] & (present.sum(1) == 1) for k in np.flatnonzero(present[i])]
        known = all(a.any() for a in alone)
        by_sum = sum(y[a, gene].mean() for a in alone) if known else mine
        gamma = float(model.gamma)
        assert found[i, gene]/float(model.unit[gene]) == pytest.approx(gamma*mine + (1 - gamma)*by_sum, abs=5e-3)

def test_a_residual_starts_from_blup_and_is_saved_with_it(normal, tmp_path):
    info = ModelInfo(normal.screen.genes, normal.info.design, normal.cells.n, cells=normal.cells)
    residual, plain = build_model('blup_residual', info, form='mean').eval(), normal.fitted(form='mean')
    code = np.flatnonzero(normal.hidden)[0]
    batch = normal.batch(code)
    batch.cell_features = batch.controls
    torch.testing.assert_close(residual.predict(batch), plain.predict(batch))
    with torch.no_grad():
        for weight in residual.net.parameters(): weight.add_(.01)
    assert not torch.allclose(residual.predict(batch), plain.predict(batch))
    save_model(residual, tmp_path/'model.ckpt')
    assert torch.equal(load_model(tmp_path/'model.ckpt').predict(batch), residual.predict(batch))

def test_what_a_residual_adds_does_not_depend_on_control_cells(normal):
    "Nor does its loss: control cells would add their own variance to it."
    info = ModelInfo(normal.screen.genes, normal.info.design, normal.cells.n, cells=normal.cells)
    residual = build_model('blup_residual', info).eval()
    with torch.no_grad():
        for weight in residual.net.parameters(): weight.add_(.01)
    code = np.flatnonzero(normal.hidden)[0]
    batch, other = (normal.batch(code, seed=seed) for seed in (1, 2))
    added = residual.correction(batch)
    assert (added.abs().max() > 1e-3) and torch.equal(added, residual.correction(other))
    batch.expression = other.expression = batch.controls
    batch.condition = other.condition = None
    assert torch.equal(residual.loss(batch)['loss'], residual.loss(other)['loss'])

def test_a_residual_learns_from_doubles_and_not_from_singles_that_only_they_tell_of():
    "In one line; in three all singles are known from other lines."
    def learnt(here):
        base = here.fitted()
        found, left_out = blup.effects_to_learn_from(base).float(), torch.tensor(base.left_out()).float()
        whole, n_parts = base.effects(base.trained), base.of_present.sum(1)
        return [(torch.allclose(f, l, atol=1e-5), torch.allclose(f, w, atol=1e-5), int(n))
                for f, l, w, n in zip(found, left_out, whole, n_parts)]
    one_line = learnt(Normal(1, lines='x', parts=10, doubles=12, hide=0))
    assert all(is_left_out == (n == 2) and is_whole == (n == 1) for is_left_out, is_whole, n in one_line)
    assert all(is_left_out for is_left_out, *_ in learnt(Normal(1, hide=0)))

@pytest.fixture(scope='module')
def check():
    "Cells of the notebook that checks the frozen model, by a text in them."
    nb = nbformat.read(ROOT/'nbs'/'benchmarks'/'blup_frozen.ipynb', as_version=4)
    def run(scope, *texts):
        for text in texts:
            cell, = (c for c in nb.cells if c.cell_type == 'code' and text in c.source)
            exec(cell.source, scope)
        return scope
    return run

def test_bounds_hold_for_all_comparisons_together(check):
    "Ten seeds, twelve comparisons that vary together; the truth is 0. A bound is above it in one of twenty screens."
    judged = pd.DataFrame([dict(seed=0, screen='a', metric='m', model='blup', calibrated=0.)])
    quantile = check(dict(np=np, pd=pd, itertools=itertools, judged=judged), 'def turned_quantile')['turned_quantile']
    r, wrong = np.random.default_rng(0), 0
    for _ in range(150):
        d = pd.DataFrame(r.normal(size=(10, 12)) + r.normal(size=(10, 1)))
        wrong += (d.mean() - quantile(d, .95)*d.std(ddof=1)/10**.5 > 0).any()
    assert .01 < wrong/150 < .11

def test_what_is_said_follows_from_bounds_and_errors(check):
    r = np.random.default_rng(0)
    columns = pd.MultiIndex.from_product([['a'], ['m', 'n'], ['blup', 'better', 'worse', 'wild']])
    calibrated = pd.DataFrame(.5 + .01*r.normal(size=(10, 8)), columns=columns)
    calibrated['a', 'm', 'better'] += .3
    calibrated['a', 'm', 'worse'] -= .3
    calibrated['a', 'm', 'wild'] += r.normal(size=10)
    calibrated.loc[3, ('a', 'n', 'better')] = np.nan
    judged = calibrated.rename_axis(index='seed', columns=['screen', 'metric', 'model'])
    judged = judged.stack([0, 1, 2], future_stack=True)
    scope = dict(np=np, pd=pd, itertools=itertools, judged=judged.rename('calibrated').reset_index(), screens=['a'],
                 metrics=['m', 'n'], level=.95, rivals=['better', 'worse', 'wild'], ours=['blup'], margin=-.05,
                 largest_error=.02)
    said = check(scope, 'def turned_quantile', 'def verdicts')['tables']['blup'].said
    assert said.loc['a', 'm'].to_dict() == dict(better='not met', worse='met', wild='undecided')
    assert said.loc['a', 'n'].to_dict() == dict(better='undecided', worse='met', wild='met')

def test_the_check_runs_small(tmp_path):
    said = execute(
        'benchmarks/blup_frozen', tmp_path,
        screens={'transfer': {
            'simulate': {'n_genes': 120, 'n_perturbations': 40, 'n_programmes': 6, 'cells': 40, 'controls': 200},
            'split': {'kind': 'transfer', 'fraction': .4}}},
        seeds=[1, 2, 3], rivals=['additive', 'control_mean'], beside=['coverage_90_delta'], metrics=['cosine_centred'])
    assert 'tested conditions of a screen' in said and 'scales without range: 0 of 12' in said
