"""What a training step of each model takes beside its matrix products alone.

And an epoch of GEARS beside one graph object for each cell."""
import os, sys
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # all is timed on the host; read when torch is imported
from functools import partial
from itertools import product
from pathlib import Path
import numpy as np, torch
from torch.utils._python_dispatch import TorchDispatchMode
from perturbench.core import progress
from perturbench.loaders.batches import Batches
from perturbench.loaders.store import Cells
from perturbench.models.base import ModelInfo, model_options
from perturbench.models.simple import distinct
from perturbench.models.zoo import MODELS, build_model, model_class
from _common import header, in_turn, options, random_store, ratio, report, set_threads, table
sys.path.append(str(Path(__file__).resolve().parents[1]/'tests'))
from test_gears import predict_by_cell

SIZES = dict(cells=12_000, genes=4_000, batch=4_000, width=1_024, latent=128, threads=[1, 2], rounds=3,
             gears_cells=5_120, gears_genes=2_000, gears_conditions=89, gears_batches=[256, 1_024], cells_alone=24)
GOAL, GEARS_GOAL = 1.3, 20

class Products(TorchDispatchMode):
    "Notes the products of dense matrices that are taken while it is on, with the layout of what goes in and comes out."
    kinds = ('mm', 'addmm', 'bmm', 'baddbmm')
    def __init__(self): super().__init__(); self.found = []
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out, name = f(*args, **(kwargs or {})), f._schema.name.removeprefix('aten::').rstrip('_')
        if name in self.kinds and all(o.layout is torch.strided for o in args if torch.is_tensor(o)):
            layout = lambda o: (o.shape, o.stride(), o.dtype)
            self.found.append((
                name,
                [layout(o) for o in args],
                {k: v for k, v in (kwargs or {}).items() if k != 'out'},
                layout(out)))
        return out

def products(f):
    "The matrix products of a call of `f`, as `Products` notes them."
    with Products() as p: f()
    return p.found

def operations(found):
    "How many additions and multiplications they are."
    return sum(2*np.prod(out[0])*operands[-1][0][-2] for _, operands, _, out in found)

def replay(found):
    "A call that takes these products alone, of random matrices that lie alike, in memory that is there."
    def alike(shape, stride, dtype):
        memory = torch.randn(1 + sum((n - 1)*s for n, s in zip(shape, stride)))
        return memory.to(dtype).as_strided(shape, stride)
    def call(name, operands, more, out):
        return partial(getattr(torch, name), *(alike(*o) for o in operands), **more, out=alike(*out))
    calls = [call(*o) for o in found]
    return lambda: [f() for f in calls]

def check():
    "A linear map takes one product forward and two backward."
    f, x = torch.nn.Linear(3, 4), torch.randn(5, 3, requires_grad=True)
    found = products(lambda: f(x).sum().backward())
    assert [o[0] for o in found] == ['addmm', 'mm', 'mm'] and operations(found) == 3*2*3*4*5

def stepper(model):
    "A function that takes a training step of `model` on a batch."
    optimisers = model.optimisers()
    def step(batch):
        model.begin_step(1_000, 0)  # no model warms up so long
        loss = model.loss(batch)['loss']
        for o in optimisers: o.zero_grad()
        loss.backward()
        for o in optimisers: o.step()
    return step

def sizes_of(name, width, latent):
    """The options of the model `name` that make it so wide; none where it has no width.

    The `hidden_dim` of GEARS is the length of its vectors."""
    known = {} if name == 'gears' else model_options(model_class(name))
    sizes = dict(encoder_width=width, hidden_dim=width, hidden_dim_x=width, latent_dim=latent, n_latent=latent)
    return {k: v for k, v in sizes.items() if k in known}

def split(store):
    "What a model is told, the cells that carry a perturbation, and the controls."
    cells = store.select(np.ones(store.n_cells, bool))
    info, is_control = ModelInfo(store.genes, store.design, cells.n, cells=cells), store.design.is_control
    return info, cells.where(~is_control), cells.where(is_control)

def time_step(name, store, o):
    "The products of a step, and seconds of a step and of its products [rounds]."
    torch.manual_seed(0)
    info, cells, controls = split(store)
    model = build_model(name, info, **sizes_of(name, o.width, o.latent))
    batch = next(iter(Batches(cells, controls, model.strategy, o.batch, fields=model.fields)))
    step = stepper(model)
    found = products(lambda: step(batch))
    return found, in_turn({'step': lambda: step(batch), 'products': replay(found)}, o.rounds)

def change_by_cell(model, batch):
    "What `change` gives, from predictions that cost each cell graphs of its own; `loss` and its gradient are the same."
    row = distinct(batch)[1]
    n, d = row.bincount(), predict_by_cell(model, batch) - batch.controls
    return d.new_zeros(len(n), d.shape[1]).index_add(0, row, d)/n[:, None], row

