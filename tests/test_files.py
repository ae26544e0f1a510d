"Files of predictions: what columns mean, cards, doses, means, copies, and one message for each fault of a file."
import anndata as ad, numpy as np, pandas as pd, pytest
import perturbench.scoring.files as files
from hypothesis import given, settings, strategies as st
from scipy import sparse
from perturbench.core import InputError, rng
from perturbench.data.copies import copies, repeated
from perturbench.data.preprocess import prepare
from perturbench.metrics.accuracy import METRICS
from perturbench.scoring.files import FileScores, evaluate_files, of_cells

GENES, DRUGS = 40, ('control', 'D1', 'D2', 'D3')
BASE = rng(0, 'test_files').gamma(1.5, 2, GENES) + .5
EFFECT = {d: np.exp(rng(i, 'effect').normal(0, .6, GENES)*(i > 0)) for i, d in enumerate(DRUGS)}

def named(letter, n): return pd.DataFrame(index=[f'{letter}{i}' for i in range(n)])

def cells(seed, n=14, lines=('x', 'y'), drugs=DRUGS, doses=(1.,), counts=False, **obs):
    "Cells of each line, drug and dose; the effect grows with the dose."
    r = rng(seed, 'cells')
    rows = [(l, d, s) for l in lines for d in drugs for s in (doses if d != 'control' else (0.,)) for _ in range(n)]
    table = pd.DataFrame(rows, columns=['line', 'drug', 'dose'], index=[f'{seed}_{i}' for i in range(len(rows))])
    base = {l: BASE*(1 + .3*(l == 'y')*np.sin(np.arange(GENES))) for l in lines}
    mean = np.stack([base[l]*EFFECT.get(d, np.ones(GENES))**min(s or 1, 3) for l, d, s in rows])
    c = r.poisson(mean).astype(np.float32)
    c[:, 0] += 1
    X = c if counts else np.log1p(1e4*c/c.sum(1, keepdims=True))
    return ad.AnnData(X.astype(np.float32), obs=table.assign(**obs), var=named('g', GENES))

@pytest.fixture(autouse=True, scope='module')
def alone(models_alone): "No test looks at baselines or references unless it says so."

KEYS = dict(perturbation_key='drug', covariate_keys='line')
FAST = ['rmse_average', 'cosine_logfc']

def run(truth, pred, **kw) -> FileScores:
    pred = pred if isinstance(pred, dict) else {'mine': pred}
    return evaluate_files(truth, pred, **(KEYS | dict(metrics=FAST) | kw))

def mine(found, label='mine'): return found.scores[found.scores.model == label].reset_index(drop=True)

def errors(found): return mine(found).query("metric == 'rmse_average'").value

def halves(found): return found.references.halves.iloc[0]

def noted(found, text): return any(text in o for o in found.notes)

def refused(text, *args, **kw):
    with pytest.raises(InputError) as e: run(*args, **kw)
    assert text in str(e.value), str(e.value)
    return str(e.value)

def without(a, column): return ad.AnnData(a.X, obs=a.obs.drop(columns=column), var=a.var)

# Doses

DOSES = ['dose', 'Dose', 'dose_uM', 'drug_dose', 'conc', 'Concentration (nM)', 'dose value']
FORMS_OF_DOSES = [(name, 'numbers') for name in DOSES] + [
    (name, form) for name in ('drug_dose', 'Concentration (nM)') for form in ('texts', 'categories')]

@pytest.mark.parametrize('name, form', FORMS_OF_DOSES)
def test_doses_are_never_pooled(name, form):
    truth, pred = (cells(s, doses=(.1, 3.)) for s in 'ab')
    for a in (truth, pred):
        a.obs = a.obs.rename(columns={'dose': name})
        if form != 'numbers': a.obs[name] = a.obs[name].astype(str)
        if form == 'categories': a.obs[name] = a.obs[name].astype('category')
    found = run(truth, pred)
    assert set(mine(found)[name].astype(float)) == {.1, 3.} and noted(found, f"'{name}' is taken as the dose")
    swapped = pred.copy()
    swapped.obs[name] = pred.obs[name].astype(object).map(lambda o: {.1: '3', 3.: '0.10', 0.: ''}[float(o)])
    assert errors(run(truth, swapped)).mean() > errors(found).mean() + .05
    with pytest.raises(InputError, match='differ by this dose'): run(truth, without(pred, name))

