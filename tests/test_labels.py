"Labels and names of columns: several controls, names of nothing, names that hold a separator, covariates of any name."
from functools import cache
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import sparse
from perturbench.core import InputError
from perturbench.data.h5ad import read_card
from perturbench.data.labels import (
    alike, control_family, control_patterns, merge_controls, names_nothing, relabel, split_name, unnamed)
from perturbench.data.preprocess import prepare
from perturbench.data.screen import RESERVED, Screen, obs_key, read_screen, table_key
from perturbench.loaders.disk import shuffle_file
from perturbench.loaders.store import CellStore
from perturbench.splits.check import leak_check
from perturbench.splits.kinds import make_splits

few = dict(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

def counts(labels, n=12, lines=('A', 'B'), **columns):
    "Counts of `n` cells of each label in each line; columns are given as values in turn."
    what = np.tile(np.repeat(np.array(labels, object), n), len(lines))
    X = np.random.default_rng(0).poisson(3, (len(what), 20)).astype(np.float32)
    obs = pd.DataFrame(dict(what=what, line=np.repeat(lines, n*len(labels))), index=[f'c{i}' for i in range(len(what))])
    for k, v in columns.items(): obs[k] = np.resize(np.array(v, object), len(what))
    return ad.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(20)]))

def refused(says, *args, **options):
    with pytest.raises(InputError) as e: prepare(*args, **options)
    for o in [says] if isinstance(says, str) else says: assert o in str(e.value)
    return str(e.value)

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

# names that hold the separator

SMILES = ['CC(=O)OC1=CC=CC=C1C(=O)O', 'C[NH2+]CC', '[O-][N+](=O)c1ccccc1', 'CC[N+](C)(C)C.[Br-]', 'NCCO']

@pytest.mark.parametrize('names', [
    SMILES,
    [*SMILES, 'C[NH2', 'X'],
    ['RPMI (FBS+PenStrep)', 'drug A'],
    ['mTeSR [bFGF+TGFb]', 'KLF1', 'BAK1', 'KLF1+BAK1']])
def test_a_separator_within_brackets_is_pointed_out(names):
    said, = [o for o in prepare(counts(['control', *names]), 'what', 'line').card['notes'] if 'brackets' in o]
    assert '--sep none' in said and f'of {len(names)} names' in said
    assert not prepare(counts(['control', *names]), 'what', 'line', sep=None).card['notes']

def test_parts_that_occur_nowhere_else_are_pointed_out():
    notes = prepare(counts(['control', 'DMEM+FBS', 'N2+B27', 'IL2']), 'what', 'line').card['notes']
    assert len(notes) == 1
    said = "2 of 3 names are split at '+' and none of their parts occurs in another name: 'DMEM+FBS', 'N2+B27'"
    assert notes[0].startswith(said)

@pytest.mark.parametrize('names', [
    ['A', 'B', 'A+B'],
    ['A+B', 'A+C'],
    ['A+control', 'B'],
    ['A', 'B', 'A+B', 'C+A', 'D+E']])
def test_combinations_are_no_alarm(names): assert not prepare(counts(['control', *names]), 'what', 'line').card['notes']

@pytest.mark.parametrize('sep', ['_', '.', '|', '.*', '||', ' + ', '$', '\\', '[', '^', 'x'])
def test_a_separator_is_a_text_and_no_pattern(sep):
    s = prepare(counts(['control', 'KLF1', 'BAK1', f'KLF1{sep}BAK1', f'control{sep}IRF1']), 'what', 'line', sep=sep)
    assert s.perturbations == ['BAK1', 'IRF1', 'KLF1']
    assert s.conditions.n_perturbations.max() == 2
    assert not s.card['notes']

@pytest.mark.parametrize('sep', ['', 0, 7, b'+', ['+']])
def test_what_cannot_join_names_is_refused(sep):
    refused('is no text that can join names', counts(['control', 'A']), 'what', 'line', sep=sep)
    with pytest.raises(InputError, match='no text that can join names'):
        Screen(prepare(counts(['control', 'A']), 'what').adata, 'what', sep=sep)

