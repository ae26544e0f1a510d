"Searches: what is tested never enters, nothing depends on how many run at a time, and what fails is said."
import json, shutil, sys
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from conftest import one_pixel
from scipy import sparse
from perturbench.bench import tune as room
from perturbench.bench.batch import dry_runs, read_grid, run_grid, searches_of
from perturbench.bench.leaderboard import print_tables, write_report
from perturbench.bench.tune import SearchFailed, objective_of, search_home, tune
from perturbench.bench.workers import Workers
from perturbench.cli import main
from perturbench.core import InputError
from perturbench.data.simulate import Parameters, simulate
from perturbench.models.zoo import MODELS
from perturbench.splits.kinds import make_splits
from perturbench.tasks import open_task

pytestmark = pytest.mark.usefixtures('quick', 'undrawn')
BUDGET = dict(max_epochs=2, min_epochs=1, batch_size=64)
NARROW = {'name': 'decoder_only', 'encoder_width': 32, 'n_layers': 1} # The published widths take minutes here
TRAINED = [k for k in MODELS if not hasattr(MODELS[k], 'fit')]
SHOWN = ['number', 'state', 'value', 'fault']

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A screen, its split as a file, and which of its cells are tested."
    folder = tmp_path_factory.mktemp('tune')
    par = Parameters(n_genes=80, n_states=2, n_perturbations=14, n_programmes=6, cells=20, controls=80, panel=1,
                     library=2000)
    screen = simulate(par, seed=1).screen
    split, = make_splits(screen, {'kind': 'transfer', 'seed': 1})
    pd.Series(split.parts, screen.adata.obs_names).to_csv(folder/'split.csv', header=False)
    screen.write(folder/'screen.h5ad')
    return folder, screen, split.mask('test')

def grid_on(folder, screen='screen.h5ad', models=(NARROW,), objective='rmse_average', trials=6, **more):
    task = {'name': 'small', 'screen': str(folder/screen), 'split': {'kind': 'file', 'file': str(folder/'split.csv')}}
    tuning = dict(trials=trials, objective=objective, **more)
    return read_grid(dict(tasks=[task], models=list(models), budget=BUDGET, tune=tuning))

def search_alone(grid, out, jobs=1):
    "The search of a grid, without its runs."
    one, = searches_of(grid, out, threads=1)
    workers = Workers(jobs, words=f'{out}/claims')
    try: tune(one.search, out, one.label, one.tuning.trials, workers)
    finally: workers.close()

def trials(out, label='decoder_only-tuned'): return pd.read_csv(search_home(out, 'small', label)/'trials.csv')

@pytest.fixture(scope='module')
def searched(small, quick, tmp_path_factory):
    "The results of a grid with one search."
    out = tmp_path_factory.mktemp('searched')
    with pytest.MonkeyPatch.context() as m:
        m.setattr('perturbench.plots.Picture.savefig', one_pixel)
        outcome = run_grid(grid_on(small[0]), out)
    assert (outcome.done, outcome.failed) == (2, [])
    return out

def test_what_is_tested_never_enters(small, searched, tmp_path):
    "Other values in the cells that are tested: the same trials, to the bit; other scores."
    folder, screen, tested = small
    changed = screen.adata.copy()
    values = changed.X.toarray()
    values[tested] = values[tested][::-1]*1.5
    changed.X = sparse.csr_matrix(values)
    other = type(screen)(changed, 'perturbation', screen.covariate_keys)
    other.write(folder/'other.h5ad')
    run_grid(grid_on(folder, 'other.h5ad'), tmp_path)
    pd.testing.assert_frame_equal(trials(tmp_path).drop(columns='seconds'), trials(searched).drop(columns='seconds'))
    files = [next(out.glob('runs/small/decoder_only/*/scores.parquet')) for out in (tmp_path, searched)]
    ours, theirs = (pd.read_parquet(file).value for file in files)
    assert not np.allclose(ours, theirs, equal_nan=True)

def test_a_leak_would_be_seen(small, tmp_path, monkeypatch):
    "The same with a search that is shown what is tested: its trials differ, so the test above can fail."
    folder, _, _ = small
    monkeypatch.setattr(room, 'without_tested', lambda task: room.Views(task, task))
    monkeypatch.setattr(room, '_LAST', {})
    found = []
    for screen in ('screen.h5ad', 'other.h5ad'):
        search_alone(grid_on(folder, screen, trials=1), tmp_path/screen)
        found.append(trials(tmp_path/screen).value[0])
    assert found[0] != found[1]

