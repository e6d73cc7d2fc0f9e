"""The built book: strict, complete, self-contained, and quiet in a real browser."""

import functools
import http.server
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
LOADING_TAGS = {"object": "data"} | dict.fromkeys(
    ["script", "img", "iframe", "source", "video", "audio", "embed"], "src"
)
BUILD = "from jupyter_book.cli.main import main; main()"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The book, built strictly, once; chapters that nbmake has run are not run again."""
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


def test_every_public_name_is_on_the_api_page(html, soups):
    documented = {element["id"].rpartition(".")[2] for element in soups[html / "book" / "api.html"].select("[id]")}
    assert [name for name in dasvit.__all__ if name not in documented and name != "__version__"] == []


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
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
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
    context.add_init_script(NOTE_VIOLATIONS)
    return context


def complaints(context, base, name):
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
    page.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise }")
    if page.locator("mjx-container").count() < page.locator(".math").count():
        log.append("a formula is not typeset")
    if page.locator("mjx-merror, [data-mml-node=merror]").count():
        log.append("a formula has an error")
    if page.evaluate("[...document.images].some(i => !i.complete || i.naturalWidth === 0)"):
        log.append("a broken image")
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        log.append("scrolls sideways")
    log += page.evaluate("violations")
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
    ("base", "scheme", "width"),
    [("file", "light", 1280), ("http", "dark", 390)],  # each of them once: they do not act on one another
    ids=["file, light, desktop", "http, dark, phone"],
    indirect=["base"],
)
def test_in_browser(browser, html, soups, base, scheme, width):
    context = context_of(browser, viewport={"width": width, "height": 844}, color_scheme=scheme)
    names = [page.relative_to(html).as_posix() for page in soups]
    found = {name: complaints(context, base, name) for name in names}
    context.close()
    assert {name: log for name, log in found.items() if log} == {}
