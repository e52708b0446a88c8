class StrategyExtendedV1:
    def __init__(self, strategy):
        self.strategy = strategy


class UpdateContext:
    pass
