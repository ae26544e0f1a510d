"""Scores by stratum: hand-made tasks with known answers, unbiasedness over simulated noise, and independent counts and
means."""
import warnings
from dataclasses import replace
from functools import cache
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate, simulated
from perturbench.loaders.store import CellStore
from perturbench.metrics.accuracy import METRICS
from perturbench.predict import Prediction
from perturbench.scoring import strata as room
from perturbench.scoring.evaluation import Evaluation
from perturbench.scoring.intervals import Resamples
from perturbench.scoring.measured import HALVES, Measured
from perturbench.scoring.strata import (STRATA, Cube, Quarters, by_stratum, cut, distance_to_training, effect_size,
                                        mean_over, strata)
from perturbench.splits.check import leak_check
from perturbench.splits.kinds import make_splits
from perturbench.splits.parts import PARTS, halve_controls
from perturbench.tasks import Task, TaskSpec

few = settings(max_examples=40, deadline=None, derandomize=True)

ROUNDED = 1e-6 # Expression is stored in float32
LINEAR = 1e-5 # Transcripts are made of it by `expm1`

def near(a, b, eps=1e-9): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=eps, atol=eps)

def strata_of(task): return strata(Measured(task, []))

# hand-made tasks

def of(screen, parts):
    "The task that puts the cells of a screen into `parts`, folds x cells."
    half, store = halve_controls(screen, parts[0], 0), CellStore.from_screen(screen)
    naming = dict(control='control', sep='+', dose_key=screen.dose_key, targets=screen.targets)
    return Task('made', '', 'default', TaskSpec('made', 'made'), None, store, screen.conditions, screen.covariate_keys,
                parts[:, store.order], half[store.order], naming, 1e4)

def made(rows, genes='g h i', order=None, **options):
    """A task of one fold: `rows` of (labels, part, number of cells, profile); the labels are cell type, perturbation
    (and dose)."""
    labels, parts, profiles = [], [], []
    for label, part, n, profile in rows:
        labels += [label]*n
        parts += [part]*n
        profiles += [np.asarray(profile, np.float32)]*n
    columns = ['line', 'drug', 'dose'][:len(labels[0])]
    obs = pd.DataFrame(labels, columns=columns, index=[f'c{i}' for i in range(len(labels))])
    adata = ad.AnnData(np.stack(profiles), obs=obs, var=pd.DataFrame(index=genes.split()))
    part = np.array([PARTS.index(p) for p in parts], np.int8)
    if order is not None: adata, part = adata[order].copy(), part[order]
    screen = Screen(adata, 'drug', ('line',), dose_key='dose' if 'dose' in obs else None, **options)
    return of(screen, part[None])

def found(task): return strata_of(task).set_index(['line', 'perturbation'])

def log(*x): return np.log1p(np.array(x, float))

def rms(a, b): return np.sqrt(np.mean((a - b)**2))

def change(m, c): return np.log2((m + .1)/(c + .1))

ROWS = [(('x', 'control'), 'test', 6, log(7, 3, 0)),
        (('x', 'control'), 'train', 4, log(7, 3, 0)),
        (('x', 'g'), 'test', 5, log(1, 3, 0)),
        (('x', 'h'), 'train', 5, log(7, 1, 0)),
        (('x', 'i'), 'train', 3, log(1, 3, 0)), # three cells: too few for a distance
        (('x', 'g+h'), 'test', 4, log(1, 1, 1)),
        (('x', 'z'), 'test', 1, log(7, 3, 9)), # no gene of the screen
        (('x', 'i+z'), 'test', 2, log(7, 4, .05)), # too little of `i` to speak of
        (('y', 'control'), 'test', 2, log(0, 0, 4)),
        (('y', 'h'), 'test', 4, log(0, 0, 4)),
        (('y', 'control'), 'train', 4, log(0, 0, 4)), # controls alone are trained in `y`
        (('w', 'control'), 'test', 2, log(1, 1, 1)),
        (('w', 'g+i'), 'train', 6, log(2, 2, 2)),
        (('w', 'h'), 'train', 6, log(3, 2, 2)),
        (('w', 'i'), 'test', 7, log(2, 2, 4))]

