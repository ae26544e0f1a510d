"""Sampling of flows, training steps of `flow` and `state_transition`, and whether they learn what was done to cells.

`--parts` takes some of sampling, steps and learning; each keeps its report in a file of its own."""
import tempfile, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, torch
from perturbench.core import seed_of
from perturbench.loaders.batches import Batches
from perturbench.models.zoo import build_model
from perturbench.predict import predict_task
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.intervals import paired_difference
from perturbench.tasks import open_task
from perturbench.train import fit, model_info
from _common import header, in_turn, options, random_store, ratio, seconds, set_threads, table
from models import operations, products, replay, split, stepper

SIZES = dict(parts=['sampling', 'steps', 'learning'], conditions=500, cells=1_000, dimensions=50, width=1_024,
             batch=1_024, genes=2_000, sampling_threads=2, rounds=7, seeds=3, task='sim-transfer',
             beside=['cpa, drawn', 'sams_vae, drawn', 'sams_vae, mean'])
METRICS = ['rmse_average', 'cosine_logfc', 'rmse_rank_average', 'energy_pca', 'mae_zeros']
NEW = {
    'flow': dict(name='flow'),
    'state_transition': dict(name='state_transition')}
VAES = {
    'cpa, drawn': dict(name='cpa', prediction='sample'),
    'sams_vae, mean': dict(name='sams_vae', prediction='mean'),
    'sams_vae, drawn': dict(name='sams_vae', prediction='sample')}
STEPS = {
    'flow': lambda o: dict(name='flow', width=o.width, set_size=128),
    'flow, no average': lambda o: dict(name='flow', width=o.width, set_size=128, ema=0.),
    'state_transition': lambda o: dict(name='state_transition', width=o.width, set_size=128, n_heads=8)}

def sampling(o):
    "Lines on cells drawn for many conditions, one equation for each."
    store = random_store(4_000, 200, n_perturbations=o.conditions, n_states=1)
    info, _, _ = split(store)
    set_threads(o.sampling_threads)
    torch.manual_seed(0)
    model = build_model('flow', info, n_axes=o.dimensions).eval()
    torch.nn.init.normal_(model.net.velocity.write.weight, 0, .01)
    codes = np.flatnonzero(~info.design.is_control)
    p, k = (torch.tensor(t)[codes] for t in (info.design.perturbation, info.design.covariate))
    start = torch.randn(o.cells, model.space.n)
    def draw():
        with torch.no_grad():
            for condition in model.net.encode(p, k).split(1): model.followed(start, condition)
    busy = time.process_time()
    wall = seconds(draw)
    busy = (time.process_time() - busy)/o.sampling_threads
    return [f'{len(codes)} conditions x {o.cells:,} cells in {model.space.n} dimensions, {model.n_steps} Heun steps, '
            f'{o.sampling_threads} threads: below 60 s wanted -> {busy:.1f} s of each core, {wall:.1f} s by the clock']

def steps(o):
    "Lines on training steps over their matrix products."
    store, lines, rows = random_store(8_000, o.genes), [], []
    info, cells, controls = split(store)
    set_threads(1)
    for name, sizes in STEPS.items():
        torch.manual_seed(0)
        model = build_model(sizes(o)['name'], info, **without_name(sizes(o)))
        batch = next(iter(Batches(cells, controls, model.strategy, o.batch)))
        step = stepper(model)
        calls = products(lambda: step(batch))
        t = in_turn({'step': lambda: step(batch), 'products': replay(calls)}, o.rounds)
        found = ratio(t['step'], t['products'])
        lines.append(f'step of {name} over its matrix products: at most 1.3 wanted -> {found:.2f}')
        times = [f'{np.median(s):.3f}' for s in t.values()]
        rows.append([name, f'{operations(calls)/1e9:.1f}', *times, f'{found:.2f}'])
    return [*lines, '', *table(['model', 'GFLOP', 'step, s', 'products, s', 'ratio'], rows)]

