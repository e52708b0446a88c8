def get_seed(seed):
    return seed, seed