def test_empty_parts_are_refused_with_the_remedy():
    labels = ['control', 'Ca2+', 'Na+', 'KLF1+ ']
    text = refused(['empty part', '--sep none', '(and 2 more)'], counts(labels), 'what', 'line')
    assert text.count('empty part') == 1

def test_a_part_that_repeats_is_pointed_out():
    notes = prepare(counts(['control', 'B', 'A+A', 'B+A']), 'what', 'line').card['notes']
    assert notes == ["a part occurs twice in a combination and counts once: 'A+A'"]

@pytest.mark.parametrize('joint', ['_', ';', '|', ',', '&', ':', ' + ', '-'])
def test_another_separator_is_pointed_out(joint):
    sep = '+' if joint != ' + ' else '/'
    labels = ['control', 'KLF1', 'BAK1', f'KLF1{joint}BAK1', f'control{joint}KLF1']
    notes = prepare(counts(labels), 'what', 'line', sep=sep).card['notes']
    assert len(notes) == 1
    assert notes[0].startswith(f"2 of 4 names are others joined by '{joint}'")
    assert f"--sep '{joint}'" in notes[0]
    assert not prepare(counts(['control', 'KLF1_1', 'KLF1_2', 'HLA-A', 'BAK1']), 'what', 'line').card['notes']

# names of no perturbation

@pytest.mark.parametrize('name', [
    'NaN', 'n/a', '<NA>', 'NULL', 'Unassigned', 'UNKNOWN', 'un-mapped', 'Ambiguous', 'Doublets', 'multiplet 3',
    'multiple_guides', 'No gRNA', 'not_assigned', 'undefined', '?', '--', ' ', '\t', '\u00a0', 'N.A.', 'none '])
def test_names_of_nothing_are_left_out_and_counted(at, name):
    pair = f'KLF1+{name}' if name.strip() else 'GATA1+KLF1'
    s = prepare(counts(['control', 'KLF1', 'GATA1', name, pair]), 'what', 'line', out='a.h5ad')
    assert s.perturbations == ['GATA1', 'KLF1']
    n = sum(o['n'] for o in s.card['dropped'])
    assert n == (48 if name.strip() else 24) and s.n_cells == 120 - n
    assert repr(name) in s.card['notes'][0] and '--keep' in s.card['notes'][0]
    assert read_card('a.h5ad')['dropped'] == s.card['dropped']
    assert not prepare(s.adata.copy(), 'what', 'line', values='lognorm').card['notes']

@pytest.mark.parametrize('name', ['nan', 'None', 'unassigned', 'NA'])
def test_a_name_that_is_kept_is_a_perturbation(at, name):
    a = counts(['control', 'KLF1', name, f'KLF1+{name}', 'doublet'])
    s = prepare(a, 'what', 'line', keep=[name], out='a.h5ad')
    assert s.perturbations == sorted(['KLF1', name]) and [o['n'] for o in s.card['dropped']] == [24]
    assert read_screen('a.h5ad').conditions.equals(s.conditions)
    assert prepare(a, 'what', 'line', keep=name).perturbations == s.perturbations

@pytest.mark.parametrize('name', ['None', 'nan', 'negative', 'N/A'])
def test_a_control_is_a_control_whatever_it_is_called(name):
    s = prepare(counts([name, 'KLF1', f'GATA1+{name}']), 'what', 'line', control=name)
    assert s.perturbations == ['GATA1', 'KLF1'] and not s.card['dropped']

def test_negative_is_no_call_beside_doublets_only():
    assert unnamed(['Negative', 'Singlet', 'X'], 'ctrl', '+') == ['Negative']
    assert unnamed(['Negative', 'X'], 'ctrl', '+') == []
    assert "'Negative'" in prepare(counts(['control', 'Negative', 'KLF1']), 'what', 'line').card['notes'][0]

