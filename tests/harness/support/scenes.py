"""Scenes of digits that can be learnt by heart."""

from lightning_vision.datamodules import DigitScenes

__all__ = ["RepeatedScenes"]


class RepeatedScenes(DigitScenes):
    """`DigitScenes` whose training scenes are its validation scenes, the same in every epoch."""

    def load(self) -> None:
        super().load()
        self.train_set = self.val_set
