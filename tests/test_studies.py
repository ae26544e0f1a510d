"The studies of metrics and of uncertainty: facts by hand from what small runs of them leave."
from dataclasses import replace
import anndata as ad, nbformat, numpy as np, pandas as pd, pytest
from conftest import ROOT, leave_undrawn
from perturbench.core import rng
from perturbench.splits.parts import PARTS
from test_tutorials import execute

SIZE = dict(n_genes=60, n_states=2, n_perturbations=8, cells=30, controls=120, panel=.6, effect_size=2., quiet=0.)

@pytest.fixture(scope='module', autouse=True)
def without_figures():
    "Figures are made, but of one pixel."
    from perturbench.plots import Picture
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Picture, 'savefig', Picture.savefig)
        leave_undrawn()
        yield

# Collapse

@pytest.fixture(scope='module')
def pulled(tmp_path_factory):
    "What a small run of collapse leaves; one of its screens is not there."
    folder = tmp_path_factory.mktemp('collapse')
    execute(
        'benchmarks/collapse', folder,
        screens=[{'name': 'small', 'simulate': {}, 'seed': 1}, {'name': 'absent', 'file': 'absent.h5ad'}],
        size=SIZE,
        models=[],
        factors=[0, .5, .9, 1],
        metrics=['rmse_average', 'rmse_rank_average', 'rank_strict', 'cosine_rank_logfc', 'mae_variance', 'energy_pca'])
    return folder/'results'

@pytest.fixture(scope='module')
def told(pulled):
    "The rows of collapse.csv, by way, metric and factor."
    return pd.read_csv(pulled/'collapse.csv').set_index(['way', 'metric', 'factor']).sort_index()

def rmse_at(folder, factor):
    "By hand: of the cells that are not tested, pulled towards the mean of their state, against those that are."
    cells = ad.read_h5ad(folder/'small.h5ad')
    part = pd.read_csv(folder/'small.csv', header=None, index_col=0)[1].reindex(cells.obs_names)
    treated = (cells.obs.perturbation != 'control').to_numpy()
    def means(which):
        some = cells[treated & which.to_numpy()]
        return some.to_df().astype(float).groupby([some.obs.cell_type, some.obs.perturbation], observed=True).mean()
    truth, replicate = means(part == 'test'), means(part != 'test')
    pulled_to = replicate.groupby('cell_type', observed=True).transform('mean')
    error = replicate + factor*(pulled_to - replicate) - truth
    return float((error**2).mean(axis=1).pow(.5).mean())

@pytest.mark.parametrize('factor', [0, .5, .9, 1])
def test_an_error_is_that_of_means_pulled_to_the_mean_of_their_state(pulled, told, factor):
    "A factor of 0 changes nothing, and 1 leaves the mean of the state."
    assert told['mean']['shift', 'rmse_average', factor] == pytest.approx(rmse_at(pulled, factor), rel=1e-5)

def test_a_whole_collapse_ties_all_ranks(told):
    "Half of the others count where ties count half, all where they count in full."
    found = told['mean']['shift']
    assert found['rmse_rank_average', 1] == .5 and found['cosine_rank_logfc', 1] == .5 and found['rank_strict', 1] == 1
    assert found['rmse_rank_average', .9] < .2 > found['rank_strict', .9]

def test_both_ways_start_from_the_same_predictions(told):
    at_0 = told.xs(0, level='factor')
    pd.testing.assert_frame_equal(at_0.loc['shift'], at_0.loc['swap'])
    assert not at_0.worse.any()

def test_spread_shrinks_with_the_square_of_what_is_left(told):
    "Variance is of differences, and these are pulled together by 1 - factor."
    spread = told.spread['shift', 'rmse_average']
    np.testing.assert_allclose(spread/spread[0], [1, .25, .01, 0], atol=1e-6)
    assert told.collapsed['shift', 'rmse_average'].astype(bool).tolist() == [False, False, True, True]

