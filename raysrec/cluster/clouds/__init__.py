"""Node providers for `ray up` that take a machine at the full price where no spot machine is to be had.

Ray's own providers fail then, and its autoscaler asks for the same spot machine again, for ever: only Kubernetes tells
it that a kind of node cannot be had. A cluster's YAML names the class: `provider: {type: external, module: …}`.
"""
