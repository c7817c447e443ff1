"""Sub-batch replay: every later step on a part of its minibatch, beside the recorded run."""