def test_a_difference_is_that_of_the_means(told):
    "These metrics are all the better the lower they are, and have a value in each condition."
    before = told['mean'].xs(0, level='factor').reindex(told.index.droplevel('factor')).to_numpy()
    np.testing.assert_allclose(told.worse, told['mean'] - before, atol=1e-9)

def test_verdicts_follow_the_rule(pulled, told):
    "A shift leaves the variance of cells as it is; a number is the first factor that is noticed with all after it."
    found = pd.read_csv(pulled/'collapse_verdicts.csv').set_index(['way', 'metric'])
    assert set(found.task) == {'small'} and set(found.predictor) == {'replicate'}
    assert found.verdict['shift', 'mae_variance'] == 'same' and found.fooled['shift', 'mae_variance']
    assert not found.fooled['shift', 'rmse_average']
    lo = told.lo['shift', 'rmse_average']
    assert float(found.verdict['shift', 'rmse_average']) == min(f for f in (.5, .9, 1) if (lo[lo.index >= f] > 0).all())

# Seeds and splits

@pytest.fixture(scope='module')
def study():
    "The functions of the decomposition, from the cells of the notebook."
    cells = nbformat.read(ROOT/'nbs'/'benchmarks'/'seeds_and_splits.ipynb', as_version=4).cells
    found = {'np': np, 'rng': rng, 'replace': replace, 'PARTS': PARTS}
    wanted = {'SOURCES = ': '', 'def shares_of(': 'def decomposed(', 'def test_cells(': 'design = ', 'def half_of(': ''}
    for first, next_one in wanted.items():
        source, = (cell.source for cell in cells if cell.cell_type == 'code' and first in cell.source)
        end = source.index(f'\n{next_one}') if next_one else None
        exec(source[source.index(first):end], found)
    return found

def test_components_by_hand(study):
    """Two splits, seeds and draws, where only the seed counts: 0 and 1 vary by 1/2. All splits have the mean 1/2, where
    chance alone would make it vary by a half of that. The negative component is shown as 0."""
    y = np.zeros((2, 2, 2, 2))
    y[:, 1] = 1
    found = study['components'](y)
    assert found == {'split': -.25, 'seed': .5, 'cells': 0, 'controls': 0, 'rest': 0}
    assert study['shares_of'](found).tolist() == [0, 1, 0, 0, 0]

def test_what_splits_share_is_not_taken_off(study):
    """Draws of cells 0 and 1 vary by 1/2, half of which is left in the means of splits. With cells of their own these
    would vary by 1/2 more."""
    y = np.zeros((2, 2, 2, 2))
    y[:, :, 1] = 1
    assert [study['components'](y, shared)['split'] for shared in (1, .5, 0)] == [-.25, -.5, -.75]

def test_without_an_effect_of_the_seed_its_share_is_0(study):
    "Whole numbers add without rounding. What draws do together may make the estimate negative: a share of 0 again."
    random = np.random.default_rng(0)
    def whole(*shape): return random.integers(0, 8, (4, 1, *shape)).astype(float)
    for y, together in [(whole(2, 1) + whole(1, 2), False), (whole(2, 2), True)]:
        found = study['components'](np.broadcast_to(y, (4, 2, 2, 2)))
        assert found['seed'] < 0 if together else found['seed'] == 0
        assert study['shares_of'](found)[1] == 0

def test_nothing_varies_and_nothing_is_shared_out(study):
    assert np.isnan(study['shares_of'](study['components'](np.ones((3, 2, 2, 2))))).all()

