"Scores by stratum: hand-made tasks with known answers, unbiasedness over simulated noise, and independent counts and means."
import warnings
from dataclasses import replace
from functools import cache
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate, simulated
from perturbench.data.splits import PARTS, halve_controls, leak_check, make_splits
from perturbench.scoring.evaluation import Evaluation
from perturbench.loaders.store import CellStore
from perturbench.scoring import strata as room
from perturbench.scoring.intervals import Resamples
from perturbench.scoring.strata import STRATA, Quarters, by_stratum, cut, distance_to_training, effect_size, quarters, strata
from perturbench.tasks import Task, TaskSpec

few = settings(max_examples=40, deadline=None, derandomize=True)

def near(a, b, eps=1e-9): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=eps, atol=eps)

# hand-made tasks

def of(screen, parts):
    "The task that puts the cells of a screen into `parts`, folds x cells."
    half, store = halve_controls(screen, parts[0], 0), CellStore.from_screen(screen)
    naming = dict(control='control', sep='+', dose_key=screen.dose_key, targets=screen.targets)
    return Task('made', '', 'default', TaskSpec('made', 'made'), None, store, screen.conditions, screen.covariate_keys, parts[:, store.order], half[store.order], naming, 1e4)

def made(rows, genes='g h i', order=None, **options):
    "A task of one fold: `rows` of (labels, part, number of cells, profile); the labels are cell type, perturbation (and dose)."
    labels, parts, profiles = zip(*((lab, part, np.asarray(p, np.float32)) for lab, part, n, p in rows for _ in range(n)))
    obs = pd.DataFrame(list(labels), columns=['line', 'drug', 'dose'][:len(labels[0])], index=[f'c{i}' for i in range(len(labels))])
    adata = ad.AnnData(np.stack(profiles), obs=obs, var=pd.DataFrame(index=genes.split()))
    part = np.array([PARTS.index(p) for p in parts], np.int8)
    if order is not None: adata, part = adata[order].copy(), part[order]
    return of(Screen(adata, 'drug', ('line',), dose_key='dose' if 'dose' in obs else None, **options), part[None])

def found(task): return strata(Evaluation(task, ['rmse_average'])).set_index([c for c in task.conditions if c in ('line', 'drug', 'dose')] if 'dose' in task.conditions else ['line', 'perturbation'])

log = lambda *x: np.log1p(np.array(x, float))
ROWS = [(('x', 'control'), 'test', 6, log(7, 3, 0)), (('x', 'control'), 'train', 4, log(7, 3, 0)), (('x', 'g'), 'test', 5, log(1, 3, 0)), (('x', 'h'), 'train', 5, log(7, 1, 0)),
        (('x', 'i'), 'train', 3, log(1, 3, 0)), (('x', 'g+h'), 'test', 4, log(1, 1, 1)), (('x', 'z'), 'test', 1, log(7, 3, 9)), (('x', 'i+z'), 'test', 2, log(7, 4, .05)),
        (('y', 'control'), 'test', 2, log(0, 0, 4)), (('y', 'h'), 'test', 4, log(0, 0, 4)), (('y', 'control'), 'train', 4, log(0, 0, 4)),
        (('w', 'control'), 'test', 2, log(1, 1, 1)), (('w', 'g+i'), 'train', 6, log(2, 2, 2)), (('w', 'h'), 'train', 6, log(3, 2, 2)), (('w', 'i'), 'test', 7, log(2, 2, 4))]

