"On a GPU every model trains, predicts as on the CPU, stops and goes on, and does without what it has no room for."
import gc, os, subprocess, sys, warnings
from dataclasses import replace
import numpy as np, pytest, torch
import perturbench.models.zoo
from test_scgpt import CELLS, GENES, counts, model as scgpt  # fixtures
from perturbench import train
from perturbench.bench.batch import run_grid
from perturbench.bench.leaderboard import write_report
from perturbench.core import InputError, rng
from perturbench.data.scgpt import embed_cells
from perturbench.loaders.disk import DiskBatches
from perturbench.models.base import MODELS, build_model, load_model, save_model
from perturbench.models.sams_vae import SAMSVAE
from perturbench.predict import known_of, predict_cells

pytestmark = pytest.mark.gpu
GPU = 'cuda'
TRAINED = [k for k in MODELS if not hasattr(MODELS[k], 'fit')]

@pytest.fixture(scope='module')
def task(task):
    "The task that all tests share, with an embedding of its cells."
    cells = task.store.dense(np.arange(task.store.n_cells)).numpy()
    embedding = cells @ rng(0, 'gpu').normal(0, .05, (cells.shape[1], 16))
    return replace(task, store=replace(task.store, embeddings={'X_scGPT': embedding}))

def built(name, task, **options):
    torch.manual_seed(0)
    return build_model(name, train.model_info(task), **options)

def fitted(name, task, budget={}, options={}, **kw):
    "A trained model and its history."
    model = built(name, task, **options)
    return model, train.fit(model, task, budget=dict(max_epochs=2, batch_size=256) | budget, **kw)

def flat(model): return torch.cat([v.flatten().double().cpu() for v in model.state_dict().values()])

def far_from(a, b, start):
    "How far two trainings end from each other, beside the way they went."
    return ((flat(a) - flat(b)).norm()/(flat(a) - flat(start)).norm()).item()

@pytest.fixture(scope='module', params=TRAINED)
def trained(request, task): return fitted(request.param, task)

def test_every_model_trains_there(trained):
    model, history = trained
    assert len(history) == 2 and np.isfinite(history.to_numpy(float)).all()
    assert all(torch.isfinite(v).all() for v in model.state_dict().values() if v.is_floating_point())

def cells_of(model, task):
    "What `model` predicts of a condition, where its weights are."
    c = int(task.test_conditions()[0])
    rows = task.given().where(task.design.state == task.design.state[c]).rows[:300]
    controls, known = known_of(model, task.store, rows)
    return predict_cells(model, controls, task.design.perturbation[c], task.design.covariate[c], 0, c, **known)

TOLERANCE = 1e-3  # of log-normalised values, which are up to about 5; the codes of BioLord end 30 steps of Adam
def test_saved_weights_predict_on_the_cpu_what_they_predict_on_the_gpu(trained, task, tmp_path, monkeypatch):
    "But for random draws, which each device makes in its own way: SAMS-VAE takes means in place of its draws here."
    monkeypatch.setattr(SAMSVAE, 'draws', lambda self, mean, log_variance, n: iter([mean]*n))
    model, _ = trained
    save_model(model, tmp_path/'model.ckpt')
    near, far = load_model(tmp_path/'model.ckpt'), load_model(tmp_path/'model.ckpt').to(GPU)
    a, b = cells_of(near, task), cells_of(far, task)
    assert np.isfinite(a).all() and np.abs(a - b).max() < (20 if model.name == 'biolord' else 1)*TOLERANCE

# of the way that a training goes: it adds over cells and neighbours, and Adam enlarges rounding where a gradient is
# near zero
ROUNDING = {'gears': .3}
def test_the_same_seed_gives_the_same(trained, task):
    "Up to sums that a GPU takes in another order each time."
    model, history = trained
    again, history2 = fitted(model.name, task)
    np.testing.assert_allclose(history2.to_numpy(float), history.to_numpy(float), rtol=1e-3)
    assert far_from(model, again, built(model.name, task)) < ROUNDING.get(model.name, .02)

