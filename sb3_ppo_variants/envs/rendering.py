"""What a viewer sees: the robot in colours, a lawn of tiles that shows every step, a flag, a camera that follows.

TinyRenderer, which needs neither display nor GPU, draws what moves; on a ground that fills the frame it would
spend ten times as long. As the camera only ever shifts, the place on the ground that a pixel sees is the same in every
frame but for that shift: so lawn, shadows and sky are computed with NumPy and put behind the robot. Nothing
is added to the simulation but a mask and, where there is one, a flag, which touch nothing and weigh nothing.

With `load_egl` PyBullet's EGL plugin draws instead, on a GPU where there is one; the rest stays the same.
"""

import importlib.util
import subprocess
import sys
import time
from functools import cache
from math import hypot, radians, tan

import numpy as np
from numpy.typing import NDArray

from sb3_ppo_variants.envs.bullet import CONTROL_PERIOD, IDENTITY, ROOT, Body, World
from sb3_ppo_variants.envs.quiet import pybullet, silenced

Colour = tuple[float, float, float]

TILE = 1.0
"""Edge of a tile of the lawn, m."""
LAWN: tuple[Colour, Colour] = ((103, 152, 88), (123, 172, 105))
"""The two greens of the tiles, RGB of 255."""
HAZE: Colour = (205, 222, 220)
"""What lawn and sky fade into at the horizon, RGB of 255."""
HAZE_RANGE = 60.0
"""Distance at which the haze has covered 1 − 1/e of the lawn, m."""
SKY: Colour = (112, 165, 220)
"""The sky at the top of the frame, RGB of 255."""
SHADE = 0.42
"""Share of the light that is missing in the middle of a shadow."""
SHADOWS: dict[str, float] = {
    "pelvis": 0.24,
    "lwaist": 0.22,
    "right_shin": 0.14,
    "left_shin": 0.14,
    "right_foot": 0.16,
    "left_foot": 0.16,
    "right_lower_arm": 0.12,
    "left_lower_arm": 0.12,
}
"""Radius, m, of the soft round shadow below each of these links."""
TORSO_SHADOW, HEAD_SHADOW = 0.22, 0.13
"""Radii, m, of those below the root's centre of mass and below the head: a robot that lies shows them."""
SHADOW_REACH = 2.0
"""No shadow is farther than this from the robot, m."""

SKIN: Colour = (230, 184, 148)
SHIRT: Colour = (217, 84, 71)
SHORTS: Colour = (51, 71, 115)
SHOES: Colour = (242, 242, 247)
CLOTHES: dict[str, Colour] = {
    "lwaist": SHIRT,
    "pelvis": SHORTS,
    "right_thigh": SHORTS,
    "left_thigh": SHORTS,
    "right_foot": SHOES,
    "left_foot": SHOES,
}
"""Colour, RGB of 255, of each link that is not bare skin; the torso wears the shirt, but for its head."""
HEAD_SHAPE = 1
"""The head among the shapes of the torso."""
MASK_SIZE = 1.03
"""The mask over the head, a ball, in head sizes: OpenGL has but one colour for all the shapes of a link."""
CUBE: Colour = (190, 60, 220)
"""Colour, RGB of 255, of what moves beside the robot."""
CUBE_SHADOW = 0.1
"""Radius, m, of the shadow below it."""

FLAG: Colour = (255, 196, 0)
"""Colour, RGB of 255, of the flag and of the arrow on the lawn that points to it."""
POLE: Colour = (250, 250, 250)
"""Colour, RGB of 255, of the flag's pole."""
POLE_HEIGHT, POLE_RADIUS = 1.8, 0.03
"""Of the flag's pole, m."""
CLOTH = (0.7, 0.03, 0.45)
"""Length, thickness and height of the flag's cloth, m."""
ARROW_TAIL, ARROW_TIP, ARROW_SLOPE = 0.9, 1.3, 0.5
"""The arrow, a triangle: where it begins and ends, m from the robot, and its half width per m of length."""

DISTANCE = 3.3
"""From the camera to the point that it looks at, m."""
YAW, PITCH = 25.0, -12.0
"""The camera's heading and tilt, degrees: from the robot's right, somewhat behind."""
LOOK_AT_HEIGHT = 0.85
"""Height of the point that the camera looks at, m."""
FIELD_OF_VIEW = 45.0
"""Vertical field of view, degrees."""
NEAR, FAR = 0.1, 100.0
"""Distances between which the renderer draws, m."""
LIGHT = (-4.0, -6.0, 10.0)
"""Direction toward the light."""

RENDERERS = ("tiny", "egl")
"""What can draw a frame: PyBullet's TinyRenderer on the CPU, or OpenGL without a display, through EGL."""
EGL_TIMEOUT = 60.0
"""A driver that takes longer to start hangs, s; the value is ours."""
EGL_MODULE = "eglRenderer"
"""PyBullet's EGL plugin, a module of its own in PyBullet's wheels for Linux."""


