"""The figures of a run, and the tables of steps behind them."""
