import types

coordination_config_pb2 = types.SimpleNamespace(CoordinatedJob=dict)


class CollectiveAllReduceExtended:
    def _use_merge_call(self):
        return True
