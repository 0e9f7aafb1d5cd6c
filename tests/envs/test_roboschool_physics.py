"""The physics against Roboschool's own: its branch of Bullet was built, and these are the trajectories that it gave."""

import json
from collections.abc import Iterator
from math import sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sb3_ppo_variants.envs.bullet import IDENTITY
from sb3_ppo_variants.envs.flagrun import RoboschoolHumanoidFlagrunHarder
from sb3_ppo_variants.envs.humanoid import ACTION_SIZE
from sb3_ppo_variants.envs.quiet import pybullet

RECORD = json.loads((Path(__file__).parent / "roboschool_trajectories.json").read_text())
SCENARIOS = {scenario["name"]: scenario for scenario in RECORD["scenarios"]}


@pytest.fixture
def env() -> Iterator[RoboschoolHumanoidFlagrunHarder]:
    env = RoboschoolHumanoidFlagrunHarder()
    yield env
    env.close()


def deviations(env: RoboschoolHumanoidFlagrunHarder, scenario: dict[str, Any]) -> NDArray[np.float64]:
    """Largest deviation at each recorded step: of torso and cube in m, of hinges in rad."""
    env.reset(seed=0)
    joints = [0.05 * sin(i) for i in range(ACTION_SIZE)]
    env.robot.place(joints, scenario["height"], scenario["pitch"], scenario["yaw"])
    env._cube.place((), scenario["cube_position"], IDENTITY, scenario["cube_velocity"])
    recorded = {row["step"]: np.concatenate([row["torso"], row["joints"], row["cube"]]) for row in scenario["rows"]}
    found = []
    for step in range(1, max(recorded) + 1):
        env.robot.act([0.4 * sin(0.2 * step + i) for i in range(ACTION_SIZE)])
        env._world.step()
        if step in recorded:
            angles = [hinge[0] for hinge in env.robot.body.read_hinges()]
            present = [*env.robot.body.read_root()[0], *angles, *env._cube.read_root()[0]]
            found.append(np.abs(present - recorded[step]).max())
    return np.array(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_robot_and_cube_move_as_in_roboschools_own_bullet(env: RoboschoolHumanoidFlagrunHarder, name: str) -> None:
    # Differences of some 1e-8 from the start, whose origin we do not know, grow as in any chaotic system.
    assert deviations(env, SCENARIOS[name])[:2].max() < 1e-5
    assert deviations(env, SCENARIOS[name]).max() < 1e-3


@pytest.mark.parametrize(
    "parameter", [{"restitutionVelocityThreshold": 0.2}, {"enableConeFriction": 1}, {"contactERP": 0.2}]
)
def test_each_setting_is_needed_for_that(env: RoboschoolHumanoidFlagrunHarder, parameter: dict[str, float]) -> None:
    pybullet.setPhysicsEngineParameter(**parameter, physicsClientId=env.client)
    assert max(deviations(env, SCENARIOS[name]).max() for name in ("upright", "face down")) > 1e-2


def test_restitution_is_needed_for_that() -> None:
    env = RoboschoolHumanoidFlagrunHarder(restitution=0.0)
    assert deviations(env, SCENARIOS["upright"]).max() > 1e-2
    env.close()
