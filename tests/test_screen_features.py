"Effects of another screen as features, directions of perturbations, and how a grid names both."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
from perturbench.bench.batch import run_grid
from perturbench.core import InputError
from perturbench.data.features import direction_features, named_features, screen_effects, screen_features
from perturbench.data.screen import Screen, read_screen
from perturbench.data.simulate import Parameters, simulate
from perturbench.loaders.batches import Batch
from perturbench.loaders.store import CellStore
from perturbench.models.base import ModelInfo
from perturbench.models.zoo import build_model

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "One simulated world as two screens: two of its lines, and a third with fewer perturbations."
    folder = tmp_path_factory.mktemp('screens')
    parameters = Parameters(n_genes=120, n_perturbations=40, n_programmes=5, cells=40, controls=150)
    screen = simulate(parameters).screen
    first, second, third = screen.states.cell_type
    screen.subset({'cell_type': [first, second]}).write(folder/'here.h5ad')
    known = ['control', *screen.perturbations[:35]]
    screen.subset({'cell_type': [third], 'perturbation': known}).write(folder/'there.h5ad')
    return folder

def test_effects_by_a_loop(folder):
    screen = read_screen(folder/'there.h5ad')
    found, cells = screen_effects(screen), screen.adata.to_df()
    what = screen.adata.obs[screen.perturbation_key].to_numpy()
    for name in screen.perturbations[:5]:
        expected = cells[what == name].mean() - cells[what == 'control'].mean()
        np.testing.assert_allclose(found.loc[name], expected, atol=1e-5)
    assert list(found.index) == screen.perturbations and list(found.columns) == screen.genes

def test_states_count_alike_and_combinations_do_not():
    rows = [('x', 'control', 1.5), ('x', 'a', 2.5), ('x', 'a', 4.5),
            ('y', 'control', .5), ('y', 'a', 3.5), ('y', 'a+b', 9.5)]
    obs = pd.DataFrame([(line, what) for line, what, _ in rows], columns=['line', 'what']).rename(index=str)
    values = np.array([[value] for *_, value in rows], np.float32)
    screen = Screen(ad.AnnData(values, obs=obs, var=pd.DataFrame(index=['g'])), 'what', 'line')
    found = screen_effects(screen)
    assert found.index.tolist() == ['a'] and found.loc['a', 'g'] == pytest.approx((2 + 3)/2)

def test_effects_are_found_by_name_else_by_what_is_acted_on(folder):
    screen = read_screen(folder/'there.h5ad')
    one, two, *_ = screen.perturbations
    direct = screen_features(screen, {one: [one], two: [two]})
    found = screen_features(screen, {'guide_1': [one], 'both': [one, two], two: ['nowhere'], 'other': ['elsewhere']})
    np.testing.assert_allclose(found.values[0], direct.values[0], atol=1e-6)
    np.testing.assert_allclose(found.values[1], direct.values.sum(0), atol=1e-5)
    np.testing.assert_allclose(found.values[2], direct.values[1], atol=1e-6)
    np.testing.assert_allclose(found.values[3], found.values[:3].mean(0), atol=1e-5)
    assert found.missing == ['other']

def test_components_are_as_far_apart_as_effects(folder):
    screen = read_screen(folder/'there.h5ad')
    effects = screen_effects(screen).to_numpy()
    scores = screen_features(screen, {name: [name] for name in screen.perturbations}, 200).values
    for i, j in [(0, 1), (3, 20), (34, 7)]:
        assert np.linalg.norm(scores[i] - scores[j]) == pytest.approx(np.linalg.norm(effects[i] - effects[j]), rel=1e-4)