def test_known_answers():
    t, rms = found(made(ROWS)), lambda a, b: np.sqrt(np.mean((a - b)**2))
    at = lambda column: {k: t.loc[k, column] for k in t.index}
    assert list(t.index) == [('w', 'i'), ('x', 'g'), ('x', 'g+h'), ('x', 'i+z'), ('x', 'z'), ('y', 'h')] and list(t) == list(STRATA)
    assert at('n_cells') == {('w', 'i'): 7, ('x', 'g'): 5, ('x', 'g+h'): 4, ('x', 'i+z'): 2, ('x', 'z'): 1, ('y', 'h'): 4}
    assert at('n_parts') == {('w', 'i'): 1, ('x', 'g'): 1, ('x', 'g+h'): 2, ('x', 'i+z'): 2, ('x', 'z'): 1, ('y', 'h'): 1}
    assert at('parts_seen') == {('w', 'i'): 1, ('x', 'g'): 1, ('x', 'g+h'): 2, ('x', 'i+z'): 1, ('x', 'z'): 0, ('y', 'h'): 1}
    assert at('states_seen') == {('w', 'i'): 1, ('x', 'g'): 0, ('x', 'g+h'): 0, ('x', 'i+z'): 0, ('x', 'z'): 0, ('y', 'h'): 2}
    c = log(7, 3, 0)
    near(t.effect_size, [rms(log(2, 2, 4), log(1, 1, 1)), rms(log(1, 3, 0), c), rms(log(1, 1, 1), c), rms(log(7, 4, .05), c), np.nan, 0], 1e-6)
    near(t.distance_to_training, [min(rms(log(2, 2, 4), log(*o)) for o in ((2, 2, 2), (3, 2, 2))), rms(log(1, 3, 0), log(7, 1, 0)),
                                  rms(log(1, 1, 1), log(7, 1, 0)), np.nan, np.nan, np.nan], 1e-6)  # 'i' in x trains on three cells: too few; y trains on controls alone
    change = lambda m, c: np.log2((m + .1)/(c + .1))
    near(t.efficacy, [change(4, 1), change(1, 7), (change(1, 7) + change(1, 3))/2, np.nan, np.nan, np.nan], 1e-5)  # 'z' is no gene; too little of 'i' in x and of 'h' in y

def test_targets_are_those_stated_and_drugs_without_any_have_no_efficacy():
    rows = [(('x', 'control'), 'test', 4, log(7, 3, 0)), (('x', 'CCO'), 'test', 4, log(3, 1, 0)), (('x', 'ASA'), 'test', 4, log(1, 1, 1)), (('x', 'control'), 'train', 2, log(7, 3, 0))]
    near(found(made(rows, targets={'CCO': ['g', 'h', 'q']})).efficacy, [np.nan, (np.log2(3.1/7.1) + np.log2(1.1/3.1))/2], 1e-5)
    t = found(made(rows))
    assert t.efficacy.isna().all() and t.distance_to_training.isna().all() and t.parts_seen.tolist() == [0, 0]
    nothing = made([r for r in rows if r[1] == 'test'])  # nothing is known of training
    assert found(nothing)[['parts_seen', 'states_seen', 'distance_to_training']].isna().all(axis=None) and found(nothing).n_parts.tolist() == [1, 1]

def test_doses_are_conditions_and_the_nearest_may_be_another_dose():
    rows = [(('x', 'control', 0), 'test', 4, log(4, 4, 4)), (('x', 'control', 0), 'train', 4, log(4, 4, 4)), (('x', 'CCO', .5), 'test', 4, log(3, 4, 4)), (('x', 'CCO', 1.), 'train', 4, log(2, 4, 4)),
            (('y', 'CCO', 1.), 'train', 4, log(0, 4, 4)), (('y', 'control', 0), 'train', 4, log(4, 4, 4)), (('y', 'CCO', 3.), 'train', 4, log(0, 0, 4)), (('x', 'ASA', 2.), 'train', 4, log(4, 4, 9))]
    t = strata(Evaluation(made(rows), ['rmse_average']))
    assert t[['line', 'perturbation', 'dose']].values.tolist() == [['x', 'CCO', .5]]
    assert (t.parts_seen[0], t.states_seen[0]) == (1, 2)
    near(t.distance_to_training, [np.log(4/3)/3**.5], 1e-6)
    scores = t[['line', 'perturbation', 'dose']].assign(metric='rmse_average', value=1.)
    assert len(by_stratum(scores, t)) == 0  # one condition: all strata have one level

def test_order_of_genes_and_cells_is_nothing_to_it():
    r = np.random.default_rng(0)
    plain, mixed = made(ROWS), made(ROWS, order=r.permutation(sum(n for _, _, n, _ in ROWS)))
    near(found(plain), found(mixed), 1e-6)
    turned = [(*row[:3], row[3][[2, 0, 1]]) for row in ROWS]
    near(found(plain), found(made(turned, 'i g h')), 1e-6)