def test_a_dose_may_be_pooled_when_that_is_asked_for_and_what_is_none_is_left_alone():
    truth, pred = (cells(s, doses=(.1, 3.)) for s in 'ab')
    found = run(truth, without(pred, 'dose'), dose_key='none')
    assert 'dose' not in found.scores and noted(found, 'pooled')
    each = np.arange(truth.n_obs)
    for name, values in dict(dosage=1., total_dose_text='low', diagnose=each % 2, conc=each*1.).items():
        other = without(truth, 'dose')
        other.obs[name] = values
        assert name not in run(other, pred).scores, name

def test_doses_match_as_numbers_and_faults_of_doses_are_named():
    truth, pred = (cells(s, doses=(1., 10.)) for s in 'ab')
    plain = mine(run(truth, pred, dose_key='dose'))
    for text in ({1.: '1', 10.: '10.0', 0.: 'none'}, {1.: '1e0', 10.: ' 10', 0.: ''}):
        other = pred.copy()
        other.obs['dose'] = pred.obs.dose.map(text)
        np.testing.assert_array_equal(mine(run(truth, other, dose_key='dose')).value, plain.value)
    faults = {'10 uM': 'is not numeric', np.nan: 'has no value in', 7.: 'conditions that are not in the truth'}
    for bad, says in faults.items():
        other = pred.copy()
        other.obs['dose'] = pred.obs.dose.astype(object).where(pred.obs.dose != 10., bad)
        refused(says, truth, other, dose_key='dose')

# What a screen knows

@pytest.fixture(scope='module')
def plainly():
    "The scores of the cells 'b' against 'a'."
    return run(cells('a'), cells('b'))

@settings(derandomize=True, deadline=None, max_examples=6)
@given(name=st.sampled_from(['state', 'model', 'value', 'task', 'condition', 'metric', 'n_cells', 'perturbation',
                             'index', 'a/b', '0']))
def test_any_column_may_be_a_covariate(plainly, name):
    truth, pred = (cells(s) for s in 'ab')
    expected = mine(plainly).value
    for a in (truth, pred): a.obs = a.obs.rename(columns={'line': name})
    found = run(truth, pred, covariate_keys=[name])
    np.testing.assert_array_equal(mine(found).value, expected)
    table = [c for c in (name, f'obs:{name}') if c in found.scores and set(found.scores[c]) == {'x', 'y'}]
    assert table and not found.scores.columns.duplicated().any()
    pred.obs = pred.obs.rename(columns={name: table[0]})  # as `perturbench predict` writes it
    np.testing.assert_array_equal(mine(run(truth, pred, covariate_keys=[name])).value, expected)

def test_several_covariates_replicates_batches_targets_and_separators(beside_all):
    made = dict(n=24, drugs=('control', 'D1', 'D2', 'D1|D2'), stage='s', donor=[f'd{i % 4}' for i in range(24)]*8)
    truth, pred = (cells(s, **made) for s in 'ab')
    keys = dict(covariate_keys=['line', 'stage'], sep='|')
    pred.obs['drug'] = pred.obs.drug.astype(str).replace('D1|D2', 'D2|D1')
    plain, by_donor = run(truth, pred, **keys), run(truth, without(pred, 'donor'), replicate_key='donor', **keys)
    assert halves(by_donor).startswith('whole replicates') and halves(plain) == 'cells at random'
    assert halves(run(truth, pred, batch_key='donor', **keys)).startswith('whole batches')
    np.testing.assert_array_equal(mine(plain).value, mine(by_donor).value)
    off = {m for m in METRICS if 'offtarget' in METRICS[m].needs}
    acts, none = (run(truth, pred, targets=o, metrics=[*off, *FAST], **keys)
                  for o in ({'D1': ['g3'], 'D2': ['g4']}, None))
    assert off <= set(acts.scores.metric) and set(none.scores.metric) == set(FAST)
    train = without(cells('c', drugs=('control', 'D1', 'D3'), stage='s'), 'dose')
    assert set(run(truth, pred, replicate_key='donor', train=train, **keys).scores.model) >= {'additive', 'mine'}

