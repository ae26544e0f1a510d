"The page in a real browser, and without one: what it says, that it escapes, its size."
import json, re, shutil
from html import unescape
import numpy as np, pandas as pd, pytest
from conftest import one_pixel
from perturbench.bench.leaderboard import write_board
from perturbench.plots import Picture

EVIL = '"><img src=x onerror=alert(1)><b>'
METRICS = ('rmse_average', 'cosine_logfc', 'rmse_rank_average', 'energy_pca', 'de_auprc', 'mae_zeros')

def made_scores(task, models, n_conditions=12, n_seeds=1, metrics=METRICS):
    "Scores in which the first model is best by every metric, and the others are alike."
    draw, rows = np.random.default_rng(0), []
    for metric in metrics:
        worse = -1 if metric in ('cosine_logfc', 'de_auprc') else 1
        hard = draw.normal(.5, .1, n_conditions)
        for place, model in enumerate(models):
            for seed in range(n_seeds):
                value = hard + worse*.2*(place > 0) + draw.normal(0, .01, n_conditions)
                rows.append(pd.DataFrame(dict(task=task, task_id=task, model=model, seed=seed, run_id=f'{model}{seed}',
                    line='K562', perturbation=[f'p{i}' for i in range(n_conditions)], metric=metric, value=value,
                    value_half=value, status='ok', n_candidates=n_conditions, state=0)))
    return pd.concat(rows, ignore_index=True)

def references(scores):
    "A null that is as bad as the others and a replicate that is as good as the first."
    first = scores[(scores.model == scores.model.iloc[0]) & (scores.seed == 0)]
    worse = first.metric.isin(['cosine_logfc', 'de_auprc']).map({True: -1, False: 1})
    null = first.assign(model='null_control', value=first.value + .2*worse, value_half=first.value + .2*worse)
    return pd.concat([null, null.assign(model='null_mean'), first.assign(model='duplicate')]).assign(halves='cells')

def made_genes(n_conditions=12):
    "Effects of ten genes, the same everywhere; half of them are predicted, so that twice of it is right."
    def row(i, place):
        return dict(line='K562', perturbation=f'p{i}', gene=f'G{place}{EVIL if place == 9 else ""}', observed=place/10,
                    chosen='drawn' if place < 3 else 'shared', se=.05, predicted=place/20, rmse=.3 + i/1000,
                    rmse_doubled=0.)
    return pd.DataFrame([row(i, place) for i in range(n_conditions) for place in range(10)])

def kept_genes(task, label):
    "One model keeps none."
    kept = dict(additive=[], cpa=[made_genes(), made_genes().assign(predicted=0.)])
    return kept.get(label, [made_genes()])

MODELS = ['good', EVIL, 'cpa', 'cpa_noadv', 'additive']

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with the page of two tasks."
    out = tmp_path_factory.mktemp('page')
    tasks = {task: made_scores(task, MODELS) for task in ('first', f'second {EVIL}')}
    costs = [dict(task=task, task_id=task, model=model, seed=0, fit_seconds=10.**place, predict_seconds=1.,
                  peak_memory=100.) for task in tasks for place, model in enumerate(MODELS)]
    named = dict(line='K562', perturbation=[f'p{i}' for i in range(12)])
    known = pd.DataFrame(named | dict(n_cells=[5, 200]*6, systematic=.1))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Picture, 'savefig', one_pixel)
        write_board(pd.concat(tasks.values()), pd.DataFrame(costs), out,
                    {task: references(scores) for task, scores in tasks.items()}, dict.fromkeys(tasks, known),
                    genes=kept_genes)
    return out

@pytest.fixture(scope='module')
def html(home): return (home/'leaderboard.html').read_text(encoding='utf-8')

def test_the_table_is_there_without_a_script(html):
    bare = re.sub('<script>.*</script>', '', html, flags=re.DOTALL)
    assert bare.count('<tr class="') == 2*len(MODELS) and 'src=' not in bare.replace('&lt;img src=x', '')
    assert 'good is best at the error, the direction, telling perturbations apart, the cells, the genes and' in bare
    assert 'http' not in re.sub('http://www.w3.org/2000/svg', '', html)