@pytest.mark.parametrize('shared', [0, .5])
def test_known_variances_are_found(study, shared):
    """Over 3,000 designs of six splits, within four standard errors. A share of the noise of test cells is common to
    all splits: it does not make them differ."""
    random, known = np.random.default_rng(3), np.array([3., 1., .8, .5, .2])
    split, seed, cells, controls, rest = np.sqrt(known)
    def normal(*size): return random.normal(size=(3000, *size))
    own = (1 - shared)**.5
    y = (split*normal(6, 1, 1, 1) + own*cells*normal(6, 1, 1, 1) + own*controls*normal(6, 1, 1, 1)
         + cells*normal(6, 1, 2, 1) + controls*normal(6, 1, 1, 4) + seed*normal(6, 3, 1, 1) + rest*normal(6, 3, 2, 4))
    found = np.array([list(study['components'](one, shared, shared).values()) for one in y])
    off = (found.mean(0) - known)/(found.std(0)/3000**.5)
    assert (np.abs(off) < 4).all()

def test_a_draw_takes_halves_and_leaves_what_models_are_given(study, task):
    "Of the cells of each condition, and of the controls of the truth in each state; rounded up."
    drawn, codes = study['drawn'], np.asarray(task.store.codes)
    def numbers(rows, groups): return np.bincount(groups[rows], minlength=groups.max() + 1)
    one, other, same_cells = drawn(task, 0, 0), drawn(task, 1, 0), drawn(task, 0, 1)
    for rows_of, groups in [(study['test_cells'], codes), (study['true_controls'], task.design.state[codes])]:
        whole, half = numbers(rows_of(task), groups), numbers(rows_of(one), groups)
        assert whole.any() and (half == whole - whole//2).all()
        assert set(rows_of(one)) < set(rows_of(task))
    assert (study['test_cells'](one) == study['test_cells'](same_cells)).all()
    assert not np.array_equal(study['test_cells'](one), study['test_cells'](other))
    assert (study['true_controls'](one) == study['true_controls'](other)).all()
    for part in ('train', 'val'): assert (one.cells(part).rows == task.cells(part).rows).all()
    assert (one.given().rows == task.given().rows).all()

@pytest.fixture(scope='module')
def divided(tmp_path_factory):
    "What a small run of seeds_and_splits leaves."
    folder = tmp_path_factory.mktemp('seeds')
    execute(
        'benchmarks/seeds_and_splits', folder,
        screens=[{'name': 'small', 'simulate': {}, 'seed': 1}, {'name': 'absent', 'file': 'absent.h5ad'}],
        size=SIZE,
        models=['linear'],
        pairs=[['linear', 'control_mean']],
        metrics=['rmse_average', 'rmse_rank_average'],
        splits=2, seeds=[0, 1], draws=2, resamples=20,
        budget=dict(max_epochs=1, batch_size=256))
    return folder/'results'

def test_a_baseline_has_no_variance_over_seeds(divided):
    "And no rank that could vary: it predicts the same for all."
    found = pd.read_csv(divided/'seeds_and_splits.csv').set_index(['metric', 'of'])
    assert ('rmse_rank_average', 'control_mean') not in found.index
    assert found.seed_share['rmse_average', 'control_mean'] == pytest.approx(0, abs=1e-9)
    assert found.seed_share['rmse_average', 'linear'] > 0
    shares = found[[f'{source}_share' for source in ('split', 'seed', 'cells', 'controls', 'rest')]]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    mean = found['mean']['rmse_average']
    assert mean['linear - control_mean'] == pytest.approx(mean['linear'] - mean['control_mean'])

def test_what_one_split_does_not_show_by_hand(divided):
    "From the variances, those below 0 taken for 0."
    variances = pd.read_csv(divided/'seeds_and_splits.csv').set_index(['metric', 'of'])
    known = variances.xs('linear - control_mean', level='of').filter(like='_variance').clip(lower=0)
    unseen = known.split_variance + known.cells_variance + known.controls_variance
    by_hand = unseen/(unseen + (known.seed_variance + known.rest_variance)/5)
    found = pd.read_csv(divided/'one_split.csv').set_index('metric')
    np.testing.assert_allclose(found.unseen, by_hand.reindex(found.index))
    np.testing.assert_allclose(found['sd of seeds'], known.seed_variance.reindex(found.index)**.5)
