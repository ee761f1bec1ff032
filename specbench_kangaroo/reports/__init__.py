"""What a run's summary says, and its drawing in every format.  Nothing here imports torch."""
