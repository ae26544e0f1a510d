"What holds for every model, what the baselines are by plain loops, and a training that is killed."
import subprocess, sys
from dataclasses import replace
import anndata as ad, numpy as np, pandas as pd, pytest, torch
import perturbench.models.zoo
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.scoring.evaluation import Evaluation, evaluate_task
from perturbench.bench.batch import run_grid
from perturbench.models.base import MODELS, build_model, check_options, load_model, model_class, presets, save_model
from perturbench.predict import known_of, predict_cells, predict_task
from perturbench.tasks import open_task
from perturbench.train import batches, fit, model_info

NAMES = list(MODELS)
TRAINED = [k for k in NAMES if not hasattr(MODELS[k], 'fit')]

def small(folder, split, **parameters):
    "The cells of a simulated screen, and a task on it."
    mine = dict(n_genes=100, n_perturbations=16, n_programmes=6, cells=24, controls=60) | parameters
    screen = simulate(Parameters(**mine)).screen
    screen.write(folder/'small.h5ad')
    return screen.adata, open_task(dict(screen=str(folder/'small.h5ad'), split=split), folder/'out')

@pytest.fixture(scope='module')
def transfer(tmp_path_factory): return small(tmp_path_factory.mktemp('transfer'), dict(kind='transfer', fraction=.5))

@pytest.fixture(scope='module')
def task(transfer):
    "The task that most tests share, with an embedding of its cells."
    _, task = transfer
    cells = task.store.dense(np.arange(task.store.n_cells)).numpy()
    embedding = cells @ np.random.default_rng(0).normal(0, .05, (cells.shape[1], 16))
    return replace(task, store=replace(task.store, embeddings={'X_scGPT': embedding}))

@pytest.fixture(scope='module')
def evaluation(task): return Evaluation(task)

def train(name, task, fold=0, budget=dict(max_epochs=2, batch_size=256), **options):
    "A trained model and its history."
    torch.manual_seed(0)
    model = build_model(name, model_info(task, fold), **options)
    return model, fit(model, task, fold, budget)

def same(a, b):
    def equal(v, w):
        if v.is_floating_point(): v, w = v.nan_to_num(-1), w.nan_to_num(-1)
        return torch.equal(v, w)
    return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())

@pytest.fixture(scope='module', params=NAMES)
def trained(request, task): return train(request.param, task)

@pytest.fixture(scope='module')
def found(trained, task): return list(predict_task(trained[0], task))

def test_a_model_predicts_cells_that_scores_can_be_made_of(trained, found, task, evaluation):
    model, history = trained
    assert len(history) == (0 if hasattr(model, 'fit') else 2) and history.notna().all(axis=None)
    assert [p.condition for p in found] == task.test_conditions().tolist()
    given = task.given()
    for p in found:
        n = given.n[task.design.is_control & (task.design.state == task.design.state[p.condition])].sum()
        assert p.cells.shape == (n, len(task.genes))
        assert p.cells.dtype == np.float32 and np.isfinite(p.cells).all() and p.status == 'ok'
    scores = evaluation.score(found)
    assert set(scores.groupby('metric').size()) == {len(found)}
    assert {'rmse_average', 'cosine_logfc', 'rmse_rank_average', 'energy_pca', 'de_auprc'} < set(scores.metric)
    assert np.isfinite(scores.value[scores.status == 'ok']).all()

def test_saved_and_loaded_it_is_the_same_to_the_bit(trained, found, task, tmp_path):
    model, _ = trained
    save_model(model, tmp_path/'model.ckpt')
    back = load_model(tmp_path/'model.ckpt')
    assert same(model.state_dict(), back.state_dict())
    assert (back.name, back.options) == (model.name, model.options)
    assert not back.training
    for a, b in zip(found, predict_task(back, task), strict=True):
        assert (a.cells == b.cells).all() and a.status == b.status

def test_neither_order_nor_company_nor_the_global_generator_changes_a_prediction(trained, found, task):
    model, _ = trained
    once = {p.condition: p.cells for p in found}
    for c in reversed(list(once)):
        torch.manual_seed(int(c))
        rows = task.given().where(task.design.state == task.design.state[c]).rows
        controls, known = known_of(model, task.store, rows)
        cells = predict_cells(model, controls, task.design.perturbation[c], task.design.covariate[c], 0, c, **known)
        assert (cells == once[c]).all()