def test_known_answers():
    t, missing, control = found(made(ROWS)), np.nan, log(7, 3, 0)
    assert list(t.index) == [('w', 'i'), ('x', 'g'), ('x', 'g+h'), ('x', 'i+z'), ('x', 'z'), ('y', 'h')]
    assert list(t) == list(STRATA)
    assert t.n_cells.tolist() == [7, 5, 4, 2, 1, 4]
    assert t.n_parts.tolist() == [1, 1, 2, 2, 1, 1]
    assert t.parts_seen.tolist() == [1, 1, 2, 1, 0, 1]
    assert t.states_seen.tolist() == [1, 0, 0, 0, 0, 2]
    near(t.effect_size, [rms(log(2, 2, 4), log(1, 1, 1)), rms(log(1, 3, 0), control), rms(log(1, 1, 1), control),
                         rms(log(7, 4, .05), control), missing, 0], ROUNDED)
    nearest = min(rms(log(2, 2, 4), log(2, 2, 2)), rms(log(2, 2, 4), log(3, 2, 2)))
    near(t.distance_to_training, [nearest, rms(log(1, 3, 0), log(7, 1, 0)), rms(log(1, 1, 1), log(7, 1, 0)),
                                  missing, missing, missing], ROUNDED)
    near(t.efficacy, [change(4, 1), change(1, 7), (change(1, 7) + change(1, 3))/2, missing, missing, missing], LINEAR)

DRUGS = [(('x', 'control'), 'test', 4, log(7, 3, 0)),
         (('x', 'CCO'), 'test', 4, log(3, 1, 0)),
         (('x', 'ASA'), 'test', 4, log(1, 1, 1)),
         (('x', 'control'), 'train', 2, log(7, 3, 0))]

def test_targets_are_those_stated():
    stated = found(made(DRUGS, targets={'CCO': ['g', 'h', 'q']}))
    near(stated.efficacy, [np.nan, (change(3, 7) + change(1, 3))/2], LINEAR)

def test_drugs_without_targets_have_no_efficacy_and_training_on_controls_alone_is_near_nothing():
    t = found(made(DRUGS))
    assert t.efficacy.isna().all()
    assert t.distance_to_training.isna().all()
    assert t.parts_seen.tolist() == [0, 0]

def test_where_nothing_is_known_of_training_numbers_are_missing():
    t = found(made([row for row in DRUGS if row[1] == 'test']))
    assert t[['parts_seen', 'states_seen', 'distance_to_training']].isna().all(axis=None)
    assert t.n_parts.tolist() == [1, 1]

def test_doses_are_conditions_and_the_nearest_may_be_another_dose():
    t = strata_of(made([(('x', 'control', 0), 'test', 4, log(4, 4, 4)),
                        (('x', 'control', 0), 'train', 4, log(4, 4, 4)),
                        (('x', 'CCO', .5), 'test', 4, log(3, 4, 4)),
                        (('x', 'CCO', 1.), 'train', 4, log(2, 4, 4)),
                        (('y', 'CCO', 1.), 'train', 4, log(0, 4, 4)),
                        (('y', 'control', 0), 'train', 4, log(4, 4, 4)),
                        (('y', 'CCO', 3.), 'train', 4, log(0, 0, 4)),
                        (('x', 'ASA', 2.), 'train', 4, log(4, 4, 9))]))
    assert t[['line', 'perturbation', 'dose']].values.tolist() == [['x', 'CCO', .5]]
    assert (t.parts_seen[0], t.states_seen[0]) == (1, 2)
    near(t.distance_to_training, [np.log(4/3)/3**.5], ROUNDED)
    scores = t[['line', 'perturbation', 'dose']].assign(metric='rmse_average', value=1.)
    assert len(by_stratum(scores, t)) == 0 # one condition: all strata have one level

