# make demo    the main job on embedded real data        make test     the tests
# make check   lint and types                            make ci       what CI runs: check, test, demo
# make test-slow             tests that need minutes or a Debian package
# make gpu                   what only a CUDA device can show: its tests, and what steps and units cost there
# make report  the tables and plots of runs/ again       make clean    remove .venv and caches, never runs/
# make bench   what each normalizer costs here, quickly; all shapes:  python -m normbench.bench
# make reference   the reference study again, into runs/again (hours)
# make tables  the papers' tables, and how long each would take here
# make table-gn              one of them in its paper's protocol, ours beside theirs; ARGS="scale=0.02 data.root=DIR" goes on
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test check ci test-slow gpu report bench tables reference clean

demo: .venv/ready
	$(PY) -m normbench.sweep norm=bgn batch=2,8,32

test: .venv/ready
	$(PY) -m pytest -n 2 --dist worksteal

check: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

ci: check test demo

test-slow: .venv/ready
	$(PY) -m pytest -m slow

gpu: .venv/ready
	$(PY) -m pytest -m gpu
	$(PY) -m normbench.bench step device=cuda arch=resnet50 batch=2,8,32,128 norm=bn,gn,bgn out=bench/gpu
	$(PY) -m normbench.bench device=cuda shapes=resnet50@224 batch=32,128 memory_format=channels_last out=bench/gpu
	$(PY) scripts/slots.py --slots 1,4 --no-plain device=cuda

report: .venv/ready
	$(PY) -m normbench.report runs

bench: .venv/ready
	$(PY) -m normbench.bench quick=true

reference: .venv/ready
	scripts/reference.sh $(ARGS)

tables: .venv/ready
	$(PY) -m normbench.paper list

table-%: .venv/ready
	$(PY) -m normbench.paper run $* $(ARGS)

# Made on first use and again when the requirements change.
.venv/ready: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	find normbench tests -name __pycache__ -prune -exec rm -rf {} +
