"""Time per frame, beside PyBullet's own picture of the same scene.

    python benchmarks/render_rate.py [--renderer tiny egl] [--frames 60]

Both draw the same states, 640 × 480 pixels each: the harder task, random actions, its flag in sight. They take turns,
so that what slows the machine down slows both.

- **ours** is `render()`: what moves by PyBullet, lawn, sky and shadows by NumPy.
- **PyBullet** is `getCameraImage` by the same renderer and camera, of the same robot, cube and flag on PyBullet's own
  ground (`plane.urdf`), without shadows. Its default is with them, which the third line has.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pybullet_data

from sb3_ppo_variants.envs import rendering
from sb3_ppo_variants.envs.flagrun import RoboschoolHumanoidFlagrunHarder
from sb3_ppo_variants.envs.quiet import pybullet

RENDERERS = {"tiny": pybullet.ER_TINY_RENDERER, "egl": pybullet.ER_BULLET_HARDWARE_OPENGL}
WIDTH, HEIGHT = 640, 480


def playing(renderer: str) -> RoboschoolHumanoidFlagrunHarder:
    """An environment that draws with a renderer, at the start of an episode; one as the other."""
    env = RoboschoolHumanoidFlagrunHarder(
        render_mode="rgb_array", width=WIDTH, height=HEIGHT, renderer=renderer, pose_probabilities=(1.0, 0.0, 0.0)
    )
    env.reset(seed=0)
    env.target = (-3.0, 8.0)
    env.render()  # the first one plants the flag
    return env


def pybullets_picture(env: RoboschoolHumanoidFlagrunHarder, renderer: str, shadow: bool) -> None:
    position, _ = pybullet.getBasePositionAndOrientation(env.robot.body.id, env.client)
    pybullet.getCameraImage(
        WIDTH,
        HEIGHT,
        pybullet.computeViewMatrixFromYawPitchRoll(
            (*position[:2], rendering.LOOK_AT_HEIGHT), rendering.DISTANCE, rendering.YAW, rendering.PITCH, 0.0, 2
        ),
        pybullet.computeProjectionMatrixFOV(rendering.FIELD_OF_VIEW, WIDTH / HEIGHT, rendering.NEAR, rendering.FAR),
        lightDirection=rendering.LIGHT,
        shadow=int(shadow),
        renderer=RENDERERS[renderer],
        physicsClientId=env.client,
    )


def milliseconds(draw: Callable[[], object]) -> float:
    started = time.perf_counter()
    draw()
    return 1000.0 * (time.perf_counter() - started)


def compare(renderer: str, frames: int) -> None:
    ours, theirs = playing(renderer), playing(renderer)
    ground = str(Path(pybullet_data.getDataPath()) / "plane.urdf")
    pybullet.loadURDF(ground, basePosition=(0.0, 0.0, -0.02), physicsClientId=theirs.client)
    times: dict[str, list[float]] = {"ours": [], "PyBullet": [], "PyBullet, with shadows": []}
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (frames, 17)):
        for env in (ours, theirs):
            env.step(action)
        times["ours"].append(milliseconds(ours.render))
        times["PyBullet"].append(milliseconds(lambda: pybullets_picture(theirs, renderer, shadow=False)))
        times["PyBullet, with shadows"].append(milliseconds(lambda: pybullets_picture(theirs, renderer, shadow=True)))
    print(f"\n{renderer}: medians of {frames} frames of {WIDTH} × {HEIGHT}")
    for who, taken in times.items():
        ratio = statistics.median(mine / other for mine, other in zip(times["ours"], taken, strict=True))
        middle = statistics.median(taken)
        print(f"  {who:24s}{middle:7.1f} ms per frame  {1000.0 / middle:6.1f} frames/s   ours / this: {ratio:.2f}")
    for env in (ours, theirs):
        env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--renderer", nargs="+", choices=list(RENDERERS), default=["tiny"])
    parser.add_argument("--frames", type=int, default=60)
    arguments = parser.parse_args()
    for renderer in arguments.renderer:
        compare(renderer, arguments.frames)


if __name__ == "__main__":
    main()