def test_order_of_genes_and_cells_is_nothing_to_it():
    n_cells = sum(n for _, _, n, _ in ROWS)
    plain = found(made(ROWS))
    near(plain, found(made(ROWS, order=np.random.default_rng(0).permutation(n_cells))), ROUNDED)
    turned = [(*row[:3], row[3][[2, 0, 1]]) for row in ROWS]
    near(plain, found(made(turned, 'i g h')), ROUNDED)

def test_the_same_task_gives_the_same_bits_and_protocol_does_not_matter(task):
    "Both effects share their controls in a published protocol, the two halves here do not."
    whole = strata_of(task)
    pd.testing.assert_frame_equal(whole, strata_of(task), check_exact=True)
    pd.testing.assert_frame_equal(whole, strata_of(replace(task, protocol='perturbench')), check_exact=True)

def test_the_metrics_of_an_evaluation_are_nothing_to_it(task):
    pd.testing.assert_frame_equal(strata_of(task), strata(Evaluation(task).measured), check_exact=True)

# noise

def measured(r, truth, n, sd=.5):
    "`truth` (conditions x genes) as the quarters of `n` cells each."
    cells = np.array([[len(range(k, m, 4)) for k in range(4)] for m in n])
    noise = sd*cells[..., None]**.5*r.normal(size=(len(truth), 4, truth.shape[1]))
    return Quarters(cells[..., None]*truth[:, None] + noise, cells)

def test_squared_effects_are_right_on_average_whatever_the_number_of_cells():
    r, true, naive, here = np.random.default_rng(1), [], [], []
    for _ in range(60):
        delta = .2*r.normal(size=(40, 100))
        n, control = r.integers(8, 80, 40), .5/30**.5*r.normal(size=(2, 100))
        q = measured(r, 3 + delta, n)
        true.append((delta**2).mean(1))
        naive.append(((q.mean(0, 1, 2, 3) - 3 - control.mean(0))**2).mean(1))
        here.append(effect_size(q, 3 + control)**2)
    def error(v): return np.subtract(v, true).mean(1)
    assert abs(error(here).mean()) < 4*error(here).std(ddof=1)/60**.5 < .001
    assert error(naive).mean() > .008

def test_half_of_the_effects_of_nothing_are_nothing():
    r, sizes = np.random.default_rng(2), []
    for _ in range(800):
        q = measured(r, np.zeros((1, 50)), [12])
        sizes.append(effect_size(q, .1*r.normal(size=(2, 50)))[0])
    assert abs(np.mean(np.equal(sizes, 0)) - .5) < 4*.5/800**.5

def test_a_single_cell_has_no_size_and_two_have():
    size = effect_size(measured(np.random.default_rng(3), np.ones((3, 20)), [1, 2, 3]), np.zeros((2, 20)))
    assert np.isnan(size).tolist() == [True, False, False]

def test_batches_that_are_in_all_conditions_do_not_shrink_effects():
    "Halves of whole batches would: each is compared with controls of all batches."
    sim = simulate(Parameters(n_genes=200, n_states=1, n_perturbations=40, quiet=0, effect_size=.4, cells=60,
                              batch_sd=.4), 5)
    tested = np.full((1, sim.screen.n_cells), PARTS.index('test'), np.int8)
    side = Measured(of(sim.screen, tested), [])
    square = strata(side).effect_size**2
    error = square - (sim.truth.effects()[side.condition]**2).mean(1)
    assert abs(error.mean()) < 4*error.std()/40**.5
    first, second = (side.moments(half).mean - side.controls(1).mean for half in HALVES)
    assert ((first*second).mean(1) - square).mean() < -.005

def part_mean(task, cells, code, *parts):
    "The mean over some quarters of the cells of a condition."
    rows = room.rng('quarters', *task.conditions.loc[code, ['cell_type', 'perturbation']]).permutation(cells.of(code))
    return task.store.dense(np.concatenate([rows[k::4] for k in parts])).numpy().astype(float).mean(0)

