"Notebooks, their stored outputs, the exported package and the README are in step."
import filecmp, json, re, shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest
from conftest import ROOT

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MACHINE = re.compile(r'(?<![\w.])/(?:work|tmp|root|home/\w+|Users/\w+|opt)/')

def names(notebooks): return [str(p.relative_to(ROOT/'nbs')) for p in notebooks]

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The tree in a copy, cleaned and exported there."
    to = tmp_path_factory.mktemp('copy')/'perturbench'
    to.mkdir()
    for name in ('nbs', 'perturbench', 'settings.ini', 'pyproject.toml', '_quarto.yml'):
        old = ROOT/name
        if old.is_dir():
            no_caches = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
            shutil.copytree(old, to/name, symlinks=True, ignore=no_caches)
        else: shutil.copy2(old, to/name)
    for tool in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([str(Path(sys.executable).parent/tool)], cwd=to, check=True, capture_output=True)
    return to

def changed(a, b):
    "Files that differ between two trees."
    c = filecmp.dircmp(a, b, ignore=['__pycache__', '.ipynb_checkpoints', 'nbdev.yml', 'sidebar.yml', 'results'])
    here = [f'{a.name}/{f}' for f in (*c.left_only, *c.right_only, *c.diff_files)]
    return here + [f for d in c.common_dirs for f in changed(a/d, b/d)]

def test_clean_and_export_change_nothing(copy):
    assert changed(ROOT/'nbs', copy/'nbs') == []
    assert changed(ROOT/'perturbench', copy/'perturbench') == []

@pytest.mark.parametrize('path', NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebook_is_presentable(path):
    nb = nbformat.read(path, as_version=4)
    says = 'a notebook starts with a title and one line that says what it is'
    assert re.match(r'# .+\n\n> .+', nb.cells[0].source), says
    for c in nb.cells:
        for o in c.get('outputs', []):
            assert o.output_type != 'error', c.source
            data = {k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')}
            text = json.dumps(o.get('text', '')) + json.dumps(data)
            assert not MACHINE.search(text), f'a path of a machine in the output of: {c.source}'
            assert 'Warning' not in text, f'a warning in the output of: {c.source}'

@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if re.match(r'\d', p.name)], ids=lambda p: p.name)
def test_notebook_imports_only_lower_numbers(path):
    module = {nb.stem.split('_', 1)[1]: int(nb.name[:2]) for nb in NOTEBOOKS if re.match(r'\d', nb.name)}
    code = '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code')
    used = set(re.findall(r'from perturbench\.([\w.]+) import', code))
    assert {m: module[m] for m in used if module.get(m, 0) > int(path.name[:2])} == {}

def test_benchmark_notebooks_have_parameters():
    for path in (ROOT/'nbs'/'benchmarks').glob('*.ipynb'):
        tagged = [c for c in nbformat.read(path, as_version=4).cells if 'parameters' in c.metadata.get('tags', [])]
        assert len(tagged) == 1, path.name

def test_readme_is_current():
    sys.path.insert(0, str(ROOT/'.ci'))
    from readme import readme
    assert (ROOT/'README.md').read_text(encoding='utf-8') == readme(), 'run `make readme`'

def test_all_modules_are_packaged():
    import tomllib
    from configparser import ConfigParser
    packages = set(tomllib.loads((ROOT/'pyproject.toml').read_text())['tool']['setuptools']['packages'])
    found = {'.'.join(p.parent.relative_to(ROOT).parts) for p in (ROOT/'perturbench').rglob('__init__.py')}
    assert packages == found  # the notebooks enter a wheel by setup.py, see test_wheel.py
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini')
    assert (ROOT/'nbs'/'_quarto.yml').is_symlink()
    assert (ROOT/'perturbench'/'__init__.py').read_text().startswith(f'__version__ = "{ini["DEFAULT"]["version"]}"')
