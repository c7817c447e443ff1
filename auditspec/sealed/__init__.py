"""The audited code in a process of its own, which can do nothing but answer.

`client` starts the process and asks; `worker` is its main program; `isolation` is what it gives up before it
imports anything. Both speak through a `channel`, in the values of `codec`. The audit sees the code as
`functions` and its models as `shadow`s: nothing of it is ever imported where evidence, cache, or keys are.
"""
