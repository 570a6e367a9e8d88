"""Ready-made runs and pieces of runs, found by `--config FOLDER/NAME`."""
