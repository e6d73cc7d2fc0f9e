"""Every claim of the papers has a state, and what is said of it is there."""

import ast
import importlib
import re
from pathlib import Path

import claims as page
import pytest

from dasvit.zoo import TABLE_1

ROOT = Path(__file__).resolve().parents[1]
TOLD = page.claims()
PAPERS = {"DASViT": "dasvit.txt", "TF-TAS": "tf-tas-listing.txt"}
WORDED = [*TOLD["equations"], TOLD["algorithm"], *TOLD["figures"], *TOLD["claims"]]


def name(claim):
    return str(claim.get("id", "algorithm"))


def test_every_equation_figure_and_cell_is_there_once():
    assert [equation["id"] for equation in TOLD["equations"]] == list(range(1, 29))
    assert [figure["id"] for figure in TOLD["figures"]] == list(range(1, 7))
    assert list(TOLD["table"]["rows"]) == list(TABLE_1)
    assert all(len(row["printed"]) == len(TOLD["table"]["columns"]) == 8 for row in TOLD["table"]["rows"].values())
    assert len({claim["id"] for claim in TOLD["claims"]}) == len(TOLD["claims"])
    for row, printed in zip(TOLD["table"]["rows"].values(), TABLE_1.values(), strict=True):
        assert [f"{value:.1f}" for value in row["printed"][6:]] == [printed.parameters, printed.macs]


def test_every_claim_has_a_state_and_what_is_open_says_what_would_close_it():
    for claim in page.stated(TOLD):
        assert claim["state"] in page.STATES
    for claim in (*TOLD["claims"], *TOLD["figures"]):
        assert claim["state"] != "open" or claim["close"], name(claim)
        assert claim["state"] == "open" or claim.get("ours") or claim.get("test"), name(claim)
    assert TOLD["table"]["close"]
    assert all(equation["known"] in ("described", "reconstructed") for equation in TOLD["equations"])
    for equation in TOLD["equations"]:
        assert equation["known"] == "described" or equation["ledger"], equation["id"]


@pytest.mark.parametrize("claim", WORDED, ids=name)
def test_what_a_claim_names_is_there(claim):
    if "page" in claim:
        assert list((ROOT / "book").glob(f"{claim['page']}.*"))
    if "test" in claim:
        file, _, function = claim["test"].partition("::")
        parsed = ast.parse((ROOT / "tests" / file).read_text())
        tests = {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
        assert not function or function in tests
    if "code" in claim:
        module, _, attribute = claim["code"].rpartition(".")
        assert hasattr(importlib.import_module(f"dasvit.{module}"), attribute)
    ledger = (ROOT / "book" / "ledger.md").read_text()
    for entry in claim.get("ledger", []):
        assert f"({entry.lower()})=" in ledger
    for script in re.findall(r"benchmarks/[\w/]+\.py", claim.get("close", "")):
        assert (ROOT / script).is_file()


def test_equations_stand_on_the_pages_that_are_named():
    for equation in TOLD["equations"]:
        assert f":label: eq-{equation['id']}\\n" in (ROOT / "book" / f"{equation['page']}.ipynb").read_text()


@pytest.mark.parametrize("claim", WORDED, ids=name)
def test_quotes_are_the_papers_words(claim):
    folder = ROOT.parent / "shared" / "papers"
    if not folder.is_dir():
        pytest.skip("the papers' texts are not here")
    words = " ".join((folder / PAPERS[claim.get("paper", "DASViT")]).read_text().split())
    assert " ".join(claim["quote"].split()) in words


def test_numbers_are_all_used_and_all_known():
    known = page.numbers()
    said = [claim.get("ours", "") for claim in WORDED] + [finding["found"] for finding in TOLD["findings"]]
    assert {key for words in said for key in re.findall(r"\{(\w+)\}", words)} == set(known)


def test_what_is_contradicted_is():
    rows, known = TOLD["table"]["rows"], page.numbers()
    gaps = [rows[cnn]["printed"][4] - rows["DASViT"]["printed"][4] for cnn in page.CNNS]
    assert not any(14.5 <= gap <= 15.5 for gap in gaps)
    assert known["vit_macs"] != "12.0"
    assert known["dasvit_macs"] != "9.9"


def test_what_is_not_seen_is_not():
    known = page.numbers()
    assert known["skips"] == known["without_attention"] == "0"
    for gain in ("digits_gain", "cifar_gain", "digits_random", "cifar_random"):
        low = float(re.search(r"\[([+-][\d.]+)", known[gain])[1])
        assert low <= 0  # neither ViT nor random encoders are clearly beaten
    assert all(abs(float(known[f"dss_{images}"])) < 0.5 for images in page.REPORTS)
    low, high = map(float, re.search(r"\[(-?\d+), (\d+)\]", known["landscape_searched"]).groups())
    assert low <= 50 <= high


def test_no_gpu_has_measured_while_the_first_page_says_so():
    recorded = {path.stem for path in (ROOT / "book" / "results" / "gpu").glob("*.json")}
    said = any("Nothing has been measured on a GPU yet" in finding["found"] for finding in TOLD["findings"])
    assert said == (recorded <= {"planned"})


def test_what_is_seen_in_trend_is():
    known = page.numbers()
    assert float(known["plain_gigabytes"]) > 24 * 1.074 > float(known["ours_gigabytes"])
    assert float(known["half_tokens_gigabytes"]) < float(known["all_tokens_gigabytes"])
    assert float(known["tf_minutes"]) < 12 * 60
    for images in page.REPORTS:
        dss, *others = map(float, known[f"rivals_{images}"].split(", "))
        assert dss > max(others)


def test_the_page_has_every_part():
    parts = {part: "\n".join(page.lines_of(part)) for part in page.PARTS}
    assert parts["states"].startswith(f"{28 + 1 + 6 + 96 + len(TOLD['claims'])} claims: ")
    assert all(claim["quote"].replace("$", "") in parts["sentences"] for claim in TOLD["claims"])
    assert "{" not in re.sub(r"\{(doc|eq|py:obj)\}", "", "".join(parts.values()))
