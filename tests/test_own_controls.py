"""Predicted controls in files of cells, counts and means are scored as those of a run.

Control cells that are copies of measured ones, or their mean, are no prediction and are not used."""
from functools import cache
import anndata as ad, numpy as np, pandas as pd, pytest, torch
import perturbench.scoring.files as files
from scipy import sparse
from perturbench.bench.runs import set_threads
from perturbench.cli import main
from perturbench.metrics.accuracy import METRICS, OWN
from perturbench.predict import Prediction
from perturbench.scoring.asked import DEFAULTS, Terms, ask
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.files import evaluate_files, logged, of_cells

N_GENES, CONTROL = 30, 'control'
TRUTH = dict(control=80, g1=24, g2=30, g3=17)
KEYS = dict(perturbation_key='gene', covariate_keys='line')
OF_OWN = [k for k, m in METRICS.items() if m.space in OWN or m.space == 'de_own' or m.kind == 'control']
TESTS_OF_OWN = [k for k in OF_OWN if METRICS[k].space in ('de', 'de_own')]
SOME = ['rmse_average', 'cosine_delta', 'cosine_delta_own', 'rmse_logfc_own', 'de_recall_own', 'rmse_control']
USED = 'control cells are taken for what the model predicts without a perturbation'
COPIED, MEANS = 'are cells of the truth', 'their mean is that of controls'

# Cells

def counts(numbers, seed, lines='xy', scale=1.):
    "Counts of cells of each perturbation in each line; lines differ, and effects of perturbations move genes."
    r = np.random.default_rng(seed)
    names = [(line, p) for line in lines for p, n in numbers.items() for _ in range(n)]
    obs = pd.DataFrame(names, columns=['line', 'gene'], index=[f'{seed} {i}' for i in range(len(names))])
    effect = {p: .5*np.sin(np.arange(N_GENES)*int(p[1:])) if p[0] == 'g' else np.zeros(N_GENES) for p in set(obs.gene)}
    of_line = {line: .3*np.cos(np.arange(N_GENES)*(1 + ord(line))) for line in lines}
    mean = np.exp([of_line[line] + effect[p] for line, p in zip(obs.line, obs.gene)])
    X = r.poisson(6*scale*mean*r.gamma(6, 1/6, (len(obs), 1)))
    X[:, 0] += 1
    return ad.AnnData(X.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f'v{i}' for i in range(N_GENES)]))

def log(a):
    "Cells scaled to a common sum, on the log scale."
    return changed(a, np.log1p(1e3*a.X/a.X.sum(1, keepdims=True)).astype(np.float32))

def changed(a, X=None, **obs):
    "`a` with another X, or other columns of obs."
    return ad.AnnData(a.X if X is None else X, obs=a.obs.assign(**obs), var=a.var)

def controls(a): return a[a.obs.gene == CONTROL].copy()
def perturbed(a): return a[a.obs.gene != CONTROL].copy()

def joined(*parts):
    "One file of several parts."
    whole = ad.concat(parts, index_unique='-')
    whole.obs_names = [f'cell {i}' for i in range(whole.n_obs)]
    return whole

def means(a):
    "A row for each condition of `a`."
    at, first = a.obs.groupby(['line', 'gene']).ngroup().to_numpy(), ~a.obs.duplicated(['line', 'gene']).to_numpy()
    rows = [a.X[at == k].mean(0, dtype=float) for k in at[first]]
    return ad.AnnData(np.stack(rows).astype(np.float32), obs=a.obs[first], var=a.var)

TRUE = log(counts(TRUTH, 0))
MINE = log(counts(dict(g1=33, g2=20, g3=26), 1))
OWN_CELLS = log(counts(dict(control=45), 2)) # What the model predicts of controls

# Scores

@pytest.fixture(autouse=True, scope='module')
def one_thread(models_alone): set_threads(1)

def of_model(found, model='mine'):
    table = found.scores[found.scores.model == model].reset_index(drop=True)
    return table.drop(columns=['task', 'task_id', 'model', 'seed', 'run_id'])

