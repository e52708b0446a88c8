"""Recognises lines that TensorFlow's native code prints although nothing is wrong. Pure."""

import re

# The prefix of native log messages: level, date, time, thread, file and line; or TensorFlow's older form.
_PREFIX = rb"^(?:[IWE]\d{4} \S+ +\d+ |\d{4}-\d\d-\d\d \S+ [IWE] \S*/?)"
_ALWAYS = re.compile(
    rb"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    # An iterator that is dropped before its end; oneDNN's and the CPU's features; libraries registered twice.
    rb"|" + _PREFIX + rb"(?:generator_dataset_op|port|cpu_feature_guard|util)\.cc"
    rb"|" + _PREFIX + rb"cuda_(?:dnn|fft|blas)\.cc.*(?:factory|register)"
    rb"|" + _PREFIX + rb"posix_engine_listener\.cc.*Closing acceptor"  # this library closes the port
    rb"|" + _PREFIX + rb"computation_placer\.cc.*already registered"
)
# TensorFlow with CUDA looks for GPUs even in a process that should not use any.
_WITHOUT_GPU = re.compile(_PREFIX + rb"(?:cuda_executor|cuda_driver|cuda_diagnostics|cudart_stub|gpu_device)\.cc")


def is_noise(line: bytes, *, has_gpus: bool) -> bool:
    """Return whether a line of a trainer's stderr is irrelevant to the user.

    Args:
        line: The line.
        has_gpus: Whether the worker trains on GPUs, so that lines about them matter.
    """
    return bool(_ALWAYS.match(line)) or (not has_gpus and bool(_WITHOUT_GPU.match(line)))
