"Profiles of an evaluation of files, through the command line: the quick metrics, and all of them."
import anndata as ad, numpy as np, pandas as pd, pytest
from perturbench.cli import main
from perturbench.scoring.profiles import PROFILES

GENES, GUIDES = 60, [f'G{i}' for i in range(1, 7)]
KEYS = ['--perturbation-key', 'guide', '--covariate-keys', 'line']

def screen(seed, n=30, lines=('x', 'y'), guides=GUIDES, controls=40):
    "Counts of cells of each line and guide; a guide takes its own gene down and shifts others."
    r, rows = np.random.default_rng(seed), []
    for line in lines:
        for guide in ('control', *guides): rows += [(line, guide)]*(controls if guide == 'control' else n)
    obs = pd.DataFrame(rows, columns=['line', 'guide'], index=[f'{seed}_{i}' for i in range(len(rows))])
    share = np.stack([shares(line, guide) for line, guide in rows])
    X = r.poisson(r.lognormal(7, .3, (len(rows), 1))*share).astype(np.float32)
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f'G{i}' for i in range(GENES)]))

def shares(line, guide):
    "What part of a cell's counts each gene has."
    mean = 1 + np.random.default_rng(5).gamma(1., 2., GENES)
    if line == 'y': mean[::3] *= 2
    if guide != 'control':
        own = int(guide[1:])
        r = np.random.default_rng(own)
        mean = mean*np.exp(r.normal(0, .7, GENES)*(r.random(GENES) < .5))
        mean[own] *= .1
    return mean/mean.sum()

@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def write(**files):
    for name, a in files.items(): a.write_h5ad(f'{name}.h5ad')

def evaluate(capsys, *args, status=0, files=('truth.h5ad', 'mine.h5ad')):
    "Run the command; returns what it printed."
    assert main(['evaluate', *files, *KEYS, '-o', 'out', *args]) == status
    said = capsys.readouterr()
    return said.out if status == 0 else said.err

def test_quick_gives_the_values_of_full_for_its_metrics_and_writes_the_same_files(at, capsys):
    write(truth=screen(0), mine=screen(1))
    evaluate(capsys, '--values', 'counts', '--profile', 'quick')
    quick, quick_files = pd.read_parquet('out/scores.parquet'), sorted(p.name for p in (at/'out').iterdir())
    evaluate(capsys, '--values', 'counts')
    full, files = pd.read_parquet('out/scores.parquet'), sorted(p.name for p in (at/'out').iterdir())
    assert files == quick_files and set(quick.metric) == set(PROFILES['quick']) < set(full.metric)
    same, by = full[full.metric.isin(PROFILES['quick'])], ['model', 'line', 'perturbation', 'metric']
    pd.testing.assert_frame_equal(*(o.sort_values(by, ignore_index=True) for o in (quick, same)), check_exact=True)

def test_an_unknown_profile_is_one_sentence_with_the_nearest_name(at, capsys):
    write(truth=screen(0), mine=screen(1))
    said = evaluate(capsys, '--values', 'counts', '--profile', 'quik', status=2)
    assert said == "perturbench: the profile 'quik' is not known; did you mean 'quick'?\n"
    assert not (at/'out'/'scores.parquet').exists()