def scored(pred, truth=TRUE, metrics=SOME, **kw):
    return evaluate_files(truth, {'mine': pred}, metrics=metrics, **(KEYS | kw))

@cache
def both(metrics=tuple(SOME)):
    "The scores of a file with predicted controls."
    return scored(joined(OWN_CELLS, MINE), metrics=metrics and list(metrics))

@cache
def alone(metrics=tuple(SOME), predicted='cells'):
    "The scores of a file without controls."
    return scored(MINE if predicted == 'cells' else means(MINE), metrics=metrics and list(metrics), predicted=predicted)

def as_run(pred, truth=TRUE, metrics=SOME, values='lognorm', **keys):
    "The scores of the cells of a file as predictions of a run, state by state, controls first."
    means = DEFAULTS | dict(perturbation_key='gene', covariate_keys=['line']) | keys
    asked = ask(truth, None, Terms(means, values=values))
    def predictions():
        for code, (line, p) in asked.task.conditions[['line', 'perturbation']].iterrows():
            cells = sparse.csr_matrix(pred.X[((pred.obs.line == line) & (pred.obs.gene == p)).to_numpy()])
            if cells.shape[0]: yield Prediction(code, logged(cells, values).toarray())
    return Evaluation(asked.task, metrics).score(predictions(), partial=True)

def same(a, b): pd.testing.assert_frame_equal(a, b, check_exact=True)
def only(table, names): return table[table.metric.isin(names)].reset_index(drop=True)
def without(table, names): return table[~table.metric.isin(names)].reset_index(drop=True)
def status(table, names): return set(only(table, names).status)
def noted(found, text): return [o for o in found.notes if text in o]

def unused(pred, text, expected, **kw):
    "Assert that controls of a file are not used, which one note says, and that all scores are those without them."
    found = scored(pred, **kw)
    assert status(of_model(found), OF_OWN) - {'means'} == {'no_own_control'}
    assert [text in o for o in noted(found, 'control cells are')] == [True] and not found.refused, found.notes
    same(of_model(found), of_model(expected))

# Predicted controls

@pytest.fixture(scope='module')
def whole():
    "The scores of a file with predicted controls by all metrics."
    return both(None)

def test_scores_of_a_file_are_those_of_a_run(whole):
    table = of_model(whole)
    same(table, as_run(joined(OWN_CELLS, MINE), metrics=None))
    assert {m for m in set(OF_OWN) - set(table.metric) if '_sets_' not in m and '_offtarget' not in m} == set()
    assert only(table, OF_OWN).groupby('metric').value.count().gt(0).all()
    expected = f'mine: 90 {USED}: metrics in _own start from them, all others from the controls of the truth'
    assert whole.notes.count(expected) == 1

def test_all_other_scores_are_those_of_a_file_without_controls(whole):
    none = of_model(alone(None))
    same(without(of_model(whole), OF_OWN), without(none, OF_OWN))
    assert status(none, OF_OWN) == {'no_own_control'} and only(none, OF_OWN).value.isna().all()

def test_controls_may_stand_anywhere_in_a_file(whole):
    last = joined(MINE, OWN_CELLS)
    preds = dict(last=last)
    for seed in range(3): preds[f'shuffled {seed}'] = last[np.random.default_rng(seed).permutation(last.n_obs)].copy()
    found = evaluate_files(TRUE, preds, **KEYS)
    for name in preds: same(of_model(found, name), of_model(whole))

@pytest.mark.parametrize('n', [2, 7, 300])
def test_controls_may_be_of_any_number(n):
    pred = joined(log(counts(dict(control=n), 3)), MINE)
    same(of_model(scored(pred)), as_run(pred))

