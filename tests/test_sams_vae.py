"Masks that find planted programmes, shares of a divergence that add up, and what the options of SAMS-VAE change."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from perturbench.data.screen import Screen
from perturbench.loaders.batches import Batch, Batches
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo, model_options
from perturbench.models.sams_vae import SAMSVAE, perturbation_visits
from perturbench.models.zoo import build_model, load_model, save_model
from perturbench.predict import predict_cells
from perturbench.trainer import fit_batches

PROGRAMME = np.r_[np.repeat(range(6), 4), [-1]*6] # Of 30 perturbations; the last six do nothing

def store_of(expression, names, **obs):
    "A store of cells of the perturbations `names`."
    obs = pd.DataFrame(dict(perturbation=names, **obs), index=[f'c{i}' for i in range(len(names))])
    a = ad.AnnData(np.asarray(expression, np.float32), obs=obs)
    return CellStore.from_screen(Screen(a, 'perturbation', [k for k in obs if k != 'perturbation']))

def planted(seed, n_cells=100, n_genes=100):
    """Cells whose perturbations move the dozen genes of their programme, each as strongly as it does.

    They vary along three axes of basal variation."""
    rng = np.random.default_rng(seed)
    moves = np.zeros((6, n_genes))
    for i in range(6): moves[i, 12*i:12*i + 12] = rng.choice([-1, 1], 12)
    effect = np.vstack([np.zeros(n_genes), moves[PROGRAMME]*rng.uniform(.6, 1.4, (30, 1))*(PROGRAMME >= 0)[:, None]])
    code = np.r_[np.zeros(4*n_cells, int), np.repeat(range(1, 31), n_cells)]
    basal = rng.uniform(1.5, 3, n_genes) + rng.normal(0, 1, (len(code), 3)) @ rng.normal(0, .3, (3, n_genes))
    x = basal + effect[code] + rng.normal(0, .5, (len(code), n_genes))
    return x.clip(min=0), np.array(['control', *(f'p{i:02}' for i in range(30))])[code]

def everything(store): return store.select(np.ones(store.n_cells, bool))

def build(store, seed=0, name='sams_vae', **options):
    torch.manual_seed(seed)
    cells = everything(store)
    return build_model(name, ModelInfo(store.genes, store.design, cells.n, cells=cells), **options)

def learn(store, seed=0, n_epochs=35, **options):
    "A model after `n_epochs` on all cells."
    model = build(store, seed, decoder_norm=False, **options)
    adam, = model.optimisers()
    batches = Batches(everything(store), strategy='disentangling', batch_size=256, seed=seed)
    for epoch in range(n_epochs):
        batches.set_epoch(epoch)
        for batch in batches:
            adam.zero_grad()
            model.loss(batch)['loss'].backward()
            adam.step()
    return model.eval()

def batch_of(design, condition, cells, **more):
    at = torch.as_tensor(condition).expand(len(cells))
    p, k = torch.tensor(design.perturbation)[at], torch.tensor(design.covariate)[at]
    return Batch(cell_features=cells, perturbation=p, covariates=k, **more)

@pytest.fixture(scope='module')
def small():
    "62 cells of controls, A, B and both."
    return store_of(np.random.default_rng(0).uniform(0, 3, (62, 5)), ['control']*20 + ['A']*10 + ['B']*30 + ['A+B']*2)

@pytest.mark.parametrize('seed', range(2))
def test_masks_find_planted_programmes(seed):
    "Pairs of one programme overlap more than others, masks of what does nothing are empty, and effects are recovered."
    x, names = planted(seed)
    model = learn(store_of(x, names), seed)
    q = model.effects.chance().detach().numpy()
    overlap = np.minimum(q[:, None], q).sum(-1)/np.maximum(q[:, None], q).sum(-1)
    i, j = np.triu_indices(24, 1)
    same = PROGRAMME[i] == PROGRAMME[j]
    a, b = overlap[i, j][same], overlap[i, j][~same]
    assert (a[:, None] > b).mean() + (a[:, None] == b).mean()/2 > .95
    n_on = (q > .5).sum(1)
    assert n_on[:24].mean() > 1 and n_on[24:].mean() < .5
    controls = torch.tensor(x[names == 'control'], dtype=torch.float32)
    design, errors, sizes = model.info.design, [], []
    for p in range(30):
        truth = x[names == f'p{p:02}'].mean(0)
        found = predict_cells(model, controls, design.perturbation[p + 1], design.covariate[p + 1], 0, p).mean(0)
        errors.append(((found - truth)**2).mean()), sizes.append(((truth - controls.numpy().mean(0))**2).mean())
    assert np.mean(errors[:24]) < np.mean(sizes[:24])/4

