"Side information: graphs against sets and loops, fingerprints against other ways to make them, tables and faults."
import gzip, sys
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import sparse
import perturbench.data.features as features
from perturbench.core import InputError
from perturbench.data.features import (DOMAINS, Features, annotation_graph, cell_embedding, coexpression_graph,
                                       fingerprints, interaction_graph, perturbation_features, read_annotations,
                                       read_smiles, read_table, table_features, target_names)
from perturbench.data.h5ad import read_h5ad
from perturbench.data.screen import Screen

few = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
NAMES = ['TP53', 'TGF-β', 'a/b', 'c_d', 'e, f', '"q"', 'ген', '药 1', 'nan', 'NA', '0', "it's", 'x+y', 'C[N+](C)C']
TERMS = ['t1', 't2', 't3', 't 4', 'NA']
pairs_of = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(TERMS)), min_size=1, max_size=40)

def top(weights, name, n_neighbours, min_weight):
    "The strongest neighbours of `name` among {(name, other): weight}, the first by name where weights are equal."
    near = [(-w, b) for (a, b), w in weights.items() if a == name and b != a and w > min_weight]
    return [(b, -w) for w, b in sorted(near)[:n_neighbours]]

def check(graph, weights, n_neighbours, min_weight, tol=1e-7):
    "Every row of `graph` is what `top` says."
    of_name = {name: {} for name in graph.names}
    for (a, b), w in weights.items(): of_name.setdefault(a, {})[a, b] = w
    for name in graph.names:
        expected, got = top(of_name[name], name, n_neighbours, min_weight), graph.neighbours(name)
        assert list(got.index) == [b for b, _ in expected]
        np.testing.assert_allclose(got.to_numpy(), [w for _, w in expected], atol=tol)

def same(a, b):
    "Whether two graphs have the same edges by name, whatever the order of their names."
    return set(a.names) == set(b.names) and all(a.neighbours(o).equals(b.neighbours(o)) for o in a.names)

# Graphs

@few
@given(pairs_of, st.integers(1, 6), st.sampled_from([0., .3, .5]), st.randoms(use_true_random=False))
def test_annotation_graph_is_the_jaccard_index_of_sets(pairs, n, least, r):
    sets = {}
    for g, t in pairs: sets.setdefault(g, set()).add(t)
    genes = r.sample(NAMES, r.randint(1, len(NAMES)))
    if not set(genes) & set(sets): genes.append(next(iter(sets)))
    table = pd.DataFrame(pairs, columns=['gene', 'term'])
    graph = annotation_graph(table, genes, n, least)
    pairs = [(a, b, sets.get(a, set()), sets.get(b, set())) for a in genes for b in genes]
    jaccard = {(a, b): len(A & B)/len(A | B) for a, b, A, B in pairs if A | B}
    check(graph, jaccard, n, least)
    assert graph.names == genes and graph.missing == [g for g in genes if g not in sets]
    twice = pd.concat([table, table.sample(frac=.5, random_state=0)]).sample(frac=1, random_state=1)
    assert same(graph, annotation_graph(twice, r.sample(genes, len(genes)), n, least))
    whole = annotation_graph(table, genes, len(genes)).edges
    assert (whole != whole.T).nnz == 0 and whole.diagonal().sum() == 0

