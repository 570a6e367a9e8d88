"""Loads the fixtures of `harness/support/plugin.py`; they are a plugin so that the harness can be tested on small runs."""

pytest_plugins = ["pytester", "support.plugin"]