def test_trained_without_a_look_at_test_cells(trained, task):
    "Other values in the cells that are tested, controls included, leave every weight as it was."
    store, hidden = task.store, task.parts[0] == 2
    values = np.where(np.repeat(hidden, np.diff(store.indptr)), 9 - np.asarray(store.values), store.values)
    other = replace(task, store=replace(store, values=values))
    assert (other.cells('test').means() != task.cells('test').means()).any()
    model, history = trained
    again, history2 = train(model.name, other)
    assert same(model.state_dict(), again.state_dict()) and history.equals(history2)

def test_a_network_ends_with_its_best_weights(task):
    best = []
    for name in TRAINED:
        model, history = train(name, task, budget=dict(max_epochs=8, batch_size=256), lr=.05)
        loss, n = 0., 0
        for i, b in enumerate(batches(model, task, 'val', 0, 256, 0)):
            with torch.no_grad(): loss += float(model.val_loss(b))*len(b)
            n += len(b)
        assert loss/n == pytest.approx(history.val_loss.min(), rel=1e-5), name
        best.append(history.val_loss.argmin())
    assert min(best) < 7  # and for some model that is not the last epoch

def toy(folder, lines=('A', 'B', 'C'), what=('p1', 'p2', 'p3', 'p4'), n=6, keys=('line',), split=None,
        protocol='default', **options):
    "A task on a small screen; `n` cells a condition, 8 controls a state."
    r = np.random.default_rng(0)
    states = [(l, s) for l in lines for s in ('early', 'late')[:max(1, len(keys))]]
    rows = [(*o, 'control', 0.) for o in states for _ in range(8)]
    rows += [(*o, p, d) for o in states for p in what for d in [1., 5.]*n]
    rows = rows if 'dose_key' in options else [o for i, o in enumerate(rows) if o[3] < 5]
    obs = pd.DataFrame(rows, columns=['line', 'stage', 'what', 'dose'], index=[f'c{i}' for i in range(len(rows))])
    X = np.log1p(r.poisson(1.5, (len(obs), 30))*r.uniform(.5, 2, (len(obs), 1))).astype(np.float32)
    genes = pd.DataFrame(index=[f'g{i}' for i in range(30)])
    a = ad.AnnData(X, obs=obs, obsm={'X_scGPT': X[:, :8].copy()}, var=genes)
    Screen(a, 'what', keys, **options).write(folder/'toy.h5ad')
    asked = dict(screen=str(folder/'toy.h5ad'), split=split or dict(kind='transfer', fraction=.5))
    return open_task(asked, folder/'out', protocol)

PAIRS = ('p1', 'p2', 'p3', 'p1+p2', 'p1+p3', 'p2+p3', 'p3+p4')
COMBINE = dict(kind='combination', fraction=.7)
CORNERS = {
    'one value of the covariate, a last batch of one cell': dict(lines=('A',), what=PAIRS, split=COMBINE),
    'no covariates, one cell a condition': dict(lines=('A',), what=PAIRS, keys=(), n=1, split=COMBINE),
    'two covariates and a dose': dict(keys=('line', 'stage'), dose_key='dose', n=3),
    'one perturbation, a state at a time': dict(
        lines=('A', 'B', 'C'), what=('p1',), split=dict(kind='transfer', folds=3))}

@pytest.fixture(scope='module', params=list(CORNERS))
def corner(request, tmp_path_factory): return toy(tmp_path_factory.mktemp('corner'), **CORNERS[request.param])

@pytest.mark.parametrize('name', NAMES)
def test_corners(corner, name):
    "What all metrics make of a corner is looked at where cells are copied, and where they are a network's."
    n = (corner.cells('train').where(~corner.design.is_control)).n.sum()
    found = []
    for fold in range(corner.n_folds):
        model, history = train(name, corner, fold, budget=dict(max_epochs=1, batch_size=max(1, int(n) - 1)))
        assert history.notna().all(axis=None)
        found += predict_task(model, corner, fold)
    for p in found: assert np.isfinite(p.cells).all()
    scores = evaluate_task(corner, found, None if name in ('control_mean', 'cpa') else ['rmse_average'])
    assert np.isfinite(scores.value[scores.metric == 'rmse_average']).all()

