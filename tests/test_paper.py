"Look-alikes of the published screens, published numbers, and the grids of the paper: what they hold and take."
from functools import cache
import numpy as np, pandas as pd, pytest, yaml
from conftest import ROOT
from perturbench.bench import paper
from perturbench.bench.batch import read_grid, run_grid
from perturbench.bench.leaderboard import write_report
from perturbench.bench.presets import preset_of
from perturbench.cli import main
from perturbench.core import InputError
from perturbench.data.datasets import DATASETS
from perturbench.data.lookalikes import LAYOUTS, PREFIX, lookalike
from perturbench.metrics.accuracy import METRICS
from perturbench.models.zoo import MODELS, presets
from perturbench.splits.kinds import make_splits
from perturbench.splits.parts import TEST, TRAIN
from perturbench.tasks import TASKS

GRIDS, SCREENS = ROOT/'grids', list(LAYOUTS)
BEYOND = {'ridge', 'kernel_ridge', 'bilinear', 'transfer', 'knn', 'matching_mean', 'forest', 'blup', 'blup_residual',
          'flow', 'state_transition'} # Models that the paper does not have
PUBLISHED = {name for name, _ in MODELS.items()} - BEYOND
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
    assert {model.name for model in grid.models} == PUBLISHED
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

# Published numbers

@pytest.mark.parametrize('screen, model, metric, mean, sd', [
    ('srivatsan20', 'biolord', 'mmd_published', 4.3, 4),
    ('srivatsan20', 'covariate_only', 'cosine_rank_logfc', .47, .009),
    ('norman19', 'sams_vae_s', 'mmd_published', .74, .05), ('norman19', 'gears', 'cosine_rank_logfc', .051, .01),
    ('norman19', 'cpa', 'deg_recall_published', .032, .004), ('jiang24', 'decoder_only', 'cosine_logfc', .64, .0008)])
def test_published_number(screen, model, metric, mean, sd):
    table = paper.published(screen)
    found = table[(table.model == model) & (table.metric == metric) & table.source.str.contains('table')]
    assert found[['mean', 'sd', 'n_seeds']].values.tolist() == [[mean, sd, 5]]

def test_the_posters_numbers_are_kept_apart():
    table = paper.published('srivatsan20').query("model == 'cpa_noadv' and metric == 'cosine_logfc'")
    assert dict(zip(table.source.str.contains('poster'), table.sd)) == {False: .005, True: .04}

def test_published_names_are_ours_but_for_what_we_lack():
    table = paper.published()
    assert set(table.model) - {name for name, _ in MODELS.items()} == {'primeflow'}
    assert set(table.metric) - set(METRICS) == {'mmd_published_genes'}
    assert (table[table.metric.str.startswith('mmd')].differs != '').all()
    assert not table.duplicated(['screen', 'model', 'metric', 'source']).any()

def test_published_numbers_stand_beside_those_of_the_same_screen_model_and_metric():
    rows = [('norman19', 'linear-tuned', 'cosine_logfc', .5),
            ('jiang24-released', 'linear-published', 'cosine_logfc', .2),
            ('norman19', 'additive', 'cosine_logfc', .9), ('like-norman19', 'linear', 'cosine_logfc', .9),
            ('norman19', 'linear', 'rmse_average', .1)]
    board = pd.DataFrame(rows, columns=['task', 'model', 'metric', 'mean']).assign(sd=0.)
    found = paper.beside_published(board)[['model', 'ours', 'published']]
    assert found.values.tolist() == [['linear-tuned', .5, .6], ['linear-published', .2, .17]]

# Grids

@pytest.mark.parametrize('name', ['paper', 'poster'])
def test_grid_is_read_and_asks_as_published(name):
    grid = read_grid(GRIDS/f'{name}.yaml')
    assert (grid.seeds, grid.protocol, grid.budget.max_epochs) == ([0, 1, 2, 3], 'perturbench', 500)
    assert (grid.tune.trials, grid.tune.objective) == (60, 'perturbench')

def test_paper_has_all_screens_models_and_presets():
    grid = read_grid(GRIDS/'paper.yaml')
    assert [task.screen for task in grid.tasks] == list(LAYOUTS)
    names = {model.name for model in grid.models}
    assert names == PUBLISHED
    used = {(name, preset_of(name, task)) for name in names for task in grid.tasks} - {(name, None) for name in names}
    known = {(name, preset) for name in names for preset in presets(name) if preset in LAYOUTS}
    assert used == known

