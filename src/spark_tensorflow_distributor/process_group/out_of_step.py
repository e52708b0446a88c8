"""The error for workers that make different calls, and what to do about it."""

from ..errors import CollectiveError

SAME_CALLS = (
    "All workers must call fit, and whatever else trains on them together, equally often and in the same order: call "
    "it on every rank, not under a condition such as `if get_context().is_chief`. Only evaluate and predict may be "
    "called by one worker alone, and only if that worker has all rows of the data: not with a DataShard, nor with "
    "AutoShardPolicy.OFF or FILE."
)


class OutOfStepError(CollectiveError):
    """The members of a group called different operations."""