def test_distances_are_those_of_a_loop_over_cells(task):
    "For one state: choose by means of half of the cells, measure by products of the other."
    side, train, test, design = Measured(task, []), task.cells('train'), task.cells('test'), task.design
    table, state = strata(side), side.state[0]
    seen = np.flatnonzero((train.n > 3) & (design.state == state) & ~design.is_control)
    for i in np.flatnonzero(side.state == state)[:6]:
        code, squares = side.condition[i], []
        for h, parts in ((0, (1, 3)), (1, (0, 2))):
            x = part_mean(task, test, code, h, h + 2)
            nearest = min(seen, key=lambda o: ((x - part_mean(task, train, o, h, h + 2))**2).sum())
            first, second = (part_mean(task, test, code, k) - part_mean(task, train, nearest, k) for k in parts)
            squares.append((first*second).mean())
        near(table.distance_to_training[i], max(0, np.mean(squares))**.5)

def test_blocks_of_training_conditions_change_nothing(task, monkeypatch):
    whole = strata_of(task)
    monkeypatch.setattr(room, 'BLOCK', 7)
    pd.testing.assert_frame_equal(strata_of(task), whole)

def test_chunks_of_cells_change_nothing_but_rounding(task, monkeypatch):
    whole = strata_of(task).efficacy
    monkeypatch.setattr(room, 'CHUNK', 5)
    near(strata_of(task).efficacy, whole)

class Trained:
    "A task of 200 training conditions of 12 cells each, in one state."
    design = type('Design', (), dict(is_control=np.zeros(200, bool), state=np.zeros(200, int)))
    def cells(self, part, fold): return type('Cells', (), dict(n=np.full(200, 12)))

def test_the_luckiest_of_many_distances_is_not_taken_for_the_nearest(monkeypatch):
    """200 training conditions at one distance: its square is right on average, though each is measured with more noise
    than that."""
    r, found, lucky = np.random.default_rng(4), [], []
    monkeypatch.setattr(room, '_root', lambda square: square)
    for _ in range(60):
        y = r.normal(size=(200, 60))
        y *= .2/np.sqrt((y**2).mean(1))[:, None]
        known, x = measured(r, y, [12]*200), measured(r, np.zeros((10, 60)), [12]*10)
        monkeypatch.setattr(room, 'quarters', lambda task, cells, codes: Quarters(known.sums[codes], known.n[codes]))
        found.append(distance_to_training(Trained(), 0, 0, x).mean())
        first, second = (x.half(h)[:, None] - known.half(h) for h in (0, 1))
        lucky.append((first*second).mean(2).min(1).mean())
    assert abs(np.mean(found) - .04) < 4*np.std(found)/60**.5 < .004
    assert np.mean(lucky) < .02

# what training saw

screens = cache(simulated)

RECIPES = [('sim-combination', dict(kind='combination', seen=0, fraction=.3)),
           ('sim-combination', dict(kind='combination', seen=1)),
           ('sim-combination', dict(kind='combination', seen=2)),
           ('sim-combination', dict(kind='combination', folds=3)),
           ('sim-combination', dict(kind='inverse_combination')),
           ('sim-weak', dict(kind='transfer', folds=3)),
           ('sim-weak', dict(kind='unseen_perturbation')),
           ('sim-weak', dict(kind='unseen_state')),
           ('sim-weak', dict(kind='few_shot', cells=10))]

