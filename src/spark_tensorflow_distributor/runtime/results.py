"""What a trainer sends in place of a result that it cannot pickle."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RescuedWeights:
    """The weights of the models in a result that cannot be pickled.

    Attributes:
        message: Why it cannot be pickled, and what to do.
        data: A ``.npz`` archive.
    """

    message: str
    data: bytes
