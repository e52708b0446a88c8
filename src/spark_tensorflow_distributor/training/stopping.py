"""Ends training at the same point on all workers."""

import tensorflow as tf

from .collectives import Collectives


def any_wants(wants: bool, collectives: Collectives) -> bool:
    """Return whether any worker wants to stop; a collective, which every worker must call at the same point.

    The driver's request reaches the workers at different times, and no worker may continue after another has stopped.
    """
    return int(collectives.all_reduce(tf.constant(int(wants)))) > 0
