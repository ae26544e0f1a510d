"An evaluation against its definitions, one condition at a time; what a score must not depend on; every status."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from dataclasses import replace
from scipy import sparse, stats
from perturbench.bench.runs import set_threads
from perturbench.core import InputError
from perturbench.metrics.accuracy import METRICS
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.collect import PredictedCells, along_wave
from perturbench.scoring.measured import HALVES, halve
from perturbench.scoring.profiles import asked, rounds, score
from perturbench.scoring.files import evaluate_files
from perturbench.loaders.batches import principal_axes
from perturbench.scoring.references import duplicate, task_references
from perturbench.metrics.distributions import energy_to_truth, median_distance, mmd_rbf
from perturbench.metrics.effects import read_gene_sets
from perturbench.models.zoo import build_model
from perturbench.predict import Prediction, predict_task
from perturbench.splits.parts import PARTS
from perturbench.tasks import open_task
from perturbench.train import fit, model_info

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    set_threads(1)
    return tmp_path_factory.mktemp('tasks')

@pytest.fixture(scope='module')
def lines(folder, task): return task

@pytest.fixture(scope='module')
def doubles(folder): return open_task('sim-combination', folder)

def predictions(task, name='additive', fold=0, **options):
    model = build_model(name, model_info(task, fold), **options)
    fit(model, task, fold)
    return list(predict_task(model, task, fold, controls=True))

@pytest.fixture(scope='module')
def predicted(lines): return predictions(lines)

@pytest.fixture(scope='module')
def whole(lines, predicted):
    evaluation = Evaluation(lines)
    compared = evaluation.collect(predicted)
    return evaluation.measured, compared, evaluation.table(compared)

def wide(table):
    numbered = table.assign(n=table.groupby('metric').cumcount())
    return numbered.pivot(index='n', columns='metric', values=['value', 'value_half'])

def same(a, b): pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True), check_exact=True)

@pytest.mark.parametrize('seed', range(3))
def test_no_metric_depends_on_which_others_are_asked_for_or_on_the_order_of_anything(lines, predicted, whole, seed):
    r = np.random.default_rng(seed)
    names = [m for m in whole[2].metric.unique() if r.random() < .25 + .5*(seed == 0)]
    found = {}
    for p in predicted: found.setdefault(lines.design.state[p.condition], []).append(p)
    stream = []
    for s in r.permutation(list(found)):
        for p in [found[s][0], *r.permutation(np.array(found[s][1:], object))]:
            stream.append(replace(p, cells=p.cells[r.permutation(len(p.cells))]))
    evaluation = Evaluation(lines, names)
    for again in range(2):  # nor on what was scored before
        table = evaluation.score(stream)
        expected = whole[2][whole[2].metric.isin(names)]
        order = ['cell_type', 'perturbation', 'metric']
        same(table.sort_values(order), expected.sort_values(order))

def test_scores_of_profiles_are_those_of_the_measured_and_predicted_cells(lines, predicted, whole):
    measured, compared, table = whole
    i, value = 5, wide(table)['value'].iloc[5]
    c, state = measured.condition[i], measured.state[i]
    dense = lambda rows: lines.store.dense(rows).numpy().astype(float)
    pred, true = next(p.cells for p in predicted if p.condition == c).astype(float), dense(lines.cells('test').of(c))
    a, b = (dense(lines.controls('test', half=h).where(lines.design.state == state).rows) for h in (0, 1))
    train = lines.cells('train')
    treated = (train.n > 0) & ~lines.design.is_control & (lines.design.state == state)
    centre = np.mean([dense(train.of(k)).mean(0) for k in np.flatnonzero(treated)], axis=0)
    p, t = pred.mean(0), true.mean(0)
    def logfc(x, y): return np.log2(np.maximum(x, 0) + .1) - np.log2(y.mean(0) + .1)
    def foldchange(x, y): return np.log2(np.expm1(x).mean(0).clip(0) + 1) - np.log2(np.expm1(y).mean(0) + 1)
    spaces = dict(
        average=(p, t),
        delta=(p - a.mean(0), t - b.mean(0)),
        centred=(p - centre, t - centre),
        logfc=(logfc(p, a), logfc(t, b)),
        foldchange=(foldchange(pred, a), foldchange(true, b)))
    for space, (x, y) in spaces.items():
        by_hand = dict(
            rmse=np.sqrt(((x - y)**2).mean()),
            mae=np.abs(x - y).mean(),
            cosine=x @ y/np.linalg.norm(x)/np.linalg.norm(y),
            pearson=stats.pearsonr(x, y)[0],
            spearman=stats.spearmanr(x, y)[0],
            r2=1 - ((x - y)**2).sum()/((y - y.mean())**2).sum())
        for name, v in by_hand.items():
            assert value[f'{name}_{space}'] == pytest.approx(v, rel=1e-6, abs=1e-7), (name, space)
    assert value['mae_variance'] == pytest.approx(np.abs(pred.var(0, ddof=1) - true.var(0, ddof=1)).mean(), rel=1e-6)
    assert value['mae_zeros'] == pytest.approx(np.abs((pred == 0).mean(0) - (true == 0).mean(0)).mean(), rel=1e-6)