def test_trials_do_not_depend_on_how_many_run_at_a_time(small, searched, tmp_path):
    search_alone(grid_on(small[0]), tmp_path, jobs=2)
    pd.testing.assert_frame_equal(trials(tmp_path).drop(columns='seconds'), trials(searched).drop(columns='seconds'))

def test_more_trials_begin_with_those_there_are(small, searched, tmp_path):
    search_alone(grid_on(small[0], trials=3), tmp_path)
    path = search_home(tmp_path, 'small', 'decoder_only-tuned')/'trials'/'002.json'
    kept = path.stat().st_mtime_ns
    search_alone(grid_on(small[0], trials=6), tmp_path)
    assert path.stat().st_mtime_ns == kept
    pd.testing.assert_frame_equal(trials(tmp_path)[SHOWN], trials(searched)[SHOWN])

class Halves:
    "What a search asks for need not be an option."
    @classmethod
    def search_space(cls, trial): return {'encoder_width': 2*trial.suggest_int('half_of_width', 4, 8)}

@pytest.mark.parametrize('model', [*TRAINED, Halves], ids=str)
def test_a_second_round_knows_what_the_first_was_asked(model, monkeypatch, tmp_path):
    "All models: what a search asks for is told to Optuna again, from the files of the trials."
    if model is Halves: monkeypatch.setattr(room, 'model_class', lambda name: Halves)
    search = SimpleNamespace(model=model, options={}, seed=0)
    first = room.suggested(search, [], [0, 1, 2, 3], higher=False)
    for trial in first:
        trial.state, trial.value = 'complete', float(trial.number)
        (tmp_path/str(trial.number)).write_text(json.dumps(vars(trial)))
    ended = [room.read_trial(tmp_path/str(trial.number)) for trial in first]
    second = room.suggested(search, ended, [4, 5], higher=False)
    assert [set(trial.asked) for trial in second] == [set(first[1].asked)]*2
    assert second == room.suggested(search, ended, [4, 5], higher=False)

def test_two_rows_and_what_the_search_took(searched):
    board, _ = write_report(searched)
    rows = board[board.metric == 'rmse_average'].set_index('model')
    assert set(rows.index) == {'decoder_only', 'decoder_only-tuned'}
    took = trials(searched).seconds.sum()
    assert np.isnan(rows.tuning_seconds['decoder_only']) and rows.tuning_seconds['decoder_only-tuned'] > took
    assert pd.isna(rows.tuning['decoder_only']) and rows.tuning['decoder_only-tuned'].startswith(('trial ', room.KEPT))

def test_a_board_says_where_defaults_were_kept(searched, tmp_path, capsys):
    "In the row, on the page and on the terminal."
    out = shutil.copytree(searched, tmp_path/'out')
    path = search_home(out, 'small', 'decoder_only-tuned')/'tuned.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(kept='no trial is better <here>')))
    board, _ = write_report(out)
    assert set(board.tuning[board.model == 'decoder_only-tuned']) == {'defaults kept: no trial is better <here>'}
    print_tables(board)
    assert 'decoder_only-tuned has its defaults: no trial is better <here>' in capsys.readouterr().out
    assert 'its search ended with the defaults: no trial is better &lt;here&gt;' in (out/'leaderboard.html').read_text()

def test_the_chosen_one_beats_the_defaults_in_its_repeats(searched):
    home = search_home(searched, 'small', 'decoder_only-tuned')
    found = json.loads((home/'tuned.json').read_text())
    table = trials(searched)
    whole = table[(table.state == 'complete') & (table.number > 0)]
    means, seeds = {}, set()
    for number in (0, *whole.nsmallest(3, 'value').number):
        again = [json.loads(path.read_text()) for path in sorted((home/'repeats').glob(f'{number:03}_*.json'))]
        seeds.add(tuple(trial['seed'] for trial in again))
        values = np.array([trial['conditions']['rmse_average'] for trial in again])
        means[number] = values.mean()
        assert means[number] == pytest.approx(np.mean([trial['value'] for trial in again]))
    assert len(seeds) == 1 and len(set(*seeds)) == 3
    number = found['number']
    assert found['value'] == pytest.approx(means[number]) and (number == 0) == bool(found['kept'])
    assert number == 0 or means[number] < means[0]

SHARES = np.array([.3, .5, .1, .7]) # Of four conditions in the objective of the defaults

