"What has to work from end to end: small counts, odd names, several covariates, from `prepare` to `evaluate`."
import json
from pathlib import Path
import anndata as ad, numpy as np, pandas as pd, pytest, torch
import perturbench.models.zoo
from perturbench.cli import main
from perturbench.scoring.evaluation import evaluate_task
from perturbench.models.base import build_model
from perturbench.predict import predict_task
from perturbench.tasks import open_task
from perturbench.train import batches, fit, model_info

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def cli(*args): assert main([str(a) for a in args]) == 0, args

def counts(rows, columns, n={}, control='control', n_genes=150):
    "Cells of the conditions `rows` as counts: 8 controls, 4 cells of all else, or as `n` says by name."
    r = np.random.default_rng(0)
    def change(p): return np.exp(.8*r.normal(size=n_genes)*(r.random(n_genes) < .2)*(p != control))
    level = {p: change(p) for p in sorted({row[-1] for row in rows})}
    number = lambda p: n.get(p, 8 if p == control else 4)
    obs = pd.DataFrame([row for row in rows for _ in range(number(row[-1]))], columns=columns).astype('category')
    X = r.poisson(r.gamma(.5, 4., n_genes)*np.stack([level[p] for p in obs.iloc[:, -1]])).astype(np.float32)
    obs.index = [f'Zelle {i}' for i in range(len(obs))]
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(n_genes)]))

def scores_of(out):
    files = sorted(Path(out).glob('runs/*/*/*/scores.parquet'))
    return pd.concat([pd.read_parquet(p) for p in files], ignore_index=True)

PAIRS = ['p1', 'p2', 'p3', 'p4', 'p1+p2', 'p1+p3', 'p2+p3', 'p3+p4', 'p2+p4']

def test_one_value_of_the_covariate_one_cell_in_a_condition_and_in_the_last_batch(at, undrawn):
    rows = [('only', p) for p in ('control', *PAIRS)]
    counts(rows, ['line', 'what'], n={p: 1 for p in PAIRS[1:]}).write_h5ad('raw.h5ad')
    cli('prepare', 'raw.h5ad', '--perturbation-key', 'what', '--covariate-keys', 'line', '-o', 'screen.h5ad')
    task = open_task('screen.h5ad', 'out')
    assert task.design.covariates == {'line': ['only']}
    assert len(task.genes) > 125
    assert (task.cells('test').n[task.test_conditions()] == 1).all()
    inject = dict(
        linear='inject_covariates',
        latent_additive='inject_covariates_encoder',
        decoder_only='use_covariates',
        covariate_only='use_covariates')
    size = len(task.cells('train').where(~task.design.is_control)) - 1
    assert [len(b) for b in batches(build_model('linear', model_info(task)), task, 'train', 0, size, 0)] == [size, 1]
    models = [{'name': k, v: True} for k, v in inject.items()]
    grid = dict(tasks=['screen.h5ad'], models=models, budget=dict(max_epochs=2, batch_size=size))
    Path('grid.yaml').write_text(json.dumps(grid))
    cli('run', 'grid.yaml', '-o', 'out')
    found = scores_of('out')
    assert set(found.model) == set(inject) and set(found.n_true) == {1} and set(found.task_id) == {task.task_id}
    assert found.value[found.metric.isin(['rmse_average', 'mae_average'])].notna().all()
    assert set(found.status) <= {
        'ok', 'few_candidates', 'no_signal', 'few_cells', 'no_difference', 'no_own_control', 'little_variance',
        'no_training', 'few_controls'}

# with sep='+' three of them are combinations
ODD = ['TP53_v2', 'TGF-β/1', 'a, b', '药+1', '"q"', "5'_x", 'nan', '1', 'a,b/c_d', 'e+f+g']

