"""Which layer is given what another puts out, in forwards of several kinds."""

import torch
from torch import nn

from lightning_vision.callbacks.hooks._successions import successions


class Asks(nn.Module):
    """Its forward asks for the size, and passes by the activation if the images are small."""

    def __init__(self, passes_by):
        super().__init__()
        self.norm, self.act, self.last = nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)
        self.passes_by = passes_by

    def forward(self, x):
        if x.shape[2] > 4:
            x = x * 2
        x = self.norm(x)
        if self.passes_by and x.shape[2] < 8:
            return self.last(x)
        return self.last(self.act(x))


def test_a_branch_that_makes_no_difference_is_followed():
    assert successions(Asks(passes_by=False)) == {"norm": ["act"], "act": ["last"], "last": [None]}


def test_where_two_branches_do_not_agree_nothing_is_said():
    assert successions(Asks(passes_by=True))["norm"] == [None]


class Fails(nn.Module):
    """A forward that needs numbers; its child does not."""

    def __init__(self):
        super().__init__()
        self.body, self.tail = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Identity(), nn.ReLU()), nn.ReLU()

    def forward(self, x):
        return self.tail(self.body(x * float(x.mean())))


def test_children_of_a_forward_that_needs_numbers_are_followed_and_identities_looked_through():
    assert successions(Fails()) == {"body.0": ["body.2"], "body.1": ["body.2"], "body.2": [None]}


def test_a_forward_that_loops_for_ever_is_given_up():
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.ReLU()

        def forward(self, x):
            while x.sum() > 0:
                x = self.layer(x)
            while x.sum() <= 0:
                x = self.layer(x)
            return x

    # Answered no it ends at once and calls nothing; answered yes it never ends.
    assert successions(Loops()) == {}


def test_each_call_of_a_shared_layer_is_told():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv = nn.ReLU(), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.act(self.conv(self.act(x)) + x)

    assert successions(Shares()) == {"act": ["conv", None], "conv": [None]}
    assert torch.is_grad_enabled()
