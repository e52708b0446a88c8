"""One function on a group of workers: driver, agents, trainers, and what they share."""
