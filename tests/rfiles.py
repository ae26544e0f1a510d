"""Files in the layout of R objects, for tests.

R's serialization, written from its description ('R Internals', chapter 1.8) and not with the library that reads it."""
import gzip, struct
import numpy as np, pandas as pd

SYM, LIST, ENV, CHAR, LGL, INT, REAL, STR, VEC, S4 = 1, 2, 4, 9, 10, 13, 14, 16, 19, 25
NULL, GLOBALENV, EMPTYENV, REF = 254, 253, 242, 255
OBJECT, ATTRIBUTES, TAG, IS_S4, ASCII, UTF8 = 1 << 8, 1 << 9, 1 << 10, 1 << 16, 1 << 18, 1 << 15
NA_INT = -2**31

class S4Object:
    "An S4 object of a class, with its slots."
    def __init__(self, kind, package='methods', **slots): self.kind, self.package, self.slots = kind, package, slots

class Environment(dict): "An environment with variables."

class Matrix:
    "A logical matrix with the names of its rows and columns, of a class (the LogMap of Seurat 5)."
    def __init__(self, values, rows, columns, kind):
        self.values, self.rows, self.columns, self.kind = np.asarray(values, bool), rows, columns, kind

class Writer:
    def __init__(self): self.out, self.known = [], {}
    def int(self, *values): self.out.append(struct.pack(f'>{len(values)}i', *values))

    def string(self, s):
        "A CHARSXP; None is NA."
        if s is None: return self.int(CHAR, -1)
        b = s.encode()
        self.int(CHAR | (ASCII if s.isascii() else UTF8), len(b))
        self.out.append(b)

    def symbol(self, name):
        "A name, or a reference to its first occurrence."
        if name in self.known: return self.int(REF | self.known[name] << 8)
        self.known[name] = len(self.known) + 1
        self.int(SYM)
        self.string(name)

    def pairs(self, d):
        "A linked list with tags."
        for k, v in d.items():
            self.int(LIST | TAG)
            self.symbol(k)
            self.value(v)
        self.int(NULL)

    def vector(self, kind, values, attributes={}, flags=0):
        self.int(kind | (ATTRIBUTES if attributes else 0) | flags, len(values))
        if kind == REAL: self.out.append(np.asarray(values, '>f8').tobytes())
        elif kind in (INT, LGL): self.out.append(np.asarray(values, '>i4').tobytes())
        else:
            for v in values: (self.string if kind == STR else self.value)(v)
        if attributes: self.pairs(attributes)

    def value(self, v):
        if v is None: self.int(NULL)
        elif isinstance(v, S4Object): self.s4(v)
        elif isinstance(v, Environment): self.environment(v)
        elif isinstance(v, Matrix):
            self.vector(LGL, v.values.T.ravel(), {
                'dim': np.array(v.values.shape, np.int32),
                'dimnames': [list(v.rows), list(v.columns)],
                'class': _Class(v.kind, 'SeuratObject')}, OBJECT | IS_S4)
        elif isinstance(v, _Class): self.vector(STR, [v.kind], {'package': v.package})
        elif isinstance(v, pd.DataFrame):
            names = {'names': list(v.columns), 'row.names': list(v.index), 'class': 'data.frame'}
            self.vector(VEC, [c.array for _, c in v.items()], names, OBJECT)
        elif isinstance(v, pd.Categorical):
            numbers = np.where(v.codes < 0, NA_INT, v.codes.astype(np.int32) + 1)
            self.vector(INT, numbers, {'levels': list(v.categories), 'class': 'factor'}, OBJECT)
        elif isinstance(v, dict): self.vector(VEC, list(v.values()), {'names': list(v)} if v else {})
        elif isinstance(v, str): self.vector(STR, [v])
        elif _is_texts(v): self.vector(STR, v)
        elif isinstance(v, (list, tuple)): self.vector(VEC, v)
        else:
            v = np.asarray(v)
            if v.dtype.kind in 'OUT': self.vector(STR, [None if o is None or o is np.nan else str(o) for o in v])
            else: self.vector(REAL if v.dtype.kind == 'f' else INT, v)

    def s4(self, o):
        self.int(S4 | OBJECT | ATTRIBUTES | IS_S4)
        self.pairs({**o.slots, 'class': _Class(o.kind, o.package)})

    def environment(self, e):
        self.known[id(e)] = len(self.known) + 1
        self.int(ENV, 0, EMPTYENV, NULL)
        chains = [{}, {}, e, {}]  # a hash table of which one chain is filled
        self.int(VEC, len(chains))
        for c in chains: self.pairs(c)
        self.int(NULL)

