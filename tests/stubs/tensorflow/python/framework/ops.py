import types

_default_graph_stack = types.SimpleNamespace(reset=lambda: None)
