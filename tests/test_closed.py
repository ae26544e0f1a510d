"Closed forms and simple learners against scikit-learn, plain algebra and loops; and screens that leave them little."
from dataclasses import replace
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
import perturbench.models.closed, perturbench.models.neighbours
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.loaders.batches import Batch
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model, load_model, model_class, save_model
from perturbench.models.closed import GRID, RIDGES, leading, left_out, profiled_spectrum, solve
from perturbench.predict import predict_task
from perturbench.tasks import open_task
from perturbench.train import model_info

NAMES = ['ridge', 'kernel_ridge', 'bilinear', 'transfer', 'knn', 'matching_mean', 'forest']
FEATURED = ['ridge', 'kernel_ridge', 'bilinear', 'knn', 'forest']

def screen_of(rows, n_genes=6, genes=None, seed=0, fill=None):
    "A screen of random cells: `rows` are a line, a perturbation and a number of cells."
    obs = pd.DataFrame([(line, what) for line, what, n in rows for _ in range(n)], columns=['line', 'what'])
    values = np.random.default_rng(seed).random((len(obs), n_genes), np.float32)
    if fill is not None: values[:] = fill
    var = pd.DataFrame(index=genes or [f'g{i}' for i in range(n_genes)])
    return Screen(ad.AnnData(values, obs=obs.set_index(obs.index.map(str)), var=var), 'what', ['line'])

def told(screen, keep=None, features=None, **more):
    "All cells of a screen but those of conditions that are not to `keep`, and the info on them."
    store = CellStore.from_screen(screen)
    kept = np.ones(len(screen.conditions), bool) if keep is None else keep(screen.conditions)
    cells = store.select(kept[store.codes])
    return ModelInfo(screen.genes, screen.design, cells.n, cells=cells, features=features or {}, **more), cells

def shift(model, line, *parts):
    "What `model` adds to controls of 0, and its status."
    p, k = model.info.design.encode(parts, {'line': line})
    zeros = torch.zeros(1, len(model.info.genes))
    batch = Batch(controls=zeros, perturbation=torch.tensor(p)[None], covariates=torch.tensor(k)[None])
    return model.predict(batch)[0].numpy(), model.status(p, k)

def effects(screen, cells):
    "Conditions and effects, by loops."
    X, names = screen.adata.X.toarray().astype(float), screen.adata.obs
    table = []
    for line, what in names[['line', 'what']].drop_duplicates().itertuples(index=False):
        mine = ((names.line == line) & (names.what == what)).to_numpy()
        control = ((names.line == line) & (names.what == 'control')).to_numpy()
        if what != 'control': table.append((line, what, X[mine].mean(0) - X[control].mean(0)))
    return table

ONE_LINE = [('x', 'control', 5), *(('x', f'p{i}', 3) for i in range(12))]

def described(n=12, d=4, seed=1):
    "A random table of features for the perturbations of `ONE_LINE`, all of them known; what a model keeps of it."
    values = np.random.default_rng(seed).normal(size=(n, d))
    return values, {'table:x': torch.tensor(np.c_[values, np.ones(n)], dtype=torch.float32)}

def test_ridge_is_that_of_scikit_learn_with_the_penalty_of_its_leave_one_out():
    screen, (values, features) = screen_of(ONE_LINE), described()
    is_new = lambda c: (c.perturbation != 'p3').to_numpy()
    info, cells = told(screen, is_new, features)
    model = build_model('ridge', info, features='table:x').fit(cells)
    table = [(what, effect) for _, what, effect in effects(screen, cells) if what != 'p3']
    seen = np.array([what != 'p3' for what in screen.perturbations])
    X = values - values[seen].mean(0)
    X /= (X[seen]**2).sum(1).mean()**.5
    place = {name: i for i, name in enumerate(screen.perturbations)}
    trained = X[[place[what] for what, _ in table]]
    centred = trained - trained.mean(0)
    unit = (centred**2).sum()/(len(centred) - 1)
    theirs = RidgeCV(alphas=unit*np.array(GRID)).fit(trained, np.stack([effect for _, effect in table]))
    for name in screen.perturbations:
        found, status = shift(model, 'x', name)
        np.testing.assert_allclose(found, theirs.predict(X[[place[name]]])[0], atol=1e-5)
        assert status == 'ok'