def test_a_model_that_holds_back_has_a_flag(html):
    assert 'error falls from 0.305 to 0 (95 % interval of the difference' in html
    row = re.search('<tr class="baseline"><th scope=row>additive.*?</tr>', html, re.DOTALL)[0]
    assert html.count('>rises when doubled<') == 8 and 'rises' not in row

def written(tmp_path, monkeypatch, scores, reference=None):
    "The page of scores, as text."
    monkeypatch.setattr(Picture, 'savefig', one_pixel)
    write_board(scores, None, tmp_path, dict(task=references(scores) if reference is None else reference))
    return (tmp_path/'leaderboard.html').read_text(encoding='utf-8')

def test_a_model_that_is_no_better_than_its_control_has_a_flag(tmp_path, monkeypatch):
    html = written(tmp_path, monkeypatch, made_scores('task', ['good', 'good - shuffled', 'cpa', 'cpa - shuffled']))
    assert html.count('>no better than its control<') == 1
    assert 'is it shown to be better than cpa - shuffled, which is told nothing' in html
    table = pd.read_csv(tmp_path/'questions.csv').set_index('model').beats_control
    assert (table['good'] == True).all() and (table['cpa'] == False).all() and table['cpa - shuffled'].isna().all()

def test_where_hardly_any_condition_has_a_score_nobody_is_ranked(tmp_path, monkeypatch):
    scores = made_scores('task', ['good', 'cpa', 'additive'])
    lost = (scores.metric == 'de_auprc') & ~scores.perturbation.isin(['p0', 'p1', 'p2'])
    html = written(tmp_path, monkeypatch, scores.assign(value=scores.value.mask(lost)), references(scores))
    assert 'cannot judge the genes: a score is defined in 3 of 12 conditions only' in html
    table = pd.read_csv(tmp_path/'questions.csv')
    assert table.judged.groupby(table.question).all().to_dict() == dict(
        cells=True, direction=True, error=True, genes=False, perturbation=True, plausible=True)

@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "A folder with the page of six tasks."
    out = tmp_path_factory.mktemp('many')
    tasks = {task: made_scores(task, MODELS) for task in 'abcdef'}
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Picture, 'savefig', one_pixel)
        write_board(pd.concat(tasks.values()), None, out, {task: references(scores) for task, scores in tasks.items()})
    return out

def test_mean_ranks_are_a_figure_with_its_test(many):
    html = unescape((many/'leaderboard.html').read_text(encoding='utf-8'))
    figure = re.search('<svg class="ranks".*?</svg>', html, re.DOTALL)[0]
    assert figure.count('<circle') == len(MODELS) and EVIL not in (many/'leaderboard.html').read_text()
    assert 0 < figure.count('class="bar"') < len(MODELS)
    assert "Friedman's test over 6 screens: p < 0.001" in html and "Nemenyi's critical" in html

def test_a_published_direction_is_a_hollow_mark(tmp_path, monkeypatch):
    def published(board):
        rows = board[board.model.isin(['good', 'cpa']) & board.metric.isin(['cosine_logfc', 'rmse_average'])]
        return rows.assign(ours=rows['mean'], published=rows['mean'], source='a paper', differs='')
    monkeypatch.setattr(Picture, 'savefig', one_pixel)
    scores = made_scores('task', ['good', 'cpa', 'linear'])
    board, _ = write_board(scores, None, tmp_path, dict(task=references(scores)), published=published)
    html = (tmp_path/'leaderboard.html').read_text(encoding='utf-8')
    marks = re.findall(r'style=--a:\d+;--m:(\d+);--z:\d+><b style=--m:(\d+)></b></i>', html)
    assert len(marks) == 2 and all(ours == theirs for ours, theirs in marks) # the same number, the same place
    assert html.count('a paper') == 4

def test_names_are_escaped_everywhere(home, html):
    assert EVIL not in html and html.count('<script') == 1
    for path in (home/'leaderboard_data').glob('*.js'):
        text = path.read_text(encoding='utf-8')
        assert '<' not in text
        if path.name.count('.') == 1: assert EVIL in json.loads(text[text.index(',') + 1:text.rindex(')')])['models']