def test_distributions_are_compared_in_all_genes_and_along_axes_of_training_cells(lines, predicted, whole):
    measured, _, table = whole
    i, value = 3, wide(table)
    c = measured.condition[i]
    cells = next(p.cells for p in predicted if p.condition == c)
    names = map(str, lines.conditions.loc[c, list(lines.covariate_keys)])
    mine = PredictedCells(cells, along_wave(cells), keys=(0, *names))
    axes, n = principal_axes(lines.cells('train'), 50), measured.n[i]//2
    state = lines.cells('test').where((lines.design.state == measured.state[i]) & ~lines.design.is_control).rows
    scale = median_distance(lines.store.dense(state) @ axes)
    for parts, drawn, column in ((['whole'], 8*n, 'value'), (HALVES, n, 'value_half')):
        true = [lines.store.dense(measured.cells(i, part)) for part in parts]
        pred = torch.from_numpy(mine.drawn(drawn)[:drawn])
        def mean(score): return pytest.approx(np.mean([score(o) for o in true]), rel=1e-3, abs=1e-6)
        assert value[column, 'energy_genes'][i] == mean(lambda o: energy_to_truth(pred, o, n))
        assert value[column, 'energy_pca'][i] == mean(lambda o: energy_to_truth(pred @ axes, o @ axes, n))
        assert value[column, 'mmd_rbf_pca'][i] == mean(lambda o: mmd_rbf(pred @ axes, o @ axes, scale))

def test_weights_and_truth_come_from_different_cells(lines, predicted, whole):
    "By scanpy's t test of each half against the other perturbed cells of the state, controls left out."
    import scanpy as sc
    measured, compared, table = whole
    i, value = 7, wide(table)['value'].iloc[7]
    state, dense = measured.state[i], lambda rows: lines.store.dense(rows).numpy()
    here, train = np.flatnonzero(measured.group == measured.group[i]), lines.cells('train')
    rest = train.where((lines.design.state == state) & ~lines.design.is_control).rows
    def weights(k):
        rows = [(measured.cells(j, ('half', k)), j == i) for j in here] + [(rest, False)]
        obs = pd.DataFrame(dict(g=np.repeat(['it' if mine else 'rest' for _, mine in rows], [len(x) for x, _ in rows])))
        a = ad.AnnData(np.concatenate([dense(x) for x, _ in rows]), obs=obs.set_index(obs.index.astype(str)))
        a.obs['g'], a.uns['log1p'] = a.obs.g.astype('category'), {}
        sc.tl.rank_genes_groups(a, 'g', groups=['it'], method='t-test_overestim_var', n_genes=a.n_vars)
        found = a.uns['rank_genes_groups']
        s = pd.Series(np.abs(found['scores']['it']), found['names']['it']).reindex(a.var_names).to_numpy(float)
        s = np.nan_to_num(s)
        return ((s - s.min())/(s.max() - s.min()))**2
    pred, w = compared.pred.mean[i], [weights(k) for k in (0, 1)]
    truth = [dense(measured.cells(i, ('half', k))).mean(0, dtype=float) for k in (0, 1)]
    wmse = lambda t, w: (w*(pred - t)**2).sum()/w.sum()
    assert value['wmse_average'] == pytest.approx((wmse(truth[0], w[1]) + wmse(truth[1], w[0]))/2, rel=1e-3)
    assert value['wmse_miller'] == pytest.approx((wmse(truth[0], w[0]) + wmse(truth[1], w[1]))/2, rel=1e-3)
    top = [np.argsort(-w[k], kind='stable')[:20] for k in (0, 1)]
    errors = [np.sqrt(((pred - truth[k])[top[1 - k]]**2).mean()) for k in (0, 1)]
    assert value['rmse_top20_average'] == pytest.approx(np.mean(errors), rel=1e-3)

