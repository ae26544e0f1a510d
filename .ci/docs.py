"""Name the faults of the web site that show without Quarto; `make docs` does so before it builds.

Reads _quarto.yml, the notebooks, and what nbdev makes of them for Quarto (_proc)."""
import ast, os, re, subprocess, sys, tempfile
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
import nbformat, yaml

ROOT = Path(__file__).resolve().parents[1]
NEEDED = { # settings of _quarto.yml, and what happens without them
    'format.html.keep-md': (True, 'the link of a page to its .html.md leads nowhere'),
    'format.html.code-overflow': ('wrap', 'long lines of code are cut'),
    'website.sidebar.collapse-level': (1, 'the sidebar shows every page of every section')}

# The command nbdev_proc_nbs without the search for garbage, which takes longer than the work: the shell in which it
# executes a notebook searches all objects when Python ends, and there are as many shells as notebooks.
PROCESS = '''
import gc
gc.disable()
from nbdev.quarto import nbdev_proc_nbs
nbdev_proc_nbs(n_workers=0)
gc.freeze()
'''

class Page(NamedTuple):
    name: str # the path of its notebook in nbs
    cells: list # as they are written
    shown: list # as nbdev hands them to Quarto

class Picture(NamedTuple):
    alt: str # what is read out in its place
    path: str

def process(root):
    "Run nbdev_proc_nbs in the folder `root`; return the fault that stopped it, or None."
    with tempfile.TemporaryDirectory() as folder:
        quarto = Path(folder)/'quarto' # where there is no program of this name, nbdev tries to install one
        quarto.write_text('#!/bin/sh\n')
        quarto.chmod(0o755)
        path = os.pathsep.join([folder, os.environ.get('PATH', '')])
        environment = {**os.environ, 'PATH': path, 'PYTHONPATH': str(root)}
        command = [sys.executable, '-c', PROCESS]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return None if done.returncode == 0 else stopped_by(done.stderr)

def stopped_by(said):
    "The fault that a traceback of nbdev tells: the first error and the cell it is of."
    first, _, rest = said.partition('\n\nThe above exception was the direct cause')
    error = first.strip().split('\n')[-1]
    where = re.search(r'^Exception: Error in (.*)', rest, re.M | re.S)
    return f'nbdev_proc_nbs stops with {error}' + (f', in {" ".join(where[1].split())}' if where else '')

# What is there

def quarto_settings(root):
    "What _quarto.yml holds."
    return yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))

def setting(config, path, default=None):
    "The value at `path`, such as 'format.html.toc'."
    for key in path.split('.'):
        if not isinstance(config, dict) or key not in config: return default
        config = config[key]
    return config

def read_pages(root):
    "The pages of the site by name."
    names = sorted(str(p.relative_to(root/'_proc')) for p in (root/'_proc').rglob('*.ipynb'))
    return {n: Page(n, read_cells(root/'nbs'/n), read_cells(root/'_proc'/n)) for n in names if (root/'nbs'/n).exists()}

def read_cells(path):
    "The cells of a notebook, without a check of its format: nbdev adds keys of its own."
    return nbformat.v4.reads(path.read_text(encoding='utf-8')).cells

def options(cell):
    "The options of a code cell, which its first lines give as YAML; None where they are no YAML."
    lines = re.match(r'(\s*#\|.*(\n|$))*', cell.source)[0].split('\n')
    text = '\n'.join(re.sub(r'^\s*#\| ?', '', l) for l in lines if ':' in l)
    try: return yaml.safe_load(text) or {}
    except yaml.YAMLError: return None

def code_cells(cells): return [c for c in cells if c.cell_type == 'code']

def outputs(page, kind):
    "What the code cells of a page give as `kind`, such as 'text/html'."
    return [o.data[kind] for c in code_cells(page.shown) for o in c.outputs if kind in o.get('data', {})]

def texts(page):
    "All markdown of a page: its own and that of its outputs."
    return [c.source for c in page.shown if c.cell_type == 'markdown'] + outputs(page, 'text/markdown')

BLOCK = re.compile(r'^(`{3,}|~{3,}).*?^\1', re.M | re.S) # of code
INLINE = re.compile(r'(`+)[^\n]+?\1')
LINK = re.compile(r'(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)')
PICTURE = re.compile(r'!\[([^\]]*)\]\(([^)\s]+)[^)]*\)')
HEADING = re.compile(r'^#{1,6} +(.+?)[ #]*$', re.M)