@pytest.mark.parametrize('in_file', [True, False])
def test_a_prepared_truth_needs_no_keys(tmp_path, in_file):
    raw = cells('a', counts=True, n=20, doses=(1., 3.), donor=[f'd{i % 4}' for i in range(20)]*14)
    pred, path = cells('b', doses=(1., 3.)), tmp_path/'truth.h5ad'
    screen = prepare(raw, 'drug', ['line'], dose_key='dose', replicate_key='donor', out=path, card=dict(name='t'))
    truth = path if in_file else ad.read_h5ad(path)
    found = evaluate_files(truth, {'mine': pred}, metrics=FAST)
    logs = ad.AnnData(screen.adata.X[:], obs=raw.obs, var=screen.adata.var[[]])
    expected = run(logs, pred, dose_key='dose', replicate_key='donor')
    pd.testing.assert_frame_equal(*(mine(o).drop(columns=['task', 'run_id', 'task_id']) for o in (found, expected)))
    assert 'donor' in str(screen.replicate_key) and halves(found) == halves(expected)
    given = 'drug', 'line', 'control', 'lognorm', '+'
    same = evaluate_files(truth, {'mine': pred}, *given, dose_key='dose', metrics=FAST)
    np.testing.assert_array_equal(mine(same).value, mine(found).value)
    odd = dict(control='DMSO', covariate_keys=['line', 'donor'], sep=None, dose_key='conc', perturbation_key='line',
               replicate_key='line')
    for key, value in odd.items():
        with pytest.raises(InputError, match=f"contradicts its card(.|\n)*--{key.replace('_', '-')}"):
            evaluate_files(truth, {'mine': pred}, metrics=FAST, **{key: value})
    with pytest.raises(InputError, match='leave values'): evaluate_files(truth, {'mine': pred}, values='counts')
    with pytest.raises(InputError, match='no card'): evaluate_files(raw, {'mine': pred})

@pytest.mark.parametrize('control', ['NT-*', ['NT-1', 'NT-2'], ['NT-1', 'NT-?']])
def test_several_controls_are_one(plainly, control, beside_all):
    truth, pred = cells('a'), cells('b')
    expected = mine(plainly).value
    for a, k in ((truth, 2), (pred, 3)):
        a.obs['drug'] = [f'NT-{1 + i % k}' if d == 'control' else d for i, d in enumerate(a.obs.drug)]
    pred.obs['drug'] = pred.obs.drug.replace('NT-3', 'NT-2')
    found = run(truth, pred, control=control)
    assert len(mine(found)) == len(expected) and set(found.scores.perturbation) == {'D1', 'D2', 'D3'}
    np.testing.assert_array_equal(errors(found), expected[::2])
    train = cells('c')
    train.obs['drug'] = train.obs.drug.replace('control', 'NT-1')
    assert 'additive' in set(run(truth, pred, control=control, train=train).scores.model)

# Means

def means(a):
    at, first = a.obs.groupby(['line', 'drug']).ngroup().to_numpy(), ~a.obs.duplicated(['line', 'drug']).to_numpy()
    return ad.AnnData(np.stack([a.X[at == k].mean(0) for k in at[first]]), obs=a.obs[first], var=a.var)

