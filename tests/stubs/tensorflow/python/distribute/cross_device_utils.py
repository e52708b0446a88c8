class CollectiveReplicaLauncher:
    def all_reduce(self, tensor):
        raise NotImplementedError

    def _all_gather(self, tensor, options):
        raise NotImplementedError
