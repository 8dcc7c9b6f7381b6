"""The leaderboard: which regularizer is better, by how much, at what cost, and is it sure?

board       the TOML file
costs       what each entry costs
sweep       the runs
statistics  medians, intervals, verdicts
result      leaderboard.json; text, page and files write it out
gate        two of them compared
"""