@pytest.mark.parametrize('name,recipe', RECIPES)
def test_counts_are_those_of_the_leak_check(name, recipe):
    screen, names = screens(name), ['cell_type', 'perturbation']
    splits = make_splits(screen, recipe)
    table = strata_of(of(screen, np.stack([o.parts.codes for o in splits])))
    leaks = pd.concat([leak_check(screen, o) for o in splits], ignore_index=True)
    assert table[names].values.tolist() == leaks[names].values.tolist()
    near(table[['n_cells', 'n_parts', 'parts_seen', 'states_seen']],
         leaks[['n_test', 'n_parts', 'n_parts_trained', 'n_states_seen']])
    if 'seen' in recipe: assert set(table.parts_seen) == {recipe['seen']}
    assert (table.distance_to_training.isna() == (leaks.n_train_perturbations_in_state == 0)).all()

# levels

@few
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_levels_follow_order_alone(values, random):
    x = np.array(values) + .5
    level = cut(x)
    at = np.array([room.TERCILES.index(name) for name in level])
    turned = [2 - room.TERCILES.index(name) for name in cut(-x)]
    assert (cut(np.exp(x/20)) == level).all()
    assert (turned == at).all()
    order = list(range(len(x)))
    random.shuffle(order)
    assert (cut(x[order]) == level[order]).all()
    assert (np.diff(at[np.argsort(x)]) >= 0).all()
    for v in set(x): assert len(set(level[x == v])) == 1
    assert (cut([*x, np.nan, np.inf]) == [*level, 'unknown', 'unknown']).all()

@pytest.mark.parametrize('n', [3, 30, 99, 100, 101])
def test_thirds_are_thirds(n):
    levels = pd.Series(cut(np.random.default_rng(n).normal(size=n)))
    assert np.ptp(levels.value_counts()) <= 1

@pytest.mark.parametrize('values,levels', [
    ([3., 0, 9], ['3', '0', '9']), ([3, 0, 10], ['middle', 'low', 'high']), ([-1, 0, 1], ['low', 'middle', 'high']),
    ([], []), ([np.nan], ['unknown']), (np.array([40, 40, 40]), ['middle']*3)])
def test_small_whole_numbers_stay(values, levels): assert cut(values).tolist() == levels

# scores by stratum

def table(r, n=12, states=3, seeds=dict(a=1, b=3), metrics=('rmse_average', 'rmse_rank_average')):
    "Random scores of `states` x `n` conditions, and strata of these."
    pairs = [(f's{i}', f'p{j}') for i in range(states) for j in range(n)]
    names = pd.DataFrame(pairs, columns=['line', 'perturbation'])
    runs = [(model, seed, metric) for model in seeds for seed in range(seeds[model]) for metric in metrics]
    scores = [names.assign(metric=metric, value=r.random(len(names)), model=model, seed=seed, state=names.line)
              for model, seed, metric in runs]
    known = names.assign(effect_size=r.random(len(names)), parts_seen=r.integers(0, 3, len(names)).astype(float),
                         efficacy=r.normal(size=len(names)))
    return pd.concat(scores), known

def level_alone(scores, conditions, metric):
    "Mean, lo, hi of the scores of some conditions by one model and metric, clipped to the limits of the metric."
    x = scores.merge(conditions[['line', 'perturbation']])
    mean = x.groupby('seed').value.mean().mean()
    x = x.pivot(index=['line', 'perturbation'], columns='seed', values='value')
    names = x.index.to_frame()
    ends = Resamples(names.perturbation, names.line, x.shape[1]).interval(x.to_numpy())[1:]
    return [mean, *np.clip(ends, 0, np.inf if metric == 'rmse_average' else 1)]

def test_means_intervals_and_numbers_are_those_of_each_level_alone():
    scores, s = table(np.random.default_rng(5))
    out = by_stratum(scores, s).set_index(['stratum', 'level', 'model', 'metric'])
    assert len(out) == (3 + 3 + 3)*2*2 and (out.task == 'evaluation').all()
    for name, level in out.index.droplevel(['model', 'metric']).unique():
        value = s[name].abs() if name == 'efficacy' else s[name]
        mine = s[cut(value) == level]
        for (model, metric), part in scores.groupby(['model', 'metric']):
            row = out.loc[name, level, model, metric]
            near(row[['mean', 'lo', 'hi']], level_alone(part, mine, metric))
            assert row.n_conditions == len(mine)
            near([row.lowest, row.highest], [value[mine.index].min(), value[mine.index].max()])

