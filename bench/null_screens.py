"""Are predictors that are equally good told apart, and do intervals hold the mean, where controls are few?

Simulated screens, from means and not from cells."""
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''
from itertools import product
from typing import NamedTuple
import numpy as np
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits
from perturbench.core import rng
from perturbench.scoring.intervals import Resamples
from perturbench.scoring.measured import GROUPS
from _common import header, options, report, table

SIZES = dict(
    screens=2_000, conditions=40, genes=300, cells=100, controls=[25, 100, 1_000], seeds=[1, 2, 3, 5],
    groups=[5, 10, 20], bootstrap=[25, 50, 100], counted_screens=400, counted_cells=20_000)
SCORES = dict(cosine='cosine', rmse='rmse', rank='cosine rank')
MANY_CONTROLS = 1_000_000 # So many that they have no noise
AT_ONCE = 40 # Screens that are simulated together
MOST_TOLD_APART, LEAST_COVERED = .06, .93
BY_LUCK = 2.58 # Standard deviations of a share within which it is compatible with a goal

class Law(NamedTuple):
    """What screens are drawn from.

    Noise is that of the mean of some cells, whose covariance is diagonal: the genes are principal components."""
    spread:np.ndarray # Standard deviation of a cell along each of them
    conditions:int
    cells:int # Of a condition
    controls:int # Of half B of a state, and as many of half A
    seeds:int
    effects:float # Size of true effects, in units of the noise of a condition
    common:float=1. # What all predicted effects of a predictor share, in the same units, beside half A
    by_seed:float=.7 # What they share within a seed
    own:float=.5 # What each has of its own
    signal:float=.7 # How much of the true effects is predicted
    states:int=1
    # Or 'by seed': what predictors share is half A alone; 'fixed': one and the same in all screens; 'fixed, new A'
    predictors:str='mirrored'

def spread(genes, decay):
    "Standard deviations whose squares fall with a power of the rank, and sum to 1."
    variance = np.arange(1, genes + 1)**-float(decay)
    return (variance/variance.sum())**.5

def directions(law): return (law.spread**2).sum()**2/(law.spread**4).sum()

def noise(r, law, n, *shape):
    "The noise of means of `n` cells."
    return r.normal(size=(*shape, len(law.spread)))*law.spread/n**.5

def shared_parts(r, law, n):
    """What all predicted effects of a predictor have in common [screens, predictors, 1, 1, genes].

    Mirrored: the second has the sizes of the first, with signs of its own. The law of a screen is the same under a
    change of signs, so that neither predictor is better, given what they predict."""
    if law.predictors == 'mirrored':
        size = (law.common**2/law.cells + 1/law.controls)**.5
        return size*np.abs(noise(r, law, 1, n, 1, 1, 1))*r.choice([-1., 1], (n, 2, 1, 1, len(law.spread)))
    half_a = noise(r, law, law.controls, n, 1, 1, 1)
    if law.predictors == 'by seed': return -half_a + np.zeros((n, 2, 1, 1, 1))
    fixed = rng('null screens', 'fixed')
    common, one_half = law.common*noise(fixed, law, law.cells, 1, 2, 1, 1), noise(fixed, law, law.controls, 1, 1, 1, 1)
    return common - (one_half if law.predictors == 'fixed' else half_a) + np.zeros((n, 1, 1, 1, 1))

class Parts(NamedTuple):
    "Means of what is measured and predicted."
    measured:np.ndarray # Screens x conditions x genes
    predicted:np.ndarray # Screens x predictors x seeds x conditions x genes

