"Hand setuptools the metadata kept in settings.ini; edit it there, not here."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_path']

class WithNotebooks(build_py):
    "The modules, and in a wheel the benchmark notebooks and grids; an editable install reads those of the checkout."
    def _files(self):
        if self.editable_mode: return {}
        package = Path(self.build_lib)/lib
        notebooks = {p: package/'notebooks'/p.name for p in sorted(Path(cfg['nbs_path'], 'benchmarks').glob('*.ipynb'))}
        return notebooks | {p: package/'grids'/p.name for p in sorted(Path('grids').glob('*.yaml'))}
    def run(self):
        super().run()
        for source, target in self._files().items():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))
    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), *map(str, self._files().values())]

def words(key): return cfg.get(key, '').split()
extras = {k.removesuffix('_requirements'): words(k) for k in cfg if k.endswith('_requirements')}

setup(version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
      author=cfg['author'], author_email=cfg['author_email'],
      project_urls={'Repository': cfg['git_url'], 'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
      # makes an editable install a plain path, which a folder of our name where python starts cannot hide
      package_dir={'': '.'},
      package_data={f'{lib}.models': ['presets.json'], f'{lib}.bench': ['page.html', 'page.js', 'published.csv', 'costs.csv']},
      cmdclass={'build_py': WithNotebooks},
      install_requires=words('requirements'), extras_require=extras,
      entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']})
