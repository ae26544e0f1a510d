"Each published screen, from a simulated file in its source's layout, through a local server and `perturbench fetch`."
import gzip, hashlib, http.server, json, multiprocessing, os, pickle, signal, sys, tarfile, threading
from functools import partial
from pathlib import Path
import anndata as ad, numpy as np, pandas as pd, pytest
from scipy import sparse
import rfiles as R
from perturbench.cli import main
from perturbench.core import InputError, Lock, part_name
from perturbench.data import datasets as D, download
from perturbench.data.robjects import read_cds, read_seurat
from perturbench.data.screen import read_screen
from perturbench.splits.parts import PARTS
from perturbench.tasks import open_task

GENES = 60

def counts(n, seed=0): return sparse.csr_matrix(np.random.default_rng(seed).poisson(1.2, (n, GENES)).astype(np.float32))
def rows(n, **columns): return pd.DataFrame({k: [v]*n for k, v in columns.items()})
def table(parts, prefix='cell'):
    t = pd.concat(parts, ignore_index=True)
    return t.set_axis([f'{prefix}{i}' for i in range(len(t))])
def symbols(n=GENES): return [f'GENE{i}' for i in range(n)]

# What each source looks like: names of columns, index, type of the matrix, structure of the R object.

def norman19(site):
    "scPerturb: the pairs joined by `_`; a CSC matrix; guides and lanes in obs."
    names = [
        'control', 'KLF1', 'BAK1', 'CEBPE', 'SET', 'KLF1_BAK1', 'SET_KLF1', 'CEBPE_BAK1', 'SET_CEBPE', 'KLF1_CEBPE']
    same = dict(
        read_count=1., UMI_count=2., coverage=3., good_coverage=True, number_of_cells=1, tissue_type='cell_line',
        cell_line='K562', cancer=True, disease='chronic myelogenous leukemia', perturbation_type='CRISPR',
        celltype='lymphoblasts', organism='human', ngenes=9, ncounts=9., percent_mito=.1, percent_ribo=.1)
    obs = table([
        rows(12, guide_id=f'{p}__x', gemgroup=i % 3, perturbation=p, nperts=p.count('_') + 1, **same)
        for i, p in enumerate(names)])
    obs['perturbation'] = obs.perturbation.astype('category')
    var = pd.DataFrame(
        {'ensemble_id': [f'ENSG{i:011d}' for i in range(GENES)], 'ncounts': 1., 'ncells': 1},
        index=pd.Index(symbols(), name='gene_symbol'))
    ad.AnnData(counts(len(obs)).tocsc(), obs=obs, var=var).write_h5ad(site/'NormanWeissman2019_filtered.h5ad')

def srivatsan20(site):
    "scPerturb: four doses, a mouse line, cells without a drug, Ensembl ids in var, symbols that repeat in the index."
    drugs = [
        'control', '(+)-JQ1', 'ENMD-2076 L-(+)-Tartaric acid', 'Quisinostat', 'Belinostat, (PXD101)',
        'Glesatinib?(MGCD265)', 'A_drug/α']
    same = dict(dose_unit='nM', replicate='rep1', ncounts=9., ngenes=3, nperts=1, **{'chembl-ID': 'x'})
    named = [
        rows(4, cell_line=l, perturbation=p, dose_value=d if p != 'control' else 0., **same)
        for l in ['A549', 'K562', 'MCF7', 'NIH3T3'] for p in drugs for d in (10., 100., 1000., 10000.)]
    no_drug = rows(5, cell_line='A549', perturbation=None, dose_value=10000.)
    no_line = rows(3, cell_line=None, perturbation='control', dose_value=0.)
    obs = table(named + [no_drug, no_line])
    ids = [f'ENSG{i:011d}' for i in range(GENES)]
    ids[5], ids[-4:] = ids[4], [f'ENSMUSG{i:011d}' for i in range(4)]
    var = pd.DataFrame({'ensembl_id': ids, 'ncounts': 1., 'ncells': 1}, index=[*symbols(GENES - 1), 'GENE7'])
    ad.AnnData(counts(len(obs)), obs=obs, var=var).write_h5ad(site/'SrivatsanTrapnell2020_sciplex3.h5ad')

