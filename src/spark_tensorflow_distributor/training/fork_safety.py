"""Checks TensorFlow's state for the fork server, without importing it."""

from .private_names import EAGER_CONTEXT


def has_eager_context() -> bool:
    """Return whether this process has initialised TensorFlow's eager context, which does not survive a fork."""
    context = getattr(EAGER_CONTEXT.loaded(), "_context", None)
    return getattr(context, "_context_handle", None) is not None
