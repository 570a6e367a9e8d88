"""What every callback guarantees, as checks that return what they found: an empty list is a kept guarantee.

`subjects` enumerates the callbacks, `conditions` the ways to train, `runs` fits and records, `checks` compares,
`rules` reads the source, `pairs` chooses who meets whom, `report` prints the tables. Checks take subjects, not names,
so that the suite's own tests can give them a callback that breaks a guarantee.
"""
