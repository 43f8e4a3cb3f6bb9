"""Who runs the runs of a study: processes of this machine, or jobs of SLURM. A YAML finds them by their names.

A job is one run by its checked YAML file. ``train`` goes on from the last checkpoint when it is called again, so
whatever ends a job, the next one finishes the run with the same weights. Nothing here imports Composer: a job of
SLURM's would import it twice, and hold both until the run ends.
"""

from .interface import Executor, Job, Running
from .processes import Processes
from .slurm import Slurm

__all__ = ["Executor", "Job", "Processes", "Running", "Slurm"]