@pytest.mark.parametrize('size', [62, 17, 1])
def test_an_epoch_pays_each_divergence_once(small, size):
    "One seed a batch makes all batches draw the same masks and effects."
    model, shares = build(small), 0.
    with torch.no_grad():
        model.effects.logits.normal_(), model.effects.guide[-1].weight.normal_()
        torch.manual_seed(1)
        total = model.effects.draw()[1].sum().item()
        for batch in Batches(everything(small), strategy='disentangling', batch_size=size):
            torch.manual_seed(1)
            shares += model.loss(batch)['kl_effects'].item()*len(batch)
    assert shares == pytest.approx(total, rel=1e-4)

def test_on_average_it_does_so_under_another_sampler(small):
    class ByCondition(SAMSVAE): sampler = 'condition'
    cells, shares = everything(small), []
    torch.manual_seed(0)
    model = ByCondition(ModelInfo(small.genes, small.design, cells.n))
    batches = Batches(cells, strategy='disentangling', batch_size=62, sampler='condition')
    with torch.no_grad():
        model.effects.logits.normal_(), model.effects.guide[-1].weight.normal_()
        torch.manual_seed(1)
        kl = model.effects.draw()[1]
        for epoch in range(150):
            batches.set_epoch(epoch)
            for batch in batches:
                torch.manual_seed(1)
                shares.append(model.loss(batch)['kl_effects'].item()*len(batch)/150)
    assert sum(shares) == pytest.approx(kl.sum().item(), rel=.03)
    naive = (np.asarray(small.design.perturbation) != 0).T @ np.array([31/2]*4)/perturbation_visits(model.info)
    assert abs(naive - 1).max() > .3  # with shares by the number of cells it would not

def test_visits_are_numbers_of_cells(small):
    info = build(small).info
    A, B = (np.asarray(small.design.perturbation) != 0).T
    assert perturbation_visits(info).tolist() == [info.train_cells[A].sum(), info.train_cells[B].sum()] == [12, 32]

def trained(store, **options):
    "By the loop of the library, for a few epochs."
    model, cells = build(store, **options), everything(store)
    options = dict(strategy='disentangling', batch_size=20, fields=model.fields)
    loaders = [Batches(cells, shuffle=k, **options) for k in (True, False)]
    fit_batches(model, loaders, dict(max_epochs=3, batch_size=20))
    return model

def test_a_seed_decides_all_weights(small):
    for name in ('sams_vae', 'sams_vae_s'):
        a, b = (trained(small, name=name).state_dict() for _ in range(2))
        assert all(torch.equal(v, b[k]) for k, v in a.items())

def test_validation_depends_on_no_generator(small):
    model = trained(small)
    batch = batch_of(small.design, 1, small.dense(range(6)), expression=small.dense(range(6)))
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(model.val_loss(batch).item())
    assert losses[0] == losses[1]
    with torch.no_grad(): model.share *= 100
    assert model.val_loss(batch).item() == losses[0]

def test_predictions_are_keyed_and_samples_spread_more(small, tmp_path):
    mean, controls = trained(small, prediction='mean'), small.dense(range(20))
    sample = build(small, prediction='sample')
    sample.load_state_dict(mean.state_dict())
    p, k = small.design.perturbation, small.design.covariate
    ask = lambda model, c, seed=0: predict_cells(model, controls, p[c], k[c], seed, c)
    first = {c: [ask(m, c) for m in (mean, sample)] for c in range(1, 4)}
    for c in reversed(first):
        torch.manual_seed(c)
        again = [ask(m, c) for m in (mean, sample)]
        assert all((a == b).all() for a, b in zip(first[c], again))
        assert first[c][1].var(0).mean() > 1.5*first[c][0].var(0).mean()
    assert (ask(sample, 1) != ask(sample, 1, 1)).any() and (ask(mean, 1) == ask(mean, 1, 1)).all()
    save_model(sample, tmp_path/'model.ckpt')
    assert (ask(load_model(tmp_path/'model.ckpt'), 1) == first[1][1]).all()