def test_an_unseen_perturbation_is_known_by_what_it_did_in_another_screen(folder, undrawn, quick_here):
    "Better than the mean effect of the state and than another table, by more than 2 standard errors over conditions."
    names = read_screen(folder/'here.h5ad').perturbations
    random = pd.DataFrame(np.random.default_rng(0).normal(size=(len(names), 8)), names)
    random.to_csv(folder/'random.csv')
    split = dict(kind='unseen_perturbation', fraction=.5, seed=1)
    task = dict(name='here', screen=str(folder/'here.h5ad'), split=split)
    other = f'screen:{folder}/there.h5ad'
    models = ['perturbed_mean', {'name': 'ridge', 'features': other}, {'name': 'knn', 'features': other},
              {'name': 'kernel_ridge', 'features': ['own', other]},
              {'name': 'ridge', 'as': 'random', 'features': f'table:{folder}/random.csv'}]
    outcome = run_grid(dict(tasks=[task], models=models), folder/'out')
    assert outcome.done == 5 and not outcome.failed
    scores = pd.concat([pd.read_parquet(path) for path in (folder/'out').glob('runs/*/*/*/scores.parquet')])
    errors = scores[scores.metric == 'rmse_average']
    table = errors.pivot_table(index=['cell_type', 'perturbation'], columns='model', values='value')
    for name in ('ridge', 'knn', 'kernel_ridge'):
        for rival in ('perturbed_mean', 'random'):
            better = table[rival] - table[name]
            assert better.mean() > 2*better.std()/len(better)**.5, (name, rival)
    unknown = [name for name in names if name not in read_screen(folder/'there.h5ad').perturbations]
    said = errors[errors.model == 'ridge']
    assert set(said.status[said.perturbation.isin(unknown)]) <= {'unseen_part'}
    assert set(said.status[~said.perturbation.isin(unknown)]) == {'ok'}

def test_wrong_screens_are_one_message(folder, tmp_path):
    obs = pd.DataFrame({'what': ['control', 'zzz']}, index=['a', 'b'])
    other = ad.AnnData(np.full((2, 1), .5, np.float32), obs=obs, var=pd.DataFrame(index=['g']))
    Screen(other, 'what').write(tmp_path/'other.h5ad')
    other.write_h5ad(tmp_path/'plain.h5ad')
    (tmp_path/'text.h5ad').write_text('no screen')
    targets = {'a': ['a'], 'b': ['b']}
    for source, message in [
            ('screen:nowhere.h5ad', 'nowhere.h5ad'),
            (f'screen:{tmp_path}/other.h5ad', r'none of the 2 perturbations asked for \(a, b\) is in other.h5ad'),
            (f'screen:{tmp_path}/plain.h5ad', 'perturbench prepare'),
            (f'screen:{tmp_path}/text.h5ad', 'text.h5ad'),
            ('screen:', "'screen:' are not known"),
            ('scren:x.h5ad', "did you mean 'screen'")]:
        with pytest.raises(InputError, match=message) as raised: named_features(source, targets)
        assert '\n' not in str(raised.value)

def test_a_grid_that_names_no_screen_fails_with_that_message(folder, undrawn, quick_here):
    task = dict(name='here', screen=str(folder/'here.h5ad'))
    models = [{'name': 'ridge', 'features': 'screen:nowhere.h5ad'}]
    outcome = run_grid(dict(tasks=[task], models=models), folder/'failed')
    (_, log), = outcome.failed
    assert 'nowhere.h5ad' in log.read_text()

def flat_screen(obs):
    "A screen of cells with one value, of one gene."
    values = np.full((len(obs), 1), .5, np.float32)
    return Screen(ad.AnnData(values, obs=obs, var=pd.DataFrame(index=['g'])), 'what')

