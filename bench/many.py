"""Many runs: what a run costs beside its work, how fast a grid starts that is done, how long its report takes.

`python bench/many.py [--runs N ...] [--real N]` prints the figures and writes them to results/many.txt. `--real` runs
of a baseline on a tiny task are executed one after the other in this process. For each of `--runs` a folder is filled
with copies of one run, whose scores are varied, 20 labels and 50 seeds a task; a dry run of the grid finds nothing to
do, before and after a start has written down what it found whole, and `perturbench report` makes a board of all. Each
is a process of its own.
"""
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import pandas as pd, yaml
from perturbench.bench import batch
from perturbench.bench.runs import run_home, seal
from perturbench.core import rng
from perturbench.data.simulate import Parameters, simulate
from _common import header, options, report

SIZES = dict(runs=[1000, 10_000], real=100)
LABELS, SEEDS = 20, 50

def grid(folder, n_tasks, n_labels, n_seeds):
    "A grid of a baseline on splits of one tiny screen."
    path = folder/'tiny.h5ad'
    if not path.exists():
        size = Parameters(n_genes=40, n_states=2, n_perturbations=10, n_programmes=4, cells=10, controls=24, panel=.6)
        simulate(size, 0).screen.write(path)
    tasks = [dict(name=f't{i}', screen=str(path), split=dict(kind='transfer', seed=i)) for i in range(n_tasks)]
    models = [{'name': 'control_mean', 'as': f'm{i}'} for i in range(n_labels)]
    return dict(tasks=tasks, models=models, seeds=list(range(n_seeds)), budget='quick')

def cost_of_a_run(folder, n):
    "Seconds of a run, and of what is not the work of its cells."
    out, cells, run_cell = folder/'real', [], batch._run_cell
    def timed(*args):
        start = time.perf_counter()
        answer = run_cell(*args)
        cells.append(time.perf_counter() - start)
        return answer
    batch.run_grid(grid(folder, 1, 1, 2), out)
    batch._run_cell = timed
    start = time.perf_counter()
    batch.run_grid(grid(folder, 1, 1, 2 + n), out)
    took = time.perf_counter() - start
    batch._run_cell = run_cell
    return took/n, (took - sum(cells))/n

def fill(folder, n):
    "A folder with `n` finished runs, and the grid that asks for them."
    out, asked = folder/f'out{n}', grid(folder, max(1, n//(LABELS*SEEDS)), min(LABELS, n//SEEDS), SEEDS)
    path = folder/f'grid{n}.yaml'
    path.write_text(yaml.safe_dump(asked))
    batch.run_grid(asked | dict(models=asked['models'][:1], seeds=[0]), out)
    first, r = {}, rng(0, 'bench')
    for spec in batch.expand(batch.read_grid(asked), out):
        home = run_home(out, spec.task.name, spec.label, spec.run_id)
        if home.exists():
            about = json.loads((home/'run.json').read_text())
            first[spec.task.name] = home, about, pd.read_parquet(home/'scores.parquet')
            continue
        source, about, scores = first[spec.task.name]
        shutil.copytree(source, home)
        values = scores.value*r.uniform(1, 1.1, len(scores))
        own = dict(model=spec.label, seed=spec.seed, run_id=spec.run_id)
        scores.assign(**own, value=values).to_parquet(home/'scores.parquet')
        seal(home, about | own)
    return path, out

def command(*words):
    "Seconds on the clock, seconds of CPU and peak memory (GB) of `perturbench` with these words."
    code = 'import sys; from perturbench.cli import main; sys.exit(main(sys.argv[1:]))'
    start = time.perf_counter()
    with open(os.devnull, 'w') as nowhere:
        process = subprocess.Popen([sys.executable, '-c', code, *map(str, words)], stdout=nowhere, stderr=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss/2**20

def figures(asked):
    "The lines of the report."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        took, beside = cost_of_a_run(folder, asked.real)
        yield f'a run of a baseline on a tiny task {took:.3f} s, of which {beside:.3f} s beside the work of its cells'
        for n in asked.runs:
            path, out = fill(folder, n)
            first = command('run', path, '-o', out, '--dry-run')
            time.sleep(batch._SETTLED)
            batch.to_do(batch.expand(batch.read_grid(path), out), out)
            start = command('run', path, '-o', out, '--dry-run')
            board = command('report', out)
            yield (f'{n:6,} finished runs: looked through by a first start in {first[0]:.1f} s '
                   f'({first[1]:.1f} s of CPU) and by the next in {start[0]:.1f} s ({start[1]:.1f} s of CPU), '
                   f'reported in {board[0]:.0f} s ({board[1]:.0f} s of CPU, peak {board[2]:.2f} GB)')

def main():
    asked = options(**SIZES)
    report([*header(asked, 'papermill', 'pandas', 'torch'), *figures(asked)], asked, SIZES)

if __name__ == '__main__': main()
