"""Memory is given out again when nobody can see what is in it, and not before."""

import copy
import pickle

import pytest
import torch

from lightning_vision.callbacks.hooks._memory import Blocks, dense


def test_memory_is_used_again_once_its_tensor_is_gone():
    blocks = Blocks()
    first = blocks.like(torch.zeros(4, 3, 8, 8))
    address = first.data_ptr()
    del first

    assert blocks.like(torch.zeros(3, 3, 8, 8)).data_ptr() == address  # a short last batch fits in, too


HOLDERS = {
    "view": lambda tensor: tensor[1:2, 0],
    "detached": lambda tensor: tensor.detach(),
    "numpy": lambda tensor: tensor.numpy()[0],
    "storage": lambda tensor: tensor.untyped_storage(),
    "graph": lambda tensor: (tensor * torch.ones((), requires_grad=True)).sum().grad_fn,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_is_held_in_any_way_is_not_given_out(holder):
    blocks = Blocks()
    images = torch.zeros(4, 3, 8, 8)
    tensor = blocks.like(images)
    address, held = tensor.data_ptr(), HOLDERS[holder](tensor)
    del tensor
    others = [blocks.like(images) for _ in range(3)]
    addresses = {it.data_ptr() for it in others}

    assert address not in addresses and len(addresses) == 3
    del held
    assert blocks.like(images).data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_form_and_order_are_those_of_the_images(dtype, layout):
    images = torch.zeros(4, 3, 8, 6).to(dtype).contiguous(memory_format=layout)
    tensor = Blocks().like(images)

    assert (tensor.shape, tensor.dtype, tensor.stride()) == (images.shape, images.dtype, images.stride())
    assert dense(images) is images
    assert dense(images[:, :, ::2]).is_contiguous()


def test_copies_and_pickles_hold_no_memory():
    blocks = Blocks()
    blocks.like(torch.zeros(256, 256))

    assert copy.deepcopy(blocks)._blocks == []
    assert len(pickle.dumps(blocks)) < 200


def test_cleared_memory_stays_valid_for_who_holds_it():
    blocks = Blocks()
    tensor = blocks.like(torch.zeros(8)).fill_(3.0)
    blocks.clear()

    assert tensor.tolist() == [3.0] * 8
