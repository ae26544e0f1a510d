"scGPT embeddings against a forward pass in NumPy and PyTorch's transformer; what must not matter; files refused."
import json, os, pickle
from fractions import Fraction
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import sparse
from perturbench.core import InputError, rng
from perturbench.data.screen import Screen, read_screen
from perturbench.data.scgpt import bin_values, embed_cells, embed_screen, read_scgpt

few = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
D, HEADS, LAYERS, HID = 32, 4, 2, 48
SYMBOLS = [f'GENE{i}' for i in range(57)]
VOCAB = {t: i for i, t in enumerate([*SYMBOLS[:30], '<pad>', '<cls>', *SYMBOLS[30:], '<eoc>'])}
ARGS = dict(
    embsize=D, nheads=HEADS, nlayers=LAYERS, d_hid=HID, n_bins=51, pad_token='<pad>', pad_value=-2,
    input_emb_style='continuous', dropout=.2, fast_transformer=True)

def weights(seed=0):
    "Random weights under the names of a published checkpoint; biases are not zero and norms are not one."
    r = np.random.default_rng(seed)
    shapes = {
        'encoder.embedding.weight': (len(VOCAB), D),
        'encoder.enc_norm.weight': (D,),
        'encoder.enc_norm.bias': (D,),
        'value_encoder.linear1.weight': (D, 1),
        'value_encoder.linear1.bias': (D,),
        'value_encoder.linear2.weight': (D, D),
        'value_encoder.linear2.bias': (D,),
        'value_encoder.norm.weight': (D,),
        'value_encoder.norm.bias': (D,)}
    for l in range(LAYERS):
        parts = {
            'self_attn.Wqkv.weight': (3*D, D),
            'self_attn.Wqkv.bias': (3*D,),
            'self_attn.out_proj.weight': (D, D),
            'self_attn.out_proj.bias': (D,),
            'linear1.weight': (HID, D),
            'linear1.bias': (HID,),
            'linear2.weight': (D, HID),
            'linear2.bias': (D,),
            'norm1.weight': (D,),
            'norm1.bias': (D,),
            'norm2.weight': (D,),
            'norm2.bias': (D,)}
        shapes |= {f'transformer_encoder.layers.{l}.{k}': s for k, s in parts.items()}
    is_norm = lambda k: 'norm' in k and 'weight' in k
    spread = lambda s: 1/s[-1]**.5 if len(s) > 1 else .5
    values = {k: r.normal(0, spread(s), s) + is_norm(k) for k, s in shapes.items()}
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()}

def torch_names(state): return {k.replace('Wqkv.', 'in_proj_'): v for k, v in state.items()}

def write(folder, state=None, args=ARGS, vocab=VOCAB):
    folder.mkdir(exist_ok=True)
    for name, o in (('args.json', args), ('vocab.json', vocab)):
        (folder/name).write_text(o if isinstance(o, str) else json.dumps(o))
    torch.save(weights() if state is None else state, folder/'best_model.pt')
    return folder

@pytest.fixture(scope='module')
def model(tmp_path_factory): return read_scgpt(write(tmp_path_factory.mktemp('scgpt')/'fused'))

GENES = ['unknown1', *reversed(SYMBOLS), 'unknown2']
CELLS = [f'cell {i}' for i in range(40)]

@pytest.fixture(scope='module')
def counts():
    of_cells, of_genes = np.repeat([.05, .4, 2, 9], 10)[:, None], rng(1, 'scgpt counts').gamma(.5, 2, len(GENES))
    X = rng(0, 'scgpt counts').poisson(of_cells*of_genes)
    X[3] = 0
    X[4] = [5] + [0]*(len(GENES) - 2) + [2]
    return sparse.csr_matrix(X.astype(np.float32))

def exact_bounds(values, n_bins):
    "For each value, the number of quantiles below it and the number not above it, in fractions."
    v, q = sorted(Fraction(float(x)) for x in values), []
    for j in range(n_bins - 1):
        at = Fraction(j*(len(v) - 1), n_bins - 2)
        k = at.numerator//at.denominator
        q.append(v[k] + (at - k)*(v[min(k + 1, len(v) - 1)] - v[k]))
    return [(sum(o < x for o in q), sum(o <= x for o in q)) for x in (Fraction(float(x)) for x in values)]

