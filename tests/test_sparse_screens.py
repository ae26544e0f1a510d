"Every model on screens in which training sees next to nothing: one perturbation, states of controls alone, a sham."
import anndata as ad, numpy as np, pandas as pd, pytest, torch
import perturbench.models.zoo
from perturbench.core import rng
from perturbench.data.preprocess import prepare
from perturbench.models.base import MODELS, build_model
from perturbench.predict import predict_task
from perturbench.tasks import open_task
from perturbench.train import fit, model_info

def screen_of(folder, conditions):
    "A task on `conditions`, (line, perturbation, part) -> cells; line z has controls alone, all of them in training."
    r = rng('sparse screens')
    rows = [key for key, n in (conditions | {('z', 'control', 'train'): 12}).items() for _ in range(n)]
    obs = pd.DataFrame(rows, columns=['line', 'perturbation', 'part'], index=[f'c{i}' for i in range(len(rows))])
    rate = np.where(obs.perturbation == 'A', 1.5, 1.)[:, None]*np.linspace(2, 9, 30)
    prepare(ad.AnnData(r.poisson(rate).astype(np.float32), obs=obs.drop(columns='part')), 'perturbation', 'line',
            out=folder/'screen.h5ad')
    obs.part.to_csv(folder/'split.csv', header=False)
    return open_task(dict(screen=str(folder/'screen.h5ad'), split=dict(kind='file', file=str(folder/'split.csv'))),
                     folder/'out')

CONTROLS = {(line, 'control', part): 12 for line in 'xy' for part in ('train', 'val', 'test')}
SCREENS = {
    'one perturbation, in one line': {('x', 'A', 'train'): 12, ('x', 'A', 'val'): 6, ('y', 'A', 'test'): 8},
    'a sham is all that a line has': {('x', 'A', 'train'): 12, ('x', 'sham', 'train'): 12, ('y', 'sham', 'train'): 12,
                                      ('x', 'A', 'val'): 6, ('y', 'A', 'test'): 8, ('x', 'sham', 'test'): 8},
    'a sham is all there is': {('x', 'sham', 'train'): 12, ('x', 'sham', 'val'): 6, ('y', 'sham', 'test'): 8}}

@pytest.fixture(scope='module', params=SCREENS)
def task(request, tmp_path_factory):
    return screen_of(tmp_path_factory.mktemp('sparse'), CONTROLS | SCREENS[request.param])

@pytest.mark.parametrize('name', [name for name in MODELS if 'scgpt' not in name])
def test_a_model_trains_and_predicts_finite_cells(task, name):
    torch.manual_seed(0)
    model = build_model(name, model_info(task))
    history = fit(model, task, budget=dict(max_epochs=1, batch_size=16))
    assert len(history) == (0 if hasattr(model, 'fit') else 1) and history.notna().all(axis=None)
    found = list(predict_task(model, task, controls=True))
    assert {p.condition for p in found} >= set(task.test_conditions())
    assert all(len(p.cells) and np.isfinite(p.cells).all() for p in found)
