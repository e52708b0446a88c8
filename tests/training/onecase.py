def run(strategy, name, folder, count):
    from conformance import launch

    with strategy.scope():
        return launch.run_case(name, folder, count)