def reference(state, row, cell, seed=0, max_length=1200):
    "The embedding of one cell: NumPy, float64, gene by gene."
    w = {k: v.double().numpy() for k, v in state.items()}
    def norm(x, k):
        z = (x - x.mean(-1, keepdims=True))/np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return z*w[f'{k}.weight'] + w[f'{k}.bias']
    def linear(x, k): return x@w[f'{k}.weight'].T + w[f'{k}.bias']
    known = sorted((VOCAB[g], x) for g, x in zip(GENES, row) if x > 0 and g in VOCAB)
    r = rng(seed, 'scgpt', cell)
    u = r.random(len(known))
    bounds = exact_bounds([x for _, x in known], 51) if known else []
    bins = [int(np.ceil(high - o*(high - low))) for o, (low, high) in zip(u, bounds)]
    keep = range(len(known)) if len(known) + 1 <= max_length else sorted(r.permutation(len(known))[:max_length - 1])
    tokens, values = [VOCAB['<cls>']] + [known[i][0] for i in keep], [-2] + [bins[i] for i in keep]
    x = []
    for t, v in zip(tokens, values):
        e = np.maximum(w['value_encoder.linear1.weight'][:, 0]*min(v, 512) + w['value_encoder.linear1.bias'], 0)
        of_gene = norm(w['encoder.embedding.weight'][t], 'encoder.enc_norm')
        x.append(of_gene + norm(linear(e, 'value_encoder.linear2'), 'value_encoder.norm'))
    x = np.array(x)
    for l in range(LAYERS):
        at, heads = f'transformer_encoder.layers.{l}', []
        q, k, v = np.split(linear(x, f'{at}.self_attn.Wqkv'), 3, 1)
        for h in range(HEADS):
            s = slice(h*D//HEADS, (h + 1)*D//HEADS)
            a = np.exp(q[:, s]@k[:, s].T/np.sqrt(D//HEADS))
            heads.append(a/a.sum(1, keepdims=True)@v[:, s])
        x = norm(x + linear(np.hstack(heads), f'{at}.self_attn.out_proj'), f'{at}.norm1')
        x = norm(x + linear(np.maximum(linear(x, f'{at}.linear1'), 0), f'{at}.linear2'), f'{at}.norm2')
    return x[0]/np.linalg.norm(x[0])

@pytest.mark.parametrize('max_length', [1200, 12])
def test_equal_to_a_forward_pass_in_numpy(model, counts, max_length):
    found, report = embed_cells(model, counts, GENES, CELLS, max_length=max_length)
    rows = zip(counts.toarray(), CELLS)
    expected = np.array([reference(weights(), row, cell, max_length=max_length) for row, cell in rows])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.linalg.norm(expected - expected[0], axis=1)[1:].min() > .05
    n = (counts.toarray()[:, 1:-1] > 0).sum(1)
    assert report == dict(
        n_cells=40, n_genes=59, n_found=57, n_missing=2, missing=['unknown1', 'unknown2'], n_empty=(n == 0).sum(),
        n_sampled=(n >= max_length).sum())
    assert report['n_empty'] >= 2 and (report['n_sampled'] > 5) == (max_length == 12)

def test_equal_to_the_transformer_of_pytorch(model):
    layer = torch.nn.TransformerEncoderLayer(D, HEADS, HID, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    at, named = 'transformer_encoder.', torch_names(weights())
    encoder.load_state_dict({k.removeprefix(at): v for k, v in named.items() if k.startswith(at)})
    tokens, values = torch.randint(0, 57, (5, 20)), torch.randint(1, 51, (5, 20)).float()
    seen = torch.arange(20) < torch.tensor([[20], [1], [7], [13], [19]])
    with torch.no_grad():
        x = encoder(model.encoder(tokens) + model.value_encoder(values[..., None]), src_key_padding_mask=~seen)[:, 0]
    torch.testing.assert_close(model(tokens, values, seen), torch.nn.functional.normalize(x, dim=1), atol=2e-6, rtol=0)

def test_padding_changes_nothing(model):
    r = np.random.default_rng(0)
    cells = [(torch.tensor(r.integers(0, 60, n)), torch.tensor(r.integers(1, 51, n)).float()) for n in (1, 2, 30, 59)]
    alone = torch.vstack([model(t[None], v[None]) for t, v in cells])
    pad = lambda o, value: torch.nn.utils.rnn.pad_sequence(o, batch_first=True, padding_value=value)
    tokens, values = pad([t for t, _ in cells], VOCAB['<pad>']), pad([v for _, v in cells], -2)
    seen = pad([torch.ones(len(t), dtype=bool) for t, _ in cells], False)
    torch.testing.assert_close(model(tokens, values, seen), alone, atol=2e-6, rtol=0)
    torch.testing.assert_close(model(tokens, torch.where(seen, values, 7), seen), alone, atol=2e-6, rtol=0)
    assert (model(tokens, values) - alone).abs().max() > .01

def test_values_end_at_512(model):
    tokens = torch.tensor([[VOCAB['<cls>'], 5, 6]])
    at = lambda *v: model(tokens, torch.tensor([[-2., *v]]))
    assert torch.equal(at(512, 3), at(9999, 3)) and not torch.equal(at(512, 3), at(511, 3))

def test_both_names_of_the_attention_weights(model, counts, tmp_path):
    unused = ('decoder.fc.0', 'mvc_decoder.W', 'cls_decoder.out_layer', 'flag_encoder', 'dsbn.bns.0')
    other = read_scgpt(write(tmp_path, torch_names(weights()) | {f'{k}.weight': torch.zeros(3) for k in unused}))
    assert other.unused == ['cls_decoder', 'decoder', 'dsbn', 'flag_encoder', 'mvc_decoder'] and model.unused == []
    assert np.array_equal(embed_cells(other, counts, GENES, CELLS)[0], embed_cells(model, counts, GENES, CELLS)[0])

@pytest.mark.parametrize('zipped', [True, False])
def test_half_precision_is_read_as_single(tmp_path, zipped):
    halves = {k: v.half() for k, v in weights().items()}
    torch.save(halves, write(tmp_path)/'best_model.pt', _use_new_zipfile_serialization=zipped)
    m = read_scgpt(tmp_path)
    assert {p.dtype for p in m.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in m.parameters())
    assert not m.training
    assert torch.equal(m.encoder.enc_norm.bias, weights()['encoder.enc_norm.bias'].half().float())

def test_reading_leaves_the_global_generator_alone(tmp_path):
    write(tmp_path)
    before = torch.get_rng_state()
    read_scgpt(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)

def test_special_tokens_that_are_absent_come_last(tmp_path):
    vocab = {g: i for i, g in enumerate(SYMBOLS)}
    read = read_scgpt(write(tmp_path, vocab=vocab)).vocab
    assert {k: v for k, v in read.items() if k[0] == '<'} == {'<pad>': 57, '<cls>': 58, '<eoc>': 59}
    write(tmp_path, vocab=dict(list(vocab.items())[:55]))
    with pytest.raises(InputError, match=r'embedding.weight \(\(60, 32\) instead of \(58, 32\)'): read_scgpt(tmp_path)

@given(st.lists(st.integers(1, 12), min_size=1, max_size=120), st.sampled_from([3, 4, 9, 51]), st.integers(0, 99))
@few
def test_bins_are_those_of_exact_quantiles(values, n_bins, seed):
    u, v = np.random.default_rng(seed).random(len(values)), np.array(values)
    bins = bin_values(v, n_bins, u)
    bounds = np.array(exact_bounds(values, n_bins))
    assert bins.tolist() == np.ceil(bounds[:, 1] - u*(bounds[:, 1] - bounds[:, 0])).tolist()
    assert bins.min() >= 1 and bins.max() <= n_bins - 1
    assert np.array_equal(bins, bin_values(np.log1p(v/v.sum()*1e4).astype(np.float32), n_bins, u))

@given(st.lists(st.floats(.125, 1e6, width=32), min_size=2, max_size=60), st.integers(0, 99))
@few
def test_bins_grow_with_the_value(values, seed):
    v = np.array(values)
    bins = bin_values(v, 51, np.random.default_rng(seed).random(len(v)))
    order = np.argsort(v)
    v, bins = v[order], bins[order]
    assert all(bins[i] <= bins[j] for i in range(len(v)) for j in range(i, len(v)) if v[i] < v[j])

def test_ties_are_spread_evenly():
    bins = bin_values(np.ones(1000), 51, (np.arange(1000) + .5)/1000)
    assert np.unique(bins, return_counts=True)[1].tolist() == [20]*50
    assert bin_values(np.array([3.]), 51, np.array([.999])) == 1
    assert bin_values(np.array([3.]), 51, np.array([0.])) == 50

@given(st.integers(0, 2**32 - 1), st.integers(1, 64), st.sampled_from([8, 30, 1200]), st.sampled_from([.5, 3, 1000]))
@few
def test_neither_order_nor_batches_nor_depth_matter(model, counts, seed, batch_size, max_length, factor):
    r = np.random.default_rng(seed)
    i, j = r.permutation(len(CELLS))[:r.integers(1, 41)], r.permutation(len(GENES))
    expected = embed_cells(model, counts, GENES, CELLS, max_length=max_length)[0]
    genes, cells = np.array(GENES)[j], np.array(CELLS)[i]
    options = dict(batch_size=batch_size, max_length=max_length)
    found = embed_cells(model, counts[i][:, j]*factor, genes, cells, **options)[0]
    np.testing.assert_allclose(found, expected[i], atol=3e-6)

def test_forms_of_the_matrix_are_one(model, counts):
    expected = embed_cells(model, counts, GENES, CELLS)[0]
    dense = counts.toarray()
    zeros = sparse.csr_matrix((
        np.r_[counts.data, 0, 0],
        np.r_[counts.indices, 7, 8],
        np.r_[counts.indptr[:-1], counts.nnz + 2]), shape=counts.shape)
    entries = np.repeat(counts.data/2, 2), np.repeat(counts.indices, 2), counts.indptr*2
    halves = sparse.csr_matrix(entries, shape=counts.shape)
    wide = sparse.hstack([counts, np.full((40, 1), 9.)]).tocsr()
    for X, genes in (
            (dense, GENES),
            (dense.astype(int), GENES),
            (zeros, GENES),
            (halves, GENES),
            (counts.tocsc(), GENES),
            (wide, [*GENES, 'unknown3'])):
        np.testing.assert_allclose(embed_cells(model, X, genes, CELLS)[0], expected, atol=3e-6)
    assert embed_cells(model, counts[:0], GENES, [])[0].shape == (0, D)

def test_draws_belong_to_the_seed_and_the_name_of_a_cell(model, counts):
    rows = counts[[35]*4]
    X, report = embed_cells(model, rows, GENES, ['a', 'b', 'a', 'c'], max_length=10)
    assert report['n_sampled'] == 4
    np.testing.assert_allclose(X[0], X[2], atol=3e-6)
    assert np.abs(X[0] - X[1]).max() > 1e-3 and np.abs(X[1] - X[3]).max() > 1e-3
    again = embed_cells(model, rows, GENES, ['a', 'b', 'a', 'c'], max_length=10, seed=1)[0]
    assert np.abs(again - X).max(1).min() > 1e-3

def test_the_limit_counts_the_token_of_the_cell(model, counts):
    row, n = counts[[25]], int((counts[25].toarray()[0, 1:-1] > 0).sum())
    whole = embed_cells(model, row, GENES, ['a'])[0]
    for max_length, n_sampled in ((n + 1, 0), (n, 1), (n - 1, 1)):
        X, report = embed_cells(model, row, GENES, ['a'], max_length=max_length)
        assert report['n_sampled'] == n_sampled and np.allclose(X, whole, atol=2e-6) == (not n_sampled)
        np.testing.assert_allclose(X[0], reference(weights(), row.toarray()[0], 'a', max_length=max_length), atol=2e-6)

def test_cells_without_a_known_gene_are_the_token_alone(model, counts):
    X, report = embed_cells(model, counts[[3, 4, 30]], GENES, ['x', 'y', 'z'])
    alone = model(torch.tensor([[VOCAB['<cls>']]]), torch.tensor([[-2.]])).numpy()[0]
    assert report['n_empty'] == 2
    np.testing.assert_allclose(X[:2], [alone, alone], atol=2e-6)
    assert np.abs(X[2] - alone).max() > .01

def test_names_of_special_tokens_are_no_genes(model, counts):
    genes = ['<cls>', *GENES[1:-1], '<pad>']
    X, report = embed_cells(model, counts, genes, CELLS)
    assert report['missing'] == ['<cls>', '<pad>']
    np.testing.assert_allclose(X, embed_cells(model, counts, GENES, CELLS)[0], atol=2e-6)

def test_a_screen_in_a_file_is_read_block_by_block(model, counts, tmp_path, monkeypatch):
    from perturbench.data import blocks as room
    obs = pd.DataFrame({'what': ['control', 'GENE1']*20}, index=CELLS)
    logs = counts.log1p()
    a = ad.AnnData(logs, obs=obs, var=pd.DataFrame(index=GENES), layers={'counts': counts})
    Screen(a, 'what').write(tmp_path/'s.h5ad')
    screen, most, read = read_screen(tmp_path/'s.h5ad', backed=True), [], room.Blocks._read
    expected = embed_cells(model, counts, GENES, CELLS)[0]
    monkeypatch.setattr(room, 'BLOCK', counts.nnz//4)
    monkeypatch.setattr(room.Blocks, '_read', lambda self, a, b: most.append(b - a) or read(self, a, b))
    embed_screen(screen, model, batch_size=3)
    assert len(most) >= 4 and max(most) <= 10
    np.testing.assert_allclose(screen.adata.obsm['X_scGPT'], expected, atol=3e-6)
    screen.write(tmp_path/'s.h5ad')
    again = read_screen(tmp_path/'s.h5ad', backed=True)
    assert np.array_equal(again.adata.obsm['X_scGPT'], screen.adata.obsm['X_scGPT'])
    part = again.subset_genes(GENES[:30])
    assert np.array_equal(part.adata.obsm['X_scGPT'], screen.adata.obsm['X_scGPT'])
    with pytest.raises(InputError, match='embed the whole screen'): embed_screen(part, model)

def test_into_a_screen_and_its_file(model, counts, tmp_path):
    obs = pd.DataFrame({'what': ['control', 'GENE1']*20}, index=CELLS)
    logs = (counts*1.7).log1p()
    screen = Screen(ad.AnnData(logs, obs=obs, var=pd.DataFrame(index=GENES), layers={'counts': counts}), 'what')
    report = embed_screen(screen, model, batch_size=5)
    assert report['n_missing'] == 2 and screen.adata.obsm['X_scGPT'].dtype == np.float32
    screen.write(tmp_path/'s.h5ad')
    assert np.array_equal(read_screen(tmp_path/'s.h5ad').adata.obsm['X_scGPT'], screen.adata.obsm['X_scGPT'])
    bare = Screen(ad.AnnData(logs, obs=obs, var=pd.DataFrame(index=GENES)), 'what')
    embed_screen(bare, model, key='again')
    np.testing.assert_allclose(bare.adata.obsm['again'], screen.adata.obsm['X_scGPT'], atol=3e-6)

class Malicious:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

@pytest.mark.parametrize('save', [torch.save, lambda o, p: torch.save(o, p, _use_new_zipfile_serialization=False),
                                  lambda o, p: p.write_bytes(pickle.dumps(o))])
@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: weights() | {'decoder.fc.0.weight': o}])
def test_a_pickle_with_code_is_refused_and_never_runs(tmp_path, save, wrap):
    write(tmp_path/'c')
    save(wrap(Malicious(tmp_path/'ran')), tmp_path/'c'/'best_model.pt')
    with pytest.raises(InputError, match='run code.*Download it again'): read_scgpt(tmp_path/'c')
    assert not (tmp_path/'ran').exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path/'ran')))
    assert (tmp_path/'ran').exists()

