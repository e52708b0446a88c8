def apply_aggregation_replica_context(value, *_):
    return value
