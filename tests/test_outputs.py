"What the notebooks show is what they give: executed again, each prints the same text, to 1e-3 in every number, and draws as many figures."
import re, shutil
from configparser import ConfigParser
from math import isclose
import nbformat, pytest
from nbclient import NotebookClient
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NBS = ROOT/'nbs'
IGNORED = ('.ipynb_checkpoints', 'results')
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not set(IGNORED) & set(p.parts))
NUMBER = re.compile(r'[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?')

# What a clock or the memory of a process measured differs from one execution to the next, and only its place is compared:
# a number in front of one of these units.
MEASURED = re.compile(NUMBER.pattern + r' ?(?:[nµm]?s|seconds?|min(?:utes?)?|[kMG]i?B)\b(?:/\w+)?|' + NUMBER.pattern + r' ?\w+(?:/s| a second)\b')

def flags(cell): return {f.split()[0].rstrip(':') for f in re.findall(r'^#\| *(\S.*)$', cell.source, re.M)}

def runs(cell, skipped):
    "Whether a cell is executed here; one that nbdev leaves out by default is left out."
    return cell.cell_type == 'code' and not flags(cell) & skipped and not re.search(r'^#\| *eval: *false', cell.source, re.M)

def shown(cell):
    "The text of a cell's outputs and the number of its figures."
    text, figures = [], 0
    for o in cell.outputs:
        data = {'text/plain': o.text} if o.output_type == 'stream' else o.get('data', {})
        figure = any(k.startswith('image/') for k in data)
        figures += figure
        if not figure: text += [f'{k}: {v}' for k, v in sorted(data.items())]
    return ' '.join(' '.join(text).split()), figures

def parts(text):
    "The words around the numbers of a text, and the numbers."
    text = MEASURED.sub('<measured>', text)
    return re.sub(r'\s+', ' ', NUMBER.sub('<number>', text)), [float(n.replace(',', '')) for n in NUMBER.findall(text)]

def same(a, b):
    (words, numbers), (other_words, other_numbers) = parts(a), parts(b)
    return words == other_words and len(numbers) == len(other_numbers) and all(isclose(x, y, rel_tol=1e-3, abs_tol=1e-3) for x, y in zip(numbers, other_numbers))

@pytest.mark.parametrize('a, b, equal', [
    ('mean .500, -0.000', 'mean 0.5004,  0.000', True), ('mean .500', 'mean .502', False), ('1,200 cells', '1,201 cells', True), ('1,200 cells', '1,210 cells', False),
    ('3 of 5', '3 out of 5', False), ('took 3.1 s, 64 MB', 'took 12 s, 65 MB', True), ('3 states', '4 states', False), ('2,000 rows/s', '2,500 rows/s', True),
    ('1e-5 1e-9', '1e-5 3e-9', True), ('rmse 1 2', 'rmse 1', False)])
def test_what_counts_as_the_same(a, b, equal): assert same(a, b) == equal

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(NBS)))
def test_stored_outputs_are_what_execution_gives(path, tmp_path, monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    shutil.copytree(NBS, tmp_path/'nbs', ignore=shutil.ignore_patterns(*IGNORED), symlinks=True)
    stored = nbformat.read(path, as_version=4)
    new = nbformat.from_dict(stored.copy())
    new.cells = [c.copy() for c in stored.cells if runs(c, set(ini['DEFAULT']['tst_flags'].split()))]
    NotebookClient(new, timeout=1500, kernel_name='python3', resources={'metadata': {'path': str((tmp_path/'nbs'/path.relative_to(NBS)).parent)}}).execute()
    old = [c for c in stored.cells if runs(c, set(ini['DEFAULT']['tst_flags'].split()))]
    differ = [f'{c.source}\n--- stored:\n{shown(c)}\n--- now:\n{shown(n)}' for c, n in zip(old, new.cells)
              if not (same(shown(c)[0], shown(n)[0]) and shown(c)[1] == shown(n)[1])]
    assert not differ, '\n\n'.join(differ)
