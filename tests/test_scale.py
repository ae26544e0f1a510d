"Scales: what is on another one is refused with the numbers, and nothing that is right is."
import anndata as ad, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse
from perturbench.core import InputError, rng
from perturbench.data.scale import (DO, ValueCheck, cell_faults, compare, exact_kind, measure, sample, scale_faults,
                                    scale_notes, scale_text)
from perturbench.data.blocks import Blocks
from perturbench.scoring.files import evaluate_files

CONDITIONS, CELLS = 6, 20

def draw(seed, n_genes, depth, target, chosen):
    "Measured cells twice, from the same means, and the condition of each."
    r = rng(seed, 'test_scale')
    base = r.gamma(.5, 1, n_genes) + 1e-3
    changes = r.normal(0, .4, (CONDITIONS, n_genes))*(r.random((CONDITIONS, n_genes)) < .3)
    mean = np.repeat(base*np.exp(changes), CELLS, 0)
    mean /= mean.sum(1, keepdims=True)
    genes = np.sort(r.permutation(n_genes)[:n_genes//2]) if chosen else np.arange(n_genes)
    def cells():
        of_genes, of_cells = r.gamma(1, 1, mean.shape), np.exp(r.normal(0, .4, (len(mean), 1)))
        c = r.poisson(mean*of_genes*depth*n_genes*of_cells) + (np.arange(n_genes) < 6)
        return np.log1p(target*c/c.sum(1, keepdims=True))[:, genes]
    return cells(), cells(), np.repeat(np.arange(CONDITIONS), CELLS), r

screens = dict(
    seed=st.integers(0, 10**6),
    n_genes=st.sampled_from([80, 200, 800, 3000]),
    depth=st.sampled_from([.5, 3, 20]),
    target=st.sampled_from([1e3, 1e4, 1e5, 1e6]),
    chosen=st.booleans())
realistic = screens | dict(
    n_genes=st.sampled_from([80, 200, 800]),
    target=st.sampled_from([1e4, 1e5, 1e6]),
    depth=st.sampled_from([2, 5, 20]))
quick = settings(derandomize=True, deadline=None, max_examples=7)

def judged(values, codes, truth, truth_codes):
    faults = cell_faults(measure(values)) or compare(sample(values, codes), sample(truth, truth_codes)).faults
    return faults[0] if faults else ''

def smoothed(x, codes, change=lambda v: v, back=lambda v: v):
    cells = [x[codes == c] for c in range(CONDITIONS)]
    return np.concatenate([np.repeat(back(change(o).mean(0))[None], len(o), 0) for o in cells])

@quick
@given(**screens)
def test_nothing_legitimate_is_refused(seed, n_genes, depth, target, chosen):
    truth, x, codes, r = draw(seed, n_genes, depth, target, chosen)
    first = np.unique(codes, return_index=True)[1]
    several = np.stack([x[r.choice(np.flatnonzero(codes == c), 5)].mean(0) for c in codes])
    strong = np.where((codes == 0)[:, None], np.log1p(np.expm1(x)*r.gamma(1, 1, x.shape[1])), x)
    legitimate = dict(
        cells=x,
        denoised=smoothed(x, codes),
        log_of_mean=smoothed(x, codes, np.expm1, np.log1p),
        neighbours=several,
        half_denoised=(x + smoothed(x, codes))/2,
        noise=(x + .5*r.normal(size=x.shape)).clip(0),
        clipped=np.minimum(x, np.quantile(x, .95)),
        zeros=0*x,
        constant=0*x + x.mean(),
        other_genes=x[:, r.permutation(x.shape[1])],
        control=np.repeat(x[codes == 0].mean(0)[None], len(x), 0),
        lost=x*(r.random(x.shape) < .5),
        more=np.log1p(1.2*np.expm1(x)),
        less=np.log1p(.82*np.expm1(x)),
        strong=strong,
        rounded=x.astype(np.float16).astype(float),
        poor=np.repeat((x.mean(0)*np.exp(.5*r.normal(size=x.shape[1]))).clip(0, 15)[None], len(x), 0),
        uniform=r.uniform(0, x.max(), x.shape),
        some_zero=x*(np.arange(len(x)) % 2)[:, None])
    said = {k: judged(v, codes, truth, codes) for k, v in legitimate.items()}
    said['means'] = judged(smoothed(x, codes)[first], codes[first], truth, codes)
    said['log of means'] = judged(legitimate['log_of_mean'][first], codes[first], truth, codes)
    assert not any(said.values()), {k: v for k, v in said.items() if v}

@quick
@given(**realistic)
def test_another_scale_is_refused(seed, n_genes, depth, target, chosen):
    truth, x, codes, r = draw(seed, n_genes, depth, target, chosen)
    v = np.expm1(x)
    for F in (.003, .05, 20):
        assert judged(np.log1p(F*v), codes, truth, codes), F
    for kind in ('twice', 'log10', 'root', 'none', 'log2'): assert judged(DO[kind](v), codes, truth, codes), kind
    assert judged(v/target, codes, truth, codes) and judged(v*1e3, codes, truth, codes)
    assert judged(smoothed(np.log1p(v), codes, np.log1p), codes, truth, codes)  # smoothed and logged twice
    assert judged(smoothed(np.log1p(50*v), codes), codes, truth, codes)

@quick
@given(**realistic, share=st.sampled_from([2, 3]), by_condition=st.booleans())
def test_a_mixture_is_refused(seed, n_genes, depth, target, chosen, share, by_condition):
    truth, x, codes, r = draw(seed, n_genes, depth, target, chosen)
    part, v = ((codes if by_condition else np.arange(len(x))) % share == 0)[:, None], np.expm1(x)
    raw = np.rint(v/v.sum(1, keepdims=True)*5000)
    for name, other in dict(raw=raw, no_log=v, ten=np.log1p(10*v), tenth=np.log1p(.1*v), twice=np.log1p(x)).items():
        values = np.where(part, other, x)
        said = compare(sample(values, codes), sample(truth, codes))
        assert judged(values, codes, truth, codes) or (chosen and share == 3 and 'are apart' in said.notes[0]), name

@quick
@given(**realistic | dict(n_genes=st.just(800)))
def test_smoothed_cells_whose_scale_cannot_be_told_are_never_scored_without_a_word(
        seed, n_genes, depth, target, chosen):
    truth, x, codes, r = draw(seed, n_genes, depth, target, chosen)
    v, measured = np.expm1(x), sample(truth, codes)
    for kind, F in (('log', 3), ('log', 1/3), ('log2', 1), ('root', 1)):
        said = compare(sample(smoothed(DO[kind](F*v), codes), codes), measured)
        assert said.faults or said.notes, (kind, F)
    for way in ((), (np.expm1, np.log1p)):
        notes = compare(sample(smoothed(x, codes, *way), codes), measured).notes
        assert not any('cannot tell' in note for note in notes), notes

def test_the_other_scale_of_smoothed_cells_is_named():
    truth, x, codes, _ = draw(7, 800, .5, 1e4, False)
    told = lambda values: compare(sample(smoothed(values, codes), codes), sample(truth, codes)).notes[0]
    assert 'values cannot tell' in told(np.log1p(3*np.expm1(x)))
    assert 'times the target sum' in told(np.log1p(3*np.expm1(x)))
    assert 'at the logarithm to the base 2' in told(x/np.log(2))

@pytest.mark.parametrize('F', [1, .02, 30])
def test_measured_files_need_the_same_target_sum(F):
    truth, x, codes, _ = draw(1, 200, 3, 1e4, False)
    a, b = sample(np.log1p(F*np.expm1(x)), codes), sample(truth, codes)
    assert bool(compare(a, b, measured=True).faults) == (F != 1)
    a = sample(np.log1p(1.1*np.expm1(x)), codes)
    assert compare(a, b, measured=True).faults and not compare(a, b).faults
    assert 'another target sum' in compare(a, b).notes[0]

def test_a_factor_is_named_and_its_remedy_works():
    truth, x, codes, _ = draw(2, 300, 3, 1e4, False)
    values = np.log1p(np.expm1(x)*242/1e4)
    said = judged(values, codes, truth, codes)
    assert 'a cell sums to 242' in said and 'measured one to 10,000' in said
    assert 'a.X = np.log1p(np.expm1(a.X)*41.32)' in said
    assert np.abs(np.log1p(np.expm1(values)*41.32) - x).max() < 1e-3

@pytest.mark.parametrize('kind, remedy', [
    ('twice', np.expm1),
    ('log2', lambda x: x*np.log(2)),
    ('log10', lambda x: x*np.log(10))])
def test_remedies_bring_values_back(kind, remedy):
    truth, x, codes, _ = draw(3, 300, 3, 1e4, True)
    values = DO[kind](np.expm1(x))
    assert judged(values, codes, truth, codes) and not judged(remedy(values), codes, truth, codes)

@quick
@given(**screens | dict(chosen=st.just(False)))
def test_a_file_alone_says_its_scale(seed, n_genes, depth, target, chosen):
    x = draw(seed, n_genes, depth, target, chosen)[0]
    for kind, f in DO.items():
        s = measure(sparse.csr_matrix(f(np.expm1(x))))
        assert exact_kind(s)[0] == kind and exact_kind(s)[1] == pytest.approx([target], rel=1e-3), kind
        assert bool(scale_faults(s)) == (kind != 'log'), kind
    assert 'each cell sums to' in scale_text(measure(x))

def test_what_cannot_be_logarithms_is_refused_alone():
    x = draw(4, 100, 20, 1e4, True)[0]
    v, half = np.expm1(x), (np.arange(len(x)) % 2 == 0)[:, None]
    assert scale_faults(measure(x)) == scale_notes(measure(x)) == []
    assert 'values above 30' in scale_faults(measure(v))[0]
    assert 'whole numbers only' in scale_faults(measure(np.where(half, np.rint(v/100), x)))[0]
    all_genes = draw(5, 200, 3, 1e4, False)[0]
    third = (np.arange(len(x)) % 3 == 0)[:, None]
    mixed = np.where(third, np.log1p(9*np.expm1(all_genes)), all_genes)
    assert 'cells were scaled to 2 target sums' in scale_faults(measure(mixed))[0]
    counted = np.log1p(np.random.default_rng(0).poisson(1.5, (50, 60)))
    assert scale_faults(measure(counted)) == [] and 'log1p of whole numbers' in scale_notes(measure(counted))[0]
    for odd in (np.zeros((20, 30)), np.ones((20, 30)), np.zeros((0, 30)), np.full((3, 30), 700.)):
        scale_text(measure(odd)), scale_notes(measure(odd))
    assert 'values above 30' in scale_faults(measure(np.full((3, 30), 1e30)))[0]

def test_blocks_are_measured_as_a_whole():
    x = sparse.csr_matrix(draw(6, 100, 3, 1e4, True)[0].astype(np.float32))
    whole, check = measure(x), ValueCheck(*x.shape)
    for first, block in Blocks(x, size=7): check.add(first, block)
    for kind in DO: np.testing.assert_array_equal(check.scale.sums[kind], whole.sums[kind])
    assert (check.scale.maximum, check.scale.least) == (whole.maximum, whole.least)

def file(x, codes, own, controls=False):
    genes = [f'p{c}' if c or not controls else 'control' for c in codes]
    obs = pd.DataFrame(dict(gene=genes), index=[f'{own}{i}' for i in range(len(x))])
    return ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f'g{i}' for i in range(x.shape[1])]))

