"""What a GPU pays for its batches.

Rows made dense beside memory that is copied, epochs beside the same steps on batches that were made before."""
from functools import partial
import numba, numpy as np, torch
from perturbench.core import rng
from perturbench.loaders.batches import Batches
from perturbench.loaders.store import Cells, aligned, plain_gather
from perturbench.models.base import ModelInfo
from perturbench.models.zoo import build_model
from perturbench.train import Budget
from perturbench.trainer import fit_batches
from _common import epochs_in_turn, header, in_turn, options, random_store, ratio, report, table

SIZES = dict(cells=91_168, genes=5_575, perturbations=105, batch=4_000, width=5_376, calls=20, rounds=9)
DTYPES = {'bfloat16': torch.bfloat16, 'float32': torch.float32}

def device_seconds(f, before):
    """How long the device takes over what `f` asks for.

    All of it is asked while `before` keeps the device busy: Python's own time is hidden."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    f()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)/1e3

def gathers(far, o):
    "A table of ways to make rows dense, and the ratios of their rates to that of a copy."
    a, b = torch.empty(2, 2**30, dtype=torch.uint8, device=far.device)
    asked = [torch.as_tensor(rng(1, i).integers(far.n_cells, size=o.batch), device=far.device) for i in range(o.calls)]
    parts, longest = [far.resident[k] for k in ('indptr', 'indices', 'values')], far.resident['longest']
    def plain(rows, dtype):
        out = aligned(len(rows), far.n_genes, dtype, far.device)
        plain_gather(*parts, rows, out, longest)
        return out
    def each(f, dtype): return lambda: [f(x, dtype=dtype) for x in asked]
    def copy():
        for _ in range(o.calls): b.copy_(a)
    for dtype in DTYPES.values(): assert torch.equal(far.dense(asked[0], dtype=dtype), plain(asked[0], dtype))
    kinds = [(name, k, f) for k in DTYPES for name, f in (('CellStore.dense', far.dense), ('plain_gather', plain))]
    ways = {'copy': copy} | {(name, k): each(f, DTYPES[k]) for name, k, f in kinds}
    t = in_turn(ways, o.rounds, partial(device_seconds, before=copy))
    size = {k: o.batch*far.n_genes*DTYPES[k].itemsize for k in DTYPES}
    rate = lambda n_bytes, s: f'{n_bytes*o.calls/np.median(s)/1e9:,.0f}'
    share = {(name, k): ratio(t['copy'], t[name, k])*size[k]/(2*a.nbytes) for name, k, _ in kinds}
    rows = [['tensor.copy_', '', rate(2*a.nbytes, t['copy']), '']]
    rows += [[name, k, rate(size[k], t[name, k]), f'{share[name, k]:.0%}'] for name, k, _ in kinds]
    goal = lambda k: (
        f'CellStore.dense to {k}, GB/s over those of a copy: at least 30% wanted -> {share["CellStore.dense", k]:.0%}')
    return table(['way', 'type', 'GB/s', 'of the copy'], rows), [goal(k) for k in DTYPES]

def epochs(far, near, o):
    """A table of epochs with and without compilation, and ratios of their times.

    The ratios are of epochs with rows on the device to those on ready batches."""
    everything, is_control = np.ones(far.n_cells, bool), far.design.is_control
    def batches(store, n=None):
        cells = store.select(everything)
        some = Cells(store, cells.where(~is_control).rows[:n])
        return Batches(some, cells.where(is_control), 'matched', o.batch, dtype=torch.bfloat16)
    ways = {'rows on the device': batches(far), 'rows on the host': batches(near), 'ready': list(batches(far))}
    (val,), n, rows, goals = batches(far, 8), len(ways)*(o.rounds + 1), [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        info = ModelInfo(far.genes, far.design, far.select(everything).n)
        model = build_model(
            'latent_additive', info, encoder_width=o.width, latent_dim=64, dropout=.1, inject_covariates_encoder=False,
            inject_covariates_decoder=False, lr=6.78e-5)
        budget = Budget(max_epochs=n, min_epochs=n, batch_size=o.batch, precision='bf16', compile=compiled)
        t = epochs_in_turn(lambda *loaders: fit_batches(model, loaders, budget), ways, val, o.rounds)
        over = {k: ratio(s, t['ready']) for k, s in t.items()}
        rows += [[
            k,
            'yes' if compiled else 'no',
            f'{np.median(s):.4f}',
            f'{np.median(s)/len(ways["ready"])*1e3:.2f}',
            f'{over[k]:.3f}'] for k, s in t.items()]
        goals.append(
            f"epoch{' compiled' * compiled} over the same steps on ready batches: at most 1.15 wanted -> "
            f"{over['rows on the device']:.3f}")
    return table(['batches', 'compiled', 'epoch, s', 'step, ms', 'over ready'], rows), goals

def main():
    o = options(**SIZES)
    if not torch.cuda.is_available(): return print('this benchmark needs a CUDA device, and there is none')
    store = random_store(o.cells, o.genes, n_perturbations=o.perturbations, n_states=1)
    far, near = store.to('cuda'), store.to('cuda', resident=False)
    kinds, shares = gathers(far, o)
    trained, ratios = epochs(far, near, o)
    report([
        f'Device: {torch.cuda.get_device_name()}', *header(o, 'numpy', 'numba', 'torch', 'triton', 'lightning'),
        f'{store}; on the host numba has {numba.get_num_threads()} threads, torch {torch.get_num_threads()}', '',
        *shares, *ratios, '', *kinds, '',
        f'Batches of {o.batch:,} random rows, each to memory of its own: GB/s are of the dense numbers written. Those',
        'of a copy, of 1 GiB within the device, are of the bytes read and the bytes written. The time is between two',
        f'events around {o.calls} calls, all queued while it is busy.',
        '', *trained, '',
        f'latent_additive, {o.width:,} wide, with 64 codes, in bfloat16, by perturbench.trainer.fit_batches: one',
        'training without compilation and one with it, whose epochs take their batches in turn from Batches over rows',
        'on the device, from Batches over rows on the host, and from a list of dense batches on the device. The time',
        'of the steps alone counts, between two synchronisations. Times are medians, ratios medians of those of a',
        'round.'],
           o, SIZES)

if __name__ == '__main__': main()