def frangieh21(site):
    "scPerturb: the treatment is `perturbation_2`; a dense matrix."
    obs = table([
        rows(5, perturbation=p, perturbation_2=t, sgRNA=f'{p}_1', celltype='melanocytes', ngenes=3, ncounts=9.)
        for p in ['control', 'B2M', 'CD58', 'HLA-A', 'JAK1', 'IFNGR1'] for t in ['Co-culture', 'Control', 'IFNγ']])
    screen = ad.AnnData(counts(len(obs)).toarray(), obs=obs, var=pd.DataFrame(index=symbols()))
    screen.write_h5ad(site/'FrangiehIzar2021_RNA.h5ad')

def jiang24(site):
    "Five Seurat objects; cell names repeat, knock-downs differ; one is of version 5, one has more genes."
    same = {
        'orig.ident': 'x', 'nCount_RNA': 9., 'nFeature_RNA': 3, 'sample': 's', 'percent.mito': .1, 'Batch_info': 'b1'}
    lines = ['A549', 'BXPC3', 'HAP1', 'HT29', 'K562', 'MCF7']
    for i, c in enumerate(D.CYTOKINES):
        obs = table([
            rows(5, cell_type=l, guide=f'{g}_g1', gene=g, **same)
            for g in ['NT', 'STAT1', 'JAK1', f'ONLY{c}'] for l in lines])
        obs['gene'] = obs.gene.astype('category').array
        names, X = symbols(), counts(len(obs), i)
        if c == 'INS': names, X = names + ['EXTRA'], sparse.hstack([X, X[:, :1]]).tocsr()
        R.write_rds(site/f'Seurat_object_{c}_Perturb_seq.rds', R.seurat(X, names, obs, 5 if c == 'TGFB' else 4))

def mcfalinefigueroa23(site):
    "A cell_data_set, and a list of three with assays in an environment; compressed twice; some cells have no guide."
    guides = [
        (None, 14), ('NTC', 9), ('random', 4), ('EGFR', 21), ('NAGK', 20), ('BRAF', 19), ('EGFR,BRAF', 22), ('MET', 25)]
    same = {
        'cell': 'x', 'sample': 's', 'Size_Factor': 1., 'n.umi': 9., 'PCR_plate': 'P1', 'dose': 1., 'guide_number': 1.}
    def cells(treatments, prefix):
        return table([
            rows(n, treatment=t, gRNA_id=f'{g}_1', gene_id=g, **same)
            for t in treatments for g, n in guides], prefix)
    ids = [f'ENSG{i:011d}.3' for i in range(GENES)]
    var = pd.DataFrame({'id': ids, 'gene_short_name': [None, 'GENE1', 'GENE1', *symbols()[3:]]})
    one, names = cells(['dmso', 'temozolomide', 'lapatinib'], 'a'), 'GSM7056148_sciPlexGxE_1_preprocessed_cds.rds.gz'
    R.write_rds(site/names, R.cds(counts(len(one), 9), var, one), times=2)
    more = {l: cells(['vehicle', 'lapatinib', 'nintedanib'], l) for l in ['A172', 'T98G', 'U87MG']}
    objects = {l: R.cds(counts(len(t), i), var, t, environment=True) for i, (l, t) in enumerate(more.items())}
    R.write_rds(site/'GSM7056149_sciPlexGxE_2_preprocessed_cds.list.RDS.gz', objects, times=2)

SMILES = [D.DMSO, 'CC(=O)OC[C@@H](O)C[N+](C)(C)C', 'O=[N+]([O-])c1ccccc1', 'CCO/C=C\\C', 'C1CC1_x,y']

def op3(site):
    "Log values in X and raw counts in a layer; SMILES as names."
    lines = ['B cells', 'Myeloid cells', 'NK cells', 'T cells']
    obs = table([
        rows(6, sm_name=f's{i}', SMILES=s, cell_type=l, donor_id=f'Donor {d}', plate_name=f'plate_{d}', well='A1',
             control=s == D.DMSO)
        for i, s in enumerate(SMILES) for l in lines for d in (1, 2)])
    X = counts(len(obs))
    screen = ad.AnnData(X.log1p(), obs=obs, var=pd.DataFrame(index=symbols()), layers={'counts': X})
    screen.write_h5ad(site/'GSE279945_sc_counts_processed.h5ad')

LAYOUTS = {f.__name__: f for f in (norman19, srivatsan20, frangieh21, jiang24, mcfalinefigueroa23, op3)}

