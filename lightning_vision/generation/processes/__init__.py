"""What a network learns to undo: paths from noise to images, their targets and their losses."""
