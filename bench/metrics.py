"""What scores take beside a plain copy of how the original evaluation goes about it.

It takes means slice by slice, and goes through every pair of conditions in a Python loop."""
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # all is timed on the host; read when torch is imported
import ctypes, gc, json, subprocess, sys
from pathlib import Path
import anndata as ad, numpy as np, pandas as pd
from scipy import sparse
from threadpoolctl import threadpool_limits
from perturbench.core import progress, rng
from perturbench.data.screen import Screen
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.profiles import asked, score
from perturbench.loaders.store import CellStore
from perturbench.metrics.accuracy import KINDS
from perturbench.metrics.effects import Profiles, moments, pseudobulk
from perturbench.predict import Prediction
from perturbench.splits.parts import PARTS, halve_controls
from perturbench.tasks import Task, TaskSpec
from _common import header, in_turn, options, random_values, ratio, report, seconds, set_threads, table

SIZES = dict(
    conditions=400, genes=4_000, naive_rows=10, many=5_000, many_genes=5_000, cells=100_000, cell_genes=2_000,
    groups=400, tested=[94, 376], tested_genes=4_000, tested_cells=200, rounds=5, slow_rounds=2)
RANKED = [
    'rmse_average', 'cosine_logfc', 'rmse_rank_average', 'cosine_rank_logfc', 'discrimination_l2_delta',
    'discrimination_cosine_delta']
PUBLISHED = ['rmse_average', 'mae_average', 'cosine_logfc', 'pearson_logfc', 'rmse_rank_average', 'cosine_rank_logfc']

def threads(n):
    "Let numba, torch and the products of numpy use `n` threads."
    set_threads(n)
    threadpool_limits(n)

def naive_rmse(a, b): return np.sqrt(np.mean((a - b)**2))
def naive_cosine(a, b): return 1 - a @ b/(np.linalg.norm(a)*np.linalg.norm(b))

def naive_pairs(f, references, others):
    "`f` of each row of `references` and each of `others`, frames with one index: a column for each reference."
    out = np.empty((len(others), len(references)))
    for j, r in enumerate(references.index):
        for i, o in enumerate(others.index): out[i, j] = f(references.loc[r].to_numpy(), others.loc[o].to_numpy())
    return pd.DataFrame(out, others.index, references.index)

def naive_ranks(pairs):
    "How many are closer to the reference of each column than the one of its name, as a share."
    return [list(pairs[k].sort_values().index).index(k)/(len(pairs) - 1) for k in pairs]

def naive_means(X, labels, names):
    "The mean of the cells of each condition, slice by slice."
    return pd.DataFrame([X[(labels == k).to_numpy()].toarray().mean(0) for k in names], names)

def both(pairs): return [pairs.loc[k, k] for k in pairs], naive_ranks(pairs)

def profiles(n, g):
    "Predicted and measured profiles of `n` conditions, with the controls of each side."
    r = rng(0, 'bench', 'profiles')
    base = np.abs(r.normal(0, .5, g))
    true = np.maximum(base + .1*r.normal(size=(n, g)), 0)
    pred = np.maximum(base + .5*(true - base) + .1*r.normal(size=(n, g)), 0)
    return Profiles(pred, base + .01*r.random(g)), Profiles(true, base + .01*r.random(g))

def naive_scores(pred, true, n):
    "Functions of the naive way for `n` of the conditions: the published four, and the two transposes."
    frame = lambda o, space: pd.DataFrame(o.rows(space), [f'c{i}' for i in range(len(o.mean))])
    frames = {s: [frame(o, s) for o in (pred, true)] for s in ('average', 'delta', 'logfc')}
    of = lambda f, others, references: both(naive_pairs(f, references[:n], others))
    return {'published': lambda: [of(naive_rmse, *frames['average']), of(naive_cosine, *frames['logfc'])],
            'transposed': lambda: [of(f, *frames['delta'][::-1])[1] for f in (naive_rmse, naive_cosine)]}

