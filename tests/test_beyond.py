"The grid of all models with equal tuning, and the page that runs it on smaller screens."
import nbformat, numpy as np, pytest
from conftest import ROOT
from perturbench.bench.batch import read_grid
from perturbench.bench.tune import space_of
from perturbench.core import rng
from perturbench.data.simulate import Parameters, simulate
from perturbench.models.base import model_options
from perturbench.models.zoo import MODELS, model_class
from test_tutorials import execute

GRID = ROOT/'grids'/'beyond.yaml'

def test_the_grid_has_every_model_that_needs_no_embedding():
    grid = read_grid(GRID)
    assert [model.name for model in grid.models] and len(grid.models) == len({model.name for model in grid.models})
    assert set(MODELS) - {model.name for model in grid.models} == {'latent_additive_scgpt', 'cpa_scgpt'}
    assert grid.tune.trials == 8 and grid.seeds == [0, 1, 2] and grid.budget.max_epochs == 60

def test_what_is_given_is_the_default_and_no_size_is_searched():
    "Of what a search asks for beside it, only numbers of trees and of axes are sizes, and these are cheap."
    sizes = {'width', 'encoder_width', 'hidden_dim', 'hidden_dim_x', 'hidden_dim_cond', 'latent_dim', 'n_latent',
             'n_layers', 'n_layers_encoder', 'n_layers_encoder_x', 'n_layers_encoder_e', 'n_layers_decoder',
             'n_layers_pert_emb', 'n_layers_graph', 'n_layers_in', 'set_size', 'adv_classifier_hidden_dim'}
    for model in read_grid(GRID).models:
        defaults = model_options(model_class(model.name))
        other = {key: value for key, value in model.options.items() if defaults[key] not in (value, None)}
        assert not other, (model.label, other)
        assert not sizes & set(space_of(model.name, model.options)), model.label

@pytest.fixture(scope='module')
def page():
    "The functions of the page that make a screen smaller."
    nb = nbformat.read(ROOT/'nbs'/'benchmarks'/'beyond_the_zoo.ipynb', as_version=4)
    cell, = (c for c in nb.cells if c.cell_type == 'code' and 'def thinned' in c.source)
    scope = dict(np=np, rng=rng, most_conditions=12, most_cells=60)
    exec(cell.source, scope)
    return scope

def test_a_larger_screen_loses_conditions_and_cells_by_the_rule(page):
    "Two states x 10 perturbations: six stay in both states, five cells of each, and all controls."
    screen = simulate(Parameters(n_genes=60, n_states=2, n_perturbations=10, cells=20, controls=30), 1).screen
    small = page['thinned'](screen)
    rows = small.conditions
    assert rows.n_cells[rows.is_control].tolist() == [30, 30]
    assert (rows.n_cells[~rows.is_control] == 5).all() and rows.perturbation[~rows.is_control].nunique() == 6
    assert rows.groupby('state').size().tolist() == [7, 7]
    again = page['thinned'](simulate(Parameters(n_genes=60, n_states=2, n_perturbations=10, cells=20, controls=30),
                                     1).screen)
    assert list(small.adata.obs_names) == list(again.adata.obs_names)

def test_a_small_screen_stays_as_it_is(page):
    screen = simulate(Parameters(n_genes=60, n_states=1, n_perturbations=4, cells=6, controls=30), 1).screen
    small = page['thinned'](screen)
    assert list(small.adata.obs_names) == list(screen.adata.obs_names)

def test_the_page_runs_small(tmp_path, quick_here, undrawn):
    small = {'n_genes': 50, 'n_states': 2, 'n_perturbations': 20, 'cells': 12, 'controls': 120, 'n_programmes': 6}
    screens = [{'name': 'one', 'simulate': small, 'seed': 1, 'split': {'kind': 'transfer', 'fraction': .4, 'seed': 1}},
               {'name': 'two', 'simulate': small, 'seed': 2, 'split': {'kind': 'transfer', 'folds': 4, 'seed': 1}}]
    instead = {'models': ['control_mean', 'transfer'], 'seeds': [0], 'tune': {'trials': 2}}
    said = execute('benchmarks/beyond_the_zoo', tmp_path, grid=str(GRID), screens=screens, untuned=['two'],
                   instead=instead)
    assert "'one': '3 rows', 'two': '2 rows'" in said
    boards = said[said.index("'rmse_average'"):]
    assert all(f'\n{label}' in boards for label in ('one', 'two', 'control_mean', 'transfer'))
