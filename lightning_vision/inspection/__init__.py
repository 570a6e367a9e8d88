"""Reading what the layers of any network put out; neutral ground, which needs torch and no task."""
