"""The PPO paper's algorithms for Stable-Baselines3, and its Roboschool humanoids on PyBullet.

Importing this package registers the tasks with gymnasium. The algorithms load on first use, so that a
process that only steps environments never imports torch.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from sb3_ppo_variants.envs import register_envs

if TYPE_CHECKING:
    from sb3_ppo_variants.export import ExportedPolicy as ExportedPolicy
    from sb3_ppo_variants.export import ExportError as ExportError
    from sb3_ppo_variants.export import export_policy as export_policy
    from sb3_ppo_variants.export import load_policy as load_policy
    from sb3_ppo_variants.many.training import DivergenceWarning as DivergenceWarning
    from sb3_ppo_variants.many.training import train_many as train_many
    from sb3_ppo_variants.on_policy import Minibatch as Minibatch
    from sb3_ppo_variants.on_policy import PaperOnPolicyAlgorithm as PaperOnPolicyAlgorithm
    from sb3_ppo_variants.ppo_clip import PPOClipPaper as PPOClipPaper
    from sb3_ppo_variants.ppo_kl_penalty import PPOAdaptiveKLPaper as PPOAdaptiveKLPaper
    from sb3_ppo_variants.ppo_kl_penalty import PPOFixedKLPaper as PPOFixedKLPaper
    from sb3_ppo_variants.ppo_unclipped import PPOUnclippedPaper as PPOUnclippedPaper
    from sb3_ppo_variants.resume.folder import BundleWarning as BundleWarning
    from sb3_ppo_variants.resume.names import BundleError as BundleError
    from sb3_ppo_variants.vanilla_pg import VanillaPGPaper as VanillaPGPaper

__version__ = "0.1.0"

# The zoo's name of each algorithm → its class: the one table that the command line and rl_zoo3 read.
ALGORITHMS = {
    "ppo_clip_paper": "PPOClipPaper",
    "ppo_adaptive_kl_paper": "PPOAdaptiveKLPaper",
    "ppo_fixed_kl_paper": "PPOFixedKLPaper",
    "ppo_unclipped_paper": "PPOUnclippedPaper",
    "vanilla_pg_paper": "VanillaPGPaper",
}

_MODULE_OF = {
    "BundleError": "resume.names",
    "BundleWarning": "resume.folder",
    "ExportError": "export",
    "ExportedPolicy": "export",
    "export_policy": "export",
    "load_policy": "export",
    "DivergenceWarning": "many.training",
    "train_many": "many.training",
    "Minibatch": "on_policy",
    "PaperOnPolicyAlgorithm": "on_policy",
    "PPOClipPaper": "ppo_clip",
    "PPOAdaptiveKLPaper": "ppo_kl_penalty",
    "PPOFixedKLPaper": "ppo_kl_penalty",
    "PPOUnclippedPaper": "ppo_unclipped",
    "VanillaPGPaper": "vanilla_pg",
}

_SUBMODULES = ("losses", "presets")

__all__ = ["ALGORITHMS", "__version__", *_MODULE_OF, *_SUBMODULES]

register_envs()


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        offered = [*_MODULE_OF, *_SUBMODULES]
        nearest = difflib.get_close_matches(name, offered, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}; it offers {', '.join(offered)}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_SUBMODULES})