def test_nothing_is_bold_where_a_metric_cannot_judge(tmp_path, monkeypatch):
    scores = made_scores('task', ['good', 'cpa'], metrics=METRICS[:1])
    replicate = references(scores).replace(dict(model=dict(duplicate='null_mean', null_mean='duplicate')))
    html = written(tmp_path, monkeypatch, scores, replicate)
    rows = ''.join(re.findall('<tr class=.*?</tr>', html, re.DOTALL))
    assert 'cannot be judged here' in html and '<b>' not in rows and '<i' not in rows
    assert 'This screen cannot judge the error' in html

def luminance(colour):
    "Of a colour as #rrggbb, from 0 to 1."
    parts = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
    return np.dot([v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4 for v in parts], [.2126, .7152, .0722])

def contrast(a, b):
    low, high = sorted([luminance(a), luminance(b)])
    return (high + .05)/(low + .05)

def test_marks_and_text_have_contrast_in_light_and_dark(html):
    for block in re.findall(r':root \{(.*?)\}', html, re.DOTALL):
        colours = dict(re.findall(r'--(\w+): (#\w{6})', block))
        for a, b in (('mark', 'page'), ('base', 'page'), ('mark', 'base'), ('mark', 'band'), ('over', 'page'),
                     ('under', 'page')):
            assert contrast(colours[a], colours[b]) >= 3, (a, b)
        for name in ('text', 'soft', 'link'): assert contrast(colours[name], colours['page']) >= 4.5, name
        assert contrast(colours['text'], colours['tint']) >= 4.5

BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')

@pytest.fixture(scope='module')
def browser():
    selenium = pytest.importorskip('selenium', reason='the page is not looked at: `pip install selenium`')
    if not BROWSER or not DRIVER: pytest.skip('no browser: `apt-get install chromium chromium-driver`')
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    words = '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'
    for word in words: options.add_argument(word)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()

@pytest.fixture
def page(browser, home):
    "Opens the page at an address and width; there is no error in the console at the end."
    def open_at(state='', width=1280):
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500))
        browser.get('about:blank')
        browser.get(f'file://{home}/leaderboard.html{state}')
        return browser
    browser.get_log('browser')
    yield open_at
    assert browser.get_log('browser') == []

def run(page, script, *args): return page.execute_script(script, *args)
def names(page):
    "The rows that are shown of the first task that is."
    return run(page, "const shown = [...document.querySelectorAll('section')].find(s => !s.classList.contains('gone'));"
                     "return [...shown.querySelectorAll('.board tbody tr:not(.gone)')].map(row => row.dataset.m)")

def press(page, title):
    "Press the head of a column of the first table."
    run(page, "[...document.querySelectorAll('.board thead button')]"
              ".find(b => b.textContent.startsWith(arguments[0])).click()", title)

def wait(page, script):
    "Wait until a script returns something, and return it."
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(page, 10).until(lambda d: d.execute_script(script))

def test_a_click_sorts_down_up_and_back(page):
    at = page()
    before = names(at)
    press(at, 'Seconds')
    assert names(at) == ['good', EVIL, 'cpa', 'cpa_noadv', 'additive'] and 'sort=seconds' in at.current_url
    press(at, 'Seconds')
    assert names(at) == ['cpa_noadv', 'cpa', EVIL, 'good', 'additive'] # a baseline stays apart
    assert run(at, "return document.querySelectorAll('[aria-sort=ascending]').length") == 2
    press(at, 'Seconds')
    assert names(at) == before and 'sort' not in at.current_url

def test_filters_stand_in_the_address_and_come_back_from_it(page):
    at = page()
    for box in ('variant', 'cells'): run(at, f"document.querySelector('input[value={box}]').click()")
    assert 'cpa_noadv' not in names(at) and 'hide=variant' in at.current_url and 'without=cells' in at.current_url
    state = at.current_url.partition('#')[2]
    again = page(f'#{state}&sort=model:down&task=first')
    assert names(again) == [EVIL, 'cpa', 'good', 'additive']
    assert run(again, "return getComputedStyle(document.querySelector('.board th[data-key=cells]')).display") == 'none'
    assert run(again, "return document.querySelectorAll('section:not(.gone)').length") == 1