def by_loop(name, means, line, what):
    """The shift that the baseline `name` adds to the controls of `line`, by its definition.

    `means` holds the mean of each (line, perturbation) in training."""
    def effect(l, p): return means[l, p] - means[l, 'control']
    treated = [o for o in means if o[1] != 'control']
    if name == 'control_mean': return 0.
    average = np.mean([effect(l, p) for l, p in treated if l == line], axis=0)
    if name == 'perturbed_mean': return average
    if name == 'condition_mean':
        levels = [means[l, p] for l, p in treated if p == what]
        return np.mean(levels, axis=0) - means[line, 'control'] if levels else average
    return sum(np.mean([effect(l, p) for l, p in treated if p == part], axis=0) for part in what.split('+'))

@pytest.mark.parametrize('kind', ['transfer', 'combination'])
def test_baselines_are_plain_loops(kind, tmp_path, transfer):
    of_doubles = dict(n_states=1, n_perturbations=12, n_doubles=12)
    a, task = transfer if kind == 'transfer' else small(tmp_path, dict(kind=kind, fraction=.7), **of_doubles)
    X, obs = a.X.toarray().astype(float), a.obs.assign(part=pd.read_csv(task.folder/'split.csv', index_col=0).part)
    trains = (obs.part == 'train').to_numpy()
    train_rows = obs.reset_index()[trains].astype(str).groupby(['cell_type', 'perturbation']).indices
    X_train = X[(obs.part == 'train').to_numpy()]
    means = {k: X_train[i].mean(0) for k, i in train_rows.items()}
    for name in ('control_mean', 'perturbed_mean', 'condition_mean', 'additive'):
        made = lambda form: {p.condition: p for p in predict_task(train(name, task, form=form)[0], task)}
        cell, mean = made('cell'), made('mean')
        for c in task.test_conditions():
            line, what = task.conditions.loc[c, ['cell_type', 'perturbation']]
            shift = by_loop(name, means, line, what)
            shifted = np.tile(means[line, 'control'] + shift, (len(mean[c].cells), 1))
            np.testing.assert_allclose(mean[c].cells, shifted, atol=2e-5)
            rows = task.store.order[task.given().where(task.design.state == task.design.state[c]).rows]
            assert set(obs.part.iloc[rows]) == {'test'}
            assert set(obs.perturbation.iloc[rows]) == {'control'}
            assert set(obs.cell_type.iloc[rows]) == {line}
            np.testing.assert_allclose(cell[c].cells, X[rows] + shift, atol=2e-5)
            unseen = name == 'condition_mean' and kind == 'combination'
            assert cell[c].status == mean[c].status == ('unseen_part' if unseen else 'ok')

def test_linear_adds_and_under_the_published_protocol_is_positive(tmp_path):
    for protocol in ('default', 'perturbench'):
        opened = toy(tmp_path, protocol=protocol)
        model, _ = train('linear', opened)
        assert model.softplus_output == (protocol == 'perturbench')
        rows = opened.given()
        for p in predict_task(model, opened):
            given = rows.where(opened.design.state == opened.design.state[p.condition])
            controls = opened.store.dense(given.rows).numpy()
            x = np.log(np.expm1(p.cells.astype(float))) if protocol == 'perturbench' else p.cells
            assert protocol == 'default' or (p.cells > 0).all()
            first = np.tile((x - controls)[0], (len(x), 1))
            np.testing.assert_allclose(x - controls, first, atol=1e-3 if protocol == 'perturbench' else 1e-5)

@pytest.fixture(scope='module')
def dosed(tmp_path_factory): return toy(tmp_path_factory.mktemp('dosed'), **CORNERS['two covariates and a dose'])

