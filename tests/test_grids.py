"Grid files: whatever is in them, it is a grid or one message that lists what is wrong with it."
import json
from pathlib import Path
import pytest, yaml
from hypothesis import given, settings, strategies as st
from perturbench.bench.batch import DEFAULT_GRID, odd_values, read_grid
from perturbench.cli import main
from perturbench.core import InputError

TASKS, MODELS = 'tasks: [sim-transfer]\n', 'models: [control_mean]\n'
GRID = TASKS + MODELS

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def read(content):
    "The grid of a file with `content`."
    Path('grid.yaml').write_bytes(content if isinstance(content, bytes) else content.encode('utf-8'))
    return read_grid('grid.yaml')

def refused(content, *says):
    "The message of a grid file that is refused."
    with pytest.raises(InputError) as found: read(content)
    for part in says: assert part in str(found.value), found.value
    return str(found.value)

def where(value): return MODELS + f'tasks: [{{screen: sim-transfer, where: {{line: {value}}}}}]\n'
def task(fields): return MODELS + f'tasks: [{{screen: sim-transfer, {fields}}}]\n'
def model(fields): return TASKS + f'models: [{{name: linear, {fields}}}]\n'

@pytest.mark.parametrize('content, says', [
    (where('[a, 2001-12-14t21:59:43.10-05:00]'), '`tasks[0].where.line[1]` is a date'),
    (where('!!set {a, b}'), 'is a set'),
    (where('!!binary R0lGODlhDAAMAIQAAP=='), 'is binary'),
    (where('[-.inf]'), 'is -inf'),
    (where('{2: a}'), 'the key 2 of `tasks[0].where.line`'),
    (where('{true: a}'), 'the key True'),
    (where('{1.5: a}'), 'the key 1.5'),
    (task('split: {kind: transfer, seed: 99999999999999999999}'), '`tasks[0].split.seed` is too large'),
    (task(r'name: "a\0b"'), '`tasks[0].name` holds characters'),
    (task(r'name: "a\udfffb"'), '`tasks[0].name` holds characters'),
    (task('name: ...'), "begins with a '.'"),
    (task('name: "a/b"'), "holds a '/'"),
    (task(f'name: {"ß"*101}'), 'has 202 bytes'),
    (task('genes: !!omap [hvg: 3]'), 'of a kind that a grid has not'),
    (model('as: 3'), 'the label 3'),
    (model('as: [x]'), 'is a list'),
    (model('as: on'), 'is true or false'),
    (model('as: .hidden'), "begins with a '.'"),
    (model(f'as: {"x"*201}'), 'has 201 bytes'),
    (model(r'as: "a\tb"'), 'cannot be printed'),
    (model('as: "  "'), 'empty name'),
    (model('lr: !!timestamp 2020-02-02'), '`models[0].lr` is a date'),
    (model('lr: {a: 1}'), "the option 'lr'"),
    (TASKS + 'models: [[linear]]\n', 'a model is a name, or a mapping'),
    (TASKS + 'models: [{as: x}]\n', 'a model is a name, or a mapping'),
    (TASKS + 'models: linear\n', '`models` of a grid is a list'),
    (GRID + 'budget: {precision: [bf16]}\n', "'precision' is a list"),
    (GRID + 'budget: {compile: {a: 1}}\n', "'compile' is a mapping"),
    (GRID + 'budget: {patience: .inf}\n', '`budget.patience` is inf'),
    (GRID + 'budget: !!set {a}\n', '`budget` of a grid is a name or a mapping'),
    (GRID + 'seeds: [0, -9223372036854775808]\n', '`seeds[1]` is too large'),
    (GRID + 'seeds: [2020-01-01]\n', '`seeds[0]` is a date'),
    (GRID + 'seeds: [0, 0]\n', "the seed '0' occurs 2 times"),
    (GRID + '3: x\n', "a grid has no key '3'"),
    (GRID + 'protocol: 3\n', '`protocol` of a grid'),
])
def test_values_that_a_grid_cannot_hold(at, content, says): refused(content, 'the grid cannot be used:', says)