@pytest.mark.parametrize('name', ['latent_additive', 'cpa', 'biolord', 'gears'])
def test_a_training_that_is_stopped_goes_on_there(name, task, tmp_path):
    model, history = fitted(name, task, dict(max_epochs=3))
    fitted(name, task, dict(max_epochs=1, min_epochs=1), folder=tmp_path, every=0)
    again, history2 = fitted(name, task, dict(max_epochs=3), folder=tmp_path, every=0)
    np.testing.assert_allclose(history2.to_numpy(float), history.to_numpy(float), rtol=1e-3)
    assert far_from(model, again, built(name, task)) < ROUNDING.get(name, .02)

def test_it_ends_where_the_cpu_ends(task, monkeypatch):
    "A model that draws nothing."
    _, far = fitted('linear', task)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    _, near = fitted('linear', task)
    np.testing.assert_allclose(far.to_numpy(float), near.to_numpy(float), rtol=1e-3)

@pytest.mark.parametrize('name', TRAINED)
def test_bfloat16_is_near(name, task):
    model, history = fitted(name, task, dict(precision='bf16'))
    _, exact = fitted(name, task)
    assert all(w.dtype == torch.float32 for w in model.state_dict().values() if w.is_floating_point())
    np.testing.assert_allclose(history.val_loss, exact.val_loss, rtol=.05)

COMPILED = ('linear', 'latent_additive', 'decoder_only', 'cpa', 'sams_vae', 'biolord')
@pytest.mark.parametrize('name, precision', [*((k, p) for k in COMPILED for p in ('32', 'bf16')), ('gears', 'bf16')])
def test_a_compiled_loss_is_replayed(name, precision, task):
    """The last batch of an epoch is smaller than the others.

    What is drawn in a compiled step are other numbers, and the same ones each time."""
    budget = dict(compile=True, precision=precision)
    model, history = fitted(name, task, budget)
    _, exact = fitted(name, task, budget | dict(compile=False))
    assert len(history) == 2 and torch.isfinite(flat(model)).all()
    np.testing.assert_allclose(history.val_loss, exact.val_loss, rtol=.05)

def test_a_compiled_training_is_the_same_each_time(task):
    (_, once), (_, again) = (fitted('latent_additive', task, dict(compile=True)) for _ in range(2))
    np.testing.assert_allclose(again.to_numpy(float), once.to_numpy(float), rtol=1e-3)

ELSEWHERE = '''
import sys, warnings
import numpy as np, torch
from perturbench.tasks import load_task
near = load_task(sys.argv[1]).store
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    far = near.to('cuda')
    assert all(torch.equal(far.dense(r).cpu(), near.dense(r)) for r in (np.arange(9), np.array([5, 5, 0])))
print(sum('cannot be compiled here' in str(w.message) for w in said))
'''

@pytest.mark.parametrize('lacks, n_warnings', [
    (dict(HOME='/proc/none'), 0),
    (dict(PATH='', CC='/none/cc'), 1)], ids=['home', 'compiler'])
