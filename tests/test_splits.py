"Every split of every small screen either is refused with a recipe that works, or is sound."
import ast, re
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.splits import PARTS, SPLITS, default_recipe, divide_controls, eligible, fold_range, leak_check, make_splits, read_split

few = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
NAMES = ['TP53', 'TGF-β', 'a/b', 'c_d', 'e, f', '"q"', 'ген', '药 1', 'nan', '0', "it's"]
LINES = ['K562_a', 'Zürich/2', 'x+y', 'NA', '"z", 1', '7']

def table(r, kind):
    "One row a cell of a random screen, more often than not one that `kind` can split, and the arguments of its `Screen`."
    keys, sep = [('line',), ('line',), ('line', 'stage_'), ()][r.integers(4)], ['+', '+', ' & ', None][r.integers(4)]
    states = list(dict.fromkeys(tuple(str(o) for o in r.choice(LINES, len(keys))) for _ in range(r.integers(1, 6))))
    singles = [str(o) for o in r.choice(NAMES, r.integers(1, 10), replace=False)]
    pool = singles if len(singles) > 2 and r.random() < .8 else NAMES
    pairs = [f'{sep or "+"}'.join(r.choice(pool, 2, replace=False)) for _ in range(r.integers(3, 10) if kind == 'combination' else r.choice([0, 4]))]
    pairs = list({frozenset(o.split(sep or '+')): o for o in pairs}.values())
    rows, share, least = [], r.choice([.6, .9, 1.]), r.choice([2, 4, 4, 4])
    for s in states:
        rows += [(*s, 'control', 0.)]*int(r.integers(least, 14))
        for p in singles + pairs:
            if r.random() < share: rows += [(*s, p, float(d)) for d in r.choice([1, 10], r.integers(1, 9))]
    obs = pd.DataFrame(rows, columns=[*keys, 'what', 'dose'])
    if (obs.what == 'control').all(): obs.loc[len(obs)] = (*states[0], singles[0], 1.)
    obs.index = [f'{"β,_+/"[i % 5]} {i}' for i in range(len(obs))]
    return obs, dict(perturbation_key='what', covariate_keys=keys, sep=sep, dose_key='dose' if r.random() < .5 else None)

def screen_of(obs, options): return Screen(ad.AnnData(np.full((len(obs), 1), .5, np.float32), obs=obs, var=pd.DataFrame(index=['g'])), **options)

def recipe_of(r, kind, folds, screen):
    "A random recipe."
    if folds: return dict(kind=kind, seed=int(r.integers(9)), folds=int(max(fold_range(screen, kind)[0], 2) + r.choice([0, 0, 1, 2, 4])))
    more = dict(max_heldout_covariates=int(r.integers(1, 4))) if kind == 'transfer' else {}
    return dict(kind=kind, seed=int(r.integers(9)), fraction=float(r.choice([.3, .5, .7, 1.]))) | more

def cases(*folds):
    "A screen with its table, its arguments, and a recipe: plain, with folds, or either."
    def case(seed):
        r = np.random.default_rng(seed)
        kind = ['transfer', 'combination'][r.integers(2)]
        obs, options = table(r, kind)
        screen = screen_of(obs, options)
        return obs, options, screen, recipe_of(r, kind, folds[r.integers(len(folds))], screen)
    return st.integers(0, 2**32 - 1).map(case)

def attempt(screen, recipe):
    "The splits, or none where the screen is refused; then the recipe that the message names has to work."
    try: return make_splits(screen, recipe)
    except InputError as e: message = str(e)
    for named in re.findall(r"\{'kind'[^}]*\}", message):
        named = ast.literal_eval(named)
        if '4 control cells' not in _refusal(screen, named): assert _refusal(screen, named) == '', f'{message}\n{named} does not work'
    assert re.search('folds|4 control|needs? |allows|put some', message), message
    return []

def _refusal(screen, recipe):
    try: make_splits(screen, recipe)
    except InputError as e: return str(e)
    return ''

