"""The built book: strict, complete, self-contained, and quiet in a real browser."""

import functools
import http.server
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

import dasvit
from dasvit.encoder import genotypes
from dasvit.front import pareto
from dasvit.landscape import load
from dasvit.space import Genotype, Operation

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HANGS = 3_600_000  # milliseconds; what has not come then never will, whatever else the machine does
LOADING_TAGS = {"object": "data"} | dict.fromkeys(
    ["script", "img", "iframe", "source", "video", "audio", "embed"], "src"
)
AXE = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
SMALLEST = 9  # pixels, of any type on a phone
LARGEST = 25e6  # bytes of the whole book
BUILD = "from jupyter_book.cli.main import main; main()"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The book, built strictly, once; chapters that nbmake has run are not run again.

    Authors may name a folder that they have built, in the environment variable DASVIT_HTML.
    """
    if built := os.environ.get("DASVIT_HTML"):
        return Path(built).resolve()
    out = tmp_path_factory.mktemp("book")
    flags = ["-W", "-n", "--keep-going", "--all", "--path-output", str(out)]
    done = subprocess.run([sys.executable, "-c", BUILD, "build", *flags, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return out / "_build" / "html"


@pytest.fixture(scope="module")
def soups(html):
    """Every page of the book, parsed, by its path."""
    pages = sorted(page for page in html.rglob("*.html") if "_static" not in page.parts)
    return {page: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages}


def is_external(address):
    return address.startswith(("http:", "https:", "//"))


def test_nothing_is_loaded_from_elsewhere(soups):
    bad = []
    for page, soup in soups.items():
        for tag, attribute in LOADING_TAGS.items():
            found = [element.get(attribute, "") for element in soup.find_all(tag)]
            bad += [(page.name, address) for address in found if is_external(address)]
        styles = [link["href"] for link in soup.find_all("link") if "stylesheet" in link.get("rel", [])]
        bad += [(page.name, address) for address in styles if is_external(address)]
        for script in soup.find_all("script"):
            if re.search(r"unpkg\.com|jsdelivr|cdnjs", script.string or ""):
                bad.append((page.name, "inline script with a CDN address"))
    assert bad == []


def test_every_page_allows_nothing_but_the_book(html, soups):
    assert set(html.rglob("*.html")) == set(soups)
    for page, soup in soups.items():
        first = soup.head.find(True)  # what stands before it would not be covered
        assert first.get("http-equiv") == "Content-Security-Policy", page.name
        rules = dict(rule.split(maxsplit=1) for rule in first["content"].split("; "))
        assert rules["default-src"] == rules["base-uri"] == "'none'", page.name
        allowed = {word for rule in rules.values() for word in rule.split() if not word.startswith("'sha256-")}
        assert allowed == {"'none'", "'self'", "file:", "data:", "'unsafe-inline'", "'unsafe-hashes'"}, page.name
        assert [rule for rule, words in rules.items() if "'unsafe-inline'" in words] == ["style-src"], page.name
        assert [rule for rule, words in rules.items() if "data:" in words] == ["img-src"], page.name


def test_internal_links_lead_somewhere(soups):
    bad, anchors = [], {page: {element["id"] for element in soup.select("[id]")} for page, soup in soups.items()}
    for page, soup in soups.items():
        for link in soup.select("article a[href]"):
            target, _, anchor = link["href"].partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or (anchor and file in anchors and anchor not in anchors[file]):
                bad.append((page.name, link["href"]))
    assert bad == []


def test_images_have_alt_text(soups):
    images = [(page.name, image) for page, soup in soups.items() for image in soup.select("article img")]
    bad = [(name, image["src"]) for name, image in images if not image.get("alt", "").strip("./")]
    bad += [(name, image["src"]) for name, image in images if "_images/" in image.get("alt", "")]
    assert bad == []


def test_every_public_name_is_on_an_api_page_with_its_source(html, soups):
    pages = [soups[page] for page in sorted((html / "book").glob("api_*.html"))]
    terms = {term["id"]: term for page in pages for term in page.select("dt.sig[id]")}
    for name in set(dasvit.__all__) - {"__version__"}:
        term = terms[f"{getattr(dasvit, name).__module__}.{name}"]
        assert term.select("a[href*=_modules]"), name
        assert soups[html / "book" / "api.html"].select(f'a[href$="{term["id"]}"]'), name


def test_the_book_is_small(html):
    assert sum(path.stat().st_size for path in html.rglob("*") if path.is_file()) < LARGEST


def test_run_times_of_all_chapters_are_told(html, soups):
    rows = soups[html / "book" / "status.html"].select("article table tbody tr")
    chapters = {path.stem for path in (ROOT / "book").glob("*.ipynb")}
    assert {row.td.text.strip().removeprefix("book/") for row in rows} == chapters


def test_every_recorded_result_is_on_its_page(html, soups):
    listed = [term.code.text for term in soups[html / "book" / "results.html"].select("dl > dt")]
    folder = ROOT / "book" / "results"
    assert listed == [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.json"))]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        reason = "no chromium: install it, or name it in the environment variable CHROMIUM"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=HANGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(html):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html)))
    server.handle_error = lambda *args: None  # the browser hangs up when a page is closed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", e => violations.push(`${e.effectiveDirective} ${e.blockedURI}`));
"""


