"""Runs a module on a leash, which is its stdin: it ends when the process that holds the other end does, however.

python -m accelerando.recipes.executors.leash MODULE ARGUMENT...
"""

import os
import runpy
import sys
import threading


def _end_with_the_parent() -> None:
    # Nobody writes here: it is read to the end when the other process closes it, or is gone, however it ended.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