def test_kernel_ridge_solves_the_bordered_system():
    screen, (_, features) = screen_of(ONE_LINE), described()
    info, cells = told(screen, features=features)
    model = build_model('kernel_ridge', info, features='table:x').fit(cells)
    D = np.stack([effect for *_, effect in effects(screen, cells)])
    names = [what for _, what, _ in effects(screen, cells)]
    x = model.parts.numpy().astype(float)[[screen.perturbations.index(name) for name in names]]
    K = np.exp(-((x[:, None] - x)**2).sum(2)/(2*float(model.width)**2))
    choice = solve(K, np.ones((12, 1)), D, np.arange(12))
    bordered = np.block([[K + choice.ridge*np.eye(12), np.ones((12, 1))], [np.ones((1, 12)), np.zeros((1, 1))]])
    coefficients = np.linalg.solve(bordered, np.vstack([D, np.zeros(6)]))
    for i, name in enumerate(names):
        np.testing.assert_allclose(shift(model, 'x', name)[0], np.r_[K[i], 1] @ coefficients, atol=1e-5)

def test_a_condition_left_out_in_closed_form_is_one_that_a_new_fit_did_not_see():
    random = np.random.default_rng(2)
    X, Y = random.normal(size=(14, 5)), random.normal(size=(14, 3))
    Z, groups = np.repeat(np.eye(2), 7, axis=0), np.r_[np.arange(10), 2, 8, 8, 3]
    for ridge in (.01, 1., 50.):
        total = 0
        for g in np.unique(groups):
            rest, out = groups != g, groups == g
            both = np.hstack([X, Z])
            penalty = np.diag([ridge]*5 + [0]*2)
            B = np.linalg.solve(both[rest].T @ both[rest] + penalty, both[rest].T @ Y[rest])
            total += ((Y[out] - both[out] @ B)**2).sum()
        found = left_out(profiled_spectrum(X @ X.T, Z), leading(Y), groups, ridge)
        assert found == pytest.approx(total/14, rel=1e-9)

def test_bilinear_is_two_ridge_solves_with_the_control_as_a_column():
    genes = [f'p{i}' for i in range(8)]
    rows = [('x', 'control', 4), *(('x', name, 2) for name in genes[:6])]
    screen = screen_of(rows, 8, genes)
    info, cells = told(screen)
    model = build_model('bilinear', info, n_components=3, ridge=.1).fit(cells)
    means = cells.means()
    order = list(screen.conditions.perturbation)
    M = means.T - means.mean(1)
    _, _, V = np.linalg.svd(M - M.mean(0), full_matrices=False)
    G = (M - M.mean(0)) @ V[:3].T
    P = np.stack([np.zeros(3) if name == 'control' else G[genes.index(name)] for name in order], axis=1)
    Y = (means - means[order.index('control')]).T
    b = Y.mean(1, keepdims=True)
    W = np.linalg.inv(G.T @ G + .1*np.eye(3)) @ G.T @ (Y - b) @ P.T @ np.linalg.inv(P @ P.T + .1*np.eye(3))
    for name in genes[:6]:
        np.testing.assert_allclose(shift(model, 'x', name)[0], b[:, 0] + G @ W @ G[genes.index(name)], atol=1e-5)
    chosen = build_model('bilinear', info, n_components=3).fit(cells)
    assert chosen.effect.isfinite().all() and chosen.ridges == RIDGES