def test_evaluate_refuses_a_file_on_another_scale_and_scores_the_others():
    truth, x, codes, _ = draw(7, 60, 3, 1e4, False)
    measured, mine = file(truth, codes, 't', True), file(x, codes, 'm', True)
    values = np.expm1(x)
    half = (codes % 2 == 0)[:, None]
    wrong = dict(median=np.log1p(values*.03), twice=np.log1p(x), part=np.where(half, np.log1p(8*values), x))
    wrong = {k: file(v, codes, k, True) for k, v in wrong.items()}
    found = evaluate_files(measured, {'mine': mine} | wrong, 'gene', metrics=['rmse_average'])
    assert list(found.refused) == list(wrong)
    scores = found.scores.groupby('model').value
    assert scores.count()[list(wrong)].sum() == 0 and scores.mean()['mine'] < scores.mean()['control_mean']
    assert set(found.scores.status[found.scores.model.isin(wrong)]) == {'refused'}
    for k, v in wrong.items():
        with pytest.raises(InputError, match='cannot be scored'):
            evaluate_files(measured, {k: v}, 'gene', metrics=['rmse_average'])

def test_training_cells_are_brought_to_the_genes_of_the_truth_before_they_are_normalised():
    r = np.random.default_rng(0)
    mean = r.gamma(1.5, 2, 50)*np.exp(r.normal(0, .5, (4, 50)))
    def cells(own):
        return file(np.concatenate([r.poisson(m, (15, 50)) for m in mean]), np.repeat(range(4), 15), own, True)
    truth, train, mine = cells('t'), cells('s'), cells('m')
    other_genes, others = pd.DataFrame(index=[f'x{i}' for i in range(300)]), r.poisson(5, (train.n_obs, 300))
    more = ad.AnnData(others.astype(np.float32), obs=train.obs, var=other_genes)
    wide = ad.concat([more, train[:, ::-1]], axis=1, merge='first')
    options = dict(values='counts', metrics=['rmse_centred', 'energy_pca', 'rmse_average'])
    found = [evaluate_files(truth, {'mine': mine}, 'gene', train=o, **options).scores for o in (train, wide)]
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=1e-6)
    logs = ad.AnnData(np.log1p(1e4*wide.X/wide.X.sum(1, keepdims=True)), obs=wide.obs, var=wide.var)
    screen = ad.AnnData(np.log1p(1e4*truth.X/truth.X.sum(1, keepdims=True)), obs=truth.obs, var=truth.var)
    with pytest.raises(InputError, match='take the same genes in both files and normalise both'):
        evaluate_files(screen, {'mine': screen}, 'gene', train=logs, metrics=['rmse_average'])