@pytest.mark.parametrize('content, says', [
    (GRID + MODELS, "at line 3, column 1: the key 'models' is given twice"),
    (task('genes: {hvg: 3, hvg: 4}'), "the key 'hvg' is given twice"),
    ('---\n' + GRID + '---\n' + GRID, 'expected a single document'),
    ('tasks:\n\t- sim-transfer\n', 'cannot start any token'),
    (GRID + 'seeds: [1999-02-30]\n', 'a value cannot be read'),
    (GRID + 'seeds: [!!int 1x]\n', 'a value cannot be read'),
    (GRID + 'seeds: [!!bool perhaps]\n', 'a value cannot be read'),
    (GRID + 'seeds: [!!timestamp later]\n', 'a value cannot be read'),
    (GRID + 'seeds: [' + '7'*5000 + ']\n', 'a value cannot be read'),
    (GRID + 'seeds: [!!python/name:os.system ]\n', 'could not determine a constructor'),
    (GRID + '? {a: b}\n: c\n', 'unhashable key'),
    (GRID + 'seeds: [*nowhere]\n', 'undefined alias'),
    ('tasks: ' + '{a: '*3000 + '}'*3000, 'nested too deeply'),
    ('tasks: ' + '['*4000 + ']'*4000, 'nested too deeply'),
    ('tasks: [\x1b]', 'a character that YAML does not allow'),
    (bytes(50), 'a character that YAML does not allow'),
    ('tasks: [naïve]'.encode('latin-1'), 'no text in UTF-8'),
    (b'\x89PNG\r\n\x1a\n', 'no text in UTF-8'),
])
def test_files_that_are_no_yaml(at, content, says): refused(content, 'the grid file grid.yaml', says)

@pytest.mark.parametrize('content', [
    'models: &all [*all]\n' + TASKS,
    'tasks: [&t {screen: sim-transfer, where: *t}]\n' + MODELS,
    TASKS + 'models: [{name: linear, lr: &x [{a: *x}, *x]}]\n'], ids=['list', 'mapping', 'both'])
def test_yaml_that_holds_itself(at, content): refused(content, 'holds itself')

def test_aliases_that_multiply(at):
    nine = lambda name: ', '.join([f'*{name}']*9)
    lines = ['a: &a [x, x, x, x, x, x, x, x, x]']
    lines += [f'{c}: &{c} [{nine(p)}]' for p, c in zip('abcdefgh', 'bcdefghi')]
    refused('\n'.join(lines) + f'\nmodels: [*i]\n{TASKS}', 'too many entries')

@pytest.mark.parametrize('content', [
    GRID.encode('utf-16'),
    GRID.encode('utf-8-sig'),
    GRID.replace('\n', '\r\n').encode(),
    GRID.replace('\n', '\r').encode(),
    (TASKS + 'models: [&m {name: linear, as: a}, {<<: *m, as: b}]\n').encode()],
    ids=['utf-16', 'mark', 'windows', 'mac', 'merged'])
def test_files_that_are_fine(at, content): assert read(content).tasks[0].name == 'sim-transfer'

def test_what_is_no_file(at):
    Path('loop').symlink_to('loop')
    Path('file').touch()
    for path, says in {
            'nowhere': 'does not exist',
            'loop': 'leads back to itself',
            '.': 'is a folder',
            'file/x': 'a part of its path',
            'a\0b': 'no path'}.items():
        with pytest.raises(InputError, match=says): read_grid(path)

MODULES = dict(
    raises='raise KeyError("lost")',
    exits='import sys; sys.exit(0)',
    leaves='raise SystemExit',
    syntax='def (:',
    needs='import surely_nowhere',
    base='raise BaseException("odd")',
    endless='def f(): f()\nf()',
    lazy='def __getattr__(name): raise RuntimeError(name)',
    plain='class Model: pass',
    thing='Model = 3',
    empty='')