@pytest.mark.parametrize('name', [
    'NANOG', 'NAT1', 'NONO', 'UNK', '[Na+]', 'NaCl', 'NULL1A', 'nandrolone', 'multikinase inhibitor', 'NAB2', 'TAGLN',
    'MAPK1', '0', '10'])
def test_genes_and_drugs_are_names(name): assert not names_nothing(name)

def test_missing_values_are_refused_still():
    a = counts(['control', 'KLF1', 'nan']); a.obs['what'] = a.obs.what.where(a.obs.what != 'KLF1')
    refused("'what' has no value in 24 of 48 cells; drop these cells", a, 'what', 'line')

def test_a_covariate_of_no_value_is_a_note():
    s = prepare(counts(['control', 'KLF1'], lines=('A', 'unknown', 'none')), 'what', 'line')
    said = "'line' is 'unknown' in 24 cells, which names nothing; they make up a state of their own"
    assert s.card['notes'] == [said]

# several controls

def test_several_controls_are_one(at):
    a = counts(['NT-1', 'NT-2', 'safe_3', 'KLF1', 'KLF1+NT-1', 'NT-2+BAK1', 'NT-1+NT-2', 'NTF3'])
    s = prepare(a, 'what', 'line', control=['NT-*', 'safe_?'], out='a.h5ad')
    assert s.control == 'control' and s.perturbations == ['BAK1', 'KLF1', 'NTF3']
    assert s.card['controls'] == {'NT-1': 24, 'NT-2': 24, 'safe_3': 24, 'NT-1+NT-2': 24}
    b = read_screen('a.h5ad')
    assert b.control == 'control'
    assert b.card['controls'] == b.controls == s.controls
    assert list(b.adata.obs.what_as_given) == list(a.obs.what)
    assert b.conditions.query('is_control').n_cells.tolist() == [48, 48]
    assert b.subset(dict(line=['A'])).controls == s.controls

def test_numbers_are_those_of_a_control_renamed_by_hand():
    a = counts(['NT1', 'NT2', 'KLF1'])
    by_hand = a.copy()
    by_hand.obs['what'] = by_hand.obs.what.str.replace(r'NT\d', 'control', regex=True)
    s, t = prepare(a, 'what', 'line', control='NT[12]'), prepare(by_hand, 'what', 'line')
    assert s.conditions.equals(t.conditions) and (s.codes == t.codes).all() and (s.adata.X != t.adata.X).nnz == 0

def test_the_merged_name_is_that_of_no_perturbation():
    assert merge_controls(['a1', 'a2', 'control'], 'a*').control == 'a1'
    assert merge_controls(['a1', 'a2', 'control+b'], 'a*').control == 'a1'
    assert merge_controls(['a1', 'a2', 'control', 'b'], ['a*', 'control']).control == 'control'
    assert merge_controls(['a1', 'b'], 'a*').control == 'a1'

@pytest.mark.parametrize('control', ['C[S+](C)[O-]', 'CS(=O)C*', 'a?', '[NT]', 'x[!y]'])
def test_a_name_that_is_there_is_no_pattern(control):
    merged = merge_controls([control, 'CS(C)O', 'ab', 'N', 'xa', 'CS(=O)CC'], control, None)
    assert merged.control == control and list(merged.names) == [control]
    assert list(merged.labels)[1:] == ['CS(C)O', 'ab', 'N', 'xa', 'CS(=O)CC']

def test_patterns_know_capitals_and_every_control_has_to_be_there():
    refused("no cell is called 'nt-*' in 'what'", counts(['NT-1', 'NT-2', 'A']), 'what', control='nt-*')
    refused("no cell is called 'scr' in 'what'", counts(['NT-1', 'NT-2', 'A']), 'what', control=['NT-*', 'scr'])
    refused('every cell is called', counts(['NT-1', 'A']), 'what', control='*')

