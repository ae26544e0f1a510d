"""Tables of conditions as people write them: read right or refused in one message.

What is predicted is finite and the same each time."""
import errno, re, warnings
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from perturbench import predict
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.models.zoo import build_model
from perturbench.predict import read_conditions, read_conditions_csv, write_predictions
from perturbench.tasks import open_task
from perturbench.train import fit, model_info

few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@pytest.fixture(scope='module')
def task(tmp_path_factory):
    "A small task with doses and two covariates."
    folder = tmp_path_factory.mktemp('dosed')
    parameters = Parameters(n_genes=40, n_perturbations=4, n_states=2, cells=20, controls=30, n_programmes=3)
    screen = simulate(parameters, 0).screen
    a, r = screen.adata, np.random.default_rng(0)
    columns = dict(
        what=a.obs.perturbation.astype(str).str.replace('p', 'Π'),
        line=a.obs.cell_type.astype(str),
        donor='d 1',
        uM=np.where(a.obs.perturbation == screen.control, 0., r.choice([.5, 10.], a.n_obs)))
    a.obs = pd.DataFrame(columns, index=a.obs_names)
    control = screen.control.replace('p', 'Π')
    Screen(a, 'what', ('line', 'donor'), control=control, dose_key='uM').write(folder/'dosed.h5ad')
    return open_task(dict(screen=str(folder/'dosed.h5ad'), split=dict(kind='transfer', fraction=.5)), folder/'out')

@pytest.fixture(scope='module')
def model(task):
    made = build_model('control_mean', model_info(task))
    fit(made, task)
    return made

# What is predicted once

SHIFTED = 'control_mean', 'perturbed_mean', 'condition_mean', 'additive', 'kernel_ridge', 'knn', 'blup'

@pytest.mark.parametrize('name', SHIFTED)
def test_what_is_predicted_once_for_several_conditions_is_what_each_would_get(task, name):
    model, design = build_model(name, model_info(task)), task.design
    fit(model, task)
    found = list(predict.predict_task(model, task, controls=True))
    given = task.given()
    for p in found:
        controls = task.store.dense(given.where(design.state == design.state[p.condition]).rows)
        asked = design.perturbation[p.condition], design.covariate[p.condition]
        assert np.array_equal(p.cells, predict.predict_cells(model, controls, *asked, 0, p.condition))
    assert [p.cells is before.cells for before, p in zip(found, found[1:])] == [p.again for p in found[1:]]
    assert any(p.again for p in found) == (name != 'blup') # Doses of a perturbation are shifted alike; BLUP moves cells

def test_a_model_that_adapts_itself_is_asked_for_each_condition(task, model):
    model.adapt = lambda batch: None
    try: assert not any(p.again for p in predict.predict_task(model, task))
    finally: del model.adapt

@pytest.fixture
def table(task):
    keys = ['perturbation', *task.covariate_keys, 'uM']
    return task.conditions.loc[task.test_conditions(), keys].astype(str).reset_index(drop=True)

def codes(task, table): return [o.code for o in read_conditions(table, task)]

WAYS = {
    'plain': dict(),
    'semicolons': dict(sep=';'),
    'tabs': dict(sep='\t'),
    'with an index': dict(index=True),
    'from Windows': dict(lineterminator='\r\n', encoding='utf-8-sig'),
    'from an old Mac': dict(lineterminator='\r'),
    'in quotes': dict(quoting=1),
    'zipped': dict(compression='gzip')}

@pytest.mark.parametrize('way', WAYS)
def test_a_table_is_the_same_however_it_is_written(task, table, tmp_path, way):
    table.to_csv(tmp_path/'t.csv', **{'index': False} | WAYS[way])
    assert codes(task, read_conditions_csv(tmp_path/'t.csv')) == task.test_conditions().tolist()

def test_blank_lines_columns_of_others_and_their_order_change_nothing(task, table, tmp_path):
    shuffled = table.assign(note='x, "y"; z')[[*table.columns[::-1], 'note']]
    text = shuffled.to_csv(index=False).replace('\n', '\n\n , , , ,\n')
    (tmp_path/'t.csv').write_text('\n' + text, encoding='utf-8')
    assert codes(task, read_conditions_csv(tmp_path/'t.csv')) == task.test_conditions().tolist()
    trailing = '\n'.join(l + ',,' for l in table.to_csv(index=False).splitlines())
    (tmp_path/'t.csv').write_text(trailing, encoding='utf-8')
    assert codes(task, read_conditions_csv(tmp_path/'t.csv')) == task.test_conditions().tolist()

