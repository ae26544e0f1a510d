"Ranks as ranges and strengths over tasks: known answers, invariances, false findings, and a page of fifty models."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import norm, ttest_rel
from test_page import made_scores, references
from perturbench.bench.across import across, bradley_terry, friedman, games_of, ranges_of, ranks_by_screen, share_won
from perturbench.bench.across import weights_of, won_in_all
from perturbench.bench.ranks import added, deviates, largest_deviates, pairs_of, rank_ranges, step_down
from perturbench.scoring.intervals import Resamples, holm

def ranks(values, better='lower', perturbation=None):
    labels = range(len(values)) if perturbation is None else perturbation
    return rank_ranges(values[:, None], better, Resamples(labels), [labels])

def draws(seed, n_models=6, n_conditions=20, effect=0.):
    "Models with the same errors but for noise; the first is better by `effect`."
    draw = np.random.default_rng(seed)
    values = draw.normal(1, 1, (n_conditions, 1)) + draw.normal(0, 1, (n_conditions, n_models))
    values[:, 0] -= effect
    return values

def test_two_models_are_a_paired_t_test():
    for seed in range(5):
        values = draws(seed, 2, effect=.5)
        p = ranks(values).p[0, 1]
        assert p == pytest.approx(ttest_rel(values[:, 0], values[:, 1]).pvalue, abs=.03)

def test_no_stricter_than_holm():
    for seed in range(5):
        pairs = pairs_of(draws(seed, effect=1.)[:, None], 'lower')
        z = deviates(Resamples(range(20)).error(pairs.gain))
        p = step_down(z, largest_deviates(added(pairs.gain, [range(20)]), 4000))
        assert (p <= holm(2*norm.sf(z)) + .02).all()

def test_false_findings_are_few_and_true_ones_are_found():
    false = np.mean([ranks(draws(seed)).better.any() for seed in range(100)])
    found = np.mean([ranks(draws(seed, effect=2.)).hi[0] == 1 for seed in range(20)])
    assert false < .1 and found > .9

def test_ranges_hold_the_true_ranks_together():
    "Six models, each a little worse than the one before it."
    true, held = np.arange(1, 7), []
    for seed in range(50):
        found = ranks(draws(seed) + .4*np.arange(6))
        held.append(((found.lo <= true) & (true <= found.hi)).all())
    assert np.mean(held) >= .9

@settings(derandomize=True, deadline=None, max_examples=10)
@given(order=st.permutations(range(5)), scale=st.floats(.1, 10), seed=st.integers(0, 5))
def test_neither_the_order_nor_the_unit_of_scores_matters(order, scale, seed):
    values = draws(seed, 5, effect=1.)
    first, other = ranks(values), ranks(scale*values[:, order])
    assert (other.lo == first.lo[order]).all() and (other.hi == first.hi[order]).all()
    turned = ranks(-values, 'higher')
    assert (turned.lo == first.lo).all()

def test_conditions_of_one_perturbation_are_no_sample():
    "Ten copies of two perturbations tell no more than the two."
    values = np.repeat(np.array([[1., 1.2], [1., 1.1]]), 10, axis=0)
    assert not ranks(values, perturbation=[0]*10 + [1]*10).better.any()
    assert ranks(values + np.random.default_rng(0).normal(0, .01, values.shape)).better.any() # as if there were twenty

def test_a_model_that_is_nowhere_has_no_rank_and_ranks_nobody():
    values = draws(0, 4, effect=3.)
    values[:, 3] = np.nan
    found = ranks(values)
    assert np.isnan(found.lo[3]) and found.hi[0] == 1 and np.nanmax(found.hi) == 3

def test_ties_of_rounding_are_ties():
    values = np.repeat(np.random.default_rng(0).random((20, 1)), 3, axis=1)
    values[:, 1] += 1e-15
    assert not ranks(values).better.any()

def test_strengths_do_not_depend_on_how_many_conditions_a_task_has():
    draw = np.random.default_rng(0)
    tasks = dict(a=draw.random((2, 4)), b=draw.random((2, 4)))
    def games(task, n): return games_of(task, 'error', 'rmse_average', np.tile(tasks[task], (n, 1)), [np.nan]*2*n)
    few, many = [games('a', 1), games('b', 1)], [games('a', 50), games('b', 1)]
    first, other = (bradley_terry(won_in_all(some, weights_of(some))) for some in (few, many))
    assert np.allclose(first, other)

def test_what_is_missing_plays_as_the_null():
    values = np.array([[1., np.nan], [3., np.nan]])
    won = share_won(games_of('a', 'error', 'rmse_average', values, [2., 2.]).values)
    assert won[0, 1] == .5 and won[1, 0] == .5

def test_two_tasks_on_one_screen_rank_models_once():
    draw = np.random.default_rng(0)
    games = [games_of(name, 'error', 'rmse_average', draw.random((9, 4)), [np.nan]*9) for name in 'abc']
    once = ranks_by_screen(games, list('xyz'))
    twice = ranks_by_screen([*games, games[0]._replace(task='again')], list('xyzx'))
    assert (once == twice).all() and once.shape == (3, 4)

def test_friedman_finds_nothing_in_noise_and_much_in_order():
    draw = np.random.default_rng(0)
    noise = [friedman(np.argsort(draw.random((12, 6)), axis=1) + 1.) < .05 for _ in range(300)]
    assert np.mean(noise) < .08
    assert friedman(np.tile(np.arange(1., 7), (12, 1))) < 1e-6

def test_with_few_screens_the_range_is_of_each_left_out():
    draw = np.random.default_rng(0)
    games = [games_of(name, 'error', 'rmse_average', draw.random((9, 3)), [np.nan]*9) for name in 'abc']
    found = ranges_of(games, list('abc'))
    each = [bradley_terry(won_in_all(rest, weights_of(rest))) for rest in (games[1:], games[::2], games[:2])]
    assert not found.is_interval and np.allclose(found.lo, np.min(each, axis=0))
    assert np.allclose(found.hi, np.max(each, axis=0))

def test_a_page_of_fifty_models_and_twenty_tasks_is_small():
    from perturbench.bench import leaderboard as room
    models = [f'a_model_with_a_long_name_{i:02}' for i in range(50)]
    scores = made_scores('task', models, n_conditions=4)
    costs = dict(fit_seconds=1234.5, predict_seconds=1., peak_memory=2345., n_parameters=1234567)
    runs = pd.DataFrame([dict(task='task', model=model, seed=0, **costs) for model in models])
    board = room.leaderboard(scores, runs, dict(task=references(scores)))
    boards = pd.concat([board.assign(task=f'a task with a long name {k}') for k in range(20)], ignore_index=True)
    found = room.answers(scores, board)
    told = room.Remark(dict.fromkeys(boards.task.unique(), found.to_dict('records')))
    of = {label: entry._replace(text='what it does, in a line'*4) for label, entry in room.entries(models).items()}
    boards.attrs = dict(board.attrs, answers=told, entries=room.Remark(of))
    draw = np.random.default_rng(0)
    games = [games_of(task, key, 'rmse_average', draw.random((4, 50)), [np.nan]*4)
             for task in boards.task.unique() for key in 'ab']
    joint = across(games, [game.task for game in games], models, {})
    size = len(room.page(boards, joint=joint).encode())
    assert len(found) == 300 and size < 1_000_000, size