@pytest.mark.parametrize('name', TRAINED)
def test_every_training_that_breaks_off_and_is_started_again_ends_the_same(name, dosed, tmp_path, monkeypatch):
    "It breaks off within its last epoch, after the adversary has begun, where there is one."
    options = {'n_warmup_epochs': 1} if 'cpa' in name else {}
    make = lambda: (torch.manual_seed(0), build_model(name, model_info(dosed), **options))[1]
    budget, whole = dict(max_epochs=3, batch_size=20), make()
    history = fit(whole, dosed, budget=budget)
    monkeypatch.setattr('perturbench.trainer.Module.on_train_epoch_start', breaks_off)
    with pytest.raises(ArithmeticError): fit(make(), dosed, budget=budget, folder=tmp_path, every=0)
    monkeypatch.undo()
    again = make()
    assert history.equals(fit(again, dosed, budget=budget, folder=tmp_path, every=0))
    assert same(whole.state_dict(), again.state_dict())

def breaks_off(module):
    if module.current_epoch == 2: raise ArithmeticError
    module.losses, module.weights = [], []

@pytest.fixture(scope='module')
def unknown(tmp_path_factory):
    "A task where one line alone is trained on."
    task = toy(tmp_path_factory.mktemp('unknown'), what=PAIRS[:3], split=dict(kind='transfer', fraction=.5))
    there = task.design.covariate[:, 0] == 0
    task.parts[0][~there[task.store.codes] & (task.parts[0] == 0)] = 3
    return task

@pytest.mark.parametrize('name', NAMES)
def test_a_state_that_was_not_trained_on_is_predicted_and_said(name, unknown):
    there = unknown.design.covariate[:, 0] == 0
    model, _ = train(name, unknown, budget=dict(max_epochs=1))
    first = next(c for c in unknown.test_conditions() if not there[c])
    found = {p.condition: p for p in predict_task(model, unknown)}
    assert np.isfinite(found[first].cells).all()
    if name in TRAINED:
        assert found[first].status == 'unseen_state'
        assert {p.status for c, p in found.items() if there[c]} <= {'ok', 'unseen_part'}