def repeats(number, gains=0., **metrics):
    "Three repeats of a trial whose conditions gain something on the defaults."
    def one(seed):
        at = dict(perturbation=list('abcd'), state=['0']*4, objective=list(SHARES + gains + seed))
        return at | {name: list(SHARES + values) for name, values in metrics.items()}
    return [room.Trial(number, {}, k, value=float((SHARES + gains).mean()) + seed, state='complete',
                       conditions=one(seed)) for k, seed in enumerate((0., .4, -.3))]

def choice(*some, **how): return room.chosen([], {again[0].number: again for again in some}, True, **how)

def test_the_defaults_stay_unless_a_trial_is_better_beyond_noise():
    "By hand: gains of .1 on average, whose standard error over four conditions is .5 of them, or 1.5."
    spread = np.array([1, -1, 1, -1])*.1*3**.5 # Its standard error is .1
    sure, unsure = .1 + .5*spread, .1 + 1.5*spread
    assert choice(repeats(0), repeats(4, sure)) == (4, pytest.approx(.1 + SHARES.mean() + .1/3), '')
    kept = choice(repeats(0), repeats(4, unsure))
    assert kept.number == 0 and kept.value == pytest.approx(SHARES.mean() + .1/3)
    assert kept.kept == 'trial 4 is better by 0.1, which is within the standard error, 0.15'
    assert choice(repeats(0), repeats(4, unsure), repeats(7, .5*sure)).number == 7
    assert choice(repeats(0), repeats(4, -sure)).kept == 'no trial is better with new seeds'
    assert room.chosen([], {0: repeats(0), 4: repeats(4, sure)}, False).number == 0

def test_noise_of_seeds_counts_too():
    "A trial that gains the same in every condition, but not with every seed."
    lucky = repeats(4, .1)
    for trial, luck in zip(lucky, (.6, -.3, -.3)):
        trial.conditions['objective'] = list(np.array(trial.conditions['objective']) + luck)
    assert choice(repeats(0), repeats(4, .1)).number == 4 and choice(repeats(0), lucky).number == 0

def test_what_the_objective_hides_is_guarded():
    "As on k562, where the rank alone had a range: a candidate that wins it and loses the error."
    plain, hidden = repeats(0, rmse_average=0., energy_pca=0.), repeats(5, .1, rmse_average=.2, energy_pca=-.2)
    slight = repeats(5, .1, rmse_average=np.array([.1, -.1, .1, -.08]), energy_pca=0.)
    found = choice(plain, hidden, guarded=['rmse_average', 'energy_pca'])
    assert found[::2] == (0, 'trial 5 is better by 0.1, but worse in rmse_average by more than a standard error')
    assert choice(plain, hidden).number == 5 and choice(plain, slight, guarded=['rmse_average']).number == 5

def test_one_perturbation_tells_nothing():
    def alone(trials):
        for trial in trials: trial.conditions = {name: values[:1] for name, values in trial.conditions.items()}
        return trials
    found = choice(alone(repeats(0)), alone(repeats(3, .2)))
    assert found.number == 0 and 'cannot tell that from noise' in found.kept

def test_without_defaults_the_best_is_chosen():
    broken = [room.Trial(0, {}, 0, state='failed', fault='no loss')]*3
    assert choice(broken, repeats(2, .1), repeats(3, .2))[::2] == (3, '')

def test_a_trial_that_was_cut_is_made_again(small, searched, tmp_path, capsys):
    run_grid(grid_on(small[0], trials=2), tmp_path)
    before, path = trials(tmp_path), search_home(tmp_path, 'small', 'decoder_only-tuned')/'trials'/'001.json'
    path.write_text(path.read_text()[:50])
    run_grid(grid_on(small[0], trials=2), tmp_path)
    assert '001.json is cut or was altered; it is made again' in capsys.readouterr().err
    pd.testing.assert_frame_equal(trials(tmp_path)[SHOWN], before[SHOWN])

def test_another_search_may_not_go_on_there(small, searched):
    for other in (dict(objective='mae_average'), dict(seed=3)):
        with pytest.raises(InputError, match=f'with other {next(iter(other))}; move it away'):
            run_grid(grid_on(small[0], **other), searched)
    fixed = NARROW | {'lr': .01}
    with pytest.raises(InputError, match='with other options, ranges; move it away'):
        run_grid(grid_on(small[0], models=[fixed]), searched)

