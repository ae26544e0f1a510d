"""Time and memory of each stage that a published screen goes through, on its simulated look-alike at full size.

`python bench/lookalike.py` takes those of Norman19 and Srivatsan20 from raw counts to the report: prepare, open the
task, train Latent Additive for two epochs, predict, score, report. It prints the figures and writes them to
results/lookalike.txt and .csv beside this file; with other sizes it only prints them. Each stage is a process of its
own on one thread; its CPU is user and system time, its peak what the system counts as resident, mapped files included.
The files are in a folder that is removed at the end (--at says where; some 5 GB).
"""
import argparse, csv, json, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from typing import NamedTuple
from perturbench.core import InputError
from _common import header, table

DEFAULTS = dict(screens=['norman19', 'srivatsan20'], fraction=1., model='latent_additive', epochs=2, genes=4_000)

class Did(NamedTuple):
    "What a stage has done."
    about:str
    cells:int # That it went through, once for each epoch
    genes:int
    disk:int = 0 # Bytes that it wrote

def sizes_of(folder): return json.loads((folder/'about.json').read_text())
def bytes_in(folder): return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())

def simulate(folder, o):
    "Write the raw counts of the look-alike as a file of somebody's own."
    import anndata as ad
    from perturbench.data.lookalikes import lookalike
    screen = lookalike(o.screen, o.fraction).screen
    X, c = screen.adata.layers['counts'], screen.conditions
    ad.AnnData(X, obs=screen.adata.obs, var=screen.adata.var).write_h5ad(folder/'raw.h5ad')
    kept = dict(options=screen.options, split=screen.card['split'], cells=screen.n_cells, genes=screen.n_genes)
    (folder/'about.json').write_text(json.dumps(kept))
    about = (f'{screen.n_cells:,} cells x {screen.n_genes:,} genes, {X.nnz/X.shape[0]/X.shape[1]:.1%} not zero; '
             f'{len(screen.states)} states, {len(screen.perturbations)} perturbations, '
             f'{(c.n_perturbations == 2).sum()} doubles, {len(c):,} conditions')
    return Did(about, *X.shape, (folder/'raw.h5ad').stat().st_size)

def prepare(folder, o):
    "`perturbench prepare`."
    from perturbench.cli import main
    sizes = sizes_of(folder)
    words = sizes['options']
    keys = [word for key in words['covariate_keys'] for word in ('--covariate-keys', key)]
    extra = ['--dose-key', words['dose_key']] if words['dose_key'] else []
    told = ['--perturbation-key', words['perturbation_key'], '--control', words['control']]
    sep = ['--sep', words['sep'] or 'none']
    failed = main(['prepare', str(folder/'raw.h5ad'), *told, *sep, *keys, *extra, '-o', str(folder/'screen.h5ad')])
    if failed: raise InputError('prepare failed')
    disk = (folder/'screen.h5ad').stat().st_size
    return Did(f'{disk/1e9:.2f} GB in the file', sizes['cells'], sizes['genes'], disk)

def spec(folder, o):
    "The task, with the split of the published screen."
    split = sizes_of(folder)['split']
    return dict(name=f'like-{o.screen}', screen=str(folder/'screen.h5ad'), split=split, genes=dict(hvg=o.genes))

def open_stage(folder, o):
    "Open the task."
    from perturbench.tasks import open_task
    task = open_task(spec(folder, o), folder/'out')
    about = (f'{len(task.genes):,} genes, {len(task.test_conditions())} tested conditions, '
             f'{len(task.cells("train")):,} training cells')
    return Did(about, sizes_of(folder)['cells'], sizes_of(folder)['genes'], bytes_in(task.folder))

def run_of(folder, o):
    "The run, as the benchmark notebook opens it."
    from perturbench.bench.runs import open_run
    budget = dict(max_epochs=o.epochs, min_epochs=1)
    return open_run(spec(folder, o), o.model, budget=budget, out=folder/'out', folder=folder/'attempt')

def train(folder, o):
    "Train for a few epochs."
    run = run_of(folder, o)
    run.train()
    (folder/'costs.json').write_text(json.dumps(run.costs))
    n_cells, genes = len(run.task.cells('train')), len(run.task.genes)
    about = f'{o.model}, {o.epochs} epochs of {-(-n_cells//run.budget.batch_size)} steps'
    return Did(about, o.epochs*n_cells, genes, bytes_in(folder/'attempt'))