def cells(obs, options, split):
    "One row a cell with its part, half, state (a tuple) and parts of the perturbation, worked out from obs alone."
    sep = options['sep']
    names = {o: frozenset([] if o == 'control' else o.split(sep) if sep else [o]) for o in obs.what.unique()}
    return pd.DataFrame(dict(part=np.asarray(split.parts), half=split.half, state=[tuple(o) for o in obs[list(options['covariate_keys'])].to_numpy()],
                             what=obs.what.to_numpy(), names=[names[o] for o in obs.what], control=(obs.what == 'control').to_numpy()), index=obs.index)

def check_sound(t):
    "What holds for each split of any kind."
    assert set(t.part) <= set(PARTS) and not t.part.isna().any()
    treated, controls = t[~t.control], t[t.control]
    assert (treated.groupby(['state', 'what']).part.nunique() == 1).all()  # a perturbation of a state is held out whole, at all doses
    assert {'train', 'val', 'test'} <= set(treated.part)
    for s, mine in controls.groupby('state'):
        n = mine.part.value_counts()
        assert n.get('train', 0) >= 1 and n.get('val', 0) >= 1 and n.get('test', 0) >= 2 and n.sum() == len(mine)
        halves = mine.half[mine.part == 'test'].value_counts()
        assert set(halves.index) == {0, 1} and abs(halves[0] - halves[1]) <= 1
    assert (t.half[~(t.control & (t.part == 'test'))] == -1).all()

def pairs_of(t, *parts): return set(t[~t.control & t.part.isin(parts)][['state', 'what']].itertuples(index=False, name=None))

def check_transfer(t, state_trains_others):
    "Each pair that is held out: its perturbation trains in another state, its state trains other perturbations."
    trained = pairs_of(t, 'train')
    for s, p in pairs_of(t, 'val', 'test'):
        assert any(q == p and u != s for u, q in trained)
        if state_trains_others: assert any(u == s and q != p for u, q in trained)

def check_combination(t, needs_singles):
    "Combinations alone are held out; all singles train, and in folds both parts of what is tested do, in its state."
    names, trained = dict(zip(t.what, t.names)), pairs_of(t, 'train')
    assert all(len(names[p]) > 1 for _, p in pairs_of(t, 'val', 'test'))
    alone = {(s, *names[p]) for s, p in trained if len(names[p]) == 1}
    if needs_singles: assert all((s, o) in alone for s, p in pairs_of(t, 'val', 'test') for o in names[p])

@few
@given(cases(False))
def test_a_split_is_sound_or_refused(case):
    obs, options, screen, recipe = case
    for split in attempt(screen, recipe):
        t = cells(obs, options, split)
        check_sound(t)
        if recipe['kind'] == 'combination': check_combination(t, False)
        else: check_transfer(t, True)
        held, n = pd.Series([s for s, _ in pairs_of(t, 'val', 'test')]).value_counts(), t[~t.control].groupby('state').what.nunique()
        n = n + (recipe['kind'] == 'transfer') if recipe['kind'] == 'transfer' else t[t.names.map(len) > 1].groupby('state').what.nunique()
        assert all(k <= recipe['fraction']*n[s] + 1e-9 for s, k in held.items())

def eligible_pairs(t, kind):
    "By definition: perturbations of two states or more; combinations whose parts were each measured alone in the state."
    pairs, names = pairs_of(t, *PARTS), dict(zip(t.what, t.names))
    if kind == 'transfer': return {(s, p) for s, p in pairs if any(q == p and u != s for u, q in pairs)}
    alone = {(s, *names[p]) for s, p in pairs if len(names[p]) == 1}
    return {(s, p) for s, p in pairs if len(names[p]) > 1 and all((s, o) in alone for o in names[p])}

@few
@given(cases(True))
def test_folds_test_and_validate_each_eligible_condition_once(case):
    obs, options, screen, recipe = case
    splits = attempt(screen, recipe)
    tested, validated, first = [], [], None
    for split in splits:
        t = cells(obs, options, split)
        check_sound(t)
        if recipe['kind'] == 'combination': check_combination(t, True)
        else: check_transfer(t, False)
        tested += pairs_of(t, 'test'); validated += pairs_of(t, 'val')
        controls = t.loc[t.control, ['part', 'half']]
        first = controls if first is None else first
        pd.testing.assert_frame_equal(controls, first)
    if splits:
        able = eligible_pairs(t, recipe['kind'])
        assert sorted(tested) == sorted(validated) == sorted(able) and len(eligible(screen, recipe['kind'])) == len(able)

