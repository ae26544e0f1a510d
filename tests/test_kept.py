"Kept runs: listed, removed and repeated through the command line."
import json
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from perturbench.bench.batch import read_grid, run_grid
from perturbench.bench.runs import plot_conditions, seal
from perturbench.cli import main

NARROW = {'name': 'latent_additive', 'encoder_width': 16, 'latent_dim': 8}
GRID = dict(tasks=['sim-transfer'], models=['control_mean', NARROW],
            seeds=[0, 1], budget=dict(max_epochs=2, min_epochs=1))

@pytest.fixture(scope='module')
def out(tmp_path_factory, quick):
    from conftest import one_pixel
    folder = tmp_path_factory.mktemp('kept')
    with pytest.MonkeyPatch.context() as m:
        m.setattr('perturbench.plots.Picture.savefig', one_pixel)
        run_grid(read_grid(GRID), folder)
    return folder

def homes(out, model): return sorted(path.parent for path in out.glob(f'runs/*/{model}/*/run.json'))

def state(folder): return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}

def test_a_trained_run_is_repeated_to_the_bit(out, capsys):
    before = state(out)
    for home in homes(out, 'latent_additive'):
        assert main(['repeat', str(home)]) == 0
        assert capsys.readouterr().out == 'the same versions\nthe same numbers, to the bit\n'
    assert state(out) == before

def altered(home, change):
    "A run as if it had been made otherwise; what it was."
    files = {name: (home/name).read_bytes() for name in ('run.json', 'scores.parquet')}
    about, scores = json.loads(files['run.json']), pd.read_parquet(home/'scores.parquet')
    change(about, scores)
    scores.to_parquet(home/'scores.parquet', index=False)
    seal(home, {name: value for name, value in about.items() if name not in ('files', 'digest')})
    return files

def test_numbers_that_are_not_those(out, capsys):
    "With the same versions that is a failure; with others it is said by how much."
    home = homes(out, 'control_mean')[0]
    def moved(about, scores): scores.loc[0, 'value'] += .25
    files = altered(home, moved)
    assert main(['repeat', str(home)]) == 1
    assert 'largest difference 0.25: ' in capsys.readouterr().out
    def older(about, scores): about['versions']['torch'] = '2.0.0'
    altered(home, older)
    assert main(['repeat', str(home)]) == 0
    assert 'versions that differ: torch 2.0.0 -> ' in capsys.readouterr().out
    for name, content in files.items(): (home/name).write_bytes(content)

def test_what_cannot_be_repeated(out, tmp_path, capsys):
    home = homes(out, 'control_mean')[0]
    assert main(['repeat', str(tmp_path)]) == 2
    tasks = (out/'tasks').rename(out/'elsewhere')
    assert main(['repeat', str(home)]) == 2
    assert "of the task 'sim-transfer' is lost" in capsys.readouterr().err
    tasks.rename(out/'tasks')

def test_runs_are_listed_and_filtered(out, capsys):
    def rows(*words):
        status = main(['runs', str(out), *words])
        return status, [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[1:]]
    both = [['latent_additive', '0'], ['latent_additive', '1']]
    assert rows() == (0, [['control_mean', '0'], ['control_mean', '1'], *both])
    assert rows('--model', 'latent_additive') == (0, both)
    assert rows('--model', 'latent_additive', '--seed', '1') == (0, both[1:])
    assert rows('--model', 'additive')[0] == rows('--seed', '7')[0] == 2

def test_runs_are_removed(out, capsys):
    assert main(['runs', str(out), '--remove']) == 2
    assert '--remove without a filter would take all runs away' in capsys.readouterr().err
    assert main(['runs', str(out), '--seed', '1', '--model', 'control_mean', '--remove']) == 0
    assert len(homes(out, 'control_mean')) == 1 and len(homes(out, 'latent_additive')) == 2

def test_no_runs_at_all(tmp_path, capsys):
    assert main(['runs', str(tmp_path)]) == 2
    assert 'there is no finished run' in capsys.readouterr().err

def test_figures_of_conditions_name_the_dose():
    "Two doses of a drug are two conditions; a label that leaves the dose out cannot tell them apart."
    effects = np.array([[1., 2., 3.], [3., 2., 1.]])
    task = SimpleNamespace(naming=dict(dose_key='dose'), covariate_keys=['line'], genes=pd.Index(list('abc')))
    run = SimpleNamespace(task=task, effects=SimpleNamespace(effects=lambda: (effects, effects)))
    scores = pd.DataFrame(dict(metric='cosine_logfc', value=[.5, .9], line='a', perturbation='x', dose=[1., 10.]))
    titles = [ax.get_title(loc='left') for ax in plot_conditions(run, scores).axes]
    assert titles == ['a, x, 10.0', 'a, x, 1.0']
