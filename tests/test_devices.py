"A training that two processes share, and one whose GPU runs out of memory, end as one process with room enough does."
import asyncio, multiprocessing, os, runpy, signal, subprocess, sys, threading
from copy import copy
import numpy as np, pytest, torch
from torch._dynamo.testing import CompileCounter
from perturbench import train, trainer
from perturbench.core import InputError
from perturbench.loaders.batches import Batches
from perturbench.loaders.store import CellStore, upload
from perturbench.models.zoo import build_model

# It trains for some epochs, going on from a checkpoint where there is one; where it is to train more than once, each
# time in a process that has done nothing before. Others are started in the way that begins anew with each
SCRIPT = '''
import multiprocessing, os, sys
import numpy as np, torch
from perturbench import train, trainer  # once for all that it starts
from perturbench.loaders.batches import Batches
from perturbench.models.zoo import build_model
from perturbench.tasks import load_task

visits, assemble = [], Batches.assemble
def watched(self, store, rows, *args, **kwargs):
    visits.append((self.shuffle, self.epoch, rows))
    return assemble(self, store, rows, *args, **kwargs)
Batches.assemble = watched

def train_for(epochs, task, out, devices):
    torch.manual_seed(0)
    model = build_model('latent_additive', train.model_info(task), dropout=0.)
    flat = lambda: torch.cat([v.flatten() for v in model.state_dict().values()]).numpy()
    before = flat()
    budget = dict(max_epochs=epochs, batch_size=500)
    history = train.fit(model, task, budget=budget, folder=f'{out}/checkpoint', every=0, devices=devices)
    return dict(before=before, weights=flat(), history=history.to_numpy(), checkpoints=os.listdir(f'{out}/checkpoint'))

def visited(shuffled, epoch): return np.concatenate([r for a, b, r in visits if (a, b) == (shuffled, epoch)])

if __name__ == '__main__':
    folder, out, devices, *stages = sys.argv[1:]
    multiprocessing.set_start_method('spawn', force=True)
    for epochs in stages:
        child = len(stages) > 1 and os.fork()
        if not child: break
        assert not os.waitpid(child, 0)[1]
    else: sys.exit()
    sys.argv[4:] = [epochs]  # which the other process is started with
    found = train_for(int(epochs), load_task(folder), out, int(devices))
    found |= {f'{"train" if v[0] else "val"}_{v[1]}': visited(*v[:2]) for v in visits}
    np.savez(f'{out}/{os.environ.get("LOCAL_RANK", 0)}_{epochs}.npz', **found)
'''

JOBS = {
    'slurm': dict(
        SLURM_JOB_ID='7', SLURM_JOB_NAME='bench', SLURM_NTASKS='3', SLURM_PROCID='2', SLURM_LOCALID='2',
        SLURM_NODEID='0', SLURM_NNODES='1', SLURM_STEP_NODELIST='n1'),
    'slurm, nodes': dict(
        SLURM_JOB_ID='7', SLURM_JOB_NAME='x', SLURM_NTASKS='16', SLURM_NTASKS_PER_NODE='4', SLURM_PROCID='15',
        SLURM_LOCALID='3', SLURM_NODEID='3', SLURM_NNODES='4'),
    'slurm, interactive': dict(
        SLURM_JOB_ID='7', SLURM_JOB_NAME='bash', SLURM_NTASKS='4', SLURM_PROCID='0', SLURM_LOCALID='0',
        SLURM_NODEID='0'),
    'slurm, half': dict(SLURM_JOB_ID='7', SLURM_NTASKS='many', SLURM_PROCID='0'),
    'slurm, restarted': dict(
        SLURM_JOB_ID='7', SLURM_ARRAY_JOB_ID='3', SLURM_ARRAY_TASK_ID='2', SLURM_NTASKS='1', SLURM_PROCID='0',
        SLURM_LOCALID='0', SLURM_RESTART_COUNT='1'),
    'lsf': dict(
        LSB_JOBID='9', LSB_HOSTS='a b c', LSB_DJOB_RANKFILE='/nowhere/ranks', JSM_NAMESPACE_LOCAL_RANK='1',
        JSM_NAMESPACE_SIZE='3', JSM_NAMESPACE_RANK='2'),
    'torchrun': dict(
        TORCHELASTIC_RUN_ID='none', GROUP_RANK='0', RANK='1', LOCAL_RANK='1', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
        MASTER_ADDR='localhost', MASTER_PORT='1'),
    'kubeflow': dict(
        KUBERNETES_PORT='tcp://1.2.3.4:443', MASTER_ADDR='elsewhere', MASTER_PORT='23456', WORLD_SIZE='4', RANK='3'),
    'mpi': dict(
        OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_LOCAL_RANK='3', PMI_SIZE='4',
        PMI_RANK='3', PBS_JOBID='5', PBS_NODEFILE='/nowhere'),
    'by hand': dict(LOCAL_RANK='one', NODE_RANK='two', WORLD_SIZE='', MASTER_PORT='http')}

