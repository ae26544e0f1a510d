"The documents: what can be seen of them without Quarto, and that the check that looks for their faults finds them."
import os, re, shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest, yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from conftest import PIXEL, ROOT
sys.path.insert(0, str(ROOT/'.ci'))
from docs import faults, identifier, process

LEFT_OUT = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.venv', '.git', '_proc', '_docs')

def copied(to, *names):
    "The files and folders `names` of the project in the new folder `to`."
    to.mkdir()
    for name in names:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, to/name, symlinks=True, ignore=LEFT_OUT)
        else: shutil.copy2(ROOT/name, to/name)
    return to

def test_the_documents_have_no_faults(tmp_path):
    root = copied(tmp_path/'all', 'nbs', 'perturbench', 'settings.ini', '_quarto.yml')
    assert process(root) is None
    found = faults(root)
    assert not found, '\n'.join(found)

def test_what_the_site_shows_beside_its_pages_is_there():
    "Its icon, the card of a link, its references and the page for a wrong address."
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    named = [config['website'][key] for key in ('favicon', 'open-graph', 'twitter-card')]
    files = [named[0], *(card['image'] for card in named[1:]), config['bibliography'], '404.qmd']
    assert [f for f in files if not (ROOT/'nbs'/f).is_file()] == []
    assert set(config['format']['html']['theme']) == {'light', 'dark'}

def test_references_are_named_once_and_say_who_what_and_when():
    entries = (ROOT/'nbs'/'references.bib').read_text().split('\n@')
    keys = [re.match(r'@?\w+\{([\w-]+),', entry)[1] for entry in entries]
    assert len(keys) == len(set(keys)) > 5
    for entry in entries: assert all(f' {field} = ' in entry for field in ('title', 'author', 'year')), entry

def test_the_version_is_the_same_in_all_papers():
    version = re.search(r'^version = (\S+)', (ROOT/'settings.ini').read_text(), re.M)[1]
    assert yaml.safe_load((ROOT/'CITATION.cff').read_text())['version'] == version
    assert f'\n## {version}\n' in (ROOT/'CHANGELOG.md').read_text()

def test_the_first_page_lists_every_model():
    from perturbench.models.zoo import MODELS
    readme = (ROOT/'README.md').read_text()
    assert [name for name in MODELS if f'| `{name}` |' not in readme] == []

def test_links_of_the_papers_lead_to_files():
    for name in ('CONTRIBUTING.md', 'CHANGELOG.md', 'CODE_OF_CONDUCT.md'):
        for link in re.findall(r'\]\((?!https?:)([^)#]+)', (ROOT/name).read_text()): assert (ROOT/link).exists(), link

def test_workflows_and_issue_forms_are_whole():
    "Every action has a version; every form has a name and asks something."
    for path in (ROOT/'.github'/'workflows').glob('*.yml'):
        jobs = yaml.safe_load(path.read_text())['jobs'].values()
        used = [step['uses'] for job in jobs for step in job['steps'] if 'uses' in step]
        assert used and all(re.search(r'@v\d+$', action) for action in used), path.name
    for path in (ROOT/'.github'/'ISSUE_TEMPLATE').glob('[!c]*.yml'):
        form = yaml.safe_load(path.read_text())
        assert form['name'] and form['description'] and form['body']

# A small site, with the settings of the real one

def figure(): return new_output('display_data', data={'image/png': PIXEL})
def code(source, *outputs): return new_code_cell(source, outputs=list(outputs))
def text(source): return new_markdown_cell(source)
def title(name): return text(f'# {name}\n\n> What it is.')

def write(root, name, *cells):
    path = root/'nbs'/f'{name}.ipynb'
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)

EXPORTED = '''#| export
def doubled(
    x:float, # A number
) -> float: # Twice as much
    "`x` and `x`."
    return 2*x'''

LONG_FIRST_CELL = '# First\n\n> What it is.\n\n- skip_exec: true\n\nAn introduction that is lost.'

def set_contents(root, contents, **more):
    "Give the site these `contents` of its sidebar, and `more` settings of html."
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    config['website']['sidebar']['contents'] = contents
    config['website']['navbar']['left'] = [{'text': 'Library', 'href': '00_core.ipynb'}]
    config['format']['html'].update(more)
    (root/'_quarto.yml').write_text(yaml.safe_dump(config))