@pytest.mark.parametrize('data, words', [
    (b'', 'is empty'),
    (b'\n \n', 'is empty'),
    (b'\xef\xbb\xbf', 'is empty'),
    (b'perturbation,line\nA\0,b', 'is binary'),
    ('perturbation,β\n'.encode('utf-16'), 'is in UTF-16'),
    ('perturbation\nS\xe9zary'.encode('latin-1'), 'not in UTF-8 (line 2)'),
    (b'PK\x03\x04\0\0rest', 'Excel'),
    (b'\x89HDF\r\n\x1a\n\0\0', 'an h5 file'),
    (b'\x1f\x8b\x08', 'cut or damaged'),
    (b'perturbation,perturbation\nA,B', "the column 'perturbation' is there 2 times"),
    (b'perturbation,,line\nA,B,C', 'column 2 has no name'),
    (b'perturbation,line\nA', 'line 2 has 1 fields instead of 2'),
    (b'perturbation,line\nA,B\nA,B,C', 'line 3 has 3 fields'),
    (b'perturbation,line\n"A,B', 'quotes are closed'),
    (b'perturbation,line\n"A"x,B', 'quotes are closed')])
def test_a_file_that_is_no_table_says_what_it_is(tmp_path, data, words):
    (tmp_path/'t.csv').write_bytes(data)
    with pytest.raises(InputError, match=re.escape(words)) as e: read_conditions_csv(tmp_path/'t.csv')
    assert str(tmp_path/'t.csv') in str(e.value)

def test_a_path_that_is_no_file_says_why(tmp_path):
    (tmp_path/'loop').symlink_to(tmp_path/'loop')
    (tmp_path/'file').write_text('x', encoding='utf-8')
    for path, words in [
            (tmp_path, 'is a folder'),
            (tmp_path/'none.csv', 'does not exist'),
            (tmp_path/'loop', 'leads back to itself'),
            (tmp_path/'file'/'t.csv', 'a file and no folder'),
            ('a\0b', 'cannot be the path'),
            ('x'*300, 'too long')]:
        with pytest.raises(InputError, match=words): read_conditions_csv(path)

@few
@given(st.binary(max_size=60) | st.text(alphabet='ab,;\t"\n\r αβ', max_size=40).map(str.encode))
def test_any_bytes_are_a_table_or_one_message(tmp_path, data):
    (tmp_path/'t.csv').write_bytes(data)
    try: assert isinstance(read_conditions_csv(tmp_path/'t.csv'), pd.DataFrame)
    except InputError: pass

@pytest.mark.parametrize('column, value, words', [
    ('uM', '', 'uM is empty'),
    ('uM', 'NaN', 'uM is empty'),
    ('uM', ' ', 'uM is empty'),
    ('uM', 'inf', 'is no number'),
    ('uM', '1e999', 'finite number'),
    ('uM', '1e39', 'finite number'),
    ('uM', '-0.5', '0 or more'),
    ('uM', '0,5', 'with a point'),
    ('uM', '10 uM', 'without a unit'),
    ('uM', '10nM', 'without a unit'),
    ('uM', '1_0', 'no number'),
    ('uM', '0x10', 'no number'),
    ('uM', '١٠٠٠%', 'no number'),
    ('perturbation', '', 'the perturbation is empty'),
    ('perturbation', '  ', 'the perturbation is empty'),
    ('perturbation', 'none of these', 'is not in the screen'),
    ('line', '', 'is not in the screen'),
    ('line', 'nan', 'is not in the screen'),
    ('donor', 'd 1 ', "did you mean 'd 1'"),
    ('donor', 'D 1', "did you mean 'd 1'")])
def test_a_row_that_cannot_be_is_named_by_its_number(task, table, column, value, words):
    table.loc[1, column] = value
    with pytest.raises(InputError, match='row 2: ') as e: read_conditions(table, task)
    assert words in str(e.value) and 'row 1:' not in str(e.value)

def test_all_faults_of_a_table_are_named_with_their_rows(task, table):
    table.loc[0, 'uM'], table.loc[1, 'perturbation'] = '3 uM', 'nothing'
    table.loc[[2, 3], 'line'] = 'nowhere'
    with pytest.raises(InputError) as e: read_conditions(table, task)
    assert [l.split(':')[0] for l in str(e.value).splitlines()[1:]] == ['- row 1', '- row 2', '- rows 3, 4']

@pytest.mark.parametrize('name, other', [
    ('perturbation', 'Perturbation'),
    ('perturbation', 'perturbation '),
    ('line', 'LINE'),
    ('uM', 'um'),
    ('donor', ' Donor')])
def test_a_column_of_another_spelling_is_shown(task, table, name, other):
    with pytest.raises(InputError, match=re.escape(f"did you mean '{other}'? call it '{name}'")):
        read_conditions(table.rename(columns={name: other}), task)

def test_a_column_twice_and_no_rows_are_refused(task, table):
    with pytest.raises(InputError, match="the column 'line' more than once"):
        read_conditions(pd.concat([table, table[['line']]], axis=1), task)
    with pytest.raises(InputError, match='has no rows'): read_conditions(table[:0], task)

