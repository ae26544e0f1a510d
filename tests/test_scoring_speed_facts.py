"What scoring does once: ranks of a side, tests against controls that are handed back, moments; and what it lets go."
import numpy as np, pytest, weakref
from scipy import sparse
from perturbench.metrics import accuracy
from perturbench.metrics.de import Reference
from perturbench.metrics.distributions import pair_sums, sums_to_each
from perturbench.metrics.effects import Profiles
from perturbench.scoring.asked import rows_in_order
from perturbench.scoring import profiles
from perturbench.scoring.profiles import score

@pytest.fixture
def ranked_rows(monkeypatch):
    "The number of rows that are ranked, one number a call."
    seen, made = [], accuracy.centred_ranks
    def counted(rows):
        seen.append(len(rows))
        return made(rows)
    monkeypatch.setattr(accuracy, 'centred_ranks', counted)
    return seen

def sides(n=6):
    r = np.random.default_rng(0)
    return [Profiles(r.normal(size=(n, 30)), r.normal(size=30)) for _ in range(3)]

def test_a_side_is_ranked_once_in_each_space(ranked_rows):
    pred, *truths = sides()
    for true in truths*2: score(pred, true, [0]*6, ['spearman_average', 'spearman_delta'])
    assert ranked_rows == [6]*6 # Two spaces of a prediction and two truths

def test_ranks_of_a_large_table_are_not_kept(ranked_rows, monkeypatch):
    monkeypatch.setattr(profiles, 'SMALL', 0)
    pred, true, _ = sides()
    tables = [score(pred, true, [0]*6, ['spearman_average']) for _ in range(2)]
    assert ranked_rows == [6]*4 and {key[0] for side in (pred, true) for key in side.kept} == {'finite'}
    assert tables[0].equals(tables[1])

def test_kept_ranks_change_no_bit():
    pred, true, _ = sides()
    score(pred, true, [0]*6, ['spearman_delta'])
    kept = score(pred, true, [0]*6, ['spearman_delta']).value.to_numpy()
    anew = accuracy.spearman(pred.rows('delta'), true.rows('delta'))
    assert kept.tolist() == anew.tolist()

def test_a_reference_equals_another_whose_genes_have_the_same_values():
    cells = np.random.default_rng(1).poisson(1, (9, 5)).astype(np.float32)
    other = cells.copy()
    other[0, 0] += 1
    known = Reference(cells)
    assert known.equals(Reference(cells[::-1])) and known.equals(Reference(sparse.csr_array(cells)))
    assert not known.equals(Reference(other)) and not known.equals(Reference(cells[1:]))

@pytest.mark.parametrize('sizes', [(1, 1), (25, 26), (300, 700), (0, 3)])
def test_sums_to_samples_side_by_side_are_those_to_each(sizes):
    r = np.random.default_rng(2)
    x, samples = r.normal(size=(70, 4)), [r.normal(size=(n, 4)) for n in sizes]
    together = sums_to_each(['root', 'kernel'], 2., x, samples)
    for found, sample in zip(together, samples):
        np.testing.assert_allclose(found, pair_sums(['root', 'kernel'], 2., x, sample), rtol=1e-12, atol=1e-12)

def test_arrays_of_files_are_let_go_one_by_one(monkeypatch):
    import perturbench.scoring.asked as asked
    files = [[sparse.random(20, 10, .5, 'csr', dtype=np.float32, rng=np.random.default_rng(k))] for k in range(2)]
    arrays = [weakref.ref(a) for X, in files for a in (X.indices, X.data)]
    left, place = [], asked.place_rows
    def counted(*args):
        left.append(sum(a() is not None for a in arrays))
        place(*args)
    monkeypatch.setattr(asked, 'place_rows', counted)
    rows_in_order(files, np.arange(40)[::-1])
    assert left == [4, 3, 2, 1]