@pytest.mark.parametrize('names, options', [
    (['non-targeting_00001', 'non-targeting_00012', 'non-targeting_00100'], ["--control 'non-targeting_*'"]),
    (['DMSO_TF', 'DMSO'], ["--control 'DMSO*'"]),
    (['sgNTC-1', 'sgNTC-2', 'AAVS1'], ["--control 'sgNTC-*'", "--control 'AAVS1'"]),
    (['ctrl', 'Scramble', 'Vehicle'], ["--control 'ctrl'", "--control 'Scramble'", "--control 'Vehicle'"]),
    (['PBS', 'mock'], ["--control 'PBS'", "--control 'mock'"])])
def test_a_control_that_is_not_there_is_helped_for(names, options):
    text = refused([f"'{o}' (24 cells)" for o in names] + options, counts([*names, 'KLF1', 'NTF3']), 'what')
    assert 'KLF1' not in text

def test_a_pattern_takes_nothing_else():
    assert control_patterns(['NT1', 'NT2'], ['NT5E', 'A']) == ['NT1', 'NT2']
    assert control_patterns(['NT_1', 'NT_2'], ['NT5E']) == ['NT_*']
    assert control_patterns(['a[1]', 'a[2]'], []) == ['a[1]', 'a[2]']  # of no family

@pytest.mark.parametrize('name', [
    'negative control 7', 'Neg_Ctrl', 'siNC', 'shRNA-scr', 'CTRL0003', 'untreated', 'no treatment', 'Vehicle 0.1%',
    'NTC_A', 'unperturbed', 'WT', 'sgGFP', 'LacZ', 'safe-harbor 2', 'Empty vector', 'medium only', 'saline'])
def test_words_of_controls(name): assert control_family(name)

@pytest.mark.parametrize('name', [
    'WT1', 'NT5C2', 'NCL', 'SCRN1', 'LUC7L2', 'CTRC', 'MEDAG', 'PBSN', 'Control drug', 'ctrl_KLF1', 'GFPT2', 'SAFB2',
    'waterfall', 'KLF1+ctrl', 'NTRK1', 'C1QA'])
def test_genes_and_drugs_are_no_controls(name): assert not control_family(name)

def test_a_family_that_is_left_is_one_note():
    notes = prepare(counts(['control', 'KLF1', *(f'NT_{i}' for i in range(9))], n=3), 'what', 'line').card['notes']
    assert len(notes) == 1 and "--control 'control' --control 'NT_*'" in notes[0] and "'NT_8' (6 cells)" in notes[0]

def test_predictions_are_relabelled_as_the_truth_was():
    merged = merge_controls(['NT-1', 'NT-2', 'KLF1'], 'NT-*')
    labels = relabel(['KLF1+NT-3', 'NT-1', 'control', None], merged.patterns, merged.control, '+')
    assert list(labels)[:3] == ['KLF1', 'control', 'control']

without_plus = st.text(st.characters(codec='utf-8', exclude_characters='+'), min_size=1, max_size=6)

@settings(max_examples=60, **few)
@given(st.lists(without_plus, min_size=2, max_size=6, unique=True), st.data())
def test_whatever_names_hold_a_control_is_found_by_its_name(names, data):
    control = data.draw(st.sampled_from(names))
    labels = [*names, *(f'{o}+{control}' for o in names)]
    merged = merge_controls(labels, control)
    assert merged.control == control and not merged.absent and list(merged.labels)[:len(names)] == names
    both = merge_controls(labels, names[:2])
    assert [split_name(o, both.control, '+') for o in both.labels][:len(names)] == [(), ()] + [(o,) for o in names[2:]]
    assert sum(both.names.values()) == sum(o == both.control for o in both.labels) and not both.absent

# names alike