@pytest.mark.parametrize('sep', ['none', '+'])
def test_odd_names_and_several_covariates_from_prepare_to_evaluate(at, sep, request):
    if sep == '+':  # the names are the same
        for fixture in ('undrawn', 'quick_here'): request.getfixturevalue(fixture)
    lines, stages = ['K562_a', 'Zürich, 2', 'x+y/z'], ['früh_1', '2+']
    rows = [(l, s, p) for l in lines for s in stages for p in ('ctrl; 0 %', *ODD)]
    raw = counts(rows, ['Linie', 'Stufe, β', 'Störung_+'], control='ctrl; 0 %')
    raw.write_h5ad('Mäuse, 1_+.h5ad')
    keys = [
        '--perturbation-key', 'Störung_+', '--covariate-keys', 'Linie', '--covariate-keys', 'Stufe, β',
        '--control', 'ctrl; 0 %', '--sep', sep]
    cli('prepare', 'Mäuse, 1_+.h5ad', *keys, '-o', 'Schirm, β_+.h5ad')
    split = dict(kind='transfer', fraction=.5)
    question = dict(screen='Schirm, β_+.h5ad', name='Aufgabe, β_+', split=split, genes=dict(hvg=100, de=3))
    models = ['additive', dict(name='latent_additive', **{'as': 'netz, β_+ ×1'})]
    grid = dict(tasks=[question], models=models, budget=dict(max_epochs=2, batch_size=32))
    Path('grid.yaml').write_text(json.dumps(grid))
    cli('run', 'grid.yaml', '-o', 'Ergebnis, β')
    found, run = scores_of('Ergebnis, β'), next(Path('Ergebnis, β').glob('runs/Aufgabe, β_+/netz, β_+ ×1/*'))
    assert set(found.perturbation) <= set(ODD) and set(found['Linie']) == set(lines)
    assert set(found['Stufe, β']) == set(stages)
    assert set(found.task) == {'Aufgabe, β_+'}
    split = pd.read_csv(next(Path('Ergebnis, β').glob('tasks/*/split.csv')), index_col=0).part
    screen = ad.read_h5ad('Schirm, β_+.h5ad')
    card = json.loads(screen.uns['perturbench'])
    assert card['sep'] == (None if sep == 'none' else '+') and card['covariate_keys'] == ['Linie', 'Stufe, β']
    # what the run tested, asked for again by a table, and scored against the cells that were held out
    tested = found.drop_duplicates(['Linie', 'Stufe, β', 'perturbation'])[['perturbation', 'Stufe, β', 'Linie']]
    tested.to_csv('Fragen, β.csv', index=False)
    cli('predict', run, 'Fragen, β.csv', '-o', 'Vorhersage, β_+.h5ad')
    predicted = ad.read_h5ad('Vorhersage, β_+.h5ad')
    asked = predicted.obs.drop_duplicates().reset_index(drop=True)[tested.columns]
    assert asked.astype(str).equals(tested.reset_index(drop=True).astype(str))
    assert 100 <= predicted.n_vars < screen.n_vars
    screen[(split[screen.obs_names] == 'test').to_numpy()][:, predicted.var_names].write_h5ad('Wahrheit, β.h5ad')
    cli('evaluate', 'Wahrheit, β.h5ad', 'Vorhersage, β_+.h5ad', *keys, '-o', 'Urteil, β')
    again = pd.read_parquet('Urteil, β/scores.parquet').query("model == 'Vorhersage, β_+'")
    by = ['Linie', 'Stufe, β', 'perturbation', 'metric']
    both = found[found.model == 'netz, β_+ ×1'].merge(again, on=by, suffixes=('', '_again'), validate='1:1')
    assert len(both) == len(again) and (both.metric == 'rmse_average').sum() == len(tested)
    # effects are taken against other halves of the controls
    levels = both[both.metric.isin(['rmse_average', 'mae_average', 'rmse_rank_average'])]
    np.testing.assert_allclose(levels.value, levels.value_again, rtol=1e-5)

def test_predictions_with_genes_in_another_order_score_the_same(at, undrawn):
    truth = counts([(l, p) for l in 'AB' for p in ('control', *PAIRS)], ['line', 'what'])
    truth.X = np.log1p(truth.X*1.3)
    r = np.random.default_rng(1)
    pred = truth[truth.obs.what != 'control'].copy()
    pred.X = pred.X*np.exp(.3*r.normal(size=pred.shape)).astype(np.float32)
    pred.obs['what'] = ['+'.join(reversed(p.split('+'))) for p in pred.obs.what]  # nor does the order of parts matter
    truth.write_h5ad('truth.h5ad')
    keys, found = ['--perturbation-key', 'what', '--covariate-keys', 'line'], []
    for name, genes in (('same', np.arange(150)), ('other', r.permutation(150))):
        Path(name).mkdir()
        pred[:, genes].copy().write_h5ad(f'{name}/mine.h5ad')
        cli('evaluate', 'truth.h5ad', f'{name}/mine.h5ad', *keys, '-o', f'{name}/out')
        found.append(pd.read_parquet(f'{name}/out/scores.parquet'))
    pd.testing.assert_frame_equal(*found, check_exact=True)
    assert (Path('same/out/leaderboard.csv').read_bytes()) == Path('other/out/leaderboard.csv').read_bytes()
    mine = found[0][(found[0].model == 'mine') & found[0].status.isin(['ok', 'few_controls'])]
    assert mine.value.notna().all()
    assert (mine.groupby('metric').size()[['rmse_average', 'cosine_logfc', 'energy_pca', 'mae_zeros']] == 18).all()

def test_a_covariate_may_be_called_model(at, undrawn, quick_here):
    a = counts([(l, p) for l in 'AB' for p in ('control', 'p1', 'p2')], ['model', 'what'])
    a.write_h5ad('raw.h5ad')
    keys = ['--perturbation-key', 'what', '--covariate-keys', 'model']
    a.X = np.log1p(1e4*a.X/a.X.sum(1, keepdims=True))
    a.write_h5ad('log.h5ad')
    cli('prepare', 'raw.h5ad', *keys, '-o', 'screen.h5ad')
    cli('evaluate', 'log.h5ad', 'log.h5ad', *keys, '-o', 'out')
    scores = pd.read_parquet('out/scores.parquet')
    assert set(scores.model) == {'log', 'control_mean'} and set(scores['obs:model']) == {'A', 'B'}

def test_latent_additive_beats_covariate_only_whose_rank_is_one_half(task):
    rank = {}
    for name in ('latent_additive', 'covariate_only'):
        torch.manual_seed(0)
        model = build_model(name, model_info(task))
        fit(model, task, budget=dict(max_epochs=8, batch_size=256))
        names = ['rmse_rank_average', 'cosine_rank_logfc']
        rank[name] = evaluate_task(task, predict_task(model, task), names).groupby('metric').value
    assert (rank['covariate_only'].min() == .5).all() and (rank['covariate_only'].max() == .5).all()
    assert (rank['latent_additive'].mean() < .4).all(), rank['latent_additive'].mean()