class Handler(http.server.SimpleHTTPRequestHandler):
    """A server that knows ranges, and fails on purpose.

    `breaks` maps a name to the numbers of bytes after which it hangs up, one for each request."""
    breaks, asked = {}, []
    def log_message(self, *_): pass
    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file(): return self.send_error(404)
        data, start = path.read_bytes(), 0
        type(self).asked.append((path.name, self.headers.get('Range')))
        tag = '"' + hashlib.md5(data).hexdigest() + '"'
        if self.headers.get('Range') and self.headers.get('If-Range') == tag: start = int(self.headers['Range'][6:-1])
        self.send_response(206 if start else 200)
        self.send_header('ETag', tag)
        if path.suffix == '.html': self.send_header('Content-Type', 'text/html; charset=utf-8')
        if start: self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        stops = self.breaks.get(path.name, [])
        self.wfile.write(data[start:start + stops.pop(0)] if stops else data[start:])

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "A folder that a local server serves, with every source in it."
    folder = tmp_path_factory.mktemp('site')
    for f in LAYOUTS.values(): f(folder)
    return folder

@pytest.fixture
def server(site, monkeypatch):
    "The address of a server of `site`."
    monkeypatch.setattr(Handler, 'breaks', {})
    monkeypatch.setattr(Handler, 'asked', [])
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=site))
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{s.server_port}'
    s.shutdown()

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A data folder of its own for each test."
    monkeypatch.setenv('PERTURBENCH_DATA', str(tmp_path/'data'))
    monkeypatch.chdir(tmp_path)
    return tmp_path/'data'

def leftovers(folder): return [p for p in folder.rglob('.*') if p.name != '.lock']

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', LAYOUTS)
def test_fetch(name, server, home, capsys):
    assert main(['fetch', name, '--from', server]) == 0
    out = capsys.readouterr().out
    screen, record = read_screen(home/f'{name}.h5ad'), D.dataset(name)
    for k in ('perturbation_key', 'covariate_keys', 'control', 'sep'): assert getattr(screen, k) == getattr(record, k)
    for d in screen.card['differences']: assert d in out    # a miniature has other numbers, and they are said
    assert screen.card['found']['cells'] == screen.n_cells and 'counts' in screen.adata.layers
    assert not leftovers(home)
    assert main(['fetch', name]) == 0                       # again, without the server: nothing to do

def fetched(name, server): return D.fetch(name, place=server)

@pytest.mark.filterwarnings('ignore')
def test_norman19_pairs_are_combinations(server):
    s = fetched('norman19', server)
    assert s.perturbations == ['BAK1', 'CEBPE', 'KLF1', 'SET'] and (s.conditions.n_perturbations == 2).sum() == 5
    assert s.batch_key == 'gemgroup'
    assert s.card['found'] == dict(
        raw_cells=120, raw_genes=60, cells=120, controls=12, singles=4, combinations=5, states=1, genes=60)

@pytest.mark.filterwarnings('ignore')
def test_srivatsan20_keeps_the_highest_dose_and_human_genes(server):
    s = fetched('srivatsan20', server)
    assert s.perturbations == [
        'A_drug/α', 'Belinostat, (PXD101)', 'ENMD-2076', 'Glesatinib?(MGCD265)', 'JQ1', 'Quisinostat']
    assert s.n_cells == 3*(6*4 + 16) and s.n_genes == GENES - 5
    assert {(d['n'], d['why']) for d in s.card['dropped']} >= {
        (5, "no value in 'perturbation'"),
        (3, "no value in 'cell_line'"),
        (4, 'not a human Ensembl id'),
        (112, 'another cell line')}
    assert set(s.adata.obs.dose_value[s.adata.obs.condition != 'control']) == {10_000.}

@pytest.mark.filterwarnings('ignore')
def test_jiang24_is_all_five_files_with_names_made_unique(server):
    s = fetched('jiang24', server)
    assert s.n_cells == 5*120 and s.n_genes == GENES and len(s.states) == 30 and s.adata.obs_names.is_unique
    assert set(s.conditions.perturbation[s.conditions.treatment == 'INS']) == {'control', 'STAT1', 'JAK1', 'ONLYINS'}
    X = counts(120, 2)   # of INS, the third file
    assert abs(s.adata.layers['counts'][240:360] - X).nnz == 0

