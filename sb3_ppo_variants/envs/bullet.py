"""A PyBullet world of its own for every environment: set up as Roboschool's, read in batches.

A PyBullet call costs one to three microseconds before it does anything, and a control step of the humanoid
some 200. So whatever is read is read for all joints or links in one call, and a reset puts the loaded world
back instead of loading it again (`World.forget`).
"""

import os
import sys
import weakref
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pybullet_data
from numpy.typing import ArrayLike, NDArray

from sb3_ppo_variants.envs.quiet import pybullet

GRAVITY = 9.8
"""Downward acceleration, m/s². Source: Roboschool, `create_single_player_scene`."""
CONTROL_PERIOD = 0.0165
"""Simulated time of one control step, s. Source: Roboschool, `create_single_player_scene`."""
SUBSTEPS = 4
"""Physics steps in a control step. Source: Roboschool's `frame_skip`."""
SOLVER_ITERATIONS = 5
"""Constraint solver iterations in a physics step. Source: Roboschool, `World::bullet_step`."""
CONTACT_ERP = 0.9
"""Share of a contact's penetration that is corrected in a physics step. Source: Roboschool, `bullet_step`."""
CONE_FRICTION = 0
"""Pyramid friction (0) in place of Bullet's present default, the cone (1). Bullet of 2017 had no cone for
jointed bodies; with it the robot slips, and OpenAI's agent of 2017 earns half of its return."""
RESTITUTION = 0.5
"""Of all that touches; of two that meet, the product counts. Source: Roboschool's own branch of Bullet
(olegklimov/bullet3, `roboschool_self_collision`), `processContactParameters`."""
RESTITUTION_SPEED = 0.0
"""Speed of impact from which on there is restitution, m/s: Bullet of May 2017 did not have today's threshold.
With both, today's Bullet repeats the trajectories of that branch until differences of 1e-8 have grown."""
SORTED_PAIRS = 1
"""Bullet meets touching pairs in the order of their ids (1), not of its tree of bounding boxes, which depends on
how often the world has ever been stepped: the second half of `World.forget`."""
GROUND_FILE = "mjcf/ground_plane.xml"
"""The floor, with lateral friction 0.8. Source: `pybullet_data`, as in Roboschool's stadium."""

LIFT = 50.0
"""Distance of the bodies from the floor and one another where `World.forget` steps them, m; the value is ours."""
HIDDEN = (0, 0)
"""Collision filter (group, mask) of a link that touches nothing."""
MOVING = (1, -1)
"""Collision filter (group, mask) that Bullet gives what moves: the default group, against all."""
SAME_PLACE = 1e-7
"""Points nearer than this are one, m; the value is ours."""
IDENTITY = (0.0, 0.0, 0.0, 1.0)
"""The unit quaternion (x, y, z, w)."""
ROOT = -1
"""PyBullet's number for a body's root link."""
COLLISIONS = pybullet.URDF_USE_SELF_COLLISION | pybullet.URDF_USE_SELF_COLLISION_EXCLUDE_ALL_PARENTS
"""A body collides with itself, except a link with those that carry it. Source: Roboschool, `load_sdf_mjcf`."""


def has_display() -> bool:
    """Whether PyBullet's window can be opened here."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY"))


class Hinge(NamedTuple):
    """One hinge as PyBullet describes it."""

    name: str
    joint: int
    """PyBullet's number for it."""
    lower: float
    """Lower limit, rad."""
    upper: float
    """Upper limit, rad."""


