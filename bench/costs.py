"""What training and prediction take for each model and each published preset, a cell: what estimates are made of.

`python bench/costs.py` trains every model for two epochs on a look-alike of Norman19 (its conditions, 4,000 genes, a
twentieth of its cells), each in a process of its own on one thread, and takes the second epoch, what validates
included. It writes perturbench/bench/costs.csv with these, with the stages that bench/lookalike.py measured and with
the step that bench/gpu.py measured on a GPU; both must have left their results beside this file.
"""
import argparse, csv, json, re, resource, subprocess, sys, tempfile, time
from pathlib import Path
from _common import header

RESULTS = Path(__file__).parent/'results'
COSTS = Path(__file__).parents[1]/'perturbench'/'bench'/'costs.csv'
DEFAULTS = dict(fraction=.05, genes=4_000, batch=4_000)
PRESET, MACHINE = 'norman19', 'cpu'
COLUMNS = ('device', 'stage', 'model', 'options', 'genes', 'seconds_a_cell', 'memory_mb', 'disk_mb')

def write_screen(folder, o):
    "The screen, as all measurements read it."
    from perturbench.data.lookalikes import lookalike
    screen = lookalike(PRESET, o.fraction, genes=o.genes).screen
    screen.write(folder/'screen.h5ad')

def task_of(folder, o):
    "The task that all measurements share."
    from perturbench.tasks import open_task
    split = dict(kind='combination', fraction=.7, seed=42)
    return open_task(dict(screen=str(folder/'screen.h5ad'), split=split, genes=dict(hvg=o.genes)), folder/'out')

def trained(model, task, o):
    "CPU seconds of the second epoch; those of a fit, of a closed form."
    from perturbench.train import fit
    ends, start = [], time.process_time()
    budget = dict(max_epochs=2, min_epochs=1, batch_size=o.batch)
    fit(model, task, budget=budget, watch=lambda epoch, best: ends.append(time.process_time()))
    return ends[-1] - ends[-2] if ends else time.process_time() - start

def measure(o):
    "Print what a model takes, a cell."
    from perturbench.models.zoo import build_model, save_model
    from perturbench.predict import predict_task
    from perturbench.train import model_info, trainer_of
    folder, options = Path(o.at), {} if o.options == 'default' else dict(preset=PRESET)
    task, peak = task_of(folder, o), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3
    model = build_model(o.model, model_info(task), **options)
    trainer_of(model) # imports what it needs
    before, seconds, n_cells = peak(), trained(model, task, o), len(task.cells('train'))
    memory, start = peak() - before, time.process_time()
    n_predicted = sum(len(prediction.cells) for prediction in predict_task(model, task, controls=True))
    predicting = time.process_time() - start
    save_model(model, folder/'model.ckpt')
    print(json.dumps(dict(train=seconds/n_cells, predict=predicting/n_predicted, genes=len(task.genes), memory=memory,
                          disk=(folder/'model.ckpt').stat().st_size/1e6)))

def measured(model, options, folder, o):
    "Rows of the table on a model."
    words = dict(model=model, options=options, at=folder, fraction=o.fraction, genes=o.genes, batch=o.batch)
    command = [sys.executable, __file__, *(word for key, value in words.items() for word in (f'--{key}', str(value)))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{model} failed:\n{done.stderr}')
    found = json.loads(done.stdout.splitlines()[-1])
    row = dict(device=MACHINE, model=model, options=options, genes=found['genes'])
    train, predict = 1e3*found['train'], 1e3*found['predict']
    print(f'{model:>24} {options:>10} {train:9.3f} ms a cell to train {predict:9.3f} to predict', flush=True)
    return [row | dict(stage='train', seconds_a_cell=found['train'], memory_mb=found['memory'], disk_mb=found['disk']),
            row | dict(stage='predict', seconds_a_cell=found['predict'])]

def stage_rows():
    "What bench/lookalike.py measured: seconds and bytes of prepare, open, score and report."
    with (RESULTS/'lookalike.csv').open() as file: rows = list(csv.DictReader(file))
    took = {(row['screen'], row['stage']): row for row in rows}
    for row in rows:
        if row['stage'] not in ('prepare', 'open', 'score', 'report'): continue
        seconds = float(row['cpu'])
        if row['stage'] == 'score': seconds -= float(took[row['screen'], 'predict']['cpu'])
        yield dict(device=MACHINE, stage=row['stage'], options=row['screen'], genes=row['genes'],
                   seconds_a_cell=seconds/float(row['cells']), memory_mb=float(row['peak'])/1e6,
                   disk_mb=float(row['disk'])/1e6)

def gpu_row():
    "What bench/gpu.py measured: a step of Latent Additive with the published widths."
    text = (RESULTS/'gpu.txt').read_text()
    device = re.search(r'Device: (.*)', text)[1]
    genes, batch = (int(re.search(rf'{key} ([\d,]+)', text)[1].replace(',', '')) for key in ('genes', 'batch'))
    step = float(re.search(r'rows on the device +no +[\d.]+ +([\d.]+)', text)[1])/1e3
    return dict(device=device, stage='train', model='latent_additive', options='published', genes=genes,
                seconds_a_cell=step/batch)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in DEFAULTS.items(): p.add_argument(f'--{key}', default=value, type=type(value))
    for key in ('at', 'model', 'options'): p.add_argument(f'--{key}')
    o = p.parse_args()
    if o.model: return measure(o)
    from perturbench.models.zoo import MODELS, presets
    rows = []
    with tempfile.TemporaryDirectory(dir=o.at) as folder:
        write_screen(Path(folder), o)
        task_of(Path(folder), o)
        for model, _ in MODELS.items():
            known = ['default', *(['published'] if PRESET in presets(model) else [])]
            for options in known: rows += measured(model, options, folder, o)
    rows = [*stage_rows(), gpu_row(), *rows]
    sizes = argparse.Namespace(**{key: getattr(o, key) for key in DEFAULTS})
    (RESULTS/'costs.txt').write_text('\n'.join([*header(sizes, 'numpy', 'torch', 'lightning'),
        'The numbers are in perturbench/bench/costs.csv: CPU seconds of a cell on one thread, and in an epoch where it',
        'trains.', '']))
    with COSTS.open('w', newline='') as file:
        out = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        out.writeheader()
        for row in rows: out.writerow({k: f'{v:.4g}' if isinstance(v, float) else v for k, v in row.items()})

if __name__ == '__main__': main()