def test_tests_are_those_of_scipy_on_equal_numbers_of_cells(lines, predicted, whole):
    "The prediction here has fewer cells than the truth, and no more than it are taken of either."
    measured, _, table = whole
    i, value = 2, wide(table)['value'].iloc[2]
    few = [replace(p, cells=p.cells[:12]) for p in predicted]
    p = next(p.cells for p in few if p.condition == measured.condition[i])
    found = Evaluation(lines, ['de_auprc', 'de_count_error']).score(few)
    b = lines.store.dense(lines.controls('test', half=1).where(lines.design.state == measured.state[i]).rows).numpy()
    a = lines.store.dense(lines.controls('test', half=0).where(lines.design.state == measured.state[i]).rows).numpy()
    def called(x, ref):
        with np.errstate(all='ignore'):
            pv = stats.mannwhitneyu(x.astype(float), ref.astype(float), method='asymptotic', axis=0).pvalue
        return (stats.false_discovery_control(np.where(np.isnan(pv), 1, pv)) < .05).sum()
    n = lines.store.dense(measured.cells(i)).numpy()
    error = found[found.metric == 'de_count_error'].value.iloc[i]
    counts = []
    for s in range(20):
        some = n[np.random.default_rng(s).permutation(len(n))[:12]]
        counts.append(abs(np.log2((1 + called(p, a))/(1 + called(some, b)))))
    assert min(counts) - 1e-9 <= error <= max(counts) + 1e-9

def test_halves_and_thirds_are_disjoint_and_make_up_the_cells(whole):
    measured = whole[0]
    for i in range(len(measured)):
        for kind, n in (('half', 2), ('third', 3)):
            parts = [measured.cells(i, (kind, k)) for k in range(n)]
            assert sorted(np.concatenate(parts)) == sorted(measured.cells(i))
            assert min(map(len, parts)) >= len(measured.cells(i))//4
    assert rounds(METRICS['rmse_average'], True) == [(('half', 0), None, ('half', 1)), (('half', 1), None, ('half', 0))]
    for m in asked():
        for halves in (False, True):
            for truth, weights, replicate in rounds(m, halves) if m.kind in ('accuracy', 'rank') else ():
                assert 'weights' not in m.needs or truth != weights
                if not halves: continue
                assert replicate not in (truth, None)
                assert 'weights' not in m.needs or replicate != weights

def test_a_half_is_of_whole_batches_where_it_can_be():
    half, whole = halve(np.arange(90), np.repeat([0, 1, 2], 30), 'x')
    assert whole
    assert all(len(set(half[k:k + 30])) == 1 for k in (0, 30, 60))
    assert {(half == 0).sum(), (half == 1).sum()} == {30, 60}
    half, whole = halve(np.arange(100), np.repeat([0, 1], [90, 10]), 'x')
    assert not whole and (half == 0).sum() == 50
    assert (halve(np.arange(9), None, 'a')[0] == halve(np.arange(9), None, 'a')[0]).all()
    assert (halve(np.arange(99), None, 'a')[0] != halve(np.arange(99), None, 'b')[0]).any()

