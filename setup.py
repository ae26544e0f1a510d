"Hand setuptools the metadata kept in settings.ini; edit it there, not here."
from configparser import ConfigParser
from setuptools import setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_path']

def words(key): return cfg.get(key, '').split()
extras = {k.removesuffix('_requirements'): words(k) for k in cfg if k.endswith('_requirements')}

setup(version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
      author=cfg['author'], author_email=cfg['author_email'],
      project_urls={'Repository': cfg['git_url'], 'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
      package_dir={f'{lib}.notebooks': 'nbs/benchmarks'}, package_data={f'{lib}.notebooks': ['*.ipynb'], f'{lib}.models': ['presets.json']},
      install_requires=words('requirements'), extras_require=extras,
      entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']})