@pytest.mark.filterwarnings('ignore')
def test_mcfalinefigueroa23_controls_treatments_and_small_conditions(server):
    s = fetched('mcfalinefigueroa23', server)
    assert s.perturbations == ['BRAF', 'EGFR', 'MET', 'NAGK']   # a name that contains NA is no control
    # 19 cells in a state, but 38 where both experiments meet
    braf = s.conditions[s.conditions.perturbation == 'BRAF']
    assert list(zip(braf.cell_type, braf.treatment, braf.n_cells)) == [('a172', 'lapatinib', 38), ('a172', 'none', 38)]
    states = [(l, t) for l in ['a172', 't98g', 'u87mg'] for t in ['lapatinib', 'nintedanib', 'none']]
    assert sorted(s.states.itertuples(index=False, name=None)) == sorted(states)
    n = s.conditions.set_index(['cell_type', 'treatment', 'perturbation']).n_cells
    assert n['t98g', 'none', 'control'] == 27 and n['a172', 'none', 'control'] == 54
    assert n['a172', 'lapatinib', 'EGFR'] == 42
    assert s.n_genes == GENES - 2 and s.genes[0] == 'GENE1'

@pytest.mark.filterwarnings('ignore')
def test_op3_never_splits_smiles(server):
    s = fetched('op3', server)
    assert s.perturbations == sorted(SMILES[1:]) and s.sep is None and s.conditions.is_control.sum() == 4
    assert (s.batch_key, s.replicate_key) == ('plate_name', 'donor_id')

def test_r_objects_of_all_kinds_agree(tmp_path):
    X, obs = counts(7), table([rows(7, gene='A', umi=1.)])
    obs['f'] = pd.Categorical(['a', 'b', None, 'a', 'b', 'a', 'b'])
    for v in (4, 5):
        R.write_rds(tmp_path/'x.rds', R.seurat(X, symbols(), obs, v))
        a = read_seurat(tmp_path/'x.rds')
        assert abs(a.X - X).nnz == 0 and a.var_names.tolist() == symbols()
        assert a.obs.f.isna().tolist() == obs.f.isna().tolist()
        assert a.obs_names.tolist() == list(obs.index)
    for env in (False, True):
        R.write_rds(tmp_path/'y.rds', R.cds(X, pd.DataFrame({'id': symbols()}), obs, env))
        a = read_cds(tmp_path/'y.rds')['']
        assert abs(a.X - X).nnz == 0 and a.var_names.tolist() == symbols() and a.obs_names.tolist() == list(obs.index)

# Faults of servers, lines, disks and files.

def refused(capsys, *args, says=()):
    assert main([str(a) for a in args]) == 2
    err = capsys.readouterr().err
    assert err.startswith('perturbench: ') and 'Traceback' not in err
    for s in says: assert s in err, err
    return err

def test_a_download_that_breaks_goes_on_where_it_stopped(server, site, home):
    data = np.random.default_rng(0).bytes(5_000_000)
    (site/'big.bin').write_bytes(data)
    Handler.breaks['big.bin'] = [1_000_000, 500_000, 0, 2_000_000]
    with pytest.raises(InputError, match=r'the connection broke after 1,\d+,\d+ bytes .*goes on where it stopped'):
        download.fetch_file(f'{server}/big.bin', home, 'big.bin')
    assert not (home/'big.bin').exists()
    assert download.fetch_file(f'{server}/big.bin', home, 'big.bin').read_bytes() == data
    starts = [int(r[6:-1]) if r else 0 for _, r in Handler.asked]
    # nothing was asked for twice but the last pieces
    assert len(starts) == 5 and starts[0] == 0 and starts == sorted(starts) and starts[-1] > 3_000_000
    assert not leftovers(home)

def test_a_file_that_changed_between_two_parts_is_begun_anew(server, site, home):
    (site/'x.bin').write_bytes(b'a'*500_000)
    Handler.breaks['x.bin'] = [100_000, 0, 0]
    with pytest.raises(InputError, match='broke after'): download.fetch_file(f'{server}/x.bin', home, 'x.bin')
    (site/'x.bin').write_bytes(b'b'*400_000)
    assert download.fetch_file(f'{server}/x.bin', home, 'x.bin').read_bytes() == b'b'*400_000
    assert Handler.asked[-1][1] == 'bytes=65536-'