def test_a_stratum_is_loaded_when_it_is_asked_for(page):
    at = page('#task=first&stratum=n_cells:%20low')
    said = wait(at, "const said = document.querySelector('.stratum').textContent;"
                    "return said.includes('6 conditions') && said")
    assert 'n_cells: low' in said
    assert re.match(r'0\.\d+ \[', run(at, "return document.querySelector('tr[data-m=good] td').textContent"))

def test_a_row_opens_its_conditions_by_click_and_by_link(page):
    at = page()
    run(at, "document.querySelector('tr[data-m=good] th button').click()")
    rows = wait(at, "return document.querySelectorAll('dialog[open] tbody tr').length")
    assert rows == 12 and 'model=good' in at.current_url
    linked = page('#task=first&model=cpa')
    assert wait(linked, "return document.querySelector('dialog[open] h2')?.textContent") == 'cpa on first'

def test_a_condition_opens_its_genes_and_goes_back(page):
    at = page('#task=first&model=good')
    wait(at, "return document.querySelectorAll('dialog[open] tbody th button').length === 12")
    run(at, "document.querySelector('dialog tbody th button').click()")
    assert wait(at, "return document.querySelectorAll('dialog svg circle').length") == 10
    assert run(at, "return document.querySelector('dialog tbody td').textContent") == '0.9 ± 0.05'
    assert 'condition=K562' in at.current_url
    linked = page('#task=first&model=good&condition=K562,%20p3')
    assert wait(linked, "return document.querySelectorAll('dialog[open] svg circle').length") == 10
    assert run(linked, "return document.querySelector('dialog h2').textContent") == 'K562, p3: good on first'
    assert '0.303, and 0 with twice' in run(linked, "return document.querySelector('dialog p + p').textContent")
    run(linked, "document.querySelector('dialog p button').click()")
    assert wait(linked, "return document.querySelector('dialog h2').textContent === 'good on first'")
    assert 'condition' not in linked.current_url

def test_what_a_model_does_is_said_once_and_shown_with_it(page, html):
    said = 'CPA without its adversary.'
    assert html.count(said) == 1
    at = page('#task=first&model=cpa_noadv')
    assert wait(at, "return document.querySelector('dialog[open] .body p')?.textContent") == said
    assert run(at, "return document.querySelectorAll('.board th[title]').length") == 2*3 # of two tasks

def test_genes_are_means_over_seeds(page):
    at = page('#task=first&model=cpa&condition=K562,%20p0')
    assert wait(at, "return document.querySelector('dialog[open] tbody td + td')?.textContent") == '0.225'

def test_errors_are_a_map_of_conditions_by_genes(page):
    at = page('#task=first&model=good')
    wait(at, "return document.querySelector('.errors')")
    run(at, "document.querySelector('.errors').open = true")
    assert wait(at, "return document.querySelectorAll('.errors rect').length") == 12*7
    last = "const all = document.querySelectorAll('.errors rect title'); return all[6].textContent"
    assert run(at, last).startswith(f'G9{EVIL} in K562') and run(at, last).endswith('-0.45')

def test_a_model_without_genes_says_so(page):
    at = page('#task=first&model=additive')
    assert wait(at, "return document.querySelector('dialog[open] .body')?.textContent.includes('No genes are kept')")
    assert run(at, "return document.querySelectorAll('dialog tbody th button').length") == 0

def test_two_models_meet_condition_by_condition(page):
    at = page('#task=first&model=good&against=cpa')
    said = wait(at, "return document.querySelector('dialog[open] .body > p + p + p')?.textContent")
    assert said.startswith('good is better in 12 of 12 conditions, cpa in 0 (rmse_average, lower is better')
    assert run(at, "return document.querySelectorAll('dialog circle').length") == 12
    run(at, "const ask = document.querySelector('dialog select'); ask.value = 'direction';"
            "ask.dispatchEvent(new Event('change'))")
    wait(at, "return document.querySelector('dialog .body').textContent.includes('cosine_logfc')")
    assert 'on=direction' in at.current_url

