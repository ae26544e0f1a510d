"Every split of every small screen either is refused with a recipe that works, or is sound."
import ast, itertools, math, re
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data import datasets
from perturbench.splits.check import leak_check, plot_split
from perturbench.splits.files import read_split
from perturbench.splits.folds import FOLDS, eligible, fold_range
from perturbench.splits.imbalance import imbalance_counts
from perturbench.splits.kinds import SPLITS, default_recipe, make_splits, split_table
from perturbench.splits.parts import PARTS, divide_controls, planned

few = settings(
    max_examples=20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
NAMES = ['TP53', 'TGF-β', 'a/b', 'c_d', 'e, f', '"q"', 'ген', '药 1', 'nan', '0', "it's"]
LINES = ['K562_a', 'Zürich/2', 'x+y', 'NA', '"z", 1', '7']

def table(r, kind):
    "One row a cell of a random screen, mostly one that `kind` can split, and the arguments of its `Screen`."
    keys, sep = [('line',), ('line',), ('line', 'stage_'), ()][r.integers(4)], ['+', '+', ' & ', None][r.integers(4)]
    states = list(dict.fromkeys(tuple(str(o) for o in r.choice(LINES, len(keys))) for _ in range(r.integers(1, 6))))
    singles = [str(o) for o in r.choice(NAMES, r.integers(1, 10), replace=False)]
    pool = singles if len(singles) > 2 and r.random() < .8 else NAMES
    n_pairs = r.integers(3, 10) if kind == 'combination' else r.choice([0, 4])
    pairs = [f'{sep or "+"}'.join(r.choice(pool, 2, replace=False)) for _ in range(n_pairs)]
    pairs = list({frozenset(o.split(sep or '+')): o for o in pairs}.values())
    rows, share, least = [], r.choice([.6, .9, 1.]), r.choice([2, 4, 4, 4])
    for s in states:
        rows += [(*s, 'control', 0.)]*int(r.integers(least, 14))
        for p in singles + pairs:
            if r.random() < share: rows += [(*s, p, float(d)) for d in r.choice([1, 10], r.integers(1, 9))]
    obs = pd.DataFrame(rows, columns=[*keys, 'what', 'dose'])
    if (obs.what == 'control').all(): obs.loc[len(obs)] = (*states[0], singles[0], 1.)
    obs.index = [f'{"β,_+/"[i % 5]} {i}' for i in range(len(obs))]
    dose_key = 'dose' if r.random() < .5 else None
    return obs, dict(perturbation_key='what', covariate_keys=keys, sep=sep, dose_key=dose_key)

def screen_of(obs, options):
    return Screen(ad.AnnData(np.full((len(obs), 1), .5, np.float32), obs=obs, var=pd.DataFrame(index=['g'])), **options)

def recipe_of(r, kind, folds, screen):
    "A random recipe."
    if folds:
        seed, least = int(r.integers(9)), max(fold_range(screen, kind)[0], 2)
        return dict(kind=kind, seed=seed, folds=int(least + r.choice([0, 0, 1, 2, 4])))
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
        if '4 control cells' not in _refusal(screen, named):
            assert _refusal(screen, named) == '', f'{message}\n{named} does not work'
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
    columns = dict(
        part=np.asarray(split.parts),
        half=split.half,
        state=[tuple(o) for o in obs[list(options['covariate_keys'])].to_numpy()],
        what=obs.what.to_numpy(),
        names=[names[o] for o in obs.what],
        control=(obs.what == 'control').to_numpy())
    return pd.DataFrame(columns, index=obs.index)

def check_sound(t, everywhere=True, whole=True):
    """What holds for each split of any kind. Of some kinds the controls are divided only where something is held out,
    not `everywhere`, and pairs need not be `whole`."""
    assert set(t.part) <= set(PARTS) and not t.part.isna().any()
    treated, controls = t[~t.control], t[t.control]
    # a perturbation of a state is held out whole, at all doses
    if whole: assert (treated.groupby(['state', 'what']).part.nunique() == 1).all()
    assert {'train', 'val', 'test'} <= set(treated.part)
    for s, mine in controls.groupby('state'):
        if not everywhere: mine = mine[mine.state.isin(treated.state[treated.part.isin(['val', 'test'])])]
        if mine.empty: continue
        n = mine.part.value_counts()
        assert n.get('train', 0) >= 1 and n.get('val', 0) >= 1 and n.get('test', 0) >= 2 and n.sum() == len(mine)
        halves = mine.half[mine.part == 'test'].value_counts()
        assert set(halves.index) == {0, 1} and abs(halves[0] - halves[1]) <= 1
    assert (t.half[~(t.control & (t.part == 'test'))] == -1).all()

def pairs_of(t, *parts):
    return set(t[~t.control & t.part.isin(parts)][['state', 'what']].itertuples(index=False, name=None))

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

# kinds that divide controls only where they hold something out
NAMED = {'states', 'scaling', 'unseen_state', 'few_shot', 'imbalance'}

def check_promise(t, recipe):
    "What a kind promises that training saw, and did not see, of each condition held out, worked out from the cells."
    kind = recipe['kind']
    names = dict(zip(t.what, t.names))
    trained = pairs_of(t, 'train')
    held = pairs_of(t, 'val', 'test')
    seen, states = {o for _, p in trained for o in names[p]}, {s for s, _ in trained}
    alone = {(s, *names[p]) for s, p in trained if len(names[p]) == 1}
    here = {(s, o) for s, p in trained for o in names[p]}
    elsewhere = lambda s, p: any(q == p and u != s for u, q in trained)
    if kind == 'combination':
        for s, p in held:
            n = sum(o in seen for o in names[p])
            assert len(names[p]) > 1 and s in states
            assert {2: all((s, o) in here for o in names[p]), 1: 0 < n < len(names[p]), 0: n == 0}[recipe['seen']]
            if recipe['seen'] == 1: assert all((s, o) in here for o in names[p] if o in seen)
    if kind == 'inverse_combination':
        for s, p in held:
            assert len(names[p]) == 1 and (s, *names[p]) not in alone
            rests = [names[q] - names[p] for u, q in trained if u == s and len(names[q]) > 1 and names[p] < names[q]]
            assert any(all((s, o) in alone for o in rest) for rest in rests)
        assert not pairs_of(t, 'unused')
    if kind == 'unseen_perturbation':
        assert all(len(names[p]) == 1 and not names[p] & seen for _, p in held)
        assert not {p for _, p in pairs_of(t, 'val')} & {p for _, p in pairs_of(t, 'test')}
        assert states == set(t.state[~t.control])
        assert all(names[p] & frozenset().union(*(names[q] for _, q in held)) for _, p in pairs_of(t, 'unused'))
    if kind in ('unseen_state', 'few_shot'):
        assert all(elsewhere(s, p) for s, p in held)
        new = {s for s, _ in held}
        if kind == 'unseen_state': assert not new & states
        if 'val' in recipe: assert not {s for s, _ in pairs_of(t, 'val')} & {s for s, _ in pairs_of(t, 'test')}
        if 'perturbations' in recipe:
            assert all(sum(s == u for u, _ in trained) == recipe['perturbations'] for s in new)
        if 'cells' in recipe:
            for _, mine in t[~t.control & t.state.isin(new) & (t.part != 'unused')].groupby(['state', 'what']):
                n = mine.part.value_counts()
                assert n['train'] == recipe['cells'] and len(n) == 2 and n.sum() > recipe['cells']
        else: assert not trained & held
    if kind in ('states', 'scaling'):
        asked = recipe['states' if kind == 'states' else 'hold_out']
        assert {s for s, _ in held} <= {tuple(o.values()) for o in asked}
        every = pairs_of(t, *PARTS)
        for s in {tuple(o.values()) for o in asked}:
            n = sum(u == s for u, _ in every)
            assert sum(u == s for u, _ in held) <= min(int(recipe['fraction']*n + 1e-9), n - 1)
        if 'train' not in recipe: assert all(elsewhere(s, p) for s, p in held) and not pairs_of(t, 'unused')
        else:
            assert states <= {tuple(o.values()) for o in asked + recipe['train']}
            assert t.part[t.state.isin({s for s, _ in pairs_of(t, 'unused')})].eq('unused').all()
    if kind == 'imbalance': assert all(elsewhere(s, p) for s, p in held)

def recipe_of_kind(r, kind, t, keys):
    "A random recipe of any kind but the published ones; states are given as mappings."
    states = [dict(zip(keys, s)) for s in sorted(set(t.state))]
    some = lambda n: [states[i] for i in r.permutation(len(states))[:n]]
    out = dict(kind=kind, seed=int(r.integers(9)), fraction=float(r.choice([.3, .5, .7, 1.])))
    if kind == 'combination': out |= dict(seen=int(r.integers(3)))
    if kind in ('unseen_state', 'few_shot'):
        del out['fraction']
        order = some(len(states))
        out |= [
            dict(n=int(r.integers(1, 3))),
            dict(states=order[:1]),
            dict(states=order[:1], val=order[1:2])][r.integers(3)]
        if kind == 'few_shot': out |= {['cells', 'perturbations'][r.integers(2)]: int(r.integers(1, 4))}
    if kind == 'states': out |= dict(states=some(r.integers(1, 3)))
    if kind == 'scaling':
        order = some(len(states))
        out |= dict(hold_out=order[:1]) | (dict(train=order[1:2]) if r.random() < .5 else {})
    if kind == 'imbalance':
        out |= dict(entropy=float(r.choice([.7, .8, .9, 1.])), test=['shared', 'own'][r.integers(2)], fraction=.3)
    return out

def kinds(*names):
    "A screen with its table, its arguments, and a recipe of one of the kinds `names`."
    def case(seed):
        r = np.random.default_rng(seed)
        kind = names[r.integers(len(names))]
        obs, options = table(r, 'combination' if 'combination' in kind or r.random() < .2 else 'transfer')
        screen = screen_of(obs, options)
        t = pd.DataFrame(dict(state=[tuple(o) for o in obs[list(options['covariate_keys'])].to_numpy()]))
        return obs, options, screen, recipe_of_kind(r, kind, t, options['covariate_keys'])
    return st.integers(0, 2**32 - 1).map(case)

def one(screen, recipe):
    "The split, or None where it is refused by a message that says what to do."
    try: return make_splits(screen, recipe)[0]
    except InputError as e:
        remedy = 'use |give |raise |lower |choose |name |leave |prepare |put |4 control|needs? '
        assert re.search(remedy, str(e)), str(e)

OTHERS = ['combination', 'inverse_combination', 'unseen_perturbation', *sorted(NAMED)]

@pytest.mark.parametrize('kind', OTHERS)
def test_each_kind_keeps_its_promise(kind):
    made = []
    @settings(few, max_examples=40)
    @given(kinds(kind))
    def check(case):
        obs, options, screen, recipe = case
        split = one(screen, recipe)
        if split is None: return
        made.append(split)
        t = cells(obs, options, split)
        check_sound(t, everywhere=kind not in NAMED, whole='cells' not in recipe)
        check_promise(t, recipe)
        for s, mine in t.groupby('state'):
            for part, least in [('train', 1), ('val', 1), ('test', 2)]:
                if ((mine.part == part) & ~mine.control).any():
                    assert ((mine.part == part) & mine.control).sum() >= least
        assert not leak_check(screen, split).leaks.any()
        assert make_splits(screen, split.recipe)[0].hash == split.hash
    check()
    assert len(made) > 5, 'too few of the random screens can be split'

@few
@given(kinds(*OTHERS), st.integers(0, 2**32 - 1))
def test_the_order_of_cells_does_not_matter_to_any_kind(case, seed):
    obs, options, screen, recipe = case
    r, split = np.random.default_rng(seed), one(screen, recipe)
    again = obs.iloc[r.permutation(len(obs))].copy()
    for k in [*options['covariate_keys'], 'what']: again[k] = pd.Categorical(again[k], r.permutation(again[k].unique()))
    other = one(screen_of(again, options), recipe)
    assert (split is None) == (other is None)
    if split is not None: assert (split.hash, split.note) == (other.hash, other.note)

@few
@given(cases(False))
def test_a_split_is_sound_or_refused(case):
    obs, options, screen, recipe = case
    for split in attempt(screen, recipe):
        t = cells(obs, options, split)
        check_sound(t)
        if recipe['kind'] == 'combination': check_combination(t, False); check_promise(t, dict(recipe, seen=2))
        else: check_transfer(t, True)
        held = pd.Series([s for s, _ in pairs_of(t, 'val', 'test')]).value_counts()
        n = t[~t.control].groupby('state').what.nunique()
        if recipe['kind'] == 'combination':
            n = np.floor(recipe['fraction']*t[t.names.map(len) > 1].groupby('state').what.nunique() + 1e-9)
        else: n = np.ceil(recipe['fraction']*(n + 1) - 1e-9)
        assert all(k <= n[s] for s, k in held.items()) and (held.sum() < n.sum() or not split.note)

def eligible_pairs(t, kind):
    "Perturbations of two states or more, and combinations whose parts were each measured alone in the state."
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
        assert sorted(tested) == sorted(validated) == sorted(able)
        assert len(eligible(screen, recipe['kind'])) == len(able)

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
        assert (back.parts.codes == split.parts.codes).all()
        assert (back.half == split.half).all()
        assert (back.hash, back.recipe) == (split.hash, split.recipe)
        assert make_splits(screen, split.recipe)[0].hash == split.hash

@settings(few, max_examples=40)
@given(cases(False, True) | kinds(*OTHERS))
def test_leak_check_says_what_training_saw(case):
    obs, options, screen, recipe = case
    if recipe['kind'] in FOLDS and 'seen' not in recipe: splits = attempt(screen, recipe)
    else: splits = [o for o in [one(screen, recipe)] if o is not None]
    for split in splits[:1]:
        t, table = cells(obs, options, split), leak_check(screen, split)
        t['dose'] = obs.dose if options['dose_key'] else 0.
        trained, validated, names = pairs_of(t, 'train'), pairs_of(t, 'val'), dict(zip(t.what, t.names))
        assert len(table) == len(t[~t.control & (t.part == 'test')][['state', 'what', 'dose']].drop_duplicates())
        assert not table.leaks.any()
        for row in table.to_dict('records'):
            s, p = tuple(row[k] for k in options['covariate_keys']), row['perturbation']
            same = t[(t.what == p) & (t.state == s) & ((t.dose == row['dose']) if options['dose_key'] else True)]
            assert row['n_test'] == (same.part == 'test').sum()
            assert row['n_train_same'] == (same.part == 'train').sum()
            assert row['n_test'] + row['n_train_same'] == len(same)
            assert ('few_shot' in row['status']) == (row['n_train_same'] > 0)
            assert row['n_states_seen'] == sum(q == p for _, q in trained)
            assert row['n_train_perturbations_in_state'] == sum(u == s for u, _ in trained)
            assert row['n_parts_seen'] == sum(any(u == s and names[q] == {o} for u, q in trained) for o in names[p])
            assert row['n_parts'] == len(names[p])
            assert row['n_parts_trained'] == sum(any(o in names[q] for _, q in trained) for o in names[p])
            like_it = {q for u, q in trained if u == s and q != p and len(names[q]) > 1 and names[p] & names[q]}
            assert row['n_combinations_seen'] == len(like_it)
            assert row['n_val_perturbations_in_state'] == sum(u == s for u, _ in validated)
            assert ('unseen_part' in row['status']) == (row['n_parts_trained'] < row['n_parts'])
            assert ('unseen_state' in row['status']) == (row['n_train_perturbations_in_state'] == 0)
            assert row['n_train_controls'] == (t.control & (t.state == s) & (t.part == 'train')).sum()

@few
@given(cases(False))
def test_the_default_recipe_works_or_nothing_does(case):
    *_, screen, _ = case
    reason = _refusal(screen, default_recipe(screen))
    if reason and '4 control cells' not in reason:
        assert all(_refusal(screen, dict(kind=k, folds=f)) for k in SPLITS for f in range(2, 7)), reason

@few
@given(kinds(*OTHERS), st.integers(0, 2**32 - 1))
def test_a_split_looks_at_the_layout_alone(case, seed):
    obs, options, screen, recipe = case
    X = np.random.default_rng(seed).exponential(size=(len(obs), 3)).astype(np.float32)
    measured = Screen(ad.AnnData(X, obs=obs, var=pd.DataFrame(index=['g', 'h', 'i'])), **options)
    plan, split = one(screen, recipe), one(measured, recipe)
    assert (plan is None) == (split is None) and (plan is None or (plan.hash, plan.note) == (split.hash, split.note))

def test_a_planned_screen_has_the_cells_that_were_planned():
    screen = planned(
        [('a', 1), ('b', 1)], ['x', 'x+y'], absent=[(('b', 1), 'x+y')], n_controls=4, n_cells=3,
        covariate_keys=['line', 'day'])
    table = screen.conditions[['line', 'day', 'perturbation', 'n_cells']].values.tolist()
    assert table == [
        ['a', '1', 'control', 4],
        ['a', '1', 'x', 3],
        ['a', '1', 'x+y', 3],
        ['b', '1', 'control', 4],
        ['b', '1', 'x', 3]]

@few
@given(cases(False))
def test_controls_of_a_state_do_not_depend_on_other_states(case):
    obs, options, screen, recipe = case
    try: whole = divide_controls(screen, recipe['seed'])
    except InputError: return
    for s, rows in (obs.groupby(list(options['covariate_keys'])).indices.items() if options['covariate_keys'] else []):
        if (obs.what.iloc[rows] != 'control').any():
            assert (divide_controls(screen_of(obs.iloc[rows], options), recipe['seed']) == whole[rows]).all(), s

def test_a_seed_decides_and_another_seed_differs(screen):
    for recipe in (dict(kind='transfer'), dict(kind='transfer', folds=5)):
        a, b, c = ([s.hash for s in make_splits(screen, recipe | dict(seed=seed))] for seed in (1, 1, 2))
        assert a == b and a != c

# The numbers of the published benchmark, on synthetic screens of the shape of its data

def layout(states, singles, doubles=(), n_control=8, n=2):
    "A screen of `n` cells of each perturbation in each state, a tuple."
    keys = [f'covariate_{i}' for i in range(len(states[0]))]
    rows = [(*s, p) for s in states for p in ['control']*n_control + list(singles)*n + list(doubles)*n]
    obs = pd.DataFrame(rows, columns=[*keys, 'what'], index=[f'cell {i}' for i in range(len(rows))])
    return screen_of(obs, dict(perturbation_key='what', covariate_keys=keys))

def numbers(screen, split):
    "The number of perturbations of each state in train, val, test and unused, controls left out."
    c = screen.conditions[~screen.conditions.is_control]
    count = lambda p: np.bincount(screen.codes[split.mask(p)], minlength=len(screen.conditions))
    n = np.stack([count(p)[c.index] > 0 for p in PARTS])
    return [tuple(int(k) for k in n[:, c.state == s].sum(1)) for s in range(len(screen.states))]

SRIVATSAN = layout([('a549',), ('k562',), ('mcf7',)], [f'drug {i}' for i in range(188)])

def test_srivatsan20_holds_out_57_drugs_a_line():
    split = make_splits(SRIVATSAN, dict(kind='transfer', fraction=.3, seed=42))[0]
    assert split.note == ''
    for train, val, test, unused in numbers(SRIVATSAN, split):
        # with the control, as printed
        assert (train + 1, val + test, unused) == (132, 57, 0) and {val + 1, test + 1} == {29, 30}
    names = [f'x{i}' for i in range(188)]
    assert make_splits(layout([('a',), ('b',), ('c',)], names), dict(kind='transfer', max_heldout=20))[0].note == ''

def test_norman19_holds_out_91_of_131_doubles():
    genes = [f'g{i}' for i in range(105)]
    both = [f'{a}+{b}' for a, b in itertools.combinations(genes, 2)]
    screen = layout([('k562',)], genes, [both[i] for i in np.random.default_rng(0).permutation(len(both))[:131]])
    split = make_splits(screen, dict(kind='combination', fraction=.7, seed=42))[0]
    assert numbers(screen, split) == [(105 + 40, 45, 46, 0)]
    for seen, least in [(1, .3), (0, .1)]:
        split = make_splits(screen, dict(kind='combination', seen=seen))[0]
        train, val, test, unused = numbers(screen, split)[0]
        assert val + test == int(least*131) and split.note == '' and abs(val - test) <= 1
        assert set(leak_check(screen, split).n_parts_trained) == {seen}

def test_frangieh21_and_jiang24_hold_out_70_percent_in_named_states():
    screen = layout([('co-culture',), ('IFNg',), ('none',)], [f'g{i}' for i in range(248)])
    split = make_splits(screen, dict(kind='states', states=[dict(covariate_0='co-culture')], fraction=.7, seed=0))[0]
    assert numbers(screen, split) == [(248, 0, 0, 0), (75, 86, 87, 0), (248, 0, 0, 0)]
    lines, cytokines = ['a549', 'bxpc3', 'hap1', 'ht29', 'k562', 'mcf7'], ['IFNB', 'IFNG', 'INS', 'TGFB', 'TNFA']
    screen = layout(list(itertools.product(lines, cytokines)), [f'g{i}' for i in range(44)], n=1)
    named = [dict(covariate_0=l, covariate_1=c) for l in lines[2:] for c in ('IFNG', 'INS', 'TGFB')]
    split = make_splits(screen, dict(kind='states', states=named, fraction=.7, seed=0))[0]
    found = dict(zip(screen.states.itertuples(index=False, name=None), numbers(screen, split)))
    for (line, cytokine), n in found.items():
        assert n == ((14, 15, 15, 0) if dict(covariate_0=line, covariate_1=cytokine) in named else (44, 0, 0, 0))
    assert split.note == '' and set(leak_check(screen, split).status) == {'ok'}

def test_mcfalinefigueroa23_scales_over_nested_training_sets():
    treatments = ['lapatinib', 'nintedanib', 'none', 'trametinib', 'zstk474']
    screen = layout(list(itertools.product(['a172', 't98g', 'u87mg'], treatments)), [f'g{i}' for i in range(525)], n=1)
    of = lambda *pairs: [dict(covariate_0=l, covariate_1=t) for l, t in pairs]
    new = of(('a172', 'nintedanib'), ('t98g', 'lapatinib'), ('u87mg', 'none'))
    asked = dict(kind='scaling', hold_out=new, fraction=.7, seed=12345)
    small = of(('a172', 'none'), ('t98g', 'nintedanib'), ('u87mg', 'lapatinib'))
    medium = small + of(('a172', 'lapatinib'), ('t98g', 'none'), ('u87mg', 'nintedanib'))
    series = [make_splits(screen, o)[0] for o in (asked | dict(train=small), asked | dict(train=medium), asked)]
    for split, n_states in zip(series, (6, 9, 15)):
        assert sum(n[3] == 0 for n in numbers(screen, split)) == n_states
        assert sorted(n[1] + n[2] for n in numbers(screen, split))[-4:] == [0, 367, 367, 367]
        assert set(leak_check(screen, split).status) == {'ok'} and split.note == ''
        for part in ('val', 'test'):
            assert (split.mask(part) == series[0].mask(part)).all() and (split.half == series[0].half).all()
    for less, more in zip(series, series[1:]):
        assert not (less.mask('train') & ~more.mask('train')).any()
        assert more.mask('train').sum() > less.mask('train').sum()

def test_the_imbalance_series_has_the_published_numbers_and_one_test():
    published = {.7: [189, 34, 34], .8: [189, 82, 31], .9: [189, 51, 118], 1.: [189, 189, 189]}
    series = lambda test: [
        make_splits(SRIVATSAN, dict(kind='imbalance', entropy=h, test=test))[0] for h in published]
    shared, own = series('shared'), series('own')
    for split, counts in zip(own, published.values()):
        assert sorted(188 - n[3] + 1 for n in numbers(SRIVATSAN, split)) == sorted(counts)
    for split, h in zip(shared, published):
        trains = np.array([n[0] for n in numbers(SRIVATSAN, split)]) + 1
        p = trains/trains.sum()
        assert abs(-(p*np.log(p)).sum()/math.log(3) - h) < .02 and trains.max() == 188 - 56 + 1
        for part in ('val', 'test'): assert (split.mask(part) == shared[0].mask(part)).all()
        assert set(leak_check(SRIVATSAN, split).status) == {'ok'}
    assert len({o.hash for o in own}) == 4 and not all((o.mask('test') == own[0].mask('test')).all() for o in own)
    assert imbalance_counts(189, 3, .7, 43) != imbalance_counts(189, 3, .7, 42)

def test_a_series_of_shots_tests_less_and_less_of_the_same():
    asked = dict(kind='few_shot', states=[dict(covariate_0='k562')])
    none = make_splits(SRIVATSAN, dict(kind='unseen_state', states=asked['states']))[0]
    for k, shots in [('perturbations', (1, 5, 20, 100)), ('cells', (1,))]:
        before = none
        for n in shots:
            split = make_splits(SRIVATSAN, asked | {k: n})[0]
            for part in ('val', 'test'): assert not (split.mask(part) & ~before.mask(part)).any()
            assert split.mask('train').sum() - none.mask('train').sum() == (2*n if k == 'perturbations' else 188*n)
            before = split

def test_splits_that_cannot_be_say_what_would_work(screen):
    state, k = screen.states.iloc[0].to_dict(), screen.covariate_keys[0]
    for recipe, words in [
            (dict(kind='states'), "'states' of a split is None"),
            (dict(kind='states', states=[]), "'states' of a split is empty"),
            (dict(kind='states', states=['A']), 'by their covariate values'),
            (dict(kind='states', states=[{'lines': 'x'}]), 'is not a covariate'),
            (dict(kind='states', states=[{k: 'nowhere'}]), "no state has"),
            (dict(kind='states', states=screen.states.to_dict('records')), 'otherwise use cross-fitted folds'),
            (dict(kind='states', states=[state], fraction=.001), 'raise the fraction'),
            (dict(kind='states', state=[state]), "did you mean 'states'"),
            (dict(kind='scaling', hold_out=[state], train=[state]), "take it out of 'train'"),
            (dict(kind='scaling'), "'hold_out' of a split is None"),
            (dict(kind='unseen_state', n=3), 'from 1 to 2'),
            (dict(kind='unseen_state', states=[state], val=[state]), "take it out of 'val'"),
            (dict(kind='unseen_state', states=[state], n=1), 'leave one out'),
            (dict(kind='few_shot', n=1), "needs 'cells'"),
            (dict(kind='few_shot', cells=10_000), 'give fewer shots'),
            (dict(kind='few_shot', perturbations=66), "give at most 64 'perturbations'"),
            (dict(kind='few_shot', cells=.5), 'whole number'),
            (dict(kind='combination'), 'holds out 0 of 0 combinations'),
            (dict(kind='inverse_combination'), 'raise the fraction'),
            (dict(kind='unseen_perturbation', fraction=0), 'raise the fraction'),
            (dict(kind='combination', seen=3), "'seen' of a split is 3"),
            (dict(kind='imbalance', entropy=.1), 'give a higher one'),
            (dict(kind='imbalance', test='none'), "'test' of a split"),
            (dict(kind='imbalance', fraction=.9), 'lower the fraction'),
            (dict(kind='released'), 'needs the `name`'),
            (dict(kind='file'), 'needs `file`'),
            (dict(kind='file', file='nowhere.csv'), 'does not exist'),
            (dict(kind='states', states=[state], folds=3), 'not an option of this split'),
            (dict(kind='imbalance', folds=3), 'is not known')]:
        with pytest.raises(InputError, match=re.escape(words)): make_splits(screen, recipe)

def test_names_may_hold_anything():
    names = ['x+y', 'a_b', 'c/d', 'e, f', 'ген', '药', '"q"', "it's", '']
    # ('x+y', 'a_b') and ('a_b', 'x+y') are two states
    states = [('x+y', 'a_b'), ('a_b', 'x+y'), ('x', 'x'), ('ö/ü', 'e, f')]
    rows = [(*s, p) for s in states for p in ['control']*8 + names[:-1]*2]
    obs = pd.DataFrame(rows, columns=['one', 'other', 'what'])
    obs.index = [f'cell {i}' for i in range(len(obs))]
    screen = screen_of(obs, dict(perturbation_key='what', covariate_keys=['one', 'other'], sep=None))
    for recipe in [
            dict(kind='states', states=[dict(one='x+y', other='a_b')]),
            dict(kind='unseen_state', states=[dict(one='x+y')]),
            dict(kind='scaling', hold_out=[dict(one='x+y', other='a_b')])]:
        split = make_splits(screen, recipe)[0]
        assert set(leak_check(screen, split)[['one', 'other']].itertuples(index=False, name=None)) == {('x+y', 'a_b')}

def test_a_released_split_is_read_by_name(monkeypatch, tmp_path, screen):
    made = make_splits(screen, dict(kind='transfer'))[0]
    cells = [f'{n},{p}' for n, p in zip(made.cells, made.parts)]
    for name, rows in [('small', cells[3:] + ['of another,train']), ('whole', cells)]:
        (tmp_path/f'{name}.csv').write_text(f',{name}_split\n' + '\n'.join(rows))
    monkeypatch.setattr(datasets, 'split_files', lambda name: {k: tmp_path/f'{k}.csv' for k in ('small', 'whole')})
    asked = dict(kind='released', name='a_screen')
    assert make_splits(screen, asked | dict(split='whole'))[0].hash == made.hash
    assert make_splits(screen, asked | dict(split='whole'))[0].note == ''
    small = make_splits(screen, asked | dict(split='small'))[0]
    assert small.note == (
        'unused cells, which the file does not have: 3; cells of the file that the screen does not have: 1')
    assert small.mask('unused').sum() == 3
    assert make_splits(screen, small.recipe)[0].hash == small.hash
    with pytest.raises(InputError, match='several splits.*small, whole'): make_splits(screen, asked)
    (tmp_path/'small.csv').write_text('x-1,train\nx-2,test')
    with pytest.raises(InputError, match='no cell in common'): make_splits(screen, asked | dict(split='small'))

def test_a_file_is_a_kind_and_keeps_the_note(tmp_path):
    screen = layout([('A',), ('B',)], [f'p{i}' for i in range(4)] + ['q+r'])
    split = make_splits(screen, dict(kind='states', states=[dict(covariate_0='A')], fraction=1.))[0]
    back = make_splits(screen, dict(kind='file', file=str(split.write(tmp_path/'a.csv'))))[0]
    assert (back.hash, back.recipe, back.note) == (split.hash, split.recipe, split.note)
    assert split.note and split.note in repr(split)

def test_every_kind_is_in_the_table_and_has_a_picture(screen):
    table = split_table()
    assert list(table.kind) == list(SPLITS)
    assert table.question.str.len().between(20, 140).all()
    assert set(table.kind[table.folds == 'yes']) == set(FOLDS)
    for recipe in [dict(kind='unseen_perturbation'), dict(kind='few_shot', cells=3), dict(kind='imbalance')]:
        assert plot_split(screen, make_splits(screen, recipe)[0])._repr_png_()

def test_a_cell_that_slips_into_training_is_a_leak():
    screen = layout([('A',), ('B',), ('C',)], [f'p{i}' for i in range(9)], n=5)
    for recipe in [
            dict(kind='transfer'),
            dict(kind='few_shot', n=1, cells=2),
            dict(kind='few_shot', n=1, perturbations=2),
            dict(kind='unseen_state', n=1)]:
        split = make_splits(screen, recipe)[0]
        for part in ('train', 'val'):
            cell = np.flatnonzero(split.mask('test') & ~screen.conditions.is_control.to_numpy()[screen.codes])[0]
            slipped = make_splits(screen, recipe)[0]
            slipped.parts[cell] = part
            table = leak_check(screen, slipped)
            assert table.query('leaks').index.tolist() == [screen.codes[cell]]
            assert table.query("status.str.contains('leak')").index.tolist() == [screen.codes[cell]]

WAYS = {
    'with a mark': dict(encoding='utf-8-sig'),
    'from Windows': dict(lineterminator='\r\n'),
    'from an old Mac': dict(lineterminator='\r'),
    'with semicolons': dict(sep=';'),
    'with tabs': dict(sep='\t'),
    'in quotes': dict(quoting=1),
    'zipped': dict(compression='gzip')}

@pytest.fixture(scope='module')
def split_of_odd_names(screen):
    "A screen whose cells have names that a table has to quote, and a split of it."
    a = screen.adata.copy()
    a.obs_names = [f'β;"{i}",\t_' for i in range(a.n_obs)]
    named = Screen(a, screen.perturbation_key, screen.covariate_keys, control=screen.control)
    return named, make_splits(named, dict(kind='transfer'))[0]

@pytest.mark.parametrize('header', [True, False, ['', 'transfer_split'], ['Zelle', 'Teil']])
@pytest.mark.parametrize('way', WAYS)
def test_a_split_is_the_same_however_it_is_written(split_of_odd_names, tmp_path, way, header):
    named, made = split_of_odd_names
    table = pd.DataFrame(dict(cell=made.cells, part=made.parts))
    table.to_csv(tmp_path/'s.csv', index=False, header=header, **WAYS[way])
    read = read_split(tmp_path/'s.csv', named)
    assert (read.parts == made.parts).all() and (read.half == made.half).all()

@pytest.mark.parametrize('data, words', [
    (b'', 'is empty'),
    (b'\n\n', 'is empty'),
    (b'cell,part\n', 'a header and no rows'),
    (b'cell\0,part', 'is binary'),
    ('cell,part\nβ,train'.encode('utf-16'), 'in UTF-16'),
    ('cell,part\n\xe9,train'.encode('latin-1'), 'not in UTF-8 (line 2)'),
    (b'PK\3\4\0\0', 'Excel'),
    (b'\x89HDF\r\n\x1a\n\0', 'an h5 file'),
    (b'\x1f\x8b\x08\0', 'cut or damaged'),
    (b'a\nb', '1 columns'),
    (b'a,b,c\nd,e,f', '3 columns'),
    (b'a,train\nb,val,c', 'cannot be read as a table'),
    (b'"a,train', 'cannot be read as a table')])
@pytest.mark.parametrize('partial', [False, True])
def test_a_file_that_is_no_split_says_what_it_is(screen, tmp_path, data, words, partial):
    (tmp_path/'s.csv').write_bytes(data)
    with pytest.raises(InputError, match=re.escape(words)): read_split(tmp_path/'s.csv', screen, partial)

def test_all_faults_of_a_split_are_named_at_once(screen, tmp_path):
    made = make_splits(screen, dict(kind='transfer'))[0]
    rows = [f'{n},{p}' for n, p in zip(made.cells, made.parts)]
    wrong = [rows[5], 'stranger,train', f'{made.cells[1]},Train']
    (tmp_path/'s.csv').write_text('\n'.join(rows[2:] + wrong), encoding='utf-8')
    with pytest.raises(InputError) as e: read_split(tmp_path/'s.csv', screen)
    for words in (
            'does not have: 1 (stranger)', 'no row for cells of the screen: 1', 'more than one row: 1',
            'unknown parts: 1 (Train)'):
        assert words in str(e.value)

def test_a_path_that_is_no_split_says_why(screen, tmp_path):
    (tmp_path/'loop').symlink_to(tmp_path/'loop')
    (tmp_path/'file').write_text('x', encoding='utf-8')
    for path, words in [
            (tmp_path, 'is a folder'),
            (tmp_path/'none.csv', 'does not exist'),
            (tmp_path/'loop', 'leads back to itself'),
            (tmp_path/'file'/'s.csv', 'a file and no folder'),
            ('a\0b', 'cannot be the path'),
            ('x'*300, 'too long')]:
        with pytest.raises(InputError, match=words): read_split(path, screen)

@pytest.mark.parametrize('card', [b'[1]', b'null', b'', b'\xff', b'{"recipe": 3}', b'[' * 50_000, b'{"hash": 1}'])
def test_a_card_that_is_none_is_one_message(screen, tmp_path, card):
    path = make_splits(screen, dict(kind='transfer'))[0].write(tmp_path/'s.csv')
    path.with_name('s.csv.json').write_bytes(card)
    with pytest.raises(InputError, match='remove'): read_split(path, screen)
    path.with_name('s.csv.json').unlink()
    path.with_name('s.csv.json').mkdir()
    with pytest.raises(InputError, match='is a folder'): read_split(path, screen)

@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.text(alphabet='ab,;\t"\n\r train', max_size=40).map(str.encode))
def test_any_bytes_are_a_split_or_one_message(screen, tmp_path, data):
    (tmp_path/'s.csv').write_bytes(data)
    with pytest.raises(InputError): read_split(tmp_path/'s.csv', screen)