@pytest.mark.parametrize('what, says', [
    ('404', 'the server does not have it (404)'),
    ('html', 'a web page in place of the file'),
    ('gone', 'cannot be downloaded')])
def test_servers_that_answer_something_else(what, says, server, site, home, capsys):
    (site/'norman.html').write_text('<html>gone</html>')
    (site/what).mkdir(exist_ok=True)
    if what == 'html':
        (site/'html'/'NormanWeissman2019_filtered.h5ad').write_text('<html>please log in</html>')
        Handler.send_html = True
    place = {'404': f'{server}/404', 'html': f'{server}/html', 'gone': 'http://127.0.0.1:9'}[what]
    if what == 'html': says = 'cannot be read as h5ad'
    refused(capsys, 'fetch', 'norman19', '--from', place, says=[says])
    assert not list(home.glob('*.h5ad'))
    if what == '404':
        with pytest.raises(InputError, match='a web page in place of the file'):
            download.fetch_file(f'{server}/norman.html', home, 'x.h5ad')

def test_a_checksum_is_recorded_at_first_use_and_checked_ever_after(server, site, home):
    (site/'x.bin').write_bytes(b'first')
    path = download.fetch_file(f'{server}/x.bin', home, 'x.bin')
    assert json.loads((home/'checksums.json').read_text())['x.bin']['sha256'] == hashlib.sha256(b'first').hexdigest()
    path.write_bytes(b'spoiled')
    with pytest.raises(InputError, match='is not the file that was downloaded'):
        download.fetch_file(f'{server}/x.bin', home, 'x.bin')
    path.unlink()
    (site/'x.bin').write_bytes(b'second')
    with pytest.raises(InputError, match='its checksum is not that of the first download'):
        download.fetch_file(f'{server}/x.bin', home, 'x.bin')
    assert not path.exists()
    with pytest.raises(InputError, match='not the published one'):
        download.fetch_file(f'{server}/x.bin', home, 'y.bin', known='0'*64)

def test_what_a_finished_download_left_goes_unless_another_is_at_it(server, site, home):
    "A kill may come when the file is in its place and the folder in which it grew is still there."
    (site/'x.bin').write_bytes(b'whole')
    path = download.fetch_file(f'{server}/x.bin', home, 'x.bin')
    work = home/'.x.bin'
    work.mkdir()
    (work/'part').write_bytes(b'who')
    with Lock(work): assert download.fetch_file(f'{server}/x.bin', home, 'x.bin') == path and (work/'part').exists()
    assert download.fetch_file(f'{server}/x.bin', home, 'x.bin') == path and not work.exists()

def test_a_full_disk_keeps_what_has_arrived(server, site, home, monkeypatch):
    (site/'x.bin').write_bytes(os.urandom(3*download.BLOCK))
    real, n = open, []
    class Full:
        def __init__(self, f): self.f = f
        def __getattr__(self, k): return getattr(self.f, k)
        def __enter__(self): return self
        def __exit__(self, *a): self.f.close()
        def write(self, b):
            n.append(len(b))
            if len(n) == 17: raise OSError(28, 'No space left on device')
            return self.f.write(b)
    full = lambda p, m='r', *a, **k: Full(real(p, m)) if m == 'r+b' else real(p, m, *a, **k)
    monkeypatch.setattr(download, 'open', full, raising=False)
    with pytest.raises(InputError, match='the disk is full, and 1,048,576 bytes of it are kept'):
        download.fetch_file(f'{server}/x.bin', home, 'x.bin')
    assert download.fetch_file(f'{server}/x.bin', home, 'x.bin').read_bytes() == (site/'x.bin').read_bytes()
    assert Handler.asked[-1] == ('x.bin', f'bytes={download.BLOCK}-')

def test_two_fetches_at_once(server, home, capsys):
    with Lock(home/'raw'/'norman19'):
        refused(capsys, 'fetch', 'norman19', '--from', server, says=['another perturbench is writing to'])

@pytest.mark.parametrize('member, says', [
    ('../../out.csv', 'outside its folder'),
    ('/out.csv', 'outside its folder'),
    ('link', 'a link or a device')])
