"""The figures of a run, and the step tables behind them.  Nothing here imports torch."""
