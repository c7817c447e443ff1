"""The audited code in a process of its own, which can do nothing but answer.

`process` starts it, and a second one; `worker` is its main program; `isolation` is what it gives up before it takes
the code. `client` asks, through a `channel`, in the values of `codec`; `answers` answers. The audit sees the code as
`functions` and its models as `shadow`s: nothing of it is ever imported where evidence, cache, or keys are. A `witness`
asks the second process again.
"""