def test_of_means_nothing_is_taken_from_cells(beside_all):
    truth, pred = cells('a'), cells('b')
    one = means(pred)
    found, whole = (run(truth, o, metrics=None, predicted=k) for o, k in ((one, 'means'), (pred, 'cells')))
    table, expected = mine(found).set_index('metric'), mine(whole).set_index('metric')
    for m, part in table.groupby('metric', sort=False):
        undefined = of_cells(METRICS[m])
        assert (set(part.status) == {'means'} and part[['value', 'value_half']].isna().all(None)) == undefined, m
        if not undefined: np.testing.assert_allclose(part.value, expected.value[[m]], atol=1e-5, err_msg=m)
    assert not (found.scores.status[found.scores.model == 'control_mean'] == 'means').any()
    assert [noted(o, '--predicted means') for o in (run(truth, one), whole, found)] == [True, False, False]
    refused('means have one row a condition', truth, pred, predicted='means')
    refused("did you mean 'means'", truth, one, predicted='mean')

def test_single_cells_among_many_stay():
    truth, pred = cells('a'), cells('b')
    few = pred[~((pred.obs.drug == 'D1') & pred.obs.duplicated(['line', 'drug']))]
    found = run(truth, few, metrics=['energy_genes', 'rmse_average'])
    assert not any('means' in o for o in found.notes) and set(mine(found).n_pred) == {1, 14}

# Copies

def disguise(a, kind, r):
    a = a.copy()
    a.obs_names = [f'new{i}' for i in range(a.n_obs)]
    if kind == 'shuffled': a = a[r.permutation(a.n_obs), r.permutation(a.n_vars)].copy()
    if kind == 'float64': a.X = a.X.astype(float)
    if kind == 'float16': a.X = a.X.astype(np.float16).astype(np.float32)
    if kind == 'sparse': a.X = sparse.csc_matrix(a.X)
    if kind == 'renormalised':
        linear = np.expm1(a.X.astype(float))
        a.X = np.log1p(1e4*linear/linear.sum(1, keepdims=True)).astype(np.float32)
    return a

COPIED, LEAKED = 'predicted cells are perturbed cells of the truth', 'of the training cells are cells of the truth'
KINDS = ['renamed', 'shuffled', 'float64', 'float16', 'sparse', 'renormalised']

@pytest.mark.parametrize('kind', KINDS)
def test_cells_of_the_truth_are_found_whatever_they_are_called(kind):
    truth, r = cells('a'), rng(0, kind)
    copy = disguise(truth, kind, r)
    perturbed = truth.obs.drug != 'control'
    refused(f'{perturbed.sum()} of {perturbed.sum()} {COPIED}', truth, copy)
    some = ad.concat([disguise(truth[perturbed][::5], kind, r), cells('b')])
    refused(COPIED, truth, some)
    for leak in (truth[::9], truth[~perturbed][:5]):
        refused(LEAKED, truth, cells('b'), train=ad.concat([cells('c'), disguise(leak, kind, r)], index_unique='-'))

def test_counts_are_found_too_and_so_are_genes_that_were_added():
    truth = cells('a', counts=True)
    refused(COPIED, truth, disguise(truth, 'shuffled', rng(0)), values='counts')
    leak = ad.concat([cells('c', counts=True), disguise(truth[::9], 'renamed', rng(0))], index_unique='-')
    more = ad.AnnData(rng(1).poisson(4, (leak.n_obs, 90)).astype(np.float32), obs=leak.obs, var=named('x', 90))
    wide = ad.concat([leak, more], axis=1, merge='same')
    refused(LEAKED, truth, cells('b', counts=True), values='counts', train=wide)

def test_the_truth_by_its_own_names_is_an_oracle_and_controls_may_be_returned():
    truth = cells('a')
    found = run(truth, truth)
    assert errors(found).max() < 1e-6 and noted(found, 'an oracle, not a prediction')
    part = run(truth, truth[truth.obs.drug != 'D2'])
    assert noted(part, 'an oracle') and (mine(part).status == 'not_predicted').sum() == 2*len(FAST)
    given = truth[truth.obs.drug == 'control']
    back = [ad.AnnData(given.X, obs=given.obs.assign(drug=d), var=given.var) for d in DRUGS[1:]]
    found = run(truth, ad.concat(back, index_unique='-'))
    assert noted(found, 'are control cells of the truth, unchanged') and not found.refused