class Camera:
    """Dresses the robot, once, and takes pictures of it.

    :param world: the world to show.
    :param body: the robot.
    :param width: of a frame, pixels.
    :param height: of a frame, pixels.
    :param renderer: "tiny", or "egl" where `load_egl` was called for the world before the body was loaded.
    """

    def __init__(self, world: World, body: Body, width: int, height: int, renderer: str = "tiny") -> None:
        self._client = world.client
        self._body = body
        self._others = [other for other in world.bodies if other is not body]
        self._flag: int | None = None
        self._size = (width, height)
        self._renderer = pybullet.ER_BULLET_HARDWARE_OPENGL if renderer == "egl" else pybullet.ER_TINY_RENDERER
        self._casters = [body.links[name] for name in SHADOWS]
        self._projection = pybullet.computeProjectionMatrixFOV(FIELD_OF_VIEW, width / height, NEAR, FAR)
        self._dress()
        self._mask, self._head = self._make_mask()
        self._due = 0.0  # when the window may show the next step, on the monotonic clock, s
        if world.gui:
            pybullet.configureDebugVisualizer(pybullet.COV_ENABLE_GUI, 0, physicsClientId=world.client)
        else:
            # It would hide the lawn; the window has no lawn and keeps PyBullet's own floor.
            pybullet.changeVisualShape(world.floor, ROOT, rgbaColor=(0, 0, 0, 0), physicsClientId=world.client)
        self._look_at_ground()

    def frame(self, flag: tuple[float, float] | None = None) -> NDArray[np.uint8]:
        """A picture of the robot where it is now: shape (height, width, 3), RGB.

        :param flag: (x, y) of the flag, m, if there is one. As it is often out of sight, an arrow points to it.
        """
        x, y = self._arrange(flag)
        width, height = self._size
        _, _, pixels, _, bodies = pybullet.getCameraImage(
            width,
            height,
            _view(x, y),
            self._projection,
            lightDirection=LIGHT,
            lightColor=(1.0, 1.0, 1.0),
            lightAmbientCoeff=0.62,
            lightDiffuseCoeff=0.42,
            lightSpecularCoeff=0.0,
            shadow=0,
            renderer=self._renderer,
            physicsClientId=self._client,
        )
        picture = self._background(x, y, flag)
        drawn = np.reshape(bodies, height * width) >= 0
        picture[drawn] = np.reshape(pixels, (height * width, 4))[drawn, :3]
        return picture.reshape(height, width, 3)

    def show(self, flag: tuple[float, float] | None = None) -> None:
        """Point the window's camera at the robot where it is now, in step with the clock on the wall.

        :param flag: (x, y) of the flag, m, if there is one.
        """
        x, y = self._arrange(flag)
        pybullet.resetDebugVisualizerCamera(DISTANCE, YAW, PITCH, (x, y, LOOK_AT_HEIGHT), self._client)
        now = time.monotonic()
        time.sleep(max(0.0, self._due - now))
        self._due = max(self._due, now) + CONTROL_PERIOD

    def _dress(self) -> None:
        links = dict.fromkeys([ROOT, *self._body.links.values()], SKIN)
        links.update({self._body.links[name]: colour for name, colour in CLOTHES.items()})
        for link, colour in links.items():
            self._paint(self._body, link, colour)
        self._paint(self._body, ROOT, SHIRT)
        for other in self._others:
            self._paint(other, ROOT, CUBE)

    def _paint(self, body: Body, link: int, colour: Colour) -> None:
        pybullet.changeVisualShape(body.id, link, rgbaColor=_rgba(colour), physicsClientId=self._client)

    def _make_mask(self) -> tuple[int, list[float]]:
        """A ball that hides the head, with the frame of the torso.

        :return: PyBullet's number for it, and the head's (x, y, z) in that frame, m.
        """
        shapes = pybullet.getVisualShapeData(self._body.id, physicsClientId=self._client)
        _, _, _, (radius, _, _), _, centre, *_ = [shape for shape in shapes if shape[1] == ROOT][HEAD_SHAPE]
        # The root's pose is that of its centre of mass, a shape's place is not relative to it.
        middle = pybullet.getDynamicsInfo(self._body.id, ROOT, self._client)[3]
        head = [c - m for c, m in zip(centre, middle, strict=True)]
        look = pybullet.createVisualShape(
            pybullet.GEOM_SPHERE,
            radius=MASK_SIZE * radius,
            rgbaColor=_rgba(SKIN),
            visualFramePosition=head,
            physicsClientId=self._client,
        )
        return pybullet.createMultiBody(0.0, -1, look, physicsClientId=self._client), head

    def _arrange(self, flag: tuple[float, float] | None) -> tuple[float, float]:
        """Put mask and flag where they belong; returns the robot's (x, y), m."""
        self._plant(flag)
        position, orientation, _ = self._body.read_root()
        pybullet.resetBasePositionAndOrientation(self._mask, position, orientation, self._client)
        return position[0], position[1]

    def _plant(self, flag: tuple[float, float] | None) -> None:
        """Put the flag, which is made when there is a first one, where it belongs."""
        if flag is None:
            return
        if self._flag is None:
            length, thickness, height = CLOTH
            look = pybullet.createVisualShapeArray(
                shapeTypes=[pybullet.GEOM_CYLINDER, pybullet.GEOM_BOX],
                radii=[POLE_RADIUS, 0.0],
                lengths=[POLE_HEIGHT, 0.0],
                halfExtents=[[0.0] * 3, [length / 2.0, thickness / 2.0, height / 2.0]],
                visualFramePositions=[[0.0, 0.0, POLE_HEIGHT / 2.0], [length / 2.0, 0.0, POLE_HEIGHT - height / 2.0]],
                rgbaColors=[_rgba(POLE), _rgba(FLAG)],
                physicsClientId=self._client,
            )
            self._flag = pybullet.createMultiBody(0.0, -1, look, physicsClientId=self._client)
        pybullet.resetBasePositionAndOrientation(self._flag, (*flag, 0.0), IDENTITY, self._client)

    def _look_at_ground(self) -> None:
        """Work out once what each pixel sees behind the robot, relative to where the camera looks."""
        width, height = self._size
        view = np.reshape(_view(0.0, 0.0), (4, 4))[:3, :3]
        right, up, back = view.T
        eye = np.array([0.0, 0.0, LOOK_AT_HEIGHT]) + DISTANCE * back
        half = tan(radians(FIELD_OF_VIEW) / 2.0)
        across = half * width / height * (2.0 * (np.arange(width) + 0.5) / width - 1.0)
        upward = half * (1.0 - 2.0 * (np.arange(height) + 0.5) / height)
        rays = (across[None, :, None] * right + upward[:, None, None] * up - back).reshape(-1, 3)

        self._ground = np.flatnonzero(rays[:, 2] < -1e-3)
        rays_down = rays[self._ground]
        distance = -eye[2] / rays_down[:, 2]
        self._ground_x = (eye[0] + distance * rays_down[:, 0]).astype(np.float32)
        self._ground_y = (eye[1] + distance * rays_down[:, 1]).astype(np.float32)
        # Length of ground that a pixel covers: tiles blur over it, and vanish where it outgrows them.
        self._blur = (distance**2 * (2.0 * half / height) / eye[2]).astype(np.float32)
        clear = np.exp(-distance / HAZE_RANGE)[:, None]
        dark, light = (np.array(colour, dtype=np.float64) for colour in LAWN)
        self._mean = (clear * (dark + light) / 2.0 + (1.0 - clear) * np.array(HAZE)).astype(np.float32)
        self._contrast = (clear * (light - dark) / 2.0).astype(np.float32)
        self._near = np.flatnonzero(np.hypot(self._ground_x, self._ground_y) < SHADOW_REACH)

        rise = np.clip(rays[:, 2:] / max(rays[:, 2].max(), 1e-3), 0.0, 1.0)
        self._sky = ((1.0 - rise) * np.array(HAZE) + rise * np.array(SKY)).astype(np.uint8)

    def _background(self, x: float, y: float, flag: tuple[float, float] | None) -> NDArray[np.uint8]:
        """Sky, lawn and shadows around (x, y): shape (height·width, 3)."""
        tiles = self._stripes(self._ground_x, x) * self._stripes(self._ground_y, y)
        lawn = self._mean + self._contrast * tiles[:, None]
        if flag is not None:
            lawn[self._near[self._arrow(flag[0] - x, flag[1] - y)]] = FLAG
        lawn[self._near] *= self._light(x, y)[:, None]
        picture = self._sky.copy()
        picture[self._ground] = lawn.astype(np.uint8)
        return picture

    def _stripes(self, offset: NDArray[np.float32], start: float) -> NDArray[np.float32]:
        """+1 and −1 on alternating stripes as wide as a tile, blurred at their edges as the pixels are."""
        tiles = (offset + np.float32(start % (2.0 * TILE) + TILE / 2.0)) * np.float32(1.0 / TILE)
        tiles -= 2.0 * np.floor(0.5 * tiles)
        to_edge = (0.5 - np.abs(tiles - 1.0)) * np.float32(TILE)
        return np.clip(to_edge / self._blur, -1.0, 1.0)

    def _arrow(self, dx: float, dy: float) -> NDArray[np.bool_]:
        """Which pixels of the ground near the robot are the arrow's that points along (dx, dy)."""
        ground_x, ground_y = self._ground_x[self._near], self._ground_y[self._near]
        distance = max(hypot(dx, dy), 1e-9)
        along = (dx * ground_x + dy * ground_y) / distance
        across = (dx * ground_y - dy * ground_x) / distance
        return (along > ARROW_TAIL) & (np.abs(across) < ARROW_SLOPE * (ARROW_TIP - along))

    def _light(self, x: float, y: float) -> NDArray[np.float32]:
        """Share of the light that reaches the ground near the robot."""
        ground_x, ground_y = self._ground_x[self._near], self._ground_y[self._near]
        shade = np.zeros_like(ground_x)
        links = pybullet.getLinkStates(self._body.id, self._casters, physicsClientId=self._client)
        casters = [(link[0], radius) for link, radius in zip(links, SHADOWS.values(), strict=True)]
        casters += [(other.read_root()[0], CUBE_SHADOW) for other in self._others]
        position, orientation, _ = self._body.read_root()
        head, _ = pybullet.multiplyTransforms(position, orientation, self._head, IDENTITY)
        casters += [(position, TORSO_SHADOW), (head, HEAD_SHADOW)]
        for (link_x, link_y, _), radius in casters:
            squared = (ground_x - (link_x - x)) ** 2 + (ground_y - (link_y - y)) ** 2
            np.maximum(shade, 1.0 - squared / radius**2, out=shade)
        return 1.0 - SHADE * np.sqrt(shade)