def test_without_a_home_or_a_compiler_rows_are_made_dense_all_the_same(lacks, n_warnings, task, tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ('CC', 'TRITON_CACHE_DIR')}
    env['PYTHONPATH'] = os.pathsep.join(filter(None, sys.path))
    if n_warnings: env['TRITON_CACHE_DIR'] = str(tmp_path)
    command = [sys.executable, '-c', ELSEWHERE, task.folder]
    done = subprocess.run(command, env=env | lacks, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == str(n_warnings), done.stderr

@pytest.mark.parametrize('likelihood', ['nb', 'zinb'])
@pytest.mark.parametrize('name', ['cpa', 'sams_vae', 'biolord'])
def test_likelihoods_of_counts(name, likelihood, task):
    model, history = fitted(name, task, options=dict(likelihood=likelihood))
    assert np.isfinite(history.to_numpy(float)).all() and np.isfinite(cells_of(model.to(GPU), task)).all()

@pytest.mark.parametrize('strategy', ['disentangling', 'ot', {'name': 'sets', 'size': 32}], ids=str)
def test_every_strategy_trains_there(strategy, task):
    model = built('linear', task)
    if strategy == 'disentangling': model = built('cpa', task)
    if isinstance(strategy, dict):
        def loss(b): return ((b.controls + model.effect.bias).mean(1) - b.expression.mean(1)).square().mean()
        model.loss = lambda b: {'loss': loss(b)}
    model.strategy = strategy
    history = train.fit(model, task, budget=dict(max_epochs=2, batch_size=256))
    assert np.isfinite(history.to_numpy(float)).all()

def test_a_large_screen_trains_from_its_files(task, monkeypatch):
    monkeypatch.setattr(train, 'IN_MEMORY', 0)
    model = built('latent_additive', task)
    found = train.batches(model, task, 'train', 0, 256, 0, train.placed(task.store, torch.device(GPU)))
    assert isinstance(found, DiskBatches) and next(iter(found)).expression.device.type == GPU
    assert np.isfinite(train.fit(model, task, budget=dict(max_epochs=2, batch_size=256)).to_numpy(float)).all()

def full(left):
    "An allocation that leaves `left` bytes of the device."
    gc.collect()
    torch.cuda.empty_cache()
    return torch.empty(max(0, torch.cuda.mem_get_info()[0] - left), dtype=torch.uint8, device=GPU)

@pytest.fixture
def wide(task):
    "The task with a hundred times its cells: a store of a gigabyte."
    store = task.store
    n, times = store.n_cells, 100
    more = lambda a: None if a is None else np.tile(a, times)
    indptr = np.r_[0, np.cumsum(np.tile(np.diff(store.indptr), times))]
    values = {k: more(getattr(store, k)) for k in ('codes', 'library', 'batch', 'indices', 'values', 'counts')}
    large = replace(store, indptr=indptr, order=np.arange(n*times), cells=None, embeddings={}, **values)
    return replace(task, store=large, parts=[np.r_[p, np.full(n*(times - 1), 3, p.dtype)] for p in task.parts])

def test_rows_that_do_not_fit_stay_on_the_host_with_one_warning(wide):
    "Really: the device is full but for less than these rows."
    _, near = fitted('linear', wide)
    held = full(wide.store.nbytes//2)
    try:
        with pytest.warns(UserWarning, match='stay on the host') as said: _, far = fitted('linear', wide)
    finally: del held
    assert len(said) == 1
    np.testing.assert_allclose(far.to_numpy(float), near.to_numpy(float), rtol=1e-3)

def test_rows_make_room_for_a_model(wide):
    "The rows fit; a model with its gradients and moments beside them does not."
    options = dict(encoder_width=2048, n_layers=3, dropout=0.)
    _, near = fitted('latent_additive', wide, dict(max_epochs=1, min_epochs=1), options)
    held = full(wide.store.nbytes + 300*2**20)
    try:
        with pytest.warns(UserWarning, match='too little memory for the model beside the cells') as said:
            _, far = fitted('latent_additive', wide, dict(max_epochs=1, min_epochs=1), options)
    finally: del held
    assert len([w for w in said if 'host' in str(w.message)]) == 1
    np.testing.assert_allclose(far.to_numpy(float), near.to_numpy(float), rtol=1e-2)

def test_no_room_at_all_is_one_message(task):
    held = full(50*2**20)
    try:
        says = 'too little memory for the model and 4000 cells at once; lower `batch_size`'
        with warnings.catch_warnings(), pytest.raises(InputError, match=says):
            warnings.simplefilter('ignore')
            fitted('latent_additive', task, dict(batch_size=4000), dict(encoder_width=2048, n_layers=3))
    finally: del held

def test_scgpt_embeddings_are_those_of_the_cpu(scgpt, counts):
    near, report = embed_cells(scgpt, counts, GENES, CELLS)
    far, report2 = embed_cells(scgpt, counts, GENES, CELLS, device=GPU)
    scgpt.to('cpu')
    np.testing.assert_allclose(far, near, atol=1e-5)
    assert report == report2

def test_a_grid_and_its_report(tmp_path):
    models, budget = ['control_mean', 'linear', 'latent_additive'], dict(max_epochs=2, batch_size=256)
    grid = dict(tasks=['sim-null'], models=models, seeds=[0, 1], budget=budget)
    outcome = run_grid(grid, tmp_path, jobs=2)
    assert (outcome.done, outcome.failed) == (6, [])
    board, files = write_report(tmp_path)
    assert len(board) and all(f.exists() for f in files) and run_grid(grid, tmp_path).skipped == 6
