"""EMA against timm's ModelEmaV3 and torch's AveragedModel on the same trajectory: difference 0.0."""

import pytest
from lightning.pytorch import Callback
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_vision.callbacks import EMA
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Timm(Callback):
    def on_train_start(self, trainer, pl_module):
        self.theirs = ModelEmaV3(pl_module.network, decay=0.9, foreach=True)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.theirs.update(pl_module.network)

    def state(self):
        return self.theirs.module.state_dict()


class Torch(Callback):
    def on_train_start(self, trainer, pl_module):
        self.theirs = AveragedModel(pl_module.network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        # Its first update copies, ours averages with the initial weights; so let it copy those.
        self.theirs.update_parameters(pl_module.network)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.theirs.update_parameters(pl_module.network)

    def state(self):
        return self.theirs.module.state_dict()


@pytest.mark.parametrize("rival", [Timm, Torch])
def test_the_average_is_theirs(rival):
    module, peer = Plain(), rival()
    quiet_trainer(callbacks=[EMA(decay=0.9, warmup=1.0), peer], max_epochs=3).fit(module, plain_loader())
    ours, theirs = module.network.state_dict(), peer.state()

    assert theirs.keys() == ours.keys()
    floating = [name for name, value in ours.items() if value.is_floating_point()]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in floating) == 0.0
