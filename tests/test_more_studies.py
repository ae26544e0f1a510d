"Data scaling, imbalance and representation: what must hold in any run of their notebooks, and known answers."
import json
import numpy as np, pandas as pd, pytest
from conftest import one_pixel
from test_tutorials import execute
from perturbench.data.simulate import Parameters, simulate
from perturbench.tasks import load_task

def opened(folder):
    "The tasks that a notebook opened, by name."
    homes = (folder/'results'/'tasks').iterdir()
    return {json.loads((home/'task.json').read_text())['name']: load_task(home) for home in homes}

def parts_of(task):
    "The names of the cells of each part."
    table = pd.read_csv(task.folder/'split.csv', dtype=str)
    return table.groupby('part').cell.agg(set)

@pytest.fixture(scope='module')
def undrawn_here():
    "Figures of this file are made and saved, but of one pixel."
    with pytest.MonkeyPatch.context() as m:
        m.setattr('perturbench.plots.Picture.savefig', one_pixel)
        yield

SMALL = dict(n_genes=60, n_perturbations=12, cells=14, controls=40, effect_size=1.5, quiet=0.)

@pytest.fixture(scope='module')
def scaling(tmp_path_factory, quick, undrawn_here):
    "The folder of a small run of data_scaling, on effects that all states share."
    folder = tmp_path_factory.mktemp('scaling')
    execute(
        'benchmarks/data_scaling', folder,
        screens=[
            {'name': 'shared', 'simulate': {'shared': 1.}, 'seed': 1, 'held': [[0, 1]], 'added': [1, 5],
             'split': {'kind': 'scaling', 'fraction': .7}},
            {'name': 'new', 'simulate': {}, 'seed': 2, 'held': [[1, 0]], 'added': [1, 2],
             'split': {'kind': 'unseen_state'}}],
        size=SMALL | dict(n_states=7, controls=200),
        models=['control_mean', 'additive', 'linear'],
        seeds=[3],
        budget=dict(max_epochs=1, batch_size=512),
        trials=1,
        searched=['new'])
    return folder

def test_training_sets_are_nested_and_the_test_stays(scaling):
    "By the files of the splits, cell by cell."
    tasks = opened(scaling)
    for name, added in [('shared-line1-line2', (1, 5)), ('new-line2-line1', (1, 2))]:
        parts = [parts_of(tasks[f'{name}-3-{n}']) for n in added]
        assert all(a.train < b.train and a.test == b.test and a.val == b.val for a, b in zip(parts, parts[1:]))
        perturbed = [int((tasks[f'{name}-3-{n}'].cells('train').n > 0).sum()) for n in added]
        assert np.diff(perturbed).tolist() == [13*(b - a) for a, b in zip(added, added[1:])]  # whole states
    new = tasks['new-line2-line1-3-1']
    assert set(new.conditions.cell_type[new.test_conditions()]) == {'line2'}  # line1 validates

def test_an_average_over_more_states_is_better_where_they_are_alike(scaling):
    "What knows nothing stays as it was; and a search of one trial has nothing but the defaults."
    found = pd.read_csv(scaling/'results'/'data_scaling.csv')
    error = found[found.metric == 'rmse_average']
    error = error.set_index(['screen', 'model', 'added', 'condition']).value.sort_index()
    additive = error['shared', 'additive'].groupby('added').mean()
    assert additive[5] < .9*additive[1]  # noise of as many cells in truth and average: the root of (1 + 1/5)/2 is .77
    assert np.ptp(error['shared', 'control_mean'].unstack('added').to_numpy(), axis=1).max() < 1e-7
    searched = found[found.screen == 'new']
    by_model = searched.set_index(['held', 'metric', 'added', 'condition', 'model']).value.unstack()
    pd.testing.assert_series_equal(by_model.linear, by_model['linear-tuned'], check_names=False)
    assert len(by_model) == len(searched)/4

@pytest.fixture(scope='module')
def imbalance(tmp_path_factory, undrawn_here):
    "The folder of a small run of imbalance."
    folder = tmp_path_factory.mktemp('imbalance')
    execute(
        'benchmarks/imbalance', folder,
        screens=[{'name': 'small', 'simulate': {}, 'seed': 1}],
        size=SMALL | dict(n_genes=120, n_states=3, n_perturbations=40),
        entropies=[.7, .9, 1.],
        models=['control_mean', 'additive', 'covariate_only'],
        own=['control_mean', 'additive'],
        seeds=[5],
        budget=dict(max_epochs=1, batch_size=512))
    return folder

def trained(task):
    "How many perturbations of each state train."
    trains = (task.cells('train').n > 0) & ~task.conditions.is_control
    return task.conditions[trains].groupby('cell_type').size()

