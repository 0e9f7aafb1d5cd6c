"""The tasks."""


def register_envs() -> None:
    """Placeholder."""
