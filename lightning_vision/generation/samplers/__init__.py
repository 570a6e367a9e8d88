"""Ways from noise to images, as free functions of a model, a start and times."""