def test_a_mean_is_that_of_many_samples(small):
    mean = trained(small, prediction='mean')
    sample = build(small, prediction='sample')
    sample.load_state_dict(mean.state_dict())
    with torch.no_grad():
        for m in (mean, sample):
            m.effects.logits[:], m.effects.guide[-1].bias[64:], m.effects.guide[-1].weight[64:] = 50, -10, 0
        batch = batch_of(small.design, 1, small.dense([0]).expand(4000, -1))
        found = [m.eval().predict(batch).mean(0) for m in (mean, sample)]
    assert (found[0] - found[1]).abs().max() < .08

def test_the_ablation_is_the_model_with_a_full_mask(small):
    dense = build(small, name='sams_vae_s', prediction='mean').eval()
    sparse = build(small, n_layers_encoder_e=0, prediction='mean').eval()
    assert [k for k, _ in dense.effects.named_parameters()] == ['vectors']
    assert dense.options == {**model_options(SAMSVAE), 'sparse_additive_mechanism': False, 'prediction': 'mean'}
    assert type(dense).predict is type(sparse).predict is SAMSVAE.predict
    controls = small.dense(range(20))
    with torch.no_grad():
        sparse.load_state_dict({k: v for k, v in dense.state_dict().items() if 'effects' not in k}, strict=False)
        dense.effects.vectors.normal_()
        sparse.effects.logits[:], sparse.effects.guide[0].bias[:], sparse.effects.guide[0].weight[:64, :64] = 50, 0, 0
        sparse.effects.guide[0].weight[:64, 64:] = dense.effects.vectors.T
        for c in range(4):
            a, b = (m.predict(batch_of(small.design, c, controls)) for m in (dense, sparse))
            torch.testing.assert_close(a, b)
            batch = batch_of(small.design, c, controls, expression=controls)
            torch.testing.assert_close(dense.val_loss(batch), sparse.val_loss(batch))

def test_what_the_encoder_and_a_counterfactual_look_at(small):
    controls, z_p = small.dense(range(20)), torch.randn(20, 64)
    with torch.no_grad():
        for mean_field in (True, False):
            model = build(small, mean_field_encoding=mean_field).eval()
            batch = batch_of(small.design, 1, controls)
            assert torch.equal(model.basal(batch, z_p)[0], model.basal(batch, 0*z_p)[0]) == mean_field
        model = build(small, generative_counterfactual=True, prediction='mean').eval()
        assert torch.equal(model.predict(batch), model.predict(batch_of(small.design, 1, controls + 1)))

def test_what_is_never_trained_adds_nothing(small):
    cells = everything(small)
    n = np.where(small.design.perturbation[:, 1] != 0, 0, cells.n)
    torch.manual_seed(0)
    for name in ('sams_vae', 'sams_vae_s'):
        model = build_model(name, ModelInfo(small.genes, small.design, n)).eval()
        assert model.share[1] == 0
        assert model.effects.mean()[1].tolist() == [0]*64
        assert model.status([0, 1], []) == 'unseen_part'
        cells = small.dense(range(4))
        model.loss(batch_of(small.design, 1, cells, expression=cells))['loss'].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        if name == 'sams_vae':
            assert (model.effects.logits.grad[1] == 0).all() and (model.effects.draw()[0].isfinite()).all()

def test_masks_are_not_decayed_and_learn_at_their_own_rate(small):
    groups = build(small, weight_decay=.1, lr=.01, lr_mask=.2).optimisers()[0].param_groups
    assert [(g['lr'], g['weight_decay'], len(g['params'])) for g in groups[1:]] == [(.2, 0, 1)]
    assert (groups[0]['lr'], groups[0]['weight_decay']) == (.01, .1)
    assert len(build(small, name='sams_vae_s').optimisers()[0].param_groups) == 1
