"Tutorials and benchmark notebooks where their real screens are absent, and what must hold in any of their runs."
import re, shlex
import anndata as ad, nbformat, numpy as np, pandas as pd, papermill, pytest, typer, yaml
from conftest import ROOT
from perturbench.bench.batch import register_engine
from perturbench.cli import app
from perturbench.data.simulate import Parameters, simulate
from perturbench.scoring.files import evaluate_files
from perturbench.splits.kinds import make_splits

def execute(name, folder, smaller=(), **parameters):
    """Execute the notebook `name` with `parameters` in `folder` and in this process; return what it printed.

    `smaller`: pairs of a text in its code and what stands there instead."""
    nb = nbformat.read(ROOT/'nbs'/f'{name}.ipynb', as_version=4)
    for old, new in smaller:
        cell, = (c for c in nb.cells if c.cell_type == 'code' and old in c.source)
        cell.source = cell.source.replace(old, new)
    register_engine()
    with pd.option_context('display.width', 80):
        nb = papermill.execute_notebook(
            nb, None, parameters, engine_name='perturbench', cwd=folder, progress_bar=False)
    return '\n'.join(o.text for c in nb.cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'stream')

TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))
FOR_A_READER = [p for p in TUTORIALS if p.stem != 'what_a_score_can_be_fooled_by'] # which looks into a simulator

def code_of(path):
    "The sources of the code cells of a notebook."
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']

def commands(source):
    "The words of each `perturbench` command in a cell for a shell."
    if not source.startswith(('%%sh', '%%bash')): return
    for line in source.replace('\\\n', ' ').splitlines():
        line = re.split(r'\s(?:\d?>|\||&)', line.strip())[0]
        if line.startswith('perturbench '): yield shlex.split(line)[1:]

def named(paths): return [p.stem for p in paths]

@pytest.mark.parametrize('path', FOR_A_READER, ids=named(FOR_A_READER))
def test_commands_of_a_tutorial_are_ones_that_the_program_takes(path):
    "Each parses, with its options, as the command line does it."
    found = [words for source in code_of(path) for words in commands(source)]
    assert found
    program = typer.main.get_command(app)
    for name, *words in found: program.commands[name].make_context(name, words)

@pytest.mark.parametrize('path', FOR_A_READER, ids=named(FOR_A_READER))
def test_a_tutorial_shows_what_a_reader_can_do(path):
    "It reads a file, has no stand-in for a command and no picture as text, and every grid that it writes is YAML."
    sources = code_of(path)
    text = '\n'.join(sources)
    assert 'read_h5ad' in text or path.stem == 'rerun_the_paper'
    assert not re.search('base64|b64decode|redirect_stdout|from perturbench.cli', text)
    for source in sources:
        first, _, rest = source.partition('\n')
        if first.startswith('%%writefile') and first.endswith('.yaml'): assert isinstance(yaml.safe_load(rest), dict)

def test_commands_are_found_in_a_cell():
    "A pipe, a file and what follows a failure are no words of the command."
    cell = "%%sh\nperturbench run a.yaml \\\n    -o out > board.txt 2> log\nls\nperturbench models | head || true"
    assert list(commands(cell)) == [['run', 'a.yaml', '-o', 'out'], ['models']]
    assert list(commands('perturbench models')) == []

def test_a_tutorial_runs_as_it_stands(tmp_path):
    "Its commands in a shell, where the program is found without being on the path of this process."
    said = execute('tutorials/which_metric_can_i_trust', tmp_path)
    assert 'Traceback' not in said and not any(tmp_path.iterdir())

@pytest.mark.slow
@pytest.mark.timeout(900)
def test_add_a_data_set_without_its_file(tmp_path):
    smaller = [('n_genes=300, n_states=2, n_perturbations=20, cells=60, controls=80',
                'n_genes=80, n_states=2, n_perturbations=12, cells=24, controls=40'),
               ('- additive\n', ''), ('max_epochs: 3', 'max_epochs: 1'), ("'n': 16", "'n': 8")]
    said = execute('tutorials/add_a_data_set', tmp_path, smaller, file='absent.h5ad')
    assert '2 states, 12 perturbations' in said and 'Traceback' not in said
    assert not any(tmp_path.iterdir())

@pytest.fixture(scope='module')
def leak(tmp_path_factory):
    "What a small run of gene_leak leaves."
    folder = tmp_path_factory.mktemp('leak')
    execute(
        'benchmarks/gene_leak', folder,
        screens=[{'name': 'nothing', 'simulate': {'effect_size': 0., 'knockdown': 0.}}],
        seeds=[0, 1],
        models=['linear'],
        size=dict(n_genes=400, n_states=2, n_perturbations=20, cells=12, controls=30, panel=.6),
        genes=dict(hvg=20, de=5),
        budget=dict(max_epochs=1, batch_size=256))
    return pd.read_csv(folder/'results'/'gene_leak.csv')