def test_interactions_are_of_doubles_and_the_additive_model_has_none_that_helps(doubles):
    names = [m for m in METRICS if METRICS[m].space == 'interaction']
    table = Evaluation(doubles, names + ['rmse_average']).score(predictions(doubles))
    tested = doubles.conditions.loc[doubles.test_conditions()]
    assert len(table[table.metric == 'rmse_average']) == len(tested)
    for m in names:
        assert set(table[table.metric == m].perturbation) == set(tested.perturbation[tested.n_perturbations == 2])
    cells = lambda c: doubles.store.dense(doubles.cells('test').of(c)).numpy()
    truth = [Prediction(int(c), cells(c)) for c in doubles.test_conditions()]
    best = Evaluation(doubles, names).score(truth).groupby('metric').value.mean()
    mine = table.groupby('metric').value.mean()
    assert best['cosine_interaction'] > mine['cosine_interaction'] + .1 and mine['cosine_interaction'] < .2
    for m in ('sign_interaction', 'class_interaction'):
        assert {*table[table.metric == m].value.dropna()} <= {0., 1.}

def test_every_status_says_what_is_missing(lines, predicted):
    conditions = [p for p in predicted if not lines.design.is_control[p.condition]]
    flat = [replace(p, cells=np.repeat(p.cells.mean(0, keepdims=True), 9, 0)) for p in conditions]
    names = ['de_recall', 'energy_pca', 'cosine_foldchange', 'mae_variance', 'rmse_average']
    table = Evaluation(lines, names).score(flat)
    status = table.groupby('metric').status.agg(set)
    assert status['de_recall'] == status['cosine_foldchange'] == status['energy_pca'] == {'little_variance'}
    assert status['mae_variance'] == status['rmse_average'] == {'ok'}
    one = [replace(p, cells=p.cells[:1]) for p in conditions]
    names = ['de_recall', 'energy_pca', 'cosine_foldchange', 'mae_variance', 'mmd_published']
    table = Evaluation(lines, names).score(one)
    status = table.groupby('metric').status.agg(set)
    assert status['de_recall'] == status['energy_pca'] == status['mae_variance'] == {'few_cells'}
    assert status['cosine_foldchange'] == {'little_variance'}
    assert status['mmd_published'] == {'ok'}
    assert table[table.status != 'ok'].value.isna().all()
    own = Evaluation(lines, ['de_count_error', 'de_count_error_own'])
    assert set(own.score(conditions).query("metric == 'de_count_error_own'").status) == {'no_own_control'}
    assert set(own.score(predicted).query("metric == 'de_count_error_own'").status) == {'ok'}
    parts = np.where(lines.parts == PARTS.index('train'), PARTS.index('unused'), lines.parts)
    none = replace(lines, parts=parts.astype(np.int8))
    assert set(Evaluation(none, 'pearson_centred').score(conditions).status) == {'no_training'}
    partial = Evaluation(lines, ['energy_pca', 'de_recall', 'rmse_average']).score(conditions[1:], partial=True)
    assert set(partial[partial.n_pred == 0].status) == {'not_predicted'} and (partial.n_pred == 0).sum() == 3

def test_gene_sets_are_a_space_of_their_own(lines, predicted, whole, tmp_path):
    genes, file = lines.genes, tmp_path/'sets.gmt'
    file.write_text(''.join('\t'.join([f'set {k}', '', *genes[40*k:40*k + 40]]) + '\n' for k in range(8)))
    sets = read_gene_sets(file, genes)
    table = Evaluation(lines, ['cosine_sets', 'cosine_delta'], sets).score(predicted)
    evaluation = Evaluation(lines, 'cosine_delta')
    compared = evaluation.collect(predicted)
    p, t = (o.rows('delta')[0] for o in (compared.pred, compared.true))
    p, t = ([o[40*k:40*k + 40].mean() for k in range(8)] for o in (p, t))
    cosine = np.dot(p, t)/np.linalg.norm(p)/np.linalg.norm(t)
    assert table[table.metric == 'cosine_sets'].value.iloc[0] == pytest.approx(cosine)
    assert 'cosine_sets' not in set(whole[2].metric)
    with pytest.raises(InputError, match='need gene sets'): Evaluation(lines, 'cosine_sets')
    (tmp_path/'odd.gmt').write_bytes(b'\xff\xfe\x00')
    for name in ('odd.gmt', 'none.gmt'):
        with pytest.raises(InputError, match='cannot be read as a GMT file'): read_gene_sets(tmp_path/name, genes)