def test_an_archive_that_leaves_its_folder(member, says, tmp_path):
    (tmp_path/'a.csv').write_text('x')
    with tarfile.open(tmp_path/'s.tar.gz', 'w:gz') as tar:
        info = tarfile.TarInfo(member)
        if member == 'link': info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(info, None if member == 'link' else __import__('io').BytesIO())
    with pytest.raises(InputError, match=says): download.unpack(tmp_path/'s.tar.gz')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.csv', 's.tar.gz']

def test_r_files_of_another_class_and_other_files(tmp_path, capsys, home):
    cds = R.cds(counts(4), pd.DataFrame({'id': symbols()}), table([rows(4, a=1.)]))
    R.write_rds(tmp_path/'Seurat_object_IFNB_Perturb_seq.rds', cds)
    for c in D.CYTOKINES[1:]: (tmp_path/f'Seurat_object_{c}_Perturb_seq.rds').write_bytes(b'x')
    says = ["of the R class 'cell_data_set'; it has to be a Seurat object"]
    refused(capsys, 'fetch', 'jiang24', '--from', tmp_path, says=says)
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/executed',)
    (tmp_path/'NormanWeissman2019_filtered.h5ad').write_bytes(pickle.dumps(Evil()))
    refused(capsys, 'fetch', 'norman19', '--from', tmp_path, says=['cannot be read as h5ad'])
    (tmp_path/'Seurat_object_IFNB_Perturb_seq.rds').write_bytes(pickle.dumps(Evil()))
    refused(capsys, 'fetch', 'jiang24', '--from', tmp_path, says=['cannot be read as an R file'])
    assert not (tmp_path/'executed').exists() and not list(home.glob('*.h5ad'))

def test_rdata_is_an_extra(tmp_path, capsys, monkeypatch, site):
    monkeypatch.setitem(sys.modules, 'rdata.parser', None)
    refused(capsys, 'fetch', 'jiang24', '--from', site, says=["pip install 'perturbench[r]'"])

def test_unknown_names_and_places(tmp_path, capsys):
    refused(capsys, 'fetch', 'norman', says=["the published screen 'norman' is not known; did you mean 'norman19'?"])
    says = ['NormanWeissman2019_filtered.h5ad does not exist']
    refused(capsys, 'fetch', 'norman19', '--from', tmp_path/'nowhere', says=says)
    says = ['no address of the processed copy of frangieh21 is known']
    refused(capsys, 'fetch', 'frangieh21', '--processed', says=says)

@pytest.mark.filterwarnings('ignore')
def test_a_layout_that_changed_is_refused(tmp_path, capsys):
    a = ad.AnnData(counts(4), obs=table([rows(4, pert='control')]), var=pd.DataFrame(index=symbols()))
    a.write_h5ad(tmp_path/'NormanWeissman2019_filtered.h5ad')
    says = ["has no column 'perturbation' in obs", '`perturbench prepare` takes any layout']
    refused(capsys, 'fetch', 'norman19', '--from', tmp_path, says=says)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('when', [
    'raw/jiang24/Seurat_object_IFNG*', 'raw/jiang24/IFNB.h5ad', 'raw/jiang24/.TNFA*', 'raw/jiang24/.raw.*',
    'raw/jiang24/raw.h5ad', '.jiang24.*'])
def test_a_fetch_that_is_killed_ends_right_the_second_time(when, server, home):
    "Killed as soon as a file is there: during the download, the conversion of R objects, the merge, the curation."
    p = multiprocessing.get_context('fork').Process(target=main, args=(['fetch', 'jiang24', '--from', server],))
    p.start()
    while p.is_alive() and not list(home.glob(when)): p.join(.002)
    p.kill()
    p.join()
    assert p.exitcode == -signal.SIGKILL
    ledger = part_name(home/'raw'/'jiang24'/'checksums.json')  # as it is when a kill comes while checksums are recorded
    ledger.with_name(ledger.name.replace(f'-{os.getpid()}-', f'-{p.pid}-')).touch()
    assert main(['fetch', 'jiang24', '--from', server]) == 0
    assert read_screen(home/'jiang24.h5ad').n_cells == 600 and not leftovers(home)

# Processed copies and released splits.

