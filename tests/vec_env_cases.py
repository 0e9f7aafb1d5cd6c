"""Environments and checks for the tests of vectorised environments; workers import this module, so it is light."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

BOX = spaces.Box(-1, 1, (3,), np.float32)
OBSERVATIONS: dict[str, spaces.Space] = {
    "box": BOX,
    "image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(5),
    "dict": spaces.Dict({"a": BOX, "b": spaces.Box(0, 255, (4, 4, 1), np.uint8), "c": spaces.Discrete(3)}),
    "tuple": spaces.Tuple([BOX, spaces.Discrete(3)]),
}
ACTIONS: dict[str, spaces.Space] = {
    "box": spaces.Box(-2, 2, (2,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
    "scalar-box": spaces.Box(-1, 1, (), np.float32),
}


class RandomEnv(gym.Env):
    """Random observations from the environment's own generator; ends, and is cut, at random."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, trouble_at: int = -1):
        self.observation_space, self.action_space = deepcopy(observation_space), deepcopy(action_space)
        self.render_mode = "rgb_array"
        self.trouble_at = trouble_at
        self.n_steps = 0
        self.extra: Any = None

    def _observation(self) -> Any:
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self._observation(), {"options": options, "drawn": self.np_random.random()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.n_steps == self.trouble_at:
            raise ZeroDivisionError("trouble as ordered")
        reward = float(np.sum(action)) + self.np_random.random()
        ends, cut = self.np_random.random(2) < 0.2
        info = {"steps": self.n_steps, "action": action}
        return self._observation(), reward, bool(ends), bool(cut), info if self.extra is None else {"extra": self.extra}

    def render(self) -> Any:
        return np.full((2, 2, 3), self.n_steps, np.uint8)

    def add(self, number: int, *, twice: bool = False) -> int:
        return self.n_steps + number * (2 if twice else 1)

    def lock(self) -> None:
        """Put what cannot be pickled into the infos."""
        self.extra = threading.Lock()


def functions(observations: str, actions: str, n_envs: int, troubled: int = -1) -> list[Callable[[], gym.Env]]:
    def make(index: int) -> Callable[[], gym.Env]:
        trouble_at = 3 if index == troubled else -1
        # Looked up there: rl_zoo3, once imported, puts another in its place, and a worker knows only its own.
        return lambda: gym.wrappers.TimeLimit(RandomEnv(OBSERVATIONS[observations], ACTIONS[actions], trouble_at), 9)

    return [make(index) for index in range(n_envs)]


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal values of equal types, in any nesting."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    else:
        assert ours == theirs


def trajectory(env: Any, n_steps: int = 40) -> list[Any]:
    env.seed(3)
    env.set_options({"speed": 2})
    env.action_space.seed(0)
    seen = [env.metadata, env.reset(), list(env.reset_infos)]
    for _ in range(n_steps):
        actions = np.stack([env.action_space.sample() for _ in range(env.num_envs)])
        seen += [env.step(actions), list(env.reset_infos)]
    env.close()
    return seen


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class DyingEnv(RandomEnv):
    """Kills its process, the first time only where ``marker`` is a file to remember it by.

    :param where: ``"make"``, ``"method"``, ``"step <n>"``, ``"reset <n>"``, or anything else for nowhere
    """

    def __init__(self, where: str, marker: str = ""):
        super().__init__(BOX, ACTIONS["box"])
        self.where, self.marker = where, marker
        self.n_resets = 0
        self.level = 0
        self._die("make")

    def _die(self, here: str) -> None:
        if here == self.where and not Path(self.marker).is_file():
            if self.marker:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.n_resets += 1
        self._die(f"reset {self.n_resets}")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._die(f"step {self.n_steps + 1}")
        observation, reward, *_, info = super().step(action)
        return observation, reward, False, False, info

    def die_or_add(self, number: int) -> int:
        self._die("method")
        return number


class SlowEnv(RandomEnv):
    """Takes ``seconds`` for a step."""

    def __init__(self, seconds: float):
        super().__init__(BOX, ACTIONS["box"])
        self.seconds = seconds

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        return super().step(action)


def dying(tmp_path: Path, where: str, n_envs: int = 4, victim: int = 2) -> list[Callable[[], gym.Env]]:
    """Environments of which one kills its process the first time that it comes to ``where``."""
    return [partial(DyingEnv, where if i == victim else "", str(tmp_path / "died")) for i in range(n_envs)]


def dying_second(path: str) -> gym.Env:
    """Environments of which the second kills its process while it is made."""
    with open(path, "a") as made:
        made.write("x")
        here = made.tell()
    if here == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return DyingEnv("")


def steps_of(env: Any, n_steps: int) -> list[Any]:
    return [env.step(np.full((env.num_envs, 2), 0.5, np.float32)) for _ in range(n_steps)]


def losses_in(infos: Any) -> list[bool]:
    return [info.get("worker_lost", False) for info in infos]


# ------------------------------------------------------------------ what every vectorised environment of ours does


def check_it_equals_dummy_vec_env(env: Any, env_fns: list[Callable[[], gym.Env]], n_steps: int = 40) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    assert_same(trajectory(env, n_steps), trajectory(DummyVecEnv(env_fns), n_steps))


def check_that_training_equals_dummy_vec_envs(vec_env_cls: Any, **kwargs: Any) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from sb3_ppo_variants import PPOClipPaper

    def train(vec_env_cls: Any, **kwargs: Any) -> Any:
        env = make_vec_env("CartPole-v1", 4, seed=1, vec_env_cls=vec_env_cls, vec_env_kwargs=kwargs)
        model = PPOClipPaper("MlpPolicy", VecNormalize(env), n_steps=32, n_epochs=2, seed=1, device="cpu").learn(256)
        env.close()
        return model.get_parameters()["policy"]

    ours, theirs = train(vec_env_cls, **kwargs), train(DummyVecEnv)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def check_attributes_methods_wrappers_and_frames(env: Any) -> None:
    """Of five environments with boxes and four actions."""
    from stable_baselines3.common.vec_env import VecNormalize

    env.reset()
    env.step(np.zeros(5, dtype=np.int64))
    assert env.get_attr("n_steps") == [1] * 5
    env.env_method("set_wrapper_attr", "n_steps", 7, indices=[4, 1])
    assert env.get_attr("n_steps") == [1, 7, 1, 1, 7]
    assert env.get_attr("n_steps", indices=[4, 0]) == [7, 1]
    assert env.env_method("add", 10, twice=True, indices=1) == [27]  # 7 + 2·10
    env.set_attr("mark", "here", indices=2)
    assert env.get_attr("mark", indices=2) == ["here"]
    assert env.has_attr("n_steps")
    assert not env.has_attr("mark")  # only one has it
    with pytest.raises(AttributeError, match="environment 0"):
        env.get_attr("nothing")
    assert env.get_attr("n_steps", indices=0) == [1]  # and it goes on
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 5
    assert env.env_is_wrapped(VecNormalize) == [False] * 5
    frames = env.get_images()
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 7, 1, 1, 7]
    picture = env.render()
    assert picture is not None
    assert picture.shape[2] == 3
    env.close()