def without_name(options): return {k: v for k, v in options.items() if k != 'name'}

def shuffled(model):
    "The model, told in training for each set a perturbation that is drawn at random, which tells it nothing."
    info, loss = model.info, model.loss
    trained_on = (info.train_cells > 0) & ~info.design.is_control
    labels = torch.tensor(info.design.perturbation[trained_on])
    def of_any(batch, *more):
        drawn = labels[torch.randint(len(labels), (len(batch),))]
        if model.training: batch.perturbation = drawn[:, None].expand_as(batch.perturbation)
        return loss(batch, *more)
    model.loss = of_any
    return model

def scores(evaluation, options, seed, shuffle=False):
    "Scores of a model, trained on a quick budget, by condition and metric."
    torch.manual_seed(seed_of(seed, 'weights', 0))
    model = build_model(options['name'], model_info(evaluation.task), **without_name(options))
    fit(shuffled(model) if shuffle else model, evaluation.task, 0, 'quick', seed)
    found = evaluation.score(list(predict_task(model, evaluation.task, 0, seed)))
    return found.set_index(['perturbation', *evaluation.task.covariate_keys, 'metric']).value

def learning(o):
    "Lines on scores beside the control of each model, and beside VAEs, after each seed."
    set_threads(1)
    models = NEW | {name: VAES[name] for name in o.beside}
    asked = [(name, shuffle) for name in models for shuffle in ((False, True) if name in NEW else (False,))]
    with tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(open_task(o.task, folder), METRICS)
        found = {(name, False): [scores(evaluation, dict(name=name), 0)] for name in ('control_mean', 'additive')}
        for seed in range(o.seeds):
            for name, shuffle in asked:
                found.setdefault((name, shuffle), []).append(scores(evaluation, models[name], seed, shuffle))
            yield [f'Seeds: {seed + 1}', '', *compared({k: pd.concat(each, axis=1) for k, each in found.items()})]

def compared(found):
    "The table of all, and what each model gains over its control."
    rows, lines = [], []
    for (name, shuffle), each in found.items():
        mean = each.groupby('metric').mean().mean(axis=1)[METRICS]
        sd = each.groupby('metric').mean().std(axis=1)[METRICS]
        shown = [f'{m:.3f}' + (f' ({s:.3f})' if np.isfinite(s) else '') for m, s in zip(mean, sd)]
        rows.append([name + (', shuffled' if shuffle else ''), *shown])
    for name in NEW:
        for metric in ('rmse_rank_average', 'energy_pca'):
            own, control = (found[name, shuffle].xs(metric, level='metric').mean(axis=1) for shuffle in (False, True))
            d = paired_difference(own, control, groups=own.index.get_level_values('perturbation'))
            lines.append(f'{metric} of {name} less that of its shuffled control: below 0 wanted -> {d.mean:+.3f} '
                         f'[{d.lo:+.3f}, {d.hi:+.3f}]')
    return [*lines, '', *table(['model', *METRICS], rows), '',
            'Means over conditions and seeds, in brackets the standard deviation of seeds; intervals of 95 % are over',
            'perturbations, each a mean over seeds. Quick budget, defaults of each model. A shuffled control is the',
            'same model, told in training a perturbation for each set that is drawn at random.']

def main():
    o = options(**SIZES)
    numbers = SimpleNamespace(**{k: v for k, v in vars(o).items() if isinstance(v, int)})
    parts = {'sampling': lambda: [sampling(o)], 'steps': lambda: [steps(o)], 'learning': lambda: learning(o)}
    for part in o.parts:
        for lines in parts[part]():
            text = '\n'.join([*header(numbers, 'numpy', 'torch'), *lines, ''])
            (Path(__file__).parent/'results'/f'flow_{part}.txt').write_text(text)
        print(text)

if __name__ == '__main__': main()
