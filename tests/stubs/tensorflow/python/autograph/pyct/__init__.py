"""As much of TensorFlow's internals as a trainer touches."""
