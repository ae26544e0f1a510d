"Flow matching: the discrepancy, the paths, the draws, and what guidance and averages of weights are."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
import perturbench.models.zoo
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.loaders.batches import Batch, Batches
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model
from perturbench.models.flow import SAMPLERS, WIDTHS, Space, mmd2

@pytest.fixture(scope='module')
def store():
    "Cells of two lines on 12 genes, with A, B and A+B that add vectors, and controls."
    r = np.random.default_rng(0)
    vectors = r.normal(0, 1, (2, 12))
    conditions = {'control': 0*vectors[0], 'A': vectors[0], 'B': vectors[1], 'A+B': vectors.sum(0)}
    rows = [(line, what) for line in 'xy' for what in conditions for _ in range(40)]
    obs = pd.DataFrame(rows, columns=['line', 'what'], index=[f'c{i}' for i in range(len(rows))])
    x = np.stack([5 + (line == 'y') + conditions[what] for line, what in rows]) + r.normal(0, .3, (len(rows), 12))
    return CellStore.from_screen(Screen(ad.AnnData(x.astype(np.float32), obs=obs), 'what', ['line']))

@pytest.fixture(scope='module')
def info(store):
    cells = store.select(np.ones(store.n_cells, bool))
    return ModelInfo(store.genes, store.design, cells.n, cells=cells)

def batches(model, info):
    cells, is_control = info.cells, info.design.is_control
    return Batches(cells.where(~is_control), cells.where(is_control), model.strategy, 128, sampler=model.sampler)

def trained(info, n_epochs=60, **options):
    torch.manual_seed(0)
    model = build_model('flow', info, **dict(width=48, n_axes=6, ema=.9, pool='sum') | options)
    (adam,), made, step = model.optimisers(), batches(model, info), 0
    for epoch in range(n_epochs):
        made.set_epoch(epoch)
        for batch in made:
            model.begin_step(epoch, step)
            adam.zero_grad()
            model.loss(batch)['loss'].backward()
            adam.step()
            step += 1
    return model.eval()

@pytest.fixture(scope='module')
def learned(info): return trained(info, condition_dropout=.2)

def asked(info, code, controls):
    def for_all(table): return torch.tensor(table[code]).expand(len(controls), -1)
    return Batch(controls=controls, cell_features=controls, perturbation=for_all(info.design.perturbation),
                 covariates=for_all(info.design.covariate))

def predicted(model, info, code, seed=0):
    "Cells of the condition `code`, from all controls of its state."
    cells, design = info.cells, info.design
    rows = cells.where(design.is_control & (design.state == design.state[code])).rows
    torch.manual_seed(seed)
    with torch.no_grad(): return model.predict(asked(info, code, cells.store.dense(rows)))

@pytest.mark.parametrize('source', ['control', 'noise'])
def test_a_flow_arrives_at_the_mean_and_the_spread_of_each_condition(source, info):
    more = dict(n_axes=0, noise=0.) if source == 'noise' else {}
    model = trained(info, 150, source=source, **more)
    for code in range(len(info.design.state)):
        true = info.cells.store.dense(info.cells.where(np.arange(len(info.design.state)) == code).rows)
        found = predicted(model, info, code)
        assert (found.mean(0) - true.mean(0)).abs().max() < .35
        assert .6 < float(found.std(0).mean()/true.std(0).mean()) < 1.5

