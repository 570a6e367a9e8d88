"""Loads the fixtures of `harness/support/plugin.py`, a plugin so that the harness itself can be tested."""

pytest_plugins = ["pytester", "support.plugin", "support.budgets", "support.conformance.report"]
