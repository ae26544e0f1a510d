"The set transformer: its loss, its blocks, sets of any size, and what its options are."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
import perturbench.models.zoo
from perturbench.core import InputError
from perturbench.data.screen import Screen
from perturbench.loaders.batches import Batch, Batches
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, build_model
from perturbench.models.state_transition import Block, energy_loss

@pytest.fixture(scope='module')
def store():
    "Cells of two lines on 10 genes, with A, B and A+B that add vectors, and controls."
    r = np.random.default_rng(0)
    vectors = r.normal(0, 1, (2, 10))
    conditions = {'control': 0*vectors[0], 'A': vectors[0], 'B': vectors[1], 'A+B': vectors.sum(0)}
    rows = [(line, what) for line in 'xy' for what in conditions for _ in range(40)]
    obs = pd.DataFrame(rows, columns=['line', 'what'], index=[f'c{i}' for i in range(len(rows))])
    x = np.stack([5 + (line == 'y') + conditions[what] for line, what in rows]) + r.normal(0, .3, (len(rows), 10))
    embedding = {'X_some': r.random((len(rows), 4), np.float32)}
    return CellStore.from_screen(Screen(ad.AnnData(x.astype(np.float32), obs=obs, obsm=embedding), 'what', ['line']))

@pytest.fixture(scope='module')
def info(store):
    cells = store.select(np.ones(store.n_cells, bool))
    return ModelInfo(store.genes, store.design, cells.n, cells=cells, embeddings={'X_some': 4})

def batches(model, info, size=128):
    cells, is_control = info.cells, info.design.is_control
    return Batches(cells.where(~is_control), cells.where(is_control), model.strategy, size, sampler=model.sampler,
                   features=model.features)

def trained(info, n_epochs=40, **options):
    torch.manual_seed(0)
    model = build_model('state_transition', info, **dict(width=32, lr=3e-3) | options)
    (adam,), made = model.optimisers(), batches(model, info)
    for epoch in range(n_epochs):
        made.set_epoch(epoch)
        for batch in made:
            adam.zero_grad()
            model.loss(batch)['loss'].backward()
            adam.step()
    return model.eval()

def asked(info, code, controls):
    def for_all(table): return torch.tensor(table[code]).expand(len(controls), -1)
    return Batch(controls=controls, cell_features=controls, perturbation=for_all(info.design.perturbation),
                 covariates=for_all(info.design.covariate))

def controls_of(info, state):
    design = info.design
    return info.cells.store.dense(info.cells.where(design.is_control & (design.state == state)).rows)

def test_the_loss_is_the_energy_distance_of_geomloss_but_for_pairs_with_oneself():
    geomloss = pytest.importorskip('geomloss', reason='a development dependency that a GPU machine may lack')
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, generator=g), torch.randn(40, 5, generator=g) + 1
    xx, yy = torch.cdist(x, x).mean(), torch.cdist(y, y).mean()
    biased = 2*geomloss.SamplesLoss('energy')(x, y)
    unbiased = biased - xx/29 - yy/39  # n²/n(n - 1) = 1 + 1/(n - 1)
    assert float(energy_loss(x, y)) == pytest.approx(float(unbiased), abs=2e-3)

def test_the_loss_has_finite_gradients_where_cells_are_alike():
    x = torch.ones(2, 6, 3, requires_grad=True)
    energy_loss(x, torch.ones(2, 6, 3)).sum().backward()
    assert x.grad.isfinite().all()

def test_attention_is_that_of_the_definition():
    torch.manual_seed(0)
    block, h = Block(8, 2), torch.randn(1, 5, 8)
    with torch.no_grad():
        def norm(o): return o/(o.square().mean(-1, keepdim=True) + torch.finfo(o.dtype).eps).sqrt()
        q, k, v = block.look(norm(h))[0].chunk(3, -1)
        heads = [torch.softmax(q[:, s] @ k[:, s].T/2, -1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
        by_hand = h + block.seen(torch.cat(heads, -1))
        gate, inner = block.gate(norm(by_hand)).chunk(2, -1)
        by_hand = by_hand + block.back(gate*torch.sigmoid(gate)*inner)
        torch.testing.assert_close(block(h), by_hand)

@pytest.mark.parametrize('options', [{}, dict(residual='hidden', n_axes=6), dict(n_layers_in=1, n_layers_out=1)])
def test_sets_arrive_where_the_cells_of_each_condition_are(options, info):
    model = trained(info, 80, **options)
    for code, p in enumerate(info.design.perturbation):
        controls = controls_of(info, info.design.state[code])
        true = info.cells.store.dense(info.cells.where(np.arange(len(info.design.state)) == code).rows)
        with torch.no_grad(): found = model.predict(asked(info, code, controls))
        assert (found.mean(0) - true.mean(0)).abs().max() < .35
        if p.any(): assert float(energy_loss(found, true)) < .2*float(energy_loss(controls, true))

def test_order_company_and_size_of_sets(info):
    model, controls = trained(info, 5), controls_of(info, 0)
    codes = np.flatnonzero(info.design.state == 0)[1:3]
    order = torch.randperm(len(controls), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (model.predict(asked(info, int(code), controls)) for code in codes)
        torch.testing.assert_close(model.predict(asked(info, int(codes[0]), controls[order])), one[order])
        parts = [asked(info, int(code), controls) for code in codes]
        names = [name for name, value in vars(parts[0]).items() if value is not None]
        mixed = Batch(**{n: torch.stack([getattr(part, n) for part in parts], 1).flatten(0, 1) for n in names})
        torch.testing.assert_close(model.predict(mixed), torch.stack([one, other], 1).flatten(0, 1))
        for n in (1, 2, 3): assert model.predict(asked(info, 1, controls[:n])).isfinite().all()

def test_an_embedding_is_read_in_place_of_expression(info):
    model = trained(info, 1, features='X_some')
    assert model.read[0].in_features == 4
    with pytest.raises(InputError, match="no embedding 'X_other'"):
        build_model('state_transition', info, features='X_other')

def test_sets_larger_than_the_cells_there_are_and_sets_of_one(info):
    for size in (1, 200):
        model = build_model('state_transition', info, set_size=size)
        batch = next(iter(batches(model, info)))
        assert batch.expression.shape[1] == size
        model.loss(batch)['loss'].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

@pytest.mark.gpu
def test_on_a_gpu_the_same_is_predicted(info):
    model, controls = trained(info, 3), controls_of(info, 0)
    there = build_model('state_transition', info, **model.options).cuda().eval()
    there.load_state_dict(model.state_dict())
    batch = asked(info, 1, controls)
    with torch.no_grad(): here, on_gpu = model.predict(batch), there.predict(batch.to('cuda')).cpu()
    torch.testing.assert_close(on_gpu, here, atol=1e-3, rtol=1e-3)