def check_that_a_worker_with_plain_environments_imports_neither_torch_nor_sb3(env: Any) -> None:
    loaded = env._ask(None, _loaded)
    env.close()
    assert loaded == [{"numpy"}]


def check_that_an_environment_that_raises_ends_everything_and_is_named(env: Any) -> None:
    """Of five environments with boxes, of which number 3 is in trouble."""
    from sb3_ppo_variants.vec_env import EnvironmentRaisedError

    env.reset()
    actions = np.zeros((5, 2), np.float32)
    env.step(actions)
    env.step(actions)
    with pytest.raises(EnvironmentRaisedError, match="environment 3 raised a ZeroDivisionError") as caught:
        env.step(actions)
    assert "trouble as ordered" in str(caught.value)
    assert "in step" in str(caught.value)  # the worker's traceback
    check_that_nothing_can_be_asked(env, actions)
    env.close()  # again is no harm


def check_that_an_environment_that_cannot_be_made_is_named(make: Callable[[Any], Any]) -> None:
    from sb3_ppo_variants.vec_env import EnvironmentRaisedError

    def impossible() -> gym.Env:
        raise OSError("no such world")

    with pytest.raises(EnvironmentRaisedError, match=r"environment 2 raised a OSError(.|\n)*no such world"):
        make([*functions("box", "box", 2), impossible])
    text = spaces.Text(5)
    with pytest.raises(TypeError, match="observation space must be one of Box"):
        make([lambda: RandomEnv(text, BOX)] * 2)