def test_a_baseline_does_not_care_which_genes_are_modelled(leak):
    rows = leak[leak.model.isin(['perturbed_mean', 'condition_mean', 'additive'])]
    assert len(rows[rows.contrast == 'modelled']) and not rows[rows.contrast == 'modelled'].difference.any()
    total, scored = (rows[rows.contrast == c].set_index(['model', 'metric']).difference for c in ('total', 'scored'))
    pd.testing.assert_series_equal(total, scored)

def test_the_parts_of_the_leak_add_up(leak):
    table = leak[leak.metric == 'rmse_average'].pivot(index='model', columns='contrast', values='difference')
    np.testing.assert_allclose(table[['more cells', 'truth', 'noise']].sum(axis=1), table.scored, atol=5e-5)

@pytest.fixture(scope='module')
def ablated(tmp_path_factory):
    "The folder that a small run of ablations leaves."
    folder = tmp_path_factory.mktemp('ablations')
    execute(
        'benchmarks/ablations', folder,
        tasks=['sim-combination'],
        models=['linear', 'decoder_only', 'covariate_only', 'cpa', 'cpa_noadv'],
        ablations={
            'decoder_only': {'perturbation': {'use_perturbations': False}},
            'cpa': {'adversary': {'use_adversary': False}, 'prior': {'kl_weight': 0.}}},
        seeds=[0],
        budget=dict(max_epochs=3, batch_size=256))
    return folder/'results'

@pytest.fixture(scope='module')
def compared(ablated):
    "Its values, by metric, model and condition."
    return pd.read_csv(ablated/'ablations.csv').groupby(['metric', 'model', 'condition']).value.mean()

def test_an_ablation_is_the_registered_model_without_the_part(compared):
    "The same seed gives the same model, whether an option or a name of its own takes the part away."
    twins = {'decoder_only - perturbation': 'covariate_only', 'cpa - adversary (mean)': 'cpa_noadv (mean)',
             'cpa - adversary (sample)': 'cpa_noadv (sample)'}
    for metric in compared.index.unique('metric'):
        for ablation, name in twins.items():
            pd.testing.assert_series_equal(compared[metric, ablation], compared[metric, name])

def test_what_a_part_is_worth_is_a_mean_of_paired_differences(ablated, compared):
    "By hand from the values: paired by condition, of the mean or of drawn cells, above 0 where it is worse without."
    parts = pd.read_csv(ablated/'ablation_parts.csv').set_index(['part', 'metric'])
    for metric, way, sign in [('rmse_average', 'mean', 1), ('cosine_logfc', 'mean', -1), ('energy_pca', 'sample', 1)]:
        by_hand = sign*(compared[metric, f'cpa - prior ({way})'] - compared[metric, f'cpa ({way})'])
        found = parts.loc[('cpa - prior', metric)]
        assert found.worse == pytest.approx(by_hand.mean()) and found.lo < found.worse < found.hi
    blind = parts.loc[('decoder_only - perturbation', 'rmse_rank_average')]
    assert blind.worse == pytest.approx(.5 - compared['rmse_rank_average', 'decoder_only'].mean())

def test_marks_of_parts_are_holms(ablated):
    "The smallest p of a metric is multiplied by the number of parts, and nothing is marked above the level."
    parts = pd.read_csv(ablated/'ablation_parts.csv')
    for _, p in parts.groupby('metric'):
        assert p.p_holm.min() == pytest.approx(min(1, len(p)*p.p.min()))
        assert (p.marked == (p.p_holm < .05)).all()  # one seed agrees with itself

def test_ablations_know_what_costs_nothing(compared):
    """Of the references, one profile is furthest from cells, and a model told nothing ranks .5.

    Both ways of predicting are there, and a drawn cell is no mean."""
    distance, rank = compared['energy_pca'], compared['rmse_rank_average']
    assert distance['controls + shift'].mean() < distance['controls'].mean() < distance['constant'].mean()
    assert (rank['covariate_only'] == .5).all() and rank['linear'].mean() < .45
    both_ways = {f'{m} ({w})' for m in ('cpa', 'cpa_noadv') for w in ('mean', 'sample')}
    assert both_ways <= set(distance.index.unique('model'))
    assert (distance['cpa (sample)'] != distance['cpa (mean)']).all()