def test_the_same_task_gives_the_same_bits_and_protocol_does_not_matter(task):
    a, b = (strata(Evaluation(o, ['rmse_average'])) for o in (task, replace(task, protocol='perturbench')))
    pd.testing.assert_frame_equal(a, strata(Evaluation(task)))
    pd.testing.assert_frame_equal(a, b, check_exact=True)  # both effects share their controls there, the two halves do not

# noise

def measured(r, truth, n, sd=.5):
    "`truth` (conditions x genes) as the quarters of `n` cells each."
    cells = np.array([[len(range(k, m, 4)) for k in range(4)] for m in n])
    return Quarters(cells[..., None]*truth[:, None] + sd*cells[..., None]**.5*r.normal(size=(len(truth), 4, truth.shape[1])), cells)

def test_squared_effects_are_right_on_average_whatever_the_number_of_cells():
    r, true, naive, here = np.random.default_rng(1), [], [], []
    for _ in range(60):
        delta = .2*r.normal(size=(40, 100))
        n, control = r.integers(8, 80, 40), .5/30**.5*r.normal(size=(2, 100))
        q = measured(r, 3 + delta, n)
        true, naive = [*true, (delta**2).mean(1)], [*naive, ((q.mean(0, 1, 2, 3) - 3 - control.mean(0))**2).mean(1)]
        here.append(effect_size(q, 3 + control)**2)
    error = lambda v: np.subtract(v, true).mean(1)
    assert abs(error(here).mean()) < 4*error(here).std(ddof=1)/60**.5 < .001
    assert error(naive).mean() > .008

def test_half_of_the_effects_of_nothing_are_nothing():
    r = np.random.default_rng(2)
    found = np.array([(effect_size(measured(r, np.zeros((1, 50)), [12]), .1*r.normal(size=(2, 50))) == 0)[0] for _ in range(800)])
    assert abs(found.mean() - .5) < 4*.5/800**.5

def test_a_single_cell_has_no_size_and_two_have():
    size = effect_size(measured(np.random.default_rng(3), np.ones((3, 20)), [1, 2, 3]), np.zeros((2, 20)))
    assert np.isnan(size).tolist() == [True, False, False]

def test_batches_that_are_in_all_conditions_do_not_shrink_effects():
    "Halves of whole batches would: each is compared with controls of all batches."
    sim = simulate(Parameters(n_genes=200, n_states=1, n_perturbations=40, quiet=0, effect_size=.4, cells=60, batch_sd=.4), 5)
    evaluation = Evaluation(of(sim.screen, np.full((1, sim.screen.n_cells), PARTS.index('test'), np.int8)), ['rmse_average'])
    error = strata(evaluation).effect_size**2 - (sim.truth.effects()[evaluation.condition]**2).mean(1)
    assert abs(error.mean()) < 4*error.std()/40**.5
    control = evaluation.controls(1).mean
    by_batch = [evaluation._moments(('half', h), ['mean']).mean - control for h in (0, 1)]
    assert ((by_batch[0]*by_batch[1]).mean(1) - strata(evaluation).effect_size**2).mean() < -.005

def test_distances_are_those_of_a_loop_over_cells(task):
    "For one state: choose by means of half of the cells, measure by products of the other."
    evaluation, train, design = Evaluation(task, ['rmse_average']), task.cells('train'), task.design
    table, state = strata(evaluation), evaluation.state[0]
    at, seen = np.flatnonzero(evaluation.state == state), [c for c in np.flatnonzero(train.n > 3) if design.state[c] == state and not design.is_control[c]]
    def part(cells, c, *parts):
        rows = room.rng('quarters', *task.conditions.loc[c, ['cell_type', 'perturbation']]).permutation(cells.of(c))
        return task.store.dense(np.concatenate([rows[k::4] for k in parts])).numpy().astype(float).mean(0)
    for i in at[:6]:
        c, squares = evaluation.condition[i], []
        for h, a, b in ((0, 1, 3), (1, 0, 2)):
            x = part(task.cells('test'), c, h, h + 2)
            nearest = min(seen, key=lambda o: ((x - part(train, o, h, h + 2))**2).sum())
            d = [part(task.cells('test'), c, k) - part(train, nearest, k) for k in (a, b)]
            squares.append((d[0]*d[1]).mean())
        near(table.distance_to_training[i], max(0, np.mean(squares))**.5)