def test_all_neighbours_are_the_mean_and_one_is_the_next():
    screen, (values, features) = screen_of(ONE_LINE), described()
    is_new = lambda c: (c.perturbation != 'p3').to_numpy()
    info, cells = told(screen, is_new, features)
    everyone = build_model('knn', info, features='table:x', k=11).fit(cells)
    mean = build_model('perturbed_mean', info).fit(cells)
    np.testing.assert_allclose(shift(everyone, 'x', 'p3')[0], shift(mean, 'x', 'p3')[0], atol=1e-6)
    next_one = build_model('knn', info, features='table:x', k=1).fit(cells)
    at = screen.perturbations.index('p3')
    far = ((values - values[at])**2).sum(1)
    far[at] = np.inf
    of = {what: effect for _, what, effect in effects(screen, cells)}
    np.testing.assert_allclose(shift(next_one, 'x', 'p3')[0], of[screen.perturbations[far.argmin()]], atol=1e-5)

THREE_LINES = [(line, what, n) for line in 'xyz' for what, n in
               [('control', 6), ('a', 4), ('b', 4), ('c', 4), ('d', 4)] if (line, what) != ('z', 'a')]

def test_transfer_with_equal_reliabilities_is_the_shrunken_mean():
    screen = screen_of(THREE_LINES)
    info, cells = told(screen)
    table = pd.DataFrame(effects(screen, cells), columns=['line', 'what', 'effect'])
    mean = table.groupby('line').effect.mean()
    special = np.mean([effect - mean[line] for line, what, effect in table.values if what == 'a'], axis=0)
    for shrinkage in (0., 1., 6.):
        model = build_model('transfer', info, shrinkage=shrinkage, between=1e9).fit(cells)
        expected = mean['z'] + special*2/(2 + shrinkage)
        np.testing.assert_allclose(shift(model, 'z', 'a')[0], expected, atol=1e-5)

def test_transfer_weighs_by_the_number_of_cells():
    rows = [(line, what, 40 if (line, what) == ('x', 'a') else n) for line, what, n in THREE_LINES]
    screen = screen_of(rows)
    info, cells = told(screen)
    table = pd.DataFrame(effects(screen, cells), columns=['line', 'what', 'effect'])
    mean = table.groupby('line').effect.mean()
    noise = {}
    for line in 'xy':
        conditions = screen.adata.to_df()[(screen.adata.obs.line == line).to_numpy()].groupby(
            screen.adata.obs.what[(screen.adata.obs.line == line).to_numpy()].to_numpy())
        squares = sum(((group - group.mean())**2).to_numpy().sum(0) for _, group in conditions)
        free = sum(len(group) - 1 for _, group in conditions)
        noise[line] = (squares/free).mean()/(40 if line == 'x' else 4)
    weight = {line: 1/noise[line] for line in 'xy'}
    special = {line: effect - mean[line] for line, what, effect in table.values if what == 'a'}
    expected = mean['z'] + sum(weight[o]*special[o] for o in 'xy')/sum(weight.values())
    model = build_model('transfer', info, shrinkage=0., between=0.).fit(cells)
    np.testing.assert_allclose(shift(model, 'z', 'a')[0], expected, atol=1e-4)

def test_the_mean_of_what_matches_by_a_loop():
    rows = [('x', what, 3) for what in ('control', 'a', 'b', 'c', 'a+b', 'b+c')] + \
           [('y', what, 3) for what in ('control', 'b', 'a+d')]
    screen = screen_of(rows)
    info, cells = told(screen)
    of = {(line, what): effect for line, what, effect in effects(screen, cells)}
    model = build_model('matching_mean', info).fit(cells)
    asked = [('x', ('a', 'c'), [('x', 'a'), ('x', 'c'), ('x', 'a+b'), ('x', 'b+c')]),
             ('y', ('b', 'd'), [('y', 'b'), ('y', 'a+d')]),
             ('y', ('c',), [('x', 'c'), ('x', 'b+c')]),
             ('x', ('d',), [('y', 'a+d')])]
    for line, parts, matching in asked:
        found, status = shift(model, line, *parts)
        np.testing.assert_allclose(found, np.mean([of[o] for o in matching], axis=0), atol=1e-6)
        assert status == 'ok'