def predict(folder, o):
    "Predict all that is tested, and let it go."
    run = run_of(folder, o)
    n_cells = sum(len(prediction.cells) for prediction in run.predict())
    (folder/'predicted.json').write_text(json.dumps([n_cells, len(run.task.genes)]))
    return Did(f'{n_cells:,} cells', n_cells, len(run.task.genes))

def score(folder, o):
    "Predict once more and score, with every metric."
    from perturbench.bench.runs import put_in_place
    run = run_of(folder, o)
    run.costs |= json.loads((folder/'costs.json').read_text())
    scores = run.score()
    run.save(scores)
    put_in_place(run.folder, run.home)
    return Did(f'{len(scores):,} scores', *json.loads((folder/'predicted.json').read_text()), bytes_in(run.home))

def report(folder, o):
    "`perturbench report`, with its references."
    from perturbench.cli import main
    failed = main(['report', str(folder/'out')])
    if failed: raise InputError('report failed')
    return Did('', *json.loads((folder/'predicted.json').read_text()))

STAGES = {'simulate': simulate, 'prepare': prepare, 'open': open_stage, 'train': train, 'predict': predict,
          'score': score, 'report': report}

def step(o):
    "Do a stage in this process and print what it took."
    start = time.perf_counter()
    did = STAGES[o.stage](Path(o.at), o)
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = dict(stage=o.stage, wall=time.perf_counter() - start, cpu=used.ru_utime + used.ru_stime,
                peak=used.ru_maxrss*1024)
    print(json.dumps(took | did._asdict()))

def in_process(stage, screen, folder, o):
    "A stage in a process of its own."
    kept = {key: getattr(o, key) for key in DEFAULTS if key != 'screens'}
    words = dict(stage=stage, screen=screen, at=folder) | kept
    command = [sys.executable, __file__, *(word for key, value in words.items() for word in (f'--{key}', str(value)))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{stage} of {screen} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])

def stages_of(screen, o):
    "What each stage of a screen took."
    folder = Path(tempfile.mkdtemp(dir=o.at))
    try: return [dict(screen=screen) | in_process(stage, screen, folder, o) for stage in STAGES]
    finally: shutil.rmtree(folder)

def shown(screen, found):
    "Lines on all stages of a screen."
    rows = [(f['stage'], f"{f['wall']:.1f}", f"{f['cpu']:.1f}", f"{f['peak']/1e9:.2f}", f['about']) for f in found]
    names = ('stage', 'wall, s', 'CPU, s', 'peak, GB')
    numbers = table(names, [row[:4] for row in rows])
    return [screen, numbers[0], *(f'{line}   {row[4]}'.rstrip() for line, row in zip(numbers[1:], rows)), '']

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in DEFAULTS.items():
        some = dict(nargs='+') if isinstance(value, list) else dict(type=type(value))
        p.add_argument(f'--{key}', default=value, **some)
    for key in ('at', 'stage', 'screen'): p.add_argument(f'--{key}')
    o = p.parse_args()
    if o.stage: return step(o)
    sizes = argparse.Namespace(**{key: getattr(o, key) for key in DEFAULTS if key not in ('screens', 'model')})
    lines = header(sizes, 'numpy', 'torch', 'anndata', 'lightning')
    took = []
    for screen in o.screens:
        found = stages_of(screen, o)
        print('\n'.join(shown(screen, found)), flush=True)
        lines += shown(screen, found)
        took += found
    lines += [
        'CPU is user and system time of a process, with its start and imports; the clock leaves those out.',
        '"score" predicts again and computes every metric; what is measured is looked at once, so that further runs of',
        'a task take less. The clock ran beside other work on the two cores.', '']
    if any(getattr(o, key) != value for key, value in DEFAULTS.items()): return
    results = Path(__file__).parent/'results'
    (results/'lookalike.txt').write_text('\n'.join(lines))
    with (results/'lookalike.csv').open('w', newline='') as file:
        out = csv.DictWriter(file, list(took[0]), lineterminator='\n')
        out.writeheader()
        out.writerows(took)

if __name__ == '__main__': main()
