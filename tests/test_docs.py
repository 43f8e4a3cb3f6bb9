"""Every block of the README and of the site's pages runs as it is printed, or says beside it why it does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from documents import Block, blocks, commands

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(3600)  # one process follows all pages
FOLLOWED = {"python", "console", "bash", "sh", "shell"}
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if any(block.kind in FOLLOWED for block in blocks(page.read_text()))
}


WRONG = {
    "```python\nassert 1 == 2\n```\n": "AssertionError",
    "```console\nfalse\n```\n": "exit status 1",
    "```python\n# mine.py\nraise ValueError('mine')\n```\n\n```console\npython mine.py\n```\n": "ValueError: mine",
    "```console\ncomposer -n 1 -m accelerando.recipes.train digits/al.yaml\n```\n": "did you mean digits/all.yaml",
    "Not run by the tests:\n\n```console\ncomposer -n 8 recipes/train.py digits/all.yaml sed=1\n```\n": "mean seed?",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What went wrong on each page; all share one process, as the hosts take longer to import than a page to run."""
    folder = tmp_path_factory.mktemp("pages")
    for number, text in enumerate(WRONG):
        (folder / f"{number}.md").write_text(text)
    files = [*PAGES.values(), *(folder / f"{number}.md" for number in range(len(WRONG)))]
    program = [sys.executable, ROOT / "tests" / "documents.py", *files]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(zip([*PAGES, *WRONG], map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.programs
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_is_printed(page, outcomes):
    assert not outcomes[page]["wrong"]


@pytest.mark.programs
@pytest.mark.parametrize("page", WRONG)
def test_what_fails_on_a_page_is_told(page, outcomes):
    assert WRONG[page] in outcomes[page]["wrong"]


def test_blocks_are_found_with_what_is_said_of_them():
    page = (
        "A\n\n```python\na\n```\n\nNot run by\nthe tests:\n\n```console\nb\n```\n\n- C\n\n    ```sh\n    c\n    ```\n"
    )
    found = Block(3, "python", "a\n", True), Block(10, "console", "b\n", False), Block(16, "sh", "c\n", True)
    assert (*blocks(page),) == found


def test_commands_are_lines_with_what_continues_them():
    assert commands("# why\nfirst\n\nsecond \\\n    of two\n") == ["first", "second of two"]