@few
@given(cases(False, True), st.integers(0, 2**32 - 1))
def test_neither_the_order_of_cells_nor_that_of_categories_matters(case, seed):
    obs, options, screen, recipe = case
    r = np.random.default_rng(seed)
    again = obs.iloc[r.permutation(len(obs))].copy()
    for k in [*options['covariate_keys'], 'what']: again[k] = pd.Categorical(again[k], r.permutation(again[k].unique()))
    ours, theirs = attempt(screen, recipe), attempt(screen_of(again, options), recipe)
    assert [s.hash for s in ours] == [s.hash for s in theirs]
    for a, b in zip(ours, theirs):
        at = pd.Index(a.cells).get_indexer(b.cells)
        assert (a.parts.codes[at] == b.parts.codes).all() and (a.half[at] == b.half).all()

@few
@given(cases(False, True))
def test_a_split_comes_back_from_its_file_and_its_recipe(tmp_path, case):
    *_, screen, recipe = case
    for split in attempt(screen, recipe)[:2]:
        back = read_split(split.write(tmp_path/'a split, β.csv'), screen)
        assert (back.parts.codes == split.parts.codes).all() and (back.half == split.half).all() and (back.hash, back.recipe) == (split.hash, split.recipe)
        assert make_splits(screen, split.recipe)[0].hash == split.hash

@few
@given(cases(False, True))
def test_leak_check_says_what_training_saw(case):
    obs, options, screen, recipe = case
    for split in attempt(screen, recipe)[:1]:
        t, table = cells(obs, options, split), leak_check(screen, split)
        t['dose'] = obs.dose if options['dose_key'] else 0.
        trained, names = pairs_of(t, 'train'), dict(zip(t.what, t.names))
        assert len(table) == len(t[~t.control & (t.part == 'test')][['state', 'what', 'dose']].drop_duplicates()) and not table.leaks.any()
        for row in table.to_dict('records'):
            s, p = tuple(row[k] for k in options['covariate_keys']), row['perturbation']
            same = t[(t.what == p) & (t.state == s) & ((t.dose == row['dose']) if options['dose_key'] else True)]
            assert row['n_test'] == len(same) == (same.part == 'test').sum()
            assert row['n_states_seen'] == sum(q == p for _, q in trained)
            assert row['n_train_perturbations_in_state'] == sum(u == s for u, _ in trained)
            assert row['n_parts_seen'] == sum(any(u == s and names[q] == {o} for u, q in trained) for o in names[p]) and row['n_parts'] == len(names[p])
            assert row['n_train_controls'] == (t.control & (t.state == s) & (t.part == 'train')).sum()

@few
@given(cases(False))
def test_the_default_recipe_works_or_nothing_does(case):
    *_, screen, _ = case
    reason = _refusal(screen, default_recipe(screen))
    if reason and '4 control cells' not in reason:
        assert all(_refusal(screen, dict(kind=k, folds=f)) for k in SPLITS for f in range(2, 7)), reason

@few
@given(cases(False))
def test_controls_of_a_state_do_not_depend_on_other_states(case):
    obs, options, screen, recipe = case
    try: whole = divide_controls(screen, recipe['seed'])
    except InputError: return
    for s, rows in (obs.groupby(list(options['covariate_keys'])).indices.items() if options['covariate_keys'] else []):
        if (obs.what.iloc[rows] != 'control').any(): assert (divide_controls(screen_of(obs.iloc[rows], options), recipe['seed']) == whole[rows]).all(), s

def test_a_seed_decides_and_another_seed_differs(screen):
    for recipe in (dict(kind='transfer'), dict(kind='transfer', folds=5)):
        a, b, c = ([s.hash for s in make_splits(screen, recipe | dict(seed=seed))] for seed in (1, 1, 2))
        assert a == b and a != c
