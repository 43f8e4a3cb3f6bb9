"""What a study leaves in its folder, prints and logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ..config.errors import ConfigError
from .claims import Claim, to_markdown
from .core import Base, Study, Train
from .plan import Plan
from .table import COSTS, Row, to_csv

if TYPE_CHECKING:
    from ..run.results import Result

WRITTEN = ".report.json"  # the names of what a report has left in the study's folder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The rows of what is finished, the verdicts, and why trainings failed, by their names."""

    rows: Sequence[Row]
    claims: Sequence[Claim]
    failures: Mapping[str, str]


def report(
    plan: Plan,
    nodes: Sequence[Train],
    done: Mapping[str, Result],
    failures: Mapping[str, str],
    page: Path | None = None,
) -> Outcome:
    """Writes table, summaries, figure and claims of the trainings that are `done`, prints them, and logs them.

    They are also put on a `page`, if it is given, beside which the figure and the table are then copied.
    """
    from composer.utils import dist

    from ..run.loggers import log_study

    study, base = plan.study, plan.base
    rows = [row for node in nodes if node.name in done for row in study.rows(base, node, done[node.name])]
    found: list[Any] = [None, {}, ()]  # what rank 0 makes of them
    if rows and dist.get_global_rank() == 0:
        with base.source.blame("folder", OSError):
            found = _write(study, base, rows, [result.seconds for result in done.values()], len(nodes))
        if page:
            _publish(base.folder, page)
    dist.broadcast_object_list(found)
    if rows:
        first = next(base.recipe_of(node) for node in nodes if node.name in done)
        log_study(first, base.given, found[1], found[0])
    if dist.get_global_rank() == 0:
        for name, problem in failures.items():
            print(f"{name}: failed: {problem}", file=sys.stderr, flush=True)
    return Outcome(rows=rows, claims=found[2], failures=failures)


def _write(study: Study, base: Base, rows: Sequence[Row], seconds: Sequence[float], planned: int) -> list[Any]:
    """The figure's pixels, all tables, and the claims; `seconds` are those of each finished one of `planned`."""
    from accelerando.algorithms.figures import save_figure

    from ..run.files import write, write_csv, write_yaml

    folder, pixels = base.folder, None
    text, summaries, claims = study.text(base, rows), study.summaries(base, rows), [*study.claims(base, rows)]
    figure = study.figure(base, rows)
    names = ["table.csv", *(f"{name}.csv" for name in summaries), *(["figure.png"] if figure is not None else [])]
    names += ["claims.md", "report.md", "config.yaml"]
    with _alone(folder, names):
        write_yaml(folder / "config.yaml", base.given)
        write(folder / "table.csv", to_csv(rows).encode())
        for name, lines in summaries.items():
            write_csv(lines, folder / f"{name}.csv")
        if figure is not None:
            pixels = save_figure(figure, folder / "figure.png")
        write(folder / "claims.md", to_markdown(claims).encode())
        seeds = ", ".join(str(seed) for seed in study.seeds if any(row.tags.get("seed") == seed for row in rows))
        finished = f"{len(seconds)} of {planned}" if len(seconds) < planned else str(planned)
        hours = sum(seconds) / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{hours:.2g} hours"
        measured = f"{finished} runs with the seeds {seeds}, {took} of training in all"
        write(folder / "report.md", _page(study, base, measured, text, claims, pixels is not None).encode())
    if text:
        print(f"\n{text}")
    for claim in claims:
        print(f"\n{claim.verdict}: {claim.claim}\n  {claim.measured}\n  {claim.why}")
    print(f"\n{folder}: {', '.join(names)}, a folder for each run", flush=True)
    tables = {"table": _flat(rows), **summaries, "claims": [asdict(claim) for claim in claims]}
    return [pixels, {name: list(lines) for name, lines in tables.items() if lines}, claims]


@contextmanager
def _alone(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Files of these names are written inside, and what an earlier report has left besides is removed afterwards.

    Nothing else in the folder is touched, and a kill at any moment leaves nothing that the next report does not remove.
    """
    from ..run.files import write

    old: list[str] = []
    with suppress(FileNotFoundError, ValueError, TypeError):
        told = [name for name in json.loads((folder / WRITTEN).read_text()) if isinstance(name, str)]
        old = [name for name in told if Path(name).name == name and (folder / name).is_file()]
    write(folder / WRITTEN, json.dumps(sorted({*old, *names})).encode())
    yield
    if stale := {*old} - {*names}:
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        write(folder / WRITTEN, json.dumps(sorted(names)).encode())


def _page(study: Study, base: Base, measured: str, text: str, claims: Sequence[Claim], has_figure: bool) -> str:
    """The study as a page, from which it can be repeated."""
    parts = [f"# {base.folder.name}", study.about, f"Measured by {measured}; [every row](table.csv)."]
    parts += ["![the study's figure](figure.png)"] if has_figure else []
    parts += [f"```\n{text}\n```"] if text else []
    parts += [f"## Claims\n\n{to_markdown(claims)}".rstrip()] if claims else []
    parts += [f"## The study\n\n```yaml\n{OmegaConf.to_yaml(base.given).rstrip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _publish(folder: Path, page: Path) -> None:
    """Copies the page, with its figure and table, whose names follow the page's."""
    from ..run.files import write

    text = (folder / "report.md").read_text()
    try:
        for file in ("figure.png", "table.csv"):
            own = page.with_suffix(Path(file).suffix)
            if (folder / file).exists():
                write(own, (folder / file).read_bytes())
            text = text.replace(f"]({file})", f"]({own.name})")
        write(page, text.encode())
    except OSError as error:
        raise ConfigError(str(page), "", f"cannot be written; {error}") from error


def _flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lines that all have the same columns."""
    lines = [{"node": row.node, **row.tags, **{name: row[name] for name in COSTS}, **row.metrics} for row in rows]
    columns = dict.fromkeys(name for line in lines for name in line)
    return [{name: line.get(name) for name in columns} for line in lines]
