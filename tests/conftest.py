"Fixtures that tests share: one small simulated screen, and the real ones where they lie beside the project."
import atexit, base64, gc, os
# As `make test` does
for threads in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS'): os.environ.setdefault(threads, '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
from pathlib import Path
import pytest, torch
# the GPU kernel runs on the CPU; read when the kernel is defined
if not torch.cuda.is_available(): os.environ.setdefault('TRITON_INTERPRET', '1')

ROOT = Path(__file__).resolve().parents[1]

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests that ask for no GPU run on the CPU, also in the processes that they start.

    A GPU draws other numbers, and sums in another order each time."""
    if item.get_closest_marker('gpu'): return (yield)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.cuda, 'is_available', lambda: False)
        m.setenv('CUDA_VISIBLE_DEVICES', '')
        return (yield)

def pytest_collection_modifyitems(items):
    "Tests of a GPU do without where there is none."
    if torch.cuda.is_available(): return
    for item in items:
        if item.get_closest_marker('gpu'): item.add_marker(pytest.mark.skip(reason='there is no CUDA device here'))

gc.set_threshold(50_000, 20, 20)  # a fifteenth of the time went to look for garbage

def pytest_sessionfinish():
    "At exit pytest looks for garbage five times, and IPython once for each notebook that was run here."
    gc.collect()
    gc.freeze()

atexit.register(gc.unfreeze)  # the last of all, as it is registered first

@pytest.fixture(scope='session')
def real():
    "The folder of real screens; tests that need it do without where it is absent."
    folder = ROOT.parent/'shared'/'data'
    if not (folder/'norman_mcfaline.h5ad').exists(): pytest.skip('the real screens are not beside the project')
    return folder

@pytest.fixture(scope='session')
def screen():
    "The small simulated screen that tests share."
    from perturbench.data.simulate import simulated
    return simulated('sim-transfer')

@pytest.fixture(scope='session')
def task(tmp_path_factory):
    "The transfer task on it, opened."
    from perturbench.tasks import open_task
    return open_task('sim-transfer', tmp_path_factory.mktemp('tasks'))

# A PNG, as notebooks hold it
PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='

def one_pixel(self, to, **_):
    "In place of `Picture.savefig`: to draw figures is a third of what the commands do on small screens."
    png = base64.b64decode(PIXEL)
    if hasattr(to, 'write'): to.write(png)
    else: Path(to).write_bytes(png)

def leave_undrawn():
    "In a process of its own."
    from perturbench.plots import Picture
    Picture.savefig = one_pixel

@pytest.fixture
def undrawn(monkeypatch):
    "Figures are made and saved, but of one pixel."
    from perturbench.plots import Picture
    monkeypatch.setattr(Picture, 'savefig', one_pixel)

def score_quickly():
    "Where no metrics are named, those of the profile quick are taken; what was there before."
    import perturbench.scoring.evaluation as evaluation
    from perturbench.scoring.profiles import QUICK
    before = evaluation.asked
    evaluation.asked = lambda metrics=None: before(QUICK if metrics is None else metrics)
    return before

@pytest.fixture(scope='module')
def quick():
    "A tenth of the metrics, where it is of no interest which."
    import perturbench.scoring.evaluation as evaluation
    before = score_quickly()
    yield
    evaluation.asked = before

@pytest.fixture
def quick_here(monkeypatch):
    "In this test."
    import perturbench.scoring.evaluation as evaluation
    monkeypatch.setattr(evaluation, 'asked', evaluation.asked)
    score_quickly()

@pytest.fixture(scope='module')
def unreferenced():
    "Files are scored without references, a quarter of the work; what was there before, by name."
    import pandas as pd, perturbench.scoring.files as files
    from perturbench.scoring.references import halved_in_words
    def nothing(evaluation, tables): return pd.DataFrame(dict(halves=[halved_in_words(evaluation.measured)]))
    with pytest.MonkeyPatch.context() as m:
        before = dict(reference_jobs=files.reference_jobs, named_references=files.named_references)
        m.setattr(files, 'reference_jobs', lambda evaluation: {})
        m.setattr(files, 'named_references', nothing)
        yield before

@pytest.fixture(scope='module')
def models_alone(unreferenced):
    "Beside them there is a baseline that predicts nothing, another quarter."
    import perturbench.scoring.files as files
    def nothing(task): return [('control_mean', iter(()))]
    with pytest.MonkeyPatch.context() as m:
        before = unreferenced | dict(predicted_baselines=files.predicted_baselines)
        m.setattr(files, 'predicted_baselines', nothing)
        yield before

@pytest.fixture
def beside_all(models_alone, monkeypatch):
    "In this test files are scored beside all baselines, and with references."
    for name, f in models_alone.items(): monkeypatch.setattr(f'perturbench.scoring.files.{name}', f)