def test_a_share_of_wins_opens_two_models(browser, many):
    browser.get(f'file://{many}/leaderboard.html')
    run(browser, "document.querySelector('.heat tbody tr td:nth-child(3) button').click()")
    assert wait(browser, "return document.querySelectorAll('dialog[open] circle').length") == 12
    assert ' beside ' in run(browser, "return document.querySelector('dialog h2').textContent")
    run(browser, "const task = document.querySelectorAll('dialog select')[1]; task.value = 'c';"
                 "task.dispatchEvent(new Event('change'))")
    assert wait(browser, "return document.querySelector('dialog h2').textContent.endsWith(' on c')")
    assert browser.get_log('browser') == []

def test_a_view_is_copied_as_text(page):
    at = page('#task=first&without=cells,genes,plausible,seconds')
    for form, has in (('markdown', '| good |'), ('csv', '"good"'), ('latex', 'cpa\\_noadv &')):
        run(at, f"document.querySelector('[data-copy={form}]').click()")
        assert has in wait(at, 'return window.perturbenchCopied')
    assert EVIL in run(at, 'return window.perturbenchCopied').replace('\\', '')

def test_cost_is_drawn_with_its_front(page):
    at = page()
    run(at, "document.querySelector('.cost').open = true")
    assert wait(at, "return document.querySelectorAll('.cost circle').length") == len(MODELS)
    assert run(at, "return [...document.querySelectorAll('.cost svg text')].some(t => t.textContent === 'good')")
    run(at, "const by = document.querySelector('.cost .by'); by.value = 'memory';"
            "by.dispatchEvent(new Event('change'))")
    texts = "return [...document.querySelectorAll('.cost svg text')].map(t => t.textContent).join()"
    assert 'MB of memory' in run(at, texts)

def test_two_questions_are_drawn_against_each_other(page):
    "A point for each row that has both scores; each of the two questions may be chosen."
    at = page('#task=first')
    run(at, "window.trade = document.querySelector('.trade'); trade.open = true")
    assert wait(at, "return trade.querySelectorAll('circle').length") == len(MODELS)
    titles = "return [...trade.querySelectorAll('svg text')].map(t => t.textContent)"
    chosen = "return [...trade.querySelectorAll('select')].map(s => s.selectedOptions[0].textContent)"
    across, up = run(at, chosen)
    assert across != up and {across, up} <= set(run(at, titles))
    run(at, "const [x, y] = trade.querySelectorAll('select'); x.value = y.value; x.dispatchEvent(new Event('change'))")
    assert run(at, chosen) == [up, up] and across not in run(at, titles)
    said = run(at, "return [...trade.querySelectorAll('circle title')].map(t => t.textContent)")
    assert all(len(set(text.rpartition(': ')[2].split(', '))) == 1 for text in said)

@pytest.mark.parametrize('width', [390, 768])
def test_a_narrow_screen_does_not_scroll_sideways(page, width):
    at = page(width=width)
    assert run(at, 'return document.documentElement.scrollWidth') <= width
    assert run(at, "return getComputedStyle(document.querySelector('.board tr')).display") == (
        'block' if width == 390 else 'table-row')

def test_cards_are_sorted_by_a_list(page):
    at = page(width=390)
    run(at, "const sort = document.getElementById('sort'); sort.value = 'model:down';"
            "sort.dispatchEvent(new Event('change'))")
    assert names(at) == [EVIL, 'cpa', 'cpa_noadv', 'good', 'additive'] and 'sort=model' in at.current_url

def test_it_can_be_used_with_a_keyboard(page):
    from selenium.webdriver.common.keys import Keys
    at = page()
    run(at, "document.querySelector('tr[data-m=cpa] th button').focus()")
    at.switch_to.active_element.send_keys(Keys.ENTER)
    assert wait(at, "return document.querySelector('dialog').open")
    at.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert wait(at, "return !document.querySelector('dialog').open && !location.hash.includes('model')")

def test_unfriendly_names_run_nothing(page):
    at = page()
    assert run(at, "return document.querySelectorAll('img').length") == 0
    run(at, "document.querySelectorAll('.board tbody th button')[0].click()")
    wait(at, "return document.querySelector('dialog[open] tbody')")
    assert run(at, "return document.querySelectorAll('img').length") == 0