def test_controls_of_several_labels_are_pooled(whole):
    names = [f'NT-{1 + i % 3}' for i in range(OWN_CELLS.n_obs)]
    pred = joined(changed(OWN_CELLS, gene=names), MINE)
    truth = changed(TRUE, gene=TRUE.obs.gene.replace(CONTROL, 'NT-1'))
    truth.obs.loc[truth.obs.index[:20], 'gene'] = 'NT-2'
    found = scored(pred, truth, metrics=None, control='NT-*')
    same(of_model(found), of_model(whole))
    copied = changed(controls(TRUE), gene=['NT-2', 'NT-9']*TRUTH['control'])
    unused(joined(copied, MINE), COPIED, scored(MINE, truth, control='NT-*'), truth=truth, control='NT-*')

def test_a_state_without_controls_has_no_own_ones():
    only_y = OWN_CELLS[OWN_CELLS.obs.line == 'y'].copy()
    found = of_model(scored(joined(MINE, only_y)))
    of_x = found.line == 'x'
    same(found[of_x], of_model(alone())[of_x])
    same(found[~of_x], of_model(both())[~of_x])

def test_controls_of_states_that_are_not_tested_are_ignored():
    other = log(counts(dict(control=9), 4, lines='z'))
    found = scored(joined(other, MINE, OWN_CELLS))
    same(of_model(found), of_model(both()))
    assert noted(found, 'mine: 9 control cells are ignored: the truth tests nothing in their states')
    x_only = MINE[MINE.obs.line == 'x'].copy()
    shared = evaluate_files(TRUE, dict(mine=joined(MINE, OWN_CELLS), x=x_only), intersection=True, metrics=SOME, **KEYS)
    plain = of_model(both())
    assert set(of_model(shared).line) == {'x'}
    same(of_model(shared), plain[plain.line == 'x'])

def test_controls_of_counts():
    truth, pred = counts(TRUTH, 0), joined(counts(dict(control=45), 2, scale=.8), counts(dict(g1=33, g2=20, g3=26), 1))
    found = scored(pred, truth, values='counts')
    table = of_model(found)
    same(table, as_run(pred, truth, values='counts'))
    assert only(table, ['cosine_delta_own']).value.notna().all() and noted(found, USED)
    unused(joined(controls(truth), perturbed(pred)), COPIED, scored(perturbed(pred), truth, values='counts'),
           truth=truth, values='counts')

def test_controls_of_doses():
    def dosed(a, text=None): return changed(a, dose=['' if text and p == CONTROL else '1' for p in a.obs.gene])
    names = [m for m in SOME if m != 'de_recall_own']  # draws of cells are keyed by the dose
    found = scored(dosed(joined(MINE, OWN_CELLS), True), dosed(TRUE), names, dose_key='dose')
    np.testing.assert_array_equal(of_model(found).value, of_model(both(tuple(names))).value)

def test_controls_without_covariates():
    one = [o[o.obs.line == 'x'].copy() for o in (TRUE, MINE, OWN_CELLS)]
    for a in one: del a.obs['line']
    truth, mine, own = one
    found = scored(joined(mine, own), truth, covariate_keys=None)
    assert only(of_model(found), ['cosine_delta_own']).value.notna().all()
    found = scored(joined(mine, controls(truth)), truth, covariate_keys=None)
    assert noted(found, 'mine: 80 control cells are not used: 80 of them are cells of the truth')

def test_controls_that_are_far_off_are_called_so():
    far = changed(OWN_CELLS, OWN_CELLS.X + np.float32(2))
    pred = joined(far, MINE)
    table = of_model(scored(pred, metrics=None))
    same(table, as_run(pred, metrics=None))
    effects = [k for k in OF_OWN if METRICS[k].space in OWN]
    assert status(table, effects) == {'control_off'} and only(table, effects).value.isna().all()
    assert only(table, ['rmse_control']).value.gt(1.9).all()

def test_constant_controls_have_effects_and_no_fold_changes():
    flat = changed(OWN_CELLS, np.concatenate([np.tile(x.mean(0), (45, 1)) for x in np.split(OWN_CELLS.X, 2)]))
    pred = joined(flat, MINE)
    found = scored(pred, metrics=None)
    table, cells = of_model(found), of_model(both(None))
    same(table, as_run(pred, metrics=None))
    assert status(table, ['rmse_foldchange_own']) == {'little_variance'} and noted(found, USED)
    for m in ('cosine_delta_own', 'rmse_logfc_own', 'rmse_control'):
        np.testing.assert_allclose(only(table, [m]).value, only(cells, [m]).value, atol=1e-5)