def parts(r, law, n):
    """Conditions of `n` screens and two predictions of them.

    True effects have a mean of their own, where predictors are fixed ones."""
    c = law.conditions//law.states
    true = law.effects*noise(r, law, law.cells, n, c)
    if law.predictors.startswith('fixed'):
        true = true + law.effects*noise(rng('null screens', 'mean effect'), law, law.cells)
    by_seed = law.by_seed*noise(r, law, law.cells, n, 2, law.seeds, 1) if law.seeds > 1 else 0
    own = law.own*noise(r, law, law.cells, n, 2, law.seeds, c)
    predicted = law.signal*true[:, None, None] + shared_parts(r, law, n) + by_seed + own
    return Parts(true + noise(r, law, law.cells, n, c), predicted)

# Redraws of controls: the mean of all first, then those of each way in turn

def weights(way, n_cells, n, r):
    """How much each control cell counts in each redraw: (screens x) redraws x cells.

    `way` is ('leave out', groups) or ('bootstrap', draws)."""
    kind, size = way
    if kind == 'bootstrap': return r.multinomial(n_cells, [1/n_cells]*n_cells, (n, size))/n_cells
    left = np.arange(n_cells) % size != np.arange(size)[:, None]
    return left/left.sum(1, keepdims=True)

def control_means(r, law, n, ways):
    "Control means of `n` screens: screens x (1 + redraws) x genes. Few groups are drawn as means, all else from cells."
    if list(ways) == [('leave out', GROUPS)]:
        sizes = law.controls//GROUPS + (np.arange(GROUPS) < law.controls % GROUPS)
        sums = noise(r, law, 1, n, GROUPS)*sizes[:, None]**.5
        total = sums.sum(1, keepdims=True)
        return np.concatenate([total/law.controls, (total - sums)/(law.controls - sizes)[:, None]], 1)
    cells = noise(r, law, 1, n, law.controls)
    return with_redraws(cells, law, n, ways, r)

def with_redraws(cells, law, n, ways, r):
    "The mean of all `cells` of a screen, and then those of each way to draw them anew."
    redrawn = [weights(way, law.controls, n, r) @ cells for way in ways]
    return np.concatenate([cells.mean(1, keepdims=True), *redrawn], 1)

def scores(found, controls):
    "Three scores with each control mean: screens x predictors x seeds x conditions x redraws."
    n, predictors, seeds, c, genes = found.predicted.shape
    predicted, across = found.predicted.reshape(n, -1, c, genes), controls.swapaxes(1, 2)
    length = np.linalg.norm(predicted, axis=-1)[..., None]
    with_controls = (predicted.reshape(n, -1, genes) @ across).reshape(*predicted.shape[:-1], -1)
    # Screens x predictions x conditions predicted x conditions measured
    with_all = predicted @ found.measured.swapaxes(1, 2)[:, None]
    product = np.diagonal(with_all, axis1=2, axis2=3)[..., None] - with_controls
    squares = (found.measured**2).sum(-1)[..., None] - 2*found.measured @ across + (controls**2).sum(-1)[:, None]
    rmse = ((length**2 - 2*product + squares[:, None])/genes)**.5
    closer = np.empty(product.shape)
    for k in range(controls.shape[1]):
        alike = (with_all - with_controls[..., k, None])/length
        closer[..., k] = (alike > np.diagonal(alike, axis1=2, axis2=3)[:, :, None]).sum(2)
    shape = n, predictors, seeds, c, -1
    cosine = product/length/squares[:, None]**.5
    return dict(cosine=cosine.reshape(shape), rmse=rmse.reshape(shape), rank=(closer/(c - 1)).reshape(shape))

class Scored(NamedTuple):
    "A score of many screens."
    values:np.ndarray # Conditions x seeds x predictors x screens
    redrawn:dict # way -> conditions x 1 x predictors x screens x redraws: the mean over seeds

