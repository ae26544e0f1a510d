"GEARS against one cell at a time, in other company, in pieces, saved and loaded, and with a real file of annotations."
from functools import partial
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
import perturbench.models.gears as gears
from perturbench.core import InputError
from perturbench.data.screen import Design
from perturbench.loaders.batches import Batch
from perturbench.models.base import ModelInfo
from perturbench.models.zoo import build_model, load_model, save_model
from perturbench.predict import predict_task
from perturbench.train import batches, fit, model_info

@pytest.fixture
def one_thread():
    "Tensors this small are slower on more."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

G, PARTS, COMBOS = 12, 'ABCDEF', ('', 'A', 'B', 'C', 'D', 'AB', 'CE', 'F')

def made(doses=False, n_states=2, seen=7, keys=True, n_layers=1, n_genes=G, **options):
    "A model with random weights on a small graph, F unseen; its conditions are COMBOS in each state."
    torch.manual_seed(0)
    names = [(s, c) for s in range(n_states) for c in COMBOS]
    p = np.array([[(o in c)*(10.*(i + 1) if doses else 1) for i, o in enumerate(PARTS)] for _, c in names], np.float32)
    state = np.array([s for s, _ in names])
    k = np.ones((len(names), 0), np.float32)
    if keys: k = np.array([[s == o for o in range(n_states)] for s in state], np.float32)
    line = {'line': [f's{i}' for i in range(n_states)]} if keys else {}
    design = Design(list(PARTS), line, p, k, state, p.sum(1) == 0)
    def edges(n, m):
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j and (i*j + i + j) % m == 0]
        return torch.tensor([(i, j, (i + j) % 5/5 + .1) for i, j in pairs]).T
    n_cells = np.array([9*(COMBOS.index(c) < seen) for _, c in names])
    info = ModelInfo([f'g{i}' for i in range(n_genes)], design, n_cells)
    info.features = {
        'co-expression, 20 neighbours above 0.4': edges(n_genes, 3),
        'co-expression of perturbations, 20 neighbours above 0.4': edges(5, 2)}
    model = build_model('gears', info, hidden_dim=8, n_layers_graph=n_layers, **options)
    with torch.no_grad():
        for o in (model.w2, model.b1, model.b2, model.covariate): o.normal_(0, .5)
    return model

def batch_of(model, codes, seed=0):
    g, design, codes = torch.Generator().manual_seed(seed), model.info.design, torch.as_tensor(codes)
    x, y = (F.relu(torch.randn(len(codes), model.info.n_genes, generator=g)) for _ in range(2))
    return Batch(expression=y, controls=x, cell_features=x, perturbation=torch.tensor(design.perturbation)[codes],
                 covariates=torch.tensor(design.covariate)[codes], condition=codes)

def part(batch, rows): return Batch(**{k: None if v is None else v[rows] for k, v in vars(batch).items()})

def graph_of_one_cell(graph):
    "The edges of a graph and their weights, as an object of one cell holds them."
    return graph.index.clone(), graph.weight.clone()

def convolve(layers, edges, x):
    (row, column), weight = edges
    for i, layer in enumerate(layers):
        x = F.relu(x) if i else x
        x = layer(torch.zeros_like(x).index_add(0, row, weight[:, None]*x[column]))
    return x

def predict_one_cell(model, x, p, k):
    "One cell from the definition, with graphs of its own: what each of the cells of a batch would cost alone."
    e = model.gene/model.gene.norm(dim=1, keepdim=True).clamp(min=1)
    near = convolve(model.gene_graph.layers, graph_of_one_cell(model.gene_graph), e)
    b = F.relu(F.batch_norm(e, None, None, training=True)) + .2*near
    z = convolve(model.part_graph.layers, graph_of_one_cell(model.part_graph), model.part)
    seen = torch.tensor(model.info.seen_perturbations)
    total = torch.zeros_like(z[0])
    if model.inject_covariates: total = sum((k[i]*model.covariate[i] for i in range(len(k))), total)
    for i in p.nonzero()[:, 0].tolist():
        total = total + p[i]/model.dose_unit[i]*(z[seen].mean(0) if model.alone[i] else z[i])
    if not p.any(): return x
    h = model.decode_gene(model.encode_gene(b) + model.encode_condition(total[None]))
    u = (h*model.w1).sum(1) + model.b1
    s = model.decode_all(u[None]).expand(len(x), -1)
    return x + (torch.cat([u[:, None], s], 1)*model.w2).sum(1) + model.b2

