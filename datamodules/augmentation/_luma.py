"""Red, green and blue in grey, as torchvision weighs them; it rounds the sum down to whole numbers."""

__all__ = ["LUMA"]

LUMA = (0.2989, 0.587, 0.114)
