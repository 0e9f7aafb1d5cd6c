"""Trained agents in folders: packaged from a run, scored, played. ``docs/agents.md`` tells what such a folder holds."""
