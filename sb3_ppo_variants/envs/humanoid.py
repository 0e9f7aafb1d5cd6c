"""Roboschool's humanoid: torques in, named readings out, and the observation that they make up.

Source of every constant: Roboschool, `gym_mujoco_walkers.py` (`RoboschoolHumanoid`) and
`gym_forward_walker.py` (`calc_state`), unless it says otherwise.
"""

from collections.abc import Sequence
from math import asin, atan2, cos, isfinite, sin

import numpy as np
from numpy.typing import NDArray

from sb3_ppo_variants.envs.bullet import GRAVITY, World
from sb3_ppo_variants.envs.quiet import pybullet

MODEL_FILE = "mjcf/humanoid_symmetric.xml"
"""The robot in `pybullet_data`: byte for byte Roboschool's."""
MOTORS: dict[str, float] = {
    "abdomen_z": 100.0,
    "abdomen_y": 100.0,
    "abdomen_x": 100.0,
    "right_hip_x": 100.0,
    "right_hip_z": 100.0,
    "right_hip_y": 300.0,
    "right_knee": 200.0,
    "left_hip_x": 100.0,
    "left_hip_z": 100.0,
    "left_hip_y": 300.0,
    "left_knee": 200.0,
    "right_shoulder1": 75.0,
    "right_shoulder2": 75.0,
    "right_elbow": 75.0,
    "left_shoulder1": 75.0,
    "left_shoulder2": 75.0,
    "left_elbow": 75.0,
}
"""The hinges in the order of the action, each with its motor's power, N·m (before the robot's common factor)."""
FEET = ("right_foot", "left_foot")
"""The links whose contacts are observed, in the order of the observation."""

ACTION_SIZE = len(MOTORS)
"""One number per motor."""
OBSERVATION_SIZE = 8 + 2 * ACTION_SIZE + len(FEET)
"""44: eight of the body, two per hinge, one per foot."""
OBSERVATION_LIMIT = 5.0
"""Every component of the observation is clipped to ± this."""
HIGHEST = np.full(OBSERVATION_SIZE, OBSERVATION_LIMIT, np.float32)
"""The limit as an array: NumPy is quicker with one than with a number."""
LOWEST = -HIGHEST
STANDING_HEIGHT = 0.8
"""Torso height that the observation calls zero, m."""
VELOCITY_SCALE = 0.3
"""Scale of the torso's velocity in the observation, per m/s."""
JOINT_SPEED_SCALE = 0.1
"""Scale of a hinge's speed in the observation and in the electricity cost, per rad/s."""
TURNED_BY_MIRROR = ("abdomen_z", "abdomen_x", "shoulder1", "shoulder2")
"""Hinges whose mirror image turns the other way: the legs' axes and the elbows' are mirror images themselves."""


def _mirror_symmetry() -> dict[str, tuple[list[int], list[int]]]:
    names = list(MOTORS)
    other_side = {"right": "left", "left": "right"}
    images = [
        other_side.get(name.partition("_")[0], "") + name.removeprefix("right").removeprefix("left") for name in names
    ]
    partners = [names.index(image) for image in images]
    turns = [-1 if name.endswith(TURNED_BY_MIRROR) else 1 for name in names]
    positions_and_speeds = [8 + 2 * partner + part for partner in partners for part in (0, 1)]
    # The direction's sine, the sideways velocity and the roll change their signs.
    body = [1, -1, 1, 1, -1, 1, -1, 1]
    feet = [OBSERVATION_SIZE - 1, OBSERVATION_SIZE - 2]
    return {
        "observation": (
            [*range(8), *positions_and_speeds, *feet],
            [*body, *(turn for turn in turns for _ in (0, 1)), 1, 1],
        ),
        "action": (partners, turns),
    }


MIRROR_SYMMETRY = _mirror_symmetry()
"""Left and right exchanged: component i of an observation's or action's image is ``signs[i] * x[indices[i]]``, with
(indices, signs) for each. The robot, its task and the floor are the same in the mirror; PyBullet's solver, which takes
contacts in an order, is so up to rounding."""