def check():
    "Both ways give the same numbers."
    pred, true = profiles(30, 50)
    published, transposed = (f() for f in naive_scores(pred, true, 30).values())
    (rmse, rmse_rank), (cosine, cosine_rank) = published
    l2, by_cosine = transposed
    naive = [rmse, 1 - np.array(cosine), rmse_rank, cosine_rank, 1 - np.array(l2), 1 - np.array(by_cosine)]
    ours = score(pred, true, np.zeros(30), RANKED).pivot(index='row', columns='metric', values='value')[RANKED].T
    assert np.allclose(ours, naive, rtol=0, atol=1e-9)

def about(t, digits=1):
    "The median and the middle half of some ratios, in words."
    low, mid, high = (f'{q:,.{digits}f}' for q in np.quantile(t, [.25, .5, .75]))
    return f'{mid}, the median of {len(t)} rounds, half of them from {low} to {high}'

def products(pred, true, n):
    "A call that takes `n` matrix products of the profiles, in memory that is there."
    out = np.empty((len(pred.mean),)*2)
    return lambda: [np.dot(true.mean, pred.mean.T, out=out) for _ in range(n)]

def all_ranks(o):
    "Lines on RMSE, cosine and their ranks."
    threads(1)
    (pred, true), group = profiles(o.conditions, o.genes), np.zeros(o.conditions)
    ours = lambda metrics: lambda: score(pred, true, group, metrics)
    ways = {'all': ours(RANKED), 'four': ours(RANKED[:4]), 'products': products(pred, true, 4)}
    t = in_turn(ways | naive_scores(pred, true, o.naive_rows), o.rounds)
    t = {k: s*(o.conditions/o.naive_rows if k in ('published', 'transposed') else 1) for k, s in t.items()}
    t['naive'] = t['published'] + t['transposed']
    row = lambda name, naive, ours: [
        name, f'{np.median(t[naive]):.1f}', f'{np.median(t[ours]):.3f}', f'{ratio(t[naive], t[ours]):.0f}']
    size, floor = f'{o.conditions:,} conditions x {o.genes:,} genes', ratio(t['naive'], t['products'])
    return [
        f'RMSE and cosine with all ranks, {size}: at least 500 times as fast wanted -> ' + about(t['naive']/t['all']),
        f"four matrix products of that size alone: {np.median(t['products']):.3f} s, "
        f'the naive way takes {floor:.0f} times as long',
        '',
        *table(['scores', 'naive, s', 'score, s', 'ratio'], [
            row('all six', 'naive', 'all'),
            row('without the two transposes', 'published', 'four')])]

def many_ranks(o):
    "What a process finds that scores many conditions."
    threads(2)
    small, (pred, true) = profiles(30, 50), profiles(o.many, o.many_genes)
    score(*small, np.zeros(30), RANKED)
    took = seconds(lambda: score(pred, true, np.zeros(o.many), RANKED))
    peak = status('VmHWM')
    return dict(seconds=took, peak=peak, products=seconds(products(pred, true, 4)))

def status(name): return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith(name))

def in_process(step, o, **more):
    "What `step` finds in a process of its own."
    given = [str(v) for k, v in (vars(o) | more).items() for v in (f'--{k}', *(v if isinstance(v, list) else [v]))]
    command, env = [sys.executable, __file__, *given], os.environ | dict(STEP=step)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{step} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])

def many(o):
    "Lines on many conditions."
    found = pd.DataFrame([in_process('many_ranks', o) for _ in range(o.slow_rounds)])
    took = found.seconds
    return [
        f'the same, {o.many:,} conditions x {o.many_genes:,} genes, 2 threads: under 20 s wanted -> '
        f'{took.median():.1f} s, from {took.min():.1f} to {took.max():.1f} in {len(found)} processes; '
        f'four matrix products alone take {found.products.median():.1f} s',
        f'peak memory of such a process, profiles included: under 6 GB wanted -> {found.peak.max()/1e9:.1f} GB']