def test_a_search_whose_every_trial_fails(small, tmp_path, capsys):
    grid = tmp_path/'grid.yaml'
    grid.write_text(f"""
tasks: [{{name: small, screen: {small[0]/'screen.h5ad'}, split: {{kind: file, file: {small[0]/'split.csv'}}}}}]
models: [control_mean, {{name: linear, lr: 1.0e+30}}]
budget: {{max_epochs: 2, min_epochs: 1}}
tune: {{trials: 2, objective: rmse_average}}
""")
    assert main(['run', str(grid), '-o', str(tmp_path/'out')]) == 1
    said = capsys.readouterr().err
    assert 'failed: the search of linear-tuned on small' in said and '1 runs done, 0 were done before, 2 failed' in said
    log = search_home(tmp_path/'out', 'small', 'linear-tuned')/'log'
    assert 'the validation loss of linear was never finite' in log.read_text()

def test_nothing_can_be_chosen_from_failures():
    failed = room.Trial(0, {}, 0, state='failed', fault='no loss')
    assert room.to_repeat([failed], True) == []
    with pytest.raises(SearchFailed, match='no loss'): room.chosen([failed], {}, True)

def test_faults_of_a_grid_that_searches(small):
    def refused(match, **keys):
        with pytest.raises(InputError, match=match): read_grid(dict(tasks=['sim-transfer'], models=['linear'], **keys))
    refused("has no 'trails'; did you mean 'trials'", tune=dict(trails=3))
    refused('give a whole number of at least 1', tune=dict(trials=True))
    refused("the objective 'rmse' is not known", tune=dict(objective='rmse'))
    refused('`tune` of a grid is a name or a mapping', tune=7)
    same = ['linear', {'name': 'additive', 'as': 'linear-tuned'}]
    with pytest.raises(InputError, match="the model label 'linear-tuned' occurs 2 times"):
        read_grid(dict(tasks=['sim-transfer'], models=same, tune={'trials': 2}))

def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(InputError, match=r"pip install 'perturbench\[tune\]'"):
        read_grid(dict(tasks=['sim-transfer'], models=['linear'], tune=dict(trials=3)))

def test_a_task_with_folds_is_not_searched(tmp_path):
    task = {'name': 'folds', 'screen': 'sim-transfer', 'split': {'kind': 'transfer', 'folds': 3}}
    with pytest.raises(InputError, match='has 3 folds, and what one validates another tests'):
        run_grid(read_grid(dict(tasks=[task], models=['linear'], tune=dict(trials=1))), tmp_path)
    assert not list(tmp_path.glob('runs/*'))

def test_no_range_on_what_validates(tmp_path):
    "Where perturbations do nothing the plain error decides, and that is said."
    judge = room.Judge(open_task('sim-null', tmp_path), objective_of('calibrated'))
    assert judge.objective == objective_of('rmse_average') and not judge.objective.higher
    assert judge.note == 'no calibrated score has a range on what validates, so trials are compared by rmse_average'

def test_a_dry_run_says_what_is_to_be_searched(small, searched):
    def states(trials):
        return {row['model']: row['state'] for row in dry_runs(grid_on(small[0], trials=trials), searched)}
    assert states(6) == {'decoder_only': 'done', 'decoder_only-tuned': 'done'}
    assert states(9) == {'decoder_only': 'done', 'decoder_only-tuned': 'to search'}

@pytest.mark.parametrize('budget, said', [
    ('{max_epoch: 3}', "did you mean 'max_epochs'"), ('[3]', 'is neither quick nor full nor a mapping'),
    ('{max_epochs: ', 'is neither quick nor full nor a mapping'), ('quik', 'quick')])
def test_a_budget_that_is_none_is_refused(budget, said, tmp_path, capsys):
    asked = ['tune', '--task', 'sim-transfer', '--model', 'linear', '--budget', budget, '-o', str(tmp_path/'out')]
    assert main(asked) == 2 and said in capsys.readouterr().err and not (tmp_path/'out').exists()

def test_a_budget_by_hand(small, tmp_path, capsys):
    budget = '{max_epochs: 2, min_epochs: 1, batch_size: 64}'
    asked = ['tune', '--task', str(small[0]/'screen.h5ad'), '--model', 'linear', '--trials', '1', '--budget', budget,
             '--objective', 'rmse_average', '-o', str(tmp_path/'out')]
    assert main(asked) == 0
    about = json.loads(next((tmp_path/'out').glob('tuning/*/*/search.json')).read_text())
    assert (about['budget']['max_epochs'], about['budget']['batch_size']) == (2, 64)
