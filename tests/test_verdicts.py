"""The verdicts that a study's page tells are those of the pages that the study itself has written."""

import re
from pathlib import Path

import pytest

STUDIES = Path(__file__).resolve().parents[1] / "docs" / "studies"
PAGES = sorted(page for page in STUDIES.glob("*.md") if "\n<!-- claims and verdicts of: " in page.read_text())
NOT_JUDGED = "not judged"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def table_under(text: str, heading: str) -> list[list[str]]:
    """The lines of the first table there, without its head."""
    lines = text.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    return rows[2:]


def written(page: str) -> dict[str, str]:
    """By claim the verdict that the study wrote."""
    rows = table_under((STUDIES / f"{page}.md").read_text(), "Claims")
    return {row[0]: row[-1].split("**")[1] for row in rows}


def test_pages_tell_verdicts():
    assert len(PAGES) > 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_verdicts_are_those_that_were_written(page):
    text = page.read_text()
    (named,) = re.findall(r"\n<!-- claims and verdicts of: (.*?) -->", text, re.S)
    sources = [written(source) for source in re.findall(r"=(\S+)", named)]
    told = table_under(text, "Claims and verdicts")
    for claim, *verdicts in told:
        assert len(verdicts) == len(sources)
        for verdict, source in zip(verdicts, sources, strict=True):
            assert verdict.strip("*") in (source.get(claim, NOT_JUDGED), *([""] if claim not in source else [])), claim
    claims = {claim for claim, *_ in told}
    assert {claim for source in sources for claim in source} <= claims
