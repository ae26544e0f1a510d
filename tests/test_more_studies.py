"A study of data scaling: what must hold in any of their runs, and answers that are known."
import json
import numpy as np, pandas as pd, pytest
from conftest import one_pixel
from test_tutorials import execute
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
        trials=1)
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
    by_model = found.set_index(['screen', 'held', 'metric', 'added', 'condition', 'model']).value.unstack()
    pd.testing.assert_series_equal(by_model.linear, by_model['linear-tuned'], check_names=False)
    assert len(by_model) == len(found)/4