@pytest.mark.parametrize('states', [1, 3])
def test_conditions_of_one_perturbation_are_drawn_together(states):
    "A score that is a matter of the perturbation alone has the interval of its perturbations, in one state or three."
    scores, s = table(np.random.default_rng(6), states=states, seeds=dict(a=1), metrics=['rmse_average'])
    scores = scores.assign(value=scores.perturbation.str[1:].astype(float)**2)
    some = s.perturbation.isin(['p0', 'p3', 'p5', 'p9'])
    out = by_stratum(scores, s[['line', 'perturbation']].assign(parts_seen=some.astype(float)))
    expected = np.maximum(Resamples(range(4)).interval([0., 9, 25, 81]), 0)
    near(out.loc[out.level == '1', ['mean', 'lo', 'hi']].to_numpy()[0], expected)

@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_order_of_rows_and_columns_is_nothing_to_it(seed):
    r, names = np.random.default_rng(seed), ['metric', 'line', 'perturbation']
    scores, s = table(r, n=5, seeds=dict(b=2, a=1))
    lost = {key: r.random() < .2 for key in scores[names].itertuples(index=False, name=None)}
    there = [not lost[key] for key in scores[names].itertuples(index=False, name=None)]
    scores['value'] = scores.value.where(there)
    out = by_stratum(scores, s)
    columns = list(r.permutation(list(scores)))
    again = by_stratum(scores.sample(frac=1, random_state=seed)[columns], s.sample(frac=1, random_state=seed))
    pd.testing.assert_frame_equal(out, again, check_exact=True)
    whole = out[out.stratum == 'effect_size'].groupby(['model', 'metric']).n_conditions.sum()
    known = scores.dropna(subset='value').drop_duplicates(['model', *names]).groupby(['model', 'metric']).size()
    assert (whole - known == 0).all()
    inside = (out.lo <= out['mean'] + 1e-12) & (out['mean'] <= out.hi + 1e-12)
    assert (inside | out.lo.isna()).all()

def test_levels_belong_to_a_task():
    scores, s = table(np.random.default_rng(7))
    both = pd.concat([scores.assign(task='one'), scores.assign(task='two', value=scores.value + 1)])
    with pytest.raises(InputError, match='give them a column `task`'): by_stratum(both, s)
    known = pd.concat([s.assign(task='two', effect_size=10*s.effect_size), s.assign(task='one')])
    out, alone = by_stratum(both, known), by_stratum(scores, s)
    for task, add in (('one', 0), ('two', 1)):
        mine = out[out.task == task].reset_index(drop=True)
        near(mine['mean'], alone['mean'] + add)
        assert (mine.level == alone.level).all() and (mine.n_conditions == alone.n_conditions).all()

def test_own_strata_small_levels_and_what_is_left_out():
    scores, s = table(np.random.default_rng(8), n=4, states=1, seeds=dict(a=1), metrics=['rmse_average'])
    own = dict(kind=['x', 'y', None, 'x'], parts_seen=1., efficacy=[-2., 2.5, .1, -.2])
    known = s[['line', 'perturbation']].assign(**own)
    out = by_stratum(scores, known)
    assert out.stratum.tolist() == ['kind']*3 + ['efficacy']*3
    assert out.level.tolist() == ['x', 'y', 'unknown', 'low', 'middle', 'high']
    assert out.n_conditions.tolist() == [2, 1, 1, 1, 2, 1]
    assert out.lo.isna().tolist() == [False, True, True, True, False, True]
    assert out.lowest.isna().tolist() == [True]*3 + [False]*3
    near(out.highest[3:], [.1, 2, 2.5])

