# make all SPARSITY=0.9    the whole study on real images          make test    the proof that the software works
# make help                everything else

PYTHON  ?= python3
VENV    ?= .venv
CONFIG  ?= configs/mnist5k.yaml
RESULTS ?= results
SPARSITY ?=
SEEDS    ?=
# Any other settings, as key=value: make all SET="network=resnet20 train.epochs=30"
SET      ?=

comma := ,
list = [$(subst $() ,$(comma),$(strip $(subst $(comma), ,$(1))))]
OVERRIDES = $(if $(SPARSITY),sparsities=$(call list,$(SPARSITY))) \
            $(if $(SEEDS),seeds=$(if $(findstring $(comma),$(SEEDS)),$(call list,$(SEEDS)),$(SEEDS))) $(SET)
STUDY = --config "$(CONFIG)" --results "$(RESULTS)" $(OVERRIDES)
PIPELINE = $(VENV)/bin/python -m pipeline
VERBS = train prune recover latency predict score similarity correlate report plan show
# Two set-ups at the same time would write over each other.
LOCK = $(if $(shell command -v flock),flock $(VENV).lock)
# In benchmarks/: what is timed, and what is held against simulations of known truth.
PEERS = bootstrap distillation input machinery pruning scoring training
TRUTHS = coverage verdicts families groups
LINT = --line-length 120 --select E,F,I,B,UP,SIM,C4 --ignore E741

.PHONY: all $(VERBS) dashboard audit test quick lint docs bench simulations clean-environment help
.DEFAULT_GOAL := help

all: $(VENV)/ready
	@$(PIPELINE) run $(STUDY)

$(VERBS): $(VENV)/ready
	@$(PIPELINE) $@ $(STUDY)

dashboard: $(VENV)/ready
	@$(PIPELINE) dashboard --results "$(RESULTS)"

audit: $(VENV)/ready
	@$(PIPELINE) audit --reference "$(REFERENCE)" --candidate $(CANDIDATE)

test: $(VENV)/ready-test lint
	@$(VENV)/bin/python -m pytest -q

quick: $(VENV)/ready-test
	@$(VENV)/bin/python -m pytest -q -m "not slow and not gpu"

lint: $(VENV)/ready-test
	@$(VENV)/bin/ruff check $(LINT) pipeline tests benchmarks docs

docs: $(VENV)/ready
	@$(VENV)/bin/python docs/generate.py

bench: $(VENV)/ready-test
	@for name in $(PEERS); do echo "== $$name"; $(VENV)/bin/python benchmarks/$$name.py || exit 1; done

simulations: $(VENV)/ready-test
	@for name in $(TRUTHS); do echo "== $$name"; $(VENV)/bin/python benchmarks/$$name.py || exit 1; done

$(VENV)/ready: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 2; }
	@echo "Setting up $(VENV), once: torch and what else the pipeline needs (a few minutes, some GB)"
	@$(LOCK) sh -c 'test $@ -nt setup.cfg && test $@ -nt constraints.txt || { \
	  $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e . \
	  && touch $@; }'

$(VENV)/ready-test: $(VENV)/ready
	@echo "Adding what the tests need"
	@$(LOCK) sh -c '$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test,export]" \
	  && touch $@'

clean-environment:
	rm -rf $(VENV) $(VENV).lock

help:
	@echo "make all SPARSITY=0.9        run the study; prints the table and where report and dashboard are"
	@echo "make test                    lint and tests"
	@echo "make quick                   the tests that are not slow: under a minute on two cores"
	@echo "make docs                    the generated parts of docs/, from registries and schema"
	@echo "make dashboard               TensorBoard on 127.0.0.1"
	@echo "make audit REFERENCE=dense.npz CANDIDATE=pruned.npz"
	@echo "make bench                   measurements against peers"
	@echo "make simulations             intervals, verdicts and corrections against known truth (some hours)"
	@echo "one verb per stage:          $(VERBS)"
	@echo "variables:  SPARSITY=0.5,0.9   SEEDS=3 (or 0,1,2)   CONFIG=$(CONFIG)   RESULTS=$(RESULTS)"
	@echo "            SET=\"key=value ...\" for any other setting   PYTHON=$(PYTHON)   VENV=$(VENV)"
