def get_distributed_dataset(*_, **__):
    raise NotImplementedError


def get_distributed_datasets_from_function(*_, **__):
    raise NotImplementedError
