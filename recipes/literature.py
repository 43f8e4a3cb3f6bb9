"""Tells what papers on pruning compare to, from the tables that Blalock et al. have made of them (arXiv:2003.03033).

    python recipes/literature.py RESULTS.csv PAPERS.csv [--pair="VGG-16 on ImageNet" --figure=PNG [--ours=CSV:PAIR]]

The tables are the user's: Results and Papers in analysis/assets/existing-results of JJGO/shrinkbench. Printed is how
many papers compare to no other or to one, the commonest pairs of model and data, and how sizes and accuracies differ
that papers tell of the same dense network. `--figure` draws what is published on a pair, accuracy over compression and
over theoretical speed-up, and with `--ours` a pair of the study `shrinkbench` beside it, from its shrinkbench.csv. An
error is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerando.algorithms.figures import save_figure
from accelerando.recipes.studies.pruning_papers import draw, papers_by_pair, read_ours, read_papers, read_results, text


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("papers")
    parser.add_argument("--pair", default="VGG-16 on ImageNet")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--ours", default="")
    given = parser.parse_args(arguments)
    try:
        results, papers = read_results(given.results), read_papers(given.papers)
        if given.pair not in (pairs := papers_by_pair(results)):
            raise ValueError(f"--pair: no paper has {given.pair!r}; expected one such as {', '.join([*pairs][:5])}")
        file, colon, pair = given.ours.rpartition(":")
        if given.ours and not (colon and given.figure):
            raise ValueError(f"--ours: {given.ours!r} given; expected TABLE.csv:PAIR, beside --figure")
        ours = read_ours(file, pair) if given.ours else {}
        if given.figure:
            save_figure(draw(results, given.pair, ours), given.figure)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(text(results, papers))


if __name__ == "__main__":
    main(sys.argv[1:])
