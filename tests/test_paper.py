"Look-alikes of the published screens and the grids of the paper: layouts, published splits, rehearsal."
from functools import cache
from pathlib import Path
import numpy as np, pytest, yaml
from conftest import ROOT
from perturbench.bench.batch import read_grid, run_grid
from perturbench.bench.leaderboard import write_report
from perturbench.core import InputError
from perturbench.data.datasets import DATASETS
from perturbench.data.lookalikes import LAYOUTS, PREFIX, lookalike
from perturbench.models.zoo import MODELS
from perturbench.splits.kinds import make_splits
from perturbench.splits.parts import TEST, TRAIN
from perturbench.tasks import TASKS

GRIDS = ROOT/'grids'
SCREENS = list(LAYOUTS)
SPLITS = [(name, task) for name, o in DATASETS.items() for task in (name, *o.tasks) if f'{PREFIX}{task}' in TASKS]

@cache
def like(name): return lookalike(name)

@pytest.mark.parametrize('name', SCREENS)
def test_layout_is_that_of_the_record(name):
    record, screen = DATASETS[name], like(name).screen
    c, expected = screen.conditions, record.expected
    assert screen.n_cells == round(LAYOUTS[name].cells/50)
    assert len(screen.states) == c.is_control.sum() == expected['states']  # each has controls
    assert (c.n_perturbations == 2).sum() == expected['combinations']
    assert len(screen.perturbations) == (155 if name == 'norman19' else expected['singles'])
    assert (screen.perturbation_key, screen.covariate_keys) == (record.perturbation_key, record.covariate_keys)
    assert (screen.control, screen.sep) == (record.control, record.sep)
    assert c.n_cells.min() >= 2

def test_drugs_have_no_gene_and_genes_have_one():
    for name, n_genes in dict(op3=0, srivatsan20=0, norman19=1, jiang24=1).items():
        screen = like(name).screen
        assert {len(screen.target_genes(p)) for p in screen.perturbations} == {n_genes}

def test_truth_is_in_the_order_of_the_screen():
    """With 30 states and lists of their own, the means of cells are nearest to the profile of their own state.

    A shift of rows, or of states against their names, would give each state another's profile."""
    simulation = like('jiang24')
    screen, w = simulation.screen, simulation.truth.world
    assert list(screen.conditions.perturbation) == list(w.conditions.perturbation)
    assert list(screen.conditions.state) == list(w.conditions.state)
    controls = screen.conditions.index[screen.conditions.is_control]
    found = np.stack([np.asarray(screen.adata.X[screen.codes == c].mean(0)).ravel() for c in controls])
    distance = ((found[:, None] - np.log1p(1e4*np.exp(w.baseline))[None])**2).sum(2)
    assert (distance.argmin(1) == np.arange(30)).all()

@pytest.mark.parametrize('name, task', SPLITS)
def test_published_split_applies(name, task):
    split, = make_splits(like(name).screen, TASKS[f'{PREFIX}{task}'].split)
    assert TASKS[f'{PREFIX}{task}'].split == TASKS[task].split
    assert (split.parts.codes == TEST).any() and (split.parts.codes == TRAIN).any()

def test_of_norman_the_published_number_of_doubles_is_tested():
    screen = like('norman19').screen
    split, = make_splits(screen, DATASETS['norman19'].split)
    tested = screen.conditions.loc[np.unique(screen.codes[split.parts.codes == TEST])]
    assert (tested.n_perturbations == 2).sum() in (45, 46)  # of int(.7*131) = 91, half

def test_cells_that_do_not_suffice_are_refused():
    with pytest.raises(InputError, match='give a greater fraction'): lookalike('mcfalinefigueroa23', 1/100)

def test_same_seed_same_cells():
    a, b, c = (lookalike('op3', 1/100, seed).screen.adata for seed in (0, 0, 1))
    assert (a.X != b.X).nnz == 0 and list(a.obs_names) == list(b.obs_names)
    assert a.X.nnz != c.X.nnz

def test_rehearsal_has_every_model_and_the_kinds_of_the_paper():
    grid = read_grid(GRIDS/'rehearsal.yaml')
    assert {model.name for model in grid.models} == {name for name, _ in MODELS.items()}
    kinds = {task.screen: task.split['kind'] for task in grid.tasks}
    assert kinds == {f'{PREFIX}{name}': DATASETS[name].split['kind'] for name in SCREENS}

def test_a_part_of_the_rehearsal_runs(tmp_path, undrawn):
    "Doses and a search among it: two doses of a drug were one condition to a search."
    content = yaml.safe_load((GRIDS/'rehearsal.yaml').read_text())
    content['tasks'] = [task for task in content['tasks'] if task['screen'] == 'like-srivatsan20']
    content['models'], content['tune'] = ['control_mean', 'linear'], dict(trials=1, objective='calibrated')
    outcome = run_grid(content, tmp_path)
    assert (outcome.done, outcome.failed) == (3, [])
    board, _ = write_report(tmp_path)
    assert set(board.model) == {'control_mean', 'linear', 'linear-tuned'}

@pytest.mark.slow
def test_rehearsal_runs(tmp_path, undrawn):
    outcome = run_grid(GRIDS/'rehearsal.yaml', tmp_path)
    assert (outcome.done, outcome.failed) == (168, [])  # 6 tasks x (16 models, 12 of them searched as well)