@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([0., .2, .4]))
def test_coexpression_graph_is_numpys_correlation(seed, n, least):
    r = np.random.default_rng(seed)
    genes = [str(o) for o in r.permutation(NAMES)[:r.integers(2, len(NAMES))]]
    X = np.log1p(r.poisson(r.gamma(1, 1, (r.integers(3, 60), 1))*r.gamma(1, 1, len(genes)))).astype(np.float32)
    X[:, 0] = r.choice([0, .7])
    X[:, -1] = X[:, 1]
    with np.errstate(all='ignore'): R = np.abs(np.corrcoef(X.astype(float).T)).round(9)
    R[~(X.std(0) > 1e-6)], R[:, ~(X.std(0) > 1e-6)] = 0, 0
    graph = coexpression_graph([X, sparse.csr_matrix(X), sparse.csc_array(X)][seed % 3], genes, n, least)
    check(graph, {(a, b): R[i, j] for i, a in enumerate(genes) for j, b in enumerate(genes)}, n, least)
    assert len(graph.neighbours(genes[0])) == 0
    states = r.choice(['u', 'v'], len(X))
    shift = np.where(states == 'u', 2, 0)[:, None]*r.integers(0, 2, len(genes))
    plain = coexpression_graph(X.astype(int), genes, n, least, states)
    assert same(plain, coexpression_graph(X.astype(int) + shift, genes, n, least, states))
    columns = r.permutation(len(genes))
    assert same(graph, coexpression_graph(X[r.permutation(len(X))][:, columns], [genes[i] for i in columns], n, least))

interactions = st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 9))

@few
@given(st.lists(interactions, min_size=1, max_size=40), st.booleans())
def test_interaction_graph_goes_both_ways_and_keeps_the_largest_weight(rows, weighted):
    table = pd.DataFrame(rows, columns=['one', 'other', 'score'])
    genes = [rows[0][0], *(o for o in NAMES[:8] if o != rows[0][0])]
    expected = {}
    for a, b, w in rows:
        if a == b or a not in genes or b not in genes or (weighted and not w): continue
        for pair in ((a, b), (b, a)): expected[pair] = max(expected.get(pair, 0), w if weighted else 1)
    graph = interaction_graph(table, genes, ('one', 'other'), 'score' if weighted else None)
    check(graph, expected, len(genes), 0)
    assert graph.missing == [g for g in genes if g not in {o for a, b, _ in rows for o in (a, b)}]

def test_blocks_do_not_change_a_graph(monkeypatch):
    r = np.random.default_rng(0)
    genes = [f'g{i}' for i in range(53)]
    table = pd.DataFrame({'gene': r.choice(genes, 400), 'term': r.choice([f't{i}' for i in range(30)], 400)})
    X = sparse.random(40, 53, .4, 'csr', random_state=0)
    one = annotation_graph(table, genes, 5), coexpression_graph(X, genes, 5, .1)
    monkeypatch.setattr(features, '_BLOCK', 4*53)
    for a, b in zip(one, (annotation_graph(table, genes, 5), coexpression_graph(X, genes, 5, .1))):
        assert (a.edges != b.edges).nnz == 0

def test_training_controls_of_a_task(task):
    cells = task.controls('train')
    s = cells.store
    X = sparse.csr_matrix((s.values, s.indices, s.indptr), (s.n_cells, s.n_genes))[cells.rows]
    states = s.design.state[cells.codes]
    graph = coexpression_graph(X, task.genes, 5, .1, states)
    D = s.dense(cells.rows).numpy().astype(float)
    for o in np.unique(states): D[states == o] -= D[states == o].mean(0)
    with np.errstate(all='ignore'): R = np.nan_to_num(np.abs(np.corrcoef(D.T))).round(9)
    check(graph, {(a, b): R[i, j] for i, a in enumerate(task.genes) for j, b in enumerate(task.genes)}, 5, .1, 1e-6)

def test_a_gene_that_varies_by_rounding_only_has_no_edge():
    r = np.random.default_rng(0)
    X = np.stack([np.full(500, .1), .1 + 1e-9*r.normal(size=500), r.normal(size=500)], 1)
    assert coexpression_graph(sparse.csr_matrix(X), list('abc'), 2, 0.).edges.nnz == 0