def test_the_discrepancy_is_that_of_a_loop():
    r = np.random.default_rng(1)
    x, y = r.normal(size=(7, 3)), r.normal(.5, 1, (9, 3))
    d = lambda a, b: ((a[:, None] - b)**2).sum(2)
    yy = np.sort(d(y, y).ravel())
    median = yy[(len(yy) - 1)//2]
    def kernel(q): return sum(np.exp(-q/(2*w**2*median)) for w in WIDTHS)/len(WIDTHS)
    def within(q): return np.mean([kernel(q[i, j]) for i in range(len(q)) for j in range(len(q)) if i != j])
    by_hand = within(d(x, x)) + within(d(y, y)) - 2*kernel(d(x, y)).mean()
    assert float(mmd2(torch.tensor(x), torch.tensor(y))) == pytest.approx(by_hand, abs=1e-6)

@pytest.mark.parametrize('name', list(SAMPLERS))
def test_paths_of_a_linear_field_are_matrix_exponentials(name):
    g = torch.Generator().manual_seed(0)
    A, x = torch.randn(4, 4, generator=g, dtype=torch.float64), torch.randn(30, 4, generator=g, dtype=torch.float64)
    end = SAMPLERS[name](lambda x, t: x @ A.T, x, n_steps=60, tolerance=1e-6)
    torch.testing.assert_close(end, x @ torch.linalg.matrix_exp(A).T, atol=.02, rtol=.01)
    if name == 'heun':  # of second order: half the step, a quarter of the error
        exact = x @ torch.linalg.matrix_exp(A).T
        errors = [float((SAMPLERS[name](lambda x, t: x @ A.T, x, n_steps=n) - exact).norm()) for n in (40, 80)]
        assert 3.5 < errors[0]/errors[1] < 4.5

def test_guidance_of_none_forgets_the_condition_and_more_goes_further(learned, info):
    a, b = (c for c in range(len(info.design.state)) if info.design.state[c] == 0
            and info.design.perturbation[c].sum() == 1)
    found = {}
    for learned.guidance in (0., 1., 2.): found[learned.guidance] = [predicted(learned, info, c) for c in (a, b)]
    learned.guidance = 1.
    torch.testing.assert_close(*found[0.])
    apart = [float((found[s][0].mean(0) - found[s][1].mean(0)).norm()) for s in (0., 1., 2.)]
    assert apart[0] < 1e-4 < apart[1] < apart[2]

def test_validation_draws_the_same_whatever_was_drawn_before_and_leaves_torch_alone(learned, info):
    batch = next(iter(batches(learned, info)))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(float(learned.val_loss(batch)))
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(1))
    assert found[0] == found[1]

def test_what_was_not_seen_is_the_mean_of_what_was(info):
    trained_on = info.train_cells*(info.design.perturbation[:, 1] == 0)
    model = build_model('flow', ModelInfo(info.genes, info.design, trained_on, cells=info.cells))
    encode, state = model.learned.encode, torch.eye(2)[:1]
    unseen, seen = torch.tensor([[0., 1.]]), torch.tensor([[1., 0.]])
    torch.testing.assert_close(encode(unseen, state), encode(seen, state))

def test_a_space_is_of_training_cells_and_survives_without_them(info):
    with_cells = Space(info, 4).state_dict()
    without = Space(ModelInfo.from_dict(info.to_dict()), 4).state_dict()
    assert all(torch.equal(without[name], value) for name, value in with_cells.items())
    constant = CellStore.from_screen(Screen(ad.AnnData(np.ones((4, 3), np.float32), obs=pd.DataFrame(
        {'what': ['control', 'control', 'A', 'A']}, index=list('abcd'))), 'what'))
    cells = constant.select(np.ones(4, bool))
    model = build_model('flow', ModelInfo(constant.genes, constant.design, cells.n, cells=cells))
    assert model.loss(next(iter(batches(model, model.info))))['loss'].isfinite()

def test_sets_larger_than_the_cells_there_are(info):
    model = build_model('flow', info, set_size=200, width=16)
    batch = next(iter(batches(model, info)))
    assert batch.expression.shape == (1, 200, 12) and model.loss(batch)['loss'].isfinite()

def test_a_training_step_moves_what_is_trained_and_not_the_average(info):
    model = build_model('flow', info, width=16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (adam,) = model.optimisers()
    model.loss(next(iter(batches(model, info))))['loss'].backward()
    adam.step()
    moved = {k.split('.')[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {'learned'}
    with pytest.raises(InputError, match='use the strategy `sets`'): model.loss(Batch(expression=torch.zeros(2, 12)))

@pytest.mark.gpu
def test_on_a_gpu_the_same_is_predicted(learned, info):
    there = build_model('flow', info, **learned.options).cuda().eval()
    there.load_state_dict(learned.state_dict())
    x = info.cells.store.dense(info.cells.rows[:50])
    for code in (1, 3):
        batch = asked(info, code, x)
        with torch.no_grad(): here, on_gpu = learned.predict(batch), there.predict(batch.to('cuda')).cpu()
        torch.testing.assert_close(on_gpu, here, atol=1e-3, rtol=1e-3)
