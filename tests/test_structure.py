"""Who may import whom, and what importing the package brings in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_ppo_variants

PACKAGE = Path(sb3_ppo_variants.__file__).parent
STDLIB = set(sys.stdlib_module_names)


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_levels(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)} - STDLIB


@pytest.mark.parametrize("name", ["losses.py", "controllers.py"])
def test_the_mathematics_imports_torch_at_most(name: str) -> None:
    assert top_levels(PACKAGE / name) <= {"torch"}


def test_the_tasks_import_neither_torch_nor_sb3() -> None:
    for path in (PACKAGE / "envs").rglob("*.py"):
        allowed = {
            "numpy",
            "pybullet",
            "pybullet_data",
            "pybullet_utils",
            "gymnasium",
            "sb3_ppo_variants",
            "typing_extensions",
        }
        assert top_levels(path) <= allowed, path
        inside = {name for name in imported_modules(path) if name.startswith("sb3_ppo_variants.")}
        assert all(name.startswith(("sb3_ppo_variants.envs", "sb3_ppo_variants.arguments")) for name in inside), path


def test_variants_do_not_import_one_another() -> None:
    variants = {path.stem for path in PACKAGE.glob("*.py") if path.stem.startswith(("ppo_", "vanilla_"))}
    assert {"ppo_clip", "ppo_kl_penalty"} <= variants
    for variant in variants:
        others = {f"sb3_ppo_variants.{other}" for other in variants - {variant}}
        assert not others & imported_modules(PACKAGE / f"{variant}.py"), variant


def test_what_is_not_an_algorithm_does_not_import_one() -> None:
    """Bundles, files and readers of YAML stand below the algorithms."""
    algorithms = {"on_policy", "ppo_clip", "ppo_kl_penalty", "ppo_unclipped", "vanilla_pg", "zoo", "tuning"}
    below = ["files.py", "finite.py", "runs.py", "safe_yaml.py", "export_format.py", "export_files.py"]
    paths = [
        *(PACKAGE / name for name in below),
        *(PACKAGE / "resume").glob("*.py"),
        *(PACKAGE / "vec_env").glob("*.py"),
    ]
    assert len(paths) > 15
    for path in paths:
        imported = {name.split(".")[1] for name in imported_modules(path) if name.startswith("sb3_ppo_variants.")}
        for_types = {"on_policy"} if path.name == "state.py" else set()
        assert not imported & (algorithms - for_types), path


def test_many_trainings_stand_on_the_algorithms_and_only_studies_and_the_reproduction_on_them() -> None:
    paths = list((PACKAGE / "many").glob("*.py"))
    assert len(paths) > 8
    for path in paths:
        imported = {name.split(".")[1] for name in imported_modules(path) if name.startswith("sb3_ppo_variants.")}
        assert not imported & {"zoo", "tuning", "cli", "envs", "schema"}, path
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ("many", "reproduce", "tuning") and path.name != "__init__.py":
            assert not any(name.startswith("sb3_ppo_variants.many") for name in imported_modules(path)), path


def test_only_the_command_line_knows_the_reproduction() -> None:
    knowing = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "reproduce"
        and any(name.startswith("sb3_ppo_variants.reproduce") for name in imported_modules(path))
    }
    assert knowing == {"cli.py"}
    for path in (PACKAGE / "reproduce").glob("*.py"):
        assert not {"optuna", "rl_zoo3"} & top_levels(path), path


def test_agents_stand_on_the_zoo_and_their_folder_is_read_without_torch() -> None:
    paths = list((PACKAGE / "agents").glob("*.py"))
    assert len(paths) > 5
    for path in paths:
        imported = {name.split(".")[1] for name in imported_modules(path) if name.startswith("sb3_ppo_variants.")}
        assert not imported & {"cli", "reproduce", "tuning", "many", "on_policy"}, path
    code = (
        "import sys, sb3_ppo_variants.agents.folder; sys.exit(bool({'torch', 'yaml', 'pybullet'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_zoo_knows_rl_zoo3() -> None:
    knowing = {path.name for path in PACKAGE.rglob("*.py") if "rl_zoo3" in top_levels(path)}
    assert knowing <= {"zoo.py"}


def test_nothing_imports_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "sb3_ppo_variants.cli" not in imported_modules(path), path


def test_importing_the_package_for_its_tasks_does_not_import_torch_or_sb3() -> None:
    code = "import sys, sb3_ppo_variants; sys.exit(bool({'torch', 'stable_baselines3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_load_on_first_use_and_unknown_ones_name_the_nearest() -> None:
    for name in sb3_ppo_variants.__all__:
        assert getattr(sb3_ppo_variants, name) is not None
        assert name in dir(sb3_ppo_variants)
    for algorithm in sb3_ppo_variants.ALGORITHMS.values():
        assert algorithm in sb3_ppo_variants.__all__
    with pytest.raises(AttributeError, match="did you mean 'PPOClipPaper'"):
        sb3_ppo_variants.PPOClipPapre  # noqa: B018