def time_gears(store, batch_size, o):
    """Cells of a batch for each distinct condition, on average, and seconds a cell of two epochs [rounds].

    One epoch is of GEARS, the other of one with an object for each cell."""
    torch.manual_seed(0)
    info, cells, controls = split(store)
    info.targets = {p: [g] for p, g in zip(store.design.perturbations, store.genes)}
    fast, slow = (build_model('gears', info, min_correlation=0.) for _ in range(2))
    slow.change = partial(change_by_cell, slow)
    some = Cells(store, np.random.default_rng(0).permutation(cells.rows)[:o.cells_alone])
    loaders = {
        fast: Batches(cells, controls, fast.strategy, batch_size),
        slow: Batches(some, controls, slow.strategy, batch_size)}
    epoch = lambda model: (lambda step=stepper(model): [step(batch) for batch in loaders[model]])
    t = in_turn({'fast': epoch(fast), 'slow': epoch(slow)}, o.rounds)
    per_condition = np.mean([len(b)/len(distinct(b)[0]) for b in loaders[fast]])
    return per_condition, {'fast': t['fast']/len(cells), 'slow': t['slow']/len(some)}

def goal(name, x, wanted):
    "A line that says what was found."
    low, mid, high = np.quantile(x, [.25, .5, .75])
    return f'{name}: {wanted} -> {mid:.3f}, the median of {len(x)} rounds, half of them from {low:.3f} to {high:.3f}'

def steps(o):
    "Goals and table of the steps of all models that are trained."
    store, rows, found = random_store(o.cells, o.genes), [], {}
    names = [k for k in MODELS if not hasattr(MODELS[k], 'fit') and not k.endswith('_scgpt') and k != 'covariate_only']
    for name, n_threads in progress(list(product(names, o.threads)), 'steps'):
        set_threads(n_threads)
        calls, t = time_step(name, store, o)
        found.setdefault(name, []).extend(t['step']/t['products'])
        rows.append([
            name, f'{n_threads}', f'{len(calls)}', f'{operations(calls)/1e9:.1f}',
            *(f'{np.median(s):.4f}' for s in t.values()), f"{ratio(t['step'], t['products']):.3f}"])
    def wanted(name):
        is_large = sizes_of(name, o.width, o.latent) and o.width >= 1_000 and o.batch >= 4_000
        return f'at most {GOAL} wanted' if is_large else 'nothing wanted'
    return [
        str(store),
        '',
        'A training step over its matrix products alone:',
        *(goal(k, x, wanted(k)) for k, x in found.items()),
        '',
        *table(['model', 'threads', 'products', 'GFLOP', 'step, s', 'products, s', 'ratio'], rows)]

def gears(o):
    "Goals and table of GEARS."
    store = random_store(o.gears_cells, o.gears_genes, n_perturbations=o.gears_conditions, n_states=1)
    rows = []
    lines = []
    set_threads(1)
    for size in progress(o.gears_batches, 'gears'):
        n, t = time_gears(store, size, o)
        lines.append(goal(f'batch {size:,}', t['slow']/t['fast'], f'at least {GEARS_GOAL} wanted'))
        rows.append([
            f'{size:,}', f'{n:.1f}', *(f'{1e3*np.median(s):.3f}' for s in t.values()),
            f"{ratio(t['slow'], t['fast']):.1f}"])
    return [
        str(store),
        '',
        'GEARS, seconds with one graph object for each cell over seconds of an epoch with Batches:',
        *lines,
        '',
        *table(['batch', 'cells a condition', 'GEARS, ms/cell', 'object a cell, ms/cell', 'ratio'], rows)]

def main():
    o = options(**SIZES)
    check()
    report([
        *header(o, 'numpy', 'numba', 'torch'), *steps(o), '', *gears(o), '',
        'A step is the loss of a batch that was made before, its gradient and what the optimisers do; widths and',
        'latent widths are as given above where a model has such an option. A step of CPA is one past its warm-up, of',
        'the autoencoder and of the adversary. The matrix products of that very step, forward and backward, are noted',
        'as torch is asked for them (mm, addmm, bmm and baddbmm of dense matrices) and then taken alone: random',
        'matrices of the same shapes, strides and type, results in memory that is there. Step and products are timed',
        'in turn. Decoder Only takes its products for each distinct condition of a batch, which leaves it few. In',
        "GEARS, cells a condition is a batch's mean number for each distinct condition in it. Its rival is that of",
        'tests/test_gears.py, with the same loss: each cell goes through the graphs on its own. Such an epoch is',
        f'timed on {o.cells_alone} cells, in one batch, and scaled to a cell; one thread. Genes and perturbations have',
        'up to 20 neighbours in their graphs. Times are medians, ratios medians of those of a round.'], o, SIZES)

if __name__ == '__main__': main()
