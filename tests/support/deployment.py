"""Deployed weights as a file of safetensors would give them."""

from collections.abc import Mapping

from torch import Tensor

from auditspec.artifacts.weights import Weights
from auditspec.checks.deployed import UNCONVERTED, Deployed
from auditspec.spec.models import Conversion


def deployed_as(
    tensors: Mapping[str, Tensor], tolerance: float = 0.0, conversion: Conversion = UNCONVERTED
) -> Deployed:
    return Deployed(Weights(dict(tensors), "safetensors"), tolerance, conversion)