class Trial:
    "What a search asks, each name once, answered by the first or the last value of each range."
    def __init__(self, last): self.last, self.asked = last, set()
    def answer(self, name, first, last):
        assert name not in self.asked, f'{name} is asked twice'
        self.asked.add(name)
        return last if self.last else first
    def suggest_float(self, name, low, high, step=None, log=False): return self.answer(name, low, high)
    def suggest_int(self, name, low, high, step=1, log=False):
        return self.answer(name, low, low + (high - low)//step*step)
    def suggest_categorical(self, name, choices): return self.answer(name, choices[0], choices[-1])

@pytest.mark.parametrize('name', TRAINED)
def test_what_a_search_suggests_are_options(name):
    for last in (False, True):
        found = model_class(name).search_space(Trial(last))
        assert {'lr', 'weight_decay'} <= set(found) and check_options(name, found) | found == check_options(name, found)
        if last: assert found['lr'] == (1e-3 if name.startswith('cpa') else 5e-3)

def test_published_options_are_options(task):
    with_presets = {k for k in NAMES if presets(k)}
    assert {'cpa', 'sams_vae', 'biolord', 'linear', 'latent_additive', 'decoder_only'} <= with_presets
    for name in NAMES:
        for preset, p in presets(name).items():
            options = check_options(name, dict(preset=preset))
            assert p['options'].items() <= options.items() and 'preset' not in options and p['batch_size'] >= 256
    model = build_model('linear', model_info(task), preset='norman19', lr=.5)
    assert (model.options['inject_covariates'], model.lr, model.weight_decay) == (False, .5, 1.76e-8)
    with pytest.raises(InputError, match="linear has no preset 'norman'; did you mean 'norman19'"):
        check_options('linear', dict(preset='norman'))

def test_an_ablation_is_its_model_with_a_switch(task):
    for name, of, switch in [
            ('cpa_noadv', 'cpa', dict(use_adversary=False)),
            ('cpa_scgpt', 'cpa', dict(features='X_scGPT')),
            ('latent_additive_scgpt', 'latent_additive', dict(features='X_scGPT')),
            ('sams_vae_s', 'sams_vae', dict(sparse_additive_mechanism=False)),
            ('covariate_only', 'decoder_only', dict(use_perturbations=False))]:
        (a, _) = train(name, task, budget=dict(max_epochs=1, batch_size=2000))
        (b, _) = train(of, task, budget=dict(max_epochs=1, batch_size=2000), **switch)
        assert a.options == b.options and same(a.state_dict(), b.state_dict())

def test_any_embedding_of_the_cells_is_named_in_a_grid(tmp_path, undrawn, quick_here):
    toy(tmp_path)
    grid = dict(tasks=[str(tmp_path/'toy.h5ad')], budget=dict(max_epochs=1), models=[
        {'name': 'latent_additive', 'features': 'X_scGPT'},
        'cpa_scgpt',
        {'name': 'cpa', 'features': 'X_pca'}])
    outcome = run_grid(grid, tmp_path/'out')
    assert outcome.done == 2
    (spec, log), = outcome.failed
    assert spec.label == 'cpa' and "the cells of this task have no embedding 'X_pca'" in log.read_text()

@pytest.mark.parametrize('likelihood', ['isotropic', 'nb', 'zinb'])
@pytest.mark.parametrize('name', ['cpa', 'sams_vae', 'biolord'])
def test_likelihoods_of_counts(name, likelihood, task):
    "Cells drawn from the likelihood are spread more than the means, and have about the mean that these have."
    model, history = train(name, task, budget=dict(max_epochs=2, batch_size=512), likelihood=likelihood)
    found = []
    for model.prediction in ('mean', 'sample'):
        found.append(np.stack([(p.cells.mean(0), p.cells.std(0)) for p in predict_task(model, task)]))
    mean, drawn = found
    assert history.notna().all(axis=None) and np.isfinite(mean).all()
    assert likelihood == 'isotropic' or drawn.min() >= 0
    assert drawn[:, 1].mean() > 1.5*mean[:, 1].mean() and abs((drawn - mean)[:, 0].mean()) < .05

IN_A_NEW_PROCESS = '''
import os, signal, sys
import torch
from perturbench.core import InputError
from perturbench.models.base import MODELS, build_model, model_class
assert 'perturbench.models.zoo' not in sys.modules and not len(MODELS)
try: build_model('linear', None)
except InputError as e: print(e)
import perturbench.models.zoo
print(model_class('linear').__module__, flush=True)

import perturbench.core as core, perturbench.train as train, perturbench.trainer as trainer
from perturbench.tasks import load_task

def die(): os.kill(os.getpid(), signal.SIGKILL)

def die_while_writing(source, goal, replace=os.replace, done=[]):
    if str(goal).endswith('last.ckpt'):
        done.append(goal)
        if len(done) == 2: die()
    replace(source, goal)

def die_in_a_step(self, batch, i, step=trainer.Module.training_step):
    if self.current_epoch == 3 and i == 1: die()
    return step(self, batch, i)

def go(how):
    if how == 'writing': core.os.replace = die_while_writing
    else: trainer.Module.training_step = die_in_a_step
    task = load_task(sys.argv[1])
    torch.manual_seed(0)
    model = build_model('latent_additive', train.model_info(task), lr=.07)
    budget = dict(max_epochs=6, batch_size=20, lr_patience=1)
    train.fit(model, task, budget=budget, folder=sys.argv[2], every=0)

for how in ('writing', 'step'):
    child = os.fork()
    if not child: go(how)
    print(how, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
'''

@pytest.fixture(scope='module')
def plain(tmp_path_factory): return toy(tmp_path_factory.mktemp('plain'))

@pytest.fixture(scope='module')
def new_process(plain, tmp_path_factory):
    "What a new process prints, and where its trainings that were killed kept their checkpoints."
    folder = tmp_path_factory.mktemp('killed')
    (folder/'killed.py').write_text(IN_A_NEW_PROCESS)
    command = [sys.executable, folder/'killed.py', plain.folder, folder/'kept']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder

def test_the_room_that_keeps_the_register_imports_no_model_and_says_how_to_get_them(new_process):
    said, home = new_process[0][:2]
    assert "'linear' is not known" in said
    assert said.endswith('`import perturbench.models.zoo` adds the models of this library')
    assert home == 'perturbench.models.simple'

def test_a_training_that_was_killed_ends_with_the_weights_of_one_that_was_not(new_process, plain):
    "Killed while it writes its second checkpoint, started again, killed in its fourth epoch, and started again."
    printed, folder = new_process
    assert printed[2:] == ['writing -9', 'step -9']
    saved = torch.load(folder/'kept'/'last.ckpt', weights_only=True)
    assert saved['epoch'] == 2 and len(saved['training']['history']) == 3
    assert saved['optimizer_states'][0]['param_groups'][0]['lr'] < .07  # cut before the second kill
    found = []
    for name in ('kept', 'whole'):
        torch.manual_seed(0)
        model = build_model('latent_additive', model_info(plain), lr=.07)
        budget = dict(max_epochs=6, batch_size=20, lr_patience=1)
        history = fit(model, plain, budget=budget, folder=folder/name, every=0)
        found.append((history, model.state_dict()))
    assert found[0][0].equals(found[1][0]) and len(found[0][0]) == 6
    assert same(found[0][1], found[1][1])
    last = [torch.load(folder/o/'last.ckpt', weights_only=True)['state_dict'] for o in ('kept', 'whole')]
    assert same(*last)

def test_a_training_that_stopped_early_and_is_started_again_does_not_go_on(plain, tmp_path):
    """Killed between its last checkpoint and the end of its run.

    Started again it is at its end, and not an epoch before a new decision."""
    for min_epochs, seed in ((1, 0), (1, 1), (7, 1)):
        found = []
        for _ in range(2):
            torch.manual_seed(seed)
            model = build_model('latent_additive', model_info(plain), lr=.03)
            budget = dict(max_epochs=30, min_epochs=min_epochs, patience=2, lr_patience=1, batch_size=20)
            kept = tmp_path/f'{min_epochs}, {seed}'
            history = fit(model, plain, budget=budget, seed=seed, folder=kept, every=0)
            found.append((history, model.state_dict()))
        assert min_epochs <= len(found[0][0]) < 30
        assert found[0][0].equals(found[1][0]) and same(found[0][1], found[1][1])

@pytest.mark.parametrize('strategy, sampler', [
    ({'name': 'ot', 'n_components': 5}, 'state'),
    ('matched', 'condition'),
    ({'name': 'matched', 'same_batch': True}, 'uniform')])
def test_a_model_chooses_how_its_batches_are_made(task, strategy, sampler):
    torch.manual_seed(0)
    model = build_model('linear', model_info(task))
    model.strategy, model.sampler = strategy, sampler
    made = batches(model, task, 'train', 0, 256, 0)
    assert made.sampler_name == sampler
    assert type(made.strategy).__name__ == ('Transport' if 'ot' in str(strategy) else 'Matched')
    codes = torch.cat([b.condition for b in made]).numpy()
    assert not task.design.is_control[codes].any() and len(codes) == len(made.cells)
    history = fit(model, task, budget=dict(max_epochs=3, batch_size=256))
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]