def context_of(browser, **settings):
    """A window in which every page notes what its policy forbids it."""
    context = browser.new_context(**settings)
    context.set_default_timeout(HANGS)
    context.add_init_script(NOTE_VIOLATIONS)
    return context


MEASURES = """
() => {
  const shown = e => e.getClientRects().length && !e.closest("mjx-container, .visually-hidden, svg, script, style");
  const types = [...document.querySelectorAll("article *")].filter(
    e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && shown(e));
  const figures = [...document.querySelectorAll("article img")].filter(shown);
  return {
    types: types.map(e => [parseFloat(getComputedStyle(e).fontSize), e.textContent.trim().slice(0, 40)]),
    figures: figures.map(e => [e.getAttribute("src"), e.clientWidth]),
    code: [...document.querySelectorAll("article .cell_input pre, article div[class*=highlight-] pre")]
      .filter(e => shown(e) && e.scrollWidth > e.clientWidth).map(e => e.textContent.trim().slice(0, 60)),
  };
}
"""


def smallest_letter(path, width):
    """Return the size in pixels of a figure's smallest text, where the figure is so many pixels wide; None without.

    Matplotlib draws letters as paths of 100 units in height: each text scales them to its size.
    """
    svg = path.read_text(encoding="utf-8")
    sizes = [float(size) for size in re.findall(r'<g (?:style="[^"]*" )?transform="[^"]*scale\(([\d.]+) -', svg)]
    whole = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    return 100 * min(sizes) * width / whole if sizes else None


def too_small(page, path):
    """Return what on a page is set in smaller type than one can read."""
    told = page.evaluate(MEASURES)
    letters = [(smallest_letter(path.parent / src, width), src) for src, width in told["figures"] if ".svg" in src]
    sizes = [(size, what) for size, what in (*told["types"], *letters) if size is not None]
    return [f"{size:.1f} px: {what}" for size, what in sizes if size < SMALLEST]


