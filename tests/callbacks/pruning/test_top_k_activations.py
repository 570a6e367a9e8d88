"""Top-k activations: the k largest of each token, bitwise nothing at full width, a training that is a loop by hand."""

import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.callbacks import TopKActivations, keep_top_k
from support.compare import distance
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


def relu_vit():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        num_classes=10,
        embed_dim=24,
        depth=2,
        num_heads=2,
        act_layer=nn.ReLU,
    )


class Classifier(Plain):
    def __init__(self):
        super().__init__()
        self.network = relu_vit()

    def forward(self, image):
        return self.network(F.interpolate(image, 32).expand(-1, 3, -1, -1))


def test_row_111_k_as_large_as_the_width_leaves_a_relu_network_bitwise_unchanged():
    plain, loader = Classifier(), ResumableLoader(labelled_images(12), 6)
    wide = Classifier()
    quiet_trainer(max_epochs=1).fit(plain, loader)
    quiet_trainer(max_epochs=1, callbacks=[TopKActivations(k=96)]).fit(wide, loader)

    assert distance(plain.state_dict(), wide.state_dict()) == 0.0
    x = torch.randn(3, 96)
    assert keep_top_k(x, 96) is x


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_row_111_at_most_k_are_not_zero_and_they_are_the_largest(k, dim):
    x = torch.randn(4, 8, 5, 8, generator=torch.Generator().manual_seed(k)).relu()
    kept = keep_top_k(x, k, dim)

    assert int((kept != 0).sum(dim).max()) <= k
    largest = x.sort(dim, descending=True).values.narrow(dim, 0, k)
    assert torch.equal(largest, kept.sort(dim, descending=True).values.narrow(dim, 0, k))
    assert torch.equal(kept[kept != 0], x[kept != 0])


def test_ties_do_not_make_it_more_than_k():
    assert int(keep_top_k(torch.ones(6, 10), 4).sum()) == 24


def test_gradients_pass_through_the_kept_entries_alone():
    x = torch.tensor([[0.5, 3.0, -1.0, 2.0]], requires_grad=True)
    (keep_top_k(x, 2) * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()

    assert x.grad.tolist() == [[0.0, 10.0, 0.0, 1000.0]]


def by_hand(k, mutant=False):
    """`Plain` with the k largest of the ReLU's channels, trained on the same batches; a mutant takes the smallest."""
    torch.manual_seed(3)
    module = Plain()
    stepper = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(stepper, 5, gamma=0.8)
    conv, norm, act, dropout, flatten, linear = module.network
    for image, target in plain_loader(30):
        maps = act(norm(conv(image)))
        limit = maps.sort(1, descending=not mutant).values[:, k - 1 : k]
        maps = torch.where(maps <= limit if mutant else maps >= limit, maps, 0)
        stepper.zero_grad()
        F.cross_entropy(linear(flatten(dropout(maps))), target).backward()
        stepper.step()
        schedule.step()
    return module.state_dict()


def test_a_training_equals_a_loop_by_hand_and_a_wrong_one_is_noticed():
    torch.manual_seed(3)
    module = Plain()
    quiet_trainer(max_epochs=1, callbacks=[TopKActivations(fraction=0.5)]).fit(module, plain_loader(30))

    assert distance(module.state_dict(), by_hand(2)) < 1e-6
    assert distance(module.state_dict(), by_hand(1)) > 1e-3
    assert distance(module.state_dict(), by_hand(2, mutant=True)) > 1e-3


def test_every_mlp_of_a_transformer_is_cut_in_evaluation_and_none_when_the_run_is_over():
    module, seen = Classifier(), []
    for block in module.network.blocks:
        block.mlp.fc2.register_forward_pre_hook(lambda it, args: seen.append(int((args[0] != 0).sum(-1).max())))
    trainer = quiet_trainer(callbacks=[TopKActivations(fraction=0.1)])
    for call in (trainer.validate, trainer.test):
        call(module, plain_loader(6), verbose=False)
    trainer.predict(module, plain_loader(6))
    cut, seen[:] = list(seen), []
    module(torch.randn(2, 1, 8, 8))

    assert len(cut) == 6
    assert max(cut) == 10
    assert min(seen) > 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "TopKActivations: fraction is 0.0, which lets nothing through; give a share above 0."),
        ({"fraction": 1.2}, "TopKActivations: fraction is 1.2; give a number from 0 to 1."),
        ({"k": 0}, "TopKActivations: k is 0; give a whole number of at least 1."),
        (
            {"k": 3, "fraction": 0.5},
            "TopKActivations: both k=3 and fraction=0.5 were given; give one of them.",
        ),
        ({}, "TopKActivations: neither k nor fraction was given; give one of them."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        TopKActivations(**settings)

    assert message == str(error.value)


def test_layers_that_are_not_there_or_put_out_no_tensor_are_refused():
    def refusal(module, **settings):
        with pytest.raises(ValueError) as error:
            quiet_trainer(callbacks=[TopKActivations(k=2, **settings)]).validate(module, plain_loader(6), verbose=False)
        return str(error.value)

    without = Plain()
    without.network[2] = nn.Identity()
    two = Plain()
    two.network[4] = nn.Sequential(
        nn.Flatten(), nn.LSTM(36, 36), type("First", (nn.Module,), {"forward": lambda s, x: x[0]})()
    )

    assert refusal(Plain(), layers="network.9") == (
        "TopKActivations: layers 'network.9' matches none of the layers; there are network.5, network.4, network.3."
    )
    assert refusal(without) == (
        "TopKActivations: Plain has no MLP block with an activation and neither ReLU nor GELU layers; name layers with "
        "layers=, or make its activations layers instead of functions."
    )
    assert refusal(two, layers=["network.4.1"]) == (
        "TopKActivations: layer 'network.4.1' puts out a tuple and no tensor; name another one with layers=."
    )


@pytest.mark.parametrize(("k", "spoken"), [(2, False), (1000, True)])
def test_a_run_in_which_nothing_was_cut_says_so(k, spoken):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(callbacks=[TopKActivations(k=k)], max_epochs=1, limit_train_batches=1)
        trainer.fit(Plain(), plain_loader(6))

    told = [
        str(it.message) for it in caught if "TopKActivations: it changed nothing, for its layers" in str(it.message)
    ]
    assert spoken == bool(told)