class Humanoid:
    """The robot in a world.

    `read` refreshes all readings but those of contact, `read_contacts` those. Attributes, in SI units and
    world axes, angles in rad:

    - `mean_x`, `mean_y`: mean centre of mass of all links but the torso (not weighted by mass).
    - `torso_height`, `pelvis_height`; `roll`, `pitch`, `yaw` of the torso; `torso_velocity` (vx, vy, vz).
    - `joint_position`: 17 numbers, scaled so that each hinge's limits are ±1.
    - `joint_speed`: 17 numbers, in units of 10 rad/s.
    - `feet_on_floor`: 2 numbers, right and left, 0.0 or 1.0.
    - `feet_colliding`: how many feet touch anything but the floor and links of lower number (of two feet that
      touch each other the right one counts).

    Readings are plain floats: on so few of them, Python's arithmetic is faster than NumPy's calls.

    :param world: where to load the robot.
    :param power: common factor of the motors' powers.
    """

    def __init__(self, world: World, power: float) -> None:
        self.body = world.add(MODEL_FILE)
        self._floor = world.floor
        self._feet = {self.body.links[name]: i for i, name in enumerate(FEET)}
        # Among them, because its centre is on no line with two others.
        self._pelvis = self.body.points.index(self.body.links["pelvis"])
        self._weight = self.body.mass() * GRAVITY
        self._strength = [power * motor for motor in MOTORS.values()]
        self._middle = [0.5 * (hinge.lower + hinge.upper) for hinge in self.body.hinges]
        self._per_radian = [2.0 / (hinge.upper - hinge.lower) for hinge in self.body.hinges]

        self.mean_x = self.mean_y = self.torso_height = self.pelvis_height = 0.0
        self.roll = self.pitch = self.yaw = 0.0
        self.torso_velocity: Sequence[float] = (0.0, 0.0, 0.0)
        self.joint_position = [0.0] * ACTION_SIZE
        self.joint_speed = [0.0] * ACTION_SIZE
        self.feet_on_floor = [0.0] * len(FEET)
        self.feet_colliding = 0

    def act(self, action: Sequence[float]) -> None:
        """Set the 17 motors: each gives its full torque at ±1, and no more beyond."""
        self.body.apply_torques(
            [
                full if a > 1.0 else -full if a < -1.0 else full * a
                for a, full in zip(action, self._strength, strict=True)
            ]
        )

    def lift(self, share: float) -> None:
        """Pull the torso up with this share of the robot's weight, for the next control step."""
        self.body.push_root((0.0, 0.0, share * self._weight))

    def place(self, joints: Sequence[float], height: float, pitch: float, yaw: float) -> None:
        """Put the robot at rest over the origin: hinge angles (17), torso height (m), pitch and yaw (rad)."""
        orientation = pybullet.getQuaternionFromEuler((0.0, pitch, yaw))
        self.body.place(joints, (0.0, 0.0, height), orientation)
        self.feet_on_floor = [0.0] * len(FEET)
        self.feet_colliding = 0

    def read(self) -> None:
        """Refresh the readings of pose and speed."""
        position, (qx, qy, qz, qw), self.torso_velocity = self.body.read_root()
        self.torso_height = position[2]
        self.roll = atan2(2.0 * (qy * qz + qx * qw), 1.0 - 2.0 * (qx * qx + qy * qy))
        self.pitch = asin(min(1.0, max(-1.0, 2.0 * (qy * qw - qx * qz))))
        self.yaw = atan2(2.0 * (qx * qy + qz * qw), 1.0 - 2.0 * (qy * qy + qz * qz))
        self._read_links()
        hinges = self.body.read_hinges()
        self.joint_position = [
            (hinge[0] - middle) * scale
            for hinge, middle, scale in zip(hinges, self._middle, self._per_radian, strict=True)
        ]
        self.joint_speed = [JOINT_SPEED_SCALE * hinge[1] for hinge in hinges]

    def read_contacts(self) -> None:
        """Refresh the readings of the feet's contacts."""
        on_floor = [0.0] * len(FEET)
        colliding = set()
        feet = self._feet
        for _, _, other_body, link, *_ in self.body.read_contacts():
            if other_body == self._floor:
                if link in feet:
                    on_floor[feet[link]] = 1.0
                continue
            # Roboschool asks for the contacts of each foot, and is told those in which it comes first.
            if link in feet:
                colliding.add(link)
        self.feet_on_floor = on_floor
        self.feet_colliding = len(colliding)

    def observation(self, bearing: float) -> NDArray[np.float32]:
        """The observation, a new array of shape (44,), float32, clipped to ±5.

        In order: torso height − 0.8; sine and cosine of the angle to the target; 0.3·velocity in the
        torso's yaw frame; roll; pitch; position and speed of each hinge; right and left foot on the floor.

        :param bearing: direction of the target from the robot, rad, world axes.
        """
        vx, vy, vz = self.torso_velocity
        sin_yaw, cos_yaw = sin(self.yaw), cos(self.yaw)
        angle = bearing - self.yaw
        values = [0.0] * OBSERVATION_SIZE
        values[:8] = (
            self.torso_height - STANDING_HEIGHT,
            sin(angle),
            cos(angle),
            VELOCITY_SCALE * (cos_yaw * vx + sin_yaw * vy),
            VELOCITY_SCALE * (cos_yaw * vy - sin_yaw * vx),
            VELOCITY_SCALE * vz,
            self.roll,
            self.pitch,
        )
        values[8:-2:2] = self.joint_position
        values[9:-2:2] = self.joint_speed
        values[-2:] = self.feet_on_floor
        observation = np.array(values, dtype=np.float32)
        np.minimum(observation, HIGHEST, out=observation)
        np.maximum(observation, LOWEST, out=observation)
        return observation

    def is_finite(self) -> bool:
        """Whether all readings of pose and speed are finite."""
        body = (self.mean_x, self.mean_y, self.torso_height, self.roll, self.pitch, self.yaw)
        return isfinite(sum(body) + sum(self.torso_velocity) + sum(self.joint_position) + sum(self.joint_speed))

    def _read_links(self) -> None:
        links = self.body.read_points()
        x = y = 0.0
        for weight, link in zip(self.body.point_weights, links, strict=True):
            point = link[0]
            x += weight * point[0]
            y += weight * point[1]
        self.mean_x = x
        self.mean_y = y
        self.pelvis_height = links[self._pelvis][0][2]
