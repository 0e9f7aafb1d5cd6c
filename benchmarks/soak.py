"""A training whose workers are killed again and again: do its steps add up, and does it stay as large as it was?

    python benchmarks/soak.py [--minutes 30] [--envs 64] [--workers 2] [--kill-every 60] [--task RoboschoolHumanoid-v1]

Trains `PPOClipPaper` with `presets.ROBOSCHOOL_LOCOMOTION` over `SharedMemoryVecEnv`. At each interval one worker, drawn
at random, gets SIGKILL, in whatever it is doing. In the end it checks that

- the steps counted are rollouts × steps in each × environments,
- each kill led to one replacement, and at most one kill of those due is missing,
- the memory of the program and its processes (proportional set size, sampled every ten seconds) has not grown by more
  than 5 % after the first minute: medians over the second minute and the last two; samples are taken while all workers
  are there,
- no process, zombie, descriptor, semaphore or shared memory is left that was not there before.

It exits with 1 if one of these fails. One line per minute tells how it goes. Needs Linux and psutil.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ppo_variants import PPOClipPaper, presets
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv, WorkerLostWarning

SAMPLE_SECONDS = 10.0
FIRST_SECONDS = 60.0
"""In which memory may grow: buffers are filled, and libraries loaded."""
EARLY_SECONDS, LATE_SECONDS = 60.0, 120.0
"""After the first and before the end, from which memory is compared."""
GROWTH_BAR = 0.05
SEED = 0
NAMES_OF_PYTHON = ("sem.", "psm_", "sb3")
"""What the names in /dev/shm begin with that Python or this package would leave there."""


class Watch(BaseCallback):
    """Counts rollouts, and ends the training with the last step of one, once the time is up."""

    def __init__(self, env: SharedMemoryVecEnv, seconds: float):
        super().__init__()
        self.env, self.seconds = env, seconds
        self.begun = time.monotonic()
        self.rollouts = 0
        self.replaced = 0
        """workers that were lost, and whose replacement has given a step"""

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun

    def _on_rollout_start(self) -> None:
        self.rollouts += 1

    def _on_step(self) -> bool:
        assert isinstance(self.model, PPOClipPaper)
        self.replaced = self.env.lost_workers
        return self.n_calls % self.model.n_steps != 0 or self.elapsed < self.seconds


class Killer:
    """Kills workers and samples the memory, in a thread of its own."""

    def __init__(self, watch: Watch, every: float):
        self.watch, self.every = watch, every
        self.kills = 0
        self.error: BaseException | None = None
        self.samples: list[tuple[float, float]] = []
        """seconds since the beginning, and GiB"""
        self._random = random.Random(SEED)
        self._stopped = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Kill and sample inside of the context; what goes wrong with it ends the training and is raised."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._act()
        except BaseException as error:
            self.error = error
            self.watch.seconds = 0.0

    def _act(self) -> None:
        acts: list[tuple[float, Callable[[], bool]]] = [
            (self.every, self._kill),
            (SAMPLE_SECONDS, self._sample),
            (60.0, self._tell),
        ]
        due = [period for period, _ in acts]
        self._sample()
        while not self._stopped.wait(0.2):
            for index, (period, act) in enumerate(acts):
                late = self.watch.elapsed - due[index]
                if late >= 0 and act():
                    due[index] += period * (1 + late // period)

    def _kill(self) -> bool:
        if self.watch.replaced < self.kills:
            return False  # later
        os.kill(self._random.choice(worker_processes()), signal.SIGKILL)
        self.kills += 1
        return True

    def _sample(self) -> bool:
        if self.watch.replaced < self.kills:
            return False
        self.samples.append((self.watch.elapsed, tree_memory()))
        return True

    def _tell(self) -> bool:
        model = self.watch.model
        score = safe_mean([episode["r"] for episode in model.ep_info_buffer or []])
        print(
            f"{self.watch.elapsed / 60:5.1f} min: {model.num_timesteps:>10,} steps, "
            f"{model.num_timesteps / self.watch.elapsed:5.0f} per second, {self.watch.rollouts} rollouts, "
            f"{self.kills} kills, {self.watch.replaced} replaced, {self.samples[-1][1]:.2f} GiB, "
            f"mean return {score:.0f}",
            flush=True,
        )
        return True


def tree(*, zombies: bool = False) -> list[psutil.Process]:
    """This process and all below it that still run; or those that have ended, and nobody asked how."""
    me = psutil.Process()
    below = [child for child in me.children(recursive=True) if (child.status() == psutil.STATUS_ZOMBIE) == zombies]
    return below if zombies else [me, *below]


def worker_processes() -> list[int]:
    """The workers: the fork server's children. Only of use while none of them ends."""
    return [process.pid for process in tree()[1:] if process.ppid() != os.getpid()]


