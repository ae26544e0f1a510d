"Genes that runs keep: which they are, what is known of them, and how they get from a run to the page."
import json
import numpy as np, pandas as pd, pytest
from perturbench.bench.leaderboard import write_report
from perturbench.bench.rescore import rescore
from perturbench.bench.runs import open_run, own_files, read_run, seal
from perturbench.predict import Prediction
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.genes import KEPT, N_DRAWN, N_LARGEST, N_SHARED, gene_table, of_conditions, over_seeds
from perturbench.scoring.genes import same_genes

def predicted(task, change):
    "Measured cells of each condition, changed."
    cells = task.cells('test')
    for code in task.test_conditions():
        yield Prediction(int(code), change(task.store.dense(cells.of(code)).numpy()))

@pytest.fixture(scope='module')
def evaluation(task): return Evaluation(task, ['rmse_delta', 'rmse_average'])

@pytest.fixture(scope='module')
def compared(task, evaluation):
    return evaluation.collect(predicted(task, lambda cells: cells + np.linspace(0, 1, cells.shape[1])[::-1]))

@pytest.fixture(scope='module')
def table(evaluation, compared): return gene_table(evaluation.measured, compared)

def keys(task): return [*task.covariate_keys, 'perturbation']

def test_each_condition_has_its_largest_effects_and_errors(task, compared, table):
    predicted, observed = compared.pred.rows('delta'), compared.true.rows('delta')
    place = {gene: i for i, gene in enumerate(task.genes)}
    for i, (_, rows) in enumerate(table.groupby(keys(task), sort=False)):
        kept = rows.gene.map(place).to_numpy()
        others = np.setdiff1d(np.arange(len(place)), kept)
        for values in (observed[i], predicted[i] - observed[i]):
            assert np.abs(values[others]).max() <= np.sort(np.abs(values))[-N_LARGEST]
        assert len(set(kept)) == len(kept) <= N_SHARED + N_DRAWN + 2*N_LARGEST
        np.testing.assert_allclose(rows.predicted, predicted[i, kept], rtol=1e-5, atol=1e-6)

def test_shared_and_drawn_genes_are_the_same_whoever_predicts(task, evaluation, table):
    other = gene_table(evaluation.measured, evaluation.collect(predicted(task, lambda cells: cells*0)))
    for why in ('shared', 'drawn'):
        genes = [set(one.gene[one.chosen == why]) for one in (table, other)]
        assert genes[0] == genes[1] and len(genes[0]) == (N_SHARED if why == 'shared' else N_DRAWN)

def test_the_standard_error_is_that_of_two_means(task, table):
    first = table.iloc[0]
    measured = Evaluation(task, 'rmse_delta').measured
    cells = task.store.dense(measured.cells(0, 'whole')).numpy()[:, list(task.genes).index(first.gene)]
    control = measured.control_rows(measured.fold[0], measured.state[0], 1)
    control = task.store.dense(control).numpy()[:, list(task.genes).index(first.gene)]
    by_hand = np.sqrt(cells.var(ddof=1)/len(cells) + control.var(ddof=1)/len(control))
    assert first.se == pytest.approx(by_hand, rel=.02)

def test_errors_over_all_genes_are_the_metric(task, evaluation, compared, table):
    scores = evaluation.table(compared).query("metric == 'rmse_delta'").value
    np.testing.assert_allclose(of_conditions([table]).rmse, scores, rtol=1e-5)
    effects = compared.pred.rows('delta'), compared.true.rows('delta')
    doubled = np.sqrt(np.square(2*effects[0] - effects[1]).mean(1))
    np.testing.assert_allclose(of_conditions([table]).rmse_doubled, doubled, rtol=1e-5)

def test_seeds_are_averaged_over_those_that_keep_a_gene(table):
    first = table.head(5)
    second = first.iloc[:3].assign(predicted=first.predicted + 1)
    found = over_seeds([first, second])
    np.testing.assert_allclose(found.predicted - first.predicted.to_numpy(), [.5, .5, .5, 0, 0], atol=1e-6)

def test_few_genes_are_all_kept():
    found = same_genes(np.random.default_rng(0).random((3, 10)))
    assert sorted(found.shared) == list(range(10)) and len(found.drawn) == 0

@pytest.fixture(scope='module')
def folder(tmp_path_factory, quick):
    "Two runs, one of which is of a version that kept no genes."
    out = tmp_path_factory.mktemp('runs')
    for model in ('additive', 'control_mean'):
        run = open_run('sim-transfer', model, out=out)
        run.train()
        home = run.save(run.score())
    about = read_run(home)
    (home/KEPT).unlink()
    seal(home, {name: value for name, value in about.items() if name != 'hardware'})
    return out

def data_of(path):
    "What a file beside the page hands over."
    text = path.read_text(encoding='utf-8')
    return json.loads('[' + text[text.index('(') + 1:text.rindex(')')] + ']')

def test_genes_get_to_the_page_and_old_runs_do_without(folder, undrawn):
    board, files = write_report(folder)
    names = [path.name for path in files]
    assert 'sim-transfer.additive.js' in names and 'sim-transfer.control_mean.js' not in names
    _, data = data_of(folder/'leaderboard_data'/'sim-transfer.js')
    assert data['genes'] == {'additive': 'leaderboard_data/sim-transfer.additive.js'}
    number, label, genes = data_of(folder/'leaderboard_data'/'sim-transfer.additive.js')
    assert (number, label) == (1, 'additive')
    assert [one['name'] for one in genes['conditions']] and {one['name'] for one in genes['conditions']} <= set(
        data['conditions'])
    assert board.n_parameters.gt(0).all() and ', 1 thread' in (folder/'leaderboard.html').read_text()

def test_rescoring_adds_genes_to_old_runs_alone(folder, undrawn):
    n, *done = rescore(folder)
    assert (n, [about['model'] for about in done]) == (1, ['control_mean'])
    home, = (folder/'runs'/'sim-transfer'/'control_mean').iterdir()
    assert KEPT in read_run(home, hashed=('*',))['files'] and KEPT in [path.name for path in own_files(home)]
    assert list(rescore(folder)) == [0]
    assert pd.read_parquet(home/KEPT).predicted.abs().max() < .5
