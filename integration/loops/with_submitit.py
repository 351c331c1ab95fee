"""submitit: `python with_submitit.py OUT STEPS`: a SLURM job that is queued again when preempted or out of time."""

import sys
from pathlib import Path
from typing import Any

import submitit

HERE = Path(__file__).resolve().parent


class Training:
    """What submitit pickles, and starts in every task of the job."""

    def __init__(self, out: Path, steps: int, here: str) -> None:
        self.out, self.steps, self.here = out, steps, here

    def __call__(self) -> None:
        sys.path.insert(0, self.here)
        from with_torchrun import train

        submitit.helpers.TorchDistributedEnvironment().export()  # RANK, WORLD_SIZE, MASTER_ADDR, as torchrun does
        train(self.out, self.steps)

    def checkpoint(self) -> Any:
        """submitit calls this before the job ends too early: the same again, which goes on from OUT/last.pth."""
        return submitit.helpers.DelayedSubmission(Training(self.out, self.steps, self.here))


def submit(out: Path, steps: int, cluster: str | None = None, **more: Any) -> Any:
    """Cluster None is SLURM where there is one, else processes on this machine; `more` as slurm_partition="gpu"."""
    executor = submitit.AutoExecutor(folder=out / "jobs", cluster=cluster)
    executor.update_parameters(**{"name": "attn_plugins", "nodes": 1, "tasks_per_node": 2, "timeout_min": 60, **more})
    return executor.submit(Training(out.resolve(), steps, str(HERE)))


if __name__ == "__main__":
    job = submit(Path(sys.argv[1]), int(sys.argv[2]))
    print(f"job {job.job_id}, output in {job.paths.stdout}")
    job.results()
