def _create_device_dataset(*args):
    return args