def predict_by_cell(model, batch):
    return torch.stack([predict_one_cell(model, *o) for o in zip(batch.controls, batch.perturbation, batch.covariates)])

KINDS = {
    'plain': {},
    'doses': dict(doses=True),
    'one state': dict(n_states=1),
    'no covariates': dict(keys=False, n_states=1),
    'two layers': dict(n_layers=2),
    'states take no part': dict(inject_covariates=False),
    'some unseen': dict(seen=4)}

@pytest.mark.parametrize('kind', KINDS)
def test_it_is_what_one_cell_at_a_time_gives(kind):
    model = made(**KINDS[kind])
    batch = batch_of(model, torch.arange(len(model.info.design.state)).repeat(3))
    gradients = []
    for predict in (model.predict, partial(predict_by_cell, model)):
        model.zero_grad()
        x = predict(batch)
        ((x - batch.expression)**2).mean().backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
        if predict == model.predict: fast = x.detach()
    assert (fast - x).abs().max() < 1e-5 and all((a - b).abs().max() < 1e-4 for a, b in zip(*gradients) if a.numel())

model = made()

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_neither_order_nor_company_matters(codes, r):
    batch, order = batch_of(model, codes), list(range(len(codes)))
    r.shuffle(order)
    with torch.no_grad():
        x, cut = model.predict(batch), r.randint(0, len(codes))
        assert (model.predict(part(batch, order)) - x[order]).abs().max() < 1e-6
        assert all((model.predict(part(batch, o)) - x[o]).abs().max() < 1e-6 for o in (order[:cut], order[cut:]) if o)
        assert torch.equal(model.train().predict(batch), model.eval().predict(batch))
        assert abs(model.loss(part(batch, order))['loss'] - model.loss(batch)['loss']) < 1e-5*model.loss(batch)['loss']
        batch.condition = None
        assert (model.predict(batch) - x).abs().max() < 1e-6

def test_a_condition_counts_once_however_many_cells_it_has():
    a, b = (batch_of(model, [c]*n, seed=c) for c, n in ((1, 2), (4, 9)))
    both = Batch(**{k: torch.cat([v, vars(b)[k]]) for k, v in vars(a).items() if v is not None})
    with torch.no_grad():
        mean = (model.loss(a)['loss'] + model.loss(b)['loss']).item()/2
        assert model.loss(both)['loss'].item() == pytest.approx(mean, rel=1e-5)

@pytest.mark.parametrize('power, overstated', [(2, 1), (4, 1.5)])
def test_squares_learn_the_effect_on_genes_that_few_cells_show(power, overstated):
    "On at 2 in .1 of the controls and .15 of the cells, an effect of .1: the cubes of what is left balance at .15."
    r, n = np.random.default_rng(0), 1000
    cells = np.tile(np.arange(n), (G, 1))
    def on(share): return torch.tensor(2*(r.permuted(cells, axis=1).T < share*n), dtype=torch.float32)
    model = made(error_power=power, direction_weight=0.)
    code = torch.full((n,), COMBOS.index('A'))
    batch = batch_of(model, code)
    batch.controls, batch.expression = on(.1), on(.15)
    adam = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(120):
        adam.zero_grad()
        model.loss(batch)['loss'].backward()
        adam.step()
    with torch.no_grad(): change = model.change(batch).change[0]
    assert (change/.1).numpy() == pytest.approx(np.full(G, overstated), abs=.1)

def test_pieces_give_the_whole_and_its_gradient(monkeypatch):
    batch, found, calls = batch_of(model, torch.arange(16)), [], []
    def counted(*o, **more):
        calls.append(1)
        return torch.utils.checkpoint.checkpoint(*o, **more)
    monkeypatch.setattr(gears, 'checkpoint', counted)
    for piece in (2**25, 3*G*8):
        monkeypatch.setattr(gears, 'PIECE', piece)
        model.zero_grad()
        loss = model.loss(batch)['loss']
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert len(calls) == 6 and all((a - b).abs().max() <= 1e-5*(1 + a.abs().max()) for a, b in zip(*found))

