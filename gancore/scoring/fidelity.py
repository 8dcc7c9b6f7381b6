"""The metrics of images: FID, Inception Score, KID, precision and recall, by torch-fidelity."""

from __future__ import annotations

from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gancore.scoring.inputs import Inputs, Statistics
from gancore.scoring.metrics import ISC_SPLITS, NEIGHBOUR

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def settings(samples: int, reference: int) -> dict[str, int]:
    """Return what a protocol tells of how so many images were scored against so many real ones."""
    return {
        "isc_splits": ISC_SPLITS,
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": min(KID_SUBSET_SIZE, samples, reference),
    }


def statistics(features: Tensor) -> Statistics:
    """Return the mean and covariance of features (N, D)."""
    made = fid_features_to_statistics(features)
    return Statistics(made["mu"], made["sigma"])


def fid(inputs: Inputs) -> dict[str, float]:
    """Return the Fréchet distance between Gaussians of both kinds' mean and covariance."""
    ours, theirs = (
        {"mu": one.mean, "sigma": one.covariance}
        for one in (statistics(inputs.features), inputs.reference_statistics)
    )
    made = fid_statistics_to_metric(ours, theirs, verbose=False)
    return {"fid": made["frechet_inception_distance"]}


def isc(inputs: Inputs) -> dict[str, float]:
    """Return exp E KL(p(y|x) ‖ p(y)), its mean and deviation over 10 splits."""
    made = isc_features_to_metric(inputs.logits, splits=ISC_SPLITS, rng_seed=_draws(inputs))
    return {"isc": made["inception_score_mean"], "isc_std": made["inception_score_std"]}


def kid(inputs: Inputs) -> dict[str, float]:
    """Return MMD² under the kernel (x·y / D + 1)³, its mean and deviation over 100 subsets."""
    ours, theirs = inputs.features, inputs.reference_features
    made = kid_features_to_metric(
        ours, theirs, rng_seed=_draws(inputs), verbose=False, **settings(len(ours), len(theirs))
    )
    return {
        "kid": made["kernel_inception_distance_mean"],
        "kid_std": made["kernel_inception_distance_std"],
    }


def prc(inputs: Inputs) -> dict[str, float]:
    """Return the share of samples of each kind that lie among those of the other kind."""
    made = prc_features_to_metric(
        inputs.features,
        inputs.reference_features,
        prc_neighborhood=NEIGHBOUR,
        save_cpu_ram=True,
        verbose=False,
    )
    return {"precision": made["precision"], "recall": made["recall"]}


def _draws(inputs: Inputs) -> int:
    return inputs.seed % 2**32  # as many seeds as NumPy has
