"""One thread for each process: the tests are small, and more threads than free cores make them many times slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