@pytest.mark.parametrize('one, other', [
    ('KLF1', 'klf1'),
    ('KLF1', 'KLF1\r'),
    ('KLF1', ' KLF1'),
    ('drug A', 'drug\u00a0A'),
    ('drug', 'dr\u200bug'),
    ('\u00b5-opioid', '\u03bc-opioid'),
    ('Caf\u00e9', 'Cafe\u0301'),
    ('TGF-b', 'TGF\u2011b'),
    ('a  b', 'a b'),
    ('KLF1', 'KLF1\ufeff')])
def test_names_that_look_the_same_are_pointed_out_and_not_merged(one, other):
    assert alike([one, other, 'X']) == [[one, other]]
    notes = prepare(counts(['control', one, other]), 'what', 'line').card['notes']
    assert len(notes) == 1 and 'only: ' in notes[0]
    assert len(set(notes[0].split('only: ')[1].split(';')[0].split(', '))) == 2
    s = prepare(counts(['control', 'KLF1'], lines=(one, other)), 'what', 'line')
    assert len(s.states) == 2 and s.card['notes'][0].startswith("these values of 'line' differ")

@pytest.mark.parametrize('other', ['Control', 'control ', 'CONTROL\n', 'cont\u200brol'])
def test_a_control_in_another_form_is_pointed_out(other):
    assert 'looks like a control' in prepare(counts(['control', other, 'KLF1']), 'what', 'line').card['notes'][0]
    refused(["no cell is called 'control'", 'did you mean'], counts([other, 'KLF1']), 'what', 'line')

# columns of any name

@cache
def with_plain_names(dosed):
    "Counts, their screen, a split of it, what that leaks, and a store of the cells."
    a = counts(['control', 'KLF1', 'BAK1', 'KLF1+BAK1'], n=8, drug=['x', 'y'])
    if dosed: a.obs['dose'] = np.resize([.5, .5, 2., 2.], a.n_obs)
    s = prepare(a, 'what', ['line', 'drug'], **(dict(dose_key='dose') if dosed else {}))
    x = make_splits(s, dict(kind='transfer', fraction=.5, seed=1))[0]
    return a, s, x, leak_check(s, x).to_numpy(str), CellStore.from_screen(s)

def same_as_plain(names, at, dose=None):
    "The numbers of a screen whose columns have odd names are those of one with plain names."
    a, s, x, leaks, store = with_plain_names(dose is not None)
    kinds = dict(zip(['what', 'line', 'drug'], names)) | ({} if dose is None else dict(dose=dose))
    odd = a.copy(); odd.obs = a.obs.rename(columns=kinds)
    prepare(odd, names[0], names[1:], out='odd.h5ad', **({} if dose is None else dict(dose_key=dose)))
    t = read_screen('odd.h5ad')
    keys = [table_key(k) for k in names[1:]]
    assert list(t.covariate_keys) == keys
    assert t.conditions.columns[:2].tolist() == keys
    assert t.conditions.columns.is_unique
    assert (t.codes == s.codes).all() and t.conditions.set_axis(s.conditions.columns, axis=1).equals(s.conditions)
    assert np.array_equal(t.design.perturbation, s.design.perturbation)
    assert np.array_equal(t.design.covariate, s.design.covariate)
    y = make_splits(t, dict(kind='transfer', fraction=.5, seed=1))[0]
    assert np.array_equal(x.parts.codes, y.parts.codes)
    assert np.array_equal(leaks, leak_check(t, y).to_numpy(str))
    other = CellStore.from_screen(t)
    for k in ('indptr', 'indices', 'values', 'codes', 'order'):
        assert np.array_equal(getattr(store, k), getattr(other, k))
    for k, v in zip(names[1:], ('A', 'x')):
        for name in {k, table_key(k)} - ({*names} - {k}):
            assert t.subset({name: [v]}).n_cells == s.subset({'line' if v == 'A' else 'drug': [v]}).n_cells