def tree_memory() -> float:
    """GiB of all processes together."""
    total = 0
    for process in tree():
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**30


def resources() -> dict[str, Any]:
    """What this process and those below it hold, and what would stay on the machine after them."""
    gc.collect()
    processes = tree()
    return {
        "processes": len(processes),
        "zombies": len(tree(zombies=True)),
        "descriptors": sum(process.num_fds() for process in processes),
        "shared memory": sum(Path(f"/proc/{p.pid}/maps").read_text().count("memfd:sb3") for p in processes),
        "names in /dev/shm": sorted(p.name for p in Path("/dev/shm").iterdir() if p.name.startswith(NAMES_OF_PYTHON)),
        "System V semaphores": len(Path("/proc/sysvipc/sem").read_text().splitlines()) - 1,
        "System V shared memory": len(Path("/proc/sysvipc/shm").read_text().splitlines()) - 1,
    }


def growth(samples: list[tuple[float, float]]) -> float:
    """By what part of itself the memory has grown since the first minute; 0 if the run was no longer."""
    since = [sample for sample in samples if sample[0] >= FIRST_SECONDS]
    if not since:
        return 0.0
    first, last = since[0][0], since[-1][0]
    early = [memory for seconds, memory in since if seconds < first + EARLY_SECONDS]
    late = [memory for seconds, memory in since if seconds > last - LATE_SECONDS]
    return statistics.median(late) / statistics.median(early) - 1


def make_env(task: str, n_envs: int, n_workers: int) -> VecEnv:
    vec_env_cls: Any = SharedMemoryVecEnv
    made = make_vec_env(
        f"sb3_ppo_variants:{task}",
        n_envs,
        SEED,
        vec_env_cls=vec_env_cls,
        vec_env_kwargs={"n_workers": n_workers, "start_method": "forkserver"},
    )
    return VecNormalize(made)


def make_model(env: VecEnv, **settings: Any) -> PPOClipPaper:
    arguments = {**presets.ROBOSCHOOL_LOCOMOTION, "seed": SEED, "device": "cpu", **settings}
    return PPOClipPaper("MlpPolicy", env, **arguments)


def soak(arguments: argparse.Namespace) -> dict[str, tuple[bool, str]]:
    """The training.

    :return: by what was checked: whether it is so, and the figures
    """
    env = make_env(arguments.task, arguments.envs, arguments.workers)
    shared = env.unwrapped
    assert isinstance(shared, SharedMemoryVecEnv)
    with closing(env):
        model = make_model(env)
        watch = Watch(shared, 60 * arguments.minutes)
        killer = Killer(watch, arguments.kill_every)
        with killer.at_work():
            model.learn(10**12, watch)
        shared.get_attr("render_mode")  # the last kill may not have been noticed
        lost = watch.replaced = shared.lost_workers
        killer._tell()
    n_steps, n_envs = model.n_steps, arguments.envs
    due = watch.rollouts * n_steps * n_envs
    grown = growth(killer.samples)
    kills_due = max(1, int(60 * arguments.minutes / arguments.kill_every) - 1)
    return {
        "steps": (
            model.num_timesteps == due,
            f"{model.num_timesteps:,} counted; {watch.rollouts} rollouts × {n_steps} × {n_envs} = {due:,}",
        ),
        "replacements": (
            lost == killer.kills >= kills_due,
            f"{lost} for {killer.kills} kills, at least {kills_due} due",
        ),
        "memory": (
            grown <= GROWTH_BAR,
            f"{100 * grown:+.1f} % since the first minute, allowed {100 * GROWTH_BAR:+.0f} %; "
            f"at most {max(memory for _, memory in killer.samples):.2f} GiB in {len(killer.samples)} samples",
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds")
    parser.add_argument("--task", default="RoboschoolHumanoid-v1")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    warnings.simplefilter("ignore", WorkerLostWarning)  # they are counted
    # What stays anyway: the fork server, and what the libraries open on first use.
    with closing(make_env(arguments.task, 1, 1)) as env:
        make_model(env, n_steps=16, batch_size=16, n_epochs=1).learn(16)
    del env
    before = resources()
    checks = soak(arguments)
    after = resources()
    for what, count in before.items():
        checks[what] = after[what] == count, f"{count} before, {after[what]} after"
    for what, (holds, figures) in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {what}: {figures}")
    sys.exit(0 if all(holds for holds, _ in checks.values()) else 1)


if __name__ == "__main__":
    main()