def test_the_forest_is_that_of_scikit_learn():
    screen, (values, features) = screen_of(ONE_LINE), described()
    info, cells = told(screen, features=features)
    torch.manual_seed(0)
    model = build_model('forest', info, features='table:x', n_trees=20, min_leaf=2).fit(cells)
    table = sorted(effects(screen, cells), key=lambda row: row[1])
    parts = model.parts.numpy().astype(float)
    at = [screen.perturbations.index(what) for _, what, _ in table]
    D = np.stack([effect for *_, effect in table])
    u, s, v = np.linalg.svd(D - D.mean(0), full_matrices=False)
    X = np.c_[parts[at], np.ones((12, 2))]
    theirs = RandomForestRegressor(20, min_samples_leaf=2, max_features=1/3, random_state=model.seed).fit(X, u*s)
    for i in range(12):
        expected = D.mean(0) + theirs.predict(X[[i]])[0] @ v
        np.testing.assert_allclose(shift(model, 'x', screen.perturbations[at[i]])[0], expected, atol=1e-4)

@pytest.mark.parametrize('name', NAMES)
def test_screens_that_leave_little(name):
    "One cell of each condition, one perturbation, constant genes, two states one of which has controls alone."
    one_cell = [('x', 'control', 1), ('x', 'a', 1), ('x', 'b', 1)]
    alone = [('x', 'control', 3), ('x', 'a', 2)]
    bare = [*ONE_LINE, ('y', 'control', 3)]
    for rows, fill in ((one_cell, None), (alone, None), (bare, None), (one_cell, .5), (THREE_LINES, .5)):
        screen = screen_of(rows, fill=fill)
        info, cells = told(screen)
        model = build_model(name, info).fit(cells)
        for line in screen.adata.obs.line.unique():
            for what in (screen.perturbations[:1], screen.perturbations[:2]):
                found, _ = shift(model, line, *what)
                assert np.isfinite(found).all()
                if fill is not None: np.testing.assert_allclose(found, 0, atol=1e-5)

@pytest.mark.parametrize('name', NAMES)
def test_what_was_never_trained_gets_the_mean_effect_of_the_state_and_says_so(name):
    screen = screen_of(THREE_LINES)
    info, cells = told(screen, lambda c: (c.perturbation != 'd').to_numpy())
    model = build_model(name, info).fit(cells)
    table = pd.DataFrame([o for o in effects(screen, cells) if o[1] != 'd'], columns=['line', 'what', 'effect'])
    for line in 'xyz':
        found, status = shift(model, line, 'd')
        own = table.effect[table.line == line]
        expected = own.sum()/(len(own) + 1) if name == 'bilinear' else own.mean()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert status == 'unseen_part'

@pytest.mark.parametrize('name', FEATURED)
def test_features_that_are_all_alike_or_nearly_so(name):
    "A singular kernel, two perturbations that nothing tells apart, and a table that names none of what was trained."
    screen = screen_of(ONE_LINE)
    values, _ = described()
    values[5] = values[4]
    for table in (np.ones((12, 3)), values, np.c_[values, values, 1e-9*values]):
        features = {'table:x': torch.tensor(np.c_[table, np.ones(12)], dtype=torch.float32)}
        info, cells = told(screen, features=features)
        model = build_model(name, info, features='table:x').fit(cells)
        found = [shift(model, 'x', part)[0] for part in screen.perturbations]
        assert np.isfinite(found).all()
        if (table == 1).all(): np.testing.assert_allclose(found, [found[0]]*12, atol=1e-5)
    unknown = {'table:x': torch.tensor(np.c_[values, np.arange(12) == 3], dtype=torch.float32)}
    info, cells = told(screen, lambda c: (c.perturbation != 'p3').to_numpy(), unknown)
    model = build_model(name, info, features='table:x').fit(cells)
    assert shift(model, 'x', 'p0')[1] == 'unseen_part'

