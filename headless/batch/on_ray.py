"""Ray as a target: every job is a task that asks for its CPUs and GPUs, on this machine or a cluster.

The cluster's machines must have this package installed and see the output folder under the same path.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import Interrupted, LikenessError
from ...core.packages import require
from ...nodes import host
from .. import runner
from .embedded import Folders, NodesFrom, answer
from .targets import Catalogue, JobFailed, Prompt, Result, SlotLost, Task, Tell

LOCAL = "local"


class OnRay:
    """As many slots as tasks fit the cluster at once, or ``workers``.

    Ray alone places tasks; a slot is one task under way. ``address``: "local" starts one here.
    """

    def __init__(
        self,
        folders: Folders,
        *,
        address: str = LOCAL,
        workers: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        nodes: NodesFrom = runner.known_classes,
    ) -> None:
        self.folders, self.address, self.workers, self.nodes = folders, address, workers, nodes
        self.cpus, self.gpus = cpus, gpus
        self.ray: Any = require("ray", purpose="--ray", install="ray")

    def catalogue(self) -> Catalogue:
        classes = self.nodes()
        return Catalogue(where="Likeness's own runner", schemas=runner.schemas_of(classes), classes=classes)

    def open(self) -> list[RayTask]:
        try:
            self.ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LikenessError(
                f"There is no Ray at {self.address!r}: {error}", fix="Start it with: ray start --head"
            ) from error
        remote = self.ray.remote(run_one).options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=0,  # retries are counted here
        )
        names = (f"ray task {number}" for number in range(1, self._fitting() + 1))
        return [RayTask(name, self.ray, remote, self.folders, self.nodes) for name in names]

    def close(self) -> None:
        self.ray.shutdown()

    def _fitting(self) -> int:
        """How many tasks run at once. Raises LikenessError when not even one would."""
        there = self.ray.cluster_resources()
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        fit = min(int(there.get(kind, 0) // number) for kind, number in asked.items() if number > 0)
        if fit < 1:
            raise LikenessError(
                f"A job asks for {self.cpus:g} CPUs and {self.gpus:g} GPUs, and the cluster has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}",
                fix="Ask for less with --cpus and --gpus",
            )
        return min(fit, self.workers) if self.workers else fit


class RayTask:
    """A slot: one task at a time."""

    def __init__(self, name: str, ray: Any, remote: Any, folders: Folders, nodes: NodesFrom) -> None:
        self.name, self.ray, self.remote, self.folders, self.nodes = name, ray, remote, folders, nodes
        self.running: Any = None

    def run(self, task: Task, tell: Tell) -> Result:
        self.running = self.remote.remote(task.prompt, self.folders, self.nodes)
        errors = self.ray.exceptions
        try:
            ended = self.ray.get(self.running)
        except errors.TaskCancelledError as error:
            raise Interrupted("Stopped as asked.") from error
        except errors.RayTaskError as error:
            raise JobFailed(str(error), again=True) from error
        except errors.RayError as error:  # a worker or a machine is gone
            raise SlotLost(f"{self.name}: {type(error).__name__}: {error}") from error
        finally:
            self.running = None
        if "stopped" in ended:
            raise Interrupted("Stopped as asked.")
        if "failed" in ended:
            raise JobFailed(ended["failed"], again=ended["again"])
        return Result(**ended["result"])

    def revive(self) -> bool:
        return True  # the next task goes to another machine

    def stop(self) -> None:
        running = self.running
        if running is not None:
            self.ray.cancel(running)  # raises KeyboardInterrupt in the task: its trainer saves and ends

    def close(self) -> None:
        pass


def run_one(prompt: Prompt, folders: Folders, nodes: NodesFrom) -> dict[str, Any]:
    """One job, in a process of Ray's."""
    plain = host.Plain()
    folders.place(plain)
    host.use(plain)
    return answer(prompt, nodes(), plain, lambda words: None)