def test_blocks_of_training_conditions_change_nothing(task, monkeypatch):
    evaluation = Evaluation(task, ['rmse_average'])
    whole = strata(evaluation)
    monkeypatch.setattr(room, 'BLOCK', 7)
    pd.testing.assert_frame_equal(strata(evaluation), whole)

def test_the_luckiest_of_many_distances_is_not_taken_for_the_nearest(monkeypatch):
    "200 training conditions at one distance: its square is right on average, though each is measured with more noise than that."
    r, found, lucky = np.random.default_rng(4), [], []
    class All:
        def __init__(self, n): self.n = np.full(n, 12)
    class Nothing:
        design = type('Design', (), dict(is_control=np.zeros(200, bool), state=np.zeros(200, int)))
        def cells(self, part, fold): return All(200)
    for _ in range(60):
        y = r.normal(size=(200, 60))
        y *= .2/np.sqrt((y**2).mean(1))[:, None]
        known, x = measured(r, y, [12]*200), measured(r, np.zeros((10, 60)), [12]*10)
        monkeypatch.setattr(room, 'quarters', lambda task, cells, codes: Quarters(known.sums[codes], known.n[codes]))
        monkeypatch.setattr(room, '_root', lambda square: square)
        found.append(distance_to_training(Nothing(), 0, 0, x).mean())
        a, b = (x.mean(h, h + 2)[:, None] - known.mean(h, h + 2) for h in (0, 1))
        lucky.append((a*b).mean(2).min(1).mean())
    assert abs(np.mean(found) - .04) < 4*np.std(found)/60**.5 < .004
    assert np.mean(lucky) < .02

# what training saw

screens = cache(simulated)

@pytest.mark.parametrize('name,recipe', [('sim-combination', dict(kind='combination', seen=0, fraction=.3)), ('sim-combination', dict(kind='combination', seen=1)),
    ('sim-combination', dict(kind='combination', seen=2)), ('sim-combination', dict(kind='combination', folds=3)), ('sim-combination', dict(kind='inverse_combination')),
    ('sim-weak', dict(kind='transfer', folds=3)), ('sim-weak', dict(kind='unseen_perturbation')), ('sim-weak', dict(kind='unseen_state')), ('sim-weak', dict(kind='few_shot', cells=10))])
def test_counts_are_those_of_the_leak_check(name, recipe):
    screen = screens(name)
    splits = make_splits(screen, recipe)
    task = of(screen, np.stack([o.parts.codes for o in splits]))
    table = strata(Evaluation(task, ['rmse_average']))
    leaks = pd.concat([leak_check(screen, o) for o in splits], ignore_index=True)
    assert table[['cell_type', 'perturbation']].values.tolist() == leaks[['cell_type', 'perturbation']].values.tolist()
    near(table[['n_cells', 'n_parts', 'parts_seen', 'states_seen']], leaks[['n_test', 'n_parts', 'n_parts_trained', 'n_states_seen']])
    if 'seen' in recipe: assert set(table.parts_seen) == {recipe['seen']}
    assert (table.distance_to_training.isna() == (leaks.n_train_perturbations_in_state == 0)).all()

# levels

@few
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_levels_follow_order_alone(values, random):
    x = np.array(values) + .5
    level = cut(x)
    at = np.array([room.TERCILES.index(l) for l in level])
    assert (cut(np.exp(x/20)) == level).all() and ([2 - room.TERCILES.index(l) for l in cut(-x)] == at).all()
    order = list(range(len(x)))
    random.shuffle(order)
    assert (cut(x[order]) == level[order]).all() and (np.diff(at[np.argsort(x)]) >= 0).all()
    for v in set(x): assert len(set(level[x == v])) == 1
    assert (cut([*x, np.nan, np.inf]) == [*level, 'unknown', 'unknown']).all()

def test_thirds_are_thirds_and_small_whole_numbers_stay():
    for n in (3, 30, 99, 100, 101): assert np.ptp(pd.Series(cut(np.random.default_rng(n).normal(size=n))).value_counts()) <= 1
    assert cut([3., 0, 9]).tolist() == ['3', '0', '9'] and cut([3, 0, 10]).tolist() == ['middle', 'low', 'high']
    assert cut([-1, 0, 1]).tolist() == ['low', 'middle', 'high'] and cut([]).tolist() == [] and cut([np.nan]).tolist() == ['unknown']
    assert cut(np.array([40, 40, 40])).tolist() == ['middle']*3