@pytest.fixture
def small(tmp_path):
    "A site of two pages without a fault."
    root = copied(tmp_path/'small', 'settings.ini', 'Makefile', '.ci')
    (root/'perturbench').mkdir()
    (root/'perturbench'/'__init__.py').write_text('__version__ = "0.1.0"\n')
    links = '[The rest](00_core.ipynb#doubled), [files](styles.css), [an anchor](#two-words) [@one]'
    write(root, 'index', title('Small'), text(f'{links}\n\n![A dot](images/dot.png)\n\n## Two `words`'))
    dot = code('#| fig-alt: "A dot: black"\ndot', figure())
    imports = code('#| hide\nimport math')
    write(root, '00_core', title('Core'), code('#| default_exp core'), imports, code(EXPORTED), dot)
    (root/'nbs'/'references.bib').write_text('@book{one,\n}\n')
    (root/'nbs'/'styles.css').write_text('')
    (root/'nbs'/'images').mkdir()
    (root/'nbs'/'images'/'dot.png').write_bytes(b'')
    (root/'nbs'/'_quarto.yml').symlink_to('../_quarto.yml')
    set_contents(root, ['index.ipynb', {'section': 'Library', 'contents': ['00_core.ipynb']}])
    return root

def plant(root):
    "Give each kind of fault to the small site; return what is to be said of them."
    page = lambda name, *cells: write(root, f'faulty/{name}', title(name), *cells)
    write(root, 'faulty/first', text(LONG_FIRST_CELL))
    page('mixed', code(EXPORTED), code('#| hide\nimport math\nx = 1'))
    two = code('#| fig-alt: One text\ntwo', figure(), figure())
    page('alt', code('dots', figure()), two, code('#| output: false\nunseen', figure()))
    page('options', code('#| fig-alt: Left: a dot\ndot', figure()))
    html = new_output('display_data', data={'text/html': '<img src="data:x">'})
    page('pictures', text('![](../images/dot.png) ![A dot](../images/none.png)'), code('html', html))
    page('links', text(
        '[1](none.ipynb) [2](../00_core.ipynb#tripled) [3](#nowhere) '
        '[4](https://perturbench.github.io/perturbench/core.html) `[5](none)`\n\n~~~\n[6](none)\n~~~'))
    page('cites', text('Two works [@one; @none], a decorator `[@patch]`, a mail to [me](mailto:me@one)'))
    with (root/'nbs'/'references.bib').open('a') as f: f.write('@book{unread,\n}\n')
    page('raw', code(EXPORTED.replace('A number', 'A [number](https://x.org)').replace('doubled', 'raw')))
    page('unlisted')
    faulty = ('first', 'mixed', 'alt', 'options', 'pictures', 'links', 'cites', 'raw', 'gone', 'raw')
    names = [f'faulty/{n}.ipynb' for n in faulty]
    sections = [{'section': 'Faulty', 'contents': names}, {'section': 'All', 'contents': 'faulty/*'}]
    options = {'code-overflow': 'scroll', 'keep-md': False, 'css': 'none.css'}
    set_contents(root, ['index.ipynb', '00_core.ipynb', *sections], **options)
    return [
        '_quarto.yml: without format.html.keep-md: true the link of a page to its .html.md leads nowhere.',
        '_quarto.yml: without format.html.code-overflow: wrap long lines of code are cut.',
        '_quarto.yml: the style sheet none.css is not there.',
        '_quarto.yml: the sidebar names faulty/raw.ipynb 2 times.',
        '_quarto.yml: the sidebar names faulty/gone.ipynb, which is no notebook.',
        '_quarto.yml: the sidebar lists "faulty/*" in alphabetical order; name the pages in reading order.',
        '_quarto.yml: the sidebar does not name faulty/unlisted.ipynb.',
        'faulty/alt.ipynb: a figure has no text: add #| fig-alt: to the cell that begins with \'dots\'.',
        'faulty/alt.ipynb: a figure has no text: add #| fig-alt: to the cell that begins with '
        '\'#| fig-alt: One text\'.',
        'faulty/cites.ipynb: the work none is cited, and not in the list of references.',
        'references.bib: no page cites unread.',
        'faulty/first.ipynb: the first cell holds more than a title, a summary of one line and options, '
        'and nbdev drops the rest.',
        'faulty/links.ipynb: the link none.ipynb leads to no page or file.',
        'faulty/links.ipynb: the link ../00_core.ipynb#tripled leads to no heading of its page.',
        'faulty/links.ipynb: the link #nowhere leads to no heading of its page.',
        'faulty/links.ipynb: the link https://perturbench.github.io/perturbench/core.html '
        'names the address of this site; name the notebook.',
        'faulty/mixed.ipynb: cell 2 has imports and other code, so nbdev executes it to build the page.',
        'faulty/options.ipynb: the options of the cell that begins with \'#| fig-alt: Left: a dot\' are no YAML.',
        'faulty/pictures.ipynb: the picture ../images/dot.png has no text.',
        'faulty/pictures.ipynb: the picture ../images/none.png is not there.',
        'faulty/pictures.ipynb: a picture has no text: <img src="data:x">',
        'faulty/raw.ipynb: a link in code is shown raw: [number](https://x.org)']

