PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints-dev.txt

# threads that spin while they wait slow a busy machine tenfold
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test conformance fuzz lint docs study quality broadcast-study steering students kernels clean

demo: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/foveate demo --out demo.png

test: $(STAMP)
	@$(BIN)/pytest tests --numprocesses auto --maxprocesses 4 --dist worksteal

# every family's stock pipeline against every processor and neighbour; writes docs/compatibility.md; minutes
conformance: $(STAMP)
	@$(BIN)/python tests/write_compatibility.py

# 500 random combinations of sizes, options, processors and neighbours; a table of the same page.
# ARGS='--seeds 500 1000' takes others; minutes
fuzz: $(STAMP)
	@$(BIN)/python tests/write_fuzz.py $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# the site, into site/; its search needs a server: python3 -m http.server -d site
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 TRANSFORMERS_VERBOSITY=error $(BIN)/mkdocs build --strict -q

# hours; writes the tables of docs/foveated.md and goes on where it stopped
study: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/python -P -m foveate.pipelines.shapes.study

# hours; writes the tables of docs/quality.md and goes on where it stopped
quality: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/python -P -m foveate.pipelines.shapes.study.quality

# an hour; writes the tables and plots of docs/broadcast.md and goes on where it stopped
broadcast-study: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/python -P -m foveate.pipelines.broadcast.study --models sd
	@HF_HUB_OFFLINE=1 $(BIN)/python -P -m foveate.pipelines.broadcast.study --models flux \
		--refine-on 16 --tries 40

# an hour; writes the tables of docs/modulation.md and goes on where it stopped.
# ARGS='--number 20 --steps 10 --page PATH' is a first look
steering: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/python -P -m foveate.pipelines.shapes.steering $(ARGS)

# half an hour to an hour each; goes on where it stopped. One of them: make student-flux_local
students: student-sd_linear student-flux_local student-flux_hybrid

student-%: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/foveate distill --config examples/distill/$*.yaml

# compiles for GPUs without one and writes docs/kernels.md; half an hour, later only what changed.
# ARGS=--accept takes figures that rose, ARGS='--python PATH' checks a second Triton
kernels: $(STAMP)
	@$(BIN)/python -P -m foveate.kernels.triton.offline $(ARGS)

clean:
	rm -rf $(VENV) build dist site *.egg-info demo.png demo.json
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name '.*_cache' \) -prune -exec rm -rf {} +

# torch goes first and alone, so that nothing else picks its version
$(STAMP): pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("foveate needs Python 3.10 or newer: set PYTHON=...") if sys.version_info < (3, 10) else None'
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e ".[dev,plot]"
	@touch $@

$(VENV)/.docs: $(STAMP)
	@$(PIP) -e ".[docs]"
	@touch $@
