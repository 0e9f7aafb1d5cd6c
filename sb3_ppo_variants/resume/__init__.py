"""Runs that can be interrupted and go on: resume bundles, and the ``learn`` that keeps them."""
