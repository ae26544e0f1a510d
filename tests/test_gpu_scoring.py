"Scoring where there is a GPU: distances of cells and of profiles are made there, and the scores are those of the CPU."
import pandas as pd, pytest, torch
from perturbench.metrics import ranks
from perturbench.models.zoo import build_model
from perturbench.predict import predict_task
from perturbench.scoring import cells
from perturbench.scoring.evaluation import Evaluation
from perturbench.train import fit, model_info

def scores(task):
    "All scores of two baselines."
    evaluation, tables = Evaluation(task), []
    for name in ('control_mean', 'additive'):
        model = build_model(name, model_info(task))
        fit(model, task)
        tables.append(evaluation.score(predict_task(model, task, controls=True)))
    return pd.concat(tables, ignore_index=True)

def assert_near(found, expected, rtol):
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=rtol, atol=rtol)

def test_tables_of_all_pairs_are_those_of_numpy(monkeypatch, task):
    "A device that is not named 'cpu' takes the way of a GPU."
    expected = scores(task)
    for room in (ranks, cells): monkeypatch.setattr(room, 'device', lambda: 'cpu:0')
    assert_near(scores(task), expected, 1e-9)

@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_the_cpu(monkeypatch, task):
    found = scores(task)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert_near(found, scores(task), 1e-4)