def test_a_single_control_has_a_mean_and_makes_no_test():
    lone = joined(*(OWN_CELLS[OWN_CELLS.obs.line == line][:n] for line, n in (('x', 1), ('y', 9))))
    lone.X = np.where((lone.obs.line == 'x').to_numpy()[:, None], OWN_CELLS.X[:45].mean(0), lone.X)
    table, run = of_model(scored(joined(lone, MINE), metrics=None)), as_run(joined(lone, MINE), metrics=None)
    tests = table.metric.isin(TESTS_OF_OWN) & (table.line == 'x')
    same(table[~tests], run[~tests])
    assert set(table.status[tests]) == {'few_cells'} and table[tests][['value', 'value_half']].isna().all(axis=None)
    assert table[(table.metric == 'cosine_delta_own') & (table.line == 'x')].value.notna().all()
    assert table[(table.metric == 'rmse_control') & (table.line == 'x')].value.notna().all()

# Copies

def disguised(a, kind, r):
    "The cells of `a` in another form."
    a = a[r.permutation(a.n_obs)].copy()
    if kind == 'other genes first': a = a[:, r.permutation(a.n_vars)].copy()
    if kind == 'float16': a.X = a.X.astype(np.float16).astype(np.float32)
    if kind == 'another sum': a.X = np.log1p(7*np.expm1(a.X)).astype(np.float32)
    return a

@pytest.mark.parametrize('kind', ['shuffled', 'other genes first', 'float16', 'another sum'])
def test_copies_of_measured_controls_are_no_prediction(kind):
    copy = disguised(controls(TRUE), kind, np.random.default_rng(0))
    pred = joined(copy, MINE[:, copy.var_names])
    unused(pred, COPIED, alone(None), metrics=None)

def half(name):
    "The measured controls of a half, as the command writes them to controls.csv."
    table = alone().controls
    return TRUE[table.cell[table.half == name]].copy()

@pytest.mark.parametrize('copies', [
    lambda: half('A'), lambda: half('B'), lambda: changed(perturbed(TRUE), gene=CONTROL),
    lambda: changed(controls(TRUE), line=controls(TRUE).obs.line.map(dict(x='y', y='x'))),
], ids=['half A', 'half B', 'perturbed cells', 'of the other line'])
def test_any_measured_cells_are_no_prediction_of_controls(copies): unused(joined(MINE, copies()), COPIED, alone())

@pytest.mark.parametrize('n, k, is_copy', [(45, 1, True), (100, 1, True), (101, 1, False), (400, 2, False),
                                           (400, 3, True)])
def test_a_few_copies_among_many_cells_are_chance(n, k, is_copy):
    "By the rule that holds for conditions."
    of_x = joined(controls(TRUE)[:k], log(counts(dict(control=n - k), 3, lines='x')))
    found = scored(joined(of_x, OWN_CELLS[OWN_CELLS.obs.line == 'y'], MINE))
    table = only(of_model(found), ['cosine_delta_own']).groupby('line').status.agg(set)
    assert table.to_dict() == dict(x={'no_own_control' if is_copy else 'ok'}, y={'ok'})
    assert bool(noted(found, f'mine: {n} control cells of x are not used: {k} of them')) == is_copy
    stolen = joined(perturbed(TRUE)[:k], log(counts(dict(g1=n - k), 3, lines='x')))
    if is_copy:
        with pytest.raises(files.InputError, match=f'{k} of {n} predicted cells are perturbed cells'): scored(stolen)
    else: assert not scored(stolen).refused

def test_cells_that_the_truth_holds_twice_prove_nothing():
    doubled = joined(TRUE, controls(TRUE)[:3])
    pred = joined(controls(TRUE)[:3], OWN_CELLS, MINE)
    assert status(of_model(scored(pred, doubled)), ['cosine_delta_own']) == {'ok'}
    assert noted(scored(pred), 'mine: 48 control cells of x are not used: 3 of them')

