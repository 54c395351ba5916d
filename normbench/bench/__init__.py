"""What each normalizer costs, beside nn.BatchNorm2d + ReLU and beside a memory copy: ``python -m normbench.bench``.

command.py      the words of the command line, checked; torch-free
contestants.py  who stands in the table: the registry, a few more settings of it, peers that are installed
cases.py        what they are measured on: the site shapes of networks
measure.py      rounds in which everyone takes a turn; samples long enough to time
units.py        forward and backward of every unit on every case
networks.py     whole training steps of a network
statistics.py   medians, quartiles, geometric means
results.py      rows, and the files that are left
table.py plot.py progress.py   what a person sees
"""