def simulated(law, ways, n, key, draw=parts, controls=control_means):
    "`Scored` for each score, from `n` screens."
    r, found = rng('null screens', *key), {s: [] for s in SCORES}
    for _ in range(n//AT_ONCE):
        states = [scores(draw(r, law, AT_ONCE), controls(r, law, AT_ONCE, ways)) for _ in range(law.states)]
        for s in SCORES: found[s].append(np.concatenate([state[s] for state in states], 3))
    return {s: scored(np.concatenate(chunks), ways) for s, chunks in found.items()}

def scored(x, ways):
    "Screens x predictors x seeds x conditions x redraws, taken apart."
    x, redrawn, start = x.transpose(3, 2, 1, 0, 4), {}, 1
    for way in ways:
        redrawn[way] = x[..., start:start + way[1]].mean(1, keepdims=True)
        start += way[1]
    return Scored(x[..., 0], redrawn)

# Judgements

def resamples(law):
    return Resamples(range(law.conditions), np.arange(law.conditions)//(law.conditions//law.states), law.seeds)

def told_apart(error):
    "Share of screens in which the mean difference is not 0, tested at .05."
    return np.mean(np.abs(error.mean) > stdtrit(error.df, .975)*error.se)

def covered(interval):
    "Share of screens whose interval holds the mean over all of them."
    return np.mean((interval.lo <= interval.mean.mean()) & (interval.mean.mean() <= interval.hi))

def apart(law, n, key, **how):
    """Shares of screens in which two equal predictors are told apart.

    Score -> with the controls given, with the controls drawn."""
    way, out = ('leave out', GROUPS), {}
    for s, found in simulated(law, [way], n, key, **how).items():
        difference = found.values[:, :, 0] - found.values[:, :, 1]
        redrawn = found.redrawn[way][:, :, 0] - found.redrawn[way][:, :, 1]
        out[s] = told_apart(resamples(law).error(difference)), told_apart(resamples(law).error(difference, redrawn))
    return out

def coverage(law, n, key):
    "Coverage of the mean score of the first predictor, in the same form."
    way, out = ('leave out', GROUPS), {}
    for s, found in simulated(law, [way], n, key).items():
        first, redrawn = found.values[:, :, 0], found.redrawn[way][:, :, 0]
        out[s] = covered(resamples(law).interval(first)), covered(resamples(law).interval(first, redrawn=redrawn))
    return out

def redrawn_variance(way, redrawn, n_controls):
    """Variance of the mean by one way, what is crossed with conditions, and degrees of freedom.

    `redrawn`: conditions x screens x redraws."""
    kind, size = way
    scale = (size - 1)/size if kind == 'leave out' else n_controls/(n_controls - 1)/(size - 1)
    def variance(x): return scale*((x - x.mean(-1, keepdims=True))**2).sum(-1)
    c, mean = len(redrawn), redrawn.mean(0)
    df = size - 1 if kind == 'leave out' else 1/(1/(size - 1) + 1/(n_controls - 1))
    return variance(mean), variance(redrawn - mean).sum(0)/(c*(c - 1)), df

def widened(error, variance, crossed, df):
    "The error with the variance of controls added."
    value = error.se**2 + np.maximum(variance - crossed, 0)
    return error._replace(se=value**.5, df=np.maximum(value**2/(error.se**4/error.df + variance**2/df), 1))

def judged(error):
    "Share of screens told apart, and the variance that is stated over the one that is there."
    return f'{100*told_apart(error):.1f} ({(error.se**2).mean()/error.mean.var():.2f})'

def choices(law, ways, n, key):
    "What each way and variant makes of the screens: name -> score -> text."
    out = {}
    for s, found in simulated(law, ways, n, key).items():
        difference = found.values[:, :, 0] - found.values[:, :, 1]
        error = resamples(law).error(difference)
        out.setdefault('controls given', {})[s] = judged(error)
        for way in ways:
            redrawn = (found.redrawn[way][:, :, 0] - found.redrawn[way][:, :, 1])[:, 0]
            variance, crossed, df = redrawn_variance(way, redrawn, law.controls)
            name = f'{way[1]} groups' if way[0] == 'leave out' else f'bootstrap, {way[1]} draws'
            out.setdefault(name, {})[s] = judged(widened(error, variance, crossed, df))
            if way[0] == 'leave out':
                out.setdefault(f'{name}, half the df', {})[s] = judged(widened(error, variance, crossed, df/2))
            out.setdefault(f'{name}, nothing crossed', {})[s] = judged(widened(error, variance, 0, df))
    return out

# Cells that are counted

def counted(r, n_cells, genes):
    "log1p of counts per 10,000 of control cells: library sizes, five programs, and Poisson noise."
    fixed = rng('null screens', 'cells')
    level, programs = fixed.gamma(.5, size=genes), fixed.normal(0, .3, (5, genes))
    rate = level*np.exp(r.normal(size=(n_cells, 5)) @ programs)
    found = r.poisson(rate/rate.sum(1, keepdims=True)*r.lognormal(6.5, .4, (n_cells, 1))) + 0.
    return np.log1p(found/np.maximum(found.sum(1, keepdims=True), 1)*1e4)

def of_cells(sizes):
    "The two draws of `simulated` from counted cells, and the spread of these along their principal components."
    many = counted(rng('null screens', 'many cells'), sizes.counted_cells, sizes.genes)
    middle, (variance, axes) = many.mean(0), np.linalg.eigh(np.cov(many.T))
    variance, axes = variance[::-1], axes[:, ::-1]
    def means(r, n, n_means, n_cells):
        "Means of `n_cells` cells each: n x n_means x genes."
        cells = counted(r, n*n_means*n_cells, sizes.genes).reshape(n, n_means, n_cells, -1)
        return (cells.mean(2) - middle) @ axes
    def draw(r, law, n):
        drawn = parts(r, law, n)
        measured = [means(r, 1, law.conditions, law.cells) for _ in range(n)]
        return drawn._replace(measured=np.concatenate(measured))
    def controls(r, law, n, ways):
        cells = means(r, n, law.controls, 1)
        return with_redraws(cells, law, n, ways, r)
    return np.sqrt(np.maximum(variance, 0)), draw, controls

# Tables

def shares(cell): return [f'{100*given:.1f} -> {100*drawn:.1f}' for given, drawn in cell.values()]

def verdict(cells, n, misses):
    "Which of `cells` miss the goal by more than luck: `misses` says by how much a share does."
    bad = [f'{name} ({SCORES[s]}, {100*drawn:.1f} %)' for name, cell in cells.items() for s, (_, drawn) in cell.items()
           if misses(drawn) > BY_LUCK*(drawn*(1 - drawn)/n)**.5]
    return 'missed by ' + '; '.join(bad) if bad else 'reached everywhere'

def too_many(share): return share - MOST_TOLD_APART
def too_few(share): return LEAST_COVERED - share

def named(cells):
    "Lines of cells whose names are labels, split by '|'."
    return [[*name.split('|'), *shares(cell)] for name, cell in cells.items()]

def main():
    sizes = options(**SIZES)
    threadpool_limits(1)
    n, kinds = sizes.screens, {'no effects': 0., 'effects': 1.}
    base = Law(spread(sizes.genes, 1), sizes.conditions, sizes.cells, 0, 1, 0.)
    def law(**changes): return base._replace(**changes)
    lines = header(sizes, 'numpy', 'scipy')
    lines += [
        f'Controls are those of half B of a state. Cells vary along {sizes.genes} components, {directions(base):.0f}',
        'effective directions unless said otherwise. Shares in %: with the controls given -> with the controls drawn.',
        'A goal is missed where a share is worse by more than luck, 2.58 standard errors.',
        '']

    cells = {f'{k}|{s}|{c:,}': apart(law(effects=e, seeds=s, controls=c), n, ('apart', k, s, c))
             for k, e in kinds.items() for s in sizes.seeds for c in sizes.controls}
    lines += [
        f'Equal predictors told apart at .05: at most {100*MOST_TOLD_APART:.0f} % wanted, '
        f'{verdict(cells, n, too_many)}',
        'mirrored: given what they predict, neither is better', '',
        *table(['screen', 'seeds', 'controls', *SCORES.values()], named(cells)), '']

    by_seed = dict(predictors='by seed', common=0.)
    other = {
        f'{k}|{s} seeds, half A shared, nothing else in common|{c:,}': law(effects=e, seeds=s, controls=c, **by_seed)
        for k, e in kinds.items() for s in sizes.seeds if s > 1 for c in sizes.controls[:2]}
    flat, steep = spread(sizes.genes, .5), spread(sizes.genes, 1.5)
    one_seed = {
        '3 states': dict(states=3, conditions=39),
        '10 conditions': dict(conditions=10),
        '100 conditions': dict(conditions=100),
        f'{directions(law(spread=flat)):.0f} directions': dict(spread=flat),
        f'{directions(law(spread=steep)):.0f} directions': dict(spread=steep)}
    other |= {
        f'{k}|{what}, 1 seed|{c:,}': law(effects=e, controls=c, **changes)
        for k, e in kinds.items() for what, changes in one_seed.items() for c in sizes.controls[:2]}
    cells = {name: apart(this, n, ('other', name)) for name, this in other.items()}
    lines += [
        f'Other equal predictors and screens: at most {100*MOST_TOLD_APART:.0f} % wanted, '
        f'{verdict(cells, n, too_many)}',
        '', *table(['screen', 'what', 'controls', *SCORES.values()], named(cells)), '']

    fixed = {
        'fixed': 'fresh perturbations, cells, half B and seeds; half A and what a predictor has in common are given',
        'fixed, new A': (
            'the same with a fresh half A in each screen, '
            'which is in all predicted effects and which no interval sees')}
    for predictors, said in fixed.items():
        cells = {}
        for (k, e), s, c in product(kinds.items(), sizes.seeds, [*sizes.controls, MANY_CONTROLS]):
            this = law(effects=e, seeds=s, controls=c, predictors=predictors)
            cells[f'{k}|{s}|{c:,}'] = coverage(this, n, ('covered', predictors, k, s, c))
        enough = {name: cell for name, cell in cells.items() if int(name.split('|')[1]) >= 3}
        lines += [
            f'95 % intervals of a mean score: at least {100*LEAST_COVERED:.0f} % wanted with three seeds or more, '
            f'{verdict(enough, n, too_few)}',
            said, '', *table(['screen', 'seeds', 'controls', *SCORES.values()], named(cells)), '']

    ways = [('leave out', g) for g in sizes.groups] + [('bootstrap', b) for b in sizes.bootstrap]
    for c in sizes.controls[:2]:
        found = {k: choices(law(effects=e, controls=c), ways, n, ('ways', k, c)) for k, e in kinds.items()}
        rows = [[way, *(found[k][way][s] for k in kinds for s in SCORES)] for way in found['effects']]
        lines += [
            f'Ways to draw {c:,} controls, one seed: equal predictors told apart, % (stated variance over true)', '',
            *table(['', *(f'{k}: {said}' for k in kinds for said in SCORES.values())], rows), '']

    known, draw, controls = of_cells(sizes)
    few, m = law(spread=known, controls=sizes.controls[0]), sizes.counted_screens
    cells = {
        'cells': apart(few, m, ('cells',), draw=draw, controls=controls),
        'means': apart(few, m, ('means',), controls=lambda *a: control_means(*a))}
    lines += [
        f'Counted cells beside means drawn with their covariance ({directions(few):.0f} directions): '
        f'no effects, one seed, {sizes.controls[0]} controls, {m} screens',
        '', *table(['drawn', *SCORES.values()], [[name, *shares(cell)] for name, cell in cells.items()])]
    report(lines, sizes, SIZES)

if __name__ == '__main__': main()