@pytest.mark.parametrize('pair', [
    ('state', 'model'), ('task', 'condition'), ('value', 'metric'), ('perturbation', 'n_cells'),
    ('is_treated', 'is_control'), ('index', '0'), ('obs:state', 'state'), ('size', 'columns'), ('a b', 'a/b'),
    ('seed', 'obs:line'), ('cell', 'part'), ('level_0', '_'), ('leaks', 'fold')])
def test_no_covariate_is_refused_for_its_name(at, pair): same_as_plain(['gene', *pair], at)

@pytest.mark.parametrize('dose', ['value', 'state', 'n_cells', 'index', 'µM', 'obs:value'])
def test_no_dose_is_refused_for_its_name(at, dose):
    same_as_plain(['condition', 'state' if dose != 'state' else 'line', 'task'], at, dose)

printed = st.text(st.characters(codec='utf-8', exclude_categories=['Cc', 'Cs']), min_size=1, max_size=8)
words = st.one_of(st.sampled_from(sorted(RESERVED)), printed.map(str.strip).filter(bool))

@settings(max_examples=10, **few)
@given(st.lists(words, min_size=3, max_size=3, unique=True))
def test_columns_of_any_name_give_the_same_numbers(tmp_path_factory, names):
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp_path_factory.mktemp('any'))
        same_as_plain(names, None)

@given(st.lists(st.one_of(words, words.map('obs:{}'.format), words.map('obs:obs:{}'.format)), unique=True))
@settings(max_examples=100, **few)
def test_each_column_has_its_own_name_in_tables(columns):
    keys = [table_key(k) for k in columns]
    assert len(set(keys)) == len(keys) and not RESERVED & set(keys)
    assert all(obs_key(k, columns) == k for k in columns) and all(obs_key(table_key(k), [k]) == k for k in columns)

def test_columns_with_whole_numbers_as_names_and_the_index_among_them(at):
    a = counts(['control', 'KLF1'])
    a.obs['state'] = a.obs.line
    a.obs.index = pd.Index(a.obs.line + a.obs.index, name='state')
    assert prepare(a, 'what', 'state', out='a.h5ad').covariate_keys == ('obs:state',)
    assert read_screen('a.h5ad').states['obs:state'].tolist() == ['A', 'B']

def test_a_column_of_two_purposes_or_twice_is_one_message(at):
    refused("'line' is given for two purposes", counts(['control', 'A']), 'what', ['line', 'line'])
    refused("'state' is given for two purposes", counts(['control', 'A'], state=['x']), 'what', ['state', 'obs:state'])
    with_dose = counts(['control', 'A'], dose=[1., 2.])
    refused("'dose' is given for two purposes", with_dose, 'what', ['line', 'dose'], dose_key='dose')

# doses

@pytest.mark.parametrize('values, says', [
    (['10 uM', '1 uM'], 'have a unit'),
    (['10nM'], 'have a unit'),
    (['1,5', '2,5'], 'have a comma'),
    (['high', 'low'], 'not numeric'),
    ([1., np.nan], 'has no value in'),
    ([1., np.inf], 'is infinite in'),
    ([-1., 2.], 'is negative in'),
    (['1_000'], 'not numeric'),
    (['5%'], 'have a unit'),
    (['1', ''], 'not numeric')])
def test_doses_that_are_no_numbers_have_their_own_message(values, says):
    a = counts(['control', 'KLF1'], dose=values)
    if not isinstance(values[0], str): a.obs['dose'] = a.obs.dose.astype(float)
    refused(says, a, 'what', 'line', dose_key='dose')

@pytest.mark.parametrize('values', [['1', '10'], pd.Categorical([1., 10.]), [1, 10], ['1.0', '1e1'], [' 1', '10 ']])
def test_doses_in_texts_and_categories_are_numbers(at, values):
    a = counts(['control', 'KLF1']); a.obs['dose'] = pd.Series(values).take(np.resize([0, 1], a.n_obs)).to_numpy()
    s = prepare(a, 'what', 'line', dose_key='dose', out='a.h5ad')
    assert s.conditions.dose.tolist() == [0, 1, 10]*2 and read_screen('a.h5ad').conditions.equals(s.conditions)

