"Entropic transport against POT, and what must hold for any plan."
import numpy as np, pytest, torch
from perturbench.models.transport import draw_pairs, sinkhorn, squared_distances

def problem(seed, n, m, d=5):
    "Squared distances of two clouds, over their mean, and weights of both."
    r = np.random.default_rng(seed)
    cost = ((r.normal(size=(n, 1, d)) - r.normal(.5, 1, (1, m, d)))**2).sum(2)
    a, b = r.dirichlet(np.full(n, 5.)) + 1e-3, r.dirichlet(np.full(m, 5.)) + 1e-3
    return cost/cost.mean(), a/a.sum(), b/b.sum()

@pytest.mark.parametrize('epsilon', [.01, .1, 1., 10.])
@pytest.mark.parametrize('n, m', [(1, 4), (12, 12), (30, 17), (150, 200)])
def test_plans_are_those_of_pot(n, m, epsilon):
    ot = pytest.importorskip('ot', reason='a development dependency that a GPU machine may lack')
    for seed in range(3 if n < 100 else 1):
        cost, a, b = problem(seed, n, m)
        how = dict(method='sinkhorn_log', numItermax=20_000, stopThr=1e-10, warn=False)
        theirs = ot.sinkhorn(a, b, cost, epsilon, **how)
        given = [torch.from_numpy(o) for o in (cost, a, b)]
        ours = sinkhorn(given[0], epsilon, *given[1:], relative=False, n_turns=20_000, tolerance=1e-10).plan
        assert np.abs(ours.numpy() - theirs).max() < 1e-4*theirs.max()

def test_a_batch_is_its_problems_alone_and_order_does_not_matter():
    cost = torch.stack([torch.from_numpy(problem(seed, 20, 20)[0]) for seed in range(4)])
    together = sinkhorn(cost, .05, tolerance=1e-12).plan
    for one, plan in zip(cost, together): torch.testing.assert_close(sinkhorn(one, .05, tolerance=1e-12).plan, plan)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sinkhorn(cost[:, order], .05, tolerance=1e-12).plan, together[:, order])
    torch.testing.assert_close(sinkhorn(cost.mT, .05, tolerance=1e-12).plan, together.mT, atol=1e-9, rtol=1e-6)

@pytest.mark.parametrize('scale', [1e-6, 1., 1e6])
def test_any_entropy_and_any_scale_give_a_plan(scale):
    "Columns have their weights, and nothing is lost or infinite, also long before the plan has settled."
    cost = scale*torch.from_numpy(problem(0, 25, 40)[0])
    for epsilon in (1e-6, 1e-3, 1., 1e6):
        plan = sinkhorn(cost, epsilon, n_turns=50).plan
        assert plan.isfinite().all() and (plan >= 0).all()
        torch.testing.assert_close(plan.sum(0), torch.full((40,), 1/40, dtype=torch.float64))
    torch.testing.assert_close(plan, torch.full((25, 40), 1e-3, dtype=torch.float64), atol=1e-8, rtol=1e-4)

def test_less_entropy_costs_less():
    cost = torch.from_numpy(problem(1, 30, 30)[0])
    moved = [float((sinkhorn(cost, e, n_turns=5000).plan*cost).sum()) for e in (.01, .1, 1., 100.)]
    assert moved == sorted(moved) and abs(moved[-1] - 1) < .05

def test_pairs_come_as_often_as_the_plan_says_and_again_with_the_same_generator():
    plan = sinkhorn(torch.from_numpy(problem(2, 6, 4)[0]), .2).plan
    found = [draw_pairs(plan, 60_000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    share = torch.zeros(6, 4, dtype=torch.float64)
    share.index_put_(tuple(found[0]), torch.tensor(1/60_000, dtype=torch.float64), accumulate=True)
    assert float((share - plan).abs().max()) < 5*(float(plan.max())/60_000)**.5
    assert all(torch.equal(x, y) for x, y in zip(*found[:2]))
    assert not torch.equal(found[0].row, found[2].row)

def test_distances_far_from_zero_keep_their_digits():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 50, generator=g), torch.randn(7, 50, generator=g)
    torch.testing.assert_close(squared_distances(x + 1e3, y + 1e3), torch.cdist(x, y).square(), atol=.02, rtol=1e-3)

@pytest.mark.gpu
def test_on_a_gpu_plans_are_the_same():
    cost = torch.from_numpy(np.stack([problem(seed, 40, 40)[0] for seed in range(8)]))
    torch.testing.assert_close(sinkhorn(cost.cuda(), .05, tolerance=1e-10).plan.cpu(),
                               sinkhorn(cost, .05, tolerance=1e-10).plan, atol=1e-9, rtol=1e-5)
