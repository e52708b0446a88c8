def coordination_leader(cluster):
    return "/job:worker/replica:0/task:0"
