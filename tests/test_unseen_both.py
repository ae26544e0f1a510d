"A split that tests perturbations that were never seen in states of which only controls were."
import anndata as ad, numpy as np, pandas as pd, pytest
from perturbench.bench.batch import run_grid
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.splits.check import leak_check, plot_split
from perturbench.splits.kinds import make_splits, split_table

def layout(lines, names, n=2, controls=8, absent=()):
    "A screen of `n` cells for each of `names` in each line but those that are `absent`."
    rows = [(line, what) for line in lines for what in ['control']*controls + [*names]*n if (line, what) not in absent]
    obs = pd.DataFrame(rows, columns=['line', 'what'])
    values = np.full((len(obs), 1), .5, np.float32)
    return Screen(ad.AnnData(values, obs=obs.rename(index=str), var=pd.DataFrame(index=['g'])), 'what', 'line')

def cells_of(screen, split):
    "A row for each cell: line, what, members and part."
    return screen.adata.obs[['line', 'what']].assign(part=np.asarray(split.parts).astype(str),
                                                     members=[frozenset(screen.parts[c]) for c in screen.codes])

def check(screen, recipe):
    "The promise of the kind, worked out from the cells."
    split, = make_splits(screen, recipe)
    t = cells_of(screen, split)
    perturbed = t[t.what != 'control']
    tested, validated = perturbed[perturbed.part == 'test'], perturbed[perturbed.part == 'val']
    trained = perturbed[perturbed.part == 'train']
    seen = set().union(*trained.members)
    for held in (tested, validated):
        assert len(held) and not set().union(*held.members) & seen and (held.members.str.len() == 1).all()
        assert not set(held.line) & set(trained.line)
    assert not set(tested.what) & set(validated.what)
    if 'val' in recipe: assert not set(tested.line) & set(validated.line)
    else: assert set(tested.line) >= set(validated.line)
    new_lines, new_names = set(tested.line) | set(validated.line), set().union(*tested.members, *validated.members)
    unused = perturbed[perturbed.part == 'unused']
    assert all(line in new_lines or members & new_names for line, members in zip(unused.line, unused.members))
    controls = t[t.what == 'control']
    for line, mine in controls.groupby('line'):
        if line in set(t.line) - new_lines: assert set(mine.part) == {'train'}
        else: assert {'train', 'val', 'test'} == set(mine.part)
    table = leak_check(screen, split)
    assert set(table.status) == {'unseen_part, unseen_state'} and not table.leaks.any()
    zero = ['n_parts_trained', 'n_parts_seen', 'n_states_seen', 'n_train_perturbations_in_state', 'n_combinations_seen']
    assert (table[zero] == 0).all(axis=None) and (table.n_train_controls > 0).all()
    assert make_splits(screen, split.recipe)[0].hash == split.hash
    return split

def test_neither_perturbation_nor_state_was_seen():
    random = np.random.default_rng(0)
    names = [f'p{i}' for i in range(12)] + ['p0+p1', 'p2+p3', 'p4+p11', 'q+r']
    for seed in range(25):
        absent = {(line, what) for line in 'ABCD' for what in names if random.random() < .15}
        screen = layout('ABCD', names, absent=absent)
        options = [dict(n=1), dict(n=2), dict(states={'line': 'B'}), dict(states=[{'line': 'A'}], val=[{'line': 'D'}])]
        check(screen, dict(kind='unseen_both', seed=seed, fraction=.6) | options[seed % 4])

def test_by_hand():
    screen = layout('ABC', [f'p{i}' for i in range(10)])
    split = check(screen, dict(kind='unseen_both', states={'line': 'B'}, fraction=.4, seed=3))
    t = cells_of(screen, split)
    n = t[t.what != 'control'].groupby('part').size()
    assert n.to_dict() == dict(test=2*2, val=2*2, train=2*6*2, unused=2*6 + 2*4*2)
    table = leak_check(screen, split)
    assert len(table) == 2 and table.n_train_controls.tolist() == [4, 4]

def test_more_is_asked_than_there_is():
    screen = layout('AB', ['x', 'y', 'z'])
    split = check(screen, dict(kind='unseen_both', states={'line': 'B'}, fraction=1.))
    assert split.note == 'held out 2 of the 3 perturbations that were asked for'  # line A keeps one

@pytest.mark.parametrize('recipe, message', [
    (dict(fraction=.3), 'raise the fraction'),
    (dict(fraction=2), "'fraction' of a split is 2"),
    (dict(n=3), "'n' of a split is 3; give a whole number from 1 to 2"),
    (dict(states={'line': 'B'}, n=1), 'leave one out'),
    (dict(states={'line': 'E'}), "no state has line 'E'"),
    (dict(states={'line': 'A'}, val={'line': 'A'}), "take it out of 'val'"),
    (dict(states=[{'line': 'A'}, {'line': 'B'}], val={'line': 'C'}), 'leave one to train on'),
    (dict(state={'line': 'A'}), "did you mean 'states'")])
def test_what_can_go_wrong(recipe, message):
    with pytest.raises(InputError, match=message): make_splits(layout('ABC', 'xyz'), dict(kind='unseen_both') | recipe)

def test_one_line_is_too_few_and_so_is_none_to_train_in():
    with pytest.raises(InputError, match='one state'): make_splits(layout('A', 'xyzw'), dict(kind='unseen_both'))
    bare = layout('AB', 'xyzw', absent={('A', o) for o in 'xyzw'})
    with pytest.raises(InputError, match='no perturbed cell is in train'):
        make_splits(bare, dict(kind='unseen_both', states={'line': 'B'}, fraction=1.))

def test_it_is_in_the_table_and_has_a_picture():
    row = split_table().set_index('kind').loc['unseen_both']
    assert row.question.startswith('What does a perturbation that was never seen do in a state') and row.folds == 'no'
    assert row.options == 'states, n, fraction=0.3, seed=42, val'
    screen = layout('ABC', [f'p{i}' for i in range(9)])
    split, = make_splits(screen, dict(kind='unseen_both', fraction=.5))
    assert plot_split(screen, split)._repr_png_()

def test_a_grid_asks_it(tmp_path, undrawn, quick_here):
    parameters = Parameters(n_genes=60, n_perturbations=20, n_programmes=4, cells=10, controls=60)
    simulate(parameters).screen.write(tmp_path/'small.h5ad')
    task = dict(name='both', screen=str(tmp_path/'small.h5ad'), split=dict(kind='unseen_both', n=1, fraction=.4))
    models = ['perturbed_mean', 'ridge', {'name': 'ridge', 'as': 'told', 'features': 'targets'}]
    outcome = run_grid(dict(tasks=[task], models=models), tmp_path/'out')
    assert outcome.done == 3 and not outcome.failed
    scores = pd.concat([pd.read_parquet(path) for path in (tmp_path/'out').glob('runs/*/*/*/scores.parquet')])
    said = scores[scores.metric == 'rmse_average'].groupby('model').status.unique()
    assert set(said['ridge']) == {'unseen_part'} and 'ok' in set(said['told'])
