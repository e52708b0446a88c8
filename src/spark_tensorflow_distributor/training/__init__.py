"""TensorFlow and Keras on several workers."""
