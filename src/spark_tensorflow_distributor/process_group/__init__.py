"""Collectives between the trainers of a group, over sockets and shared memory, without TensorFlow."""
