"""The seams that callbacks share: places of Lightning's loop where they act, each with its undo."""
