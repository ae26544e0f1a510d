"""What the notebooks show is what they give.

Executed again, each prints the same text, to 1e-3 in every number, and draws as many figures."""
import copy, re, shutil
from configparser import ConfigParser
from math import isclose
import nbformat, pytest
from nbclient import NotebookClient
from conftest import ROOT

NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
NUMBER = re.compile(r'[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?')

# What a clock or the memory of a process measured differs from one execution to the next. That is a number with one of
# these units behind it, and only its place is compared.
TIMES = r' ?(?:[nµm]?s|seconds?|min(?:utes?)?|[kMG]i?B)\b(?:/\w+)?'
RATES = r' ?\w+(?:/s| a second)\b'
MEASURED = re.compile(f'{NUMBER.pattern}{TIMES}|{NUMBER.pattern}{RATES}')

def skipped_flags():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return set(ini['DEFAULT']['tst_flags'].split())

def executed(nb):
    "The code cells that are executed here: all but those that `nbdev_test` leaves out."
    def directives(cell): return dict.fromkeys(re.findall(r'^#\| *(\w+)', cell.source, re.M))
    def is_left_out(cell):
        return skipped_flags() & set(directives(cell)) or re.search(r'^#\| *eval: *false', cell.source, re.M)
    return [c for c in nb.cells if c.cell_type == 'code' and not is_left_out(c)]

def shown(cell):
    "The text of a cell's outputs and the number of its figures."
    printed = ''.join(o.text for o in cell.outputs if o.output_type == 'stream')  # in however many pieces it came
    found = [o.get('data', {}) for o in cell.outputs if o.output_type != 'stream']
    figures = [d for d in found if any(k.startswith('image/') for k in d)]
    others = [f'{k}: {v}' for d in found if d not in figures for k, v in sorted(d.items())]
    return '\n'.join([printed, *others]), len(figures)

def parts(text):
    "The words around the numbers of a text, and the numbers."
    text = MEASURED.sub('<measured>', text)
    return NUMBER.sub('<number>', text).split(), [float(n.replace(',', '')) for n in NUMBER.findall(text)]

def same(a, b):
    (words, numbers), (other_words, other_numbers) = parts(a), parts(b)
    pairs = zip(numbers, other_numbers, strict=True)
    return words == other_words and all(isclose(x, y, rel_tol=1e-3, abs_tol=1e-3) for x, y in pairs)

@pytest.mark.parametrize('a, b, equal', [
    ('mean .500  -0.000', 'mean 0.5004  0.000', True),
    ('mean .500', 'mean .502', False),
    ('1,200 cells', '1,201 cells', True),
    ('1,200 cells', '1,210 cells', False),
    ('3 of 5', '3 out of 5', False),
    ('3 of 5', '3 of', False),
    ('took 3.1 s, 64 MB', 'took 12 s, 65 MB', True),
    ('3 states', '4 states', False),
    ('2,000 rows/s', '2,500 rows/s', True),
    ('1e+3', '1.2e+3', False)])
def test_what_counts_as_the_same(a, b, equal): assert same(a, b) == equal

@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(NBS)))
def test_stored_outputs_are_what_execution_gives(path, tmp_path, monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    home = shutil.copytree(NBS, tmp_path/'main'/'nbs', symlinks=True)/path.parent.relative_to(NBS)
    stored = nbformat.read(path, as_version=4)
    if any('/shared/' in c.source for c in stored.cells if c.cell_type == 'code'):
        if not (ROOT.parent/'shared').exists():
            pytest.skip('its outputs are those of the real screens, which are not beside the project')
        (tmp_path/'shared').symlink_to(ROOT.parent/'shared')
    new = copy.deepcopy(stored)
    new.cells = executed(new)
    NotebookClient(new, timeout=1500, kernel_name='python3', resources={'metadata': {'path': str(home)}}).execute()
    found = [(c.source, shown(c), shown(n)) for c, n in zip(executed(stored), new.cells, strict=True)]
    differ = [f'{source}\n--- stored: {text}\n{figures} figures\n--- now: {now}\n{figures_now} figures'
              for source, (text, figures), (now, figures_now) in found if figures != figures_now or not same(text, now)]
    assert not differ, '\n\n'.join(differ)