def screen(n=30, seed=0, perturbations=('ctrl', 'a', 'b', 'c')):
    r = np.random.default_rng(seed)
    obs = pd.DataFrame([(l, p) for l in 'xy' for p in perturbations for _ in range(n)], columns=['line', 'gene'])
    obs.index = [f'{seed}_{i}' for i in range(len(obs))]
    speed = [1 + ['ctrl', 'a', 'b', 'c'].index(p) for p in obs.gene]
    rates = np.stack([np.exp(.4*np.sin(np.arange(40)*k)) for k in speed])
    x = np.log1p(r.poisson(rates)).astype(np.float32)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(40)]))

KEYS = dict(perturbation_key='gene', covariate_keys='line', control='ctrl')

@pytest.mark.parametrize('kind', ['csc', 'csr', 'float16', 'float64', 'int', 'backed', 'integers'])
def test_a_prediction_may_be_kept_in_any_way(kind, tmp_path, models_alone):
    pred = screen(seed=1)
    if kind == 'float16': pred.X = pred.X.astype(np.float16).astype(np.float32)
    if kind == 'integers': pred.X = np.floor(pred.X) + .5*(pred.X > 1)
    names = ['rmse_average', 'cosine_logfc', 'energy_pca', 'de_count_error', 'rmse_rank_average']
    expected = evaluate_files(screen(), {'mine': pred}, metrics=names, **KEYS).scores
    other = pred.copy()
    if kind == 'csc': other.X = sparse.csc_matrix(pred.X)
    if kind == 'csr': other.X = sparse.csr_matrix(pred.X)
    if kind in ('float16', 'float64'): other.X = pred.X.astype(kind)
    if kind == 'backed':
        pred.write_h5ad(tmp_path/'mine.h5ad')
        other = ad.read_h5ad(tmp_path/'mine.h5ad', backed='r')
    found = evaluate_files(screen(), {'mine': other}, metrics=names, **KEYS).scores
    same(found[found.model == 'mine'], expected[expected.model == 'mine'])

def test_zero_genes_and_a_state_with_one_condition_are_no_trouble(beside_all):
    truth, pred = (s[(s.obs.line == 'x') | s.obs.gene.isin(['ctrl', 'a'])].copy() for s in (screen(), screen(seed=1)))
    for s in (truth, pred): s.X[:, :10] = 0
    with np.errstate(all='raise', under='ignore'): table = evaluate_files(truth, {'mine': pred}, **KEYS).scores
    lone = table[(table.model == 'mine') & (table.line == 'y')].set_index('metric')
    assert lone.value['rmse_average'] > 0
    assert np.isnan(lone.value['rmse_rank_average'])
    assert lone.status['rmse_rank_average'] == 'few_candidates'
    assert np.isfinite(lone.value[['energy_pca', 'cosine_logfc', 'de_count_error', 'mae_zeros']].astype(float)).all()
    assert (table.value.abs() < 1e6)[table.value.notna()].all()

def test_the_measured_cells_as_their_own_prediction_are_perfect(lines):
    truth = (Prediction(int(c), lines.store.dense(lines.cells('test').of(c)).numpy()) for c in lines.test_conditions())
    table = Evaluation(lines).score(truth)
    for m, part in table.groupby('metric'):
        k = METRICS[m]
        weighted = 'weights' in k.needs or 'weights_same' in k.needs
        of_measured = k.space in ('average', 'centred', 'variance', 'zeros') and not weighted and k.kind != 'control'
        if of_measured or m == 'mmd_published':
            assert part.value.to_numpy() == pytest.approx(k.best, abs=1e-5), m
        if k.kind != 'distribution' or m == 'mmd_published': continue
        if not k.judged: assert part.value.to_numpy() == pytest.approx(1, abs=1e-5), m
        # an even number of cells: 0
        elif 'n_half' in k.needs: assert part.value.to_numpy() == pytest.approx(0, abs=.1), m
        else: assert (part.value < 0).all(), m  # unbiased: the same cells are closer than others of their kind would be