@pytest.mark.parametrize('name, says', [
    ('raises:Model', "ends with KeyError: 'lost'"),
    ('exits:Model', 'ends with SystemExit'),
    ('leaves:Model', 'ends with SystemExit'),
    ('syntax:Model', 'ends with SyntaxError'),
    ('needs:Model', "No module named 'surely_nowhere'"),
    ('base:Model', 'ends with BaseException: odd'),
    ('endless:Model', 'ends with RecursionError'),
    ('lazy:Model', 'ends with RuntimeError'),
    ('plain:Model', 'is no PerturbationModel'),
    ('thing:Model', 'is no PerturbationModel'),
    ('empty:Model', 'has no class'),
    ('empty:', 'is no name of a class'),
    (':Model', 'is no name of a class'),
    ('.empty:Model', 'is no name of a class'),
    ('a..b:Model', 'is no name of a class'),
    ('a:b:c', 'is no name of a class'),
    ('./plain.py:Model', 'is no name of a class')])
def test_modules_of_a_user(at, monkeypatch, capsys, name, says):
    monkeypatch.syspath_prepend(at)
    for module, text in MODULES.items(): Path(f'{module}.py').write_text(text, encoding='utf-8')
    refused(f'{TASKS}models: ["{name}"]\n', says)
    assert main(['run', 'grid.yaml', '-o', 'out']) == 2
    assert says in capsys.readouterr().err and not Path('out').exists()

def test_a_module_that_goes_elsewhere(at, monkeypatch):
    monkeypatch.syspath_prepend(at)
    code = 'import os\nos.chdir("/")\nfrom perturbench.models.baselines import ControlMean as Model\n'
    Path('wanders.py').write_text(code, encoding='utf-8')
    assert [m.label for m in read(TASKS + 'models: ["wanders:Model"]\n').models] == ['Model']
    assert Path.cwd() == at

def test_all_faults_stand_in_one_message(at):
    text = refused(
        'tasks: [sim-transfer, {screen: sim-null, where: {line: 2024-01-01}}, sim-nul]\n'
        'models: [linaer, {name: linear, as: 1}]\n'
        'seeds: [x]\n'
        'budget: {precision: []}\n'
        'sedes: 1\n')
    for says in (
            'is a date', "did you mean 'sim-null'", "did you mean 'linear'", 'the label 1', "the seed 'x'",
            "'precision' is a list", "did you mean 'seeds'"):
        assert says in text
    assert len(text.splitlines()) == 8

def nest(o):
    "Lists, mappings and sets of what `o` draws."
    return st.lists(o, max_size=3) | st.dictionaries(scalars, o, max_size=3) | st.sets(st.text(max_size=3), max_size=2)

texts = st.text(max_size=8) | st.dates() | st.binary(max_size=4)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(scalars, nest, max_leaves=8)
FIELDS = ['name', 'screen', 'where', 'split', 'genes', 'as', 'lr', 'ridge', 'preset', 'x']
SECTIONS = ['tasks', 'models', 'seeds', 'budget', 'protocol', 'x']
fields = st.dictionaries(st.sampled_from(FIELDS), values, max_size=4)
grids = st.dictionaries(st.sampled_from(SECTIONS), values | st.lists(fields, max_size=2), max_size=6)

@settings(derandomize=True, deadline=None, max_examples=150)
@given(grids)
def test_any_mapping_is_a_grid_or_refused(grid):
    try: read_grid(grid)
    except InputError as e: assert str(e).strip()

@settings(derandomize=True, deadline=None, max_examples=150)
@given(values)
def test_what_a_grid_can_hold_is_what_json_can(value):
    if odd_values(value): return
    back = json.loads(json.dumps(value, allow_nan=False))
    assert back == value and json.dumps(value, ensure_ascii=False).encode('utf-8')

def test_the_grid_that_is_built_in():
    assert odd_values(yaml.safe_load(DEFAULT_GRID)) == [] and len(read_grid().models) == 8