@settings(derandomize=True, deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), genes=st.sampled_from([12, 40, 400]), mean=st.sampled_from([.02, .3, 3, 30]))
def test_chance_makes_no_copies(seed, genes, mean):
    r = rng(seed, 'chance')
    p = r.gamma(1, mean, genes)
    def drawn(n):
        c = r.poisson(p, (n, genes))
        return sparse.csr_matrix(np.log1p(1e3*c/np.maximum(c.sum(1, keepdims=True), 1)).astype(np.float32))
    a, b = drawn(200), drawn(150)
    assert (copies(a, b) >= 0).sum() <= 1
    order = r.permutation(200)
    found, sure = copies(a[order], a), (np.diff(a[order].indptr) >= 10) & ~repeated(a)[order]
    np.testing.assert_array_equal(found[sure], order[sure])
    assert (found[np.diff(a[order].indptr) < 10] == -1).all()

def test_constant_cells_and_repeated_cells_prove_nothing():
    truth = cells('a')
    flat = ad.AnnData(np.full(truth.shape, 2., np.float32), obs=truth.obs, var=truth.var)
    assert not run(truth, flat).refused
    twice = ad.concat([truth, truth[::6]], index_unique='-')
    assert repeated(sparse.csr_matrix(twice.X)).sum() == 2*len(truth[::6])

# Faults

def other(a, X=None, obs=None, var=None):
    "`a` with another X, obs or var."
    return ad.AnnData(a.X if X is None else X, obs=a.obs if obs is None else obs, var=a.var if var is None else var)

@pytest.mark.parametrize('change, says', [
    (lambda a: a[:0], 'there are 0 cells and 40 genes'),
    (lambda a: a[:, :0], 'there are 112 cells and 0 genes'),
    (lambda a: a[:, 5:], 'genes of the truth are missing (5)'),
    (lambda a: a[a.obs.drug == 'control'], 'there are no predicted cells, only controls'),
    (lambda a: other(a, var=named('h', GENES)), 'genes of the truth are missing (40)'),
    (lambda a: other(a, var=pd.DataFrame(index=['g0', *a.var_names[:-1]])), 'gene names occur more than once'),
    (lambda a: other(a, obs=a.obs.rename(columns={'drug': 'perturb'})), "'drug' is not a column of obs"),
    (lambda a: other(a, np.where(a.X > 5, np.nan, a.X)), 'NaN or infinite'),
    (lambda a: other(a, -a.X), 'negative'),
    (lambda a: other(a, np.rint(a.X)), 'raw counts'),
    (lambda a: other(a, obs=a.obs.replace({'drug': {'D1': 'd1'}})), 'conditions that are not in the truth (2): x, d1'),
])
def test_each_fault_is_one_message_that_names_the_file(tmp_path, change, says):
    truth = cells('a')
    with np.errstate(all='ignore'): change(cells('b')).copy().write_h5ad(tmp_path/'pred.h5ad')
    before = truth.copy()
    with pytest.raises(InputError) as e: evaluate_files(truth, [tmp_path/'pred.h5ad'], metrics=FAST, **KEYS)
    said = str(e.value)
    assert says in said and f'`perturbench check {tmp_path}/pred.h5ad`' in said and said.count('- pred: ') >= 1
    pd.testing.assert_frame_equal(truth.obs, before.obs)

def test_values_below_0_are_scored_as_they_are_and_scaled_data_is_refused():
    truth, pred, files = cells('a'), cells('b'), {}
    for name, X in dict(low=pred.X - .1, scaled=(pred.X - pred.X.mean(0))/pred.X.std(0)).items():
        files[name] = other(pred, X)
    found = evaluate_files(truth, files, metrics=['rmse_average'], **KEYS)
    values = found.scores.set_index('model').value
    assert set(found.refused) == {'scaled'} and 'scaled data?' in found.refused['scaled'][0]
    assert noted(found, 'of the values are below 0, down to -0.1; they are scored as they are')
    def means(a): return a.to_df().groupby([a.obs.line, a.obs.drug], observed=True).mean()
    error = ((means(files['low']) - means(truth))**2).mean(1)**.5
    assert values['low'].mean() == pytest.approx(error.drop('control', level=1).mean(), rel=1e-5)

