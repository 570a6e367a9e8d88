import pytest
import torch
from torch.nn import functional as F

from lightning_vision.self_supervised.key_queue import KeyQueue
from lightning_vision.self_supervised.moco import info_nce_queue


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


def filled(size, *batches):
    queue = KeyQueue(size, 1)
    for number, batch in enumerate(batches):
        queue.collect(number, rows(*batch))
    queue.enqueue()
    return queue.stored()[:, 0].tolist()


def test_new_keys_take_the_places_of_the_oldest():
    assert filled(4, [1, 2]) == [1, 2]
    assert filled(4, [1, 2, 3], [4, 5, 6]) == [5, 6, 3, 4]
    # Of a batch that does not fit the last ones stay.
    assert sorted(filled(3, [1], [2, 3, 4, 5, 6])) == [4, 5, 6]


def test_keys_come_in_with_the_step_and_a_batch_computed_again_once():
    queue = KeyQueue(4, 1)
    queue.collect(0, rows(1))
    queue.collect(1, rows(2))
    queue.collect(0, rows(1))

    assert len(queue.stored()) == 0
    queue.enqueue()
    assert queue.stored()[:, 0].tolist() == [1, 2]


def test_keys_and_count_stand_in_files_and_what_waits_does_not():
    queue, other = KeyQueue(4, 2), KeyQueue(4, 2)
    queue.collect(0, torch.randn(3, 2))
    queue.enqueue()
    queue.collect(1, torch.randn(3, 2))
    other.collect(0, torch.randn(1, 2))
    other.load_state_dict(queue.state_dict())
    other.enqueue()

    assert torch.equal(other.stored(), queue.stored())
    assert len(other.stored()) == 3


def test_keys_of_two_ranks_come_in_batch_by_batch_in_the_order_of_ranks(two_ranks):
    def fill():
        queue, rank = KeyQueue(7, 1), torch.distributed.get_rank()
        for number in range(2):
            queue.collect(number, rows(*range(10 * number + 5 * rank, 10 * number + 5 * rank + 3 - rank)))
        queue.enqueue()
        return queue.stored()[:, 0].tolist()

    # Three rows of rank 0, then two of rank 1, twice; ten keys for seven places.
    assert two_ranks(fill) == [filled(7, [0, 1, 2, 5, 6], [10, 11, 12, 15, 16])] * 2


def test_places_without_a_key_do_not_count():
    """The loss of a half-filled queue is that of its keys; the mutant has zeros beside them."""
    torch.manual_seed(0)
    queue, keys = KeyQueue(6, 4), F.normalize(torch.randn(2, 4), dim=1)
    queue.collect(0, keys)
    queue.enqueue()
    query, partner = torch.randn(2, 1, 4)
    found = info_nce_queue(query, partner, queue.stored(), 0.2)

    torch.testing.assert_close(found, info_nce_queue(query, partner, keys, 0.2))
    assert (found - info_nce_queue(query, partner, queue.keys, 0.2)).abs() > 0.1


def test_no_places_are_refused():
    with pytest.raises(ValueError, match=r"^the queue's size is 0; give the number of keys that stay, at least 1$"):
        KeyQueue(0, 4)
