"""Recording a training run: what a training script calls, and the writer behind it."""
