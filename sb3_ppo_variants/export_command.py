"""``ppo-variants export``: a trained run of rl_zoo3's folders as files that run no code.

This is the one command that itself opens a zip and a pickle, which run whatever code they hold: for your own runs only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_ppo_variants import ALGORITHMS
from sb3_ppo_variants.export_files import FORMATS
from sb3_ppo_variants.files import folder_name
from sb3_ppo_variants.safe_yaml import load_run_yaml
from sb3_ppo_variants.zoo import BEST_FOLDER, NORMALISER, PEERS, check_names

DESCRIPTION = """\
Export a trained run as policy.json and policy.safetensors, which load without running code
(sb3_ppo_variants.load_policy), and as ONNX or TorchScript.

Careful: to do so, this command opens the run's zip and vecnormalize.pkl, and these run whatever code is in them.
Export your own runs only; ask others for an export instead of a zip."""

ALGORITHM_CLASSES = {**{name: f"sb3_ppo_variants.{kind}" for name, kind in ALGORITHMS.items()}, **PEERS}
ALGORITHM_CLASSES["ppo"] = "stable_baselines3.PPO"


def main(program: str, arguments: Sequence[str], algo: str, env: str, folder: str) -> int:
    """Run the command.

    :param program: its name, for the help
    :param arguments: what follows it on the command line
    :param algo: the default of ``--algo``
    :param env: the default of ``--env``
    :param folder: the default of ``-f``
    :return: 0
    :raises ValueError: if there is no such run, or it cannot be exported
    """
    parser = argparse.ArgumentParser(
        program, description=DESCRIPTION, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default=algo, help=f"algorithm (default: {algo})")
    parser.add_argument("--env", default=env, help=f"task (default: {env})")
    parser.add_argument("-f", "--folder", default=folder, type=Path, help=f"log folder (default: {folder})")
    parser.add_argument("--exp-id", default=0, type=int, help="number of the run; 0: the latest; -1: no run's folder")
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: export, in the run's folder)")
    parser.add_argument("--formats", nargs="+", default=["safetensors"], choices=FORMATS, help="safetensors is always")
    parser.add_argument("--load-best", action="store_true", help="the best model of the evaluations, not the last")
    flags = parser.parse_args(arguments)
    check_names("algorithm", [flags.algo], ALGORITHM_CLASSES)

    run, name = find_run(flags.folder, flags.algo, flags.env, flags.exp_id)
    model_path = run / ("best_model.zip" if flags.load_best else f"{name}.zip")
    if not model_path.is_file():
        raise ValueError(f"no model found for {flags.algo} on {flags.env}: there is no {model_path}")
    output = flags.output or run / "export"
    export_run(flags.algo, model_path, run / name, output, flags.formats, best=flags.load_best)
    print(f"Export: {output} ({', '.join(sorted(path.name for path in output.glob('policy.*')))})")
    return 0


def find_run(folder: Path, algo: str, env: str, number: int) -> tuple[Path, str]:
    """A run's folder, and the task's name as rl_zoo3 writes it in names of files.

    :param folder: the log folder
    :param number: the run's; 0: the latest; -1: the algorithm's own folder
    :raises ValueError: if there is none
    """
    name = folder_name(env)
    if number < -1:
        raise ValueError(f"--exp-id must be -1, 0 or the number of a run; got {number}")
    if number == -1:
        return folder / algo, name
    pattern = re.compile(rf"{re.escape(name)}_(\d+)")
    matches = [pattern.fullmatch(path.name) for path in (folder / algo).glob("*") if path.is_dir()]
    numbers = [int(match[1]) for match in matches if match]
    if not numbers or (number and number not in numbers):
        which = f"run {number}" if number else "run"
        raise ValueError(f"no model found for {algo} on {env}: there is no {which} in {folder / algo}")
    return folder / algo / f"{name}_{number or max(numbers)}", name


def _class_of(algo: str) -> Any:
    module, _, name = ALGORITHM_CLASSES[algo].rpartition(".")
    _require_of_zoo(f"--algo {algo}", module.partition(".")[0])
    return getattr(importlib.import_module(module), name)


def _require_of_zoo(what: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f'{what} needs the [zoo] extra: pip install "sb3-ppo-variants[zoo]"')


def _was_normalized(config: Path) -> bool:
    """Whether a run's settings ask for a VecNormalize."""
    if not config.is_file():
        return False
    _require_of_zoo(f"reading {config}", "yaml")
    settings = load_run_yaml(config, {"normalize"})
    if not isinstance(settings, dict):
        raise ValueError(f"{config} must be a mapping of settings; got {settings!r:.80}")
    return bool(settings.get("normalize"))


def export_run(
    algo: str,
    model_path: Path,
    settings: Path,
    output: Path,
    formats: Sequence[str] = ("safetensors",),
    *,
    best: bool = False,
) -> None:
    """Open a run's files, which are the user's own, and export them.

    :param algo: a key of ``ALGORITHM_CLASSES``
    :param model_path: the zip
    :param settings: the folder of ``config.yml`` and ``vecnormalize.pkl``
    :param output: the folder to write
    :param formats: as for :func:`~sb3_ppo_variants.export.export_policy`
    :param best: whether the zip is the best model of the evaluations, which has statistics of its own
    :raises ValueError: if it cannot be exported
    """
    from sb3_ppo_variants.export import export_policy

    algorithm = _class_of(algo)
    statistics = (settings / BEST_FOLDER if best else settings) / NORMALISER
    if not statistics.is_file() and _was_normalized(settings / "config.yml"):
        last = "; the last model has its own: leave --load-best out" if best else ""
        raise ValueError(
            f"the run was trained with normalised observations or rewards, and there is no {statistics}{last}"
        )
    model = algorithm.load(model_path, device="cpu")
    # As VecNormalize.load, which also wants an environment.
    vec_normalize = pickle.loads(statistics.read_bytes()) if statistics.is_file() else None
    export_policy(model, output, formats=formats, vec_normalize=vec_normalize)