def is_in_view(point: tuple[float, float, float], robot: tuple[float, float], width: int, height: int) -> bool:
    """Whether a point is in the frame that shows the robot.

    :param point: (x, y, z), m.
    :param robot: (x, y) of its root, m.
    :param width: of the frame, pixels.
    :param height: of the frame, pixels.
    """
    projection = pybullet.computeProjectionMatrixFOV(FIELD_OF_VIEW, width / height, NEAR, FAR)
    view, lens = (np.reshape(matrix, (4, 4)).T for matrix in (_view(*robot), projection))
    clip = lens @ view @ np.array([*point, 1.0])
    return bool(np.all(np.abs(clip[:3]) < clip[3]))


def require_egl() -> None:
    """Check that `load_egl` works here.

    :raises RuntimeError: PyBullet came without the plugin, or there is no EGL driver that it works with.
    """
    if (trouble := egl_trouble()) is not None:
        raise RuntimeError(
            'renderer="egl" needs the EGL plugin of PyBullet, part of its Linux wheels, and an OpenGL driver, of a '
            f'GPU or of Mesa (libegl1); renderer="tiny" needs neither. {trouble}'
        )


def load_egl(client: int) -> None:
    """Let OpenGL draw what is loaded into a client from now on, on a GPU where there is one.

    The floor must be there before: the plugin crashes on a plane.

    :param client: PyBullet client, without a window, where `require_egl` found nothing.
    :raises RuntimeError: the plugin did not load.
    """
    with silenced(1):  # it tells about its driver
        number = pybullet.loadPlugin(_egl_plugin(), f"_{EGL_MODULE}Plugin", physicsClientId=client)
    if number < 0:
        raise RuntimeError('renderer="egl": PyBullet could not load its EGL plugin; renderer="tiny" needs none.')


