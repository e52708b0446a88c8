class InputWorkers:
    pass
