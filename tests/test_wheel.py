"The package as others get it: a wheel, an sdist and a bare checkout work outside the project; importing it is cheap."
import os, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path
import nbformat, perturbench, pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT/'nbs'/'benchmarks').glob('*.ipynb'))
HEAVY = {'anndata', 'lightning', 'matplotlib', 'numba', 'papermill', 'scanpy', 'sklearn', 'torch'}

def sh(*args, cwd, **env):
    "Run a command outside the checkout; return what it says on standard output."
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'PIP_DISABLE_PIP_VERSION_CHECK': '1', **env}
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The files that git tracks, or would, in a folder of their own."
    to = tmp_path_factory.mktemp('copy')/'perturbench'
    for name in sh('git', 'ls-files', '-co', '--exclude-standard', '-z', cwd=ROOT).split('\0'):
        if not name or not (ROOT/name).exists(): continue
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, to/name, follow_symlinks=False)
    return to

def build_wheel(tree, to):
    sh(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-build-isolation', '--no-deps', '-w', to, tree, cwd=to)
    wheel, = to.glob('*.whl')
    return wheel

@pytest.fixture(scope='module')
def wheel(copy, tmp_path_factory): return build_wheel(copy, tmp_path_factory.mktemp('wheel'))

def venv(folder, *wheels):
    "A virtual environment that sees the packages of the running one, but no project installed there to be edited."
    sh(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder.parent)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(sh(folder/'bin'/'python', '-c', where, cwd=folder).strip())
    for w in wheels:
        sh(sys.executable, '-m', 'pip', '--python', folder/'bin'/'python', 'install', '-q', '--no-deps', w, cwd=folder)
    running = [p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')]
    (site/'running.pth').write_text('\n'.join(running))
    return site

def take_kernels(home):
    "Give the package in `home` what Numba has compiled for the checkout, of the same code; it goes by size and time."
    ours = ROOT/'perturbench'
    for path in ours.rglob('*.py'): shutil.copystat(path, home/path.relative_to(ours))
    for path in ours.rglob('__pycache__/*.nb[ic]'):
        to = home/path.relative_to(ours)
        to.parent.mkdir(exist_ok=True)
        shutil.copy2(path, to)

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "Where the wheel is installed, and the folder of its commands."
    folder = tmp_path_factory.mktemp('installed')
    home = venv(folder/'venv', wheel)/'perturbench'
    take_kernels(home)
    return home, folder/'venv'/'bin'

def test_the_wheel_holds_the_notebooks_and_nothing_of_the_project_around(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = {n for n in z.namelist() if '.dist-info/' not in n}
        ours = {f'perturbench/notebooks/{p.name}': p.read_bytes() for p in NOTEBOOKS}
        assert {n: z.read(n) for n in names if n.endswith('.ipynb')} == ours
        modules = {str(p.relative_to(ROOT)) for p in (ROOT/'perturbench').rglob('*.py')}
        notebooks = {f'perturbench/notebooks/{p.name}' for p in NOTEBOOKS}
        assert notebooks
        tables = {'models/presets.json', 'bench/page.html', 'bench/page.js', 'bench/published.csv', 'bench/costs.csv'}
        grids = {f'grids/{path.name}' for path in (ROOT/'grids').glob('*.yaml')}
        assert len(grids) == 4
        assert names == modules | notebooks | {f'perturbench/{name}' for name in tables | grids}

def test_the_sdist_builds_the_same_wheel(copy, wheel, tmp_path):
    sh(sys.executable, '-c', f'from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})', cwd=copy)
    sdist, = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as t: t.extractall(tmp_path, filter='data')
    tree, = (p for p in tmp_path.iterdir() if p.is_dir())
    assert (tree/'settings.ini').read_bytes() == (ROOT/'settings.ini').read_bytes()
    def content(path):
        with zipfile.ZipFile(path) as z: return {n: z.read(n) for n in z.namelist() if not n.endswith('/RECORD')}
    (tmp_path/'wheel').mkdir()
    assert content(build_wheel(tree, tmp_path/'wheel')) == content(wheel)

def test_the_installed_command_says_its_version(installed, tmp_path):
    home, bin = installed
    code = 'import perturbench; print(perturbench.__file__)'
    assert sh(bin/'python', '-c', code, cwd=tmp_path).strip() == str(home/'__init__.py')
    assert sh(bin/'perturbench', '--version', cwd=tmp_path).strip() == perturbench.__version__

def test_the_installed_command_runs_its_own_notebook(installed, tmp_path):
    from perturbench.data.simulate import Parameters, simulate
    home, bin = installed
    par = Parameters(n_genes=120, n_perturbations=12, n_programmes=6, cells=16, controls=48, panel=1, library=2000)
    simulate(par, seed=1).screen.write(tmp_path/'mine.h5ad')
    (tmp_path/'grid.yaml').write_text('tasks: [mine.h5ad]\nmodels: [control_mean]\n')
    shown = sh(bin/'perturbench', 'run', 'grid.yaml', '-o', 'out', cwd=tmp_path)
    assert 'control_mean' in shown and str(Path('out')/'leaderboard.csv') in shown
    run, = (tmp_path/'out').glob('runs/mine/control_mean/*/notebook.ipynb')
    source = nbformat.read(run, as_version=4).metadata.papermill.input_path
    assert source == str(home/'notebooks'/'train_and_score.ipynb')

@pytest.fixture(scope='module')
def editable(copy, tmp_path_factory):
    "The python of an environment in which the checkout is installed to be edited."
    folder = tmp_path_factory.mktemp('editable')
    code = f'from setuptools.build_meta import build_editable; build_editable({str(folder)!r})'
    sh(sys.executable, '-c', code, cwd=copy)
    wheel, = folder.glob('*.whl')
    venv(folder/'venv', wheel)
    return folder/'venv'/'bin'/'python'

@pytest.mark.parametrize('place', ['..', '.', 'nbs', 'perturbench'])
def test_a_clone_that_is_edited_is_found_wherever_python_starts(editable, copy, place):
    code = 'import perturbench.core; from perturbench import __version__; print(perturbench.core.__file__)'
    assert sh(editable, '-c', code, cwd=(copy/place).resolve()).strip() == str(copy/'perturbench'/'core.py')

FILES = "from importlib.resources import files; print(files('perturbench'))"

def notebook_of(package, monkeypatch):
    "The notebook that is taken where the files of the package are in the folder `package`, as another Python said."
    from perturbench.bench import batch
    monkeypatch.setattr(batch, 'files', dict(perturbench=package.strip()).get)
    return batch.notebook_path()

def test_an_editable_install_takes_the_notebooks_of_the_clone(editable, copy, monkeypatch):
    found = notebook_of(sh(editable, '-c', FILES, cwd=copy.parent), monkeypatch)
    assert found == copy/'nbs'/'benchmarks'/'train_and_score.ipynb'

def test_a_bare_checkout_finds_its_notebook(copy, tmp_path, monkeypatch):
    venv(tmp_path/'venv')
    found = sh(tmp_path/'venv'/'bin'/'python', '-c', FILES, cwd=tmp_path, PYTHONPATH=str(copy))
    assert notebook_of(found, monkeypatch) == copy/'nbs'/'benchmarks'/'train_and_score.ipynb'

@pytest.mark.parametrize('code', [
    'import perturbench', "from perturbench.cli import main; assert main(['--help']) == 0",
    "from perturbench.cli import main; assert main(['run', '--help']) == 0"])
def test_nothing_heavy_is_imported_before_it_is_needed(code, tmp_path):
    code = f'{code}\nimport sys; print(*sys.modules)'
    loaded = sh(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(ROOT)).split()
    assert 'perturbench' in loaded and HEAVY & set(loaded) == set()