class _Class:
    def __init__(self, kind, package): self.kind, self.package = kind, package

def _is_texts(v):
    "Whether `v` is a sequence of texts, or of texts and None."
    if not isinstance(v, (list, tuple)): return False
    return all(o is None or isinstance(o, str) for o in v) and any(isinstance(o, str) for o in v)

def write_rds(path, o, times=1):
    "Write `o` as R's `saveRDS` does; `times` 2 for a file that was compressed once more where it was put."
    w = Writer()
    w.out.append(b'X\n')
    w.int(3, 0x040300, 0x030500, 5)
    w.out.append(b'UTF-8')
    w.value(o)
    data = b''.join(w.out)
    for _ in range(times): data = gzip.compress(data, mtime=0)
    path.write_bytes(data)

def dgc(counts, genes=None, cells=None):
    "A `dgCMatrix`, genes x cells, of scipy's cells x genes."
    M = counts.T.tocsc()
    M.sort_indices()
    return S4Object(
        'dgCMatrix', 'Matrix', i=M.indices.astype(np.int32), p=M.indptr.astype(np.int32),
        Dim=np.array(M.shape, np.int32), Dimnames=[None if o is None else list(o) for o in (genes, cells)],
        x=M.data.astype(float), factors=[])

def seurat(counts, genes, obs, version=4):
    "A Seurat object; with version 5 its assay has layers without names."
    cells = list(obs.index)
    if version < 5:
        matrices = dict(counts=dgc(counts, genes, cells), data=dgc(counts, genes, cells))
        assay = S4Object('Assay', 'SeuratObject', **matrices, key='rna_', misc=[])
    else:
        of_cells = Matrix(np.ones((len(cells), 1)), cells, ['counts'], 'LogMap')
        of_genes = Matrix(np.ones((len(genes), 1)), genes, ['counts'], 'LogMap')
        assay = S4Object(
            'Assay5', 'SeuratObject', layers={'counts': dgc(counts)}, cells=of_cells, features=of_genes,
            default=np.array([1], np.int32), key='rna_')
    more = {'meta.data': obs, 'active.assay': 'RNA', 'project.name': 'test', 'commands': {}}
    return S4Object('Seurat', 'SeuratObject', assays={'RNA': assay}, **more)

def cds(counts, var, obs, environment=False):
    "A monocle3 `cell_data_set`; with `environment` its assays are a reference object, as before 2020."
    def table(t, names):
        return S4Object(
            'DFrame', 'S4Vectors', rownames=names, nrows=np.array([len(t)], np.int32),
            listData={k: c.array for k, c in t.items()}, elementType='ANY', metadata=[])
    assays = S4Object('SimpleList', 'S4Vectors', listData={'counts': dgc(counts)})
    if environment:
        held = {'.xData': Environment(data=assays)}
        assays = S4Object('ShallowSimpleListAssays', 'SummarizedExperiment', **held)
    else: assays = S4Object('SimpleAssays', 'SummarizedExperiment', data=assays)
    ranges = S4Object('CompressedGRangesList', 'GenomicRanges', elementMetadata=table(var, None))
    return S4Object(
        'cell_data_set', 'monocle3', preprocess_aux=[], int_metadata={}, rowRanges=ranges,
        colData=table(obs, list(obs.index)), assays=assays, NAMES=None, metadata=[])