def barriers(page, contrast):
    """Return what axe finds on a page; formulas are MathJax's, with a spoken text of their own."""
    page.evaluate(AXE)
    rules = "{}" if contrast else "{'color-contrast': {enabled: false}}"
    options = f"{{exclude: [['mjx-container']]}}, {{resultTypes: ['violations'], preload: false, rules: {rules}}}"
    found = page.evaluate(f"axe.run({options}).then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
    return [f"axe {rule}: {len(nodes)} times, {nodes[0]:.200}" for rule, nodes in found]


def complaints(context, base, name, path, contrast=True):
    """Open one page and return all that is wrong with it."""
    page = context.new_page()
    log = []
    page.on("console", lambda m: log.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: log.append(str(error)))
    page.on("requestfailed", lambda r: log.append(f"failed {r.url}"))
    page.on(
        "request",
        lambda r: None if r.url.startswith((base, "data:", "blob:")) else log.append(f"external {r.url}"),
    )
    page.on("response", lambda r: log.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(base + name, wait_until="load")
    if name == "index.html":  # it leads to the introduction
        page.wait_for_url("**/book/intro.html")
        page.wait_for_load_state("load")
        path = path.parent / "book" / "intro.html"
    page.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise }")
    if page.locator("mjx-container").count() < page.locator(".math").count():
        log.append("a formula is not typeset")
    if page.locator("mjx-merror, [data-mml-node=merror]").count():
        log.append("a formula has an error")
    if page.evaluate("[...document.images].some(i => !i.complete || i.naturalWidth === 0)"):
        log.append("a broken image")
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        log.append("scrolls sideways")
    if page.viewport_size["width"] < 600:
        log += too_small(page, path)
    else:
        log += [f"code is clipped: {text}" for text in page.evaluate(MEASURES)["code"]]
    log += page.evaluate("violations")
    log += barriers(page, contrast)  # last: it adds a script of its own
    page.close()
    return log


@pytest.fixture(params=["file", "http"])
def base(request, html, served):
    return served if request.param == "http" else html.as_uri() + "/"


def test_the_policy_leaves_the_page_its_functions(browser, base):
    context = context_of(browser)
    page = context.new_page()
    page.goto(base + "book/01_vit.html")
    before = page.evaluate("document.documentElement.dataset.mode")
    page.evaluate("document.querySelector('.theme-switch-button').click()")
    assert page.evaluate("document.documentElement.dataset.mode") != before
    page.evaluate("document.querySelector('button.copybtn').click()")
    page.locator("button.copybtn.success").wait_for(state="attached")
    page.evaluate("window.print = () => { window.printed = true }")
    page.evaluate("document.querySelector('[onclick=\"window.print()\"]').click()")
    assert page.evaluate("window.printed")
    assert page.evaluate("violations") == []
    page.goto(base + "search.html?q=softmax")
    page.locator("#search-results li").first.wait_for()
    if base.startswith("http"):  # it quotes from the pages, which a page on disk may not read
        page.locator("#search-results p.context").first.wait_for()
    assert page.evaluate("violations") == []
    context.close()


def chosen(page):
    """The encoder that the explorer shows, from the words of its fields."""
    wiring, *four = [page.locator(f"#explorer-{i} option:checked").inner_text() for i in range(5)]
    sources = [["Eₗ₋₂", "Eₗ₋₁", "x₂"].index(word) for word in wiring.split(" and ")]
    a, b, c, d = map(Operation.parse, four)
    return Genotype((((0, a), (1, b)), ((sources[0], c), (sources[1], d))))


def told(page, name):
    """What the explorer says of its encoder."""
    return page.locator(f".explorer dt:text-is('{name}') + dd").inner_text()


def said(truth, genotype):
    """What it ought to say of an encoder's accuracy, without the words behind it."""
    answer = truth.query(genotype)
    ends = (answer.mean + side * 1.96 * answer.standard_error for side in (-1, 1))
    low, high = (f"{100 * end:.1f} %" for end in ends)
    return f"{100 * answer.mean:.1f} % [{low}, {high}] " + ("measured" if answer.measured else "modelled")


def nearly(text, expected):
    """Whether two texts agree but for a last digit: the page has its numbers in ten thousandths."""
    words, others = (re.split(r"(\d+\.\d)", t) for t in (text, expected))
    numbers = zip(words[1::2], others[1::2], strict=True)
    return words[::2] == others[::2] and all(abs(float(a) - float(b)) < 0.11 for a, b in numbers)


def test_the_explorer_answers_to_the_keyboard(browser, base):
    context, truth = context_of(browser), load("cifar10")
    page = context.new_page()
    page.goto(base + "book/explorer.html")
    published = genotypes()["dasvit-cifar10"]
    assert truth.number(chosen(page)) == truth.number(published)
    assert nearly(told(page, "Test accuracy")[: len(said(truth, published))], said(truth, published))
    page.locator("#explorer-1").focus()
    page.keyboard.press("Home")
    assert str(chosen(page).nodes[0][0][1]) == "skip"
    expected = said(truth, chosen(page))
    assert nearly(told(page, "Test accuracy")[: len(expected)], expected)
    label = page.locator(".explorer svg").first.get_attribute("aria-label")
    assert "skip from E l−2 to x2" in label
    page.locator(".explorer .near button").nth(3).focus()
    wanted = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert f"{wanted} %" in told(page, "Test accuracy") or "measured" in told(page, "Test accuracy")
    assert page.evaluate("document.activeElement.closest('.explorer .scroll') !== null")
    page.locator(".explorer button", has_text="The best expected").press("Enter")
    assert told(page, "Expected rank").startswith("1 of")
    for i in range(1, 5):
        page.locator(f"#explorer-{i}").select_option(label="skip")
    assert "it sees no image" in told(page, "Test accuracy")
    assert page.evaluate("violations") == []
    context.close()


def test_the_explorer_has_the_front(browser, base):
    context = context_of(browser, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(base + "book/explorer.html")
    shown = page.locator(".explorer .front tbody tr").all_inner_texts()
    known = page.evaluate("landscape")
    points = list(zip(known["macs"], known["mean"], strict=False))
    best = sorted(point for point, on in zip(points, fast_front(points), strict=True) if on)
    expected = [f"{macs / 1e6:.2f} M\t{mean / 100:.1f} %" for macs, mean in best]
    assert len(shown) == len(expected) > 5
    assert all(nearly(row.partition("\t")[2], text) for row, text in zip(shown, expected, strict=True))
    context.close()


def fast_front(points):
    """As dasvit.front.pareto, asked only of the best of each cost."""
    best = {cost: max(value for other, value in points if other == cost) for cost in {cost for cost, _ in points}}
    kept = dict(zip(best.items(), pareto(list(best.items())), strict=True))
    return [kept.get(point, False) for point in points]


def test_a_printed_page_shows_what_folds_and_nothing_but_the_text(browser, html):
    context = context_of(browser, viewport={"width": 700, "height": 900})
    page = context.new_page()
    page.goto((html / "book" / "01_vit.html").as_uri())
    page.emulate_media(media="print")
    solutions = page.locator(".solution .cell pre, .solution p:not(.admonition-title)")
    assert solutions.count() > 3
    assert page.evaluate("[...document.querySelectorAll('.solution > *')].every(e => e.offsetHeight > 0)")
    for part in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".copybtn", ".prev-next-area"):
        assert not page.locator(part).first.is_visible(), part
    assert page.evaluate(MEASURES)["code"] == []
    context.close()


ATTACKS = {
    "script": "const s = document.createElement('script'); s.textContent = 'window.harm = 1'; document.body.append(s)",
    "handler": "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.harm = 1\">')",
    "eval": "try { setTimeout('window.harm = 1', 0) } catch {}",
    "elsewhere": "document.head.append(Object.assign(document.createElement('script'), {src: 'http://localhost:9/x.js'}))",
    "image": "new Image().src = 'http://localhost:9/x.png'",
    "request": "fetch('http://localhost:9/').catch(() => 0)",
    "frame": "document.body.insertAdjacentHTML('beforeend', '<iframe src=\"http://localhost:9/\"></iframe>')",
    "base": "const b = document.createElement('base'); b.href = 'http://localhost:9/'; document.head.append(b)",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_policy_stops_what_is_not_the_books(browser, base, attack):
    context = context_of(browser)
    page = context.new_page()
    page.goto(base + "search.html")
    page.evaluate(f"() => {{ {ATTACKS[attack]} }}")
    page.wait_for_function("violations.length")
    assert page.evaluate("violations.length") == 1
    assert page.evaluate("window.harm") is None
    context.close()


@pytest.mark.parametrize(
    ("base", "scheme", "width", "half"),
    [("file", "light", 1280, 0), ("http", "dark", 390, 1)],  # each of them once: they do not act on one another
    ids=["file, light, desktop", "http, dark, phone"],
    indirect=["base"],
)
def test_in_browser(browser, html, soups, base, scheme, width, half):
    """Every page; of the source pages, which one template makes, a half each, unless they have colors of their own."""
    context = context_of(browser, viewport={"width": width, "height": 844}, color_scheme=scheme)
    sources = sorted(path for path in soups if "_modules" in path.parts)
    colored = has_new_colors({path: soups[path] for path in sources})
    found = {}
    for path in sorted(soups):
        if path in sources[half::2] and not colored[path]:
            continue
        name = path.relative_to(html).as_posix()
        found[name] = complaints(context, base, name, path, contrast=colored.get(path, True))
    context.close()
    assert {name: log for name, log in found.items() if log} == {}


def has_new_colors(sources):
    """Tell of each source page whether it has a kind of token, on which the color depends, that none before has."""
    seen, new = set(), {}
    for path, soup in sources.items():
        kinds = {kind for span in soup.select("article span[class]") for kind in span["class"]}
        new[path] = not kinds <= seen
        seen |= kinds
    return new
