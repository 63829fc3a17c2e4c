"""What the start page shows: its oracles, its thresholds, and what luck does."""

import re

import nbformat
import pytest
from conftest import ROOT

PREFIX = "application/papermill.record/"


@pytest.fixture(scope="module")
def outputs():
    notebook = nbformat.read(ROOT / "chapters/start.ipynb", 4)
    return [o for cell in notebook.cells for o in cell.get("outputs", ())]


@pytest.fixture(scope="module")
def glued(outputs):
    """Name -> number; texts are left out."""
    found = {}
    for output in outputs:
        record = output.get("metadata", {}).get("scrapbook")
        value = output.get("data", {}).get(f"{PREFIX}text/plain", "'")
        if record and not value.startswith("'"):
            found[record["name"]] = float(value)
    return found


def table(outputs, first):
    """Rows of the table in Markdown whose first heading is given: {label: numbers}."""
    texts = (o.get("data", {}).get("text/markdown", "") for o in outputs)
    (text,) = (t for t in texts if t.startswith(f"| {first}"))
    rows = [[c.strip() for c in row.split("|")[1:-1]] for row in text.splitlines()[2:]]
    return {label: [float(c) for c in cells] for label, *cells in rows}


def test_a_coarse_map_that_is_optimised_beats_the_average(outputs):
    rows = table(outputs, "output stride")
    assert list(rows) == ["2", "4", "8", "16", "32"]
    for iou, iou_optimised, edge, edge_optimised in rows.values():
        assert iou_optimised > iou and edge_optimised > edge
    for column in zip(*rows.values()):
        assert list(column) == sorted(column, reverse=True)  # coarser is worse


def test_precision_recall_and_iou_belong_together(outputs):
    rows = table(outputs, "layer, threshold")
    assert len(rows) == 5
    for precision, recall, score in rows.values():
        assert 0 <= score <= min(precision, recall) + 1e-3
    assert rows["plain, at 1 / (1 + w)"][1] > rows["plain, at one half"][1]
    assert rows["weighted, at one half"][1] > rows["plain, at one half"][1]


def test_luck_follows_the_arithmetic(glued):
    """Of 2n scores in any order, n lie above the others in 1 order of (2n over n)."""
    assert glued["chance_two"] == pytest.approx(2 / 6, abs=0.05)
    assert glued["chance_three"] == pytest.approx(2 / 20, abs=0.035)
    assert glued["false_two"] < 0.08 and glued["false_five"] < 0.08
    assert glued["power_two"] < glued["power_five"] < glued["power_ten"]


def test_sentences_say_the_word_of_their_interval(outputs):
    text = "\n".join(o.get("data", {}).get("text/markdown", "") for o in outputs)
    found = re.findall(
        r"\*\*: ([a-z ]+)\. IoU .*?interval ([+-][\d.]+) to ([+-][\d.]+),", text
    )
    assert len(found) == 3
    for word, low, high in found:
        low, high = float(low), float(high)
        inside = -0.02 < low and high < 0.02
        right = "shows" if low > 0 else "the opposite shows" if high < 0 else ""
        right = right or "not resolved"
        assert word == ("smaller than what matters" if inside else right)
