# make demo    the whole method on handwritten digits, on the CPU: reproduce.py digits
# make test    the tests; a part of them with pytest's ARGS="tests/run -k config"
# make lint    style, types, spelling, and that a name means one thing
# make bench   the plain way and ours, side by side
# make cifar10 CIFAR-10 as published, for a GPU; MINUTES=8 for a slice of so many; ARGS=--rehearse for anything else
# make docs    the pages as a site, with a search that needs no server: site/index.html
# Each sets up .venv first, from requirements.txt (and requirements-test.txt), if need be. Python 3.11 or newer.
# (docs: .venv/docs, from requirements-docs.txt alone.)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
# of the tests: one more than there are cores, since many wait for other processes
WORKERS = $(shell $(RUN) -c 'import os; print(min(4, os.cpu_count() + 1))')

.PHONY: demo test lint bench cifar10 docs clean

demo: $(VENV)/ready
	$(RUN) reproduce.py digits

test: $(VENV)/ready-for-tests
	$(RUN) -m pytest -q --durations=5 --dist worksteal $(if $(filter -n%,$(ARGS)),,-n $(WORKERS)) $(ARGS)

lint: $(VENV)/ready-for-tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m codespell_lib .
	$(RUN) .ci/names.py

bench: $(VENV)/ready
	$(RUN) benchmarks/bench.py

cifar10: $(VENV)/ready
	$(RUN) reproduce.py cifar-10 $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

docs: $(VENV)/docs/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

$(VENV)/docs/ready: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --disable-pip-version-check -q -r $<
	touch $@

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON, as in: make demo PYTHON=/usr/bin/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready requirements-test.txt
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV)