@pytest.mark.parametrize('free', ['vehicle', '', None, -1])
def test_controls_need_no_dose(free):
    a = counts(['control', 'KLF1'], dose=['1', '2']); a.obs.loc[a.obs.what == 'control', 'dose'] = free
    assert prepare(a, 'what', 'line', dose_key='dose').conditions.dose.tolist() == [0, 1, 2]*2

def test_a_dose_of_nothing_is_pointed_out():
    notes = prepare(counts(['control', 'KLF1'], dose=[0., 2.]), 'what', 'line', dose_key='dose').card['notes']
    assert len(notes) == 1 and notes[0].startswith('12 perturbed cells have the dose 0')

# refusals and files

def test_a_refusal_may_end_with_a_hint():
    hint = '`perturbench check a.h5ad` shows what is in it'
    assert refused('no cell is called', counts(['ctrl', 'A']), 'what', 'line', hint=hint).endswith(f'; {hint}')
    assert refused('no cell is called', counts(['ctrl', 'A']), 'what', 'lime', hint=hint).endswith(f'\n{hint}')

def test_fractions_in_counts_name_both_ways_out():
    a = counts(['control', 'A']); a.X = a.X*.7
    text = refused(['--values lognorm', 'np.rint(a.X)', 'sc.pp.normalize_total', 'sc.pp.log1p'], a, 'what', 'line')
    import scanpy as sc
    b = a.copy(); b.X = np.rint(b.X); assert prepare(b, 'what', 'line').n_cells == a.n_obs
    sc.pp.normalize_total(a, target_sum=1e4); sc.pp.log1p(a)
    assert prepare(a, 'what', 'line', values='lognorm').n_cells == a.n_obs and text

def test_what_a_file_cannot_hold_is_known_before_the_work(at):
    a = counts(['control', 'A'])
    a.obs['mixed'], a.obs['odd/name'] = [1, 'b']*24, 1
    s = prepare(a, 'what', 'line', out='a.h5ad')
    assert read_screen('a.h5ad').adata.obs['odd/name'].tolist() == [1]*48 and s.card['notes']

def test_log_values_of_another_scale_are_refused():
    a = prepare(counts(['control', 'A'], n=40), 'what', 'line').adata
    del a.layers['counts']; a.uns.clear()
    assert not prepare(a.copy(), 'what', 'line', values='lognorm').card['notes']
    for change in (np.log1p, np.expm1, lambda x: x/np.log(2)):
        b = a.copy(); b.X.data = change(b.X.data).astype(np.float32)
        refused('log', b, 'what', 'line', values='lognorm')

def test_splits_take_either_name_of_a_covariate(at):
    a = counts(['control', 'KLF1', 'BAK1'], lines=('A', 'B', 'C')); a.obs['state'] = a.obs.line
    s = prepare(a, 'what', 'state')
    recipe = lambda k: dict(kind='unseen_state', states=[{k: 'B'}], seed=1)
    parts = [make_splits(s, recipe(k))[0].parts.codes for k in ('state', 'obs:state')]
    assert np.array_equal(*parts)
    with pytest.raises(InputError, match="'line' in 'states' of a split is not a covariate"):
        make_splits(s, dict(kind='unseen_state', states=[dict(line='B')]))

def test_a_file_that_is_rewritten_for_reading_means_the_same(at):
    a = counts(['control', 'KLF1', 'BAK1'], lines=('A', 'B')); a.obs['state'], a.obs['obs:state'] = a.obs.line, 'x'
    s = prepare(a, 'what', ['state', 'obs:state'], out='a.h5ad')
    shuffle_file(read_screen('a.h5ad'), 'b.h5ad')
    assert read_screen('b.h5ad').conditions.equals(s.conditions)
    assert list(s.covariate_keys) == ['obs:state', 'obs:obs:state']