def test_labels_that_name_nothing_are_left_out_of_both():
    truth, pred = cells('a', drugs=(*DRUGS, 'nan')), cells('b', drugs=(*DRUGS, 'NaN', 'unassigned'))
    found = run(truth, pred)
    assert set(found.scores.perturbation) == {'D1', 'D2', 'D3'} and noted(found, 'name no perturbation')

def test_no_two_messages_send_in_a_circle():
    truth, pred = cells('a', counts=True), cells('b', counts=True)
    pred.X = pred.X + rng(0).gamma(1, .3, pred.shape).astype(np.float32)
    first, second = (refused('', truth, pred, values=v) for v in ('counts', 'lognorm'))
    assert 'log1p' in first and 'lognorm' not in first and '--values counts' in second
    def log(a): return other(a, np.log1p(1e4*a.X/a.X.sum(1, keepdims=True)))
    assert not run(log(truth), log(pred)).refused  # as the message says

def test_all_faults_of_a_file_are_told_in_the_order_of_tables_values_genes_and_conditions():
    truth, pred = cells('a'), cells('b')
    bad = ad.AnnData(np.where(pred.X > 5, np.nan, pred.X)[:, 1:], obs=pred.obs.replace({'drug': {'D1': 'd1'}}),
                     var=pred.var[1:])
    bad.obs_names = ['b_1', *bad.obs_names[1:]]
    said = refused('cell names occur more than once', truth, bad)
    faults = ('cell names', 'X holds NaN', 'genes of the truth are missing (1)', 'conditions that are not in')
    at = [said.index(o) for o in faults]
    assert at == sorted(at) and said.count('- mine: ') == len(faults)

# Reading

FORMS = dict(dense=np.asarray, csr=sparse.csr_matrix, csc=sparse.csc_matrix)

def files_of(folder, truth, pred):
    "The files of a truth, and of its prediction in each form."
    truth.write_h5ad(folder/'truth.h5ad')
    for name, form in FORMS.items(): other(pred, form(pred.X)).write_h5ad(folder/f'{name}.h5ad')
    return folder/'truth.h5ad', {name: folder/f'{name}.h5ad' for name in FORMS}

def counted_reads(monkeypatch):
    "A list that gets each file of predictions that is read."
    read, seen = files.read_cells, []
    monkeypatch.setattr(files, 'read_cells', lambda source, *a: seen.append(source) or read(source, *a))
    return seen

@pytest.mark.parametrize('large', [True, False])
def test_large_files_are_read_in_pieces_and_others_once(tmp_path, monkeypatch, large):
    truth, pred = cells('a'), cells('b')
    pred = pred[rng(0).permutation(pred.n_obs)].copy()
    expected = mine(run(truth, pred)).drop(columns=['model', 'run_id'])
    path, sources = files_of(tmp_path, truth, pred)
    if large:
        monkeypatch.setattr(files, 'IN_MEMORY', 0)
        monkeypatch.setattr(files, 'AT_ONCE', 20*GENES)
    seen = counted_reads(monkeypatch)
    found = run(path, sources)
    for name in FORMS:
        same = mine(found, name).drop(columns=['model', 'run_id']).assign(**expected[['task', 'task_id']])
        pd.testing.assert_frame_equal(same, expected, check_exact=True)
        assert seen.count(sources[name]) == 1 + large

def test_what_is_held_until_it_is_scored_fits_into_memory(tmp_path, monkeypatch):
    path, sources = files_of(tmp_path, cells('a'), cells('b'))
    one = 8*112*GENES + 8*113  # non-zeros of perturbed cells and predicted controls, and where rows start
    monkeypatch.setattr(files, 'IN_MEMORY', 2*one)
    seen = counted_reads(monkeypatch)
    run(path, sources)
    assert [seen.count(o) for o in sources.values()] == [1, 1, 2]