def prose(page):
    "The texts of a page without blocks of code."
    return [BLOCK.sub('', t) for t in texts(page)]

def links(page):
    "Where the links of a page lead."
    return [link for t in prose(page) for link in LINK.findall(INLINE.sub('', t))]

def pictures(page):
    "The pictures in the markdown of a page."
    return [Picture(*found) for t in prose(page) for found in PICTURE.findall(t)]

def anchors(page):
    "What a link may name after the # on this page: its headings as pandoc calls them."
    found, seen = set(), Counter()
    for name in (identifier(h) for t in prose(page) for h in HEADING.findall(t)):
        found.add(f'{name}-{seen[name]}' if seen[name] else name)
        seen[name] += 1
    return found

def identifier(heading):
    "The anchor of a heading: letters, digits and _ - . in lower case, from the first letter on, with - for spaces."
    named = re.search(r'\{#([\w.-]+)\}$', heading)
    if named: return named[1]
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
    text = '-'.join(re.sub(r'[^\w\s.-]', '', text).lower().split())
    return re.sub(r'^[\W\d_]+', '', text) or 'section'

# What is wrong with it

def settings_faults(root, config):
    "Settings without which the site reads badly."
    for path, (value, otherwise) in NEEDED.items():
        if setting(config, path) != value: yield f'_quarto.yml: without {path}: {str(value).lower()} {otherwise}.'
    css = setting(config, 'format.html.css')
    if css and not (root/'nbs'/css).exists(): yield f'_quarto.yml: the style sheet {css} is not there.'
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    if setting(config, 'project.output-dir') != ini['DEFAULT']['doc_path']:
        yield '_quarto.yml: project.output-dir is not the doc_path of settings.ini, where nbdev looks for the site.'

def listed(contents):
    "The pages that the contents of a sidebar or a navigation bar name, in order."
    for item in contents:
        if isinstance(item, str): yield item
        else:
            if 'href' in item: yield item['href']
            inner = item.get('contents', item.get('menu', []))
            yield from [inner] if isinstance(inner, str) else listed(inner)

def sidebar_faults(config, pages):
    "Pages that the sidebar lacks, and what it names that is no page."
    named = Counter(listed(setting(config, 'website.sidebar.contents', [])))
    for name, times in named.items():
        if '*' in name or name == 'auto':
            yield f'_quarto.yml: the sidebar lists "{name}" in alphabetical order; name the pages in reading order.'
        elif name not in pages: yield f'_quarto.yml: the sidebar names {name}, which is no notebook.'
        elif times > 1: yield f'_quarto.yml: the sidebar names {name} {times} times.'
    for name in pages:
        if name not in named: yield f'_quarto.yml: the sidebar does not name {name}.'
    for name in listed(setting(config, 'website.navbar.left', [])):
        if name not in pages: yield f'_quarto.yml: the navigation bar names {name}, which is no notebook.'

def first_cell_faults(page):
    "nbdev makes the title, the summary and options of the first cell into those of the page, and drops the rest."
    if not re.fullmatch(r'# .+\n\n> .+(\n+- [\w-]+: .+)*', page.cells[0].source):
        yield 'the first cell holds more than a title, a summary of one line and options, and nbdev drops the rest.'

def is_exported(cell): return bool(re.search(r'^#\|\s*(exports?|exporti)\b', cell.source, re.M))

def mixed_cell_faults(page):
    "nbdev executes a cell with imports, and of the others those that are exported, so what it uses may not be there."
    if not any(map(is_exported, code_cells(page.cells))): return
    for i, cell in enumerate(page.cells):
        if cell.cell_type != 'code' or is_exported(cell): continue
        tree = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', cell.source, flags=re.M))
        imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        if imports and not all(n in imports for n in tree.body):
            yield f'cell {i} has imports and other code, so nbdev executes it to build the page.'

def option_faults(page):
    "Options that Quarto cannot read."
    for cell in code_cells(page.shown):
        if options(cell) is None: yield f'the options of the cell that begins with {begin(cell)} are no YAML.'

def begin(cell): return repr(cell.source.splitlines()[0])