def check_that_nothing_can_be_asked(env: Any, actions: np.ndarray) -> None:
    """After the end; ``actions`` are such as it took before."""
    for use in (env.reset, env.step_wait, lambda: env.get_attr("n_steps"), lambda: env.step(actions)):
        with pytest.raises(RuntimeError, match=f"this {type(env).__name__} is closed"):
            use()


def check_that_wrong_numbers_of_actions_are_refused(env: Any, dtype: Any) -> None:
    """Of four environments with boxes, on which a refused step has no effect."""
    env.seed(5)
    env.reset()
    for n_actions in (0, 3, 5):
        with pytest.raises(ValueError, match=f"actions must have one row per environment, 4; got {n_actions}"):
            env.step(np.zeros((n_actions, 2), dtype))
    assert env.get_attr("n_steps") == [0] * 4
    *_, infos = env.step(np.zeros((4, 2), dtype))
    assert [info["steps"] for info in infos] == [1] * 4
    env.close()


def check_that_what_cannot_be_pickled_is_told(env: Any) -> None:
    """Of four environments with boxes in two workers; in an answer to a question, then in an info."""
    from sb3_ppo_variants.vec_env import EnvironmentRaisedError

    env.reset()
    env.env_method("lock", indices=2)
    with pytest.raises(EnvironmentRaisedError, match=r"environments 2 to 3 raised a TypeError(.|\n)*lock"):
        env.get_attr("extra")
    assert env.get_attr("n_steps") == [0] * 4  # and it goes on
    with pytest.raises(EnvironmentRaisedError, match=r"environments 2 to 3 raised a TypeError(.|\n)*lock"):
        env.step(np.zeros((4, 2), np.float32))
    check_that_nothing_can_be_asked(env, np.zeros((4, 2), np.float32))


def _loaded(_: gym.Env) -> set[str]:
    return {"torch", "stable_baselines3", "numpy"} & set(sys.modules)


# ------------------------------------------------------------------ what every one does that replaces lost workers

# Makes environments in two workers, unless told otherwise; and kills the worker of a number, and waits for its end.
Make = Callable[..., Any]
Kill = Callable[[Any, int], None]