def test_a_part_without_controls_of_a_state_is_one_message(task, monkeypatch):
    from perturbench.tasks import Task
    some = Task.controls
    def without_one(self, part, fold=0, half=None): return some(self, part, fold, half).where(self.design.state != 1)
    monkeypatch.setattr(Task, 'controls', without_one)
    says = "no control cell in the state cell_type '.+', which has cells to be matched; give controls of that state"
    with pytest.raises(InputError, match=says):
        fit(build_model('linear', model_info(task)), task)

def briefly(task, **budget):
    torch.manual_seed(0)
    model = build_model('latent_additive', model_info(task))
    return fit(model, task, budget=dict(max_epochs=2, batch_size=500) | budget), model.state_dict()

def test_bfloat16_is_near_and_keeps_its_weights_whole(task):
    (history, weights), (near, rounded) = briefly(task), briefly(task, precision='bf16')
    assert all(w.dtype == torch.float32 for w in rounded.values() if w.is_floating_point())
    assert not same(weights, rounded)
    np.testing.assert_allclose(near.val_loss, history.val_loss, rtol=.02)

def test_a_compiled_loss_is_the_loss(task, monkeypatch):
    "Traced, and then run as it is: what a compiler makes of it is torch's affair."
    compiled, calls = torch.compile, []
    def traced(f, dynamic, mode):
        calls.append((dynamic, mode))
        return compiled(f, dynamic=dynamic, backend='eager')
    (history, weights) = briefly(task)
    monkeypatch.setattr(torch, 'compile', traced)
    again, same_weights = briefly(task, compile=True)
    assert calls == [(False, None)] and history.equals(again) and same(weights, same_weights)