def aggregation(o):
    "Lines on means and moments."
    threads(1)
    starts, columns, values = random_values(o.cells, o.cell_genes, .1)
    X = sparse.csr_matrix((values, columns, starts), (o.cells, o.cell_genes))
    codes, names = rng(0, 'bench', 'codes').integers(o.groups, size=o.cells), [f'c{i}' for i in range(o.groups)]
    labels = pd.Series(pd.Categorical.from_codes(codes, names))
    assert np.allclose(naive_means(X, labels, names), pseudobulk(X, codes, o.groups)[0], rtol=1e-4)
    t = in_turn({
        'slice by slice': lambda: naive_means(X, labels, names),
        'pseudobulk': lambda: pseudobulk(X, codes, o.groups),
        'moments, means alone': lambda: moments(X, codes, o.groups, ('mean',)),
        'moments, all four': lambda: moments(X, codes, o.groups)}, o.rounds)
    size = f'{o.cells:,} cells x {o.cell_genes:,} genes, {o.groups:,} conditions'
    row = lambda name, s: [name, f'{np.median(s):.3f}', f"{ratio(t['slice by slice'], s):.2f}"]
    return [
        f'means of {size}: at least 3 times as fast wanted -> ' + about(t['slice by slice']/t['pseudobulk'], 2),
        'all four moments over means alone: ' + about(t['moments, all four']/t['moments, means alone'], 2),
        '',
        *table(['means', 'seconds', 'naive over it'], [row(k, s) for k, s in t.items()])]

def pairs_task(n, n_genes, n_cells):
    """A task of one state that trains on `n` single perturbations and tests `n` pairs of them.

    With it comes by how much each of them changes each gene."""
    singles = [f'g{i}' for i in range(n)]
    names = np.array(['control', *singles, *(f'{a}+{b}' for a, b in zip(singles, singles[1:] + singles[:1]))])
    code, r = np.repeat(np.arange(2*n + 1), [4_000, *[n_cells]*2*n]), rng(0, 'bench', 'task')
    factor = np.where(r.random((n, n_genes)) < .05, 1.5, 1).astype(np.float32)
    factor = np.concatenate([np.ones_like(factor[:1]), factor, factor*np.roll(factor, -1, 0)])
    X = sparse.csr_matrix(random_values(len(code), n_genes, .1)[::-1], (len(code), n_genes))
    for i in range(len(names)):
        at = slice(*X.indptr[np.searchsorted(code, [i, i + 1])])
        X.data[at] *= factor[i, X.indices[at]]
    what = pd.Categorical.from_codes(code, names)
    obs = pd.DataFrame(dict(what=what, line='a'), [f'cell{i}' for i in range(len(code))])
    screen = Screen(ad.AnnData(X, obs, pd.DataFrame(index=[f'g{i}' for i in range(n_genes)])), 'what', ('line',))
    tested = np.where(code == 0, np.arange(len(code)) % 2, code > n).astype(bool)
    part = np.where(tested, PARTS.index('test'), PARTS.index('train')).astype(np.int8)
    half, store = halve_controls(screen, part, 0), CellStore.from_screen(screen)
    naming = dict(control='control', sep='+', perturbation_key='what', dose_key=None)
    task = Task('pairs', '', 'default', TaskSpec('pairs', 'pairs'), None, store, screen.conditions, ('line',),
                part[store.order][None], half[store.order], naming)
    return task, dict(zip(names, factor))

def predicted(task, factor, n):
    """Yield a `Prediction` of `n` cells for the controls and for each condition that `task` tests.

    They are controls with half of the change, and noise."""
    given, r = task.given().rows, rng(0, 'bench', 'predicted')
    for c in [*np.flatnonzero(task.design.is_control), *task.test_conditions()]:
        change = (1 + factor[task.conditions.perturbation[c]])/2
        controls = task.store.dense(given[r.integers(len(given), size=n)]).numpy()
        cells = controls*change + .1*r.standard_normal((n, len(change)), np.float32)
        yield Prediction(int(c), np.maximum(cells, 0, out=cells))

