"""What published results refuse to be."""

import pytest
from pydantic import ValidationError

from auditspec.results import Contribution, Curve, Path


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Curve, {"step": (0, 1), "learning_rate": (0.1,) * 8, "loss": (1.0, None)}),
        (
            Contribution,
            {"behavior": "b", "stage": "s", "step": (0,), "value": (1.0, 2.0), "total": 3.0},
        ),
        (
            Path,
            {
                "behavior": "b",
                "arm": (),
                "states": ("initial", "one:end"),
                "levels": (0.1, 0.2),
                "errors": (0.0,),
                "skills": (None, None),
                "exact": True,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_lists_of_the_same_things_are_of_one_length(
    kind: type[Curve], fields: dict[str, object]
) -> None:
    """Else items could stand in results that no report shows."""
    with pytest.raises(ValidationError, match="to be of one length"):
        kind.model_validate(fields)