def test_directions_of_a_table_and_of_a_screen(tmp_path):
    words = {'a': 'CRISPRa', 'b': 'knock down', 'c': 'Knock-Out', 'd': 'compound', 'e': '+1', 'f': '-1', 'g': '0'}
    found = direction_features(words, [*words, 'h'])
    assert found.values[:7, 0].tolist() == [1, -1, -1, 0, 1, -1, 0] and found.missing == ['h']
    assert (found.values[:7, 1:].sum(1) == 1).all()
    pd.Series(words, name='direction').to_csv(tmp_path/'ways.csv')
    of_file = named_features(f'direction:{tmp_path}/ways.csv', {word: [] for word in words})
    np.testing.assert_array_equal(of_file.values, found.values[:7])
    obs = pd.DataFrame({'what': ['control', 'a', 'b', 'a+c'], 'how': ['none', 'up', 'down', 'up'],
                        'line': 'elsewhere'}, index=list('wxyz'))
    flat_screen(obs).write(tmp_path/'ways.h5ad')
    source = f'direction:{tmp_path}/ways.h5ad:how'
    assert named_features(source, {'a': [], 'b': [], 'c': []}).values[:, 0].tolist() == [1, -1, 1]
    for wrong, message in [
            (f'direction:{tmp_path}/ways.h5ad:way', "no column 'way'"),
            (f'direction:{tmp_path}/ways.h5ad:line', "has the direction 'elsewhere'; give one of: activation"),
            ('direction:nowhere.csv', 'nowhere.csv is not a file')]:
        with pytest.raises(InputError, match=message): named_features(wrong, {'a': [], 'b': []})

def test_one_screen_that_switches_on_and_off_has_a_perturbation_for_each(tmp_path):
    obs = pd.DataFrame({'what': ['control', 'a', 'a'], 'how': ['none', 'up', 'down']}, index=list('xyz'))
    flat_screen(obs).write(tmp_path/'both.h5ad')
    with pytest.raises(InputError, match="more than one 'how' for a"):
        named_features(f'direction:{tmp_path}/both.h5ad:how', {'a': []})

def test_a_model_told_of_directions_tells_unseen_perturbations_apart(tmp_path):
    "Half of the perturbations add 1, the others take 1 away; of two of them no cell is trained on."
    random, names = np.random.default_rng(0), [f'p{i:02}' for i in range(20)]
    way = {name: 'activation' if i % 2 else 'knock-down' for i, name in enumerate(names)}
    what = np.repeat(['control', *names], 5)
    change = np.array([{'activation': 1., 'knock-down': -1.}.get(way.get(name), 0) for name in what])
    values = (3 + change[:, None] + .2*random.random((len(what), 4))).astype(np.float32)
    obs = pd.DataFrame({'what': what}, index=[f'c{i}' for i in range(len(what))])
    screen = Screen(ad.AnnData(values, obs=obs, var=pd.DataFrame(index=list('wxyz'))), 'what')
    pd.Series(way, name='direction').to_csv(tmp_path/'ways.csv')
    store = CellStore.from_screen(screen)
    cells = store.select(~np.isin(screen.conditions.perturbation[store.codes], names[:2]))
    info = ModelInfo(screen.genes, screen.design, cells.n, cells=cells)
    for name in ('ridge', 'kernel_ridge', 'knn', 'forest'):
        model = build_model(name, info, features=f'direction:{tmp_path}/ways.csv').fit(cells)
        for part, expected in ((names[0], -1), (names[1], 1)):
            asked = screen.design.encode([part], {})
            batch = Batch(controls=torch.zeros(1, 4), perturbation=torch.tensor(asked.perturbation)[None],
                          covariates=torch.tensor(asked.covariate)[None])
            np.testing.assert_allclose(model.predict(batch)[0], expected, atol=.3)
            assert model.status(*asked) == 'ok'

def test_real_tables_name_perturbations_by_gene_and_drugs_by_name(real):
    genes = {name: [name] for name in ('KLF1', 'GATA1', 'CEBPA', 'TP53', 'no gene')} | {'guide_1': ['KLF1', 'GATA1']}
    for source in ('go:GO_annotations-9606-direct-allev_v1.0.tsv', 'interactions:hetio_protein-interactions.txt.gz'):
        kind, _, name = source.partition(':')
        found = named_features(f'{kind}:{real}/side/{name}', genes)
        assert found.missing == ['no gene']
        np.testing.assert_allclose(found.values[5], found.values[0] + found.values[1], atol=1e-5)
    pytest.importorskip('rdkit')
    drugs = named_features(f'smiles:{real}/side/trapnell_drugs_smiles.csv', {'2-Methoxyestradiol': [], 'no drug': []})
    assert drugs.missing == ['no drug'] and drugs.values.shape == (2, 1024)
