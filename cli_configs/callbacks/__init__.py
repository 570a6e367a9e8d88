"""One small file a callback, to add to any run."""