def test_adjacency_averages_over_neighbours_and_is_saved_without_pickle(tmp_path):
    graph = annotation_graph(pd.DataFrame({'gene': list('aabbc'), 'term': list('12123')}), list('abcd'))
    A, bare = graph.adjacency(), graph.adjacency(self_loops=False)
    np.testing.assert_allclose(A.to_dense(), [[.5, .5, 0, 0], [.5, .5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(bare.to_dense(), [[0, 1, 0, 0], [1, 0, 0, 0], [0]*4, [0]*4])
    h = torch.randn(4, 3, requires_grad=True)
    torch.sparse.mm(A, h).sum().backward()
    np.testing.assert_allclose(h.grad, A.to_dense().sum(0)[:, None].expand(4, 3))
    torch.save({'features': {'graph': A}}, tmp_path/'a.pt')
    assert torch.equal(torch.load(tmp_path/'a.pt', weights_only=True)['features']['graph'].to_dense(), A.to_dense())
    one = annotation_graph(pd.DataFrame({'gene': ['a'], 'term': ['1']}), ['a'])
    assert one.edges.nnz == 0 and one.adjacency().to_dense().item() == 1

# Annotation files

def gaf_line(gene, term, qualifier='involved_in', evidence='IDA', aspect='P'):
    return '\t'.join([
        'UniProtKB', 'P1', gene, qualifier, term, 'PMID:1', evidence, '', aspect, 'a "name', 'x|y', 'protein',
        'taxon:9606', '20260101', 'me', '', ''])

def test_gaf_and_table_say_the_same(tmp_path):
    lines = [
        '!gaf-version: 2.2',
        '! a\tb',
        gaf_line('A', 'GO:1'),
        gaf_line('A', 'GO:1', evidence='IEA'),
        gaf_line('NA', 'GO:2', aspect='F'),
        gaf_line('B', 'GO:3', aspect='C'),
        gaf_line('B', 'GO:1', 'NOT|involved_in'),
        gaf_line('B', 'GO:4', 'NOT'),
        gaf_line('C', 'GO:0008150', evidence='ND'),
        gaf_line('C', 'GO:0003674', evidence='IBA')]
    rows = [
        ('GO:1', 'biological_process', 'A|A'),
        ('GO:2', 'molecular_function', 'NA'),
        ('GO:3', 'cellular_component', 'B'),
        ('GO:0008150', 'biological_process', 'C|A')]
    (tmp_path/'a.gaf').write_text('\n'.join(lines) + '\n')
    (tmp_path/'bare.gaf').write_text('\n'.join(lines[2:]) + '\n')
    with gzip.open(tmp_path/'a.gaf.gz', 'wt') as f: f.write('\r\n'.join(lines))
    pd.DataFrame(rows, columns=['go_id', 'go_domain', 'gene_symbols']).to_csv(tmp_path/'a.tsv', sep='\t', index=False)
    for name in ('a.gaf', 'bare.gaf', 'a.gaf.gz', 'a.tsv'):
        assert read_annotations(tmp_path/name).values.tolist() == [['A', 'GO:1'], ['B', 'GO:3'], ['NA', 'GO:2']], name
        for domain, gene in zip(DOMAINS.values(), ('A', 'NA', 'B')):
            assert list(read_annotations(tmp_path/name, domain).gene) == [gene]
    (tmp_path/'empty.gaf').write_text('!gaf-version: 2.2\n' + gaf_line('A', 'GO:0008150', evidence='ND') + '\n')
    with pytest.raises(InputError, match='no annotation of the domain'): read_annotations(tmp_path/'empty.gaf')

# Tables and features

def test_names_are_read_verbatim_in_every_format(tmp_path):
    values = np.arange(len(NAMES)*2).reshape(-1, 2)/7
    table = pd.DataFrame(values, columns=['size', 'pull'], index=NAMES)
    table.to_csv(tmp_path/'a.csv')
    table.to_csv(tmp_path/'a.tsv', sep='\t', index_label='gene')
    table.to_csv(tmp_path/'a.csv.gz')
    table.to_csv(tmp_path/'semicolon.csv', sep=';', index_label='gene')
    table.to_parquet(tmp_path/'a.parquet'), table.rename_axis('gene').reset_index().to_parquet(tmp_path/'b.parquet')
    lines = (tmp_path/'a.tsv').read_text(encoding='utf-8').splitlines(keepends=True)
    (tmp_path/'r.tsv').write_text(''.join(l.removeprefix('gene\t') for l in lines), encoding='utf-8')
    for source in [table, table.reset_index(), *sorted(tmp_path.iterdir())]:
        f = table_features(source, NAMES[::-1])
        np.testing.assert_allclose(f.values, values[::-1], rtol=1e-6, err_msg=str(source))
        assert f.values.dtype == np.float32 and f.missing == [] and f.known.all()

@few
@given(st.permutations(NAMES), st.integers(1, len(NAMES) - 1), st.randoms(use_true_random=False))
def test_missing_rows_are_the_mean_of_the_others_and_are_named(names, n, r):
    table = pd.DataFrame(np.random.default_rng(n).normal(size=(n, 3)), index=names[:n])
    asked = r.sample(names[:n], r.randint(1, n)) + r.sample(names[n:], r.randint(0, len(NAMES) - n))
    r.shuffle(asked)
    f = table_features(table.sample(frac=1, random_state=n), asked)
    present = [o for o in asked if o in table.index]
    np.testing.assert_allclose(f.values[f.known], table.loc[present], rtol=1e-6)
    mean = np.tile(table.loc[present].mean(), (len(asked) - len(present), 1))
    np.testing.assert_allclose(f.values[~f.known], mean, rtol=1e-4, atol=1e-6)
    assert f.missing == [o for o in asked if o not in table.index]
    assert f'{len(present)} of {len(asked)} names found' in repr(f)
    assert not f.missing or f'{len(f.missing)} missing ({f.missing[0]}' in repr(f)

def small_screen(names=('A', 'A+B', 'guide'), sep='+', **options):
    obs = pd.DataFrame({'what': ['control', *names]}, index=[f'c{i}' for i in range(len(names) + 1)])
    screen = ad.AnnData(np.full((len(obs), 1), .5, np.float32), obs=obs, var=pd.DataFrame(index=['A']), **options)
    return Screen(screen, 'what', sep=sep, targets={'guide': ['C', 'D']})

def test_perturbation_features_are_sums_and_means_over_targets():
    screen = small_screen()
    targets = target_names(screen, ['A', 'B', 'A+B', 'A+guide', 'guide', 'control', 'A+control'])
    assert targets == {
        'A': ['A'],
        'B': ['B'],
        'A+B': ['A', 'B'],
        'A+guide': ['A', 'C', 'D'],
        'guide': ['C', 'D'],
        'control': [],
        'A+control': ['A']}
    f = table_features(pd.DataFrame({'x': [1., 2, 6], 'y': [0., 1, 5]}, index=list('ABC')), list('ABCDE'))
    total, mean = (dict(zip(targets, perturbation_features(f, targets, o).values.tolist())) for o in ('sum', 'mean'))
    assert total == {
        'A': [1, 0],
        'B': [2, 1],
        'A+B': [3, 1],
        'A+guide': [10, 7],
        'guide': [9, 7],
        'control': [0, 0],
        'A+control': [1, 0]}
    assert mean['A+B'] == [1.5, .5] and mean['guide'] == [4.5, 3.5] and mean['control'] == [0, 0]
    some = perturbation_features(f, {'D+E': ['D', 'E'], 'guide': ['C', 'D'], 'control': []})
    assert some.missing == ['D+E']
    assert '1 with a target missing: guide' in some.source
    assert list(some.known) == [False, True, True]
    with pytest.raises(InputError, match=r'1 target genes have no features \(Z\)'):
        perturbation_features(f, {'Z': ['Z']})
    assert list(target_names(screen)) == screen.perturbations

# Drugs

SAME = [
    ('CC(=O)Oc1ccccc1C(=O)O', 'OC(=O)C1=CC=CC=C1OC(C)=O'),
    ('CN1C=NC2=C1C(=O)N(C(=O)N2C)C', 'Cn1cnc2c1c(=O)n(C)c(=O)n2C'),
    ('C[N+](C)(C)CCO.[Cl-]', '[Cl-].OCC[N+](C)(C)C'),
    ('C[C@H](N)C(=O)O', 'N[C@@H](C)C(O)=O')]

@pytest.mark.parametrize('options', [{}, dict(counts=True), dict(chirality=True), dict(radius=3, n_bits=64)])
def test_one_molecule_has_one_fingerprint_however_it_is_written(options):
    names = [str(i) for i in range(len(SAME))]
    a, b = (fingerprints(names, dict(zip(names, written)), **options) for written in zip(*SAME))
    np.testing.assert_array_equal(a.values, b.values)
    assert a.values.dtype == np.float32
    assert a.values.shape[1] == options.get('n_bits', 1024)
    assert len(np.unique(a.values, axis=0)) == len(SAME)

def test_fingerprints_against_rdkit_called_in_other_ways():
    from rdkit import Chem, rdBase
    from rdkit.Chem import AllChem, rdFingerprintGenerator
    smiles = [s for pair in SAME for s in pair[:1]]
    bits, counts = fingerprints(smiles).values, fingerprints(smiles, counts=True).values
    for s, b, c in zip(smiles, bits, counts):
        counter = rdFingerprintGenerator.GetMorganGenerator(radius=2)
        pieces = counter.GetSparseCountFingerprint(Chem.MolFromSmiles(s)).GetNonzeroElements()
        folded = np.zeros(1024)
        for piece, n in pieces.items(): folded[piece % 1024] += n
        np.testing.assert_array_equal(c, folded)
        with rdBase.BlockLogs(): old = AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(s), 2, 1024)
        assert set(np.flatnonzero(b)) == set(old.GetOnBits()) == set(np.flatnonzero(folded))

def test_mirror_images_are_alike_unless_chirality_is_asked_for():
    pair = {'left': 'C[C@H](N)C(=O)O', 'right': 'C[C@@H](N)C(=O)O'}
    assert 'alike: left = right' in repr(fingerprints(pair, pair))
    assert 'alike' not in repr(fingerprints(pair, pair, chirality=True))

def test_a_screen_of_smiles_needs_no_table():
    screen = small_screen(('C[N+](C)(C)CCO', 'CC(=O)[O-]', 'CCO'), sep=None)
    assert set(screen.perturbations) == {'C[N+](C)(C)CCO', 'CC(=O)[O-]', 'CCO'}
    assert fingerprints(screen.perturbations).missing == []

def test_smiles_that_cannot_be_read_are_all_named_and_rdkit_is_silent(capfd):
    bad = {
        'good': 'CCO',
        'ring': 'C1CC',
        'arom': 'c1cccc',
        'valence': 'C(C)(C)(C)(C)C',
        'words': 'not a molecule',
        'blank': ''}
    with pytest.raises(InputError) as e: fingerprints([*bad, 'absent'], bad)
    assert '5 SMILES cannot be read' in str(e.value)
    assert all(f'{o} ({bad[o]})' in str(e.value) for o in list(bad)[1:])
    assert 'good (' not in str(e.value)
    assert capfd.readouterr() == ('', '')
    assert fingerprints(['good', 'absent'], bad).missing == ['absent']  # only what is asked for is read

@pytest.mark.parametrize('module', ['rdkit', 'rdkit.Chem'])
def test_without_rdkit_one_message_says_what_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    if module == 'rdkit.Chem': monkeypatch.delattr('rdkit.Chem', raising=False)
    with pytest.raises(InputError, match=r"pip install 'perturbench\[chem\]'"): fingerprints(['CCO'])

def test_smiles_are_read_with_and_without_a_header(tmp_path):
    rows = [('β-drug, "new"', 'C[N+](C)C'), ('NA', 'CCO'), ('empty', ''), ('NA', 'CCO')]
    for i, header in enumerate([False, ['drug', 'smiles']]):
        pd.DataFrame(rows).to_csv(tmp_path/f'{i}.csv', index=False, header=header)
    for o in (
            read_smiles(tmp_path/'0.csv'),
            read_smiles(tmp_path/'1.csv', 'drug', 'smiles'),
            read_smiles(pd.DataFrame(rows))):
        assert o == dict(rows[:2])
    with pytest.raises(InputError, match='more than one SMILES for NA;'):
        read_smiles(pd.DataFrame([*rows, ('NA', 'CCC')]))
    with pytest.raises(InputError, match="no column 'smile'; did you mean 'smiles'"):
        read_smiles(tmp_path/'1.csv', 'drug', 'smile')

# Cells

def test_cell_embedding_takes_dense_finite_numbers_only():
    E = np.random.default_rng(0).normal(size=(4, 3))
    bad = E.copy(); bad[2, 1] = np.nan
    words = pd.DataFrame({'a': list('wxyz')}, index=[f'c{i}' for i in range(4)])
    screen = small_screen(obsm={
        'X_scgpt': E,
        'sparse': sparse.csr_matrix(E),
        'bad': bad,
        'words': words,
        'frame': words.assign(a=1.)})
    got = cell_embedding(screen, 'X_scgpt')
    assert got.dtype == np.float32; np.testing.assert_allclose(got, E, rtol=1e-6)
    assert cell_embedding(screen, 'frame').shape == (4, 1)
    for key, message in [
            ('X_scgtp', "did you mean 'X_scgpt'"),
            ('sparse', 'is sparse'),
            ('bad', 'in 1 cells'),
            ('words', 'no numbers')]:
        with pytest.raises(InputError, match=message): cell_embedding(screen, key)

# Faults

TABLE = pd.DataFrame({'gene': ['A', 'B', 'B'], 'term': ['1', '2', '3'], 'score': ['.5', 'high', '-1']})
FAULTS = {
    'twice': (lambda: annotation_graph(TABLE, ['A', 'B', 'A']), 'more than once: A'),
    'no name': (lambda: annotation_graph(TABLE, []), 'no name is asked for'),
    'other kind': (
        lambda: annotation_graph(TABLE, ['ENSG1', 'ENSG2']),
        r'none of the 2 names asked for \(ENSG1, ENSG2\).*such as A, B; give names of the same kind'),
    'no neighbours': (lambda: annotation_graph(TABLE, ['A'], 0), 'n_neighbours is 0; give at least 1'),
    'no term': (
        lambda: annotation_graph(TABLE.rename(columns={'term': 'terms'}), ['A']),
        "no column 'term'; did you mean 'terms'"),
    'one column': (lambda: interaction_graph(TABLE, ['A'], 'gene'), 'give two'),
    'weights': (lambda: interaction_graph(TABLE, ['A'], ('gene', 'term'), 'score'), "weight 'score' of 2 interactions"),
    'two cells': (lambda: coexpression_graph(np.eye(2), ['A', 'B']), 'needs 3 cells'),
    'columns': (lambda: coexpression_graph(np.eye(4), ['A', 'B']), '4 columns and 2 names'),
    'states': (lambda: coexpression_graph(np.eye(4), list('ABCD'), states=[1, 2]), '4 cells and states of 2;'),
    'no state': (
        lambda: coexpression_graph(np.eye(4), list('ABCD'), states=[1, 2, np.nan, 1]),
        '4 cells and states of 3;'),
    'infinite cells': (lambda: coexpression_graph(np.full((4, 2), np.inf), ['A', 'B']), 'NaN or infinite'),
    'two rows': (
        lambda: table_features(TABLE[['gene', 'term']].astype({'term': int}), ['A', 'B']),
        'more than one row for B'),
    'text': (lambda: table_features(TABLE, ['A']), 'holds text in term, score'),
    'infinite': (
        lambda: table_features(pd.DataFrame({'x': [1, np.inf]}, index=['A', 'B']), ['A', 'B']),
        'infinite values for B'),
    'no numbers': (lambda: table_features(TABLE[['gene']], ['A']), 'has 1 columns'),
    'reduce': (
        lambda: perturbation_features(Features(['A'], np.eye(1), [], ''), {}, 'average'),
        "'average' over targets is not known")}
@pytest.mark.parametrize('fault', FAULTS)
def test_faults_are_named_with_their_remedy(fault):
    call, message = FAULTS[fault]
    with pytest.raises(InputError, match=message): call()

def test_files_that_cannot_be_read(tmp_path):
    with gzip.open(tmp_path/'whole.gz', 'wt') as f: f.write('gene,x\n' + 'A,1\n'*9999)
    (tmp_path/'cut.csv.gz').write_bytes((tmp_path/'whole.gz').read_bytes()[:-20])
    (tmp_path/'empty.csv').write_text('')
    (tmp_path/'ragged.csv').write_text('gene,x\nA,1\nB,1,2,3\n')
    (tmp_path/'bytes.csv').write_bytes(bytes(range(128, 256))*9)
    (tmp_path/'a.parquet').write_text('gene,x\n')
    (tmp_path/'folder.csv').mkdir()
    for name in (
            'cut.csv.gz', 'empty.csv', 'ragged.csv', 'bytes.csv', 'a.parquet', 'folder.csv', 'absent.csv',
            'absent.parquet'):
        for read in (
                read_table,
                read_annotations,
                read_smiles,
                lambda o: table_features(o, ['A']),
                lambda o: interaction_graph(o, ['A'], ('a', 'b'))):
            with pytest.raises(InputError, match=name.replace('.', r'\.')): read(tmp_path/name)

# Real side information

def test_real_annotations_and_interactions(real):
    annotations = read_annotations(real/'side'/'GO_annotations-9606-direct-allev_v1.0.tsv')
    sets = annotations.groupby('gene').term.agg(set)
    assert not set(features._ROOTS) & set(annotations.term)
    genes = sorted(set(sets.sample(800, random_state=0).index) | {'HDAC1', 'HDAC2', 'KLF1'}) + ['NOT_A_GENE']
    graph = annotation_graph(annotations, genes)
    assert graph.missing == ['NOT_A_GENE'] and graph.neighbours('HDAC1').index[0] == 'HDAC2'
    for name in ('HDAC1', 'KLF1', *genes[:40]):
        jaccard = {(name, o): len(sets[name] & sets[o])/len(sets[name] | sets[o]) for o in genes[:-1] if o != name}
        near = graph.neighbours(name)
        assert [(o, pytest.approx(w, abs=1e-7)) for o, w in near.items()] == top(jaccard, name, 20, 0)
    path = real/'side'/'hetio_protein-interactions.txt.gz'
    whole = interaction_graph(path, genes, ('source_symbol', 'target_symbol'))
    rows = read_table(path)
    pairs = {frozenset(o) for o in zip(rows.source_symbol, rows.target_symbol)}
    assert whole.edges.nnz == 2*sum(len(o) == 2 and o <= set(genes) for o in pairs)
    assert (whole.edges != whole.edges.T).nnz == 0

def test_real_drugs(real):
    smiles = read_smiles(real/'side'/'trapnell_drugs_smiles.csv')
    f = fingerprints(smiles, smiles)
    assert len(smiles) == 188 and f.missing == [] and (f.values.sum(1) > 0).all()
    assert 'alike: Ruxolitinib = S-Ruxolitinib' in repr(f)
    assert len(np.unique(fingerprints(smiles, smiles, chirality=True).values, axis=0)) == 188

def test_real_controls(real):
    x = read_h5ad(real/'norman_mcfaline.h5ad')
    X = sparse.csr_matrix(x[x.obs.condition.astype(str) == 'control'].X)
    graph = coexpression_graph(X, x.var_names, 20, .1)
    with np.errstate(all='ignore'): R = np.nan_to_num(np.abs(np.corrcoef(X.toarray().astype(float).T))).round(9)
    for name in list(x.var_names[::25]):
        i = list(x.var_names).index(name)
        expected = top({(name, o): R[i, j] for j, o in enumerate(x.var_names)}, name, 20, .1)
        assert [(o, pytest.approx(w, abs=1e-6)) for o, w in graph.neighbours(name).items()] == expected
