"Fixtures that tests share: one small simulated screen, and the real ones where they lie beside the project."
import os
# a parallel kernel of numba sets torch's threads too
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
