"""Train one small transformer with many optimisers, each at its own best learning rate, and report which did best.

The command is `steepest compare`; `steepest.compare.job.compare` is the same as a function, and
`steepest.compare.train.train` is one run, with any optimiser. Needs `pip install 'steepest[cli]'`.
"""