def figure_faults(page):
    "Figures without words for those who cannot see them."
    for cell in code_cells(page.shown):
        n = sum(any(k.startswith('image/') for k in o.get('data', {})) for o in cell.outputs)
        if n and not all_have_text(options(cell), n):
            yield f'a figure has no text: add #| fig-alt: to the cell that begins with {begin(cell)}.'

def all_have_text(given, n):
    "Whether the options `given` have a text for each of `n` figures, or show none."
    if given is None: return True # no YAML, which is a fault of its own
    if given.get('output') is False or given.get('include') is False: return True
    alt = given.get('fig-alt')
    alts = alt if isinstance(alt, list) else [alt]
    return len(alts) == n and all(isinstance(a, str) and a.strip() for a in alts)

def picture_faults(page, root):
    "Pictures in prose and in tables that have no words, or that are not there."
    for alt, path in pictures(page):
        if not alt.strip(): yield f'the picture {path} has no text.'
        if not re.match(r'https?:|data:', path) and not resolved(root, page, path).is_file():
            yield f'the picture {path} is not there.'
    for html in prose(page) + outputs(page, 'text/html'):
        for tag in re.findall(r'<img\b[^>]*>', html):
            if not re.search(r'\balt="[^"]', tag): yield f'a picture has no text: {tag[:60]}'

def resolved(root, page, path):
    "The file in _proc that `path` on `page` means."
    return Path(os.path.normpath(root/'_proc'/Path(page.name).parent/unquote(path)))

def link_faults(page, pages, root, site):
    "Links that lead nowhere, and links to this site by its address, which nothing checks."
    for link in links(page):
        if site and link.startswith(site): yield f'the link {link} names the address of this site; name the notebook.'
        elif not re.match(r'[a-z]+:', link): yield from inner_link_faults(page, pages, root, link)

def inner_link_faults(page, pages, root, link):
    "Whether `link` on `page` leads to a file, and to a heading if it names one."
    path, _, anchor = link.partition('#')
    target = resolved(root, page, path) if path else root/'_proc'/page.name
    if not target.is_file():
        yield f'the link {link} leads to no page or file.'
        return
    there = pages.get(str(target.relative_to(root/'_proc')))
    if anchor and there and anchor not in anchors(there): yield f'the link {link} leads to no heading of its page.'

def raw_link_faults(page):
    "Links in blocks of code, where they are shown as they are written."
    for block in (b[0] for t in texts(page) for b in BLOCK.finditer(t)):
        for link in re.findall(r'\[[^\]\n]*\]\(https?:[^)\n]*\)', block): yield f'a link in code is shown raw: {link}'

CITED = re.compile(r'(?<=[\[; ])@(\w+)(?=[;\]])')

def citations(page):
    "The works that a page cites, by their keys."
    return {key for t in prose(page) for key in CITED.findall(INLINE.sub('', t))}

def citation_faults(root, config, pages):
    "Citations of works that the list of references lacks, and works that no page cites."
    listed = config.get('bibliography')
    text = (root/'nbs'/listed).read_text(encoding='utf-8') if listed else ''
    known, cited = set(re.findall(r'^@\w+\{([\w-]+),', text, re.M)), {page.name: citations(page) for page in pages}
    for name, keys in cited.items():
        for key in sorted(keys - known): yield f'{name}: the work {key} is cited, and not in the list of references.'
    for key in sorted(known.difference(*cited.values())): yield f'{listed}: no page cites {key}.'

def faults(root):
    "All faults of the processed site in `root`, a sentence each."
    config, pages = quarto_settings(root), read_pages(root)
    site = setting(config, 'website.site-url')
    found = [*settings_faults(root, config), *sidebar_faults(config, pages),
             *citation_faults(root, config, pages.values())]
    for page in pages.values():
        of_page = [*first_cell_faults(page), *mixed_cell_faults(page), *option_faults(page), *figure_faults(page),
                   *picture_faults(page, root), *link_faults(page, pages, root, site), *raw_link_faults(page)]
        found += [f'{page.name}: {fault}' for fault in of_page]
    return found

if __name__ == '__main__':
    stopped = process(ROOT)
    found = [stopped] if stopped else faults(ROOT)
    print('\n'.join(found or ['The documents have no fault that shows without Quarto.']))
    sys.exit(bool(found))
