"""What each normalizer costs, beside nn.BatchNorm2d + ReLU and beside a memory copy: ``python -m normbench.bench``.

command.py settings.py values.py   the words of the command line, each mode's keys, checked; torch-free
measure.py statistics.py memory.py   rounds in which everyone takes a turn; medians and quartiles; bytes
outcome.py results.py sheet.py progress.py   what every mode begins with, leaves and shows

Units, and whole steps with arch=…
contestants.py  who stands in the table: the registry, a few more settings of it, peers that are installed
cases.py        what they are measured on: the site shapes of networks
units.py networks.py   forward and backward of every unit on every case; whole training steps of a network
unitsjob.py table.py plot.py   a run, its table and its picture

Training loops: step
ours.py plainloop.py plainprocess.py synthetic.py   the loop of a sweep's cell; the plain one, in its own process;
                pictures for both
loops.py breakdown.py   a row per loop; where its time goes
stepjob.py steptable.py stepplot.py

The largest batch: fit
fit.py trial.py   the search; real steps and their peak
fitjob.py fittable.py

A streamed set's loader beside the network: loader
loader.py ceiling.py loaderjob.py   the words; everyone's turn; the run
"""