@pytest.mark.parametrize('name, key, state, control', [
    ('norman_mcfaline', 'condition', 'cell_type', 'control'),
    ('gbm_panobinostat', 'condition', 'patient_id', 'ctrl'),
    ('tcell_crop', 'gene', 'perturbation_2', 'control')])
def test_real_screens_raise_no_alarm(real, name, key, state, control):
    from perturbench.data.preprocess import normalise
    a = ad.read_h5ad(real/f'{name}.h5ad')
    if name != 'norman_mcfaline': a = normalise(a)
    else: assert scale_faults(measure(a.X)) == scale_notes(measure(a.X)) == []
    half, codes = rng(0, name).random(a.n_obs) < .5, a.obs.groupby([state, key], observed=True).ngroup().to_numpy()
    X = sparse.csr_matrix(a.X)
    for genes in (slice(None), np.arange(0, a.n_vars, 3)):
        theirs, truth = sample(X[half][:, genes], codes[half]), sample(X[~half][:, genes], codes[~half])
        assert compare(theirs, truth) == compare(theirs, truth, measured=True) == ([], [])
        for F in (.02, 30):
            scaled = np.log1p(F*np.expm1(X[half][:, genes].toarray()))
            assert judged(scaled, codes[half], X[~half][:, genes], codes[~half])
