"""Re-running a record: its steps, its changes of the model, from any state."""