def test_each_kind_of_fault_is_found_and_no_other(small):
    assert (process(small), faults(small)) == (None, [])
    expected = plant(small)
    assert process(small) is None
    assert sorted(faults(small)) == sorted(expected)

def test_what_stops_nbdev_is_a_fault(small):
    write(small, 'stops', title('Stops'), code(EXPORTED.replace('-> float', "-> 'Cells'")))
    said = process(small)
    assert said.startswith("nbdev_proc_nbs stops with NameError: name 'Cells' is not defined")
    assert 'show_doc(doubled)' in said

def test_the_introduction_in_a_first_cell_is_what_nbdev_drops(small):
    "The reason for the rule, seen in what nbdev makes of such a cell."
    write(small, 'first', text(LONG_FIRST_CELL))
    assert process(small) is None
    shown = (small/'_proc'/'first.ipynb').read_text()
    assert 'What it is.' in shown and 'skip_exec' in shown and 'An introduction' not in shown

@pytest.mark.parametrize('heading, anchor', [
    ('Two words', 'two-words'),
    ('`Resamples.scope`', 'resamples.scope'),
    ('3 of `a_b`, twice!', 'of-a_b-twice'),
    ('[Linked](x.ipynb) text', 'linked-text'),
    ('Named {#here}', 'here'),
    ('_split', 'split'),
    ('1 + 1', 'section')])
def test_headings_are_named_as_pandoc_names_them(heading, anchor):
    assert identifier(heading) == anchor

QUARTO = '''#!/bin/sh
echo "$@" >> "$QUARTO_LOG"
mkdir -p _docs && echo page > _docs/index.html
'''

def make_docs(root, folder):
    "Run `make docs` in `root` with a Quarto that writes down in `folder` what it is asked for."
    (folder/'quarto').write_text(QUARTO)
    (folder/'quarto').chmod(0o755)
    (root/'.venv').mkdir()
    for file in ('settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt', '.venv/done'): (root/file).touch()
    path = f'{folder}{os.pathsep}{os.environ["PATH"]}'
    environment = {**os.environ, 'PATH': path, 'PYTHONPATH': str(root), 'QUARTO_LOG': str(folder/'log')}
    command = ['make', 'docs', f'BIN={Path(sys.executable).parent}']
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

def test_make_docs_builds_the_site_and_only_our_command_writes_the_readme(small, tmp_path):
    (small/'README.md').write_text('old')
    os.utime(small/'README.md', (0, 0)) # older than the index, which is when nbdev_docs writes it
    done = make_docs(small, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (small/'_docs'/'index.html').exists() and (tmp_path/'log').read_text() == 'render --no-cache\n'
    readme = (small/'README.md').read_text()
    assert readme.startswith('<!-- Written by `make readme`') and '![A dot](nbs/images/dot.png)' in readme

def test_make_docs_stops_at_a_fault(small, tmp_path):
    plant(small)
    done = make_docs(small, tmp_path)
    assert done.returncode != 0 and 'faulty/links.ipynb: the link none.ipynb leads to no page or file.' in done.stdout
    assert not (small/'_docs').exists()