# scores by stratum

def table(r, n=12, states=3, seeds=dict(a=1, b=3), metrics=('rmse_average', 'rmse_rank_average')):
    names = pd.MultiIndex.from_product([[f's{i}' for i in range(states)], [f'p{i}' for i in range(n)]], names=['line', 'perturbation']).to_frame(index=False)
    scores = pd.concat([names.assign(metric=m, value=r.random(len(names)), model=k, seed=s, state=names.line) for k, n_seeds in seeds.items() for s in range(n_seeds) for m in metrics])
    return scores, names.assign(effect_size=r.random(len(names)), parts_seen=r.integers(0, 3, len(names)).astype(float), efficacy=r.normal(size=len(names)))

def test_means_intervals_and_numbers_are_those_of_each_level_alone():
    scores, s = table(np.random.default_rng(5))
    out = by_stratum(scores, s).set_index(['stratum', 'level', 'model', 'metric'])
    assert len(out) == (3 + 3 + 3)*2*2 and (out.task == 'evaluation').all()
    for name in ('effect_size', 'parts_seen', 'efficacy'):
        value = s[name].abs() if name == 'efficacy' else s[name]
        for level in set(cut(value)):
            mine = s[cut(value) == level]
            for (model, metric), part in scores.merge(mine[['line', 'perturbation']]).groupby(['model', 'metric']):
                row, x = out.loc[name, level, model, metric], part.pivot(index=['line', 'perturbation'], columns='seed', values='value')
                names = x.index.to_frame()
                near(row['mean'], part.groupby('seed').value.mean().mean())
                near([row.lo, row.hi], np.clip(Resamples(names.perturbation, names.line, x.shape[1]).interval(x.to_numpy())[1:], 0, np.inf if metric == 'rmse_average' else 1))
                assert row.n_conditions == len(mine)
                near([row.lowest, row.highest], [value[mine.index].min(), value[mine.index].max()])

def test_conditions_of_one_perturbation_are_drawn_together():
    "A score that is a matter of the perturbation alone has the interval of its perturbations, however many states repeat it."
    for states in (1, 3):
        scores, s = table(np.random.default_rng(6), states=states, seeds=dict(a=1), metrics=['rmse_average'])
        number = scores.perturbation.str[1:].astype(float)
        out = by_stratum(scores.assign(value=number**2), s[['line', 'perturbation']].assign(parts_seen=s.perturbation.isin(['p0', 'p3', 'p5', 'p9'])*1.))
        near(out.loc[out.level == '1', ['mean', 'lo', 'hi']].to_numpy()[0], np.maximum(Resamples(range(4)).interval([0., 9, 25, 81]), 0))

@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_order_of_rows_and_columns_is_nothing_to_it(seed):
    r = np.random.default_rng(seed)
    scores, s = table(r, n=5, seeds=dict(b=2, a=1))
    lost = {o: r.random() < .2 for o in zip(scores.metric, scores.line, scores.perturbation)}
    scores['value'] = scores.value.where([not lost[o] for o in zip(scores.metric, scores.line, scores.perturbation)])
    out = by_stratum(scores, s)
    again = by_stratum(scores.sample(frac=1, random_state=seed)[list(r.permutation(list(scores)))], s.sample(frac=1, random_state=seed))
    pd.testing.assert_frame_equal(out, again, check_exact=True)
    whole = out[out.stratum == 'effect_size'].groupby(['model', 'metric'])
    undefined = scores.groupby(['model', 'metric', 'line', 'perturbation']).value.apply(lambda v: v.isna().all()).groupby(['model', 'metric']).sum()
    assert (whole.n_conditions.sum() + undefined == len(s)).all()
    assert ((out.lo <= out['mean'] + 1e-12) & (out['mean'] <= out.hi + 1e-12) | out.lo.isna()).all()