@cache
def egl_trouble() -> str | None:
    """Why `load_egl` does not work here, or None. Tried in a process of its own, which the plugin ends if it fails."""
    plugin = _egl_plugin()
    if plugin is None:
        return f"There is no module {EGL_MODULE}."
    load = f"p.connect(p.DIRECT); sys.exit(p.loadPlugin({plugin!r}, '_{EGL_MODULE}Plugin') < 0)"
    command = [sys.executable, "-c", f"import sys, pybullet as p; {load}"]
    try:
        tried = subprocess.run(command, capture_output=True, check=False, text=True, timeout=EGL_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"Loading the plugin took more than {EGL_TIMEOUT:g} seconds."
    if tried.returncode == 0:
        return None
    return f"Loading the plugin ended with {tried.returncode}: {(tried.stdout + tried.stderr).strip()[-500:]}"


def _egl_plugin() -> str | None:
    found = importlib.util.find_spec(EGL_MODULE)
    return None if found is None else found.origin


def _rgba(colour: Colour) -> list[float]:
    return [*(part / 255.0 for part in colour), 1.0]


def _view(x: float, y: float) -> tuple[float, ...]:
    """PyBullet's view matrix of a camera that looks at (x, y)."""
    z_axis_up = 2
    return pybullet.computeViewMatrixFromYawPitchRoll((x, y, LOOK_AT_HEIGHT), DISTANCE, YAW, PITCH, 0.0, z_axis_up)