@pytest.fixture(scope='module')
def alone(task, tmp_path_factory):
    "What the script with one device saw and ended with; this process runs it."
    out, method = tmp_path_factory.mktemp('alone'), multiprocessing.get_start_method(allow_none=True)
    (out/'script.py').write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Batches, 'assemble', Batches.assemble)
        m.setattr(sys, 'argv', ['script.py', str(task.folder), str(out), '1', '2'])
        m.delenv('LOCAL_RANK', raising=False)
        try: runpy.run_path(str(out/'script.py'), run_name='__main__')
        finally: multiprocessing.set_start_method(method, force=True)
    return np.load(out/'0_2.npz')

@pytest.fixture(scope='module')
def shared(task, tmp_path_factory):
    """What each of two processes saw and ended with: a training of one epoch, and new ones that go on to a second.

    They are inside a batch job of more tasks."""
    out = tmp_path_factory.mktemp('shared')
    (out/'script.py').write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k not in (
        'IN_TEST', 'PERTURBENCH_DEVICES', 'LOCAL_RANK', 'WORLD_SIZE', 'NODE_RANK', 'MASTER_PORT', 'MASTER_ADDR')}
    env |= dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path)), CUDA_VISIBLE_DEVICES='')
    env |= JOBS['slurm'] | dict(MASTER_ADDR='elsewhere', MASTER_PORT='no', NODE_RANK='1')
    command = [sys.executable, out/'script.py', task.folder, out, '2', '1', '2']
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    def kept(rank, epochs): return dict(np.load(out/f'{rank}_{epochs}.npz'))
    return [kept(rank, 1) | kept(rank, 2) for rank in range(2)]

def test_each_process_has_its_own_cells(task, shared, alone):
    a, b = shared
    train_cells, val_cells = (task.cells(part).where(~task.design.is_control).rows for part in ('train', 'val'))
    for epoch in (0, 1):
        k = f'train_{epoch}'
        assert not np.intersect1d(a[k], b[k]).size and len(a[k]) == len(b[k]) == len(train_cells)//2
        assert np.isin(np.r_[a[k], b[k]], train_cells).all()
        np.testing.assert_array_equal(np.stack([a[k], b[k]], 1).ravel(), alone[k][:len(a[k])*2])
    # none is left out
    np.testing.assert_array_equal(np.sort(np.r_[a['val_0'], b['val_0']][:len(val_cells)]), np.sort(val_cells))

def test_two_processes_that_were_stopped_between_end_with_the_weights_of_one(shared, alone):
    a, b = shared
    assert list(a['checkpoints']) == ['last.ckpt']
    np.testing.assert_array_equal(a['weights'], b['weights'])
    np.testing.assert_array_equal(a['history'], b['history'])
    np.testing.assert_allclose(a['history'], alone['history'], rtol=1e-3)
    way = np.linalg.norm(alone['weights'] - alone['before'])
    # Adam enlarges rounding where a gradient is near zero
    assert way > 1 and np.linalg.norm(a['weights'] - alone['weights']) < .02*way

