# Each target works on a bare clone (python3, pip, make): it first makes its own virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER := $(VENV)/.peer
# Packages that the extras do not name. torchvision and timm come without their dependencies: they would replace the pinned torch.
VISION := torchvision timm
VISION_NEEDS := pillow pyyaml huggingface_hub
# Of Lightning what training on one machine needs; the rest of its dependencies read files over the network.
LIGHTNING := lightning lightning-utilities torchmetrics tqdm
TRANSFORMERS := transformers tokenizers regex

export OMP_NUM_THREADS ?= 1

.PHONY: venv demo test lint types unit long durations docs docs-version pages fuzz mutate census speed quality compare leaderboard compress-bench wheel-check clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,export,train,int8,data,ray,compress,compare,detection,docs]' $(VISION_NEEDS)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps $(VISION) $(LIGHTNING) $(TRANSFORMERS)
	touch $@

$(PEER): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps torch-pruning tqdm
	touch $@

# The demo alone needs few packages; where the whole environment is, it takes that.
DEMO := $(if $(wildcard $(STAMP)),$(VENV),$(VENV)-demo)

demo: $(DEMO)/.installed  ## make a small network on embedded data faster, and explain it: under three minutes with set-up
	$(DEMO)/bin/secateur demo

$(VENV)-demo/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-demo
	$(VENV)-demo/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[train,export]'
	touch $@

test: $(STAMP)  ## lint, types and tests, two at a time: types take one core for two minutes
	$(MAKE) -j2 lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

long: $(STAMP)  ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -n 2 -m long

durations: $(STAMP)  ## which tests take over a second here: tests/long.txt anew, on a quiet machine
	$(BIN)/python benchmarks/durations.py

docs: $(STAMP)  ## the documentation site in site/, warnings as errors, nothing fetched; the tests build it too
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-version: $(STAMP)  ## the site as version VERSION, and as the latest one, on the branch gh-pages of this clone
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mike deploy --update-aliases $(VERSION) latest
	PATH="$(CURDIR)/$(BIN):$$PATH" mike set-default latest

pages: $(STAMP)  ## every generated page and table of the documentation, from the code and the results
	$(BIN)/python docs/tables.py
	$(BIN)/python benchmarks/tables.py

fuzz: $(STAMP)  ## the property-based tests with 10,000 random networks instead of 200
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 -m fuzz

mutate: $(STAMP)  ## small faults in a copy of each method's code, or of METHOD=name: do its tests notice? minutes for each
	$(BIN)/python benchmarks/mutate.py $(METHOD)

census: $(STAMP)  ## trace, prune, cut and verify every torchvision model and timm family: about an hour
	$(BIN)/python benchmarks/census.py
	$(BIN)/python benchmarks/tables.py

speed: $(PEER)  ## our trace, grouping and cut beside Torch-Pruning's, and their growth with depth
	$(BIN)/python benchmarks/graph_speed.py
	$(BIN)/python benchmarks/graph_growth.py
	$(BIN)/python benchmarks/tables.py

quality: $(STAMP)  ## BWCP beside its yardsticks on CIFAR-10 (.data/cifar10.npz), and the cost of its training step
	$(BIN)/python benchmarks/bwcp_step.py
	$(BIN)/python benchmarks/bwcp_quality.py
	$(BIN)/python benchmarks/tables.py

METHODS ?= bwcp,dcpcac,nap,csgd,cpmc,l1,random,scratch
COMPARE = $(BIN)/secateur compare recipes/cifar10-resnet8-short.yaml --methods $(METHODS) --jobs 2 --out runs/compare

compare: $(STAMP)  ## methods on CIFAR-10 (.data/cifar10.npz) with equal epochs: three seeds at half the FLOPs, one at 0.7 and 0.3
	-$(COMPARE) --seeds 3 --budget flops=0.5  # a method that fails is a line in the result
	-$(COMPARE) --seeds 1 --budget flops=0.7 --budget flops=0.3
	$(BIN)/python benchmarks/compare_results.py runs/compare
	$(BIN)/python benchmarks/tables.py

SETUP ?= resnet20
DEVICE ?= auto
JOBS ?= 1

leaderboard: $(STAMP)  ## all methods on CIFAR-10 (.data/cifar10.npz) with SETUP's network; MINUTES=7: a piece, the next goes on
	$(BIN)/python benchmarks/leaderboard.py --setup $(SETUP) --device $(DEVICE) --jobs $(JOBS) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python benchmarks/tables.py

BENCH = $(BIN)/python benchmarks/compress_bench.py
VGG_RUN ?= runs/vgg16

compress-bench: $(STAMP)  ## compress beside single methods at equal time: hours; needs two runs on CIFAR-10, and photographs
	$(BENCH) --name resnet20 --run runs/hour
	$(BENCH) --name vgg16_bn --run $(VGG_RUN)
	$(BENCH) --setup photographs --weights $(WEIGHTS) --photographs $(PHOTOGRAPHS)
	$(BENCH) --setup segmenter

wheel-check:  ## sdist and wheel: built, checked, and the wheel tried in a new environment; minutes
	PYTHON=$(PYTHON) .ci/wheel-check

clean:
	rm -rf $(VENV) $(VENV)-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
