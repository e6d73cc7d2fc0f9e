"""Each exercise of the book checks an answer: a right one is told to be right, a wrong one gets a hint that helps."""

import importlib.util
import re
import runpy
from pathlib import Path

import nbformat
import pytest

from dasvit.exercises import chapters, check
from dasvit.exercises.answers import equals, number

ROOT = Path(__file__).resolve().parents[1]
BOOK = {path.stem[:2]: path for path in sorted((ROOT / "book").glob("[0-9][0-9]_*.ipynb"))}
EXAMPLES = {path.stem[-2:]: runpy.run_path(str(path)) for path in sorted((ROOT / "tests/answers").glob("*.py"))}
ANSWERS = chapters()
JUDGED = [(chapter, label) for chapter in EXAMPLES for label in ANSWERS.get(chapter, {})]
PLENTY = 40

each_chapter = pytest.mark.parametrize("chapter", EXAMPLES)
each_exercise = pytest.mark.parametrize(("chapter", "label"), JUDGED)


def text_of(chapter, kind):
    return "\n".join(cell.source for cell in nbformat.read(BOOK[chapter], 4).cells if cell.cell_type == kind)


def labels(chapter):
    return re.findall(r"^`{3,}\{exercise\}[^\n]*\n:label: ([\w-]+)", text_of(chapter, "markdown"), re.MULTILINE)


def test_every_chapter_has_answers_and_the_book_has_plenty():
    assert list(EXAMPLES) == list(ANSWERS) == list(BOOK)
    assert sum(map(len, ANSWERS.values())) >= PLENTY


def test_examples_and_answers_belong_together():
    assert set(EXAMPLES) <= set(BOOK)
    assert set(EXAMPLES) == set(ANSWERS)
    every = [label for answers in ANSWERS.values() for label in answers]
    assert len(set(every)) == len(every)


@each_chapter
def test_every_exercise_has_an_answer_and_two_examples(chapter):
    expected = set(labels(chapter))
    assert set(ANSWERS[chapter]) == set(EXAMPLES[chapter]["RIGHT"]) == set(EXAMPLES[chapter]["WRONG"]) == expected


@each_exercise
def test_an_exercise_says_how_to_check_it_and_its_solution_does(chapter, label):
    call = rf'check\(\s*"{label}",'
    assert re.search(call, text_of(chapter, "markdown")), "the text does not say how"
    assert re.search(call, text_of(chapter, "code")), "no solution calls it"


@each_exercise
def test_a_right_answer_is_right_and_a_wrong_one_gets_a_hint(chapter, label, capsys):
    examples = EXAMPLES[chapter]
    assert check(label, examples["RIGHT"][label]) is True
    assert capsys.readouterr().out == f"{label}: right.\n"
    assert check(label, examples["WRONG"][label]) is False
    assert re.fullmatch(rf"{label}: not yet\. [^\n]{{10,}}\n", capsys.readouterr().out)


def given_away(judge, right, wrong):
    """What in the hint for a wrong answer is the right one: the answer as it is written, or a number that passes."""
    hint = judge(wrong)
    written = re.findall(r"-?\d+(?:\.\d+)?", hint)
    passing = [text for text in written if judge(float(text)) is None or (text.isdigit() and judge(int(text)) is None)]
    return passing + [text for text in [str(right)] if re.search(rf"(?<![\w.]){re.escape(text)}(?![\w]|\.\w)", hint)]


@each_exercise
def test_no_hint_gives_the_answer_away(chapter, label):
    examples = EXAMPLES[chapter]
    assert given_away(ANSWERS[chapter][label], examples["RIGHT"][label], examples["WRONG"][label]) == []


@pytest.mark.parametrize(
    ("judge", "right", "wrong", "found"),
    [
        (number(12, 0.5, "Count the blocks: there are 12 of them."), 12, 3, ["12", "12"]),
        (number(0.25, 0.01, "It is near 0.251, by the way."), 0.25, 1, ["0.251"]),
        (number(12, 0.5, "Multiply 3 by the number of blocks."), 12, 3, []),
        (equals("skip", "The skip wins."), "skip", "msa", ["skip"]),
        (equals([1, 2], "Think of [1, 2] as a list."), [1, 2], [2], ["[1, 2]"]),
        (equals("skip", "Which operation has no weights?"), "skip", "msa", []),
    ],
)
def test_a_hint_that_gives_the_answer_away_is_found(judge, right, wrong, found):
    assert given_away(judge, right, wrong) == found


def test_a_number_may_be_computed_and_come_as_a_tensor():
    torch = pytest.importorskip("torch")
    judge = number(lambda: 3.0, 0.1, "too far")
    assert judge(3.05) is judge(torch.tensor([2.95])) is judge("3") is None
    assert judge(3.2) == judge(float("nan")) == "too far"
    assert judge(torch.zeros(2)) == "The answer is one number, not Tensor."
    assert judge(None) == "The answer is one number, not NoneType."


def test_a_value_is_equal_whatever_holds_it():
    import numpy as np
    import torch

    judge = equals(lambda: [(1, 2), [3]], "look again")
    assert judge([[1, 2], (3,)]) is None
    assert judge([[1, 2], [4]]) == judge(None) == "look again"
    assert equals([1.0, 2.0], "no")(torch.tensor([1.0, 2.0])) is equals([1], "no")(np.array([1])) is None
    assert equals({"a": (1,)}, "no")({"a": [1]}) is equals({1, 2}, "no")(frozenset([2, 1])) is None
    assert equals("ab", "no")(["a", "b"]) == "no"


def test_an_unknown_label_names_those_of_its_chapter(monkeypatch):
    some = {"01": {"ex-vit-heads": number(3, 0.5, "")}, "02": {"ex-space-size": number(3, 0.5, "")}}
    monkeypatch.setattr("dasvit.exercises.chapters", lambda: some)
    with pytest.raises(ValueError, match=r"^no exercise 'ex-space-seize'; those of chapter 2 are ex-space-size$"):
        check("ex-space-seize", 3)


def test_answers_are_loaded_when_they_are_asked_for():
    spec = importlib.util.find_spec("dasvit.exercises")
    assert "chapter" not in "".join(line for line in Path(spec.origin).read_text().splitlines() if "from ." in line)
