import types

coordination_config_pb2 = types.SimpleNamespace(CoordinatedJob=dict)
