"Profiles of an evaluation of files, through the command line: the quick metrics, all of them, and the challenge."
import mmap, os, tempfile, weakref
from types import SimpleNamespace
import anndata as ad, numpy as np, pandas as pd, pytest
from scipy import sparse
from perturbench import core
from perturbench.bench import leaderboard
from perturbench.cli import main
from perturbench.core import rng
from perturbench.metrics.challenge import (
    MEASURES, as_counts, challenge_scores, challenge_total, combined, counts_of, mean_response, replicate_scores)
from perturbench.scoring import files as of_files
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
def at(tmp_path, monkeypatch, undrawn):
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

def test_no_cells_are_held_while_the_report_is_written(at, capsys, monkeypatch):
    write(truth=screen(0), mine=screen(1))
    stores, alive = [], []
    class Watched(of_files.Evaluation):
        def __init__(self, task, *args):
            super().__init__(task, *args)
            stores.append(weakref.ref(task.store))
    write_board = leaderboard.write_board
    def looked(*args, **how):
        alive.extend(store() is not None for store in stores)
        return write_board(*args, **how)
    monkeypatch.setattr(of_files, 'Evaluation', Watched)
    monkeypatch.setattr(leaderboard, 'write_board', looked)
    evaluate(capsys, '--values', 'counts', '--profile', 'quick')
    assert alive == [False]

def test_cells_that_lie_in_files_have_the_scores_of_those_in_memory(at, capsys, monkeypatch):
    write(truth=screen(0), mine=screen(1), train=screen(2, guides=['G7', 'G8', 'G9']))
    options = '--values', 'counts', '--train', 'train.h5ad', '--profile', 'quick'
    evaluate(capsys, *options)
    in_memory, rooms, place = pd.read_parquet('out/scores.parquet'), [], at/'temporary'
    place.mkdir()
    def room(*args):
        rooms.append(mmap.mmap(*args))
        return rooms[-1]
    monkeypatch.setattr(core, 'LARGE', 1)
    monkeypatch.setattr(core, 'mmap', SimpleNamespace(mmap=room, MADV_DONTNEED=mmap.MADV_DONTNEED))
    monkeypatch.setattr(tempfile, 'tempdir', str(place))
    evaluate(capsys, *options)
    pd.testing.assert_frame_equal(pd.read_parquet('out/scores.parquet'), in_memory, check_exact=True)
    there = hasattr(os, 'posix_fallocate')  # where there are such files
    assert len(rooms) == 3*3*there  # Columns, counts and values of the truth, of the training cells, and of both
    assert list(place.iterdir()) == []

# The challenge

def lots(a, line='x', guides=GUIDES):
    "The cells of each guide."
    return [a.X[((a.obs.line == line) & (a.obs.guide == o)).to_numpy()] for o in guides]

def control(a, line='x'): return lots(a, line, ['control'])[0]

def own(guides=GUIDES):
    "Which gene each guide acts on."
    return np.eye(GENES, dtype=bool)[[int(o[1:]) for o in guides]]

def challenge(capsys, *args, values='counts', files=('truth.h5ad', 'mine.h5ad')):
    "The table of challenge.csv with measures as rows, and what was printed."
    said = evaluate(capsys, '--profile', 'vcc2026', '--values', values, *args, files=files)
    return pd.read_csv('out/challenge.csv').set_index(['model', 'measure']), said

def baseline_of(cells, train, controls, line='x', guides=GUIDES):
    "The measures of the mean response, from the formula: cells of `train`, of the first guides, say what it is."
    mean = np.array([o.mean(0, dtype=float) for o in train])
    profile = np.ma.masked_array(mean, own(guides)[:len(train)]).mean(0).data
    made = [mean_response(profile, controls, o.shape[0], line, name) for o, name in zip(cells, guides)]
    return challenge_scores(made, cells, controls, own(guides))

