"""Collectives between the trainers of a group, over sockets and shared memory; free of TensorFlow."""
