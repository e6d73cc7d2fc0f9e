"""Every claim of the papers has a state, what is said of it is there, and findings follow the recorded files."""

import ast
import importlib
import re
from pathlib import Path

import claims as page
import evidence
import pytest
from findings import FINDINGS, findings

from dasvit.zoo import TABLE_1

ROOT = Path(__file__).resolve().parents[1]
TOLD = page.claims()
PAPERS = {"DASViT": "dasvit.txt", "TF-TAS": "tf-tas-listing.txt"}
WORDED = [*TOLD["equations"], TOLD["algorithm"], *TOLD["figures"], *TOLD["claims"]]
UNSETTLED = ("open", "not seen at our scale")


@pytest.fixture(scope="module")
def known():
    return evidence.numbers()


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


def test_every_claim_has_a_state():
    for claim in page.stated(TOLD):
        assert claim["state"] in page.STATES
    for formula in (*TOLD["equations"], TOLD["algorithm"]):
        assert formula["known"] in ("described", "reconstructed")
        assert formula["known"] == "described" or formula["ledger"], name(formula)


@pytest.mark.parametrize("claim", [*TOLD["figures"], *TOLD["claims"], TOLD["table"]], ids=name)
def test_what_is_unsettled_says_what_would_close_it_and_the_rest_what_holds_it(claim):
    assert ("close" in claim) == ("cost" in claim)
    if claim.get("state", "open") in UNSETTLED:
        assert claim["close"]
        assert re.search(r"minutes?|hours?|days?|weeks|letter", claim["cost"])
    else:
        assert claim.get("ours") or claim.get("test")
    if claim.get("state") == "exact":
        assert claim["test"]


@pytest.mark.parametrize("claim", WORDED, ids=name)
def test_what_a_claim_names_is_there(claim):
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
    for entry in [*claim.get("ledger", []), *re.findall(r"\[(A\d+)\]\(", claim.get("close", ""))]:
        assert f"({entry.lower()})=" in ledger
    for script in re.findall(r"benchmarks/[\w/]+\.py", claim.get("close", "")):
        assert (ROOT / script).is_file()


def test_every_number_of_the_ledger_is_in_the_code():
    entries = set(re.findall(r"^### (A\d+) ", (ROOT / "book" / "ledger.md").read_text(), re.MULTILINE))
    folders = (ROOT / folder for folder in ("dasvit", "benchmarks"))
    code = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    assert entries - set(re.findall(r"\bA\d+\b", "\n".join(code))) == set()


def test_commands_that_would_close_a_claim_name_methods_that_exist():
    from dasvit.methods.registry import METHODS

    for claim in (*TOLD["figures"], *TOLD["claims"]):
        for methods in re.findall(r"--methods? ([\w -]+)`", claim.get("close", "")):
            assert set(methods.split()) <= set(METHODS), name(claim)


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


def test_every_number_that_is_named_is_known_and_none_is_left_over(known):
    said = [claim.get(part, "") for claim in (*WORDED, TOLD["table"]) for part in ("ours", "cost")]
    said += [find(known) for find in FINDINGS.values()]
    named = {key for words in said for key in re.findall(r"\{(\w+)\}", words)}
    pages = [path.read_text() for kind in ("md", "ipynb") for path in (ROOT / "book").glob(f"*.{kind}")]
    named |= {key for text in pages for key in re.findall(r"\{number\}`(\w+)`", text)}
    chosen_by = {
        "plain_fits",
        "ours_fits",
        "imagenet_adds",
        "imagenet_adds_to_cells",
        "on_gpu",
        "regret_share",
        "regret_p",
    }
    assert named | chosen_by == set(known)


def test_what_is_contradicted_is(known):
    rows = TOLD["table"]["rows"]
    gaps = [rows[cnn]["printed"][4] - rows["DASViT"]["printed"][4] for cnn in evidence.CNNS]
    assert not any(14.5 <= gap <= 15.5 for gap in gaps)
    assert known["vit_macs"] != "12.0"
    assert known["dasvit_macs"] != "9.9"


def test_what_is_not_seen_is_not(known):
    assert known["skips"] == known["without_attention"] == 0
    assert known["digits_gain"].low <= 0
    assert known["cifar_gain"].low <= 0  # ViT is not clearly beaten
    assert all(abs(float(known[f"dss_{images}"])) < 0.5 for images in evidence.REPORTS)


def test_what_is_seen_in_trend_is(known):
    assert not known["plain_fits"]
    assert known["ours_fits"]
    assert float(known["half_tokens_gigabytes"]) < float(known["all_tokens_gigabytes"])
    assert float(known["tf_minutes"]) < 12 * 60
    for images in evidence.REPORTS:
        dss, *others = map(float, known[f"rivals_{images}"].split(", "))
        assert dss > max(others)


def test_findings_follow_the_numbers(known):
    def found(name, **other):
        return findings(known | other)[name]

    little, much = evidence.Range(2, -1, 5), evidence.Range(2, 1, 3)
    assert found("07_retraining", digits_random=much, cifar_random=little).startswith("**The search paid on digits**")
    lost = found("07_retraining", digits_random=little, cifar_random=little)
    assert lost.startswith("**The search did not pay at our scale**: ")
    assert "+2.0 [-1.0, +5.0] points of top-1 on digits" in lost
    better = {"regret_dasvit": evidence.Range(80, 70, 90, ".0f"), "regret_share": much._replace(value=0.8)}
    assert "beat 80 [70, 90] % of the space**, better than random" in found("13_regret", regret_p=0.01, **better)
    assert "worse than random" in found("13_regret", regret_p=0.01, regret_share=much._replace(value=0.2))
    assert "not to be told from random" in found("13_regret", regret_p=0.2, **better)
    assert "more than size in T and B**" in found("09_training_free", imagenet_adds_to_cells=["T", "B"])
    assert "hardly more than size**" in found("09_training_free", imagenet_adds=["T"], imagenet_adds_to_cells=[])
    assert "no more than size**" in found("09_training_free", imagenet_adds=[], imagenet_adds_to_cells=[])
    assert "Nothing has been measured on a GPU" in found("10_claims", on_gpu=["planned"])
    assert "Measured on a GPU: memory.**" in found("10_claims", on_gpu=["memory", "planned"])
    assert found("05_fairness", skips=30).startswith("**Skips take over")
    assert found("memory", ours_fits=False).startswith("**The search does not fit")


def test_the_page_has_every_part(known):
    parts = {part: "\n".join(page.lines_of(part)) for part in page.PARTS}
    assert parts["states"].startswith(f"{28 + 1 + 6 + 96 + len(TOLD['claims'])} claims: ")
    assert all(claim["quote"].replace("$", "") in parts["sentences"] for claim in TOLD["claims"])
    assert all(found in parts["findings"] for found in findings(known).values())
    assert "{" not in re.sub(r"\{(doc|eq|py:obj)\}", "", "".join(parts.values()))