def test_levels_of_imbalance_by_hand(imbalance):
    "Entropies are near what was asked for; a twin has as many perturbations, the same in each state; one test for all."
    tasks = opened(imbalance)
    level = {e: trained(tasks[f'small-uneven-{e:g}-5']) for e in (.7, .9, 1.)}
    for e, n in level.items():
        p = (n + 1)/(n + 1).sum()  # control counted
        assert -(p*np.log(p)).sum()/np.log(3) == pytest.approx(e, abs=.05)
    for e in (.7, .9):
        even = trained(tasks[f'small-even-{e:g}-5'])
        assert even.sum() == level[e].sum() and np.ptp(even) <= 1
    shared = [parts_of(task) for name, task in tasks.items() if name.endswith('-5') and 'own' not in name]
    assert len(shared) == 5 and all(o.test == shared[0].test and o.val == shared[0].val for o in shared)
    own = [parts_of(tasks[f'small-own-test-{e:g}-5']).test for e in (.7, 1.)]
    assert own[0] != own[1]

def test_what_is_tested_trains_in_the_largest_state_at_every_level(imbalance):
    "So a level differs from another in what trains beside it, and in nothing else."
    tasks = opened(imbalance)
    for name, task in tasks.items():
        if 'own' in name: continue
        c = task.conditions
        test = c.loc[task.test_conditions()]
        seen = c[(task.cells('train').n > 0) & c.perturbation.isin(test.perturbation)]
        assert set(seen.perturbation) == set(test.perturbation) and seen.cell_type.nunique() == 1
        assert not set(seen.cell_type) & set(test.cell_type)

def test_a_model_without_perturbations_ranks_by_chance_at_every_level(imbalance):
    "And the control mean has one error for all levels that share a test, and another for those that do not."
    found = pd.read_csv(imbalance/'results'/'imbalance.csv')
    ranks = found[(found.metric == 'rmse_rank_average') & found.model.isin(['control_mean', 'covariate_only'])]
    assert (ranks.value.dropna() == .5).all() and len(ranks.value.dropna()) > 50  # one test alone has no rank
    control = found[(found.metric == 'rmse_average') & (found.model == 'control_mean')]
    shared = control[control.design != 'own test'].groupby('condition').value.agg(np.ptp)
    assert shared.max() < 1e-7
    assert np.ptp(control[control.design == 'own test'].groupby('entropy').value.mean()) > 1e-3

@pytest.fixture(scope='module')
def combinations(tmp_path_factory, undrawn_here):
    "The folder of a small run of representation; one of its screens has an embedding of its cells."
    folder = tmp_path_factory.mktemp('representation')
    screen = simulate(Parameters(**SMALL | dict(n_states=3)), 1).screen
    screen.adata.obsm['X_scGPT'] = np.asarray(screen.adata.X[:, :5].todense())
    screen.write(folder/'embedded.h5ad')
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(12, 3)), index=screen.perturbations).to_csv(folder/'features.csv')
    execute(
        'benchmarks/representation', folder,
        screens=[
            {'name': 'plain', 'simulate': {}, 'seed': 2, 'splits': ['transfer']},
            {'name': 'embedded', 'file': str(folder/'embedded.h5ad'), 'splits': ['transfer'],
             'features': 'features.csv',
             'prepare': {'perturbation_key': 'perturbation', 'covariate_keys': ['cell_type'], 'values': 'lognorm'}}],
        size=SMALL | dict(n_states=4, n_perturbations=20),
        cells=['none', 'random'],
        perturbations=['shuffled', 'one-hot', 'swapped'],
        seeds=[0, 1],
        budget=dict(max_epochs=10, batch_size=64))
    return folder

def test_a_label_that_tells_nothing_ranks_by_chance(combinations):
    "And one that tells something does better, where it was seen."
    found = pd.read_csv(combinations/'results'/'representation.csv')
    rank = found[(found.metric == 'rmse_rank_average') & (found.question == 'plain, transfer')]
    rank = rank.groupby('told').value.mean()
    assert abs(rank['shuffled'] - .5) < .12 and rank['one-hot'] < rank['shuffled'] - .1

def test_an_embedding_is_read_where_there_is_one(combinations):
    found = pd.read_csv(combinations/'results'/'representation.csv')
    read = found.groupby('question').cell.agg(set)
    assert read['embedded, transfer'] == {'none', 'random', 'X_scGPT'}
    assert read['plain, transfer'] == {'none', 'random'}

def test_shares_by_hand(combinations):
    "From the means of the table, without the library and without matrices."
    found = pd.read_csv(combinations/'results'/'representation.csv')
    mine = found[(found.question == 'plain, transfer') & (found.metric == 'rmse_average')]
    y = mine.groupby(['cell', 'told', 'seed']).value.mean().reset_index()
    y['value'] -= y.groupby('seed').value.transform('mean')
    total = (y.value**2).sum()
    by_cell, by_told, table = (y.groupby(k).value.transform('mean') for k in ('cell', 'told', ['cell', 'told']))
    noise = ((y.value - table)**2).sum()/5  # (2*3 - 1)*(2 - 1)
    by_hand = {'input': ((by_cell**2).sum() - noise)/total, 'representation': ((by_told**2).sum() - 2*noise)/total,
               'interaction': (((table - by_cell - by_told)**2).sum() - 2*noise)/total}
    shares = pd.read_csv(combinations/'results'/'representation_shares.csv')
    shares = shares[(shares.question == 'plain, transfer') & (shares.metric == 'rmse_average')]
    shares = shares[shares.representations == 'all'].set_index('part').share
    assert shares.to_dict() == pytest.approx({part: max(share, 0) for part, share in by_hand.items()}, abs=1e-6)