@few
@given(st.text(max_size=6) | st.floats() | st.integers() | st.none() | st.booleans())
def test_a_dose_is_finite_or_refused(task, value):
    row = task.conditions.loc[task.test_conditions(), ['perturbation', *task.covariate_keys]].head(1)
    try: asked, = read_conditions(row.assign(uM=pd.Series([value], index=row.index, dtype=object)), task)
    except InputError: return
    assert np.isfinite(asked.perturbation).all()
    assert 0 <= asked.dose == float(str(value))
    assert not isinstance(value, bool)

def test_numbers_and_categories_mean_what_their_texts_mean(task, table):
    typed = table.assign(
        uM=table.uM.astype(float),
        line=table.line.astype('category'),
        perturbation=table.perturbation.astype('string'))
    assert codes(task, typed) == codes(task, table) == task.test_conditions().tolist()

def test_the_dose_of_a_control_is_free(task, model, table, tmp_path):
    control = task.conditions[task.conditions.is_control]
    for dose in ('', '0', 'nan', '7'):
        rows = control[['perturbation', *task.covariate_keys]].assign(uM=dose)
        assert codes(task, rows) == control.index.tolist()
        write_predictions([model], task, rows, tmp_path/'c.h5ad')
        assert (ad.read_h5ad(tmp_path/'c.h5ad').obs.uM == (7. if dose == '7' else 0.)).all()

def test_a_covariate_that_clashes_is_found_by_both_names(task, table):
    from copy import copy
    other = copy(task)
    other.covariate_keys, other.conditions = ('obs:line', 'donor'), task.conditions.rename(columns={'line': 'obs:line'})
    design = copy(task.design)
    design.covariates = {'obs:line' if k == 'line' else k: v for k, v in design.covariates.items()}
    other.store = copy(task.store)
    other.store.design = design
    named = table.rename(columns={'line': 'obs:line'})
    assert codes(other, named) == codes(other, table) == codes(other, named.assign(line=3)) == codes(task, table)

def test_predictions_are_those_of_the_condition_however_it_is_asked_for(task, model, table, tmp_path):
    n = write_predictions([model], task, table, tmp_path/'a.h5ad')
    write_predictions([model], task, task.conditions.loc[task.test_conditions()], tmp_path/'b.h5ad')
    a, b = ad.read_h5ad(tmp_path/'a.h5ad'), ad.read_h5ad(tmp_path/'b.h5ad')
    assert n == a.n_obs == len(a.X) and np.array_equal(a.X, b.X) and a.obs.equals(b.obs) and np.isfinite(a.X).all()
    expected = np.vstack([o.cells for o in predict.predict_task(model, task)])
    assert np.array_equal(a.X, expected.clip(min=0))

def test_a_row_twice_is_said(task, model, table, tmp_path):
    with pytest.warns(UserWarning, match='row 3: a row above names'):
        write_predictions([model], task, table.iloc[[0, 1, 0]], tmp_path/'a.h5ad')
    with warnings.catch_warnings(action='error', category=UserWarning):
        write_predictions([model], task, table, tmp_path/'a.h5ad')

@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_refused_and_nothing_is_written(
        task, model, table, tmp_path, monkeypatch, bad):
    whole, second = model.predict, table.perturbation[1]
    calls = []
    def broken(batch):
        cells = whole(batch).clone()
        calls.append(1)
        if len(calls) == 2: cells[0, 3] = bad
        return cells
    monkeypatch.setattr(model, 'predict', broken)
    with pytest.raises(InputError, match='values that are not finite') as e:
        write_predictions([model], task, table, tmp_path/'a.h5ad')
    assert second in str(e.value) and list(tmp_path.iterdir()) == []

def test_where_nothing_can_be_written_is_one_message(task, model, table, tmp_path):
    (tmp_path/'folder').mkdir()
    (tmp_path/'file').write_text('mine', encoding='utf-8')
    for path in ('/proc/x', '/proc/x/y.h5ad', tmp_path/'folder', tmp_path/'file'/'x.h5ad'):
        with pytest.raises(InputError): write_predictions([model], task, table, path)
    assert {p.name for p in tmp_path.iterdir()} == {'folder', 'file'}
    assert (tmp_path/'file').read_text(encoding='utf-8') == 'mine'
    write_predictions([model], task, table, tmp_path/'new'/'deep'/'x.h5ad')

@pytest.mark.parametrize('error', [
    OSError(errno.ENOSPC, 'No space left on device'),
    OSError('Unable to write (errno = 28, error message = ...)')])
def test_a_disk_that_fills_up_is_one_message(task, model, table, tmp_path, monkeypatch, error):
    def fail(*_): raise error
    monkeypatch.setattr(predict, '_finite', fail)
    with pytest.raises(InputError, match='there is no room'): write_predictions([model], task, table, tmp_path/'x.h5ad')
    assert list(tmp_path.iterdir()) == []