def check(table, pred, baseline, replicate):
    "The table of a model is what the functions of arrays give."
    assert list(table.index) == [*MEASURES, 'total']
    for column, known in dict(value=pred, baseline=baseline, replicate=replicate).items():
        np.testing.assert_allclose(table[column][:6], known[[*MEASURES]], rtol=1e-9, atol=1e-12)
        assert np.isnan(table[column]['total'])
    scores = challenge_total(pred, baseline, replicate)
    np.testing.assert_allclose(table.score, scores[[*MEASURES, 'total']], rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize('values', ['counts', 'lognorm'])
def test_the_challenge_is_what_functions_of_arrays_give(at, capsys, values):
    truth, mine = (screen(k, lines=['x']) for k in (0, 1))
    if values == 'lognorm':
        for a in (truth, mine): a.X = np.log1p(1e4*a.X/a.X.sum(1, keepdims=True))
    write(truth=truth, mine=mine)
    found, said = challenge(capsys, values=values)
    def to(cells): return counts_of(as_counts(sparse.csr_array(cells)) if values == 'lognorm' else cells)
    true, pred, ctrl = [to(o) for o in lots(truth)], [to(o) for o in lots(mine)], to(control(truth))
    baseline = combined(baseline_of(true, true, ctrl))
    check(found.loc['mine'], combined(challenge_scores(pred, true, ctrl, own())), baseline,
          replicate_scores(true, ctrl, own()))
    assert ('every cell weighs the same' in said) == (values == 'lognorm')
    assert 'mean response is that of the truth itself' in said and 'out/challenge.csv' in said

def test_each_state_is_a_panel_and_training_cells_say_what_the_mean_response_is(at, capsys):
    truth, mine, train = screen(0), screen(1), screen(2, guides=GUIDES[:4])
    write(truth=truth, mine=mine, train=train)
    found, said = challenge(capsys, '--train', 'train.h5ad')
    tables = [challenge_scores(lots(mine, k), lots(truth, k), control(truth, k), own()) for k in 'xy']
    np.testing.assert_allclose(found.loc['mine'].value[:6], combined(pd.concat(tables))[[*MEASURES]])
    each = [baseline_of(lots(truth, k), lots(train, k, GUIDES[:4]), control(truth, k), k) for k in 'xy']
    np.testing.assert_allclose(found.loc['mine'].baseline[:6], combined(pd.concat(each))[[*MEASURES]])
    assert 'the mean response is that of the training cells' in said

def relabelled(a, to):
    "Cells of `a` called after other guides."
    return ad.AnnData(a.X, obs=a.obs.assign(guide=a.obs.guide.map(lambda o: to.get(o, o))), var=a.var)

def mean_of(a):
    "Cells of any guide, called after each."
    a = a[a.obs.guide != 'control']
    return ad.AnnData(a.X[rng(0, 'mixed').permutation(len(a))], obs=a.obs, var=a.var)

def test_a_copy_is_at_the_best_and_wrong_guides_are_below_the_mean_response(at, capsys):
    turned = dict(zip(GUIDES, GUIDES[1:] + GUIDES[:1]))
    new, mixed = screen(1, lines=['x']), mean_of(screen(2, lines=['x'], n=60))
    write(truth=screen(0, lines=['x']), new=new, turned=relabelled(new, turned), mixed=mixed)
    (at/'copy.h5ad').write_bytes((at/'truth.h5ad').read_bytes())
    found, _ = challenge(capsys, files=['truth.h5ad', 'copy.h5ad', 'new.h5ad', 'turned.h5ad', 'mixed.h5ad'])
    best = found.value['copy'][[*MEASURES]].drop('expr_mse_capped')
    assert list(best) == [1, 1, 1, 1, 0] and found.score['copy', 'expr_mse_capped'] == 1
    total = found.score.unstack().total
    assert total['copy'] > total['new'] > .8 and total['turned'] < 0 and abs(total['mixed']) < .5
    assert found.value['turned', 'pds_cosine'] < .7 < .9 < found.value['new', 'pds_cosine']

def test_predicted_controls_and_the_order_of_cells_and_genes_do_not_matter(at, capsys):
    truth, mine = screen(0), screen(1)
    other = mine[rng(0).permutation(mine.n_obs), rng(1).permutation(GENES)].copy()
    other.X[(other.obs.guide == 'control').to_numpy()] = 7
    write(truth=truth, mine=mine, other=other)
    found, _ = challenge(capsys, files=['truth.h5ad', 'mine.h5ad', 'other.h5ad'])
    np.testing.assert_allclose(found.loc['mine'], found.loc['other'], rtol=1e-9, atol=1e-9)

def test_conditions_that_are_absent_leave_no_score_unless_only_shared_ones_are_asked_for(at, capsys):
    truth, mine, kept = screen(0, lines=['x']), screen(1, lines=['x']), GUIDES[:4]
    part = mine[mine.obs.guide.isin(kept)].copy()
    write(truth=truth, mine=mine, part=part)
    files = ['truth.h5ad', 'mine.h5ad', 'part.h5ad']
    found, said = challenge(capsys, files=files)
    assert found.loc['mine'].score.notna().all() and found.loc['part'].score.isna().all()
    assert 'part does not predict 2 of 6 conditions' in said
    true, ctrl, few = lots(truth, guides=kept), control(truth), own(kept)
    known = combined(challenge_scores(lots(part, guides=kept), true, ctrl, few))
    np.testing.assert_allclose(found.loc['part'].value[:6], known[[*MEASURES]])
    shared, _ = challenge(capsys, '--intersection', files=files)
    baseline = combined(baseline_of(true, true, ctrl, guides=kept))
    for name in ('mine', 'part'): check(shared.loc[name], known, baseline, replicate_scores(true, ctrl, few))

def test_where_it_cannot_be_made_a_note_says_why_and_the_rest_is_scored(at, capsys):
    truth, mine = screen(0, n=8, controls=12), screen(1, n=8, controls=12)
    write(truth=truth, mine=mine)
    challenge(capsys)
    lonely = truth[(truth.obs.guide != 'G2') | ~truth.obs.duplicated()].copy()
    write(lonely=lonely)
    said = evaluate(capsys, '--profile', 'vcc2026', '--values', 'counts', files=['lonely.h5ad', 'mine.h5ad'])
    assert 'note: the challenge is not scored: one measured cell cannot be halved: x, G2; y, G2' in said
    assert set(pd.read_parquet('out/scores.parquet').metric) == set(PROFILES['quick'])
    assert not (at/'out'/'challenge.csv').exists()  # that of the first evaluation is gone
    rows = mine[~mine.obs.duplicated(['line', 'guide'])].copy()
    write(rows=rows)
    said = evaluate(capsys, '--profile', 'vcc2026', '--values', 'counts', '--predicted', 'means',
                    files=['truth.h5ad', 'rows.h5ad'])
    assert 'its measures need cells, and predictions are means' in said