def naive_cells(task, parts, codes):
    "Cells as the original keeps them: a compressed matrix, and a column of names."
    names = task.conditions.perturbation.astype(str).to_numpy()
    return sparse.vstack([sparse.csr_matrix(o) for o in parts], 'csr'), pd.Series(pd.Categorical(names[codes]))

def naive_step(true, pred):
    """RMSE, cosine and both ranks from measured cells, controls among them, and predicted ones.

    Both are as `naive_cells` gives them."""
    names = [k for k in true[1].cat.categories if k != 'control']
    control = naive_means(*true, ['control']).loc['control']
    average = [naive_means(*o, names) for o in (true, pred)]
    logfc = [np.log2(o + .1) - np.log2(control + .1) for o in average]
    return [both(naive_pairs(f, *o)) for f, o in ((naive_rmse, average), (naive_cosine, logfc))]

def whole_step(o, task, predictions):
    "Lines on a whole test step."
    cells = task.cells('test')
    true = naive_cells(task, [task.store.dense(cells.rows).numpy()], cells.codes)
    codes = np.repeat([p.condition for p in predictions], o.tested_cells)
    pred = naive_cells(task, [p.cells for p in predictions], codes)
    names = [k for k in true[1].cat.categories if k != 'control']
    ours = Evaluation(task, PUBLISHED).score(iter(predictions))
    ours = ours.pivot(index='perturbation', columns='metric', values='value').loc[names]
    assert np.allclose(ours[['rmse_average', 'rmse_rank_average']].T, naive_step(true, pred)[0], rtol=0, atol=1e-5)
    t = in_turn({
        'naive': lambda: naive_step(true, pred),
        'Evaluation': lambda: Evaluation(task, PUBLISHED).score(iter(predictions)),
        'naive means': lambda: [naive_means(*k, names) for k in (true, pred)]}, o.rounds)
    size = (
        f'{o.tested[0]:,} conditions x {o.tested_genes:,} genes, '
        f'{o.tested_cells:,} measured and predicted cells each')
    took = {k: f'{np.median(s):.2f} s' for k, s in t.items()}
    return [
        f'a test step, {size}: at least 10 times as fast wanted -> ' + about(t['naive']/t['Evaluation']),
        f"the naive way takes {took['naive']}, {took['naive means']} of them for its means; "
        f"Evaluation {took['Evaluation']}"]

def families(o, task, predictions):
    "Lines on what each family of metrics takes."
    r = rng(0, 'bench', 'sets')
    members = np.full(2_500, 1/50), r.integers(o.tested_genes, size=2_500), np.arange(0, 2_501, 50)
    sets = [f's{i}' for i in range(50)], sparse.csr_array(members, (50, o.tested_genes))
    groups = {'rmse_average alone': ['rmse_average'], 'the published six': PUBLISHED}
    groups |= {k: [m.name for m in asked() if m.kind == k] for k in KINDS} | {'all': [m.name for m in asked()]}
    t = {k: [] for k in groups}
    for k in progress([k for _ in range(o.slow_rounds) for k in groups], 'families'):
        t[k].append(seconds(lambda: Evaluation(task, groups[k], sets).score(iter(predictions))))
    row = lambda k, s: [k, f'{len(groups[k])}', f'{np.median(s):.2f}', f'{1e3*np.median(s)/o.tested[0]:.1f}']
    return [
        'Seconds of that step by family of metrics:', '',
        *table(['metrics', 'how many', 'seconds', 'ms a condition'], [row(k, s) for k, s in t.items()])]

