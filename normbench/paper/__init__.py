"""The papers' tables, run again in the papers' protocols: ours beside theirs.

    python -m normbench.paper list          # the tables, what they need, how long they would take here
    python -m normbench.paper run gn        # every cell of one, what is done is kept; then ours beside theirs
    python -m normbench.paper show gn       # theirs beside what is there

    published/      published numbers with source and confidence, one tidy schema (published.py)
    compare.py      which stored cells stand for which published number, and where their protocol differs
    table.py        the comparison for people and as data
    needs.py        the data that a table needs
    cost.py         how long a table would take here, from measured training steps

What a table's cells are stands in conf/paper; normbench.grid reads it, so that ``python -m normbench.sweep paper=gn``
is the same grid. Comparing needs no torch.
"""
