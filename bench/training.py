"""What a training pays for its batches.

Epochs with `Batches` beside the same steps on dense batches that were made before."""
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # or the trainer would take a GPU; read when torch is imported
from functools import partial
from itertools import product
import numpy as np, torch
from torch import nn
from perturbench.core import progress, rng
from perturbench.loaders.batches import Batches
from perturbench.loaders.store import Cells
from perturbench.models.base import ModelInfo, PerturbationModel
from perturbench.models.zoo import build_model
from perturbench.train import Budget
from perturbench.trainer import fit_batches
from _common import epochs_in_turn, header, options, random_store, ratio, report, set_threads, table

SIZES = dict(cells=50_000, genes=4_000, batches=[512, 4_000], threads=[1, 2], rounds=4)

class Disentangled(PerturbationModel):
    "A CPA without adversary: the code of the cell, drawn from a Gaussian, plus those of perturbation and covariates."
    strategy = 'disentangling'
    def __init__(self, info, width=1024, latent=128):
        super().__init__(info)
        def block(n_in, n_out):
            return nn.Sequential(nn.Linear(n_in, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, n_out))
        self.encode, self.decode = block(info.n_genes, 2*latent), block(latent, info.n_genes)
        self.perturbation = nn.Linear(info.n_perturbations, latent, bias=False)
        self.covariates = nn.Linear(info.n_covariates, latent, bias=False)
        self.log_variance = nn.Parameter(torch.zeros(info.n_genes))

    def loss(self, batch):
        mean, log_variance = self.encode(batch.expression).chunk(2, 1)
        z = mean + torch.randn_like(mean)*(log_variance/2).exp()
        z = z + self.perturbation(batch.perturbation) + self.covariates(batch.covariates)
        error = (self.decode(z) - batch.expression).square()*(-self.log_variance).exp() + self.log_variance
        divergence = mean.square() + log_variance.exp() - 1 - log_variance
        return {'loss': (error.sum(1) + divergence.sum(1)).mean()/2}

# How to build a model, the ratio wanted, how many times the rounds, and the steps of an epoch by batch size, which are
# fewer where a step is slow
ADDITIVE = partial(build_model, 'latent_additive')
MODELS = {
    'linear': (partial(build_model, 'linear'), 1.10, 4, {512: 24, 4_000: 6}),
    'latent_additive, width 512': (partial(ADDITIVE, encoder_width=512), 1.05, 2, {512: 6, 4_000: 1}),
    'latent_additive, width 3072': (partial(ADDITIVE, encoder_width=3072), 1.05, 1, {512: 2, 4_000: 1}),
    'CPA-like, width 1024': (Disentangled, 1.05, 2, {512: 4, 4_000: 1})}

def epochs(make, store, batch_size, n_steps, n_rounds):
    """How many steps an epoch has, and seconds of epochs [rounds] with Batches and on ready ones.

    An epoch has `n_steps` where there are cells enough."""
    torch.manual_seed(0)
    cells = store.select(np.ones(store.n_cells, bool))
    controls, others = cells.where(store.design.is_control), cells.where(~store.design.is_control)
    model = make(ModelInfo(store.genes, store.design, cells.n))
    some = Cells(store, rng(0, 'some').permutation(others.rows)[:n_steps*batch_size])
    batches = lambda: Batches(some, controls, model.strategy, batch_size)
    ready, (val,), n = list(batches()), Batches(Cells(store, some.rows[:8]), controls, model.strategy), 2*(n_rounds + 1)
    train = lambda *loaders: fit_batches(model, loaders, Budget(max_epochs=n, min_epochs=n, batch_size=batch_size))
    return len(ready), epochs_in_turn(train, {'batches': batches(), 'ready': ready}, val, n_rounds)

def main():
    o = options(**SIZES)
    store, rows, found = random_store(o.cells, o.genes), [], {name: [] for name in MODELS}
    for name, size, n in progress(list(product(MODELS, o.batches, o.threads)), 'training'):
        set_threads(n)
        make, _, times, n_steps = MODELS[name]
        steps, t = epochs(make, store, size, n_steps.get(size, 1), times*o.rounds)
        found[name].extend(t['batches']/t['ready'])
        rows.append([
            name, f'{size:,}', f'{n}', f'{steps}', *(f'{np.median(s)/steps:.4f}' for s in t.values()),
            f"{ratio(t['batches'], t['ready']):.3f}"])
    goals = []
    for name, x in found.items():
        low, mid, high = np.quantile(x, [.25, .5, .75])
        goals.append(
            f'{name}: at most {MODELS[name][1]:.2f} wanted -> {mid:.3f}, the median of {len(x)} rounds, '
            f'half of them from {low:.3f} to {high:.3f}')
    report([
        *header(o, 'numpy', 'numba', 'torch', 'lightning'), f'{store}', '',
        'An epoch with Batches over the same steps on ready batches:', *goals, '',
        *table(['model', 'batch', 'threads', 'steps', 'Batches, s/step', 'ready, s/step', 'ratio'], rows), '',
        'One training a line, by perturbench.trainer.fit_batches; its epochs, of so many steps, take their batches',
        'from Batches and from a list of dense ones in turn, and the time of the steps alone counts. All ready',
        'batches of an epoch are in memory, none is used twice in it. Times are medians, ratios medians of those of a',
        'round.'], o, SIZES)

if __name__ == '__main__': main()
