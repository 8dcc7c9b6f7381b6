"""The leaderboard: which regularizer is better, by how much, at what cost, and is it sure?

board       the TOML file
costs       what each entry costs
plan        its runs; job is one of them; stale says which are made again, and why
executor    makes the runs, wherever a package brings them to; sweep is the one of this machine
statistics  medians, intervals, verdicts
evaluate    from runs to a result
result      leaderboard.json; text, page and files write it out
compare     the gate between two of them
"""