def test_copies_in_one_state_leave_the_other_alone():
    mixed = joined(controls(TRUE)[:80], OWN_CELLS[45:], MINE)
    found = scored(mixed)
    table, own = of_model(found), of_model(both())
    same(table[table.line == 'y'], own[own.line == 'y'])
    assert set(only(table, OF_OWN).query("line == 'x'").status) == {'no_own_control'}
    assert noted(found, 'mine: 80 control cells of x are not used')
    assert noted(found, 'mine: 45 control cells of y are taken')

def test_the_truth_itself_has_no_own_controls():
    found = scored(TRUE)
    assert noted(found, 'an oracle, not a prediction') and noted(found, 'mine: 160 control cells are not used')
    assert status(of_model(found), ['cosine_delta_own']) == {'no_own_control'}

def test_a_file_that_is_refused_is_said_nothing_more_of():
    stolen = changed(TRUE)
    stolen.obs_names = [f'mine {i}' for i in range(stolen.n_obs)]
    found = evaluate_files(TRUE, dict(mine=joined(OWN_CELLS, MINE), stolen=stolen), metrics=SOME, **KEYS)
    assert list(found.refused) == ['stolen'] and not noted(found, 'stolen: 160 control cells')
    same(of_model(found), of_model(both()))
    with pytest.raises(files.InputError, match='there are no predicted cells, only controls'): scored(OWN_CELLS)

# Means

def test_a_row_of_controls_is_their_mean(whole):
    found = scored(means(joined(OWN_CELLS, MINE)), metrics=None, predicted='means')
    table, cells = of_model(found), of_model(whole)
    assert noted(found, 'mine: 2 control cells are taken')
    for m in OF_OWN:
        mine, expected = only(table, [m]), only(cells, [m])
        if of_cells(METRICS[m]): assert status(table, [m]) == {'means'} or mine.empty, m
        else: np.testing.assert_allclose(mine.value, expected.value, atol=2e-5, err_msg=m)
    none = of_model(alone(None, 'means'))
    assert status(none, [m for m in OF_OWN if not of_cells(METRICS[m])]) == {'no_own_control'}
    same(without(table, OF_OWN), without(none, OF_OWN))

def test_rows_of_several_labels_are_pooled():
    rows = means(changed(OWN_CELLS, gene=[f'NT-{1 + i % 45//15}' for i in range(90)]))
    truth = changed(TRUE, gene=TRUE.obs.gene.replace(CONTROL, 'NT-1'))
    found = scored(joined(rows, means(MINE)), truth, predicted='means', control=['NT-1', 'NT-*'])
    expected = of_model(both())
    for m in ('cosine_delta_own', 'rmse_logfc_own', 'rmse_control'):
        np.testing.assert_allclose(only(of_model(found), [m]).value, only(expected, [m]).value, atol=1e-5)

@pytest.mark.parametrize('kind', [np.float32, np.float16])
@pytest.mark.parametrize('part', ['all', 'A', 'B'])
def test_the_mean_of_measured_controls_is_no_prediction(part, kind):
    row = means(controls(TRUE) if part == 'all' else half(part))
    row.X = row.X.astype(kind).astype(np.float32)
    unused(joined(row, means(MINE)), MEANS, alone(predicted='means'), predicted='means')
    unused(joined(*[row]*9, MINE), MEANS, alone())

def test_the_mean_of_other_controls_is_a_prediction():
    others = log(counts(dict(control=3000), 5))
    assert noted(scored(joined(means(others), means(MINE)), predicted='means'), USED)

# Threads