def test_the_duplicate_is_one_half_against_the_other(lines, whole):
    evaluation = Evaluation(lines, ['rmse_average', 'energy_genes', 'cosine_delta', 'wmse_average'])
    table = wide(duplicate(evaluation))['value']
    i, measured, dense = 4, evaluation.measured, lambda rows: lines.store.dense(rows)
    halves = [dense(measured.cells(4, ('half', k))) for k in (0, 1)]
    both = [energy_to_truth(*o, measured.n[i]//2) for o in (halves, halves[::-1])]
    assert table['energy_genes'][i] == pytest.approx(np.mean(both))
    x, y = (h.double().mean(0).numpy() for h in halves)
    assert table['rmse_average'][i] == pytest.approx(np.sqrt(((x - y)**2).mean()), rel=1e-6)
    # of the batches that a half is made of
    control = {(h, k): measured.controls(h, ('half', k)).mean[i] for h in (0, 1) for k in (0, 1)}
    cos = lambda u, v: u @ v/np.linalg.norm(u)/np.linalg.norm(v)
    one = cos(x - control[0, 0], y - control[1, 1])
    other = cos(y - control[0, 1], x - control[1, 0])
    assert table['cosine_delta'][i] == pytest.approx((one + other)/2, rel=1e-6)

def test_references_stand_where_they_should(lines):
    found = task_references(lines)
    mean = found.pivot_table(index='model', columns='metric', values='value_half')
    assert (mean.loc[['null_control', 'null_mean'], 'rmse_rank_average'] == .5).all()
    assert mean.loc['duplicate', 'rmse_rank_average'] < .3
    assert abs(mean.loc['duplicate', 'energy_unbiased_pca']) < .1 < mean.loc['null_control', 'energy_unbiased_pca']
    assert mean.loc['duplicate', 'energy_pca'] < mean.loc['null_control', 'energy_pca']
    # the mean of many takes noise away
    assert mean.loc['interpolated', 'rmse_average'] < mean.loc['duplicate', 'rmse_average']
    same(task_references(lines), found)

@pytest.mark.parametrize('screen', ['sim-transfer', 'sim-combination'])
def test_the_oracle_is_at_least_the_duplicate_and_reaches_the_limit(screen, lines, doubles):
    "It adds the true effect to the controls that it is given, and has no noise of its own."
    from perturbench.data.simulate import PRESETS
    from perturbench.scoring.intervals import Resamples, limit
    task, simulation = lines if screen == 'sim-transfer' else doubles, PRESETS[screen]()
    truth, effects, genes = simulation.truth, simulation.truth.effects(), list(simulation.screen.genes)
    names = ['pearson_delta', 'rmse_average', 'rmse_rank_average', 'wmse_average']
    evaluation, keys = Evaluation(task, names), [*task.covariate_keys, 'perturbation']
    row = {tuple(o): i for i, o in enumerate(truth.conditions[keys].astype(str).to_numpy())}
    given, at = task.given(), [genes.index(g) for g in task.genes]
    def oracle():
        for c in task.test_conditions():
            controls = task.store.dense(given.rows[task.design.state[given.codes] == task.design.state[c]]).numpy()
            effect = effects[row[tuple(task.conditions.loc[c, keys].astype(str))]][at]
            yield Prediction(int(c), controls + effect.astype(np.float32))
    best, replicate = wide(evaluation.score(oracle())), wide(duplicate(evaluation))['value']
    assert best['value_half', 'pearson_delta'].mean() > replicate['pearson_delta'].mean()
    assert best['value', 'rmse_rank_average'].mean() < replicate['rmse_rank_average'].mean()
    assert best['value_half', 'wmse_average'].mean() < replicate['wmse_average'].mean()
    found = best['value', 'pearson_delta'].to_numpy()
    perturbation = task.conditions.perturbation[evaluation.measured.condition]
    reached = Resamples(perturbation).interval(found)
    r = Resamples(perturbation).interval(replicate['pearson_delta'].to_numpy())
    assert limit(r.lo) - .1 < reached.hi and reached.lo < limit(r.hi) + .1, (reached, limit(np.array(r)))
