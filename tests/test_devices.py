"A training that two processes share, and one whose GPU runs out of memory, end as one process with room enough does."
import os, runpy, subprocess, sys
from copy import copy
import numpy as np, pytest, torch
from perturbench import train
from perturbench.core import InputError
from perturbench.loaders.batches import Batches
from perturbench.loaders.store import CellStore, _upload
from perturbench.models.base import build_model

SCRIPT = '''
import os, sys
import numpy as np, torch
from perturbench import train
from perturbench.loaders.batches import Batches
from perturbench.models.base import build_model
from perturbench.tasks import load_task

visits, assemble = [], Batches.assemble
def watched(self, store, rows, *args, **kwargs):
    visits.append((self.shuffle, self.epoch, rows))
    return assemble(self, store, rows, *args, **kwargs)
Batches.assemble = watched

if __name__ == '__main__':
    folder, out, devices, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    task = load_task(folder)
    torch.manual_seed(0)
    model = build_model('latent_additive', train.model_info(task), dropout=0.)
    flat = lambda: torch.cat([v.flatten() for v in model.state_dict().values()]).numpy()
    before = flat()
    history = train.fit(model, task, budget=dict(max_epochs=epochs, batch_size=500), folder=f'{out}/checkpoint', every=0, devices=devices)
    rank = int(os.environ.get('LOCAL_RANK', 0))
    seen = {f'{"train" if t else "val"}_{e}': np.concatenate([r for a, b, r in visits if (a, b) == (t, e)]) for t, e in {v[:2] for v in visits}}
    np.savez(f'{out}/{rank}.npz', before=before, weights=flat(), history=history.to_numpy(), **seen)
'''

def run(task, out, devices, epochs):
    "What each process of a training saw, and what it ended with."
    (out/'script.py').write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'LOCAL_RANK', 'WORLD_SIZE', 'NODE_RANK', 'MASTER_PORT', 'MASTER_ADDR')}
    done = subprocess.run([sys.executable, out/'script.py', task.folder, out, str(devices), str(epochs)], env=env | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path))), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [np.load(out/f'{rank}.npz') for rank in range(devices)]

@pytest.fixture(scope='module')
def alone(task, tmp_path_factory):
    "The same script in this process, with one device."
    folder = tmp_path_factory.mktemp('alone')
    (folder/'script.py').write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'argv', ['', task.folder, folder, '1', '2'])
        m.setattr(Batches, 'assemble', Batches.assemble)  # put back what the script replaces
        runpy.run_path(str(folder/'script.py'), run_name='__main__')
    return np.load(folder/'0.npz')

@pytest.fixture(scope='module')
def shared(task, tmp_path_factory):
    "Two processes: a training of one epoch, and one that goes on from there to a second."
    folder = tmp_path_factory.mktemp('shared')
    first = [dict(o) for o in run(task, folder, 2, 1)]
    assert [p.name for p in (folder/'checkpoint').iterdir()] == ['last.ckpt']
    return [a | dict(b) | dict(before=a['before']) for a, b in zip(first, run(task, folder, 2, 2))]

def test_each_process_has_its_own_cells(task, shared, alone):
    a, b = shared
    train_cells, val_cells = (task.cells(part).where(~task.design.is_control).rows for part in ('train', 'val'))
    for epoch in (0, 1):
        k = f'train_{epoch}'
        assert not np.intersect1d(a[k], b[k]).size and len(a[k]) == len(b[k]) == len(train_cells)//2
        assert np.isin(np.r_[a[k], b[k]], train_cells).all()
        np.testing.assert_array_equal(np.stack([a[k], b[k]], 1).ravel(), alone[k][:len(a[k])*2])
    np.testing.assert_array_equal(np.sort(np.r_[a['val_0'], b['val_0']][:len(val_cells)]), np.sort(val_cells))  # none is left out

def test_two_processes_that_were_stopped_between_end_with_the_weights_of_one(shared, alone):
    a, b = shared
    np.testing.assert_array_equal(a['weights'], b['weights'])
    np.testing.assert_array_equal(a['history'], b['history'])
    np.testing.assert_allclose(a['history'], alone['history'], rtol=1e-3)
    way = np.linalg.norm(alone['weights'] - alone['before'])
    assert way > 1 and np.linalg.norm(a['weights'] - alone['weights']) < .02*way  # Adam enlarges rounding where a gradient is near zero

def test_more_gpus_than_there_are(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(InputError, match='there are 1 GPUs here and 2 are asked for'): train._trainer(train.BUDGETS['quick'], [], 2)

def trained(task):
    torch.manual_seed(0)
    model = build_model('latent_additive', train.model_info(task))
    return model.state_dict(), train.fit(model, task, budget=dict(max_epochs=2, batch_size=500))

def test_a_device_without_room_gives_the_same_result_with_one_warning(task, monkeypatch):
    weights, history = trained(task)
    tried, step = [], train.Module.training_step
    def to(self, device, resident=True):
        new = copy(self)
        new.resident = _upload(self, 'cpu') if resident else None
        return new
    def full(self, batch, i):
        tried.append(self.trainer.train_dataloader.cells.store.resident is not None)
        if tried[-1] and self.current_epoch == 1: raise torch.OutOfMemoryError('CUDA out of memory')
        return step(self, batch, i)
    monkeypatch.setattr(CellStore, 'to', to)
    monkeypatch.setattr(train.Module, 'training_step', full)
    with pytest.warns(UserWarning, match='stay on the host') as said: again, history2 = trained(task)
    assert len(said) == 1 and history2.equals(history) and all(torch.equal(weights[k], again[k]) for k in weights)
    n = len(tried)//3
    assert tried == [True]*(n + 1) + [False]*2*n  # an epoch and a step, then all anew

def test_no_room_at_all_is_one_message(task, monkeypatch):
    def full(self, batch, i): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(train.Module, 'training_step', full)
    with pytest.raises(InputError, match='lower `batch_size`'): trained(task)