def test_the_distance_of_ablations_is_that_of_a_double_loop(compared, tmp_path):
    "By a double loop over the cells of one condition, from controls as they are."
    from perturbench.loaders.batches import principal_axes
    from perturbench.tasks import open_task
    task = open_task('sim-combination', tmp_path)
    c = int(task.test_conditions()[0])
    axes = principal_axes(task.cells('train'), 50).double().numpy()
    x, y = (task.store.dense(rows).double().numpy() @ axes for rows in (task.given().rows, task.cells('test').of(c)))
    def mean(a, b, same):
        "The mean distance of a cell of `a` from one of `b`, and from itself not where both are the `same`."
        pairs = [(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j]
        return sum(np.sqrt(((p - q)**2).sum()) for p, q in pairs)/(len(a)*(len(b) - same))
    chance = 1/(len(y)//2)  # what a replicate of half the measured cells leaves in
    by_hand = 2*mean(x, y, False) - (1 - chance)*mean(x, x, True) - mean(y, y, True)
    assert compared['energy_pca', 'controls', c] == pytest.approx(by_hand, rel=1e-4)

def test_a_default_is_chosen_by_regrets_of_the_board(tmp_path, quick_here, undrawn):
    "By hand from the leaderboard, and without the screen that takes no part."
    execute(
        'benchmarks/choosing_defaults', tmp_path,
        questions={'linear: output': {'softplus': {'softplus_output': True}, 'as it is': {'softplus_output': False}}},
        screens=[{'name': name, 'simulate': {}, 'seed': seed} for seed, name in enumerate(['one', 'two', 'untouched'])],
        asked_apart='linear: output',
        apart=[{'name': 'apart', 'simulate': {}, 'seed': 3}],
        size=dict(n_genes=60, n_states=2, n_perturbations=16, cells=15, controls=60, panel=.6, effect_size=2.),
        seeds=[0],
        budget=dict(max_epochs=1, batch_size=64))
    board = pd.read_csv(tmp_path/'results'/'leaderboard.csv')
    metrics = ['rmse_average', 'cosine_logfc', 'rmse_rank_average', 'cosine_rank_logfc', 'energy_pca']
    board = board[board.metric.isin(metrics)]
    scores = board.pivot(index=['task', 'metric'], columns='model', values='calibrated').clip(-1, 1).dropna()
    lost = (scores.max(axis=1).values[:, None] - scores).groupby('task').mean()
    lost.columns = [name.endswith('softplus') for name in lost]
    found = pd.read_csv(tmp_path/'results'/'choices.csv').iloc[0]
    counted = ['one', 'two', 'apart']
    mean, ahead = lost.loc[counted].mean(), lost.loc[counted, True] - lost.loc[counted, False]
    assert found['regret of published'] == pytest.approx(mean[True])
    assert (found['chosen'] == 'softplus') == (ahead.mean() <= ahead.sem())
    assert found['untouched'] == pytest.approx(lost.loc['untouched', found['chosen'] == 'softplus'])

def rmse(cells, truth):
    "Of the mean of `cells`, over the conditions of `truth`, by hand."
    def means(a): return a.to_df().groupby([a.obs.cell_type, a.obs.perturbation], observed=True).mean()
    treated = truth[truth.obs.perturbation != 'control']
    return float(((means(cells) - means(treated))**2).mean(axis=1).pow(.5).mean())

def test_beside_the_original_by_hand(tmp_path, undrawn):
    "One model of the 'original' knows the truth, of the other it is all zeros; gains are on one scale."
    folder = tmp_path/'original'
    folder.mkdir()
    screen = simulate(Parameters(n_genes=60, n_states=2, n_perturbations=16, cells=60, controls=120, panel=.6,
                                 effect_size=3.), 0).screen
    split, = make_splits(screen, {'kind': 'transfer', 'seed': 1})
    cells = screen.adata
    pd.Series(split.parts, cells.obs_names).to_csv(folder/'small_split.csv', header=False)
    screen.write(folder/'small.h5ad')
    truth = cells[split.mask('test')].copy()
    truth.write_h5ad(folder/'small_truth.h5ad')
    cells[split.mask('train')].copy().write_h5ad(folder/'small_train.h5ad')
    perfect = truth[truth.obs.perturbation != 'control'].copy()
    nothing = perfect.copy()
    nothing.X = nothing.X*0
    keys = dict(perturbation_key='perturbation', covariate_keys=['cell_type'])
    halves = evaluate_files(truth, {'perfect': perfect}, metrics=['rmse_average'], **keys).controls
    halves.to_csv(folder/'small_controls.csv', index=False)
    for seed in (0, 1):
        perfect.write_h5ad(folder/f'small__linear__{seed}.h5ad')
        nothing.write_h5ad(folder/f'small__decoder_only__{seed}.h5ad')
    said = execute(
        'benchmarks/beside_the_original', tmp_path, source=str(folder), out='ours',
        seeds={'original': [0, 1], 'ours': [0, 1, 2]},
        tasks={'small': {'max_epochs': 1, 'batch_size': 128}}, models={'linear': {}, 'decoder_only': {}})
    assert 'compared on: small' in said
    found = pd.read_csv(tmp_path/'ours'/'gains.csv').query('metric == "rmse_average"').set_index('model')
    assert found.verdict.to_dict() == {'linear': 'worse', 'decoder_only': 'better'}
    def lost(model, original):
        ours = [ad.read_h5ad(tmp_path/'ours'/f'small__{model}__{seed}.h5ad') for seed in (0, 1, 2)]
        return rmse(original, truth) - np.mean([rmse(cells, truth) for cells in ours])
    by_hand = lost('linear', perfect)/lost('decoder_only', nothing)
    assert found.gain['linear']/found.gain['decoder_only'] == pytest.approx(by_hand, rel=1e-4)

def test_beside_the_original_without_it(tmp_path, undrawn):
    said = execute('benchmarks/beside_the_original', tmp_path, source='absent')
    assert 'absent has no predictions of the original' in said