@pytest.mark.filterwarnings('ignore')
def test_processed_copies(server, site, home):
    obs = table([rows(8, condition=p, cell_type='k562') for p in ['control', 'A', 'B', 'A+B']])
    X = counts(len(obs))
    a = ad.AnnData(X.log1p(), obs=obs, var=pd.DataFrame(index=symbols()), layers={'counts': X})
    a.write_h5ad(site/'p.h5ad')
    (site/'norman19_preprocessed.h5ad.gz').write_bytes(gzip.compress((site/'p.h5ad').read_bytes()))
    s = D.fetch('norman19', place=server, processed=True)
    assert s.card['processed'] and s.card['values'] == 'lognorm'
    assert D.LEAK in s.card['note']
    assert sorted(s.conditions.n_perturbations) == [0, 1, 1, 2]
    assert abs(s.adata.X - X.log1p()).max() < 1e-6

@pytest.mark.filterwarnings('ignore')
def test_released_splits(server, site, home, capsys):
    (site/'mcfaline23_gxe_splits').mkdir(exist_ok=True)
    for k in ('small', 'full'): (site/'mcfaline23_gxe_splits'/f'{k}_covariate_split.csv').write_text('a,train\n')
    with tarfile.open(site/'mcfaline23_gxe_splits.tar.gz', 'w:gz') as tar:
        tar.add(site/'mcfaline23_gxe_splits', 'mcfaline23_gxe_splits')
    assert sorted(D.split_files('mcfaline23', server)) == ['full_covariate_split', 'small_covariate_split']
    (site/'op3_split.csv').write_text('a,train\n')
    assert D.split_files('op3', server)['op3_split'].read_text() == 'a,train\n'
    with pytest.raises(InputError, match="no split of 'norman19' was released"): D.split_files('norman19')

# Records.

def test_records_are_whole():
    assert list(D.DATASETS) == list(D.dataset_table().name)
    assert set(D.DATASETS) == set(D.SOURCES) == set(D.PROCESSED) == set(LAYOUTS)
    for name, r in D.DATASETS.items():
        assert r.name == name and r.paper and r.licence and r.curate and r.expected['cells'] and r.split['kind']
        for s in (*D.SOURCES[name], D.PROCESSED[name]): assert s.url.startswith('https://') or not s.stated
    assert D.dataset('SciPlex3').name == 'srivatsan20' and D.dataset('McFaline23').name == 'mcfalinefigueroa23'

# A published screen is a task.

@pytest.mark.filterwarnings('ignore')
def test_a_fetched_screen_is_a_task_of_its_name(server, home, tmp_path, capsys):
    refused(capsys, 'run', '-o', 'out', '--dry-run', grid(tmp_path, ['norman19']), says=["perturbench fetch norman19"])
    fetched('norman19', server)
    other = dict(name='other', screen='norman19', split=dict(kind='combination', fraction=.4, seed=1))
    tasks = str(grid(tmp_path, ['norman19', other]))
    assert main(['run', '-o', str(tmp_path/'out'), '--dry-run', tasks]) == 0
    out = capsys.readouterr().out
    assert 'norman19' in out and 'other' in out
    task = open_task('norman19', tmp_path/'out')
    assert task.spec.split['kind'] == 'combination'
    assert len(task.test_conditions()) == 2 and (task.leaks().status == 'ok').all()

@pytest.mark.filterwarnings('ignore')
def test_named_tasks_of_a_screen(server, tmp_path):
    fetched('mcfalinefigueroa23', server)
    names = ('mcfalinefigueroa23-small', 'mcfalinefigueroa23-medium', 'mcfalinefigueroa23')
    small, medium, full = (open_task(k, tmp_path/'out') for k in names)
    tested = [set(t.store.cells[t.parts[0] == PARTS.index('test')]) for t in (small, medium, full)]
    trained = [set(t.store.cells[t.parts[0] == PARTS.index('train')]) for t in (small, medium, full)]
    # the miniature has the nine states of the medium one
    assert tested[0] == tested[1] == tested[2] and trained[0] < trained[1] <= trained[2]

def grid(folder, tasks):
    (folder/'grid.yaml').write_text(json.dumps(dict(tasks=tasks, models=['control_mean'], seeds=[0])))
    return folder/'grid.yaml'

def test_a_full_disk_while_r_objects_are_converted(site, home, monkeypatch, capsys):
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(ad.AnnData, 'write_h5ad', full)
    refused(capsys, 'fetch', 'jiang24', '--from', site, says=['there is no room for it'])
    assert not list(home.rglob('*.h5ad')) and not leftovers(home)