def check_a_loss_during_a_step_truncates_its_episodes_and_no_others(
    make: Make, tmp_path: Path, message: str, victim: int
) -> None:
    """``message`` is the warning's beginning, and ``victim`` 2 or 3, either of the second worker's environments."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    def run(folder: Path) -> tuple[list[Any], list[Any], Any]:
        folder.mkdir()
        env = make(dying(folder, "step 3", victim=victim))
        env.seed(5)
        first = [env.reset(), *steps_of(env, 2)]
        with pytest.warns(env.LOST_WARNING, match=f"{message}; its environments are made anew.*") as told:
            rest = steps_of(env, 1)
        assert "episodes truncated (restart 1 of at most max_restarts" in str(told[0].message)
        assert told[0].filename == __file__
        rest += steps_of(env, 4)
        env.close()
        return first, rest, env

    first, rest, env = run(tmp_path / "a")
    observations, rewards, dones, infos = rest[0]
    assert dones.tolist() == [False, False, True, True]
    assert rewards[2:].tolist() == [0, 0]
    assert rewards.dtype == np.float32
    for index in (2, 3):
        assert set(infos[index]) == {"TimeLimit.truncated", *env.LOST_KEYS, "terminal_observation"}
        assert all(infos[index][key] is True for key in ("TimeLimit.truncated", *env.LOST_KEYS))
        # Not what the worker may have written before it died.
        assert np.array_equal(infos[index]["terminal_observation"], first[-1][0][index])
    assert not any(any(losses_in(step[3])) for step in rest[1:])
    assert env.lost_workers == 1

    # The others never notice.
    theirs = DummyVecEnv(dying(tmp_path, "never"))
    theirs.seed(5)
    expected = [theirs.reset(), *steps_of(theirs, 7)]
    for ours, dummys in zip(rest, expected[3:], strict=True):
        assert_same([part[:2] for part in ours], [part[:2] for part in dummys])
    # What is drawn after it is another stream than before, and the same in every run.
    assert not np.array_equal(observations[2:], first[0][2:])
    assert env.reset_infos[2]["drawn"] != theirs.reset_infos[2]["drawn"]
    assert_same(run(tmp_path / "b")[1], rest)


def check_that_the_terminal_observation_has_the_form_of_the_space(env: Any, kill: Kill, observations: str) -> None:
    """Of two environments in two workers."""
    seen: Any = env.reset()
    kept = deepcopy(seen)
    parts = seen.values() if isinstance(seen, dict) else seen if isinstance(seen, tuple) else [seen]
    for part in parts:
        part[:] = 0  # what was handed out is the caller's
    kill(env, 1)
    with pytest.warns(env.LOST_WARNING):
        *_, infos = steps_of(env, 1)[0]
    terminal = infos[1]["terminal_observation"]
    if observations == "dict":
        assert_same(terminal, {key: array[1] for key, array in kept.items()})
    elif observations == "tuple":
        assert_same(terminal, tuple(array[1] for array in kept))
    else:
        assert_same(terminal, kept[1])
    env.close()


def check_that_a_loss_during_a_reset_changes_nothing(make: Make, tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = make(dying(tmp_path, "reset 1"))
    with pytest.warns(env.LOST_WARNING, match="made anew .restart 1"):
        ours = trajectory(env)
    assert env.lost_workers == 1
    assert_same(ours, trajectory(DummyVecEnv(dying(tmp_path, "never"))))


def check_that_a_loss_in_a_later_reset_cuts_nothing(make: Make, tmp_path: Path) -> None:
    env = make(dying(tmp_path, "reset 2"))
    env.reset()
    steps_of(env, 1)
    with pytest.warns(env.LOST_WARNING) as told:
        env.reset()
    assert "made anew (restart 1" in str(told[0].message)
    assert told[0].filename == __file__
    *_, infos = steps_of(env, 1)[0]
    assert not any(losses_in(infos))
    env.close()


def check_two_workers_lost_in_one_step(make: Make, tmp_path: Path) -> None:
    victims = {0: "first", 2: "second"}
    fns: list[Callable[[], gym.Env]] = [
        partial(DyingEnv, "step 2" if i in victims else "", str(tmp_path / victims.get(i, ""))) for i in range(4)
    ]
    env = make(fns, 4)
    env.reset()
    steps_of(env, 1)
    with pytest.warns(env.LOST_WARNING) as told:
        _, _, dones, infos = steps_of(env, 1)[0]
    assert [re.findall(r"of (environment \d)", str(warning.message)) for warning in told] == [
        ["environment 0"],
        ["environment 2"],
    ]
    assert dones.tolist() == [True, False, True, False]
    assert losses_in(infos) == [True, False, True, False]
    assert env.lost_workers == 2
    assert not steps_of(env, 1)[0][2].any()
    env.close()


def check_that_a_replacement_that_dies_while_it_starts_is_replaced_too(make: Make, kill: Kill, tmp_path: Path) -> None:
    count = tmp_path / "made"
    env = make([partial(DyingEnv, ""), partial(dying_second, str(count))])
    env.reset()
    kill(env, 1)
    with pytest.warns(env.LOST_WARNING) as told:
        _, _, dones, infos = steps_of(env, 1)[0]
    assert [re.findall(r"restart \d", str(warning.message)) for warning in told] == [["restart 1"], ["restart 2"]]
    assert env.lost_workers == 2
    assert len(count.read_text()) == 3
    assert dones.tolist() == [False, True]
    assert losses_in(infos) == [False, True]
    env.close()


def check_that_normalisation_goes_over_a_cut_as_over_any_end(make: Make, kill: Kill) -> None:
    from stable_baselines3.common.vec_env import VecNormalize

    inner = make([partial(DyingEnv, "")] * 4)
    env = VecNormalize(inner)
    normal: Any = env.normalize_obs
    env.reset()
    steps_of(env, 3)
    last: Any = env.get_original_obs()
    kill(inner, 1)
    with pytest.warns(inner.LOST_WARNING):
        env.get_attr("n_steps")
    observations, _, dones, infos = steps_of(env, 1)[0]
    first: Any = env.get_original_obs()
    assert dones.tolist() == [False, False, True, True]
    for index in (2, 3):
        assert np.array_equal(infos[index]["terminal_observation"], normal(last[index]))
        assert np.array_equal(observations[index], normal(first[index]))
    assert not np.array_equal(first[2:], last[2:])
    assert env.returns[2:].tolist() == [0, 0]
    env.close()


def check_that_an_interruption_while_a_replacement_starts_leaves_the_cut_to_tell(
    make: Make, kill: Kill, where: Any, name: str
) -> None:
    """Ctrl-C comes in ``where.name``, with which a start waits."""

    def interrupted(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    env = make([partial(DyingEnv, "")] * 4)
    env.reset()
    kill(env, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.warns(env.LOST_WARNING), pytest.raises(KeyboardInterrupt):
            env.get_attr("n_steps")
    _, _, dones, infos = steps_of(env, 1)[0]
    assert dones.tolist() == [False, False, True, True]
    assert losses_in(infos) == [False, False, True, True]
    assert env.lost_workers == 1
    assert not steps_of(env, 1)[0][2].any()
    env.close()


def check_that_a_question_to_a_lost_worker_is_asked_again(make: Make, kill: Kill, tmp_path: Path, method: str) -> None:
    env = make(dying(tmp_path, "method"))
    env.seed(5)
    env.reset()
    env.set_attr("level", 4, indices=[3, 1])
    env.env_method("set_wrapper_attr", "level", 9, indices=3)  # an effect that is gone with the environment
    last = steps_of(env, 2)[-1][0]
    if method != "env_method":
        kill(env, 1)
    ask: dict[str, Callable[[], Any]] = {
        "env_method": partial(env.env_method, "die_or_add", 10),
        "get_attr": partial(env.get_attr, "n_steps"),
        "set_attr": partial(env.set_attr, "mark", "here"),
    }
    with pytest.warns(env.LOST_WARNING):
        answer = ask[method]()
    assert answer == {"env_method": [10] * 4, "get_attr": [2, 2, 0, 0], "set_attr": None}[method]
    assert env.has_attr("mark") == (method == "set_attr")
    assert env.get_attr("level") == [0, 4, 0, 4]
    # The next step tells of the cut; it does not step the new environments, whose observations nobody has seen.
    observations, rewards, dones, infos = steps_of(env, 1)[0]
    assert env.get_attr("n_steps") == [3, 3, 0, 0]
    assert dones.tolist() == [False, False, True, True]
    assert rewards[2:].tolist() == [0, 0]
    assert losses_in(infos) == [False, False, True, True]
    assert_same(infos[2]["terminal_observation"], last[2])
    assert not np.array_equal(observations[2], last[2])
    *_, infos = steps_of(env, 1)[0]
    assert not any(losses_in(infos))
    assert env.get_attr("n_steps") == [4, 4, 1, 1]
    env.close()


def check_that_a_reset_after_a_loss_leaves_nothing_to_tell(make: Make, kill: Kill) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = make(functions("box", "box", 4))
    env.reset()
    kill(env, 0)
    with pytest.warns(env.LOST_WARNING):
        env.get_attr("n_steps")
    assert_same(trajectory(env), trajectory(DummyVecEnv(functions("box", "box", 4))))


def check_that_a_worker_lost_too_often_ends_everything(make: Make, max_restarts: int) -> None:
    from sb3_ppo_variants.vec_env import WorkerDiedError

    env = make([partial(DyingEnv, "method")] * 2, 2, max_restarts=max_restarts)
    message = f"of environment 1 .*max_restarts={max_restarts} allows no further restart"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(WorkerDiedError, match=message):
            env.env_method("die_or_add", 1, indices=1)
    assert [warning.category for warning in told] == [env.LOST_WARNING] * max_restarts
    assert env.lost_workers == max_restarts + 1
    assert env.closed


def check_that_healthy_steps_give_the_restarts_back(make: Make, kill: Kill, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_ppo_variants.vec_env import WorkerDiedError, chunked

    monkeypatch.setattr(chunked, "HEALTHY_STEPS", 3)
    env = make([partial(DyingEnv, "")] * 2, max_restarts=1)
    env.reset()
    seen = []
    for _ in range(3):
        kill(env, 1)
        with pytest.warns(env.LOST_WARNING, match="restart 1 of at most max_restarts=1"):
            seen.append(steps_of(env, 1)[0][0][1])
        steps_of(env, 3)
    assert env.lost_workers == 3
    assert len(np.unique(seen, axis=0)) == 3  # each restart draws seeds of its own
    kill(env, 1)
    with pytest.warns(env.LOST_WARNING):
        steps_of(env, 2)
    kill(env, 1)  # too early
    with pytest.raises(WorkerDiedError, match="max_restarts=1 allows no further restart"):
        steps_of(env, 1)
