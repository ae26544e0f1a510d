"""What the benchmarks share: options, random cells, ways that are timed in turn, a report that names the machine."""
import argparse, os, platform, sys, time
from datetime import date
from importlib.metadata import version
from pathlib import Path
import numba, numpy as np, torch
from perturbench.core import rng
from perturbench.data.screen import Design
from perturbench.loaders.store import CellStore

def options(**defaults):
    "The sizes given on the command line, `defaults` where none are."
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description=sys.modules['__main__'].__doc__, formatter_class=formatter)
    for k, v in defaults.items():
        some = dict(nargs='+', type=type(v[0])) if isinstance(v, list) else dict(type=type(v))
        p.add_argument(f'--{k}', default=v, help='size', **some)
    return p.parse_args()

def set_threads(n):
    "Let numba and torch use `n` threads."
    numba.set_num_threads(n)
    torch.set_num_threads(n)

def random_values(n, g, density):
    "Row starts, columns and values of a compressed matrix, each number non-zero with a chance of `density`."
    r, mean = rng(0, 'bench'), n*g*density
    at = np.cumsum(r.geometric(density, int(mean + 9*mean**.5 + 9))) - 1
    at = at[:np.searchsorted(at, n*g)]
    return np.searchsorted(at, np.arange(n + 1)*g), (at % g).astype(np.int32), r.random(len(at), np.float32) + .5

def random_store(n_cells, n_genes, density=.11, n_perturbations=60, n_states=3):
    "Cells of `n_states` lines of one size, each with a tenth of controls and perturbations of one size."
    place, n = np.arange(n_cells)*n_states/n_cells, n_perturbations + 1
    state = place.astype(int)
    what = np.ceil((place - state - .1)/.9*n_perturbations).clip(0).astype(int)
    state_of, what_of = np.divmod(np.arange(n*n_states), n)
    lines = {'line': [f'line{i}' for i in range(n_states)]}
    perturbation, covariate = np.eye(n, dtype=np.float32)[what_of, 1:], np.eye(n_states, dtype=np.float32)[state_of]
    design = Design([f'p{i}' for i in range(1, n)], lines, perturbation, covariate, state_of, what_of == 0)
    values, genes = random_values(n_cells, n_genes, density), [f'g{i}' for i in range(n_genes)]
    return CellStore(*values, state*n + what, np.arange(n_cells), None, genes, design)

def clock():
    "The time when all that was asked of this machine's devices is done."
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter()

def seconds(f):
    "How long one call takes."
    start = clock()
    f()
    return clock() - start

def in_turn(ways, n_rounds, seconds=seconds):
    """Seconds of each way [rounds], after a call of each that does not count.

    All ways are timed in each round, so that a busy moment hits all alike."""
    for f in ways.values(): f()
    rounds = [[seconds(f) for f in ways.values()] for _ in range(n_rounds)]
    return dict(zip(ways, np.transpose(rounds)))

class Loader:
    "`n` batches an epoch, those that `start` gives, as Lightning takes them."
    def __init__(self, start, n): self.start, self.n = start, n
    def __iter__(self): yield from self.start()
    def __len__(self): return self.n

def epochs_in_turn(train, ways, val, n_rounds):
    """As `in_turn`, of the steps of epochs.

    `train` takes loaders for training, an epoch out of each way in turn, and validation, which stops the clock."""
    starts, stops, each = [], [], list(ways.values())
    def start():
        starts.append(clock())
        return each[len(stops) % len(each)]
    def stop():
        stops.append(clock())
        return [val]
    train(Loader(start, len(each[0])), Loader(stop, 1))
    rounds = np.subtract(stops, starts).reshape(n_rounds + 1, len(each))[1:]
    return dict(zip(ways, rounds.T))

def ratio(a, b):
    "The median over rounds of `a` over `b`."
    return np.median(np.divide(a, b))

def table(names, rows):
    "Lines of columns, flush right."
    rows = [names, *rows]
    widths = [max(map(len, column)) + 3 for column in zip(*rows)]
    return [''.join(o.rjust(w) for o, w in zip(row, widths)) for row in rows]

def machine():
    "Cores, model and memory."
    info = Path('/proc/cpuinfo')
    model = platform.processor()
    if info.exists():
        named = (l.split(':')[1].strip() for l in info.read_text().splitlines() if l.startswith('model name'))
        model = next(named, '')
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30 if hasattr(os, 'sysconf') else 0
    return f'{os.cpu_count()} cores, {model or platform.machine()}, {memory:.0f} GB of memory'

def header(sizes, *packages):
    "Lines that say where, when and with what."
    show = lambda v: ' and '.join(map(show, v)) if isinstance(v, list) else f'{v:,}'
    return [f'Machine: {machine()}', f'Date: {date.today()}',
            f'Versions: Python {platform.python_version()}, ' + ', '.join(f'{k} {version(k)}' for k in packages),
            'Sizes: ' + ', '.join(f'{k} {show(v)}' for k, v in vars(sizes).items()), '']

def report(lines, sizes, defaults):
    "Print `lines`; after a run with the default sizes, keep them in results/ beside the script too."
    text, script = '\n'.join([*lines, '']), Path(sys.argv[0])
    print(text)
    if vars(sizes) != defaults: return
    path = script.parent/'results'/f'{script.stem}.txt'
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