def test_more_gpus_than_there_are(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(InputError, match='there are 1 GPUs here and 2 are asked for'): trainer.check_devices(2)

def trained(task, **kw):
    torch.manual_seed(0)
    model = build_model('latent_additive', train.model_info(task))
    return model.state_dict(), train.fit(model, task, budget=dict(max_epochs=2, batch_size=500), **kw)

@pytest.fixture(scope='module')
def usual(task):
    "The weights and the history of a training that nothing disturbs."
    return trained(task)

def test_a_device_without_room_gives_the_same_result_with_one_warning(task, usual, monkeypatch):
    weights, history = usual
    tried, step = [], trainer.Module.training_step
    def to(self, device, resident=True):
        new = copy(self)
        new.resident = upload(self, 'cpu') if resident else None
        return new
    def full(self, batch, i):
        tried.append(self.trainer.train_dataloader.cells.store.resident is not None)
        if tried[-1] and self.current_epoch == 1: raise torch.OutOfMemoryError('CUDA out of memory')
        return step(self, batch, i)
    monkeypatch.setattr(CellStore, 'to', to)
    monkeypatch.setattr(trainer.Module, 'training_step', full)
    with pytest.warns(UserWarning, match='stay on the host') as said: again, history2 = trained(task)
    assert len(said) == 1 and history2.equals(history) and all(torch.equal(weights[k], again[k]) for k in weights)
    n = len(tried)//3
    assert tried == [True]*(n + 1) + [False]*2*n  # an epoch and a step, then all anew

@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory'),
    RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
    ids=['torch', 'cublas', 'host'])
def test_no_room_at_all_is_one_message(task, monkeypatch, error):
    def full(self, batch, i): raise error
    monkeypatch.setattr(trainer.Module, 'training_step', full)
    with pytest.raises(InputError, match='lower `batch_size`'): trained(task)

@pytest.mark.parametrize('job', JOBS)
def test_a_batch_job_is_not_the_cluster_of_a_training(job, task, usual, tmp_path, monkeypatch):
    weights, history = usual
    for k, v in JOBS[job].items(): monkeypatch.setenv(k, v)
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    heard, step = [], trainer.Module.training_step
    def listening(self, batch, i):
        heard.append(signal.getsignal(signal.SIGUSR1))
        return step(self, batch, i)
    monkeypatch.setattr(trainer.Module, 'training_step', listening)
    again, history2 = trained(task, folder=tmp_path, every=0)
    assert history2.equals(history) and all(torch.equal(weights[k], again[k]) for k in weights)
    assert set(heard) == {before[signal.SIGUSR1]} and (tmp_path/'last.ckpt').exists()  # no scheduler's signal is taken
    assert before == {s: signal.getsignal(s) for s in before} and os.environ.items() >= JOBS[job].items()

def test_an_mpi_library_is_not_asked(task, monkeypatch):
    "Importing mpi4py starts MPI, which ends the process where a launcher is half there."
    monkeypatch.setitem(sys.modules, 'mpi4py', None)
    monkeypatch.setattr('lightning.fabric.plugins.environments.mpi._MPI4PY_AVAILABLE', True, raising=False)
    assert len(trained(task)[1]) == 2

@pytest.mark.parametrize('job', ['torchrun', 'by hand'])
def test_processes_of_another_launcher_are_one_message(job, task, monkeypatch):
    monkeypatch.delenv('PERTURBENCH_DEVICES', raising=False)
    monkeypatch.setattr(trainer, '_in_notebook', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for k, v in JOBS[job].items(): monkeypatch.setenv(k, v)
    with pytest.raises(InputError, match='start the script with python alone, or unset LOCAL_RANK') as e:
        trainer.check_devices(2)
    assert '\n' not in str(e.value)

def test_a_loop_that_runs_is_no_matter(task, usual):
    "As in a notebook, where all code runs inside the event loop of its kernel."
    weights, history = usual
    async def inside(): return trained(task)
    again, history2 = asyncio.run(inside())
    assert history2.equals(history) and all(torch.equal(weights[k], again[k]) for k in weights)

def test_a_thread_is_no_matter(task, usual):
    "Python takes signals in the main thread alone."
    found = []
    thread = threading.Thread(target=lambda: found.append(trained(task)))
    thread.start(), thread.join()
    assert found[0][1].equals(usual[1])

def test_another_way_to_start_processes_is_no_matter(alone, shared):
    assert all(len(o['history']) == 2 for o in (alone, *shared))

def test_a_later_training_is_compiled_as_the_first_was(task, monkeypatch):
    "PyTorch gives up after some eight versions of one function, and each training needs some."
    counts, compiled = [], torch.compile
    def traced(f, dynamic, mode):
        counts.append(CompileCounter())
        return compiled(f, dynamic=dynamic, backend=counts[-1])
    monkeypatch.setattr(torch, 'compile', traced)
    for _ in range(10):
        model = build_model('linear', train.model_info(task))
        train.fit(model, task, budget=dict(max_epochs=1, min_epochs=1, batch_size=4000, compile=True))
    assert {c.frame_count for c in counts} == {counts[0].frame_count} != {0}