def kept(evaluation, compared):
    "The bytes of the profiles that an evaluation and a comparison hold."
    sides = [v for v in evaluation.measured.kept.things.values() if isinstance(v, Profiles)] + [compared.pred]
    arrays = [a for side in sides for a in vars(side).values() if isinstance(a, np.ndarray)]
    return sum({id(a): a.nbytes for a in arrays}.values())

def memory(o):
    "What a process finds that scores predictions which are made one at a time."
    threads(1)
    task, factor = pairs_task(20, o.tested_genes, o.tested_cells)
    Evaluation(task, PUBLISHED).score(predicted(task, factor, o.tested_cells))
    task, factor = pairs_task(o.tested[0], o.tested_genes, o.tested_cells)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the peak from here on
    before, evaluation = status('VmRSS'), Evaluation(task, PUBLISHED)
    compared = evaluation.collect(predicted(task, factor, o.tested_cells))
    collected = status('VmHWM') - before
    evaluation.table(compared)
    return dict(collected=collected, peak=status('VmHWM') - before, profiles=kept(evaluation, compared))

def growth(o):
    "Lines on memory."
    found = {n: in_process('memory', o, tested=[n]) for n in o.tested}
    few, many = found.values()
    rest = [v['peak'] - v['profiles'] for v in (few, many)]
    row = lambda n, v: [f'{n:,}'] + [f'{x/1e6:,.0f}' for x in (
        v['collected'], v['peak'], v['profiles'], 8*n*o.tested_genes, 4*n*o.tested_cells*o.tested_genes)]
    names = [
        'conditions', 'peak, MB: predictions taken', 'and scored', 'profiles kept, MB', 'one mean a condition, MB',
        'all predicted cells, MB']
    return [
        f'peak memory beyond inputs and kept profiles, {o.tested[1]:,} conditions over {o.tested[0]:,}: '
        f'about 1 wanted -> {rest[1]/rest[0]:.2f}',
        '', *table(names, [row(*k) for k in found.items()])]

def main():
    o = options(**SIZES)
    if step := os.environ.get('STEP'): return print(json.dumps(dict(many_ranks=many_ranks, memory=memory)[step](o)))
    check()
    load, lines = os.getloadavg()[0], [*all_ranks(o), '', *many(o), '', *aggregation(o), '', *growth(o), '']
    threads(1)
    task, factor = pairs_task(o.tested[0], o.tested_genes, o.tested_cells)
    predictions = list(predicted(task, factor, o.tested_cells))
    report([
        *header(o, 'numpy', 'scipy', 'pandas', 'numba', 'torch'), *lines, *whole_step(o, task, predictions[1:]), '',
        *families(o, task, predictions), '',
        'The naive way keeps means as frames. For each pair of conditions it looks both rows up by `.loc` and takes',
        'RMSE or cosine of them; for each column it sorts all distances and looks for the right one. In the first',
        f'part its pairs are timed for {o.naive_rows} of {o.conditions} references and scaled, and its log fold',
        'changes are free; the test step is timed in full. Means come from compressed rows: a mask over all cells,',
        'the slice, made dense. Both ways give the same numbers, which is checked. Evaluation also scores against',
        'each half of the measured cells, and finds them in a store with as many training cells; the naive way does',
        'neither, and has two scores fewer. Memory: a process for each size, predictions made one at a time; profiles',
        f'kept are those of both sides, of halves and of controls. The test step, all of one state: {o.tested[0]}',
        'pairs of genes; single genes and 2,000 controls to train on, 2,000 controls to test with; a tenth of',
        'measured values is not 0, and half of predicted ones. By family: with what all share, reading the',
        'predictions; 50 gene sets, and predicted controls, are given too. One thread, but for the 5,000 conditions.',
        'Times are medians, ratios medians of those of a round.',
        f'Load before and after: {load:.1f} and {os.getloadavg()[0]:.1f} processes; other work ran beside.'], o, SIZES)

if __name__ == '__main__': main()