def test_files_baselines_and_references_have_the_same_bits_one_by_one_and_side_by_side(beside_all):
    sources, train = dict(mine=joined(MINE, OWN_CELLS), other=MINE), log(counts(TRUTH, 3))
    n, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(evaluate_files(TRUE, sources, train=train, **KEYS))
            assert torch.get_num_threads() == threads
    finally: torch.set_num_threads(n)
    assert list(found[0].scores.model.unique()) == ['mine', 'other', *files.BASELINES]
    for tables in zip(*((o.scores, o.references, o.runs, o.genes) for o in found)): same(*tables)

# Large files

@pytest.mark.parametrize('large', [True, False])
def test_large_files_are_read_in_pieces(tmp_path, monkeypatch, whole, large):
    pred = joined(MINE, OWN_CELLS)[np.random.default_rng(0).permutation(248)].copy()
    if large:
        monkeypatch.setattr(files, 'IN_MEMORY', 0)
        monkeypatch.setattr(files, 'AT_ONCE', 20*N_GENES)
    forms = dict(dense=np.asarray, csr=sparse.csr_matrix, csc=sparse.csc_matrix)
    for name, form in forms.items(): changed(pred, form(pred.X)).write_h5ad(tmp_path/f'{name}.h5ad')
    found = evaluate_files(TRUE, [tmp_path/f'{name}.h5ad' for name in forms], **KEYS)
    for name in forms: same(of_model(found, name), of_model(whole))
    changed(joined(controls(TRUE), MINE)).write_h5ad(tmp_path/'mine.h5ad')
    found = evaluate_files(TRUE, [tmp_path/'mine.h5ad'], metrics=SOME, **KEYS)
    assert noted(found, COPIED)
    same(of_model(found), of_model(alone()))

@pytest.mark.parametrize('room', [0, 2**31])
def test_no_more_than_a_state_of_controls_and_a_condition_are_read_at_a_time(tmp_path, monkeypatch, room):
    "Conditions that are made dense, one by one, and the numbers of their cells."
    monkeypatch.setattr(files, 'IN_MEMORY', room)
    monkeypatch.setattr(files, 'AT_ONCE', 1)
    joined(MINE, OWN_CELLS).write_h5ad(tmp_path/'mine.h5ad')
    handed = []
    def watched(code, cells):
        handed.append((code, len(cells)))
        return Prediction(code, cells)
    monkeypatch.setattr(files, 'Prediction', watched)
    evaluate_files(TRUE, [tmp_path/'mine.h5ad'], metrics=['rmse_delta_own'], **KEYS)
    assert handed == [(0, 45), (1, 33), (2, 20), (3, 26), (4, 45), (5, 33), (6, 20), (7, 26)]

# The challenge and the command

def test_controls_do_not_enter_the_challenge():
    truth, pred = counts(TRUTH, 0), counts(dict(g1=33, g2=20, g3=26), 1)
    found = [scored(o, truth, values='counts', metrics=None, profile='vcc2026')
             for o in (pred, joined(pred, counts(dict(control=45), 2)))]
    pd.testing.assert_frame_equal(found[0].challenge, found[1].challenge)

def test_the_command_scores_controls_of_a_file_as_those_of_a_run(undrawn, beside_all, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    TRUE.copy().write_h5ad('truth.h5ad')
    pred = joined(MINE, OWN_CELLS)
    pred.write_h5ad('mine.h5ad')
    joined(controls(TRUE), MINE).write_h5ad('copied.h5ad')
    keys = ['--perturbation-key', 'gene', '--covariate-keys', 'line']
    assert main(['evaluate', 'truth.h5ad', 'mine.h5ad', 'copied.h5ad', *keys, '-o', 'out']) == 0
    said, scores = capsys.readouterr().out, pd.read_parquet('out/scores.parquet')
    assert 'note: mine: 90 control cells are taken' in said and 'note: copied: 160 control cells are not used' in said
    expected = as_run(pred, metrics=None)
    table = scores[scores.model == 'mine'].reset_index(drop=True)[list(expected)]
    pd.testing.assert_frame_equal(table, expected, check_exact=True, check_dtype=False)
    copied = scores[scores.model == 'copied']
    assert set(copied.status[copied.metric.isin(OF_OWN)]) == {'no_own_control'}
