import torch

from lightning_vision.self_supervised.gather import apart, gather, mean_of_all, own_rows
from lightning_vision.self_supervised.simclr import nt_xent

ROWS = (5, 3)


def contrasted(rows, through):
    """Loss and gradients of this rank's rows of the batch, averaged over ranks as DDP does."""
    import torch.distributed as dist

    rank = dist.get_rank()
    torch.manual_seed(0)
    batch = torch.randn(2, sum(rows), 4, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    begin = sum(rows[:rank])
    own = batch[:, begin : begin + rows[rank]] @ weight
    loss = through(own[0], own[1])
    loss.backward()
    dist.all_reduce(weight.grad)
    return loss.detach(), weight.grad / dist.get_world_size()


def alone(rows):
    torch.manual_seed(0)
    batch = torch.randn(2, sum(rows), 4, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    own = batch @ weight
    loss = nt_xent(own[0], own[1], 0.5)
    loss.backward()
    return loss.detach(), weight.grad


def test_two_ranks_with_unequal_rows_contrast_as_one_process(two_ranks):
    loss, gradient = alone(ROWS)

    for found, moved in two_ranks(contrasted, ROWS, lambda first, second: nt_xent(first, second, 0.5)):
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(moved, gradient)


def test_gathering_without_gradients_is_noticed(two_ranks):
    def detached(first, second):
        both = torch.cat([first, second])
        theirs = gather(both.detach())
        theirs = torch.cat([theirs[: own_rows(both).start], both, theirs[own_rows(both).stop :]])
        return (theirs @ theirs.T).logsumexp(1).mean()

    def attached(first, second):
        rows = gather(torch.cat([first, second]))
        return (rows @ rows.T).logsumexp(1).mean()

    without, with_them = (two_ranks(contrasted, ROWS, through)[0] for through in (detached, attached))

    torch.testing.assert_close(without[0], with_them[0])
    assert (without[1] - with_them[1]).abs().max() > 1e-3


def test_in_evaluation_a_process_asks_no_other(two_ranks):
    """Ranks may have different numbers of batches: what one of them asks alone, nobody answers."""

    def uneven():
        import torch.distributed as dist

        rows = torch.randn(2, 3)
        with apart():
            for _ in range(1 + dist.get_rank()):
                assert gather(rows) is rows
                assert own_rows(rows) == slice(0, 2)
                torch.testing.assert_close(mean_of_all(rows[:, 0]), rows[:, 0].mean())
        return len(gather(rows))

    assert two_ranks(uneven, timeout=30) == [4, 4]


def test_alone_the_rows_are_the_batch():
    rows = torch.randn(3, 2)

    assert gather(rows) is rows
    assert own_rows(rows) == slice(0, 3)