def test_a_metric_of_some_conditions_and_an_undefined_score():
    scores, s = table(np.random.default_rng(9), n=4, states=1, seeds=dict(a=1))
    s = s[['line', 'perturbation']].assign(parts_seen=[0., 1, 1, 2])
    scores = scores[(scores.metric == 'rmse_average') | (scores.perturbation != 'p0')].copy()
    scores.loc[(scores.metric == 'rmse_average') & (scores.perturbation == 'p3'), 'value'] = np.nan
    out = by_stratum(scores, s).set_index(['metric', 'level'])
    assert out.loc['rmse_average', 'n_conditions'].to_dict() == {'0': 1, '1': 2, '2': 0}
    assert np.isnan(out.loc[('rmse_average', '2'), 'mean'])
    assert out.loc['rmse_rank_average', 'n_conditions'].to_dict() == {'1': 2, '2': 1}
    assert by_stratum(scores, s, 'rmse_rank_average').metric.unique().tolist() == ['rmse_rank_average']

def test_no_scores_make_an_empty_table_with_all_columns():
    scores, s = table(np.random.default_rng(10))
    columns = list(by_stratum(scores, s))
    assert list(by_stratum(scores[:0], s)) == columns
    assert len(by_stratum(scores[:0], pd.DataFrame(columns=['perturbation']))) == 0

def test_cells_of_a_cube_are_the_scores():
    scores, s = table(np.random.default_rng(11), n=3, states=1)
    cube = Cube(scores.assign(value_half=-scores.value, condition=scores.perturbation.str[1:].astype(int)))
    assert cube.values.shape == (3, 3, 2, 2) and cube.models == ['a', 'b'] and cube.tested.all()
    for row in scores.itertuples():
        at = int(row.perturbation[1:]), row.seed, cube.models.index(row.model), cube.metrics.index(row.metric)
        assert cube.values[at] == row.value and cube.halves[at] == -row.value
    assert (cube.values[:, :, 0] == cube.values[:, :1, 0]).all() # one seed stands for all
    near(mean_over(cube.values, 0), cube.values.mean(0))

def test_faults_are_named():
    scores, s = table(np.random.default_rng(12))
    twice, no_line = pd.concat([scores, scores[:1]]), s.drop(columns='line').drop_duplicates('perturbation')
    faults = {"did you mean 'rmse_average'": (scores, s, 'rmse_averag'),
              "no scores of the metric 'mae_average'": (scores, s, ['mae_average']),
              'strata say nothing of': (scores, s[1:]),
              'two rows of strata': (scores, pd.concat([s, s[:1]])),
              'no column `perturbation`': (scores, s.drop(columns='perturbation')),
              'two scores of one model': (twice, s),
              'all columns that tell conditions apart': (scores, no_line)}
    for what, args in faults.items():
        with pytest.raises(InputError, match=what): by_stratum(*args)

def of_controls(task, side):
    "The controls of each state, as predictions of its conditions."
    cells = task.given()
    for code, state in zip(side.condition, side.state):
        rows = cells.rows[task.design.state[cells.codes] == state]
        yield Prediction(int(code), task.store.dense(rows).numpy())

def test_scores_of_an_evaluation_and_its_strata_fit(task):
    evaluation = Evaluation(task, ['rmse_average', 'pearson_delta', 'rmse_rank_average'])
    s = strata(evaluation.measured)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        scores = evaluation.score(of_controls(task, evaluation.measured))
        out = by_stratum(scores, s.assign(n_cells=s.n_cells.astype(float)))
    assert set(out.stratum) == {'effect_size', 'n_cells', 'efficacy', 'distance_to_training'}
    assert out.metric.unique().tolist() == [m for m in METRICS if m in set(scores.metric)]
    constant = out[out.metric == 'pearson_delta']
    assert constant['mean'].isna().all() and (constant.n_conditions == 0).all()
    whole = out[(out.stratum == 'effect_size') & (out.metric == 'rmse_average')]
    mean = scores[scores.metric == 'rmse_average'].value.mean()
    near((whole['mean']*whole.n_conditions).sum()/len(s), mean)