def without(part): return {k: v for k, v in weights().items() if part not in k}

@pytest.mark.parametrize('match, change', [
    ('nheads is None', dict(args={k: v for k, v in ARGS.items() if k != 'nheads'})),
    ('embsize 32 cannot be divided by nheads 5', dict(args=ARGS | dict(nheads=5))),
    ('nlayers is True', dict(args=ARGS | dict(nlayers=True))),
    ('n_bins is 51.0', dict(args=ARGS | dict(n_bins=51.))),
    ('pad_value is nan', dict(args=ARGS | dict(pad_value=float('nan')))),
    ('pad_token is 3', dict(args=ARGS | dict(pad_token=3))),
    ("input_emb_style is 'category'", dict(args=ARGS | dict(input_emb_style='category'))),
    ('pre_norm', dict(args=ARGS | dict(pre_norm=True))),
    ('cannot be read as JSON', dict(args='{"embsize": ')),
    ('holds no table', dict(args='[1, 2]')),
    ('holds no table', dict(vocab=SYMBOLS)),
    ('from 0 without gaps', dict(vocab={g: i + 1 for g, i in VOCAB.items()})),
    ('from 0 without gaps', dict(vocab={g: str(i) for g, i in VOCAB.items()})),
    ('missing: value_encoder.norm.bias', dict(state=without('value_encoder.norm.bias'))),
    ('missing: transformer_encoder.layers.1.self_attn.in_proj_weight, .* and 9 more', dict(state=without('layers.1.'))),
    ('not known: transformer_encoder.layers.1.self_attn.in_proj_weight, .* and 9 more',
     dict(args=ARGS | dict(nlayers=1))),
    (r'linear1.weight \(\(48, 32\) instead of \(64, 32\)\)', dict(args=ARGS | dict(d_hid=64))),
    ('not known: value_encoder.extra', dict(state=weights() | {'value_encoder.extra': torch.zeros(2)})),
    ('not finite: encoder.embedding.weight, ', dict(state={k: v*float('inf') for k, v in weights().items()})),
    ('not a table of tensors', dict(state=torch.zeros(3))),
    ('not a table of tensors', dict(state={'model': weights()}))])
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, match, change):
    with pytest.raises(InputError, match=match): read_scgpt(write(tmp_path, **change))

