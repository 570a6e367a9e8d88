"""Neon's merge is a line through two checkpoints, and beyond the base it undoes what self-training does to a model."""

import math

import pytest
import torch
from torch import Tensor

from lightning_vision.merging import neon_merge
from support.modules import small_network


def pair():
    """Two networks with batch norm and different counts of batches."""
    torch.manual_seed(0)
    made = []
    for batches in (3, 5):
        network = small_network()
        for _ in range(batches):
            network(torch.randn(8, 1, 8, 8))
        made.append({name: value.clone() for name, value in network.state_dict().items()})
    return made


def bits(value):
    """The memory of a tensor, so that 0.0 and -0.0 differ."""
    return value.contiguous().view(torch.uint8) if value.dim() else value.reshape(1).view(torch.uint8)


def test_row_215_w_0_is_the_base_and_w_minus_1_the_self_trained_bit_for_bit():
    base, self_trained = pair()
    base["network_mask"] = torch.tensor([-math.inf, -0.0])
    self_trained["network_mask"] = torch.tensor([-math.inf, 1.0])
    none, all_of_it = (neon_merge(base, self_trained, w) for w in (0, -1))

    for name, value in base.items():
        assert torch.equal(bits(value), bits(none[name]))
        if value.is_floating_point():
            assert torch.equal(bits(self_trained[name]), bits(all_of_it[name]))


def test_row_215_integer_buffers_are_the_bases():
    base, self_trained = pair()
    for w in (-1, 0, 0.5, 2):
        merged = neon_merge(base, self_trained, w, kept=["*running_*"])

        assert merged["1.num_batches_tracked"].dtype == torch.int64
        assert merged["1.num_batches_tracked"] == 3


def test_row_215_the_merge_is_linear_in_w():
    """Values are small whole numbers and w dyadic, so that nothing is rounded."""
    generator = torch.Generator().manual_seed(0)
    base, self_trained = ({"weight": torch.randint(-99, 100, (50,), generator=generator).float()} for _ in range(2))
    at = {w: neon_merge(base, self_trained, w)["weight"] for w in (0.25, 1.5, 1.75, 3.0)}

    assert torch.equal(at[1.75], at[0.25] + at[1.5] - base["weight"])
    assert torch.equal(at[3.0] - base["weight"], 2 * (at[1.5] - base["weight"]))
    assert torch.equal(at[1.5], 2.5 * base["weight"] - 1.5 * self_trained["weight"])


TRUNCATION = 1.5  # standard deviations: a sampler that leaves the tails out


def fitted(samples):
    """Maximum likelihood of a Gaussian for each row: `mean` and `log_scale` `(N,)`."""
    return {"mean": samples.mean(dim=1), "log_scale": samples.std(dim=1, correction=0).log()}


def own_samples(model, count, generator):
    """Of each model what a mode-seeking sampler draws from it, `(N, count)`."""
    normal = torch.distributions.Normal(0.0, 1.0)
    edge = normal.cdf(torch.tensor(TRUNCATION, dtype=torch.float64))
    uniform = torch.rand(len(model["mean"]), count, generator=generator, dtype=torch.float64)
    z = normal.icdf(1 - edge + uniform * (2 * edge - 1))
    return model["mean"][:, None] + model["log_scale"].exp()[:, None] * z


def distance_from_truth(model):
    """KL divergence of each model from N(0, 1), the truth."""
    variance = (2 * model["log_scale"]).exp()
    return model["log_scale"] + (1 + model["mean"] ** 2) / (2 * variance) - 0.5


def gaussians() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """400 models fitted to 20 true samples each, which makes them narrow, and the same after self-training."""
    generator = torch.Generator().manual_seed(0)
    base = fitted(torch.randn(400, 20, generator=generator, dtype=torch.float64))
    return base, fitted(own_samples(base, 5000, generator))


def test_row_215_a_gaussian_shrinks_by_self_training_as_its_truncation_says():
    """A normal variable cut off at c has the variance 1 - 2 c phi(c) / (2 Phi(c) - 1), 0.552 for 1.5."""
    base, self_trained = gaussians()
    density = math.exp(-(TRUNCATION**2) / 2) / math.sqrt(2 * math.pi)
    expected = 1 - 2 * TRUNCATION * density / math.erf(TRUNCATION / math.sqrt(2))
    shrunk = (2 * (self_trained["log_scale"] - base["log_scale"])).exp()

    assert bool((shrunk < 1).all())
    assert shrunk.mean().item() == pytest.approx(expected, abs=0.003)


def test_row_215_the_extrapolation_moves_a_gaussian_towards_the_truth_and_the_other_way_moves_it_off():
    base, self_trained = gaussians()
    start = distance_from_truth(base)
    gain = {w: start - distance_from_truth(neon_merge(base, self_trained, w)) for w in (-1, -0.25, 0.2, 3.0)}
    error = {w: it.std().item() / len(it) ** 0.5 for w, it in gain.items()}
    variance = (2 * neon_merge(base, self_trained, 0.2)["log_scale"]).exp().mean().item()

    assert gain[0.2].mean().item() > 2 * error[0.2]
    assert gain[-0.25].mean().item() < -2 * error[-0.25]
    assert gain[-1].mean().item() < -2 * error[-1]
    assert gain[3.0].mean().item() < -2 * error[3.0]  # too far
    assert (2 * base["log_scale"]).exp().mean().item() < 1 < variance * 1.1


def test_kept_names_stay_the_bases():
    base, self_trained = pair()
    merged = neon_merge(base, self_trained, 5.0, kept=["1.running_*", "5.bias"])

    assert torch.equal(base["1.running_var"], merged["1.running_var"])
    assert torch.equal(base["5.bias"], merged["5.bias"])
    assert not torch.equal(base["5.weight"], merged["5.weight"])


def test_half_precision_is_merged_in_double():
    """1.5 * 50176 - 0.5 * 60416 = 45056, though 75264 is more than float16 holds."""
    halves = [{"weight": torch.tensor([value], dtype=torch.float16)} for value in (50176.0, 60416.0)]
    merged = neon_merge(*halves, 0.5)["weight"]

    assert merged.dtype == torch.float16
    assert merged.item() == 45056.0


def test_a_negative_variance_is_refused():
    base, self_trained = ({"norm.running_var": torch.tensor([value])} for value in (1.0, 3.0))
    with pytest.raises(
        ValueError, match=r"^neon_merge: norm.running_var is below zero at w=1.5, and a variance cannot"
    ):
        neon_merge(base, self_trained, 1.5)


@pytest.mark.parametrize("w", [math.nan, math.inf, "1", None, True])
def test_a_weight_that_is_no_number_is_refused(w):
    with pytest.raises(ValueError, match=r"^neon_merge: w is .*; give a finite number, 0 for the base alone.$"):
        neon_merge(*pair(), w)


def test_a_pattern_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"^neon_merge: kept='1.runing_var' matches no name .*mean 1.running_var"):
        neon_merge(*pair(), 1.0, kept=["1.runing_var"])


def test_other_architectures_are_refused():
    base, self_trained = pair()
    del self_trained["5.bias"]
    with pytest.raises(ValueError, match=r"^a and b are of different architectures: 5.bias has the shape \(10,\) in"):
        neon_merge(base, self_trained, 1.0, labels=["a", "b"])
