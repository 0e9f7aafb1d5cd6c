"""Roboschool's reward terms, each a pure function of readings.

Signs are Roboschool's: a cost is a number at or below zero and is added. Units are reward per control step.
Source of every equation: Roboschool, `gym_forward_walker.py` (`step`, `calc_potential`).
They work on plain floats: for 17 numbers that is faster than calling NumPy.
"""

from collections.abc import Sequence

LIMIT_FRACTION = 0.99
"""A hinge is at its limit beyond this share of the way from the middle of its range. Source: Roboschool."""


def potential(distance: float, period: float) -> float:
    """−distance / period: its change over a step of `period` seconds is the speed of approach, in m/s.

    :param distance: from the robot to its target, m.
    :param period: length of a control step, s.
    """
    return -distance / period


def electricity(action: Sequence[float], speed: Sequence[float], cost: float, stall_cost: float) -> float:
    """cost · mean|a·q̇| + stall_cost · mean(a²).

    The motors pay for power in both directions of flow, and for current at a standstill.

    :param action: n numbers, the action as it was given, not clipped.
    :param speed: n numbers, the hinges' speeds in units of 10 rad/s.
    :param cost: per unit of power, at or below zero.
    :param stall_cost: per unit of squared current, at or below zero.
    """
    power = current = 0.0
    for a, v in zip(action, speed, strict=True):
        power += abs(a * v)
        current += a * a
    return cost * (power / len(action)) + stall_cost * (current / len(action))


def joints_at_limit(position: Sequence[float], cost: float) -> float:
    """`cost` for each hinge whose position, scaled so that its limits are ±1, is at a limit."""
    return cost * sum([abs(q) > LIMIT_FRACTION for q in position])


def feet_collision(feet: int, cost: float) -> float:
    """`cost` for each of the `feet` that touch anything but the floor."""
    return cost * feet


def uprightness(torso_height: float, pelvis_height: float, pelvis_share: float, full_height: float) -> float:
    """How far the robot has got up: 0 flat on the floor, 1 from `full_height` on.

    Source: Roboschool, `gym_humanoid_flagrun.py` (`potential_leak`). With the pelvis in it, leaning forward or
    backward gains nothing.

    :param torso_height: m.
    :param pelvis_height: m.
    :param pelvis_share: weight of the pelvis in the mean of the two heights, 0–1.
    :param full_height: the mean height that counts as upright, m.
    """
    height = (1.0 - pelvis_share) * torso_height + pelvis_share * pelvis_height
    return min(max(height, 0.0), full_height) / full_height
