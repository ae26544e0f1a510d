"""Write README.md from nbs/index.ipynb.

Prose as it is, code in fences, outputs as text; links to notebooks become links into nbs."""
import re, sys
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parents[1]

def shown(o):
    "An output as markdown, text in a fence; pictures belong into markdown cells, where a README can show them."
    data = o.get('data', {})
    if 'text/markdown' in data: return data['text/markdown']
    text = (o.get('text') or data.get('text/plain', '')).rstrip()
    return f'```\n{text}\n```' if text else ''

def cell_text(c):
    "A cell as markdown; none for a cell that is hidden."
    if c.cell_type == 'markdown': return re.sub(r'\]\((?!https?:|#)', '](nbs/', c.source).replace('](nbs/../', '](')
    if re.search(r'^#\|\s*(hide|default_exp)\b', c.source, re.M): return None
    source = '\n'.join(l for l in c.source.split('\n') if not l.startswith('#|'))
    code = '' if re.search(r'^#\|\s*echo:\s*false', c.source, re.M) else f'```python\n{source}\n```'
    return '\n\n'.join(t for t in (code, *map(shown, c.outputs)) if t)

def readme():
    "The text of README.md."
    cells = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4).cells
    note = '<!-- Written by `make readme` from nbs/index.ipynb; edit that. -->'
    return '\n\n'.join([note, *(t for c in cells if (t := cell_text(c)))]) + '\n'

if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
