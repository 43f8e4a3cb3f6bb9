"""Files that are written whole or not at all, whatever comes between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path, here: bool = True) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its name at the end; several processes may write the same.

    Unless it is `here`, another process writes it, with which this one takes part in gathering what is written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    if not here:
        yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, its part too takes room
        raise
