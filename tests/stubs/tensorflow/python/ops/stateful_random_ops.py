global_generator = None