class Body:
    """A moving body: torques are written and states are read for all its hinges or links in one call each.

    Attributes:
        hinges: the hinges in PyBullet's order, which is the order of torques and joint readings.
        links: PyBullet's number of each link but the root, by name.
        points: links whose centres of mass tell the mean centre of mass of all links but the root:
            `point_weights` of each, which sum to 1.

    :param client: PyBullet client.
    :param body: PyBullet's number for the body, loaded into that client.
    """

    def __init__(self, client: int, body: int) -> None:
        self.id = body
        self._client = client
        joint_count = pybullet.getNumJoints(body, client)
        joints = [pybullet.getJointInfo(body, joint, client) for joint in range(joint_count)]
        self.hinges = [
            Hinge(info[1].decode(), info[0], info[8], info[9]) for info in joints if info[2] == pybullet.JOINT_REVOLUTE
        ]
        self.links: dict[str, int] = {info[12].decode(): info[0] for info in joints}
        self.points, self.point_weights = self._needed_points(joints)
        self._joints = tuple(hinge.joint for hinge in self.hinges)
        # A geom is both seen and touched; asking for the collision shapes of a link that has none crashes.
        self._shaped = sorted({shape[1] for shape in pybullet.getVisualShapeData(body, physicsClientId=client)})
        if self.hinges:
            # PyBullet holds every hinge at speed zero until that motor is given no force.
            self._set_motors(pybullet.POSITION_CONTROL, [0.0] * len(self.hinges))

    def apply_torques(self, torques: Sequence[float]) -> None:
        """Set the hinges' torques, N·m, for the next control step."""
        self._set_motors(pybullet.TORQUE_CONTROL, torques)

    def mass(self) -> float:
        """Of all links, kg."""
        links = range(ROOT, pybullet.getNumJoints(self.id, self._client))
        return sum(pybullet.getDynamicsInfo(self.id, link, self._client)[0] for link in links)

    def push_root(self, force: Sequence[float]) -> None:
        """Push at the root's centre of mass, N, world axes, for the next control step."""
        position, _ = pybullet.getBasePositionAndOrientation(self.id, self._client)
        pybullet.applyExternalForce(self.id, ROOT, force, position, pybullet.WORLD_FRAME, self._client)

    def place(
        self,
        angles: Sequence[float],
        position: Sequence[float],
        orientation: Sequence[float],
        velocity: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        """Place the body: hinge angles (rad), root position (m) and orientation (x, y, z, w), hinges at rest.

        :param velocity: of the root, m/s; it does not turn.
        """
        if self.hinges:
            positions, speeds = [[angle] for angle in angles], [[0.0]] * len(self.hinges)
            pybullet.resetJointStatesMultiDof(self.id, self._joints, positions, speeds, physicsClientId=self._client)
        pybullet.resetBasePositionAndOrientation(self.id, position, orientation, self._client)
        pybullet.resetBaseVelocity(self.id, velocity, (0.0, 0.0, 0.0), self._client)

    def filter(self, group: int, mask: int) -> None:
        """Let the body touch only what is in one of the groups of `mask` and accepts its own `group`."""
        for link in self._shaped:
            pybullet.setCollisionFilterGroupMask(self.id, link, group, mask, self._client)

    def read_hinges(self) -> Sequence[tuple[Any, ...]]:
        """The hinges' states: (angle in rad, speed in rad/s, ...) each."""
        return pybullet.getJointStates(self.id, self._joints, self._client)

    def read_points(self) -> Sequence[tuple[Any, ...]]:
        """The states of `points`: ((x, y, z) of the centre of mass in m, ...) each.

        As in Roboschool they are those that Bullet has at hand, from the beginning of the last physics step,
        4 ms ago. The root's pose is of now.
        """
        return pybullet.getLinkStates(self.id, self.points, 0, 0, self._client)

    def read_root(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """The root's centre of mass (m), orientation (x, y, z, w) and linear velocity (m/s), world axes."""
        position, orientation = pybullet.getBasePositionAndOrientation(self.id, self._client)
        velocity, _ = pybullet.getBaseVelocity(self.id, self._client)
        return position, orientation, velocity

    def read_contacts(self) -> Sequence[tuple[Any, ...]]:
        """The contact points of this body: (_, its id, other body's id, its link, other body's link, ...) each.

        A link that touches another link of this same body is listed once, the one of lower number first.
        """
        return pybullet.getContactPoints(self.id, physicsClientId=self._client)

    def _set_motors(self, mode: int, forces: Sequence[float]) -> None:
        pybullet.setJointMotorControlArray(self.id, self._joints, mode, forces=forces, physicsClientId=self._client)

    def _needed_points(self, joints: Sequence[tuple[Any, ...]]) -> tuple[list[int], list[float]]:
        """Links, and weights, whose weighted mean centre of mass is the plain mean of all links in every pose.

        Of three centres on one line in one rigid body two tell the third, so that it need not be read.
        """
        places: dict[int, NDArray[np.float64]] = {}
        rigid: dict[int, set[int]] = {ROOT: set()}  # the links whose centres are fixed in each rigid body
        owner = {ROOT: ROOT}
        for info in joints:
            link, parent = info[0], info[16]
            states = pybullet.getLinkState(self.id, link, 0, 1, self._client)
            places[link] = np.array(states[0])
            owner[link] = owner[parent] if info[2] == pybullet.JOINT_FIXED else link
            rigid.setdefault(owner[link], set()).add(link)
            if info[2] == pybullet.JOINT_REVOLUTE and _is_one(states[0], states[4]):
                rigid[owner[parent]].add(link)  # it sits on the hinge, which both bodies share
        weights = dict.fromkeys(places, 1.0 / max(len(places), 1))
        for links in rigid.values():
            for link in sorted(links & weights.keys()):
                _hand_over(link, sorted(links & weights.keys() - {link}), places, weights)
        return list(weights), list(weights.values())


def _hand_over(
    link: int, others: Sequence[int], places: dict[int, NDArray[np.float64]], weights: dict[int, float]
) -> None:
    """Give a link's weight to two of the `others` on one line with it, or one in its place, if there are such."""
    for a, b in combinations_with_replacement(others, 2):
        along = places[b] - places[a]
        share = float(np.dot(places[link] - places[a], along) / max(np.dot(along, along), SAME_PLACE**2))
        if _is_one(places[a] + share * along, places[link]):
            weight = weights.pop(link)
            weights[a] += (1.0 - share) * weight
            weights[b] += share * weight
            return


class World:
    """One PyBullet client with Roboschool's physics parameters and its floor.

    Attributes:
        client: PyBullet's number for the client.
        gui: whether it has a window.
        floor: PyBullet's number for the floor.
        bodies: what moves.

    :param gui: open PyBullet's window, which needs a display; otherwise the simulation runs without one.
    :param restitution: of all that is in the world.
    :raises RuntimeError: `gui` was asked for and there is no display.
    """

    def __init__(self, gui: bool = False, restitution: float = RESTITUTION) -> None:
        # Checked here because PyBullet ends the process when it finds no display.
        if gui and not has_display():
            raise RuntimeError('render_mode="human" needs a display; without one use render_mode="rgb_array".')
        self.gui = gui
        self.client = pybullet.connect(pybullet.GUI if gui else pybullet.DIRECT)
        # Runs once: at close(), or when the world is collected, or when the interpreter ends.
        self._disconnect = weakref.finalize(self, _disconnect, self.client)
        self.bodies: list[Body] = []
        self._restitution = restitution
        pybullet.setGravity(0.0, 0.0, -GRAVITY, self.client)
        pybullet.setPhysicsEngineParameter(
            fixedTimeStep=CONTROL_PERIOD,
            numSubSteps=SUBSTEPS,
            numSolverIterations=SOLVER_ITERATIONS,
            contactERP=CONTACT_ERP,
            enableConeFriction=CONE_FRICTION,
            restitutionVelocityThreshold=RESTITUTION_SPEED,
            deterministicOverlappingPairs=SORTED_PAIRS,
            physicsClientId=self.client,
        )
        self.floor = self._load(GROUND_FILE)

    def add(self, file: str) -> Body:
        """Load the one moving body of an MJCF file of `pybullet_data`."""
        return self._added(self._load(file))

    def add_cube(self, edge: float, mass: float, inertia: float, friction: float) -> Body:
        """Make a cube: edge in m, mass in kg, inertia about each of its axes in kg·m², lateral friction."""
        half = [edge / 2.0] * 3
        box, client = pybullet.GEOM_BOX, self.client
        shape = pybullet.createCollisionShape(box, halfExtents=half, physicsClientId=client)
        look = pybullet.createVisualShape(box, halfExtents=half, physicsClientId=client)
        number = pybullet.createMultiBody(mass, shape, look, physicsClientId=client)
        pybullet.changeDynamics(
            number, ROOT, localInertiaDiagonal=[inertia] * 3, lateralFriction=friction, physicsClientId=client
        )
        self._make_springy(number)
        return self._added(number)

    def step(self) -> None:
        """Advance by one control step of `CONTROL_PERIOD` seconds."""
        pybullet.stepSimulation(self.client)

    def forget(self) -> None:
        """Bring Bullet's own memory (contacts, warm starts, the order of pairs) into one and the same state.

        Placing the bodies leaves traces of the past, so that the same seed drifts apart in a fresh and in a
        used world. One step in which nothing can touch anything, with every body in a fixed pose, removes
        them for a fraction of the price of loading the world again. A fresh world needs it as well. Afterwards
        the bodies are to be placed.
        """
        for floors_up, body in enumerate(self.bodies, start=1):
            body.filter(*HIDDEN)
            # The joints matter too: lifting the filter rebuilds the tree of bounding boxes from this pose.
            body.place([0.0] * len(body.hinges), (0.0, 0.0, LIFT * floors_up), IDENTITY)
        self._set_substeps(1)  # all that it takes
        self.step()
        self._set_substeps(SUBSTEPS)
        for body in self.bodies:
            body.filter(*MOVING)

    def close(self) -> None:
        """Disconnect and free the simulation; closing twice is harmless."""
        self._disconnect()

    def _set_substeps(self, count: int) -> None:
        pybullet.setPhysicsEngineParameter(numSubSteps=count, physicsClientId=self.client)

    def _load(self, file: str) -> int:
        path = str(Path(pybullet_data.getDataPath()) / file)
        (number,) = pybullet.loadMJCF(path, flags=COLLISIONS, physicsClientId=self.client)
        self._make_springy(number)
        return number

    def _make_springy(self, number: int) -> None:
        for link in range(ROOT, pybullet.getNumJoints(number, self.client)):
            pybullet.changeDynamics(number, link, restitution=self._restitution, physicsClientId=self.client)

    def _added(self, number: int) -> Body:
        body = Body(self.client, number)
        self.bodies.append(body)
        return body


def _is_one(point: ArrayLike, other: ArrayLike) -> bool:
    return np.allclose(point, other, rtol=0.0, atol=SAME_PLACE)


def _disconnect(client: int) -> None:
    if pybullet.isConnected(client):
        pybullet.disconnect(client)