def test_levels_belong_to_a_task():
    scores, s = table(np.random.default_rng(7))
    both = pd.concat([scores.assign(task='one'), scores.assign(task='two', value=scores.value + 1)])
    with pytest.raises(InputError, match='give them a column `task`'): by_stratum(both, s)
    out = by_stratum(both, pd.concat([s.assign(task='two', effect_size=10*s.effect_size), s.assign(task='one')]))
    for task, add in (('one', 0), ('two', 1)):
        a, b = out[out.task == task].reset_index(drop=True), by_stratum(scores, s)
        near(a['mean'], b['mean'] + add)
        assert (a.level == b.level).all() and (a.n_conditions == b.n_conditions).all()

def test_own_strata_small_levels_and_what_is_left_out():
    scores, s = table(np.random.default_rng(8), n=4, states=1, seeds=dict(a=1), metrics=['rmse_average'])
    out = by_stratum(scores, s[['line', 'perturbation']].assign(kind=['x', 'y', None, 'x'], parts_seen=1., efficacy=[-2., 2.5, .1, -.2]))
    assert out[['stratum', 'level', 'n_conditions']].values.tolist() == [['kind', 'x', 2], ['kind', 'y', 1], ['kind', 'unknown', 1], ['efficacy', 'low', 1], ['efficacy', 'middle', 2], ['efficacy', 'high', 1]]
    assert out.lo.isna().tolist() == [False, True, True, True, False, True] and out.lowest.isna().tolist() == [True]*3 + [False]*3
    near(out.highest[3:], [.1, 2, 2.5])

def test_a_metric_of_some_conditions_and_an_undefined_score():
    scores, s = table(np.random.default_rng(9), n=4, states=1, seeds=dict(a=1))
    s = s[['line', 'perturbation']].assign(parts_seen=[0., 1, 1, 2])
    scores = scores[(scores.metric == 'rmse_average') | (scores.perturbation != 'p0')].copy()
    scores.loc[(scores.metric == 'rmse_average') & (scores.perturbation == 'p3'), 'value'] = np.nan
    out = by_stratum(scores, s).set_index(['metric', 'level'])
    assert out.loc['rmse_average', 'n_conditions'].to_dict() == {'0': 1, '1': 2, '2': 0} and np.isnan(out.loc[('rmse_average', '2'), 'mean'])
    assert out.loc['rmse_rank_average', 'n_conditions'].to_dict() == {'1': 2, '2': 1}
    assert by_stratum(scores, s, 'rmse_rank_average').metric.unique().tolist() == ['rmse_rank_average']

def test_faults_are_named():
    scores, s = table(np.random.default_rng(10))
    for what, args in {"did you mean 'rmse_average'": (scores, s, 'rmse_averag'), "no scores of the metric 'mae_average'": (scores, s, ['mae_average']), 'strata say nothing of': (scores, s[1:]),
                       'two rows of strata': (scores, pd.concat([s, s[:1]])), 'no column `perturbation`': (scores, s.drop(columns='perturbation')),
                       'two scores of one model': (pd.concat([scores, scores[:1]]), s), 'all columns that tell conditions apart': (scores, s.drop(columns='line').drop_duplicates('perturbation'))}.items():
        with pytest.raises(InputError, match=what): by_stratum(*args)

def test_scores_of_an_evaluation_and_its_strata_fit(task):
    from perturbench.metrics.accuracy import METRICS
    evaluation = Evaluation(task, ['rmse_average', 'pearson_delta', 'rmse_rank_average'])
    s = strata(evaluation)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        scores = evaluation.score(evaluation_of_controls(task, evaluation))
        out = by_stratum(scores, s.assign(n_cells=s.n_cells.astype(float)))
    assert set(out.stratum) == {'effect_size', 'n_cells', 'efficacy', 'distance_to_training'} and out.metric.unique().tolist() == [m for m in METRICS if m in set(scores.metric)]
    assert out[out.metric == 'pearson_delta']['mean'].isna().all() and (out[out.metric == 'pearson_delta'].n_conditions == 0).all()
    whole = out[(out.stratum == 'effect_size') & (out.metric == 'rmse_average')]
    near((whole['mean']*whole.n_conditions).sum()/len(s), scores[scores.metric == 'rmse_average'].value.mean())

def evaluation_of_controls(task, evaluation):
    "The controls of each state, as predictions of its conditions."
    from perturbench.predict import Prediction
    cells = task.given()
    for i, c in enumerate(evaluation.condition):
        yield Prediction(int(c), task.store.dense(cells.rows[task.design.state[cells.codes] == evaluation.state[i]]).numpy())