@pytest.mark.parametrize('name', FEATURED)
def test_a_model_is_loaded_where_its_table_is_gone(name, tmp_path):
    screen = screen_of(ONE_LINE)
    values, _ = described()
    path = tmp_path/'known.csv'
    pd.DataFrame(values, screen.perturbations).to_csv(path)
    info, cells = told(screen, lambda c: (c.perturbation != 'p3').to_numpy())
    torch.manual_seed(0)
    model = build_model(name, info, features=['own', f'table:{path}']).fit(cells)
    assert shift(model, 'x', 'p3')[1] == 'ok'
    save_model(model, tmp_path/'model.ckpt')
    path.unlink()
    back = load_model(tmp_path/'model.ckpt')
    for part in ('p0', 'p3'): np.testing.assert_array_equal(shift(back, 'x', part)[0], shift(model, 'x', part)[0])

def test_options_that_cannot_be():
    info, _ = told(screen_of(ONE_LINE))
    for name, options, message in [
            ('ridge', dict(features='embedding'), "the features 'embedding' are not known"),
            ('ridge', dict(features=['own', 3]), 'give a text or a list of texts'),
            ('ridge', dict(features='table:nowhere.csv'), 'nowhere.csv is not a file'),
            ('knn', dict(k=0), 'k is 0'),
            ('forest', dict(min_leaf=0), 'min_leaf is 0'),
            ('bilinear', dict(n_components=0), 'n_components is 0'),
            ('bilinear', dict(ridge=-1.), 'ridge is -1.0'),
            ('transfer', dict(between=-1.), 'between is -1.0')]:
        with pytest.raises(InputError, match=message): build_model(name, info, **options)

def test_what_a_search_suggests_are_options():
    class Trial:
        def suggest_categorical(self, name, choices): return choices[-1]
    from perturbench.models.base import check_options
    for name in ('bilinear', 'transfer', 'forest'):
        found = model_class(name).search_space(Trial())
        assert check_options(name, found) | found == check_options(name, found)

class Shuffled:
    "Training cells whose perturbations were dealt anew among the conditions of each state."
    def __init__(self, info, seed):
        design, rows = info.design, np.flatnonzero((info.train_cells > 0) & ~info.design.is_control)
        random, perturbation = np.random.default_rng(seed), design.perturbation.copy()
        for state in np.unique(design.state[rows]):
            mine = rows[design.state[rows] == state]
            perturbation[mine] = perturbation[random.permutation(mine)]
        self.info = replace(info, design=replace(design, perturbation=perturbation))

@pytest.fixture(scope='module')
def transfer_task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('learns')
    parameters = Parameters(n_genes=150, n_perturbations=60, n_programmes=6, cells=40, controls=120)
    simulate(parameters).screen.write(folder/'screen.h5ad')
    return open_task(dict(screen=str(folder/'screen.h5ad'), split=dict(kind='transfer', fraction=.4)), folder/'out')

@pytest.mark.parametrize('name', NAMES)
def test_it_learns_what_belongs_to_each_perturbation(name, transfer_task):
    """Better than with perturbations dealt anew, by more than 2 standard errors over conditions.

    The bilinear model is told which perturbation it is, since simulated targets say little of effects."""
    task, info = transfer_task, model_info(transfer_task)
    options = dict(features='own') if name == 'bilinear' else {}
    means = task.cells('test').means()
    def errors(model):
        found = {p.condition: p.cells.mean(0) for p in predict_task(model, task)}
        return np.array([((found[c] - means[c])**2).mean()**.5 for c in sorted(found)])
    torch.manual_seed(0)
    own = errors(build_model(name, info, **options).fit(task.cells('train')))
    dealt = []
    for seed in range(3):
        model = build_model(name, Shuffled(info, seed).info, **options).fit(task.cells('train'))
        model.info = info
        dealt.append(errors(model))
    better = np.mean(dealt, axis=0) - own
    assert better.mean() > 2*better.std(ddof=1)/len(better)**.5