def test_poster_scales_the_training_and_not_the_test():
    sizes = [paper.size_of(task.name) for task in read_grid(GRIDS/'poster.yaml').tasks if task.screen != 'srivatsan20']
    assert len({size.tested for size in sizes}) == 1 and len(sizes) == 3
    assert sorted(size.train for size in sizes) == [size.train for size in sizes]

def test_a_dry_run_without_the_screens_says_what_it_would_take_and_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PERTURBENCH_DATA', str(tmp_path/'data'))
    assert main(['run', 'paper', '--dry-run', '-o', str(tmp_path/'out')]) == 2  # its runs cannot be listed
    said, err = capsys.readouterr()
    lacking = [line.rpartition(' ')[2] for line in err.splitlines() if 'perturbench fetch' in line]
    assert lacking == [task.screen for task in read_grid(GRIDS/'paper.yaml').tasks] and set(lacking) == set(LAYOUTS)
    assert 'gpu_hours' in said and 'Traceback' not in err and not (tmp_path/'out').exists()

def test_a_dry_run_lists_what_can_be_run_and_refuses_what_is_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PERTURBENCH_DATA', str(tmp_path/'data'))
    monkeypatch.chdir(tmp_path)
    grid = tmp_path/'grid.yaml'
    grid.write_text('tasks: [sim-transfer, norman19]\nmodels: [control_mean]\nseeds: [0]\n')
    assert main(['run', str(grid), '--dry-run', '-o', 'out']) == 2
    said, err = capsys.readouterr()
    assert ['sim-transfer', 'control_mean'] in [line.split()[:2] for line in said.splitlines()]
    assert err.split()[-3:] == ['perturbench', 'fetch', 'norman19']
    grid.write_text('tasks: [nowhere.h5ad, norman19]\nmodels: [control_mean]\nseeds: [0]\n')
    assert main(['run', str(grid), '--dry-run', '-o', 'out']) == 2
    assert 'nowhere.h5ad' in capsys.readouterr().err

def test_grids_of_a_wheel_are_found(tmp_path, monkeypatch):
    package = tmp_path/'perturbench'
    (package/'grids').mkdir(parents=True)
    (package/'grids'/'paper.yaml').touch()
    monkeypatch.setattr(paper, 'files', dict(perturbench=package).get)
    assert paper.grid_path('paper') == package/'grids'/'paper.yaml'

# Sizes and costs

def test_sizes_are_those_of_the_splits_of_look_alikes():
    for name in ('norman19', 'srivatsan20', 'op3'):
        screen, size = like(name).screen, paper.size_of(name)
        split, = make_splits(screen, DATASETS[name].split)
        tested = np.unique(screen.codes[split.parts.codes == TEST])
        n = int((~screen.conditions.is_control[tested]).sum())
        assert abs(n - size.tested) <= 2 * len(screen.states)
        assert (split.parts.codes == TRAIN).mean() == pytest.approx(size.train/size.cells, abs=.03)

def test_an_estimate_adds_up():
    ask = dict(tasks=['norman19'], models=['control_mean', 'linear'], seeds=[0], budget='full')
    one, two = paper.estimate(ask), paper.estimate(ask | dict(seeds=[0, 1]))
    hours = ['least_hours', 'most_hours', 'gpu_hours', 'disk_gb']
    assert np.allclose(two[hours], 2*one[hours]) and (two.memory_gb == one.memory_gb).all()
    searched = paper.estimate(ask | dict(tune=dict(trials=60)))
    assert list(searched.model) == ['control_mean', 'linear', 'linear-tuned']
    assert searched.trials.tolist() == [0, 0, 60 + 12]
    assert searched.iloc[0].gpu_hours == 0  # nothing is trained

def test_presets_are_part_of_an_estimate_where_a_grid_has_them():
    grid = read_grid(dict(tasks=['norman19', 'op3'], models=['linear', 'cpa']))
    object.__setattr__(grid, 'presets', True)
    assert list(paper.estimate(grid).model) == ['linear', 'cpa', 'linear-published', 'cpa-published',
                                                'linear', 'cpa', 'cpa-published']

def test_every_model_has_its_costs():
    table = paper.costs()
    for stage in ('train', 'predict'):
        rows = table[(table.device == 'cpu') & (table.stage == stage)]
        assert set(rows.model) == {name for name, _ in MODELS.items()}
    assert (table.seconds_a_cell > 0).all() and set(table.device) == {'cpu', 'NVIDIA H200'}

@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_rehearsal_runs(tmp_path, undrawn):
    outcome = run_grid(GRIDS/'rehearsal.yaml', tmp_path)
    assert (outcome.done, outcome.failed) == (168, [])  # 6 tasks x (16 models, 12 of them searched as well)
