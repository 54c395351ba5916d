"""Put a normalizer where a model has nn.BatchNorm2d: trace, find the sites, rewrite. The models know nothing of it.

apply(model, "frn")          the same model with the normalizer in it; the one given is left as it was
find_sites(model)            every BatchNorm2d, with the convolution before it and the activation after it
report(model)                what was replaced: units, groups, parameters, and what was left alone
site_shapes(model, (3, 224, 224))    (C, H, W) entering every BatchNorm2d
check_traceable(model, "frn")        whether a method that needs the graph can have it

tree.py      shallow copies of the containers on the way to what is replaced; the rest is shared
trace.py     the forward as torch.fx graphs, one for training and one for evaluation
sites.py     sites and residual sums in a graph
sums.py      which sums a unit takes into itself
rewrite.py   the units, and the graphs with them
forward.py   a module that runs generated code
report.py  shapes.py
"""

from normbench.surgery.report import Report, SiteRow, report
from normbench.surgery.rewrite import apply, check_traceable, find_sites
from normbench.surgery.shapes import site_shapes
from normbench.surgery.sites import Site

__all__ = ["Report", "Site", "SiteRow", "apply", "check_traceable", "find_sites", "report", "site_shapes"]
