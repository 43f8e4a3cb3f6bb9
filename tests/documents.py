"""Follows pages of the documentation as a reader would, each in a process, a namespace and an empty folder of its own.

    python tests/documents.py PAGE.md ...

Blocks are run as they are printed, in their order. One that begins with `# NAME.py` or `# NAME.yaml` is a file of that
name. Of shell blocks, `composer` and `python` are run as forks of this process, in which the hosts are imported
already, and as one rank, whatever the launcher is told; all else is the shell's. What follows a paragraph that says
"not run by the tests", and the studies' own pages, whose commands take minutes to days, is checked only: code is
compiled, and of a recipe's command the file and its keys are looked up; so are the keys of all YAML. It prints a line
of JSON for each page.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\A# (\S+\.(?:py|yaml))$", re.MULTILINE)
NOT_RUN = "not run by the tests"
ROOT = Path(__file__).parents[1]
OF_THE_LAUNCHER = ("-n", "--nproc", "--world_size", "--node_rank", "--master_addr", "--master_port")
SHELL = ("console", "sh", "bash", "shell")


class Block(NamedTuple):
    line: int
    kind: str
    text: str
    is_run: bool


def blocks(page: str) -> Iterator[Block]:
    """All that a page has."""
    for found in FENCE.finditer(page):
        before = page[: found.start()].rstrip().rpartition("\n\n")[2]
        text = textwrap.dedent(found[3])
        is_run = NOT_RUN not in " ".join(before.lower().split())
        yield Block(page.count("\n", 0, found.start()) + 1, found[2], text, is_run)


def follow(page: Path) -> None:
    """Raises what goes wrong, at the line of the block."""
    namespace = {"__name__": "__main__"}
    is_study = page.parent.name == "studies"
    for block in blocks(page.read_text()):
        where = f"{page.name}:{block.line}"
        if name := FILE.search(block.text):
            Path(name[1]).write_text(block.text)
        if block.kind == "python":
            code = compile(block.text, where, "exec")
            if block.is_run and not name:
                exec(code, namespace)
        elif block.kind == "yaml":
            known(yaml.safe_load(block.text))
        elif block.kind in SHELL:
            for command in commands(block.text):
                try:
                    (run if block.is_run and not is_study else check)(command)
                except (Exception, SystemExit) as error:
                    raise RuntimeError(f"{where}: {command}: {error}") from error


def commands(text: str) -> list[str]:
    """The lines of a shell block, continued ones as one, without comments; what feeds a program stays with it."""
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def program(words: list[str]) -> tuple[Callable[[], object], list[str]] | None:
    """What `composer` or `python` would run, and its arguments; none of another command."""
    if words[0] not in ("composer", "python"):
        return None
    rest = words[1:]
    while words[0] == "composer" and rest[0] in OF_THE_LAUNCHER:
        rest = rest[2:]
    if rest[0] == "-m":
        return (lambda: runpy.run_module(rest[1], run_name="__main__", alter_sys=True)), rest[1:]
    file = rest[0] if Path(rest[0]).exists() else str(ROOT / rest[0])
    return (lambda: runpy.run_path(file, run_name="__main__")), rest


def run(command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] in ("source", "make", "pip"):  # the environment is there already
        return
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    found = program(words[len(settings) :])
    if not found:
        subprocess.run(["bash", "-euc", command], check=True)
        return
    start, arguments = found

    def begin() -> None:
        os.environ.update(settings)
        sys.argv = arguments
        start()

    forked(begin)


def check(command: str) -> None:
    """Of a recipe that cannot run here, that its file and its keys are known."""
    from accelerando.recipes.config.loading import load

    words = shlex.split(command, comments=True)
    found = program(words) if words[0] == "composer" else None
    if found and re.search(r"recipes[./](train|study)(\.py)?$", found[1][0]):
        _, file, *keys = found[1]
        known(load(file, [key for key in keys if not key.startswith("--")])[0])


def known(config: Iterable[str]) -> None:
    """That its keys are some of a recipe, or of a study."""
    from accelerando.recipes.config.errors import Source
    from accelerando.recipes.config.recipe import refuse_unknown

    refuse_unknown(Source(), config, ("study", "executor", "extends"))


def forked(begin: Callable[[], object]) -> None:
    """Raises where the process fails, with the end of what it printed."""
    with tempfile.TemporaryFile() as printed:
        if not (child := os.fork()):
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            code = 1
            with contextlib.suppress(BaseException):
                code = ended(begin)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if os.waitpid(child, 0)[1]:
            printed.seek(0)
            raise RuntimeError(printed.read().decode(errors="replace")[-3000:])


def ended(begin: Callable[[], object]) -> int:
    """The exit code."""
    try:
        begin()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def followed(page: Path) -> dict[str, str | float]:
    """What went wrong, if so, and how long it took."""
    begin = time.monotonic()
    wrong = ""
    with tempfile.TemporaryDirectory() as folder:

        def there() -> None:
            os.chdir(folder)
            sys.path.insert(0, folder)
            warnings.simplefilter("ignore")
            follow(page)

        try:
            forked(there)
        except RuntimeError as error:
            wrong = str(error)
    return {"page": page.name, "wrong": wrong, "seconds": round(time.monotonic() - begin, 1)}


def main(pages: list[str]) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp()}
    import composer.trainer  # noqa: F401  # once for all
    import matplotlib

    matplotlib.use("agg")
    import accelerando.recipes.studies.driver
    import accelerando.recipes.train  # noqa: F401

    for page in pages:
        print(json.dumps(followed(Path(page).resolve())), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
