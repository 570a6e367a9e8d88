"""The modes of `explain`, a file each, and what they share."""