def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match='has no args.json, vocab.json, best_model.pt; give the folder'):
        read_scgpt(tmp_path/'nothing')
    write(tmp_path)
    with pytest.raises(InputError, match='has no'): read_scgpt(tmp_path/'args.json')
    (tmp_path/'best_model.pt').write_bytes((tmp_path/'best_model.pt').read_bytes()[:1000])
    with pytest.raises(InputError, match='damaged'): read_scgpt(tmp_path)
    (tmp_path/'args.json').write_bytes(b'\xff\xfe')
    with pytest.raises(InputError, match='JSON'): read_scgpt(tmp_path)

@pytest.mark.parametrize('match, change', [
    ('gene symbols', dict(genes=[f'ENSG{i:011}' for i in range(59)])),
    ("'GENE_31' is not one of them; did you mean 'GENE31'", dict(genes=[f'GENE_{i}' for i in range(31, 90)])),
    ('more than once', dict(genes=['GENE1']*59)),
    ('39 cells and 59 genes', dict(cells=CELLS[1:])),
    ('40 cells and 58 genes', dict(genes=GENES[1:])),
    ('batch_size', dict(batch_size=0)),
    ('max_length', dict(max_length=1)),
    ("'abacus' cannot be used", dict(device='abacus')),
    *([] if torch.cuda.is_available() else [("'cuda' cannot be used", dict(device='cuda'))]),
    ('negative', dict(sign=-1)),
    ('NaN', dict(sign=np.nan)),
])
def test_cells_that_cannot_be_embedded_are_refused(model, counts, match, change):
    change = dict(genes=GENES, cells=CELLS, sign=1) | change
    with pytest.raises(InputError, match=match): embed_cells(model, counts*change.pop('sign'), **change)