def test_a_trained_model_comes_back_to_the_bit(task, one_thread, tmp_path):
    torch.manual_seed(0)
    model = build_model('gears', model_info(task), hidden_dim=16, min_correlation=.1)
    history = fit(model, task, budget=dict(max_epochs=2, batch_size=512))
    assert history.val_loss.iloc[1] < history.val_loss.iloc[0]
    assert model.gene_graph.weight.numel() > 2*len(task.genes) and model.info.features
    save_model(model, tmp_path/'model.ckpt')
    back = load_model(tmp_path/'model.ckpt')
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())
    for a, b in zip(predict_task(model, task), predict_task(back, task)):
        assert (a.cells == b.cells).all() and (a.cells.dtype, a.status) == (np.float32, b.status)

def test_half_precision_gives_finite_steps(task, one_thread):
    model = build_model('gears', model_info(task), hidden_dim=16)
    batch = next(iter(batches(model, task, 'train', 0, 128, 0, dtype=torch.bfloat16)))
    for step in range(2):
        with torch.autocast('cpu', torch.bfloat16): loss = model.loss(batch)['loss']
        model.zero_grad()
        loss.backward()
        model.optimisers()[0].step()
    assert loss.dtype == torch.float32 and all(p.isfinite().all() for p in model.parameters())

def test_what_it_knows_of_the_unseen(tmp_path):
    "A, B and C are alike; C and D have no cells, and D has nobody."
    (tmp_path/'go.tsv').write_text(
        'go_id\tgo_domain\tgene_symbols\n'
        't1\tbiological_process\tA|B|target\n'
        't2\tmolecular_function\tB|target\n'
        't3\tcellular_component\tD')
    p, k = np.vstack([np.zeros(4), np.eye(4)]).astype(np.float32), np.eye(2, dtype=np.float32)
    state, is_control = np.repeat([0, 1], 5), np.tile([True, False, False, False, False], 2)
    design = Design(list('ABCD'), {'line': ['x', 'y']}, np.tile(p, (2, 1)), np.repeat(k, 5, 0), state, is_control)
    info = ModelInfo(['g1', 'g2'], design, np.array([5, 5, 5, 0, 0, 0, 0, 0, 0, 0]), targets={'C': ['target', 'other']})
    model = build_model('gears', info, annotations=str(tmp_path/'go.tsv'))
    assert [model.status(p[i], k[0]) for i in range(5)] == ['ok']*4 + ['unseen_part']
    assert model.status(p[3] + p[4], k[0]) == 'unseen_part'
    assert [model.status(p[i], k[1]) for i in (1, 3, 4)] == ['unseen_state', 'unseen_state', 'unseen_part']
    with torch.no_grad():
        z = model.part_embeddings()
        assert torch.allclose(z[2], model.part_graph.layers[0]((.5*model.part[0] + model.part[1])/1.5), atol=1e-6)
        assert torch.allclose(z[3], z[:2].mean(0), atol=1e-6)
    (tmp_path/'other.tsv').write_text('go_id\tgo_domain\tgene_symbols\nt1\tbiological_process\tX|Y')
    for path, message in [('other.tsv', 'annotates none of the genes'), ('gone.tsv', 'is not a file')]:
        with pytest.raises(InputError, match=message): build_model('gears', info, annotations=str(tmp_path/path))

def test_a_gene_ontology_file_relates_real_perturbations(real, tmp_path):
    path = str(real/'side'/'GO_annotations-9606-direct-allev_v1.0.tsv')
    parts = sorted(['KLF1', 'CEBPA', 'CEBPB', 'MAP2K3', 'MAP2K6', 'no_gene'])
    p, k = np.vstack([np.zeros(6), np.eye(6)]).astype(np.float32), np.ones((7, 0), np.float32)
    design = Design(parts, {}, p, k, np.zeros(7, np.int64), np.arange(7) == 0)
    seen = np.array([0, *(o not in ('CEBPB', 'MAP2K6', 'no_gene') for o in parts)])*5
    model = build_model('gears', ModelInfo(['g1'], design, seen), annotations=path, n_neighbours=2)
    status = [model.status(p, []) for p in design.perturbation[1:]]
    assert status == ['unseen_part' if o == 'no_gene' else 'ok' for o in parts]
    graph = model.part_graph
    A = torch.sparse_coo_tensor(graph.index, graph.weight, (6, 6), check_invariants=True).to_dense()
    assert [parts[A[parts.index(o)].argmax()] for o in ('CEBPB', 'MAP2K6')] == ['CEBPA', 'MAP2K3']
    save_model(model, tmp_path/'model.ckpt')
    assert torch.equal(load_model(tmp_path/'model.ckpt').part_graph.weight, model.part_graph.weight)
